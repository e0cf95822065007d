"""How well a network does on labelled images. Importing this module needs torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from archir.api import Network, no_weights
from archir.diag import error
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
    with memory(where):
        module = module_of(graph, weights, where)
        feed = Feed(graph, _part(dataset, split), where)
        return run(module, feed, batch_size=batch_size, precision=precision)


def evaluate_together(
    networks: Sequence[Network],
    dataset: Dataset | Sequence[Dataset],
    split: str = "test",
    *,
    batch_size: int = 256,
    device: str = "auto",
    precision: Precision = "f32",
) -> Evaluation:
    """Average the class probabilities of several networks: an ensemble, each with equal weight.

    Args:
        networks: They, with weights. Each normalises the images as it states.
        dataset: What to evaluate on; or one for each network, the same images in the size that
            it takes.
        split: ``train``, ``validation`` or ``test``.
        batch_size: Images at a time.
        device: Where.
        precision: Of the networks; the average is taken in f64.

    Raises:
        ArchirError: A600, a network has no weights; A723, the labels of the data sets differ; those
            of :func:`evaluate`.
    """
    sets = [dataset] * len(networks) if isinstance(dataset, Dataset) else list(dataset)
    parts = [_part(each, split) for each in sets]
    if any(not np.array_equal(part.y, parts[0].y) for part in parts):
        raise error("A723", f"the {split} images of the data sets have other labels")
    where = resolve(device)
    total: torch.Tensor | None = None
    for network, each, part in zip(networks, sets, parts, strict=True):
        if network.weights is None:
            raise no_weights(network.path)
        check_fits(network.graph, each)
        with memory(where):
            module = module_of(network.graph, dict(network.weights), where).eval()
            feed, found = Feed(network.graph, part, where), []
            with torch.inference_mode(), casting(where, precision):
                for x, _ in feed.batches(torch.arange(len(feed)), batch_size):
                    found.append(module(x).double().log_softmax(dim=1).cpu())
        logs = torch.cat(found)
        total = logs if total is None else torch.logaddexp(total, logs)
    assert total is not None, "an ensemble has members"
    labels = torch.from_numpy(parts[0].y)
    predicted = total.argmax(dim=1)
    losses = math.log(len(networks)) - total.gather(1, labels[:, None])
    return Evaluation(
        correct=int((predicted == labels).sum()),
        loss=float(losses.mean()),
        predictions=predicted.numpy(),
    )


def _part(dataset: Dataset, split: str) -> Split:
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}[split]


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
