from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from archir.cli.main import run
from archir.ops.arithmetic import Array
from archir.train.state import State


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["new", "digits", "-o", "net.arch"]) == 0
    return tmp_path


def train(source: str, target: str, *more: str) -> int:
    words = ["train", source, "--device", "cpu", "--with-optimizer", *more, "-o", target]
    return run(words)


def slots(file: str) -> dict[str, Array]:
    held = State.load(file).optimizer.slots
    return {f"{slot}/{path}": a for path, own in held.items() for slot, a in own.items()}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_training_goes_on_with_the_optimizer(net: Path, kind: str) -> None:
    """A rate of zero leaves weights and shows what becomes of the moments: they decay."""
    assert train("net.arch", "a.arch", "--epochs", "2", "--optimizer", kind, "--lr", "0.01") == 0
    before = State.load("a.arch")
    assert before.step == 38
    still = ("--lr", "0", "--weight-decay", "0", "--epochs", "1", "--optimizer", kind)
    assert train("a.arch", "b.arch", *still) == 0
    after = State.load("b.arch")
    assert after.step == 57
    if kind == "adamw":
        assert {float(own["step"]) for own in after.optimizer.slots.values()} == {57.0}
    assert train("a.arch", "c.arch", *still) == 0
    (net / "a.optim.safetensors").unlink()
    assert train("a.arch", "fresh.arch", *still) == 0
    first = "momentum_buffer" if kind == "sgd" else "exp_avg"
    with_, again, without = (slots(f"{name}.arch") for name in ("b", "c", "fresh"))
    for path, own in before.optimizer.slots.items():
        name = f"{first}/{path}"
        assert np.array_equal(with_[name], again[name])
        # the same gradients came to both: what differs is what was there before, 19 steps old
        left = with_[name].astype(np.float64) - without[name]
        wanted = 0.9**19 * own[first].astype(np.float64)
        assert np.abs(left - wanted).max() <= 1e-5 * np.abs(with_[name]).max()


def test_another_optimizers_state(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("net.arch", "a.arch", "--epochs", "1") == 0
    capsys.readouterr()
    assert train("a.arch", "b.arch", "--optimizer", "adamw") == 2
    assert "A655" in capsys.readouterr().err
    assert not Path("b.arch").exists()


@pytest.mark.parametrize("more", [("--ema", "0.9"), ("--keep", "best")])
def test_weights_that_no_optimizer_belongs_to(
    net: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("net.arch", "a.arch", *more) == 2
    assert "A609" in capsys.readouterr().err


def test_trained_rewritten_trained(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way of the command line; the certificate holds, offline."""
    assert train("net.arch", "a.arch", "--epochs", "1", "--freeze", "fc2") == 0
    rule = ("--rule", "widen", "--at", "stem.conv", "--set", "width=24")
    assert run(["rewrite", "a.arch", *rule, "--with-optimizer", "-o", "b.arch"]) == 0
    assert train("b.arch", "c.arch", "--epochs", "1", "--freeze", "fc2") == 0
    capsys.readouterr()
    assert run(["verify", "c.arch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == 0
    state = State.load("c.arch")
    assert state.step == 38
    assert state.optimizer.frozen == ("fc2.weight", "fc2.bias")
    assert all(own["momentum_buffer"].any() for own in state.optimizer.slots.values())
