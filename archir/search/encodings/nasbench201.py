"""NAS-Bench-201's cells as programs.

Dong, Yang 2020, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search",
section 2.1 (arXiv 2001.00326). A cell has four nodes and an operation on each of its six edges; a
node is the sum of what its edges bring it. Networks are built as the authors' code builds them,
and their parameters have its names. That includes layers whose result nobody reads: the published
numbers count them too.

The published "params" are all trained numbers, those of batch norms included. The published
"FLOPs" are multiply-accumulates, and further 2 for each value that a batch norm makes, 1 for each
that a ReLU makes, and the size of the window for each that an average pooling makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from archir.diag import Source, error
from archir.lang import format_text
from archir.search.encodings.encoding import Encoding, check_genome

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From which node to which; the authors' network calls the layer of the k-th ``layers.k``."""

CHANNELS, CELLS = 16, 5
"""Of the first of three stages, and in each stage (section 2.1)."""

_NODES = ("input", "a", "b")

_TEXT = """\
version 1
# NAS-Bench-201 (Dong, Yang 2020), the cell
# {notation}
block relu_conv_bn(width, kernel = 3, stride = 1) {{
    output input |> op.0: relu |> op.1: conv(width, kernel, stride, bias = false)
                 |> op.2: batch_norm
}}
{pooling}
block cell(width) {{
{cell}
}}

block reduction(width) {{
    y        = input |> conv_a: relu_conv_bn(width, stride = 2) |> conv_b: relu_conv_bn(width)
    shortcut = input |> downsample.0: avg_pool(2) |> downsample.1: conv(width, 1, bias = false)
    output shortcut + y
}}

arch nasbench201(classes = {classes}) {{
    input image: f32[N, {shape}]
    stem = image |> `0`: conv({c1}, 3, bias = false) |> `1`: batch_norm
    cells = stem |> {n} * cell({c1}) |> reduction({c2}) |> {n} * cell({c2}) |> reduction({c4})
                 |> {n} * cell({c4})
    output logits = cells |> lastact.0: batch_norm |> lastact.1: relu |> pool: global_avg_pool
                          |> classifier: linear(classes)
}}
"""


def encoding(channels: int = CHANNELS, cells: int = CELLS) -> Encoding:
    """The space as what NSGA-II searches: for each edge the place of its operation in the list."""
    lowest, highest = (0,) * len(EDGES), (len(OPERATIONS) - 1,) * len(EDGES)

    def made(genome: Sequence[int], **facts: Any) -> str:
        check_genome(genome, lowest, highest, "nasbench201")
        text = program([OPERATIONS[int(gene)] for gene in genome], **facts)
        return format_text(Source("nasbench201", text))

    settings = {"channels": channels, "cells": cells}
    return Encoding("nasbench201", lowest, highest, made, tuple, settings)


_POOLING = """
block pool {
    output input |> op: avg_pool(3, 1, 1, count_include_pad = false)
}
"""


def program(
    ops: Sequence[str],
    *,
    channels: int = CHANNELS,
    cells: int = CELLS,
    classes: int = 10,
    shape: Sequence[int] = (3, 32, 32),
) -> str:
    """The text of the network that has a cell.

    Args:
        ops: Six of :data:`OPERATIONS`, in the order of :data:`EDGES`.
        channels: Of the first stage; the second has twice as many, the third four times.
        cells: In each stage.
        classes: The default of the arch's parameter.
        shape: Of an image; two reductions halve its sides.

    Raises:
        ArchirError: A732, these are not six of the operations.
    """
    if len(ops) != len(EDGES) or not set(ops) <= set(OPERATIONS):
        raise error(
            "A732",
            f"a cell of NAS-Bench-201 has {len(EDGES)} operations, not {list(ops)}",
            hint=f"the operations are {', '.join(OPERATIONS)}",
        )
    text = _TEXT.format(
        notation=notation(ops),
        pooling=_POOLING if "avg_pool_3x3" in ops else "",
        cell="\n".join(f"    {line}" for line in _cell(ops)),
        classes=classes,
        shape=", ".join(map(str, shape)),
        n=cells,
        c1=channels,
        c2=2 * channels,
        c4=4 * channels,
    )
    return format_text(Source("cell.arch", text))


def notation(ops: Sequence[str]) -> str:
    """A cell as the benchmark writes it: ``|nor_conv_3x3~0|+|...~0|...~1|+|...``."""
    brought: dict[int, list[str]] = {}
    for op, (source, target) in zip(ops, EDGES, strict=True):
        brought.setdefault(target, []).append(f"{op}~{source}")
    return "+".join(f"|{'|'.join(parts)}|" for parts in brought.values())


def _cell(ops: Sequence[str]) -> list[str]:
    """The statements of the cell's block; a node that nobody reads stays if it has a layer."""
    live = [(k, op, *EDGES[k]) for k, op in enumerate(ops) if op != "none"]
    lines = []
    for node, name in enumerate((*_NODES[1:], "")):
        parts = [_edge(k, op, source) for k, op, source, target in live if target == node + 1]
        value = " + ".join(parts) or "null(input)"
        read = any(source == node + 1 for _, _, source, _ in live)
        if not name:
            lines.append(f"output {value}")
        elif read or "layers" in value:
            lines.append(f"{name} = {value}")
    return lines


def _edge(k: int, op: str, source: int) -> str:
    x = _NODES[source]
    return {
        "skip_connect": x,
        "nor_conv_1x1": f"layers.{k}: relu_conv_bn({x}, width, 1)",
        "nor_conv_3x3": f"layers.{k}: relu_conv_bn({x}, width)",
        "avg_pool_3x3": f"layers.{k}: pool({x})",
    }[op]
