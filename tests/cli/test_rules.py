"""`archir rules FILE`, `archir explain FILE --rule`: where, what with, and what it would change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.weights.store import load_weights, save_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]

RULES = """rule idle {
    "A layer of ones on the diagonal does nothing."
    preserves function in eval, train
    assumes c.weight == identity(channels(x), k, k)
    match   { y = c: conv(x, o, k, stride = 1, padding = 1, bias = false) }     where rank(x) == 4
    replace { y = x }
}
rule joined(source: path, times: int) {
    "Another tensor is joined, through a layer of zeros."
    preserves function in eval, train
    match   { y = relu(x) }
            where shape(x) == shape(source), channels(x) == 4 * times, rank(x) == 4
    replace { y = relu(x) + (source |> gate: conv(channels(x))) }
    weights { gate.weight = 0    gate.bias = 0 }
}"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "mine.rule").write_text(RULES)
    return Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path / "net.arch"))


def rule(net: Path, name: str) -> str:
    return f"{net.with_name('mine.rule')}:{name}"


def test_each_site_tells_what_changes(archir: Archir, net: Path) -> None:
    found = archir("rules", net, "--rule", rule(net, "joined"), "--json").document["sites"]
    assert found
    for site in found:
        width = 4 * site["arguments"]["times"]
        assert site["params"] == width * width + width
        assert site["macs"] % (width * width) == 0
        assert site["macs"] > 0
        assert site["arguments"]["source"] != site["at"]
    text = archir("rules", net, "--rule", rule(net, "joined")).out
    assert f"+{found[0]['params']:,}" in text
    assert f"source={found[0]['arguments']['source']} " in text.replace("times", " times")


def test_a_list_without_costs(archir: Archir, net: Path) -> None:
    answer = archir("rules", net, "--rule", "deepen", "--no-cost", "--json")
    assert {site["params"] for site in answer.document["sites"]} == {None}
    assert "--cost tells what changes" in archir("rules", net, "--rule", "deepen", "--no-cost").out


def test_a_pattern_is_explained_name_by_name(archir: Archir, net: Path) -> None:
    answer = archir("explain", net, "--rule", "deepen", "--at", "stem.relu", "--json")
    assert answer.status == 0
    found = answer.document
    assert found["bound"]["y"].startswith("stem.relu: relu")
    assert list(found["new"]) == ["stem.new", "stem.relu1"]
    assert "identity(channels(x), kernel, kernel)" in found["weights"]["stem.new.weight"]
    width = int(found["new"]["stem.new"].split("[N, ")[1].split(",")[0])
    assert found["params"] == 9 * width * width + width
    text = archir("explain", net, "--rule", "deepen", "--at", "stem.relu").out
    assert f"parameters +{found['params']:,}" in text


def test_what_is_assumed_is_measured(archir: Archir, net: Path) -> None:
    plain = archir("rules", net, "--rule", rule(net, "idle"), "--json").document["sites"]
    assert plain == [], "without weights nothing tells"
    assert archir("weights", "init", net).status == 0
    weights = load_weights(net.with_suffix(".safetensors"))
    square = next(p for p, w in weights.items() if w.ndim == 4 and w.shape[0] == w.shape[1])
    assert archir("rules", net, "--rule", rule(net, "idle"), "--json").document["sites"] == []
    site = square.removesuffix(".weight")
    said = archir("explain", net, "--rule", rule(net, "idle"), "--at", site)
    assert "of its norm away" in said.out
    idle = np.zeros_like(weights[square])
    idle[range(len(idle)), range(len(idle)), 1, 1] = 1
    save_weights(net.with_suffix(".safetensors"), {**weights, square: idle})
    (found,) = archir("rules", net, "--rule", rule(net, "idle"), "--json").document["sites"]
    assert (found["at"], found["params"]) == (site, -idle.size)
    assert f"{square} is so" in archir("explain", net, "--rule", rule(net, "idle")).out


def test_a_guard_in_the_way(archir: Archir, net: Path) -> None:
    answer = archir(
        *("explain", net, "--rule", rule(net, "joined"), "--at", "stem.relu"),
        *("--set", "times=3", "--json"),
    )
    assert answer.status == 1
    (wrong,) = answer.document["diagnostics"]
    assert wrong["code"] == "A302"
    assert "channels(x) == 4 * times; channels(x) is" in wrong["message"]
