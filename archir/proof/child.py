"""The process that saturates: a job a line on stdin, a line of JSON out for each of its goals.

The only file that knows egglog, and a process of its own, so that it can be killed. It ends when
its stdin does. An empty line says that a job is done.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """How far a goal may be taken: saturation steps, tuples of the e-graph."""

    steps: int
    size: int


@dataclass
class Outcome:
    """Where ``$left`` and ``$right`` of a goal met, or how far the e-graph went without."""

    run: Any
    steps: int
    size: int
    """How many tuples the e-graph held."""
    fired: set[str]
    """The axioms one of whose laws matched something on the way."""
    proved: bool


def saturate(goal: Mapping[str, Any], laws: Mapping[str, Sequence[str]], limits: Limits) -> Outcome:
    """Apply laws until the two sides of a goal meet, or a limit is reached."""
    from egglog.bindings import EggSmolError, EGraph

    graph = EGraph()

    def run(text: str) -> list[Any]:
        return list(graph.run_program(*graph.parse_program(text)))

    named = [(axiom, law) for axiom, found in laws.items() for law in found]
    rules = [
        f'(rule {law} :ruleset laws :name "{number}")\n' for number, (_, law) in enumerate(named)
    ]
    run(goal["prelude"] + "".join(rules) + goal["setup"])
    fired: set[str] = set()
    step = size = 0
    for step in range(limits.steps + 1):
        size = _size(run)
        try:
            run("(check (= $left $right))")
        except EggSmolError:
            if step == limits.steps or size > limits.size:
                break
        else:
            return Outcome(run, step, size, fired, proved=True)
        (outcome,) = run("(run laws 1)")
        matches = outcome.report.num_matches_per_rule.items()
        fired |= {named[int(number)][0] for number, count in matches if count}
        if not outcome.report.updated:
            break
    return Outcome(run, step, size, fired, proved=False)


def _size(run: Any) -> int:
    (report,) = run("(print-size)")
    total = 0
    for line in str(report).replace("(", " ").replace(")", " ").splitlines():
        name, _, count = line.strip().rpartition(" ")
        if name and count.isdigit():
            total += int(count)
    return total


def minimal(goal: Mapping[str, Any], found: Outcome, limits: Limits) -> list[str]:
    """An irreducible set of axioms that still proves a goal: each is left out in turn.

    Axioms none of whose laws matched on the way to the proof did nothing for it. Of what took one
    step, each axiom is tried alone first.
    """
    names = [name for name in goal["laws"] if name in found.fired]

    def enough(trial: Sequence[str]) -> bool:
        return saturate(goal, {n: goal["laws"][n] for n in trial}, limits).proved

    if found.steps == 0 or len(names) == 1:
        return names if found.steps else []
    if found.steps == 1:
        for name in names:
            if enough([name]):
                return [name]
    kept = names
    for name in names:
        trial = [n for n in kept if n != name]
        if enough(trial):
            kept = trial
    return kept


def answer(job: Mapping[str, Any], goal: Mapping[str, Any]) -> dict[str, Any]:
    """What is found out about a goal."""
    start = time.perf_counter()
    limits = Limits(job["steps"], job["size"])
    found = saturate(goal, goal["laws"], limits)
    members: list[str] = []
    used: list[str] = []
    if found.proved:
        (shown,) = found.run(f"(extract $left {job['members']})")
        members = [line.strip() for line in str(shown).splitlines()[1:] if line.strip(" ()")]
        used = minimal(goal, found, limits) if job["minimal"] else list(goal["laws"])
    return {
        "name": goal["name"],
        "proved": found.proved,
        "steps": found.steps,
        "size": found.size,
        "axioms": used,
        "members": members,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Do job after job."""
    for line in sys.stdin:
        job = json.loads(line)
        for goal in job["goals"]:
            sys.stdout.write(json.dumps(answer(job, goal)) + "\n")
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
