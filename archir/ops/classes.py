"""Axis classes: which axes must change together.

Every axis of every tensor has a *structure* (:mod:`archir.ops.structure`). Producers (the
output channels of a convolution) open a class; the signatures carry structures through
operators; where two structures meet (the operands of an addition, the two uses of a tied
weight) their classes are joined, cut first where they are made of different parts.

What stops a change is recorded as an :class:`Obstacle` that names the node and says why; what
stops only some changes (a layer norm averages over the axis) as a :class:`Need`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from typing import Literal

from archir.ir.dims import Size, product
from archir.ir.graph import Graph, Node, Value
from archir.ir.hash import numbering
from archir.ir.memory import uncollected
from archir.ops.forest import Condition, Forest, Need, Obstacle
from archir.ops.infer import Instance, equations_of, instance_of
from archir.ops.record import Op, OpSet
from archir.ops.signature import Axis, Product
from archir.ops.structure import Segment, Structure, fixed, leaves

Kind = Literal["produce", "carry", "consume"]

LABELS: Mapping[str, tuple[str, str]] = {"g": ("groups", "group"), "h": ("heads", "head")}
"""What the two parts of a product are called, by the name of its slow axis."""


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
    needs: tuple[Need, ...] = ()
    label: str = ""
    """Which part of its producer's axis it is, where that has been cut (``heads``)."""
    site: str = ""
    """Its name and label, and what else tells it from others (``attn.qkv.heads``)."""


class AxisClasses:
    """The classes of a graph. Building them is linear in the graph's size."""

    def __init__(self, graph: Graph, ops: OpSet) -> None:
        self.graph, self.ops = graph, ops
        self._forest = Forest()
        self._values: dict[Value, tuple[Structure, ...]] = {}
        self._params: dict[str, tuple[Structure, ...]] = {}
        self.names: dict[str, Mapping[str, Structure]] = {}
        self._uses: list[tuple[Node, str, int, Kind, Structure]] = []
        with uncollected():
            # Where axes meet first decides how they are cut. In the canonical order of the nodes
            # that does not depend on the order in which a text states them.
            for name in numbering(graph).nodes:
                self._visit(graph.node(name))
            place = {node.name: j for j, node in enumerate(graph)}
            self.names = {node.name: self.names[node.name] for node in graph}
            self._uses.sort(key=lambda use: place[use[0].name])
            for output in graph.outputs:
                why = f"it is the output `{output.name}` of the network"
                for structure in self._values[output.value]:
                    self._forest.block(structure, Obstacle(output.value.node, why))
            self.classes = self._collect()
        self.sites = {c.site: c for c in self.classes.values() if c.members and not c.obstacles}
        self.by_node: dict[str, dict[int, AxisClass]] = {}
        """The classes that have a parameter of a node as a member."""
        for number, held in self.classes.items():
            for member in held.members:
                self.by_node.setdefault(member.node, {})[number] = held

    def structure(self, value: Value, axis: int) -> Structure:
        """The structure of an axis of a value, classes by their final numbers."""
        return self.resolved(self._values[value][axis])

    def resolved(self, structure: Structure) -> Structure:
        """A structure with every class replaced by its representative, or by its parts."""
        return self._forest.resolve(structure)

    def structure_of(self, node: str, axis: Axis) -> Structure:
        """The structure of an axis expression in the names of a node."""
        use = instance_of(self.graph.node(node), self.graph, self.ops)
        return self.resolved(self._structure(axis, use, self.names[node]))

    # --- one node ---------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        forest = self._forest
        forest.node = node.name
        if node.op == "input":
            why = f"it is the input `{node.name}` of the network"
            shapes = tuple(forest.fresh(size, node.name) for size in node.types[0].shape)
            for structure in shapes:
                forest.block(structure, Obstacle(node.name, why))
            self._values[Value(node.name)] = shapes
            self.names[node.name] = {}
            return
        use = instance_of(node, self.graph, self.ops)
        env = self._read_operands(node, use)
        self._read_params(node, use, env)
        for name, attr in _stated_with_others(self.ops[node.op]).items():
            if name in env:
                self._block(env[name], f"`{attr}` of `{node.op}` is its size and another axis's")
        for port, axes in enumerate(use.axes.results):
            self._values[Value(node.name, port)] = tuple(
                self._structure(axis, use, env) for axis in axes
            )
        self.names[node.name] = env

    def _read_operands(self, node: Node, use: Instance) -> dict[str, Structure]:
        env: dict[str, Structure] = {}
        shapes = (*use.axes.results, *use.axes.params.values())
        held = {n for axes in shapes for axis in axes for n in axis.names()}
        counts = Counter(
            n for axes in use.axes.operands for n in {n for a in axes for n in a.names()}
        )
        for value, axes in zip(node.inputs, use.axes.operands, strict=True):
            for axis, structure in zip(axes, self._values[value], strict=True):
                if axis.opaque:
                    why = f"`{node.op}` {self.ops[node.op].opaque}"
                    self._block(structure, why)
                    env.update((n, fixed(use.sizes[n])) for n in axis.names() if n not in env)
                    continue
                self._bind(node, axis, structure, use, env)
                if axis.even:
                    self._average(node, axis, env)
        level = {t[-1] for axes in use.axes.operands for a in axes if a.even for t in a.terms}
        for number in self.ops[node.op].divided(node.attrs):
            for structure in self._values[node.inputs[number]]:
                self._require(structure, "copies", f"`{node.op}` has no value where it is 0")
        summed = [n for n in counts if n not in held | level and not n.startswith("_")]
        for name in summed:
            if name in env:
                self._contract(node, name, env[name], counts[name])
        return env

    def _block(self, structure: Structure, reason: str) -> None:
        self._forest.block(structure, Obstacle(self._forest.node, reason))

    def _require(self, structure: Structure, condition: Condition, reason: str) -> None:
        self._forest.require(structure, Need(self._forest.node, condition, reason))

    def _average(self, node: Node, axis: Axis, env: Mapping[str, Structure]) -> None:
        reason = f"`{node.op}` averages over that axis"
        for name in (term[-1] for term in axis.terms):
            if isinstance(name, str) and name in env:
                self._require(env[name], "even", reason)

    def _contract(self, node: Node, name: str, part: Structure, operands: int) -> None:
        """A sum over an axis that no weight reads."""
        if name in self.ops[node.op].rescale:
            reason = f"`{node.op}` sums over that axis, and its scale is one for all"
            self._require(part, "even", reason)
        elif operands > 1:
            self._require(part, "bijective", f"`{node.op}` sums over that axis without a weight")
        else:
            self._block(part, f"`{node.op}` reduces over that axis")

    def _bind(
        self, node: Node, axis: Axis, structure: Structure, use: Instance, env: dict[str, Structure]
    ) -> None:
        """Give the names of an operand's axis their structures."""
        forest = self._forest
        parts: list[Structure] | None = [structure]
        if len(axis.terms) > 1:
            parts = forest.partition(structure, [_extent(t, use) for t in axis.terms])
        for index, term in enumerate(axis.terms):
            names = _kept(term, use)
            if not names:
                if parts is not None:
                    self._block(parts[index], f"`{node.op}` wants a single entry there")
                continue
            found = self._factors(node, names, parts[index], use) if parts is not None else None
            if found is None:
                self._block(
                    structure, f"`{node.op}` cuts that axis into parts that do not match it"
                )
                found = [fixed(use.sizes[n] if isinstance(n, str) else n) for n in names]
            for name, part in zip(names, found, strict=True):
                if isinstance(name, int):
                    self._block(part, f"`{node.op}` makes {name} equal parts of that axis")
                elif name in env:
                    forest.unify(env[name], part)
                else:
                    env[name] = part

    def _factors(
        self, node: Node, names: list[str | int], structure: Structure, use: Instance
    ) -> list[Structure] | None:
        """An axis read as a product of names, the first slowest."""
        found: list[Structure] = []
        for place in range(len(names) - 1, 0, -1):
            name = names[place]
            size = use.sizes[name] if isinstance(name, str) else name
            if not isinstance(size, int):
                return None
            labels = LABELS.get(str(names[0]), ("outer", "inner"))
            halves = self._forest.factorise(structure, size, labels)
            if halves is None:
                return None
            structure, inner = halves
            found.insert(0, inner)
        return [structure, *found]

    def _read_params(self, node: Node, use: Instance, env: dict[str, Structure]) -> None:
        operand = set(env)
        results = {n for axes in use.axes.results for axis in axes for n in axis.names()}
        for role, axes in use.axes.params.items():
            if role not in node.params:
                continue
            for axis in axes:
                for name in (n for term in axis.terms for n in _names(term, use)):
                    if name not in env and (name in results or axis.opaque):
                        env[name] = self._forest.fresh(use.sizes[name], node.name)
                    if axis.opaque:
                        self._block(env[name], f"`{node.op}` picks its entries by their numbers")
            structures = tuple(self._structure(axis, use, env) for axis in axes)
            earlier = self._params.setdefault(node.params[role], structures)
            for one, two in zip(earlier, structures, strict=True):
                self._forest.unify(one, two)
            for index, axis in enumerate(axes):
                for name in (n for term in axis.terms for n in _names(term, use, env)):
                    kind: Kind = "consume" if axis.opaque else "produce"
                    if name in operand:
                        kind = "carry" if name in results else "consume"
                    if name in env:
                        self._uses.append((node, role, index, kind, env[name]))

    def _structure(self, axis: Axis, use: Instance, env: Mapping[str, Structure]) -> Structure:
        segments: list[Segment] = []
        for term in axis.terms:
            if any((use.sizes[f] if isinstance(f, str) else f) == 0 for f in term):
                continue  # a padding of nothing
            spread: list[Segment] = [()]
            for place, name in enumerate(_kept(term, use, env)):
                if isinstance(name, int):
                    part = fixed(name)
                else:
                    part = env.get(name) or fixed(use.sizes[name])
                if len(part) > 1 and place:
                    part = self._one(part, use.sizes[name] if isinstance(name, str) else name)
                spread = [left + right for left in spread for right in part]
            segments.extend(spread if spread != [()] else fixed(_extent(term, use)))
        return tuple(segments)

    def _one(self, part: Structure, size: Size) -> Structure:
        """A sum as one factor."""
        if not any(True for _ in leaves(self._forest.resolve(part))):
            return fixed(size)
        return ((self._forest.composite(part, self._forest.node),),)

    # --- the result -------------------------------------------------------------------

    def _collect(self) -> dict[int, AxisClass]:
        members: dict[int, dict[Member, None]] = {}
        kinds: dict[tuple[int, str, int], dict[Kind, str]] = {}
        for node, role, axis, kind, part in self._uses:
            path = node.params[role]
            structure = self.resolved(self._params[path][axis])
            for number in set(leaves(self.resolved(part))):
                member = Member(node.name, role, path, axis, kind, structure)
                members.setdefault(number, {})[member] = None
                kinds.setdefault((number, path, axis), {}).setdefault(kind, node.name)
        for (number, path, _), found in kinds.items():
            if len(found) > 1 and "consume" in found:
                why = f"the tied weight `{path}` makes that axis and reads it too"
                need = Need(list(found.values())[-1], "alike", why)
                self._forest.records[number].needs[need] = None
        nodes: dict[int, dict[str, None]] = {}
        for name, env in self.names.items():
            for structure in env.values():
                for number in leaves(self.resolved(structure)):
                    nodes.setdefault(number, {})[name] = None
        classes: dict[int, AxisClass] = {}
        for number, record in enumerate(self._forest.records):
            if not self._forest.is_class(number):
                continue
            own = tuple(members.get(number, {}))
            maker = next((m for m in own if m.kind == "produce"), None)
            whole = maker is not None and [len(s) for s in maker.structure] == [1]
            classes[number] = AxisClass(
                number,
                maker.node if maker is not None else record.origin,
                record.size,
                own,
                tuple(nodes.get(number, {})),
                tuple(record.obstacles),
                tuple(record.needs),
                "" if whole else record.label,
            )
        place = {name: j for j, name in enumerate(self.names)}
        ordered = sorted(classes.values(), key=lambda held: (place[held.name], held.number))
        return _named({held.number: held for held in ordered}, set(self.names))


def _named(classes: Mapping[int, AxisClass], nodes: set[str]) -> dict[int, AxisClass]:
    """Every class with a site of its own, which is no other node's name."""
    alike: dict[tuple[str, str], list[AxisClass]] = {}
    for held in classes.values():
        if held.members and not held.obstacles:
            alike.setdefault((held.name, held.label), []).append(held)
    sites: dict[int, str] = {}
    taken: set[str] = set()
    for (name, label), group in alike.items():
        for place, held in enumerate(group, 1):
            site = f"{name}.{label}" if label else name
            if len(group) > 1:
                axes = [m.axis for m in held.members if m.node == name and m.kind == "produce"]
                site = f"{site}{place}" if label or not axes else f"{name}.axis{axes[0]}"
            for other in count(1):
                if site not in taken and (site == name or site not in nodes):
                    break
                site = f"{name}.part{other}"
            taken.add(site)
            sites[held.number] = site
    return {n: replace(held, site=sites.get(n, held.name)) for n, held in classes.items()}


@lru_cache(maxsize=256)
def _stated_with_others(op: Op) -> Mapping[str, str]:
    """Names that an attribute states together with others, and the attribute."""
    alone = [(axis.names(), attr) for axis, attr in equations_of(op) if isinstance(axis, Axis)]
    uses = Counter(attr for names, attr in alone if len(names) == 1)
    return {names[0]: attr for names, attr in alone if len(names) == 1 and uses[attr] > 1}


def _names(term: Product, use: Instance, env: Mapping[str, Structure] | None = None) -> list[str]:
    """The names among the factors that are kept."""
    return [n for n in _kept(term, use, env) if isinstance(n, str)]


def _kept(
    term: Product, use: Instance, env: Mapping[str, Structure] | None = None
) -> list[str | int]:
    """The factors of a product without those of size 1 (the last name stays if all are).

    A name that ``env`` knows to hold a class stays too: its size can change.
    """
    if len(term) == 1 and isinstance(term[0], str):
        return [term[0]]

    def stays(factor: str | int) -> bool:
        if isinstance(factor, int):
            return factor != 1
        return use.sizes.get(factor) != 1 or bool(env and _holds_class(env.get(factor, ())))

    kept = [f for f in term if stays(f)]
    return kept or list(term[-1:] if isinstance(term[-1], str) else ())


def _holds_class(structure: Structure) -> bool:
    return any(factor.number >= 0 for segment in structure for factor in segment)


def _extent(term: Product, use: Instance) -> Size:
    return product(use.sizes[f] if isinstance(f, str) else f for f in term)
