"""Weight functions that add up, share out and make entries along the map of an axis.

The entries that a map takes to one index are its *fibre*. What is drawn at random is drawn from a
tensor's own entries: it has their spread, keeps the sign of a variance, and means the same in
every number system. The seed is part of the term.
"""

from __future__ import annotations

import numpy as np

from archir.ops.arithmetic import Arithmetic, Array
from archir.weights.record import Shape, WeightFunction, axis_of, need, whole
from archir.weights.terms import IndexMap, Indices

PARTS = (8, 25)
"""Shares are whole numbers in this range, over their sum."""

SEEDED = ("graft", "oppose", "share_out")
"""The functions that draw."""
ALONG = ("take", "place", "fibre_sum", "first", *SEEDED)
"""The functions that follow a map along an axis."""


def _onto_long(name: str, w: Shape, g: IndexMap, axis: int) -> Shape:
    axis = axis_of(name, w, axis)
    need(isinstance(g, IndexMap), f"{name} needs an index map")
    need(w[axis] == len(g.entries), f"{name}: axis {axis} has size {w[axis]}, not {len(g.entries)}")
    return (*w[:axis], g.source, *w[axis + 1 :])


def _onto_short(name: str, w: Shape, g: IndexMap, axis: int) -> Shape:
    axis = axis_of(name, w, axis)
    need(isinstance(g, IndexMap), f"{name} needs an index map")
    need(w[axis] == g.source, f"{name}: axis {axis} has size {w[axis]}, the map is over {g.source}")
    return (*w[:axis], len(g.entries), *w[axis + 1 :])


def fibre_sum(k: Arithmetic, w: Array, g: IndexMap, axis: int) -> Array:
    """The sums of the entries that a map takes to each index.

    They are added in pairs: 2, 4, 8, ... equal parts of a float give back the whole.
    """
    axis %= w.ndim
    order = np.argsort(g.entries, kind="stable")
    counts = np.bincount(g.entries, minlength=g.source)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    along = tuple(-1 if i == axis else 1 for i in range(w.ndim))
    nothing = k.array(np.zeros((1,) * w.ndim, np.int64))
    pieces: list[tuple[Array, Array]] = []  # the first of every fibre, the second, ...
    for place in range(max(int(counts.max(initial=0)), 1)):
        there = (counts > place).reshape(along)
        members = order[np.minimum(starts + place, len(order) - 1)]
        pieces.append((np.where(there, w.take(members, axis=axis), nothing), there))
    while len(pieces) > 1:
        pairs = list(zip(pieces[::2], pieces[1::2], strict=False))
        rest = pieces[2 * len(pairs) :]
        pieces = [(np.where(d, k.add(a, b), a), c) for (a, c), (b, d) in pairs] + rest
    return pieces[0][0]


def _first(k: Arithmetic, w: Array, g: IndexMap, axis: int) -> Array:
    found, places = np.unique(g.entries, return_index=True)
    need(len(found) == g.source, "first: the map leaves entries out")
    return np.take(w, places, axis=axis)


def _resampled(w: Array, shape: Shape, seed: int, k: Arithmetic) -> Array:
    """Entries drawn from those of a tensor that are not 0; zeros where there are none."""
    pool = w[w != 0]
    if not pool.size:
        return np.broadcast_to(k.array(np.zeros((), np.int64)), shape).astype(w.dtype)
    rng = np.random.Generator(np.random.PCG64([seed, 0x6AF7]))
    return np.asarray(pool[rng.integers(0, pool.size, shape)])


def _graft(k: Arithmetic, w: Array, g: IndexMap, axis: int, seed: int) -> Array:
    axis %= w.ndim
    out = _resampled(w, _onto_long("graft", w.shape, g, axis), seed, k)
    out[(slice(None),) * axis + (g.entries,)] = w
    return out


def _graft_shape(w: Shape, g: IndexMap, axis: int, seed: int) -> Shape:
    whole("graft", seed)
    return _onto_long("graft", w, g, axis)


def _following(g: IndexMap) -> Indices:
    """For each index the next one of its fibre, the first after the last."""
    order = np.argsort(g.entries, kind="stable")
    same = g.entries[order]
    first = np.searchsorted(same, same)
    last = np.searchsorted(same, same, "right") - 1
    place = np.arange(len(order))
    out = np.empty(len(order), np.int64)
    out[order] = order[np.where(place == last, first, np.minimum(place + 1, len(order) - 1))]
    return out


def _oppose(k: Arithmetic, w: Array, g: IndexMap, axis: int, seed: int) -> Array:
    z = _resampled(w, w.shape, seed, k)
    return k.add(w, k.subtract(z, z.take(_following(g), axis=axis)))


def _oppose_shape(w: Shape, g: IndexMap, axis: int, seed: int) -> Shape:
    whole("oppose", seed)
    _onto_long("oppose", w, g, axis)
    return w


def _share_out(k: Arithmetic, w: Array, g: IndexMap, axis: int, seed: int) -> Array:
    rng = np.random.Generator(np.random.PCG64([seed, 0x5A4E]))
    parts = rng.integers(*PARTS, len(g.entries))
    whole_of = np.bincount(g.entries, parts, g.source).astype(np.int64)[g.entries]
    shares = k.divide(k.array(parts), k.array(whole_of))
    spread = shares.reshape(tuple(-1 if i == axis % w.ndim else 1 for i in range(w.ndim)))
    return k.multiply(np.take(w, g.entries, axis=axis), spread)


def _share_out_shape(w: Shape, g: IndexMap, axis: int, seed: int) -> Shape:
    whole("share_out", seed)
    return _onto_short("share_out", w, g, axis)


FIBRES = (
    WeightFunction(
        "fibre_sum",
        "fibre_sum(w, g, axis)",
        "Add up the entries of an axis that g takes to one index. In a rule over a class, "
        "`fibre_sum(g)`.",
        1,
        lambda w, g, axis: _onto_long("fibre_sum", w, g, axis),
        fibre_sum,
    ),
    WeightFunction(
        "first",
        "first(w, g, axis)",
        "Of the entries that g takes to one index, the first. In a rule over a class, `first(g)`.",
        1,
        lambda w, g, axis: _onto_long("first", w, g, axis),
        _first,
    ),
    WeightFunction(
        "graft",
        "graft(w, g, axis, seed)",
        "Put entry j of an axis at g[j] of a longer one; each other is one of w's own, drawn at "
        "random. In a rule over a class, `graft(g)`.",
        1,
        _graft_shape,
        _graft,
    ),
    WeightFunction(
        "oppose",
        "oppose(w, g, axis, seed)",
        "Add random numbers that cancel over the entries that g takes to one index. In a rule "
        "over a class, `oppose(t, g)`.",
        1,
        _oppose_shape,
        _oppose,
    ),
    WeightFunction(
        "share_out",
        "share_out(w, g, axis, seed)",
        "Entry j is a random share of entry g[j]; the shares of one entry add up to 1. In a rule "
        "over a class, `share_out(g)`.",
        1,
        _share_out_shape,
        _share_out,
    ),
)
