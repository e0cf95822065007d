"""``archir weights``: initial weights."""

from __future__ import annotations

from pathlib import Path

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make


def init(
    file: str, param: tuple[str, ...], seed: int, random_statistics: bool, force: bool
) -> Report:
    """Write initial weights beside a network, and the certificate that says so.

    With --random-statistics the vectors of batch norms are drawn far from 0 and 1, so that a
    trial cannot pass by forgetting them. Constants, which no seed gives, are kept from the weights
    that stand beside the network.
    """
    from archir.api import certificate_path, load, weights_path
    from archir.files import check_target, writing_all
    from archir.weights.init import constants_of
    from archir.weights.store import load_weights, save_weights

    target = Path(file)
    files = (weights_path(target), certificate_path(target))
    for path in files:
        check_target(path, force=force)
    chosen = options.given_params(param) or options.certified_params(target)
    found = load(target, params=chosen, ignore_weights=True)
    beside = weights_path(target)
    constants = load_weights(beside) if constants_of(found.graph) and beside.is_file() else {}
    made = found.init(seed, random_statistics=random_statistics, constants=constants)
    assert made.weights is not None
    with writing_all(files, force=force) as (tensors, certificate):
        save_weights(tensors, dict(made.weights), {})
        certificate.write_text(made.certificate.to_json(), encoding="utf-8")
    count = sum(a.size for a in made.weights.values())
    digest = made.certificate.steps[-1].after.weights
    data = {"file": str(weights_path(target)), "seed": seed, "numbers": count, "weights": digest}
    return Report(data, f"wrote {weights_path(target)}: {count:,} numbers, seed {seed}")


@click.group("weights")
def command() -> None:
    """Make weights for a network."""


command.add_command(
    make(
        "init",
        options.file,
        options.params,
        options.seed,
        click.option(
            "--random-statistics", is_flag=True, help="Batch-norm vectors far from 0 and 1."
        ),
        options.force,
        example="archir weights init net.arch --seed 1",
    )(init)
)
