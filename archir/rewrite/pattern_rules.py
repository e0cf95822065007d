"""Planning a rule over a pattern: build the right side where the left was found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from archir.diag import Span, error
from archir.ir.graph import Graph, GraphBuilder, Node, Parameter, Value
from archir.ir.types import AttrValue, TensorType
from archir.ops.infer import Instance, OpError, bind_attrs, instance
from archir.ops.record import Op, OpSet
from archir.rewrite.expressions import Result, Scope, evaluate, is_term
from archir.rewrite.match import Match, Matcher
from archir.rewrite.plan import Plan
from archir.rewrite.rule import PatternNode, PatternOperand, Rewriting, Rule
from archir.weights.functions import WeightError, shape_of
from archir.weights.terms import Apply, Term


@dataclass
class _Build:
    """The right side while it is built."""

    builder: GraphBuilder
    values: dict[str, Value]
    """What free variables stand for."""
    made: dict[str, Node] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    """Names in the graph of matched nodes that stay."""
    types: dict[Value, TensorType] = field(default_factory=dict)


def plan_pattern(
    rule: Rule, matcher: Matcher, match: Match, arguments: Mapping[str, AttrValue], seed: int
) -> Plan:
    """The plan of a rule at a match.

    Raises:
        ArchirError: the right side does not fit there.
    """
    body = rule.body
    assert isinstance(body, Rewriting)
    graph, ops = matcher.graph, matcher.ops
    rng = np.random.Generator(np.random.PCG64(seed))
    scope = Scope(graph, dict(match.scalars), matcher.tensors(match), match.nodes, rng=rng)
    build = _Build(graph.edit(), dict(match.variables))
    for pattern in body.replace.nodes:
        _make(rule, pattern, body, match, scope, build, ops, graph)
    moved = _rewire(body, match, build)
    for name, node in match.nodes.items():
        if node.name not in build.kept and name not in {
            n for n, made in build.made.items() if made.name == node.name
        }:
            build.builder.nodes.pop(node.name, None)
    for name, expression in body.lets:
        scope.names[name] = evaluate(expression, scope)
    terms = _terms(rule, body, scope, build, graph)
    try:
        after = build.builder.build()
    except ValueError as reason:
        raise error(
            "A306", f"rule `{rule.name}` cannot be applied: {reason}", node=match.root
        ) from None
    matched = tuple(node.name for node in match.nodes.values())
    return Plan(rule, match.root, dict(arguments), seed, graph, after, terms, moved, matched)


def _operand(operand: PatternOperand, build: _Build) -> Value:
    if operand.node is not None:
        return Value(build.made[operand.node].name, operand.port)
    assert operand.variable is not None
    if operand.variable not in build.values:
        raise error("A206", f"`{operand.variable}` of the right side is not matched by the left")
    return build.values[operand.variable]


def _type(value: Value, build: _Build, graph: Graph) -> TensorType:
    return build.types[value] if value in build.types else graph.type_of(value)


def _make(
    rule: Rule,
    pattern: PatternNode,
    body: Rewriting,
    match: Match,
    scope: Scope,
    build: _Build,
    ops: OpSet,
    graph: Graph,
) -> None:
    """Keep, change or add one node of the right side."""
    inputs = tuple(_operand(o, build) for o in pattern.operands)
    stated = {name: _attr(evaluate(e, scope)) for name, e in pattern.attrs.items()}
    kept = _unchanged(pattern, inputs, stated, match, build)
    if kept is not None:
        build.made[pattern.name] = kept
        build.kept.add(kept.name)
        return
    old = match.nodes.get(pattern.name)
    if old is not None and old.op != pattern.op:
        old = None
    types = tuple(_type(v, build, graph) for v in inputs)
    given = {**old.attrs, **stated} if old is not None else stated
    op = ops[pattern.op]
    try:
        attrs = bind_attrs(op, given, types)
        use = instance(op, attrs, types)
    except OpError as failure:
        raise error(
            "A306",
            f"rule `{rule.name}` does not fit at {match.root}: {failure.message}",
            node=match.root,
            hint=failure.hint,
        ) from None
    made = _node(pattern, op, old, attrs, inputs, use, match, build)
    build.made[pattern.name] = made
    build.types.update({Value(made.name, p): type_ for p, type_ in enumerate(made.types)})
    scope.made = {**scope.made, pattern.name: attrs}


def _node(
    pattern: PatternNode,
    op: Op,
    old: Node | None,
    attrs: dict[str, AttrValue],
    inputs: tuple[Value, ...],
    use: Instance,
    match: Match,
    build: _Build,
) -> Node:
    name = old.name if old is not None else _fresh(pattern, match.root, build)
    roles = [p for p in op.present(attrs)]
    params = {
        p.role: old.params[p.role]
        if old is not None and p.role in old.params
        else f"{name}.{p.role}"
        for p in roles
    }
    made = Node(name, op.name, attrs, inputs, params, use.types)
    if old is not None:
        build.builder.put(made)
    else:
        build.builder.add(made)
    for p in roles:
        parameter = Parameter(params[p.role], use.params[p.role], p.buffer)
        build.builder.parameters[parameter.path] = parameter
    return made


def _unchanged(
    pattern: PatternNode,
    inputs: tuple[Value, ...],
    stated: Mapping[str, AttrValue],
    match: Match,
    build: _Build,
) -> Node | None:
    """A matched node that says the same as a node of the right side stays as it is."""
    own = match.nodes.get(pattern.name)
    for old in [own] if own is not None else match.nodes.values():
        if old.name in build.kept or old.op != pattern.op or old.inputs != inputs:
            continue
        if all(
            old.attrs[name] in (value, _spread(old.attrs[name], value))
            for name, value in stated.items()
        ):
            return old
    return None


def _spread(held: AttrValue, value: AttrValue) -> AttrValue:
    return (value,) * len(held) if isinstance(held, tuple) else value


def _attr(value: Result) -> AttrValue:
    if is_term(value) or not isinstance(value, int | float | bool | str | tuple | None):
        raise error("A211", "an attribute cannot be a weight")
    return value


def _fresh(pattern: PatternNode, root: str, build: _Build) -> str:
    """A free path beside the root of the match, numbered on where its name is in use."""
    scope, dot, _ = root.rpartition(".")
    unlabelled = re.fullmatch(rf"{re.escape(pattern.op)}\d*", pattern.name)
    base = pattern.op if unlabelled else pattern.name
    taken = build.builder.nodes.keys() | build.builder.parameters.keys()
    prefix = f"{scope}{dot}"
    beside = {name[len(prefix) :].split(".")[0] for name in taken if name.startswith(prefix)}
    numbers = [int(name[len(base) :]) for name in beside if re.fullmatch(rf"{re.escape(base)}\d{{1,9}}", name)]
    if base not in beside and not numbers:
        return f"{prefix}{base}"
    return f"{prefix}{base}{max(numbers, default=0) + 1}"


def _rewire(body: Rewriting, match: Match, build: _Build) -> dict[Value, Value]:
    """Let the readers of what the left side bound read what the right side binds."""
    moved: dict[Value, Value] = {}
    inside = {n.name for n in build.made.values()}
    for name, operand in body.match.bindings.items():
        target = body.replace.bindings.get(name)
        if operand.node is None or target is None:
            continue
        old = Value(match.nodes[operand.node].name, operand.port)
        new = _operand(target, build)
        if old != new:
            build.builder.rewire(old, new, but=inside)
            moved[old] = new
    return moved


def _terms(
    rule: Rule, body: Rewriting, scope: Scope, build: _Build, graph: Graph
) -> dict[str, Term]:
    terms: dict[str, Term] = {}
    for target, expression in body.weights:
        owner, _, role = target.rpartition(".")
        value = evaluate(expression, scope)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = Apply("multiply", (Apply("ones", ()), value))
        if not is_term(value):
            raise error("A211", f"`{target}` is given no weight", span=expression.span)
        path = build.made[owner].params.get(role)
        if path is None:
            raise error("A207", f"`{owner}` has no `{role}` there", span=expression.span)
        terms[path] = value  # type: ignore[assignment]
        _shape(rule, path, terms[path], expression.span, build, graph)
    for node in build.made.values():
        for path in node.params.values():
            parameter = build.builder.parameters[path]
            if path in terms or path in graph.parameters:
                continue
            if parameter.type.dtype in ("i64", "i32"):
                terms[path] = Apply(
                    "zeros", tuple(s for s in parameter.type.shape if isinstance(s, int))
                )
            else:
                raise error(
                    "A221", f"rule `{rule.name}` gives no value to `{path}`", span=rule.span
                )
    return terms


def _shape(rule: Rule, path: str, term: Term, span: Span, build: _Build, graph: Graph) -> None:
    shapes = {
        p.path: tuple(s for s in p.type.shape if isinstance(s, int))
        for p in graph.parameters.values()
    }
    wanted = tuple(s for s in build.builder.parameters[path].type.shape if isinstance(s, int))
    try:
        found = shape_of(term, shapes)
    except WeightError as failure:
        message = f"rule `{rule.name}`, weight `{path}`: {failure}"
        raise error("A220", message, span=span) from None
    if found != wanted:
        message = (
            f"rule `{rule.name}` gives `{path}` the shape {list(found)}, "
            f"its operator wants {list(wanted)}"
        )
        raise error("A220", message, span=span)
