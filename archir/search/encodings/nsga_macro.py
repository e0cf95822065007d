"""NSGA-Net's macro space: phases of nodes whose edges are bits.

Lu et al. 2019 (arXiv 1810.03522), after Xie, Yuille 2017, "Genetic CNN"; the facts are those of the
authors' code (its `residual` decoder, which the search uses).

A network has three phases with a max pooling between them. A phase is a graph of nodes conv 3x3 -
batch norm - ReLU; its bits say which earlier nodes feed a node, and the last one whether the
phase's input goes to its output too. A node without input that feeds others is fed by the phase's
input, one with input that feeds nobody feeds the output, one with neither goes. Several inputs are
concatenated and brought back to the phase's width by a conv 1x1. A phase without edges goes, and
the phases after it move up. Parameters have the names of the authors' network; convolutions that
their forward pass never reaches are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from functools import lru_cache
from math import isqrt

from archir.diag import Source, error
from archir.lang import format_text
from archir.search.encodings.encoding import Encoding, check_genome, check_shape, in_short

PHASES = 3

CHANNELS, NODES = 32, 4
"""Of the first phase, doubled in each phase after it, and in each phase: the README's command for
the macro space, and the code's default. The published network has 6 nodes."""

MAX_NODES = 6
"""Beyond it, equal phases are costly to tell; the space would be larger than any in the paper."""

_NODE = """
block node(width) {
    output input |> model.0: conv(width, 3, bias = false) |> model.1: batch_norm |> model.2: relu
}
"""


def encoding(channels: int = CHANNELS, nodes: int = NODES) -> Encoding:
    """The space as what NSGA-II searches.

    Raises:
        ArchirError: A743, the settings make no network.
    """
    _check_settings(channels, nodes)
    count = PHASES * (nodes * (nodes - 1) // 2 + 1)
    settings = {"channels": channels, "nodes": nodes}
    return Encoding("nsga_macro", (0,) * count, (1,) * count, program, canonical, settings)


def program(
    genome: Sequence[int],
    *,
    channels: int = CHANNELS,
    nodes: int = NODES,
    classes: int = 10,
    shape: Sequence[int] = (3, 32, 32),
) -> str:
    """The text of the network of a genome.

    Args:
        genome: For each of three phases, ``nodes * (nodes - 1) / 2`` bits, first those of the
            second node, then of the third and so on, each from which earlier nodes it is fed;
            then whether the phase's input goes to its output.
        channels: Of the first phase.
        nodes: In a phase.
        classes: The default of the arch's parameter.
        shape: Of an image, ``[C, H, W]``.

    Raises:
        ArchirError: A742, it is no genome of this space; A743, the settings make no network.
    """
    space = encoding(channels, nodes)
    check_genome(genome, space.lowest, space.highest, space.name)
    check_shape(shape)
    phases = [graph for bits in _phases(genome) if (graph := _graph(bits)) is not None]
    _check_sides(shape, len(phases), enters=channels != shape[0])
    blocks, lines, last, width = [], [], "image", shape[0]
    for number, graph in enumerate(phases):
        wide = channels * 2**number
        blocks.append(_phase(f"phase_{number + 1}", graph, None if wide == width else number == 0))
        lines.append(f"model.{2 * number} = {last} |> phase_{number + 1}({_times(2**number)})")
        last, width = f"model.{2 * number}", wide
        if number + 1 < len(phases):
            lines.append(f"model.{2 * number + 1} = max_pool({last}, 2)")
            last = f"model.{2 * number + 1}"
    image = ", ".join(map(str, shape))
    bits = " | ".join(in_short(phase) for phase in _phases(genome))
    text = "\n".join(
        [
            "version 1",
            "# A network of NSGA-Net's macro space (Lu et al. 2019). Its genome:",
            f"# {bits}",
            _NODE if phases else "",
            *blocks,
            f"arch nsga_macro(classes = {classes}, width = {channels}) {{",
            f"input image: f32[N, {image}]",
            *lines,
            f"output logits = {last} |> gap: global_avg_pool |> linear: linear(classes)",
            "}\n",
        ]
    )
    return format_text(Source("nsga_macro", text))


def canonical(genome: Sequence[int]) -> Hashable:
    """What equal networks have in common: phases that are the same up to the order of nodes."""
    found = [_canonical(_graph(bits)) for bits in _phases(genome)]
    return tuple(phase for phase in found if phase is not None)


_Graph = tuple[tuple[int, ...], ...]
"""What each node is fed by, and last the output: 0 is the phase's input, nodes count from 1."""


def _phases(genome: Sequence[int]) -> list[tuple[int, ...]]:
    size = len(genome) // PHASES
    bits = [int(bit) for bit in genome]
    return [tuple(bits[k : k + size]) for k in range(0, len(bits), size)]


def _graph(bits: tuple[int, ...]) -> _Graph | None:
    """The graph of a phase with the authors' repairs; None where it has no edge."""
    if not any(bits[:-1]):
        return None
    count = (1 + isqrt(8 * len(bits) - 7)) // 2
    fed: list[list[int]] = [[]]
    for node in range(1, count):
        start = node * (node - 1) // 2
        fed.append([k + 1 for k in range(node) if bits[start + k]])
    feeds = {source for sources in fed for source in sources}
    ends = [node for node in range(1, count + 1) if fed[node - 1] and node not in feeds]
    for node in feeds:
        if not fed[node - 1]:
            fed[node - 1] = [0]
    return (*map(tuple, fed), (*([0] if bits[-1] else []), *ends))


@lru_cache(maxsize=100_000)
def _canonical(graph: _Graph | None) -> _Graph | None:
    """The least of all ways to number a phase's nodes."""
    if graph is None:
        return None
    live = [node for node in range(1, len(graph)) if graph[node - 1]]
    found = []
    for order in itertools.permutations(live):
        names = {0: 0} | {node: place + 1 for place, node in enumerate(order)}
        written = [tuple(sorted(names[k] for k in graph[node - 1])) for node in (*order, 0)]
        if all(k <= place for place, sources in enumerate(written) for k in sources):
            found.append(tuple(written))
    return min(found)


def _phase(name: str, graph: _Graph, first: bool | None) -> str:
    """A phase as a block. ``first``: whether it starts the network; None keeps the channels."""
    lines = [f"block {name}(width) {{"]
    if first is not None:
        kernel = ", 3, padding = 0" if first else ""
        lines.append(f"x0 = input |> first_conv: conv(width{kernel}, bias = false)")
    names = ["input" if first is None else "x0", *(f"x{k}" for k in range(1, len(graph)))]
    for node, sources in enumerate(graph[:-1], start=1):
        if sources:
            fed = _joined([names[k] for k in sources], node)
            lines.append(f"x{node} = {fed} |> nodes.{node - 1}: node(width)")
    fed = _joined([names[k] for k in graph[-1]], len(graph))
    lines.append(f"output {fed} |> out.0: batch_norm |> out.1: relu\n}}\n")
    return "\n".join(lines)


def _joined(sources: Sequence[str], number: int) -> str:
    if len(sources) == 1:
        return sources[0]
    return f"concat({', '.join(sources)}) |> processors.{number}: conv(width, bias = false)"


def _times(factor: int) -> str:
    return "width" if factor == 1 else f"{factor} * width"


def _check_settings(channels: int, nodes: int) -> None:
    if channels < 1 or not 2 <= nodes <= MAX_NODES:
        raise error(
            "A743",
            f"{channels} channels and {nodes} nodes make no network of this space",
            hint=f"channels are at least 1, nodes from 2 to {MAX_NODES}",
        )


def _check_sides(shape: Sequence[int], phases: int, *, enters: bool) -> None:
    """Make sure that pooling leaves something of an image."""
    for side in shape[1:]:
        left = side - 2 if enters and phases else side
        for _ in range(phases - 1):
            left //= 2
        if left < 1:
            raise error(
                "A743",
                f"of images {' x '.join(map(str, shape[1:]))} nothing is left after "
                f"{phases} phases with a pooling between them",
            )
