"""``archir rewrite --rule nat --policy``: a policy changes the cells of a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.search.encodings import nat_cells
from archir.search.nat_policy import Policy, PolicyConfig, fill, save_policy, shapes_of
from archir.weights.store import load_weights


@pytest.fixture
def net(archir: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network of VGG's cells with weights, and three policies beside it."""
    monkeypatch.chdir(tmp_path)
    Path("net.arch").write_text(nat_cells.family("vgg", channels=4, layers=3, shape=(1, 8, 8)))
    archir("weights", "init", "net.arch")
    config = PolicyConfig(transitions="nat++", features=8, hidden=8, embedding=4)
    save_policy("drawn.safetensors", Policy(config, np.random.default_rng(1)))
    keeps = Policy(config)  # all equally likely: what is there is taken
    save_policy("keeps.safetensors", keeps)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes_of(config).items()}
    second, null = 17, 12  # of the second edge's logits the first, and the place of null
    for name, places in (("seconds", [second + null]), ("nulls", [null, second + null])):
        zeros["actions_bias"][:] = 0
        zeros["actions_bias"][places] = 100
        fill(keeps, zeros)
        save_policy(f"{name}.safetensors", keeps)
    return tmp_path / "net.arch"


def by(policy: str, *more: str) -> tuple[str, ...]:
    name = f"{policy}.safetensors"
    return ("rewrite", "net.arch", "--rule", "nat", "--policy", name, "-o", "out.arch", *more)


def test_a_policy_rewrites_a_network_which_then_verifies(
    archir: Callable[..., Any], net: Path
) -> None:
    answer = archir(*by("drawn", "--sample", "--seed", "3", "--json"))
    assert answer.status == 0
    found = answer.document
    rules = {use["rule"] for use in found["uses"]}
    assert all(rule.startswith("nat.") or rule == "drop.null" for rule in rules)
    assert any(cell["edges"] for cell in found["cells"])
    for name in ("params", "macs"):
        before, after = found[name]
        assert after <= before
    verified = archir("verify", "out.arch")
    assert verified.status == 0
    assert verified.out.endswith("out.arch: verified\n")
    again = archir(*by("drawn", "--sample", "--seed", "3", "--json", "--force")).document
    assert again["cells"] == found["cells"]
    others = [
        archir(*by("drawn", "--sample", "--seed", str(s), "--dry-run", "--json")).document["cells"]
        for s in (4, 5)
    ]
    assert found["cells"] not in others


def test_zeros_are_taken_out(archir: Callable[..., Any], net: Path) -> None:
    """Where the second edge of each node is nulled, DARTS' nodes have the first alone."""
    text = nat_cells.family("darts", channels=4, layers=3, shape=(1, 8, 8))
    net.write_text(text)
    archir("weights", "init", "net.arch", "--force")
    answer = archir(*by("seconds"))
    assert answer.status == 0
    assert "0->2 sep_conv_3x3" not in answer.out
    assert "1->2 sep_conv_3x3 -> null" in answer.out
    assert "drop.null@" in answer.out
    assert "null(" not in Path("out.arch").read_text("utf-8")
    paths = load_weights("out.safetensors")
    assert any("_ops.0" in path for path in paths)
    assert not any("_ops.1." in path for path in paths)


def test_a_policy_that_lets_nothing_through_writes_nothing(
    archir: Callable[..., Any], net: Path
) -> None:
    for more, hint in (((), "--sample --seed N"), (("--sample",), "another --seed")):
        answer = archir(*by("nulls", *more))
        assert (answer.status, "A773" in answer.err, hint in answer.err) == (1, True, True)
        assert not Path("out.arch").exists()


def test_a_policy_that_changes_nothing_writes_nothing(
    archir: Callable[..., Any], net: Path
) -> None:
    answer = archir(*by("keeps"))
    assert (answer.status, "A772" in answer.err) == (1, True)
    assert "--sample --seed N" in answer.err
    assert not Path("out.arch").exists()


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ("--rule nat", "A609", "--policy FILE"),
        ("--rule deepen --policy keeps.safetensors", "A609", "--rule nat"),
        ("--rule deepen --sample", "A609", "--rule nat"),
        ("--rule nat --rule deepen --policy keeps.safetensors", "A609", "another rule"),
        ("--rule nat --policy keeps.safetensors --at all", "A609", "--at"),
        ("--rule nat --policy keeps.safetensors --set kernel=3", "A609", "--set"),
        ("--rule nat --policy net.safetensors", "A775", "no policy"),
        ("--rule nat --policy none.safetensors", "A601", "none.safetensors"),
    ],
)
def test_flags_that_do_not_fit(
    archir: Callable[..., Any], net: Path, flags: str, code: str, says: str
) -> None:
    answer = archir("rewrite", "net.arch", *flags.split(), "-o", "out.arch")
    assert (answer.status, code in answer.err, says in answer.err) == (2, True, True)
    assert not Path("out.arch").exists()


def test_a_network_without_cells(archir: Callable[..., Any], net: Path) -> None:
    Path("net.arch").write_text(
        "version 1\narch net { input x: f32[N, 8] output y = x |> linear(3) }"
    )
    Path("net.safetensors").unlink()
    Path("net.cert.json").unlink()
    answer = archir(*by("drawn"))
    assert (answer.status, "A777" in answer.err) == (2, True)


THIN = """version 1
arch thin(classes = 3) {
    input image: f32[N, 1, 8, 8]
    x = image |> c0: conv(2, 3, bias = false) |> b0: batch_norm
    y = (x |> relu |> c1: conv(2, 3, bias = false) |> b1: batch_norm)
        + (x |> max_pool(3, 1, padding = 1))
    output logits = y |> global_avg_pool |> linear(classes)
}
"""


def test_what_no_rule_makes_is_not_said_to_change(
    archir: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A separable convolution of two channels costs more than the one that is there."""
    monkeypatch.chdir(tmp_path)
    Path("net.arch").write_text(THIN)
    config = PolicyConfig(transitions="nat++", features=8, hidden=8, embedding=4)
    policy = Policy(config)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes_of(config).items()}
    zeros["actions_bias"][[5, 22]] = 2  # sep_conv_3x3
    zeros["actions_bias"][[2, 19]] = 1  # avg_pool_3x3
    fill(policy, zeros)
    save_policy("policy.safetensors", policy)
    words = ("--rule", "nat", "--policy", "policy.safetensors", "--dry-run", "--json")
    (cell,) = archir("rewrite", "net.arch", *words).document["cells"]
    assert [(edge["from"], edge["to"]) for edge in cell["edges"]] == [
        ("max_pool_3x3", "avg_pool_3x3")
    ]
