"""The prover on the whole library: how long it takes from nothing, and what it does.

First the command as a user would run it, `archir prove --no-cache`, in a process of its own for
each number of processes that is asked for: seconds on the clock, and of all cores together.
Then, in this process, every proof by itself: how many goals a rule has in all its modes (of a rule
over a class: lemmas of its own), how many axioms its proofs use, how large the e-graph of a goal
grew at most (tuples), in how many steps, and how long egglog worked on them, with the search for
axioms that can be left out. What operators make of an axis class is the same for all rules over
classes; those lemmas are summed up in a row of their own. The rules whose goals take longest come
first.

    uv run python benchmarks/prove.py [--jobs 1 2] [--rule deepen] [--most 20] [--only-proofs]

Exit status 1 where a rule is refuted or the library takes longer than `--bound` seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from archir.ops import installed_ops
from archir.ops.record import OpSet
from archir.proof.attempts import Attempt, of_operator, of_rule
from archir.proof.axioms import Axioms, installed_axioms
from archir.proof.instances import Instances
from archir.proof.saturation import Budget, Proof, Prover
from archir.rewrite.library import installed
from archir.rewrite.rule import Reshaping, Rule


@dataclass
class Row:
    """What was proved under one name."""

    name: str
    goals: int = 0
    missed: int = 0
    axioms: set[str] = field(default_factory=set)
    size: int = 0
    steps: int = 0
    seconds: float = 0.0

    def count(self, attempt: Attempt) -> None:
        """Add what came of some goals."""
        self.goals += len(attempt.goals)
        self.missed += len(attempt.missed)
        tried: Iterable[Proof] = (g.proof for g in attempt.goals if g.proof is not None)
        for proof in tried:
            self.axioms.update(proof.axioms)
            self.size = max(self.size, proof.size)
            self.steps = max(self.steps, proof.steps)
            self.seconds += proof.seconds


def main() -> int:
    """Time the command, then look at each proof."""
    asked = _arguments()
    fine = True
    for jobs in () if asked.only_proofs else asked.jobs:
        fine = command(asked.rule, jobs) <= asked.bound and fine
    ops, axioms = installed_ops(), installed_axioms()
    library = installed(ops)
    rules = [library.find(name) for name in asked.rule] or list(library.values())
    with Prover() as prover:
        found = rows(rules, ops, axioms, prover)
    show(found, axioms, asked.most)
    return 0 if fine else 1


def command(names: list[str], jobs: int) -> float:
    """Run the command with so many processes; the seconds it took."""
    words = [sys.executable, "-m", "archir", "prove", *names, "--no-cache", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [*words, "--jobs", str(jobs)], stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    summary = json.loads(done.stdout)["summary"]
    counts = ", ".join(f"{n} {kind}" for kind, n in summary.items() if n and kind != "seconds")
    shown = f"{seconds:.1f} s, {used:.1f} s of all cores"
    print(f"{jobs} process{'es' if jobs > 1 else ''}: {shown}; {counts}", flush=True)
    return seconds if not summary["refuted"] else float("inf")


def rows(rules: list[Rule], ops: OpSet, axioms: Axioms, prover: Prover) -> list[Row]:
    """A row for each rule with proofs, and one for all operators."""
    found: list[Row] = []
    shared = Row("(operators)")
    modes = {m for r in rules if isinstance(r.body, Reshaping) for m in r.contract.function}
    for name in ops if modes else ():
        for mode in sorted(modes):
            shared.count(of_operator(name, ops, axioms, mode, Budget(), prover))
    for rule in rules:
        row, among = Row(rule.name), Instances(rule, ops)
        for mode in rule.contract.function:
            row.count(of_rule(among, axioms, mode, Budget(), prover))
        if row.goals:
            found.append(row)
    return [*([shared] if modes else []), *sorted(found, key=lambda row: -row.seconds)]


def show(found: list[Row], axioms: Axioms, most: int) -> None:
    """A table, and the sums."""
    heads = ("rule", "goals", "missed", "axioms", "tuples", "steps", "seconds")
    print(f"\n{heads[0]:<32}" + "".join(f"{head:>9}" for head in heads[1:]))
    for row in found[:most]:
        counts = (row.goals, row.missed, len(row.axioms), row.size, row.steps)
        print(f"{row.name:<32}" + "".join(f"{n:>9}" for n in counts) + f"{row.seconds:>9.2f}")
    if len(found) > most:
        print(f"... and {len(found) - most} more")
    used = {name for row in found for name in row.axioms}
    goals, missed = (sum(getattr(row, name) for row in found) for name in ("goals", "missed"))
    largest = max((row.size for row in found), default=0)
    seconds = sum(row.seconds for row in found)
    print(
        f"\n{goals} goals and lemmas ({missed} missed) of {len(found)} rows rest on {len(used)} of "
        f"{len(axioms.axioms)} axioms; the largest e-graph has {largest} tuples; "
        f"egglog worked {seconds:.1f} s"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[2], help="numbers of processes")
    parser.add_argument("--rule", action="append", default=[], help="only this one")
    parser.add_argument("--most", type=int, default=20, help="rows of the table")
    parser.add_argument("--bound", type=float, default=20.0, help="seconds that it may take")
    parser.add_argument("--only-proofs", action="store_true", help="leave the command out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
