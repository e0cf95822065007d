"""The numbers of NAT, each with where it comes from. Importing this module needs no torch.

[C] is the authors' code of NAT and NAT++, [M] memory of the papers (arXiv 1910.14488, 2102.10301),
[own] our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from archir.diag import error
from archir.search.cells import Transitions
from archir.train.entries import check_entries
from archir.train.recipe import TrainConfig


@dataclass(frozen=True)
class NatConfig:
    """The numbers of NAT; the defaults are those of the authors' code."""

    transitions: Transitions = "nat"
    """What an operation may become: itself, a skip or nothing; ``nat++``: a cheaper operation."""
    policy: Literal["learned", "uniform"] = "learned"
    """``uniform`` is the baseline: every legal operation is equally likely, and nothing learns."""
    self_loops: bool = False
    """Whether a node reads its own operations too [own]. Without, as in [C], they change none of
    its logits: two layers look two edges up."""
    inputs: Literal["random", "given", "mixed"] = "random"
    """The cells that are changed in training: uniformly random ones [C], those of the start
    network, or either with equal chances [own]."""
    changed: float = 0.5
    """Of given cells, the share of edges that change at random where the weights are trained, so
    that these know what may be sampled [own]. Cells that hand on nothing are drawn again."""

    channels: int = 20
    """Of the supernet's first cells [C]."""
    layers: int = 8
    """Its cells [C]."""
    epochs: int = 100
    """[C], [M]; NAT++ 200 [C]."""
    warmup: int = 0
    """Epochs of these that train the weights alone [own]."""
    share: float = 0.4
    """Of the training images, those for the weights; the others are for the policy [C], [M]."""
    batch_size: int = 64
    """Of a step of the weights [C]."""
    lr: float = 0.01
    """Constant: the cosine of [C] ends where it begins."""
    momentum: float = 0.9
    """[C]"""
    weight_decay: float = 3e-4
    """[C]; weights that a step does not use stay as they are [own]."""
    flip: bool = True
    """[C]"""
    crop: int = 4
    """Pixels of translation [C]."""

    reward_images: int = 64
    """That a reward is measured on: the accuracy of what was sampled, less the input's [C]."""
    saving: float = 0.0
    """What is added to a reward for the share of the cells' MACs that a sample saves: with 0.1 a
    tenth of them is worth a hundredth of accuracy [own]. Without, as in [C], a policy may well
    learn to change nothing: that has no reward below 0."""
    living: bool = False
    """Whether samples are drawn again that hand on nothing, in training and afterwards [own]. What
    these lose is so much more than all else that a policy may soon keep all that there is."""
    alphas: int = 1
    """Samples for each input [C], [M]."""
    entropy: float = 0.003
    """Its weight in the loss [C], [M]."""
    policy_lr: float = 3e-4
    """Of Adam [C]."""
    policy_beta1: float = 0.5
    """[C]"""
    policy_beta2: float = 0.999
    """[C]"""
    policy_decay: float = 5e-4
    """[C]"""
    baseline: Literal["advantage", "reward", "others"] = "advantage"
    """What is taken off a reward: the running mean of what was left of earlier ones [C]; of the
    rewards; or the mean reward of the other samples of the same input and images [own]."""
    baseline_decay: float = 0.99
    """Of the running mean [C]."""
    judged: int = 10
    """At the end, samples of the policy and of the uniform one for the start network's cells, whose
    mean rewards (accuracies alone) on validation images are noted: ``score`` and ``uniform``, and
    the MACs that they save: ``saved`` and ``uniform_saved`` [own]."""

    samples: int = 10
    """For the start network, to choose from [C]."""
    attempts: int = 1
    """Draws for each sample, at most: one that was drawn before is drawn again [own]. A policy that
    is sure of itself draws little else than its likeliest choice."""
    likeliest: bool = False
    """Whether the most likely operations are one more of them [own]."""
    derive: Literal["best", "cheapest"] = "best"
    """The most accurate sample with the shared weights [C]; or of those that have fewer MACs the
    one with the fewest whose accuracy is not below the input's, by the 95 % interval of the
    difference on the same images; the most accurate of them, where there is none [own]."""
    candidates: int = 1
    """Samples that are trained beside the input: 1 [C]; of more the others are in equal steps from
    the one that ``derive`` chooses to the last that it would choose [own]."""
    shared_images: int = 5000
    """Validation images, at most, that accuracies with shared weights are measured on [own]. In
    [C] they are those that the policy learned from, and those of the test set in NAT++."""

    weights: Literal["scratch", "inherited"] = "scratch"
    """What input and chosen sample are trained from: new weights [M], or those that they have, the
    sample by its rules [own]."""
    epoch_trained: int = 600
    """Of input and chosen sample [M]."""
    epoch_final: int = 0
    """Of the best of these two, from the weights that ``weights`` says, for validation images too;
    0: none [own]."""
    final_joins: bool = True
    """Whether the final training is on validation images too [own]."""
    batch_trained: int = 96
    """[M]"""
    lr_trained: float = 0.025
    """From here along half a cosine to 0 [M]."""
    decay_trained: float = 3e-4
    """[M]"""
    cutout: int = 16
    """The side of the square [M]. The auxiliary head and dropped paths are left out."""


RANGES: Mapping[str, tuple[float, float]] = {
    "changed": (0, 1),
    "channels": (2, 10**4),
    "layers": (1, 10**3),
    "epochs": (1, 10**6),
    "warmup": (0, 10**6),
    "share": (0.01, 0.99),
    "batch_size": (2, 10**6),
    "lr": (0, 1e3),
    "momentum": (0, 1),
    "weight_decay": (0, 1e3),
    "crop": (0, 10**4),
    "reward_images": (2, 10**6),
    "saving": (0, 1e3),
    "alphas": (1, 10**4),
    "entropy": (0, 1e3),
    "policy_lr": (0, 1e3),
    "policy_beta1": (0, 0.9999999),
    "policy_beta2": (0, 0.9999999),
    "policy_decay": (0, 1e3),
    "baseline_decay": (0, 1),
    "judged": (1, 10**6),
    "samples": (1, 10**6),
    "attempts": (1, 10**6),
    "candidates": (1, 10**6),
    "shared_images": (2, 10**7),
    "epoch_trained": (1, 10**6),
    "epoch_final": (0, 10**6),
    "batch_trained": (2, 10**6),
    "lr_trained": (0, 1e3),
    "decay_trained": (0, 1e3),
    "cutout": (0, 10**4),
}

LEARNED = (*NatConfig.__dataclass_fields__,)
LEARNED = LEARNED[: LEARNED.index("samples")]
"""The entries that a policy depends on."""


def check_config(config: NatConfig) -> None:
    """Make sure that settings make sense.

    Raises:
        ArchirError: A778, with the entry and its range.
    """
    check_entries("A778", config, RANGES)
    if config.channels % 2:
        raise error("A778", f"channels is {config.channels}, it should be even")
    if config.warmup >= config.epochs:
        raise error("A778", f"warmup takes {config.warmup} of {config.epochs} epochs")
    if config.baseline == "others" and config.alphas < 2:
        raise error("A778", "the baseline `others` needs two alphas at least")


def learning(config: NatConfig) -> dict[str, Any]:
    """What a policy depends on, as JSON values."""
    return {name: value for name, value in asdict(config).items() if name in LEARNED}


def recipe(config: NatConfig, epochs: int) -> TrainConfig:
    """How networks are trained that were derived."""
    return TrainConfig(
        epochs=epochs,
        batch_size=config.batch_trained,
        lr=config.lr_trained,
        momentum=config.momentum,
        nesterov=False,
        weight_decay=config.decay_trained,
        schedule="cosine",
        flip=config.flip,
        crop=config.crop,
        cutout=config.cutout,
        channels_last=True,  # up to twice as fast on a CPU
    )
