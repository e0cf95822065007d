"""Layers that a proof need not look into."""

from __future__ import annotations

import pytest

from archir.ops import STANDARD
from archir.proof.opaque import hidden
from archir.proof.terms import Application, Goal, Variable, apply, parts, replaced, variables
from archir.proof.translate import goals


def heads(goal: Goal) -> set[str]:
    sides = (goal.left, goal.right)
    return {p.head for side in sides for p in parts(side) if isinstance(p, Application)}


@pytest.mark.parametrize(
    ("name", "gone", "kept"),
    [
        ("transformer.insert_attention", {"layer_norm"}, {"attention", "linear"}),
        ("transformer.insert_mlp", {"layer_norm"}, {"gelu", "linear"}),
        ("deepen.dense", set(), {"batch_norm", "conv", "concat"}),
        ("branch.zero", set(), {"batch_norm", "conv"}),
    ],
)
def test_layers_with_weights_of_any_kind_become_variables(library, name, gone, kept) -> None:
    for goal in goals(library[name], STANDARD, "eval"):
        plain, values = hidden(goal)
        free = variables(plain.left) | variables(plain.right)
        assert {n for n in free if n.startswith("initial")} <= {
            "initial branch_bn.running_mean",
            "initial branch_bn.running_var",
        }
        assert heads(plain).isdisjoint(gone)
        assert gone <= heads(goal)
        assert (replaced(plain.left, values), replaced(plain.right, values)) == (
            goal.left,
            goal.right,
        )
        if goal.left != goal.right:
            assert kept <= heads(plain)


def test_a_weight_that_stands_twice_is_looked_at() -> None:
    """Two layers with one such weight cancel; as two variables they would not."""
    weight, x = Variable("initial new.weight"), Variable("tensor x")
    one, two = apply("linear", x, weight, None), apply("conv", x, weight, None)
    goal = Goal("y", apply("subtract", one, two), x)
    assert hidden(goal) == (goal, {})
    alone, values = hidden(Goal("y", apply("subtract", one, one), x))
    assert list(values.values()) == [one]
    assert alone.left == apply("subtract", *(Variable(n) for n in list(values) * 2))


def test_a_layer_with_a_weight_that_is_a_number_is_looked_at() -> None:
    mean = Variable("initial bn.running_mean")
    bn = apply("batch_norm", Variable("tensor x"), apply("fill", 0, Variable("s")), mean)
    goal = Goal("y", bn, Variable("tensor x"))
    assert hidden(goal) == (goal, {})
