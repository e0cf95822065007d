"""Where the boxes of a picture go: their sizes from their texts, their places by graphlay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import graphlay

from .picture import Box, Cluster, Picture
from .texts import cluster_label, last_line, text_width, title_lines

Point = tuple[float, float]

TEXT, SMALL = 12.0, 10.0
"""Font sizes of a box's first lines and of its last."""
LINE = 16.0
PADDING = 10.0
HEADER = 22.0
"""Room above the members of a cluster, for its name."""

BENDS = 3
"""A way of more points than these leaves its box, turns, and goes on."""

OPTIONS = {
    "direction": "topbottom",
    "routing": {"style": "orthogonal"},
    "spacing": {
        "layer_gap": 22.0,
        "node_gap": 24.0,
        "dummy_gap": 16.0,
        "port_gap": 12.0,
        "stub": 8.0,
        "compound_padding": 10.0,
        "compound_header": 0.0,
    },
}


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Placed:
    """A picture with places: of clusters (by identity) and boxes, and the way of each edge."""

    width: float
    height: float
    clusters: list[tuple[Cluster, Rect]]
    boxes: list[Rect]
    ways: list[list[Point]]


def _box_size(box: Box) -> tuple[float, float]:
    lines = title_lines(box)
    texts = [text_width(line, TEXT) for line in lines]
    width = max([*texts, text_width(last_line(box), SMALL)]) + 2 * PADDING
    return max(72.0, round(width)), LINE * (len(lines) + 1) + PADDING


def place(picture: Picture) -> Placed:
    """Lay a picture out, from top to bottom."""
    graph = graphlay.Graph()
    index: dict[int, int] = {}
    clusters: list[Cluster] = []

    def add(cluster: Cluster, parent: int | None) -> None:
        inside: dict[str, Any] = {} if parent is None else {"parent": parent}
        for member in cluster.members:
            if isinstance(member, Box):
                width, height = _box_size(member)
                index[id(member)] = graph.node(width=width, height=height, **inside)
            else:
                clusters.append(member)
                width = text_width(cluster_label(member), TEXT) + 2 * PADDING
                made = graph.node(width=width, height=HEADER, **inside)
                index[id(member)] = made
                add(member, made)

    add(picture.root, None)
    numbers = [index[id(box)] for box in picture.boxes]
    for edge in picture.edges:
        graph.edge(numbers[edge.source], numbers[edge.target], weight=1.0 if edge.skip else 4.0)
    found = graphlay.layout(graph, options=OPTIONS)
    low = found.bounds["min"]

    def rect(number: int) -> Rect:
        node = found.nodes[number]
        width, height = node["size"]["width"], node["size"]["height"]
        x, y = node["center"]["x"] - width / 2 - low["x"], node["center"]["y"] - height / 2
        return Rect(x, y - low["y"], width, height)

    ways = [[(p["x"] - low["x"], p["y"] - low["y"]) for p in e["points"]] for e in found.edges]
    sources, targets = [edge.source for edge in picture.edges], [e.target for e in picture.edges]
    ways = _uncrossed(ways, sources)
    ways = [way[::-1] for way in _uncrossed([way[::-1] for way in ways], targets)]
    high = found.bounds["max"]
    return Placed(
        high["x"] - low["x"],
        high["y"] - low["y"],
        [(cluster, rect(index[id(cluster)])) for cluster in clusters],
        [rect(number) for number in numbers],
        ways,
    )


def _uncrossed(ways: list[list[Point]], boxes: list[int]) -> list[list[Point]]:
    """Let the ways that leave a box downwards do so in the order in which they then turn.

    graphlay chooses the places on the box's border by other criteria where clusters lie
    between, so that two ways may cross right there.
    """
    leaving: dict[int, list[int]] = {}
    for index, (way, box) in enumerate(zip(ways, boxes, strict=True)):
        if len(way) > BENDS and way[0][0] == way[1][0] and way[1][1] == way[2][1]:
            leaving.setdefault(box, []).append(index)
    found = list(ways)
    for indices in leaving.values():
        starts = sorted(ways[index][0][0] for index in indices)
        turned = sorted(indices, key=lambda index: (ways[index][2][0], ways[index][-1][0]))
        for index, x in zip(turned, starts, strict=True):
            (_, first), (_, second), *rest = ways[index]
            found[index] = [(x, first), (x, second), *rest]
    return found
