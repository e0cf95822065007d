"""NAT's evaluators: what trains a policy, and what scores cells with shared weights.

Importing this module needs no torch; evaluating does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archir.api import Network
from archir.search.cells import Cell
from archir.search.nat_config import NatConfig, learning
from archir.search.parts import Evaluated
from archir.train.data import Dataset


@dataclass(frozen=True)
class NatTraining:
    """Trains a supernet and a policy for the cells of a network, and keeps both.

    The score is the mean reward of the policy's samples for these cells on validation images: how
    much more accurate they are than the cells, with shared weights.
    """

    config: NatConfig
    cells: tuple[Cell, ...]
    """The network's, each kind once."""
    device: str = "auto"

    @property
    def inherits(self) -> bool:
        """No: the shared weights are others than the network's."""
        return False

    def record(self) -> Mapping[str, Any]:
        """The settings; the cells are the network's."""
        return {"kind": "nat_training", **learning(self.config)}

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        """Train; what was cut off goes on from its last epoch.

        Raises:
            ArchirError: those of :func:`archir.search.nat_loop.learn`.
        """
        from archir.search.nat_loop import learn  # noqa: PLC0415 - it needs torch

        return learn(
            network, self.cells, dataset, self.config, seed=seed, folder=folder, device=self.device
        )


@dataclass(frozen=True)
class SharedWeights:
    """Scores cells by their accuracy with the weights of a supernet, on validation images."""

    supernet: bytes = field(repr=False)
    """Its file."""
    cells: tuple[tuple[Cell, ...], ...]
    """By the number that is an evaluation's seed, a cell of each kind; those of the input first."""
    images: int
    """Validation images, at most."""
    device: str = "auto"

    @property
    def inherits(self) -> bool:
        """No: the shared weights are others than the network's."""
        return False

    def record(self) -> Mapping[str, Any]:
        """The supernet by its hash; the cells are the networks'."""
        digest = hashlib.sha256(self.supernet).hexdigest()
        return {"kind": "shared_weights", "supernet": digest, "images": self.images}

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        """Score one of the networks, by its number.

        Raises:
            ArchirError: those of :func:`archir.search.nat_loop.compare`.
        """
        from archir.search.nat_loop import compare  # noqa: PLC0415 - it needs torch

        path = folder / "supernet.safetensors"
        path.write_bytes(self.supernet)
        pair: tuple[Sequence[Cell], Sequence[Cell]] = (self.cells[0], self.cells[seed])
        return compare(network, path, pair, dataset, most=self.images, device=self.device)
