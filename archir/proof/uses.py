"""One use of a rule: planned, checked in every mode it claims, and written down as facts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from archir.diag import error
from archir.ops.arithmetic import Array, Rational
from archir.ops.record import Law, Mode, OpSet
from archir.proof.exact import ExactCheck, Trial, check_use, trial_of
from archir.proof.stand_ins import equal_in_doubles
from archir.rewrite.assumed import Distance, distances
from archir.rewrite.plan import Plan, as_assumed, dropout_in
from archir.weights.terms import Statistic, statistics

DRAWS = 4
"""How many times random numbers are drawn until a map divides by none of them that is 0."""
SMALL = 20_000
"""Up to how many numbers exact fractions may decide what the field cannot."""


@dataclass(frozen=True)
class Use:
    """A checked use of a rule."""

    plan: Plan
    checks: tuple[ExactCheck, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Modes that the rule claims but this use does not, with the reason."""
    measured: Mapping[Statistic, Array] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    verdict: Mapping[str, Any] | None = None
    read: float = 0.0
    """What share of the weights is not as a rule assumes, zero or equal (norms compared)."""

    assumed: tuple[Distance, ...] = ()
    """How far the weights are from what a rule over a pattern assumes; none, without weights."""

    @property
    def moved(self) -> bool:
        """Whether the weights are not as the rule assumes: the function changes by that."""
        return self.read > 0 or any(not d.holds for d in self.assumed)

    def facts(self) -> dict[str, Any]:
        """The use as JSON values, enough to replay it bit for bit."""
        rule = self.plan.rule
        return {
            "rule": rule.name,
            "rule_text": rule.text,
            "rule_hash": rule.hash,
            "site": self.plan.site,
            "arguments": {k: _json(v) for k, v in self.plan.arguments.items()},
            "seed": self.plan.seed,
            "verdict": self.verdict,
            "exact": {c.mode: check_facts(c) for c in self.checks},
            "not_claimed": dict(self.skipped),
            **({"assumed_zero": self.read} if self.plan.rule.contract.unread else {}),
            **({"assumed_equal": self.read} if self.plan.rule.contract.repeated else {}),
            **({"assumed": [asdict(d) for d in self.assumed]} if self.plan.assumed else {}),
            **({"map": list(self.plan.found)} if self.plan.found else {}),
            "calibration": self.calibration,
            "measured": [
                {**asdict(s), "values": encode(array)} for s, array in self.measured.items()
            ],
        }


def share_read(plan: Plan, weights: Mapping[str, Array]) -> float:
    """How much of the weights that a plan cuts or merges is not as its rule assumes.

    The Euclidean norm of their distance from what is assumed over that of all of these weights.
    """
    due = as_assumed(plan, weights)
    lost = sum(float(np.square(weights[p] - due[p], dtype=np.float64).sum()) for p in due)
    whole = sum(float(np.square(weights[p], dtype=np.float64).sum()) for p in due)
    return (lost / whole) ** 0.5 if whole else 0.0


def assured(
    plan: Plan, weights: Mapping[str, Array] | None, *, approximate: bool
) -> tuple[Distance, ...]:
    """How far the weights are from what a rule over a pattern assumes.

    Raises:
        ArchirError: A314, they are not so, and the rewrite is not to be approximate.
    """
    if weights is None:
        return ()
    found = distances(plan.assumed, weights)
    wrong = next((d for d in found if not d.holds), None)
    if wrong is not None and not approximate:
        raise error(
            "A314",
            f"`{plan.rule.name}` at {plan.site} assumes {wrong.text}; `{wrong.path}` is "
            f"{wrong.value:.3g} of its norm away from that",
            node=plan.site,
            hint="--approximate applies it all the same; the outputs change, and the drift says by "
            "how much",
        )
    return found


def check_facts(check: ExactCheck) -> dict[str, Any]:
    """An exact check as JSON values (its time is no part of a certificate)."""
    return {
        "equal": check.equal,
        "field": check.field,
        "nodes": check.nodes,
        "numbers": check.numbers,
    }


def _json(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def encode(array: Array) -> str:
    """A vector of doubles as base64 of its little-endian bytes."""
    return base64.b64encode(np.asarray(array, "<f8").tobytes()).decode()


def decode(text: str) -> Array:
    """The vector that :func:`encode` wrote."""
    return np.frombuffer(base64.b64decode(text), "<f8").copy()


def wanted_statistics(plan: Plan) -> list[Statistic]:
    """The calibration statistics that a plan reads, each once."""
    return list(dict.fromkeys(s for term in plan.terms.values() for s in statistics(term)))


def check_plan(plan: Plan, ops: OpSet, *, seed: int = 0) -> tuple[list[ExactCheck], dict[str, str]]:
    """Check a plan in every mode its rule claims.

    Raises:
        ArchirError: A401, the two sides differ; the value and the first entry are named. A405,
            the rule's map divides by 0 whatever is drawn.
    """
    if not plan.rule.contract.function:
        return [], {}
    for draw in range(DRAWS):
        try:
            return _check(plan, ops, trial_of(plan, seed=seed + draw))
        except ZeroDivisionError:
            continue
    raise error(
        "A405",
        f"`{plan.rule.name}` at {plan.site} cannot be checked: its weights divide by 0",
        span=plan.rule.span,
        hint="a map that divides by single weights is not defined where one of them is 0",
    )


def _check(plan: Plan, ops: OpSet, trial: Trial) -> tuple[list[ExactCheck], dict[str, str]]:
    checks: list[ExactCheck] = []
    skipped: dict[str, str] = {}
    for mode in plan.rule.contract.function:
        random = dropout_in(trial.region, ops) if mode == "train" else None
        if random is not None:
            skipped[mode] = f"active dropout at {random}"
            continue
        checks.append(_decide(plan, ops, mode, trial))
    return checks, skipped


def _decide(plan: Plan, ops: OpSet, mode: Mode, trial: Trial) -> ExactCheck:
    """In GF(p); where that differs and an order matters, in fractions, if there are few."""
    check = check_use(plan, ops, mode, trial=trial)
    if check.equal:
        return check
    region = trial.region
    ordered = [n.name for n in (*region.before, *region.after) if Law.ORDERED in ops[n.op].laws]
    if ordered and check.numbers <= SMALL:
        check = check_use(plan, ops, mode, seed=trial.seed, arithmetic=Rational())
        if check.equal:
            return check
    wrong = check.mismatch
    assert wrong is not None
    hint = f"`archir prove {plan.rule.name}` looks for a small counterexample"
    if ordered and check.field != "rational":
        hint = (
            f"{ordered[0]} depends on an order, which a field does not have, and there are "
            f"too many numbers here for fractions; {hint}"
        )
    elif equal_in_doubles(plan, ops, mode, trial.seed):
        hint = (
            "in double precision both sides are equal here, but exact arithmetic knows `exp`, "
            "`sigmoid` and their kin only as stand-ins: a rule that rests on their values has no "
            "exact check"
        )
    raise error(
        "A401",
        f"`{plan.rule.name}` at {plan.site} changes the function in {mode} mode: "
        f"{wrong.value} differs in {wrong.count} of {wrong.total} entries "
        f"(first at {list(wrong.index)}, in {check.field})",
        node=wrong.value,
        hint=hint,
    )
