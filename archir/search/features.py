"""Features of an untrained network, and linear classifiers on them. Importing this needs torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch

from archir.diag import error
from archir.ir.graph import Graph
from archir.ops.carried import is_carried
from archir.train.data import Dataset
from archir.train.device import memory, module_of, resolve, running
from archir.train.feed import Feed
from archir.weights.store import Weights


@dataclass(frozen=True)
class Images:
    """Some of the images of a split."""

    feed: Feed
    rows: torch.Tensor
    """int64 ``[N]``."""
    last: bool
    """Whether channels come last in memory."""

    @property
    def labels(self) -> torch.Tensor:
        """int64 ``[N]`` on the device."""
        return self.feed.labels[self.rows.to(self.feed.device)]

    def first(self, count: int) -> Images:
        """The first of them."""
        return replace(self, rows=self.rows[:count])

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """Normalised images float32 ``[B, ...]``; the last batch may be smaller."""
        for x, _ in self.feed.batches(self.rows, size):
            # on a CPU convolutions and pooling are up to three times as fast so
            yield x.contiguous(memory_format=torch.channels_last) if self.last else x


@dataclass(frozen=True)
class Place:
    """A device with a data set for a network."""

    graph: Graph
    dataset: Dataset
    device: torch.device

    def module(self, graph: Graph, weights: Weights) -> torch.nn.Module:
        """A network on the device, in training mode."""
        return module_of(graph, weights, self.device)

    def some(
        self, split: Literal["train", "validation"], count: int, drawing: np.random.Generator
    ) -> Images:
        """Images drawn from a split, ``count`` of them at most."""
        part = {"train": self.dataset.train, "validation": self.dataset.validation}[split]
        # to a GPU only what is looked at travels
        feed = Feed(self.graph, part, self.device, budget=None if self.on_cpu else 0)
        rows = torch.from_numpy(drawing.permutation(len(part))[:count])
        # what is carried from torch may tell how its operands lie in memory
        carried = any(is_carried(node.op) for node in self.graph)
        return Images(feed, rows, last=len(self.dataset.shape) == 3 and not carried)

    @property
    def on_cpu(self) -> bool:
        """Whether the device is the CPU."""
        return self.device.type == "cpu"


@contextmanager
def placed(graph: Graph, dataset: Dataset, device: str) -> Iterator[Place]:
    """A device with a data set; what goes wrong there is said in the user's terms.

    Raises:
        ArchirError: A630, A632, A633.
    """
    where = resolve(device)
    with memory(where), running():
        yield Place(graph, dataset, where)


def calibrate(module: torch.nn.Module, images: Images, batch: int) -> None:
    """Give batch norms the mean of the statistics of batches in training mode.

    All else (dropout) is in eval mode, in which the module is left.
    """
    norms = [m for m in module.modules() if isinstance(getattr(m, "momentum", None), float)]
    module.eval()
    for norm in norms:
        norm.train()
    with torch.inference_mode():
        for number, x in enumerate(images.batches(batch)):
            for norm in norms:
                norm.momentum = 1 / (number + 1)  # type: ignore[assignment]
            module(x)
    module.eval()


def features(
    module: torch.nn.Module,
    images: Images,
    batch: int,
    project: int = 0,
    drawing: np.random.Generator | None = None,
) -> torch.Tensor:
    """What a network makes of images in eval mode: float64 ``[N, D]`` on the device.

    Args:
        module: The network, whose output is ``[N, D]``.
        images: They.
        batch: Images a pass.
        project: The D of a random projection, drawn from N(0, 1 / D); 0: none.
        drawing: What draws it.

    Raises:
        ArchirError: A734, a feature is not finite.
    """
    parts: list[torch.Tensor] = []
    projection: torch.Tensor | None = None
    module.eval()
    with torch.inference_mode():
        for x in images.batches(batch):
            part = module(x).double()
            if drawing is not None and project:
                if projection is None:
                    drawn = drawing.standard_normal((part.shape[1], project)) / math.sqrt(project)
                    projection = torch.from_numpy(drawn).to(part.device)
                part = part @ projection
            parts.append(part)
    found = torch.cat(parts)
    if not found.isfinite().all():
        raise error("A734", "with random weights not all features of the network are finite")
    return found


def standardised(x: torch.Tensor, unseen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with mean 0 and deviation 1 on ``x``; others in the same way."""
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    return (x - mean) / deviation, (unseen - mean) / deviation


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Targets float64 ``[N, C]``."""
    return torch.nn.functional.one_hot(labels, classes).double()


def ridge(
    x: torch.Tensor, targets: torch.Tensor, strength: float, unseen: torch.Tensor
) -> torch.Tensor:
    """Least squares with a penalty, from features of mean 0; outputs for other features.

    Minimises ``mean |x w + b - targets|^2 + strength |w|^2``; b is the targets' mean.

    Args:
        x: ``[N, D]``.
        targets: ``[N, C]``.
        strength: The penalty.
        unseen: ``[M, D]``.
    """
    middle = targets.mean(0)
    count, width = x.shape
    if width <= count:
        gram = x.T @ x / count
        gram.diagonal().add_(strength)
        weight = torch.linalg.solve(gram, x.T @ (targets - middle) / count)
    else:  # the same weights by way of the smaller matrix
        gram = x @ x.T / count
        gram.diagonal().add_(strength)
        weight = x.T @ torch.linalg.solve(gram, (targets - middle) / count)
    return cast("torch.Tensor", unseen @ weight + middle)


def sgd(
    x: torch.Tensor,
    targets: torch.Tensor,
    unseen: torch.Tensor,
    *,
    epochs: int,
    lr: float,
    batch: int,
    drawing: np.random.Generator,
) -> torch.Tensor:
    """A linear layer, zero at first, by SGD with momentum 0.9 and a cosine on cross entropy.

    Args:
        x: Features ``[N, D]``.
        targets: ``[N, C]``.
        unseen: ``[M, D]``, for which the outputs are given.
        epochs: Passes over them.
        lr: The first learning rate.
        batch: Features a step.
        drawing: What draws their order.
    """
    weight = torch.zeros(x.shape[1], targets.shape[1], dtype=x.dtype, device=x.device)
    bias = torch.zeros_like(targets[0])
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    steps = epochs * math.ceil(len(x) / batch)
    step = 0
    for _ in range(epochs):
        order = torch.from_numpy(drawing.permutation(len(x))).to(x.device)
        for start in range(0, len(x), batch):
            part = order[start : start + batch]
            # of cross entropy, by hand: autograd would take most of the time
            off = ((x[part] @ weight + bias).softmax(1) - targets[part]) / len(part)
            rate = lr * (1 + math.cos(math.pi * step / steps)) / 2
            for held, tensor, slope in zip(
                speed, (weight, bias), (x[part].T @ off, off.sum(0)), strict=True
            ):
                tensor.sub_(held.mul_(0.9).add_(slope), alpha=rate)
            step += 1
    return unseen @ weight + bias
