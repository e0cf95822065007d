"""A network as an SVG picture: one file, no scripts, no fonts of its own, light or dark."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from xml.sax.saxutils import escape, quoteattr

from archir.ir.graph import Graph
from archir.ops.record import OpSet
from archir.target import Drawing

from .labels import COLOURS
from .picture import Box, Cluster, Picture, picture
from .place import LINE, PADDING, SMALL, TEXT, Placed, Point, Rect, place
from .texts import cluster_label, last_line, shorten, text_width, title_lines

MARGIN = 20.0
TITLE = 30.0
"""Room above the drawing, for its title."""
ROUND = 10.0
"""Radius of the bends of an edge."""
NAME = 9.0
"""From a cluster's left border to its name."""
BEHIND = 5.0
"""How far the frame behind a repeated block's stands out."""
MOST_NOTE = 600

STYLE = """\
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
text { font-size: 12px; fill: #111827; }
.small { font-size: 10px; fill: #4b5563; }
.title { font-size: 14px; }
.name { fill: #334155; }
.paper { fill: #ffffff; }
.cluster rect { fill: #94a3b8; fill-opacity: 0.10; stroke: #94a3b8; }
.plate { fill: #f1f5f9; fill-opacity: 0.85; }
.edge { fill: none; stroke: #475569; stroke-width: 1.4; }
.skip { stroke: #e11d48; stroke-width: 2; }
.tip { fill: #475569; }
.skiptip { fill: #e11d48; }
"""
DARK = """\
text { fill: #f3f4f6; }
.small { fill: #cbd5e1; }
.name { fill: #cbd5e1; }
.paper { fill: #0d1117; }
.plate { fill: #1e293b; }
.edge { stroke: #94a3b8; }
.skip { stroke: #fb7185; }
.tip { fill: #94a3b8; }
.skiptip { fill: #fb7185; }
"""
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""


def write(
    graph: Graph,
    ops: OpSet,
    *,
    depth: int | None = None,
    fold: bool = True,
    kinds: Mapping[str, str] | None = None,
    at: str = "",
) -> Drawing:
    """Draw a network.

    Arguments and errors are those of :class:`archir.target.Draw`.
    """
    found = picture(graph, ops, depth=depth, fold=fold, kinds=kinds, at=at)
    placed = place(found)
    title = shorten(found.title, 90)
    width = max(placed.width, text_width(title, 14)) + 2 * MARGIN
    height = placed.height + 2 * MARGIN + TITLE
    size = f'width="{_n(width)}" height="{_n(height)}"'
    box = f'viewBox="0 0 {_n(width)} {_n(height)}"'
    shift = f"translate({_n((width - placed.width) / 2)} {_n(MARGIN + TITLE)})"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} role="img">',
        f"<title>{_text(found.title)}</title>",
        f"<style>\n{_style()}</style>",
        f"<defs>{_marker('tip')}{_marker('skiptip')}</defs>",
        f'<rect class="paper" {size}/>',
        _line(title, width / 2, MARGIN + 10, "title"),
        f'<g transform="{shift}">',
        *(line for cluster, rect in placed.clusters for line in _cluster(cluster, rect)),
        *_edges(found, placed),
        *(line for cluster, rect in placed.clusters for line in _name(cluster, rect)),
        *(
            line
            for box_, rect in zip(found.boxes, placed.boxes, strict=True)
            for line in _box(box_, rect)
        ),
        "</g>",
        "</svg>",
        "",
    ]
    return Drawing("\n".join(lines), len(found.boxes), len(found.edges))


def _cluster(cluster: Cluster, rect: Rect) -> list[str]:
    """A frame with a name; one that stands for several has another behind it."""
    behind = Rect(rect.x + BEHIND, rect.y + BEHIND, rect.width, rect.height)
    return [
        f'<g class="cluster" data-path={_attr(cluster.path)}>',
        *([_rect(behind, 10)] if cluster.count > 1 else []),
        _rect(rect, 10),
        "</g>",
    ]


def _name(cluster: Cluster, rect: Rect) -> list[str]:
    """A cluster's name, on a plate that keeps the edges behind it off the letters."""
    label = cluster_label(cluster)
    plate = Rect(rect.x + 5, rect.y + 3, text_width(label, TEXT) + 2 * (NAME - 5), 17)
    return [
        _rect(plate, 4, "plate"),
        _line(label, rect.x + NAME, rect.y + 16, "name", "start"),
    ]


def _edges(found: Picture, placed: Placed) -> list[str]:
    """The edges, those that skip layers above the others."""
    lines = {False: list[str](), True: list[str]()}
    for edge, way in zip(found.edges, placed.ways, strict=True):
        source, target = found.boxes[edge.source].path, found.boxes[edge.target].path
        kind, tip = ("edge skip", "skiptip") if edge.skip else ("edge", "tip")
        lines[edge.skip].append(
            f'<path class="{kind}" marker-end="url(#{tip})" data-from={_attr(source)} '
            f'data-to={_attr(target)} d="{_way(way)}"/>'
        )
    return lines[False] + lines[True]


def _box(box: Box, rect: Rect) -> list[str]:
    """A box: what it is, its name and shape, and the whole truth where the pointer rests."""
    middle = rect.x + rect.width / 2
    top = rect.y + PADDING / 2 + TEXT
    lines = title_lines(box)
    foot = top + LINE * len(lines) - (TEXT - SMALL) / 2
    return [
        f'<g class="box {box.family}" data-path={_attr(box.path)}>',
        f"<title>{_text(box.note[:MOST_NOTE])}</title>",
        _rect(rect, rect.height / 2 if box.family == "end" else 6),
        *(_line(line, middle, top + LINE * index) for index, line in enumerate(lines)),
        _line(last_line(box), middle, foot, "small"),
        "</g>",
    ]


def _line(text: str, x: float, y: float, look: str = "", anchor: str = "middle") -> str:
    look = f'class="{look}" ' if look else ""
    return f'<text {look}x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{_text(text)}</text>'


def _rect(rect: Rect, radius: float, look: str = "") -> str:
    look = f'class="{look}" ' if look else ""
    return (
        f'<rect {look}x="{_n(rect.x)}" y="{_n(rect.y)}" width="{_n(rect.width)}" '
        f'height="{_n(rect.height)}" rx="{_n(radius)}"/>'
    )


def _way(points: list[Point]) -> str:
    """A polyline with its bends rounded."""
    out = [f"M{_n(points[0][0])} {_n(points[0][1])}"]
    for before, bend, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(ROUND, math.dist(before, bend) / 2, math.dist(bend, after) / 2)
        start, end = _towards(bend, before, radius), _towards(bend, after, radius)
        out.append(
            f"L{_n(start[0])} {_n(start[1])}Q{_n(bend[0])} {_n(bend[1])} {_n(end[0])} {_n(end[1])}"
        )
    out.append(f"L{_n(points[-1][0])} {_n(points[-1][1])}")
    return "".join(out)


def _towards(start: Point, end: Point, length: float) -> Point:
    whole = math.dist(start, end)
    if whole == 0:
        return start
    share = length / whole
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _marker(name: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        f'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
        f'<path class="{name}" d="M0 0.5L8 4L0 7.5Z"/></marker>'
    )


def _style() -> str:
    light = "".join(
        f".{name} rect {{ fill: {fill}; stroke: {line}; }}\n"
        for name, (fill, line, _, _) in COLOURS.items()
    )
    dark = "".join(
        f".{name} rect {{ fill: {fill}; stroke: {line}; }}\n"
        for name, (_, _, fill, line) in COLOURS.items()
    )
    return f"{STYLE}{light}@media (prefers-color-scheme: dark) {{\n{DARK}{dark}}}\n"


def _n(number: float) -> str:
    """A coordinate, to a tenth."""
    return f"{round(number, 1) + 0.0:.1f}".removesuffix(".0")


def _text(text: str) -> str:
    return escape(FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text))


def _attr(text: str) -> str:
    return quoteattr(FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text))
