"""Lowerings of the operators that move entries: reshape, permute, slice, pad, gather."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import fx, nn
from torch.nn import functional

from archir.ir.dims import Dim
from archir.ops.index import pad_sources

from .frame import Site

Lowering = Callable[[Site], fx.Node | tuple[fx.Node, ...]]


def _reshape(at: Site) -> fx.Node:
    """Sizes as inferred; of those with symbols one is left to torch, others are read off."""
    stated = at.ints("shape")
    found = at.node.types[0].shape
    symbolic = [place for place, size in enumerate(found) if isinstance(size, Dim)]
    shape: list[int | fx.Node] = []
    for place, size in enumerate(found):
        if isinstance(size, int):
            shape.append(size)
        elif len(symbolic) == 1 or stated[place] == -1:
            shape.append(-1)
        else:
            shape.append(at.frame.graph.call_method("size", (at.args[0], place)))
    return at.call(torch.reshape, at.args[0], tuple(shape))


def _permute(at: Site) -> fx.Node:
    return at.call(torch.permute, *at.args, at.ints("order"))


def _transpose(at: Site) -> fx.Node:
    return at.call(torch.transpose, *at.args, at.attr("a"), at.attr("b"))


def _squeeze(at: Site) -> fx.Node:
    return at.call(torch.squeeze, *at.args, at.attr("axis"))


def _unsqueeze(at: Site) -> fx.Node:
    return at.call(torch.unsqueeze, *at.args, at.attr("axis"))


def _pixel_shuffle(at: Site) -> fx.Node:
    return at.stateless(nn.PixelShuffle(at.attr("factor")))


def _contiguous(at: Site) -> fx.Node:
    return at.frame.graph.call_method("contiguous", at.args)


def _chunk(at: Site) -> tuple[fx.Node, ...]:
    parts = at.call(torch.chunk, *at.args, at.attr("chunks"), at.attr("axis"))
    return tuple(at.call(operator.getitem, parts, port) for port in range(at.attr("chunks")))


def _slice(at: Site) -> fx.Node:
    start, step = at.attr("start"), at.attr("step")
    if step == 1:
        return at.call(torch.narrow, *at.args, at.attr("axis"), start, at.attr("length"))
    end = start + (at.attr("length") - 1) * step + 1
    taken = (*[slice(None)] * at.attr("axis"), slice(start, end, step))
    return at.call(operator.getitem, *at.args, taken)


def _select(at: Site) -> fx.Node:
    return at.call(torch.select, *at.args, at.attr("axis"), at.attr("index"))


def _expand(at: Site) -> fx.Node:
    x, like = at.args
    axis = at.attr("axis")
    extent: int | fx.Node | object = at.types[1].shape[axis]
    if not isinstance(extent, int):
        extent = at.frame.graph.call_method("size", (like, axis))
    sizes = [extent if j == axis else -1 for j in range(at.rank)]
    return at.frame.graph.call_method("expand", (x, *sizes))


def _pad(at: Site) -> fx.Node:
    before, after, mode = at.ints("before"), at.ints("after"), at.attr("mode")
    pairs = list(zip(before, after, strict=True))
    flat = [width for pair in reversed(pairs) for width in pair]
    if mode == "constant":
        return at.call(functional.pad, *at.args, flat, "constant", at.attr("value"))
    if 3 <= at.rank <= 5 and not any(flat[-4:]):
        # torch pads all spatial axes of a batch of images in one go, and no other axes.
        return at.call(functional.pad, *at.args, flat[:-4], mode)
    out = at.args[0]
    for axis, pair in enumerate(pairs):
        if any(pair):
            extent = at.types[0].shape[axis]
            if not isinstance(extent, int):
                raise at.refuse(f"axis {axis} is padded by itself and has the extent {extent}")
            sources = torch.from_numpy(pad_sources(mode, extent, *pair))
            out = at.call(torch.index_select, out, axis, at.constant(sources))
    return out


def _roll(at: Site) -> fx.Node:
    return at.call(torch.roll, *at.args, at.attr("shift"), at.attr("axis"))


def _tile(at: Site) -> fx.Node:
    return at.frame.graph.call_method("repeat", (*at.args, *at.ints("repeats")))


def _repeat_interleave(at: Site) -> fx.Node:
    return at.call(torch.repeat_interleave, *at.args, at.attr("repeats"), at.attr("axis"))


def _flip(at: Site) -> fx.Node:
    return at.call(torch.flip, *at.args, at.ints("axes"))


def _cumsum(at: Site) -> fx.Node:
    return at.call(torch.cumsum, *at.args, at.attr("axis"))


def _gather(at: Site) -> fx.Node:
    x, index = at.args
    axis = at.attr("axis")
    return at.call(operator.getitem, x, (*[slice(None)] * axis, index))


def _null(at: Site) -> fx.Node:
    stride, x = at.attr("stride"), at.args[0]
    if stride != 1:
        places = (slice(None), slice(None), *[slice(None, None, stride)] * (at.rank - 2))
        x = at.call(operator.getitem, x, places)
    return at.call(torch.zeros_like, x)


def _embedding(at: Site) -> fx.Node:
    if not at.whole:
        return at.call(functional.embedding, *at.args, at.param("weight"))
    # Left to draw a table by itself, nn.Embedding would import torch._dynamo: six seconds.
    num, dim = at.attr("num"), at.attr("dim")
    return at.layer(nn.Embedding(num, dim, _weight=torch.empty(num, dim, device="meta")))


def _unfold(at: Site) -> fx.Node:
    rows = (at.ints(name) for name in ("kernel", "dilation", "padding", "stride"))
    return at.call(functional.unfold, *at.args, *rows)


def _fold(at: Site) -> fx.Node:
    rows = (at.ints(name) for name in ("size", "kernel", "dilation", "padding", "stride"))
    return at.call(functional.fold, *at.args, *rows)


def _windows(at: Site) -> fx.Node:
    stated = (at.attr(name) for name in ("axis", "size", "step"))
    return at.frame.graph.call_method("unfold", (*at.args, *stated))


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
        "unfold": _unfold,
        "fold": _fold,
        "windows": _windows,
        "null": _null,
    }
)
"""These operators in torch."""
