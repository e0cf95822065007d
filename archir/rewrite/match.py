"""Finding where a pattern applies, and why it does not elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from archir.diag import ArchirError
from archir.ir.graph import Graph, Node, Value
from archir.ir.types import AttrValue
from archir.lang import tree as t
from archir.ops.infer import OpError, bind_attrs
from archir.ops.record import Law, OpSet
from archir.rewrite.expressions import Result, Scope, evaluate, holds, plain, text_of
from archir.rewrite.names import OF_TENSORS
from archir.rewrite.rule import Pattern, PatternNode, Rewriting, Rule
from archir.rewrite.sources import Earlier, dependent, paths_of, tensor_at
from archir.weights.terms import IndexMap, Term

PAIR = 2
"""So many operands of a sum or a product are matched in either order."""


@dataclass(frozen=True)
class Match:
    """Where a pattern was found: variables, pattern nodes and bound attributes."""

    root: str
    variables: Mapping[str, Value]
    nodes: Mapping[str, Node]
    scalars: Mapping[str, AttrValue]


@dataclass(frozen=True)
class Failure:
    """Why a pattern does not match: how far it got, and the node that stopped it."""

    matched: int
    node: str
    reason: str
    hint: str = ""


@dataclass
class _State:
    variables: dict[str, Value]
    nodes: dict[str, Node]
    scalars: dict[str, AttrValue]

    def copy(self) -> _State:
        return _State(dict(self.variables), dict(self.nodes), dict(self.scalars))


class Matcher:
    """Matches one rule's left side in one graph."""

    def __init__(
        self, rule: Rule, graph: Graph, ops: OpSet, arguments: Mapping[str, AttrValue]
    ) -> None:
        assert isinstance(rule.body, Rewriting)
        self.rule, self.graph, self.ops, self.arguments = rule, graph, ops, arguments
        self.pattern: Pattern = rule.body.match
        self.best = Failure(-1, "", "it does not match")
        paths = paths_of(rule)
        self.missing = {p.name for p in rule.parameters} - arguments.keys() - {*paths}
        """Parameters without a value: a guard that speaks of one is taken to hold."""
        self.sources = {
            name: tensor_at(graph, str(arguments[name])) for name in paths if name in arguments
        }
        self.open = [name for name in paths if name not in arguments]
        """Paths that are not given: any tensor that fits will do."""

    @cached_property
    def earlier(self) -> Earlier:
        """The network's tensors, for paths that are not given."""
        return Earlier(self.graph)

    @property
    def root(self) -> PatternNode | None:
        """The pattern node whose match names the site: the last one.

        None where the pattern is any tensor: its site is the node that makes it.
        """
        return self.pattern.nodes[-1] if self.pattern.nodes else None

    def candidates(self) -> Iterator[Node]:
        """The nodes that may be a site, in program order."""
        root = self.root
        yield from (node for node in self.graph if root is None or node.op == root.op)

    @cached_property
    def users(self) -> dict[str, list[tuple[str, str]]]:
        """Which nodes hold a parameter, by its path."""
        return self.graph.users()

    def all(self) -> Iterator[Match]:
        """Every match, in the order of their roots."""
        for node in self.candidates():
            found = self.at(node)
            if isinstance(found, Match):
                yield found

    def at(self, node: Node) -> Match | Failure:
        """The match rooted at a node, or the best failure."""
        for found in self.every(node):
            return found
        return self.best

    def every(self, node: Node) -> Iterator[Match]:
        """The matches rooted at a node: several, where paths are not given."""
        self.best = Failure(-1, node.name, "it does not match")
        scalars = {k: v for k, v in self.arguments.items() if k not in self.sources}
        start = _State(dict(self.sources), {}, scalars)
        root = self.root
        if root is None:
            (variable,) = self.pattern.variables
            start.variables[variable] = Value(node.name)
            dtype = node.types[0].dtype
            if "f" not in dtype:
                reason = f"it holds {dtype}, the rule wants numbers with a fraction"
                self._fail(start, node.name, reason)
                return
        for state in (start,) if root is None else self._node(root, node, start):
            for full in self._rest(state):
                match = Match(node.name, full.variables, full.nodes, full.scalars)
                for chosen in self._sourced(match):
                    if self._allowed(chosen):
                        yield chosen

    def _fail(self, state: _State, node: str, reason: str, hint: str = "") -> None:
        if len(state.nodes) >= self.best.matched:
            self.best = Failure(len(state.nodes), node, reason, hint)

    def _rest(self, state: _State) -> Iterator[_State]:
        """Match pattern nodes that the root does not reach, through what they share with it."""
        left = [p for p in self.pattern.nodes if p.name not in state.nodes]
        if not left:
            yield state
            return
        pattern = left[-1]
        for node in self._candidates(pattern, state):
            for found in self._node(pattern, node, state.copy()):
                yield from self._rest(found)

    def _candidates(self, pattern: PatternNode, state: _State) -> list[Node]:
        for operand in pattern.operands:
            if operand.variable is not None and operand.variable in state.variables:
                value = state.variables[operand.variable]
                return self._readers(value)
            if operand.node in state.nodes:
                return self._readers(Value(state.nodes[operand.node].name, operand.port))
        return [node for node in self.graph if node.op == pattern.op]

    def _readers(self, value: Value) -> list[Node]:
        found = {r.name: r for r, _, port in self.graph.readers(value.node) if port == value.port}
        return list(found.values())

    def _node(self, pattern: PatternNode, node: Node, state: _State) -> Iterator[_State]:
        if node.op != pattern.op:
            self._fail(state, node.name, f"it is `{node.op}`, the rule wants `{pattern.op}`")
            return
        if len(node.inputs) != len(pattern.operands):
            self._fail(
                state,
                node.name,
                f"it reads {len(node.inputs)} tensors, the rule wants {len(pattern.operands)}",
            )
            return
        if any(held is node for held in state.nodes.values()):
            return
        state.nodes[pattern.name] = node
        if not self._attrs(pattern, node, state):
            return
        orders = {node.inputs: None}
        if len(node.inputs) == PAIR and Law.COMMUTATIVE in self.ops[node.op].laws:
            orders[node.inputs[::-1]] = None
        for inputs in orders:
            yield from self._operands(pattern, node, inputs, 0, state.copy())

    def _operands(
        self,
        pattern: PatternNode,
        node: Node,
        inputs: tuple[Value, ...],
        index: int,
        state: _State,
    ) -> Iterator[_State]:
        if index == len(pattern.operands):
            yield state
            return
        operand, value = pattern.operands[index], inputs[index]
        if operand.variable is not None:
            held = state.variables.setdefault(operand.variable, value)
            if held != value:
                self._fail(state, node.name, f"`{operand.variable}` would be {held} and {value}")
                return
            yield from self._operands(pattern, node, inputs, index + 1, state)
            return
        assert operand.node is not None
        inner = self.pattern.node(operand.node)
        assert inner is not None
        if value.port != operand.port:
            self._fail(state, value.node, "it is read through another output")
            return
        if operand.node in state.nodes:
            if state.nodes[operand.node].name == value.node:
                yield from self._operands(pattern, node, inputs, index + 1, state)
            return
        for found in self._node(inner, self.graph.node(value.node), state.copy()):
            yield from self._operands(pattern, node, inputs, index + 1, found)

    def _attrs(self, pattern: PatternNode, node: Node, state: _State) -> bool:
        for name, expression in pattern.attrs.items():
            actual = plain(node.attrs[name])
            if isinstance(expression, t.Name) and expression.path not in state.scalars:
                state.scalars[expression.path] = actual
                continue
            scope = Scope(
                self.graph, dict(state.scalars), state.variables, state.nodes, attributes=True
            )
            try:
                wanted = self._normal(node, name, evaluate(expression, scope))
            except ArchirError as failure:
                if failure.diagnostics[0].code != "A211":
                    raise
                self._fail(state, node.name, f"its {name}: {failure.diagnostics[0].message}")
                return False
            if plain(wanted) != actual:
                self._fail(
                    state,
                    node.name,
                    f"its {name} is {_show(actual)}, the rule wants {_show(plain(wanted))}",
                )
                return False
        return True

    def _normal(self, node: Node, name: str, value: Result) -> AttrValue:
        if isinstance(value, Term | IndexMap):
            return None
        types = tuple(self.graph.type_of(v) for v in node.inputs)
        try:
            return bind_attrs(self.ops[node.op], {**node.attrs, name: value}, types)[name]
        except OpError:
            return None

    def _sourced(self, match: Match) -> Iterator[Match]:
        """The match with tensors for its paths, none of which depends on what it changes."""
        if not (self.sources or self.open):
            yield match
            return
        body = self.rule.body
        assert isinstance(body, Rewriting)
        shown = [o for name, o in self.pattern.bindings.items() if name in body.replace.bindings]
        handed = {match.root, *(match.nodes[o.node].name for o in shown if o.node is not None)}
        inside = {node.name for node in match.nodes.values()}
        later = dependent(self.graph, handed) if self.sources else {match.root}
        for name, value in self.sources.items():
            if value.node in later | inside:
                reason = f"`{name}` = {value} " + (
                    f"depends on {match.root}: the network would run in a circle"
                    if value.node not in inside | {match.root}
                    else "is what the rule matches there"
                )
                state = _State(dict(match.variables), dict(match.nodes), dict(match.scalars))
                fits = ", ".join(str(v) for v in self.fitting(match.root, name))
                hint = f"fitting: {fits}" if fits else "no other tensor fits there"
                self._fail(state, value.node, reason, hint)
                return
        choices = [
            [match.variables[name]]
            if name in match.variables
            else self.earlier.before(match.root, later | inside)
            for name in self.open
        ]
        for values in product(*choices):
            chosen = dict(zip(self.open, values, strict=True))
            yield replace(match, variables={**match.variables, **chosen})

    def fitting(self, site: str, name: str, most: int = 4) -> list[Value]:
        """Some tensors that a path may be at a site, one of each type, the nearest first."""
        arguments = {k: v for k, v in self.arguments.items() if k != name}
        free = Matcher(self.rule, self.graph, self.ops, arguments)
        found: list[Value] = []
        for full in free.every(self.graph.node(site)):
            found += [full.variables[name]] if full.variables[name] not in found else []
            if len(found) == most:
                break
        return found

    def _allowed(self, match: Match) -> bool:
        """The guards hold, and nothing else reads what the rule takes away."""
        state = _State(dict(match.variables), dict(match.nodes), dict(match.scalars))
        scope = self.scope(match)
        for condition in self.rule.where:
            if any(isinstance(e, t.Name) and e.path in self.missing for e in t.walk(condition)):
                continue
            try:
                fine = holds(condition, scope)
            except ArchirError as failure:
                self._fail(state, match.root, failure.diagnostics[0].message)
                return False
            if not fine:
                self._fail(state, match.root, _wanted(condition, scope))
                return False
        return self._sized(match, scope, state) and self._free(match, state)

    def _sized(self, match: Match, scope: Scope, state: _State) -> bool:
        """The sizes that attributes of the right side speak of are no symbols."""
        body = self.rule.body
        assert isinstance(body, Rewriting)
        sides = [e for pattern in body.replace.nodes for e in pattern.attrs.values()]
        for expression in sides:
            for call in t.walk(expression):
                if not isinstance(call, t.Call) or call.callee.text not in OF_TENSORS:
                    continue
                if {e.path for e in t.walk(call) if isinstance(e, t.Name)} - scope.tensors.keys():
                    continue
                try:
                    evaluate(call, scope)
                except ArchirError as failure:
                    reason = failure.diagnostics[0].message
                    self._fail(state, match.root, reason, "give the axis a number")
                    return False
        return True

    def _free(self, match: Match, state: _State) -> bool:
        body = self.rule.body
        assert isinstance(body, Rewriting)
        inside = {node.name for node in match.nodes.values()}
        shown = {
            (o.node, o.port)
            for name, o in body.match.bindings.items()
            if name in body.replace.bindings
        }
        for target, _ in body.weights:
            owner, _, role = target.rpartition(".")
            path = match.nodes[owner].params.get(role) if owner in match.nodes else None
            for other, _ in self.users.get(path or "", ()):
                if other not in inside:
                    self._fail(state, other, f"it shares `{path}`, which would change")
                    return False
        for name, node in match.nodes.items():
            if body.untouched(name):
                continue
            for port in range(len(node.types)):
                if (name, port) in shown:
                    continue
                if any(o.value == Value(node.name, port) for o in self.graph.outputs):
                    self._fail(state, node.name, "it is an output of the network")
                    return False
                for reader, _, read in self.graph.readers(node.name):
                    if read == port and reader.name not in inside:
                        self._fail(state, reader.name, f"it also reads `{node.name}`")
                        return False
        return True

    def scope(self, match: Match) -> Scope:
        """What the names of the rule stand for at a match."""
        tensors = self.tensors(match)
        return Scope(self.graph, dict(match.scalars), tensors, match.nodes, attributes=True)

    def tensors(self, match: Match) -> dict[str, Value]:
        """Names of the pattern that stand for values."""
        out = dict(match.variables)
        for name, operand in self.pattern.bindings.items():
            if operand.node is not None:
                out[name] = Value(match.nodes[operand.node].name, operand.port)
            elif operand.variable is not None:
                out[name] = match.variables[operand.variable]
        for name, node in match.nodes.items():
            out.setdefault(name, Value(node.name))
        return out


def _wanted(condition: t.Expr, scope: Scope) -> str:
    """A guard that does not hold, with what stands on its left side."""
    text = f"the rule wants {text_of(condition)}"
    if not isinstance(condition, t.Compare) or isinstance(condition.left, t.Literal):
        return text
    sides = (condition.left, condition.right)
    found = [
        f"{text_of(side)} is {_told(side, scope)}"
        for side in sides
        if not isinstance(side, t.Literal)
    ]
    return f"{text}; {', '.join(found)}"


def _told(expression: t.Expr, scope: Scope) -> str:
    try:
        value = evaluate(expression, scope)
    except ArchirError as failure:
        return f"not known: {failure.diagnostics[0].message}"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else _show(value)


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
