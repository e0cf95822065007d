"""Where things stand in the figures of a report: shares of a plot in per cent, pixels of the tree.

The page draws them; the ticks are matplotlib's. Importing this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

from archir.search.parts import Member, cost_of, front

Write = Callable[[float], str]
Segment = tuple[float, float, float, float]
"""A line from ``x1, y1`` to ``x2, y2``, in per cent of the plot, y downwards."""

LOG_FROM = 5.0
"""Costs whose largest is so many times their smallest are drawn on a logarithmic axis."""
MARGIN = 0.05
FAR, FEW = 3.0, 0.05
"""Scores so many times the distance of the quartiles below the lower one stand on the plot's edge,
a share of so many at most: a network that learned nothing would press all others together."""
MOST_TICKS = 6

_units = EngFormatter(sep="\N{NO-BREAK SPACE}")
seconds = EngFormatter("s", sep="\N{NO-BREAK SPACE}")


def count(value: float) -> str:
    """A count in three digits with its unit."""
    return _units(float(f"{value:.3g}"))


COSTS: Mapping[str, tuple[str, Write]] = {
    "macs": ("MACs", count),
    "params": ("parameters", count),
    "latency": ("latency", seconds),
}
"""What may stand on the axis of costs: its label, and how a value is written."""


def per_cent(value: float) -> str:
    """A share as people read it, with the decimals that it needs."""
    return f"{100 * value:.6g}\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    place: float
    """In per cent."""
    value: float
    label: str


@dataclass(frozen=True)
class Axis:
    """An axis: a value's place on it, and its ticks."""

    low: float
    high: float
    log: bool
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """The place of a value in per cent; beyond the ends it is put on them."""
        return _share(value, self.low, self.high, log=self.log)


def _share(value: float, low: float, high: float, *, log: bool) -> float:
    ends = (low, value, high)
    first, here, last = (float(np.log10(v)) for v in ends) if log else ends
    return round(100 * min(1.0, max(0.0, (here - first) / (last - first))), 2)


def axis(values: Sequence[float], write: Write, *, may_be_log: bool) -> Axis:
    """An axis that values fit on, with some room at both ends."""
    low, high = min(values), max(values)
    log = may_be_log and low > 0 and high / low >= LOG_FROM
    if log:
        room = (high / low) ** MARGIN
        low, high = low / room, high * room
        marks = _within(LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(low, high), low, high)
        if len(marks) > MOST_TICKS:
            marks = _within(LogLocator(subs=(1.0,)).tick_values(low, high), low, high)
    else:
        room = MARGIN * (high - low) or abs(high) * MARGIN or 1.0
        low, high = low - room, high + room
        steps = MaxNLocator(MOST_TICKS - 1, steps=[1, 2, 2.5, 5, 10])
        marks = _within(steps.tick_values(low, high), low, high)
    ticks = tuple(Tick(_share(m, low, high, log=log), m, write(m)) for m in marks)
    return Axis(low, high, log, ticks)


def _within(marks: Iterable[float], low: float, high: float) -> list[float]:
    return [float(mark) for mark in marks if low <= mark <= high]


# --- scores against costs, and over the evaluations ---------------------------------------------


@dataclass(frozen=True)
class Point:
    """A member in a plot."""

    number: int
    x: Mapping[str, float]
    """By cost; ``order`` for its place among all members."""
    y: float | None
    """From below; None where it has no score."""
    fronts: tuple[str, ...]
    """The costs in which it is on the Pareto front."""
    below: bool = False
    """Whether its score is lower than the plot goes."""

    @property
    def ahead(self) -> bool:
        """Whether it is on a front: such marks are drawn above others."""
        return bool(self.fronts)

    @property
    def odd(self) -> bool:
        """Whether it stands on the edge of the plot, with a mark of its own."""
        return self.y is None or self.below


@dataclass(frozen=True)
class Pane:
    """The members whose scores share an axis."""

    stages: tuple[str, ...]
    measure: str
    """``accuracy`` or ``score``."""
    costs: Mapping[str, Axis]
    scores: Axis
    order: Axis
    points: tuple[Point, ...]
    fronts: Mapping[str, tuple[Segment, ...]]
    fronted: Mapping[str, tuple[int, ...]]
    """The members of each front, the cheapest first."""
    record: tuple[Segment, ...]
    """The best score over the evaluations."""

    @property
    def errors(self) -> tuple[Tick, ...]:
        """The ticks of the axis of scores where it shows errors: from the top."""
        return tuple(
            Tick(100 - t.place, 1 - t.value, per_cent(1 - t.value)) for t in self.scores.ticks
        )


def panes(members: Sequence[Member], groups: Sequence[Sequence[str]]) -> list[Pane]:
    """The plots of a run, one for each group of stages that scored more than one network.

    Args:
        members: All of the run.
        groups: Stages whose scores can be compared.
    """
    found: list[Pane] = []
    for stages in groups:
        scored = [m for m in members if m.status == "scored" and m.stage in stages]
        if len(scored) > (1 if found else 0):
            found.append(_pane(members, scored))
    return found


def _pane(members: Sequence[Member], scored: Sequence[Member]) -> Pane:
    stages = tuple(dict.fromkeys(m.stage for m in scored))
    rest = [m for m in members if m.status != "scored" and m.stage in stages and m.macs]
    shown = [*scored, *rest]
    costs = {}
    for name, (_, write) in COSTS.items():
        found = [cost_of(m, name) for m in shown]
        if all(np.isfinite(found)):
            costs[name] = axis(found, write, may_be_log=True)
    accuracies = all(m.accuracy is not None for m in scored)
    scores = axis(_central([m.score for m in scored]), per_cent if accuracies else _plain,
                  may_be_log=False)  # fmt: skip
    order = axis([0, max(1, len(members) - 1)], _whole, may_be_log=False)
    fronts = {name: front(scored, name) for name in costs}
    points = []
    for member in sorted(shown, key=lambda m: m.number):
        x = {name: costs[name].at(cost_of(member, name)) for name in costs}
        x["order"] = order.at(member.number)
        done = member.status == "scored"
        among = tuple(name for name, found in fronts.items() if member in found)
        y = scores.at(member.score) if done else None
        points.append(Point(member.number, x, y, among, done and member.score < scores.low))
    return Pane(
        stages,
        "accuracy" if accuracies else "score",
        costs,
        scores,
        order,
        tuple(points),
        {
            name: _stairs([(costs[name].at(cost_of(m, name)), scores.at(m.score)) for m in found])
            for name, found in fronts.items()
        },
        {name: tuple(m.number for m in found) for name, found in fronts.items()},
        _stairs([(order.at(m.number), scores.at(m.score)) for m in _records(scored)]),
    )


def _plain(value: float) -> str:
    return f"{value:.6g}"


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and value >= 0 else ""


def _central(values: Sequence[float]) -> list[float]:
    """The values without the few that lie far below all others."""
    lower, upper = np.quantile(values, (0.25, 0.75))
    floor = lower - FAR * (upper - lower)
    return [v for i, v in enumerate(sorted(values)) if v >= floor or i >= FEW * len(values)]


def _records(members: Sequence[Member]) -> list[Member]:
    """The members that were better than all before them, in order."""
    found: list[Member] = []
    for member in members:
        if not found or member.score > found[-1].score:
            found.append(member)
    return found


def _stairs(places: Sequence[tuple[float, float]]) -> tuple[Segment, ...]:
    """A line that stays at each place until the next one, and at the last to the end."""
    found: list[Segment] = []
    ends = [*places, (100.0, places[-1][1])] if places else []
    for (x1, y1), (x2, y2) in pairwise(ends):
        found.append((x1, 100 - y1, x2, 100 - y1))
        if y1 != y2:
            found.append((x2, 100 - y1, x2, 100 - y2))
    return tuple(found)


# --- who came from whom -------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A member in the family tree, in pixels."""

    number: int
    x: float
    y: float


@dataclass(frozen=True)
class Family:
    """The family tree: a column for each generation, the best of each on top."""

    width: float
    height: float
    radius: float
    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int, str], ...]
    """Parent, child and the path between them."""
    columns: tuple[tuple[float, str], ...]
    labelled: bool
    """Whether there is room for names."""


TOP, LEFT, NAME = 30, 22, 76
"""Pixels above the nodes, before them, and of a node with its name."""


def family(members: Sequence[Member], generations: Mapping[int, int]) -> Family:
    """The family tree of a run.

    Args:
        members: All of it.
        generations: The generation of members that have one; the others stand one column behind
            the last of their parents.
    """
    column: dict[int, int] = {}
    for member in members:
        behind = max((column[p] + 1 for p in member.parents if p in column), default=0)
        column[member.number] = max(behind, generations.get(member.number, 0))
    held: dict[int, list[Member]] = {}
    for member in members:
        held.setdefault(column[member.number], []).append(member)
    most = max(map(len, held.values()), default=0)
    wide, high = _spacing(len(held), most)
    labelled = high >= 20
    place: dict[int, Node] = {}
    names = []
    for index, number in enumerate(sorted(held)):
        names.append((LEFT + index * wide, str(number)))
        for row, member in enumerate(sorted(held[number], key=lambda m: (-m.score, m.number))):
            place[member.number] = Node(member.number, LEFT + index * wide, TOP + row * high)
    begin = NAME if labelled else 0
    edges = [
        (p, m.number, _between(place[p], place[m.number], begin))
        for m in members
        for p in dict.fromkeys(m.parents)
        if p in place
    ]
    width = LEFT + (len(held) - 1) * wide + (wide if labelled else LEFT)
    height = TOP + max(0, most - 1) * high + 16
    radius = 5.0 if labelled else max(2.5, high * 0.36)
    nodes = tuple(place[m.number] for m in members)
    return Family(width, height, radius, nodes, tuple(edges), tuple(names), labelled)


def _spacing(columns: int, most: int) -> tuple[float, float]:
    """Pixels from a column to the next and from a row to the next."""
    if columns <= 16 and most <= 24:
        return 118.0, 26.0
    return (56.0 if columns <= 24 else 34.0), (13.0 if most <= 48 else 8.0)


def _between(a: Node, b: Node, begin: float) -> str:
    """A curve from a parent, behind its name, to a child."""
    x, wide, high = a.x + begin, b.x - a.x - begin, b.y - a.y
    return f"M{x:g},{a.y:g}c{wide / 2:g},0 {wide / 2:g},{high:g} {wide:g},{high:g}"
