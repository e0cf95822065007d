"""Axis classes: which axes must change together.

Every axis of every tensor has a *structure*: a sum of segments, each a product of factors, a
factor being a class or a fixed extent. Producers (the output channels of a convolution) open a
class; the signatures carry structures through operators; where two structures meet (the
operands of an addition, the two uses of a tied weight) their classes are joined by union-find.
A flattening makes ``channels * 49`` of a class and a fixed factor, a concatenation makes
several segments, so what follows them needs no special case.

What stops a change is recorded as an :class:`Obstacle` that names the node and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from archir.ir.dims import Size
from archir.ir.graph import Graph, Node, Value
from archir.ops.arithmetic import Array
from archir.ops.infer import Instance, instance_of
from archir.ops.record import OpSet
from archir.ops.signature import Axis, Product

Kind = Literal["produce", "carry", "consume"]
FIXED = -1


class Factor(NamedTuple):
    """A class (by number) or, with number ``FIXED``, a fixed extent."""

    number: int
    size: Size


Segment = tuple[Factor, ...]
Structure = tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a class cannot change, and the node that is to blame."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Member:
    """An axis of a parameter that belongs to a class, and what its operator does with it."""

    node: str
    role: str
    path: str
    axis: int
    kind: Kind
    structure: Structure


@dataclass(frozen=True)
class AxisClass:
    """Axes that change together. Its name is its first producer's path."""

    number: int
    name: str
    size: Size
    members: tuple[Member, ...]
    nodes: tuple[str, ...]
    """The nodes with this class on an axis of an operand, parameter or result."""
    obstacles: tuple[Obstacle, ...]


@dataclass
class _Record:
    size: Size
    origin: str
    obstacles: dict[Obstacle, None] = field(default_factory=dict)


class AxisClasses:
    """The classes of a graph. Building them is linear in the graph's size."""

    def __init__(self, graph: Graph, ops: OpSet) -> None:
        self.graph, self.ops = graph, ops
        self._parent: list[int] = []
        self._records: list[_Record] = []
        self._values: dict[Value, tuple[Structure, ...]] = {}
        self._params: dict[str, tuple[Structure, ...]] = {}
        self.names: dict[str, Mapping[str, Structure]] = {}
        self._uses: list[tuple[Node, str, int, Kind, Structure]] = []
        for node in graph:
            self._visit(node)
        for output in graph.outputs:
            why = f"it is the output `{output.name}` of the network"
            for structure in self._values[output.value]:
                self._block(structure, Obstacle(output.value.node, why))
        self.classes = self._collect()

    def structure(self, value: Value, axis: int) -> Structure:
        """The structure of an axis of a value, classes by their final numbers."""
        return self.resolved(self._values[value][axis])

    def resolved(self, structure: Structure) -> Structure:
        """A structure with every class replaced by its representative."""
        return tuple(
            tuple(Factor(self._find(f.number), f.size) if f.number >= 0 else f for f in segment)
            for segment in structure
        )

    def structure_of(self, node: str, axis: Axis) -> Structure:
        """The structure of an axis expression in the names of a node."""
        use = instance_of(self.graph.node(node), self.graph, self.ops)
        return self.resolved(self._structure(axis, use, self.names[node]))

    # --- union-find -------------------------------------------------------------------

    def _find(self, number: int) -> int:
        root = number
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[number] != root:
            self._parent[number], number = root, self._parent[number]
        return root

    def _fresh(self, size: Size, origin: str) -> Structure:
        number = len(self._parent)
        self._parent.append(number)
        self._records.append(_Record(size, origin))
        return ((Factor(number, size),),)

    def _block(self, structure: Structure, why: Obstacle) -> None:
        for segment in structure:
            for factor in segment:
                if factor.number >= 0:
                    self._records[self._find(factor.number)].obstacles[why] = None

    def _unify(self, a: Structure, b: Structure, node: str) -> None:
        if a == b:
            return
        shape_a = [[f.size for f in s] for s in a]
        if shape_a != [[f.size for f in s] for s in b]:
            why = Obstacle(node, "two axes meet there that are cut into different parts")
            self._block(a, why)
            self._block(b, why)
            return
        for one, two in zip(a, b, strict=True):
            for f, g in zip(one, two, strict=True):
                self._join(f, g, node)

    def _join(self, f: Factor, g: Factor, node: str) -> None:
        if f.number < 0 or g.number < 0:
            why = Obstacle(node, "it meets an axis of fixed extent there")
            self._block(((f, g),), why)
            return
        a, b = self._find(f.number), self._find(g.number)
        if a == b:
            return
        first, second = min(a, b), max(a, b)
        self._parent[second] = first
        self._records[first].obstacles.update(self._records[second].obstacles)

    # --- one node ---------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        if node.op == "input":
            why = f"it is the input `{node.name}` of the network"
            shapes = tuple(self._fresh(size, node.name) for size in node.types[0].shape)
            for structure in shapes:
                self._block(structure, Obstacle(node.name, why))
            self._values[Value(node.name)] = shapes
            self.names[node.name] = {}
            return
        use = instance_of(node, self.graph, self.ops)
        env = self._read_operands(node, use)
        self._read_params(node, use, env)
        for port, axes in enumerate(use.axes.results):
            self._values[Value(node.name, port)] = tuple(
                self._structure(axis, use, env) for axis in axes
            )
        self.names[node.name] = env

    def _read_operands(self, node: Node, use: Instance) -> dict[str, Structure]:
        env: dict[str, Structure] = {}
        results = {n for axes in use.axes.results for axis in axes for n in axis.names()}
        weights = {n for axes in use.axes.params.values() for axis in axes for n in axis.names()}
        for value, axes in zip(node.inputs, use.axes.operands, strict=True):
            for axis, found in zip(axes, self._values[value], strict=True):
                structure = _fixed(found) if axis.opaque else found
                if axis.opaque:
                    why = f"`{node.op}` mixes the entries of that axis"
                    self._block(found, Obstacle(node.name, why))
                elif not (results | weights).intersection(axis.names()):
                    what = "reduces over" if axis.names() else "stretches"
                    why = f"`{node.op}` {what} that axis"
                    self._block(structure, Obstacle(node.name, why))
                self._bind(node, axis, structure, use, env)
        return env

    def _bind(
        self, node: Node, axis: Axis, structure: Structure, use: Instance, env: dict[str, Structure]
    ) -> None:
        """Give the names of an operand's axis their structures."""
        if len(axis.terms) > 1:
            parts = _partition(structure, [_extent(t, use) for t in axis.terms])
        else:
            parts = [structure]
        for index, term in enumerate(axis.terms):
            names = _kept(term, use)
            if not names:
                continue
            factors = None
            if parts is not None:
                factors = _factorise(parts[index], [use.sizes[n] for n in names])
            if factors is None:
                why = f"`{node.op}` cuts that axis into parts that do not match it"
                if "groups" in node.attrs:
                    why = f"its {node.attrs['groups']} groups hold several channels each"
                self._block(structure, Obstacle(node.name, why))
                factors = [((Factor(FIXED, use.sizes[n]),),) for n in names]
            for name, part in zip(names, factors, strict=True):
                if name in env:
                    self._unify(env[name], part, node.name)
                else:
                    env[name] = part

    def _read_params(self, node: Node, use: Instance, env: dict[str, Structure]) -> None:
        operand = set(env)
        results = {n for axes in use.axes.results for axis in axes for n in axis.names()}
        for role, axes in use.axes.params.items():
            if role not in node.params:
                continue
            for axis in axes:
                for name in (n for term in axis.terms for n in _kept(term, use)):
                    if name not in env and name in results:
                        env[name] = self._fresh(use.sizes[name], node.name)
            structures = tuple(self._structure(axis, use, env) for axis in axes)
            earlier = self._params.setdefault(node.params[role], structures)
            for one, two in zip(earlier, structures, strict=True):
                self._unify(one, two, node.name)
            for index, axis in enumerate(axes):
                for name in (n for term in axis.terms for n in _kept(term, use)):
                    kind: Kind = "produce"
                    if name in operand:
                        kind = "carry" if name in results else "consume"
                    if name in env:
                        self._uses.append((node, role, index, kind, env[name]))

    def _structure(self, axis: Axis, use: Instance, env: Mapping[str, Structure]) -> Structure:
        segments: list[Segment] = []
        for term in axis.terms:
            spread: list[Segment] = [()]
            kept = _kept(term, use, env)
            if not kept:
                spread = [(Factor(FIXED, _extent(term, use)),)]
            for name in kept:
                part = env.get(name, ((Factor(FIXED, use.sizes[name]),),))
                if len(part) > 1 and name != kept[0]:
                    part = self._merged(part, use.sizes[name])
                spread = [left + right for left in spread for right in part]
            segments.extend(spread)
        return tuple(segments)

    def _merged(self, part: Structure, size: Size) -> Structure:
        self._block(part, Obstacle("", "a concatenation is repeated inside a product of axes"))
        return ((Factor(FIXED, size),),)

    # --- the result -------------------------------------------------------------------

    def _collect(self) -> dict[int, AxisClass]:
        members: dict[int, dict[Member, None]] = {}
        kinds: dict[tuple[int, str, int], dict[Kind, str]] = {}
        for node, role, axis, kind, part in self._uses:
            path = node.params[role]
            structure = self.resolved(self._params[path][axis])
            for number in _classes(self.resolved(part)):
                member = Member(node.name, role, path, axis, kind, structure)
                members.setdefault(number, {})[member] = None
                kinds.setdefault((number, path, axis), {}).setdefault(kind, node.name)
        for (number, path, _), found in kinds.items():
            if len(found) > 1 and "consume" in found:
                why = f"the tied weight `{path}` is read there in another role"
                self._records[number].obstacles[Obstacle(list(found.values())[-1], why)] = None
        nodes: dict[int, dict[str, None]] = {}
        for name, env in self.names.items():
            for structure in env.values():
                for number in _classes(self.resolved(structure)):
                    nodes.setdefault(number, {})[name] = None
        classes: dict[int, AxisClass] = {}
        for number, record in enumerate(self._records):
            if self._find(number) != number:
                continue
            own = tuple(members.get(number, {}))
            name = next((m.node for m in own if m.kind == "produce"), record.origin)
            classes[number] = AxisClass(
                number,
                name,
                record.size,
                own,
                tuple(nodes.get(number, {})),
                tuple(record.obstacles),
            )
        return classes


def _classes(structure: Structure) -> set[int]:
    return {f.number for segment in structure for f in segment if f.number >= 0}


def _fixed(structure: Structure) -> Structure:
    return tuple(tuple(Factor(FIXED, f.size) for f in segment) for segment in structure)


def _kept(term: Product, use: Instance, env: Mapping[str, Structure] | None = None) -> list[str]:
    """The names of a product without those of size 1 (the last stays if all are).

    A name that ``env`` knows to hold a class stays too: its size can change.
    """
    names = [f for f in term if isinstance(f, str)]
    kept = [n for n in names if use.sizes.get(n) != 1 or (env and _classes(env.get(n, ())))]
    return kept or names[-1:]


def _extent(term: Product, use: Instance) -> Size:
    total: Size = 1
    for factor in term:
        size = use.sizes[factor] if isinstance(factor, str) else factor
        assert isinstance(size, int)
        assert isinstance(total, int)
        total *= size
    return total


def _segment_size(segment: Segment) -> Size:
    total: Size = 1
    for factor in segment:
        if not isinstance(factor.size, int) or not isinstance(total, int):
            return factor.size if total == 1 else total
        total *= factor.size
    return total


def _partition(structure: Structure, sizes: list[Size]) -> list[Structure] | None:
    """Cut a sum of segments into consecutive sums of given sizes, if cuts fall between segments."""
    parts: list[Structure] = []
    rest = list(structure)
    for size in sizes:
        taken: list[Segment] = []
        total: Size = 0
        while rest and total != size:
            extent = _segment_size(rest[0])
            if not isinstance(extent, int) or not isinstance(total, int):
                return None
            total += extent
            taken.append(rest.pop(0))
        if total != size:
            return None
        parts.append(tuple(taken))
    return parts if not rest else None


def _factorise(structure: Structure, sizes: list[Size]) -> list[Structure] | None:
    """Read a structure as a product of names of given sizes, the first slowest."""
    if len(sizes) == 1:
        return [structure]
    if len(structure) != 1:
        return None
    parts: list[Structure] = []
    rest = list(structure[0])
    for size in sizes:
        taken: list[Factor] = []
        while rest and _segment_size(tuple(taken)) != size:
            taken.append(rest.pop(0))
        if not taken or _segment_size(tuple(taken)) != size:
            return None
        parts.append((tuple(taken),))
    return parts if not rest else None


def lift(structure: Structure, number: int, entries: Array) -> tuple[Array, int]:
    """Spread a gather of a class over an axis that holds it.

    ``entries`` gives the old index for each new index of the class. Returns the gather of the
    whole axis, int64, and the axis's old size.
    """
    pieces = []
    start = 0
    for segment in structure:
        held = np.zeros(1, np.int64)
        old = 1
        for factor in segment:
            assert isinstance(factor.size, int)
            step = entries if factor.number == number else np.arange(factor.size)
            held = (held[:, None] * factor.size + step[None, :]).reshape(-1)
            old *= factor.size
        pieces.append(held + start)
        start += old
    return np.concatenate(pieces), start
