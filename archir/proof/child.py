"""The process that saturates: a job a line on stdin, a line of JSON out for each of its goals.

The only file that knows egglog, and a process of its own, so that it can be killed. It ends when
its stdin does. An empty line says that a job is done.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SPARE = 500
"""Tuples that any e-graph may have where axioms are left out."""


@dataclass(frozen=True)
class Limits:
    """How far a goal may be taken: saturation steps, tuples of the e-graph."""

    steps: int
    size: int


@dataclass(frozen=True)
class Outcome:
    """Where ``$left`` and ``$right`` of a goal met, or how far the e-graph went without."""

    steps: int
    size: int
    """How many tuples the e-graph held."""
    fired: frozenset[str]
    """The axioms one of whose laws matched something on the way."""
    proved: bool


class Saturation:
    """A goal and laws in an e-graph, from which laws are applied time and again.

    Each axiom has a ruleset of its own, so that any of them can be left out.
    """

    def __init__(self, goal: Mapping[str, Any]) -> None:
        from egglog.bindings import EGraph

        self._graph = EGraph()
        self._axioms = list(goal["laws"])
        self._owner: dict[str, str] = {}
        rules = []
        for place, axiom in enumerate(self._axioms):
            rules.append(f"(ruleset r{place})")
            for law in goal["laws"][axiom]:
                number = str(len(self._owner))
                self._owner[number] = axiom
                rules.append(f'(rule {law} :ruleset r{place} :name "{number}")')
        self.run("\n".join([goal["prelude"], *rules, goal["setup"]]))

    def run(self, text: str) -> list[Any]:
        """Run egglog commands."""
        return list(self._graph.run_program(*self._graph.parse_program(text)))

    @contextmanager
    def under(self, axioms: Collection[str], limits: Limits) -> Iterator[Outcome]:
        """Apply some laws until the sides meet, or a limit is reached; undone at the end."""
        chosen = [f"r{n}" for n, axiom in enumerate(self._axioms) if axiom in axioms]
        self.run(f"(push) (unstable-combined-ruleset trial {' '.join(chosen)})")
        try:
            yield self._saturated(limits)
        finally:
            self.run("(pop)")

    def _saturated(self, limits: Limits) -> Outcome:
        from egglog.bindings import EggSmolError

        fired: set[str] = set()
        step = size = 0
        for step in range(limits.steps + 1):
            size = self._size()
            try:
                self.run("(check (= $left $right))")
            except EggSmolError:
                if step == limits.steps or size > limits.size:
                    break
            else:
                return Outcome(step, size, frozenset(fired), proved=True)
            (outcome,) = self.run("(run trial 1)")
            matches = outcome.report.num_matches_per_rule.items()
            fired |= {self._owner[number] for number, count in matches if count}
            if not outcome.report.updated:
                break
        return Outcome(step, size, frozenset(fired), proved=False)

    def _size(self) -> int:
        (report,) = self.run("(print-size)")
        total = 0
        for line in str(report).replace("(", " ").replace(")", " ").splitlines():
            name, _, count = line.strip().rpartition(" ")
            if name and count.isdigit():
                total += int(count)
        return total


def minimal(graph: Saturation, names: Sequence[str], found: Outcome, limits: Limits) -> list[str]:
    """An irreducible set of axioms that still proves a goal: each is left out in turn.

    Axioms none of whose laws matched on the way to the proof did nothing for it. Of what took one
    step, each axiom is tried alone first. An e-graph that grows far beyond that of the proof is
    given up.
    """
    limits = Limits(limits.steps, min(limits.size, max(SPARE, 10 * found.size)))
    names = [name for name in names if name in found.fired]

    def enough(trial: Sequence[str]) -> bool:
        with graph.under(trial, limits) as outcome:
            return outcome.proved

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
    graph, names = Saturation(goal), list(goal["laws"])
    members: list[str] = []
    with graph.under(names, limits) as found:
        if found.proved:
            (shown,) = graph.run(f"(extract $left {job['members']})")
            members = [line.strip() for line in str(shown).splitlines()[1:] if line.strip(" ()")]
    used: list[str] = []
    if found.proved:
        used = minimal(graph, names, found, limits) if job["minimal"] else names
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
