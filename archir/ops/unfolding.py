"""Windows laid out as an axis of their own, and put back: im2col, col2im, sliding windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from numpy.lib.stride_tricks import sliding_window_view

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.layout import axes, written
from archir.ops.record import Attr, Attrs, Kind, Mode, Op, Sample
from archir.ops.window import extents, ints, spread, windows

SPACE = 2
"""Spatial axes of what torch folds and unfolds."""


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def positions(op: str, attrs: Attrs, space: Sequence[object]) -> tuple[int, ...]:
    """How many windows there are along each spatial axis.

    Raises:
        OpError: there are none, or an extent is a symbol.
    """
    known = tuple(size for size in space if isinstance(size, int))
    if len(known) != len(space):
        sizes = " and ".join(map(str, space))
        raise OpError("A111", f"`{op}` over {sizes}: the number of windows cannot be written")
    return ints(extents(attrs, {"s": known})["s'"])


def unfold_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The entries of a window stand within each channel; where it stands is opaque."""
    (x,) = types
    if x.rank != SPACE + 2:
        raise OpError("A110", f"`unfold` reads images [n, c, h, w], got {x}")
    count = math.prod(positions("unfold", attrs, x.shape[2:]))
    return f"x[n, c, h!, w!] -> [n, (c k0 k1), {count}]"


def fold_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The channels are the slow part of an axis; windows that overlap are added up."""
    (x,) = types
    rows = [ints(attrs[name]) for name in ("size", "kernel", "stride", "padding", "dilation")]
    if any(len(row) != SPACE for row in rows):
        raise OpError("A114", f"`fold` wants {SPACE} numbers in each of its lists")
    if x.rank != SPACE + 1:
        raise OpError("A110", f"`fold` reads windows [n, c * h * w, places], got {x}")
    count = math.prod(positions("fold", attrs, rows[0]))
    if x.shape[-1] != count:
        message = f"`fold` to {list(rows[0])} puts back {count} windows, there are {x.shape[-1]}"
        raise OpError("A110", f"{message}: {x}")
    return "x[n, (c k0 k1), l!] -> [n, c, o0, o1]"


def windows_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Opaque along the axis; the entries of a window are the last axis."""
    axis, size, step = ints((attrs["axis"], attrs["size"], attrs["step"]))
    extent = types[0].shape[axis]
    if not isinstance(extent, int):
        message = f"`windows` along axis {axis}, whose extent is the symbol {extent}: {types[0]}"
        raise OpError("A111", message, "give the axis a number")
    if size > extent:
        raise OpError("A110", f"`windows` of {size} along axis {axis}: {types[0]}", attr="size")
    names = axes(types[0].rank)
    after = [*names[:axis], str((extent - size) // step + 1), *names[axis + 1 :], "k"]
    names[axis] += "!"
    return written(names, after)


def _unfold(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    seen = windows(x[0], a, k.number(0))
    n, c, height, width, *kernel = seen.shape
    turned = seen.transpose(0, 1, 4, 5, 2, 3)
    return (turned.reshape(n, c * math.prod(kernel), height * width),)


def _fold(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    size, kernel = ints(a["size"]), ints(a["kernel"])
    apart = x[0].reshape(len(x[0]), -1, *kernel, *positions("fold", a, size))
    return (spread(k, apart, a, size),)


def _windows(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    axis, size, step = ints((a["axis"], a["size"], a["step"]))
    seen = sliding_window_view(x[0], size, axis=axis)
    return (seen[(*[slice(None)] * axis, slice(None, None, step))],)


UNFOLD = Op(
    name="unfold",
    doc="The windows of images [n, c, h, w] as columns [n, c * kernel, places]: im2col.",
    signature=unfold_signature,
    attrs=(
        Attr("kernel", Kind.SPATIAL, least=1),
        Attr("stride", Kind.SPATIAL, 1, least=1),
        Attr("padding", Kind.SPATIAL, 0, least=0),
        Attr("dilation", Kind.SPATIAL, 1, least=1),
    ),
    equations={"*k": "kernel"},
    reference=_unfold,
    samples=(
        Sample((_t(2, 3, 6, 7),), {"kernel": 3, "padding": 1}),
        Sample((_t(2, 2, 7, 5),), {"kernel": (2, 3), "stride": (2, 1), "dilation": (1, 2)}),
        Sample((_t(1, 3, 4, 6),), {"kernel": 2, "stride": 2}),
    ),
)

FOLD = Op(
    name="fold",
    doc="Columns [n, c * kernel, places] as windows of an image, added where they overlap: col2im.",
    signature=fold_signature,
    attrs=(
        Attr("size", Kind.INTS, least=1, doc="height and width of the image"),
        Attr("kernel", Kind.INTS, least=1),
        Attr("stride", Kind.INTS, (1, 1), least=1),
        Attr("padding", Kind.INTS, (0, 0), least=0),
        Attr("dilation", Kind.INTS, (1, 1), least=1),
    ),
    equations={"*k": "kernel", "*o": "size"},
    reference=_fold,
    samples=(
        Sample((_t(2, 27, 42),), {"size": (6, 7), "kernel": (3, 3), "padding": (1, 1)}),
        Sample(
            (_t(2, 12, 16),),
            {"size": (9, 6), "kernel": (2, 3), "stride": (2, 1), "dilation": (2, 1)},
        ),
        Sample((_t(1, 12, 6),), {"size": (5, 6), "kernel": (2, 2), "stride": (2, 2)}),
    ),
)

WINDOWS = Op(
    name="windows",
    doc="Windows of `size` entries along an axis, every `step`-th; their entries become the last "
    "axis.",
    signature=windows_signature,
    attrs=(
        Attr("axis", Kind.AXIS),
        Attr("size", Kind.INT, least=1),
        Attr("step", Kind.INT, 1, least=1),
    ),
    equations={"k": "size"},
    reference=_windows,
    samples=(
        Sample((_t(2, 3, 7, 5),), {"axis": 2, "size": 3, "step": 2}),
        Sample((_t(2, 6, 4),), {"axis": 1, "size": 2}),
        Sample((_t(2, 3, 5),), {"axis": -1, "size": 5, "step": 3}),
    ),
)

OPS = (UNFOLD, FOLD, WINDOWS)
