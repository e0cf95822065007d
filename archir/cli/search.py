"""``archir search``: look for a better network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archir.cli import options
from archir.cli.common import Report, parse_settings, told_how_to_go_on
from archir.cli.common import command as make
from archir.diag import ArchirError, error

if TYPE_CHECKING:
    from archir.api import Network
    from archir.search.executors import Executor
    from archir.search.settings import Settings
    from archir.train.data import Dataset

_HELP: Mapping[str, tuple[str, str]] = {
    "strategy": ("NAME", "eas, eas_random, nash, nat, random, rwe, or FILE.py:NAME."),
    "preset": ("NAME", "The strategy's values to begin with: small, paper."),
    "data": ("DATA", "As of `archir train`."),
    "data_seed": ("SEED", "Draws the validation images."),
    "seed": ("SEED", "Of all that is drawn."),
    "evaluator": ("NAME", "What scores networks; the strategy's own if not said."),
    "cost": ("WHAT", "macs, params or latency: of the Pareto front."),
    "max_params": ("N", "Parameters of a network."),
    "max_macs": ("N", "MACs of a network."),
    "max_latency": ("MS", "Milliseconds for an image in ONNX Runtime."),
    "max_time": ("TIME", "Of the whole search: 90 (seconds), 20m, 1h30m."),
    "max_evaluations": ("N", "Of the whole search."),
    "device": ("DEVICE", "auto, cpu, cuda, cuda:1."),
    "workers": ("N", "Processes side by side; auto: one a core."),
    "threads": ("N", "Of each evaluation."),
    "executor": ("NAME", "auto: processes of this machine; ray: docs/cluster.md."),
    "address": ("ADDRESS", "Of the Ray that is there: HOST:PORT or auto; else one is started."),
    "gpus": ("SHARE", "Of each evaluation on Ray: 1, or a part of a GPU."),
}
"""The entries of :class:`archir.search.settings.SearchConfig`, as flags."""

_KINDS = {"N": int, "SEED": int, "SHARE": float}


def _flags() -> list[Callable[[Any], Any]]:
    """A flag for each entry; one that is not given leaves the settings as they are."""
    from archir.search.settings import SearchConfig

    found: list[Callable[[Any], Any]] = []
    for entry in fields(SearchConfig):
        metavar, text = _HELP[entry.name]
        kind: Any = str if entry.name == "workers" else _KINDS.get(metavar, str)
        shown = "" if entry.default is None else f"  [default: {entry.default}]"
        flag = f"--{entry.name.replace('_', '-')}"
        found.append(
            click.option(
                flag, entry.name, type=kind, default=None, metavar=metavar, help=text + shown
            )
        )
    return found


def search(run: str | None, **words: Any) -> Report:
    """Search for a better network than FILE.

    A strategy proposes networks, most by rewriting those that did well, and each is scored;
    everything goes to the folder of --run, the best and the Pareto front at the end. --resume goes
    on where a search was cut off, and needs no other word. docs/search.md tells the rest.
    """
    from archir.search.run import SEARCH

    def kept() -> str:
        there = run is not None and (Path(run) / SEARCH).is_file()
        return f"archir search --resume --run {run} goes on" if there else ""

    with told_how_to_go_on(kept):
        try:
            return _searched(run=run, **words)
        except ArchirError as failure:
            first, *others = failure.diagnostics
            if (
                first.code not in ("A602", "A691", "A692", "A781", "A783")
                or first.hint
                or not kept()
            ):
                raise
            raise ArchirError(
                replace(first, hint=kept()), *others, status=failure.status
            ) from failure


def _searched(
    *,
    file: str | None,
    run: str | None,
    config: str | None,
    settings: tuple[str, ...],
    resume: bool,
    force: bool,
    print_config: bool,
    download: bool,
    param: tuple[str, ...],
    weights: str | None,
    init: int | None,
    **flags: Any,
) -> Report:
    from archir.search.limits import Limits
    from archir.search.run import may_resume, run_search
    from archir.search.settings import to_toml
    from archir.search.work import DataRef
    from archir.train.data import image_shape

    if resume and force:
        raise error("A609", "--resume goes on with a search, --force starts anew: one of them")
    if file is None and (param or weights or init is not None):
        raise error("A609", "--param, --weights and --init say how FILE is loaded; there is none")
    if run is None and (resume or not print_config):
        raise error("A609", "nothing says where the search is kept", hint="--run runs/first")
    folder = Path(run or "")
    held, found = _settings(folder, file, config, settings, flags, resume=resume)
    if print_config:
        return Report({"settings": found.record()}, to_toml(found.record()).rstrip())
    if not resume and not force:
        may_resume(folder, {}, "refuse")
    strategy, chosen = found.strategy(), found.config
    start = _start(folder if held else None, found, file, param, weights, init)
    graph = None if start is None else start.graph
    dataset = _dataset(found, start, download=download)
    size = None if graph is None else image_shape(graph)
    limits = Limits(
        params=chosen.max_params,
        macs=chosen.max_macs,
        latency=chosen.max_latency,
        time=chosen.max_time,
        evaluations=chosen.max_evaluations,
    )
    from archir.cli.searching import report, told

    with told(chosen) as progress:
        done = run_search(
            strategy,
            start=start,
            dataset=dataset,
            data=DataRef(chosen.data, chosen.data_seed, dataset.sha256, size),
            run_dir=folder,
            seed=chosen.seed,
            limits=limits,
            cost=chosen.cost,
            executor=_executor(found, dataset),
            device=chosen.device,
            threads=chosen.threads,
            existing="resume" if resume else "replace" if force else "refuse",
            settings=found.record(),
            progress=progress,
        )
    data, text = report(done, chosen.cost, _stopped(folder))
    return Report(data, text)


def _settings(
    folder: Path,
    file: str | None,
    config: str | None,
    pairs: tuple[str, ...],
    flags: Mapping[str, Any],
    *,
    resume: bool,
) -> tuple[bool, Settings]:
    """Whether the folder holds the search already, and its settings."""
    from archir.search.run import SEARCH
    from archir.search.settings import read_again, read_settings

    sets = parse_settings(pairs, "--set")
    changes = {name: value for name, value in flags.items() if value is not None}
    if "max_latency" in changes:
        changes["max_latency"] = _milliseconds(changes["max_latency"])
    if changes.get("workers", "auto") != "auto":
        changes["workers"] = _whole("--workers", changes["workers"])
    if resume and ((folder / SEARCH).exists() or not (file or config or changes or sets)):
        return True, read_again(folder, config, changes, sets)
    return False, read_settings(config, changes, sets)


def _whole(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise error("A609", f"{flag} {text}: expected a whole number, or auto") from None


def _milliseconds(text: str) -> float:
    from archir.search.settings import duration

    seconds = duration(text if text.strip()[-1:].isalpha() else f"{text}ms")
    if seconds is None:
        raise error("A609", f"--max-latency {text}: expected a number of milliseconds")
    return seconds


def _start(
    held: Path | None,
    found: Settings,
    file: str | None,
    param: tuple[str, ...],
    weights: str | None,
    init: int | None,
) -> Network | None:
    """The network that the search starts from: FILE, or that of the run folder."""
    if not found.needs_start:
        if file is not None:
            told = f"the strategy {found.kind.name} makes its own networks with these settings"
            raise error("A609", told, hint="leave out FILE")
        return None
    if file is not None:
        return options.network(file, param, weights=weights, init=init)
    if held is None:
        raise error(
            "A609",
            f"the strategy {found.kind.name} starts from a network, and there is no FILE",
            hint="archir search net.arch --run runs/first",
        )
    return options.network(str(held / "start.arch"))


def _dataset(found: Settings, start: Network | None, *, download: bool) -> Dataset:
    from archir.train.data import image_shape, load_data

    size = None if start is None else image_shape(start.graph)
    config = found.config
    with options.spinner("data") as told:
        return load_data(config.data, config.data_seed, size=size, download=download, report=told)


def _executor(found: Settings, dataset: Dataset) -> Executor:
    """Where evaluations run."""
    from archir.search.executors import InProcess, Pool

    config = found.config
    asked = config.workers
    if config.executor == "ray":
        from archir.search.cluster import Ray

        return Ray(
            dataset,
            address=config.address,
            workers=None if asked == "auto" else asked,
            threads=config.threads,
            device=config.device,
            gpus=config.gpus,
        )
    if config.address is not None:
        raise error("A784", f"nothing is evaluated at {config.address}", hint="--executor ray")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = max(1, (cores or 1) // config.threads) if asked == "auto" else asked
    return InProcess(dataset) if workers == 1 else Pool(workers)


def _stopped(folder: Path) -> str | None:
    """The limit that ended a search before its strategy did."""
    from archir.search.journal import JOURNAL, read_journal

    events = read_journal(folder / JOURNAL).events
    return next((str(e["reason"]) for e in events if e["event"] == "stop"), None)


command = make(
    "search",
    click.argument("file", type=click.Path(dir_okay=False), required=False),
    click.option("--run", type=click.Path(file_okay=False), help="The run folder."),
    click.option(
        "--config",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Settings as TOML; flags change its entries.",
    ),
    *_flags(),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="An entry of the strategy: --set n_steps=3.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the search in the run folder."),
    options.force,
    click.option("--print-config", is_flag=True, help="Print all settings as TOML, and end."),
    options.download,
    options.params,
    options.weights,
    options.init,
    example="archir search net.arch --strategy nash --data digits --run runs/first",
)(search)
