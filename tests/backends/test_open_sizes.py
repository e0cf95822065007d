"""Networks whose tokens or pixels are not counted until they run, through both backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.ir.graph import Graph
from archir.ops import STANDARD
from archir.weights.init import init_weights

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
from archir.backends import onnx as backend
from archir.backends import torch_fx

OPSETS = (17, 20, backend.newest())
BOUND = 5e-6


def tokens(net: Any) -> Graph:
    x = net.input("x", "N", "T", 12)
    y = net.add("norm", "layer_norm", x)
    y = net.add("up", "linear", y, out=24)
    y = net.add("down", "linear", net.add("act", "gelu", y), out=12)
    y = net.add("sum", "add", x, net.add("drop", "stochastic_depth", y))
    return net.build(y=net.add("end", "rms_norm", net.add("gate", "silu", y)))


def pixels(net: Any) -> Graph:
    y = net.add("norm", "group_norm", net.input("x", "N", 6, "H", "W"), groups=3)
    y = net.add("up", "conv_transpose", y, out=8, kernel=(4, 2), stride=2, padding=(1, 0))
    y = net.add("each", "instance_norm", y, affine=True)
    y = net.add("near", "local_response_norm", net.add("act", "prelu", y), size=4)
    return net.build(y=net.add("end", "log_softmax", y, axis=1))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("make", [tokens, pixels])
def test_one_file_runs_at_any_size(net: Any, make: Any, opset: int, tmp_path: Path) -> None:
    graph = make(net)
    weights = init_weights(graph, STANDARD, 1, random_statistics=True)
    report = backend.export(graph, weights, tmp_path / "n.onnx", opset)
    assert report.drift["y"] <= BOUND
    for sizes in ((1, 3, 5), (2, 7, 4)):
        shape = [sizes[0], sizes[1], 12] if make is tokens else [sizes[0], 6, *sizes[1:]]
        x = np.random.Generator(np.random.PCG64(0)).standard_normal(shape, np.float32)
        (a,) = torch_fx.forward(graph, weights, {"x": x})
        (b,) = backend.forward(graph, weights, {"x": x})
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= BOUND * np.abs(a).max()


@pytest.mark.parametrize(
    ("op", "attrs", "shape"),
    [
        ("layer_norm", {"affine": False}, ("N", 3, "T")),
        ("rms_norm", {"affine": False, "axes": 2}, ("N", "T", 3)),
        ("instance_norm", {}, ("N", "C", 5)),
    ],
)
def test_normalised_axes_need_numbers(net: Any, op: str, attrs: Any, shape: Any) -> None:
    graph = net.build(y=net.add("norm", op, net.input("x", *shape), **attrs))
    for run in (torch_fx.forward, backend.forward):
        with pytest.raises(ArchirError, match="number") as caught:
            run(graph, {}, {"x": np.zeros((2, 3, 5), np.float32)})
        assert caught.value.diagnostics[0].code == "A502"
