"""Every site of every rule, in the networks that archir ships.

The work is that of benchmarks/sites.py, which also runs the two large networks in full.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import archir

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
WHOLE = {
    ("digits", "deepen"): 4,
    ("digits", "deepen.batch_norm"): 4,
    ("digits", "widen"): 4,
    ("nash_start", "deepen"): 3,
    ("nash_start", "deepen.batch_norm"): 3,
    ("nash_start", "widen"): 3,
    ("resnet20", "deepen"): 19,
    ("resnet20", "deepen.batch_norm"): 19,
    ("resnet20", "widen"): 12,
}
"""How many sites a rule has; a sweep over none would pass."""
SOME = {
    "resnet50": (
        "deepen@layer2.0.relu2",
        "deepen.batch_norm@stem.relu",
        "widen@layer1.0.conv3",
        "widen@layer4.1.conv2",
    ),
    "vgg16_bn": ("deepen@stage5.0.relu", "widen@stage5.0.conv"),
}


def load_sweep() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sites", ROOT / "benchmarks" / "sites.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sites"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


sites = load_sweep()


@pytest.mark.parametrize(("name", "rule"), WHOLE)
def test_every_site(name: str, rule: str, tmp_path: Path) -> None:
    sweep = sites.Sweep(EXAMPLES / f"{name}.arch", tmp_path, onnx=True)
    found = [site for site in sweep.sites() if site["rule"] == rule]
    assert len(found) == WHOLE[name, rule]
    for site in found:
        row = sweep.try_site(site)
        assert row.problems == [], row.site
        assert row.onnx is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_some_sites_of_a_large_network(name: str, tmp_path: Path) -> None:
    sweep = sites.Sweep(EXAMPLES / f"{name}.arch", tmp_path, onnx=False)
    found = {site["site"]: site for site in sweep.sites()}
    for site in SOME[name]:
        row = sweep.try_site(found[site], onnx=name == "resnet50" and site.startswith("widen"))
        assert row.problems == [], row.site


def test_weights_differ_from_what_hides_mistakes(tmp_path: Path) -> None:
    sweep = sites.Sweep(EXAMPLES / "digits.arch", tmp_path, onnx=False)
    weights = sweep.before.weights
    assert weights is not None
    assert np.abs(weights["stem.bn.running_mean"]).max() > 0.1
    assert np.abs(weights["stem.bn.running_var"] - 1).max() > 0.3
    assert np.abs(weights["stem.bn.weight"] - 1).max() > 0.1
    assert np.abs(weights["stem.bn.bias"]).max() > 0.1


def test_a_layer_that_should_have_stayed_is_noticed() -> None:
    net = archir.load(EXAMPLES / "digits.arch").init(0)
    assert net.weights is not None
    for path in ("stem.conv.weight", "fc2.bias", "body.bn1.num_batches_tracked"):
        row = sites.Row("site")
        sites.kept(row, net.graph, net.weights, net.graph, _touched(net.weights, path))
        assert row.problems == [f"{path} changed"]


def test_a_layer_that_is_gone_is_noticed() -> None:
    net = archir.load(EXAMPLES / "digits.arch").init(0)
    other = archir.load(EXAMPLES / "nash_start.arch").init(0)
    assert net.weights is not None
    assert other.weights is not None
    row = sites.Row("site")
    sites.kept(row, net.graph, net.weights, other.graph, other.weights)
    assert (
        "parameters are gone: body.bn1.bias, body.bn1.num_batches_tracked, body.bn1.running_mean"
        in (row.problems)
    )


def test_another_function_is_noticed(tmp_path: Path) -> None:
    sweep = sites.Sweep(EXAMPLES / "digits.arch", tmp_path, onnx=True)
    weights = _touched(sweep.before.weights, "stem.conv.weight")
    after = sweep.before.with_weights(weights, "given", {})
    assert sites.distance(sweep.outputs[0], sweep._onnx(after)[0]) > sites.ONNX


def test_comments_are_compared_as_a_set() -> None:
    assert sites.comments("a # one\n# two\nb # one") == ["# one", "# two"]
    assert sites.changed("a\nb\nc", "a\nx\nc") == 2


def _touched(weights: dict[str, np.ndarray], path: str) -> dict[str, np.ndarray]:
    array = weights[path].copy()
    array.reshape(-1)[0] += 1
    return {**weights, path: array}
