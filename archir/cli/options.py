"""Options that several commands share, and what they load."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from archir.cli.common import parse_settings
from archir.diag import error
from archir.files import read_source
from archir.ir.types import AttrValue
from archir.lang import load as load_program
from archir.lang.program import Program
from archir.ops import installed_ops

if TYPE_CHECKING:
    from archir.api import Network
    from archir.ir.graph import Graph
    from archir.rewrite.rule import Rule
    from archir.rewrite.sites import Planner
    from archir.train.data import Dataset


file = click.argument("file", type=click.Path(dir_okay=False))
params = click.option(
    "--param", "param", multiple=True, metavar="NAME=VALUE", help="A parameter of the arch."
)
weights = click.option(
    "--weights", type=click.Path(dir_okay=False), help="Weights other than FILE's stem.safetensors."
)
init = click.option("--init", type=int, metavar="SEED", help="Start from initial weights.")
output = click.option("-o", "--output", type=click.Path(dir_okay=False), required=True)
force = click.option("--force", is_flag=True, help="Replace files that exist.")
seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1")
RULE = "RULE|FILE.rule[:RULE]"
"""How a rule is named: by its name, or as one of a file."""

rule_files = click.option(
    "--rules", "rule_files", multiple=True, type=click.Path(dir_okay=False), help="A .rule file."
)
data = click.option(
    "--data",
    default="digits",
    show_default=True,
    help="digits, cifar10, cifar100, svhn, mnist, fashion_mnist, an .npz, a folder of images by "
    "class, or file.py:factory.",
)
data_seed = click.option(
    "--data-seed", type=click.IntRange(0), default=0, help="Draws the validation images."
)
download = click.option(
    "--download", is_flag=True, help="Fetch a published data set that is not here."
)


def given_params(pairs: Sequence[str]) -> dict[str, AttrValue] | None:
    """``--param`` options; None where there are none."""
    return parse_settings(tuple(pairs), "--param") if pairs else None


def program(path: str, pairs: Sequence[str]) -> Program:
    """A network's text alone: no weights, no rules, nothing heavy imported.

    Parameters of the arch that are not given are those its certificate names.
    """
    chosen: Mapping[str, AttrValue] | None = given_params(pairs)
    if chosen is None:
        chosen = certified_params(Path(path))
    return load_program(read_source(path), installed_ops(), chosen)


def planner(path: str, pairs: Sequence[str], rules: Sequence[Rule]) -> Planner:
    """A planner for a network's text; with its weights where one of the rules looks at them."""
    from archir.rewrite.sites import Planner, looks_at_weights
    from archir.weights.store import check_weights, load_weights

    graph = program(path, pairs).graph
    beside = Path(path).with_suffix(".safetensors")
    tensors = None
    if any(looks_at_weights(rule) for rule in rules) and beside.is_file():
        tensors = load_weights(beside)
        check_weights(graph, tensors)
    return Planner(graph, installed_ops(), tensors)


def certified_params(path: Path) -> Mapping[str, AttrValue]:
    """The arch's parameters that a certificate beside a file names."""
    beside = path.with_suffix(".cert.json")
    if not beside.is_file():
        return {}
    from archir.proof.certificate import read_certificate

    found = read_certificate(beside).params
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def network(
    path: str,
    pairs: Sequence[str] = (),
    *,
    weights: str | None = None,
    init: int | None = None,
    rules: Sequence[str] = (),
) -> Network:
    """A network with its weights, certificate and rules."""
    from archir.api import load

    if weights is not None and init is not None:
        raise error("A609", "--weights and --init exclude each other")
    found = load(path, params=given_params(pairs), weights=weights, rules=rules)
    return found if init is None else found.init(init)


def dataset(name: str, graph: Graph, *, download: bool, seed: int = 0) -> Dataset:
    """A data set; images of a folder get the size that the network takes."""
    from archir.train.data import image_shape, load_data

    with spinner("data") as report:
        return load_data(name, seed, size=image_shape(graph), download=download, report=report)


def human(number: float) -> str:
    """A count as people read it: 25,557,032 or 4.1 G."""
    if abs(number) < 100_000_000:
        return f"{number:,.0f}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(number) >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,.0f}"


def memory(bytes_: int) -> str:
    """A number of bytes as people read it: 4.0 KiB, 26.5 MiB."""
    return f"{bytes_ / 2**10:,.1f} KiB" if bytes_ < 2**20 else f"{bytes_ / 2**20:,.1f} MiB"


def table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()
) -> str:
    """A plain table; columns listed in ``right`` are aligned at the right."""
    from io import StringIO

    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, header in enumerate(headers):
        made.add_column(header, justify="right" if index in right else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    stream = StringIO()
    console = Console(file=stream, width=400, no_color=True, highlight=False, markup=False)
    console.print(made)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def shape_text(types: Sequence[object]) -> str:
    """Types of a node's outputs."""
    return ", ".join(str(t) for t in types)


@contextmanager
def spinner(what: str) -> Iterator[Callable[[str], None]]:
    """A line on a terminal's stderr that says what is being done; silent elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    # bound to the stream of now: what is printed within may be caught
    with Console(file=sys.stderr).status(what) as status:
        yield lambda text: status.update(f"{what}: {text}")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal's stderr, told of parts done, parts in all and the last one's name."""
    if not sys.stderr.isatty():
        yield lambda done, total, name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[name]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        held = bar.add_task(what, total=None, name="")

        def told(done: int, total: int, name: str) -> None:
            bar.update(held, completed=done, total=total, name=name, refresh=True)

        yield told
