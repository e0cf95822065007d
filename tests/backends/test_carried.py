"""Operators of ATen that archir does not know: carried from torch to torch, refused elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir
from archir.diag import ArchirError, Source
from archir.ir.dims import symbol
from archir.ir.graph import Graph, Value
from archir.ir.types import TensorType
from archir.lang import load
from archir.lang.printer import print_graph
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating, Rational, Residues
from archir.ops.carried import read_arguments, read_types, write_arguments, write_types
from archir.ops.classes import AxisClasses
from archir.ops.evaluate import run

torch = pytest.importorskip("torch")
from archir.backends import onnx, torch_fx  # noqa: E402
from archir.backends.torch_fx import carried  # noqa: E402

TEXT = """arch net {
    input x: f32[N, 3, 8, 8]
    stem = x |> conv: conv(6, 3) |> relu
    rolled = stem |> aten.roll(arguments = "x0, shifts=[1, -2], dims=[2, 3]", result = "f32[N, 6, 8, 8]")
    head = rolled |> conv: conv(5) |> relu |> conv2: conv(4)
    best, places = aten.max(head, arguments = "x0, 1, True", result = "f32[N, 1, 8, 8], i64[N, 1, 8, 8]", overload = "dim")
    output y = best |> aten.reshape(arguments = "x0, [N, 64]", result = "f32[N, 64]") |> fc: linear(10)
    output which = places
}"""  # noqa: E501


def graph(text: str) -> Graph:
    return load(Source("net.arch", text), STANDARD).graph


@pytest.fixture
def network(tmp_path: Path) -> archir.Network:
    file = tmp_path / "net.arch"
    file.write_text(TEXT)
    return archir.load(file).init(1)


@pytest.mark.parametrize("batch", [1, 3])
def test_torch_runs_it_to_the_bit(network: archir.Network, batch: int) -> None:
    module = network.to_torch().eval()
    x = torch.randn(batch, 3, 8, 8)
    y, which = module(x)
    with torch.no_grad():
        head = module.stem.conv(x).relu().roll([1, -2], [2, 3])
        best, places = module.head.conv2(module.head.conv(head).relu()).max(1, keepdim=True)
        assert torch.equal(y, module.fc(best.reshape(batch, 64)))
    assert torch.equal(which, places)
    assert which.dtype is torch.int64


def test_the_text_is_the_graph_again(network: archir.Network) -> None:
    text = print_graph(network.graph, STANDARD)
    assert 'aten.roll(arguments = "x0, shifts=[1, -2], dims=[2, 3]"' in text
    assert print_graph(graph(text), STANDARD) == text
    names = [n.name for n in graph("arch a { input x: f32[2, 3] output y = x |> "
             'aten.neg(arguments = "x0", result = "f32[2, 3]") |> '
             'aten.neg(arguments = "x0", result = "f32[2, 3]") }')]  # fmt: skip
    assert names == ["x", "aten_neg1", "aten_neg2"]


def test_other_number_systems_refuse_it_by_name(network: archir.Network) -> None:
    for k in (Floating(), Rational(), Residues()):
        feeds = {Value("x"): k.array(np.ones((1, 3, 8, 8), np.int64))}
        weights = {p: k.array(np.ones(a.shape, np.int64)) for p, a in network.weights.items()}
        with pytest.raises(ArchirError, match=r"aten\.roll") as caught:
            run(network.graph, STANDARD, k, feeds, weights)
        assert (caught.value.diagnostics[0].code, caught.value.status) == ("A510", 3)


def test_onnx_refuses_it_by_name(network: archir.Network, tmp_path: Path) -> None:
    with pytest.raises(ArchirError, match=r"aten\.roll") as caught:
        onnx.export(network.graph, network.weights, tmp_path / "net.onnx")
    (found,) = caught.value.diagnostics
    assert (found.code, found.node, caught.value.status) == ("A501", "rolled", 3)
    assert not (tmp_path / "net.onnx").exists()


def test_rewrites_elsewhere_work_and_are_certified(
    network: archir.Network, tmp_path: Path, archir: Callable[..., Any]
) -> None:
    wide = network.rewrite("widen", at="head.conv", width=7).rewrite("deepen", at="stem.relu")
    file = wide.save(tmp_path / "wide.arch")
    assert archir("verify", file).status == 0
    module, old = wide.to_torch().eval(), network.to_torch().eval()
    x = torch.randn(2, 3, 8, 8)
    y, z = module(x)[0], old(x)[0]
    assert (y - z).abs().max() <= 1e-5 * z.abs().max()


def test_nothing_is_known_of_its_axes(network: archir.Network) -> None:
    classes = AxisClasses(network.graph, STANDARD)
    assert sorted(classes.sites) == ["head.conv"]
    (stem,) = [c for c in classes.classes.values() if c.name == "stem.conv"]
    assert [o.reason for o in stem.obstacles] == [
        "`aten.roll` is carried for torch alone, and what it does along that axis is not known"
    ]
    with pytest.raises(ArchirError, match="carried for torch alone"):
        network.rewrite("widen", at="stem.conv", width=9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x0",
        "x0, [1, -2], dims=[2, 3]",
        "[x0, None, x1], -1.5e-07, True, inf, -inf, None",
        "x1, x0, dtype=torch.float32, mode='bi\\'linear', size=[2*N, N/2], s=\"'\"",
        "x0, [[1, 2], []], 9223372036854775807",
    ],
)
def test_arguments_are_lossless(text: str) -> None:
    once = write_arguments(read_arguments(text))
    assert read_arguments(once) == read_arguments(text)
    assert write_arguments(read_arguments(once)) == once


def test_types_are_lossless() -> None:
    for text in ("f32[N, 3, 8]", "bool[]", "f32[2*N, N/2, M*N], i64[1]"):
        assert write_types(read_types(text)) == text


@pytest.mark.parametrize(
    ("arguments", "result", "says"),
    [
        ("x0, ", "f32[N, 3", "it is not written as"),
        ("x0", "f23[N, 3]", "it is not written as"),
        ("x0", "f32[N, n]", "`n` is no size"),
        ("x0", "f32[M, 3]", "a size `M` that none"),
        ("x0, [K]", "f32[N, 3]", "a size `K` that none"),
        ("x0, (lambda: 1)()", "f32[N, 3]", "is no number, text, list"),
        ("x0, __import__('os')", "f32[N, 3]", "is no number, text, list"),
        ("x0, os.environ", "f32[N, 3]", "is no number, text, list"),
        ("x0, *x1", "f32[N, 3]", "is no number, text, list"),
        ("x0, **x1", "f32[N, 3]", "`**` is none"),
        ("x0) or (x0", "f32[N, 3]", "not written as in a call"),
        ("x0, " + "[" * 2000, "f32[N, 3]", "not written as in a call"),
        ("x0, 1j", "f32[N, 3]", "is no number, text, list"),
        ("", "f32[N, 3]", "of 1 tensor they name `x0` nowhere"),
        ("x0, x1", "f32[N, 3]", "of 1 tensor they name `x1` too"),
        ("x0" + ", 1" * 2000, "f32[N, 3]", "more than 4096 characters"),
        ("x0, [N/0]", "f32[N, 3]", "is no size"),
    ],
)
def test_what_is_stated_wrong_is_said(arguments: str, result: str, says: str) -> None:
    text = f"""arch net {{ input x: f32[N, 3]
        output y = x |> aten.neg(arguments = "{arguments}", result = "{result}") }}"""
    with pytest.raises(ArchirError, match=re.escape(says)) as caught:
        graph(text)
    assert caught.value.diagnostics[0].code == "A141"


@pytest.mark.parametrize(
    ("name", "arguments", "code", "says"),
    [
        ("no_such", "x0", "A511", "no operator `aten.no_such`"),
        ("transpose", "x0, 0, 1", "A511", "with the overload `default`"),
        ("relu_", "x0", "A512", "writes to its operands"),
        ("rand_like", "x0", "A512", "draws random numbers"),
        ("dropout", "x0, 0.5, False", "A512", "draws random numbers"),
        ("from_file", "'/etc/passwd', False, 8, x0", "A512", "reads other things"),
        ("as_strided", "x0, [9], [1]", "A512", "reads other things"),
        ("empty_like", "x0", "A512", "reads other things"),
        ("nonzero", "x0", "A512", "depends on the entries"),
        ("numel", "x0", "A512", "something other than tensors"),
        ("_foreach_neg", "[x0]", "A512", "torch keeps to itself"),
        ("to_sparse", "x0", "A512", "not dense"),
        ("neg", "x0, 5", "A513", "torch refuses the call"),
        ("neg", "x0, dtype=torch.float32", "A513", "torch refuses the call"),
        ("_to_copy", "x0, dtype=torch.load", "A513", "`torch.load` is no element type"),
        ("_to_copy", "x0, dtype=torch.float64", "A513", "is float64[12, 3]"),
        ("t", "x0", "A513", "is float32[3, 12] (symbols taken for 12)"),
        ("roll", "x0, [99999999999999999999]", "A513", "torch refuses the call"),
        ("expand", "x0, [N/2, 3]", "A513", "torch refuses the call"),
    ],
)
def test_what_torch_does_not_run_is_said(name: str, arguments: str, code: str, says: str) -> None:
    network = graph(f"""arch net {{ input x: f32[N, 3]
        output y = x |> aten.{name}(arguments = "{arguments}", result = "f32[N, 3]") }}""")
    with pytest.raises(ArchirError, match=re.escape(says)) as caught:
        torch_fx.lower(network, {})
    assert (caught.value.diagnostics[0].code, caught.value.status) == (code, 3)


aten = torch.ops.aten
CALLS: list[tuple[Any, Callable[..., Any], int]] = [
    (aten.roll.default, lambda x, y, i, n: ((x, [1, -2], [2, 3]), {}), 1),
    (aten.cummax.default, lambda x, y, i, n: ((x, -1), {}), 2),
    (aten.stack.default, lambda x, y, i, n: (([x, y, x], 1), {}), 1),
    (aten.index.Tensor, lambda x, y, i, n: ((x, [None, None, i]), {}), 1),
    (
        aten._to_copy.default,
        lambda x, y, i, n: ((x,), {"dtype": torch.float64, "device": "cpu"}),
        1,
    ),
    (aten.unbind.int, lambda x, y, i, n: ((y, 1), {}), 6),
    (aten.view.default, lambda x, y, i, n: ((x, [n, 6, 35]), {}), 1),
    (aten.div.Tensor_mode, lambda x, y, i, n: ((x, y), {"rounding_mode": "floor"}), 1),
    (aten.clamp.default, lambda x, y, i, n: ((x, None, 0.25), {}), 1),
    (aten.contiguous.default, lambda x, y, i, n: ((x,), {"memory_format": torch.channels_last}), 1),
]


@pytest.mark.parametrize(("target", "call", "count"), CALLS, ids=[str(c[0]) for c in CALLS])
def test_calls_of_a_captured_program_are_stated(target: Any, call: Any, count: int) -> None:
    held = torch.fx.Graph()
    nodes = {name: held.placeholder(name) for name in "xyin"}
    values = {"x": torch.randn(3, 6, 5, 7), "y": torch.randn(3, 6, 5, 7)}
    values["i"] = torch.tensor([[1, 0], [2, 2]])
    types = {nodes[n]: type_of(v, batched=n != "i") for n, v in values.items()}
    args, kwargs = call(*(nodes[name] for name in "xyin"))

    def size(value: Any) -> Any:
        return symbol("N") if value is nodes["n"] else None

    def real(node: torch.fx.Node) -> Any:
        return values[str(node.target)] if str(node.target) != "n" else 3

    wanted = target(*torch.fx.map_arg(args, real), **torch.fx.map_arg(kwargs, real))
    wanted = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    results = [type_of(w, batched=True) for w in wanted]
    name, attrs, operands = carried.stated(target, args, kwargs, results, size)
    lines = [f"input x{j}: {types[n]}" for j, n in enumerate(operands)]
    names = ", ".join(f"y{j}" for j in range(count))
    words = ", ".join(f'{key} = "{value}"' for key, value in attrs.items())
    called = f"{name}({', '.join(f'x{j}' for j in range(len(operands)))}, {words})"
    outputs = [f"output out{j} = y{j}" for j in range(count)]
    network = graph("\n".join(["arch net {", *lines, f"{names} = {called}", *outputs, "}"]))
    found = torch_fx.lower(network, {})(*(real(n) for n in operands))
    pairs = zip(found if isinstance(found, tuple) else [found], wanted, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("dropout", "train", "runs"), [(0.0, True, True), (0.5, True, False)])
def test_a_recurrent_layer_that_drops_nothing_draws_nothing(
    dropout: float, *, train: bool, runs: bool
) -> None:
    layer = torch.nn.LSTM(4, 3, 2, dropout=dropout)
    shapes = {"x": (5, 2, 4), "h": (2, 2, 3), "c": (2, 2, 3)}
    feeds = [torch.randn(s) for s in shapes.values()] + [w.detach() for w in layer.parameters()]
    lines = "\n".join(f"input x{j}: f32{list(f.shape)}" for j, f in enumerate(feeds))
    tensors = ", ".join(f"x{j}" for j in range(len(feeds)))
    weights = tensors.removeprefix("x0, x1, x2, ")
    network = graph(f"""arch net {{ {lines}
        y, h, c = aten.lstm({tensors}, overload = "input",
            arguments = "x0, [x1, x2], [{weights}], True, 2, {dropout}, {train}, False, False",
            result = "f32[5, 2, 3], f32[2, 2, 3], f32[2, 2, 3]")
        output y = y }}""")
    if not runs:
        with pytest.raises(ArchirError, match="draws random numbers"):
            torch_fx.lower(network, {})
        return
    found = torch_fx.lower(network, {})(*feeds)
    assert torch.equal(found, layer(feeds[0], tuple(feeds[1:3]))[0])


def test_a_call_that_cannot_be_written_is_refused() -> None:
    x = torch.fx.Graph().placeholder("x")
    for target, args in ((aten.relu_.default, (x,)), (aten.neg.default, (1j,))):
        with pytest.raises(ArchirError, match="is not run") as caught:
            carried.stated(target, args, {}, [], lambda node: None)
        assert caught.value.diagnostics[0].code == "A512"


def type_of(tensor: Any, *, batched: bool) -> TensorType:
    dtype = {torch.float32: "f32", torch.float64: "f64", torch.int64: "i64"}[tensor.dtype]
    return TensorType(dtype, (symbol("N") if batched else tensor.shape[0], *tensor.shape[1:]))
