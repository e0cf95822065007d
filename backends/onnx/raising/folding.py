"""Nodes whose results are known before the network runs: constants, and arithmetic of shapes.

Numbers are computed as ONNX says; where an entry is a size with a symbol in it, entry by entry
with :mod:`.values`. What would be large without need is refused before it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import helper

from archir.ir.dims import Dim
from archir.ops.arithmetic import Array

from . import values as v
from .values import UnfoldedError

LARGEST = 2**27
"""Elements of one result; a fully connected layer of VGG has 102,760,448."""

Args = Sequence[Array | None]
Attrs = Mapping[str, Any]


class ExcessiveError(Exception):
    """A result would be too large; the text says which and how large."""


@dataclass
class Budget:
    """How many bytes may still be made of little."""

    left: int = 2**28
    most: int = field(default=LARGEST)

    def spend(self, shape: Sequence[int], itemsize: int = 0) -> None:
        """Refuse a result that is too large; count it where it takes memory.

        Raises:
            ExcessiveError: it is.
        """
        count = math.prod(int(size) for size in shape)
        if count > self.most or len(shape) > 32:
            raise ExcessiveError(f"makes a constant of {count:,} elements")
        self.left -= count * itemsize
        if self.left < 0:
            raise ExcessiveError("makes more constants than fit the memory")


@dataclass(frozen=True)
class Use:
    """A node whose operands are known."""

    args: Args
    attrs: Attrs
    opset: int
    outputs: int
    budget: Budget

    def arg(self, place: int) -> Array | None:
        """An operand, None where it is left out."""
        return self.args[place] if place < len(self.args) else None

    def __getitem__(self, place: int) -> Array:
        found = self.arg(place)
        if found is None:
            raise UnfoldedError("an operand is missing")
        return found

    def ints(self, place: int, name: str) -> list[int] | None:
        """Whole numbers that are an operand, or an attribute in older opsets."""
        found = self.arg(place)
        if found is None:
            given = self.attrs.get(name)
            return None if given is None else [int(entry) for entry in given]
        return ints(found)


def ints(array: Array) -> list[int]:
    """An array of whole numbers without symbols.

    Raises:
        UnfoldedError: it has some.
    """
    if any(isinstance(entry, Dim) for entry in array.reshape(-1)) or array.size > 10_000:
        raise UnfoldedError("a number is needed where there is a symbol")
    return [int(entry) for entry in array.reshape(-1)]


Fold = Callable[[Use], Sequence[Array]]


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < max(rank, 1):
        raise UnfoldedError(f"axis {axis} of {rank}")
    return axis % rank if rank else 0


def _constant(u: Use) -> list[Array]:
    for name in ("value_float", "value_floats"):
        if name in u.attrs:
            return [np.asarray(u.attrs[name], np.float32)]
    for name in ("value_int", "value_ints"):
        if name in u.attrs:
            return [np.asarray(u.attrs[name], np.int64)]
    if isinstance(u.attrs.get("value"), np.ndarray):
        return [u.attrs["value"]]
    raise UnfoldedError("a constant of text")


def _constant_of_shape(u: Use) -> list[Array]:
    value = u.attrs.get("value")
    shape = ints(u[0])
    if any(size < 0 for size in shape):
        raise ExcessiveError(f"makes a constant of the shape {shape}")
    u.budget.spend(shape)
    fill = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(-1)[:1]
    return [np.broadcast_to(fill.reshape(()) if fill.size == 1 else fill, shape)]


def _cast(u: Use) -> list[Array]:
    try:
        to = np.dtype(helper.tensor_dtype_to_np_dtype(int(u.attrs["to"])))
    except (KeyError, TypeError, ValueError):
        raise UnfoldedError("a cast to a type that archir has no use for") from None
    if u[0].dtype == object:
        if to.kind not in "if":
            raise UnfoldedError(f"a size with a symbol as {to}")
        out = np.empty(u[0].shape, object)
        kind = float if to.kind == "f" else int
        out.reshape(-1)[:] = [e if isinstance(e, Dim) else kind(e) for e in u[0].reshape(-1)]
        return [out]
    if to.kind not in "iufb" and to.name != "bfloat16":
        raise UnfoldedError(f"a cast to {to}")
    if to == u[0].dtype:
        return [u[0]]
    u.budget.spend(u[0].shape, to.itemsize)
    with np.errstate(all="ignore"):
        return [u[0].astype(to)]


def _gather(u: Use) -> list[Array]:
    axis = _axis(u.attrs.get("axis", 0), u[0].ndim)
    places = np.asarray(u[1], np.int64) if u[1].dtype != object else None
    if places is None or not u[0].ndim:
        raise UnfoldedError("places that are symbols")
    extent = u[0].shape[axis]
    if places.size and not (-extent <= places.min() and places.max() < extent):
        raise UnfoldedError("a place beyond the end")
    kept = (*u[0].shape[:axis], *places.shape, *u[0].shape[axis + 1 :])
    u.budget.spend(kept, u[0].itemsize)
    return [np.asarray(np.take(u[0], places, axis=axis))]


def _concat(u: Use) -> list[Array]:
    axis = _axis(u.attrs.get("axis", 0), u[0].ndim)
    parts = [u[place] for place in range(len(u.args))]
    if any(p.ndim != parts[0].ndim for p in parts):
        raise UnfoldedError("tensors of different ranks")
    u.budget.spend([sum(p.size for p in parts)], parts[0].itemsize)
    if any(p.dtype == object for p in parts):
        parts = [p.astype(object) for p in parts]
    try:
        return [np.concatenate(parts, axis)]
    except ValueError as reason:
        raise UnfoldedError(str(reason)) from None


def _slice(u: Use) -> list[Array]:
    starts, ends = u.ints(1, "starts"), u.ints(2, "ends")
    if starts is None or ends is None:
        raise UnfoldedError("a slice without ends")
    axes = u.ints(3, "axes") or list(range(len(starts)))
    steps = u.ints(4, "steps") or [1] * len(starts)
    taken = [slice(None)] * u[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        at = _axis(axis, u[0].ndim)
        if step == 0:
            raise UnfoldedError("a step of 0")
        taken[at] = cut(start, end, step, u[0].shape[at])
    return [u[0][tuple(taken)]]


def cut(start: int, end: int, step: int, extent: int) -> slice:
    """ONNX's slice as Python's: places are clamped, and an end may lie before the first."""
    start = start + extent if start < 0 else start
    end = end + extent if end < 0 else end
    if step > 0:
        return slice(min(max(start, 0), extent), min(max(end, 0), extent), step)
    start, end = min(max(start, 0), extent - 1), min(max(end, -1), extent - 1)
    return slice(start, None if end < 0 else end, step)


def _squeeze(u: Use) -> list[Array]:
    axes = u.ints(1, "axes")
    over = tuple(j for j, s in enumerate(u[0].shape) if s == 1) if axes is None else tuple(axes)
    try:
        return [np.squeeze(u[0], over)]
    except ValueError as reason:
        raise UnfoldedError(str(reason)) from None


def _unsqueeze(u: Use) -> list[Array]:
    try:
        return [np.expand_dims(u[0], tuple(u.ints(1, "axes") or ()))]
    except ValueError as reason:
        raise UnfoldedError(str(reason)) from None


def _reshape(u: Use) -> list[Array]:
    shape = ints(u[1])
    if not u.attrs.get("allowzero", 0):
        if any(size == 0 and j >= u[0].ndim for j, size in enumerate(shape)):
            raise UnfoldedError("a size of 0 where there is no axis")
        shape = [u[0].shape[j] if size == 0 else size for j, size in enumerate(shape)]
    try:
        return [u[0].reshape(shape)]
    except ValueError as reason:
        raise UnfoldedError(str(reason)) from None


def _flatten(u: Use) -> list[Array]:
    axis = int(u.attrs.get("axis", 1))
    if not -u[0].ndim <= axis <= u[0].ndim:
        raise UnfoldedError(f"axis {axis} of {u[0].ndim}")
    rows = math.prod(u[0].shape[: axis if axis >= 0 else axis + u[0].ndim])
    return [u[0].reshape(rows, -1)]


def _transpose(u: Use) -> list[Array]:
    order = u.attrs.get("perm")
    if order is not None and sorted(order) != list(range(u[0].ndim)):
        raise UnfoldedError(f"the order {list(order)} of {u[0].ndim} axes")
    return [u[0].transpose(order)]


def _expand(u: Use) -> list[Array]:
    try:
        shape = np.broadcast_shapes(u[0].shape, tuple(ints(u[1])))
    except ValueError as reason:
        raise UnfoldedError(str(reason)) from None
    u.budget.spend(shape)
    return [np.broadcast_to(u[0], shape)]


def _tile(u: Use) -> list[Array]:
    repeats = ints(u[1])
    if len(repeats) != u[0].ndim or min(repeats, default=0) < 0:
        raise UnfoldedError(f"repeats {repeats}")
    u.budget.spend([s * r for s, r in zip(u[0].shape, repeats, strict=True)], u[0].itemsize)
    return [np.tile(u[0], repeats)]


def _range(u: Use) -> list[Array]:
    start, limit, step = (u[place].reshape(-1)[0] for place in range(3))
    if any(isinstance(entry, Dim) for entry in (start, limit, step)) or step == 0:
        raise UnfoldedError("a range whose ends are symbols")
    count = max(math.ceil((limit - start) / step), 0)
    u.budget.spend([count], u[0].itemsize)
    return [np.asarray(start + np.arange(count) * step, u[0].dtype)]


def _split(u: Use) -> list[Array]:
    axis = _axis(u.attrs.get("axis", 0), u[0].ndim)
    found = split_sizes(u.ints(1, "split"), u[0].shape[axis], u.outputs)
    if found is None:
        raise UnfoldedError("parts that do not add up")
    return np.split(u[0], np.cumsum(found)[:-1], axis)


def split_sizes(given: list[int] | None, extent: int, parts: int) -> list[int] | None:
    """The sizes of the parts of a Split; None where they do not fit."""
    if given is None:
        each = -(-extent // max(parts, 1))
        given = [min(each, extent - j * each) for j in range(parts)]
    return given if sum(given) == extent and len(given) == parts and min(given) >= 0 else None


# -- entry by entry


def _wise(number: Callable[..., Any], size: Callable[..., Any] | None) -> Fold:
    """An elementwise function of numbers, and its counterpart for sizes."""

    def fold(u: Use) -> list[Array]:
        args = [u[place] for place in range(len(u.args))]
        try:
            shape = np.broadcast_shapes(*(x.shape for x in args))
        except ValueError as reason:
            raise UnfoldedError(str(reason)) from None
        if any(x.dtype == object for x in args):
            if size is None:
                raise UnfoldedError("a function of a symbol")
            u.budget.spend(shape, 64)
            found = np.frompyfunc(size, len(args), 1)(*(x.astype(object) for x in args))
            out = np.empty(shape, object)
            out[...] = found
            return [v.plain(out)]
        u.budget.spend(shape, max(x.itemsize for x in args))
        with np.errstate(all="ignore"):
            result = np.asarray(number(*args))
        return [result if result.dtype == bool else result.astype(args[-1].dtype, copy=False)]

    return fold


def _divided(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not np.all(b):
        raise UnfoldedError("a division by zero")
    return np.trunc(a / b) if max(abs(a).max(), 1) < 2**53 else a // b


def _mod(u: Use) -> list[Array]:
    number = np.fmod if u.attrs.get("fmod", 0) else np.mod
    if u[1].dtype != object and u[1].dtype.kind != "f" and not np.all(u[1]):
        raise UnfoldedError("a division by zero")
    return list(_wise(number, v.remainder)(u))


def _kept(entry: Any) -> Any:
    if isinstance(entry, Dim) and not v.whole(entry):
        raise UnfoldedError(f"{entry} rounded has no closed form")
    return entry


def _chosen(u: Use) -> list[Array]:
    if u[0].dtype == object:
        raise UnfoldedError("a condition that depends on a symbol")
    rest = [u[1], u[2]]
    shape = np.broadcast_shapes(*(x.shape for x in (u[0], *rest)))
    u.budget.spend(shape, u[1].itemsize)
    if any(x.dtype == object for x in rest):
        rest = [x.astype(object) for x in rest]
        return [v.plain(np.where(u[0], *rest))]
    return [np.where(u[0], *rest)]


def _reduced(number: Callable[..., Any], size: Callable[[Any, Any], Any] | None) -> Fold:
    def fold(u: Use) -> list[Array]:
        axes = u.ints(1, "axes")
        if not axes and u.attrs.get("noop_with_empty_axes", 0):
            return [u[0]]
        over = tuple(_axis(a, u[0].ndim) for a in axes) if axes else tuple(range(u[0].ndim))
        keep = bool(u.attrs.get("keepdims", 1))
        if u[0].dtype != object:
            u.budget.spend([u[0].size], 8)
            return [np.asarray(number(u[0], axis=over, keepdims=keep)).astype(u[0].dtype)]
        if size is None or len(over) != u[0].ndim:
            raise UnfoldedError("a reduction of symbols")
        entries = list(u[0].reshape(-1))
        result: Any = entries[0] if entries else 1
        for entry in entries[1:]:
            result = size(result, entry)
        out = np.empty((1,) * u[0].ndim if keep else (), object)
        out[...] = result
        return [v.plain(out)]

    return fold


def _chain(number: Callable[..., Any], size: Callable[[Any, Any], Any]) -> Fold:
    pair = _wise(number, size)

    def fold(u: Use) -> list[Array]:
        found = u[0]
        for place in range(1, len(u.args)):
            given = Use([found, u[place]], u.attrs, u.opset, 1, u.budget)
            found = pair(given)[0]
        return [found]

    return fold


def _least(a: Any, b: Any) -> Any:
    return a if v.less(a, b) else b


def _largest(a: Any, b: Any) -> Any:
    return b if v.less(a, b) else a


def _trilu(u: Use) -> list[Array]:
    k = int(u[1].reshape(-1)[0]) if u.arg(1) is not None else 0
    u.budget.spend(u[0].shape, u[0].itemsize)
    return [(np.triu if u.attrs.get("upper", 1) else np.tril)(u[0], k)]


def _matmul(u: Use) -> list[Array]:
    if u[0].dtype == object or u[1].dtype == object or u[0].size * u[1].size > 2**34:
        raise UnfoldedError("a large product")
    try:
        return [np.asarray(np.matmul(u[0], u[1]))]
    except ValueError as reason:
        raise UnfoldedError(str(reason)) from None


def _dequantized(u: Use) -> list[Array]:
    """Weights that are stored in few bits: (x - zero_point) * scale, along one axis."""
    if u.attrs.get("block_size", 0) or u[1].ndim > 1:
        raise UnfoldedError("weights in blocks")
    u.budget.spend(u[0].shape, 8)
    axis = _axis(u.attrs.get("axis", 1), u[0].ndim) if u[1].ndim else 0
    shape = [-1 if j == axis else 1 for j in range(u[0].ndim)] if u[1].ndim else []
    zero = u.arg(2)
    values = u[0].astype(np.float32)
    if zero is not None:
        values = values - zero.astype(np.float32).reshape(shape)
    return [(values * u[1].reshape(shape)).astype(u[1].dtype)]


def _scattered(u: Use) -> list[Array]:
    if u.attrs.get("reduction", "none") != "none":
        raise UnfoldedError("a sum of what is put in one place")
    out, places = u[0].copy(), np.asarray(u[1], np.int64)
    u.budget.spend(out.shape, out.itemsize)
    out[tuple(np.moveaxis(places, -1, 0))] = u[2]
    return [out]


def _gathered(u: Use) -> list[Array]:
    if u.attrs.get("batch_dims", 0):
        raise UnfoldedError("entries of each batch")
    found = u[0][tuple(np.moveaxis(np.asarray(u[1], np.int64), -1, 0))]
    u.budget.spend(found.shape, found.itemsize)
    return [found]


def _picked(u: Use) -> list[Array]:
    axis = _axis(u.attrs.get("axis", 0), u[0].ndim)
    u.budget.spend(u[1].shape, u[0].itemsize)
    return [np.take_along_axis(u[0], np.asarray(u[1], np.int64), axis)]


def _one_hot(u: Use) -> list[Array]:
    depth, (off, on) = ints(u[1])[0], u[2].reshape(-1)
    axis = _axis(u.attrs.get("axis", -1), u[0].ndim + 1)
    u.budget.spend([*u[0].shape, depth], u[2].itemsize)
    places = np.asarray(u[0], np.int64)[..., None]
    hot = np.where(np.arange(depth) == np.where(places < 0, places + depth, places), on, off)
    return [np.moveaxis(hot, -1, axis).astype(u[2].dtype)]


def _summed(u: Use) -> list[Array]:
    if u.attrs.get("exclusive", 0) or u.attrs.get("reverse", 0):
        raise UnfoldedError("a sum from the end")
    u.budget.spend(u[0].shape, u[0].itemsize)
    return [np.cumsum(u[0], int(u[1].reshape(-1)[0]), u[0].dtype)]


def _clipped(u: Use) -> list[Array]:
    low, high = (_end(u, place, name) for place, name in ((1, "min"), (2, "max")))
    if u[0].dtype == object:
        raise UnfoldedError("a symbol between bounds")
    u.budget.spend(u[0].shape, u[0].itemsize)
    out = u[0] if low is None else np.maximum(u[0], low)
    out = out if high is None else np.minimum(out, high)
    return [out.astype(u[0].dtype)]


def _end(u: Use, place: int, name: str) -> Array | float | None:
    given = u.arg(place)
    return given if given is not None else u.attrs.get(name)


def _same(u: Use) -> list[Array]:
    return [u[0]]


def _abs(x: Array) -> Array:
    return np.asarray(abs(x))


def _not_less(a: Any, b: Any) -> bool:
    return not v.less(a, b)


FOLD: Mapping[str, Fold] = MappingProxyType(
    {
        "Constant": _constant,
        "ConstantOfShape": _constant_of_shape,
        "Identity": _same,
        "Cast": _cast,
        "Gather": _gather,
        "Concat": _concat,
        "Slice": _slice,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Transpose": _transpose,
        "Expand": _expand,
        "Tile": _tile,
        "Range": _range,
        "Split": _split,
        "Trilu": _trilu,
        "MatMul": _matmul,
        "DequantizeLinear": _dequantized,
        "ScatterND": _scattered,
        "GatherND": _gathered,
        "GatherElements": _picked,
        "CumSum": _summed,
        "OneHot": _one_hot,
        "Clip": _clipped,
        "Relu": _wise(lambda x: np.maximum(x, 0), None),
        "Where": _chosen,
        "Mod": _mod,
        "Add": _wise(np.add, v.add),
        "Sub": _wise(np.subtract, v.subtract),
        "Mul": _wise(np.multiply, v.multiply),
        "Div": _wise(_divided, v.divide),
        "Pow": _wise(lambda a, b: np.asarray(a**b).astype(a.dtype), None),
        "Sum": _chain(np.add, v.add),
        "Min": _chain(np.minimum, _least),
        "Max": _chain(np.maximum, _largest),
        "Neg": _wise(np.negative, lambda a: v.multiply(a, -1)),
        "Abs": _wise(_abs, lambda a: a),
        "Floor": _wise(np.floor, _kept),
        "Ceil": _wise(np.ceil, _kept),
        "Round": _wise(np.rint, _kept),
        "Sqrt": _wise(np.sqrt, None),
        "Reciprocal": _wise(np.reciprocal, None),
        "Exp": _wise(np.exp, None),
        "Log": _wise(np.log, None),
        "Sin": _wise(np.sin, None),
        "Cos": _wise(np.cos, None),
        "Not": _wise(np.logical_not, None),
        "And": _wise(np.logical_and, None),
        "Or": _wise(np.logical_or, None),
        "Equal": _wise(np.equal, v.equal),
        "Less": _wise(np.less, v.less),
        "Greater": _wise(np.greater, lambda a, b: v.less(b, a)),
        "LessOrEqual": _wise(np.less_equal, lambda a, b: _not_less(b, a)),
        "GreaterOrEqual": _wise(np.greater_equal, _not_less),
        "ReduceProd": _reduced(np.prod, v.multiply),
        "ReduceSum": _reduced(np.sum, v.add),
        "ReduceMax": _reduced(np.max, _largest),
        "ReduceMin": _reduced(np.min, _least),
        "ReduceMean": _reduced(np.mean, None),
    }
)
"""What can be computed beforehand."""
