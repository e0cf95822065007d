"""The training loop. Importing this module needs torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from archir.diag import error
from archir.ir.graph import Graph
from archir.train.augment import Augmentation
from archir.train.checkpoint import (
    WEIGHTS,
    Checkpoint,
    Live,
    load_checkpoint,
    save_checkpoint,
    save_weights_alone,
)
from archir.train.data import Dataset, check_fits, normalisation
from archir.train.device import casting, describe, memory, module_of, running, weights_of
from archir.train.distributed import Ranks, ranks
from archir.train.ema import Ema
from archir.train.evaluate import Evaluation, run
from archir.train.feed import DROPOUT, Feed, drawn_seed, generator, order
from archir.train.folder import Existing, begun, facts_of, keeping, may_resume
from archir.train.logs import BEST, LAST, Logs
from archir.train.losses import distillation, make_loss
from archir.train.optimizers import OptimizerConfig, adjust, freeze_statistics, make_optimizer
from archir.train.recipe import TrainConfig, check_config
from archir.train.schedule import Schedule
from archir.weights.store import Weights, check_weights

REPORT_EVERY = 0.2
"""Seconds between two reports within an epoch; each costs a wait for the device."""
SAVE_EVERY = 5.0
"""Seconds between two checkpoints at the ends of epochs, at least."""
SAVE_WITHIN = 60.0
"""Seconds after which a checkpoint is written within an epoch."""


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
    note: str = ""
    """What else happened: a growth, a checkpoint that is continued."""


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
    """The trained parameters and buffers, all of the graph's, and how it went.

    ``graph`` is the network that was trained: with a growth, the grown one.
    """

    graph: Graph
    weights: Weights = field(repr=False)
    validation: Evaluation
    history: tuple[Epoch, ...]
    steps: int
    device: str
    seconds: float
    stage: int = 0
    """How often the network had grown when it had these weights."""
    live: Live | None = field(default=None, repr=False)
    """The last network and its optimizer, to save or go on with."""
    end: int = 0
    """The step after which it had them."""


class Growth(Protocol):
    """Changes of the network in the course of training; see :mod:`archir.train.growing`."""

    def begin(self, per_epoch: int, steps: int) -> None:
        """Told before a run how many steps an epoch and the whole run have; may refuse them."""

    def due(self, step: int, stage: int) -> bool:
        """Whether the network changes before the step of that number, from 0."""

    def grow(
        self, live: Live, step: int, stage: int, folder: Path | None
    ) -> tuple[Live, Sequence[Mapping[str, Any]]]:
        """The network after its next change, and what is logged of it.

        ``folder`` is where it keeps what resuming needs, if anything is kept.
        """

    def restored(self, live: Live, stage: int, folder: Path) -> Live:
        """The network after so many changes, as it was kept in the folder.

        ``live`` is a new one without any: it tells the device and what is averaged.
        """

    def graph(self, stage: int, folder: Path) -> Graph:
        """The graph after so many changes, as it was kept in the folder."""

    def record(self) -> Any:
        """The schedule as JSON values."""


def train(
    graph: Graph,
    weights: Weights,
    dataset: Dataset,
    config: TrainConfig,
    *,
    progress: ProgressCallback | None = None,
    run_dir: Path | None = None,
    existing: Existing = "refuse",
    growth: Growth | None = None,
    teacher: tuple[Graph, Weights] | None = None,
    tensorboard: bool = False,
    prepare: Callable[[Live], object] = lambda live: None,
    started: Callable[[torch.device], object] = lambda device: None,
) -> TrainResult:
    """Train a network from ``weights``, which stay as they are.

    The loss is of the network's single output, logits ``[N, classes]``. The last incomplete
    batch of an epoch is left out. On a CPU, equal arguments (and an equal number of threads)
    give equal weights, also where the run was cut off and resumed. Under ``torchrun`` every
    process calls this.

    Args:
        graph: The network; one input, one output.
        weights: A value for each of its parameters and buffers.
        dataset: What to train on; its validation split is scored after each epoch.
        config: The recipe.
        progress: Told how it goes.
        run_dir: A folder for metrics, timings and checkpoints, made if missing.
        existing: What to do with a run that the folder holds.
        growth: Changes of the network on the way.
        teacher: A network whose outputs are learned too (distillation).
        tensorboard: Whether the run folder gets the numbers for TensorBoard.
        prepare: Called with the network and its optimizer before the first step of a new run.
        started: Called with the device, before anything is moved there.

    Raises:
        ArchirError: A602, the run folder cannot be written; A603, it holds a run; A622, a package
            is missing; A623 or A625, network and data do not fit; A630, no such device; A631, the
            loss is no number any more; A632, the recipe is wrong; A633, the device has too little
            memory; A637 or A638, the run cannot be resumed; A5xx, torch cannot run the network.
    """
    check_config(config)
    check_fits(graph, dataset)
    check_weights(graph, weights)
    if teacher is not None:
        _check_teacher(graph, teacher, dataset)
    if all(parameter.buffer for parameter in graph.parameters.values()):
        raise error("A625", f"{graph.name} has no parameters, so there is nothing to train")
    with ranks(config.device) as here:
        if config.batch_size % here.world:
            raise error(
                "A632", f"batches of {config.batch_size} cannot be shared by {here.world} processes"
            )
        if len(dataset.train) < here.world:
            few = f"{len(dataset.train)} images for {here.world} processes"
            raise error("A632", f"each process needs an image of its own: {few}")
        if growth is not None:
            growth.begin(*_length(len(dataset.train), config, here)[1:])
        grow = None if growth is None else growth.record()
        facts = facts_of(graph, weights, dataset, config, grow, teacher)
        goes_on = run_dir is not None and here.told(lambda: may_resume(run_dir, facts, existing))
        if here.first:
            started(here.device)
        gpu = [here.device] if here.device.type == "cuda" else []
        with torch.random.fork_rng(gpu), keeping(run_dir), memory(here.device):
            work = _Run(graph, weights, dataset, config, here, growth, teacher, run_dir)
            logs = Logs(run_dir if here.first else None, tensorboard=tensorboard)
            if goes_on and run_dir is not None:
                saved = load_checkpoint(run_dir / LAST)
                work.restore(saved)
                logs.goes_on(saved.counters["metrics_bytes"], work.step)
            else:
                prepare(work.live)
                if logs.folder is not None:
                    begun(logs.folder, facts)
            with logs:
                work.logs = logs
                return work.train(progress)


def _check_teacher(graph: Graph, teacher: tuple[Graph, Weights], dataset: Dataset) -> None:
    """Make sure that a teacher takes what its student takes.

    Raises:
        ArchirError: A611, A612, A623 or A625.
    """
    check_fits(teacher[0], dataset)
    check_weights(*teacher)
    own, others = normalisation(graph), normalisation(teacher[0])
    if (own is None) != (others is None) or not all(map(np.array_equal, own or (), others or ())):
        raise error(
            "A623",
            f"{graph.name} and its teacher, {teacher[0].name}, state other means or deviations",
            hint="both see the same images: their `preprocess` should agree",
        )


def _length(images: int, config: TrainConfig, here: Ranks) -> tuple[int, int, int]:
    """Images in a batch, batches in an epoch, and steps in all."""
    batch = min(config.batch_size, images // here.world * here.world)
    per_epoch = images // batch
    return batch, per_epoch, per_epoch * config.epochs


@dataclass
class _Best:
    """The weights that validated best; graph and weights as long as they are in memory."""

    accuracy: float = -1.0
    epoch: int = 0
    stage: int = 0
    graph: Graph | None = None
    weights: Weights | None = None
    written: bool = False

    def named(self) -> list[Any]:
        return [self.accuracy, self.epoch, self.stage]


class _Run:
    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        dataset: Dataset,
        config: TrainConfig,
        here: Ranks,
        growth: Growth | None,
        teacher: tuple[Graph, Weights] | None,
        run_dir: Path | None,
    ) -> None:
        self.config, self.here, self.growth = config, here, growth
        self.run_dir, self.logs = run_dir, Logs(None)
        self.device = here.device
        self.feed = Feed(graph, dataset.train, self.device)
        self.validation = Feed(graph, dataset.validation, self.device)
        self.loss = make_loss(config.loss, label_smoothing=config.label_smoothing)
        self.teacher = None if teacher is None else module_of(*teacher, self.device).eval()
        self.schedule = Schedule.of(config)
        self.augmentation = Augmentation(config.flip, config.crop, config.cutout, config.mixup)
        self.augmentation.check(dataset.shape)
        self.augments = self.augmentation != Augmentation()
        # torch's own generator of the device: torch.manual_seed takes 0.25 ms to seed all of them
        self.seeds: dict[int, int] = {}
        self.dropout = torch.default_generator
        if self.device.type == "cuda":
            self.dropout = torch.cuda.default_generators[self.device.index]
        self.batch, self.per_epoch, self.steps = _length(len(self.feed), config, here)
        self.step, self.stage, self.epoch, self.done = 0, 0, 1, 0
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.recent, self.since = torch.zeros_like(self.total), 0
        self.history: list[Epoch] = []
        self.scored: Evaluation | None = None
        self.best = _Best()
        self.saved = time.perf_counter()
        self._adopt(self._built(graph, weights))

    # --- the network --------------------------------------------------------------------------

    def _built(self, graph: Graph, weights: Weights) -> Live:
        config = self.config
        module = module_of(graph, weights, self.device)
        optimizer = make_optimizer(module, graph, OptimizerConfig.of(config))
        ema = Ema(module, config.ema) if config.ema else None
        scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "f16")
        return Live(graph, module, optimizer, ema, scaler)

    def _adopt(self, live: Live) -> None:
        """Train this network from now on."""
        self.live = live
        if self.config.channels_last:
            live.module.to(memory_format=torch.channels_last)
        runner = self.here.wrapped(live.module)
        self.runner = torch.compile(runner) if self.config.compile else runner

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            ArchirError: A637, it is damaged, or of another network or optimizer.
        """
        line = Epoch(0, 0, 0.0, 0.0, 0.0, 0.0)
        found = saved.checked_counters({**self._counters(0), "history": [asdict(line)]})
        history = [Epoch(**line) for line in found["history"]]
        step, epoch, done = (found[k] for k in ("step", "epoch", "done"))
        if not (
            step == (epoch - 1) * self.per_epoch + done
            and 0 <= done < self.per_epoch
            and 0 <= len(history) == epoch - 1 <= self.config.epochs
            and min(found["stage"], found["since"], found["metrics_bytes"]) >= 0
        ):
            raise saved.unfit("its counters do not agree")
        self.stage = found["stage"]
        if self.stage and self.growth is not None:
            self._adopt(self.growth.restored(self.live, self.stage, saved.path.parent))
        saved.restore(self.live)
        self.step, self.epoch, self.done, self.since = step, epoch, done, found["since"]
        if step:  # a growth that comes next finds the rate of the step before
            self._adjust(step - 1)
        self.total.fill_(found["total"])
        self.recent.fill_(found["recent"])
        self.history, self.best = history, _Best(*found["best"])

    # --- the run --------------------------------------------------------------------------------

    def train(self, progress: ProgressCallback | None) -> TrainResult:
        begin = time.perf_counter()
        if self.step == 0:
            self._save()
        while self.epoch <= self.config.epochs:
            start, before = time.perf_counter(), self.done
            loss = self._epoch(progress)
            trained = time.perf_counter() - start
            speed = (self.per_epoch - before) * self.batch / trained
            self._ended(loss, trained, speed, progress)
        if self.scored is None:  # resumed at the end
            self.scored = self._score()
        return self._result(time.perf_counter() - begin)

    def _epoch(self, progress: ProgressCallback | None) -> float:
        """What is left of an epoch; its mean loss."""
        config = self.config
        self._train_mode()
        chosen = order(config.seed, self.epoch, len(self.feed))[: self.per_epoch * self.batch]
        mine = self.here.share(chosen[self.done * self.batch :], self.batch)
        start = last = time.perf_counter()
        first = self.done
        for x, y in self.feed.batches(mine, self.batch // self.here.world):
            self._grow(progress)
            loss = self._update(x, y)
            self.total += loss
            self.recent += loss
            self.done, self.since = self.done + 1, self.since + 1
            if config.log_every and self.step % config.log_every == 0:
                self._log_step()
            now = time.perf_counter()
            inside = self.done < self.per_epoch
            if progress is not None and now - last > REPORT_EVERY and inside:
                last = now
                speed = (self.done - first) * self.batch / (now - start)
                progress(self._report(self._finite(self.total), speed))
            if inside and now - self.saved > SAVE_WITHIN and self.here.world == 1:
                self._save()
        return self._finite(self.here.mean(self.total))

    def _train_mode(self) -> None:
        self.live.module.train()
        freeze_statistics(self.live.module, self.config.freeze)

    def _update(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        config, live = self.config, self.live
        number = self.step * self.here.world + self.here.rank
        mixed = None
        if self.augments:
            # on the CPU, which draws the same numbers for every device
            stream = generator(torch.device("cpu"), config.seed, number)
            x = self.augmentation.images(x, stream)
            mixed = self.augmentation.mix(x, stream)
        if mixed is not None:
            x = mixed[0]
        if config.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        self.dropout.manual_seed(self._dropout_seed(number))
        self._adjust(self.step)
        live.optimizer.zero_grad(set_to_none=True)
        with casting(self.device, config.precision), running():
            logits = self.runner(x)
        logits = logits.float()
        loss = self.loss(logits, y)
        if mixed is not None:
            _, partner, share = mixed
            loss = share * loss + (1 - share) * self.loss(logits, y[partner])
        if self.teacher is not None:
            with torch.no_grad(), casting(self.device, config.precision):
                taught = self.teacher(x).float()
            other = distillation(logits, taught, config.temperature)
            loss = (1 - config.distill_weight) * loss + config.distill_weight * other
        live.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if config.clip:
            live.scaler.unscale_(live.optimizer)
            torch.nn.utils.clip_grad_norm_(live.module.parameters(), config.clip)
        live.scaler.step(live.optimizer)
        live.scaler.update()
        if live.ema is not None:
            live.ema.update()
        self.step += 1
        return loss.detach()

    def _dropout_seed(self, number: int) -> int:
        """The seed of dropout; drawn for many steps at once, it takes a fifth of the time."""
        if number not in self.seeds:
            numbers = range(number, number + 256 * self.here.world, self.here.world)
            self.seeds = {n: drawn_seed(self.config.seed, DROPOUT, n) for n in numbers}
        return self.seeds[number]

    def _grow(self, progress: ProgressCallback | None) -> None:
        """Change the network, where that is due before this step."""
        growth = self.growth
        while growth is not None and growth.due(self.step, self.stage):
            if not self.live.is_finite():
                self._astray(math.nan)
            self.here.share_buffers(self.live.module)  # rules may read them
            live, lines = growth.grow(self.live, self.step, self.stage, self.logs.folder)
            self.stage += 1
            self._adopt(live)
            self._train_mode()
            for line in lines:
                self.logs.metric("grow", {"step": self.step, "epoch": self.epoch, **line})
                if progress is not None:
                    progress(self._report(math.nan, math.nan, note=str(line.get("note", ""))))
            self._save()

    def _ended(
        self, loss: float, trained: float, speed: float, progress: ProgressCallback | None
    ) -> None:
        """Validate, log and keep what an epoch made."""
        start = time.perf_counter()
        self.scored = scored = self._score()
        rate = self._rate(self.step - 1)
        line = Epoch(self.epoch, self.step, loss, scored.loss, scored.accuracy, rate)
        self.history.append(line)
        if scored.accuracy > self.best.accuracy:
            graph = self.live.graph
            kept = {p: a.copy() for p, a in weights_of(self.live.scored, graph).items()}
            self.best = _Best(scored.accuracy, self.epoch, self.stage, graph, kept)
        metrics = {name: getattr(line, name) for name in Epoch.__slots__}
        self.logs.metric("epoch", metrics)
        self.logs.timing(
            {
                "epoch": self.epoch,
                "train_seconds": round(trained, 6),
                "validation_seconds": round(time.perf_counter() - start, 6),
                "images_per_second": round(speed, 1),
            }
        )
        if progress is not None:
            progress(self._report(loss, speed, scored.accuracy))
        self.epoch, self.done = self.epoch + 1, 0
        self.total.zero_()
        over = self.epoch > self.config.epochs
        if over or time.perf_counter() - self.saved > SAVE_EVERY:
            self._save()

    def _score(self) -> Evaluation:
        return run(self.live.scored, self.validation, precision=self.config.precision)

    def _save(self) -> None:
        """Write the checkpoints: the best first, which the last one names."""
        folder = self.logs.folder
        if folder is None:
            return
        if not self.live.is_finite():
            self._astray(math.nan)
        best = self.best
        if best.weights is not None and not best.written:
            save_weights_alone(folder / BEST, best.weights, {"best": best.named()})
            best.written = True
        save_checkpoint(folder / LAST, self.live, self._counters(self.logs.settled()))
        self.saved = time.perf_counter()

    def _counters(self, metrics_bytes: int) -> dict[str, Any]:
        """Where the run stands, as JSON values."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "done": self.done,
            "stage": self.stage,
            "total": float(self.total),
            "recent": float(self.recent),
            "since": self.since,
            "history": [asdict(line) for line in self.history],
            "best": self.best.named(),
            "metrics_bytes": metrics_bytes,
        }

    def _result(self, seconds: float) -> TrainResult:
        assert self.scored is not None
        graph, stage, validation = self.live.graph, self.stage, self.scored
        weights, end = weights_of(self.live.scored, graph), self.step
        if self.config.keep == "best":
            graph, weights = self._best_network()
            stage, end = self.best.stage, self.best.epoch * self.per_epoch
            module = module_of(graph, weights, self.device)
            validation = run(module, self.validation, precision=self.config.precision)
        return TrainResult(
            graph,
            weights,
            validation,
            tuple(self.history),
            self.step,
            describe(self.device, self.config.precision),
            seconds,
            stage,
            self.live,
            end,
        )

    def _best_network(self) -> tuple[Graph, Weights]:
        best, folder = self.best, self.run_dir
        if best.weights is not None and best.graph is not None:
            return best.graph, best.weights
        assert folder is not None, "what is not in memory was resumed from a folder"
        graph = self.live.graph
        if best.stage != self.stage and self.growth is not None:
            graph = self.growth.graph(best.stage, folder)
        return graph, load_checkpoint(folder / BEST).under(WEIGHTS)

    # --- numbers --------------------------------------------------------------------------------

    def _adjust(self, step: int) -> None:
        momentum = self.schedule.momentum(step, self.per_epoch, self.steps)
        adjust(self.live.optimizer, self._rate(step), momentum)

    def _rate(self, step: int) -> float:
        return self.config.lr * self.schedule.rate(step, self.per_epoch, self.steps)

    def _log_step(self) -> None:
        """Log the mean loss since the last such line."""
        mean = self._checked(float(self.here.mean(self.recent)) / self.since)
        line = {"step": self.step, "epoch": self.epoch, "loss": mean}
        self.logs.metric("step", {**line, "lr": self._rate(self.step - 1)})
        self.recent.zero_()
        self.since = 0

    def _finite(self, total: torch.Tensor) -> float:
        return self._checked(float(total) / self.done)

    def _checked(self, mean: float) -> float:
        if not math.isfinite(mean):
            self._astray(mean)
        return mean

    def _astray(self, loss: float) -> None:
        raise error(
            "A631",
            f"training went astray in epoch {self.epoch} (by step {self.step}): the loss is {loss}",
            hint=f"a smaller learning rate than {self.config.lr:g} may help",
        )

    def _report(
        self, loss: float, speed: float, accuracy: float | None = None, note: str = ""
    ) -> Progress:
        rate = self._rate(max(self.step - 1, 0))
        epochs = self.config.epochs
        return Progress(
            self.epoch, epochs, self.step, self.steps, loss, rate, speed, accuracy, note
        )
