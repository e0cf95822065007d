"""How a supernet and NAT's policy learn in turn. Importing this module needs torch.

Guo et al. 2019, arXiv 1910.14488, after the authors' code. All that is drawn is a function of the
seed, the epoch and the step, so that a run goes on from its last epoch to the same bits on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from archir.api import Network
from archir.diag import ArchirError, error
from archir.search.cells import ACTIONS, OPS, Cell, is_alive, with_ops
from archir.search.nat_config import NatConfig, learning
from archir.search.nat_policy import (
    ATTEMPTS,
    Policy,
    PolicyConfig,
    Sampled,
    save_policy,
    surrogate,
)
from archir.search.parts import Evaluated
from archir.search.supernet import (
    Form,
    Supernet,
    load_supernet,
    macs_of,
    random_cell,
    save_supernet,
)
from archir.search.untrained import stream
from archir.search.work import KEPT
from archir.train.augment import Augmentation
from archir.train.data import Dataset, Split, check_fits
from archir.train.device import memory, resolve
from archir.train.feed import Feed
from archir.weights.store import load_metadata, load_weights, save_weights

POLICY, SUPERNET = "policy.safetensors", "supernet.safetensors"
"""What is kept of a training, by its names with the member."""
CHECKPOINT = "nat.safetensors"

SPLIT, DRAWN, WEIGHTS, REWARDS, JUDGED, NEW = range(6)
"""What random numbers are drawn for: the second entry of the key they come from."""

_KEY = "archir.nat"
_CONCATENATED = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_3x3",
)
_LOOSE = (*_CONCATENATED[:5], "conv_1x1", "conv_3x3", "conv_5x5")
"""The operations of random cells that hand on all their nodes, and of others, as in the code."""


def form_of(cells: Sequence[Cell], config: NatConfig, dataset: Dataset) -> Form:
    """The supernet for some cells.

    Random cells have the published operations, and those that the given cells have.
    """
    ops = {edge.op for cell in cells for edge in cell.edges}
    free = config.inputs != "given"
    if config.transitions == "nat++":
        ops |= set(OPS[:13])
    elif free:
        whole = all(set(c.output) == set(range(c.inputs, c.nodes)) for c in cells)
        ops |= set(_CONCATENATED if whole else _LOOSE)
    ops |= set(ACTIONS["nat"]) - {"same"}
    return Form(
        tuple(cells),
        tuple(op for op in OPS if op in ops),
        free,
        config.channels,
        config.layers,
        dataset.shape,
        len(dataset.classes),
    )


def learn(
    network: Network,
    cells: Sequence[Cell],
    dataset: Dataset,
    config: NatConfig,
    *,
    seed: int,
    folder: Path,
    device: str = "auto",
) -> Evaluated:
    """Train supernet and policy, both of which are left in ``folder / "kept"``.

    Returns:
        ``score``: the mean reward of the policy's samples for the given cells, on validation
        images; ``uniform``: that of uniformly random legal ones; ``input``: the accuracy with
        shared weights that both are measured against.

    Raises:
        ArchirError: A623 or A625, network and data do not fit; A674, images are no ``[C, H, W]``,
            or smaller than their crop; A630, A633, of the device; A602.
    """
    check_fits(network.graph, dataset)
    if len(dataset.shape) != 3:
        raise error("A674", f"cells take images [C, H, W]; these are {list(dataset.shape)}")
    Augmentation(config.flip, config.crop).check(dataset.shape)
    where = resolve(device)
    with memory(where):
        run = _Run(network, tuple(cells), dataset, config, seed, where)
        run.restore(folder / CHECKPOINT)
        while run.epoch < config.epochs:
            run.one_epoch()
            run.save(folder / CHECKPOINT)
        kept = folder / KEPT
        kept.mkdir(exist_ok=True)
        save_policy(kept / POLICY, run.policy)
        save_supernet(kept / SUPERNET, run.supernet)
        return Evaluated(run.judge(), history=tuple(run.history))


class _Run:
    """A training under way."""

    def __init__(
        self,
        network: Network,
        cells: tuple[Cell, ...],
        dataset: Dataset,
        config: NatConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self.cells, self.config, self.seed = cells, config, seed
        self.epoch, self.baseline = 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.supernet = Supernet(form_of(cells, config, dataset), stream(seed, NEW, 0), device)
        form = PolicyConfig(config.transitions, config.self_loops)
        learned = config.policy == "learned"
        self.policy = Policy(form, stream(seed, NEW, 1) if learned else None)
        self.uniform = Policy(
            PolicyConfig(config.transitions, embedding=1, features=1, hidden=1)
        )  # all logits are 0
        self.sgd = torch.optim.SGD(
            list(self.supernet.weights.values()),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.adam = torch.optim.Adam(
            self.policy.parameters(),
            lr=config.policy_lr,
            betas=(config.policy_beta1, config.policy_beta2),
            weight_decay=config.policy_decay,
        )
        self.images = Feed(network.graph, dataset.train, device)
        rows = stream(seed, SPLIT).permutation(len(dataset.train))
        first = min(max(2, round(config.share * len(rows))), len(rows) - 2)
        self.parts = rows[:first], rows[first:]
        self.unseen = Unseen(network, dataset.validation, config.shared_images, seed, device)

    # --- an epoch ---------------------------------------------------------------------------------

    def one_epoch(self) -> None:
        """All images of one part for the weights, then all of the other for the policy."""
        config = self.config
        losses = [
            self._weights_step(*batch, self._stream(WEIGHTS, number))
            for number, batch in enumerate(self._batches(0, config.batch_size))
        ]
        line: dict[str, Any] = {"epoch": self.epoch + 1, "loss": float(np.mean(losses))}
        if self.epoch >= config.warmup and config.policy == "learned":
            found = [
                self._policy_step(*batch, self._stream(REWARDS, number))
                for number, batch in enumerate(self._batches(1, config.reward_images))
            ]
            reward, entropy = np.mean(found, 0)
            line |= {"reward": float(reward), "entropy": float(entropy)}
        self.epoch += 1
        self.history.append(line)

    def _batches(self, part: int, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and labels in a new order, batches of about equal sizes, augmented."""
        rows = self._stream(DRAWN, part).permutation(self.parts[part])
        augmentation = Augmentation(self.config.flip, self.config.crop)
        for number, chosen in enumerate(batches_of(rows, size)):
            x, y = self.images.take(torch.from_numpy(chosen))
            drawing = int(self._stream(DRAWN, 2 + part, number).integers(2**63))
            yield augmentation.images(x, torch.Generator().manual_seed(drawing)), y

    def _stream(self, *words: int) -> np.random.Generator:
        return stream(self.seed, words[0], self.epoch, *words[1:])

    def _weights_step(
        self, x: torch.Tensor, y: torch.Tensor, drawing: np.random.Generator
    ) -> float:
        """A step of the shared weights: its loss."""
        cells, given = self._inputs(drawing)
        if given:
            cells = [self._changed(cell, drawing) for cell in cells]
        loss = functional.cross_entropy(self.supernet(cells, x), y)
        self.sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.sgd.step()
        return float(loss.detach())

    def _policy_step(
        self, x: torch.Tensor, y: torch.Tensor, drawing: np.random.Generator
    ) -> tuple[float, float]:
        """A step of the policy; the mean reward and entropy of its samples."""
        config = self.config
        cells, _ = self._inputs(drawing)
        before = accuracy(self.supernet, cells, x, y)
        samples: list[list[Sampled]] = []
        rewards = []
        for _ in range(config.alphas):
            samples.append([self.policy.sampled(c, drawing, living=config.living) for c in cells])
            made = [with_ops(c, s.ops) for c, s in zip(cells, samples[-1], strict=True)]
            gained = accuracy(self.supernet, made, x, y) - before
            rewards.append(gained + config.saving * self._saved(cells, made))
        advantages = self._advantages(rewards)
        self.adam.zero_grad()
        for sample, advantage in zip(samples, advantages, strict=True):
            loss = surrogate(sample, advantage, config.entropy) / config.alphas
            loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        entropies = [float(s.entropy.detach()) for sample in samples for s in sample]
        return float(np.mean(rewards)), float(np.sum(entropies)) / config.alphas

    def _saved(self, cells: Sequence[Cell], made: Sequence[Cell]) -> float:
        """The share of the cells' MACs that others do without."""
        before, after = (macs_of(self.supernet.form, c) for c in (cells, made))
        return (before - after) / max(before, 1.0)

    def _advantages(self, rewards: Sequence[float]) -> list[float]:
        """What is left of rewards without the baseline, which follows them."""
        kind, decay = self.config.baseline, self.config.baseline_decay
        if kind == "others":
            total, others = sum(rewards), len(rewards) - 1
            return [reward - (total - reward) / others for reward in rewards]
        found = [reward - self.baseline for reward in rewards]
        followed = float(np.mean(found if kind == "advantage" else rewards))
        self.baseline = decay * self.baseline + (1 - decay) * followed
        return found

    def _inputs(self, drawing: np.random.Generator) -> tuple[Sequence[Cell], bool]:
        """Cells to be changed, and whether they are the given ones."""
        kind = self.config.inputs
        if kind == "given" or (kind == "mixed" and drawing.random() < 0.5):
            return self.cells, True
        ops = [op for op in self.supernet.form.ops if self._is_drawn(op)]
        return [random_cell(cell, ops, drawing) for cell in self.cells], False

    def _changed(self, cell: Cell, drawing: np.random.Generator) -> Cell:
        """A cell with some legal operations on some of its edges, which hands on something."""
        for _ in range(ATTEMPTS):
            ops = self.uniform.sample(cell, drawing)
            changes = drawing.random(len(ops)) < self.config.changed
            rows = zip(cell.edges, ops, changes, strict=True)
            made = with_ops(cell, [op if change else edge.op for edge, op, change in rows])
            if is_alive(made):
                return made
        return cell

    def _is_drawn(self, op: str) -> bool:
        """Whether random cells may have an operation."""
        return self.config.transitions != "nat++" or op in OPS[:13]

    # --- the end ----------------------------------------------------------------------------------

    def judge(self) -> dict[str, float]:
        """What samples of the policy and of the uniform one gain and save, on the average."""
        drawing, living = stream(self.seed, JUDGED), self.config.living
        before = self.unseen.correct(self.supernet, self.cells).mean()
        told = {"input": float(before)}
        for name, policy in (("score", self.policy), ("uniform", self.uniform)):
            made = [
                [with_ops(c, policy.sample(c, drawing, living=living)) for c in self.cells]
                for _ in range(self.config.judged)
            ]
            rewards = [self.unseen.correct(self.supernet, c).mean() - before for c in made]
            told[name] = float(np.mean(rewards))
            saved = name.replace("score", "") + "_saved"
            told[saved.lstrip("_")] = float(np.mean([self._saved(self.cells, c) for c in made]))
        return told

    # --- checkpoints ------------------------------------------------------------------------------

    def _slots(self) -> Iterator[tuple[str, torch.Tensor, torch.optim.Optimizer]]:
        for name, value in self.supernet.weights.items():
            yield f"supernet/{name}", value, self.sgd
        for name, value in self.policy.named_parameters():
            yield f"policy/{name}", value, self.adam

    def save(self, path: Path) -> None:
        """Write down all that a run goes on from."""
        arrays = {}
        for name, value, optimizer in self._slots():
            arrays[name] = value.detach().cpu().numpy()
            for slot, state in optimizer.state.get(value, {}).items():
                if isinstance(state, torch.Tensor):
                    arrays[f"{slot}/{name}"] = state.cpu().numpy()
        told = {
            "config": learning(self.config),
            "epoch": self.epoch,
            "baseline": self.baseline,
            "history": self.history,
        }
        save_weights(path, arrays, {_KEY: json.dumps(told)})

    def restore(self, path: Path) -> None:
        """Go on from where a run was cut off; begin anew where nothing whole is left of it."""
        try:
            arrays, told = load_weights(path), json.loads(load_metadata(path)[_KEY])
        except (ArchirError, KeyError, ValueError):
            return
        if told["config"] != learning(self.config):
            return
        with torch.no_grad():
            for name, value, optimizer in self._slots():
                value.copy_(torch.from_numpy(arrays.pop(name)))
                suffix = f"/{name}"
                held = [key for key in arrays if key.endswith(suffix)]
                if held:
                    optimizer.state[value] = {
                        key.removesuffix(suffix): torch.from_numpy(arrays[key]).to(value.device)
                        for key in held
                    }
        self.epoch, self.baseline = told["epoch"], told["baseline"]
        self.history = told["history"]


# --- what is measured -----------------------------------------------------------------------------


class Unseen:
    """Validation images, on which cells are compared; in batches that depend on nothing drawn."""

    def __init__(
        self, network: Network, split: Split, most: int, seed: int, device: torch.device
    ) -> None:
        self.feed = Feed(network.graph, split, device)
        self.rows = np.sort(stream(seed, SPLIT, 1).permutation(len(split))[:most])

    def correct(self, supernet: Supernet, cells: Sequence[Cell]) -> NDArray[np.float64]:
        """1 for each image that is told right, else 0: ``[N]``."""
        parts = []
        for chosen in batches_of(self.rows, BATCH):
            x, y = self.feed.take(torch.from_numpy(chosen))
            with torch.no_grad():
                parts.append((supernet(cells, x).argmax(1) == y).cpu().numpy())
        return np.concatenate(parts).astype(np.float64)


BATCH = 256
"""Validation images whose statistics batch norms take together, about [own]."""


def batches_of(rows: NDArray[Any], size: int) -> list[NDArray[Any]]:
    """Rows in parts of about equal lengths, of which none is longer than a size."""
    return np.array_split(rows, -(-len(rows) // size))


def accuracy(supernet: Supernet, cells: Sequence[Cell], x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of images that are told right."""
    with torch.no_grad():
        return float((supernet(cells, x).argmax(1) == y).double().mean())


def compare(
    network: Network,
    supernet: Path,
    cells: tuple[Sequence[Cell], Sequence[Cell]],
    dataset: Dataset,
    *,
    most: int,
    device: str,
) -> Evaluated:
    """The accuracy of cells with shared weights on validation images, beside that of others.

    Returns:
        ``accuracy``; ``difference``, from that of the first ones; ``half``, half the width of the
        95 % interval of the difference: both are measured on the same images.

    Raises:
        ArchirError: A776, the supernet's file is damaged; A630, A633, of the device.
    """
    where = resolve(device)
    with memory(where):
        shared = load_supernet(supernet, where)
        unseen = Unseen(network, dataset.validation, most, 0, where)
        first, second = (unseen.correct(shared, c) for c in cells)
    difference = second - first
    half = 1.96 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    found = float(second.mean())
    scores = {"score": found, "accuracy": found, "difference": float(difference.mean())}
    return Evaluated({**scores, "half": half})
