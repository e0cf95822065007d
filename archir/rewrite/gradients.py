"""The gradient map of a planned rewrite, with what its rule assumes of the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
        if not self.alike:
            return group.second(v)
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
    """How much goes through each of several copies of a parameter: the share of its branch.

    A branch is a row of layers of which each has one operand and one reader; some of them may have
    a fraction of their parent's weights. What stands before a normalisation has no say behind it.
    """
    copies = Counter(term.path for term in terms.values() if isinstance(term, Ref))
    out: dict[str, Array] = {}
    for node in plan.after:
        own = [p for p in node.params.values() if isinstance(terms.get(p), Ref)]
        if not any(copies[terms[path].path] > 1 for path in own):  # type: ignore[union-attr]
            continue
        share, at = Fraction(1), node
        while (after := _reader(plan.after, at)) is not None:
            at = after
            share *= _fraction(at, terms)
        at = node
        while (before := _maker(plan.after, at)) is not None:
            at = before
            share *= _fraction(at, terms)
        if share != 1:
            out |= dict.fromkeys(own, np.asarray(float(share)))
    return out


def _reader(graph: Graph, node: Node) -> Node | None:
    """The one node that reads a node's one value, and nothing else."""
    readers = graph.readers(node.name)
    if len(node.types) != 1 or graph.is_output(node.name) or len(readers) != 1:
        return None
    return readers[0][0] if len(readers[0][0].inputs) == 1 else None


def _maker(graph: Graph, node: Node) -> Node | None:
    """The node that makes a node's one operand for it alone; none, where that is normalised."""
    if len(node.inputs) != 1 or node.op.endswith("_norm"):
        return None
    maker = graph.node(node.inputs[0].node)
    return maker if _reader(graph, maker) is node else None


def _fraction(node: Node, terms: Mapping[str, Term]) -> Fraction:
    """The fraction that all of a layer's parameters are of their parents; 1 where they differ."""
    found = {_part(term) for path in node.params.values() if (term := terms.get(path)) is not None}
    return found.pop() if len(found) == 1 else Fraction(1)


def _part(term: Term) -> Fraction:
    if not isinstance(term, Apply) or term.function != "scale":
        return Fraction(1)
    _, p, q = term.args
    assert isinstance(p, int)
    assert isinstance(q, int)
    return Fraction(p, q)


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
