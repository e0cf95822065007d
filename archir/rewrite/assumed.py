"""What a rule over a pattern assumes of weights, and how far a network's weights are from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from archir.diag import ArchirError, error
from archir.ir.graph import Graph
from archir.lang import tree as t
from archir.ops.arithmetic import Arithmetic, Array, Floating
from archir.rewrite.expressions import Result, Scope, evaluate, is_term, text_of
from archir.rewrite.match import Match, Matcher
from archir.rewrite.rule import Rewriting, Rule
from archir.weights.functions import WeightError, shape_of
from archir.weights.functions import evaluate as value_of
from archir.weights.store import computed_in
from archir.weights.terms import Apply, Term

UNITS = 8
"""So many units in the last place of a weight's element type are rounding."""


@dataclass(frozen=True)
class Assumption:
    """That a weight is what a term says: there the function is kept. ``text`` is as in the rule."""

    path: str
    term: Term
    text: str


@dataclass(frozen=True)
class Distance:
    """How far a weight is from what a rule assumes: |w - assumed| / |w|."""

    path: str
    text: str
    value: float
    bound: float
    """So much is rounding."""

    @property
    def holds(self) -> bool:
        """Whether the weight is as assumed, up to rounding."""
        return self.value <= self.bound


def whole(shape: tuple[object, ...]) -> tuple[int, ...]:
    """A parameter's shape: it has no symbols."""
    return tuple(size for size in shape if isinstance(size, int))


def shapes_of(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by path."""
    return {p.path: whole(p.type.shape) for p in graph.parameters.values()}


def misfit(rule: Rule, root: str, why: str, hint: str = "", node: str = "") -> ArchirError:
    """The error of a rule whose right side, or assumption, does not fit where the left does."""
    message = f"rule `{rule.name}` does not fit at {root}: {why}"
    return error("A306", message, node=node or root, hint=hint)


def assumptions(rule: Rule, match: Match, scope: Scope) -> tuple[Assumption, ...]:
    """What a rule assumes of the weights at a match, in order.

    Raises:
        ArchirError: A306, it speaks of a weight that is not there, or of another shape; A2xx, its
            right side has no value.
    """
    assert isinstance(rule.body, Rewriting)
    found: list[Assumption] = []
    matched = {path for node in match.nodes.values() for path in node.params.values()}
    shapes = {path: whole(scope.graph.parameters[path].type.shape) for path in matched}
    for said in rule.body.assumes:
        assert isinstance(said.left, t.Name)
        owner, _, role = said.left.path.rpartition(".")
        path = match.nodes[owner].params.get(role)
        text = text_of(said)
        value = _present(said.right, match, scope)
        zero = value is None or (value == 0 and not isinstance(value, bool))
        if path is None and zero:
            continue  # both are absent, or one is zero
        if path is None or value is None:
            raise misfit(rule, match.root, f"it assumes {text}, and one of them is not there")
        shape = whole(scope.graph.parameters[path].type.shape)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = Apply("multiply", (Apply("ones", shape), value))
        if not is_term(value):
            raise error("A211", f"`{said.left.path}` is compared with no weight", span=said.span)
        try:
            due = shape_of(value, shapes)
        except WeightError as reason:
            raise misfit(rule, match.root, f"it assumes {text}: {reason}") from None
        if due != shape:
            why = f"it assumes {text}, of shape {list(due)}; `{path}` has {list(shape)}"
            raise misfit(rule, match.root, why)
        found.append(Assumption(path, value, text))
    return tuple(found)


def _present(expression: t.Expr, match: Match, scope: Scope) -> Result:
    """The value of an assumption's right side; None for a weight that is absent."""
    if isinstance(expression, t.Name):
        owner, _, role = expression.path.rpartition(".")
        node = match.nodes.get(owner)
        if node is not None and role not in node.params and expression.path not in scope.names:
            return None
    return evaluate(expression, replace(scope, attributes=False))


def put_in_place(
    assumed: Sequence[Assumption], weights: Mapping[str, Array], k: Arithmetic
) -> dict[str, Array]:
    """The weights of which something is assumed, with what is assumed, each in turn."""
    out: dict[str, Array] = {}
    for each in assumed:
        out[each.path] = value_of(each.term, k, {**weights, **out})
    return out


def distances(assumed: Sequence[Assumption], weights: Mapping[str, Array]) -> tuple[Distance, ...]:
    """How far weights are from each assumption, those before it being put in place."""
    found: list[Distance] = []
    held = dict(weights)
    for each in assumed:
        own = held[each.path]
        k = Floating(computed_in(own.dtype))
        with np.errstate(all="ignore"):
            due = np.asarray(value_of(each.term, k, held), own.dtype)
        norms = [float(np.linalg.norm(np.asarray(a, np.float64))) for a in (own - due, own, due)]
        value = norms[0] / (norms[1] or norms[2]) if norms[0] else 0.0
        found.append(Distance(each.path, each.text, value, UNITS * _unit(own.dtype)))
        held[each.path] = due
    return tuple(found)


def _unit(dtype: np.dtype[np.generic]) -> float:
    """The unit in the last place of an element type; 0 for whole numbers."""
    if dtype.name == "bfloat16":
        return 2.0**-7
    return float(np.finfo(dtype.name).eps) if dtype.kind == "f" else 0.0


def nearest(
    rule: Rule, matcher: Matcher, matches: Sequence[Match], weights: Mapping[str, Array]
) -> tuple[Match, tuple[Distance, ...]] | None:
    """The match whose assumptions are nearest to holding; None where they fit none."""
    found: list[tuple[float, Match, tuple[Distance, ...]]] = []
    for match in matches:
        try:
            apart = distances(assumptions(rule, match, matcher.scope(match)), weights)
        except ArchirError:
            continue
        found.append((max((d.value for d in apart if not d.holds), default=0.0), match, apart))
    best = min(found, key=lambda each: each[0], default=None)
    return None if best is None else (best[1], best[2])
