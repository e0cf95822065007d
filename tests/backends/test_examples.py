"""The shipped networks: equal to torchvision's bit for bit, and exported."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import Source
from archir.ir.graph import Graph
from archir.lang import load
from archir.ops import STANDARD
from archir.weights.init import init_weights

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from archir.backends import onnx as onnx_backend  # noqa: E402
from archir.backends import torch_fx  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.arch"))


@cache
def example(name: str) -> Graph:
    path = EXAMPLES / f"{name}.arch"
    return load(Source(path.name, path.read_text()), STANDARD).graph


def images(graph: Graph, batch: int) -> dict[str, Any]:
    (name,) = graph.inputs
    shape = [s for s in graph.node(name).types[0].shape if isinstance(s, int)]
    stream = np.random.Generator(np.random.PCG64(0))
    return {name: stream.standard_normal((batch, *shape), np.float32)}


def test_there_are_examples() -> None:
    assert {"digits", "nash_start", "resnet20", "resnet50", "vgg16_bn"} <= set(NAMES)


@pytest.mark.parametrize("name", ["resnet50", "vgg16_bn"])
def test_torchvision_computes_the_same_bits(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    graph = example(name)
    weights = init_weights(graph, STANDARD, 0, random_statistics=True)
    module = torch_fx.lower(graph, weights).eval()
    with torch.device("meta"):
        other = models.get_model(name, weights=None)
    state, keys = module.state_dict(), list(other.state_dict())
    if name == "resnet50":
        assert list(state) == keys
    # Our VGG has names of its own, in the same order.
    assert len(state) == len(keys)
    renamed = dict(zip(keys, state.values(), strict=True))
    assert all(renamed[k].shape == v.shape for k, v in other.state_dict().items())
    other.load_state_dict(renamed, assign=True)
    (x,) = (torch.from_numpy(array) for array in images(graph, 2).values())
    with torch.inference_mode():
        y, z = module(x), other.eval()(x)
    assert y.shape == (2, 1000)
    assert y.std() > 0
    assert torch.equal(y, z)


def test_resnet50_trains_like_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    graph = example("resnet50")
    module = torch_fx.lower(graph).train()
    other = models.resnet50()
    other.load_state_dict(module.state_dict())
    stream = np.random.Generator(np.random.PCG64(0))
    x = torch.from_numpy(stream.standard_normal((2, 3, 64, 64), np.float32))
    sides = []
    for each in (module, other.train()):
        y = each(x)
        y.logsumexp(1).sum().backward()
        sides.append(
            {
                "y": y,
                **{k: p.grad for k, p in each.named_parameters()},
                **dict(each.named_buffers()),
            }
        )
    assert sides[0].keys() == sides[1].keys()
    assert all(torch.equal(sides[0][key], sides[1][key]) for key in sides[0])


@pytest.mark.parametrize(
    "name", [n if n != "vgg16_bn" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_examples_are_exported(name: str, tmp_path: Path) -> None:
    graph = example(name)
    weights = init_weights(graph, STANDARD, 0, random_statistics=True)
    report = onnx_backend.export(graph, weights, tmp_path / "n.onnx")
    assert report.batches == [1, 2, 7]
    assert report.drift.keys() == {output.name for output in graph.outputs}
    assert all(drift < 1e-5 for drift in report.drift.values())
