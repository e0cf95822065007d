"""Resizing of images to any size, as torch's ``interpolate`` defines it.

Each spatial axis is resized by itself: entries are picked (nearest), or are weighted sums, the rows
of a matrix [new extent, old extent].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from archir.ir.dims import Dim, Size, product
from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Kind, Mode, Op, Sample
from archir.ops.resample import along
from archir.ops.window import ints

MODES: Mapping[str, tuple[int, ...]] = {
    "nearest": (1, 2, 3),
    "nearest-exact": (1, 2, 3),
    "linear": (1,),
    "bilinear": (2,),
    "trilinear": (3,),
    "bicubic": (2,),
}
"""The modes, and for how many spatial axes each is."""
SMOOTH = ("bilinear", "bicubic")
"""The modes that can smooth before they shrink (`antialias`)."""
SHARPNESS = Fraction(-3, 4)
"""The coefficient of the cubic, as in torch; with `antialias` it is -1/2."""


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def scales(attrs: Attrs, count: int) -> tuple[float, ...] | None:
    """The factor of each spatial axis; None where sizes are stated.

    Raises:
        OpError: both are stated, or neither, or the factors are none.
    """
    stated, sizes = attrs["scale"], ints(attrs["size"])
    each = stated if isinstance(stated, tuple) else (stated,) * count
    plain = [float(s) for s in each if isinstance(s, int | float)]
    if all(sizes) and not any(plain):
        return None
    if any(sizes):
        message = "`interpolate` wants all sizes, or factors alone"
        raise OpError("A114", message, "size = [7, 9], or scale = 1.5", "size")
    if len(plain) != count or len(each) != count or min(plain) <= 0:
        message = f"`scale` of `interpolate` is a factor above 0, or one for each of {count} axes"
        raise OpError("A114", message, attr="scale")
    return tuple(plain)


def interpolate_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Spatial axes are mixed."""
    mode, count = str(attrs["mode"]), types[0].rank - 2
    if count not in MODES.get(mode, ()):
        allowed = ", ".join(name for name, counts in MODES.items() if count in counts)
        message = f"`mode` of `interpolate` is one of {allowed} for {count} spatial axes"
        raise OpError("A114", f"{message}, got `{mode}`", attr="mode")
    if attrs["align_corners"] and (mode.startswith("nearest") or attrs["antialias"]):
        message = "`align_corners` of `interpolate` has no meaning with `nearest` or `antialias`"
        raise OpError("A114", message, attr="align_corners")
    if attrs["antialias"] and mode not in SMOOTH:
        message = f"`antialias` of `interpolate` is for {' and '.join(SMOOTH)}"
        raise OpError("A114", message, attr="antialias")
    return "x[n, c, *s] -> [n, c, *s']"


def _extents(attrs: Attrs, stars: Mapping[str, tuple[Size, ...]]) -> dict[str, tuple[Size, ...]]:
    old = stars["s"]
    factors = scales(attrs, len(old))
    if factors is None:
        return {"s'": ints(attrs["size"])}
    out: list[Size] = []
    for size, factor in zip(old, factors, strict=True):
        if isinstance(size, Dim) and not factor.is_integer():
            message = f"a symbolic extent {size} times {factor:g} would need a floor"
            raise OpError("A111", message, "give the axis a number", "scale")
        new = product([size, int(factor)]) if isinstance(size, Dim) else math.floor(size * factor)
        if new == 0:
            raise OpError("A110", f"nothing is left of an extent of {size} times {factor:g}")
        out.append(new)
    return {"s'": tuple(out)}


def sources(extent: int, size: int, factor: float | None, mode: str) -> npt.NDArray[np.int64]:
    """Which entry of an axis each place of the resized one takes (modes `nearest`).

    In single precision, as torch computes it: at exact places rounding decides.
    """
    step = np.float32(extent) / np.float32(size) if factor is None else np.float32(1 / factor)
    places = np.arange(size)
    if mode == "nearest":
        at = places.astype(np.float32) * step
    else:
        at = ((places + 0.5) * np.float64(step)).astype(np.float32)
    return np.asarray(np.minimum(np.floor(at).astype(np.int64), extent - 1))


def weights(
    extent: int, size: int, factor: float | None, mode: str, *, corners: bool, smooth: bool
) -> Array:
    """The matrix [size, extent] of Fractions that resizes an axis (all other modes)."""
    step = Fraction(extent, size) if factor is None else 1 / Fraction(factor)
    if corners:
        step = Fraction(extent - 1, max(size - 1, 1))
    if size == extent and (smooth or mode != "bicubic"):
        step = Fraction(1)  # torch leaves such an axis as it is, whatever the factor
    out = np.full((size, extent), Fraction(0), dtype=object)
    cubic = mode == "bicubic"
    for row in range(size):
        if smooth:
            _smoothed(out[row], (Fraction(2 * row + 1) / 2) * step, step, cubic=cubic)
            continue
        at = row * step if corners else (Fraction(2 * row + 1) / 2) * step - Fraction(1, 2)
        if cubic:
            first = math.floor(at)
            taps = {j: _cubic(abs(at - j), SHARPNESS) for j in range(first - 1, first + 3)}
        else:
            at = max(at, Fraction(0))
            first = min(math.floor(at), extent - 1)
            taps = {first: 1 - (at - first), first + 1: at - first}
        for place, share in taps.items():
            out[row, min(max(place, 0), extent - 1)] += share
    return out


def _cubic(far: Fraction, a: Fraction) -> Fraction:
    """Keys' cubic convolution kernel."""
    if far <= 1:
        return ((a + 2) * far - (a + 3)) * far * far + 1
    return (((far - 5) * far + 8) * far - 4) * a if far < 2 else Fraction(0)


def _smoothed(row: Array, centre: Fraction, step: Fraction, *, cubic: bool) -> None:
    """The weights of a window around a place, as wide as the step where that shrinks."""
    wide = max(step, Fraction(1))
    support = (2 if cubic else 1) * wide
    first = max(int(centre - support + Fraction(1, 2)), 0)
    end = min(int(centre + support + Fraction(1, 2)), len(row))
    for place in range(first, end):
        far = abs((place - centre + Fraction(1, 2)) / wide)
        row[place] = _cubic(far, Fraction(-1, 2)) if cubic else max(1 - far, Fraction(0))
    total = sum(row[first:end])
    row[first:end] = [share / total for share in row[first:end]]


def _interpolate(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    out, how = x[0], str(a["mode"])
    factors = scales(a, out.ndim - 2)
    after = ints(_extents(a, {"s": out.shape[2:]})["s'"])
    for axis, size in enumerate(after, 2):
        extent, factor = out.shape[axis], factors[axis - 2] if factors else None
        if how.startswith("nearest"):
            out = out.take(sources(extent, size, factor, how), axis=axis)
        else:
            corners, smooth = bool(a["align_corners"]), bool(a["antialias"])
            matrix = weights(extent, size, factor, how, corners=corners, smooth=smooth)
            out = along(k, out, axis, matrix)
    return (out,)


INTERPOLATE = Op(
    name="interpolate",
    doc="Resizes spatial axes to `size`, or by factors, in one of torch's modes.",
    signature=interpolate_signature,
    attrs=(
        Attr("size", Kind.SPATIAL, 0, least=0, doc="the extents of the result; 0: by `scale`"),
        Attr("mode", Kind.STRING, "nearest", doc=", ".join(MODES)),
        Attr("align_corners", Kind.BOOL, default=False),
        Attr("antialias", Kind.BOOL, default=False, doc="smooth what is made smaller"),
        Attr("scale", Kind.NUMBERS, 0.0, doc="a factor, or one for each spatial axis"),
    ),
    derive=_extents,
    reference=_interpolate,
    samples=(
        Sample((_t(2, 3, 7, 5),), {"size": (4, 9)}),
        Sample((_t(2, 3, 5),), {"scale": 1.7, "mode": "nearest-exact"}),
        Sample((_t(2, 3, 6, 5),), {"scale": (1.5, 2.3), "mode": "bilinear"}),
        Sample((_t(2, 3, 4, 7),), {"size": (9, 3), "mode": "bilinear", "align_corners": True}),
        Sample((_t(2, 3, 6, 5),), {"size": (7, 11), "mode": "bicubic"}),
        Sample((_t(2, 3, 6, 5),), {"size": (9, 3), "mode": "bicubic", "align_corners": True}),
        Sample((_t(2, 3, 9, 5),), {"size": (4, 7), "mode": "bicubic", "antialias": True}),
        Sample((_t(2, 3, 9, 5),), {"size": (5, 3), "mode": "bilinear", "antialias": True}),
        Sample((_t(2, 3, 7),), {"size": 10, "mode": "linear"}),
        Sample((_t(1, 2, 3, 4, 5),), {"size": (5, 3, 4), "mode": "trilinear"}),
    ),
)

OPS = (INTERPOLATE,)
