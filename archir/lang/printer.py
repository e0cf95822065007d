"""Graph to text: chains become pipelines, repetition becomes blocks and repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from archir.diag import ArchirError, Source, error
from archir.ir.graph import Graph, Node, Value
from archir.ir.memory import uncollected
from archir.ir.same import difference
from archir.ir.types import AttrValue
from archir.lang import words
from archir.lang.elaboration import load
from archir.lang.flat import arch_name, fresh, preprocess, print_flat
from archir.lang.format import format_text
from archir.lang.outline import block_names
from archir.lang.program import Program
from archir.lang.regions import Plan, Unit
from archir.lang.sharing import Kind
from archir.lang.titles import titles
from archir.lang.tree import KEYWORDS, name_of, write_path
from archir.ops.record import OpSet

MAX_SEGMENTS = 60
MAX_ROUNDS = 3
"""So often a text is printed anew whose statements stand in another order than the graph."""
MAX_LOOSE = 8
"""A longer chain without blocks is cut at the modules that it runs through."""
_OPERANDS = ("q", "k", "v", "mask")
"""What an attention reads."""
_SYMBOLS = {"add": " + ", "sub": " - ", "mul": " * ", "div": " / "}


class Attributes(Protocol):
    """How a body says a node's attribute, or an entry of it; and its value."""

    def __call__(self, node: Node, attr: str, entry: int | None = None) -> tuple[str, AttrValue]:
        """The text, and the value in the first instance."""


def print_graph(graph: Graph, ops: OpSet, kinds: Mapping[str, str] | None = None) -> str:
    """The canonical text of a graph, chains folded into pipelines and repetition into blocks.

    Loading the text gives the graph again, names included; that is checked here.

    Args:
        graph: The graph.
        ops: The operators.
        kinds: What its scopes are to be instances of: the name of a block by path, as far as
            known. :func:`archir.lang.outline.block_names` gives those of a program.

    Raises:
        ArchirError: A910, the graph holds what the language cannot say.
    """
    text, again = _printed(graph, ops, kinds or {})
    for _ in range(MAX_ROUNDS):
        if [node.name for node in again.graph] == [node.name for node in graph]:
            break
        before, graph = text, again.graph
        text, again = _printed(graph, ops, block_names(again.origins))
        if text == before:
            break
    return text


def _printed(graph: Graph, ops: OpSet, kinds: Mapping[str, str]) -> tuple[str, Program]:
    """The text of a graph, and what it says: the same graph, perhaps in another order."""
    reason = ""
    plain_names = not any(_odd(node.name) for node in graph)
    for way in ("numbers", "blocks", "flat") if plain_names else ("flat",):
        try:
            with uncollected():
                if way == "flat":
                    plain = print_flat(graph, ops)
                else:
                    plain = _Printer(graph, ops, kinds, numbers=way == "numbers").run()
                text = format_text(Source("<printed>", plain))
                again = load(Source("<printed>", text), ops)
        except ArchirError as problem:
            reason = str(problem)
            continue
        reason = difference(graph, again.graph) or ""
        if not reason:
            return text, again
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
    attributes: Attributes
    kind: Kind | None = None
    numbers: dict[Value, str] = field(default_factory=dict)
    """Constants that are written as numbers where they are read."""
    number: int = 2
    """Where the search for a numbered name goes on."""

    def refer(self, value: Value) -> str:
        """A value by its name; the piped tensor of a block is the keyword."""
        if value in self.numbers:
            return self.numbers[value]
        name = self.names[value]
        return name if name == "input" and self.kind is not None else write_path(name)

    def local(self, name: str) -> str:
        """A path within the scope."""
        return name[len(self.prefix) + 1 :] if self.prefix else name


class _Printer:
    def __init__(
        self, graph: Graph, ops: OpSet, kinds: Mapping[str, str], *, numbers: bool
    ) -> None:
        self.graph = graph
        self.ops = ops
        self.numbers = numbers
        self.plan = Plan(graph, ops, kinds)
        self.ahead = words.ties_ahead(graph)
        self.shared = self.ahead | words.stated_before(graph)
        self.blocks: list[str] = []
        self.block_names = set(ops) | KEYWORDS | {"channels", "size", "rank", "min", "max"}
        self.titles = titles(self.plan.kinds, kinds, self.block_names)
        self.readers: dict[Value, list[tuple[Node, int]]] = {}
        for node in graph:
            for index, value in enumerate(node.inputs):
                self.readers.setdefault(value, []).append((node, index))

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
        whole = self._chains(scope.units, shared=True)
        for chain in [part for each in whole for part in self._split(each)]:
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
        kind.name = fresh(self.titles[id(kind)], self.block_names)
        place = {node.name: index for index, node in enumerate(region.nodes)}
        kind.place = place
        cut = len(region.prefix) + 1
        kind.taken |= {"input", *words.RESERVED, *(unit.name[cut:] for unit in units)}
        kind.tensors = [fresh("skip", kind.taken) for _ in region.sources[1:]]

        def attributes(node: Node, attr: str, entry: int | None = None) -> tuple[str, AttrValue]:
            return kind.express(place[node.name], attr, entry)

        taken = set(kind.taken)
        lines: list[str] = []
        while not lines or kind.reduce():
            kind.begin(taken)
            names = dict(zip(region.sources, ["input", *kind.tensors], strict=True))
            scope = _Scope(region.prefix, units, names, kind.taken, attributes, kind)
            if self.numbers:
                self._write_numbers(scope)
            lines = self._block_body(scope, region.outs)
        formals = [f"{name}: tensor" for name in kind.tensors]
        formals += [
            f"{f.name} = {words.write_value(f.default)}" if f.optional else f.name
            for f in kind.header()
        ]
        header = f"block {kind.name}" + (f"({', '.join(formals)})" if formals else "")
        self.blocks += [header + " {", *lines, "}"]

    def _write_numbers(self, scope: _Scope) -> None:
        """Let arithmetic say its constants as numbers, where the language names them so."""
        here = {unit.node.name for unit in scope.units if unit.node is not None}
        found: list[Node] = []
        for unit in scope.units:
            node = unit.node
            readers = self.readers.get(Value(unit.name), [])
            if node is None or node.op != "constant" or len(readers) != 1:
                continue
            reader = readers[0][0]
            others = [v for v in reader.inputs if self.graph.node(v.node).op != "constant"]
            fits = reader.op in _SYMBOLS and not reader.params and reader.name in here and others
            plain = type(node.attrs["value"]) in (int, float) and Value(unit.name) not in (
                self.plan.exported
            )
            if fits and plain and self.graph.type_of(others[0]).dtype == node.types[0].dtype:
                found.append(node)
        named = [scope.local(node.name) for node in found]
        many = [f"constant{number}" for number in range(1, len(found) + 1)]
        if named != (many if len(found) > 1 else ["constant"]):
            return
        for node in found:
            scope.numbers[Value(node.name)] = scope.attributes(node, "value")[0]
        scope.units = [unit for unit in scope.units if Value(unit.name) not in scope.numbers]

    def _block_body(self, scope: _Scope, outs: list[Value]) -> list[str]:
        chains = self._chains(scope.units, shared=False)
        ending = chains[-1]
        if ending.units[-1].outs != outs or self._read_inside(outs, scope):
            ending = _Chain([])
        loose = [ending] if ending.units else []
        for chain in chains:
            locals_ = [scope.local(unit.name) for unit in chain.units]
            chain.labels = locals_
            if chain is ending:
                continue
            node = chain.units[0].node
            if len(chain.units) == 1:
                chain.target, chain.labels = locals_[0], [""]
                if node is not None and any(value in scope.numbers for value in node.inputs):
                    chain.labels = locals_
                    loose.append(chain)
                continue
            chain.target = self._target(chain, locals_, scope)
            self._number(chain, [name.removeprefix(chain.target + ".") for name in locals_])
            loose.append(chain)
        self._drop_labels([chain for chain in chains if any(chain is each for each in loose)])
        lines = [self._statement(chain, scope) for chain in chains if chain is not ending]
        if ending.units:
            return [*lines, f"output {self._expression(ending, scope)}"]
        return [*lines, "output " + ", ".join(scope.refer(value) for value in outs)]

    def _read_inside(self, outs: list[Value], scope: _Scope) -> bool:
        return any(value in outs for unit in scope.units for value in unit.inputs)

    def _target(self, chain: _Chain, locals_: list[str], scope: _Scope) -> str:
        """A name for a chain in a block.

        That of its only block, of what its paths share, or of what it is read as; else that of
        its blocks' numbers, or a fresh letter.
        """
        grouped = [n for n, u in zip(locals_, chain.units, strict=True) if u.region is not None]
        if len(grouped) == 1 and not grouped[0].rpartition(".")[2].isdigit():
            chain.labels[locals_.index(grouped[0])] = ""
            return grouped[0]
        wishes: list[str] = [_common(locals_), self._role(chain.units[-1].outs[0], chain)]
        if grouped:
            wishes.append(_common(grouped) if len(grouped) > 1 else grouped[0].rpartition(".")[0])
        for wish in wishes + list("yzwvuts"):
            if wish and (wish not in scope.taken or wish == locals_[-1]):
                scope.taken.add(wish)
                return wish
        while f"y{scope.number}" in scope.taken:
            scope.number += 1
        scope.taken.add(f"y{scope.number}")
        return f"y{scope.number}"

    def _role(self, value: Value, chain: _Chain) -> str:
        """What a value is to the operator that reads it, in a word; often there is none."""
        readers = self.readers.get(value, [])
        if len(readers) != 1:
            return ""
        reader, index = readers[0]
        if reader.op in ("attention", "scaled_dot_product_attention"):
            return _OPERANDS[index]
        last = chain.units[-1].node
        gates = last is not None and last.op in ("sigmoid", "hardsigmoid")
        return "gate" if gates and reader.op == "mul" else ""

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
            if unit.node is None or unit.node.op != "parameter":
                ends[unit.outs[0]] = chain
        return chains

    def _split(self, chain: _Chain) -> list[_Chain]:
        """Cut a chain of the arch where it enters or leaves the blocks of a deeper path."""
        cut = len(_common([unit.name for unit in chain.units]).split("."))
        found: list[_Chain] = []
        loose = False
        groups = groupby(chain.units, lambda unit: unit.name.split(".")[: cut + 1])
        for _, members in groups:
            units = list(members)
            blocks = any(unit.region is not None for unit in units)
            own = 1 < len(units) < len(chain.units)
            if own and (blocks or len(chain.units) > MAX_LOOSE):
                found += self._split(_Chain(units))
                loose = False
            elif loose:
                found[-1].units += units
            else:
                found.append(_Chain(units))
                loose = True
        return [part for each in found for part in _numbered_or_single(each)]

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
        if not own or not node.attrs["persistent"]:
            return ""
        word = "buffer" if node.attrs["buffer"] else "param"
        init = scope.attributes(node, "init")[0]
        scope.names[Value(node.name)] = chain.target
        tail = f" = {init}" if init not in ("0", "0.0") else ""
        shape = scope.attributes(node, "shape")[0]
        type_ = f"{node.attrs['dtype']}{shape}"
        return f"{word} {write_path(chain.target)}: {type_}{tail}"

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
        args = [scope.refer(value) for value in region.sources[1:]]
        skipped = False
        for formal in region.kind.header():
            node = region.nodes[formal.index]
            text, value = scope.attributes(node, formal.attr, formal.entry)
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
        for role, text in list(renamed.items()):
            path = node.params[role]
            inside = scope.kind is not None and path.startswith(scope.prefix + ".")
            tied = (node.name, role) in self.shared
            if inside and tied and not path.startswith(node.name + "."):
                ties.append(f"{write_path(role)} = {write_path(scope.local(path))}")
                del renamed[role]
            elif (node.name, role) in self.ahead:
                ties.append(f"{write_path(role)} = {renamed.pop(role)}")
            elif inside and not text.startswith('"'):
                renamed[role] = _below(scope.local(path))
        return ties, renamed


def _numbered_or_single(chain: _Chain) -> list[_Chain]:
    """A chain, or its units apart: blocks with numbers that do not begin at 0."""
    ends = [unit.name.rpartition(".")[2] for unit in chain.units]
    plain = all(unit.region is not None for unit in chain.units) and all(e.isdigit() for e in ends)
    if plain and ends != [str(number) for number in range(len(ends))]:
        return [_Chain([unit]) for unit in chain.units]
    return [chain]


def _below(path: str) -> str:
    """A path below the scope, as a rename says it."""
    return "." + write_path(f"_.{path}").removeprefix("_.")


def _literal(ops: OpSet) -> Attributes:
    def attributes(node: Node, attr: str, entry: int | None = None) -> tuple[str, AttrValue]:
        value = words.compact(ops[node.op], attr, node.attrs[attr])
        if entry is not None:
            assert isinstance(value, tuple)
            value = value[entry]
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
