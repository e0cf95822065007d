"""Attention whose heads are an axis: torch's own function, to the bit, and ONNX's answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph, Value
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating
from archir.ops.classes import AxisClasses
from archir.ops.evaluate import run

torch = pytest.importorskip("torch")
from archir.backends import onnx, torch_fx  # noqa: E402
from torch.nn import functional  # noqa: E402

TEXT = """arch net {
    input q: f32[N, 2, 5, 4]
    input k: f32[N, 2, 6, 4]
    input v: f32[N, 2, 6, 3]
    input mask: %s
    output y = scaled_dot_product_attention(q, k, v, mask)
}"""
BOUND = 1e-6


def graph(text: str) -> Graph:
    return load(Source("net.arch", text), STANDARD).graph


def feeds(mask: Any) -> dict[str, Any]:
    stream = np.random.Generator(np.random.PCG64(3))
    shapes = {"q": (3, 2, 5, 4), "k": (3, 2, 6, 4), "v": (3, 2, 6, 3)}
    arrays = {n: stream.standard_normal(s, np.float32) for n, s in shapes.items()}
    return {**arrays, "mask": mask}


@pytest.mark.parametrize("kind", ["bool", "f32"])
def test_a_query_that_sees_nothing_gets_zeros(kind: str) -> None:
    shown = np.random.Generator(np.random.PCG64(5)).random((3, 1, 5, 6)) < 0.6
    shown[1, 0, 2] = False
    mask = shown if kind == "bool" else np.where(shown, 0, -np.inf).astype(np.float32)
    given = feeds(mask)
    network = graph(TEXT % f"{kind}[N, 1, 5, 6]")
    (found,) = torch_fx.forward(network, {}, given)
    q, k, v, m = (torch.from_numpy(given[n]) for n in ("q", "k", "v", "mask"))
    wanted = functional.scaled_dot_product_attention(q, k, v, attn_mask=m)
    assert torch.equal(torch.from_numpy(found), wanted)
    assert not found[1, :, 2].any()
    fed = {Value(n): np.asarray(a, np.float64) for n, a in given.items()}
    reference = run(network, STANDARD, Floating(), fed, {}).values[network.outputs[0].value]
    assert np.abs(reference - found).max() <= BOUND
    if kind == "bool":
        (exported,) = onnx.forward(network, {}, given)
        assert np.abs(exported - found).max() <= BOUND


@pytest.mark.parametrize("opset", [17, 20, 23])
def test_every_opset_is_the_same_decomposition(opset: int) -> None:
    network = graph(TEXT % "bool[5, 6]")
    model = onnx.build(network, {}, opset)
    assert [n.op_type for n in model.graph.node if n.op_type != "Constant"] == [
        *("Transpose", "MatMul", "Mul", "Where", "Softmax", "Where", "MatMul"),
    ]


def test_heads_and_their_widths_are_classes() -> None:
    network = graph("""arch net {
        input x: f32[N, 5, 12]
        q = x |> linear(12) |> reshape([0, 0, 3, 4]) |> permute([0, 2, 1, 3])
        k = x |> linear(12) |> reshape([0, 0, 3, 4]) |> permute([0, 2, 1, 3])
        v = x |> linear(12) |> reshape([0, 0, 3, 4]) |> permute([0, 2, 1, 3])
        y = scaled_dot_product_attention(q, k, v) |> permute([0, 2, 1, 3]) |> flatten(2)
        output z = y |> linear(7)
    }""")
    found = AxisClasses(network, STANDARD).sites
    sizes = {site: (held.size, len(held.members)) for site, held in found.items()}
    assert sizes == {
        "q.linear.outer": (3, 7),
        "q.linear.inner": (4, 4),
        "v.linear.inner": (4, 3),
    }
    needs = {n.condition for n in found["q.linear.inner"].needs}
    assert needs == {"even"}


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("q, k, v, mask, causal = true", "A114"),
        ("q, k, v, mask, bool_mask = false", "A114"),
        ("q, k, v, image", "A110"),
        ("q, k, image", "A110"),
        ("q, q, v", "A110"),
    ],
)
def test_what_does_not_fit_is_said(call: str, code: str) -> None:
    text = TEXT % "bool[5, 6]\n    input image: f32[N, 4]"
    with pytest.raises(ArchirError) as caught:
        graph(text.replace("q, k, v, mask", call))
    assert caught.value.diagnostics[0].code == code
