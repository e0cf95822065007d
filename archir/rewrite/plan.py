"""A planned rewrite: the graph before and after, and the weight terms between them.

Planning is pure. A plan is checked (:mod:`archir.proof.exact`) and only then applied to
tensors; several plans compose before a tensor is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from archir.diag import error
from archir.ir.graph import Graph, Node, Value
from archir.ir.types import AttrValue
from archir.ops.arithmetic import Array, Floating
from archir.ops.record import Law, OpSet
from archir.rewrite.assumed import Assumption, shapes_of, whole
from archir.rewrite.rule import Rule
from archir.weights.functions import WeightError, evaluate, shape_of
from archir.weights.store import computed_in, numpy_dtype
from archir.weights.terms import Free, IndexMap, Ref, Statistic, Term, compose


@dataclass(frozen=True)
class Plan:
    """What a rule does at a site.

    ``terms`` holds the parameters of ``after`` that are new or changed, over the paths of
    ``before``; all others stay. ``values`` maps values of ``before`` that other nodes read to
    the values of ``after`` that take their place, where the two differ.
    """

    rule: Rule
    site: str
    arguments: Mapping[str, AttrValue]
    seed: int
    before: Graph
    after: Graph
    terms: Mapping[str, Term]
    values: Mapping[Value, Value] = field(default_factory=dict)
    matched: tuple[str, ...] = ()
    """The nodes of ``before`` that a pattern matched, changed or not."""
    made: Mapping[str, str] = field(default_factory=dict)
    """The nodes of ``after`` that a pattern's right side names, by the names it gives them."""
    unread: Mapping[str, tuple[tuple[int, IndexMap], ...]] = field(default_factory=dict)
    """Weights that the rule assumes to be zero: by path, the axes and what is kept of them."""
    assumed: tuple[Assumption, ...] = ()
    """What a rule over a pattern assumes of weights, in order: each is put in place in turn."""
    repeated: Mapping[str, tuple[tuple[int, IndexMap], ...]] = field(default_factory=dict)
    """Weights that it assumes to be equal where an axis's map takes them to one."""
    found: tuple[int, ...] = ()
    """The entries of a map that was found in the weights."""
    through: Mapping[str, Array] = field(default_factory=dict)
    """By path, how much of what a parameter of ``before`` does goes through each entry of a copy.

    It broadcasts to the parameter; those that are not there are copied evenly.
    """


@dataclass(frozen=True)
class Region:
    """The part of a network that a plan touches, on both sides.

    ``feeds`` are the values that enter it (the same on both sides); ``checks`` pairs each value
    that something outside (or the network's caller) reads with what it reads afterwards.
    """

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    feeds: tuple[Value, ...]
    checks: tuple[tuple[Value, Value], ...]


def region_of(plan: Plan) -> Region:
    """The nodes that differ between the two sides, and what enters and leaves them."""
    moved = set(plan.terms)
    matched = set(plan.matched)

    def rewired(node: Node) -> tuple[Value, ...]:
        return tuple(plan.values.get(v, v) for v in node.inputs)

    def same(a: Node, b: Node) -> bool:
        return (
            a.op == b.op
            and a.attrs == b.attrs
            and rewired(a) == b.inputs
            and a.params == b.params
            and a.types == b.types
            and [plan.before.type_of(v) for v in a.inputs]
            == [plan.after.type_of(v) for v in b.inputs]  # it may leave part of them unread
            and not moved.intersection(a.params.values())
        )

    kept = {
        n.name
        for n in plan.before
        if n.name not in matched and n.name in plan.after and same(n, plan.after.node(n.name))
    }
    before = tuple(n for n in plan.before if n.name not in kept)
    after = tuple(n for n in plan.after if n.name not in kept)
    pairs = [
        pair
        for n in plan.before
        if n.name in kept
        for pair in zip(n.inputs, plan.after.node(n.name).inputs, strict=True)
    ]
    ends = zip(plan.before.outputs, plan.after.outputs, strict=True)
    pairs += [(old.value, new.value) for old, new in ends]
    checks = dict.fromkeys((a, b) for a, b in pairs if a != b or a.node not in kept)
    entering = [v for n in (*before, *after) for v in n.inputs]
    entering += [v for pair in checks for v in pair]
    feeds = dict.fromkeys(v for v in entering if v.node in kept)
    return Region(before, after, tuple(feeds), tuple(checks))


def as_assumed(plan: Plan, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The weights as the rule assumes them, zero or equal; only those that it speaks of."""
    out: dict[str, Array] = {}
    for path, places in plan.repeated.items():
        for axis, g in places:
            held = out.get(path, weights[path])
            first = np.unique(g.entries, return_index=True)[1][g.entries]
            out[path] = held.take(first, axis=axis)
    for path, places in plan.unread.items():
        for axis, kept in places:
            held = out.get(path, weights[path])
            mask = np.ones(kept.source, np.bool_)
            mask[kept.entries] = False
            out[path] = held.copy()
            out[path][(slice(None),) * axis + (mask,)] = 0
    return out


def dropout_in(region: Region, ops: OpSet) -> str | None:
    """A node of the region that is random in training, if there is one."""
    for node in (*region.before, *region.after):
        if Law.RANDOM_IN_TRAINING in ops[node.op].laws and node.attrs.get("p") != 0:
            return node.name
    return None


def apply_terms(
    terms: Mapping[str, Term],
    after: Graph,
    weights: Mapping[str, Array],
    measured: Mapping[Statistic, Array] | None = None,
) -> dict[str, Array]:
    """The child's tensors: what no term names is shared with the parent, not copied."""
    out: dict[str, Array] = {}
    held = dict[Free, Array]((measured or {}).items())
    for path, parameter in after.parameters.items():
        term = terms.get(path)
        if term is None:
            out[path] = weights[path]
            continue
        dtype = numpy_dtype(parameter.type.dtype)
        with np.errstate(all="ignore"):  # what is not finite shows in the drift
            value = evaluate(term, Floating(computed_in(dtype)), weights, held)
            out[path] = np.asarray(value, dtype=dtype, order="C")
    return out


def check_shapes(plan: Plan) -> None:
    """Every term has the shape of the parameter it makes.

    Raises:
        ArchirError: A220, with both shapes; A221, a parameter that no term makes.
    """
    shapes, name = shapes_of(plan.before), plan.rule.name
    for path, parameter in plan.after.parameters.items():
        term = plan.terms.get(path)
        if term is None:
            if plan.before.parameters.get(path) == parameter:
                continue
            if path not in shapes:
                raise error(
                    "A221", f"rule `{name}` gives no value to `{path}`", span=plan.rule.span
                )
            term = Ref(path)
        try:
            found = shape_of(term, shapes)
        except WeightError as reason:
            raise error(
                "A220", f"rule `{name}`, weight `{path}`: {reason}", span=plan.rule.span
            ) from None
        if found != whole(parameter.type.shape):
            raise error(
                "A220",
                f"rule `{name}` gives `{path}` the shape {list(found)}, "
                f"its operator wants {list(whole(parameter.type.shape))}",
                span=plan.rule.span,
            )


def compose_terms(
    first: Mapping[str, Term], second: Mapping[str, Term], after: Graph
) -> dict[str, Term]:
    """The terms of two rewrites in a row, over the first one's parent."""
    out: dict[str, Term] = {}
    for path in after.parameters:
        if path in second:
            out[path] = compose(second[path], first)
        elif path in first:
            out[path] = first[path]
    return out
