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

from archir.ops.record import OpSet
from archir.proof.attempts import Attempt, attempts, why_not
from archir.proof.axioms import Axioms, installed_axioms
from archir.proof.instances import Aspect, Instances
from archir.proof.saturation import Budget, Proof, Prover, available, missing, version
from archir.proof.sketches import MAKERS
from archir.proof.stand_ins import BOUND
from archir.proof.trials import Trials, try_rule
from archir.proof.verdict import ModeVerdict, Verdict, shipped
from archir.rewrite.rule import Reshaping, Rule

TESTED = 64
"""On how many small networks a rule is tried that is not proved."""
SHAPES = 24
"""On how many shapes and costs are."""
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
    prover: Prover | None = None,
) -> Verdict:
    """The verdict on a rule.

    Args:
        rule: The rule.
        ops: The operators that it may meet.
        axioms: What proofs may rest on.
        budget: How far each mode's proof may go.
        tests: On how many small networks it is tried where no proof is found.
        minimal: Whether axioms that a proof can do without are left out of its list.
        prover: What proves, and knows what it has proved for other rules; one is made if none is
            given.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A415, an axiom is unsound.
    """
    if prover is None:
        with Prover() as own:
            return prove(rule, ops, axioms, budget=budget, tests=tests, minimal=minimal, prover=own)
    if not available() and rule.contract.function:
        raise missing()
    limits = budget or Budget()
    among = Instances(rule, ops)
    found: list[ModeVerdict] = []
    for mode in rule.contract.function:
        start = time.perf_counter()
        made = first_look(among, mode)
        if made.kind != "refuted":
            done = attempts(among, axioms, mode, limits, prover, minimal=minimal)
            made = judged(made, list(done), among, axioms, limits, tests)
        found.append(replace(made, seconds=time.perf_counter() - start))
    found += shape_verdict(among, tests)
    return verdict_of_modes(rule, ops, axioms, found)


def tried(rule: Rule, ops: OpSet, *, count: int = TESTED) -> Verdict:
    """The verdict that small networks alone give: never ``proved``; needs no egglog."""
    among = Instances(rule, ops)
    found = [
        without_proof(among, m, count, "no proof was looked for") for m in rule.contract.function
    ]
    found += shape_verdict(among, count)
    return Verdict(rule.name, rule.hash, Axioms(()).hash_of(()), (), "", tuple(found))


def quickly_refuted(rule: Rule, ops: OpSet, aspect: Aspect) -> ModeVerdict | None:
    """The verdict of the few networks on which every rule is tried first, if they refute it.

    The counterexample is not made smaller.
    """
    found = first_look(Instances(rule, ops), aspect, shrink=False)
    return found if found.kind == "refuted" else None


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


# --- the steps to a verdict ---------------------------------------------------------------------


def first_look(among: Instances, mode: Aspect, *, shrink: bool = True) -> ModeVerdict:
    """The verdict of a few small networks, which refute most wrong rules; else ``unknown``."""
    over_class = isinstance(among.rule.body, Reshaping)
    count = CONFIRMED_OVER_CLASS if over_class else CONFIRMED
    trials = try_rule(among, mode, count, shrink=shrink)
    plain = ModeVerdict(mode, "unknown", instances=trials.equal, misfits=_some(trials))
    return _refuted(mode, trials) or plain


def judged(
    looked: ModeVerdict,
    tried: Sequence[Attempt],
    among: Instances,
    axioms: Axioms,
    budget: Budget,
    tests: int = TESTED,
) -> ModeVerdict:
    """The verdict of a proof, or of more small networks where there is none.

    Args:
        looked: The verdict of the first look.
        tried: What came of trying to prove all parts of the rule.
        among: The rule's instances.
        axioms: What proofs could rest on.
        budget: How far they could go.
        tests: On how many small networks the rule is tried where there is no proof.
    """
    reason = why_not(tried, budget)
    proofs = [p for a in tried for p in a.proofs]
    if reason or not proofs:
        return without_proof(among, looked.mode, tests, reason)
    used = {a for p in proofs for a in p.axioms}
    return replace(
        looked,
        kind="proved",
        axioms=tuple(a.name for a in axioms.axioms if a.name in used),
        lemmas=_by_axioms(proofs) if isinstance(among.rule.body, Reshaping) else (),
    )


def without_proof(among: Instances, mode: Aspect, tests: int, reason: str = "") -> ModeVerdict:
    """The verdict that small networks alone give."""
    start = time.perf_counter()
    trials = try_rule(among, mode, tests)
    found = _refuted(mode, trials)
    if found is None and trials.equal:
        misfits = _some(trials)
        if trials.near:
            reason = f"{reason}; " if reason else ""
            reason += f"on {trials.near} networks equal in double precision alone, within {BOUND:g}"
        found = ModeVerdict(mode, "tested", instances=trials.equal, reason=reason, misfits=misfits)
    if found is None:
        none = "no small network could be made on which to try it"
        found = ModeVerdict(mode, "unknown", reason=f"{reason}; {none}" if reason else none)
    return replace(found, seconds=time.perf_counter() - start)


def shape_verdict(among: Instances, tests: int = SHAPES) -> list[ModeVerdict]:
    """The verdict on shapes and costs; of a rule that keeps the function, only what is wrong."""
    contract = among.rule.contract
    if contract.shape:
        return [without_proof(among, "shape", tests)]
    look = first_look(among, "shape") if contract.decreases or contract.keeps else None
    return [look] if look is not None and look.kind == "refuted" else []


def verdict_of_modes(
    rule: Rule, ops: OpSet, axioms: Axioms, found: Sequence[ModeVerdict]
) -> Verdict:
    """The verdict that those on all that a rule promises make."""
    return Verdict(
        rule.name,
        rule.hash,
        axioms.hash_of(a for m in found for a in m.axioms),
        tuple(sorted(ops)) if isinstance(rule.body, Reshaping) else (),
        version() if available() else "",
        tuple(found),
    )


def _by_axioms(proofs: Sequence[Proof]) -> tuple[str, ...]:
    """What rests on which axioms: `AXIOMS: lemmas`, those of one name of an operator as one."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for proof in proofs:
        found.setdefault(proof.axioms, {})[proof.goal.split(" without ")[0].split(" (")[0]] = None
    return tuple(
        f"{', '.join(axioms) or 'by definition'}: {', '.join(names)}"
        for axioms, names in found.items()
    )


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
