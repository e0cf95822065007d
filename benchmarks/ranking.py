"""Do scores of untrained networks rank them as training does? 100 cells of NAS-Bench-201.

The cells are drawn from the 725 whose zero-cost scores are published, become .arch programs, and
are scored here on real CIFAR-10 images (the test set is not touched): random-weight evaluation,
parameters, MACs, synflow, nwot and others. The truth is the table's test accuracy on CIFAR-10
after 200 epochs of training. Each cell and score is a line of the log once it is there, and is
not done again: the same command goes on where it was cut off.

    export ARCHIR_DATA=../data OMP_NUM_THREADS=1
    python benchmarks/ranking.py --log ranking.jsonl
    python benchmarks/ranking.py --log ranking.jsonl --ablations 40

Seconds are those of one core of the CPU (processor time of one thread).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine

import archir
from archir.api import Network
from archir.search.encodings.nasbench201 import OPERATIONS, notation, program
from archir.search.parts import Evaluator
from archir.search.ranking import Estimate, correlate, difference
from archir.train.data import Dataset, load_data

DRAWN = 201
"""The seed that draws the cells."""
CELLS = 100
TOP = 10

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """A cell of the benchmark with what is published of it."""

    index: int
    ops: tuple[str, ...]
    accuracy: float
    """Mean test accuracy on CIFAR-10 after 200 epochs."""
    published: Mapping[str, float]
    """Zero-cost scores of Krishnakumar et al. 2022 (NAS-Bench-Suite-Zero)."""


def folder() -> Path | None:
    """Where the table is, if it is here."""
    found = os.environ.get("ARCHIR_DATA")
    return Path(found) / "nb201" if found and (Path(found) / "nb201").is_dir() else None


@cache
def published() -> tuple[Cell, ...]:
    """The cells that have published scores, in the table's order."""
    where = folder()
    assert where is not None, "ARCHIR_DATA names no folder with nb201/ in it"
    table = np.load(where / "nb201_accuracy.npz")
    with (where / "nb201_zero_cost_subset_cifar10.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        index = int(row.pop("index"))
        ops = tuple(OPERATIONS[code] for code in table["ops"][index])
        accuracy = float(table["c10_test_200"][index])
        found.append(Cell(index, ops, accuracy, {k: float(v) for k, v in row.items() if v}))
    return tuple(found)


def drawn(count: int) -> list[Cell]:
    """The cells that are scored: the first ones of a fixed order."""
    order = np.argsort(np.random.PCG64(DRAWN).random_raw(len(published())), kind="stable")
    return [published()[i] for i in order[:count]]


def network(cell: Cell) -> Network:
    """The network of a cell, without weights."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "cell.arch"
        path.write_text(program(cell.ops), encoding="utf-8")
        return archir.load(path)


def main_scores() -> dict[str, Evaluator]:
    """What the main table compares, as it was settled before any result was seen."""
    from archir.search.proxies import GradNorm, Jacov, Macs, Nwot, Params, Snip, SynFlow
    from archir.search.rwe import Rwe

    return {
        "rwe": Rwe(device="cpu"),
        "params": Params(),
        "macs": Macs(),
        "synflow": SynFlow(device="cpu"),
        "nwot": Nwot(device="cpu"),
        "jacov": Jacov(device="cpu"),
        "snip": Snip(device="cpu"),
        "grad_norm": GradNorm(device="cpu"),
    }


def ablations() -> dict[str, Evaluator]:
    """Random-weight evaluation with one choice changed, on one initialisation for time's sake.

    What they are compared with is the first initialisation of `rwe`, the same weights.
    """
    from archir.search.rwe import Rwe

    one = Rwe(seeds=1, device="cpu")
    return {
        "init = torch": replace(one, init="torch"),
        "calibration_images = 0": replace(one, calibration_images=0),
        "head = sgd": replace(one, head="sgd"),
        "project = 32": replace(one, project=32),
        "train_images = 4000, validation_images = 2000": replace(
            one, train_images=4000, validation_images=2000
        ),
    }


SURPRISE = "calibration_images = 0"
"""The one variation that did better on the first 40 cells, which is why it was tried on the rest:
a choice made on some cells has to hold on others."""


def key(cell: Cell, name: str, record: Mapping[str, Any]) -> str:
    """What a line of the log stands for."""
    return json.dumps([cell.index, name, record], sort_keys=True)


def work(log: Path, scores: Mapping[str, Evaluator], cells: Sequence[Cell], data: Dataset) -> None:
    """Score what the log has no line for, one score after the other."""
    done = {line["key"] for line in lines(log)}
    for name, evaluator in scores.items():
        for number, cell in enumerate(cells):
            this = key(cell, name, evaluator.record())
            if this in done:
                continue
            net = network(cell)
            start = time.process_time()
            found = evaluator.evaluate(net, data, 0, Path(tempfile.gettempdir()))
            seconds = time.process_time() - start
            line = {"key": this, "cell": cell.index, "score": name, "seconds": seconds}
            line |= {"values": dict(found.scores), "history": list(found.history)}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            say = f"{number + 1}/{len(cells)} {name} {found.scores['score']:.4f} {seconds:.1f} s"
            print(say, notation(cell.ops), file=sys.stderr, flush=True)


def lines(log: Path) -> list[dict[str, Any]]:
    """The log so far; a line that was cut off is no line."""
    if not log.is_file():
        return []
    whole = log.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole]


PUBLISHED = ("synflow", "nwot", "jacov", "snip", "grad_norm")
"""What is scored here and published too."""


def found(log: Path, scores: Mapping[str, Evaluator], cells: Sequence[Cell]) -> dict[str, Lines]:
    """The lines of each score, in the order of the cells; a score that lacks a cell is left out."""
    every = {line["key"]: line for line in lines(log)}
    made = {}
    for name, evaluator in scores.items():
        keys = [key(cell, name, evaluator.record()) for cell in cells]
        if all(this in every for this in keys):
            made[name] = [every[this] for this in keys]
    return made


def values(some: Lines) -> list[float]:
    return [line["values"]["score"] for line in some]


def summary(log: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """All tables as JSON values."""
    truth = [cell.accuracy for cell in cells]
    main = found(log, main_scores(), cells)
    tables: dict[str, Any] = {"machine": machine(), "cells": len(cells), "scores": {}}
    for name, some in main.items():
        row = asdict(correlate(values(some), truth, top=TOP))
        row["less params"] = asdict(
            difference(values(some), values(main["params"]), truth, top=TOP).kendall
        )
        row["seconds"] = float(np.median([line["seconds"] for line in some]))
        tables["scores"][name] = row
    tables["published"] = {
        name: asdict(correlate(values(main[name]), [c.published[name] for c in cells], top=TOP))
        for name in PUBLISHED
    }
    tables["by convolutions"] = by_convolutions(values(main["rwe"]), cells)
    return tables


def by_convolutions(scores: Sequence[float], cells: Sequence[Cell]) -> dict[int, Any]:
    """Cells by their number of convolutions: how many, mean score, mean truth."""
    table = {}
    counts = [sum("conv" in op for op in cell.ops) for cell in cells]
    for count in sorted(set(counts)):
        rows = [i for i, c in enumerate(counts) if c == count]
        part = [scores[i] for i in rows], [cells[i].accuracy for i in rows]
        within = asdict(correlate(*part, top=1).kendall) if len(rows) >= 10 else None
        means = [float(np.mean(side)) for side in part]
        table[count] = {"cells": len(rows), "rwe": means[0], "truth": means[1], "kendall": within}
    return table


def varied(log: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """Random-weight evaluation with other choices, as JSON values."""
    truth = [cell.accuracy for cell in cells]
    main = found(log, main_scores(), cells)["rwe"]
    one = [line["history"][0]["accuracy"] for line in main]
    tables = {"as it is": asdict(correlate(values(main), truth, top=TOP))}
    tables["seeds = 1"] = asdict(correlate(one, truth, top=TOP))
    for name, some in found(log, ablations(), cells).items():
        row = asdict(correlate(values(some), truth, top=TOP))
        row["less seeds = 1"] = asdict(difference(values(some), one, truth, top=TOP).kendall)
        tables[f"seeds = 1, {name}"] = row
    return tables


def markdown(tables: Mapping[str, Any]) -> str:
    """The tables for a page."""
    columns = "Kendall's tau-b | Spearman's rho | share of the best 10"
    lines = [f"{tables['cells']} cells; {tables['machine']}", ""]
    lines += [f"| score | {columns} | tau less that of params | seconds a network |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in tables["scores"].items():
        cells = (shown(row[k]) for k in ("kendall", "spearman", "top", "less params"))
        lines += [f"| {name} | {' | '.join(cells)} | {row['seconds']:.3g} |"]
    lines += ["", "| score | rho with the published values |", "|---|---|"]
    lines += [f"| {name} | {shown(row['spearman'])} |" for name, row in tables["published"].items()]
    lines += ["", "| convolutions | cells | mean of rwe | mean test accuracy | tau among them |"]
    lines += ["|---|---|---|---|---|"]
    for count, row in tables["by convolutions"].items():
        tau = shown(row["kendall"]) if row["kendall"] else ""
        lines += [f"| {count} | {row['cells']} | {row['rwe']:.3f} | {row['truth']:.1f} | {tau} |"]
    for which, rows in tables.get("varied", {}).items():
        lines += ["", f"| {which} cells | {columns} | tau less that of one seed |"]
        lines += ["|---|---|---|---|---|"]
        for name, row in rows.items():
            cells = (shown(row.get(k)) for k in ("kendall", "spearman", "top", "less seeds = 1"))
            lines += [f"| {name} | {' | '.join(cells)} |"]
    return "\n".join(lines)


def shown(estimate: Mapping[str, float] | None) -> str:
    return str(Estimate(**estimate)) if estimate else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--log", required=True, type=Path, metavar="FILE", help="taken up again")
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument(
        "--ablations", type=int, default=0, metavar="N", help="vary rwe on the first N cells"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    if folder() is None:
        parser.error("ARCHIR_DATA names no folder with nb201/ and cifar10/ in it")
    cells = drawn(asked.cells)
    data = load_data(f"{Path(__file__).parent / 'cifar10.py'}:load")
    work(asked.log, main_scores(), cells, data)
    tables = summary(asked.log, cells)
    if asked.ablations:
        some = cells[: asked.ablations]
        work(asked.log, ablations(), some, data)
        tables["varied"] = {len(some): varied(asked.log, some)}
        rest = cells[asked.ablations :]
        if len(rest) > TOP:
            work(asked.log, {SURPRISE: ablations()[SURPRISE]}, rest, data)
            tables["varied"][f"other {len(rest)}"] = varied(asked.log, rest)
    print(json.dumps(tables, indent=2) if asked.json else markdown(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
