"""The shipped networks compute what others' code does, bit for bit; text and graph agree."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import Source
from archir.ir.graph import Graph
from archir.ir.same import difference
from archir.lang import format_text, load, print_graph
from archir.lang.flat import print_flat
from archir.ops import STANDARD
from archir.weights.init import init_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.arch"))

TORCHVISION: dict[str, dict[str, object]] = {
    "efficientnet_b0": {},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "mobilenet_v2": {},
    "shufflenet_v2_x1_0": {},
}
"""Torchvision's networks, and how they are asked for; see tests/backends for the first two."""
OWN_NAMES = {"densenet_bc_40_12", "eas_start", "lenet_300_100"}
"""Networks with paths of their own, in the order of the others' keys."""

SAME_KEYS = {"darts_v2", "nasbench201", "vit_tiny"}
"""Networks with the keys of their authors' code, or of timm's."""


@cache
def example(name: str) -> Graph:
    path = EXAMPLES / f"{name}.arch"
    return load(Source(path.name, path.read_text()), STANDARD).graph


@pytest.mark.parametrize("name", NAMES)
def test_text_and_graph(name: str) -> None:
    graph = example(name)
    for print_ in (print_graph, print_flat):
        again = load(Source("net.arch", print_(graph, STANDARD)), STANDARD).graph
        assert difference(graph, again) is None
    source = Source(name, (EXAMPLES / f"{name}.arch").read_text())
    assert format_text(source) == source.text


def reference(name: str) -> Any:
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    from .references import REFERENCES

    with torch.device("meta"):
        if name in REFERENCES:
            return REFERENCES[name]()
        return torchvision.models.get_model(name, weights=None, **TORCHVISION[name])


def scattered(state: dict[str, Any]) -> dict[str, Any]:
    """Weights that no two channels share: what begins as zeros or ones is moved from there."""
    torch = pytest.importorskip("torch")
    noise = torch.Generator().manual_seed(0)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=noise)
        if value.numel() > 1 and value.min() == value.max()
        else value
        for key, value in state.items()
    }


def both(name: str) -> tuple[Any, Any, Any]:
    """Archir's module, the others' with the same weights, and images."""
    torch = pytest.importorskip("torch")
    from archir.backends import torch_fx

    graph, other = example(name), reference(name)
    module = torch_fx.lower(graph, init_weights(graph, STANDARD, 0, random_statistics=True))
    module.load_state_dict(scattered(module.state_dict()))
    state, keys = module.state_dict(), list(other.state_dict())
    if name in OWN_NAMES:
        assert len(state) == len(keys)
        state = dict(zip(keys, state.values(), strict=True))
    assert state.keys() == set(keys)
    assert all(state[key].shape == value.shape for key, value in other.state_dict().items())
    # A copy: in training the two sides must not write to one tensor.
    other.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    (entry,) = graph.inputs
    shape = [s for s in graph.node(entry).types[0].shape if isinstance(s, int)]
    stream = np.random.Generator(np.random.PCG64(0))
    return module, other, torch.from_numpy(stream.standard_normal((2, *shape), np.float32))


@pytest.mark.parametrize("name", sorted({*TORCHVISION, *OWN_NAMES, *SAME_KEYS}))
def test_the_same_bits(name: str) -> None:
    torch = pytest.importorskip("torch")
    module, other, x = both(name)
    with torch.inference_mode():
        y, z = module.eval()(x), other.eval()(x)
    assert y.std() > 0
    assert torch.equal(y, z)


@pytest.mark.parametrize(
    "name", ["densenet_bc_40_12", "nasbench201", "shufflenet_v2_x1_0", "vit_tiny"]
)
def test_trained_alike(name: str) -> None:
    """Outputs, gradients and running statistics of a step, of networks without dropout."""
    torch = pytest.importorskip("torch")
    module, other, x = both(name)
    sides = []
    for each in (module.train(), other.train()):
        y = each(x)
        y.logsumexp(1).sum().backward()
        gradients = {key: parameter.grad for key, parameter in each.named_parameters()}
        assert all(value.abs().max() > 0 for value in gradients.values())
        sides.append({"": y, **dict(each.named_buffers()), **gradients})
    ours, theirs = sides
    if name in OWN_NAMES:
        theirs = dict(zip(ours, theirs.values(), strict=True))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
