"""Training as an evaluator: a network is scored by how well it does after some epochs.

Importing this module needs no torch; evaluating does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from archir.api import Network
from archir.search.parts import Evaluated
from archir.train.data import Dataset, joined
from archir.train.recipe import TrainConfig

RUN = "train"
"""The run folder of a training within its evaluation's folder."""


@dataclass(frozen=True)
class Training:
    """Trains a network from the weights that it comes with, and scores it on validation images.

    A network without weights is initialised by the seed first, which is that of the recipe too.
    """

    config: TrainConfig = field(default_factory=TrainConfig)
    """The recipe. Its device is left open: see ``device``."""
    join: bool = False
    """Whether validation images are trained on as well: for the training of a winner. Its score
    is that on images it has seen, so that it compares with nothing; it is called ``fitted`` in
    the place of ``accuracy``."""
    device: str = "auto"

    @property
    def inherits(self) -> bool:
        """The score depends on the weights that a network comes with."""
        return True

    def record(self) -> Mapping[str, Any]:
        """The recipe, without its seed, which is that of each evaluation."""
        recipe = {k: v for k, v in self.config.record().items() if k != "seed"}
        return {"kind": "training", "join": self.join, "recipe": recipe}

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        """Train a network; an evaluation that was cut off goes on from its last checkpoint.

        Raises:
            ArchirError: those of :func:`archir.train.session.train_network`.
        """
        from archir.train.session import train_network  # noqa: PLC0415 - it needs torch

        start = network if network.weights is not None else network.init(seed)
        done = train_network(
            start,
            joined(dataset) if self.join else dataset,
            replace(self.config, seed=seed, device=self.device),
            run_dir=folder / RUN,
            existing="resume",
        )
        found = done.result.validation
        name = "fitted" if self.join else "accuracy"
        scores = {"score": found.accuracy, name: found.accuracy, "loss": found.loss}
        history = tuple(
            {
                "epoch": line.epoch,
                "loss": line.train_loss,
                "validation_loss": line.validation_loss,
                name: line.validation_accuracy,
                "lr": line.lr,
            }
            for line in done.result.history
        )
        return Evaluated(scores, done.network, history)
