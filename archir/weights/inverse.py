"""The parent whose image under a weight map is nearest to given weights.

A rule's map is linear in the parent's tensors, or nearly so. Of all parents whose image comes
nearest (least squares), that is taken which is nearest to the parent there was: what the map does
not show stays as it was, copies are averaged, shares are added up. What a map leaves open (initial
values, statistics) is found along with the parent. Conjugate gradients, scaled by the columns'
lengths: where every entry reads one entry of the parent a single step is exact. A map with products
of the parent's tensors takes a few such rounds (Gauss and Newton).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from archir.ops.arithmetic import Array
from archir.weights.functions import evaluate
from archir.weights.linear import FLOAT
from archir.weights.tape import Key, Tape, Tensors, groups, key_of
from archir.weights.terms import Term, leaves

ROUNDS = 6
STEPS = 400
ENOUGH = 1e-13
"""A round ends when the gradient is so much smaller than it was; the search, when steps are."""
REACHED = 1e-10
"""What is as near as this to what is wanted, relative to its length, is no further looked for."""


def solve(
    terms: Mapping[str, Term], wanted: Mapping[str, Array], start: Mapping[Key, Array]
) -> Tensors:
    """Values of the leaves under which the terms come nearest to what is wanted.

    Args:
        terms: The maps, by the path of what they make.
        wanted: What they should make, by path.
        start: The leaves' values where the search begins, which those that do not matter keep.

    Raises:
        NoInverse: a weight function cannot be taken back.
    """
    out: Tensors = {}
    for group in groups({path: map(key_of, leaves(term)) for path, term in terms.items()}):
        keys = {key_of(leaf): None for path in group for leaf in leaves(terms[path])}
        if keys:
            at = {key: np.asarray(start[key], np.float64) for key in keys}
            goal = {path: np.asarray(wanted[path], np.float64) for path in group}
            with np.errstate(all="ignore"):  # what is not finite shows in what comes out
                out |= _nearest({path: terms[path] for path in group}, goal, at)
    return out


def _nearest(terms: Mapping[str, Term], goal: Mapping[str, Array], at: Tensors) -> Tensors:
    """All leaves at once; where that does not get there, for each term one that is still free.

    The second way helps with products: of a kernel and a scale, the kernel is looked for.
    """
    found = _solved(terms, goal, at, set(at))
    far = _distance(terms, goal, found)
    if far <= REACHED * _norm(goal):
        return found
    other, fixed = dict(at), set[Key]()
    for path, term in terms.items():
        keys = dict.fromkeys(map(key_of, leaves(term)))
        free = next((key for key in keys if key not in fixed), None)
        fixed |= set(keys)  # what an earlier term reads must stay
        if free is not None:
            here = {key: other[key] for key in keys}
            other |= _solved({path: term}, goal, here, {free})
    return other if _distance(terms, goal, other) < far else found


def _solved(
    terms: Mapping[str, Term], goal: Mapping[str, Array], at: Tensors, moving: set[Key]
) -> Tensors:
    best, found = np.inf, at
    for _ in range(ROUNDS):
        tapes = {path: Tape(term, found, found) for path, term in terms.items()}
        rest = {path: goal[path] - tape.value for path, tape in tapes.items()}
        far = _norm(rest)
        if not far < best * (1 - ENOUGH):
            break
        at, best = found, far
        step = _least_squares(tapes, rest, at, moving)
        found = {key: at[key] + step[key] for key in at}
        if _norm(step) <= ENOUGH * _norm(at):
            break
    return at if not _distance(terms, goal, found) <= best else found


def _distance(terms: Mapping[str, Term], goal: Mapping[str, Array], at: Tensors) -> float:
    weights = {key: value for key, value in at.items() if isinstance(key, str)}
    free = {key: value for key, value in at.items() if not isinstance(key, str)}
    made = {path: evaluate(term, FLOAT, weights, free) for path, term in terms.items()}
    return _norm({path: goal[path] - made[path] for path in terms})


def _norm(tensors: Mapping[object, Array] | Mapping[str, Array] | Mapping[Key, Array]) -> float:
    return math.sqrt(sum(float(np.square(t).sum()) for t in tensors.values()))


def _least_squares(
    tapes: Mapping[str, Tape],
    rest: Mapping[str, Array],
    at: Mapping[Key, Array],
    moving: set[Key],
) -> Tensors:
    """The smallest step (in scaled columns) that takes most of ``rest`` away."""

    def back(y: Mapping[str, Array], *, squared: bool = False) -> Tensors:
        into: Tensors = {key: np.zeros(value.shape) for key, value in at.items()}
        for path, tape in tapes.items():
            tape.back(y[path], into, squared=squared)
        return into

    lengths = back({path: np.ones(y.shape) for path, y in rest.items()}, squared=True)
    scale = {key: (key in moving) / np.sqrt(np.where(n > 0, n, 1)) for key, n in lengths.items()}
    step: Tensors = {key: np.zeros(value.shape) for key, value in at.items()}
    left = {path: y.copy() for path, y in rest.items()}
    slope = {key: scale[key] * g for key, g in back(left).items()}
    way = dict(slope)
    first = size = _norm(slope) ** 2
    for _ in range(STEPS):
        if not size > (ENOUGH**2) * first:
            break
        along = {key: scale[key] * way[key] for key in way}
        moved = {path: tape.forth(along) for path, tape in tapes.items()}
        length = size / _norm(moved) ** 2
        step = {key: step[key] + length * along[key] for key in step}
        left = {path: left[path] - length * moved[path] for path in left}
        slope = {key: scale[key] * g for key, g in back(left).items()}
        size, before = _norm(slope) ** 2, size
        way = {key: slope[key] + (size / before) * way[key] for key in way}
    return step
