"""How the operators that move entries are written in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from archir.ops.index import pad_sources
from archir.ops.layout import place

from .frame import Site, tensor

Lowering = Callable[[Site], None]


def whole(at: Site, role: str, *values: int) -> str:
    """A constant of whole numbers."""
    return at.constant(role, np.asarray(values, np.int64))


def _reshape(at: Site) -> None:
    at.emit("Reshape", *at.args, whole(at, "shape", *at.ints("shape")))


def _permute(at: Site) -> None:
    at.emit("Transpose", *at.args, perm=at.ints("order"))


def _transpose(at: Site) -> None:
    order = list(range(at.rank))
    a, b = at.attr("a"), at.attr("b")
    order[a], order[b] = b, a
    at.emit("Transpose", *at.args, perm=order)


def _squeeze(at: Site) -> None:
    at.emit("Squeeze", *at.args, whole(at, "axes", at.attr("axis")))


def _unsqueeze(at: Site) -> None:
    at.emit("Unsqueeze", *at.args, whole(at, "axes", place(at.node.attrs, at.rank)))


def _pixel_shuffle(at: Site) -> None:
    at.emit("DepthToSpace", *at.args, blocksize=at.attr("factor"), mode="CRD")


def _contiguous(at: Site) -> None:
    at.emit("Identity", *at.args)


def _chunk(at: Site) -> None:
    axis = at.attr("axis")
    size = at.node.types[0].shape[axis]
    if not isinstance(size, int):
        raise at.refuse(f"it cuts an axis of the symbolic extent {at.types[0].shape[axis]}")
    sizes = whole(at, "sizes", *[size] * at.attr("chunks"))
    at.emit("Split", *at.args, sizes, axis=axis)


def _slice(at: Site) -> None:
    start, step = at.attr("start"), at.attr("step")
    end = start + (at.attr("length") - 1) * step + 1
    values = {"starts": start, "ends": end, "axes": at.attr("axis"), "steps": step}
    at.emit("Slice", *at.args, *(whole(at, role, value) for role, value in values.items()))


def _select(at: Site) -> None:
    index = at.constant("index", np.asarray(at.attr("index"), np.int64))
    at.emit("Gather", *at.args, index, axis=at.attr("axis"))


def _expand(at: Site) -> None:
    x, like = at.args
    axis = at.attr("axis")
    extent = at.types[1].shape[axis]
    shape = [1] * at.rank
    if isinstance(extent, int):
        shape[axis] = extent
        at.emit("Expand", x, whole(at, "shape", *shape))
        return
    parts = [at.helper("extent", "Shape", like, start=axis, end=axis + 1)]
    if axis:
        parts.insert(0, whole(at, "before", *shape[:axis]))
    if shape[axis + 1 :]:
        parts.append(whole(at, "after", *shape[axis + 1 :]))
    at.emit("Expand", x, at.helper("shape", "Concat", *parts, axis=0))


_FUSED = frozenset(
    {
        *("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool"),
        *("dropout", "stochastic_depth"),
    }
)
"""What ONNX Runtime makes one with a Pad of zeros before it, though a pooling then ignores them."""


def _pad(at: Site) -> None:
    before, after, mode = at.ints("before"), at.ints("after"), at.attr("mode")
    if mode == "circular":
        _pad_round(at, before, after)
        return
    pads = whole(at, "pads", *before, *after)
    if mode == "constant":
        value = at.constant("value", np.asarray(at.attr("value"), at.dtype))
        if not _FUSED.intersection(n.op for n, _, _ in at.frame.graph.readers(at.node.name)):
            at.emit("Pad", *at.args, pads, value, mode="constant")
            return
        apart = at.helper("padded", "Pad", *at.args, pads, value, mode="constant")
        at.emit("Reshape", apart, whole(at, "shape", *[0] * len(before)))
    else:
        at.emit("Pad", *at.args, pads, mode={"reflect": "reflect", "replicate": "edge"}[mode])


def _pad_round(at: Site, before: list[int], after: list[int]) -> None:
    """Pad's mode `wrap` is younger than opset 17; a Gather for each axis says the same."""
    out = at.args[0]
    for axis, pair in enumerate(zip(before, after, strict=True)):
        if any(pair):
            extent = at.types[0].shape[axis]
            if not isinstance(extent, int):
                raise at.refuse(f"axis {axis} is padded by itself and has the extent {extent}")
            sources = whole(at, f"sources{axis}", *pad_sources("circular", extent, *pair).tolist())
            out = at.helper(f"axis{axis}", "Gather", out, sources, axis=axis)
    at.emit("Identity", out)


def _roll(at: Site) -> None:
    shift, axis = at.attr("shift"), at.attr("axis")
    extent = at.types[0].shape[axis]
    if not isinstance(extent, int):
        raise at.refuse(f"it rolls an axis of the symbolic extent {extent}")
    cut = -shift % extent
    if not cut:
        at.emit("Identity", *at.args)
        return
    over = whole(at, "axes", axis)
    ends = {"back": (cut, extent), "front": (0, cut)}
    parts = [
        at.helper(role, "Slice", *at.args, *(whole(at, f"{role}_{n}", n) for n in pair), over)
        for role, pair in ends.items()
    ]
    at.emit("Concat", *parts, axis=axis)


def _tile(at: Site) -> None:
    (x,) = at.args
    repeats = at.ints("repeats")
    new = len(repeats) - at.rank
    if new:
        x = at.helper("aligned", "Unsqueeze", x, whole(at, "axes", *range(new)))
    at.emit("Tile", x, whole(at, "repeats", *repeats))


def _repeat_interleave(at: Site) -> None:
    """The number of each entry so many times; an open extent is filled in by a Reshape."""
    times, axis = at.attr("repeats"), at.attr("axis")
    extent, behind = at.types[0].shape[axis], at.node.types[0].shape[axis + 1 :]
    if isinstance(extent, int):
        sources = [j for j in range(extent) for _ in range(times)]
        at.emit("Gather", *at.args, whole(at, "sources", *sources), axis=axis)
        return
    sizes = [size for size in behind if isinstance(size, int)]
    if len(sizes) < len(behind):
        raise at.refuse(f"behind the symbolic extent {extent} there is another")
    apart = at.helper("apart", "Unsqueeze", *at.args, whole(at, "axes", axis + 1))
    copies = [times if j == axis + 1 else 1 for j in range(at.rank + 1)]
    copied = at.helper("copied", "Tile", apart, whole(at, "copies", *copies))
    at.emit("Reshape", copied, whole(at, "shape", *[0] * axis, -1, *sizes))


def _flip(at: Site) -> None:
    axes = at.ints("axes")
    if not axes:
        at.emit("Identity", *at.args)
        return
    values = {"starts": -1, "ends": np.iinfo(np.int64).min, "axes": 0, "steps": -1}
    rows = {role: axes if role == "axes" else [value] * len(axes) for role, value in values.items()}
    at.emit("Slice", *at.args, *(whole(at, role, *row) for role, row in rows.items()))


def _cumsum(at: Site) -> None:
    axis = at.constant("axis", np.asarray(at.attr("axis"), np.int64))
    at.emit("CumSum", *at.args, axis)


def _gather(at: Site) -> None:
    at.emit("Gather", *at.args, axis=at.attr("axis"))


def _null(at: Site) -> None:
    """Zeros in the shape of the input, which may be open: of it, or of what a stride leaves."""
    (x,) = at.args
    stride, space = at.attr("stride"), list(range(2, at.rank))
    if stride != 1:
        ends = [np.iinfo(np.int64).max] * len(space)
        bounds = {"starts": [0] * len(space), "ends": ends, "axes": space}
        rows = [whole(at, role, *values) for role, values in bounds.items()]
        x = at.helper("places", "Slice", x, *rows, whole(at, "steps", *[stride] * len(space)))
    zero = tensor("value", np.zeros(1, at.dtype))
    at.emit("ConstantOfShape", at.helper("shape", "Shape", x), value=zero)


def _embedding(at: Site) -> None:
    at.emit("Gather", *at.params("weight"), *at.args, axis=0)


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "reshape": _reshape,
        "permute": _permute,
        "transpose": _transpose,
        "squeeze": _squeeze,
        "unsqueeze": _unsqueeze,
        "pixel_shuffle": _pixel_shuffle,
        "contiguous": _contiguous,
        "chunk": _chunk,
        "slice": _slice,
        "select": _select,
        "expand": _expand,
        "pad": _pad,
        "roll": _roll,
        "tile": _tile,
        "repeat_interleave": _repeat_interleave,
        "flip": _flip,
        "cumsum": _cumsum,
        "gather": _gather,
        "embedding": _embedding,
        "null": _null,
    }
)
"""These operators in ONNX."""
