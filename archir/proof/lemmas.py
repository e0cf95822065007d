"""Rules over a class: what its acts must do to a weight, and what operators make of it.

Two sorts of lemmas. One speaks of a rule and of no operator: what a step of it does to a weight
along an axis puts the old weight and the new one into the relation that a map asks for. The other
speaks of one name of one operator's signature and of no rule: if operands and parameters are in
that relation, so are the results. Which names there are follows from the records
(:mod:`archir.proof.changes`). ``docs/proof.md`` has the relation and the induction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from archir.lang.tree import Call
from archir.ops.arithmetic import Arithmetic
from archir.ops.record import Law, Mode, OpSet
from archir.proof.audit import draw, draw_map, values_of
from archir.proof.changes import MAP, Change, Claim, changes, gathered
from archir.proof.symbols import Along, Symbols, UnspokenError
from archir.proof.terms import Constant, Fact, Formula, Goal, Variable, apply
from archir.rewrite.maps import MAKERS
from archir.rewrite.rule import Reshaping, Rule, Step

MADE: frozenset[Claim] = frozenset({"produced", "mapped", "averaged"})
"""Names along which a parameter's entries go with the map; along a consumed one they add up."""
NEEDS: Mapping[Claim, str] = {"averaged": "even", "rescaled": "even", "contracted": "bijective"}
"""What a name asks of every map: the planner refuses others."""
AXIS = Variable("a")


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
    own, able = rule_lemmas(rule)
    return [*own, *(m for m in operator_lemmas(ops, mode) if m.conditions <= able)]


def rule_lemmas(rule: Rule) -> tuple[list[Lemma], frozenset[str]]:
    """The lemmas about a rule alone, and what its maps can be where an operator asks for it.

    Raises:
        UnspokenError: what the rule does cannot be said in the prover's terms.
    """
    body = rule.body
    assert isinstance(body, Reshaping)
    steps = [_Step(rule, body, number) for number in range(len(body.steps))]
    able = frozenset.intersection(*(frozenset(MAKERS[step.maker].able) for step in steps))
    return [lemma for step in steps for lemma in step.lemmas()], able


def operator_lemmas(ops: OpSet, mode: Mode) -> list[Lemma]:
    """What each operator makes of related operands and parameters: the same for all rules.

    A rule needs those whose conditions its maps can meet: the planner refuses it elsewhere.
    """
    found: dict[tuple[object, ...], Lemma] = {}
    names: set[str] = set()
    for op in ops.values():
        if mode == "train" and Law.RANDOM_IN_TRAINING in op.laws:
            continue  # the contract in training: no active dropout in the region
        for change in changes(op):
            for lemma in _related(change, mode):
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
    return list(found.values())


def _related(change: Change, mode: Mode) -> Iterator[Lemma]:
    """If operands and parameters are related along a name, so are results (and new buffers)."""
    need = NEEDS.get(change.claim)
    known = frozenset([need] if need else [])
    plain: dict[str, Formula] = {role: Variable(role) for role in change.roles}
    held = frozenset(r for r in change.roles if change.holds(r))
    made = change.claim in MADE
    long = plain if made else change.acted(plain, _added)
    short = change.acted(plain, gathered) if made else plain
    before = change.outcome(None, long, short=False)
    after = change.outcome(gathered, short, short=True)
    signed = apply("operands", *change.operands)
    facts = (
        *(Fact(c, (MAP,)) for c in sorted(known)),
        Fact("signed", (Constant(change.signature), signed)),
    )
    for name, (term, axes) in before.items():
        if name.startswith("new") and mode != "train":
            continue
        goal = Goal(
            f"{change.label} {name}".strip(),
            after[name][0],
            change.along(term, axes, gathered),
            facts,
        )
        yield Lemma(goal, known, (change,), frozenset() if made else held)


def _added(term: Formula, held: Formula, axis: int) -> Formula:
    return apply("fibre_sum", term, held, axis)


class _Step:
    """Makes the lemmas of one step of a rule."""

    def __init__(self, rule: Rule, body: Reshaping, number: int) -> None:
        self.rule, self.body, self.number = rule, body, number
        self.step: Step = body.steps[number]
        makers = [
            (name, e.callee.text)
            for name, e in self.step.lets
            if isinstance(e, Call) and e.callee.text in MAKERS
        ]
        if len(makers) != 1:
            raise UnspokenError("a step of the rule does not make one map that the prover knows")
        ((self.map, self.maker),) = makers
        self.holds = MAKERS[self.maker].holds
        self.grows = MAKERS[self.maker].grows
        first = number == 0
        self.unread = first and rule.contract.unread == self.map
        self.repeated = first and rule.contract.repeated == self.map

    def act(self, action: str, term: Formula, g: Formula, axis: Formula) -> Formula:
        """What the step does to a weight along an axis."""
        symbols = Symbols(weights={"w"}, maps={self.map})
        size = apply("length" if self.grows else "source", g)
        symbols.names[f"size({self.body.variable})"] = size
        symbols.names.update({p.name: Variable(p.name) for p in self.rule.parameters})
        for name, value in self.step.lets:
            if name != self.map:
                symbols.names[name] = symbols.term(value)
        symbols.along = Along(term, axis, g)
        return symbols.term(getattr(self.step, action))

    def lemmas(self) -> Iterator[Lemma]:
        """For each act: it relates the old weight to the new one; and what it leaves in place."""
        w = Variable("w")
        known = frozenset(self.holds)
        facts = tuple(Fact(c, (MAP,)) for c in sorted(known))
        done: dict[tuple[Formula, Formula], None] = {}
        label = f"step {self.number + 1}: " if len(self.body.steps) > 1 else ""
        for action in ("produce", "carry", "consume"):
            made = action != "consume"
            old: Formula = w
            if self.unread and not made:
                old = apply("place", w, MAP, AXIS)
            if self.repeated and made:
                old = apply("take", w, MAP, AXIS)
            new = self.act(action, old, MAP, AXIS)
            head = "take" if made else "fibre_sum"
            related = apply(head, new if made == self.grows else old, MAP, AXIS)
            left, right = (related, old) if made == self.grows else (new, related)
            if (left, right) not in done:
                done[left, right] = None
                yield Lemma(Goal(f"{label}{action}", left, right, facts), known)
        yield from self._kept(label, facts, known)

    def _kept(self, label: str, facts: tuple[Fact, ...], known: frozenset[str]) -> Iterator[Lemma]:
        """What is assumed along one axis still holds after an act along another."""
        head = "place" if self.unread else "take" if self.repeated else ""
        w, h = Variable("w"), Variable("h")
        there = tuple(Fact(f.relation, (h,)) for f in facts)
        done: dict[Formula, None] = {}
        for action in ("produce", "carry", "consume") if head else ():
            zero, one = Constant(0), Constant(1)
            left = self.act(action, apply(head, w, h, one), MAP, zero)
            right = apply(head, self.act(action, w, MAP, zero), h, one)
            if left not in done:
                done[left] = None
                name = f"{label}{action} keeps what is assumed"
                yield Lemma(Goal(name, left, right, (*facts, *there)), known)


def audit_values(lemma: Lemma, k: Arithmetic, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Values for a lemma's variables, of the sizes of each of its operator's samples."""
    for change in lemma.changes:
        yield values_of(change, k, rng, lemma.conditions, lemma.short)
    if not lemma.changes:
        g, h = (draw_map(rng, lemma.conditions) for _ in range(2))
        ends = [(m.source, len(m.entries)) for m in (g, h)]  # what is gathered, what is placed
        for shape in product(*ends):
            yield {"g": g, "h": h, "a": 0, "w": draw(k, rng, (*shape, 2))}
