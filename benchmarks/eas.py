"""Whether EAS's policy learns: the networks that it samples against those of the random policy.

For each seed `archir search` runs twice with the preset `small` on the digits, once with the
learned policy and once with the one that draws uniformly; start network, its training and all else
are equal. What is compared is the mean reward, and the mean validation accuracy, of all networks
that were sampled, those of the last half of the episodes beside; and the test accuracy of the last
best. Each search is a run folder in `--runs`: one that was cut off is resumed, one that is done is
not run again.

    python benchmarks/eas.py --seeds 0,1,2,3,4 --json benchmarks/results/eas_digits.json
    python benchmarks/eas.py --from benchmarks/results/eas_digits.json  # prints the table

Settings were chosen on other seeds: 100, and 200 and 201 of a model of the scores.
Intervals are 95 %, Student's t of the mean of paired differences.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine
from scipy import stats

from archir.cli.main import run as command

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ("eas", "eas_random")
FIGURES = {
    "reward": "mean reward",
    "score": "mean validation accuracy",
    "late": "the same, last half of the episodes",
    "test": "test accuracy of the last best",
}
Record = dict[str, Any]


def words(strategy: str, seed: int) -> list[str]:
    """The command behind `archir`, in the root of the project."""
    said = f"search examples/eas_digits.arch --strategy {strategy} --data digits --init {seed}"
    return [*said.split(), "--seed", str(seed), "--device", "cpu"]


def searched(strategy: str, seed: int, runs: Path) -> Record:
    """A search, or what is there of it."""
    folder = runs / f"{strategy}-{seed}"
    if not (folder / "result.json").exists():
        begun = (folder / "search.json").exists()
        said = ["search", "--resume"] if begun else words(strategy, seed)
        if not begun:
            said[1] = str(ROOT / said[1])
        if status := command([*said, "--run", str(folder)]):
            sys.exit(status)
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    result = json.loads((folder / "result.json").read_text())
    scores = [step["score"] for step in steps]
    return {
        "strategy": strategy,
        "seed": seed,
        "command": " ".join(["archir", *words(strategy, seed)]),
        "rewards": [step["reward"] for step in steps],
        "scores": scores,
        "reward": round(float(np.mean([step["reward"] for step in steps])), 4),
        "score": round(float(np.mean(scores)), 4),
        "late": round(float(np.mean(scores[len(scores) // 2 :])), 4),
        "trained": sum(e["event"] == "member" and e["stage"] == "sampled" for e in events),
        "test": result["test"]["best"]["accuracy"],
        "params": result["params"],
        "macs": result["macs"],
    }


def tables(records: Sequence[Record]) -> list[str]:
    """Each seed, and the mean of the differences."""
    by = {(r["strategy"], r["seed"]): r for r in records}
    seeds = sorted({seed for _, seed in by})
    titles = [f"seed {seed}" for seed in seeds]
    lines = [f"| learned / random | {' | '.join(titles)} | mean difference | above |"]
    lines.append("|---" * (len(seeds) + 3) + "|")
    for name, title in FIGURES.items():
        pairs = [(by["eas", s][name], by["eas_random", s][name]) for s in seeds]
        gaps = np.array([a - b for a, b in pairs])
        half = float(stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
        cells = [f"{a:.3f} / {b:.3f}" for a, b in pairs]
        span = f"{gaps.mean():+.3f} ({gaps.mean() - half:+.3f} to {gaps.mean() + half:+.3f})"
        above = f"{int((gaps > 0).sum())} of {len(gaps)}"
        lines.append(f"| {' | '.join([title, *cells, span, above])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/eas"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from", dest="given", type=Path)
    args = parser.parse_args()
    if args.given:
        records = json.loads(args.given.read_text())["records"]
    else:
        seeds = [int(seed) for seed in args.seeds.split(",")]
        records = [searched(name, seed, args.runs) for seed in seeds for name in STRATEGIES]
        if args.json:
            versions = {name: import_module(name).__version__ for name in ("torch", "numpy")}
            found = {"machine": machine(), "versions": versions, "records": records}
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(tables(records)))


if __name__ == "__main__":
    main()
