"""Graph to text: chains become pipelines, repetition becomes blocks and repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from archir.diag import ArchirError, Source, error
from archir.ir.graph import Graph, Node, Value
from archir.ir.memory import uncollected
from archir.ir.same import difference, equal
from archir.ir.types import AttrValue
from archir.lang import words
from archir.lang.elaboration import load
from archir.lang.flat import arch_name, fresh, preprocess, print_flat
from archir.lang.format import format_text
from archir.lang.regions import Kind, Plan, Unit
from archir.lang.tree import KEYWORDS, is_name, name_of, write_path
from archir.ops.record import OpSet

MAX_SEGMENTS = 60
_SYMBOLS = {"add": " + ", "sub": " - ", "mul": " * ", "div": " / "}


def print_graph(graph: Graph, ops: OpSet) -> str:
    """The canonical text of a graph, chains folded into pipelines and repetition into blocks.

    Loading the text gives the graph again, names included; that is checked here.

    Raises:
        ArchirError: A910, the graph holds what the language cannot say.
    """
    reason = ""
    plain_names = not any(_odd(node.name) for node in graph)
    for folded in (True, False) if plain_names else (False,):
        try:
            with uncollected():
                plain = _Printer(graph, ops).run() if folded else print_flat(graph, ops)
                text = format_text(Source("<printed>", plain))
                again = load(Source("<printed>", text), ops).graph
        except ArchirError as problem:
            reason = str(problem)
            continue
        reason = difference(graph, again) or ""
        if equal(graph, again):
            return text
    raise error("A910", f"the graph cannot be written as text: {reason}")


def _odd(path: str) -> bool:
    """Whether a path is none to fold by: an empty segment, or very many."""
    return f".{path}.".find("..") >= 0 or path.count(".") > MAX_SEGMENTS


@dataclass(eq=False)
class _Chain:
    """Units that are piped one into the next."""

    units: list[Unit]
    prefix: str = ""
    """The path prefix that the units of a chain of the arch share."""
    target: str = ""
    """The name it is bound to; empty for an output."""
    labels: list[str] = field(default_factory=list)
    """A label for each unit; empty where the language gives the right name."""
    numbered: bool = False
    """Whether its blocks are named by their place."""


@dataclass(eq=False)
class _Scope:
    """A body that is being written."""

    prefix: str
    units: list[Unit]
    names: dict[Value, str]
    taken: set[str]
    attributes: Callable[[Node, str], tuple[str, AttrValue]]
    kind: Kind | None = None
    number: int = 2
    """Where the search for a numbered name goes on."""

    def refer(self, value: Value) -> str:
        """A value by its name; the piped tensor of a block is the keyword."""
        name = self.names[value]
        return name if name == "input" and self.kind is not None else write_path(name)

    def local(self, name: str) -> str:
        """A path within the scope."""
        return name[len(self.prefix) + 1 :] if self.prefix else name


class _Printer:
    def __init__(self, graph: Graph, ops: OpSet) -> None:
        self.graph = graph
        self.ops = ops
        self.plan = Plan(graph, ops)
        self.ahead = words.ties_ahead(graph)
        self.shared = self.ahead | words.stated_before(graph)
        self.blocks: list[str] = []
        self.block_names = set(ops) | KEYWORDS | {"channels", "size", "rank", "min", "max"}

    def run(self) -> str:
        graph = self.graph
        nodes = [node for node in graph if node.op != "input"]
        units = self.plan.units("", nodes)
        taken = {*graph.inputs, *(unit.name for unit in units)}
        names = {Value(name): name for name in graph.inputs}
        scope = _Scope("", units, names, taken, _literal(self.ops))
        lines = [
            f"input {write_path(name)}: {words.write_type(graph.node(name).types[0])}"
            for name in graph.inputs
        ]
        lines += self._arch(scope)
        lines += preprocess(graph)
        arch = [f"arch {arch_name(graph)} {{", *lines, "}", ""]
        return "\n".join(["version 1", *self.blocks, *arch])

    # -- bodies

    def _arch(self, scope: _Scope) -> list[str]:
        chains: list[_Chain] = []
        for chain in self._chains(scope.units, shared=True):
            prefix = _common([unit.name for unit in chain.units])
            if len(chain.units) > 1 and prefix in scope.taken:
                chains += [_Chain([unit]) for unit in chain.units]
            else:
                chain.target = prefix
                scope.taken.add(prefix)
                chains.append(chain)
        tails, chains = self._tails(chains)
        lines: list[str] = []
        for chain in chains:
            if len(chain.units) == 1:
                chain.target, chain.labels = chain.units[0].name, [""]
            else:
                cut = len(chain.target) + 1
                chain.labels = [unit.name[cut:] for unit in chain.units]
                self._number(chain, chain.labels)
                self._drop_labels([chain])
            lines.append(self._statement(chain, scope))
        endings = list(tails.values())
        for chain in endings:
            chain.labels = [unit.name for unit in chain.units]
        self._drop_labels(endings)
        for output in self.graph.outputs:
            tail = tails.get(output.name)
            value = self._expression(tail, scope) if tail else write_path(scope.names[output.value])
            lines.append(f"output {write_path(output.name)} = {value}")
        return lines

    def _tails(self, chains: list[_Chain]) -> tuple[dict[str, _Chain], list[_Chain]]:
        """The single nodes that lead to an output alone: they move into its statement."""
        by_value = {c.units[0].outs[0]: c for c in chains if len(c.units) == 1 and c.units[0].node}
        tails: dict[str, _Chain] = {}
        gone: set[int] = set()
        for output in self.graph.outputs:
            value = output.value
            units: list[Unit] = []
            last = sum(o.value == value for o in self.graph.outputs) == 1
            reads = 0
            while last and self.plan.reads.get(value, 0) == reads and value in by_value:
                if units and value in self.plan.exported:
                    break
                chain = by_value[value]
                node = chain.units[0].node
                if node is None or len(node.types) > 1 or not node.inputs:
                    break
                units.insert(0, chain.units[0])
                gone.add(id(chain))
                if len(node.inputs) != 1:
                    break
                value, reads = node.inputs[0], 1
            if units:
                tails[output.name] = _Chain(units)
        return tails, [chain for chain in chains if id(chain) not in gone]

    def _block(self, kind: Kind) -> None:
        """Write the block of a kind of regions, once."""
        if kind.name:
            return
        region = kind.regions[0]
        units = self.plan.units(region.prefix, region.nodes)
        for unit in units:
            if unit.region is not None and unit.region.kind is not None:
                self._block(unit.region.kind)
        name = _block_name(region.prefix)
        kind.name = fresh(name if name not in self.block_names else f"{name}_", self.block_names)
        place = {node.name: index for index, node in enumerate(region.nodes)}
        kind.place = place
        cut = len(region.prefix) + 1
        kind.taken |= {"input", *words.RESERVED, *(unit.name[cut:] for unit in units)}

        def attributes(node: Node, attr: str) -> tuple[str, AttrValue]:
            return kind.express(place[node.name], attr)

        names = {region.source: "input"}
        scope = _Scope(region.prefix, units, names, kind.taken, attributes, kind)
        lines = self._block_body(scope, region.outs)
        formals = [
            f"{f.name} = {words.write_value(f.default)}" if f.optional else f.name
            for f in kind.header()
        ]
        header = f"block {kind.name}" + (f"({', '.join(formals)})" if formals else "")
        self.blocks += [header + " {", *lines, "}"]

    def _block_body(self, scope: _Scope, outs: list[Value]) -> list[str]:
        chains = self._chains(scope.units, shared=False)
        ending = chains[-1]
        if ending.units[-1].outs != outs or self._read_inside(outs, scope):
            ending = _Chain([])
        for chain in chains:
            locals_ = [scope.local(unit.name) for unit in chain.units]
            chain.labels = locals_
            if chain is ending:
                continue
            if len(chain.units) == 1:
                chain.target, chain.labels = locals_[0], [""]
            else:
                chain.target = self._target(chain, locals_, scope)
                self._number(chain, [name.removeprefix(chain.target + ".") for name in locals_])
        self._drop_labels([chain for chain in chains if len(chain.units) > 1 or chain is ending])
        lines = [self._statement(chain, scope) for chain in chains if chain is not ending]
        if ending.units:
            return [*lines, f"output {self._expression(ending, scope)}"]
        return [*lines, "output " + ", ".join(scope.refer(value) for value in outs)]

    def _read_inside(self, outs: list[Value], scope: _Scope) -> bool:
        return any(value in outs for unit in scope.units for value in unit.inputs)

    def _target(self, chain: _Chain, locals_: list[str], scope: _Scope) -> str:
        """A name for a chain in a block: that of its blocks' numbers, else a fresh letter."""
        grouped = [n for n, u in zip(locals_, chain.units, strict=True) if u.region is not None]
        if grouped:
            prefix = _common(grouped) if len(grouped) > 1 else grouped[0].rpartition(".")[0]
            if prefix and prefix not in scope.taken:
                scope.taken.add(prefix)
                return prefix
        for letter in "yzwvuts":
            if letter not in scope.taken:
                scope.taken.add(letter)
                return letter
        while f"y{scope.number}" in scope.taken:
            scope.number += 1
        scope.taken.add(f"y{scope.number}")
        return f"y{scope.number}"

    # -- chains

    def _chains(self, units: list[Unit], *, shared: bool) -> list[_Chain]:
        """The longest chains; with ``shared``, of units that share a path prefix."""
        chains: list[_Chain] = []
        ends: dict[Value, _Chain] = {}
        for unit in units:
            chain = ends.get(unit.inputs[0]) if len(unit.inputs) == 1 else None
            if chain is not None and self.plan.follows(unit, chain.units[-1]):
                prefix = _common([f"{chain.prefix}.", unit.name]) if shared else ""
                if prefix or not shared:
                    chain.units.append(unit)
                    chain.prefix = prefix
                    ends[unit.outs[0]] = chain
                    continue
            chain = _Chain([unit], unit.name.rpartition(".")[0])
            chains.append(chain)
            ends[unit.outs[0]] = chain
        return chains

    @staticmethod
    def _number(chain: _Chain, tails: list[str]) -> None:
        """Leave out the labels of blocks that the language numbers as they are named."""
        places = [i for i, unit in enumerate(chain.units) if unit.region is not None]
        if places and [tails[i] for i in places] == [str(n) for n in range(len(places))]:
            chain.numbered = True
            for i in places:
                chain.labels[i] = ""

    @staticmethod
    def _drop_labels(chains: list[_Chain]) -> None:
        """Leave out the labels that the language would give, in one naming scope."""
        by_op: dict[str, list[tuple[_Chain, int, Node]]] = {}
        for chain in chains:
            for index, unit in enumerate(chain.units):
                if unit.node is not None:
                    by_op.setdefault(name_of(unit.node.op), []).append((chain, index, unit.node))
        for op, found in by_op.items():
            plain = [entry for entry in found if entry[0].labels[entry[1]] == op]
            numbered = [
                (chain, index, node)
                for chain, index, node in found
                if not node.params
                and chain.labels[index].removeprefix(op).isdigit()
                and chain.labels[index].startswith(op)
            ]
            wanted = [f"{op}{n}" for n in range(1, len(numbered) + 1)]
            if len(numbered) > 1 and [c.labels[i] for c, i, _ in numbered] == wanted:
                plain = numbered
            for chain, index, _ in plain:
                chain.labels[index] = ""

    # -- statements

    def _statement(self, chain: _Chain, scope: _Scope) -> str:
        last = chain.units[-1]
        first = chain.units[0]
        if len(chain.units) == 1 and first.node is not None and first.node.op == "parameter":
            stated = self._free_tensor(first.node, chain, scope)
            if stated:
                return stated
        text = self._expression(chain, scope)
        targets = [chain.target]
        targets += [
            fresh(f"{chain.target}_{port}", scope.taken) for port in range(1, len(last.outs))
        ]
        scope.names.update(zip(last.outs, targets, strict=True))
        return f"{', '.join(map(write_path, targets))} = {text}"

    def _free_tensor(self, node: Node, chain: _Chain, scope: _Scope) -> str:
        own = node.params == {"value": node.name}
        if scope.kind is not None or not own or not node.attrs["persistent"]:
            return ""
        word = "buffer" if node.attrs["buffer"] else "param"
        init = node.attrs["init"]
        scope.names[Value(node.name)] = chain.target
        tail = f" = {words.write_value(init)}" if init != 0 or str(init) == "-0.0" else ""
        return f"{word} {write_path(chain.target)}: {words.write_type(node.types[0])}{tail}"

    def _expression(self, chain: _Chain, scope: _Scope) -> str:
        parts: list[str] = []
        calls: list[str] = []
        for index, unit in enumerate(chain.units):
            label = chain.labels[index]
            head = index == 0 and (unit.node is None or len(unit.node.inputs) != 1)
            if unit.node is not None and head:
                parts.append(self._head(unit.node, label, scope))
                continue
            if index == 0:
                parts.append(scope.refer(unit.inputs[0]))
            call = self._stage(unit, scope)
            text = f"{write_path(label)}: {call}" if label else call
            if unit.region is not None and chain.numbered and calls and calls[-1] == call:
                count, star, _ = parts[-1].partition(" * ")
                number = int(count) + 1 if star and count.isdigit() else 2
                parts[-1] = f"{number} * {call}"
                continue
            alone = chain.numbered and sum(u.region is not None for u in chain.units) == 1
            if unit.region is not None and alone:
                text = f"1 * {call}"
            parts.append(text)
            calls = [call] if unit.region is not None else []
        return " |> ".join(parts)

    def _head(self, node: Node, label: str, scope: _Scope) -> str:
        """A node without operands, or with several: a call, a sum or a product."""
        operands = [scope.refer(value) for value in node.inputs]
        symbol = _SYMBOLS.get(node.op)
        if symbol and len(operands) > 1 and not node.params:
            text = symbol.join(operands)
            return f"{write_path(label)}: ({text})" if label else text
        text = self._call(node, operands, scope, bare=False)
        return f"{write_path(label)}: {text}" if label else text

    def _stage(self, unit: Unit, scope: _Scope) -> str:
        if unit.node is not None:
            return self._call(unit.node, [], scope, bare=True)
        region = unit.region
        assert region is not None
        assert region.kind is not None
        self._block(region.kind)
        args: list[str] = []
        skipped = False
        for formal in region.kind.header():
            node = region.nodes[formal.index]
            text, value = scope.attributes(node, formal.attr)
            literal = text == words.write_value(value)
            if formal.optional and literal and repr(value) == repr(formal.default):
                skipped = True
                continue
            args.append(f"{formal.name} = {text}" if skipped else text)
        return words.call(region.kind.name, args)

    def _call(self, node: Node, operands: list[str], scope: _Scope, *, bare: bool) -> str:
        op = self.ops[node.op]
        stated = self._stated(node, scope)
        texts = {name: scope.attributes(node, name)[0] for name in stated}
        ties, renamed = self._parameters(node, scope)
        args = operands + words.arguments(op, texts) + ties
        return words.call(op.name, args, words.suffix(renamed), bare=bare)

    def _stated(self, node: Node, scope: _Scope) -> list[str]:
        """The attributes to state: those that some instance of the block must."""
        same = [node]
        if scope.kind is not None:
            place = scope.kind.place[node.name]
            same = [region.nodes[place] for region in scope.kind.regions]
        wanted: set[str] = set()
        for each in same:
            rank = self.graph.type_of(each.inputs[0]).rank if each.inputs else 0
            wanted |= set(words.needed(self.ops[each.op], each.attrs, rank))
        return [attr.name for attr in self.ops[node.op].attrs if attr.name in wanted]

    def _parameters(self, node: Node, scope: _Scope) -> tuple[list[str], dict[str, str]]:
        """Ties within a block, and renamed parameters."""
        renamed = words.renames(node.name, self.ops[node.op], node.params, self.shared)
        ties: list[str] = []
        for role in list(renamed):
            path = node.params[role]
            inside = scope.kind is not None and path.startswith(scope.prefix + ".")
            if inside and not path.startswith(node.name + "."):
                ties.append(f"{write_path(role)} = {write_path(scope.local(path))}")
                del renamed[role]
            elif (node.name, role) in self.ahead:
                ties.append(f"{write_path(role)} = {renamed.pop(role)}")
        return ties, renamed


def _literal(ops: OpSet) -> Callable[[Node, str], tuple[str, AttrValue]]:
    def attributes(node: Node, attr: str) -> tuple[str, AttrValue]:
        value = words.compact(ops[node.op], attr, node.attrs[attr])
        return words.write_value(value), value

    return attributes


def _common(names: list[str]) -> str:
    """The longest dotted prefix that all names have and none is; empty without."""
    parts = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def _block_name(prefix: str) -> str:
    """A name for the block of a region: the last segment of its path that is a word."""
    for segment in reversed(prefix.split(".")):
        word = segment.rstrip("0123456789").rstrip("_")
        if is_name(word):
            return word
    return "unit"
