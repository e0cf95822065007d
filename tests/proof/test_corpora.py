"""Wrong rules of the kinds found in other projects are refuted, right ones are not.

None of them is in the library. `wrong/` holds what published code does to networks and what a
few small networks of one kind would not show; `right/` holds what is true of networks.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from archir.diag import Source
from archir.ops import STANDARD
from archir.proof.prove import prove, tried
from archir.proof.saturation import Budget, Prover
from archir.rewrite.rule import Rule
from archir.rewrite.rulefile import parse_rules

HERE = Path(__file__).parent
LINES = 40
"""How long the text of a counterexample may be."""
PROVED = (
    *("relu_once", "no_dropout", "linears_merged", "linears_merged_biased", "swapped"),
    *("neg_sub", "sub_as_add", "neg_conv", "abs_abs", "parallel_linear_concat"),
    *("transposed_zero", "layer_norm_zero"),
)


def corpus(folder: str) -> list[Rule]:
    """The rules of a folder."""
    files = sorted((HERE / folder).glob("*.rule"))
    found = [parse_rules(Source(f.name, f.read_text(encoding="utf-8")), STANDARD) for f in files]
    return [rule for rules in found for rule in rules]


WRONG, RIGHT = corpus("wrong"), corpus("right")


@pytest.fixture(scope="module")
def prover():
    with Prover() as prover:
        yield prover


def test_there_are_enough_of_both() -> None:
    assert len(WRONG) >= 90
    assert len(RIGHT) >= 70


@pytest.mark.parametrize("rule", WRONG, ids=lambda r: r.name)
def test_wrong_rules_are_refuted(rule: Rule, axioms, prover) -> None:
    verdict = prove(rule, STANDARD, axioms, prover=prover)
    assert verdict.kind == "refuted"
    found = [m for m in verdict.modes if m.kind == "refuted"]
    against = found[0].counterexample
    if against is None:
        assert rule.name == "wrong.shape_lie"
        assert "never fits" in found[0].reason
        return
    assert against.before != against.after
    assert len(against.text().splitlines()) <= LINES


@pytest.mark.parametrize("rule", RIGHT, ids=lambda r: r.name)
def test_right_rules_stand(rule: Rule, axioms, prover) -> None:
    budget = Budget(seconds=20.0)
    verdict = prove(rule, STANDARD, axioms, budget=budget, tests=16, minimal=False, prover=prover)
    if rule.name.removeprefix("right.") in PROVED:
        assert verdict.kind == "proved"
    else:
        assert verdict.kind in ("proved", "tested")
    assert all(m.instances >= 8 for m in verdict.modes)


@pytest.mark.parametrize("name", ["exps", "softmax_shift", "logsoftmax", "tanh_odd"])
def test_what_stand_ins_cannot_say_is_compared_in_double_precision(name, axioms) -> None:
    (rule,) = (r for r in RIGHT if r.name == f"right.{name}")
    verdict = tried(rule, STANDARD, count=6)
    assert verdict.kind == "tested"
    assert all("double precision" in m.reason for m in verdict.modes)
