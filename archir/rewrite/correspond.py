"""Which node of one network is which node of another, where their names say little.

The nodes of both stand in canonical order (:mod:`archir.ir.hash`), which names do not touch.
The two rows are aligned so that as much as possible is alike: operators, then attributes and
surroundings, then the shapes of parameters; names decide between equally good alignments only.
What is left over, as branches in another order are, is found from its neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from archir.ir.graph import Graph, Node
from archir.ir.hash import numbering
from archir.ops.record import Law, OpSet

CELLS = 4_000_000
"""The largest table that an alignment fills; longer rows are first cut where they agree."""
MARGIN = 48
"""How many nodes beside a cut are aligned again, together with what lies between the cuts."""
MOST_EDITS = 1_000
"""Beyond so many insertions and removals, rows too long for a table are not aligned as a whole."""
OP, ATTRS, AROUND, SHAPES = 4, 3, 2, 1
"""What it is worth that two nodes have something in common."""

Ids = npt.NDArray[np.int64]


def by_names(a: Graph, b: Graph) -> dict[str, str]:
    """Nodes of the same name and operator: the correspondence that rewrites keep."""
    return {n.name: n.name for n in a if n.name in b and b.node(n.name).op == n.op}


def by_number(a: Graph, b: Graph) -> dict[str, str]:
    """The correspondence of two graphs that have the same hash."""
    return dict(zip(numbering(a).nodes, numbering(b).nodes, strict=True))


@dataclass
class _Numbers:
    """Small numbers for equal things, the same for both graphs."""

    known: dict[Hashable, int] = field(default_factory=dict)

    def of(self, thing: Hashable) -> int:
        return self.known.setdefault(thing, len(self.known))


@dataclass(frozen=True)
class _Row:
    """The nodes of a graph in canonical order, and numbers for what two of them can share."""

    names: tuple[str, ...]
    op: Ids
    attrs: Ids
    around: Ids
    shapes: Ids
    name: Ids


def _attributes(node: Node) -> Hashable:
    types = tuple(map(str, node.types)) if node.op == "input" else ()
    return node.op, tuple(sorted((k, repr(v)) for k, v in node.attrs.items())), types


def _row(graph: Graph, numbers: _Numbers) -> _Row:
    names = numbering(graph).nodes
    nodes = [graph.node(name) for name in names]
    attrs = {n.name: numbers.of(_attributes(n)) for n in nodes}
    reads: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for node in nodes:
        for place, value in enumerate(node.inputs):
            reads[value.node].append((attrs[node.name], place))

    def around(node: Node) -> Hashable:
        operands = tuple((attrs[v.node], v.port) for v in node.inputs)
        return "around", attrs[node.name], operands, tuple(sorted(reads[node.name]))

    def shapes(node: Node) -> Hashable:
        held = ((role, graph.parameters[path].type) for role, path in sorted(node.params.items()))
        return "shapes", tuple((role, str(type_)) for role, type_ in held)

    def ids(things: Iterable[int]) -> Ids:
        return np.fromiter(things, np.int64, len(nodes))

    return _Row(
        names,
        ids(numbers.of(("op", n.op)) for n in nodes),
        ids(attrs.values()),
        ids(numbers.of(around(n)) for n in nodes),
        ids(numbers.of(shapes(n)) for n in nodes),
        ids(numbers.of(("name", n.name)) for n in nodes),
    )


def correspond(a: Graph, b: Graph, ops: OpSet) -> dict[str, str]:
    """The nodes of ``b`` that nodes of ``a`` became, by structure; each is used once."""
    numbers = _Numbers()
    rows = _row(a, numbers), _row(b, numbers)
    places = _slid(*rows, _aligned(*rows))
    places = [(i, j) for j, i in _slid(rows[1], rows[0], [(j, i) for i, j in places])]
    found = {rows[0].names[i]: rows[1].names[j] for i, j in places}
    search = _Search(a, b, ops, found)
    search.drop_lonely()
    search.spread()
    return search.pairs


# --- alignment of two rows ------------------------------------------------------------------


def _aligned(a: _Row, b: _Row) -> list[tuple[int, int]]:
    """Pairs of places, both rising."""
    if len(a.names) * len(b.names) <= CELLS:
        return _table(a, b, range(len(a.names)), range(len(b.names)))
    alike = _agreeing(a, b)
    start, end = (max(0, size - MARGIN) for size in alike)
    middle = _between(a, b, range(start, len(a.names) - end), range(start, len(b.names) - end))
    if not middle:
        start, end = alike
    head = [(i, i) for i in range(start)]
    return head + middle + [(len(a.names) - i, len(b.names) - i) for i in range(end, 0, -1)]


def _agreeing(a: _Row, b: _Row) -> tuple[int, int]:
    """How many nodes agree at the beginning and, beyond those, at the end."""
    size = min(len(a.names), len(b.names))

    def same(x: slice, y: slice) -> npt.NDArray[np.bool_]:
        both: npt.NDArray[np.bool_]
        both = np.logical_and(a.around[x] == b.around[y], a.shapes[x] == b.shapes[y])
        return both

    ahead = same(slice(size), slice(size))
    start = size if ahead.all() else int(np.argmin(ahead))
    left = size - start
    if not left:
        return start, 0
    behind = same(slice(-left, None), slice(-left, None))[::-1]
    return start, left if behind.all() else int(np.argmin(behind))


def _between(a: _Row, b: _Row, at: range, to: range) -> list[tuple[int, int]]:
    if len(at) * len(to) <= CELLS:
        return _table(a, b, at, to)
    ours, theirs = a.op[at.start : at.stop], b.op[to.start : to.stop]
    if len(at) == len(to) and (ours == theirs).all():
        return list(zip(at, to, strict=True))
    pairs = _fewest_edits(ours.tolist(), theirs.tolist())
    return _refined(a, b, [(at.start + i, to.start + j) for i, j in pairs], at, to)


def _refined(
    a: _Row, b: _Row, pairs: list[tuple[int, int]], at: range, to: range
) -> list[tuple[int, int]]:
    """Alignments of operators alone are looked at again where they skip something."""
    ends = [(at.start - 1, to.start - 1), *pairs, (at.stop, to.stop)]
    skips = [
        k
        for k in range(1, len(ends))
        if (ends[k][0] - ends[k - 1][0], ends[k][1] - ends[k - 1][1]) != (1, 1)
    ]
    windows: list[list[int]] = []
    for k in skips:
        low, high = max(0, k - 1 - MARGIN), min(len(ends) - 1, k + MARGIN)
        if windows and low <= windows[-1][1]:
            windows[-1][1] = high
        else:
            windows.append([low, high])
    found: list[tuple[int, int]] = []
    done = 0
    for low, high in windows:
        inner_at = range(ends[low][0] + 1, ends[high][0])
        inner_to = range(ends[low][1] + 1, ends[high][1])
        if len(inner_at) * len(inner_to) > CELLS:
            continue
        found += ends[done + 1 : low + 1] if done else ends[1 : low + 1]
        found += _table(a, b, inner_at, inner_to)
        done = high - 1
    return found + (ends[done + 1 : -1] if done else ends[1:-1])


def _table(a: _Row, b: _Row, at: range, to: range) -> list[tuple[int, int]]:
    """The alignment of most in common, by dynamic programming over two ranges."""
    if not len(at) or not len(to):
        return []
    whole = min(len(at), len(to)) + 1  # names count less than anything else
    other = slice(to.start, to.stop)
    best = np.zeros((len(at) + 1, len(to) + 1), np.int64)
    for row, i in enumerate(at):
        same_op = b.op[other] == a.op[i]
        worth = OP + ATTRS * (b.attrs[other] == a.attrs[i])
        worth += AROUND * (b.around[other] == a.around[i])
        worth += SHAPES * (b.shapes[other] == a.shapes[i])
        worth = np.where(same_op, worth * whole + (b.name[other] == a.name[i]), 0)
        best[row + 1, 1:] = np.maximum(best[row, 1:], best[row, :-1] + worth)
        np.maximum.accumulate(best[row + 1], out=best[row + 1])
    pairs = []
    row, column = len(at), len(to)
    while row and column:
        if best[row, column] == best[row - 1, column]:
            row -= 1
        elif best[row, column] == best[row, column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            pairs.append((at[row], to[column]))
    return pairs[::-1]


def _fewest_edits(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """A longest common subsequence (Myers 1986), as far as ``MOST_EDITS`` insertions reach."""
    reach = {1: 0}
    trace: list[dict[int, int]] = []
    for edits in range(min(len(a) + len(b), MOST_EDITS) + 1):
        trace.append({})
        for k in range(-edits, edits + 1, 2):
            down = k == -edits or (k != edits and reach.get(k - 1, -1) < reach.get(k + 1, -1))
            x = reach.get(k + 1, 0) if down else reach[k - 1] + 1
            y = x - k
            while x < len(a) and y < len(b) and a[x] == b[y]:
                x, y = x + 1, y + 1
            trace[-1][k] = reach[k] = x
            if x >= len(a) and y >= len(b):
                return _walked(trace, len(a), len(b))
    return []


def _walked(trace: list[dict[int, int]], x: int, y: int) -> list[tuple[int, int]]:
    pairs = []
    for edits in range(len(trace) - 1, -1, -1):
        k = x - y
        if edits:
            before = trace[edits - 1]
            down = k == -edits or (k != edits and before.get(k - 1, -1) < before.get(k + 1, -1))
            from_x = before[k + 1 if down else k - 1]
            from_y = from_x - (k + 1 if down else k - 1)
        else:
            from_x, from_y = 0, 0
        while x > from_x and y > from_y:
            x, y = x - 1, y - 1
            pairs.append((x, y))
        x, y = from_x, from_y
    return pairs[::-1]


def _slid(a: _Row, b: _Row, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Alignments of nodes that are alike, moved to where more names agree.

    What stands in ``a`` alone may as well have begun later, if it begins as what follows it does,
    or earlier, if it ends as what precedes it does.
    """

    def alike(x: int, y: int) -> bool:
        return bool(a.attrs[x] == a.attrs[y] and a.shapes[x] == a.shapes[y])

    def gain(mine: int, other: int, instead: int) -> int:
        return int(a.name[mine] == b.name[other]) - int(a.name[instead] == b.name[other])

    out = list(pairs)
    for k in range(1, len(out)):
        (low, before), (high, after) = out[k - 1], out[k]
        size = high - low - 1
        if size < 1 or after - before != 1:
            continue
        best, shift, won = 0, 0, 0
        for m in range(len(out) - k):  # down: what follows is what stands alone
            x, y = out[k + m]
            if (x, y) != (high + m, after + m) or not alike(x - size, x):
                break
            won += gain(x - size, y, x)
            best, shift = (won, m + 1) if won > best else (best, shift)
        won = 0
        for m in range(k):  # up
            x, y = out[k - 1 - m]
            if (x, y) != (low - m, before - m) or not alike(x + size, x):
                break
            won += gain(x + size, y, x)
            best, shift = (won, -m - 1) if won > best else (best, shift)
        for m in range(abs(shift)):
            place, move = (k + m, -size) if shift > 0 else (k - 1 - m, size)
            out[place] = out[place][0] + move, out[place][1]
    return out


# --- neighbours -----------------------------------------------------------------------------


@dataclass
class _Search:
    """Pairs so far, and what their neighbours add to them."""

    a: Graph
    b: Graph
    ops: OpSet
    pairs: dict[str, str]
    taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.taken = set(self.pairs.values())

    def drop_lonely(self) -> None:
        """Part pairs that differ and have nothing to do with each other's neighbours."""
        back = {b: a for a, b in self.pairs.items()}
        for name, other in list(self.pairs.items()):
            x, y = self.a.node(name), self.b.node(other)
            if self._connected(x, y):
                continue
            near = {self.pairs[n] for n in _nearest(self.a, name, self.pairs) if n in self.pairs}
            if not near & _nearest(self.b, other, back):
                del self.pairs[name]
                self.taken.discard(other)
                back.pop(other)

    def _connected(self, x: Node, y: Node) -> bool:
        if not x.inputs and not y.inputs:
            return True
        operands = {v.node for v in y.inputs}
        if any(self.pairs.get(v.node) in operands for v in x.inputs):
            return True
        readers = {reader.name for reader, _, _ in self.b.readers(y.name)}
        return any(self.pairs.get(r.name) in readers for r, _, _ in self.a.readers(x.name))

    def spread(self) -> None:
        """Pair the neighbours of pairs: those with the same attributes first."""
        for strict in (True, False):
            work = list(self.pairs.items())
            while work:
                name, other = work.pop()
                for x, y in self._beside(name, other):
                    free = x.name not in self.pairs and y.name not in self.taken
                    if free and x.op == y.op and (not strict or _attributes(x) == _attributes(y)):
                        self.pairs[x.name] = y.name
                        self.taken.add(y.name)
                        work.append((x.name, y.name))

    def _beside(self, name: str, other: str) -> Iterable[tuple[Node, Node]]:
        x, y = self.a.node(name), self.b.node(other)
        mine = [v for v in x.inputs if v.node not in self.pairs]
        if mine:
            theirs = [v for v in y.inputs if v.node not in self.taken]
            swaps = x.op in self.ops and Law.COMMUTATIVE in self.ops[x.op].laws
            for v in mine:
                for w in theirs:
                    if swaps or x.inputs.index(v) == y.inputs.index(w):
                        yield self.a.node(v.node), self.b.node(w.node)
        readers = [r for r in self.a.readers(name) if r[0].name not in self.pairs]
        if readers:
            found = [r for r in self.b.readers(other) if r[0].name not in self.taken]
            for reader, place, port in readers:
                for another, its_place, its_port in found:
                    if (place, port) == (its_place, its_port):
                        yield reader, another


def _nearest(graph: Graph, name: str, known: Mapping[str, str]) -> set[str]:
    """The known nodes next to a node, with only unknown ones between."""
    found: set[str] = set()
    for step in (_operands, _readers):
        stack, seen = [name], {name}
        while stack:
            for near in step(graph, stack.pop()):
                if near in known:
                    found.add(near)
                elif near not in seen:
                    seen.add(near)
                    stack.append(near)
    return found


def _operands(graph: Graph, name: str) -> list[str]:
    return [v.node for v in graph.node(name).inputs]


def _readers(graph: Graph, name: str) -> list[str]:
    return [reader.name for reader, _, _ in graph.readers(name)]
