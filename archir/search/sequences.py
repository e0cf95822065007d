"""Networks as sequences of layers, as EAS reads and changes them.

Cai, Chen, Zhang, Yu, Wang 2018, "Efficient architecture search by network transformation" (EAS,
arXiv 1707.04873). Importing this module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from archir.api import Application
from archir.ir.graph import Graph


@dataclass(frozen=True)
class Layer:
    """A layer as the policy reads it."""

    token: str
    """A word of the space's vocabulary, such as ``conv-16-3``, ``pool``, ``fc-256``, ``g12``."""
    at: str
    """The path of the node that stands for it, such as its convolution."""
    wider: bool
    """Whether it can be widened: it has channels of its own, and a level above them."""


@dataclass(frozen=True)
class LayerSequence:
    """A network as the policy reads it."""

    layers: tuple[Layer, ...]
    """From the input to the output; the layer that makes the output is left out."""
    blocks: tuple[tuple[int, ...], ...]
    """Layers behind which one may be inserted, as indices into ``layers``, block by block."""
    kernels: tuple[bool, ...]
    """By block, whether an inserted layer has a kernel to be chosen."""


class LayerSpace(Protocol):
    """A kind of networks, and how they grow."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words that stand for layers."""

    @property
    def most(self) -> tuple[int, int, int]:
        """The most layers, blocks, and layers in a block, that the policy can read."""

    @property
    def kernels(self) -> tuple[int, ...]:
        """The choices for an inserted layer; one where there is nothing to choose."""

    def read(self, graph: Graph) -> LayerSequence:
        """A network as a sequence.

        Raises:
            ArchirError: A761, it is no network of this kind; A762, it has more layers than the
                policy can read, or a width that is no level.
        """

    def widened(self, graph: Graph, layer: int) -> list[Application]:
        """The rules that take a layer to the next level of its width."""

    def deepened(self, graph: Graph, block: int, place: int, kernel: int) -> list[Application]:
        """The rules that insert a layer behind another, by its block and its place in there."""

    def finished(self, graph: Graph) -> list[Application]:
        """The rules that follow from what was done in an episode (widths of transitions)."""
