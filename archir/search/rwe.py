"""Random-weight evaluation: how well a linear classifier does on what an untrained network makes.

Hu, Cheng, He, Lu, Wang, Zhang 2021 (arXiv 2110.05242): of a network with random weights only the
last linear layer is trained. The paper's numbers are not known here: all below are our choices.
Importing this module needs no torch; evaluating does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from archir.api import Network
from archir.search.parts import Evaluated
from archir.search.untrained import Init, body, draw_weights, stream
from archir.train.data import Dataset, check_fits
from archir.train.entries import check_entries

TRAIN, VALIDATION, WEIGHTS, HEAD, PROJECTION = range(5)
"""What random numbers are drawn for: the second entry of the key they come from."""


@dataclass(frozen=True)
class Rwe:
    """Random-weight evaluation. No number is the paper's.

    The network's own weights are never looked at (constants apart): after a rewrite too all are
    drawn anew, and networks that differ in names alone score the same. Give candidates that are
    to be compared one seed: it draws the images.
    """

    seeds: int = 3
    """Initialisations, whose accuracies are averaged."""
    init: Init = "he"
    """Of convolutions and linear layers: N(0, 2 / fan_in), or torch's defaults (``torch``)."""
    train_images: int = 1000
    """Training images that the classifier learns from, at most."""
    validation_images: int = 1000
    """Validation images that it is scored on, at most."""
    calibration_images: int = 250
    """Of those training images, how many give batch norms their statistics: the mean over batches
    in training mode. With 0 these stay at mean 0 and variance 1."""
    batch: int = 50
    """Images a forward pass: so few stay in a processor's caches."""
    project: int = 0
    """Features that a fixed random projection leaves, so that wide and narrow networks compete
    at equal width; 0: as many as the network has."""
    head: Literal["ridge", "sgd"] = "ridge"
    """``ridge``: least squares on one-hot targets, in closed form; ``sgd``: cross entropy by SGD
    with momentum 0.9 and a cosine. Both in float64, of standardised features."""
    ridge: float = 0.1
    """The penalty: what is added to each feature's variance, which is 1."""
    epochs: int = 50
    """Of the SGD."""
    lr: float = 0.1
    """Its first learning rate."""
    head_batch: int = 512
    """Its images a step."""
    device: str = "auto"
    """Where it runs; no part of :meth:`record`."""

    RANGES: ClassVar[Mapping[str, tuple[float, float]]] = {
        "seeds": (1, 1000),
        "train_images": (2, 10**7),
        "validation_images": (1, 10**7),
        "calibration_images": (0, 10**7),
        "batch": (2, 10**5),
        "project": (0, 10**5),
        "ridge": (1e-9, 1e9),
        "epochs": (1, 10**5),
        "lr": (1e-9, 1e3),
        "head_batch": (1, 10**6),
    }

    def __post_init__(self) -> None:
        """Refuse what makes no evaluation.

        Raises:
            ArchirError: A733.
        """
        check_entries("A733", self, self.RANGES)

    @property
    def inherits(self) -> bool:
        """No: whatever weights come, all are drawn anew."""
        return False

    def record(self) -> Mapping[str, Any]:
        """All entries but the device."""
        return {"kind": "rwe", **{k: v for k, v in asdict(self).items() if k != "device"}}

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        """Score a network: ``accuracy`` is the mean over initialisations, ``std`` their spread.

        Raises:
            ArchirError: A730, the output is not made by a linear layer; A734, features are not
                finite; A623 or A625, network and data do not fit; A140, it has constants and
                comes without; A622, torch is missing; those of :mod:`archir.train.device`.
        """
        from archir.search import features  # noqa: PLC0415 - it needs torch

        check_fits(network.graph, dataset)
        graph = body(network.graph)
        accuracies = []
        with features.placed(graph, dataset, self.device) as place:
            seen = place.some("train", self.train_images, stream(seed, TRAIN))
            unseen = place.some("validation", self.validation_images, stream(seed, VALIDATION))
            for number in range(self.seeds):
                drawn = draw_weights(network, self.init, (seed, WEIGHTS, number))
                module = place.module(graph, {path: drawn[path] for path in graph.parameters})
                if self.calibration_images:
                    features.calibrate(module, seen.first(self.calibration_images), self.batch)
                x, y = (
                    features.features(
                        module, images, self.batch, self.project, stream(seed, PROJECTION)
                    )
                    for images in (seen, unseen)
                )
                x, y = features.standardised(x, y)
                targets = features.one_hot(seen.labels, len(dataset.classes))
                if self.head == "ridge":
                    logits = features.ridge(x, targets, self.ridge, y)
                else:
                    logits = features.sgd(
                        x,
                        targets,
                        y,
                        epochs=self.epochs,
                        lr=self.lr,
                        batch=self.head_batch,
                        drawing=stream(seed, HEAD, number),
                    )
                accuracies.append(float((logits.argmax(1) == unseen.labels).double().mean()))
        mean = float(np.mean(accuracies))
        scores = {"score": mean, "accuracy": mean, "std": float(np.std(accuracies))}
        history = tuple({"initialisation": n, "accuracy": a} for n, a in enumerate(accuracies))
        return Evaluated(scores, history=history)
