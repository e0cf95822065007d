"""Many rules proved at once, in several processes; the verdicts do not depend on how many.

A rule over a pattern is one task. A rule over a class has a task for what small networks and the
lemmas of its own say. What operators make of related operands is the same for all such rules, and
one task for each operator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from archir.ops.record import Mode, OpSet
from archir.proof.attempts import Attempt, of_operator, of_rule
from archir.proof.axioms import Axioms
from archir.proof.instances import Instances
from archir.proof.pool import spread
from archir.proof.prove import TESTED, first_look, judged, prove, shape_verdict, verdict_of_modes
from archir.proof.saturation import Budget, Prover, available, missing
from archir.proof.verdict import ModeVerdict, Verdict
from archir.rewrite.rule import Reshaping, Rule

Told = Callable[[int, int, str], None]
"""Told of progress: how many tasks are done, of how many, and what the last one was about."""


@dataclass(frozen=True)
class _Task:
    """A rule to be proved as a whole, a rule over a class to be looked at, or an operator."""

    rule: int = -1
    operator: str = ""


@dataclass(frozen=True)
class _Look:
    """What small networks say of a rule over a class, and its own lemmas, mode by mode."""

    verdicts: tuple[ModeVerdict, ...]
    own: Mapping[Mode, Attempt]
    shape: tuple[ModeVerdict, ...]


_Made = Verdict | _Look | Mapping[Mode, Attempt]


def prove_all(
    rules: Sequence[Rule],
    ops: OpSet,
    axioms: Axioms,
    *,
    budget: Budget | None = None,
    tests: int = TESTED,
    jobs: int = 1,
    progress: Told | None = None,
) -> list[Verdict]:
    """The verdicts on rules, in their order.

    Args:
        rules: The rules.
        ops: The operators that they may meet.
        axioms: What proofs may rest on.
        budget: How far each proof may go: that of a rule in a mode, or, for rules over a class,
            that of an operator's lemmas.
        tests: On how many small networks a rule is tried where no proof is found.
        jobs: How many processes work at once.
        progress: Called whenever a task is done.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A415, an axiom is unsound.
    """
    if any(rule.contract.function for rule in rules) and not available():
        raise missing()
    work = _Work(rules, ops, axioms, budget or Budget(), tests)
    tasks = work.tasks()
    made: dict[_Task, _Made] = {}
    with closing(spread(tasks, work.begin, jobs)) as results:
        for count, (number, result) in enumerate(results, 1):
            task = tasks[number]
            made[task] = result
            if progress is not None:
                progress(count, len(tasks), task.operator or rules[task.rule].name)
    return [work.verdict(number, made) for number in range(len(rules))]


class _Work:
    """What the processes share, and what each of them does."""

    def __init__(
        self, rules: Sequence[Rule], ops: OpSet, axioms: Axioms, budget: Budget, tests: int
    ) -> None:
        self.rules, self.ops, self.axioms = rules, ops, axioms
        self.budget, self.tests = budget, tests
        self.prover = Prover()
        """Each process gets a copy of it, and starts a child of its own."""
        proved = [rule for rule in rules if rule.contract.function]
        for mode in {mode for rule in proved for mode in rule.contract.function}:
            self.prover.book(axioms, ops, mode)
        held = [rule for rule in proved if isinstance(rule.body, Reshaping)]
        self.modes = sorted({mode for rule in held for mode in rule.contract.function})

    def tasks(self) -> list[_Task]:
        """All tasks, those that take longest first."""
        whole = [_Task(rule=number) for number in range(len(self.rules))]
        whole.sort(key=lambda t: not isinstance(self.rules[t.rule].body, Reshaping))
        return whole + [_Task(operator=name) for name in self.ops if self.modes]

    @contextmanager
    def begin(self) -> Iterator[Callable[[_Task], _Made]]:
        """What does tasks in one process."""
        with self.prover:
            yield self.do

    def do(self, task: _Task) -> _Made:
        """Do a task."""
        if task.operator:
            return {
                mode: of_operator(
                    task.operator, self.ops, self.axioms, mode, self.budget, self.prover
                )
                for mode in self.modes
            }
        rule = self.rules[task.rule]
        if isinstance(rule.body, Reshaping):
            return self._look(rule)
        return prove(
            rule, self.ops, self.axioms, budget=self.budget, tests=self.tests, prover=self.prover
        )

    def _look(self, rule: Rule) -> _Look:
        among = Instances(rule, self.ops)
        verdicts: list[ModeVerdict] = []
        own: dict[Mode, Attempt] = {}
        for mode in rule.contract.function:
            start = time.perf_counter()
            looked = first_look(among, mode)
            if looked.kind != "refuted":
                own[mode] = of_rule(among, self.axioms, mode, self.budget, self.prover)
            verdicts.append(replace(looked, seconds=time.perf_counter() - start))
        return _Look(tuple(verdicts), own, tuple(shape_verdict(among, self.tests)))

    def verdict(self, number: int, made: Mapping[_Task, _Made]) -> Verdict:
        """The verdict on a rule, from what has been done."""
        rule, looked = self.rules[number], made[_Task(rule=number)]
        if isinstance(looked, Verdict):
            return looked
        assert isinstance(looked, _Look)
        found: list[ModeVerdict] = []
        for verdict in looked.verdicts:
            if verdict.kind == "refuted":
                found.append(verdict)
                continue
            mode = verdict.mode
            assert mode != "shape"
            own = looked.own[mode]
            shared = [made[_Task(operator=name)] for name in self.ops]
            about = [held[mode].under(own.able) for held in shared if isinstance(held, Mapping)]
            judge = judged(
                verdict,
                [own, *about],
                Instances(rule, self.ops),
                self.axioms,
                self.budget,
                self.tests,
            )
            seconds = verdict.seconds + sum(one.seconds for one in about)
            found.append(replace(judge, seconds=seconds))
        found += looked.shape
        return verdict_of_modes(rule, self.ops, self.axioms, found)
