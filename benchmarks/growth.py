"""After a growth: the optimizer's state mapped, reset or stale, and what that does to the loss.

A small residual network learns the digits, with SGD and momentum, or with AdamW. After 19 steps
(an epoch), when the loss still falls fast, or after 95, two layers are widened and one is inserted.
Training goes on for 50 steps, four times from the same grown weights, with the same batches and
rate. With ``--data`` it is another network on CIFAR-10 (a file of ``cifar10.py``) in place of it,
and it grows after 300 steps. The ways:

- *mapped*: the state goes through the rewrite (``archir.train.state.State``).
- *reset*: a new optimizer, as most tools advise.
- *stale*: the old optimizer object stays, as after surgery on a module. It holds the parameters
  that the rewrite left alone, with their state; those that were replaced, or are new, are none of
  its own and stay as they are.
- *by name*: a new optimizer takes the old state over by name, where shapes agree.

The network that does not grow goes on beside them. Ten seeds, for the initial weights, the order of
the images and the channels that are copied. Losses are taken before each step: of its batch in
train mode, and of the validation images, which are held out, in eval mode. Intervals are of
Student's t over the seeds; differences are of pairs with the same seed.

    OMP_NUM_THREADS=1 uv run python benchmarks/growth.py [--data cifar10.npz] [--svg FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, save_svg
from numpy.typing import NDArray
from scipy import stats

import archir
from archir.api import Application
from archir.train.data import Dataset, load_data
from archir.train.device import module_of
from archir.train.feed import Feed, order
from archir.train.state import State

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent / "examples" / "digits.arch", (19, 95)
CIFAR10 = HERE / "growth_cifar10.arch", (300,)
"""Networks, and after how many steps they grow."""
BATCH, STEPS, HELD_OUT = 64, 50, 512
CPU = torch.device("cpu")
GROWTH = (
    Application("widen", "body.conv1", {"width": 24}),
    Application("widen", "tail.conv", {"width": 48}),
    Application("deepen", "tail.relu", {}),
)
ARMS = ("mapped", "reset", "stale", "by name")
ALL = (*ARMS, "not grown")
DRAWN = {"mapped": "#0072b2", "reset": "#d55e00", "stale": "#cc79a7", "not grown": "#777777"}
Losses = NDArray[np.float64]
"""``[steps, 2]``: of the batch, and of the images that are held out."""


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum at archir's default rate."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW as torch has it by default."""
    return torch.optim.AdamW(parameters, lr=1e-3)


OPTIMIZERS = {"SGD": sgd, "AdamW": adamw}


@dataclass
class Images:
    """The batches of a run, in order, and the images that are held out."""

    feed: Feed
    seed: int
    held: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, network: archir.Network, dataset: Dataset, seed: int) -> Images:
        """Those of a seed."""
        feed = Feed(network.graph, dataset.train, CPU)
        held = Feed(network.graph, dataset.validation, CPU)
        return cls(feed, seed, held.take(torch.arange(min(HELD_OUT, len(held)))))

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return len(self.feed) // BATCH

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step, from 0."""
        epoch, place = divmod(step, self.per_epoch)
        chosen = order(self.seed, epoch + 1, len(self.feed))
        return self.feed.take(chosen[place * BATCH : (place + 1) * BATCH])


def go_on(
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    first: int,
    steps: int,
    *,
    held: bool = True,
) -> Losses:
    """Train for some steps; the losses before each, with or without that of what is held out."""
    found = np.zeros((steps, 2))
    entropy = torch.nn.functional.cross_entropy
    for number in range(steps):
        if held:
            module.eval()
            with torch.no_grad():
                found[number, 1] = float(entropy(module(images.held[0]), images.held[1]))
        module.train()
        x, y = images.batch(first + number)
        loss = entropy(module(x), y)
        found[number, 0] = float(loss.detach())
        module.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    return found


def arm(
    name: str, kind: str, grown: State, module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The grown network with its optimizer, by one of the ways."""
    if name == "mapped":
        return grown.to_torch(CPU)
    weights = grown.network.weights
    assert weights is not None
    child = module_of(grown.network.graph, dict(weights), CPU)
    old, new = dict(module.named_parameters()), dict(child.named_parameters())
    if name == "reset":
        return child, OPTIMIZERS[kind](new.values())
    shaped = [p for p in new if p in old and old[p].shape == new[p].shape]
    if name == "stale":
        shaped = [p for p in shaped if torch.equal(old[p], new[p])]
    made = OPTIMIZERS[kind]([new[p] for p in (shaped if name == "stale" else new)])
    for path in shaped:
        held = optimizer.state[old[path]]
        made.state[new[path]] = {
            k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in held.items()
        }
    return child, made


def one(
    kind: str, start: archir.Network, steps: int, dataset: Dataset, seed: int
) -> tuple[dict[str, Losses], float]:
    """The losses of all arms for a seed, and how far the growth moved the first one."""
    network = start.init(seed)
    assert network.weights is not None
    images = Images.of(network, dataset, seed)
    module = module_of(network.graph, dict(network.weights), CPU)
    optimizer = OPTIMIZERS[kind](module.parameters())
    go_on(module, optimizer, images, 0, steps, held=False)
    state = State.of(network, optimizer, module=module, step=steps)
    grown = state.apply(GROWTH, seed=seed).state
    found = {
        name: go_on(*arm(name, kind, grown, module, optimizer), images, steps, STEPS)
        for name in ARMS
    }
    found["not grown"] = go_on(module, optimizer, images, steps, STEPS)
    before = found["not grown"][0]
    moved = max(float((np.abs(found[name][0] - before) / before).max()) for name in ARMS)
    return found, moved


def interval(values: Losses) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, over the seeds."""
    n = len(values)
    spread = float(values.std(ddof=1)) / np.sqrt(n)
    return float(values.mean()), float(stats.t.ppf(0.975, n - 1) * spread)


SPANS: Mapping[str, tuple[int, slice]] = {
    "batch, steps 2-10": (0, slice(1, 10)),
    "batch, steps 2-50": (0, slice(1, STEPS)),
    "held out, steps 2-10": (1, slice(1, 10)),
    "held out, steps 2-50": (1, slice(1, STEPS)),
}
"""Means over steps: the first loss is taken before anything differs."""


def differences(curves: Mapping[str, Losses]) -> dict[str, dict[str, Any]]:
    """Of each other arm what its loss exceeds that of *mapped* by, in pairs of one seed.

    Args:
        curves: Losses ``[seeds, steps, 2]`` by arm.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in ALL:
        found[name] = {}
        for span, (column, steps) in SPANS.items():
            own = curves[name][:, steps, column].mean(axis=1)
            mapped = curves["mapped"][:, steps, column].mean(axis=1)
            mean, half = interval(own - mapped)
            found[name][span] = {
                "mean": float(own.mean()),
                "difference": mean,
                "half_width": half,
                "mapped_is_lower": int((own > mapped).sum()),
            }
    return found


def draw(curves: Mapping[str, Mapping[str, Losses]], path: Path) -> None:
    """The curves as an SVG, the same bytes for the same numbers."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "archir", "svg.fonttype": "none", "font.size": 9}
    rows = len(curves) // len(OPTIMIZERS)
    size = (8.5, 0.4 + 2.6 * rows)
    figure, axes = plt.subplots(rows, len(OPTIMIZERS), figsize=size, sharex=True, squeeze=False)
    steps = np.arange(STEPS)
    for axis, (title, found) in zip(axes.T.flat, curves.items(), strict=True):
        for name, colour in reversed(DRAWN.items()):
            values = found[name][:, :, 0]
            mean = values.mean(axis=0)
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values, axis=0)
            dashed = "--" if name == "not grown" else "-"
            axis.plot(steps, mean, dashed, color=colour, label=name, linewidth=1.2)
            if name != "not grown":
                axis.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("steps after the growth")
    for axis in axes[:, 0]:
        axis.set_ylabel("loss of the batch")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="upper center", ncol=len(DRAWN), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    save_svg(figure, path)
    plt.close(figure)


def table(title: str, found: Mapping[str, Mapping[str, Any]], seeds: int) -> str:
    """The differences as a table in Markdown."""
    lines = [f"| {title} | {' | '.join(SPANS)} |", "|---" * (len(SPANS) + 1) + "|"]
    for name in ALL:
        cells = []
        for span in SPANS:
            f = found[name][span]
            if name == "mapped":
                cells.append(f"{f['mean']:.4f}")
                continue
            mark = f" ({f['mapped_is_lower']} of {seeds})"
            cells.append(f"{f['difference']:+.4f} ± {f['half_width']:.4f}{mark}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    file, moments = DIGITS if chosen.data == "digits" else CIFAR10
    dataset, start = load_data(chosen.data), archir.load(file)
    curves: dict[str, dict[str, Losses]] = {}
    report: dict[str, Any] = {"machine": machine(), "seeds": chosen.seeds, "growths": {}}
    for kind, steps in itertools.product(OPTIMIZERS, moments):
        title = f"{kind}, after {steps} steps"
        runs = []
        for seed in range(chosen.seeds):
            runs.append(one(kind, start, steps, dataset, seed))
            print(f"{title}, seed {seed}", file=sys.stderr)
        curves[title] = {name: np.stack([found[name] for found, _ in runs]) for name in ALL}
        moved = max(far for _, far in runs)
        found = differences(curves[title])
        print(f"\n{table(title, found, chosen.seeds)}\n")
        print(f"At the growth the losses change by {moved:.1e} of themselves at most.")
        report["growths"][title] = {
            "at_the_growth": moved,
            "differences": found,
            "losses": {name: losses.tolist() for name, losses in curves[title].items()},
        }
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report) + "\n")
    if chosen.svg is not None:
        draw(curves, chosen.svg)


if __name__ == "__main__":
    main()
