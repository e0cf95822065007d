"""Sliding windows: the extents they give, and their gathering for reference semantics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from archir.ir.dims import Dim, Size
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.record import Attrs


def ints(value: Any) -> tuple[int, ...]:
    """An attribute that is known to hold integers."""
    return tuple(int(v) for v in value)


def extents(attrs: Attrs, stars: Mapping[str, tuple[Size, ...]]) -> dict[str, tuple[Size, ...]]:
    """The spatial extents after a window: floor((s + 2p - d(k-1) - 1) / stride) + 1.

    Raises:
        OpError: the window does not fit, or a symbolic extent would need a floor.
    """
    kernel, stride, padding = (ints(attrs[n]) for n in ("kernel", "stride", "padding"))
    dilation = ints(attrs.get("dilation", (1,) * len(kernel)))
    out: list[Size] = []
    for s, k, st, p, d in zip(stars["s"], kernel, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        if isinstance(s, Dim):
            if st == 1 and 2 * p == reach - 1:
                out.append(s)
                continue
            raise OpError(
                "A111",
                f"a window of {k} with stride {st} over a symbolic extent {s} has no closed form",
                hint="give the axis a number",
            )
        room = s + 2 * p - reach
        if room < 0:
            raise OpError(
                "A110", f"a window of {reach} does not fit an extent of {s} padded by {p}"
            )
        up = st - 1 if attrs.get("ceil_mode") else 0
        count = (room + up) // st + 1
        if up and (count - 1) * st >= s + p:
            count -= 1
        out.append(count)
    return {"s'": tuple(out)}


def windows(x: Array, attrs: Attrs, fill: Any) -> Array:
    """Gather windows: [n, c, *s] -> [n, c, *s', *k]."""
    kernel, stride, padding = (ints(attrs[n]) for n in ("kernel", "stride", "padding"))
    dilation = ints(attrs.get("dilation", (1,) * len(kernel)))
    after = ints(extents(attrs, {"s": x.shape[2:]})["s'"])
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    pads = [(0, 0), (0, 0)]
    for size, p, count, st, r in zip(x.shape[2:], padding, after, stride, reach, strict=True):
        pads.append((p, max(p, (count - 1) * st + r - size - p)))
    if any(p != (0, 0) for p in pads):
        x = np.pad(x, pads, constant_values=fill)
    view = sliding_window_view(x, reach, axis=tuple(range(2, x.ndim)))
    steps = tuple(slice(0, count * st, st) for count, st in zip(after, stride, strict=True))
    taps = tuple(slice(None, None, d) for d in dilation)
    picked: Array = view[(slice(None), slice(None), *steps, *taps)]
    return picked


def spread(k: Arithmetic, parts: Array, attrs: Attrs, size: tuple[int, ...]) -> Array:
    """Add windows up where they lie: [n, c, *k, *s] -> [n, c, *size]."""
    kernel, stride, padding, dilation = (
        ints(attrs[n]) for n in ("kernel", "stride", "padding", "dilation")
    )
    space = parts.shape[2 + len(kernel) :]
    wide = (s + 2 * p for s, p in zip(size, padding, strict=True))
    canvas = np.full((*parts.shape[:2], *wide), k.number(0))
    for tap in np.ndindex(*kernel):
        window = tuple(
            slice(t * d, t * d + (s - 1) * st + 1, st)
            for t, d, s, st in zip(tap, dilation, space, stride, strict=True)
        )
        here = (slice(None), slice(None), *window)
        canvas[here] = k.add(canvas[here], parts[(slice(None), slice(None), *tap)])
    cut = tuple(slice(p, p + s) for s, p in zip(size, padding, strict=True))
    picked: Array = canvas[(slice(None), slice(None), *cut)]
    return picked
