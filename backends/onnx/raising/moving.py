"""Operators that move entries: views, slices, joints, paddings, indices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from archir.ir.dims import Dim, Size, product
from archir.ir.types import AttrValue
from archir.ops.arithmetic import Array

from . import fusing
from .folding import cut, split_sizes
from .layering import tensor
from .site import RefusedError, Site
from .values import Known, Made, multiply

Raise = Callable[[Site], None]


def _reshape(at: Site) -> None:
    x = at.x()
    wanted = at.attr("shape") if not at.has(1) and at.attr("shape") else at.sizes(1)
    shape = at.solved(x, wanted, zero=bool(at.attr("allowzero", 0)))
    if not fusing.group_norm(at, x, shape) and not fusing.turned(at, x, shape):
        at.give(at.reshape(x, shape))


def _flatten(at: Site) -> None:
    x = at.x()
    axis, rank = int(at.attr("axis", 1)), x.type.rank
    if not -rank <= axis <= rank:
        raise RefusedError(f"its axis is {axis}, its input {x.type}")
    axis += rank if axis < 0 else 0
    rows, columns = product(x.type.shape[:axis]), product(x.type.shape[axis:])
    at.give(at.reshape(x, [rows, columns]))


def _transpose(at: Site) -> None:
    x = at.x()
    order = at.attr("perm") or list(reversed(range(x.type.rank)))
    if sorted(order) != list(range(x.type.rank)):
        raise RefusedError(f"its perm is {list(order)}, its input {x.type}")
    at.give(permuted(at, x, order))


def permuted(at: Site, x: Made, order: Sequence[int]) -> Made:
    """The axes in another order; no node where it is the same."""
    if list(order) == list(range(len(order))):
        return x
    moved = [j for j, axis in enumerate(order) if j != axis]
    if len(moved) == 2:
        return at.put("transpose", x, a=moved[0], b=moved[1])
    return at.put("permute", x, order=tuple(order))


def _axes(at: Site, given: Sequence[int], rank: int) -> list[int]:
    if any(not -rank <= axis < rank for axis in given):
        raise RefusedError(f"its axes are {list(given)} of {rank}")
    return [axis % rank for axis in given]


def _squeeze(at: Site) -> None:
    x, given = at.x(), at.ints(1, "axes")
    shape = x.type.shape
    axes = [j for j, s in enumerate(shape) if s == 1] if given is None else given
    for axis in sorted(set(_axes(at, axes, x.type.rank)), reverse=True):
        x = at.put("squeeze", x, axis=axis)
    at.give(x)


def _unsqueeze(at: Site) -> None:
    x, given = at.x(), at.ints(1, "axes") or []
    for axis in sorted(set(_axes(at, given, x.type.rank + len(given)))):
        x = at.put("unsqueeze", x, axis=axis)
    at.give(x)


def _slice(at: Site) -> None:
    x = at.x()
    starts, ends = _ends(at, 1, "starts"), _ends(at, 2, "ends")
    axes, steps = at.ints(3, "axes"), at.ints(4, "steps")
    axes = list(range(len(starts))) if axes is None else _axes(at, axes, x.type.rank)
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise RefusedError("its starts, ends, axes and steps are not as many")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _sliced(at, x, (start, end, step), axis)
    at.give(x)


def _ends(at: Site, place: int, name: str) -> list[Size]:
    return at.sizes(place) if at.has(place) else [int(e) for e in at.attr(name, [])]


def _sliced(at: Site, x: Made, taken: tuple[Size, Size, int], axis: int) -> Made:
    start, end, step = taken
    extent = x.type.shape[axis]
    if isinstance(extent, Dim) or isinstance(start, Dim) or isinstance(end, Dim):
        whole = end == extent or (isinstance(end, int) and end >= 2**31 - 1)
        if start == 0 and step == 1 and whole:
            return x
        raise RefusedError(f"it cuts an axis of {extent} from {start} to {end}")
    if step == 0:
        raise RefusedError("its step is 0")
    places = range(extent)[cut(start, end, step, extent)]
    if places == range(extent):
        return x
    if not places:
        raise RefusedError("it takes no entries")
    first, last = min(places[0], places[-1]), max(places[0], places[-1])
    whole_length = len(places) == extent
    if not whole_length or abs(step) != 1:
        x = at.put("slice", x, start=first, length=len(places), axis=axis, step=abs(step))
    assert last >= first
    return at.put("flip", x, axes=axis) if step < 0 and len(places) > 1 else x


def _concat(at: Site) -> None:
    parts = []
    for place in range(at.count):
        entry = at.entry(place)
        if isinstance(entry, Known) and not entry.array.size:
            continue
        parts.append(at.x(place))
    axis = int(at.attr("axis", 1))
    at.give(parts[0] if len(parts) == 1 else at.put("concat", *parts, axis=axis))


def _split(at: Site) -> None:
    x, parts = at.x(), len(at.node.output)
    axis = _axes(at, [int(at.attr("axis", 0))], x.type.rank)[0]
    extent = x.type.shape[axis]
    if not isinstance(extent, int):
        raise RefusedError(f"it cuts an axis of {extent}")
    found = split_sizes(at.ints(1, "split"), extent, parts)
    if found is None or min(found) < 1:
        raise RefusedError(f"its parts do not fit an axis of {extent}")
    if parts == 1:
        at.give(x)
    elif len(set(found)) == 1:
        at.give(*at.several("chunk", x, chunks=parts, axis=axis))
    else:
        at.give(*at.several("split", x, sizes=tuple(found), axis=axis))


def _expand(at: Site) -> None:
    entry = at.entry(0)
    wanted = at.sizes(1)
    x = at.hold(entry) if isinstance(entry, Known) else entry
    rank = max(x.type.rank, len(wanted))
    old = [1] * (rank - x.type.rank) + list(x.type.shape)
    new = [1] * (rank - len(wanted)) + list(wanted)
    shape = [b if a == 1 else a for a, b in zip(old, new, strict=True)]
    at.give(at.stretch(x, shape))


def _constant_of_shape(at: Site) -> None:
    """A number in a shape that has symbols: stretched."""
    wanted, value = at.sizes(0), at.attr("value")
    fill: Array = np.zeros(1, np.float32) if value is None else np.asarray(value)
    sizes = [1 if isinstance(size, Dim) else size for size in wanted]
    if any(size < 1 for size in sizes) or math.prod(sizes) > 2**24:
        raise RefusedError(f"it makes a tensor of the shape {[str(size) for size in wanted]}")
    small = at.hold(Known(np.broadcast_to(fill.reshape(-1)[0], sizes)))
    at.give(at.stretch(small, wanted))


def _tile(at: Site) -> None:
    x, wanted = at.x(), at.sizes(1)
    repeats = [r for r in wanted if isinstance(r, int)]
    if len(wanted) != x.type.rank or min(repeats, default=1) < 1:
        raise RefusedError(f"its repeats are {[str(r) for r in wanted]}, its input {x.type}")
    if len(repeats) < len(wanted):
        if any(s != 1 for s, r in zip(x.type.shape, wanted, strict=True) if isinstance(r, Dim)):
            raise RefusedError(f"its repeats are {[str(r) for r in wanted]}, its input {x.type}")
        stretched = [
            r if isinstance(r, Dim) else s for s, r in zip(x.type.shape, wanted, strict=True)
        ]
        x = at.stretch(x, stretched)
        repeats = [1 if isinstance(r, Dim) else r for r in wanted]
    at.give(x if set(repeats) <= {1} else at.put("tile", x, repeats=tuple(repeats)))


def _gather(at: Site) -> None:
    data, index = at.entry(0), at.known(1)
    axis = int(at.attr("axis", 0))
    if isinstance(data, Known) and index is None:
        table = data.array
        if table.ndim == 2 and axis in (0, -2) and table.dtype == np.float32:
            given: dict[str, AttrValue] = {"num": table.shape[0], "dim": table.shape[1]}
            places = at.x(1)
            at.give(at.layer("embedding", places, {"weight": tensor(data)}, **given))
            return
    x = at.x()
    axis = _axes(at, [axis], x.type.rank)[0]
    if index is None:
        at.give(at.put("gather", x, at.x(1), axis=axis))
        return
    extent, places_ = x.type.shape[axis], np.asarray(index.array, np.int64)
    if not isinstance(extent, int):
        if places_.size == 1 and places_.reshape(-1)[0] == 0:
            raise RefusedError(f"it takes an entry of an axis of {extent}")
        raise RefusedError(f"it takes entries of an axis of {extent}")
    if places_.size and not (-extent <= places_.min() and places_.max() < extent):
        raise RefusedError(f"it takes an entry beyond the end of an axis of {extent}")
    at.give(taken(at, x, places_ % extent, axis))


def taken(at: Site, x: Made, places: Array, axis: int) -> Made:
    """Entries at known places of an axis: one, a run, or any."""
    if places.ndim == 0:
        return at.put("select", x, index=int(places), axis=axis)
    if places.ndim == 1 and len(places):
        steps = set(np.diff(places).tolist())
        extent = x.type.shape[axis]
        if list(places) == list(range(len(places))) and len(places) == extent:
            return x
        if len(places) == 1 or (len(steps) == 1 and min(steps) > 0):
            step = steps.pop() if steps else 1
            given: dict[str, AttrValue] = {
                "start": int(places[0]),
                "length": len(places),
                "step": int(step),
            }
            return at.put("slice", x, axis=axis, **given)
    return at.put("gather", x, at.hold(Known(places.astype(np.int64))), axis=axis)


def _pad(at: Site) -> None:
    x = at.x()
    given, rank = at.ints(1, "pads") or [], x.type.rank
    axes = at.ints(3, "axes") if at.has(3) else None
    places = list(range(rank)) if axes is None else _axes(at, axes, rank)
    if len(given) != 2 * len(places):
        raise RefusedError(f"it has {len(given)} paddings for {len(places)} axes")
    before, after = [0] * rank, [0] * rank
    for j, axis in enumerate(places):
        before[axis], after[axis] = given[j], given[len(places) + j]
    mode = str(at.attr("mode", "constant"))
    word = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in word:
        raise RefusedError(f"its mode is {mode}")
    x = _cropped(at, x, before, after)
    before, after = [max(b, 0) for b in before], [max(a, 0) for a in after]
    if not any(before) and not any(after):
        at.give(x)
        return
    fill = float(at.array(2).reshape(-1)[0]) if at.has(2) else float(at.attr("value", 0.0))
    more: dict[str, AttrValue] = {"value": fill} if mode == "constant" else {}
    widths: dict[str, AttrValue] = {"before": tuple(before), "after": tuple(after)}
    at.give(at.put("pad", x, mode=word[mode], **widths, **more))


def _cropped(at: Site, x: Made, before: Sequence[int], after: Sequence[int]) -> Made:
    """A negative padding takes entries away."""
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        less = (max(-low, 0), max(-high, 0))
        size = x.type.shape[axis]
        if any(less):
            if not isinstance(size, int) or sum(less) >= size:
                raise RefusedError(f"it cuts {sum(less)} off an axis of {size}")
            x = at.put("slice", x, start=less[0], length=size - sum(less), axis=axis)
    return x


def _depth_to_space(at: Site) -> None:
    x, r = at.x(), int(at.attr("blocksize", 1))
    if x.type.rank != 4 or r < 1:
        raise RefusedError(f"its input is {x.type}, its blocksize {r}")
    if at.attr("mode", "DCR") == "CRD":
        at.give(at.put("pixel_shuffle", x, factor=r))
        return
    n, c, h, w = x.type.shape
    if not isinstance(c, int) or c % (r * r):
        raise RefusedError(f"its input is {x.type}, its blocksize {r}")
    apart = at.reshape(x, [n, r, r, c // (r * r), h, w])
    turned = at.put("permute", apart, order=(0, 3, 4, 1, 5, 2))
    at.give(at.reshape(turned, [n, c // (r * r), product([h, r]), product([w, r])]))


def _space_to_depth(at: Site) -> None:
    x, r = at.x(), int(at.attr("blocksize", 1))
    if x.type.rank != 4 or r < 1:
        raise RefusedError(f"its input is {x.type}, its blocksize {r}")
    n, c, h, w = x.type.shape
    if not isinstance(h, int) or not isinstance(w, int) or h % r or w % r:
        raise RefusedError(f"its input is {x.type}, its blocksize {r}")
    apart = at.reshape(x, [n, c, h // r, r, w // r, r])
    order = (0, 1, 3, 5, 2, 4) if at.attr("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    turned = at.put("permute", apart, order=order)
    at.give(at.reshape(turned, [n, product([c, r * r]), h // r, w // r]))


def _cumsum(at: Site) -> None:
    x = at.x()
    axis = _axes(at, [int(at.array(1).reshape(-1)[0])], x.type.rank)[0]
    if at.attr("exclusive", 0):
        raise RefusedError("it leaves the entry itself out")
    backwards = bool(at.attr("reverse", 0))
    x = at.put("flip", x, axes=axis) if backwards else x
    x = at.put("cumsum", x, axis=axis)
    at.give(at.put("flip", x, axes=axis) if backwards else x)


def _einsum(at: Site) -> None:
    equation = str(at.attr("equation", "")).replace(" ", "")
    parts = [at.x(place) for place in range(at.count)]
    if "..." in equation:
        raise RefusedError(f"its equation is `{equation[:60]}`")
    if "->" not in equation:
        letters = sorted(c for c in set(equation) - {","} if equation.count(c) == 1)
        equation = f"{equation}->{''.join(letters)}"
    at.give(at.put("einsum", *parts, equation=equation))


def _attention(at: Site) -> None:
    """ONNX's own attention: heads as an axis, or side by side along the last one."""
    if any(at.has(place) for place in (4, 5, 6)) or at.attr("softcap", 0.0):
        raise RefusedError("it has a past, padding of its own, or a soft cap")
    if at.attr("qk_matmul_output_mode", 0) and len(at.node.output) > 3:
        raise RefusedError("its scores are read")
    q, k, v = (at.x(place) for place in range(3))
    heads, others = at.attr("q_num_heads"), at.attr("kv_num_heads")
    scale, causal = at.attr("scale"), bool(at.attr("is_causal", 0))
    given: dict[str, AttrValue] = {"causal": causal}
    if scale is not None:
        given["scale"] = float(scale)
    mask = [at.x(3)] if at.has(3) else []
    if q.type.rank == 4:
        if q.type.shape[1] != k.type.shape[1] or (mask and causal):
            raise RefusedError("its queries and keys have different heads, or it masks twice")
        at.give(at.put("scaled_dot_product_attention", q, k, v, *mask, **given))
        return
    if q.type.rank != 3 or heads is None or heads != others:
        raise RefusedError("its queries and keys have different heads")
    if mask and mask[0].type.dtype == "bool":
        raise RefusedError("its mask is of truth values")
    at.give(at.put("attention", q, k, v, *mask, heads=int(heads), **given))


def _trilu(at: Site) -> None:
    """A triangle of a matrix: times a mask of ones."""
    x = at.x()
    rows, columns = x.type.shape[-2:]
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise RefusedError(f"its input is {x.type}")
    k = int(at.array(1).reshape(-1)[0]) if at.has(1) else 0
    ones = np.ones((rows, columns), np.bool_)
    kept = np.triu(ones, k) if at.attr("upper", 1) else np.tril(ones, k)
    at.give(at.put("where", at.hold(Known(kept)), x, at.number(0, x)))


def _range(at: Site) -> None:
    """The rows of an as_strided: 0, 1, ... up to a symbol, times a row's length.

    torch exports it as the places of a flat tensor; rows that lie one after the other are a
    reshape, and known places in each row are taken from it.
    """
    start, end, step = (at.sizes(place)[0] for place in range(3))
    if start != 0 or step != 1 or not isinstance(end, Dim):
        raise RefusedError(f"it counts from {start} to {end}")
    length, places = 1, np.zeros((1,), np.int64)
    name, passed = at.node.output[0], []
    while True:
        node = at.follower(name)
        if node is None:
            raise RefusedError(f"it counts up to {end}")
        if node.op_type == "Gather" and node.input[1] == name:
            break
        rest = [other for other in node.input if other != name]
        known = at.net.known(rest[0]) if len(rest) == 1 else None
        if known is None or known.symbolic:
            raise RefusedError(f"it counts up to {end}")
        if node.op_type == "Mul" and known.array.size == 1:
            length *= int(known.array.reshape(-1)[0])
            places = places * int(known.array.reshape(-1)[0])
        elif node.op_type == "Unsqueeze":
            places = np.expand_dims(places, tuple(known.array.reshape(-1).tolist()))
        elif node.op_type == "Add" and places.ndim >= known.array.ndim:
            places = places + known.array
        else:
            raise RefusedError(f"it counts up to {end}")
        passed.append(name)
        name = node.output[0]
    flat = at.net.values.get(node.input[0])
    axis = Site(at.net, node).attr("axis", 0)
    if not isinstance(flat, Made) or flat.type.shape != (multiply(end, length),) or axis != 0:
        raise RefusedError(f"it counts up to {end}")
    if places.shape[0] != 1 or places.min() < 0 or places.max() >= length:
        raise RefusedError(f"it counts up to {end}")
    rows = at.reshape(flat, [end, length])
    inside = at.reshape(taken(at, rows, places.reshape(-1), 1), [end, *places.shape[1:]])
    at.net.done.update(passed)
    at.net.done.add(name)
    at.take(node, inside)


MOVES: Mapping[str, Raise] = MappingProxyType(
    {
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Transpose": _transpose,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Slice": _slice,
        "Concat": _concat,
        "Split": _split,
        "Expand": _expand,
        "ConstantOfShape": _constant_of_shape,
        "Tile": _tile,
        "Gather": _gather,
        "Pad": _pad,
        "DepthToSpace": _depth_to_space,
        "SpaceToDepth": _space_to_depth,
        "CumSum": _cumsum,
        "Einsum": _einsum,
        "Trilu": _trilu,
        "Attention": _attention,
        "Range": _range,
    }
)
"""How these operators are raised."""
