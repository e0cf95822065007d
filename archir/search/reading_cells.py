"""The cells of any network, as operations on edges: what NAT changes, and by which rules.

An edge is what a rule of ``rewrites/nat.rule`` finds: the rules are asked, so that what is read can
be rewritten. A sum of two tensors is a node; so is what an edge makes that does not go into such a
sum alone, its second edge being a null from an input. Everything else lies between cells: what it
makes is an input of theirs. A cell is all nodes that hang together, through edges or through an
input that they share, as far as none of its inputs depends on it, and none lies in another scope
(`cells.3` and `cells.4`). What lies in a scope whose name begins with `preprocess`, as all code
that descends from DARTS calls it, adapts a cell's input and belongs to none.

Importing this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from archir.api import Application, Network, library
from archir.diag import error
from archir.ir.graph import Graph, Node, Value
from archir.ir.types import AttrValue
from archir.ops import installed_ops
from archir.rewrite.library import Library
from archir.rewrite.match import Match, Matcher
from archir.rewrite.sites import Planner
from archir.search.cells import NULL, OPS, SKIP, Cell, Edge, targets

IMAGES = 4
"""The rank of what goes along edges: images with channels."""

_CROSSED = {f"conv_1x{k}_{k}x1": k for k in (3, 7)}

_SKIP, _ADD = "nat.skip_to_null.named", "nat.null_to_skip.named"
_HALVED = "nat.skip_to_null.halved"
_CLEAN = "drop.null"

_FOUND_BY: Sequence[tuple[str, str, Mapping[str, AttrValue]]] = (
    *((f"nat.{kind}_to_null", kind, {}) for kind in ("conv", "sep", "dil", "max", "avg")),
    ("nat.max_to_null.even", "max", {}),
    ("nat.avg_to_null.even", "avg", {}),
    *(
        ("nat.crossed_to_null", "crossed", {"kernel": kernel, "stride": stride})
        for kernel in _CROSSED.values()
        for stride in (1, 2)
    ),
    (_HALVED, "halved", {}),
)
"""The rule that finds an operation (it makes a null of it), its kind, the rule's arguments."""


@dataclass(frozen=True)
class Place:
    """Where an edge of a cell stands in a network."""

    at: str
    """The node that hands over what the edge makes; of a skip, and of an edge that is absent, the
    sum or the node that it leads to."""
    source: str
    """The tensor that it comes from."""
    present: bool = True
    """False for the null that a node with one edge has besides: nothing stands there."""


@dataclass(frozen=True)
class FoundCell:
    """Equal cells of a network: the same operations between the same nodes."""

    cell: Cell
    """An edge that is absent counts as one that halves the image where its input has another
    shape: it cannot become a skip."""
    places: tuple[tuple[Place, ...], ...]
    """For each edge where it stands in each of the equal cells."""
    graph: Graph = field(repr=False, compare=False)

    @property
    def count(self) -> int:
        """How many equal cells there are."""
        return len(self.places[0])

    @property
    def names(self) -> tuple[str, ...]:
        """What to call each: the scope that its nodes share, or its last node."""
        found = []
        for copy in range(self.count):
            paths = [place[copy].at for place in self.places]
            found.append(_shared(paths) or paths[-1])
        return tuple(found)


def read_cells(graph: Graph) -> list[FoundCell]:
    """The cells of a network, in the order in which each first occurs.

    Args:
        graph: Any network; where it has no cells the list is empty.
    """
    return _Reader(graph).cells()


def applications(found: FoundCell, edge: int, target: str) -> list[Application]:
    """The rules that give an edge another operation, in all the equal cells.

    Where an operation would cost more than what is there (a separable convolution of two channels)
    no rule applies, and the place stays as it is. See :func:`rewriting` for several edges.

    Args:
        found: Equal cells.
        edge: The place of the edge in ``found.cell.edges``.
        target: The operation that it gets.

    Raises:
        ArchirError: A771, it cannot become that.
    """
    old = found.cell.edges[edge]
    if target not in OPS or target not in targets("nat++", old.op, strided=old.strided):
        where = "an edge that halves the image" if old.strided else "an edge"
        raise error("A771", f"{where} cannot turn from {old.op} into {target}")
    if target == old.op:
        return []
    made = [_application(old, place, target) for place in found.places[edge]]
    return [use for use in made if _applies(found.graph, use)]


def rewriting(found: Sequence[FoundCell], chosen: Sequence[Sequence[str]]) -> list[Application]:
    """The rules that give all edges of all cells other operations, in an order in which they apply.

    Args:
        found: The cells of a network.
        chosen: For each cell an operation for each edge.

    Raises:
        ArchirError: A771, an edge cannot become what was chosen.
    """
    uses = [
        use
        for cell, ops in zip(found, chosen, strict=True)
        for edge, op in enumerate(ops)
        for use in applications(cell, edge, op)
    ]
    # What names a tensor comes first: others may take that tensor away.
    first = (_SKIP, _ADD)
    return sorted(uses, key=lambda u: first.index(u.rule) if u.rule in first else len(first))


def settled(cell: Cell, ops: Sequence[str]) -> list[str]:
    """Operations with those that would work on zeros alone taken out.

    A node that only nulls lead to holds zeros: each edge that leaves it becomes null too, which
    every operation may. Of a convolution that takes away what its batch norm makes of zeros, a
    number for each channel.

    Args:
        cell: The cell as it was.
        ops: An operation for each of its edges.
    """
    found = list(ops)
    held = dict.fromkeys(range(cell.inputs), False)
    for node in range(cell.inputs, cell.nodes):
        pair = [k for k, edge in enumerate(cell.edges) if edge.target == node]
        for k in pair:
            if held[cell.edges[k].source]:
                found[k] = NULL
        held[node] = all(found[k] == NULL for k in pair)
    return found


def planned(network: Network, uses: Sequence[Application]) -> Graph:
    """What rules make of a network's graph, without the checks of :func:`archir.api.rewrite`.

    Raises:
        ArchirError: A30x, A605, one does not apply.
    """
    graph = network.graph
    for use in uses:
        planner = Planner(graph, network.ops)
        graph = planner.plan(network.rule(use.rule), use.at or "", use.arguments).after
    return graph


def cleaning(network: Network, uses: Sequence[Application]) -> list[Application]:
    """The rules that take zeros out of sums, and with them what nothing reads any more.

    Args:
        network: A network.
        uses: What is done with it before, see :func:`rewriting`.
    """
    graph = planned(network, uses)
    found: list[Application] = []
    rule = network.rule(_CLEAN)
    while sites := Planner(graph, network.ops).sites(rule):
        graph = Planner(graph, network.ops).plan(rule, sites[0].at, {}).after
        found.append(Application(_CLEAN, sites[0].at))
    return found


def _application(edge: Edge, place: Place, target: str) -> Application:
    source: dict[str, AttrValue] = {"source": place.source}
    if edge.op == NULL:
        if place.present:
            return Application("nat.null_to_skip", place.at)
        return Application(_ADD, place.at, source)
    if edge.op == SKIP:
        return (
            Application(_HALVED, place.at) if edge.strided else Application(_SKIP, place.at, source)
        )
    (kind, k), (into, kernel) = _kind(edge.op), _kind(target)
    arguments: dict[str, AttrValue] = {}
    if kind == "crossed":
        arguments = {"kernel": k, "stride": 1 + edge.strided} if into == NULL else {"kernel": k}
    elif into not in (SKIP, NULL):
        arguments = {"kernel": kernel}
    even = ".even" if kind in ("max", "avg") and k % 2 == 0 else ""
    return Application(f"nat.{kind}_to_{into.removesuffix('_connect')}{even}", place.at, arguments)


def _kind(op: str) -> tuple[str, int]:
    """What rules call an operation, and its kernel."""
    if op in (SKIP, NULL):
        return op, 0
    if op in _CROSSED:
        return "crossed", _CROSSED[op]
    return op.partition("_")[0], int(op[-1])


@lru_cache(maxsize=1)
def _rules() -> Library:
    return library(installed_ops())


def _applies(graph: Graph, use: Application) -> bool:
    matcher = Matcher(_rules()[use.rule], graph, installed_ops(), use.arguments)
    return use.at is not None and isinstance(matcher.at(graph.node(use.at)), Match)


@dataclass(frozen=True)
class _Op:
    """An operation in the network."""

    op: str
    source: Value
    end: str
    strided: bool
    inside: frozenset[str]
    """All its nodes, its end included."""


@dataclass
class _Group:
    """Nodes of one cell."""

    members: list[str]
    bits: int
    inputs: set[Value]


class _Reader:
    """Reads the cells of one network."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.place = {node.name: k for k, node in enumerate(graph)}
        self.ops = {op.end: op for op in self._operations()}
        self.sums = {node.name for node in graph if self._is_sum(node)}
        self.into: dict[str, str] = {}
        """Operations whose only reader is a sum, and that sum."""
        for end in self.ops:
            readers = graph.readers(end)
            if len(readers) == 1 and readers[0][0].name in self.sums and not graph.is_output(end):
                self.into[end] = readers[0][0].name
        self.nodes = [
            node.name
            for node in graph
            if node.name in self.sums or (node.name in self.ops and node.name not in self.into)
        ]
        self.bit = {name: 1 << k for k, name in enumerate(self.nodes)}
        self.before = self._ancestors()

    def cells(self) -> list[FoundCell]:
        """The cells, equal ones together."""
        found: dict[Cell, list[tuple[Place, ...]]] = {}
        for group in self._groups():
            cell, places = self._cell(group)
            found.setdefault(cell, []).append(places)
        return [
            FoundCell(cell, tuple(zip(*copies, strict=True)), self.graph)
            for cell, copies in found.items()
        ]

    # --- what the network holds -----------------------------------------------------------------

    def _operations(self) -> Iterable[_Op]:
        for node in self.graph:
            if node.op == "null" and self._is_image(node.inputs[0]):
                strided = node.attrs["stride"] != 1
                yield _Op(NULL, node.inputs[0], node.name, strided, frozenset({node.name}))
        for name, kind, arguments in _FOUND_BY:
            rule = _rules()[name]
            for match in Matcher(rule, self.graph, installed_ops(), arguments).all():
                op = _op_of(kind, {**match.scalars, **arguments})
                inside = frozenset(node.name for node in match.nodes.values())
                if op is None or _adapts(inside):
                    continue
                strided = kind == "halved" or match.scalars.get("s", arguments.get("stride")) != 1
                yield _Op(op, match.variables["x"], match.root, strided, inside)

    def _is_image(self, value: Value) -> bool:
        return len(self.graph.type_of(value).shape) == IMAGES

    def _is_sum(self, node: Node) -> bool:
        shapes = {self.graph.type_of(value).shape for value in (*node.inputs, Value(node.name))}
        pair = node.op == "add" and len(node.inputs) == len(("one", "other"))
        return pair and len(shapes) == 1 and self._is_image(Value(node.name))

    def _ancestors(self) -> dict[str, int]:
        """For each node of the network the cells' nodes that it depends on, itself included."""
        found: dict[str, int] = {}
        for node in self.graph:
            bits = self.bit.get(node.name, 0)
            for value in node.inputs:
                bits |= found[value.node]
            found[node.name] = bits
        return found

    # --- which nodes are one cell's --------------------------------------------------------------

    def _edges(self, name: str) -> list[_Op]:
        """The edges that lead to a node; a skip has no end of its own."""
        if name not in self.sums:
            return [self.ops[name]]
        found = []
        for value in self.graph.node(name).inputs:
            ends_here = value.port == 0 and self.into.get(value.node) == name
            skip = _Op(SKIP, value, "", strided=False, inside=frozenset())
            found.append(self.ops[value.node] if ends_here else skip)
        return found

    def _groups(self) -> list[_Group]:
        groups: dict[str, _Group] = {}
        readers: dict[Value, list[str]] = {}
        for name in self.nodes:
            sources = [edge.source for edge in self._edges(name)]
            group = _Group([name], self.bit[name], {s for s in sources if s.node not in self.bit})
            groups[name] = group
            beside = [other for s in sources for other in reversed(readers.get(s, []))]
            near = [s.node for s in sources if s.node in self.bit]
            for other in [*near, *beside]:
                group = self._merged(group, groups[other], groups)
            for source in sources:
                readers.setdefault(source, []).append(name)
        return list({id(group): group for group in groups.values()}.values())

    def _merged(self, one: _Group, other: _Group, groups: dict[str, _Group]) -> _Group:
        """Both as one group where they are of one cell; else the first."""
        bits = one.bits | other.bits
        members = sorted({*one.members, *other.members}, key=self.place.__getitem__)
        outside = {
            edge.source.node
            for name in members
            for edge in self._edges(name)
            if not self.bit.get(edge.source.node, 0) & bits
        }
        if one is other or any(self.before[source] & bits for source in outside):
            return one
        if not self._of_one_scope(one.members, other.members):
            return one
        joined = _Group(members, bits, one.inputs | other.inputs)
        groups.update((name, joined) for name in members)
        return joined

    def _of_one_scope(self, some: Sequence[str], others: Sequence[str]) -> bool:
        """Whether no sum of one group lies beside the scope of the other's."""
        for one in some:
            for other in others:
                if one not in self.sums and other not in self.sums:
                    continue
                pair = [one.rpartition(".")[0].split("."), other.rpartition(".")[0].split(".")]
                short, long = sorted(pair, key=len)
                if short != [""] and long[: len(short)] != short:
                    return False
        return True

    # --- a group as a cell -----------------------------------------------------------------------

    def _cell(self, group: _Group) -> tuple[Cell, tuple[Place, ...]]:
        values = {edge.source for name in group.members for edge in self._edges(name)}
        inputs = self._in_order(v for v in values if not self.bit.get(v.node, 0) & group.bits)
        number = {value: k for k, value in enumerate(inputs)}
        edges: list[Edge] = []
        places: list[Place] = []
        for target, name in enumerate(group.members, len(inputs)):
            number[Value(name)] = target
            held = self._edges(name)
            if len(held) == 1:
                fit = [v for v in inputs if self._shape(v) == self._shape(Value(name))]
                source = [*fit, *inputs][0]
                edges.append(Edge(NULL, number[source], target, strided=not fit))
                places.append(Place(name, str(source), present=False))
            for edge in held:
                edges.append(Edge(edge.op, number[edge.source], target, strided=edge.strided))
                places.append(Place(edge.end or name, str(edge.source)))
        inside = {name for m in group.members for edge in self._edges(m) for name in edge.inside}
        inside |= set(group.members)
        output = tuple(number[Value(name)] for name in group.members if self._leaves(name, inside))
        return Cell(tuple(edges), output, len(inputs)), tuple(places)

    def _in_order(self, inputs: Iterable[Value]) -> list[Value]:
        """As the network has them; `preprocess0` before `preprocess1`, however it was rewritten."""
        found = sorted(inputs, key=lambda v: (self.place[v.node], v.port))
        adapted = all(_adapts([value.node]) for value in found)
        return sorted(found, key=lambda v: v.node) if adapted else found

    def _shape(self, value: Value) -> object:
        return self.graph.type_of(value).shape

    def _leaves(self, name: str, inside: set[str]) -> bool:
        read = {reader.name for reader, _, _ in self.graph.readers(name)}
        return self.graph.is_output(name) or not read <= inside


def _op_of(kind: str, scalars: Mapping[str, AttrValue]) -> str | None:
    """What cells call an operation; None where it is none of theirs."""
    if kind == "halved":
        return SKIP
    k = scalars["kernel" if kind == "crossed" else "k"]
    if kind == "crossed":
        return f"conv_1x{k}_{k}x1"
    name = {"conv": "conv", "max": "max_pool", "avg": "avg_pool"}.get(kind, f"{kind}_conv")
    return f"{name}_{k}x{k}" if f"{name}_{k}x{k}" in OPS else None


def _adapts(paths: Iterable[str]) -> bool:
    """Whether nodes lie in a scope that adapts a cell's input."""
    parts = (part for path in paths for part in path.split(".")[:-1])
    return any(part.startswith("preprocess") for part in parts)


def _shared(paths: Sequence[str]) -> str:
    """The scope that paths share."""
    found = []
    for parts in zip(*(path.split(".")[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        found.append(parts[0])
    return ".".join(found)
