"""Weight functions that take entries of an axis and put them elsewhere."""

from __future__ import annotations

import numpy as np

from archir.ops.arithmetic import Arithmetic, Array
from archir.weights.record import Shape, WeightFunction, axis_of, need, whole
from archir.weights.terms import IndexMap


def _take_shape(w: Shape, g: IndexMap, axis: int) -> Shape:
    axis = axis_of("take", w, axis)
    need(isinstance(g, IndexMap), "take needs an index map")
    need(w[axis] == g.source, f"take: axis {axis} has size {w[axis]}, the map is over {g.source}")
    return (*w[:axis], len(g.entries), *w[axis + 1 :])


def _take(k: Arithmetic, w: Array, g: IndexMap, axis: int) -> Array:
    return np.take(w, g.entries, axis=axis)


def _place_shape(w: Shape, g: IndexMap, axis: int) -> Shape:
    axis = axis_of("place", w, axis)
    need(isinstance(g, IndexMap), "place needs an index map")
    need(
        w[axis] == len(g.entries),
        f"place: axis {axis} has size {w[axis]}, the map places {len(g.entries)}",
    )
    return (*w[:axis], g.source, *w[axis + 1 :])


def _place(k: Arithmetic, w: Array, g: IndexMap, axis: int) -> Array:
    axis %= w.ndim
    out = np.zeros((*w.shape[:axis], g.source, *w.shape[axis + 1 :]), w.dtype)
    if w.dtype == object:
        out[...] = k.number(0)
    out[(slice(None),) * axis + (g.entries,)] = w
    return out


def _count_shape(g: IndexMap) -> Shape:
    need(isinstance(g, IndexMap), "count needs an index map")
    return (len(g.entries),)


def _count(k: Arithmetic, g: IndexMap) -> Array:
    return k.array(g.counts())


def _slice_shape(w: Shape, axis: int, start: int, stop: int | None = None) -> Shape:
    axis = axis_of("slice", w, axis)
    stop = w[axis] if stop is None else stop
    whole("slice", start, stop)
    need(0 <= start <= stop <= w[axis], f"slice {start}:{stop} of axis {axis} of {w}")
    return (*w[:axis], stop - start, *w[axis + 1 :])


def _slice(k: Arithmetic, w: Array, axis: int, start: int, stop: int | None = None) -> Array:
    return w[(slice(None),) * (axis % w.ndim) + (slice(start, stop),)]


def _extend_shape(w: Shape, amount: int, axis: int) -> Shape:
    axis = axis_of("extend", w, axis)
    whole("extend", amount)
    need(amount >= 0, f"extend: {amount} is negative")
    return (*w[:axis], w[axis] + amount, *w[axis + 1 :])


def _extend(k: Arithmetic, w: Array, amount: int, axis: int) -> Array:
    widths = [(0, amount if j == axis % w.ndim else 0) for j in range(w.ndim)]
    return np.pad(w, widths, constant_values=k.number(0))


def _part_shape(w: Shape, axis: int, number: int, of: int) -> Shape:
    axis = axis_of("part", w, axis)
    whole("part", number, of)
    need(0 <= number < of, f"part: there is no part {number} of {of}")
    need(w[axis] % of == 0, f"part: {w[axis]} entries cannot be cut into {of} equal parts")
    return (*w[:axis], w[axis] // of, *w[axis + 1 :])


def _part(k: Arithmetic, w: Array, axis: int, number: int, of: int) -> Array:
    return np.split(w, of, axis)[number]


GATHERING = (
    WeightFunction(
        "take",
        "take(w, g, axis)",
        "Gather entries of an axis: new entry j is old entry g[j].",
        1,
        _take_shape,
        _take,
    ),
    WeightFunction(
        "place",
        "place(w, g, axis)",
        "Put entry j of an axis at g[j] of a longer one, zeros elsewhere.",
        1,
        _place_shape,
        _place,
    ),
    WeightFunction(
        "count",
        "count(g)",
        "For each new index, how many new indices copy the same old one.",
        0,
        _count_shape,
        _count,
    ),
    WeightFunction(
        "slice",
        "slice(w, axis, start, stop)",
        "Entries start to stop (excluded; to the end, where there is none) of an axis.",
        1,
        _slice_shape,
        _slice,
    ),
    WeightFunction(
        "part",
        "part(w, axis, number, of)",
        "One of so many equal parts of an axis, counted from 0.",
        1,
        _part_shape,
        _part,
    ),
    WeightFunction(
        "extend",
        "extend(w, amount, axis)",
        "So many zeros after the entries of an axis.",
        1,
        _extend_shape,
        _extend,
    ),
)
