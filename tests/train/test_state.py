"""Networks in training as values: taken from torch, rewritten, saved, and trained further."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from archir.api import Application
from archir.rewrite.gradients import maps_of
from archir.train.device import module_of
from archir.train.state import State

from .living import ADAMW, CPU, SGD, Make, grouped, images, live, program, refused, step, weights_of


@pytest.fixture(scope="module")
def digits() -> Any:
    return images()


RULES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "widen": ("a.conv1", {"width": 16}),
    "widen.shares": ("a.conv1", {"width": 13}),
    "pad": ("b.conv2", {"width": 15}),
    "deepen": ("a.relu1", {}),
    "kernel.grow": ("b.conv2", {}),
    "branch.split_add": ("b.conv2", {}),
    "branch.split_relu": ("b.relu2", {}),
    "prune": ("b.conv2", {"width": 6}),
}


@pytest.mark.parametrize("make", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("rule", [name for name in RULES if name != "prune"])
def test_the_first_step_is_the_parents_mapped(digits: Any, rule: str, make: Make) -> None:
    """The loss does not jump, and what is old moves on as it would have."""
    at, arguments = RULES[rule]
    parent, optimizer, state = live(digits, make)
    moved = state.apply([Application(rule, at, arguments)])
    child, grown = moved.state.to_torch()
    before = [weights_of(parent), weights_of(child)]
    losses = step(parent, optimizer, digits, 3), step(child, grown, digits, 3)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    after = [weights_of(parent), weights_of(child)]
    steps = [
        {p: b[p].astype(np.float64) - a[p] for p in a} for a, b in zip(before, after, strict=True)
    ]
    (use,) = moved.rewritten.uses
    assert state.network.weights is not None
    maps = maps_of(use.plan, state.network.weights, frozenset(before[0]))
    for path in maps.maps.kept:
        assert np.allclose(steps[1][path], steps[0][path], rtol=1e-3, atol=1e-6), path
    for joint in maps.maps.groups:
        own = {key: steps[0][key] for key in joint.keys}
        due = maps.first(joint, own)
        if make is ADAMW:  # its steps do not know how large gradients are: copies move alike
            ones = joint.image({key: np.ones(a.shape) for key, a in own.items()})
            due = {p: a / np.where(ones[p] > 0, ones[p], 1) for p, a in joint.image(own).items()}
        for path, mask in joint.reached().items():
            assert np.abs(due[path]).max() > 1e-4
            old = np.broadcast_to(mask, due[path].shape)
            assert np.allclose(steps[1][path][old], due[path][old], rtol=1e-3, atol=1e-6), path


def test_a_reset_state_takes_another_first_step(digits: Any) -> None:
    """Without the state the first step is another, so that the test above can fail."""
    parent, optimizer, state = live(digits, SGD)
    child, grown = state.rewrite("widen", "a.conv1", width=16).to_torch()
    grown.state.clear()
    before = weights_of(child)["fc.bias"], weights_of(parent)["fc.bias"]
    step(parent, optimizer, digits, 3)
    step(child, grown, digits, 3)
    moved = weights_of(child)["fc.bias"] - before[0]
    assert not np.allclose(moved, weights_of(parent)["fc.bias"] - before[1], rtol=0.3)


# --- groups ----------------------------------------------------------------------------------


def test_parameters_join_their_parents_groups_and_new_ones_their_kind(digits: Any) -> None:
    _, _, state = live(digits, grouped)
    state = state.rewrite("branch.replicate", "b.conv2").rewrite("deepen", "a.relu1")
    state = state.rewrite("deepen.residual.batch_norm", "b.relu2")
    groups = [set(group.paths) for group in state.optimizer.groups]
    assert {"a.conv1.weight", "b.conv2.weight", "b.copy.weight", "a.new.weight"} <= groups[0]
    assert {"b.first.weight", "b.last.weight"} <= groups[0]
    assert {
        "a.bn1.weight",
        "a.new.bias",
        "b.first_bn.weight",
        "b.last_bn.bias",
        "fc.bias",
    } <= groups[1]
    assert groups[2] == {"fc.weight"}
    every = {path for path, p in state.network.graph.parameters.items() if not p.buffer}
    assert set.union(*groups) == every
    module, optimizer = state.to_torch()
    named = {id(p): path for path, p in module.named_parameters()}
    for group, mine in zip(optimizer.param_groups, state.optimizer.groups, strict=True):
        assert tuple(named[id(p)] for p in group["params"]) == mine.paths
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0, 0.2]
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 1e-3, 1e-4]
    assert [g["scale"] for g in optimizer.param_groups] == [1.0, 1.0, 0.1]
    assert optimizer.param_groups[0]["paths"] == state.optimizer.groups[0].paths
    assert "paths" not in optimizer.param_groups[1]
    step(module, optimizer, digits, 4)


def test_a_new_layer_joins_the_group_of_its_neighbours(digits: Any) -> None:
    """Groups by block, as rates for each layer make them: the nearest by path counts."""

    def by_block(parameters: Any) -> torch.optim.Optimizer:
        held = list(parameters)
        return torch.optim.SGD(
            [{"params": held[:3], "lr": 0.1}, {"params": held[3:], "lr": 0.2}], momentum=0.9
        )

    _, _, state = live(digits, by_block)
    first, second = state.rewrite("deepen", "a.relu1").rewrite("deepen", "b.relu2").optimizer.groups
    assert {"a.new.weight", "a.new.bias"} <= set(first.paths)
    assert {"b.new.weight", "b.new.bias"} <= set(second.paths)


def test_what_is_frozen_stays_frozen(digits: Any) -> None:
    network = program()
    assert network.weights is not None
    module = module_of(network.graph, dict(network.weights), CPU)
    for path, parameter in module.named_parameters():
        parameter.requires_grad = not path.startswith("a.")
    optimizer = SGD(p for p in module.parameters() if p.requires_grad)
    step(module, optimizer, digits, 0)
    state = State.of(network, optimizer, module=module, step=1)
    moved = state.apply([Application("widen", "a.conv1", {"width": 16})])
    assert set(moved.state.optimizer.frozen) == {"a.conv1.weight", "a.bn1.weight", "a.bn1.bias"}
    assert moved.fates["a.conv1.weight"].reason == "frozen"
    assert moved.fates["b.conv2.weight"].what == "mapped"
    child, grown = moved.state.to_torch()
    before = weights_of(child)
    step(child, grown, digits, 1)
    for path, array in weights_of(child).items():
        assert np.array_equal(array, before[path]) == path.startswith("a."), path


def test_a_layer_that_has_not_taken_a_step_yet(digits: Any) -> None:
    """Two rewrites in a row: what is new has no state, and its first step is Adam's first."""
    _, _, state = live(digits, ADAMW)
    moved = state.apply(
        [Application("deepen", "a.relu1"), Application("widen", "a.new", {"width": 12})]
    )
    fates = {path: fate.what for path, fate in moved.fates.items()}
    assert fates["a.new.weight"] == fates["a.new.bias"] == "zero"
    assert fates["b.conv2.weight"] == "mapped"
    assert moved.fates["a.new.bias"].reason == "there is no state yet"
    assert "a.new.weight" not in moved.state.optimizer.slots
    child, grown = moved.state.to_torch()
    step(child, grown, digits, 3)
    counts = {p: float(grown.state[q]["step"]) for p, q in child.named_parameters()}
    assert counts["a.new.weight"] == 1
    assert counts["b.conv2.weight"] == 4
    ((again, _),) = [(f, p) for p, f in moved.fates.items() if p == "b.conv2.weight"]
    assert (again.new, again.entries) == (0, 12 * 12 * 9)


def test_new_entries_are_counted(digits: Any) -> None:
    _, _, state = live(digits, SGD)
    moved = state.apply([Application("kernel.grow", "b.conv2", {})])
    assert moved.fates["b.conv2.weight"].facts() == {
        "state": "mapped",
        "new": 12 * 8 * (25 - 9),
        "entries": 12 * 8 * 25,
    }


def test_rules_that_keep_the_shape_alone(digits: Any) -> None:
    """What is cut out keeps its state; singular vectors, which are not linear, start at zero."""
    _, _, state = live(digits, ADAMW)
    cut = state.apply([Application("conv.kernel", "b.conv2", {"kernel": 1})])
    assert cut.fates["b.conv2.weight"].what == "mapped"
    slots = cut.state.optimizer.slots["b.conv2.weight"]
    due = state.optimizer.slots["b.conv2.weight"]["exp_avg"][:, :, 1:2, 1:2]
    assert np.allclose(slots["exp_avg"], due, rtol=1e-6)
    factored = state.apply([Application("conv.low_rank", "b.conv2", {"rank": 3})])
    reasons = {p: f.reason for p, f in factored.fates.items() if f.what == "zero"}
    assert sorted(reasons.values()) == ["`svd_left` is not linear", "`svd_right` is not linear"]
    assert not set(reasons) & set(factored.state.optimizer.slots)
    step(*factored.state.to_torch(), digits, 3)


# --- averages and the rest -------------------------------------------------------------------


def test_averages_follow_the_weights_term(digits: Any) -> None:
    parent, optimizer, _ = live(digits, SGD)
    network = program()
    ema = {p: a + 0.25 for p, a in weights_of(parent).items()}
    ema["a.bn1.running_mean"] = np.arange(8, dtype=np.float32)
    state = State.of(
        network,
        optimizer,
        module=parent,
        ema=ema,
        step=3,
        scaler={"scale": 1024.0, "_growth_tracker": 7},
        schedule={"last_epoch": 3},
    )
    moved = state.apply([Application("widen", "a.conv1", {"width": 12})], seed=2)
    (use,) = moved.rewritten.uses
    made = moved.state.ema
    assert made is not None
    g = use.plan.terms["a.bn1.bias"].args[1].entries  # type: ignore[union-attr]
    assert np.array_equal(made["a.conv1.weight"], ema["a.conv1.weight"][g])
    assert np.array_equal(made["a.bn1.running_mean"], ema["a.bn1.running_mean"][g])
    counts = np.bincount(g)[g].reshape(1, -1, 1, 1)
    assert np.allclose(made["b.conv2.weight"], ema["b.conv2.weight"][:, g] / counts, rtol=1e-6)
    assert np.array_equal(made["fc.bias"], ema["fc.bias"])
    assert set(made) == set(ema)
    assert all(a.dtype == np.float32 for a in made.values())
    same = (moved.state.step, moved.state.scaler, moved.state.schedule)
    assert same == (3, {"scale": 1024.0, "_growth_tracker": 7}, {"last_epoch": 3})


def test_new_layers_are_in_the_average_too(digits: Any) -> None:
    parent, optimizer, _ = live(digits, SGD)
    state = State.of(program(), optimizer, module=parent, ema=weights_of(parent), step=3)
    made = state.rewrite("deepen", "a.relu1").ema
    assert made is not None
    assert np.array_equal(made["a.new.weight"].sum(axis=(1, 2, 3)), np.ones(8))


def test_a_module_with_other_weights_is_a_step_of_the_certificate(digits: Any) -> None:
    _, _, state = live(digits, SGD)
    assert [s.kind for s in state.network.certificate.steps] == ["init", "given"]
    assert state.rewrite("deepen", "a.relu1").network.verify()[-1].holds


def test_a_wrapped_module(digits: Any) -> None:
    """As torch.compile and DDP wrap one."""
    module, optimizer, state = live(digits, SGD)
    wrapped = torch.nn.Module()
    wrapped.module = torch.nn.Module()
    wrapped.module._orig_mod = module
    assert State.of(state.network, optimizer, module=wrapped, step=3).digest == state.digest


# --- torch's settings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True, weight_decay=1e-2),
        lambda p: torch.optim.AdamW(p, lr=1e-3, maximize=True, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
        lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1), momentum=0.9, dampening=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ],
    ids=["amsgrad", "maximize", "fused", "a rate that is a tensor", "plain"],
)
def test_there_and_back_without_a_rewrite(digits: Any, make: Make) -> None:
    """The module and the optimizer of a state take the very step that the live ones take."""
    module, optimizer, state = live(digits, make)
    other, again = state.to_torch()
    kept = {k: v for k, v in again.param_groups[0].items() if k != "params"}
    mine = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    assert kept == {**mine, "lr": float(mine["lr"])}
    assert step(module, optimizer, digits, 3) == step(other, again, digits, 3)
    for path, array in weights_of(module).items():
        assert np.allclose(array, weights_of(other)[path], rtol=1e-6, atol=1e-8)


def test_other_optimizers_are_refused(digits: Any) -> None:
    class Mine(torch.optim.SGD):
        """An SGD of one's own, which may do anything."""

    for make, name in (
        (torch.optim.RMSprop, "RMSprop"),
        (lambda p: Mine(p, lr=0.1), "Mine"),
    ):
        found, status = refused(lambda make=make: live(digits, make))  # type: ignore[misc]
        assert (found.code, status) == ("A650", 3)
        assert name in found.message

    def annotated(p: Any) -> torch.optim.Optimizer:
        made = SGD(p)
        made.param_groups[0]["note"] = object()
        return made

    found, _ = refused(lambda: live(digits, annotated))
    assert "`note` of a parameter group" in found.message

    def strange(p: Any) -> torch.optim.Optimizer:
        held = list(p)
        made = SGD(held)
        made.state[held[0]]["velocity"] = torch.ones(1)
        return made

    found, _ = refused(lambda: live(digits, strange))
    assert "`velocity` of `a.conv1.weight`" in found.message


def test_what_does_not_belong_together(digits: Any) -> None:
    module, _, state = live(digits, SGD)
    other = SGD([torch.nn.Parameter(torch.ones(3))])
    found, status = refused(lambda: State.of(state.network, other, module=module))
    assert (found.code, status) == ("A651", 2)


def test_a_state_that_is_not_finite_is_not_spread(digits: Any) -> None:
    _, _, state = live(digits, SGD)
    buffer = state.optimizer.slots["fc.bias"]["momentum_buffer"]
    buffer[0] = np.nan
    found, _ = refused(lambda: state.rewrite("deepen", "a.relu1"))
    assert found.code == "A654"
    assert "`fc.bias`" in found.message
