"""How well a network does on labelled images. Importing this module needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from archir.ir.graph import Graph
from archir.train.data import Dataset, Split, check_fits
from archir.train.device import casting, memory, module_of, resolve
from archir.train.feed import Feed
from archir.train.recipe import Precision
from archir.weights.store import Weights


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The outcome: mean cross entropy (nats) and the class predicted for each image, in order."""

    correct: int
    loss: float
    predictions: NDArray[np.int64] = field(repr=False)

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.predictions)

    @property
    def accuracy(self) -> float:
        """The share of images told right, from 0 to 1."""
        return self.correct / self.count


def evaluate(
    graph: Graph,
    weights: Weights,
    dataset: Dataset,
    split: str = "test",
    *,
    batch_size: int = 256,
    device: str = "auto",
    precision: Precision = "f32",
) -> Evaluation:
    """Run a network over a split (``train``, ``validation`` or ``test``) in eval mode.

    Raises:
        ArchirError: A623 or A625, network and data do not fit; A630, no such device; A633, it has
            too little memory; A5xx, torch cannot run the network.
    """
    check_fits(graph, dataset)
    where = resolve(device)
    part: Split = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}[
        split
    ]
    with memory(where):
        module = module_of(graph, weights, where)
        feed = Feed(graph, part, where)
        return run(module, feed, batch_size=batch_size, precision=precision)


def run(
    module: torch.nn.Module,
    feed: Feed,
    *,
    batch_size: int = 256,
    precision: Precision = "f32",
) -> Evaluation:
    """Evaluate a module of the feed's device; the module's mode is restored afterwards."""
    mode = module.training
    module.eval()
    predictions, losses = [], []
    try:
        with torch.inference_mode(), casting(feed.device, precision):
            for x, target in feed.batches(torch.arange(len(feed)), batch_size):
                logits = module(x).float()
                losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
                predictions.append(logits.argmax(dim=1))
    finally:
        module.train(mode)
    predicted = torch.cat(predictions)
    return Evaluation(
        correct=int((predicted == feed.labels).sum()),
        loss=float(torch.stack(losses).double().sum()) / len(feed),
        predictions=predicted.cpu().numpy(),
    )
