"""What is drawn of a network: boxes in clusters, and edges between them.

Three things make a large network readable: a layer takes the normalisation and the
activations around it into its box, a chain of alike blocks is drawn once, and blocks below
a depth are one box each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node, Value
from archir.lang.outline import (
    Scope,
    entering,
    folds,
    height,
    is_convex,
    kind_of,
    leaving,
    outline,
    relative,
)
from archir.ops.cost import Cost, cost
from archir.ops.record import OpSet

from . import labels

TIMES = "\N{MULTIPLICATION SIGN}"
MOST_BOXES = 2000
"""Boxes of a picture, clusters included."""
MOST_EDGES = 8000
GLANCE = 24
"""Boxes that are read at a glance: of one block, as many levels are opened as make no more."""
SMALL = 8
"""Layers that may share a box; a block of more is not looked into for that."""
LAYERS = frozenset({"conv", "linear", "attention"})
"""Families that a normalisation belongs to, before it or after it."""
ALONG = frozenset({"norm", "activation", "noise"})
"""Families that have no box of their own where they stand beside a layer."""


@dataclass(eq=False)
class Box:
    """One box: a layer with what belongs to it, a block, or an end of the network."""

    path: str
    name: str
    family: str
    parts: list[str]
    main: int | None
    shape: str
    nodes: list[Node] = field(default_factory=list)
    note: str = ""


@dataclass(eq=False)
class Cluster:
    """A block: its members in order; ``count`` alike ones in a chain are drawn once.

    ``kind`` is the name that the block has in the language, if any.
    """

    path: str
    name: str
    kind: str = ""
    members: list[Box | Cluster] = field(default_factory=list)
    count: int = 1


@dataclass(frozen=True)
class Edge:
    """An edge from box to box, by their places in :attr:`Picture.boxes`.

    ``skip`` tells whether some longer way leads from the one to the other.
    """

    source: int
    target: int
    skip: bool = False


@dataclass(frozen=True)
class Picture:
    """A network to draw."""

    title: str
    root: Cluster
    boxes: list[Box]
    edges: list[Edge]


def picture(
    graph: Graph,
    ops: OpSet,
    *,
    depth: int | None = None,
    fold: bool = True,
    kinds: Mapping[str, str] | None = None,
    at: str = "",
) -> Picture:
    """Decide what is drawn of a network.

    Args:
        graph: The network.
        ops: Its operators.
        depth: How many levels of blocks are opened; all of them by default, and with ``at`` as
            many as make no more than :data:`GLANCE` boxes.
        fold: Whether a chain of alike blocks is drawn once.
        kinds: The names of blocks, by the paths of their instances.
        at: The path of the only block, or layer, that is drawn.

    Raises:
        ArchirError: A605, there is no ``at``; A641, the picture would have more boxes or edges
            than anyone can read.
    """
    scope = outline(graph, at)
    total = cost(graph, ops, scope.nodes() if at else None)

    def opened(levels: int | None) -> _Maker:
        made = _Maker(graph, ops, total, levels, fold, kinds or {}, scope)
        made.open(scope, made.root, 0)
        return made

    made = _at_a_glance(opened, height(scope)) if at and depth is None else opened(depth)
    made.finish()
    name = f"{graph.name}, {at}" if at else graph.name
    kind = f" ({kinds[at]})" if kinds and at in kinds else ""
    title = f"{name}{kind}: {total.params:,} parameters, {total.macs:,} MACs"
    return Picture(title, made.root, made.boxes, made.edges())


def _at_a_glance(opened: Callable[[int], _Maker], most: int) -> _Maker:
    """Open as many levels as can be read at a glance, and none where that is too much already."""
    best = opened(0)
    for levels in range(1, most + 1):
        try:
            made = opened(levels)
        except ArchirError:  # far too large
            break
        if len(made.boxes) > GLANCE:
            break
        best = made
    return best


class _Maker:
    """Collects the boxes of a graph, or of one scope of it."""

    def __init__(
        self,
        graph: Graph,
        ops: OpSet,
        total: Cost,
        depth: int | None,
        fold: bool,
        kinds: Mapping[str, str],
        scope: Scope,
    ) -> None:
        self.graph, self.ops, self.kinds = graph, ops, kinds
        self.depth, self.fold, self.scope = depth, fold, scope
        self.nodes = list(graph)
        self.order = {node.name: place for place, node in enumerate(self.nodes)}
        self.root = Cluster(scope.path, graph.name)
        self.boxes: list[Box] = []
        self.owner: dict[str, Box] = {}
        self.sources: dict[Value, Box] = {}
        self.sinks: list[tuple[Value, Box]] = []
        self.aliases: dict[str, str] = {}
        self.count = 0
        self.costs = {layer.node: layer for layer in total.layers}

    def open(self, scope: Scope, cluster: Cluster, level: int) -> None:
        """Put what a scope holds into a cluster."""
        for found in folds(scope.members, self.graph, chained=self.fold):
            shown = [found.first] if self.fold else [found.first, *found.others]
            for member in shown:
                if isinstance(member, Node):
                    self._layer(member, cluster)
                elif not is_convex(member, self.order, self.nodes):
                    self.open(member, cluster, level)  # as a box it would be before itself
                elif level == self.depth:
                    self._block(member, cluster, found.others if self.fold else ())
                else:
                    self._cluster(member, cluster, level, found.others if self.fold else ())
            if self.fold:
                self._alias(found.first, found.others)

    def _cluster(
        self, scope: Scope, cluster: Cluster, level: int, others: tuple[Scope, ...]
    ) -> None:
        """Open a block; one that comes to a single box is that box."""
        self._room()
        name, kind = _span(scope, others, cluster), kind_of(scope, self.kinds)
        inner = Cluster(scope.path, name, kind, count=1 + len(others))
        self.open(scope, inner, level + 1)
        if not others and len(inner.members) == 1:
            (only,) = inner.members
            if isinstance(only, Box) and only.family != labels.BLOCK:
                only.name = f"{inner.name}.{only.name}"
                cluster.members.append(only)
                return
        cluster.members.append(inner)

    def _alias(self, first: Scope | Node, others: tuple[Scope, ...]) -> None:
        """The nodes of a folded block stand for those of its copies."""
        for scope in others:
            assert isinstance(first, Scope)
            for node in scope.nodes():
                self.aliases[node.name] = f"{first.path}.{relative(node.name, scope.path)}"

    def _room(self) -> None:
        self.count += 1
        if self.count > MOST_BOXES:
            raise _too_large(f"more than {MOST_BOXES:,} boxes", self.depth)

    def _add(self, box: Box, cluster: Cluster) -> None:
        self._room()
        self.boxes.append(box)
        cluster.members.append(box)

    def _block(self, scope: Scope, cluster: Cluster, others: tuple[Scope, ...]) -> None:
        """Draw a block as one box."""
        nodes = list(scope.nodes())
        if not others and len(nodes) <= SMALL and self._one_box(scope, cluster):
            return
        times = f" {TIMES} {1 + len(others)}" if others else ""
        name, kind = _short_span(scope, others, cluster), kind_of(scope, self.kinds)
        layers = f"{len(nodes)} layer{'' if len(nodes) == 1 else 's'}"
        said, last = (kind, f"{name}, {layers}") if kind else (name, layers)
        box = Box(scope.path, last, labels.BLOCK, [said + times], 0, "", nodes)
        box.shape = labels.shape(nodes[-1].types)
        self._add(box, cluster)
        self.owner.update(dict.fromkeys((node.name for node in nodes), box))

    def _one_box(self, scope: Scope, cluster: Cluster) -> bool:
        """Draw a block as the box that its layers share, if they do."""
        inner = Cluster(scope.path, relative(scope.path, cluster.path))
        for node in scope.nodes():
            self._layer(node, inner)
        if len(inner.members) == 1:
            (only,) = inner.members
            only.name = f"{inner.name}.{only.name}"
            cluster.members.append(only)
            return True
        self.count -= len(inner.members)
        del self.boxes[len(self.boxes) - len(inner.members) :]
        return False

    def _layer(self, node: Node, cluster: Cluster) -> None:
        family = labels.family(node.op)
        text = labels.text(node, self.graph, self.ops)
        before = self._joins(node, family, cluster)
        if before is not None:
            before.nodes.append(node)
            before.parts.append(text)
            before.shape = labels.shape(node.types)
            if before.main is None and family in LAYERS:
                before.main, before.family = len(before.parts) - 1, family
                before.path, before.name = node.name, relative(node.name, cluster.path)
            self.owner[node.name] = before
            return
        main = None if family in ALONG else 0
        box = Box(node.name, relative(node.name, cluster.path), family, [text], main, "", [node])
        box.shape = labels.shape(node.types)
        self._add(box, cluster)
        self.owner[node.name] = box

    def _joins(self, node: Node, family: str, cluster: Cluster) -> Box | None:
        """The box that a node belongs to, if it is not one of its own."""
        if len(node.inputs) != 1:
            return None
        (value,) = node.inputs
        before = self.graph.node(value.node)
        box = self.owner.get(before.name)
        if box is None or box not in cluster.members or box.family in ("end", labels.BLOCK):
            return None
        alone = len(self.graph.readers(before.name)) == 1 and len(before.types) == 1
        if not alone or self.graph.is_output(before.name) or box.nodes[-1] is not before:
            return None
        if family in LAYERS:
            return box if box.main is None and box.family != "noise" else None
        if family == "norm":
            return box if box.family in LAYERS and not self._has_norm(box) else None
        if family in ALONG:
            return box
        return box if node.op == "flatten" and box.family == "pool" else None

    @staticmethod
    def _has_norm(box: Box) -> bool:
        return any(labels.family(node.op) == "norm" for node in box.nodes)

    def finish(self) -> None:
        """Put the boxes in the order of the graph; add what they say in full, and the ends."""
        self.boxes.sort(key=lambda box: self.order[box.nodes[0].name])
        for box in self.boxes:
            box.note = self._note(box)
        if self.scope.path:
            self._crossings()
            return
        for output in self.graph.outputs:
            shape = labels.shape((self.graph.type_of(output.value),))
            box = Box(output.name, "output", "end", [output.name], 0, shape)
            box.note = f"output {output.name}: {self.graph.type_of(output.value)}"
            self._add(box, self.root)
            self.sinks.append((output.value, box))
        for box in self.boxes:
            if box.nodes and box.nodes[0].op == "input":
                box.name = "input"

    def _crossings(self) -> None:
        """Add a small end for each value that enters or leaves the scope."""
        inner, self.boxes = self.boxes, []
        for value, text in entering(self.scope, self.graph):
            self.sources[value] = self._end(text, text, value)
        self.boxes += inner
        for value, text in leaving(self.scope, self.graph):
            self.sinks.append((value, self._end(f"{value} {text}", text, value)))

    def _end(self, path: str, text: str, value: Value) -> Box:
        type_ = self.graph.type_of(value)
        box = Box(path, text, "end", [], None, labels.shape((type_,)), note=f"{text}: {type_}")
        self._add(box, self.root)
        return box

    def _note(self, box: Box) -> str:
        """The text that shows where the pointer rests: paths, calls, type and cost."""
        lines = []
        if box.family == labels.BLOCK:
            kinds = Counter(node.op for node in box.nodes)
            lines = [box.path, ", ".join(f"{n} {op}" for op, n in kinds.most_common())]
        else:
            lines = [f"{n.name}: {labels.full(n, self.graph, self.ops)}" for n in box.nodes]
        lines.append(", ".join(map(str, box.nodes[-1].types)))
        params = sum(self.costs[node.name].params for node in box.nodes)
        macs = sum(self.costs[node.name].macs for node in box.nodes)
        if params:
            lines.append(f"{params:,} parameters")
        if macs:
            lines.append(f"{macs:,} MACs")
        return "\n".join(lines)

    def _shown(self, value: Value) -> Box:
        if value in self.sources:
            return self.sources[value]
        name = value.node
        while name in self.aliases:
            name = self.aliases[name]
        return self.owner[name]

    def edges(self) -> list[Edge]:
        """The edges between boxes, in the order of the readers."""
        place = {id(box): index for index, box in enumerate(self.boxes)}
        found: dict[tuple[int, int], None] = {}
        for index, box in enumerate(self.boxes):
            for node in box.nodes:
                for value in node.inputs:
                    source = place[id(self._shown(value))]
                    if source != index:
                        found.setdefault((source, index))
        for value, box in self.sinks:
            found.setdefault((place[id(self._shown(value))], place[id(box)]))
        if len(found) > MOST_EDGES:
            raise _too_large(f"more than {MOST_EDGES:,} edges", self.depth)
        return _with_skips(list(found))


def _span(scope: Scope, others: tuple[Scope, ...], cluster: Cluster) -> str:
    """A block's name in its cluster, or the first and the last of several."""
    name = relative(scope.path, cluster.path)
    return f"{name} .. {relative(others[-1].path, cluster.path)}" if others else name


def _short_span(scope: Scope, others: tuple[Scope, ...], cluster: Cluster) -> str:
    """The same for a closed block, which does without the names of what it alone holds."""
    outer = [Scope(s.outer or s.path, s.name) for s in (scope, *others)]
    return _span(outer[0], tuple(outer[1:]), cluster)


def _too_large(what: str, depth: int | None) -> Exception:
    hint = "--depth 1 draws every block as one box" if depth is None else "try a smaller --depth"
    return error("A641", f"the picture would have {what}", hint=hint)


def _with_skips(pairs: list[tuple[int, int]]) -> list[Edge]:
    """Mark the edges beside which a longer way leads to the same box."""
    after: dict[int, list[int]] = {}
    into: Counter[int] = Counter()
    for source, target in pairs:
        after.setdefault(source, []).append(target)
        into[target] += 1
    forward = all(source < target for source, target in pairs)
    return [
        Edge(s, t, len(after[s]) > 1 and into[t] > 1 and _longer_way(s, t, after, forward=forward))
        for s, t in pairs
    ]


def _longer_way(source: int, target: int, after: dict[int, list[int]], *, forward: bool) -> bool:
    """Whether a path other than the edge leads on; ``forward``: no edge goes to a lower number."""
    seen = {source, target}
    stack = [box for box in after[source] if box != target]
    while stack:
        box = stack.pop()
        if box in seen or (forward and box > target):
            continue
        if target in after.get(box, ()):
            return True
        seen.add(box)
        stack.extend(after.get(box, ()))
    return False
