"""Lemmas of rules over a class: what they say, and what the induction needs beside them."""

from __future__ import annotations

from itertools import combinations

import pytest

from archir.ops import STANDARD
from archir.proof.attempts import saturated
from archir.proof.changes import changes
from archir.proof.lemmas import lemmas, operator_lemmas
from archir.proof.saturation import Budget, Prover
from archir.rewrite.maps import MAKERS
from archir.rewrite.rule import Reshaping

TAKEN = "take(w, g, a) == take(w, g, a)"
OWN = {
    "widen": (TAKEN, "fibre_sum(divide_along(take(w, g, a), count(g), a), g, a) == w"),
    "widen.shares": (TAKEN, "fibre_sum(share_out(w, g, a, 0), g, a) == w"),
    "widen.zero_outgoing": (
        "take(graft(w, g, a, 0), g, a) == w",
        "place(w, g, a) == fibre_sum(w, g, a)",
    ),
    "widen.pairs": (
        "take(graft(w, g, a, 0), g, a) == w",
        "place(w, g, a) == fibre_sum(w, g, a)",
        TAKEN,
        "fibre_sum(oppose(divide_along(take(w, g, a), count(g), a), g, a, 0), g, a) == w",
    ),
    "permute": (TAKEN, "fibre_sum(take(w, g, a), g, a) == w"),
    "pad": ("take(place(w, g, a), g, a) == w", "place(w, g, a) == fibre_sum(w, g, a)"),
    "prune": (
        TAKEN,
        "fibre_sum(take(place(w, g, a), g, a), g, a) == place(w, g, a)",
        "take(place(w, h, 1), g, 0) == place(take(w, g, 0), h, 1)",
    ),
    "merge.duplicates": (
        "take(first(take(w, g, a), g, a), g, a) == take(w, g, a)",
        "fibre_sum(w, g, a) == fibre_sum(w, g, a)",
        "first(take(w, h, 1), g, 0) == take(first(w, g, 0), h, 1)",
        "fibre_sum(take(w, h, 1), g, 0) == take(fibre_sum(w, g, 0), h, 1)",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_what_is_asked_of_a_rule(name, library) -> None:
    for mode in library[name].contract.function:
        own = [x.goal for x in lemmas(library[name], STANDARD, mode) if not x.changes]
        assert tuple(f"{goal.left} == {goal.right}" for goal in own) == OWN[name]
        maker = MAKERS[library[name].body.steps[0].lets[-1][1].callee.text]
        assert {fact.relation for fact in own[0].facts} == set(maker.holds)


def test_operators_are_asked_once_for_all_rules(library) -> None:
    """Rules whose maps meet fewer needs are asked for fewer of the same lemmas."""
    for mode in ("eval", "train"):
        every = {(x.goal.left, x.goal.right) for x in operator_lemmas(STANDARD, mode)}
        for rule in library.values():
            if isinstance(rule.body, Reshaping):
                asked = [x.goal for x in lemmas(rule, STANDARD, mode) if x.changes]
                assert {(goal.left, goal.right) for goal in asked} <= every
                assert len(asked) > 0.9 * len(every)


def test_no_two_weights_of_an_operator_ask_for_different_orders() -> None:
    """The names of a use change one after another, in the order of the acts on each weight.

    That is one order as long as a weight that has a name it makes and one that it sums over, on
    different axes, stands alone; and as no weight has two names on each of two axes.
    """
    for op in STANDARD.values():
        for change in changes(op):
            said = {c.name: c.claim for c in changes(op) if c.sample is change.sample}
            mixed = []
            for role, shape in change.axes.params.items():
                held = [{n for n in axis.names() if n in said} for axis in shape]
                assert all(len(a & b) < 2 for a, b in combinations(held, 2)), (op.name, role)
                kinds = [{said[n] == "consumed" for n in names} for names in held if names]
                if any(a != b for a, b in combinations(kinds, 2)):
                    mixed.append(role)
            assert len(mixed) < 2, op.name


WRONG = {
    "widen.shares": ("consume share_out(g)", "consume share_out(g) / count(g)"),
    "widen.zero_outgoing": ("consume place(g)", "consume graft(g)"),
    "widen.pairs": ("oppose(take(h) / count(h), h)", "oppose(take(h), h)"),
    "merge.duplicates": ("consume fibre_sum(g)", "consume first(g)"),
    "drop.unread": ("assumes unread(g)", ""),
    "prune.keep": ("carry take(g)", "carry take(g) * 2"),
}
"""Of `widen.pairs` it is an equivalent mutant: its columns are zeros. No lemma knows that."""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_act_fails_its_own_lemma(name, library, axioms, few, read) -> None:
    old, new = WRONG[name]
    text = library[name].text
    assert text.count(old) == 1
    wrong = read(text.replace(old, new))
    prover = Prover()
    try:
        _, reason = saturated(wrong, few, axioms, "eval", Budget(), minimal=False, prover=prover)
    finally:
        prover.close()
    act = new.split()[0] if new.startswith(("carry", "consume")) else "consume"
    assert reason.startswith("no proof of")
    assert act in reason


def test_draws_of_one_act_are_apart(library, read) -> None:
    """What is drawn twice is not the same: `graft(g) - graft(g)` is not nothing."""
    text = library["widen.zero_outgoing"].text
    twice = read(text.replace("produce graft(g)", "produce graft(g) - graft(g)"))
    made = lemmas(twice, STANDARD, "eval")[0].goal.left
    assert str(made) == "take(subtract(graft(w, g, a, 0), graft(w, g, a, 1)), g, a)"
