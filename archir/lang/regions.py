"""Repetition in a graph: regions that share a path prefix, and which of them are alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from archir.ir.graph import Graph, Node, Value
from archir.ir.types import AttrValue
from archir.lang import words
from archir.lang.flat import fresh
from archir.lang.tree import is_name
from archir.ops.record import OpSet

MIN_CHAIN = 3
"""A plain chain becomes a block if it occurs twice and has as many nodes."""
MIN_SINGLE = 4
"""What occurs once becomes a block if it is no chain and has as many nodes."""


@dataclass(eq=False)
class Region:
    """The nodes below a path, if one tensor goes in."""

    prefix: str
    nodes: list[Node]
    source: Value
    outs: list[Value]
    kind: Kind | None = None


@dataclass(eq=False)
class Unit:
    """What a body is made of: a node, or a region that is a block's instance."""

    name: str
    node: Node | None = None
    region: Region | None = None

    @property
    def nodes(self) -> list[Node]:
        """The nodes it stands for."""
        if self.node is not None:
            return [self.node]
        assert self.region is not None
        return self.region.nodes

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The values it reads."""
        if self.node is not None:
            return self.node.inputs
        assert self.region is not None
        return (self.region.source,)

    @property
    def outs(self) -> list[Value]:
        """The values it gives to others."""
        if self.node is not None:
            return [Value(self.node.name, port) for port in range(len(self.node.types))]
        assert self.region is not None
        return self.region.outs


@dataclass(eq=False)
class Formal:
    """A parameter of a block: its name, its value in each instance, its default if any."""

    name: str
    index: int
    attr: str
    values: list[AttrValue]
    default: AttrValue = None
    optional: bool = False


@dataclass(eq=False)
class Kind:
    """Regions that are alike up to attributes: the instances of one block."""

    regions: list[Region]
    ops: OpSet
    name: str = ""
    formals: list[Formal] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    place: dict[str, int] = field(default_factory=dict)
    """Where each node of the first instance stands among its nodes."""

    def values(self, index: int, attr: str) -> list[AttrValue]:
        """An attribute of the node of an index, in each instance."""
        op = self.ops[self.regions[0].nodes[index].op]
        return [words.compact(op, attr, r.nodes[index].attrs[attr]) for r in self.regions]

    def express(self, index: int, attr: str) -> tuple[str, AttrValue]:
        """An attribute as text in the block's body, and its value in the first instance.

        What differs between instances becomes a parameter, or a multiple of one.
        """
        values = self.values(index, attr)
        first = values[0]
        if all(repr(value) == repr(first) for value in values):
            return words.write_value(first), first
        for formal in self.formals:
            if repr(formal.values) == repr(values):
                return formal.name, first
        for formal in self.formals:
            factor = _factor(values, formal.values)
            if factor is not None:
                return f"{factor} * {formal.name}", first
        made = self._formal(index, attr, values)
        self.formals.append(made)
        return made.name, first

    def constant(self, index: int, attr: str) -> bool:
        """Whether an attribute is the same in all instances."""
        return len(set(map(repr, self.values(index, attr)))) == 1

    def _formal(self, index: int, attr: str, values: list[AttrValue]) -> Formal:
        wish = "width" if attr == "out" else attr
        name = fresh(wish if is_name(wish) else f"{attr}_", self.taken)
        op = self.ops[self.regions[0].nodes[index].op]
        record = op.attr(attr)
        default = record.default if record is not None else None
        plain = isinstance(default, int | float | str)
        optional = plain and any(repr(value) == repr(default) for value in values)
        return Formal(name, index, attr, values, default if optional else None, optional)

    def header(self) -> list[Formal]:
        """The parameters in order: those with defaults last."""
        return [f for f in self.formals if not f.optional] + [f for f in self.formals if f.optional]


def _factor(values: list[AttrValue], base: list[AttrValue]) -> int | None:
    """The whole number k > 1 with values = k * base, if there is one."""
    factor = None
    for value, unit in zip(values, base, strict=True):
        if type(value) is not int or type(unit) is not int or unit <= 0 or value % unit:
            return None
        if factor is not None and factor != value // unit:
            return None
        factor = value // unit
    return factor if factor is not None and factor > 1 else None


class Plan:
    """What of a graph becomes blocks: units of the arch, and kinds of regions."""

    def __init__(self, graph: Graph, ops: OpSet) -> None:
        self.graph = graph
        self.ops = ops
        self.position = {node.name: place for place, node in enumerate(graph)}
        self.reads: dict[Value, int] = {}
        for node in graph:
            for value in node.inputs:
                self.reads[value] = self.reads.get(value, 0) + 1
        self.exported = {output.value for output in graph.outputs}
        self._members: dict[str, list[Node]] = {}
        self._sources: dict[str, set[Value]] = {}
        self._outs: dict[str, dict[Value, None]] = {}
        self._collect()
        self.regions = self._find()
        self._classify()

    def _collect(self) -> None:
        chains = {node.name: _prefixes(node.name) for node in self.graph}
        for node in self.graph:
            mine = chains[node.name]
            for prefix in mine:
                self._members.setdefault(prefix, []).append(node)
            for value in node.inputs:
                theirs = chains[value.node]
                for prefix in mine:
                    if prefix not in theirs:
                        self._sources.setdefault(prefix, set()).add(value)
                for prefix in theirs:
                    if prefix not in mine:
                        self._outs.setdefault(prefix, {})[value] = None
        for value in self.exported:
            for prefix in chains[value.node]:
                self._outs.setdefault(prefix, {})[value] = None

    def _find(self) -> dict[str, Region]:
        found: dict[str, Region] = {}
        for prefix, nodes in self._members.items():
            sources = self._sources.get(prefix, set())
            outs = self._outs.get(prefix, {})
            if len(nodes) < 2 or len(sources) != 1 or not outs:
                continue
            (source,) = sources
            first = self.position[nodes[0].name]
            if self.position[source.node] < first and all(n.op != "input" for n in nodes):
                ordered = sorted(outs, key=lambda v: (self.position[v.node], v.port))
                found[prefix] = Region(prefix, nodes, source, ordered)
        return found

    def _classify(self) -> None:
        kinds: dict[tuple[object, ...], Kind] = {}
        for region in self.regions.values():
            key = self._key(region)
            kind = kinds.setdefault(key, Kind([], self.ops))
            kind.regions.append(region)
            region.kind = kind

    def _key(self, region: Region) -> tuple[object, ...]:
        """What must agree for two regions to be instances of one block: all but attributes."""
        cut = len(region.prefix) + 1
        number = {node.name: index for index, node in enumerate(region.nodes)}
        entries: list[object] = []
        for node in region.nodes:
            inputs = tuple((number.get(v.node, -1), v.port) for v in node.inputs)
            inputs = tuple((n, p if n >= 0 else 0) for n, p in inputs)
            params = tuple(
                (role, path[cut:] if path.startswith(region.prefix + ".") else (path,))
                for role, path in node.params.items()
            )
            ranks = tuple(self.graph.type_of(v).rank for v in node.inputs[:1])
            entries.append((node.name[cut:], node.op, inputs, params, ranks))
        outs = tuple((number[v.node], v.port) for v in region.outs)
        return (*entries, outs)

    def units(self, prefix: str, nodes: list[Node]) -> list[Unit]:
        """The units of a scope, operands before their readers."""
        cut = len(prefix) + 1 if prefix else 0
        below: dict[str, list[Node]] = {}
        found: list[Unit] = []
        for node in nodes:
            segment, dot, _ = node.name[cut:].partition(".")
            if dot:
                below.setdefault(f"{prefix}.{segment}" if prefix else segment, []).append(node)
            else:
                found.append(Unit(node.name, node=node))
        for child, members in below.items():
            found += self._child(child, members)
        found.sort(key=self._place)
        return found

    def _place(self, unit: Unit) -> int:
        return self.position[unit.nodes[0].name]

    def _child(self, prefix: str, members: list[Node]) -> list[Unit]:
        inner = self.units(prefix, members)
        region = self.regions.get(prefix)
        if region is None:
            return inner
        assert region.kind is not None
        repeated = len(region.kind.regions) > 1
        if self.is_chain(inner):
            grouped = any(unit.region is not None for unit in inner)
            if grouped or not (repeated and len(members) >= MIN_CHAIN):
                return inner
        elif not repeated and (len(members) < MIN_SINGLE or len(region.outs) > 1):
            return inner
        return [Unit(prefix, region=region)]

    def is_chain(self, units: list[Unit]) -> bool:
        """Whether each unit but the first reads the one before it and nothing else does."""
        return all(self.follows(after, before) for before, after in pairwise(units))

    def follows(self, unit: Unit, before: Unit) -> bool:
        """Whether a unit reads just the one before, and nothing else reads that."""
        outs = before.outs
        return (
            len(outs) == 1
            and unit.inputs == (outs[0],)
            and self.reads.get(outs[0], 0) == self._reads_by(unit, outs[0])
            and outs[0] not in self.exported
        )

    def _reads_by(self, unit: Unit, value: Value) -> int:
        return sum(node.inputs.count(value) for node in unit.nodes)


def _prefixes(name: str) -> list[str]:
    found = []
    at = name.find(".")
    while at >= 0:
        found.append(name[:at])
        at = name.find(".", at + 1)
    return found
