"""Repetition in a graph: regions that share a path prefix, and which of them are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from archir.ir.graph import Graph, Node, Value
from archir.lang.sharing import Kind
from archir.ops.record import OpSet

_FIXED = ("dtype", "persistent", "buffer")
"""Attributes that are never a block's parameter."""
MIN_CHAIN = 3
"""A plain chain becomes a block if it occurs twice and has as many nodes."""
MIN_SINGLE = 4
"""What occurs once becomes a block if it is no chain and has as many nodes."""
MAX_SOURCES = 4
"""So many tensors may go into a block."""


@dataclass(eq=False)
class Region:
    """The nodes below a path, if few tensors go in.

    Where the first of them joins any number of tensors, it is the ``head`` and stands before.
    """

    prefix: str
    nodes: list[Node]
    sources: list[Value]
    outs: list[Value]
    head: Node | None = None
    kind: Kind | None = None

    @property
    def source(self) -> Value:
        """The piped tensor."""
        return self.sources[0]


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
        return tuple(self.region.sources)

    @property
    def outs(self) -> list[Value]:
        """The values it gives to others."""
        if self.node is not None:
            return [Value(self.node.name, port) for port in range(len(self.node.types))]
        assert self.region is not None
        return self.region.outs


class Plan:
    """What of a graph becomes blocks: units of the arch, and kinds of regions."""

    def __init__(self, graph: Graph, ops: OpSet, kinds: Mapping[str, str] | None = None) -> None:
        self.graph = graph
        self.ops = ops
        self.known = kinds or {}
        """What the scopes are instances of, where that is known."""
        self.fed = _fed(graph)
        order = sorted(graph, key=lambda node: node.name in self.fed)  # what is known comes first
        self.position = {node.name: place for place, node in enumerate(order)}
        self.reads: dict[Value, int] = {}
        for node in graph:
            for value in node.inputs:
                self.reads[value] = self.reads.get(value, 0) + 1
        self.exported = {output.value for output in graph.outputs}
        self._members: dict[str, list[Node]] = {}
        self._sources: dict[str, dict[Value, None]] = {}
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
                        self._sources.setdefault(prefix, {})[value] = None
                for prefix in theirs:
                    if prefix not in mine:
                        self._outs.setdefault(prefix, {})[value] = None
        for value in self.exported:
            for prefix in chains[value.node]:
                self._outs.setdefault(prefix, {})[value] = None

    def _find(self) -> dict[str, Region]:
        found: dict[str, Region] = {}
        for prefix, members in self._members.items():
            sources = list(self._sources.get(prefix, {}))
            outs = self._outs.get(prefix, {})
            nodes = members
            head = self._head(members)
            if head is not None and Value(head.name) not in outs:
                sources, nodes = [Value(head.name)], members[1:]
            else:
                head = None
            most = MAX_SOURCES if prefix in self.known else 1
            if len(nodes) < 2 or not 1 <= len(sources) <= most or not outs:
                continue
            first = self.begin(nodes)
            early = all(self.position[source.node] < first for source in sources)
            late = all(self.position[out.node] >= first for out in outs)
            if early and late and all(node.op != "input" for node in nodes):
                ordered = sorted(outs, key=lambda v: (self.position[v.node], v.port))
                found[prefix] = Region(prefix, nodes, sources, ordered, head)
        return found

    def begin(self, nodes: Sequence[Node]) -> int:
        """The place of the first of some nodes that depends on an input of the network."""
        return self.position[next((n for n in nodes if n.name in self.fed), nodes[0]).name]

    def _head(self, members: list[Node]) -> Node | None:
        """A concatenation that alone reads what goes into a region."""
        first = members[0]
        if first.op != "concat" or Value(first.name) in self.exported:
            return None
        inside = {node.name for node in members}
        if any(value.node in inside for value in first.inputs):
            return None
        rest = {value.node for node in members[1:] for value in node.inputs}
        return first if rest <= inside else None

    def _classify(self) -> None:
        kinds: dict[tuple[object, ...], Kind] = {}
        for region in self.regions.values():
            key = self._key(region)
            kind = kinds.setdefault(key, Kind([], self.graph, self.ops))
            kind.regions.append(region)
            region.kind = kind
        self.kinds = list(kinds.values())

    def _key(self, region: Region) -> tuple[object, ...]:
        """What must agree for two regions to be instances of one block: all but attributes."""
        cut = len(region.prefix) + 1
        number = {node.name: index for index, node in enumerate(region.nodes)}
        sources = {value: -1 - place for place, value in enumerate(region.sources)}
        entries: list[object] = []
        for node in region.nodes:
            inputs = tuple(
                (number[v.node], v.port) if v.node in number else (sources[v], 0)
                for v in node.inputs
            )
            params = tuple(
                (role, path[cut:] if path.startswith(region.prefix + ".") else (path,))
                for role, path in node.params.items()
            )
            ranks = tuple(self.graph.type_of(v).rank for v in node.inputs[:1])
            fixed = repr([node.attrs[name] for name in _FIXED if name in node.attrs])
            entries.append((node.name[cut:], node.op, inputs, params, ranks, fixed))
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
        return self.begin(unit.nodes)

    def _child(self, prefix: str, members: list[Node]) -> list[Unit]:
        inner = self.units(prefix, members)
        region = self.regions.get(prefix)
        if region is None:
            return inner
        assert region.kind is not None
        repeated = len(region.kind.regions) > 1
        if self.is_chain(inner):
            grouped = any(unit.region is not None for unit in inner)
            known = prefix in self.known or not grouped
            if not (repeated and known and len(members) >= MIN_CHAIN):
                return inner
        elif not repeated and (len(region.nodes) < MIN_SINGLE or len(region.outs) > 1):
            return inner
        whole = [Unit(prefix, region=region)]
        return whole if region.head is None else [Unit(region.head.name, node=region.head), *whole]

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


def _fed(graph: Graph) -> set[str]:
    """The nodes that depend on an input of the network."""
    found: set[str] = set()
    for node in graph:
        if node.op == "input" or any(value.node in found for value in node.inputs):
            found.add(node.name)
    return found


def _prefixes(name: str) -> list[str]:
    found = []
    at = name.find(".")
    while at >= 0:
        found.append(name[:at])
        at = name.find(".", at + 1)
    return found
