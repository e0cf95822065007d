"""Layers whose tensors the network computes: a weight that is standardised, widened and pruned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import archir
from archir.diag import ArchirError
from archir.ops import STANDARD
from archir.ops.cost import cost

from .nets import net

STANDARDISED = """arch net {
    input image: f32[N, 3, 8, 8]
    stem = image |> conv(6, 3) |> relu
    param conv.weight: f32[8, 6, 3, 3] = 1.0
    centred = conv.weight - (conv.weight |> mean([1, 2, 3], keep = true))
    spread = centred * centred |> mean([1, 2, 3], keep = true)
    y = dynamic_conv(stem, centred / (spread + 0.001 |> sqrt), padding = 1)
    output logits = y |> relu |> global_avg_pool |> fc: linear(10)
}"""


@pytest.fixture
def network(tmp_path: Path) -> archir.Network:
    file = tmp_path / "net.arch"
    file.write_text(STANDARDISED)
    return archir.load(file).init(1)


def test_a_standardised_convolution_is_widened_and_pruned(network: archir.Network) -> None:
    wide = network.rewrite("widen", at="conv.weight", width=12)
    assert wide.weights is not None
    assert wide.weights["conv.weight"].shape == (12, 6, 3, 3)
    assert "f32[12, 6, 3, 3]" in wide.text
    narrow = network.rewrite("prune.magnitude", at="conv.weight", width=5)
    assert narrow.weights is not None
    assert narrow.weights["conv.weight"].shape == (5, 6, 3, 3)


def test_what_it_sums_over_is_only_reordered(network: archir.Network) -> None:
    with pytest.raises(ArchirError) as caught:
        network.rewrite("widen", at="stem.conv", width=9)
    assert caught.value.status == 1


def test_its_work_is_that_of_the_layer() -> None:
    by_op = {}
    for text in (
        "dynamic_conv(x, w, b, stride = 2, padding = 1, groups = 2)",
        "x |> conv(8, 3, 2, groups = 2)",
    ):
        graph = net(f"""input x: f32[N, 6, 9, 7]
            param w: f32[8, 3, 3, 3]
            param b: f32[8]
            output y = {text}
            output z = w
            output u = b""")
        by_op.update({c.op: c.macs for c in cost(graph, STANDARD).layers})
    assert by_op["dynamic_conv"] == by_op["conv"] == 4 * 5 * 4 * 2 * 3 * 9
    graph = net("""input x: f32[N, 5, 6]
        param w: f32[4, 6]
        output y = dynamic_linear(x, w)""")
    assert cost(graph, STANDARD).macs == 5 * 6 * 4


@pytest.mark.parametrize(
    ("call", "code", "says"),
    [
        ("dynamic_batch_norm(x, v, v, v)", "", ""),
        ("dynamic_batch_norm(x, v, v, track = true, scale = true)", "A104", "reads 4 tensors"),
        ("dynamic_batch_norm(x, w)", "A110", "needs 1 axes"),
        ("dynamic_conv(x, v)", "A110", "needs 2 axes"),
        ("dynamic_conv(x, m)", "A110", "a kernel of"),
        ("dynamic_conv(x, w, groups = 2)", "A110", "dynamic_conv"),
        ("dynamic_linear(x, w)", "A110", "dynamic_linear"),
    ],
)
def test_what_does_not_fit_is_said(call: str, code: str, says: str) -> None:
    text = f"""input x: f32[N, 6, 9, 7]
        param w: f32[6, 6, 3, 3]
        param m: f32[6, 6, 3]
        param v: f32[6]
        output y = {call}"""
    if not code:
        assert len(net(text).node("dynamic_batch_norm").inputs) == 4
        return
    with pytest.raises(ArchirError, match=re.escape(says)) as caught:
        net(text)
    assert caught.value.diagnostics[0].code == code
