"""A network in Graphviz's language, with a cluster for each block."""

from __future__ import annotations

import re
from collections.abc import Mapping

from archir.ir.graph import Graph
from archir.ops.record import OpSet
from archir.target import Drawing

from .labels import COLOURS
from .picture import Box, Cluster, picture
from .texts import cluster_label, last_line, title_lines

CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def write(
    graph: Graph,
    ops: OpSet,
    *,
    depth: int | None = None,
    fold: bool = True,
    kinds: Mapping[str, str] | None = None,
    at: str = "",
) -> Drawing:
    """Write a network as a DOT file, which needs no package; Graphviz draws it.

    Arguments and errors are those of :class:`archir.target.Draw`.
    """
    found = picture(graph, ops, depth=depth, fold=fold, kinds=kinds, at=at)
    names = {id(box): f"n{index}" for index, box in enumerate(found.boxes)}
    lines = [
        f"digraph {_quote(graph.name)} {{",
        f"  label={_quote(found.title)}; labelloc=t;",
        '  rankdir=TB; fontname="Helvetica"; compound=true;',
        '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=11];',
        '  edge [color="#475569"];',
        *_members(found.root, names, "  "),
    ]
    for edge in found.edges:
        look = ' [color="#e11d48", penwidth=2]' if edge.skip else ""
        lines.append(f"  n{edge.source} -> n{edge.target}{look};")
    return Drawing("\n".join([*lines, "}", ""]), len(found.boxes), len(found.edges))


def _members(cluster: Cluster, names: dict[int, str], indent: str) -> list[str]:
    lines: list[str] = []
    for member in cluster.members:
        if isinstance(member, Box):
            lines.append(f"{indent}{names[id(member)]} {_attributes(member)};")
            continue
        lines += [
            f"{indent}subgraph {_quote(f'cluster_{member.path}')} {{",
            f'{indent}  label={_quote(cluster_label(member))}; style=rounded; color="#94a3b8";',
            *_members(member, names, f"{indent}  "),
            f"{indent}}}",
        ]
    return lines


def _attributes(box: Box) -> str:
    fill, line, _, _ = COLOURS[box.family]
    label = _quote(*title_lines(box), last_line(box))
    return f'[label={label}, tooltip={_quote(box.path)}, fillcolor="{fill}", color="{line}"]'


def _quote(*lines: str) -> str:
    """A quoted string; several lines are centred."""
    safe = (CONTROL.sub("\N{REPLACEMENT CHARACTER}", line) for line in lines)
    return '"' + "\\n".join(s.replace("\\", "\\\\").replace('"', '\\"') for s in safe) + '"'
