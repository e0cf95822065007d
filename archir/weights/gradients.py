"""The gradient map of a rewrite: what an accumulated gradient of the parent is in the child.

The child's tensors w' = T(w) give the function that the parent's give, for all w. So T's derivative
J takes the child's gradient back to the parent's, J' g' = g, whatever the data. Several g' do; of
these the shortest is taken, over all tensors together that read a tensor of the parent, each entry
measured in shares: how much of the function goes through it. An entry that is all of the parent's
keeps its gradient, a row that is copied n times has the n-th part, and columns that share a weight
out have all of it, however small their shares. Where copies were alike and become one (a rule that
assumes so), equations outnumber the child's entries, and their least squares add up or average.

A moment of first order is a sum of gradients and moves as they do. One of second order moves with
the squares of the coefficients where an entry reads one entry of the parent; where it reads
several, (sum |c| sqrt(v))^2, which is exact for gradients in proportion, as those of copies are,
and an upper bound for all others (Minkowski's inequality).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from archir.ops.arithmetic import Array
from archir.weights.fibres import ALONG
from archir.weights.functions import evaluate
from archir.weights.linear import FLOAT, NoInverse
from archir.weights.tape import Tape, Tensors, groups, key_of
from archir.weights.terms import Apply, Free, Ref, Term, leaves, references

STEPS = 400
ENOUGH = 1e-13
"""Conjugate gradients end when the slope is so much smaller than it was."""
EXACT = 1e-12
"""A closed form holds where its equations do, to this part of their length."""

Form = Literal["gathered", "added", "mixed"]
"""Each entry reads one entry of the parent; each entry of the parent is read by one; neither."""


@dataclass(frozen=True)
class Group:
    """The gradient map of tensors that read tensors of the parent in common.

    Along axes on which no term acts the map is the same everywhere; it is known for one entry.
    """

    tapes: Mapping[str, Tape]
    keys: tuple[str, ...]
    """The parent's tensors."""
    shares: Mapping[str, Array]
    """By path, how much of the function goes through an entry, beside its coefficient; else 1."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the parent's tensors, 1 along the axes on which nothing acts."""

    def first(self, m: Mapping[str, Array]) -> dict[str, Array]:
        """First moments of the child, of those of the parent (float64, by path)."""
        m = {key: m[key] for key in self.keys}
        if self.form == "gathered":
            return self._gathered(m)
        return self._added(m) if self.form == "added" else self._shortest(m)

    def second(self, v: Mapping[str, Array]) -> dict[str, Array] | None:
        """Second moments; None where the map mixes gradients that are in no proportion."""
        signed = self.form == "added" and not all(tape.positive for tape in self.tapes.values())
        if self.form == "mixed" or signed:
            return None
        made = self.first({key: np.sqrt(np.maximum(v[key], 0)) for key in self.keys})
        return {path: np.square(a) for path, a in made.items()}

    def reached(self) -> dict[str, Array]:
        """Which entries read anything of the parent (to be broadcast); the others are new."""
        return {path: n > 0 for path, n in self._rows.items()}

    def image(self, w: Mapping[str, Array]) -> dict[str, Array]:
        """The map itself, without what is constant: what a part of the weights becomes."""
        return {path: np.asarray(tape.forth(w)) for path, tape in self.tapes.items()}

    @functools.cached_property
    def _rows(self) -> dict[str, Array]:
        """The squared length of the map's row for each entry."""
        ones = {key: np.ones(self.shapes[key]) for key in self.keys}
        return {path: tape.forth(ones, squared=True) for path, tape in self.tapes.items()}

    @functools.cached_property
    def _metric(self) -> dict[str, Array]:
        """What an entry counts: its share over the length of its row."""
        return {
            path: self.shares.get(path, 1.0) * (n > 0) / np.sqrt(np.where(n > 0, n, 1))
            for path, n in self._rows.items()
        }

    @functools.cached_property
    def _columns(self) -> dict[str, Array]:
        return self._back(self._metric, squared=True)

    def _back(self, y: Mapping[str, Array], *, squared: bool = False) -> dict[str, Array]:
        into: Tensors = {key: np.zeros(self.shapes[key]) for key in self.keys}
        for path, tape in self.tapes.items():
            tape.back(y[path], into, squared=squared)
        return {key: into[key] for key in self.keys}

    @functools.cached_property
    def form(self) -> Form:
        """Which closed form the map has, found out by trying."""
        rng = np.random.Generator(np.random.PCG64(1))
        m = {key: rng.uniform(1, 2, shape) for key, shape in self.shapes.items()}
        back = self._back(self._gathered(m))
        left = {k: np.where(self._columns[k] > 0, m[k] - a, 0) for k, a in back.items()}
        if _norm(left) <= EXACT * _norm(m):
            return "gathered"
        sums = self.image(m)
        there = self.image(self._back(self._added(m)))
        left = {path: sums[path] - a for path, a in there.items()}
        return "added" if _norm(left) <= EXACT * _norm(sums) else "mixed"

    def _gathered(self, m: Mapping[str, Array]) -> dict[str, Array]:
        x = {k: np.where(n > 0, m[k], 0) / np.where(n > 0, n, 1) for k, n in self._columns.items()}
        return {path: self._metric[path] * a for path, a in self.image(x).items()}

    def _added(self, m: Mapping[str, Array]) -> dict[str, Array]:
        return {
            path: a / np.where(self._rows[path] > 0, self._rows[path], 1)
            for path, a in self.image(m).items()
        }

    def _shortest(self, m: Mapping[str, Array]) -> dict[str, Array]:
        """Least squares by conjugate gradients, from zero: the shortest in that measure."""
        root = {path: np.sqrt(a) for path, a in self._metric.items()}

        def forth(x: Mapping[str, Array]) -> dict[str, Array]:
            return {path: root[path] * a for path, a in self.image(x).items()}

        left = dict(m)
        slope = forth(left)
        z = {path: np.zeros(a.shape) for path, a in slope.items()}
        way, first = slope, _norm(slope) ** 2
        size = first
        for _ in range(STEPS):
            if not size > ENOUGH**2 * first:
                break
            moved = self._back({path: root[path] * a for path, a in way.items()})
            length = size / _norm(moved) ** 2
            z = {path: a + length * way[path] for path, a in z.items()}
            left = {key: a - length * moved[key] for key, a in left.items()}
            slope = forth(left)
            size, before = _norm(slope) ** 2, size
            way = {path: a + (size / before) * way[path] for path, a in slope.items()}
        return {path: root[path] * a for path, a in z.items()}


def _norm(tensors: Mapping[str, Array]) -> float:
    return math.sqrt(sum(float(np.square(t).sum()) for t in tensors.values()))


@dataclass(frozen=True)
class Maps:
    """The gradient map of a whole rewrite."""

    groups: tuple[Group, ...]
    kept: tuple[str, ...]
    """Tensors that nothing touches."""
    none: Mapping[str, str]
    """Tensors without a gradient map, with the reason: their state starts at zero."""


def gradient_maps(
    terms: Mapping[str, Term],
    at: Mapping[str, Array],
    trained: frozenset[str],
    shares: Mapping[str, Array],
    *,
    measured: Mapping[Free, Array] | None = None,
    steady: bool = False,
) -> Maps:
    """The gradient map of the terms that make a child's parameters.

    Args:
        terms: For each parameter of the child (no buffers) its term over the parent's paths.
        at: The parent's tensors.
        trained: The parent's parameters that have gradients; others count as constants.
        shares: See :class:`Group`.
        measured: The values of calibration statistics.
        steady: Take no map whose coefficients are themselves made of the parent's tensors.
    """
    kept: list[str] = []
    none: dict[str, str] = {}
    reads: dict[str, list[str]] = {}
    for path, term in terms.items():
        own = [path for path in dict.fromkeys(references(term)) if path in trained]
        if not own:
            none[path] = "new"
        elif steady and (name := next(_mixing(term), None)):
            none[path] = f"`{name}` of the parent's tensors, and in training the function changes"
        else:
            reads[path] = own
    made: list[Group] = []
    for paths in groups(reads):
        if len(paths) == 1 and terms[paths[0]] == Ref(paths[0]):
            kept += paths
            continue
        group, failed = _group({p: terms[p] for p in paths}, reads, at, shares, measured)
        none |= failed
        if group is not None:
            made.append(group)
    return Maps(tuple(made), tuple(kept), none)


def _group(
    terms: Mapping[str, Term],
    reads: Mapping[str, list[str]],
    at: Mapping[str, Array],
    shares: Mapping[str, Array],
    measured: Mapping[Free, Array] | None,
) -> tuple[Group | None, dict[str, str]]:
    keys = tuple(dict.fromkeys(key for path in terms for key in reads[path]))
    needed = dict.fromkeys(leaf for term in terms.values() for leaf in leaves(term))
    values: Tensors = {key_of(leaf): evaluate(leaf, FLOAT, at, measured) for leaf in needed}
    axes = [_axes(term) for term in terms.values()]
    if len(values) == 1 and None not in axes:
        acted = {axis for found in axes for axis in found or ()}
        ((key, value),) = values.items()
        acted = {axis % value.ndim for axis in acted}
        values[key] = value[tuple(slice(None if i in acted else 1) for i in range(value.ndim))]
    values = {key: np.asarray(value, np.float64) for key, value in values.items()}
    tapes: dict[str, Tape] = {}
    failed: dict[str, str] = {}
    for path, term in terms.items():
        try:
            tapes[path] = Tape(term, values, keys)
            del tapes[path].value  # which takes as much memory as all else
        except NoInverse as reason:
            failed[path] = f"`{reason}` is not linear"
    if not tapes:
        return None, failed
    shapes = {key: values[key].shape for key in keys}
    return Group(tapes, keys, {p: shares[p] for p in tapes if p in shares}, shapes), failed


def _axes(term: Term) -> set[int] | None:
    """The axes of its one tensor on which a term acts; None where it does not keep axes apart."""
    if not isinstance(term, Apply):
        return set()
    known = term.function in (*ALONG, "multiply_along", "divide_along")
    inner = _axes(term.args[0]) if known and isinstance(term.args[0], Term) else None
    other = [a for a in term.args[1:] if isinstance(a, Term)]
    if inner is None or any(True for each in other for _ in leaves(each)):
        return None
    axis = term.args[2]
    return {*inner, axis} if isinstance(axis, int) else None


def _mixing(term: Term) -> Iterator[str]:
    """The functions whose derivative depends on the parent's tensors."""
    if not isinstance(term, Apply):
        return
    reads = [isinstance(a, Term) and any(isinstance(x, Ref) for x in leaves(a)) for a in term.args]
    product = term.function in ("multiply", "multiply_along", "matmul") and all(reads[:2])
    quotient = term.function in ("divide", "divide_along") and reads[1]
    if product or quotient or (term.function == "sqrt" and reads[0]):
        yield term.function
    for arg in term.args:
        if isinstance(arg, Term):
            yield from _mixing(arg)
