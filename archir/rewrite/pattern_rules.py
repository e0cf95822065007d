"""Planning a rule over a pattern: build the right side where the left was found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from archir.diag import ArchirError, error
from archir.ir.graph import Graph, GraphBuilder, Node, Parameter, Value
from archir.ir.types import AttrValue, TensorType
from archir.ops.infer import Instance, OpError, bind_attrs, instance
from archir.ops.record import Law, Op, OpSet
from archir.rewrite.assumed import assumptions, misfit
from archir.rewrite.expressions import Result, Scope, evaluate, is_term
from archir.rewrite.match import PAIR, Match, Matcher
from archir.rewrite.plan import Plan, check_shapes
from archir.rewrite.rule import PatternNode, PatternOperand, Rewriting, Rule
from archir.weights.init import initial
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
    uses: dict[str, Instance] = field(default_factory=dict)
    """How the operators of new and changed nodes are used, by the nodes' names."""
    buried: list[Node] = field(default_factory=list)
    """Nodes beside the match that nothing reads any more."""


@dataclass(frozen=True)
class Exchange:
    """The nodes that a rule takes away or changes at a match, and those that stand there then."""

    gone: tuple[Node, ...]
    uses: Mapping[str, Instance]
    """New and changed nodes, by their names."""
    made: Mapping[str, Node]
    parameters: Mapping[str, Parameter]


def exchange(rule: Rule, matcher: Matcher, match: Match) -> Exchange:
    """What a rule exchanges at a match, found without building the network.

    Raises:
        ArchirError: A306, the right side does not fit there.
    """
    build = _right(rule, matcher, match, matcher.scope(match))[0]
    held = build.builder.nodes
    own = [n for n in match.nodes.values() if n.name not in held or n.name in build.uses]
    made = {name: held[name] for name in build.uses}
    return Exchange((*own, *build.buried), build.uses, made, build.builder.parameters)


def plan_pattern(
    rule: Rule, matcher: Matcher, match: Match, arguments: Mapping[str, AttrValue], seed: int
) -> Plan:
    """The plan of a rule at a match.

    Raises:
        ArchirError: A306, the right side does not fit there; A2xx, the rule's weights are wrong.
    """
    body = rule.body
    assert isinstance(body, Rewriting)
    graph, ops = matcher.graph, matcher.ops
    rng = np.random.Generator(np.random.PCG64(seed))
    scope = Scope(
        graph,
        dict(match.scalars),
        matcher.tensors(match),
        match.nodes,
        rng=rng,
        attributes=True,
    )
    assumed = assumptions(rule, match, scope)
    build, moved = _right(rule, matcher, match, scope)
    scope.attributes = False
    for name, expression in body.lets:
        scope.names[name] = evaluate(expression, scope)
    terms = _terms(body, scope, build, graph, ops, seed)
    try:
        after = build.builder.build()
    except ValueError as reason:
        raise misfit(rule, match.root, f"cannot be applied: {reason}") from None
    _tied(rule, match, terms, graph, after)
    matched = tuple(node.name for node in match.nodes.values())
    made = {name: node.name for name, node in build.made.items()}
    plan = Plan(rule, match.root, dict(arguments), seed, graph, after, terms, moved, matched, made)
    plan = replace(plan, assumed=assumed)
    check_shapes(plan)
    return plan


def _right(
    rule: Rule, matcher: Matcher, match: Match, scope: Scope
) -> tuple[_Build, dict[Value, Value]]:
    """The right side in place of the left, and what reads which value in another's place."""
    body, graph = rule.body, matcher.graph
    assert isinstance(body, Rewriting)
    build = _Build(graph.edit(), dict(match.variables))
    for pattern in body.replace.nodes:
        _make(rule, pattern, match, scope, build, matcher.ops, graph)
    moved = _rewire(rule, body, match, build, graph)
    stay = build.kept | {made.name for made in build.made.values()}
    for node in match.nodes.values():
        if node.name not in stay:
            build.builder.nodes.pop(node.name, None)
    _bury(match, build)
    return build, moved


def _bury(match: Match, build: _Build) -> None:
    """Take away what nothing reads any more, now that some of the matched nodes are gone."""
    builder = build.builder
    gone = [node for node in match.nodes.values() if node.name not in builder.nodes]
    read = Counter(v.node for node in builder.nodes.values() for v in node.inputs)
    read.update(output.value.node for output in builder.outputs)
    while gone:
        for name in {v.node for v in gone.pop().inputs}:
            node = builder.nodes.get(name)
            if node is not None and node.op != "input" and not read[name]:
                gone.append(builder.nodes.pop(name))
                build.buried.append(node)
                read.subtract(v.node for v in node.inputs)


def _tied(rule: Rule, match: Match, terms: Mapping[str, Term], graph: Graph, after: Graph) -> None:
    """A tensor that a node outside the match shares must stay what it is."""
    inside = {node.name for node in match.nodes.values()}
    for path, users in graph.users().items():
        changed = path in terms or after.parameters.get(path) not in (None, graph.parameters[path])
        for other, _ in users if changed else ():
            if other not in inside:
                raise misfit(
                    rule, match.root, f"it would change `{path}`, which {other} shares", node=other
                )


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
    match: Match,
    scope: Scope,
    build: _Build,
    ops: OpSet,
    graph: Graph,
) -> None:
    """Keep, change or add one node of the right side."""
    inputs = tuple(_operand(o, build) for o in pattern.operands)
    try:
        stated = {name: _attr(evaluate(e, scope)) for name, e in pattern.attrs.items()}
    except ArchirError as failure:
        if failure.diagnostics[0].code != "A211":
            raise
        raise misfit(rule, match.root, failure.diagnostics[0].message) from None
    own = match.nodes.get(pattern.name)
    if own is None and pattern.unlabelled:
        own = _twin(rule, pattern, stated, inputs, match, build, ops[pattern.op])
    types = tuple(_type(v, build, graph) for v in inputs)
    alike = own is not None and own.op == pattern.op and _reads(own, inputs, ops[own.op])
    if own is not None and alike and not _grown(inputs, build, graph) and _says(own, stated):
        _keep(pattern, own, build)
        return
    old = own if own is not None and own.op == pattern.op else None
    given = {**old.attrs, **stated} if old is not None else stated
    op = ops[pattern.op]
    try:
        attrs = bind_attrs(op, given, types)
        use = instance(op, attrs, types)
    except OpError as failure:
        raise misfit(rule, match.root, failure.message, failure.hint) from None
    if own is None and not pattern.unlabelled:
        twin = _twin(rule, pattern, attrs, inputs, match, build, op)
        if twin is not None:
            _keep(pattern, twin, build)
            return
    made = _node(pattern, op, old, attrs, inputs, use, match, build)
    build.made[pattern.name] = made
    build.uses[made.name] = use
    build.types.update({Value(made.name, p): type_ for p, type_ in enumerate(made.types)})
    scope.made = {**scope.made, pattern.name: attrs}


def _grown(inputs: tuple[Value, ...], build: _Build, graph: Graph) -> bool:
    """Whether something that a matched node reads has another type now."""
    return any(v in build.types and build.types[v] != graph.type_of(v) for v in inputs)


def _keep(pattern: PatternNode, node: Node, build: _Build) -> None:
    build.made[pattern.name] = node
    build.kept.add(node.name)


def _reads(node: Node, inputs: tuple[Value, ...], op: Op) -> bool:
    """Whether a node reads these tensors, in any order if that does not matter."""
    if len(inputs) == PAIR and Law.COMMUTATIVE in op.laws:
        return node.inputs in (inputs, inputs[::-1])
    return node.inputs == inputs


def _says(node: Node, stated: Mapping[str, AttrValue]) -> bool:
    """Whether a node has the attributes that a rule states."""
    return all(node.attrs[n] in (v, _spread(node.attrs[n], v)) for n, v in stated.items())


def _twin(
    rule: Rule,
    pattern: PatternNode,
    stated: Mapping[str, AttrValue],
    inputs: tuple[Value, ...],
    match: Match,
    build: _Build,
    op: Op,
) -> Node | None:
    """A matched node that says the same as one of the right side: it stays.

    One with a name of its own is a node beside it if it has weights.
    """
    body = rule.body
    assert isinstance(body, Rewriting)
    for name, node in match.nodes.items():
        free = node.name not in build.kept and body.replace.node(name) is None
        same = node.op == pattern.op and _reads(node, inputs, op) and _says(node, stated)
        if free and same and (pattern.unlabelled or not node.params):
            return node
    return None


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
    held = old.params if old is not None else {}
    own = name if op.name == "parameter" else f"{name}.{{}}"
    params = {p.role: held.get(p.role, own.format(p.role)) for p in op.present(attrs)}
    made = Node(name, op.name, attrs, inputs, params, use.types)
    if old is not None:
        build.builder.put(made)
    else:
        build.builder.add(made)
    for p in op.present(attrs):
        buffer = bool(attrs["buffer"]) if op.name == "parameter" else p.buffer
        parameter = Parameter(params[p.role], use.params[p.role], buffer)
        build.builder.parameters[parameter.path] = parameter
    return made


def _spread(held: AttrValue, value: AttrValue) -> AttrValue:
    return (value,) * len(held) if isinstance(held, tuple) else value


def _attr(value: Result) -> AttrValue:
    if is_term(value) or not isinstance(value, int | float | bool | str | tuple | None):
        raise error("A211", "an attribute cannot be a weight")
    return value


def _fresh(pattern: PatternNode, root: str, build: _Build) -> str:
    """A free path beside the root of the match, numbered on where its name is in use."""
    scope, dot, _ = root.rpartition(".")
    base = pattern.op if pattern.unlabelled else pattern.name
    taken = build.builder.nodes.keys() | build.builder.parameters.keys()
    prefix = f"{scope}{dot}"
    beside = {name[len(prefix) :].split(".")[0] for name in taken if name.startswith(prefix)}
    numbers = [
        int(name[len(base) :])
        for name in beside
        if re.fullmatch(rf"{re.escape(base)}\d{{1,9}}", name)
    ]
    if base not in beside and not numbers:
        return f"{prefix}{base}"
    return f"{prefix}{base}{max(numbers, default=0) + 1}"


def _rewire(
    rule: Rule, body: Rewriting, match: Match, build: _Build, graph: Graph
) -> dict[Value, Value]:
    """Let the readers of what the left side bound read what the right side binds."""
    moved: dict[Value, Value] = {}
    for name, operand in body.match.bindings.items():
        target = body.replace.bindings.get(name)
        if target is None:
            continue
        old = _matched(operand, match)
        new = _operand(target, build)
        types = graph.type_of(old), _type(new, build, graph)
        if types[0] != types[1]:
            raise misfit(rule, match.root, f"`{name}` would be {types[1]} instead of {types[0]}")
        if old != new:
            moved[old] = new
    build.builder.rewire(moved, but={n.name for n in build.made.values()})
    return moved


def _matched(operand: PatternOperand, match: Match) -> Value:
    """What an operand of the left side stands for."""
    if operand.node is not None:
        return Value(match.nodes[operand.node].name, operand.port)
    assert operand.variable is not None
    return match.variables[operand.variable]


def _terms(
    body: Rewriting, scope: Scope, build: _Build, graph: Graph, ops: OpSet, seed: int
) -> dict[str, Term]:
    terms: dict[str, Term] = {}
    for target, expression in body.weights:
        owner, _, role = target.rpartition(".")
        path = build.made[owner].params.get(role)
        if path is None:
            if any(p.role == role for p in ops[build.made[owner].op].params):
                continue  # a bias that the layer does not have
            raise error("A207", f"`{owner}` has no `{role}` there", span=expression.span)
        parameter = build.builder.parameters[path]
        scope.target = initial(build.made[owner], role, parameter, ops, seed)
        value = evaluate(expression, scope)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = Apply("multiply", (Apply("ones", _extents(build, path)), value))
        if not is_term(value):
            raise error("A211", f"`{target}` is given no weight", span=expression.span)
        terms[path] = value
    for node in build.made.values():
        for path in node.params.values():
            counts = build.builder.parameters[path].type.dtype in ("i64", "i32")
            if counts and path not in terms and path not in graph.parameters:
                terms[path] = Apply("zeros", _extents(build, path))
    return terms


def _extents(build: _Build, path: str) -> tuple[int, ...]:
    shape = build.builder.parameters[path].type.shape
    return tuple(size for size in shape if isinstance(size, int))
