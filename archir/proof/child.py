"""The process that saturates: jobs in on stdin, one line of JSON out for each goal.

The only file that knows egglog, and a process of its own, so that it can be killed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any


def saturate(
    prelude: str, laws: Sequence[str], setup: str, steps: int, size: int
) -> tuple[bool, int, Any]:
    """Whether ``$left`` and ``$right`` of a setup meet, after how many steps; and the e-graph."""
    from egglog.bindings import EggSmolError, EGraph

    graph = EGraph()

    def run(text: str) -> list[Any]:
        return list(graph.run_program(*graph.parse_program(text)))

    run(prelude + "\n".join(laws) + setup)
    updated = True
    for step in range(steps + 1):
        try:
            run("(check (= $left $right))")
        except EggSmolError:
            pass
        else:
            return True, step, run
        if not updated or _size(run) > size:
            return False, step, run
        (outcome,) = run("(run laws 1)")
        updated = outcome.report.updated
    return False, steps, run


def _size(run: Any) -> int:
    """How many tuples the e-graph holds."""
    (report,) = run("(print-size)")
    total = 0
    for line in str(report).replace("(", " ").replace(")", " ").splitlines():
        name, _, count = line.strip().rpartition(" ")
        if name and count.isdigit():
            total += int(count)
    return total


def _minimal(job: dict[str, Any], goal: dict[str, Any], steps: int) -> list[str]:
    """An irreducible set of axioms that still proves a goal: each is left out in turn.

    What took one step is tried with each axiom alone first.
    """
    names = list(goal["laws"])

    def enough(trial: list[str]) -> bool:
        laws = [law for n in trial for law in goal["laws"][n]]
        found = saturate(goal["prelude"], laws, goal["setup"], job["steps"], job["size"])
        return found[0]

    if steps == 1:
        for name in names:
            if enough([name]):
                return [name]
    kept = names
    for name in names:
        trial = [n for n in kept if n != name]
        if enough(trial):
            kept = trial
    return kept


def work(job: dict[str, Any]) -> None:
    """Do all goals of a job."""
    for goal in job["goals"]:
        start = time.perf_counter()
        laws = [law for found in goal["laws"].values() for law in found]
        proved, steps, run = saturate(
            goal["prelude"], laws, goal["setup"], job["steps"], job["size"]
        )
        members: list[str] = []
        used: list[str] = []
        if proved:
            (found,) = run(f"(extract $left {job['members']})")
            members = [line.strip() for line in str(found).splitlines()[1:] if line.strip(" ()")]
            used = _minimal(job, goal, steps) if job["minimal"] else list(goal["laws"])
        seconds = time.perf_counter() - start
        answer = {"name": goal["name"], "proved": proved, "steps": steps, "axioms": used}
        answer |= {"members": members, "seconds": seconds}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    work(json.load(sys.stdin))
