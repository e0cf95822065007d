"""Operators that bring spatial axes to another size: adaptive pooling and upsampling."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Kind, Law, Mode, Op, Sample
from archir.ops.window import ints

UPSAMPLE_MODES = ("nearest", "bilinear")


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def shares(extent: int, size: int) -> list[tuple[int, int]]:
    """First and last-but-one entry of each of the windows that cover an axis.

    >>> shares(7, 3)
    [(0, 3), (2, 5), (4, 7)]
    """
    return [(i * extent // size, -(-(i + 1) * extent // size)) for i in range(size)]


def averages(extent: int, size: int) -> Array:
    """The matrix [size, extent] of Fractions that takes the mean of each window."""
    out = np.full((size, extent), Fraction(0), dtype=object)
    for row, (first, end) in enumerate(shares(extent, size)):
        out[row, first:end] = Fraction(1, end - first)
    return out


def interpolation(extent: int, scale: int, *, corners: bool) -> Array:
    """The matrix [extent * scale, extent] of Fractions that interpolates linearly.

    Without ``corners`` a new pixel's centre is mapped into the old grid, and the edge is
    repeated; with it, first and last pixels fall on each other.
    """
    size = extent * scale
    out = np.full((size, extent), Fraction(0), dtype=object)
    for row in range(size):
        if corners:
            place = Fraction(row * (extent - 1), max(size - 1, 1))
        else:
            place = max(Fraction(2 * row + 1, 2 * scale) - Fraction(1, 2), Fraction(0))
        first = min(int(place), extent - 1)
        part = place - first
        out[row, first] += 1 - part
        out[row, min(first + 1, extent - 1)] += part
    return out


def along(k: Arithmetic, x: Array, axis: int, matrix: Array) -> Array:
    """A matrix of Fractions applied along an axis."""
    turned = k.matmul(x.swapaxes(axis, -1), k.array(matrix).T)
    return turned.swapaxes(axis, -1)


def _adaptive_avg(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    out = x[0]
    for axis, size in enumerate(ints(a["size"]), 2):
        out = along(k, out, axis, averages(out.shape[axis], size))
    return (out,)


def _adaptive_max(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    sizes = ints(a["size"])
    cuts = [shares(extent, size) for extent, size in zip(x[0].shape[2:], sizes, strict=True)]
    parts = []
    for places in np.ndindex(*sizes):
        ends = [cut[place] for cut, place in zip(cuts, places, strict=True)]
        seen = x[0][(slice(None), slice(None), *(slice(*pair) for pair in ends))]
        over = tuple(range(2, seen.ndim))
        parts.append(k.maximum(seen, over, np.ones((1,) * seen.ndim, np.bool_)))
    return (np.stack(parts, axis=-1).reshape(*x[0].shape[:2], *sizes),)


def upsample_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Copies of each entry stand beside it; what is interpolated is opaque."""
    mode, spatial = attrs["mode"], types[0].rank - 2
    if mode not in UPSAMPLE_MODES:
        allowed = " or ".join(UPSAMPLE_MODES)
        raise OpError("A114", f"`mode` of `upsample` is {allowed}, got `{mode}`", attr="mode")
    if attrs["align_corners"] and mode == "nearest":
        message = "`align_corners` of `upsample` has a meaning for `bilinear` alone"
        raise OpError("A114", message, attr="align_corners")
    mark = "!" * (mode == "bilinear")
    before = ", ".join(["n", "c", *(f"s{j}{mark}" for j in range(spatial))])
    after = ", ".join(["n", "c", *(f"(s{j} r{j})" for j in range(spatial))])
    return f"x[{before}] -> [{after}]"


def _upsample(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    out = x[0]
    for axis, scale in enumerate(ints(a["scale"]), 2):
        if a["mode"] == "nearest":
            out = np.repeat(out, scale, axis=axis)
        else:
            corners = bool(a["align_corners"])
            out = along(k, out, axis, interpolation(out.shape[axis], scale, corners=corners))
    return (out,)


ADAPTIVE_AVG_POOL = Op(
    name="adaptive_avg_pool",
    doc="The mean of each of the windows that cut the spatial axes into `size` parts.",
    signature="x[n, c, *s] -> [n, c, *o]",
    attrs=(Attr("size", Kind.SPATIAL, least=1),),
    equations={"*o": "size"},
    reference=_adaptive_avg,
    samples=(
        Sample((_t(2, 3, 7, 5),), {"size": 1}),
        Sample((_t(2, 3, 6, 8),), {"size": (3, 2)}),
        Sample((_t(2, 3, 7, 5),), {"size": (3, 4)}),
        Sample((_t(2, 3, 4),), {"size": 6}),
        Sample((_t(1, 2, 3, 4, 5),), {"size": 2}),
    ),
)

ADAPTIVE_MAX_POOL = Op(
    name="adaptive_max_pool",
    doc="The largest entry of each of the windows that cut the spatial axes into `size` parts.",
    signature="x[n, c, *s] -> [n, c, *o]",
    attrs=(Attr("size", Kind.SPATIAL, least=1),),
    equations={"*o": "size"},
    reference=_adaptive_max,
    laws=frozenset({Law.ORDERED}),
    field="the maximum of a window is a sum of entries of a fixed random table",
    samples=(
        Sample((_t(2, 3, 7, 5),), {"size": 1}),
        Sample((_t(2, 3, 6, 8),), {"size": (3, 2)}),
        Sample((_t(2, 3, 7, 5),), {"size": (3, 4)}),
        Sample((_t(2, 3, 4),), {"size": 3}),
    ),
)

UPSAMPLE = Op(
    name="upsample",
    doc="Makes spatial axes a whole number of times as long: by copies, or linearly.",
    signature=upsample_signature,
    attrs=(
        Attr("scale", Kind.SPATIAL, least=1),
        Attr("mode", Kind.STRING, "nearest", doc=" or ".join(UPSAMPLE_MODES)),
        Attr("align_corners", Kind.BOOL, default=False),
    ),
    equations={"*r": "scale"},
    reference=_upsample,
    samples=(
        Sample((_t(2, 3, 4, 5),), {"scale": (2, 3)}),
        Sample((_t(2, 3, 4, 5),), {"scale": (3, 2), "mode": "bilinear"}),
        Sample((_t(2, 3, 4, 5),), {"scale": 2, "mode": "bilinear", "align_corners": True}),
        Sample((_t(2, 3, 5),), {"scale": 2}),
        Sample((_t(2, 3, 5),), {"scale": 4, "mode": "bilinear"}),
    ),
)

OPS = (ADAPTIVE_AVG_POOL, ADAPTIVE_MAX_POOL, UPSAMPLE)
