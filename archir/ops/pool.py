"""Pooling over windows and over all spatial axes."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.record import Attr, Attrs, Kind, Law, Mode, Op, SameAs, Sample
from archir.ops.window import extents, ints, windows


def _valid(x: Array, a: Attrs) -> Array:
    return windows(np.ones((1, 1, *x.shape[2:]), np.bool_), a, fill=False)


def _max_pool(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    seen = windows(x[0], a, k.number(0))
    return (k.maximum(seen, _taps(seen, a), _valid(x[0], a)),)


def _taps(seen: Array, a: Attrs) -> tuple[int, ...]:
    return tuple(range(seen.ndim - len(ints(a["kernel"])), seen.ndim))


def _avg_pool(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    seen = windows(x[0], a, k.number(0))
    sums = k.sum(seen, _taps(seen, a))
    if not a["count_include_pad"]:
        return (k.divide(sums, k.array(_valid(x[0], a).sum(axis=_taps(seen, a)))),)
    whole = int(np.prod(ints(a["kernel"])))
    counts = padded_counts(a, ints(x[0].shape[2:]), ints(sums.shape[2:]))
    if (counts == whole).all():
        return (k.multiply(sums, k.number(Fraction(1, whole))),)
    return (k.divide(sums, k.array(counts)),)


def padded_counts(
    attrs: Attrs, extents: tuple[int, ...], after: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """How many entries of the padded image each window holds: fewer where it ends beyond that.

    Args:
        attrs: The attributes of an `avg_pool`.
        extents: The spatial extents before it.
        after: Those of its result.
    """
    kernel, stride, padding = (ints(attrs[n]) for n in ("kernel", "stride", "padding"))
    counts = np.ones((), np.int64)
    for size, count, *window in zip(extents, after, kernel, stride, padding, strict=True):
        taps, step, margin = window
        starts = np.arange(count) * step - margin
        counts = np.multiply.outer(counts, np.minimum(starts + taps, size + margin) - starts)
    return np.asarray(counts)


def _global_avg(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    over = tuple(range(2, x[0].ndim))
    share = Fraction(1, int(np.prod(x[0].shape[2:])))
    return (k.multiply(k.sum(x[0], over), k.number(share)),)


def _global_max(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    over = tuple(range(2, x[0].ndim))
    return (k.maximum(x[0], over, np.ones((1,) * x[0].ndim, np.bool_)),)


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


_WINDOW = (
    Attr("kernel", Kind.SPATIAL, least=1),
    Attr("stride", Kind.SPATIAL, SameAs("kernel"), least=1),
    Attr("padding", Kind.PADDING, 0, least=0),
)

MAX_POOL = Op(
    name="max_pool",
    doc="The largest entry of each window; padding never wins.",
    signature="x[n, c, *s] -> [n, c, *s']",
    attrs=(
        *_WINDOW,
        Attr("dilation", Kind.SPATIAL, 1, least=1),
        Attr("ceil_mode", Kind.BOOL, default=False),
    ),
    equations={"*k": "kernel"},
    derive=extents,
    reference=_max_pool,
    laws=frozenset({Law.ORDERED}),
    field="the maximum of a window is a sum of entries of a fixed random table",
    samples=(
        Sample((_t(2, 3, 6, 8),), {"kernel": 2}),
        Sample((_t(1, 3, 7, 9),), {"kernel": 3, "stride": 2, "padding": 1}),
        Sample((_t(1, 2, 7, 6),), {"kernel": (2, 3), "stride": 2, "ceil_mode": True}),
        Sample((_t(2, 3, 9),), {"kernel": 3, "stride": 1, "dilation": 2}),
    ),
)

AVG_POOL = Op(
    name="avg_pool",
    doc="The mean of each window.",
    signature="x[n, c, *s] -> [n, c, *s']",
    attrs=(
        *_WINDOW,
        Attr("count_include_pad", Kind.BOOL, default=True),
        Attr("ceil_mode", Kind.BOOL, default=False),
    ),
    equations={"*k": "kernel"},
    derive=extents,
    reference=_avg_pool,
    samples=(
        Sample((_t(2, 3, 6, 8),), {"kernel": 2}),
        Sample((_t(1, 3, 7, 9),), {"kernel": 3, "stride": 2, "padding": 1}),
        Sample(
            (_t(1, 3, 7, 9),),
            {"kernel": (3, 5), "stride": 2, "padding": (1, 2), "count_include_pad": False},
        ),
        Sample((_t(2, 3, 9),), {"kernel": 3, "stride": 1}),
        Sample((_t(1, 3, 7, 8),), {"kernel": (2, 3), "stride": 2, "padding": 1, "ceil_mode": True}),
        Sample((_t(2, 3, 7, 5),), {"kernel": 2, "count_include_pad": False, "ceil_mode": True}),
    ),
)

GLOBAL_AVG_POOL = Op(
    name="global_avg_pool",
    doc="The mean over all spatial axes; the result has none.",
    signature="x[n, c, *s] -> [n, c]",
    reference=_global_avg,
    samples=(Sample((_t(2, 3, 5, 7),)), Sample((_t(2, 3, 4),)), Sample((_t(1, 2, 3, 4, 5),))),
)

GLOBAL_MAX_POOL = Op(
    name="global_max_pool",
    doc="The largest entry over all spatial axes; the result has none.",
    signature="x[n, c, *s] -> [n, c]",
    reference=_global_max,
    laws=frozenset({Law.ORDERED}),
    field="the maximum is a sum of entries of a fixed random table",
    samples=(Sample((_t(2, 3, 5, 7),)), Sample((_t(2, 3, 4),))),
)

OPS = (MAX_POOL, AVG_POOL, GLOBAL_AVG_POOL, GLOBAL_MAX_POOL)
