"""The prover: a rule in, a verdict out.

A rule that keeps the function is translated into goals (or, over a class, into lemmas), which
equality saturation tries to prove from the axioms; every term of a proof's e-classes is
evaluated in GF(p). Before that the rule is tried on a few small networks in exact fractions,
and, where no proof is found, on more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from archir.diag import error
from archir.ops.arithmetic import Residues
from archir.ops.record import Mode, OpSet
from archir.proof.audit import audit_terms
from archir.proof.axioms import Axioms, installed_axioms
from archir.proof.faithful import untrue, valuation
from archir.proof.instances import Aspect, Trials, instances, try_rule
from archir.proof.lemmas import Lemma, audit_values, lemmas
from archir.proof.saturation import Budget, Proof, available, missing, prove_goals, version
from archir.proof.sketches import MAKERS
from archir.proof.symbols import UnspokenError
from archir.proof.terms import Goal, variables
from archir.proof.translate import goals
from archir.proof.verdict import ModeVerdict, Verdict, shipped
from archir.rewrite.rule import Reshaping, Rule

TESTED = 24
"""On how many small networks a rule is tried that is not proved."""
AUDITED = 4
"""On how many small networks the terms of a proof are evaluated."""
CONFIRMED = 8
"""On how many one that is."""
CONFIRMED_OVER_CLASS = 2 * len(MAKERS)
"""The same for a rule over a class: each kind of network gives one or two."""


def prove(
    rule: Rule,
    ops: OpSet,
    axioms: Axioms,
    *,
    budget: Budget | None = None,
    tests: int = TESTED,
    minimal: bool = True,
    known: dict[str, Proof] | None = None,
) -> Verdict:
    """The verdict on a rule.

    Args:
        rule: The rule.
        ops: The operators that it may meet.
        axioms: What proofs may rest on.
        budget: How far each mode's proof may go.
        tests: On how many small networks it is tried where no proof is found.
        minimal: Whether axioms that a proof can do without are left out of its list.
        known: What was proved for other rules, kept for the next.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A415, an axiom is unsound.
    """
    if not available() and rule.contract.function:
        raise missing()
    limits = budget or Budget()
    held: dict[str, Proof] = {} if known is None else known
    found: list[ModeVerdict] = []
    for mode in rule.contract.function:
        start = time.perf_counter()
        made = _mode(rule, ops, axioms, mode, limits, tests, minimal=minimal, known=held)
        found.append(replace(made, seconds=time.perf_counter() - start))
    if rule.contract.shape:
        found.append(_without_proof(rule, ops, "shape", tests, ""))
    over_class = isinstance(rule.body, Reshaping)
    return Verdict(
        rule.name,
        rule.hash,
        axioms.hash_of(a for m in found for a in m.axioms),
        tuple(sorted(ops)) if over_class else (),
        version() if available() else "",
        tuple(found),
    )


def tried(rule: Rule, ops: OpSet, *, count: int = TESTED) -> Verdict:
    """The verdict that small networks alone give: never ``proved``; needs no egglog."""
    found: list[ModeVerdict] = []
    for mode in rule.contract.function:
        start = time.perf_counter()
        made = _without_proof(rule, ops, mode, count, "no proof was looked for")
        found.append(replace(made, seconds=time.perf_counter() - start))
    if rule.contract.shape:
        found.append(_without_proof(rule, ops, "shape", count, ""))
    return Verdict(rule.name, rule.hash, Axioms(()).hash_of(()), (), "", tuple(found))


def quickly_refuted(rule: Rule, ops: OpSet, aspect: Aspect) -> ModeVerdict | None:
    """The verdict of the few networks on which every rule is tried first, if they refute it.

    The counterexample is not made smaller.
    """
    count = CONFIRMED_OVER_CLASS if isinstance(rule.body, Reshaping) else CONFIRMED
    return _refuted(aspect, try_rule(rule, ops, aspect, count, shrink=False))


def shipped_verdict(rule: Rule) -> Verdict | None:
    """The verdict that the rule's package ships for it; needs no egglog."""
    return shipped(rule)


def verdict_for(rule: Rule, ops: OpSet) -> Verdict:
    """The verdict to go by when a rule is used.

    The shipped one; else a proof, made here and now; else, without egglog, a test.
    """
    found = shipped(rule)
    if found is not None:
        return found
    if available() and rule.contract.function:
        return prove(rule, ops, installed_axioms(), budget=Budget(seconds=20.0), minimal=False)
    return tried(rule, ops)


def _mode(
    rule: Rule,
    ops: OpSet,
    axioms: Axioms,
    mode: Mode,
    budget: Budget,
    tests: int,
    *,
    minimal: bool,
    known: dict[str, Proof],
) -> ModeVerdict:
    """First a few small networks, which refute most wrong rules at once; then a proof."""
    over_class = isinstance(rule.body, Reshaping)
    trials = try_rule(rule, ops, mode, CONFIRMED_OVER_CLASS if over_class else CONFIRMED)
    refuted = _refuted(mode, trials)
    if refuted is not None:
        return refuted
    try:
        proofs, reason = saturated(rule, ops, axioms, mode, budget, minimal=minimal, known=known)
    except UnspokenError as failure:
        proofs, reason = [], str(failure)
    if reason or not proofs:
        return _without_proof(rule, ops, mode, tests, reason)
    used = tuple(dict.fromkeys(a for p in proofs for a in p.axioms))
    order = [a.name for a in axioms.axioms]
    named = _by_axioms(proofs)
    return ModeVerdict(
        mode,
        "proved",
        tuple(sorted(used, key=order.index)),
        named if over_class else (),
        trials.equal,
        misfits=_some(trials),
    )


def _by_axioms(proofs: Sequence[Proof]) -> tuple[str, ...]:
    """What rests on which axioms: `AXIOMS: lemmas`, those of one name of an operator as one."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for proof in proofs:
        found.setdefault(proof.axioms, {})[proof.goal.split(" without ")[0].split(" (")[0]] = None
    return tuple(f"{', '.join(axioms)}: {', '.join(names)}" for axioms, names in found.items())


def _some(trials: Trials) -> tuple[str, ...]:
    return tuple(dict.fromkeys(trials.misfits))[:3]


def _refuted(mode: Aspect, trials: Trials) -> ModeVerdict | None:
    """The verdict of trials that break the contract, or in which the right side never fits."""
    misfits = _some(trials)
    if trials.counterexample is not None:
        against = trials.counterexample
        return ModeVerdict(
            mode, "refuted", instances=trials.equal, misfits=misfits, counterexample=against
        )
    if misfits and not trials.equal:
        reason = f"where the left side matches, the right side never fits: {misfits[0]}"
        return ModeVerdict(mode, "refuted", reason=reason, misfits=misfits)
    return None


def _without_proof(rule: Rule, ops: OpSet, mode: Aspect, tests: int, reason: str) -> ModeVerdict:
    """The verdict that small networks alone give."""
    trials = try_rule(rule, ops, mode, tests)
    refuted = _refuted(mode, trials)
    if refuted is not None:
        return refuted
    if trials.equal:
        misfits = _some(trials)
        return ModeVerdict(mode, "tested", instances=trials.equal, reason=reason, misfits=misfits)
    none = "no small network could be made on which to try it"
    return ModeVerdict(mode, "unknown", reason=f"{reason}; {none}" if reason else none)


def saturated(
    rule: Rule,
    ops: OpSet,
    axioms: Axioms,
    mode: Mode,
    budget: Budget,
    *,
    minimal: bool = True,
    known: dict[str, Proof] | None = None,
) -> tuple[list[Proof], str]:
    """The proofs of a rule's goals in a mode, and what could not be proved ("" if all).

    Raises:
        UnspokenError: the rule cannot be said in the prover's terms.
        ArchirError: A415, the audit refutes a proof.
    """
    laws = [law for law in axioms.laws(ops) if mode in law.modes]
    needed: list[Lemma] = []
    if isinstance(rule.body, Reshaping):
        needed = lemmas(rule, ops, mode)
        wanted = [lemma.goal for lemma in needed]
    else:
        wanted = goals(rule, ops, mode)
    answers = prove_goals(wanted, laws, budget, minimal=minimal, known=known)
    found = [answers[g.name] for g in wanted if g.name in answers]
    missed = [g.name for g in wanted if g.name not in answers or not answers[g.name].proved]
    if needed:
        _audit_lemmas(needed, answers, ops, mode)
    else:
        _audit_goals(rule, wanted, answers, ops, mode)
    reason = ""
    if missed:
        more = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
        late = "" if len(answers) == len(wanted) else f" within {budget.seconds:g} s"
        reason = f"no proof{late} of `{missed[0]}`{more}"
    return found, reason


def _audit_lemmas(
    needed: Sequence[Lemma], answers: dict[str, Proof], ops: OpSet, mode: Mode
) -> None:
    k = Residues()
    for lemma in needed:
        proof = answers.get(lemma.goal.name)
        if proof is None or not proof.proved:
            continue
        rng = np.random.Generator(np.random.PCG64([*lemma.goal.name.encode()]))
        terms = [lemma.goal.left, lemma.goal.right, *proof.members]
        counts = [
            audit_terms(lemma.goal.name, terms, ops, mode, values)
            for values in audit_values(lemma, k, rng)
        ]
        if max(counts) < 2 or (lemma.changes and min(counts) < 2):
            raise error(
                "A415", f"the lemma {lemma.goal.name} has no value on its operator's sample"
            )


def _audit_goals(
    rule: Rule, wanted: Sequence[Goal], answers: dict[str, Proof], ops: OpSet, mode: Mode
) -> None:
    """The merged terms have one value, and the sides of the goals are those of the networks."""
    free = {name for goal in wanted for side in (goal.left, goal.right) for name in variables(side)}
    for found in islice(instances(rule, ops, []), AUDITED):
        values, measured = valuation(found, free)
        for goal in wanted:
            proof = answers.get(goal.name)
            if proof is not None and proof.proved:
                terms = [goal.left, goal.right, *proof.members]
                audit_terms(goal.name, terms, ops, mode, values)
        if not all(goal.name in answers and answers[goal.name].proved for goal in wanted):
            continue
        try:
            wrong = untrue(found, wanted, values, measured, ops, mode)
        except ZeroDivisionError:
            continue  # outside what the operators are defined on
        if wrong is not None:
            raise error("A415", f"the goals of `{rule.name}` do not say what it does to `{wrong}`")
