"""Cells as operations on edges, and the transitions of NAT and NAT++ between operations.

A cell has nodes; the first ones are its inputs, each other node is the sum of what its two edges
hand over, and its output is the concatenation of some nodes (Guo et al. 2019, NAT, arXiv
1910.14488; Guo et al. 2021, NAT++, arXiv 2102.10301; the facts are those of the authors' code).

Importing this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Transitions = Literal["nat", "nat++"]

OPS = (
    "max_pool_3x3",
    "max_pool_5x5",
    "avg_pool_3x3",
    "avg_pool_5x5",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_1x1",
    "conv_3x3",
    "conv_5x5",
    "null",
    "max_pool_2x2",
    "avg_pool_2x2",
    "conv_1x3_3x1",
    "conv_1x7_7x1",
)
"""The operations: the 13 of NAT++ in the order of its code, and those that NAONet alone has."""

SKIP, NULL = "skip_connect", "null"

ACTIONS: Mapping[Transitions, tuple[str, ...]] = {"nat": (NULL, "same", SKIP), "nat++": OPS}
"""What a policy chooses from for each edge, in the order of its logits."""

_POOLS = ("max_pool_5x5", "max_pool_3x3", "avg_pool_5x5", "avg_pool_3x3")
_SMALL_POOLS = ("max_pool_3x3", "avg_pool_3x3")

_NAT2: Mapping[str, tuple[str, ...]] = {
    "conv_5x5": (
        "conv_3x3",
        "conv_1x1",
        "sep_conv_5x5",
        "sep_conv_3x3",
        "dil_conv_5x5",
        "dil_conv_3x3",
        *_POOLS,
    ),
    "conv_3x3": ("conv_1x1", "sep_conv_3x3", "dil_conv_3x3", *_SMALL_POOLS),
    "conv_1x1": (),
    "sep_conv_5x5": ("sep_conv_3x3", "dil_conv_5x5", "dil_conv_3x3", *_POOLS),
    "sep_conv_3x3": ("dil_conv_3x3", *_SMALL_POOLS),
    "dil_conv_5x5": ("dil_conv_3x3", *_POOLS),
    "dil_conv_3x3": _SMALL_POOLS,
    "max_pool_5x5": ("avg_pool_5x5", *_SMALL_POOLS),
    "avg_pool_5x5": ("max_pool_5x5", *_SMALL_POOLS),
    "max_pool_3x3": ("avg_pool_3x3",),
    "avg_pool_3x3": ("max_pool_3x3",),
}
"""What an operation may become beside itself, a skip and nothing (NAT++, the code's table)."""


def targets(transitions: Transitions, op: str, *, strided: bool = False) -> tuple[str, ...]:
    """What an operation may become, itself first.

    Args:
        transitions: NAT's, where operations only stay, or become a skip or nothing; or NAT++'s.
            What NAT++ has no row for (NAONet's own operations) has NAT's.
        op: One of :data:`OPS`.
        strided: Whether the edge halves the image. A skip is made of convolutions there, which
            have parameters, so that nothing else may become one: the cost would rise. The
            published code has no such exception.
    """
    if op == NULL:
        return (NULL,) if strided else (NULL, SKIP)
    cheaper = _NAT2.get(op, ()) if transitions == "nat++" else ()
    skip = () if op == SKIP or strided else (SKIP,)
    return (op, *cheaper, *skip, NULL)


def action(transitions: Transitions, op: str, target: str) -> int:
    """The logit that stands for a transition.

    Of NAT's three choices for an edge that is a skip, or nothing, two mean the same: it is
    ``skip`` or ``null`` that is used, and not ``same``.
    """
    names = ACTIONS[transitions]
    if transitions == "nat" and target not in (SKIP, NULL):
        return names.index("same")
    return names.index(target)


@dataclass(frozen=True)
class Edge:
    """An operation between two nodes."""

    op: str
    """One of :data:`OPS`."""
    source: int
    target: int
    strided: bool = False
    """Whether it halves the image."""


@dataclass(frozen=True)
class Cell:
    """Nodes by number: first the inputs, then each with two edges that come from earlier nodes."""

    edges: tuple[Edge, ...]
    """Two for each node that is no input, in the order of these nodes."""
    output: tuple[int, ...]
    """The nodes whose concatenation leaves the cell."""
    inputs: int = 2

    @property
    def nodes(self) -> int:
        """How many there are, inputs included."""
        return self.inputs + len(self.edges) // 2


def with_ops(cell: Cell, ops: Sequence[str]) -> Cell:
    """A cell with other operations on its edges."""
    pairs = zip(cell.edges, ops, strict=True)
    return replace(cell, edges=tuple(replace(edge, op=op) for edge, op in pairs))


def is_alive(cell: Cell) -> bool:
    """Whether anything of what a cell reads leaves it."""
    alive = set(range(cell.inputs))
    for edge in cell.edges:  # in the order of the nodes that they lead to
        if edge.op != NULL and edge.source in alive:
            alive.add(edge.target)
    return bool(alive & set(cell.output))


@dataclass(frozen=True)
class Architecture:
    """A network of two kinds of cells; both may be equal."""

    normal: Cell
    reduction: Cell


def _cell(text: str, output: tuple[int, ...], *, halves: bool = False) -> Cell:
    """A cell from words such as ``sep_conv_3x3:0-2``."""
    edges = []
    for word in text.split():
        op, _, ends = word.partition(":")
        source, target = (int(end) for end in ends.split("-"))
        edges.append(Edge(op, source, target, strided=halves and source < 2))
    return Cell(tuple(edges), output)


_VGG = "null:0-2 skip_connect:1-2 null:0-3 conv_3x3:2-3 null:0-4 conv_3x3:3-4 "
_RESNET = _VGG + "skip_connect:2-5 skip_connect:4-5"
_MOBILENET = "null:0-2 conv_1x1:1-2 null:0-3 sep_conv_3x3:2-3 null:0-4 conv_1x1:3-4 "

FAMILIES: Mapping[str, Architecture] = {
    "darts": Architecture(
        _cell(
            "sep_conv_3x3:0-2 sep_conv_3x3:1-2 sep_conv_3x3:0-3 sep_conv_3x3:1-3 sep_conv_3x3:1-4 "
            "skip_connect:0-4 skip_connect:0-5 dil_conv_3x3:2-5",
            (2, 3, 4, 5),
        ),
        _cell(
            "max_pool_3x3:0-2 max_pool_3x3:1-2 skip_connect:2-3 max_pool_3x3:1-3 max_pool_3x3:0-4 "
            "skip_connect:2-4 skip_connect:2-5 max_pool_3x3:1-5",
            (2, 3, 4, 5),
            halves=True,
        ),
    ),
    "enas": Architecture(
        _cell(
            "sep_conv_3x3:1-2 skip_connect:1-2 skip_connect:0-3 sep_conv_5x5:1-3 avg_pool_3x3:0-4 "
            "sep_conv_3x3:1-4 sep_conv_3x3:0-5 avg_pool_3x3:1-5 avg_pool_3x3:0-6 sep_conv_5x5:1-6",
            (2, 3, 4, 5, 6),
        ),
        _cell(
            "sep_conv_5x5:0-2 avg_pool_3x3:1-2 sep_conv_3x3:1-3 avg_pool_3x3:1-3 avg_pool_3x3:1-4 "
            "sep_conv_3x3:1-4 avg_pool_3x3:1-5 sep_conv_5x5:4-5 sep_conv_5x5:0-6 sep_conv_3x3:5-6",
            (2, 3, 6),
            halves=True,
        ),
    ),
    "naonet": Architecture(
        _cell(
            "conv_3x3:0-2 avg_pool_5x5:1-2 conv_3x3:1-3 conv_1x3_3x1:2-3 conv_1x1:0-4 conv_3x3:1-4 "
            "conv_1x3_3x1:0-5 conv_3x3:4-5 conv_3x3:0-6 skip_connect:1-6",
            (3, 5, 6),
        ),
        _cell(
            "conv_3x3:0-2 avg_pool_2x2:1-2 conv_1x1:0-3 avg_pool_3x3:0-3 max_pool_2x2:0-4 "
            "conv_1x7_7x1:1-4 avg_pool_3x3:0-5 conv_1x1:2-5 conv_3x3:0-6 max_pool_3x3:1-6",
            (3, 4, 5, 6),
            halves=True,
        ),
    ),
    "vgg": Architecture(
        _cell(_VGG + "null:0-5 skip_connect:4-5", (5,)),
        _cell(_VGG + "null:0-5 max_pool_3x3:4-5", (5,), halves=True),
    ),
    "resnet": Architecture(_cell(_RESNET, (5,)), _cell(_RESNET, (5,), halves=True)),
    "mobilenet": Architecture(
        _cell(_MOBILENET + "skip_connect:1-5 skip_connect:4-5", (5,)),
        _cell(_MOBILENET + "null:0-5 skip_connect:4-5", (5,), halves=True),
    ),
}
"""The cells that NAT starts from: those of DARTS, ENAS and NAONet, and VGG's, ResNet's and
MobileNetV2's written as such cells."""
