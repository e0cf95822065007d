"""Really trained networks: loaded, rewritten and exported, they predict what was published.

Some hundreds of the test images here; all 10,000, and twenty random chains a network, in
benchmarks/trained.py, whose functions these tests use.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import archir as package
from archir.ops.arithmetic import Array
from archir.train.data import normalise

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
Archir = Callable[..., Any]
LOGITS = 1e-5
"""The largest max|a-b| / max|b| of logits where rounding may differ: those stored beside the
weights, another order of sums, another network of the same function."""


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, made)  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


sys.path.append(str(ROOT / "benchmarks"))  # where a benchmark finds its neighbours
try:
    trained = module_of(ROOT / "benchmarks" / "trained.py")
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

needs_data = pytest.mark.skipif(
    trained.data_folder() is None, reason="ARCHIR_DATA names no folder with trained/ and cifar10/"
)


def close(found: Array, known: Array) -> bool:
    """Whether logits differ by rounding alone, by the bound ``LOGITS``."""
    return bool(np.abs(found - known).max() <= LOGITS * np.abs(known).max())


def fed(network: package.Network, count: int) -> Array:
    return normalise(network.graph, trained.images()[0][:count])


@needs_data
@pytest.mark.parametrize("layers", trained.BLOCKS)
def test_the_published_predictions(layers: int, archir: Archir, tmp_path: Path) -> None:
    out, blocks = tmp_path / "net.arch", trained.BLOCKS[layers]
    checkpoint = trained.data_folder() / "trained" / f"cifar10_resnet{layers}.safetensors"
    words = ("--from", checkpoint, "--param", f"blocks={blocks}", "-o", out, "--json")
    answer = archir("weights", "load", trained.TEXT, *words)
    assert answer.status == 0
    norms = 1 + 6 * blocks
    assert len(answer.document["zeroed"]) == norms
    assert answer.document["loaded"] == 5 * norms + 2
    assert archir("verify", out).status == 0
    network = package.load(out)
    logits = trained.in_torch(network, fed(network, 300))
    known = trained.published(layers)
    assert np.array_equal(logits.argmax(axis=1), known["classes"][:300])
    if layers == 20:
        assert close(logits, known["logits"][:300])


@needs_data
def test_a_chain_leaves_every_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = trained.images()
    monkeypatch.setattr(trained, "images", lambda: (x[:500], y[:500]))
    first = trained.trained(20)
    logits = trained.in_torch(first, fed(first, 500))
    outcome = trained.run(first, logits, 20, -1, threads=1)
    assert len(outcome.steps) == trained.LENGTH
    assert outcome.changed == {"torch": 0, "onnx": 0}
    assert outcome.correct == int((trained.published(20)["classes"][:500] == y[:500]).sum())
    assert all(0 < value < LOGITS for value in outcome.drift.values())
    assert outcome.cost[0] > first.cost().params


@needs_data
def test_a_random_chain() -> None:
    first = trained.trained(20)
    last, steps = trained.random_chain(first, 3)
    assert len(steps) == trained.LENGTH
    a, b = (trained.in_torch(net, fed(first, 100)) for net in (first, last))
    outcome = trained.compare(a, {"torch": b}, trained.Outcome(20, 3, 100))
    assert outcome.changed == {"torch": 0}


def test_a_changed_prediction_is_noticed() -> None:
    """One image of another class, one where rounding decides, one of the same class."""
    first = np.array([[3.0, 1.0], [2.0, 1.99999], [0.0, 5.0]], np.float32)
    other = np.array([[1.0, 3.0], [1.99999, 2.0], [0.0, 4.0]], np.float32)
    outcome = trained.compare(first, {"torch": other}, trained.Outcome(20, 0, 3))
    assert (outcome.changed["torch"], outcome.ties["torch"]) == (1, [1])
    assert outcome.drift["torch"] == pytest.approx(0.4, abs=1e-6)
    assert "3 images, 0 rewrites, 1 predictions changed, 1 near ties" in trained.summary([outcome])


# ---- without data: the text and the module are one network


@pytest.mark.parametrize("layers", trained.BLOCKS)
def test_the_text_is_the_module(layers: int) -> None:
    module = getattr(module_of(HERE / "resnet_cifar.py"), f"resnet{layers}")().eval()
    network = package.load(trained.TEXT, params={"blocks": trained.BLOCKS[layers]}).init(
        1, random_statistics=True
    )
    lowered = network.to_torch().eval()
    module.load_state_dict(lowered.state_dict(), strict=True)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32))
    with torch.inference_mode():
        assert close(lowered(x).numpy(), module(x).numpy())  # the module averages by avg_pool2d


@pytest.mark.parametrize("rule", ["widen@relu width=20", "deepen@layer2.0.relu2"])
def test_rules_through_the_shortcuts(rule: str) -> None:
    """The channels of the stem go through pixels left out and zeros put in, and are followed."""
    network = package.load(trained.TEXT).init(2, random_statistics=True)
    name, _, site = rule.partition("@")
    path, _, width = site.partition(" width=")
    made = network.rewrite(name, path, **({"width": int(width)} if width else {}))
    if width:
        widths = [
            made.graph.parameters[f"layer{n}.0.conv2.weight"].type.shape[0] for n in (1, 2, 3)
        ]
        assert widths == [20, 36, 68]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32))
    with torch.inference_mode():
        a, b = (net.to_torch().eval()(x).numpy() for net in (network, made))
    assert close(b, a)


def test_the_module_is_imported(archir: Archir, tmp_path: Path) -> None:
    out = tmp_path / "net.arch"
    source = f"{HERE / 'resnet_cifar.py'}:resnet20"
    answer = archir("import", source, "--size", "3,32,32", "-o", out)
    assert answer.status == 0, answer.err
    network = package.load(out)
    assert list(network.graph.parameters) == list(package.load(trained.TEXT).graph.parameters)
    folder = trained.data_folder()
    if folder is None:
        return
    checkpoint = folder / "trained" / "cifar10_resnet20.safetensors"
    assert archir("weights", "load", out, "--from", checkpoint, "--force").status == 0
    loaded, mine = package.load(out), trained.trained(20)
    x = fed(mine, 50)
    assert close(trained.in_torch(loaded, x), trained.in_torch(mine, x))
