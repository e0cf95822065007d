"""Really trained networks: rewrites leave every prediction on CIFAR-10's test images as it was.

ResNet-20, -32 and -56 (option A) with published weights, from the folder that ARCHIR_DATA names.
Each network first: how many of the 10,000 test images it tells right, whether each prediction is
the published one, and that its ONNX file predicts the same. Then one chain of five rules that keep
the function, the same for each network, on all 10,000 images, and 20 random chains of five rules
on the first 2,000. After a chain the network runs in torch and its exported file in ONNX Runtime;
every predicted class must be that of the first network in torch, and the logits may differ by
rounding alone: max|a-b| / max|a| <= 1e-5. Where the first two logits of an image lie closer
together than twice that bound, rounding decides: such images are listed.

    ARCHIR_DATA=../data uv run python benchmarks/trained.py --log trained.jsonl

With `--log` each piece of work is written down once it is done, and is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cifar10
import numpy as np
from chains import offers
from measure import machine

import archir
from archir.api import Application, Network, rewrite
from archir.diag import ArchirError
from archir.ir.types import AttrValue
from archir.loading import load_checkpoint
from archir.ops.arithmetic import Array
from archir.train.data import normalise

TEXT = Path(__file__).resolve().parent.parent / "tests" / "trained" / "resnet_cifar.arch"
BLOCKS = {20: 3, 32: 5, 56: 9}
"""Blocks a stage, by the number of layers."""
CORRECT = {20: 9173, 32: 9263, 56: 9339}
"""Test images told right, as stated beside the weights."""
BOUND = 1e-5
"""The largest max|a-b| / max|a| of the logits."""
LENGTH = 5
SHORT = 2000
"""Images that a random chain is tried on."""
GROWTH = 2.0
"""The most parameters and MACs of a random chain's last network, of the first's."""
FIXED: tuple[tuple[str, str, Mapping[str, AttrValue]], ...] = (
    ("widen", "relu", {"width": 20}),  # through both shortcuts that pad with zeros
    ("deepen.batch_norm", "layer2.1.relu1", {}),
    ("kernel.grow", "layer3.1.conv1", {}),
    ("squeeze_excite.insert", "layer1.1.bn2", {}),
    ("fold.batch_norm", "layer3.2.bn1", {}),
)
BATCH = 500


@dataclass
class Outcome:
    """What became of one chain (number -1: the fixed one; -2: the network itself)."""

    layers: int
    number: int
    images: int
    steps: list[str] = field(default_factory=list)
    correct: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    """Images of another class than before, by engine, near ties not counted."""
    ties: dict[str, list[int]] = field(default_factory=dict)
    """Images of another class whose first two logits are closer than rounding, by engine."""
    drift: dict[str, float] = field(default_factory=dict)
    """max|a-b| / max|a| of the logits, by engine."""
    cost: tuple[int, int] = (0, 0)
    """Parameters and MACs."""
    seconds: float = 0.0


def data_folder() -> Path | None:
    """Where images and weights are, if they are here."""
    found = os.environ.get("ARCHIR_DATA")
    return Path(found) if found and (Path(found) / "trained").is_dir() else None


@cache
def images() -> tuple[Array, Array]:
    """The test images, bytes over 255, and their labels."""
    x, y = cifar10.decoded("test")
    return x.astype(np.float32) / np.float32(255), y


def trained(layers: int) -> Network:
    """One of the networks with its weights."""
    folder = data_folder()
    assert folder is not None
    network = archir.load(TEXT, params={"blocks": BLOCKS[layers]}, ignore_weights=True)
    return load_checkpoint(network, folder / "trained" / f"cifar10_resnet{layers}.safetensors")


def in_torch(network: Network, x: Array) -> Array:
    """The logits of normalised images."""
    import torch

    module = network.to_torch().eval()
    with torch.inference_mode():
        parts = [module(torch.from_numpy(x[i : i + BATCH])) for i in range(0, len(x), BATCH)]
    return np.concatenate([part.numpy() for part in parts])


def in_onnx(network: Network, x: Array, threads: int = 1) -> Array:
    """The logits that ONNX Runtime gets from the exported file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        network.export(file)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        (name,) = network.graph.inputs
        parts = [session.run(None, {name: x[i : i + BATCH]})[0] for i in range(0, len(x), BATCH)]
    return np.concatenate(parts)


def compare(first: Array, found: Mapping[str, Array], outcome: Outcome) -> Outcome:
    """Note which predictions changed, and by how much the logits did."""
    top, largest = np.sort(first, axis=1), np.abs(first).max()
    close = top[:, -1] - top[:, -2] <= 2 * BOUND * largest
    for engine, logits in found.items():
        other = logits.argmax(axis=1) != first.argmax(axis=1)
        outcome.changed[engine] = int((other & ~close).sum())
        outcome.ties[engine] = np.flatnonzero(other & close).tolist()
        outcome.drift[engine] = float(np.abs(first - logits).max() / largest)
    return outcome


def random_chain(first: Network, number: int, length: int = LENGTH) -> tuple[Network, list[str]]:
    """Rules that keep the function, at random sites with random arguments."""
    rng = np.random.Generator(np.random.PCG64([7, number]))
    cost = first.cost()
    limits = {"params": int(cost.params * GROWTH), "macs": int(cost.macs * GROWTH)}
    last, steps = first, list[str]()
    while len(steps) < length:
        for rule, site, given in offers(last, rng):
            try:
                use = Application(rule.name, site, given)
                done = rewrite(last, [use], seed=int(rng.integers(1 << 30)), limits=limits)
            except ArchirError:
                continue  # too large, or the weights are not as the rule assumes
            if any(u.read for u in done.uses):
                continue
            last = done.network
            steps.append(f"{rule.name}@{site}" + "".join(f" {k}={v}" for k, v in given.items()))
            break
        else:
            break
    return last, steps


def fixed_chain(first: Network) -> tuple[Network, list[str]]:
    """The same five rules on each network."""
    uses = [Application(rule, site, given) for rule, site, given in FIXED]
    return rewrite(first, uses).network, [f"{rule}@{site}" for rule, site, _ in FIXED]


def run(first: Network, logits: Array, layers: int, number: int, threads: int) -> Outcome:
    """One piece of work; ``logits`` are those of the first network in torch."""
    start = time.perf_counter()
    x, y = images()
    count = len(y) if number < 0 else min(SHORT, len(y))
    outcome = Outcome(layers, number, count)
    made = first
    if number == -1:
        made, outcome.steps = fixed_chain(first)
    elif number >= 0:
        made, outcome.steps = random_chain(first, 100 * layers + number)
    fed = normalise(first.graph, x[:count])
    found = {"onnx": in_onnx(made, fed, threads)}
    if number > -2:
        found["torch"] = in_torch(made, fed)
    compare(logits[:count], found, outcome)
    outcome.correct = int((found.get("torch", logits[:count]).argmax(axis=1) == y[:count]).sum())
    cost = made.cost()
    outcome.cost = (cost.params, cost.macs)
    outcome.seconds = round(time.perf_counter() - start, 1)
    return outcome


def published(layers: int) -> Mapping[str, Array]:
    """Predictions stored beside the weights (``classes``), and logits where there are some."""
    folder = data_folder()
    assert folder is not None
    with np.load(folder / "trained" / "reference_predictions.npz") as stored:
        names = {"classes": f"resnet{layers}", "logits": f"resnet{layers}_logits"}
        return {key: stored[name] for key, name in names.items() if name in stored.files}


def checked(layers: int, logits: Array) -> list[str]:
    """What is not as published."""
    _, y = images()
    correct = int((logits.argmax(axis=1) == y).sum())
    known = published(layers)
    other = int((logits.argmax(axis=1) != known["classes"]).sum())
    problems = []
    if correct != CORRECT[layers]:
        problems.append(f"ResNet-{layers}: {correct} right, published {CORRECT[layers]}")
    if other:
        problems.append(f"ResNet-{layers}: {other} predictions differ from the published ones")
    if "logits" in known:
        print(f"ResNet-{layers}: logits differ by at most {np.abs(logits - known['logits']).max()}")
    return problems


def read_log(path: Path | None) -> list[Outcome]:
    """What was done before."""
    if path is None or not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line a network and kind of work."""
    lines = []
    kinds = {-2: "as loaded", -1: "the fixed chain"}
    for layers in BLOCKS:
        groups: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            if outcome.layers == layers:
                groups.setdefault(kinds.get(outcome.number, "random chains"), []).append(outcome)
        for kind, some in groups.items():
            changed = sum(sum(o.changed.values()) for o in some)
            ties = sum(len(t) for o in some for t in o.ties.values())
            worst: dict[str, Any] = {}
            for outcome in some:
                for engine, value in outcome.drift.items():
                    worst[engine] = max(value, worst.get(engine, 0.0))
            drift = ", ".join(f"{engine} {value:.1e}" for engine, value in sorted(worst.items()))
            lines.append(
                f"ResNet-{layers}, {kind}: {len(some)} x {some[0].images} images, "
                f"{sum(len(o.steps) for o in some)} rewrites, {changed} predictions changed, "
                f"{ties} near ties; drift {drift}; {sum(o.seconds for o in some):.0f} s"
            )
    return "\n".join(lines)


def main() -> int:
    """Run what is not done yet and print what came of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, nargs="*", default=list(BLOCKS))
    parser.add_argument("--chains", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log", type=Path, help="write each outcome here; those there are done")
    given = parser.parse_args()
    if data_folder() is None:
        print("ARCHIR_DATA does not name a folder with trained/ and cifar10/", file=sys.stderr)
        return 2
    import torch

    torch.set_num_threads(given.threads)
    print(machine())
    outcomes, problems = read_log(given.log), list[str]()
    done = {(o.layers, o.number) for o in outcomes}
    for layers in given.layers:
        numbers = [n for n in range(-2, given.chains) if (layers, n) not in done]
        if not numbers:
            continue
        first = trained(layers)
        logits = in_torch(first, normalise(first.graph, images()[0]))
        problems += checked(layers, logits)
        for number in numbers:
            outcome = run(first, logits, layers, number, given.threads)
            outcomes.append(outcome)
            print(f"ResNet-{layers} {number}: {outcome}", flush=True)
            if given.log is not None:
                with given.log.open("a") as file:
                    file.write(json.dumps(vars(outcome)) + "\n")
    print(summary(outcomes))
    for outcome in outcomes:
        if any(outcome.changed.values()) or max(outcome.drift.values()) > BOUND:
            problems.append(f"ResNet-{outcome.layers} {outcome.number}: {outcome}")
    print("\n".join(problems) or "no prediction changed, all logits within the bound")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
