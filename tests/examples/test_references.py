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
    "googlenet": {"aux_logits": False, "init_weights": False},
    "mobilenet_v2": {},
}
"""Torchvision's networks, and how they are asked for; see tests/backends for the first two."""
OWN_NAMES = {"densenet_bc_40_12", "eas_start", "lenet_300_100"}
"""Networks with paths of their own, in the order of the others' keys."""


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


@pytest.mark.parametrize("name", sorted({*TORCHVISION, *OWN_NAMES, "nasbench201"}))
def test_the_same_bits(name: str) -> None:
    torch = pytest.importorskip("torch")
    from archir.backends import torch_fx

    graph, other = example(name), reference(name)
    weights = init_weights(graph, STANDARD, 0, random_statistics=True)
    module = torch_fx.lower(graph, weights)
    state, keys = module.state_dict(), list(other.state_dict())
    if name in OWN_NAMES:
        assert len(state) == len(keys)
        state = dict(zip(keys, state.values(), strict=True))
    assert state.keys() == set(keys)
    assert all(state[key].shape == value.shape for key, value in other.state_dict().items())
    other.load_state_dict(state, assign=True)
    (entry,) = graph.inputs
    shape = [s for s in graph.node(entry).types[0].shape if isinstance(s, int)]
    stream = np.random.Generator(np.random.PCG64(0))
    x = torch.from_numpy(stream.standard_normal((2, *shape), np.float32))
    with torch.inference_mode():
        y, z = module.eval()(x), other.eval()(x)
    assert y.std() > 0
    assert torch.equal(y, z)
