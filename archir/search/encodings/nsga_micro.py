"""NSGA-Net's micro space: two cells in the manner of NASNet.

Lu et al. 2019, "NSGA-Net: neural architecture search using multi-objective genetic algorithm"
(arXiv 1810.03522); the facts are those of the authors' code.

A network is a stack of two cells, a normal one and one that halves the image. A cell has five
blocks; a block is the sum of two operations, each on one of the two cells before or on an earlier
block; what no block reads is concatenated. Parameters have the names of the authors' network. What
no output depends on (a cell that no cell reads, the ``preprocess0`` of one that reads the cell
before alone) is left out; the authors' parameter counts include it.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from functools import lru_cache

from archir.search.encodings.cell_stack import StackedCell, check_settings, stack_text
from archir.search.encodings.encoding import Encoding, check_genome, in_short

PRIMITIVES = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "sep_conv_7x7",
    "conv_7x1_1x7",
)
"""The operations, in the order of the authors' code."""

_NAMES = {"conv_7x1_1x7": "conv_1x7_7x1"}
"""The authors' code has both names for one operation."""

BLOCKS = 5
"""In a cell; the genome has four integers for each: operation, input, operation, input."""

CHANNELS, LAYERS = 16, 8
"""Of the first cells, and how many cells: the README's command for the micro space."""

HIGHEST = tuple(h for b in range(BLOCKS) for h in (len(PRIMITIVES) - 1, b + 1) * 2) * 2
LOWEST = (0,) * len(HIGHEST)


def encoding(channels: int = CHANNELS, layers: int = LAYERS) -> Encoding:
    """The space as what NSGA-II searches.

    Raises:
        ArchirError: A743, the settings make no network.
    """
    check_settings(channels, layers)
    settings = {"channels": channels, "layers": layers}
    return Encoding("nsga_micro", LOWEST, HIGHEST, program, canonical, settings)


def program(
    genome: Sequence[int],
    *,
    channels: int = CHANNELS,
    layers: int = LAYERS,
    classes: int = 10,
    shape: Sequence[int] = (3, 32, 32),
) -> str:
    """The text of the network of a genome.

    Args:
        genome: 40 integers: the normal cell's blocks, then the reducing cell's.
        channels: Of the first cells; each reduction doubles them.
        layers: How many cells; those at a third and at two thirds reduce.
        classes: The default of the arch's parameter.
        shape: Of an image, ``[C, H, W]``.

    Raises:
        ArchirError: A742, it is no genome of this space; A743, the settings make no network.
    """
    check_genome(genome, LOWEST, HIGHEST, "nsga_micro")
    half = len(genome) // 2
    title = (
        "# A network of NSGA-Net's micro space (Lu et al. 2019). Its genome:\n"
        f"# {in_short(genome[:half])} | {in_short(genome[half:])}\n"
    )
    return stack_text(
        "nsga_micro",
        title,
        (_cell("normal", genome[:half]), _cell("reduction", genome[half:])),
        channels=channels,
        layers=layers,
        classes=classes,
        shape=shape,
    )


def canonical(genome: Sequence[int]) -> Hashable:
    """What equal networks have in common: operations of a block and blocks in any order.

    The authors' comparison takes blocks in another order as equal whatever reads them, and so
    drops some networks that differ; here what reads a block is followed.
    """
    half = len(genome) // 2
    return _canonical(tuple(genome[:half])), _canonical(tuple(genome[half:]))


@lru_cache(maxsize=100_000)
def _canonical(cell: tuple[int, ...]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The least of all ways to write a cell down."""
    blocks = _blocks(cell)
    found = []
    for order in itertools.permutations(range(len(blocks))):
        names = {0: 0, 1: 1, **{block + 2: place + 2 for place, block in enumerate(order)}}
        written = tuple(
            tuple(sorted((op, names[source]) for op, source in blocks[block])) for block in order
        )
        if all(source < place + 2 for place, pairs in enumerate(written) for _, source in pairs):
            found.append(written)
    return min(found)


def _blocks(cell: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Of each block its two pairs of operation and input."""
    rows = [tuple(int(gene) for gene in cell[k : k + 4]) for k in range(0, len(cell), 4)]
    return [((row[0], row[1]), (row[2], row[3])) for row in rows]


def _cell(name: str, genes: Sequence[int]) -> StackedCell:
    blocks = _blocks(genes)
    edges = [
        (_NAMES.get(PRIMITIVES[op], PRIMITIVES[op]), source) for b in blocks for op, source in b
    ]
    read = {source for _, source in edges}
    loose = tuple(node for node in range(2, len(blocks) + 2) if node not in read)
    return StackedCell(name, tuple(edges), loose)
