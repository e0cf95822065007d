"""Layers of torch whose tensors are computed, windows, resizing, attention: each is raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from archir.target import ImportOptions

torch = pytest.importorskip("torch")
from archir.backends.torch_fx.raising import Source, bring  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

Made = Callable[[Any, Any], Any]


def standardised(net: Any, x: Any) -> Any:
    w = net.conv.weight.reshape(1, 4, -1)
    w = functional.batch_norm(w, None, None, weight=net.gain, training=True, momentum=0.0, eps=1e-6)
    return functional.conv2d(x, w.reshape_as(net.conv.weight), net.conv.bias, padding=1)


def attended(net: Any, x: Any, **more: Any) -> Any:
    t = x.flatten(2).transpose(1, 2)
    heads = t.unflatten(-1, (2, 2)).transpose(1, 2)
    return functional.scaled_dot_product_attention(heads, heads * 0.5, heads + 1, **more)


def biased(net: Any, x: Any) -> Any:
    bias = net.table[net.places.view(-1)].view(56, 56, 2).permute(2, 0, 1)
    return attended(net, x, attn_mask=bias.unsqueeze(0))


def masked(net: Any, x: Any) -> Any:
    return attended(net, x, attn_mask=net.places[None, None] > 2, scale=0.3)


def dynamic(net: Any, x: Any) -> Any:
    return functional.linear(x, net.conv.weight.sum((2, 3))[:, :1] * x.mean() + torch.ones(4, 8))


def resized(mode: str, **given: Any) -> Made:
    return lambda net, x: functional.interpolate(x, mode=mode, **given)


RAISED: list[tuple[Made, set[str]]] = [
    (standardised, {"dynamic_conv", "dynamic_batch_norm"}),
    (dynamic, {"dynamic_linear"}),
    (attended, {"scaled_dot_product_attention"}),
    (lambda net, x: attended(net, x, is_causal=True), {"scaled_dot_product_attention"}),
    (biased, {"scaled_dot_product_attention", "gather", "parameter"}),
    (masked, {"scaled_dot_product_attention", "greater", "parameter"}),
    (resized("bicubic", size=(5, 9)), {"interpolate"}),
    (resized("bilinear", size=(11, 4), align_corners=True), {"interpolate"}),
    (resized("bilinear", scale_factor=(1.5, 0.7)), {"interpolate"}),
    (resized("bilinear", size=(4, 4), antialias=True), {"interpolate"}),
    (resized("bicubic", scale_factor=0.6, antialias=True), {"interpolate"}),
    (resized("nearest", size=(10, 3)), {"interpolate"}),
    (resized("nearest-exact", scale_factor=1.7), {"interpolate"}),
    (lambda net, x: resized("linear", size=9)(net, x.flatten(2)), {"interpolate"}),
    (lambda net, x: resized("trilinear", size=(3, 4, 5))(net, x[:, None]), {"interpolate"}),
    (lambda net, x: functional.unfold(x, 3, padding=1, stride=2), {"unfold"}),
    (lambda net, x: functional.fold(functional.unfold(x, 2), (7, 8), 2), {"fold"}),
    (lambda net, x: x.unfold(2, 3, 2).unfold(3, 2, 1), {"windows"}),
    (lambda net, x: functional.avg_pool2d(x, 2, ceil_mode=True), {"avg_pool"}),
    (
        lambda net, x: functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        {"avg_pool"},
    ),
    (lambda net, x: functional.adaptive_max_pool2d(x, (3, 1)), {"adaptive_max_pool"}),
    (lambda net, x: functional.max_pool2d(x, 3, 2, return_indices=True)[0], {"max_pool"}),
    (lambda net, x: x[:, torch.tensor([[0, 3], [-1, 0]])], {"gather"}),
    (lambda net, x: x.index_select(3, torch.tensor([7, 0])), {"gather"}),
    (lambda net, x: x + torch.zeros(x.shape[0], 1, 7, 8), {"expand"}),
    (lambda net, x: x[:, :, 0, 0] + torch.ones(4, x.shape[0]).t(), {"expand", "transpose"}),
    (lambda net, x: x * torch.full_like(x, 0.3), {"expand"}),
]
CARRIED: list[tuple[Made, str]] = [
    (lambda net, x: x.cummax(2).values, "aten.cummax"),
    (lambda net, x: net.rnn(x.flatten(2).transpose(1, 2))[0], "aten.lstm"),
    (
        lambda net, x: functional.max_pool2d(x, 2, return_indices=True)[1].float(),
        "aten.max_pool2d_with_indices",
    ),
    (lambda net, x: functional.avg_pool2d(x, 2, divisor_override=3), "aten.avg_pool2d"),
    (lambda net, x: functional.grid_sample(x, x[:, :2].permute(0, 2, 3, 1)), "aten.grid_sampler"),
]  # fmt: skip


class Net(nn.Module):
    def __init__(self, *functions: Made) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(4) + 0.5)
        self.table = nn.Parameter(torch.randn(9, 2))
        self.rnn = nn.LSTM(4, 3, bidirectional=True, batch_first=True)
        self.register_buffer("places", torch.randint(0, 9, (56, 56)), persistent=False)
        self.functions = functions

    def forward(self, x: Any) -> Any:
        h = self.conv(x)
        return tuple(function(self, h) for function in self.functions)


def ops_before(graph: Any, name: str) -> set[str]:
    found: set[str] = set()
    stack = [name]
    while stack:
        node = graph.node(stack.pop())
        found.add(node.op)
        stack.extend(value.node for value in node.inputs)
    return found


@pytest.mark.filterwarnings("ignore:Default grid_sample")
def test_each_has_its_operator() -> None:
    """Importing compares what the two compute, bit for bit, at two batches."""
    torch.manual_seed(0)
    cases = [*RAISED, *((function, {op}) for function, op in CARRIED)]
    module = Net(*(function for function, _ in cases)).eval()
    found = bring(Source("net", "net", module, (torch.randn(2, 4, 7, 8),), {}), ImportOptions())
    assert len(found.graph.outputs) == len(cases)
    for place, (output, (_, ops)) in enumerate(zip(found.graph.outputs, cases, strict=True)):
        before = ops_before(found.graph, output.value.node)
        assert ops <= before, place
        assert {op for op in before if "." in op} == {op for op in ops if "." in op}, place
    assert not found.graph.parameters["places"].type.dtype.startswith("f")
    assert any(op in line for _, op in CARRIED for line in found.notes)
