"""The loop beside one written by hand in plain PyTorch: equal bits, recipe by recipe.

Of archir's training the loop by hand knows the initial tensors and where random numbers come from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from archir.ops import STANDARD
from archir.train.data import Dataset, Split, load_data
from archir.train.feed import DROPOUT, drawn_seed, generator, order
from archir.train.loop import train
from archir.train.recipe import TrainConfig
from archir.weights.init import init_weights
from archir.weights.store import Weights

from .nets import small

WIDTH, EPOCHS, BATCH, SEED = 4, 3, 32, 11
PER_EPOCH = 3
STEPS = EPOCHS * PER_EPOCH
SHORT = TrainConfig(epochs=EPOCHS, batch_size=BATCH, seed=SEED, device="cpu")
DISTILL = {"distill_weight": 0.3, "temperature": 3.0}


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Of the digits 110: three batches, and what does not fill a fourth."""
    every = load_data("digits")
    x, y = every.train.x, every.train.y
    return replace(every, train=Split(x[:110], y[:110]), validation=Split(x[200:240], y[200:240]))


class Small(nn.Module):
    """What :func:`small` says, by hand."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8 * WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.dropout(functional.relu(self.bn2(self.conv2(y))))
        return self.fc(functional.max_pool2d(y, 2).flatten(1))


def made(weights: Weights, dropout: float = 0.0) -> Small:
    net = Small(dropout)
    net.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.items()})
    return net


def half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def rate_and_momentum(config: TrainConfig, step: int) -> tuple[float, float]:
    """Both of a step; ``momentum`` is the first beta of AdamW."""
    kept = config.beta1 if config.optimizer == "adamw" else config.momentum
    warm = round(config.warmup * PER_EPOCH)
    if step < warm:
        return config.lr * (0.01 + 0.99 * step / warm), kept
    at, length = step - warm, STEPS - warm
    if config.schedule == "constant":
        return config.lr, kept
    if config.schedule == "onecycle":
        top = 0.3 * length - 1
        if at <= top:
            return config.lr * half_cosine(1 / 25, 1, at / top), half_cosine(0.95, 0.85, at / top)
        share = (at - top) / (length - 1 - top)
        return config.lr * half_cosine(1, 1 / 25 / 1e4, share), half_cosine(0.85, 0.95, share)
    if config.schedule == "sgdr":
        length = round(config.cycle * PER_EPOCH)
        while at >= length:
            at, length = at - length, round(config.cycle_factor * length)
    floor = config.lr_min / config.lr
    return config.lr * (floor + (1 - floor) * (1 + math.cos(math.pi * at / length)) / 2), kept


def augmented(config: TrainConfig, x: torch.Tensor, drawn: torch.Generator) -> torch.Tensor:
    """One image after the other."""
    count, _, height, width = x.shape
    pad = config.crop
    if pad:
        places = torch.randint(2 * pad + 1, (2, count), generator=drawn).T.tolist()
        padded = functional.pad(x, (pad, pad, pad, pad))
        windows = zip(padded, places, strict=True)
        x = torch.stack([i[:, d : d + height, r : r + width] for i, (d, r) in windows])
    if config.flip:
        mirrored = torch.randint(2, (count,), generator=drawn).tolist()
        pairs = zip(x, mirrored, strict=True)
        x = torch.stack([image.flip(2) if yes else image for image, yes in pairs])
    if config.cutout:
        half = config.cutout // 2
        rows = torch.randint(height, (count,), generator=drawn).tolist()
        columns = torch.randint(width, (count,), generator=drawn).tolist()
        x = x.clone()
        for image, i, j in zip(x, rows, columns, strict=True):
            image[:, max(i - half, 0) : i + half, max(j - half, 0) : j + half] = 0
    return x


def loss_by_hand(config: TrainConfig, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    smoothing = config.label_smoothing
    if config.loss == "cross_entropy":
        return functional.cross_entropy(logits, y, label_smoothing=smoothing)
    one_hot = functional.one_hot(y, 10).float()
    if config.loss == "mse":
        return functional.mse_loss(logits, one_hot)
    return functional.binary_cross_entropy_with_logits(logits, one_hot)


def groups(config: TrainConfig, net: Small) -> Iterator[dict[str, Any]]:
    """The parameters that are trained, each in a group of its own."""
    for name, parameter in net.named_parameters():
        if config.freeze and name.startswith("conv1"):
            parameter.requires_grad = False
            continue
        decays = config.decay_vectors or parameter.dim() > 1
        yield {
            "params": [parameter],
            "weight_decay": config.weight_decay if decays else 0.0,
            "scale": 0.1 if config.rates and name.startswith("fc") else 1.0,
        }


def by_hand(
    config: TrainConfig, data: Dataset, net: Small, teacher: Small | None
) -> tuple[dict[str, torch.Tensor], list[float], dict[str, torch.Tensor]]:
    """The state dict after training, the mean loss of each epoch, and the average of weights."""
    images, labels = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    assert images.dtype == torch.float32
    parts = list(groups(config, net))
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        parts, config.lr, config.momentum, nesterov=config.nesterov
    )
    if config.optimizer == "adamw":
        betas = (config.beta1, config.beta2)
        optimizer = torch.optim.AdamW(parts, config.lr, betas, config.eps)
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    losses, step = [], 0
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        shuffled = order(SEED, epoch, len(labels))
        for batch in range(PER_EPOCH):
            chosen = shuffled[batch * BATCH : (batch + 1) * BATCH]
            drawn = generator(torch.device("cpu"), SEED, step)
            x, y = augmented(config, images[chosen], drawn), labels[chosen]
            share, partner = 1.0, torch.arange(BATCH)
            if config.mixup:
                partner = torch.randperm(BATCH, generator=drawn)
                number = int(torch.randint(2**62, (), generator=drawn))
                share = random.Random(number).betavariate(config.mixup, config.mixup)
                x = share * x + (1 - share) * x[partner]
            rate, momentum = rate_and_momentum(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
                if config.optimizer == "adamw":
                    group["betas"] = (momentum, config.beta2)
                else:
                    group["momentum"] = momentum
            torch.manual_seed(drawn_seed(SEED, DROPOUT, step))
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                logits = net(x)
            logits = logits.float()
            loss = loss_by_hand(config, logits, y)
            if config.mixup:
                loss = share * loss + (1 - share) * loss_by_hand(config, logits, y[partner])
            if teacher is not None:
                with torch.no_grad():
                    taught = functional.log_softmax(teacher(x) / 3.0, 1)
                learned = functional.log_softmax(logits / 3.0, 1)
                far = functional.kl_div(learned, taught, reduction="batchmean", log_target=True)
                loss = (1 - 0.3) * loss + 0.3 * (far * 9.0)
            loss.backward()
            if config.clip:
                nn.utils.clip_grad_norm_(net.parameters(), config.clip)
            optimizer.step()
            for name, parameter in net.named_parameters():
                average[name].lerp_(parameter.detach(), 1 - config.ema)
            total += loss.item()
            step += 1
        losses.append(total / PER_EPOCH)
    return net.state_dict(), losses, average


def compare(data: Dataset, dropout: float = 0.0, teacher: bool = False, **changes: Any) -> None:
    config = replace(SHORT, **changes)
    graph = small(WIDTH, dropout)
    start = init_weights(graph, STANDARD, 5)
    taught = init_weights(small(WIDTH), STANDARD, 6)
    given = (small(WIDTH), taught) if teacher else None
    found = train(graph, start, data, config, teacher=given)
    net = made(start, dropout)
    state, losses, average = by_hand(
        config, data, net.train(), made(taught).eval() if teacher else None
    )
    assert [line.train_loss for line in found.history] == losses
    rates = [rate_and_momentum(config, step)[0] for step in range(STEPS)]
    assert [line.lr for line in found.history] == rates[PER_EPOCH - 1 :: PER_EPOCH]
    wanted = {**state, **average} if config.ema else state
    assert found.weights.keys() == wanted.keys()
    for path, value in wanted.items():
        assert found.weights[path].tobytes() == value.numpy().tobytes(), path
    assert not torch.equal(state["fc.weight"], torch.from_numpy(start["fc.weight"]))


AUGMENTED = {"flip": True, "crop": 2, "cutout": 4}
TABLE = list(
    product(
        ["sgd", "adamw"],
        ["constant", "cosine", "sgdr", "onecycle"],
        [{}, AUGMENTED],
        [0.0, 0.1],
        [0.0, 0.4],
    )
)


@pytest.mark.parametrize(("optimizer", "schedule", "augmented", "smoothing", "mixup"), TABLE)
def test_every_combination(
    data: Dataset,
    optimizer: str,
    schedule: str,
    augmented: dict[str, Any],
    smoothing: float,
    mixup: float,
) -> None:
    compare(
        data,
        optimizer=optimizer,
        schedule=schedule,
        cycle=1.0,
        lr=0.05 if optimizer == "sgd" else 2e-3,
        label_smoothing=smoothing,
        mixup=mixup,
        **augmented,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"nesterov": False, "momentum": 0.5},
        {"warmup": 1.0},
        {"warmup": 1.0, "lr_min": 0.01, "schedule": "sgdr", "cycle": 1.0, "cycle_factor": 1.0},
        {"decay_vectors": False, "weight_decay": 0.1},
        {"freeze": ("conv1",), "rates": (("*", 7.0), ("*", 1.0), ("fc", 0.1))},
        {"optimizer": "adamw", "lr": 1e-3, "beta1": 0.8, "beta2": 0.9, "eps": 1e-4},
        {"clip": 0.5},
        {"ema": 0.9},
        {"dropout": 0.5},
        {"loss": "mse"},
        {"loss": "binary_cross_entropy"},
        {"teacher": True, **DISTILL},
        {"precision": "bf16", "flip": True},
    ],
    ids="-".join,
)
def test_every_other_entry(data: Dataset, changes: dict[str, Any]) -> None:
    compare(data, **changes)
