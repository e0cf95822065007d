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
from archir.proof.lemmas import Lemma, audit_values, lemmas
from archir.proof.saturation import Budget, Proof, Prover
from archir.proof.symbols import UnspokenError
from archir.proof.terms import Goal, variables
from archir.proof.translate import goals
from archir.rewrite.rule import Reshaping, Rule

AUDITED = 4
"""On how many small networks the terms of a proof are evaluated."""


@dataclass(frozen=True)
class Attempt:
    """What came of trying to prove a rule, or a part of it."""

    proofs: tuple[Proof, ...] = ()
    missed: tuple[str, ...] = ()
    """The goals that were not proved."""
    late: bool = False
    """Whether there was no time to try them all."""
    reason: str = ""
    """Why none was tried."""
    seconds: float = 0.0


def parts(rule: Rule, ops: OpSet) -> list[str]:
    """The parts of a rule: operators' names, and "" for what belongs to none."""
    return ["", *ops] if isinstance(rule.body, Reshaping) else [""]


def attempt(
    rule: Rule,
    ops: OpSet,
    axioms: Axioms,
    mode: Mode,
    budget: Budget,
    prover: Prover,
    *,
    part: str = "",
    minimal: bool = True,
    among: Instances | None = None,
) -> Attempt:
    """Try to prove a part of a rule, the whole of one over a pattern.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A415, the audit refutes a
            proof.
    """
    start = time.perf_counter()
    needed: list[Lemma] = []
    try:
        if isinstance(rule.body, Reshaping):
            some = lemmas(rule, OpSet([ops[part]] if part else []), mode)
            needed = [lemma for lemma in some if bool(lemma.changes) == bool(part)]
            wanted = [lemma.goal for lemma in needed]
        else:
            wanted = goals(rule, ops, mode)
    except UnspokenError as failure:
        return Attempt(reason=str(failure))
    answers = prover.prove(wanted, prover.book(axioms, ops, mode), budget, minimal=minimal)
    if isinstance(rule.body, Reshaping):
        _audit_lemmas(needed, answers, ops, mode, prover)
    else:
        _audit_goals(among or Instances(rule, ops), wanted, answers, mode)
    return Attempt(
        tuple(replace(answers[g.name], members=()) for g in wanted if g.name in answers),
        tuple(g.name for g in wanted if g.name not in answers or not answers[g.name].proved),
        late=len(answers) < len(wanted),
        seconds=time.perf_counter() - start,
    )


def attempts(
    rule: Rule,
    ops: OpSet,
    axioms: Axioms,
    mode: Mode,
    budget: Budget,
    prover: Prover,
    *,
    minimal: bool = True,
    among: Instances | None = None,
) -> Iterator[Attempt]:
    """Try to prove one part of a rule after another, as long as there is time.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A415, the audit refutes a
            proof.
    """
    left = budget.seconds
    for part in parts(rule, ops):
        limits = replace(budget, seconds=left)
        made = attempt(
            rule, ops, axioms, mode, limits, prover, part=part, minimal=minimal, among=among
        )
        yield made
        left -= made.seconds
        if made.late or made.reason:
            return


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
    own = prover or Prover()
    try:
        tried = list(attempts(rule, ops, axioms, mode, budget, own, minimal=minimal))
    finally:
        if prover is None:
            own.close()
    return [p for one in tried for p in one.proofs], why_not(tried, budget)


# --- the audit of proofs ------------------------------------------------------------------------


def _audit_lemmas(
    needed: Sequence[Lemma],
    answers: Mapping[str, Proof],
    ops: OpSet,
    mode: Mode,
    prover: Prover,
) -> None:
    """The merged terms of every lemma have one value on the samples of its operator."""
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
