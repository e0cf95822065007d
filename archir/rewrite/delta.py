"""What changed between two networks, given which node of one is which of the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from archir.ir.graph import Graph, Node, Parameter, Value
from archir.ir.types import AttrValue
from archir.ops.arithmetic import Array
from archir.ops.closeness import distance
from archir.ops.cost import LayerCost, cost
from archir.ops.record import Law, OpSet

Kind = Literal[
    "inserted", "removed", "replaced", "widened", "narrowed", "changed", "resized", "rewired"
]
COUNTS = ("params", "macs", "activation_bytes")
"""What is counted of a network and of its parts."""
Shapes = tuple[Parameter | None, Parameter | None]


@dataclass(frozen=True)
class Change:
    """One place where two networks differ; its nodes, each side in its own order.

    A single node on both sides is the same one: ``attributes`` and ``parameters`` (by role) say
    what became of it, ``operands`` what it reads in place of what.
    """

    kind: Kind
    before: tuple[str, ...]
    after: tuple[str, ...]
    attributes: Mapping[str, tuple[AttrValue, AttrValue]] = field(default_factory=dict)
    parameters: Mapping[str, Shapes] = field(default_factory=dict)
    operands: tuple[tuple[str, ...], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Part:
    """What a part of a network costs, before and after."""

    scope: str
    before: Mapping[str, int]
    after: Mapping[str, int]


@dataclass(frozen=True)
class Delta:
    """All differences of two networks."""

    pairs: Mapping[str, str]
    changes: tuple[Change, ...]
    renamed: Mapping[str, str]
    """Nodes that are the same under another name."""
    paths: Mapping[str, str]
    """Parameters of nodes that are the same, whose paths changed otherwise than their nodes'."""
    sharing: tuple[str, ...]
    """In words: tensors that are shared on one side only."""
    interface: tuple[str, ...]
    """In words: inputs, outputs and preprocessing that differ."""
    total: Part
    parts: tuple[Part, ...]
    """The blocks of the outermost level whose cost differs."""

    @property
    def same_structure(self) -> bool:
        """Whether nothing but names differs."""
        return not (self.changes or self.sharing or self.interface)

    @property
    def same_names(self) -> bool:
        """Whether no node or parameter has another name."""
        return not (self.renamed or self.paths)


def delta(a: Graph, b: Graph, pairs: Mapping[str, str], ops: OpSet) -> Delta:
    """What becomes of ``a`` in ``b``.

    Args:
        a: The network before.
        b: The network after.
        pairs: The nodes of ``b`` that nodes of ``a`` became.
        ops: The operators.
    """
    order = {node.name: place for place, node in enumerate(b)}
    changes = [*_regions(a, b, pairs), *_changed(a, b, pairs, ops)]
    place = _places(a, pairs, order)
    changes.sort(key=lambda c: min([order[n] for n in c.after] or [place[c.before[0]]]))
    renamed = {x: y for x, y in pairs.items() if x != y}
    total, parts = _costs(a, b, pairs, ops)
    return Delta(
        pairs,
        tuple(changes),
        renamed,
        _renamed_paths(a, b, pairs),
        tuple(_sharing(a, b, pairs)),
        tuple(_interface(a, b, pairs)),
        total,
        parts,
    )


def _places(a: Graph, pairs: Mapping[str, str], order: Mapping[str, int]) -> dict[str, int]:
    """Where among the nodes of ``b`` each node of ``a`` belongs."""
    found: dict[str, int] = {}
    last = 0
    for node in a:
        last = order[pairs[node.name]] if node.name in pairs else last
        found[node.name] = last
    return found


# --- nodes that stand on one side only ------------------------------------------------------


def _regions(a: Graph, b: Graph, pairs: Mapping[str, str]) -> Iterator[Change]:
    """Connected nodes without a partner; what goes and what comes in one place belong together."""
    back = {y: x for x, y in pairs.items()}
    gone = [_Region(a, names, pairs) for names in _components(a, pairs)]
    come = [_Region(b, names, None) for names in _components(b, back)]
    by_end: dict[Value | str, list[_Region]] = defaultdict(list)
    for region in come:
        for end in region.starts | region.ends:
            by_end[end].append(region)
    used: set[int] = set()
    for region in gone:
        near = {id(r): r for end in region.starts | region.ends for r in by_end.get(end, ())}
        here = [r for r in near.values() if id(r) not in used and region.beside(r)]
        used.update(map(id, here))
        after = tuple(name for r in here for name in r.names)
        yield Change("replaced" if after else "removed", region.names, after)
    for region in come:
        if id(region) not in used:
            yield Change("inserted", (), region.names)


class _Region:
    """Nodes without a partner, and the nodes with one (as ``b`` calls them) around them."""

    def __init__(self, graph: Graph, names: tuple[str, ...], to_b: Mapping[str, str] | None):
        inside = set(names)
        self.names = names

        def called(name: str) -> str:
            return name if to_b is None else to_b[name]

        self.starts: set[Value | str] = {
            called(v.node) for n in names for v in graph.node(n).inputs if v.node not in inside
        }
        read = [r.name for n in names for r, _, _ in graph.readers(n) if r.name not in inside]
        self.ends: set[Value | str] = {f"to {called(name)}" for name in read}
        self.ends |= {f"output {o.name}" for o in graph.outputs if o.value.node in inside}

    def beside(self, other: _Region) -> bool:
        """Whether both lie between the same nodes."""

        def meet(x: set[Value | str], y: set[Value | str]) -> bool:
            return bool(x & y) or not (x and y)

        return meet(self.starts, other.starts) and meet(self.ends, other.ends)


def _components(graph: Graph, known: Mapping[str, str]) -> list[tuple[str, ...]]:
    """The nodes that are not known, in connected groups, each in the graph's order."""
    owner: dict[str, str] = {}

    def root(name: str) -> str:
        while owner[name] != name:
            owner[name] = owner[owner[name]]
            name = owner[name]
        return name

    for node in graph:
        if node.name in known:
            continue
        owner[node.name] = node.name
        for value in node.inputs:
            if value.node not in known:
                owner[root(value.node)] = root(node.name)
    groups: dict[str, list[str]] = {}
    for name in owner:
        groups.setdefault(root(name), []).append(name)
    return [tuple(names) for names in groups.values()]


# --- nodes that stand on both ---------------------------------------------------------------


def _changed(a: Graph, b: Graph, pairs: Mapping[str, str], ops: OpSet) -> Iterator[Change]:
    back = {y: x for x, y in pairs.items()}
    for name, other in pairs.items():
        x, y = a.node(name), b.node(other)
        attributes = _attributes(x, y)
        parameters = _parameters(a, b, x, y)
        operands = _operands(x, y, pairs, back, ops)
        if attributes or parameters or operands:
            kind = _kind(x, attributes, operands, ops)
            yield Change(kind, (name,), (other,), attributes, parameters, operands)


def _attributes(x: Node, y: Node) -> dict[str, tuple[AttrValue, AttrValue]]:
    if x.op == "input" and x.types != y.types:
        return {"type": (str(x.types[0]), str(y.types[0]))}
    if x.attrs == y.attrs and list(map(repr, x.attrs.values())) == list(
        map(repr, y.attrs.values())
    ):
        return {}
    names = dict.fromkeys((*x.attrs, *y.attrs))
    both = {n: (x.attrs.get(n), y.attrs.get(n)) for n in names}
    return {n: (old, new) for n, (old, new) in both.items() if repr(old) != repr(new)}


def _parameters(a: Graph, b: Graph, x: Node, y: Node) -> dict[str, Shapes]:
    if not x.params and not y.params:
        return {}
    found: dict[str, Shapes] = {}
    for role in dict.fromkeys((*x.params, *y.params)):
        old = a.parameters[x.params[role]] if role in x.params else None
        new = b.parameters[y.params[role]] if role in y.params else None
        if old is None or new is None or old.type != new.type or old.buffer != new.buffer:
            found[role] = old, new
    return found


def _operands(
    x: Node, y: Node, pairs: Mapping[str, str], back: Mapping[str, str], ops: OpSet
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """What a node reads instead of what; None where that follows from what came and went."""
    old = [Value(pairs[v.node], v.port) for v in x.inputs if v.node in pairs]
    new = [v for v in y.inputs if v.node in back]
    if old == new:
        return None
    free = len(y.inputs) - len(new)
    lost = len(x.inputs) - len(old)
    if x.op in ops and Law.COMMUTATIVE in ops[x.op].laws and sorted(old) == sorted(new):
        return None
    if len(x.inputs) == len(y.inputs):
        places = list(zip(x.inputs, y.inputs, strict=True))
        if all(
            v.node not in pairs or w.node not in back or Value(pairs[v.node], v.port) == w
            for v, w in places
        ):
            return None
    elif (free or lost) and _within(old, new, free, lost):
        return None
    return tuple(map(str, x.inputs)), tuple(map(str, y.inputs))


def _within(old: Sequence[Value], new: Sequence[Value], free: int, lost: int) -> bool:
    """Whether one list is the other with no more left out than stands on one side only."""
    missing = [v for v in old if v not in new]
    extra = [v for v in new if v not in old]
    return len(missing) <= free and len(extra) <= lost


def _kind(
    x: Node,
    attributes: Mapping[str, tuple[AttrValue, AttrValue]],
    operands: object,
    ops: OpSet,
) -> Kind:
    if not attributes:
        return "rewired" if operands else "resized"
    if x.op not in ops:
        return "changed"
    op = ops[x.op]
    sizes = {*op.equations.values(), *op.rescale.values(), op.stated}
    if not set(attributes) <= sizes:
        return "changed"
    grown = [
        new > old
        for old, new in attributes.values()
        if isinstance(old, int) and isinstance(new, int)
    ]
    if grown and all(grown):
        return "widened"
    return "narrowed" if grown and not any(grown) else "resized"


# --- names, sharing, interface --------------------------------------------------------------


def _renamed_paths(a: Graph, b: Graph, pairs: Mapping[str, str]) -> dict[str, str]:
    """Parameters whose paths do not follow from the new names of their nodes."""
    found: dict[str, str] = {}
    for name, other in pairs.items():
        x, y = a.node(name), b.node(other)
        for role, path in x.params.items():
            new = y.params.get(role)
            if new is None or path == new or path in found:
                continue
            if not (path.startswith(f"{name}.") and new == other + path[len(name) :]):
                found[path] = new
    return {old: new for old, new in found.items() if not _follows(a, pairs, old, new)}


def _follows(a: Graph, pairs: Mapping[str, str], old: str, new: str) -> bool:
    """Whether a path is renamed because the node that it is named after is."""
    owner, _, leaf = old.rpartition(".")
    return owner in a and owner in pairs and new == f"{pairs[owner]}.{leaf}"


def _sharing(a: Graph, b: Graph, pairs: Mapping[str, str]) -> Iterator[str]:
    """Tensors of paired nodes that are one on one side and several on the other."""
    to_b: dict[str, dict[str, None]] = defaultdict(dict)
    to_a: dict[str, dict[str, None]] = defaultdict(dict)
    for name, other in pairs.items():
        x, y = a.node(name), b.node(other)
        for role in x.params.keys() & y.params.keys():
            to_b[x.params[role]][y.params[role]] = None
            to_a[y.params[role]][x.params[role]] = None
    for path, now in to_b.items():
        if len(now) > 1:
            yield f"{path} is no longer shared: {', '.join(sorted(now))}"
    for path, were in to_a.items():
        if len(were) > 1:
            yield f"{path} is shared: it was {', '.join(sorted(were))}"


def _interface(a: Graph, b: Graph, pairs: Mapping[str, str]) -> Iterator[str]:
    if [pairs.get(name) for name in a.inputs] != list(b.inputs):
        yield f"inputs {', '.join(a.inputs)} -> {', '.join(b.inputs)}"
    if len(a.outputs) != len(b.outputs):
        names = [", ".join(o.name for o in side.outputs) for side in (a, b)]
        yield f"outputs {names[0]} -> {names[1]}"
    else:
        for x, y in zip(a.outputs, b.outputs, strict=True):
            if x.name != y.name:
                yield f"output {x.name} is called {y.name}"
            now = pairs.get(x.value.node)
            moved = now is not None and Value(now, x.value.port) != y.value
            if moved and y.value.node in pairs.values():
                yield f"output {y.name}: {x.value} -> {y.value}"
    for key in dict.fromkeys((*a.meta, *b.meta)):
        if repr(a.meta.get(key)) != repr(b.meta.get(key)):
            yield f"{key} differs"


# --- cost -----------------------------------------------------------------------------------


def _costs(
    a: Graph, b: Graph, pairs: Mapping[str, str], ops: OpSet
) -> tuple[Part, tuple[Part, ...]]:
    sides = cost(a, ops), cost(b, ops)

    def sums(layers: Iterable[LayerCost], scope: Callable[[str], str]) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for layer in layers:
            own = found.setdefault(scope(layer.node), dict.fromkeys(COUNTS, 0))
            for name in COUNTS:
                own[name] += getattr(layer, name)
        return found

    before = sums(sides[0].layers, lambda n: _top(pairs.get(n, n)))
    after = sums(sides[1].layers, _top)
    nothing = dict.fromkeys(COUNTS, 0)
    scopes = [
        Part(s, before.get(s, nothing), after.get(s, nothing))
        for s in dict.fromkeys((*after, *before))
    ]
    whole = [{name: getattr(side, name) for name in COUNTS} for side in sides]
    total = Part("", whole[0], whole[1])
    return total, tuple(part for part in scopes if part.before != part.after)


def _top(name: str) -> str:
    return name.partition(".")[0]


# --- weights --------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightsDelta:
    """How far the tensors are apart that two networks have in common."""

    compared: int
    differ: Mapping[str, float]
    """max|a-b| / max|a| by path (of the network after), where the two are not equal."""


def compare_weights(
    a: tuple[Graph, Mapping[str, Array]],
    b: tuple[Graph, Mapping[str, Array]],
    pairs: Mapping[str, str],
) -> WeightsDelta:
    """Compare the tensors of nodes that are the same, where their shapes are."""
    differ: dict[str, float] = {}
    seen: set[tuple[str, str]] = set()
    for name, other in pairs.items():
        x, y = a[0].node(name), b[0].node(other)
        for role in x.params:
            both = x.params[role], y.params.get(role, "")
            if not both[1] or both in seen:
                continue
            old, new = a[1][both[0]], b[1][both[1]]
            if old.shape != new.shape or old.dtype != new.dtype:
                continue
            seen.add(both)
            if old.tobytes() != new.tobytes():
                differ[both[1]] = distance(old, new)
    return WeightsDelta(len(seen), differ)
