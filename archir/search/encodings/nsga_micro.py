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
from dataclasses import dataclass
from functools import lru_cache

from archir.diag import Source, error
from archir.lang import format_text
from archir.search.encodings.encoding import Encoding, check_genome, check_shape, in_short

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

BLOCKS = 5
"""In a cell; the genome has four integers for each: operation, input, operation, input."""

CHANNELS, LAYERS = 16, 8
"""Of the first cells, and how many cells: the README's command for the micro space."""

HIGHEST = tuple(h for b in range(BLOCKS) for h in (len(PRIMITIVES) - 1, b + 1) * 2) * 2
LOWEST = (0,) * len(HIGHEST)

_PARTS = {
    "relu_conv_bn": """
block relu_conv_bn(width) {
    output input |> op.0: relu |> op.1: conv(width, bias = false) |> op.2: batch_norm
}
""",
    "factorized_reduce": """
# Halves the image: two convolutions with stride 2, the second one pixel further down and right.
block factorized_reduce(width) {
    x = input |> relu
    shifted = x |> slice(1, size(x, 2) - 1, axis = 2) |> slice(1, size(x, 3) - 1, axis = 3)
    conv_1 = conv(x, width // 2, 1, 2, bias = false)
    conv_2 = conv(shifted, width // 2, 1, 2, bias = false)
    output concat(conv_1, conv_2) |> bn: batch_norm
}
""",
    "sep_conv": """
block sep_conv(kernel, stride = 1) {
    let width = channels(input)
    output input |> op.0: relu |> op.1: conv(width, kernel, stride, groups = width, bias = false)
        |> op.2: conv(width, bias = false) |> op.3: batch_norm
        |> op.4: relu |> op.5: conv(width, kernel, groups = width, bias = false)
        |> op.6: conv(width, bias = false) |> op.7: batch_norm
}
""",
    "dil_conv": """
block dil_conv(kernel, stride = 1) {
    let width = channels(input)
    output input |> op.0: relu
        |> op.1: conv(width, kernel, stride, dilation = 2, groups = width, bias = false)
        |> op.2: conv(width, bias = false) |> op.3: batch_norm
}
""",
    "conv_7x1_1x7": """
block conv_7x1_1x7(stride = 1) {
    let width = channels(input)
    output input |> `0`: relu |> `1`: conv(width, [1, 7], [1, stride], bias = false)
        |> `2`: conv(width, [7, 1], [stride, 1], bias = false) |> `3`: batch_norm
}
""",
}

_STATES = ("a", "b", *(f"s{b + 2}" for b in range(BLOCKS)))
"""What a cell's inputs (the cell before the last, the last) and its blocks are called."""


def encoding(channels: int = CHANNELS, layers: int = LAYERS) -> Encoding:
    """The space as what NSGA-II searches.

    Raises:
        ArchirError: A743, the settings make no network.
    """
    _check_settings(channels, layers)
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
    _check_settings(channels, layers)
    check_shape(shape)
    reduced = sorted({layers // 3, 2 * layers // 3})
    if any(side % 2 ** len(reduced) for side in shape[1:]):
        raise error(
            "A743",
            f"{layers} cells halve an image {len(reduced)} times, "
            f"and {' x '.join(map(str, shape[1:]))} cannot be halved so often",
        )
    half = len(genome) // 2
    cells = [_Cell("normal", _blocks(genome[:half])), _Cell("reduction", _blocks(genome[half:]))]
    stack = _stack(cells, layers, reduced)
    head = "global_pooling: global_avg_pool |> classifier: linear(classes)"
    blocks = [cell.text(stack) for cell in cells if any(use.cell is cell for use in stack)]
    used = [part for name, part in _PARTS.items() if any(f" {name}(" in text for text in blocks)]
    image = ", ".join(map(str, shape))
    arch = [
        f"arch nsga_micro(classes = {classes}, width = {channels}) {{",
        f"input image: f32[N, {image}]",
        "stem = image |> `0`: conv(3 * width, 3, bias = false) |> `1`: batch_norm",
        *(use.text(stack) for use in stack),
        f"output logits = cells.{layers - 1} |> {head}",
        "}",
    ]
    title = (
        "version 1\n# A network of NSGA-Net's micro space (Lu et al. 2019). Its genome:\n"
        f"# {in_short(genome[:half])} | {in_short(genome[half:])}\n"
    )
    text = title + "".join(used) + "\n" + "\n\n".join(blocks) + "\n\n" + "\n".join(arch) + "\n"
    return format_text(Source("nsga_micro", text))


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


def _check_settings(channels: int, layers: int) -> None:
    if channels < 2 or channels % 2 or layers < 1:
        raise error(
            "A743",
            f"{channels} channels and {layers} cells make no network of this space",
            hint="channels are even and at least 2, cells at least 1",
        )


@dataclass(frozen=True, eq=False)
class _Cell:
    name: str
    blocks: list[tuple[tuple[int, int], tuple[int, int]]]

    @property
    def reads(self) -> frozenset[int]:
        """The inputs and blocks that blocks read."""
        return frozenset(source for block in self.blocks for _, source in block)

    def text(self, stack: Sequence[_Use]) -> str:
        """The cell as a block of the language. ``input`` is the last cell where that is read."""
        formals = ["older: tensor", "width"] if {0, 1} <= self.reads else ["width"]
        lines = []
        if 0 in self.reads:
            older = "older" if 1 in self.reads else "input"
            lines.append(self._older(older, stack))
            if self.varies(stack):
                formals.append("halve = false")
        if 1 in self.reads:
            lines.append("b = preprocess1: relu_conv_bn(input, width)")
        for number, block in enumerate(self.blocks):
            first, second = (self._edge(2 * number + k, *pair) for k, pair in enumerate(block))
            lines.append(f"{_STATES[number + 2]} = {first} + {second}")
        loose = [name for k, name in enumerate(_STATES) if k > 1 and k not in self.reads]
        joined = ", ".join(loose)
        lines.append(f"output concat({joined})" if len(loose) > 1 else f"output {joined}")
        about = (
            ""
            if len(formals) < 2
            else "# `input` is the cell before, `older` the one before that.\n"
        )
        body = "\n".join(lines)
        return f"{about}block {self.name}({', '.join(formals)}) {{\n{body}\n}}"

    def varies(self, stack: Sequence[_Use]) -> bool:
        """Whether some of its uses halve the cell before the last, and others do not."""
        return 0 in self.reads and len({use.halves for use in stack if use.cell is self}) > 1

    def _older(self, older: str, stack: Sequence[_Use]) -> str:
        plain = f"preprocess0: relu_conv_bn({older}, width)"
        half = f"preprocess0: factorized_reduce({older}, width)"
        if self.varies(stack):
            return f"a = if halve\nthen {half}\nelse {plain}"
        return f"a = {half if any(use.halves for use in stack if use.cell is self) else plain}"

    def _edge(self, number: int, op: int, source: int) -> str:
        """An operation on a state; those on a reducing cell's inputs have stride 2."""
        x, name = _STATES[source], PRIMITIVES[op]
        stride = 2 if self.name == "reduction" and source < 2 else 1
        if name.endswith("pool_3x3"):
            counted = "" if name.startswith("max") else ", count_include_pad = false"
            return f"{name.removesuffix('_3x3')}({x}, 3, {stride}, padding = 1{counted})"
        if name == "skip_connect":
            return x if stride == 1 else f"_ops.{number}: factorized_reduce({x}, width)"
        block, _, kernel = (name, "", "") if op == 8 else name.rpartition("_")
        arguments = [x, *kernel[:1], *(["2"] if stride == 2 else [])]
        return f"_ops.{number}: {block}({', '.join(arguments)})"


@dataclass(frozen=True)
class _Use:
    """A cell at its place in the stack."""

    cell: _Cell
    number: int
    scale: int
    """Its channels are so many times the first cells'."""
    halves: bool
    """Whether the cell before the last has twice the last one's sides."""

    def text(self, stack: Sequence[_Use]) -> str:
        before = [f"cells.{self.number - k}" if self.number >= k else "stem" for k in (1, 2)]
        read = [before[1 - source] for source in (1, 0) if source in self.cell.reads]
        width = "width" if self.scale == 1 else f"{self.scale} * width"
        halve = ["true"] if self.halves and self.cell.varies(stack) else []
        return f"cells.{self.number} = {self.cell.name}({', '.join([*read, width, *halve])})"


def _stack(cells: Sequence[_Cell], layers: int, reduced: Sequence[int]) -> list[_Use]:
    """The cells that the output depends on, in order."""
    made = []
    for number in range(layers):
        cell = cells[number in reduced]
        scale = 2 ** sum(place <= number for place in reduced)
        made.append(_Use(cell, number, scale, number - 1 in reduced))
    live = {layers - 1}
    for use in reversed(made):
        if use.number in live:
            live |= {use.number - 2 + source for source in (0, 1) if source in use.cell.reads}
    return [use for use in made if use.number in live]
