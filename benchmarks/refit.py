"""Replacements on a trained network: accuracy before, after, and after a refit; what each saves.

Every rule is applied to the same network, at all sites that its glob names, once as it is and once
with the refit of its last layers to training images. Accuracy is that on the first test images.

    uv run python benchmarks/refit.py resnet20.arch --data cifar10 [--images 1000]
        [--rule 'conv.separable@layer3.*' ...] [--seed 0]

A rule's parameters follow it: `conv.low_rank@layer3.*:rank=16`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

from measure import machine

import archir
from archir.api import Application, Calibration, rewrite
from archir.cli.common import parse_settings
from archir.refitting import rewrite_and_refit
from archir.target import backends
from archir.train.data import Dataset, calibration_batch, load_data, normalise

RULES = (
    "conv.separable@layer3.1.conv1",
    "conv.separable@layer3.*",
    "conv.low_rank@layer3.*:rank=16",
    "conv.low_rank.spatial@layer3.*:rank=32",
    "conv.grouped@layer3.*:groups=2",
    "nat.conv_to_sep@layer2.1.bn2",
    "nat.conv_to_conv@layer3.2.bn2:kernel=1",
    "prune@layer3.1.conv1:width=32",
    "layer.drop@layer3.2.relu1",
)
CALIBRATION_IMAGES = 1024


@dataclass
class Row:
    """One line of the table."""

    rule: str
    sites: int
    params: int
    macs: int
    plain: int
    refit: int
    errors: str
    seconds: float


def correct(network: archir.Network, data: Dataset, images: int) -> int:
    """How many of the first test images are classified as they are labelled."""
    engine: Any = backends()["torch"]
    (name,) = network.graph.inputs
    feeds = {name: normalise(network.graph, data.test.x[:images])}
    (logits,) = engine.forward(network.graph, network.weights, feeds)
    return int((logits.argmax(axis=1) == data.test.y[:images]).sum())


def row(network: archir.Network, text: str, data: Dataset, images: int, seed: int) -> Row:
    """Apply a rule with and without a refit."""
    chosen, _, settings = text.partition(":")
    rule, _, site = chosen.partition("@")
    given = parse_settings(tuple(settings.split(",")) if settings else (), "--rule")
    batch = calibration_batch(data, CALIBRATION_IMAGES, seed, network.graph)
    calibration = Calibration({network.graph.inputs[0]: batch}, data.name, data.sha256)
    use = [Application(rule, site, given)]
    plain = rewrite(network, use, seed=seed, calibration=calibration)
    start = time.perf_counter()
    fitted = rewrite_and_refit(network, use, calibration, seed=seed)
    seconds = time.perf_counter() - start
    errors = [f"{f.before:.2f} -> {f.after:.2f}" for f in fitted.fits if f.layer]
    shown = errors[0] if len(errors) == 1 else f"{len(errors)} fits"
    return Row(
        text,
        len(plain.uses),
        plain.after.params,
        plain.after.macs,
        correct(plain.network, data, images),
        correct(fitted.rewritten.network, data, images),
        shown if errors else "nothing to fit",
        seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rule", action="append")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    network, data = archir.load(args.network), load_data(args.data)
    cost = network.cost()
    print(machine())
    print(f"{CALIBRATION_IMAGES} training images to fit, {args.images} test images, {data.name}")
    print("| rule | sites | parameters | MACs (M) | right | right, refit | relative error | s |")
    print("|---|---:|---:|---:|---:|---:|---|---:|")
    start = correct(network, data, args.images)
    print(f"| none | | {cost.params:,} | {cost.macs / 1e6:.1f} | {start} | | | |")
    for text in args.rule or RULES:
        r = row(network, text, data, args.images, args.seed)
        print(
            f"| `{r.rule}` | {r.sites} | {r.params:,} | {r.macs / 1e6:.1f} | {r.plain} | {r.refit} "
            f"| {r.errors} | {r.seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
