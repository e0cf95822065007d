"""The state that a rewrite maps is the state that training the grown network would have made.

For every rule of the library that keeps the function in training. How the oracle works is said in
:mod:`.replay`; it accumulates with torch's own optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from archir.ops import STANDARD
from archir.rewrite.sites import Planner
from archir.train.moments import FIRST

from ..rewrite import test_builtin as builtin  # noqa: TID252 - a sibling folder
from ..rewrite import test_structures as structures  # noqa: TID252
from ..rewrite.nets import HEAD, IMAGE, LIBRARY, equal, net, plan, rule  # noqa: TID252
from .replay import BOUND, OPTIMIZERS, Replayed, initial, replay
from .uses import CHAIN, RESIDUAL, TRAINED, use

PRODUCTS: Mapping[str, str] = {
    "merge.linear": "the derivative is the other matrix, which moved while gradients accumulated",
    "merge.pointwise_conv": "the derivative is the other kernel, which moved meanwhile",
    "merge.conv_pointwise": "it has more weights than both layers had gradients: of all gradients "
    "that fit theirs the shortest is taken",
}
"""Rules with products of the parent's tensors: no map is exact, with the reason.

SGD's momentum moves by the derivative at the present weights. Adam's state starts at zero, which is
reported: second moments are no function of the parent's.
"""
PARTS: Mapping[str, str] = {
    "deepen.dense_layer": "a layer becomes two, each with the gradient of its own channels: what a "
    "parent's layer has is the sum of both, from which no map tells them apart",
}
"""Rules that divide a layer whose gradients were summed: no map is exact, with the reason."""
EXACT = [name for name in TRAINED if name not in PRODUCTS and name not in PARTS]
NAMED = {"merge.parallel_conv", "merge.parallel_conv.biased"}
"""Where a state by name is right: layers that are added up have one gradient, before and after."""
DECAYING = ("sgd_decay", "nesterov_decay", "dampened", "adam_decay")


def replayed(name: str, optimizer: str, **how: Any) -> Replayed:
    made, held = use(name)
    return replay(made, held, optimizer, **how)


def slot_of(optimizer: str) -> str:
    return FIRST[OPTIMIZERS[optimizer][0].__name__]


def worst(found: Replayed, state: Mapping[str, Any], slot: str) -> float:
    return max(found.errors(state, slot).values(), default=0.0)


def test_every_rule_has_a_use() -> None:
    assert len(TRAINED) == len(set(TRAINED)) > 80
    assert PRODUCTS.keys() | PARTS.keys() <= set(TRAINED)
    for name in TRAINED:
        assert use(name)[0].rule is LIBRARY[name]


@pytest.mark.parametrize("name", EXACT)
def test_the_mapped_state_is_the_replayed_one(name: str) -> None:
    """First and second moments, to 1e-5; what is new starts at zero."""
    for optimizer in ("sgd", "nesterov", "adamw", "adam"):
        found = replayed(name, optimizer)
        for slot in next(iter(found.parent.values())):
            if slot == "step":
                counts = {float(held["step"]) for held in found.mapped.values()}
                assert counts == {5.0}
                continue
            assert worst(found, found.mapped, slot) < BOUND, (optimizer, slot)
            assert found.new_entries(slot) == 0
        assert {f.reason for f in found.fates.values() if f.what == "zero"} <= {"new"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_reset_and_stale_states_fail(optimizer: str) -> None:
    """No state at all; that of the same names where shapes agree; that of what is untouched."""
    slot, told_apart = slot_of(optimizer), []
    for name in EXACT:
        found = replayed(name, optimizer)
        assert worst(found, {}, slot) > 0.5, name
        by_name = {p: found.parent[p] for p in found.reached if p in found.parent}
        untouched = {p: s for p, s in by_name.items() if found.fates[p].what == "kept"}
        moves = any(fate.what == "mapped" for fate in found.fates.values())
        assert (worst(found, untouched, slot) > 0.5) == moves, name
        assert (worst(found, by_name, slot) > 1e-3) == (moves and name not in NAMED), name
        told_apart += [name] if moves else []
    assert len(told_apart) == 36


@pytest.mark.parametrize("optimizer", DECAYING)
def test_decay_that_is_part_of_the_gradient_moves_as_weights_do(optimizer: str) -> None:
    """Off by nothing but what the weights moved while they decayed, which is small beside it."""
    slot, worst_error = slot_of(optimizer), 0.0
    for name in EXACT:
        made, held = use(name)
        if not made.terms:
            continue
        found = replay(made, held, optimizer)
        named = {p for p in found.mapped if p in found.drift}
        corrected = {p: {slot: found.mapped[p][slot] + found.drift[p]} for p in named}
        for path in named:
            due = found.due[path][slot]
            mask = found.reached[path]
            apart = np.abs(corrected[path][slot] - due)[mask].max(initial=0)
            assert apart < 1e-9 * max(np.abs(a[slot]).max() for a in found.due.values()), path
            error = np.abs(found.mapped[path][slot] - due)[mask].max(initial=0)
            worst_error = max(worst_error, float(error / max(np.abs(due[mask]).max(), 1e-3)))
    assert 0 < worst_error < (2e-3 if optimizer == "dampened" else 2e-4)


def test_without_the_correction_decay_is_mapped_wrongly() -> None:
    """If all of the momentum moved as gradients do, a copied row would have half of its decay."""
    made = plan(net(CHAIN), "widen", "b.m", width=12)
    held = {p: a * 20 if p == "b.m.weight" else a for p, a in initial(made.before).items()}
    found = replay(made, held, "sgd_decay", lr=1e-3)
    slot = "momentum_buffer"
    assert worst(found, found.mapped, slot) < 1e-4
    halves = {p: {slot: s[slot]} for p, s in found.mapped.items()}
    g = made.terms["b.m.bias"].args[1].entries  # type: ignore[union-attr]
    halves["b.m.weight"] = {slot: found.parent["b.m.weight"][slot][g] / 2}
    assert worst(found, halves, slot) > 10 * worst(found, found.mapped, slot)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_the_exceptions(name: str) -> None:
    found = replayed(name, "sgd")
    assert BOUND < worst(found, found.mapped, "momentum_buffer") < 1
    reset = replayed(name, "adamw")
    zero = {p: f.reason for p, f in reset.fates.items() if f.what == "zero"}
    assert set(zero.values()) == {"second moments have no map where gradients are mixed"}
    assert not set(zero) & set(reset.mapped)


@pytest.mark.parametrize("name", PARTS)
def test_what_a_divided_layer_has_is_not_told_apart(name: str) -> None:
    """What the layer's own rows are is: its last convolution is divided as its gradients are."""
    found = replayed(name, "sgd")
    errors = found.errors(found.mapped, "momentum_buffer")
    assert max(errors.values()) > BOUND
    for path in ("f.c2.weight", "conv.weight"):
        (whole,) = [p for p in errors if p.endswith(path)]
        assert errors[whole] < BOUND


@pytest.mark.parametrize(("name", "body"), [
    ("merge.linear", "input x: f32[N, 6]\nend = x |> a: linear(7) |> b: linear(3)\noutput y = end"),
    ("merge.pointwise_conv", IMAGE + "end = x |> c: conv(9, bias = false) |> b: conv(4, 3)" + HEAD),
    ("merge.conv_pointwise", IMAGE + "end = x |> c: conv(9, 3) |> b: conv(7)" + HEAD),
])  # fmt: skip
@pytest.mark.parametrize("optimizer", ["sgd", "dampened"])
def test_products_are_exact_while_weights_stand_still(name: str, body: str, optimizer: str) -> None:
    """And where the layer between is as wide as the outer ones, so that gradients are enough.

    What decays is the product (the second optimizer's weights do), not what its derivative makes
    of the factors, which is twice as much.
    """
    made = plan(net(body), name, "b")
    found = replay(made, initial(made.before), optimizer, lr=0.0)
    assert worst(found, found.mapped, "momentum_buffer") < BOUND


def test_shares_of_several_readers() -> None:
    """`widen.shares` gives each reader its own shares: no map of the parent's gradients is exact.

    What the copies have together is right all the same, and what reads them.
    """
    made = plan(net(RESIDUAL), "widen.shares", "a", width=7)
    assert not made.through
    found = replay(made, initial(made.before), "sgd")
    errors = found.errors(found.mapped, "momentum_buffer")
    wrong = {path for path, error in errors.items() if error > BOUND}
    assert {"a.weight", "b.batch_norm.weight"} <= wrong
    assert errors["fc.weight"] < BOUND
    g = made.terms["a.bias"].args[1].entries  # type: ignore[union-attr]
    for path in wrong - {"b.d.weight", "b.d.bias"}:
        for state in (found.mapped, found.due):
            total = np.zeros(found.parent[path]["momentum_buffer"].shape)
            np.add.at(total, g, state[path]["momentum_buffer"])
            assert np.allclose(total, found.parent[path]["momentum_buffer"], rtol=1e-8, atol=1e-12)


EVAL = [
    r.name for r in LIBRARY.values() if r.contract.function and "train" not in r.contract.function
]
FOLDS = {name for name in EVAL if name.startswith("fold.")}


@pytest.mark.parametrize("name", EVAL)
def test_rules_that_keep_the_function_in_evaluation_alone(name: str) -> None:
    """Their gradients agree in eval mode. A fold is a product with the statistics: it is reset."""
    made, held = use(name)
    found = replay(made, held, "sgd", mode="eval")
    assert worst(found, found.mapped, "momentum_buffer") < BOUND
    reasons = {f.reason for f in found.fates.values() if f.what == "zero"} - {"new"}
    assert all("in training the function changes" in text for text in reasons)
    assert bool(reasons) == (name in FOLDS)


BRANCHES: Mapping[str, str] = {
    "shared out in front": """
        c.weight    = scale(c.weight, 9, 25)     c.bias    = scale(c.bias, 9, 25)
        copy.weight = scale(c.weight, 16, 25)    copy.bias = scale(c.bias, 16, 25)
        d.weight    = d.weight                   d.bias    = scale(d.bias, 9, 25)
        more.weight = d.weight                   more.bias = scale(d.bias, 16, 25)""",
    "shared out behind": """
        c.weight    = c.weight                   c.bias    = c.bias
        copy.weight = c.weight                   copy.bias = c.bias
        d.weight    = scale(d.weight, 9, 25)     d.bias    = scale(d.bias, 9, 25)
        more.weight = scale(d.weight, 16, 25)    more.bias = scale(d.bias, 16, 25)""",
    "shared out evenly": """
        c.weight    = c.weight                   c.bias    = c.bias
        copy.weight = c.weight                   copy.bias = c.bias
        d.weight    = scale(d.weight, 1, 2)      d.bias    = scale(d.bias, 1, 2)
        more.weight = scale(d.weight, 1, 2)      more.bias = scale(d.bias, 1, 2)""",
}


@pytest.mark.parametrize("where", BRANCHES)
def test_branches_of_several_layers(where: str) -> None:
    """A rule of one's own: a copied layer has the share that a layer before or behind it states."""
    mine = rule(
        """rule mine() {
        match   { y = x |> c: conv(n, bias = true) |> relu |> d: conv(m, bias = true) }
        replace { y = (x |> c: conv |> relu |> d: conv)
                    + (x |> copy: conv(n, c.kernel) |> relu |> more: conv(m, d.kernel)) }
        weights { """
        + BRANCHES[where]
        + "}\n}"
    )
    graph = net(IMAGE + "end = x |> a: conv(4, 3) |> r: relu |> b: conv(5, 3)" + HEAD)
    made = plan(graph, mine, "b")
    assert equal(made) == {"eval", "train"}
    for optimizer in ("sgd", "adamw"):
        found = replay(made, initial(graph), optimizer)
        assert worst(found, found.mapped, slot_of(optimizer)) < BOUND


GRAPHS = {name: net(body) for name, (body, _, _) in builtin.WIDENED.items()}
GRAPHS |= {name: structures.graph(name) for name in structures.STRUCTURES}


@pytest.mark.parametrize("name", GRAPHS)
def test_rules_over_a_class_in_every_structure(name: str) -> None:
    """Residual streams, groups, heads, flattenings, tied weights: each class, each rule over it."""
    graph = GRAPHS[name]
    held = initial(graph)
    planner = Planner(graph, STANDARD, held)
    for found in (s for r in structures.CLASS_RULES for s in planner.sites(LIBRARY[r])):
        arguments = planner.example_arguments(LIBRARY[found.rule], found.at)
        made = planner.plan(LIBRARY[found.rule], found.at, arguments, 1)
        if found.rule == "widen.shares" and not made.through:
            continue
        done = replay(made, held, "sgd", steps=2)
        assert worst(done, done.mapped, "momentum_buffer") < BOUND, found
        assert done.new_entries("momentum_buffer") == 0
