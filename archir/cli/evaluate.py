"""``archir eval``: accuracy and predictions on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import CHECK_FAILED

if TYPE_CHECKING:
    from archir.api import Network
    from archir.train.data import Dataset
    from archir.train.evaluate import Evaluation


def evaluate(
    file: str,
    data: str,
    download: bool,
    split: str,
    against: str | None,
    others: tuple[str, ...],
    device: str,
    param: tuple[str, ...],
    weights: str | None,
    init: int | None,
) -> Report:
    """Evaluate a network on a data set.

    With --against another network is evaluated on the same images and the predictions are
    compared one by one; exit status 1 says that some differ. With --with the class probabilities
    of all networks are averaged: a snapshot ensemble, or one across runs.
    """
    from archir.api import no_weights
    from archir.train.device import resolve

    resolve(device)  # says so where there is no torch, or no such device
    from archir.train.evaluate import evaluate as score

    network = options.network(file, param, weights=weights, init=init)
    if network.weights is None:
        raise no_weights(Path(file))
    dataset = options.dataset(data, network.graph, download=download)
    found = score(network.graph, dict(network.weights), dataset, split, device=device)
    facts = {
        "file": file,
        "data": {"name": dataset.name, "sha256": dataset.sha256, "split": split},
        "accuracy": found.accuracy,
        "correct": found.correct,
        "count": found.count,
        "loss": found.loss,
    }
    text = f"{file}: {found.correct} of {found.count} {split} images right ({found.accuracy:.2%})"
    text += f", loss {found.loss:.4f}"
    if others:
        found = _together(network, others, dataset, data, split, device)
        facts |= {"with": list(others), "alone": facts["accuracy"]}
        facts |= {"accuracy": found.accuracy, "correct": found.correct, "loss": found.loss}
        text += f"\ntogether with {', '.join(others)}: {found.correct} of {found.count} "
        text += f"({found.accuracy:.2%}), loss {found.loss:.4f}"
    if against is None:
        return Report(facts | {"predictions": found.predictions.tolist()}, text)
    other = options.network(against)
    if other.weights is None:
        raise no_weights(Path(against))
    theirs = score(other.graph, dict(other.weights), dataset, split, device=device)
    same = int((found.predictions == theirs.predictions).sum())
    facts |= {"against": against, "same_predictions": same, "against_accuracy": theirs.accuracy}
    if same == found.count:
        text += f"\nall {same} predictions are those of {against}, to the last image"
    else:
        text += f"\n{found.count - same} of {found.count} predictions differ from {against}"
    return Report(facts, text, 0 if same == found.count else CHECK_FAILED)


def _together(
    network: Network,
    others: Sequence[str],
    dataset: Dataset,
    data: str,
    split: str,
    device: str,
) -> Evaluation:
    """The average of a network's class probabilities with those of others."""
    from archir.train.data import image_shape
    from archir.train.evaluate import evaluate_together

    networks, sets = [network], [dataset]
    for other in others:
        found = options.network(other)
        alike = image_shape(found.graph) == image_shape(network.graph)
        networks.append(found)
        sets.append(dataset if alike else options.dataset(data, found.graph, download=False))
    return evaluate_together(networks, sets, split, device=device)


command = make(
    "eval",
    options.file,
    options.data,
    options.download,
    click.option(
        "--split",
        type=click.Choice(["train", "validation", "test"]),
        default="test",
        show_default=True,
    ),
    click.option(
        "--against", type=click.Path(dir_okay=False), help="Compare predictions with these."
    ),
    click.option(
        "--with",
        "others",
        multiple=True,
        type=click.Path(dir_okay=False),
        help="Average the class probabilities with those of this network. Several times.",
    ),
    options.device,
    options.params,
    options.weights,
    options.init,
    example="archir eval wider.arch --data digits --against trained.arch",
)(evaluate)
