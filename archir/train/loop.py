"""The training loop: SGD with Nesterov momentum under a cosine. Importing it needs torch."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

import torch

from archir.diag import error
from archir.files import cannot_write
from archir.ir.graph import Graph
from archir.train.data import Dataset, check_fits
from archir.train.device import Precision, casting, describe, memory, module_of, resolve, weights_of
from archir.train.evaluate import Evaluation, on_device, run
from archir.weights.store import Weights

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
"""The files of a run folder: the first is the same for equal seeds on a CPU, byte for byte."""

REPORT_EVERY = 0.2
"""Seconds between two reports within an epoch; each costs a wait for the device."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train. The rate falls from ``lr`` to 0 along half a cosine over all steps."""

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    device: str = "auto"
    precision: Precision = "f32"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands. ``accuracy`` (on the validation set) comes at an epoch's end."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    lr: float
    images_per_second: float
    accuracy: float | None = None


class ProgressCallback(Protocol):
    """Called a few times a second, and once at the end of each epoch."""

    def __call__(self, progress: Progress, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Epoch:
    """A line of the metrics: losses are means, ``lr`` is the rate of the epoch's last step."""

    epoch: int
    step: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    lr: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The trained parameters and buffers, all of the graph's, and how it went."""

    weights: Weights = field(repr=False)
    validation: Evaluation
    history: tuple[Epoch, ...]
    steps: int
    device: str
    seconds: float


def train(
    graph: Graph,
    weights: Weights,
    dataset: Dataset,
    config: TrainConfig,
    *,
    progress: ProgressCallback | None = None,
    run_dir: Path | None = None,
) -> TrainResult:
    """Train a network from ``weights``, which stay as they are.

    The loss is the cross entropy of the network's single output, logits ``[N, classes]``. Images
    live on the device. The last incomplete batch of an epoch is left out. On a CPU, equal
    arguments (and an equal number of threads) give equal weights.

    Args:
        graph: The network; one input, one output.
        weights: A value for each of its parameters and buffers.
        dataset: What to train on; its validation split is scored after each epoch.
        config: The recipe.
        progress: Told how it goes.
        run_dir: A folder for metrics.jsonl and timings.jsonl, made if missing; files of these
            names are replaced.

    Raises:
        ArchirError: A602, the run folder cannot be written; A623 or A625, network and data do
            not fit; A630, no such device; A631, the loss is no number any more; A632, the recipe
            is wrong; A633, the device has too little memory; A5xx, torch cannot run the network.
    """
    check_config(config)
    check_fits(graph, dataset)
    if all(parameter.buffer for parameter in graph.parameters.values()):
        raise error("A625", f"{graph.name} has no parameters, so there is nothing to train")
    device = resolve(config.device)
    gpu = [device] if device.type == "cuda" else []
    with _Logs(run_dir) as logs, torch.random.fork_rng(gpu), memory(device):
        torch.manual_seed(config.seed)  # dropout draws from torch's own generator
        return _Run(graph, weights, dataset, config, device).train(progress, logs)


def check_config(config: TrainConfig) -> None:
    """Make sure that a recipe makes sense.

    Raises:
        ArchirError: A632, with the entry and its range.
    """
    ranges = {
        "epochs": (1, 10**6),
        "batch_size": (1, 10**6),
        "lr": (0, 1e3),
        "momentum": (0, 1),
        "weight_decay": (0, 1e3),
        "seed": (0, 2**63 - 1),
    }
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if not least <= value <= most:
            raise error("A632", f"{name} is {value}, it should be from {least:g} to {most:g}")
    if config.precision not in ("f32", "bf16"):
        raise error("A632", f"`{config.precision}` is no precision", hint="f32 or bf16")


class _Run:
    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        dataset: Dataset,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self.graph, self.config, self.device = graph, config, device
        self.module = module_of(graph, weights, device)
        self.x, self.y = on_device(graph, dataset.train, device)
        self.validation = on_device(graph, dataset.validation, device)
        self.batch = min(config.batch_size, len(self.y))
        self.per_epoch = len(self.y) // self.batch
        self.steps = self.per_epoch * config.epochs
        self.step = 0
        self.order = torch.Generator().manual_seed(config.seed)
        self.optimizer = torch.optim.SGD(
            self.module.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )

    def train(self, progress: ProgressCallback | None, logs: _Logs) -> TrainResult:
        begin = time.perf_counter()
        history: list[Epoch] = []
        scores: list[Evaluation] = []
        for number in range(1, self.config.epochs + 1):
            start = time.perf_counter()
            loss = self._epoch(number, progress)
            trained = time.perf_counter() - start
            scored = run(self.module, *self.validation, precision=self.config.precision)
            line = Epoch(
                number, self.step, loss, scored.loss, scored.accuracy, self._rate(self.step - 1)
            )
            history.append(line)
            scores.append(scored)
            speed = self.per_epoch * self.batch / trained
            logs.epoch(line, trained, time.perf_counter() - start - trained, speed)
            if progress is not None:
                progress(self._report(number, loss, speed, scored.accuracy))
        return TrainResult(
            weights_of(self.module, self.graph),
            scores[-1],
            tuple(history),
            self.step,
            describe(self.device, self.config.precision),
            time.perf_counter() - begin,
        )

    def _rate(self, step: int) -> float:
        return self.config.lr * (1 + math.cos(math.pi * step / self.steps)) / 2

    def _epoch(self, number: int, progress: ProgressCallback | None) -> float:
        """One pass over the training images; the mean loss."""
        self.module.train()
        order = torch.randperm(len(self.y), generator=self.order).to(self.device)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        start = last = time.perf_counter()
        for done in range(self.per_epoch):
            total += self._update(order[done * self.batch : (done + 1) * self.batch])
            now = time.perf_counter()
            if progress is not None and now - last > REPORT_EVERY and done + 1 < self.per_epoch:
                last = now
                loss = self._finite(total, done + 1, number)
                speed = (done + 1) * self.batch / (time.perf_counter() - start)
                progress(self._report(number, loss, speed))
        return self._finite(total, self.per_epoch, number)

    def _update(self, chosen: torch.Tensor) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        with casting(self.device, self.config.precision):
            logits = self.module(self.x[chosen])
        loss = torch.nn.functional.cross_entropy(logits.float(), self.y[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def _finite(self, total: torch.Tensor, batches: int, epoch: int) -> float:
        mean = float(total) / batches
        if not math.isfinite(mean):
            raise error(
                "A631",
                f"training went astray in epoch {epoch} (by step {self.step}): the loss is {mean}",
                hint=f"a smaller learning rate than {self.config.lr:g} may help",
            )
        return mean

    def _report(
        self, epoch: int, loss: float, speed: float, accuracy: float | None = None
    ) -> Progress:
        rate = self._rate(self.step - 1)
        epochs = self.config.epochs
        return Progress(epoch, epochs, self.step, self.steps, loss, rate, speed, accuracy)


class _Logs:
    """The two files of a run folder, a line an epoch; nothing without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: list[IO[str]] = []

    def __enter__(self) -> Self:
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for name in (METRICS, TIMINGS):
                    self._files.append((self._folder / name).open("w", encoding="utf-8"))
            except OSError as reason:
                self.__exit__(None, None, None)
                raise cannot_write(self._folder, reason) from reason
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()

    def epoch(self, line: Epoch, trained: float, scored: float, speed: float) -> None:
        timing = {
            "epoch": line.epoch,
            "train_seconds": round(trained, 6),
            "validation_seconds": round(scored, 6),
            "images_per_second": round(speed, 1),
        }
        metrics = {name: getattr(line, name) for name in Epoch.__slots__}
        for file, content in zip(self._files, (metrics, timing), strict=False):
            file.write(json.dumps(content) + "\n")
            file.flush()
