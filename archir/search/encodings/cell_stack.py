"""Programs of stacks of cells in the manner of NASNet: normal ones, and ones that halve the image.

A cell reads the two cells before it, each through a convolution that gives it its channels; its
nodes are sums of two operations on inputs and earlier nodes, and some nodes, concatenated, leave
it. The cells at a third and at two thirds of the stack halve the image and double the channels:
their operations on the two inputs have stride 2. Parameters have the names of DARTS' code (Liu,
Simonyan, Yang 2019), from which the code of NSGA-Net and of NAT descends. What no output depends
on (a node that nothing reads, a cell that no cell reads, a ``preprocess0``) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from archir.diag import Source, error
from archir.lang import format_text
from archir.search.encodings.encoding import LARGEST, check_shape

_CROSSED = """
block conv_7x1_1x7(stride = 1) {
    let width = channels(input)
    output input |> `0`: relu |> `1`: conv(width, [1, 7], [1, stride], bias = false)
        |> `2`: conv(width, [7, 1], [stride, 1], bias = false) |> `3`: batch_norm
}
"""

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
    "dense_conv": """
block dense_conv(kernel, stride = 1) {
    let width = channels(input)
    output input |> op.0: relu |> op.1: conv(width, kernel, stride, bias = false)
        |> op.2: batch_norm
}
""",
    "conv_7x1_1x7": _CROSSED,
    "conv_3x1_1x3": _CROSSED.replace("7", "3"),
}


_BLOCKS = {
    "conv_1x1": ("dense_conv", 1),
    "conv_3x3": ("dense_conv", 3),
    "conv_5x5": ("dense_conv", 5),
    "sep_conv_3x3": ("sep_conv", 3),
    "sep_conv_5x5": ("sep_conv", 5),
    "sep_conv_7x7": ("sep_conv", 7),
    "dil_conv_3x3": ("dil_conv", 3),
    "dil_conv_5x5": ("dil_conv", 5),
    "conv_1x3_3x1": ("conv_3x1_1x3", 0),
    "conv_1x7_7x1": ("conv_7x1_1x7", 0),
}
"""Operations with weights: the block of each, and its kernel where it takes one."""


@dataclass(frozen=True, eq=False)
class StackedCell:
    """A cell as a block of the language."""

    name: str
    """``normal``, or ``reduction``: one that halves the image."""
    edges: tuple[tuple[str, int], ...]
    """An operation and the node that it reads: two for each node after the two inputs."""
    output: tuple[int, ...]
    """The nodes that leave it."""

    @property
    def live(self) -> frozenset[int]:
        """The inputs and nodes that its output depends on."""
        found = set(self.output)
        for node in range(len(self.edges) // 2 + 1, 1, -1):
            if node in found:
                found |= {source for _, source in self._pair(node)}
        return frozenset(found)

    def _pair(self, node: int) -> tuple[tuple[str, int], ...]:
        return self.edges[2 * node - 4 : 2 * node - 2]

    def text(self, stack: Sequence[_Use]) -> str:
        """The block. ``input`` is the last cell where that is read."""
        reads = self.live & {0, 1}
        formals = ["older: tensor", "width"] if len(reads) > 1 else ["width"]
        lines = []
        if 0 in reads:
            lines.append(self._older("older" if 1 in reads else "input", stack))
            if self.varies(stack):
                formals.append("halve = false")
        if 1 in reads:
            lines.append("b = preprocess1: relu_conv_bn(input, width)")
        for node in sorted(self.live - {0, 1}):
            pair = enumerate(self._pair(node), 2 * node - 4)
            first, second = (self._edge(number, *edge) for number, edge in pair)
            lines.append(f"{_state(node)} = {first} + {second}")
        joined = ", ".join(map(_state, self.output))
        lines.append(f"output concat({joined})" if len(self.output) > 1 else f"output {joined}")
        about = (
            ""
            if len(formals) < 2
            else "# `input` is the cell before, `older` the one before that.\n"
        )
        body = "\n".join(lines)
        return f"{about}block {self.name}({', '.join(formals)}) {{\n{body}\n}}"

    def varies(self, stack: Sequence[_Use]) -> bool:
        """Whether some of its uses halve the cell before the last, and others do not."""
        return 0 in self.live and len({use.halves for use in stack if use.cell is self}) > 1

    def _older(self, older: str, stack: Sequence[_Use]) -> str:
        plain = f"preprocess0: relu_conv_bn({older}, width)"
        half = f"preprocess0: factorized_reduce({older}, width)"
        if self.varies(stack):
            return f"a = if halve\nthen {half}\nelse {plain}"
        return f"a = {half if any(use.halves for use in stack if use.cell is self) else plain}"

    def _edge(self, number: int, op: str, source: int) -> str:
        """An operation on a node."""
        x = _state(source)
        stride = 2 if self.name == "reduction" and source < 2 else 1
        if op == "null":
            return f"null({x}, 2)" if stride == 2 else f"null({x})"
        if op == "skip_connect":
            return x if stride == 1 else f"_ops.{number}: factorized_reduce({x}, width)"
        if "_pool_" in op:
            return _pooling(op, x, stride)
        block, kernel = _BLOCKS[op]
        arguments = [x, *([str(kernel)] if kernel else []), *(["2"] if stride == 2 else [])]
        return f"_ops.{number}: {block}({', '.join(arguments)})"


def _state(node: int) -> str:
    """What a cell's inputs (the cell before the last, the last) and its nodes are called."""
    return "ab"[node] if node < 2 else f"s{node}"


def _pooling(op: str, x: str, stride: int) -> str:
    kind, _, kernel = op.rpartition("_")
    k = int(kernel[0])
    counted = "" if kind == "max_pool" else ", count_include_pad = false"
    if k == 2 and stride == 1:
        raise error("A770", f"{op} halves the image, and stands on an edge that does not")
    return f"{kind}({x}, {k}, {stride}, padding = {(k - 1) // 2}{counted})"


@dataclass(frozen=True)
class _Use:
    """A cell at its place in the stack."""

    cell: StackedCell
    number: int
    scale: int
    """Its channels are so many times the first cells'."""
    halves: bool
    """Whether the cell before the last has twice the last one's sides."""

    def text(self, stack: Sequence[_Use]) -> str:
        before = [f"cells.{self.number - k}" if self.number >= k else "stem" for k in (1, 2)]
        read = [before[1 - source] for source in (1, 0) if source in self.cell.live]
        width = "width" if self.scale == 1 else f"{self.scale} * width"
        halve = ["true"] if self.halves and self.cell.varies(stack) else []
        return f"cells.{self.number} = {self.cell.name}({', '.join([*read, width, *halve])})"


def _stack(cells: Sequence[StackedCell], layers: int, reduced: Sequence[int]) -> list[_Use]:
    """The cells that the output depends on, in order."""
    made = []
    for number in range(layers):
        cell = cells[number in reduced]
        scale = 2 ** sum(place <= number for place in reduced)
        made.append(_Use(cell, number, scale, number - 1 in reduced))
    live = {layers - 1}
    for use in reversed(made):
        if use.number in live:
            live |= {use.number - 2 + source for source in (0, 1) if source in use.cell.live}
    return [use for use in made if use.number in live]


def stack_text(
    name: str,
    title: str,
    cells: tuple[StackedCell, StackedCell],
    *,
    channels: int,
    layers: int,
    classes: int,
    shape: Sequence[int],
) -> str:
    """The text of a stack of cells.

    Args:
        name: Of the arch.
        title: Its comment, with a line feed at its end.
        cells: The normal cell and the one that halves the image.
        channels: Of the first cells; each reduction doubles them.
        layers: How many cells; those at a third and at two thirds reduce.
        classes: The default of the arch's parameter.
        shape: Of an image, ``[C, H, W]``.

    Raises:
        ArchirError: A743, the settings make no network; A770, a pooling of 2 x 2 does not halve.
    """
    check_settings(channels, layers)
    check_shape(shape)
    if not 1 <= classes <= LARGEST:
        raise error("A743", f"{classes} is no number of classes")
    reduced = sorted({layers // 3, 2 * layers // 3})
    if any(side % 2 ** len(reduced) for side in shape[1:]):
        raise error(
            "A743",
            f"{layers} cells halve an image {len(reduced)} times, "
            f"and {' x '.join(map(str, shape[1:]))} cannot be halved so often",
        )
    stack = _stack(cells, layers, reduced)
    head = "global_pooling: global_avg_pool |> classifier: linear(classes)"
    blocks = [cell.text(stack) for cell in cells if any(use.cell is cell for use in stack)]
    used = [part for name, part in _PARTS.items() if any(f" {name}(" in text for text in blocks)]
    image = ", ".join(map(str, shape))
    arch = [
        f"arch {name}(classes = {classes}, width = {channels}) {{",
        f"input image: f32[N, {image}]",
        "stem = image |> `0`: conv(3 * width, 3, bias = false) |> `1`: batch_norm",
        *(use.text(stack) for use in stack),
        f"output logits = cells.{layers - 1} |> {head}",
        "}",
    ]
    body = "".join(used) + "\n" + "\n\n".join(blocks) + "\n\n" + "\n".join(arch) + "\n"
    return format_text(Source(name, f"version 1\n{title}{body}"))


def check_settings(channels: int, layers: int) -> None:
    """Make sure that so many channels and cells make a network.

    Raises:
        ArchirError: A743.
    """
    if channels % 2 or not 2 <= channels <= LARGEST or not 1 <= layers <= LARGEST:
        raise error(
            "A743",
            f"{channels} channels and {layers} cells make no network of this space",
            hint=f"channels are even and at least 2, cells at least 1; {LARGEST:,} at most",
        )
