"""Clean-ups before an export: what goes, what stays, and that the function stays the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir
from archir import cleaning
from archir.api import Network
from archir.cleaning import Cleaned, cleaned
from archir.diag import error
from archir.ops import STANDARD
from archir.ops.record import OpSet
from archir.proof.drift import measure
from archir.proof.verdict import Verdict
from archir.rewrite.library import Library
from archir.rewrite.plan import Plan
from archir.rewrite.rule import Reshaping, Rule

NETWORK = """version 1
arch dirty(width = 6) {
    input image: f32[N, 3, 8, 8]
    a = image |> conv1: conv(width, 3, bias = false) |> bn1: batch_norm |> relu |> dropout(0.3)
    b = a |> conv2: conv(width, 3) |> bn2: batch_norm
    e = a + (a |> conv3: conv(width) |> bn3: batch_norm)
    c = e + b |> relu
    unread = c |> aside: conv(2)
    d = c |> bn4: batch_norm |> relu
    output logits = d |> flatten |> flat: flatten |> fc: linear(4) |> bn5: batch_norm
}
"""


@pytest.fixture
def dirty(tmp_path: Path) -> Network:
    path = tmp_path / "net.arch"
    path.write_text(NETWORK)
    return archir.load(path).init(0, random_statistics=True)


def clean(network: Network, **changed: Any) -> Cleaned:
    assert network.weights is not None
    return cleaned(network.graph, {**network.weights, **changed}, network.ops, network.library)


def test_the_rules_keep_the_function_in_evaluation(dirty: Network) -> None:
    for name in cleaning.RULES:
        rule = dirty.library[name]
        assert "eval" in rule.contract.function
        assert not isinstance(rule.body, Reshaping)  # so that no width changes


def test_what_goes_and_what_stays(dirty: Network) -> None:
    assert dirty.weights is not None
    before = dict(dirty.weights)
    found = clean(dirty)
    assert found.uses == {
        "remove.dropout": ("a.dropout",),
        "fold.batch_norm": ("a.bn1",),
        "fold.batch_norm.biased": ("b.bn2", "e.bn3"),
        "fold.batch_norm.linear": ("bn5",),
        "remove.flatten": ("flat",),
    }
    assert found.dead == ("unread.aside",)
    assert found.left == ()
    assert found.facts()["batch_norms_left"] == 1  # behind an addition and a ReLU
    assert set(found.weights) == set(found.graph.parameters)
    assert not [path for path in found.weights if path.startswith("unread")]
    # The network that was given is as it was.
    assert dict(dirty.weights) == before
    assert "unread.aside" in dirty.graph
    sides = (dirty.graph, dirty.weights), (found.graph, found.weights)
    drift = measure(*sides, STANDARD, None)
    assert drift.value < 1e-6
    assert found.graph.outputs[0].name == "logits"
    assert found.graph.inputs == dirty.graph.inputs


def test_rules_that_look_at_weights(dirty: Network) -> None:
    assert dirty.weights is not None
    zero = {path: np.zeros_like(dirty.weights[path]) for path in ("e.bn3.weight", "e.bn3.bias")}
    found = clean(dirty, **zero)
    assert "drop.branch" in found.uses
    assert not [node for node in found.graph if node.name.startswith("e.conv3")]


def test_a_fold_that_would_overflow_is_left_out(dirty: Network) -> None:
    assert dirty.weights is not None
    large = {
        "a.bn1.weight": np.full_like(dirty.weights["a.bn1.weight"], 1e30),
        "a.conv1.weight": np.full_like(dirty.weights["a.conv1.weight"], 1e30),
    }
    found = clean(dirty, **large)
    (left,) = found.left
    assert (left.rule, left.at) == ("fold.batch_norm", "a.bn1")
    assert left.reason == "`a.conv1.weight` would not be finite"
    assert "fold.batch_norm" not in found.uses
    assert found.facts()["left"] == [{"rule": left.rule, "at": left.at, "reason": left.reason}]


def test_a_use_that_fails_its_check_is_left_out(
    dirty: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(plan: Any, ops: Any) -> None:
        if plan.site == "b.bn2":
            raise error("A401", "it differs")

    monkeypatch.setattr(cleaning, "check_plan", failing)
    found = clean(dirty)
    assert [(left.at, left.reason) for left in found.left] == [("b.bn2", "A401: it differs")]
    assert found.uses["fold.batch_norm.biased"] == ("e.bn3",)


def test_a_rule_that_is_not_proved_is_not_used(
    dirty: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cleaning.verdict_for

    def tested(rule: Rule, ops: OpSet) -> Verdict:
        found = plain(rule, ops)
        return replace(found, modes=tuple(replace(mode, kind="tested") for mode in found.modes))

    monkeypatch.setattr(cleaning, "verdict_for", tested)
    found = clean(dirty)
    assert not found.uses
    assert {left.reason for left in found.left} == {"the rule is not proved, it is tested"}
    assert len(found.graph) == len(dirty.graph) - 1  # the dead node went


def test_a_library_without_the_rules(dirty: Network) -> None:
    assert dirty.weights is not None
    found = cleaned(dirty.graph, dirty.weights, dirty.ops, Library([]))
    assert not found.uses
    assert found.dead == ("unread.aside",)


def test_a_tied_convolution_stays(tmp_path: Path) -> None:
    path = tmp_path / "tied.arch"
    path.write_text(
        "version 1\narch tied {\n    input x: f32[N, 4, 6, 6]\n"
        "    a = x |> c1: conv(4, 3, bias = false) |> bn1: batch_norm\n"
        "    output y = a |> c2: conv(4, 3, bias = false, weight = a.c1.weight) "
        "|> bn2: batch_norm\n}\n"
    )
    network = archir.load(path).init(0, random_statistics=True)
    assert network.weights is not None
    found = clean(network)
    sides = (network.graph, network.weights), (found.graph, found.weights)
    assert measure(*sides, STANDARD, None).value < 1e-6


def test_a_use_whose_check_is_too_large_is_left_out(
    dirty: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dirty.explain("fold.batch_norm", "a.bn1")
    assert isinstance(plan, Plan)
    # The values of both layers, and the 3 x 3 x 3 numbers that the kernel sees at 8 x 8 places.
    assert cleaning.numbers(plan) == 2 * 6 * 64 + 27 * 64
    monkeypatch.setattr(cleaning, "LARGEST_CHECK", 8 * (2 * 6 * 64 + 27 * 64) - 1)
    found = clean(dirty)
    assert "fold.batch_norm" not in found.uses
    assert {"remove.dropout", "fold.batch_norm.linear"} <= set(found.uses)
    assert found.left[0].reason == "its exact check would need 0.0 GiB"
