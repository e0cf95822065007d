"""The settings of a training run: one flat record that is written to the run folder as it is.

Importing this module needs no torch.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from archir.diag import ArchirError, error
from archir.proof.certificate import read_certificate
from archir.train.data import Dataset
from archir.train.entries import check_entries, read_toml, read_value, unknown

Precision = Literal["f32", "bf16", "f16"]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train. Rates are per step; lengths of schedules are in epochs; crops in pixels.

    ``docs/training.md`` explains every entry, with its source.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    device: str = "auto"
    precision: Precision = "f32"

    optimizer: Literal["sgd", "adamw"] = "sgd"
    nesterov: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decay_vectors: bool = True
    freeze: tuple[str, ...] = ()
    rates: tuple[tuple[str, float], ...] = ()

    schedule: Literal["constant", "cosine", "sgdr", "onecycle"] = "cosine"
    warmup: float = 0.0
    lr_min: float = 0.0
    cycle: float = 10.0
    cycle_factor: float = 2.0
    peak: float = 0.3

    flip: bool = False
    crop: int = 0
    cutout: int = 0
    mixup: float = 0.0

    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    distill_weight: float = 0.5
    temperature: float = 4.0

    clip: float = 0.0
    ema: float = 0.0
    channels_last: bool = False
    compile: bool = False
    keep: Literal["last", "best"] = "last"
    log_every: int = 0

    def record(self) -> dict[str, Any]:
        """The entries that a run depends on, as JSON values: all but where and how it is run."""
        found = {k: v for k, v in asdict(self).items() if k not in ("device", "compile")}
        return {k: _plain(v) for k, v in found.items()}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def train_facts(dataset: Dataset, config: TrainConfig, since: int, until: int) -> dict[str, Any]:
    """What a certificate says of training from one step of a run to another, as JSON values."""
    return {
        "data": {"name": dataset.name, "sha256": dataset.sha256, "images": len(dataset.train)},
        "config": config.record(),
        "steps": [since, until],
    }


_LARGEST_FACTOR = 1e6
"""What ``rates`` may multiply a rate by, at most."""

_RANGES: Mapping[str, tuple[float, float]] = {
    "epochs": (1, 10**6),
    "batch_size": (1, 10**6),
    "lr": (0, 1e3),
    "momentum": (0, 1),
    "weight_decay": (0, 1e3),
    "seed": (0, 2**63 - 1),
    "beta1": (0, 1),
    "beta2": (0, 1),
    "eps": (0, 1),
    "warmup": (0, 10**6),
    "lr_min": (0, 1e3),
    "cycle": (1e-6, 10**6),
    "cycle_factor": (1, 10**3),
    "peak": (1e-6, 1),
    "crop": (0, 10**4),
    "cutout": (0, 10**4),
    "mixup": (0, 10**3),
    "label_smoothing": (0, 1),
    "distill_weight": (0, 1),
    "temperature": (1e-3, 10**3),
    "clip": (0, 1e9),
    "ema": (0, 0.999999),  # with 1 the first weights would stay
    "log_every": (0, 10**9),
}


def check_config(config: TrainConfig, where: str = "") -> None:
    """Make sure that a recipe makes sense.

    Args:
        config: The recipe.
        where: What stands before a message, such as the name of its file.

    Raises:
        ArchirError: A632, with the entry and its range.
    """
    check_entries("A632", config, _RANGES, where)
    for glob, factor in config.rates:
        if not 0 <= factor <= _LARGEST_FACTOR:
            found = f"the factor of `{glob}` is {factor}"
            raise error("A632", f"{where}{found}, it should be from 0 to {_LARGEST_FACTOR:g}")
    if config.lr_min > config.lr:
        raise error("A632", f"{where}lr_min is {config.lr_min:g}, more than lr, {config.lr:g}")
    if config.warmup >= config.epochs:
        raise error("A632", f"{where}warmup takes {config.warmup:g} of {config.epochs} epochs")


def read_recipe(path: str | Path, **changes: Any) -> TrainConfig:
    """A recipe from a TOML file whose keys are the names of :class:`TrainConfig`'s entries.

    Args:
        path: The file; or the certificate (``.cert.json``) of a network whose last training is to
            be done again.
        **changes: Entries that take the place of the file's.

    Raises:
        ArchirError: A601, it cannot be read; A632, it is no TOML, or an entry is unknown, of
            another kind, or out of its range, or the network was never trained; A402, it is no
            certificate.
    """
    certified = str(path).endswith(".cert.json")
    found = _last_training(Path(path)) if certified else read_toml(path, "A632")
    return make_recipe(found, changes, f"{path}: ")


def _last_training(path: Path) -> Mapping[str, Any]:
    """The recipe of the last training in a certificate."""
    steps = [step for step in read_certificate(path).steps if step.kind == "train"]
    found = steps[-1].facts.get("config") if steps else None
    if not isinstance(found, dict):
        raise error("A632", f"{path} tells of no training")
    return found


def make_recipe(
    found: Mapping[str, Any], changes: Mapping[str, Any], where: str = ""
) -> TrainConfig:
    """A recipe from JSON values.

    Raises:
        ArchirError: A632.
    """
    kinds = typing.get_type_hints(TrainConfig)
    entries: dict[str, Any] = {}
    for name, value in {**found, **changes}.items():
        if name not in kinds:
            message = f"{where}a recipe has no entry `{name}`"
            raise unknown("A632", message, name, kinds, "docs/training.md lists the entries")
        entries[name] = _value(where, name, value, kinds[name])
    config = TrainConfig(**entries)
    check_config(config, where)
    return config


def _value(where: str, name: str, value: Any, kind: Any) -> Any:
    """A value of an entry's kind; factors by glob are a table, or pairs as they are recorded.

    Raises:
        ArchirError: A632, it is of another kind.
    """
    if name != "rates":
        return read_value("A632", where + name, value, kind)
    try:
        pairs = list(value.items()) if isinstance(value, dict) else value
        return read_value("A632", name, pairs, kind)
    except ArchirError:
        wanted = "it should be a table of numbers by glob"
        raise error("A632", f"{where}{name} is {value!r}, {wanted}") from None
