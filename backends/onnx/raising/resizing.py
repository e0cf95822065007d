"""Resize and Upsample: archir's operator where it says the same, else a product with a matrix.

Interpolation is linear along each axis: whatever the coordinates and the kernel, an axis of a
known size is multiplied by a constant matrix, whose rows say what each new entry is made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from archir.ir.dims import Dim, Size, quotient

from .moving import permuted, taken
from .site import RefusedError, Site, Tensor
from .values import Made, multiply

Raise = Callable[[Site], None]
Matrix = npt.NDArray[np.float64]


def _resize(at: Site) -> None:
    x = at.x()
    if at.opset < 11:
        scales = [float(s) for s in at.array(1).reshape(-1)]
        _scaled(at, x, scales, _Style(str(at.attr("mode", "nearest")), "asymmetric"))
        return
    mode = str(at.attr("mode", "nearest"))
    style = _Style(
        mode,
        str(at.attr("coordinate_transformation_mode", "half_pixel")),
        str(at.attr("nearest_mode", "round_prefer_floor")),
        float(at.attr("cubic_coeff_a", -0.75)),
        bool(at.attr("exclude_outside", 0)),
        bool(at.attr("antialias", 0)),
    )
    axes = at.attr("axes") or list(range(x.type.rank))
    axes = [axis % x.type.rank for axis in axes]
    if at.has(2) and _entries(at, 2):
        given = [float(s) for s in at.array(2).reshape(-1)]
        scales = [1.0] * x.type.rank
        for axis, scale in zip(axes, given, strict=False):
            scales[axis] = scale
        _scaled(at, x, scales, style)
        return
    if at.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise RefusedError(f"its keep_aspect_ratio_policy is {at.attr('keep_aspect_ratio_policy')}")
    wanted = at.sizes(3)
    sizes: list[Size] = list(x.type.shape)
    for axis, size in zip(axes, wanted, strict=False):
        sizes[axis] = size
    _sized(at, x, sizes, [None] * x.type.rank, style)


def _entries(at: Site, place: int) -> bool:
    found = at.known(place)
    return found is None or found.array.size > 0


def _upsample(at: Site) -> None:
    given = at.array(1).reshape(-1) if at.has(1) else at.attr("scales", [])
    style = _Style(str(at.attr("mode", "nearest")), "asymmetric")
    _scaled(at, at.x(), [float(s) for s in given], style)


class _Style:
    """How entries are placed and mixed."""

    def __init__(
        self,
        mode: str,
        places: str,
        nearest: str = "floor",
        a: float = -0.75,
        outside: bool = False,
        antialias: bool = False,
    ) -> None:
        if mode not in ("nearest", "linear", "cubic"):
            raise RefusedError(f"its mode is {mode}")
        if antialias:
            raise RefusedError("it is antialiased")
        known = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
        if places not in (*known, "half_pixel_symmetric"):
            raise RefusedError(f"its coordinate_transformation_mode is {places}")
        self.mode, self.places, self.nearest, self.a = mode, places, nearest, a
        self.outside = outside


def _scaled(at: Site, x: Made, scales: list[float], style: _Style) -> None:
    if len(scales) != x.type.rank or min(scales, default=1) <= 0:
        raise RefusedError(f"its scales are {scales}, its input {x.type}")
    sizes: list[Size] = []
    for size, scale in zip(x.type.shape, scales, strict=True):
        if isinstance(size, Dim):
            if scale != int(scale):
                raise RefusedError(f"it makes an axis of {size} {scale:g} times as long")
            made = multiply(size, int(scale))
            assert isinstance(made, Dim)
            sizes.append(made)
        else:
            sizes.append(math.floor(size * scale))
    _sized(at, x, sizes, list(scales), style)


def _sized(at: Site, x: Made, sizes: list[Size], scales: list[float | None], style: _Style) -> None:
    changed = [
        j for j, size in enumerate(sizes) if size != x.type.shape[j] or scales[j] not in (None, 1)
    ]
    if not changed:
        at.give(x)
        return
    factor = _factor(x, sizes, changed)
    if factor is not None and style.mode == "nearest" and _copies(style):
        at.give(at.put("upsample", x, scale=factor))
        return
    halves = style.places in ("half_pixel", "pytorch_half_pixel")
    if (
        factor is not None
        and style.mode == "linear"
        and (halves or style.places == "align_corners")
    ):
        corners = style.places == "align_corners"
        at.give(at.put("upsample", x, scale=factor, mode="bilinear", align_corners=corners))
        return
    for axis in changed:
        old, new = x.type.shape[axis], sizes[axis]
        if not isinstance(old, int) or not isinstance(new, int) or new < 1:
            raise RefusedError(f"it brings an axis of {old} to {new}")
        if max(old, new) > 2**14 or old * new > 2**24:
            raise RefusedError(f"it brings an axis of {old} to {new}, which are too many")
        scale = scales[axis] or new / old
        if style.mode == "nearest":
            x = taken(at, x, np.asarray(_nearest(old, new, scale, style)), axis)
        else:
            x = _along(at, x, axis, _matrix(old, new, scale, style))
    at.give(x)


def _factor(x: Made, sizes: list[Size], changed: list[int]) -> tuple[int, ...] | None:
    """How many times as long the spatial axes become, if these alone do, and by whole numbers."""
    if x.type.rank not in (3, 4, 5) or min(changed) < 2:
        return None
    ratios = [quotient(b, a) for a, b in zip(x.type.shape[2:], sizes[2:], strict=True)]
    found = tuple(ratio for ratio in ratios if isinstance(ratio, int))
    return found if len(found) == len(ratios) else None


def _copies(style: _Style) -> bool:
    """Whether, for whole factors, each entry is repeated."""
    if style.places == "asymmetric":
        return style.nearest == "floor"
    halves = style.places in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    return halves and style.nearest.startswith("round")


def _place(row: int, old: int, new: int, scale: float, style: _Style) -> float:
    """Where the centre of a new entry lies among the old ones."""
    if style.places == "asymmetric":
        return row / scale
    if style.places == "align_corners":
        return row * (old - 1) / (new - 1) if new > 1 else 0.0
    if style.places == "pytorch_half_pixel" and new == 1:
        return 0.0
    if style.places == "half_pixel_symmetric":
        adjusted = new / (scale * old)
        return old / 2 * (1 - adjusted) + (row + 0.5) / scale - 0.5
    return (row + 0.5) / scale - 0.5


def _nearest(old: int, new: int, scale: float, style: _Style) -> list[int]:
    found = []
    for row in range(new):
        place = _place(row, old, new, scale, style)
        whole = {
            "floor": math.floor(place),
            "ceil": math.ceil(place),
            "round_prefer_floor": math.ceil(place - 0.5),
            "round_prefer_ceil": math.floor(place + 0.5),
        }.get(style.nearest)
        if whole is None:
            raise RefusedError(f"its nearest_mode is {style.nearest}")
        found.append(min(max(whole, 0), old - 1))
    return found


def _matrix(old: int, new: int, scale: float, style: _Style) -> Matrix:
    out = np.zeros((new, old))
    for row in range(new):
        place = _place(row, old, new, scale, style)
        first = math.floor(place)
        part = place - first
        taps = _taps(part, style)
        reach = range(first - len(taps) // 2 + 1, first + len(taps) // 2 + 1)
        inside = [0 <= column < old for column in reach]
        total = sum(t for t, i in zip(taps, inside, strict=True) if i) if style.outside else 1.0
        for tap, column, here in zip(taps, reach, inside, strict=True):
            if here or not style.outside:
                out[row, min(max(column, 0), old - 1)] += tap / total
    return out


def _taps(part: float, style: _Style) -> list[float]:
    if style.mode == "linear":
        return [1 - part, part]
    a = style.a
    near = [((a + 2) * t - (a + 3)) * t * t + 1 for t in (part, 1 - part)]
    far = [((a * t - 5 * a) * t + 8 * a) * t - 4 * a for t in (part + 1, 2 - part)]
    return [far[0], near[0], near[1], far[1]]


def _along(at: Site, x: Made, axis: int, matrix: Matrix) -> Made:
    """Multiply an axis by a constant matrix."""
    dtype = {"f16": np.float16, "f64": np.float64}.get(x.type.dtype, np.float32)
    last = x.type.rank - 1
    order = list(range(x.type.rank))
    order[axis], order[last] = last, axis
    turned = permuted(at, x, order)
    mixed = _by(at, turned, Tensor(np.asarray(matrix.T, dtype)))
    return permuted(at, mixed, order)


def _by(at: Site, x: Made, weights: Tensor) -> Made:
    return at.put("matmul", x, at.held(weights, x.type.dtype))


RESIZES: Mapping[str, Raise] = MappingProxyType({"Resize": _resize, "Upsample": _upsample})
"""How these operators are raised."""
