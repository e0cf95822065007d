"""Statements of a body stated anew, where new nodes branch or join.

What the statements that a change touches held, and what is new there, is written again as
pipelines in the order of the graph. The text of each kept call stays, so do the other
statements, blocks and comments.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from archir.diag import Span
from archir.ir.graph import Graph, Node, Value
from archir.lang import tree as t
from archir.lang import words
from archir.lang.difference import CannotEdit, same_interface, same_paths
from archir.lang.flat import fresh
from archir.lang.program import Program, Scope, Tensor
from archir.lang.sites import Edit, apply, call_of, extend, is_tensor
from archir.ops.record import OpSet

_SYMBOLS = {"add": " + ", "sub": " - ", "mul": " * ", "div": " / "}


@dataclass
class Change:
    """What changes in the body of one instance."""

    scope: Scope
    made: set[str] = field(default_factory=set)
    """New nodes."""
    touched: set[str] = field(default_factory=set)
    """Nodes that go, or read something else."""
    results: dict[Value, Value] = field(default_factory=dict)
    """What stands for a value where others than the nodes of this body read it."""


def changes(
    program: Program, after: Graph, root: Scope, instances: Sequence[Scope]
) -> list[Change]:
    """What changes in which bodies.

    Raises:
        CannotEdit: inputs or outputs, operators or the paths of parameters change.
    """
    before = program.graph
    same_interface(before, after)
    homes = _Homes(program, root, instances)
    found: dict[int, Change] = {}

    def at(scope: Scope) -> Change:
        return found.setdefault(id(scope), Change(scope))

    for node in before:
        if node.name not in after:
            at(homes.of(node.name)).touched.add(node.name)
    for node in after:
        home = homes.of(node.name)
        if node.name not in before:
            at(home).made.add(node.name)
            continue
        old = before.node(node.name)
        if old.op != node.op or not same_paths(old, node) or len(old.inputs) != len(node.inputs):
            raise CannotEdit(f"{node.name} becomes another")
        for was, now in zip(old.inputs, node.inputs, strict=True):
            if was == now:
                continue
            source = homes.of(was.node)
            if source is home or homes.of(now.node) is not source:
                at(home).touched.add(node.name)
            else:
                at(source).results[was] = now
    for a, b in zip(before.outputs, after.outputs, strict=True):
        if a.value != b.value:
            at(homes.of(a.value.node)).results[a.value] = b.value
    return list(found.values())


class _Homes:
    """In which body a node stands; for a new one, by its path."""

    def __init__(self, program: Program, root: Scope, instances: Sequence[Scope]) -> None:
        self.origins, self.root = program.origins, root
        self.by_path = {scope.path: scope for scope in instances if scope.path}

    def of(self, name: str) -> Scope:
        if name in self.origins:
            return self.origins[name].scope.instance
        while name and name not in self.by_path:
            name = name.rpartition(".")[0]
        return self.by_path[name] if name else self.root


@dataclass
class _Unit:
    """A stage: a node, or the instances of a block that one stage calls."""

    name: str
    inputs: tuple[Value, ...]
    outs: tuple[Value, ...]
    text: str = ""
    """The call of a kept stage without its label and tensors."""
    label: str = ""
    op: str = ""
    symbol: str = ""
    """The operator between the operands, where it is written so."""


class Restated:
    """The edits of one body, in which each touched statement is stated anew.

    With ``labels`` every stage has a label; without, those that had one and those that are new.
    """

    def __init__(
        self,
        program: Program,
        after: Graph,
        ops: OpSet,
        change: Change,
        edits: Sequence[Edit],
        *,
        labels: bool,
    ) -> None:
        self.program, self.after, self.ops, self.change = program, after, ops, change
        self.text = program.source.text
        self.blocks = [block.name.text for block in program.document.blocks]
        self.scope, self.changed, self.labels = change.scope, edits, labels
        self.done: set[str] = set()
        self.names: dict[Value, str] = {}
        self.values: dict[str, Value] = {}
        for name, bound in self.scope.env.items():
            if isinstance(bound, Tensor):
                value = Value(bound.draft.path, bound.port)
                self.values[name] = value
                self.names.setdefault(value, name)
        self.taken = {*self.scope.env, *words.RESERVED}
        self.root = self.scope.parent is None

    def run(self) -> list[Edit]:
        """The edits.

        Raises:
            CannotEdit: a statement holds what is not a pipeline of operators.
        """
        body = self.scope.block.body if self.scope.block is not None else ()
        own: dict[int, list[Node]] = defaultdict(list)
        for node in self.program.graph:
            origin = self.program.origins[node.name]
            if origin.scope.instance is self.scope:
                own[id(origin.statement)].append(node)
        touched = [s for s in body if self._is_touched(s, own[id(s)])]
        for statement in touched:
            for target in statement.targets if isinstance(statement, t.Bind) else ():
                self.names.pop(self.values[target.text], None)
        out = []
        for statement in touched:
            text = self._statement(statement, own[id(statement)], touched)
            out.append(Edit(statement.span.start, statement.span.end, text))
        for was, now in self.change.results.items():
            out += self._behind(was, now, touched)
        if not self.change.made <= self.done:
            raise CannotEdit("a new node is read by nothing here")
        return out + (self._numbers(touched) if self.labels else [])

    def _numbers(self, touched: list[t.Statement]) -> list[Edit]:
        """Labels for the stages elsewhere in the body that are numbered by their place."""
        edits = []
        for name, origin in self.program.origins.items():
            here = origin.scope.instance is self.scope and origin.statement not in touched
            site = origin.site
            if here and origin.default and isinstance(site, t.Stage | t.Call | t.Chain | t.Unary):
                label = name[len(origin.scope.path) + 1 :] if origin.scope.path else name
                if label != t.name_of(self.program.graph.node(name).op):
                    edits += extend(site, origin.statement, t.write_path(label), "")
        return edits

    def _behind(self, was: Value, now: Value, touched: list[t.Statement]) -> list[Edit]:
        """New statements behind the one that binds a value; whoever names it names the new one."""
        name = next((name for name, value in self.values.items() if value == was), "")
        if now.node in self.done or now.node not in self.change.made or not name:
            return []
        if any(was in node.inputs for node in self.after if node.name in self.program.graph):
            raise CannotEdit(f"some read {was} and others {now}")
        assert self.scope.block is not None
        body = self.scope.block.body
        names = [target for s in body for target in _targets(s) if target.text == name]
        binding = next((s for s in body for target in _targets(s) if target in names), None)
        if binding is None or binding in touched:
            raise CannotEdit(f"{was} is bound elsewhere")
        units: list[_Unit] = []
        self._demand(self.after.node(now.node), units)
        lines = self._chains(units, "", None)
        path = t.write_path(self.names[now])
        edits = [Edit(binding.span.end, binding.span.end, "".join(f"\n    {n}" for n in lines))]
        for statement in body:
            edits += [
                Edit(part.span.start, part.span.end, path)
                for part in t.walk(statement)
                if isinstance(part, t.Name) and part.path == name and statement not in touched
            ]
        return edits

    def _is_touched(self, statement: t.Statement, nodes: list[Node]) -> bool:
        """Whether a statement must be stated anew: what it reads or gives changes."""
        if isinstance(statement, t.OutputStatement) and any(
            self._result(r, nodes) in self.change.results for r in statement.results
        ):
            return True
        if any(node.name in self.change.touched for node in nodes):
            return True
        made = [self.after.node(name) for name in self.change.made]
        wanted = {value for node in made for value in node.inputs}
        wanted |= set(self.change.results.values())
        wanted |= {
            v for name in self.change.touched & {n.name for n in self.after}
            for v in self.after.node(name).inputs
        }  # fmt: skip
        return any(
            Value(node.name, port) in wanted and Value(node.name, port) not in self.names
            for node in nodes
            for port in range(len(node.types))
        )

    def _result(self, result: t.Result, nodes: list[Node]) -> Value | None:
        """What an output hands over before the change."""
        if self.root:
            name = result.name.text if result.name else getattr(result.value, "path", "")
            return next((o.value for o in self.program.graph.outputs if o.name == name), None)
        if isinstance(result.value, t.Name):
            return self.values.get(result.value.path)
        read = {value for node in nodes for value in node.inputs}
        last = [Value(n.name) for n in nodes if Value(n.name) not in read]
        return last[0] if len(last) == 1 else None

    # -- one statement

    def _statement(
        self, statement: t.Statement, nodes: list[Node], touched: list[t.Statement]
    ) -> str:
        if not isinstance(statement, t.Bind | t.OutputStatement):
            raise CannotEdit("neither a binding nor an output")
        if any(map(self._chosen, t.walk(statement))):
            raise CannotEdit("a choice")
        end: Value | None = None
        head = ""
        if isinstance(statement, t.Bind):
            given = [self.values.get(target.text) for target in statement.targets]
            if len(given) > 1 and any(value and value.node in self.after for value in given):
                raise CannotEdit("several results are bound at once")
        else:
            if len(statement.results) != 1:
                raise CannotEdit("several values are put out at once")
            result = statement.results[0]
            was = self._result(result, nodes)
            if was is None:
                raise CannotEdit("an output of unknown value")
            end = self.change.results.get(was, was)
            name = result.name.text if result.name else getattr(result.value, "path", "")
            head = f"output {t.write_path(name)} = " if self.root else "output "
        units: list[_Unit] = []
        for node in nodes:
            if node.name in self.after:
                self._demand(self.after.node(node.name), units)
        if end is not None and end.node not in self.done and end.node in self.change.made:
            self._demand(self.after.node(end.node), units)
        bound = ""
        if isinstance(statement, t.Bind):
            bound = statement.targets[0].text
        lines = self._comments(statement) + self._chains(units, bound, end)
        if end is not None:
            last = lines.pop() if lines and lines[-1].startswith("\0") else ""
            lines.append(head + (last[1:] if last else self._refer(end)))
        return "\n    ".join(lines)

    def _chosen(self, part: t.Tree) -> bool:
        """Whether a part is a choice, or a number that is a tensor."""
        if not isinstance(part, t.Literal):
            return isinstance(part, t.Choice)
        return any(origin.site is part for origin in self.program.origins.values())

    def _comments(self, statement: t.Statement) -> list[str]:
        """The comments within a statement, which go before it."""
        span = statement.span
        found = [c for c in self.program.document.comments if span.start < c.start < span.end]
        return [self.text[c.start : c.end].strip() for c in found]

    def _demand(self, node: Node, units: list[_Unit]) -> None:
        """Take up a node after the new nodes that it reads."""
        if node.name in self.done:
            return
        self.done.add(node.name)
        for value in node.inputs:
            if value.node in self.change.made:
                self._demand(self.after.node(value.node), units)
        made = node.name in self.change.made
        units.append(self._new(node) if made else self._kept(node))

    def _new(self, node: Node) -> _Unit:
        op = self.ops[node.op]
        rank = self.after.type_of(node.inputs[0]).rank if node.inputs else 0
        texts = {
            name: words.write_value(words.compact(op, name, node.attrs[name]))
            for name in words.needed(op, node.attrs, rank)
        }
        return self._unit(node, ", ".join(words.arguments(op, texts)), self._local(node.name))

    def _kept(self, node: Node) -> _Unit:
        origin = self.program.origins[node.name]
        call = call_of(origin.site)
        text, suffix = "", ""
        free = t.TensorStatement | t.InputStatement
        if origin.index is not None or isinstance(origin.site, free):
            raise CannotEdit(f"{node.name} is one of several")
        if call is not None:
            plain = [
                argument.span
                for argument in call.arguments
                if not is_tensor(argument.value, origin.scope, self.ops, self.blocks)
            ]
            text = ", ".join(self._slice(span.start, span.end) for span in plain)
            inside = [e for e in self.changed if e.start == e.end and e not in self._used(plain)]
            added = [e.text for e in inside if call.span.start <= e.start <= call.span.end]
            text += "".join(added).strip("()") if not text else "".join(added)
            if call.renames:
                suffix = self.text[(call.parens or call.callee.span).end : call.span.end]
        label = self._local(node.name)
        unlabelled = origin.default and not self.labels
        return self._unit(node, text, "" if unlabelled else label, suffix)

    def _used(self, spans: Sequence[Span]) -> list[Edit]:
        return [e for e in self.changed for s in spans if s.start <= e.start and e.end < s.end]

    def _slice(self, start: int, end: int) -> str:
        edits = [e for e in self.changed if start <= e.start and e.end <= end and e.start < e.end]
        return apply(self.text, edits, start, end)

    def _unit(self, node: Node, arguments: str, label: str, suffix: str = "") -> _Unit:
        values = tuple(Value(node.name, port) for port in range(len(node.types)))
        if len(values) > 1 and (self.root or node.name in self.program.graph):
            raise CannotEdit(f"{node.name} gives several values")
        op = self.ops[node.op]
        if node.name in self.change.made:
            suffix = words.suffix(words.renames(node.name, op, node.params))
        symbol = _SYMBOLS.get(node.op, "") if len(node.inputs) > 1 and not arguments else ""
        text = arguments + "\0" + suffix
        return _Unit(self._local(node.name), node.inputs, values, text, label, node.op, symbol)

    def _local(self, name: str) -> str:
        return name[len(self.scope.path) + 1 :] if self.scope.path else name

    # -- pipelines

    def _chains(self, units: list[_Unit], bound: str, end: Value | None) -> list[str]:
        """The statements of units, which are piped into each other where nothing else reads."""
        reads = Counter(v for node in self.after for v in node.inputs)
        reads.update(o.value for o in self.after.outputs)
        local = Counter(v for node in self.after if self._is_here(node) for v in node.inputs)
        kept = {v for name, v in self.values.items() if name == bound}
        chains: list[list[_Unit]] = []
        for unit in units:
            first = unit.inputs[0] if unit.inputs else None
            ahead = next((c for c in chains if (first,) == c[-1].outs and not unit.symbol), None)
            if ahead and first and reads[first] == 1 and first not in kept and first != end:
                ahead.append(unit)
                chains.remove(ahead)
                chains.append(ahead)
            else:
                chains.append([unit])
        if self.root:
            ends = [c for c in chains[-1:] if end is not None and c[-1].outs[0] == end]
            chains = self._at_root(chains[: len(chains) - len(ends)], bound) + ends
        lines = []
        for chain in chains:
            last = chain[-1].outs[0]
            apart = reads[last] == 1 if self.root else not local[last] and last not in kept
            final = end is not None and last == end and apart and chain is chains[-1]
            lines.append(self._line(chain, last, bound, final=final))
        return lines

    def _is_here(self, node: Node) -> bool:
        """Whether a node is one of this body."""
        origin = self.program.origins.get(node.name)
        if origin is None:
            return node.name in self.change.made
        return origin.scope.instance is self.scope

    def _at_root(self, chains: list[list[_Unit]], bound: str) -> list[list[_Unit]]:
        """A binding of the arch is a scope: only one may have several stages."""
        out = []
        for chain in chains:
            start = len(chain)
            if bound and self.values.get(bound) == chain[-1].outs[0]:
                while start and chain[start - 1].name.startswith(f"{bound}."):
                    start -= 1
            out += [[unit] for unit in chain[:start]] + ([chain[start:]] if chain[start:] else [])
        return out

    def _line(self, chain: list[_Unit], last: Value, bound: str, *, final: bool) -> str:
        target = ""
        if len(chain[-1].outs) > 1:
            stem = chain[-1].name.replace(".", "_")
            for place, value in enumerate(chain[-1].outs):
                self.names[value] = fresh(f"{stem}_{place}", self.taken)
            target = ", ".join(t.write_path(self.names[value]) for value in chain[-1].outs)
            stages = [self._stage(u, u.label, first=u is chain[0], alone=False) for u in chain]
            return f"{target} = {''.join(stages)}"
        if not final:
            own = bool(bound) and self.values.get(bound) == last
            single = len(chain) == 1
            if own:
                target = bound
            elif self.root or (single and chain[0].name not in self.taken):
                target = chain[0].name if single else bound
            else:
                target = fresh(chain[-1].name.replace(".", "_"), self.taken)
            self.taken.add(target)
        text = ""
        prefix = f"{target}." if self.root else ""
        for place, unit in enumerate(chain):
            label = unit.label.removeprefix(prefix)
            if len(chain) == 1 and target == unit.name:
                label = ""
            if label == t.name_of(unit.op) and not self.labels:
                label = ""
            text += self._stage(unit, label, first=not place, alone=len(chain) == 1)
        self.names[last] = target
        return f"\0{text}" if final else f"{t.write_path(target)} = {text}"

    def _stage(self, unit: _Unit, label: str, *, first: bool, alone: bool) -> str:
        tag = f"{t.write_path(label)}: " if label else ""
        arguments, _, suffix = unit.text.partition("\0")
        if unit.symbol:
            joined = unit.symbol.join(self._refer(value) for value in unit.inputs)
            return f"{tag}({joined})" if tag or not alone else joined
        others = [self._refer(value) for value in unit.inputs[1:]]
        inner = ", ".join([*others, arguments] if arguments else others)
        call = t.write_path(unit.op) + (f"({inner})" if inner else "") + suffix
        if not unit.inputs:
            return tag + call + ("" if inner else "()")
        return (self._refer(unit.inputs[0]) if first else "") + f" |> {tag}{call}"

    def _refer(self, value: Value) -> str:
        name = self.names.get(value)
        if name is None:
            raise CannotEdit(f"{value} has no name there")
        return "input" if name == "input" and not self.root else t.write_path(name)


def _targets(statement: t.Statement) -> tuple[t.Ident, ...]:
    if isinstance(statement, t.InputStatement):
        return (statement.name,)
    return statement.targets if isinstance(statement, t.Bind) else ()


def restated(
    program: Program,
    after: Graph,
    ops: OpSet,
    found: Sequence[Change],
    edits: Mapping[int, Sequence[Edit]],
    *,
    labels: bool,
) -> dict[int, list[Edit]]:
    """The edits of each changed body, those of attributes in its other statements included.

    Raises:
        CannotEdit: a touched statement holds what is not a pipeline of operators.
    """
    out: dict[int, list[Edit]] = {key: list(value) for key, value in edits.items()}
    for change in found:
        key = id(change.scope)
        mine = out.get(key, [])
        new = Restated(program, after, ops, change, mine, labels=labels).run()
        out[key] = new + [
            e for e in mine if not any(n.start <= e.start and e.end <= n.end for n in new)
        ]
    return out
