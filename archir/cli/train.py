"""``archir train``: fit a network to labelled images."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archir.cli import options
from archir.cli.common import Report, told_how_to_go_on
from archir.cli.common import command as make
from archir.diag import error
from archir.train.logs import kept_in
from archir.train.recipe import TrainConfig, make_recipe, read_recipe

if TYPE_CHECKING:
    from archir.api import Network
    from archir.train.loop import Progress, ProgressCallback
    from archir.train.session import Trained
    from archir.train.state import State

_HELP: Mapping[str, str] = {
    "epochs": "Passes over the training images.",
    "batch_size": "Images a step, of all processes together.",
    "lr": "The rate at the start, or at the peak.",
    "momentum": "Of SGD.",
    "weight_decay": "L2 for SGD, decoupled for AdamW.",
    "seed": "Of the order of images, augmentation and dropout.",
    "precision": "f32, bf16 or f16 (autocast; f16 scales the loss).",
    "optimizer": "sgd or adamw.",
    "nesterov": "Nesterov's momentum.",
    "decay_vectors": "Whether biases and norms decay too.",
    "schedule": "constant, cosine, sgdr or onecycle.",
    "warmup": "Epochs of a linear warmup.",
    "lr_min": "The lowest rate of cosine and sgdr.",
    "cycle": "Epochs of the first cycle of sgdr.",
    "cycle_factor": "How much longer each next cycle is.",
    "flip": "Mirror half of the images.",
    "crop": "Pad by so many pixels and crop at random.",
    "cutout": "Hide a square of that side.",
    "mixup": "Mix pairs of images; alpha of the Beta distribution.",
    "loss": "cross_entropy, binary_cross_entropy, mse, FILE.py:FACTORY.",
    "label_smoothing": "The share that is spread over all classes.",
    "distill_weight": "With --distill: the teacher's share of the loss.",
    "temperature": "With --distill: softens both outputs.",
    "clip": "Largest norm of the gradients; 0 for none.",
    "ema": "Decay of an average of the weights; 0 for none.",
    "channels_last": "Channels last in memory.",
    "compile": "Compile the network with torch.compile.",
    "keep": "last or best: which weights are written.",
    "log_every": "Steps between two lines of the loss; 0 for none.",
}
"""The entries of a recipe that are flags; a recipe file has them all."""


def _flags() -> list[Callable[[Any], Any]]:
    """A flag for each entry; one that is not given leaves the recipe as it is."""
    found: list[Callable[[Any], Any]] = []
    for entry in fields(TrainConfig):
        if entry.name not in _HELP:
            continue
        flag, default = f"--{entry.name.replace('_', '-')}", entry.default
        text = _HELP[entry.name]
        if isinstance(default, bool):
            flag, shown = f"{flag}/--no-{flag[2:]}", "on" if default else "off"
        else:
            shown = f"{default:g}" if isinstance(default, float) else str(default)
        kind = None if isinstance(default, bool) else type(default)
        told = f"{text}  [default: {shown}]"
        found.append(click.option(flag, entry.name, type=kind, default=None, help=told))
    return found


@contextmanager
def bar(*, shown: bool = True) -> Iterator[ProgressCallback | None]:
    """A progress bar on a terminal; a line an epoch elsewhere (on stderr); nothing if not shown."""
    if not shown:
        yield None
        return
    if not sys.stderr.isatty():
        yield _line
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
        TextColumn("{task.fields[rate]} images/s"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as made:
        task = made.add_task("", total=1, epoch="-", loss="-", accuracy="-", rate="-")

        def update(now: Progress) -> None:
            if now.note:
                made.console.print(now.note)
                return
            more: dict[str, Any] = {
                "loss": f"{now.loss:.3f}",
                "rate": f"{now.images_per_second:,.0f}",
            }
            if now.accuracy is not None:
                more["accuracy"] = f"{now.accuracy:.1%}"
            epoch = f"{now.epoch}/{now.epochs}"
            made.update(task, completed=now.step, total=now.steps, epoch=epoch, **more)

        yield update


def _line(now: Progress) -> None:
    if now.note:
        print(now.note, file=sys.stderr)
    elif now.accuracy is not None:
        text = f"epoch {now.epoch}/{now.epochs}  loss {now.loss:.4f}  accuracy {now.accuracy:.4f}"
        print(f"{text}  {now.images_per_second:,.0f} images/s", file=sys.stderr)


def _config(recipe: str | None, device: str, flags: Mapping[str, Any]) -> TrainConfig:
    changes = {name: value for name, value in flags.items() if value is not None}
    if device != "auto":
        changes["device"] = device
    rates = changes.pop("rates", ())
    if rates:
        changes["rates"] = [_rate(text) for text in rates]
    if not changes.get("freeze"):
        changes.pop("freeze", None)
    return make_recipe({}, changes) if recipe is None else read_recipe(recipe, **changes)


def _rate(text: str) -> tuple[str, float]:
    glob, _, factor = text.rpartition("=")
    try:
        return glob, float(factor)
    except ValueError:
        raise error("A609", f"--rate {text}: expected GLOB=FACTOR") from None


def train(run: str | None, **words: Any) -> Report:
    """Train a network to classify images.

    SGD or AdamW; starts from FILE's weights, or from initial ones (of --init, else of --seed)
    where it has none. Writes the network again as OUTPUT with its trained weights and its
    certificate. With --run it keeps metrics and checkpoints, and --resume goes on where a run was
    cut off. Under torchrun it trains on several GPUs. With --grow the network is rewritten on the
    way, and its optimizer's state with it.
    """
    import archir.train.device  # noqa: F401 - before all else: it says so where torch is missing

    folder = None if run is None else Path(run)
    if os.environ.get("WORLD_SIZE", "1") == "1":
        with told_how_to_go_on(lambda: kept_in(folder)):
            return _trained(run=run, **words)
    from archir.train.distributed import joined

    with joined() as voice, voice.one_speaks():
        if voice.first:
            with told_how_to_go_on(lambda: kept_in(folder)):
                return _trained(run=run, **words)
        _trained(run=run, **words)
    sys.exit()  # the first process alone reports


def _trained(
    *,
    file: str,
    data: str,
    data_seed: int,
    join: bool,
    download: bool,
    output: str,
    recipe: str | None,
    run: str | None,
    resume: bool,
    grow: str | None,
    distill: str | None,
    with_optimizer: bool,
    tensorboard: bool,
    device: str,
    force: bool,
    param: tuple[str, ...],
    weights: str | None,
    init: int | None,
    **flags: Any,
) -> Report:
    from archir.api import check_output
    from archir.train.data import joined
    from archir.train.device import describe
    from archir.train.distributed import is_first
    from archir.train.session import train_network
    from archir.train.timetable import read_timetable

    config = _config(recipe, device, flags)
    _check_flags(config, run=run, resume=resume, tensorboard=tensorboard, whole=with_optimizer)
    target = check_output(Path(output), force=force)
    network = options.network(file, param, weights=weights, init=init)
    if network.weights is None:
        network = network.init(config.seed)
    state = _optimizer_of(file, network) if with_optimizer else None
    changes = () if grow is None else read_timetable(grow, network)
    dataset = options.dataset(data, network.graph, download=download, seed=data_seed)
    dataset = joined(dataset) if join else dataset
    with bar(shown=is_first()) as progress:
        done = train_network(
            network,
            dataset,
            config,
            changes=changes,
            state=state,
            teacher=None if distill is None else options.network(distill),
            run_dir=None if run is None else Path(run),
            existing="resume" if resume else "replace" if force else "refuse",
            tensorboard=tensorboard,
            progress=progress,
            started=lambda here: print(
                f"training on {describe(here, config.precision)}", file=sys.stderr
            ),
        )
    if not is_first():
        return Report({}, "")
    (done.state if with_optimizer else done.network).save(target, force=force)
    return _report(done, target, config)


def _check_flags(
    config: TrainConfig, *, run: str | None, resume: bool, tensorboard: bool, whole: bool
) -> None:
    """Refuse flags that do not go together."""
    if resume and run is None:
        raise error("A609", "nothing says which run to resume", hint="--run DIR")
    if tensorboard and run is None:
        raise error("A609", "nothing says where TensorBoard's numbers go", hint="--run DIR")
    if whole and (config.ema or config.keep == "best"):
        raise error(
            "A609",
            "--with-optimizer writes the weights that are trained on, no others",
            hint="leave out --ema and --keep best",
        )


def _optimizer_of(file: str, network: Network) -> State | None:
    """The optimizer's state beside a network's file, if there is one."""
    from archir.train.state import State, optimizer_path

    return State.load(file, network) if optimizer_path(Path(file)).is_file() else None


def _report(done: Trained, target: Path, config: TrainConfig) -> Report:
    growths, result = done.growths, done.result
    sizes = [*(line["params"][0] for line in growths[:1]), *(line["params"][1] for line in growths)]
    grown = f"grew: parameters {' -> '.join(f'{n:,}' for n in sizes)}\n" if sizes else ""
    which = "the best epoch's" if config.keep == "best" else "weights"
    text = (
        f"validation accuracy {result.validation.accuracy:.4f}, "
        f"loss {result.validation.loss:.4f} "
        f"after {config.epochs} epoch{'s' * (config.epochs > 1)}, {result.seconds:.1f} s\n"
        f"{grown}wrote {target} with {which} and certificate"
    )
    data = {"output": str(target), **done.facts, **({"growths": growths} if growths else {})}
    history = [asdict(epoch) for epoch in result.history]
    return Report({**data, "history": history, "seconds": result.seconds}, text)


command = make(
    "train",
    options.file,
    options.data,
    options.data_seed,
    click.option("--join", is_flag=True, help="Train on the validation images too."),
    options.download,
    options.output,
    click.option(
        "--recipe",
        type=click.Path(dir_okay=False),
        help="A TOML file, or the .cert.json of a network to train like it; flags change entries.",
    ),
    *_flags(),
    click.option("--freeze", multiple=True, metavar="GLOB", help="Parameters that stay."),
    click.option(
        "--rate", "rates", multiple=True, metavar="GLOB=FACTOR", help="Their factor of the rate."
    ),
    click.option(
        "--grow",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="A TOML file of rewrites on the way: docs/growing.md.",
    ),
    click.option(
        "--with-optimizer",
        is_flag=True,
        help="Go on with FILE's optimizer, where it has one; write OUTPUT's.",
    ),
    click.option("--distill", metavar="FILE", help="Learn this network's outputs too."),
    click.option(
        "--run",
        "--run-dir",  # torchrun (3.11's argparse) takes --run for an abbreviation of its own
        "run",
        type=click.Path(file_okay=False),
        help="A folder for metrics and checkpoints.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the run in that folder."),
    click.option("--tensorboard", is_flag=True, help="Numbers for TensorBoard in that folder."),
    options.device,
    options.force,
    options.params,
    options.weights,
    options.init,
    example="archir train net.arch --data digits --run runs/a -o trained.arch",
)(train)
