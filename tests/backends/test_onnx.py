"""Networks as ONNX files: what is in them, and the gate before they are put in place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.ir.dims import product, quotient, symbol
from archir.ir.graph import Graph, Node, Value
from archir.ir.hash import graph_hash
from archir.ir.types import TensorType
from archir.ops import STANDARD
from archir.target import Backends
from archir.weights.init import init_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from archir.backends import onnx as backend  # noqa: E402
from archir.backends.onnx import (  # noqa: E402
    deliver,
    gate,
    layers,
    lowering,
    model,
    runtime,
    versions,
    wire,
)

OPSETS = range(backend.OLDEST, backend.newest() + 1)


def weights(graph: Graph) -> dict[str, Any]:
    return init_weights(graph, STANDARD, 3, random_statistics=True)


def draw(*shape: int) -> Any:
    return np.random.Generator(np.random.PCG64(0)).standard_normal(shape, np.float32)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_names_and_metadata(small_net: Graph) -> None:
    builder = small_net.edit()
    builder.meta["preprocess"] = (("mean", (0.5, 0.25)), ("size", 8), ("classes", ("a", "b")))
    graph = builder.build()
    made = backend.build(graph, weights(graph), metadata={"note": "trial"})
    used = [path for path in graph.parameters if not path.endswith("num_batches_tracked")]
    assert [t.name for t in made.graph.initializer] == used
    for held in made.graph.initializer:
        assert np.array_equal(onnx.numpy_helper.to_array(held), weights(graph)[held.name])
    names = {node.name for node in made.graph.node}
    assert {node.name for node in graph if node.op != "input"} <= names
    assert len(names) == len(made.graph.node)
    (given,), (result,) = made.graph.input, made.graph.output
    assert (given.name, result.name) == ("image", "logits")
    assert given.type.tensor_type.shape.dim[0].dim_param == "N"
    assert result.type.tensor_type.shape.dim[0].dim_param == "N"
    props = {p.key: p.value for p in made.metadata_props}
    assert props["note"] == "trial"
    assert props["archir.graph"] == graph_hash(graph)
    assert json.loads(props["archir.preprocess"]) == {
        "mean": [0.5, 0.25],
        "size": 8,
        "classes": ["a", "b"],
    }
    assert (made.producer_name, made.opset_import[0].version) == ("archir", backend.DEFAULT)


@pytest.mark.parametrize("opset", OPSETS)
def test_each_opset_is_delivered_and_runs(small_net: Graph, tmp_path: Path, opset: int) -> None:
    report = backend.export(small_net, weights(small_net), tmp_path / "n.onnx", opset)
    written = onnx.load(tmp_path / "n.onnx")
    assert [(o.domain, o.version) for o in written.opset_import] == [("", opset)]
    assert written.ir_version == report.ir_version == versions.lowest_ir(opset)
    assert report.opset == opset
    assert report.batches == [1, 2, 7]
    assert report.drift.keys() == {"logits"}
    assert 0 <= report.drift["logits"] < 1e-5
    assert report.provider == "CPUExecutionProvider"
    assert report.bytes == (tmp_path / "n.onnx").stat().st_size
    assert json.loads(json.dumps(report.to_json()))["opset"] == opset


@pytest.mark.parametrize("opset", [17, 18, backend.newest()])
@pytest.mark.parametrize("op", sorted(set(STANDARD) - {"input", "parameter", "constant"}))
def test_every_operator_in_other_opsets(net: Any, tmp_path: Path, op: str, opset: int) -> None:
    for number, sample in enumerate(STANDARD[op].samples):
        fresh = type(net)()
        inputs = [
            fresh.input(f"x{i}", *map(int, t.shape), dtype=t.dtype)
            for i, t in enumerate(sample.inputs)
        ]
        if sample.positive:
            inputs = [fresh.add(f"abs{i}", "abs", x) for i, x in enumerate(inputs)]
        made = fresh.add("node", op, *inputs, **sample.attrs)
        graph = fresh.build(y=made)
        path = tmp_path / f"{number}.onnx"
        assert backend.export(graph, weights(graph), path, opset).drift["y"] < 5e-6


@pytest.mark.parametrize("opset", [0, 16, backend.newest() + 1])
def test_other_opsets_are_refused(small_net: Graph, tmp_path: Path, opset: int) -> None:
    with pytest.raises(ArchirError, match="A505") as caught:
        backend.export(small_net, weights(small_net), tmp_path / "n.onnx", opset)
    assert str(backend.newest()) in caught.value.diagnostics[0].hint
    assert files(tmp_path) == []


def test_ir_versions(small_net: Graph, tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    assert backend.export(small_net, weights(small_net), path, 17, ir_version=9).ir_version == 9
    with pytest.raises(ArchirError, match="A505: opset 20 cannot be written with IR version 8"):
        backend.build(small_net, weights(small_net), 20, ir_version=8)


def test_streamed_bytes_are_the_message(small_net: Graph) -> None:
    made = model.skeleton(small_net, weights(small_net))
    message = backend.build(small_net, weights(small_net))
    assert onnx.ModelProto.FromString(b"".join(wire.chunks(made))) == message
    pieces = list(backend.serialise(small_net, weights(small_net)))
    assert b"".join(pieces) == b"".join(wire.chunks(made))
    # The weights are views, not copies.
    given = weights(small_net)
    views = [p for p in backend.serialise(small_net, given) if isinstance(p, memoryview)]
    assert any(np.shares_memory(np.frombuffer(v, np.uint8), given["fc.weight"]) for v in views)


def test_several_inputs_outputs_and_aliases(net: Any, tmp_path: Path) -> None:
    a, b = net.input("b", "N", 4), net.input("a", "N", 2)
    free = net.add("free", "parameter", shape=(6,), init=0.5)
    both = net.add("join", "concat", a, b)
    cut = net.add("cut", "split", both, sizes=(1, 5))
    total = net.add("join.sum", "add", both, free, both)
    graph = net.build(
        tail=Value("cut", 1), head=cut, given=a, again=total, total=total, own=free, join=total
    )
    report = backend.export(graph, init_weights(graph, STANDARD, 0), tmp_path / "n.onnx")
    assert list(report.drift) == ["tail", "head", "given", "again", "total", "own", "join"]
    assert all(drift < 1e-6 for drift in report.drift.values())
    session = runtime.session(tmp_path / "n.onnx")
    assert [o.name for o in session.get_outputs()] == list(report.drift)
    x, y = draw(3, 4), draw(3, 2)
    found = backend.forward(graph, init_weights(graph, STANDARD, 0), {"b": x, "a": y})
    assert np.array_equal(found[0], np.concatenate([x, y], 1)[:, 1:])
    asked = [Value("cut", 1), Value("b"), Value("b"), free]
    found = backend.forward(graph, init_weights(graph, STANDARD, 0), {"b": x, "a": y}, values=asked)
    assert np.array_equal(found[1], x)
    assert np.array_equal(found[2], x)
    assert np.array_equal(found[3], np.full(6, 0.5, np.float32))


def test_tied_parameters_are_stored_once(net: Any) -> None:
    x = net.input("x", "N", 4)
    y = net.add("first", "linear", x, out=4)
    y = net.add("second", "linear", y, out=4, params={"weight": "first.weight"})
    graph = net.build(y=y)
    names = [t.name for t in backend.build(graph, weights(graph)).graph.initializer]
    assert names == ["first.weight", "first.bias", "second.bias"]


@pytest.mark.parametrize("name", ["image", "stem.conv.weight"])
def test_names_that_onnx_cannot_tell_apart_are_refused(small_net: Graph, name: str) -> None:
    builder = small_net.edit()
    builder.outputs = [replace(builder.outputs[0], name=name)]
    with pytest.raises(ArchirError, match="A502"):
        backend.build(builder.build(), weights(small_net))


def test_symbolic_sizes_beyond_the_batch(net: Any, tmp_path: Path) -> None:
    x = net.input("x", "N", 3, "H", "W")
    half = quotient(product([symbol("N")]), 2)
    assert half is not None
    other = net.builder.add(Node("o", "input", {}, (), {}, (TensorType("f32", (half, 3)),)))
    net.builder.inputs.append("o")
    y = net.add("conv", "conv", x, out=4, kernel=3)
    graph = net.build(y=net.add("pool", "global_max_pool", y), z=net.add("r", "relu", other))
    report = backend.export(graph, weights(graph), tmp_path / "n.onnx")
    assert report.batches == [2, 4, 14]
    made = onnx.load(tmp_path / "n.onnx")
    params = [
        [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in made.graph.input
    ]
    assert params == [["N", 3, "H", "W"], ["N/2", 3]]


def test_a_fixed_batch_is_run_as_it_is(net: Any, tmp_path: Path) -> None:
    graph = net.build(y=net.add("relu", "relu", net.input("x", 3, 2)))
    assert backend.export(graph, {}, tmp_path / "n.onnx").batches == [3]


# --- the gate


def test_a_wrong_weight_is_noticed(small_net: Graph, tmp_path: Path) -> None:
    given = weights(small_net)
    path = tmp_path / "n.onnx"
    backend.export(small_net, given, path)
    assert gate.compare(path, small_net, given)[3]["logits"] < 1e-5
    for name in ("stem.conv.weight", "stage.0.bn1.running_var", "fc.bias"):
        wrong = {**given, name: given[name] + np.float32(0.01)}
        with pytest.raises(ArchirError, match="A506: output `logits` at batch 1 differs") as caught:
            gate.compare(path, small_net, wrong)
        assert caught.value.status == 1


def test_a_wrong_lowering_leaves_nothing_behind(
    small_net: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "n.onnx"
    table = {**lowering.LOWER, "relu": lambda at: at.emit("Identity", *at.args)}
    with monkeypatch.context() as patch:
        patch.setattr(model, "LOWER", MappingProxyType(table))
        for largest in (deliver.LARGEST, 0):
            with pytest.raises(ArchirError, match="A506"):
                backend.export(small_net, weights(small_net), path, largest=largest)
            assert files(tmp_path) == []
    backend.export(small_net, weights(small_net), path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(model, "LOWER", MappingProxyType(table))
        with pytest.raises(ArchirError, match="A506"):
            backend.export(small_net, weights(small_net), path, force=True)
    assert files(tmp_path) == ["n.onnx"]
    assert path.read_bytes() == before


def test_a_model_the_checker_refuses_leaves_nothing_behind(
    small_net: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(at: Any) -> None:
        at.emit("Flatten", *at.args, axis=0)

    monkeypatch.setattr(model, "LOWER", MappingProxyType({**lowering.LOWER, "flatten": broken}))
    with pytest.raises(ArchirError, match="A507") as caught:
        backend.export(small_net, weights(small_net), tmp_path / "n.onnx")
    assert caught.value.status == 3
    assert files(tmp_path) == []


def test_what_the_runtime_has_no_kernel_for(net: Any, tmp_path: Path) -> None:
    x = net.input("x", "N", 3, 4, 4, dtype="f64")
    graph = net.build(y=net.add("conv", "conv", x, out=2))
    with pytest.raises(ArchirError, match="A507: ONNX Runtime refuses"):
        backend.export(graph, weights(graph), tmp_path / "n.onnx")
    assert files(tmp_path) == []


def test_outputs_that_are_not_finite_are_refused(small_net: Graph, tmp_path: Path) -> None:
    given = weights(small_net)
    given["fc.bias"][1] = np.nan
    with pytest.raises(ArchirError, match=r"A547.*`fc.bias` holds NaN in 1 of 4 entries"):
        backend.export(small_net, given, tmp_path / "n.onnx")


@pytest.mark.parametrize(
    ("found", "far"),
    [([1, -2], 0.0), ([1.1, -2], 0.05), ([2, -4], 1.0), ([0, 0], 1.0), ([np.nan, 0], np.inf)],
)
def test_distance(found: list[float], far: float) -> None:
    assert gate.distance(np.array([1.0, -2.0]), np.array(found)) == pytest.approx(far, rel=1e-12)


def test_distance_of_shapes_and_zeros() -> None:
    assert gate.distance(np.zeros(2), np.zeros(3)) == np.inf
    assert gate.distance(np.zeros(2), np.zeros(2)) == 0
    assert gate.distance(np.zeros(2), np.full(2, 1e-9)) == np.inf


def test_without_torch_numpy_is_the_reference(
    small_net: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "backends", lambda: Backends({}))
    report = backend.export(small_net, weights(small_net), tmp_path / "n.onnx")
    assert report.reference == "numpy"
    assert report.drift["logits"] < 1e-5


# --- files


def test_an_existing_file_needs_force(small_net: Graph, tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    path.write_text("mine")
    with pytest.raises(ArchirError, match="A603"):
        backend.export(small_net, weights(small_net), path)
    assert path.read_text() == "mine"
    backend.export(small_net, weights(small_net), path, force=True)
    assert files(tmp_path) == ["n.onnx"]
    with pytest.raises(ArchirError, match="A602"):
        backend.export(small_net, weights(small_net), tmp_path / "no" / "n.onnx")
    with pytest.raises(ArchirError, match="A602"):
        backend.export(small_net, weights(small_net), tmp_path, force=True)


def test_the_same_network_gives_the_same_bytes(small_net: Graph, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        backend.export(small_net, weights(small_net), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_large_weights_lie_beside_the_model(small_net: Graph, tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    report = backend.export(small_net, weights(small_net), path, largest=100)
    assert report.data is not None
    assert files(tmp_path) == sorted(["n.onnx", report.data])
    assert report.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    x = draw(2, 3, 8, 8)
    (y,) = runtime.run(runtime.session(path), {"image": x})
    (z,) = backend.forward(small_net, weights(small_net), {"image": x})
    assert gate.distance(z, y) < 1e-6
    # Other weights go to another file: the first model would run until it is replaced.
    other = init_weights(small_net, STANDARD, 9)
    second = backend.export(small_net, other, tmp_path / "n.onnx", largest=100, force=True)
    assert second.data != report.data


# --- running


def test_training_mode_is_refused(small_net: Graph) -> None:
    with pytest.raises(ArchirError, match="A502"):
        backend.forward(small_net, weights(small_net), {"image": draw(1, 3, 8, 8)}, train=True)


def test_wrong_feeds_are_refused(small_net: Graph) -> None:
    with pytest.raises(ArchirError, match="A507: ONNX Runtime cannot run"):
        backend.forward(small_net, weights(small_net), {"image": draw(1, 4, 8, 8)})


def test_devices(small_net: Graph, capfd: pytest.CaptureFixture[str]) -> None:
    data = b"".join(wire.chunks(model.skeleton(small_net, weights(small_net))))
    if runtime._has_gpu():
        pytest.skip("this machine has a GPU")
    assert runtime.provider_of(runtime.session(data, "auto")) == "CPUExecutionProvider"
    with pytest.raises(ArchirError, match="A508"):
        runtime.session(data, "cuda")
    assert capfd.readouterr() == ("", "")


def test_pooling_that_onnx_cannot_express_is_refused(net: Any) -> None:
    x = net.input("x", "N", 3, 8, 8)
    graph = net.build(y=net.add("pool", "max_pool", x, kernel=2, padding=2))
    with pytest.raises(ArchirError, match="A502") as caught:
        backend.build(graph, {})
    assert caught.value.diagnostics[0].node == "pool"


@pytest.mark.parametrize("opset", [17, 20])
def test_zeros_before_a_pooling_are_not_lost(net: Any, tmp_path: Path, opset: int) -> None:
    """ONNX Runtime would make one node of both, in which padding never wins."""
    x = net.input("x", "N", 2, 5)
    below = net.add("neg", "neg", net.add("abs", "abs", x))
    heads = {}
    for name, between, op, attrs in (
        ("a", "", "max_pool", {"kernel": 3, "stride": 1, "padding": 1}),
        ("b", "dropout", "max_pool", {"kernel": 2}),
        ("c", "", "avg_pool", {"kernel": 3, "padding": 1, "count_include_pad": False}),
        ("d", "", "adaptive_max_pool", {"size": 4}),
    ):
        value = net.add(f"{name}pad", "pad", below, before=(0, 0, 1), after=(0, 0, 2))
        value = net.add(f"{name}mid", between, value) if between else value
        heads[name] = net.add(name, op, value, **attrs)
    graph = net.build(**heads)
    report = backend.export(graph, {}, tmp_path / "n.onnx", opset=opset)
    assert all(drift < 1e-6 for drift in report.drift.values())
