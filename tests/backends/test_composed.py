"""Layers that are composed of operators, against the layers that torch and torchvision have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import Source
from archir.ir.graph import Graph, Value
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating
from archir.ops.cost import cost
from archir.ops.evaluate import run
from archir.weights.init import init_weights

torch = pytest.importorskip("torch")
from archir.backends import torch_fx  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

BOUND = 1e-5


def network(text: str) -> Graph:
    return load(Source("test.arch", f"arch test {{\n{text}\n}}\n"), STANDARD).graph


def draw(*shape: int, seed: int = 0) -> Any:
    stream = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(stream.standard_normal(shape, np.float32))


def close(expected: Any, found: Any) -> bool:
    expected, found = np.asarray(expected.detach()), np.asarray(found)
    far = np.abs(expected - found).max()
    return bool(expected.shape == found.shape and far <= BOUND * np.abs(expected).max() > 0)


def everywhere(graph: Graph, expected: Any, *inputs: Any, path: Path, **weights: Any) -> None:
    """The reference, torch and, in two opsets, ONNX Runtime give what is expected."""
    feeds = {name: x.numpy() for name, x in zip(graph.inputs, inputs, strict=True)}
    given = {name: np.asarray(w.detach()) for name, w in weights.items()}
    assert given.keys() == graph.parameters.keys()
    fed = {Value(name): array for name, array in feeds.items()}
    (output,) = graph.outputs
    plain = run(graph, STANDARD, Floating(np.float32), fed, given).values[output.value]
    assert close(expected, plain)
    assert close(expected, torch_fx.lower(graph, given).eval()(*inputs).detach())
    pytest.importorskip("onnxruntime")
    from archir.backends import onnx

    for opset in (17, 20):
        report = onnx.export(graph, given, path / f"{opset}.onnx", opset)
        assert max(report.drift.values()) <= BOUND


SHUFFLE = """
    input x: f32[N, 6, 4, 5]
    output x |> reshape([0, 2, 3, 4, 5]) |> permute([0, 2, 1, 3, 4]) |> reshape([0, -1, 4, 5])
"""


def test_channel_shuffle(tmp_path: Path) -> None:
    graph, x = network(SHUFFLE), draw(3, 6, 4, 5)
    everywhere(graph, functional.channel_shuffle(x, 2), x, path=tmp_path)


PARTITION = """
    input x: f32[N, 6, 8, 5]
    parts = x |> reshape([0, 2, 3, 2, 4, 5]) |> permute([0, 1, 3, 2, 4, 5])
    windows = parts |> reshape([-1, 12, 5])
    output windows |> reshape([-1, 2, 2, 3, 4, 5]) |> permute([0, 1, 3, 2, 4, 5]) {back}
"""


@pytest.mark.parametrize("back", ["", "|> reshape([-1, 6, 8, 5])"])
def test_window_partition_and_back(back: str, tmp_path: Path) -> None:
    graph, x = network(PARTITION.format(back=back)), draw(3, 6, 8, 5)
    assert str(graph.node("windows").types[0]) == "f32[4*N, 12, 5]"
    apart = x.view(3, 2, 3, 2, 4, 5)
    everywhere(graph, x if back else apart, x, path=tmp_path)


PACKED = """
    input x: f32[N, 7, 12]
    q, k, v = x |> own: linear(36) params {{ weight: "in_proj_weight", bias: "in_proj_bias" }}
               |> chunk(3, axis = -1)
    output y = attention(q, k, v, heads = 4, causal = {causal}) |> out_proj: linear(12)
"""
SEPARATE = """
    input x: f32[N, 5, 12]
    input keys: f32[N, 7, 8]
    input values: f32[N, 7, 6]
    q = x |> linear(12)
    k = keys |> linear(12)
    v = values |> linear(12)
    output y = attention(q, k, v, heads = 3) |> out_proj: linear(12)
"""


@pytest.mark.parametrize("causal", ["true", "false"])
def test_packed_multi_head_attention(causal: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(12, 4, batch_first=True), draw(2, 7, 12)
    nn.init.normal_(layer.in_proj_bias)
    nn.init.normal_(layer.out_proj.bias)
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal == "true" else None
    graph = network(PACKED.format(causal=causal))
    named = dict(layer.named_parameters())
    weights = {path: named[path.removeprefix("q.own.")] for path in graph.parameters}
    everywhere(graph, layer(x, x, x, attn_mask=hidden)[0], x, path=tmp_path, **weights)


def test_separate_multi_head_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 3, kdim=8, vdim=6, batch_first=True)
    nn.init.normal_(layer.in_proj_bias)
    x, keys, values = draw(2, 5, 12), draw(2, 7, 8, seed=1), draw(2, 7, 6, seed=2)
    named = dict(layer.named_parameters())
    weights = {"out_proj.weight": named["out_proj.weight"], "out_proj.bias": named["out_proj.bias"]}
    for role, bias in zip("qkv", named["in_proj_bias"].chunk(3), strict=True):
        weights |= {f"{role}.weight": named[f"{role}_proj_weight"], f"{role}.bias": bias}
    graph = network(SEPARATE)
    everywhere(graph, layer(x, keys, values)[0], x, keys, values, path=tmp_path, **weights)
    # Five queries with seven keys, and their weights with seven values, in three heads of four.
    assert {c.node: c.macs for c in cost(graph, STANDARD).layers}["attention"] == 2 * 3 * 5 * 7 * 4


WINDOWED = """
    input x: f32[N, 4, 5, 6]
    input bias: f32[2, 5, 5]
    input mask: f32[4, 1, 5, 5]
    shut = bias + mask
    output attention(x, x, x, shut, heads = 2, scale = 0.5, causal = {causal})
"""


@pytest.mark.parametrize("causal", ["true", "false"])
def test_a_mask_over_windows_and_heads(causal: str, tmp_path: Path) -> None:
    """As in Swin: a bias of each head, and a mask of each window, for the whole batch."""
    x, bias = draw(3, 4, 5, 6), draw(2, 5, 5, seed=1)
    mask = draw(4, 1, 5, 5, seed=2)
    shut = bias + mask
    if causal == "true":
        shut = shut + torch.full((5, 5), float("-inf")).triu(1)
    apart = x.unflatten(-1, (2, 3)).transpose(-3, -2)
    scores = apart @ apart.transpose(-2, -1) * 0.5 + shut
    expected = (scores.softmax(-1) @ apart).transpose(-3, -2).flatten(-2)
    graph = network(WINDOWED.format(causal=causal))
    everywhere(graph, expected, x, bias, mask, path=tmp_path)


SQUEEZE = """
    input x: f32[N, 8, 6, 5]
    gate = x |> adaptive_avg_pool(1) |> fc1: conv(2) |> relu |> fc2: conv(8) |> sigmoid
    output x * gate
"""


def test_squeeze_and_excitation(tmp_path: Path) -> None:
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(0)
    layer, x = ops.SqueezeExcitation(8, 2), draw(3, 8, 6, 5)
    weights = {f"gate.{name}": w for name, w in layer.named_parameters()}
    everywhere(network(SQUEEZE), layer(x), x, path=tmp_path, **weights)


TOKENS = """
    input x: f32[N, 6, 8]
    param token: f32[1, 1, 8] = 0.5
    param place: f32[1, 7, 8] = 0.25
    all = concat(expand(token, x), x, axis = 1) + place
    output all |> layer_norm |> select(0)
"""


def test_a_class_token_stands_before_the_others(tmp_path: Path) -> None:
    graph, x = network(TOKENS), draw(3, 6, 8)
    token, place = draw(1, 1, 8, seed=1), draw(1, 7, 8, seed=2)
    norm = init_weights(graph, STANDARD, 3, random_statistics=True)
    norm = {p: torch.from_numpy(w) for p, w in norm.items() if p not in ("token", "place")}
    (scale,) = (w for p, w in norm.items() if p.endswith("weight"))
    (shift,) = (w for p, w in norm.items() if p.endswith("bias"))
    rows = torch.cat([token.expand(3, -1, -1), x], 1) + place
    expected = functional.layer_norm(rows, (8,), scale, shift)[:, 0]
    everywhere(graph, expected, x, path=tmp_path, token=token, place=place, **norm)


BIASED = """
    input tokens: i64[N, 5]
    input x: f32[N, 3, 5, 5]
    param table: f32[9, 3] = 0.0
    rows = tokens |> embedding(11, 4)
    places = constant([[0, 1, 2, 3, 4], [1, 0, 1, 2, 3], [2, 1, 0, 1, 2], [3, 2, 1, 0, 1],
                       [8, 7, 6, 5, 0]], dtype = i64)
    bias = gather(table, places) |> permute([2, 0, 1]) |> unsqueeze(0)
    output matmul((x + bias) |> max([1]), rows)
"""


def test_tables_of_words_and_of_places(tmp_path: Path) -> None:
    graph, x = network(BIASED), draw(3, 3, 5, 5)
    tokens = torch.tensor([[0, 10, 3, 3, 7], [1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
    table, words = draw(9, 3, seed=1), draw(11, 4, seed=2)
    places = torch.tensor(graph.node("places").attrs["value"])
    expected = (x + table[places].permute(2, 0, 1)).amax(1) @ words[tokens]
    weights = {"table": table, "rows.weight": words}
    everywhere(graph, expected, tokens, x, path=tmp_path, **weights)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_padding_in_torch_and_by_hand(mode: str, rank: int, tmp_path: Path) -> None:
    """All spatial axes go to torch's padding at once; with the channels each axis by itself."""
    shape = (2, 3, 4, 5, 6)[:rank]
    widths = [0, 0, 1, 2, 3][:rank]
    for channels in (0, 2):
        before = [0, channels, *widths[2:]]
        body = f'output x |> pad({before}, {widths}, mode = "{mode}")'
        graph = network(f"input x: f32[{', '.join(map(str, shape))}]\n{body}")
        x = draw(*shape)
        style: Any = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
        pairs = list(zip(before, widths, strict=True))
        expected = torch.from_numpy(np.pad(x.numpy(), pairs, mode=style))
        everywhere(graph, expected, x, path=tmp_path)
        calls = str(torch_fx.lower(graph).graph)
        assert ("index_select" in calls) == bool(channels)
        for file in tmp_path.iterdir():
            file.unlink()


def test_several_symbols_go_through_a_reshape() -> None:
    graph = network("input x: f32[N, 6, T]\noutput y = x |> reshape([0, 2, 3, -1])")
    assert str(graph.type_of(graph.outputs[0].value)) == "f32[N, 2, 3, T]"
    module = torch_fx.lower(graph)
    for n, t in ((2, 5), (3, 4)):
        x = draw(n, 6, t)
        assert torch.equal(module(x), x.view(n, 2, 3, t))
