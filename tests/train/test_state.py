"""Networks in training as values: taken from torch, rewritten, saved, and trained further."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import archir
from archir.api import Application, Network
from archir.diag import ArchirError
from archir.ops.arithmetic import Array
from archir.rewrite.gradients import maps_of
from archir.saving import optimizer_path
from archir.train.data import load_data, normalise
from archir.train.device import module_of
from archir.train.state import State
from archir.weights.store import load_metadata, load_weights, save_weights

CPU = torch.device("cpu")
TEXT = """version 1
arch net {
    input image: f32[N, 1, 8, 8]
    a = image |> conv1: conv(8, 3, bias = false) |> bn1: batch_norm |> relu1: relu
    b = a |> conv2: conv(12, 3, 2, bias = false) |> bn2: batch_norm |> relu2: relu
    output logits = b |> global_avg_pool |> fc: linear(10)
}
"""
Make = Callable[[Any], torch.optim.Optimizer]
SGD: Make = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True)  # noqa: E731
ADAMW: Make = lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-12, weight_decay=0.0)  # noqa: E731


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    split = load_data("digits").train
    graph = program().graph
    x = torch.from_numpy(np.array(normalise(graph, split.x[:256])))
    return x, torch.from_numpy(np.array(split.y[:256], np.int64))


def program(folder: Path | None = None) -> Network:
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        file = (folder or Path(made)) / "net.arch"
        file.write_text(TEXT, encoding="utf-8")
        return archir.load(file).init(1)


def step(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Any, number: int
) -> float:
    """One step of training; the loss before it."""
    module.train()
    x, y = (t[32 * number : 32 * (number + 1)] for t in data)
    optimizer.zero_grad(set_to_none=True)
    loss = cross_entropy(module(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def live(
    data: Any, make: Make, steps: int = 3
) -> tuple[torch.nn.Module, torch.optim.Optimizer, State]:
    network = program()
    assert network.weights is not None
    module = module_of(network.graph, dict(network.weights), CPU)
    optimizer = make(module.parameters())
    for number in range(steps):
        step(module, optimizer, data, number)
    return module, optimizer, State.of(network, optimizer, module=module, step=steps)


def weights_of(module: torch.nn.Module) -> dict[str, Array]:
    return {path: p.detach().numpy().copy() for path, p in module.named_parameters()}


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


def grouped(parameters: Any) -> torch.optim.Optimizer:
    """Vectors without decay, kernels with it, the head with a rate of its own."""
    held = list(parameters)
    vectors, kernels = [p for p in held if p.ndim == 1], [p for p in held if p.ndim == 4]
    head = [p for p in held if p.ndim == 2]
    return torch.optim.AdamW(
        [
            {"params": kernels, "weight_decay": 0.1, "paths": ("stale",), "scale": 1.0},
            {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
            {"params": head, "weight_decay": 0.2, "lr": 1e-4, "scale": 0.1},
        ],
        lr=1e-3,
    )


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


def refused(call: Callable[[], object]) -> Any:
    with pytest.raises(ArchirError) as failure:
        call()
    (found,) = failure.value.diagnostics
    return found, failure.value.status


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


# --- files -----------------------------------------------------------------------------------


@pytest.fixture
def saved(digits: Any, tmp_path: Path) -> Path:
    module, optimizer, state = live(digits, grouped)
    ema = {p: a / 2 for p, a in weights_of(module).items()}
    held = State.of(state.network, optimizer, module=module, ema=ema, step=3, scaler={"scale": 2.0})
    return held.save(tmp_path / "net.arch")


def test_files_come_back(saved: Path, digits: Any) -> None:
    state = State.load(saved)
    again = State.load(saved, state.network)
    assert again.digest == state.digest
    assert (state.step, state.scaler) == (3, {"scale": 2.0})
    assert state.ema is not None
    assert state.optimizer.groups[0].options["betas"] == (0.9, 0.999)
    module, optimizer = state.to_torch()
    step(module, optimizer, digits, 3)
    first = saved.with_name("again.arch")
    state.save(first)
    assert optimizer_path(first).read_bytes() == optimizer_path(saved).read_bytes()
    assert refused(lambda: state.save(first))[0].code == "A603"


def test_saving_the_network_alone_takes_a_stale_state_away(saved: Path) -> None:
    network = archir.load(saved)
    assert optimizer_path(saved).is_file()
    network.save(saved, force=True)
    assert not optimizer_path(saved).exists()
    found, status = refused(lambda: State.load(saved))
    assert (found.code, status) == ("A652", 2)


def test_nothing_is_half_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the state cannot be written, the network is not either."""
    grown = State.load(saved).rewrite("widen", "a.conv1", width=16)
    before = {f.name: f.read_bytes() for f in saved.parent.iterdir() if f.is_file()}

    def full(self: State, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(State, "_write", full)
    assert refused(lambda: grown.save(saved, force=True))[0].code == "A602"
    assert {f.name: f.read_bytes() for f in saved.parent.iterdir() if f.is_file()} == before


def test_a_state_belongs_to_its_weights(saved: Path) -> None:
    network = archir.load(saved)
    assert network.weights is not None
    changed = {p: a + 1 if p == "fc.bias" else a for p, a in network.weights.items()}
    found, status = refused(lambda: State.load(saved, network.with_weights(changed, "given", {})))
    assert (found.code, status) == ("A651", 2)
    assert "other weights" in found.message
    bare = archir.load(saved, ignore_weights=True)
    assert "no weights" in refused(lambda: State.load(saved, bare))[0].message
    wider = network.rewrite("widen", "a.conv1", width=16)
    assert refused(lambda: State.load(saved, wider))[0].code == "A651"
    deeper = network.rewrite("prune", "a.conv1", width=4, approximate=True)
    assert refused(lambda: State.load(saved, deeper))[0].code == "A651"


def rewritten(saved: Path, change: Callable[[dict[str, Any], dict[str, Array]], None]) -> Any:
    """The error of a file of which something was changed."""
    file = optimizer_path(saved)
    facts, arrays = json.loads(load_metadata(file)["optimizer"]), load_weights(file)
    change(facts, arrays)
    save_weights(file, arrays, {"optimizer": json.dumps(facts)})
    return refused(lambda: State.load(saved).to_torch())


HOSTILE: Mapping[str, tuple[str, Callable[[dict[str, Any], dict[str, Array]], object]]] = {
    "version": ("A653", lambda f, a: f.update(format=99)),
    "no version": ("A653", lambda f, a: f.pop("format")),
    "kind": ("A653", lambda f, a: f.update(kind="Lion")),
    "kind of another type": ("A653", lambda f, a: f.update(kind=["SGD"])),
    "groups": ("A653", lambda f, a: f.update(groups=7)),
    "paths": ("A653", lambda f, a: f["groups"][0].update(paths=[1])),
    "no rate": ("A653", lambda f, a: f["groups"][0]["options"].pop("lr")),
    "a rate in words": ("A653", lambda f, a: f["groups"][0]["options"].update(lr="fast")),
    "a negative rate": ("A653", lambda f, a: f["groups"][0]["options"].update(lr=-1.0)),
    "one beta": ("A653", lambda f, a: f["groups"][0]["options"].update(betas=[0.9])),
    "nested settings": ("A653", lambda f, a: f["groups"][0]["options"].update(x={"y": 1})),
    "step": ("A653", lambda f, a: f.update(step=-1)),
    "scaler": ("A653", lambda f, a: f.update(scaler=3)),
    "a parameter twice": ("A653", lambda f, a: f["groups"][1]["paths"].append("fc.weight")),
    "a slot too many": ("A653", lambda f, a: a.update({"velocity/fc.bias": np.ones(10)})),
    "a slot too few": ("A653", lambda f, a: a.pop("exp_avg/fc.bias")),
    "no count": ("A653", lambda f, a: a.pop("step/fc.bias")),
    "a state without a group": ("A653", lambda f, a: f["groups"][2].update(paths=[])),
    "an unknown parameter": ("A651", lambda f, a: f["groups"][1]["paths"].append("gone")),
    "another shape": ("A651", lambda f, a: a.update({"exp_avg/fc.bias": np.ones(9)})),
    "an average too large": ("A651", lambda f, a: a.update({"ema/fc.bias": np.ones(9)})),
    "whole numbers": ("A651", lambda f, a: a.update({"exp_avg/fc.bias": np.ones(10, np.int64)})),
    "other weights": ("A651", lambda f, a: f.update(weights="0" * 64)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(saved: Path, what: str) -> None:
    code, change = HOSTILE[what]
    found, status = rewritten(saved, lambda f, a: (change(f, a), None)[1])
    assert (found.code, status) == (code, 2), found


@pytest.mark.parametrize("cut", [0, 7, 100, -5])
def test_files_cut_short(saved: Path, cut: int) -> None:
    file = optimizer_path(saved)
    file.write_bytes(file.read_bytes()[:cut])
    assert refused(lambda: State.load(saved))[0].code == "A610"


def test_weights_are_no_state(saved: Path) -> None:
    shutil.copy(saved.with_suffix(".safetensors"), optimizer_path(saved))
    assert refused(lambda: State.load(saved))[0].code == "A653"


# --- the command line ------------------------------------------------------------------------


def test_rewrite_with_optimizer(archir: Any, saved: Path) -> None:
    out = saved.with_name("out.arch")
    words = ("rewrite", saved, "--rule", "widen@a.conv1", "--set", "width=16", "--with-optimizer")
    answer = archir(*words, "-o", out, "--json")
    assert answer.status == 0, answer.err
    found = answer.document["optimizer"]
    assert found["kind"] == "AdamW"
    assert found["parameters"]["a.conv1.weight"] == {"state": "mapped", "new": 0, "entries": 144}
    assert found["parameters"]["fc.weight"] == {"state": "kept"}
    (last,) = json.loads(out.with_suffix(".cert.json").read_text())["steps"][-1:]
    facts = {"before": State.load(saved).digest, "after": State.load(out).digest}
    assert last["optimizer"] == {**facts, "kept": 4, "mapped": 4, "zero": 0}
    assert {k: found[k] for k in facts} == facts
    assert archir("verify", out).status == 0
    text = archir(*words, "-o", saved.with_name("two.arch")).out
    assert "optimizer state (AdamW): 4 parameters mapped, 4 kept\n" in text
    text = archir("rewrite", saved, "--rule", "deepen@a.relu1", "--with-optimizer", "--dry-run").out
    assert "optimizer state (AdamW): 0 parameters mapped, 8 kept, 2 start at zero" in text
    assert archir("rewrite", saved, "--rule", "deepen@a.relu1", "-o", out, "--force").status == 0
    assert not optimizer_path(out).exists()


def test_verify_looks_at_the_state(archir: Any, saved: Path) -> None:
    out = saved.with_name("out.arch")
    State.load(saved).rewrite("widen", "a.conv1", width=16).save(out)

    def found() -> tuple[int, dict[str, Any]]:
        answer = archir("verify", out, "--json")
        (one,) = [f for f in answer.document["findings"] if f["subject"] == "the optimizer's state"]
        return answer.status, one

    status, one = found()
    assert (status, one["holds"], one["how"]) == (0, True, "hash")
    file = optimizer_path(out)
    facts, arrays = json.loads(load_metadata(file)["optimizer"]), load_weights(file)
    arrays["exp_avg/fc.bias"] += 1
    save_weights(file, arrays, {"optimizer": json.dumps(facts)})
    status, one = found()
    assert (status, one["holds"]) == (1, False)
    assert one["detail"] == "it is not the one that the last step states"
    shutil.copy(optimizer_path(saved), file)
    status, one = found()
    assert (status, one["holds"]) == (1, False)


def test_without_a_state_the_command_says_so(archir: Any, saved: Path) -> None:
    optimizer_path(saved).unlink()
    words = ("rewrite", saved, "--rule", "deepen@a.relu1", "--with-optimizer")
    answer = archir(*words, "-o", saved.with_name("out.arch"))
    assert answer.status == 2
    assert "A652" in answer.err
    assert not saved.with_name("out.arch").exists()
    answer = archir(*words, "--refit", "--calibrate", "digits", "--dry-run")
    assert (answer.status, "A609" in answer.err) == (2, True)


def test_undo_leaves_the_state(archir: Any, saved: Path) -> None:
    out, back = saved.with_name("out.arch"), saved.with_name("back.arch")
    State.load(saved).rewrite("deepen", "a.relu1").save(out)
    answer = archir("undo", out, "-o", back)
    assert "the optimizer's state is not taken back: the result has none" in answer.out
    assert not optimizer_path(back).exists()
    assert archir("undo", out, "--dry-run", "--json").document["optimizer_left"] is True


def test_products_say_that_they_start_at_zero(archir: Any, tmp_path: Path) -> None:
    """Second moments of a product have no map: nothing is silent."""
    file = tmp_path / "net.arch"
    file.write_text(
        "version 1\narch net {\n    input x: f32[N, 6]\n"
        "    output y = x |> a: linear(7) |> b: linear(3)\n}\n"
    )
    import archir as package

    network = package.load(file).init(0)
    module = network.to_torch()
    optimizer = ADAMW(module.parameters())
    module(torch.ones(2, 6)).square().sum().backward()
    optimizer.step()
    State.of(network, optimizer, module=module, step=1).save(file, force=True)
    answer = archir("rewrite", file, "--rule", "merge.linear", "--with-optimizer", "--dry-run")
    assert "0 parameters mapped, 0 kept, 2 start at zero" in answer.out
    assert "  2 of these: second moments have no map where gradients are mixed" in answer.out
