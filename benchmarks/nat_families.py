"""NAT on the six families of cells that it starts from: what it saves, what that costs.

For each family and seed `archir search --strategy nat` runs with the preset `small` on the digits,
from the family's cells with 8 channels and 3 cells. What is compared are the input and the network
that the search ends with, both trained alike: MACs, and validation accuracy with the 95 % interval
of the difference (the search chose by that accuracy, among the input and three samples); and the
policy with one that draws legal operations uniformly: the mean rewards of samples with the shared
weights. Each search is a run folder in `--runs`: one that was cut off is resumed, one that is done
is not run again. The results so far are written after each.

    python benchmarks/nat_families.py --seeds 3,4,5 --json benchmarks/results/nat_families.json
    python benchmarks/nat_families.py --from benchmarks/results/nat_families.json  # its table

Settings were chosen on the seeds 100 and 101. With one trained sample, and equal samples not drawn
again, the seeds 0 to 2 had failed for one of VGG's and one of ResNet's searches: that is why three
are trained now, and why other seeds are reported.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from measure import machine

from archir.cli.main import run as command
from archir.search.cells import FAMILIES

VALIDATION = 180
"""Validation images of the digits."""
SHAPE = ("--set", "channels=8", "--set", "layers=3", "--set", "shape=[1,8,8]")
Record = dict[str, Any]


def searched(family: str, seed: int, runs: Path) -> Record:
    """A search, or what is there of it."""
    folder = runs / f"{family}-{seed}"
    network = runs / f"{family}.arch"
    options = f"--strategy nat --data digits --seed {seed} --device cpu --set epoch_final=0"
    said = ["search", str(network), *options.split()]
    if not (folder / "result.json").exists():
        if not network.exists():
            runs.mkdir(parents=True, exist_ok=True)
            command(["new", f"nat_{family}", *SHAPE, "-o", str(network)])
        again = ["search", "--resume"] if (folder / "search.json").exists() else said
        if status := command([*again, "--run", str(folder)]):
            sys.exit(status)
    lines = (folder / "journal.jsonl").read_text().splitlines()
    members = [entry for entry in map(json.loads, lines) if entry["event"] == "member"]
    result = json.loads((folder / "result.json").read_text())
    learned = members[0]
    trained = [m for m in members if m["stage"] == "trained" and m["status"] == "scored"]
    before = trained[0]
    after = next(m for m in trained if m["number"] == result["best"])
    return {
        "family": family,
        "seed": seed,
        "command": " ".join(["archir", *said]),
        "policy": learned["scores"],
        "derived": sum(m["stage"] == "derive" for m in members) - 1,
        **{f"{name}_{size}": m[size] for name, m in named(before, after) for size in SIZES},
        **{f"{name}_accuracy": m["scores"]["accuracy"] for name, m in named(before, after)},
        "best": "input" if after is before else "sample",
        "trained": [[m["macs"], m["scores"]["accuracy"]] for m in trained],
        "test": result["test"]["best"]["accuracy"],
    }


SIZES = ("macs", "params")


def named(before: Record, after: Record) -> list[tuple[str, Record]]:
    return [("before", before), ("after", after)]


def half(*shares: float) -> float:
    """Half the width of the 95 % interval of the difference of two accuracies."""
    return 1.96 * math.sqrt(sum(p * (1 - p) for p in shares) / VALIDATION)


def tables(records: Sequence[Record]) -> list[str]:
    """A line for each search."""
    titles = ["cells", "seed", "MACs before", "after", "accuracy before", "after", "difference"]
    titles += ["the policy's samples", "uniform ones"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for r in records:
        before, after = r["before_accuracy"], r["after_accuracy"]
        policy = r["policy"]
        cells = [
            r["family"],
            str(r["seed"]),
            f"{r['before_macs']:,}",
            f"{r['after_macs']:,} ({r['after_macs'] / r['before_macs'] - 1:+.0%})",
            f"{before:.3f}",
            f"{after:.3f}",
            f"{after - before:+.3f} +- {half(before, after):.3f}",
            f"{policy['score']:+.3f}, {policy['saved']:.0%} saved",
            f"{policy['uniform']:+.3f}, {policy['uniform_saved']:.0%} saved",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/nat"))
    parser.add_argument("--seeds", default="3,4,5")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from", dest="given", type=Path)
    args = parser.parse_args()
    records: list[Record] = []
    if args.given:
        records = json.loads(args.given.read_text())["records"]
    else:
        versions = {name: import_module(name).__version__ for name in ("torch", "numpy")}
        for seed in map(int, args.seeds.split(",")):
            for family in args.families.split(","):
                records.append(searched(family, seed, args.runs))
                if args.json:
                    found = {"machine": machine(), "versions": versions, "records": records}
                    args.json.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(tables(records)))


if __name__ == "__main__":
    main()
