"""The gradient map of a planned rewrite, with what its rule assumes of the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from archir.ir.graph import Graph, Node
from archir.ops.arithmetic import Array
from archir.rewrite.plan import Plan
from archir.weights.fibres import fibre_sum
from archir.weights.gradients import Group, Maps, gradient_maps
from archir.weights.linear import FLOAT
from archir.weights.terms import Apply, Free, IndexMap, Ref, Term, rebuild

Places = tuple[tuple[int, IndexMap], ...]


@dataclass(frozen=True)
class PlanMaps:
    """How moments of the parent's parameters become those of the child's.

    ``groups``, ``kept`` and ``none`` are those of :class:`archir.weights.gradients.Maps`.
    """

    maps: Maps
    alike: Mapping[str, Places]
    """Parameters whose entries the rule assumes to be equal along a map."""

    def first(self, group: Group, m: Mapping[str, Array]) -> dict[str, Array]:
        """First moments of a group's tensors."""
        return group.first({path: self._together(path, a) for path, a in m.items()})

    def second(self, group: Group, v: Mapping[str, Array]) -> dict[str, Array] | None:
        """Second moments; None where the map has none."""
        roots = {path: self._together(path, np.sqrt(np.maximum(a, 0))) for path, a in v.items()}
        return group.second({path: np.square(a) for path, a in roots.items()})

    def _together(self, path: str, m: Array) -> Array:
        """Entries that are equal are one number, whose gradient is the sum of theirs."""
        for axis, first in self.alike.get(path, ()):
            m = fibre_sum(FLOAT, m, first, axis)
        return m


def maps_of(
    plan: Plan,
    weights: Mapping[str, Array],
    trained: frozenset[str],
    measured: Mapping[Free, Array] | None = None,
) -> PlanMaps:
    """The gradient map of a plan.

    Args:
        plan: The plan.
        weights: The parent's tensors.
        trained: Its parameters that have gradients.
        measured: The values of calibration statistics.
    """
    made = [path for path, parameter in plan.after.parameters.items() if not parameter.buffer]
    terms = {path: plan.terms.get(path, Ref(path)) for path in made}
    alike = {path: tuple((a, _firsts(g)) for a, g in held) for path, held in plan.repeated.items()}
    if alike:
        terms = {path: _with_equal(term, alike) for path, term in terms.items()}
    steady = bool(plan.rule.contract.function) and "train" not in plan.rule.contract.function
    shares = {**_passed_on(plan, terms), **plan.through}
    found = gradient_maps(terms, weights, trained, shares, measured=measured, steady=steady)
    return PlanMaps(found, alike)


def _passed_on(plan: Plan, terms: Mapping[str, Term]) -> dict[str, Array]:
    """How much goes through each of several copies of a layer: the share that its readers take.

    Behind a copy come layers of which each has one reader, up to one that adds copies up; on the
    way some may have a fraction of their parent's weights.
    """
    copies = Counter(term.path for term in terms.values() if isinstance(term, Ref))
    out: dict[str, Array] = {}
    for node in plan.after:
        own = [terms[path] for path in node.params.values() if path in terms]
        if not any(isinstance(term, Ref) and copies[term.path] > 1 for term in own):
            continue
        share, at = Fraction(1), node
        while (after := _reader(plan.after, at)) is not None:
            at = after
            share *= _fraction([terms[path] for path in at.params.values() if path in terms])
        if share != 1:
            out |= dict.fromkeys(node.params.values(), np.asarray(float(share)))
    return out


def _reader(graph: Graph, node: Node) -> Node | None:
    """The one node that reads a node's one value, and nothing else."""
    readers = graph.readers(node.name)
    if len(node.types) != 1 or graph.is_output(node.name) or len(readers) != 1:
        return None
    return readers[0][0] if len(readers[0][0].inputs) == 1 else None


def _fraction(terms: Sequence[Term]) -> Fraction:
    """The fraction that all of a layer's parameters are of their parents; 1 where they differ."""
    found = {
        Fraction(*(int(a) for a in term.args[1:] if isinstance(a, int)))
        if isinstance(term, Apply) and term.function == "scale"
        else Fraction(1)
        for term in terms
    }
    return found.pop() if len(found) == 1 else Fraction(1)


def _firsts(g: IndexMap) -> IndexMap:
    """For each entry, the first of those that are equal to it."""
    return IndexMap(np.unique(g.entries, return_index=True)[1][g.entries], len(g.entries))


def _with_equal(term: Term, alike: Mapping[str, Places]) -> Term:
    def leaf(found: Term) -> Term:
        made = found
        for axis, first in alike.get(found.path, ()) if isinstance(found, Ref) else ():
            made = Apply("take", (made, first, axis))
        return made

    return rebuild(term, leaf)
