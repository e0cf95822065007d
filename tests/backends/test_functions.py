"""Functions, comparisons, reductions and copies: torch's very functions, and every opset."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError, Source
from archir.ir.dims import Dim
from archir.ir.graph import Graph
from archir.ir.types import TensorType
from archir.lang import load, print_graph
from archir.ops import STANDARD, compare, functions, reduce, spread
from archir.ops.record import Op, Sample

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
from archir.backends import onnx as backend  # noqa: E402
from archir.backends import torch_fx  # noqa: E402
from archir.backends.onnx import runtime  # noqa: E402
from torch.nn import functional  # noqa: E402

Made = Callable[..., Any]
INF = math.inf
MEMBERS = [
    *(*functions.OPS, *compare.OPS, *reduce.OPS, *spread.OPS),
    *(STANDARD["hardtanh"], STANDARD["addcmul"], STANDARD["power"]),
]
BOUND = 5e-6

EXACT: list[tuple[str, dict[str, Any], int, Made]] = [
    ("log", {}, 1, lambda x: x.log()),
    ("reciprocal", {}, 1, lambda x: 1 / x),
    ("rsqrt", {}, 1, lambda x: x.rsqrt()),
    ("pow", {"exponent": -0.5}, 1, lambda x: x**-0.5),
    ("sin", {}, 1, lambda x: x.sin()),
    ("cos", {}, 1, lambda x: x.cos()),
    ("tan", {}, 1, lambda x: x.tan()),
    ("atan", {}, 1, lambda x: x.atan()),
    ("erf", {}, 1, lambda x: x.erf()),
    ("sign", {}, 1, lambda x: x.sign()),
    ("floor", {}, 1, lambda x: x.floor()),
    ("ceil", {}, 1, lambda x: x.ceil()),
    ("round", {}, 1, lambda x: x.round()),
    ("pow", {"exponent": 2.0}, 1, lambda x: x**2),
    ("pow", {"exponent": 2.0}, 1, lambda x: x.square()),
    ("pow", {"exponent": 3.0}, 1, lambda x: x.pow(3)),
    ("pow", {"exponent": 0.7}, 1, lambda x: x.pow(0.7)),
    ("pow", {"exponent": -2.0}, 1, lambda x: x**-2),
    ("power", {}, 2, torch.pow),
    ("log_sigmoid", {}, 1, functional.logsigmoid),
    ("threshold", {"threshold": 0.3, "value": 7.0}, 1, lambda x: functional.threshold(x, 0.3, 7)),
    ("hardshrink", {}, 1, functional.hardshrink),
    ("softshrink", {"width": 0.2}, 1, lambda x: functional.softshrink(x, 0.2)),
    ("hardtanh", {"low": 1e-12, "high": INF}, 1, lambda x: x.clamp_min(1e-12)),
    ("hardtanh", {"low": -INF, "high": 0.25}, 1, lambda x: x.clamp(max=0.25)),
    ("hardtanh", {"low": -INF, "high": math.log(100)}, 1, lambda x: x.clamp(max=math.log(100))),
    ("hardtanh", {"low": -0.5, "high": 0.25}, 1, lambda x: torch.clamp(x, -0.5, 0.25)),
    ("minimum", {}, 2, torch.min),
    ("maximum", {}, 2, torch.max),
    ("equal", {}, 2, lambda x, y: x == y),
    ("not_equal", {}, 2, lambda x, y: x != y),
    ("less", {}, 2, lambda x, y: x < y),
    ("less_equal", {}, 2, lambda x, y: x <= y),
    ("greater", {}, 2, lambda x, y: x > y),
    ("greater_equal", {}, 2, lambda x, y: x >= y),
    ("addcmul", {}, 3, torch.addcmul),
    ("addcmul", {"value": 0.3}, 3, lambda x, y, z: x.addcmul(y, z, value=0.3)),
    ("prod", {"axes": 1}, 1, lambda x: x.prod(1)),
    ("min", {"axes": (-1,), "keep": True}, 1, lambda x: x.min(-1, keepdim=True).values),
    ("max", {"axes": (1,)}, 1, lambda x: x.max(1)[0]),
    ("var", {"axes": (2, 3), "keep": True}, 1, lambda x: x.var((2, 3), keepdim=True)),
    ("var", {"axes": 1, "correction": 0}, 1, lambda x: x.var(1, unbiased=False)),
    ("var", {"axes": (2, 3)}, 1, lambda x: torch.var_mean(x, (2, 3))[0]),
    ("std", {"axes": (1,)}, 1, lambda x: x.std(1)),
    ("l2_norm", {"axes": 1, "keep": True}, 1, lambda x: x.norm(dim=1, keepdim=True)),
    ("l2_norm", {"axes": (2, 3)}, 1, lambda x: torch.linalg.vector_norm(x, dim=(2, 3))),
    ("argmax", {"axis": 1}, 1, lambda x: x.max(1).indices),
    ("argmin", {"axis": -1, "keep": True}, 1, lambda x: x.argmin(-1, keepdim=True)),
    ("cumsum", {"axis": 2}, 1, lambda x: x.cumsum(2)),
    ("flip", {"axes": (1, 3)}, 1, lambda x: x.flip(1, 3)),
    ("tile", {"repeats": (2, 1, 3, 1, 2)}, 1, lambda x: x.repeat(2, 1, 3, 1, 2)),
    ("repeat_interleave", {"repeats": 3}, 1, lambda x: x.repeat_interleave(3, dim=1)),
    ("cast", {"dtype": "i64"}, 1, lambda x: x.long()),
    ("cast", {"dtype": "f16"}, 1, lambda x: x.half()),
    ("cast", {"dtype": "bf16"}, 1, lambda x: x.bfloat16()),
    ("cast", {"dtype": "f64"}, 1, lambda x: x.double()),
    ("cast", {"dtype": "bool"}, 1, lambda x: x.bool()),
]
"""A use of an operator, how many tensors it reads, and what a network of torch has there."""
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}


def alone(net: Any, op: str, types: tuple[TensorType, ...], attrs: dict[str, Any]) -> Graph:
    """A network of one node."""
    inputs = []
    for number, type_ in enumerate(types):
        inputs.append(net.input(f"x{number}", *type_.shape, dtype=type_.dtype))
    return net.build(y=net.add("node", op, *inputs, **attrs))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("op", "attrs", "count", "function"), EXACT)
def test_torch_runs_its_own_function(
    net: Any, op: str, attrs: dict[str, Any], count: int, function: Made, dtype: str
) -> None:
    shape = (3, 5, 33, 7)
    graph = alone(net, op, (TensorType(dtype, shape),) * count, attrs)
    stream = torch.Generator().manual_seed(1)
    for batch in (1, 3):
        given = [
            torch.randn((batch, *shape[1:]), generator=stream).to(TYPES[dtype])
            for _ in range(count)
        ]
        if op in ("log", "rsqrt", "pow", "power"):
            given = [x.abs() + 0.01 for x in given]
        if op in ("equal", "not_equal"):
            given = [x.round() for x in given]
        wanted, found = function(*given), torch_fx.lower(graph, {}).eval()(*given)
        assert wanted.dtype == found.dtype
        assert torch.equal(wanted, found)
        assert wanted.stride() == found.stride()


@pytest.mark.parametrize("bounds", [(1, 3), (-INF, 2), (2, INF), (-INF, INF)])
def test_whole_numbers_are_clamped_by_whole_ones(net: Any, bounds: tuple[float, float]) -> None:
    low, high = (float(b) for b in bounds)
    graph = alone(net, "hardtanh", (TensorType("i64", (9,)),), {"low": low, "high": high})
    x = torch.arange(-4, 5)
    wanted = x.double().clamp(low, high).long()
    assert torch.equal(torch_fx.lower(graph, {})(x), wanted)
    (exported,) = backend.forward(graph, {}, {"x0": x.numpy()})
    assert exported.dtype == np.int64
    assert exported.tolist() == wanted.tolist()


def _fed(sample: Sample) -> dict[str, Any]:
    stream = np.random.Generator(np.random.PCG64(4))
    feeds = {}
    for number, type_ in enumerate(sample.inputs):
        shape = [size if isinstance(size, int) else 2 for size in type_.shape]
        values = np.asarray(stream.standard_normal(shape), np.float32)
        if type_.dtype == "f32":
            feeds[f"x{number}"] = np.asarray(np.abs(values)) if sample.positive else values
        else:
            most, kind = (2, np.bool_) if type_.dtype == "bool" else (4, np.int64)
            feeds[f"x{number}"] = np.asarray(stream.integers(0, most, shape), kind)
    return feeds


@pytest.mark.parametrize("op", MEMBERS, ids=lambda op: op.name)
def test_every_opset_says_the_same(net_of: Any, op: Op) -> None:
    for sample in op.samples:
        graph = alone(net_of(), op.name, sample.inputs, dict(sample.attrs))
        feeds = _fed(sample)
        (wanted,) = torch_fx.forward(graph, {}, feeds)
        for opset in range(backend.OLDEST, backend.newest() + 1):
            made = backend.build(graph, {}, opset=opset)
            (found,) = runtime.run(runtime.session(made.SerializeToString()), feeds)
            assert found.dtype == wanted.dtype
            assert found.shape == wanted.shape
            if wanted.dtype == np.float32:
                assert np.abs(found - wanted).max() <= BOUND * np.abs(wanted).max(), opset
            else:
                assert np.array_equal(found, wanted), opset


@pytest.fixture
def net_of(net: Any) -> Any:
    return type(net)


ZERO_AXES = [
    (op, sample.attrs)
    for op in (*functions.OPS, *compare.OPS, STANDARD["hardtanh"], STANDARD["addcmul"])
    for sample in op.samples[:1]
]


@pytest.mark.parametrize(("op", "attrs"), ZERO_AXES, ids=lambda v: getattr(v, "name", ""))
def test_single_numbers(net: Any, op: Op, attrs: dict[str, Any]) -> None:
    """Tensors without axes, one of them stretched over the other where there are two."""
    types = tuple(TensorType(t.dtype, ()) for t in op.samples[0].inputs)
    graph = alone(net, op.name, types, dict(attrs))
    feeds = _fed(Sample(types, positive=True))
    (wanted,) = torch_fx.forward(graph, {}, feeds)
    (found,) = backend.forward(graph, {}, feeds)
    assert wanted.shape == found.shape == ()
    assert wanted.dtype == found.dtype
    assert np.allclose(wanted, found, rtol=BOUND, atol=0)


OPEN = [
    ("cumsum", {"axis": 1}, (2, 7, 4)),
    ("flip", {"axes": (0, 1)}, (2, 7, 4)),
    ("tile", {"repeats": (3, 2, 1)}, (6, 14, 4)),
    ("repeat_interleave", {"repeats": 2, "axis": 1}, (2, 14, 4)),
    ("argmax", {"axis": 1}, (2, 4)),
    ("var", {"axes": 1, "correction": 0}, (2, 4)),
    ("std", {"axes": 2}, (2, 7)),
    ("l2_norm", {"axes": (1, 2)}, (2,)),
    ("prod", {"axes": (1,), "keep": True}, (2, 1, 4)),
    ("min", {"axes": 1}, (2, 4)),
]


@pytest.mark.parametrize(("op", "attrs", "shape"), OPEN)
def test_open_sizes(net: Any, op: str, attrs: dict[str, Any], shape: tuple[int, ...]) -> None:
    graph = net.build(y=net.add("node", op, net.input("x", "N", "T", 4), **attrs))
    x = np.random.Generator(np.random.PCG64(0)).standard_normal((2, 7, 4), np.float32)
    (wanted,) = torch_fx.forward(graph, {}, {"x": x})
    (found,) = backend.forward(graph, {}, {"x": x})
    assert found.shape == wanted.shape == shape
    assert np.abs(found - wanted).max() <= BOUND * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("op", "attrs", "says"),
    [
        ("repeat_interleave", {"repeats": 2, "axis": 0}, "another"),
        ("var", {"axes": 1}, "a symbolic number"),
    ],
)
def test_open_sizes_that_onnx_cannot_express(
    net: Any, op: str, attrs: dict[str, Any], says: str
) -> None:
    graph = net.build(y=net.add("node", op, net.input("x", "N", "T", 4), **attrs))
    assert isinstance(graph.node("x").types[0].shape[0], Dim)
    with pytest.raises(ArchirError) as caught:
        backend.build(graph, {})
    (found,) = caught.value.diagnostics
    assert (found.code, caught.value.status) == ("A502", 3)
    assert says in found.message


@pytest.mark.parametrize("op", ["max", "min"])
def test_whether_any_or_all_are_true(net: Any, op: str) -> None:
    x = net.input("x", "N", 4, 3, dtype="bool")
    graph = net.build(y=net.add("node", op, x, axes=(1,)))
    values = np.random.Generator(np.random.PCG64(0)).random((50, 4, 3)) < 0.6
    wanted = values.any(1) if op == "max" else values.all(1)
    assert 0 < wanted.sum() < wanted.size
    for found in (backend, torch_fx):
        (result,) = found.forward(graph, {}, {"x": values})
        assert result.dtype == np.bool_
        assert np.array_equal(result, wanted)


def test_a_padding_that_never_wins(net: Any) -> None:
    x = net.input("x", "N", 3, 5, 6)
    y = net.add("pad", "pad", x, before=(0, 0, 0, 1), after=(0, 0, 1, 1), value=-INF)
    graph = net.build(y=net.add("pool", "max_pool", y, kernel=3, stride=2))
    values = np.random.Generator(np.random.PCG64(0)).standard_normal((2, 3, 5, 6), np.float32)
    given = torch.from_numpy(values)
    padded = functional.pad(given, (1, 1, 0, 1), value=-INF)
    wanted = functional.max_pool2d(padded, 3, 2)
    for found in (torch_fx, backend):
        (result,) = found.forward(graph, {}, {"x": values})
        assert torch.equal(torch.from_numpy(result), wanted)


TEXT = """version 1
arch choices {
    input x: f32[N, 4, 6]
    scale = x |> l2_norm(-1, keep = true) |> hardtanh(low = 1e-12, high = inf)
    unit = x / scale
    high = unit |> pow(2.0) |> less(constant(0.1))
    masked = where(high, constant(-inf), unit)
    places = masked |> argmax(1) |> cast(f32)
    least = maximum(places, min(unit, 1))
    output y = least |> tile([1, 2]) |> hardtanh(low = -inf, high = 2.5)
}
"""


def test_text_with_infinite_numbers() -> None:
    graph = load(Source("choices.arch", TEXT), STANDARD).graph
    assert [n.attrs for n in graph][-1] == {"low": -INF, "high": 2.5}
    again = load(Source("again.arch", print_graph(graph, STANDARD)), STANDARD).graph
    assert {n.name: (n.op, n.attrs) for n in again} == {n.name: (n.op, n.attrs) for n in graph}
    x = np.random.Generator(np.random.PCG64(0)).standard_normal((3, 4, 6), np.float32)
    (wanted,) = torch_fx.forward(graph, {}, {"x": x})
    (found,) = backend.forward(again, {}, {"x": x})
    assert np.array_equal(np.rint(wanted), np.rint(found))
    assert np.abs(wanted - found).max() <= BOUND * np.abs(wanted).max()
