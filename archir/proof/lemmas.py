"""Rules over a class: one lemma for each way in which a class can meet an operator.

A lemma speaks of one name of one signature: if the operands are related along that name, and the
parameters are what the rule makes of them, then the results are related. Which names there are
follows from the records (:mod:`archir.proof.changes`); several that change at once do so one after
another, which is a lemma of its own. ``docs/proof.md`` has the relation and the induction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np

from archir.lang import tree as t
from archir.ops.arithmetic import Arithmetic
from archir.ops.record import Law, Mode, OpSet
from archir.proof.audit import draw, draw_map, values_of
from archir.proof.changes import MAP, Act, Change, Claim, changes, gathered
from archir.proof.symbols import Along, Symbols, UnspokenError
from archir.proof.terms import Constant, Fact, Formula, Goal, Variable, apply, variables
from archir.rewrite.class_rules import MAPS
from archir.rewrite.rule import Reshaping, Rule

ACTIONS: Mapping[Claim, str] = {
    "produced": "produce",
    "consumed": "consume",
    "mapped": "carry",
    "averaged": "carry",
}
"""What a rule does with the parameters that hold a name, by what is said of the name."""
NEEDS: Mapping[Claim, str] = {"averaged": "even", "rescaled": "even", "contracted": "bijective"}
"""What a name asks of every map: the planner refuses others."""
CONDITIONS: Mapping[str, tuple[str, ...]] = {
    "replicate": ("onto",),
    "shuffle": ("onto", "one_to_one", "bijective", "even"),
    "select": ("one_to_one",),
    "embed": ("one_to_one",),
}
"""What holds of a map, by the function that makes it."""


@dataclass(frozen=True)
class Lemma:
    """A goal, and the uses of an operator that it speaks of."""

    goal: Goal
    conditions: frozenset[str]
    """What is known of the map."""
    changes: tuple[Change, ...] = ()
    short: frozenset[str] = frozenset()
    """The parameters that have the length of the map."""

    @property
    def op(self) -> str:
        """The operator's name; "" for a lemma about the rule alone."""
        return self.changes[0].op.name if self.changes else ""


def lemmas(rule: Rule, ops: OpSet, mode: Mode) -> list[Lemma]:
    """Every lemma that a rule over a class needs in a mode.

    Raises:
        UnspokenError: what the rule does cannot be said in the prover's terms.
    """
    maker = _Maker(rule)
    found: dict[tuple[object, ...], Lemma] = {}
    names: set[str] = set()
    for op in ops.values():
        if mode == "train" and Law.RANDOM_IN_TRAINING in op.laws:
            continue  # the contract in training: no active dropout in the region
        for change in changes(op):
            for lemma in maker.lemmas(change, mode):
                goal = lemma.goal
                key = (goal.left, goal.right, goal.facts)
                if key in found:
                    same = found[key]
                    found[key] = replace(same, changes=(*same.changes, change))
                    continue
                name, count = goal.name, 1
                while name in names:
                    count += 1
                    name = f"{goal.name} [{count}]"
                names.add(name)
                found[key] = replace(lemma, goal=replace(goal, name=name))
    return [*maker.apart(), *found.values()]


class _Maker:
    """Makes the lemmas of one rule."""

    def __init__(self, rule: Rule) -> None:
        assert isinstance(rule.body, Reshaping)
        self.rule, self.body = rule, rule.body
        makers = [
            (name, e.callee.text)
            for name, e in self.body.lets
            if isinstance(e, t.Call) and e.callee.text in CONDITIONS
        ]
        if len(makers) != 1:
            raise UnspokenError("the rule does not make one map that the prover knows")
        ((self.map, self.maker),) = makers
        self.conditions = CONDITIONS[self.maker]

    @cached_property
    def embeds(self) -> bool:
        """Whether the old entries are some of the new ones, rather than the other way round."""
        return self.maker == "embed"

    def act(self, action: str) -> Act:
        """What the rule does to a parameter along an axis."""
        expression = getattr(self.body, action)

        def done(term: Formula, held: Formula, axis: int) -> Formula:
            symbols = Symbols(weights=variables(term), maps={self.map})
            symbols.names[f"size({self.body.variable})"] = apply(
                "length" if self.embeds else "source", MAP
            )
            symbols.names.update({p.name: Variable(p.name) for p in self.rule.parameters})
            for name, value in self.body.lets:
                if name != self.map:
                    symbols.names[name] = symbols.term(value)
            symbols.along = Along(term, axis, held)
            return symbols.term(expression)

        return done

    def lemmas(self, change: Change, mode: Mode) -> Iterator[Lemma]:
        """The lemmas for a name of a use; none where the planner refuses the rule there."""
        need = NEEDS.get(change.claim)
        if need is not None and need not in MAPS.get(self.maker, ()):
            return
        known = frozenset({*self.conditions, *([need] if need else [])})
        action = ACTIONS.get(change.claim)
        held = frozenset(r for r in change.roles if change.holds(r)) if action else frozenset()
        assumed = self.rule.contract.unread and action == "consume"
        plain: dict[str, Formula] = {role: Variable(role) for role in change.roles}
        old = change.acted(plain, _placed if assumed else None)
        new = change.acted(old, self.act(action) if action else None)
        long, short = (new, old) if self.embeds else (old, new)
        before = change.outcome(None, long, short=False)
        after = change.outcome(gathered, short, short=True)
        signed = apply("operands", *change.operands)
        facts = (
            *(Fact(c, (MAP,)) for c in sorted(known) if held or change.claim != "mapped"),
            Fact("signed", (Constant(change.signature), signed)),
        )
        seeds: tuple[Formula, ...] = ()
        if self.embeds:
            seeds = tuple(v for r, v in change.acted(long, gathered).items() if r in held)
        for name, (term, axes) in before.items():
            if name.startswith("new") and mode != "train":
                continue
            goal = Goal(
                f"{change.label} {name}".strip(),
                after[name][0],
                change.along(term, axes, gathered),
                facts,
                seeds,
            )
            yield Lemma(goal, known, (change,), held if self.embeds or assumed else frozenset())

    def apart(self) -> Iterator[Lemma]:
        """What the rule does along one axis does not depend on what it does along another."""
        w, g, h = Variable("w"), MAP, Variable("h")
        acts = {action: self.act(action) for action in ("produce", "carry", "consume")}
        facts = tuple(Fact(c, (m,)) for c in self.conditions for m in (g, h))
        for one, two in combinations_with_replacement(acts, 2):
            left = acts[two](acts[one](w, g, 0), h, 1)
            right = acts[one](acts[two](w, h, 1), g, 0)
            yield Lemma(
                Goal(f"{one} apart from {two}", left, right, facts), frozenset(self.conditions)
            )


def _placed(term: Formula, held: Formula, axis: int) -> Formula:
    return apply("place", term, held, axis)


def audit_values(lemma: Lemma, k: Arithmetic, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Values for a lemma's variables, of the sizes of each of its operator's samples."""
    for change in lemma.changes:
        yield values_of(change, k, rng, lemma.conditions, lemma.short)
    if not lemma.changes:
        g, h = (draw_map(rng, lemma.conditions) for _ in range(2))
        ends = [(m.source, len(m.entries)) for m in (g, h)]  # what is gathered, what is placed
        for shape in product(*ends):
            yield {"g": g, "h": h, "w": draw(k, rng, (*shape, 2))}
