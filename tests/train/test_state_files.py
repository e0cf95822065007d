"""The file of an optimizer's state, hostile ones among them, and the commands that know of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import archir
from archir.ops.arithmetic import Array
from archir.saving import optimizer_path
from archir.train.state import State
from archir.weights.store import load_metadata, load_weights, save_weights

from .living import ADAMW, grouped, images, live, refused, step, weights_of


@pytest.fixture(scope="module")
def digits() -> Any:
    return images()


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
