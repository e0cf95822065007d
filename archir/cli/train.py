"""``archir train``: fit a network to labelled images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make

if TYPE_CHECKING:
    from archir.train.loop import Progress, ProgressCallback


@contextmanager
def bar(epochs: int) -> Iterator[ProgressCallback]:
    """A progress bar on a terminal; a line an epoch elsewhere (on stderr)."""
    if not sys.stderr.isatty():
        yield _line
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]}"),
        TextColumn("{task.fields[rate]:,.0f} images/s"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=1, epoch=0, loss=0.0, accuracy="-", rate=0.0)

        def update(now: Progress) -> None:
            fields: dict[str, Any] = {
                "epoch": now.epoch,
                "loss": now.loss,
                "rate": now.images_per_second,
            }
            if now.accuracy is not None:
                fields["accuracy"] = f"{now.accuracy:.1%}"
            shown.update(task, completed=now.step, total=now.steps, **fields)

        yield update


def _line(now: Progress) -> None:
    if now.accuracy is not None:
        text = f"epoch {now.epoch}/{now.epochs}  loss {now.loss:.4f}  accuracy {now.accuracy:.4f}"
        print(f"{text}  {now.images_per_second:,.0f} images/s", file=sys.stderr)


def train(
    file: str,
    data: str,
    output: str,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    seed: int,
    device: str,
    precision: str,
    run: str | None,
    force: bool,
    param: tuple[str, ...],
    weights: str | None,
    init: int | None,
) -> Report:
    """Train a network to classify images.

    SGD with Nesterov momentum and a cosine schedule. Starts from FILE's weights, or from initial
    ones (of --init, else of --seed) where it has none. Writes the network again as OUTPUT with
    its trained weights and its certificate.
    """
    from archir.api import check_output
    from archir.train.data import load_data
    from archir.train.device import describe, resolve
    from archir.train.loop import TrainConfig
    from archir.train.loop import train as fit

    target = check_output(Path(output), force=force)
    network = options.network(file, param, weights=weights, init=init)
    if network.weights is None:
        network = network.init(seed)
    assert network.weights is not None
    dataset = load_data(data)
    config = TrainConfig(
        epochs,
        batch_size,
        lr,
        momentum,
        weight_decay,
        seed,
        device,
        precision,  # type: ignore[arg-type]
    )
    print(f"training on {describe(resolve(device), config.precision)}", file=sys.stderr)
    with bar(epochs) as progress:
        run_dir = None if run is None else Path(run)
        done = fit(
            network.graph,
            dict(network.weights),
            dataset,
            config,
            progress=progress,
            run_dir=run_dir,
        )
    facts = {
        "data": {"name": dataset.name, "sha256": dataset.sha256, "images": len(dataset.train)},
        "config": {k: v for k, v in asdict(config).items() if k != "device"},
        "device": done.device,
        "validation": {"accuracy": done.validation.accuracy, "loss": done.validation.loss},
    }
    made = network.with_weights(done.weights, "train", facts)
    made.save(target, force=force)
    text = (
        f"validation accuracy {done.validation.accuracy:.4f}, loss {done.validation.loss:.4f} "
        f"after {epochs} epochs, {done.seconds:.1f} s\nwrote {target} with weights and certificate"
    )
    history = [asdict(epoch) for epoch in done.history]
    return Report(
        {"output": str(target), **facts, "history": history, "seconds": done.seconds}, text
    )


command = make(
    "train",
    options.file,
    options.data,
    options.output,
    click.option("--epochs", type=int, default=20, show_default=True),
    click.option("--batch-size", type=int, default=64, show_default=True),
    click.option(
        "--lr", type=float, default=0.05, show_default=True, help="The rate at the start."
    ),
    click.option("--momentum", type=float, default=0.9, show_default=True),
    click.option("--weight-decay", type=float, default=5e-4, show_default=True),
    options.seed,
    options.device,
    click.option("--precision", default="f32", show_default=True, help="f32 or bf16."),
    click.option("--run", type=click.Path(file_okay=False), help="A folder for metrics.jsonl."),
    options.force,
    options.params,
    options.weights,
    options.init,
    example="archir train net.arch --data digits --epochs 10 -o trained.arch",
)(train)
