"""Functions, comparisons and reductions of torch: each is raised to the operator that says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from archir.target import ImportOptions

torch = pytest.importorskip("torch")
from archir.backends.torch_fx.raising import Source, bring  # noqa: E402
from torch.nn import functional  # noqa: E402

Made = Callable[[Any], Any]
RAISED: list[tuple[Made, set[str]]] = [
    (lambda x: torch.log(x.abs() + 1), {"log"}),
    (lambda x: torch.rsqrt(x.square() + 1e-6), {"rsqrt", "pow"}),
    (lambda x: x.sin() * x.cos() + x.tan() - x.atan(), {"sin", "cos", "tan", "atan"}),
    (lambda x: x.erf() + x.floor() + x.ceil() + x.round(), {"erf", "floor", "ceil", "round"}),
    (lambda x: x.sign() * x.reciprocal(), {"sign", "reciprocal"}),
    (lambda x: x.pow(2) + x**3, {"pow"}),
    (functional.logsigmoid, {"log_sigmoid"}),
    (lambda x: functional.hardshrink(x, 0.3), {"hardshrink"}),
    (lambda x: functional.softshrink(x, 0.3), {"softshrink"}),
    (lambda x: functional.threshold(x, 0.1, 5.0), {"threshold"}),
    (lambda x: x.clamp(min=0.2) + x.clamp(max=1.5) + x.clamp(-1, 1), {"hardtanh"}),
    (lambda x: torch.minimum(x, -x) + torch.maximum(x, x * x), {"minimum", "maximum"}),
    (lambda x: torch.max(x, x.flip(2)) + torch.min(x, -x), {"minimum", "maximum", "flip"}),
    (lambda x: torch.where(x > 0.5, x, 2 * x), {"where", "greater"}),
    (lambda x: x.masked_fill(x < -1, -torch.inf).softmax(1), {"where", "less"}),
    (lambda x: (x != x.round()).float() + (x <= 0).float(), {"not_equal", "less_equal", "cast"}),
    (lambda x: ((x >= 0) == (x.sin() >= 0)).to(x.dtype), {"greater_equal", "equal"}),
    (lambda x: ((x > 0) & ~(x > 1) | (x < -2)).float(), {"logical_and", "logical_or"}),
    (lambda x: torch.logical_xor(x > 0, x.sin() > 0).float(), {"logical_xor"}),
    (lambda x: torch.addcmul(x, x, x, value=0.5), {"addcmul"}),
    (lambda x: torch.addcmul(x, x, x), {"addcmul"}),
    (lambda x: x.abs().clamp(min=1e-6) ** x.sigmoid(), {"power"}),
    (lambda x: x.var(1, keepdim=True) + x.std((2, 3), keepdim=True), {"var", "std"}),
    (lambda x: x.var((2, 3), correction=0), {"var"}),
    (lambda x: x.prod(1) + x.amin(1) + x.amax(1), {"prod", "min", "max"}),
    (lambda x: x.max(1).values + x.max(1).indices, {"max", "argmax", "cast"}),
    (lambda x: x.argmin(1).float(), {"argmin"}),
    (lambda x: (x > 0).sum(1).float(), {"sum", "cast"}),
    (lambda x: (x > 0).cumsum(2).float(), {"cumsum"}),
    (lambda x: functional.normalize(x, dim=1), {"l2_norm", "hardtanh"}),
    (lambda x: x.norm(dim=-1, keepdim=True), {"l2_norm"}),
    (lambda x: x.repeat(1, 2, 1, 1), {"tile"}),
    (lambda x: x.repeat_interleave(2, dim=1), {"repeat_interleave"}),
]


class Network(torch.nn.Module):
    """A convolution, and functions of what it makes."""

    def __init__(self, *functions: Made) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.functions = functions

    def forward(self, x: Any) -> Any:
        h = self.conv(x)
        return tuple(function(h) for function in self.functions)


def test_each_has_its_operator() -> None:
    """Importing compares what the two compute, bit for bit."""
    torch.manual_seed(0)
    functions = [function for function, _ in RAISED]
    source = Source("net", "net", Network(*functions).eval(), (torch.randn(2, 3, 8, 9),), {})
    graph = bring(source, ImportOptions()).graph
    assert len(graph.outputs) == len(RAISED)
    for output, (_, ops) in zip(graph.outputs, RAISED, strict=True):
        before: set[str] = set()
        stack = [output.value.node]
        while stack:
            node = graph.node(stack.pop())
            before.add(node.op)
            stack.extend(value.node for value in node.inputs)
        assert ops <= before
        assert not any(op.startswith("aten.") for op in before)


class Strided(torch.nn.Module):
    """A convolution of what lies in memory by columns, and one of the same by rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(64, 4, 1)

    def forward(self, x: Any) -> Any:
        return self.conv(x.permute(0, 3, 1, 2).contiguous())


def test_rows_stay_where_numbers_depend_on_them() -> None:
    torch.manual_seed(0)
    module, example = Strided().eval(), torch.randn(2, 16, 16, 64)
    turned = example.permute(0, 3, 1, 2)
    alike = torch.equal(module.conv(turned), module.conv(turned.contiguous()))
    graph = bring(Source("net", "net", module, (example,), {}), ImportOptions()).graph
    kept = [node for node in graph if node.op == "contiguous"]
    assert len(kept) == (0 if alike else 1)
