"""What `archir search` finds, beside what it started from: digits and CIFAR-10.

Each search is a run folder in `--runs`, made by the command itself in a process of its own; one
that was cut off is resumed, one that is done is not run again, and all figures are taken from the
folders. So the same command goes on where it was cut off.

*digits*: for each seed NASH, its random baseline, and two controls: the start network, never
changed, trained for as many epochs as lie behind NASH's last network, in the same cycles and on
the same images, or in one cycle on training and validation images throughout
(`nash_control.py`). All four start from the same initial weights. `archir verify` then checks the
best network of each run, and each member of its front.

*few*: NASH and the baseline on 200 of the digits' training images, in batches of 16, where networks
are not all nearly perfect; the validation and test images are all of them.

*same*: all searches within the same CPU seconds (`four.py`).

*cifar10*: NASH, its baseline, its start network in the same cycles, random-weight evaluation, EAS
and its baseline, and NAT, on all of CIFAR-10, within 20 CPU minutes each. `nash_five` makes a child
by five morphisms, which is the paper's number, in place of two.

    ARCHIR_DATA=../data python benchmarks/cifar10.py runs/search/cifar10.npz  # once
    python benchmarks/search.py --parts digits --seeds 5
    python benchmarks/search.py --parts cifar10
    python benchmarks/search.py --parts digits,cifar10 --json FILE --svg FILE  # what is there
    python benchmarks/search.py --from benchmarks/results/search.json  # prints the tables

Intervals are 95 %: Clopper and Pearson's of a share of test images, Student's t of the mean
difference of paired seeds, with the exact sign test beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import four
import numpy as np
from figures import Record, Run, head, mean_difference, right, share
from measure import machine, save_svg
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
CONTROLS = {"cycles": "CYCLES", "one_cycle": "ONE_CYCLE"}
FIXED = ("--device", "cpu", "--threads", "1")
FEW = 200
PANELS: tuple[tuple[str, tuple[str, ...], str, dict[str, tuple[str, str]]], ...] = (
    (
        "NASH",
        ("start", "neighbours"),
        "validation accuracy",
        {
            "nash": ("NASH", "#0072b2"),
            "nash_five": ("five morphisms", "#cc79a7"),
            "random": ("random", "#e69f00"),
        },
    ),
    (
        "EAS",
        ("start", "sampled"),
        "validation accuracy",
        {"eas": ("EAS", "#d55e00"), "eas_random": ("random policy", "#56b4e9")},
    ),
    (
        "random-weight evaluation",
        ("search",),
        "score: accuracy of a linear head",
        {"rwe": ("RWE", "#009e73")},
    ),
)
"""Of the picture: title, stages that are drawn, what a score is, and lines with their colours."""
DIFFERENCE = ("mean difference, points", "seeds NASH is above : below", "p")
PARTS = ("digits", "few", "cifar10", *four.PARTS)


def plan(part: str, runs: Path, seeds: int) -> list[Run]:
    """The searches of a part."""

    def one(strategy: str, seed: int, workers: int, *words: str) -> Run:
        chosen = "nash" if strategy == "nash_five" else strategy
        if strategy in CONTROLS:
            chosen = f"benchmarks/nash_control.py:{CONTROLS[strategy]}"
        said = ("--strategy", chosen, "--seed", str(seed), "--workers", str(workers))
        return Run(part, strategy, seed, (*words, *said, *FIXED))

    if part in four.PARTS:
        return four.plan(part, seeds)
    if part == "cifar10":
        data = f"--preset cpu20 --data {(runs / 'cifar10.npz').resolve()}".split()
        start = ["benchmarks/nash_cifar10.arch", "--init", "0", "--max-macs"]
        plain = ["benchmarks/eas_cifar10.arch", "--init", "0", "--max-macs", "4000000"]
        cells = ["benchmarks/nat_cifar10.arch", "--init", "0"]
        return [
            one("nash", 0, 2, *start, "8000000", *data),
            one("nash_five", 0, 2, *start, "6000000", *data, "--set", "n_nm=5"),
            one("random", 0, 2, *start, "8000000", *data),
            one("cycles", 0, 1, *start, "8000000", *data),
            one("rwe", 0, 2, *data),
            *(one(name, 0, 1, *plain, *data) for name in ("eas", "eas_random")),
            one("nat", 0, 1, *cells, *data),
        ]
    data, strategies = "digits", {"nash": 2, "random": 1, "cycles": 1, "one_cycle": 1}
    if part == "few":
        data, strategies = f"{few(runs)} --set batch_size=16", {"nash": 1, "random": 1}
    start = f"examples/nash_digits.arch --preset small --data {data} --init"
    return [
        one(strategy, seed, workers, *start.split(), str(seed))
        for seed in range(seeds)
        for strategy, workers in strategies.items()
    ]


def few(runs: Path) -> Path:
    """The digits with so few training images, as a file; made if missing."""
    target = (runs / f"digits_{FEW}.npz").resolve()
    if not target.exists():
        from archir.train.data import load_data

        held, arrays = load_data("digits"), {}
        for name in ("train", "validation", "test"):
            split = getattr(held, name)
            most = FEW if name == "train" else None
            arrays |= {f"x_{name}": split.x[:most], f"y_{name}": split.y[:most]}
        np.savez(target, **arrays)
    return target


def carry_out(run: Run, runs: Path) -> None:
    """Search, or go on with what was cut off; nothing where it is done."""
    folder = runs / run.name
    if done(folder):
        return
    begun = (folder / "search.json").exists()
    words = ["--resume"] if begun else run.words
    command = [sys.executable, "-m", "archir", "search", *words, "--run", str(folder.resolve())]
    start = time.perf_counter()
    print(" ".join(command[2:]), file=sys.stderr)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = None if begun else round(time.perf_counter() - start, 1)
    (runs / f"{run.name}.seconds").write_text(json.dumps(seconds))


def done(folder: Path) -> bool:
    """Whether the search of a folder has come to its end."""
    journal = folder / "journal.jsonl"
    lines = journal.read_text("utf-8").splitlines() if journal.exists() else []
    return bool(lines) and json.loads(lines[-1])["event"] == "end"


def record(run: Run, runs: Path) -> Record:
    """What a run has come to; taken from its folder once."""
    kept, folder = runs / f"{run.name}.json", runs / run.name
    if kept.exists() and kept.stat().st_mtime >= (folder / "result.json").stat().st_mtime:
        found: Record = json.loads(kept.read_text("utf-8"))
        return found
    result = json.loads((folder / "result.json").read_text("utf-8"))
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    timings = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    members = {e["number"]: e for e in events if e["event"] == "member"}
    stages = {e["stage"]: e["evaluator"] for e in events if e["event"] == "stage"}
    certificate = json.loads((folder / "best.cert.json").read_text("utf-8"))
    trainings = sum(step["kind"] == "train" for step in certificate["steps"])  # as weights have had
    took = runs / f"{run.name}.seconds"
    found = {
        "part": run.part,
        "strategy": run.strategy,
        "seed": run.seed,
        "command": " ".join(["archir search", *run.words]).replace(f"{runs.resolve()}/", ""),
        **{k: result[k] for k in ("best", "params", "macs", "test", "onnx")},
        "members": dict(Counter(m["status"] for m in members.values())),
        "epochs": epochs_behind(result["best"], members, stages, trainings),
        "validation": last_accuracy(result["best"], members),
        "cpu_seconds": round(sum(line.get("cpu_seconds", 0.0) for line in timings), 1),
        "seconds": json.loads(took.read_text()) if took.exists() else None,
        "spent": spent(members, timings),
        "verified": {p.name: verified(p) for p in [*sorted(folder.glob("front/*.arch")),
                                                   folder / "best.arch"]},
    }  # fmt: skip
    if run.part == "digits":
        found["wrong"] = wrong(folder / "best.arch")
    if run.part == "cifar10":
        found["curve"] = curve(members, timings)
        found["front"] = [pick(members[number]) for number in result["front"]]
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def spent(members: dict[int, Any], timings: Sequence[Record]) -> dict[str, float]:
    """The CPU seconds of each stage."""
    found: Counter[str] = Counter()
    for line in timings:
        found[members[line["number"]]["stage"]] += line.get("cpu_seconds", 0.0)
    return {stage: round(seconds, 1) for stage, seconds in found.items()}


def epochs_behind(
    number: int, members: dict[int, Any], stages: dict[str, Any], trainings: int
) -> int:
    """The epochs of the last trainings of a network and those that it comes from."""
    total, at = 0, [number]
    while at and trainings:
        member = members[at[0]]
        epochs = stages[member["stage"]].get("recipe", {}).get("epochs", 0)
        total, trainings, at = total + epochs, trainings - bool(epochs), member["parents"]
    return total


def last_accuracy(number: int, members: dict[int, Any]) -> float | None:
    """The validation accuracy of the best network before the training that used those images."""
    at: int | None = number
    while at is not None and "accuracy" not in members[at]["scores"]:
        at = next(iter(members[at]["parents"]), None)
    return None if at is None else float(members[at]["scores"]["accuracy"])


def verified(network: Path) -> int | None:
    """The exit status of `archir verify`; None of a text alone, as a genome stands for."""
    if not network.with_suffix(".cert.json").exists():
        return None
    command = [sys.executable, "-m", "archir", "verify", str(network)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def wrong(network: Path) -> list[int]:
    """The test images of the digits that a network tells wrong."""
    import archir
    from archir.train.data import load_data
    from archir.train.evaluate import evaluate

    loaded, dataset = archir.load(network), load_data("digits")
    assert loaded.weights is not None
    found = evaluate(loaded.graph, dict(loaded.weights), dataset, device="cpu")
    return [int(i) for i in np.flatnonzero(found.predictions != np.asarray(dataset.test.y))]


def curve(members: dict[int, Any], timings: Sequence[Record]) -> list[Record]:
    """For each member in turn: CPU seconds so far, and what it came to."""
    spent, found = 0.0, []
    for line in timings:
        spent += line.get("cpu_seconds", 0.0)
        found.append({"cpu_seconds": round(spent, 1), **pick(members[line["number"]])})
    return found


def pick(member: Record) -> Record:
    """What the tables and curves show of a member."""
    score = round(member["scores"].get("score", 0.0), 4)
    return {"score": score, **{k: member[k] for k in ("number", "stage", "params", "macs")}}


# --- what it comes to -----------------------------------------------------------------------------


def digits_tables(records: Sequence[Record]) -> list[str]:
    """Each seed, and the differences between strategies."""
    by = {(r["strategy"], r["seed"]): r for r in records if r["part"] == "digits"}
    seeds = sorted({seed for _, seed in by})
    names = ("nash", "cycles", "one_cycle", "random")
    lines = head(
        "seed",
        *("NASH", "start, same cycles", "start, one cycle", "random"),
        "NASH alone right : start (same cycles) alone right, p",
        *("parameters NASH / random", "MACs NASH / random"),
    )
    for seed in seeds:
        rows = {name: by[name, seed] for name in names}
        told = [right(**r["test"]["best"]) for r in rows.values()]
        a, b = set(rows["nash"]["wrong"]), set(rows["cycles"]["wrong"])
        gained, lost = len(b - a), len(a - b)
        p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        sizes = [
            f"{rows['nash'][what]:,} / {rows['random'][what]:,}" for what in ("params", "macs")
        ]
        cells = [str(seed), *told, f"{gained} : {lost}, {p:.2g}", *sizes]
        lines.append(f"| {' | '.join(cells)} |")
    test = {k: r["test"]["best"]["correct"] / r["test"]["best"]["count"] for k, r in by.items()}
    before = {k: r["validation"] for k, r in by.items()}
    other = head("NASH less", "measured on", *DIFFERENCE)
    for name, title in (
        ("cycles", "start, same cycles"),
        ("one_cycle", "start, one cycle"),
        ("random", "random baseline"),
    ):
        pairs = [(test["nash", s], test[name, s]) for s in seeds]
        other.append(f"| {title} | test | {mean_difference(pairs)} |")
    pairs = [(before["nash", s], before["random", s]) for s in seeds]
    other.append(
        f"| random baseline | validation, before the final training | {mean_difference(pairs)} |"
    )
    return ["\n".join(lines), "\n".join(other)]


def few_tables(records: Sequence[Record]) -> list[str]:
    """NASH and its baseline, seed by seed, and their difference."""
    by = {(r["strategy"], r["seed"]): r for r in records if r["part"] == "few"}
    seeds = sorted({seed for _, seed in by})
    lines = head(
        "seed",
        *("NASH, test", "random, test", "NASH, validation", "random, validation"),
        *("parameters NASH / random", "MACs NASH / random"),
    )
    for seed in seeds:
        nash, other = by["nash", seed], by["random", seed]
        cells = [str(seed)]
        cells += [right(**r["test"]["best"]) for r in (nash, other)]
        cells += [f"{r['validation']:.1%}".replace("%", " %") for r in (nash, other)]
        cells += [f"{nash[w]:,} / {other[w]:,}" for w in ("params", "macs")]
        lines.append(f"| {' | '.join(cells)} |")
    difference = head("NASH less random, on", *DIFFERENCE)
    for title, value in (
        ("test", lambda r: r["test"]["best"]["accuracy"]),
        ("validation, before the final training", lambda r: r["validation"]),
    ):
        pairs = [(value(by["nash", s]), value(by["random", s])) for s in seeds]
        difference.append(f"| {title} | {mean_difference(pairs)} |")
    return ["\n".join(lines), "\n".join(difference)]


def cifar10_tables(records: Sequence[Record]) -> list[str]:
    """The searches on all of CIFAR-10."""
    lines = head(
        *("search", "networks scored", "CPU minutes", "parameters", "MACs"),
        *("test accuracy", "of the ensemble"),
    )
    titles = {
        "nash": "NASH",
        "nash_five": "NASH, five morphisms a child, at most 6 million MACs",
        "random": "random baseline of NASH",
        "cycles": "start network of NASH, same cycles",
        "rwe": "RWE with NSGA-II, macro space",
        "eas": "EAS",
        "eas_random": "EAS, random policy",
        "nat": "NAT, from three DARTS cells",
    }
    for r in (r for r in records if r["part"] == "cifar10"):
        test = r["test"]
        together = test.get("ensemble")
        cells = [
            titles[r["strategy"]],
            str(r["members"]["scored"]),
            f"{r['cpu_seconds'] / 60:.1f}",
            f"{r['params']:,}",
            f"{r['macs']:,}",
            share(test["best"]["correct"], test["best"]["count"]),
            share(together["correct"], together["count"]) if together else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return ["\n".join(lines)]


def checks_table(records: Sequence[Record]) -> str:
    """What the checks of all runs came to."""
    lines = head(
        *("part", "searches", "`archir verify` of fronts and bests: passed"),
        "`best.onnx` through the gate",
    )
    for part in PARTS:
        held = [r for r in records if r["part"] == part]
        if held:
            found = [status for r in held for status in r["verified"].values()]
            gated = sum("file" in r["onnx"] for r in held)
            bare = found.count(None)
            passed = f"{found.count(0)} of {len(found) - bare}"
            passed += f" (and {bare} without weights)" if bare else ""
            lines.append(f"| {part} | {len(held)} | {passed} | {gated} of {len(held)} |")
    return "\n".join(lines)


def tables(records: Sequence[Record]) -> list[str]:
    """All tables that the records fill, in Markdown; docs/results.md holds them."""
    makers: dict[str, Callable[[Sequence[Record]], list[str]]] = {
        "digits": digits_tables,
        "few": few_tables,
        "cifar10": cifar10_tables,
        **{part: partial(four.tables, part=part) for part in four.PARTS},
    }
    parts = {r["part"] for r in records}
    found = [table for part in PARTS if part in parts for table in makers[part](records)]
    return [*found, checks_table(records)]


def draw(records: Sequence[Record], path: Path) -> None:
    """The best score so far over CPU minutes, of the searches on all of CIFAR-10."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "archir", "svg.fonttype": "none", "font.size": 9}
    by = {r["strategy"]: r for r in records if r["part"] == "cifar10"}
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10.5, 3.2))
    for axis, (title, stages, score, lines) in zip(axes, PANELS, strict=True):
        for name, (label, colour) in lines.items():
            if name not in by:
                continue
            points = [p for p in by[name]["curve"] if p["stage"] in stages]
            minutes = [p["cpu_seconds"] / 60 for p in points]
            scores = [p["score"] for p in points]
            best = np.maximum.accumulate(scores)
            axis.step(minutes, best, where="post", color=colour, label=f"{label}: best so far")
            axis.plot(minutes, scores, ".", color=colour, alpha=0.4)
            if score == "validation accuracy":
                test = by[name]["test"]["best"]["accuracy"]
                place = by[name]["cpu_seconds"] / 60
                axis.plot(place, test, "*", color=colour, label="test, at the end")
        axis.set_title(title)
        axis.set_ylabel(score)
        axis.set_xlabel("CPU minutes")
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(
                loc="center" if title == "EAS" else "lower right", frameon=False, fontsize=7.5
            )
    figure.tight_layout()
    save_svg(figure, path)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, take the figures, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/search"))
    parser.add_argument("--parts", default="digits", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--only", help="of each part these strategies alone, with commas between")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-search", action="store_true", help="only take what is done")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--svg-four", type=Path)
    parser.add_argument("--from", dest="source", type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.source is not None:
        found = json.loads(chosen.source.read_text("utf-8"))
    else:
        runs: Path = chosen.runs
        runs.mkdir(parents=True, exist_ok=True)
        planned = [
            run for part in chosen.parts.split(",") for run in plan(part, runs, chosen.seeds)
        ]
        if chosen.only is not None:
            planned = [run for run in planned if run.strategy in chosen.only.split(",")]
        for run in () if chosen.no_search else planned:
            carry_out(run, runs)
        records = [record(run, runs) for run in planned if done(runs / run.name)]
        names = ("torch", "numpy", "onnxruntime", "pymoo")
        versions = {name: import_module(name).__version__ for name in names}
        found = {"machine": machine(), "versions": versions, "runs": records}
    print("\n\n".join(tables(found["runs"])))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    if chosen.svg is not None:
        draw(found["runs"], chosen.svg)
    if chosen.svg_four is not None:
        four.draw(found["runs"], chosen.svg_four)


if __name__ == "__main__":
    main()
