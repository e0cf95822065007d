"""Attempts to prove a rule: its goals or lemmas are saturated, and every proof is audited.

A rule over a class falls into parts, one for each operator that a class can meet, and one for
what it does whatever it meets; they can be tried apart from each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from archir.diag import error
from archir.ops.arithmetic import Residues
from archir.ops.record import Mode, OpSet
from archir.proof.audit import audit_terms
from archir.proof.axioms import Axioms
from archir.proof.faithful import untrue, valuation
from archir.proof.instances import Instances
from archir.proof.lemmas import Lemma, audit_values, operator_lemmas, rule_lemmas
from archir.proof.saturation import Budget, Proof, Prover
from archir.proof.spelling import Lawbook
from archir.proof.symbols import UnspokenError
from archir.proof.terms import Goal, variables
from archir.proof.translate import goals
from archir.rewrite.rule import Reshaping, Rule

AUDITED = 4
"""On how many small networks the terms of a proof are evaluated."""


@dataclass(frozen=True)
class Tried:
    """A goal, and what came of it."""

    goal: str
    proof: Proof | None
    """None where there was no time to try it."""
    conditions: frozenset[str] = frozenset()
    """What an operator asks of maps for the goal to matter."""


@dataclass(frozen=True)
class Attempt:
    """What came of trying to prove a rule, or a part of it."""

    goals: tuple[Tried, ...] = ()
    reason: str = ""
    """Why none was tried."""
    able: frozenset[str] = frozenset()
    """What a rule's maps can be where an operator asks for it."""
    seconds: float = 0.0

    @property
    def proofs(self) -> list[Proof]:
        """What was proved."""
        return [g.proof for g in self.goals if g.proof is not None and g.proof.proved]

    @property
    def missed(self) -> list[str]:
        """The goals that were not proved."""
        return [g.goal for g in self.goals if g.proof is None or not g.proof.proved]

    @property
    def late(self) -> bool:
        """Whether there was no time to try them all."""
        return any(g.proof is None for g in self.goals)

    def under(self, able: frozenset[str]) -> Attempt:
        """What matters for rules whose maps can be this."""
        return replace(self, goals=tuple(g for g in self.goals if g.conditions <= able))


def of_rule(
    among: Instances,
    axioms: Axioms,
    mode: Mode,
    budget: Budget,
    prover: Prover,
    *,
    minimal: bool = True,
) -> Attempt:
    """Try to prove a rule; of one over a class, what does not depend on operators.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A415, the audit refutes a
            proof.
    """
    rule, ops = among.rule, among.ops
    start = time.perf_counter()
    book = prover.book(axioms, ops, mode)
    try:
        if isinstance(rule.body, Reshaping):
            needed, able = rule_lemmas(rule)
            done = _lemmas(needed, ops, mode, book, budget, prover, minimal=minimal)
            return Attempt(done, able=able, seconds=time.perf_counter() - start)
        wanted = goals(rule, ops, mode)
    except UnspokenError as failure:
        return Attempt(reason=str(failure))
    answers = prover.prove(wanted, book, budget, minimal=minimal)
    _audit_goals(among, wanted, answers, mode)
    done = tuple(Tried(g.name, _short(answers.get(g.name))) for g in wanted)
    return Attempt(done, seconds=time.perf_counter() - start)


def of_operator(
    name: str,
    ops: OpSet,
    axioms: Axioms,
    mode: Mode,
    budget: Budget,
    prover: Prover,
    *,
    minimal: bool = True,
) -> Attempt:
    """Try to prove what rules over a class need of an operator: the same for all of them.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A415, the audit refutes a
            proof.
    """
    start = time.perf_counter()
    book = prover.book(axioms, ops, mode)
    key = (name, book, budget.steps, budget.size, minimal)
    known: Attempt | None = prover.kept.get(key)
    if known is not None:
        return replace(known, seconds=0.0)
    needed = operator_lemmas(OpSet([ops[name]]), mode)
    done = _lemmas(needed, ops, mode, book, budget, prover, minimal=minimal)
    made = Attempt(done, seconds=time.perf_counter() - start)
    if not made.late:
        prover.kept[key] = made
    return made


def attempts(
    among: Instances,
    axioms: Axioms,
    mode: Mode,
    budget: Budget,
    prover: Prover,
    *,
    minimal: bool = True,
) -> Iterator[Attempt]:
    """Try to prove a rule, one part after another, as long as there is time.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A415, the audit refutes a
            proof.
    """
    made = of_rule(among, axioms, mode, budget, prover, minimal=minimal)
    yield made
    left, able = budget.seconds - made.seconds, made.able
    for name in among.ops if isinstance(among.rule.body, Reshaping) else ():
        if made.late or made.reason:
            return
        limits = replace(budget, seconds=left)
        made = of_operator(name, among.ops, axioms, mode, limits, prover, minimal=minimal)
        yield made.under(able)
        left -= made.seconds


def _short(proof: Proof | None) -> Proof | None:
    return proof and replace(proof, members=())


def why_not(tried: Sequence[Attempt], budget: Budget) -> str:
    """What could not be proved; "" if nothing."""
    for one in tried:
        if one.reason:
            return one.reason
    missed = [name for one in tried for name in one.missed]
    if not missed:
        return ""
    more = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
    late = f" within {budget.seconds:g} s" if any(one.late for one in tried) else ""
    return f"no proof{late} of `{missed[0]}`{more}"


def saturated(
    rule: Rule,
    ops: OpSet,
    axioms: Axioms,
    mode: Mode,
    budget: Budget,
    *,
    minimal: bool = True,
    prover: Prover | None = None,
) -> tuple[list[Proof], str]:
    """The proofs of a rule's goals in a mode, and what could not be proved ("" if all).

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A415, the audit refutes a
            proof.
    """
    if prover is None:
        with Prover() as own:
            return saturated(rule, ops, axioms, mode, budget, minimal=minimal, prover=own)
    among = Instances(rule, ops)
    done = list(attempts(among, axioms, mode, budget, prover, minimal=minimal))
    return [p for one in done for p in one.proofs], why_not(done, budget)


def _lemmas(
    needed: Sequence[Lemma],
    ops: OpSet,
    mode: Mode,
    book: Lawbook,
    budget: Budget,
    prover: Prover,
    *,
    minimal: bool,
) -> tuple[Tried, ...]:
    wanted = [m.goal for m in needed]
    answers = prover.prove(wanted, book, budget, minimal=minimal, narrow=True)
    rest = [g for g in wanted if g.name in answers and not answers[g.name].proved]
    answers |= prover.prove(rest, book, budget, minimal=minimal)
    _audit_lemmas(needed, answers, ops, mode, prover)
    return tuple(
        Tried(
            m.goal.name,
            _short(answers.get(m.goal.name)),
            m.conditions if m.changes else frozenset(),
        )
        for m in needed
    )


# --- the audit of proofs ------------------------------------------------------------------------


def _audit_lemmas(
    needed: Sequence[Lemma],
    answers: Mapping[str, Proof],
    ops: OpSet,
    mode: Mode,
    prover: Prover,
) -> None:
    """The merged terms of every lemma have one value, on the samples of its operator."""
    k = Residues()
    for lemma in needed:
        proof = answers.get(lemma.goal.name)
        if proof is None or not proof.proved:
            continue
        terms = (lemma.goal.left, lemma.goal.right, *proof.members)
        key = (mode, terms, lemma.conditions, lemma.changes, lemma.short)
        if key in prover.audited:
            continue  # another rule needs the same lemma
        rng = np.random.Generator(np.random.PCG64([*lemma.goal.name.encode()]))
        counts = [
            audit_terms(lemma.goal.name, terms, ops, mode, values)
            for values in audit_values(lemma, k, rng)
        ]
        if max(counts) < 2 or (lemma.changes and min(counts) < 2):
            raise error(
                "A415", f"the lemma {lemma.goal.name} has no value on its operator's sample"
            )
        prover.audited.add(key)


def _audit_goals(
    among: Instances, wanted: Sequence[Goal], answers: Mapping[str, Proof], mode: Mode
) -> None:
    """The merged terms have one value, and the sides of the goals are those of the networks."""
    free = {name for goal in wanted for side in (goal.left, goal.right) for name in variables(side)}
    proved = [g for g in wanted if g.name in answers and answers[g.name].proved]
    if not proved:
        return
    for found in islice(among.found(), AUDITED):
        values, measured = valuation(found, free)
        for goal in proved:
            terms = [goal.left, goal.right, *answers[goal.name].members]
            audit_terms(goal.name, terms, among.ops, mode, values)
        if len(proved) < len(wanted):
            continue
        try:
            wrong = untrue(found, wanted, values, measured, among.ops, mode)
        except ZeroDivisionError:
            continue  # outside what the operators are defined on
        if wrong is not None:
            rule = among.rule.name
            raise error("A415", f"the goals of `{rule}` do not say what it does to `{wrong}`")
