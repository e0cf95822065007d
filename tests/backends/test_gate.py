"""The export gate: float16, providers, batches, and the layer that is named when it fails."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.ir.dims import product, quotient, symbol
from archir.ir.graph import Graph, Node, Value
from archir.ir.types import TensorType
from archir.ops import STANDARD
from archir.target import Backends
from archir.weights.init import init_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from archir.backends import onnx as backend  # noqa: E402
from archir.backends.onnx import (  # noqa: E402
    blame,
    feeds,
    gate,
    layers,
    lowering,
    model,
    precision,
    runtime,
)


def weights(graph: Graph) -> dict[str, Any]:
    return init_weights(graph, STANDARD, 3, random_statistics=True)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def broken(monkeypatch: pytest.MonkeyPatch, **wrong: Any) -> None:
    """Lowerings that are wrong, by operator."""
    monkeypatch.setattr(model, "LOWER", MappingProxyType({**lowering.LOWER, **wrong}))


# --- the layer that is to blame


@pytest.mark.parametrize("largest", [2_000_000_000, 0])
@pytest.mark.parametrize("engine", ["torch", "numpy"])
def test_the_first_layer_that_differs_is_named(
    small_net: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, largest: int
) -> None:
    if engine == "numpy":
        monkeypatch.setattr(layers, "backends", lambda: Backends({}))
    broken(monkeypatch, relu=lambda at: at.emit("Abs", *at.args))
    with pytest.raises(ArchirError) as caught:
        backend.export(small_net, weights(small_net), tmp_path / "n.onnx", largest=largest)
    (found,) = caught.value.diagnostics
    assert (found.code, found.node, caught.value.status) == ("A506", "stem.relu", 1)
    assert "differs is stem.relu (relu, [1, 6, 8, 8] -> [1, 6, 8, 8])" in found.message
    there, before = re.findall(r"([0-9.e+-]+) (?:there|before)", found.message)
    assert float(there) > 0.1
    assert float(before) < 1e-5
    assert files(tmp_path) == []


def test_a_later_layer_is_named_with_the_drift_before_it(
    small_net: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(at: Any) -> None:
        weight, bias = at.params("weight", "bias")
        shifted = at.helper("off", "Add", bias, at.constant("much", np.float32(3)))
        at.emit("Gemm", *at.args, weight, shifted, transB=1)

    broken(monkeypatch, linear=off)
    with pytest.raises(ArchirError, match=r"differs is fc \(linear, \[1, 96\] -> \[1, 4\]\)"):
        backend.export(small_net, weights(small_net), tmp_path / "n.onnx")


def test_values_are_looked_at_in_parts(
    small_net: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "GROUP", 1)
    inner = [Value(n.name) for n in small_net if n.op != "input"]
    assert [len(g) for g in layers.groups(small_net, inner, {"N": 1})] == [1] * len(inner)
    broken(
        monkeypatch, max_pool=lambda at: at.emit("AveragePool", *at.args, **lowering._window(at))
    )
    with pytest.raises(ArchirError, match="differs is pool"):
        backend.export(small_net, weights(small_net), tmp_path / "n.onnx")


def test_clean_ups_are_blamed_where_the_file_is_right(small_net: Graph, tmp_path: Path) -> None:
    given = weights(small_net)
    moved = {**given, "fc.bias": given["fc.bias"] + np.float32(1)}
    with pytest.raises(ArchirError, match="the clean-ups move the outputs by") as caught:
        backend.export(small_net, moved, tmp_path / "n.onnx", original=(small_net, given))
    assert "--as-is" in caught.value.diagnostics[0].hint


def test_optimisations_are_blamed_where_the_nodes_are_right(
    small_net: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = runtime.run

    def wrong(made: Any, fed: Mapping[str, Any]) -> list[Any]:
        found = plain(made, fed)
        level = made.get_session_options().graph_optimization_level
        off = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        outputs = [output.name for output in made.get_outputs()]
        return [
            a + 1 if o == "logits" and level != off and len(outputs) == 1 else a
            for o, a in zip(outputs, found, strict=True)
        ]

    monkeypatch.setattr(runtime, "run", wrong)
    with pytest.raises(ArchirError, match="graph optimisations off the file agrees"):
        backend.export(small_net, weights(small_net), tmp_path / "n.onnx")


def test_outputs_that_show_nothing(
    small_net: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = weights(small_net)
    given["fc.weight"][:] = 0
    given["fc.bias"][:] = 0.5
    assert backend.export(small_net, given, tmp_path / "n.onnx").flat == ("logits",)
    assert backend.export(small_net, weights(small_net), tmp_path / "m.onnx").flat == ()
    broken(monkeypatch, relu=lambda at: at.emit("Abs", *at.args))
    with pytest.raises(ArchirError, match="is one number throughout and shows nothing") as caught:
        backend.export(small_net, given, tmp_path / "o.onnx")
    assert caught.value.diagnostics[0].node == "stem.relu"
    assert caught.value.status == 1
    assert files(tmp_path) == ["m.onnx", "n.onnx"]


# --- outputs that are not finite


def test_a_weight_that_is_nan_is_named(small_net: Graph, tmp_path: Path) -> None:
    given = weights(small_net)
    given["stage.0.conv1.weight"][0, 0] = np.nan
    with pytest.raises(ArchirError, match="own output `logits` is not finite") as caught:
        backend.export(small_net, given, tmp_path / "n.onnx")
    (found,) = caught.value.diagnostics
    assert (found.code, found.node, caught.value.status) == ("A547", "stage.0.conv1.weight", 1)
    assert "`stage.0.conv1.weight` holds NaN in 9 of 162 entries" in found.message
    assert files(tmp_path) == []


def test_a_layer_that_overflows_is_named(net: Any, tmp_path: Path) -> None:
    x = net.add("exp", "exp", net.add("fc", "linear", net.input("x", "N", 3), out=2))
    graph = net.build(y=net.add("square", "mul", x, x))
    given = weights(graph)
    given["fc.bias"][:] = 60
    with pytest.raises(ArchirError, match=r"A547.*the first layer that is not is square \(mul\)"):
        backend.export(graph, given, tmp_path / "n.onnx")


# --- float16


def test_float16_holds_weights_and_values(small_net: Graph, tmp_path: Path) -> None:
    report = backend.export(small_net, weights(small_net), tmp_path / "n.onnx", precision="fp16")
    made = onnx.load(tmp_path / "n.onnx")
    assert {t.data_type for t in made.graph.initializer} == {onnx.TensorProto.FLOAT16}
    names = [t.name for t in made.graph.initializer]
    assert names == [p for p in small_net.parameters if not p.endswith("num_batches_tracked")]
    casts = [node for node in made.graph.node if node.op_type == "Cast"]
    assert len(casts) == 2  # behind the input, and ahead of the output
    for info in (*made.graph.input, *made.graph.output):
        assert info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert report.precision == "fp16"
    assert report.bounds == {"logits": gate.HALF_BOUND}
    assert 1e-6 < report.drift["logits"] < 5e-3
    assert report.half is not None
    assert 1e-5 < report.half["rounded_drift"]["logits"] < 5e-3  # type: ignore[index]
    assert report.half["half_nodes"] == len(small_net) - 1
    assert json.loads(json.dumps(report.to_json()))["half"]["kept_in_f32"] == {}
    props = {entry.key: entry.value for entry in made.metadata_props}
    assert props["archir.precision"] == "fp16"


def test_float16_inputs_and_outputs(small_net: Graph, tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    backend.export(small_net, weights(small_net), path, precision="fp16", half_io=True)
    made = onnx.load(path)
    for info in (*made.graph.input, *made.graph.output):
        assert info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert not [node for node in made.graph.node if node.op_type == "Cast"]


def test_sensitive_operators_and_kept_layers_stay_in_float32(net: Any, tmp_path: Path) -> None:
    x = net.add("body.fc1", "linear", net.input("x", "N", 6), out=6)
    x = net.add("body.norm", "layer_norm", x)
    x = net.add("body.act", "relu", x)
    x = net.add("head.fc", "linear", x, out=4)
    graph = net.build(shares=net.add("head.shares", "softmax", x), raw=x)
    given = weights(graph)
    found = precision.halved(graph, given)
    assert found.half == {"body.fc1", "body.act", "head.fc"}
    assert found.facts(graph)["kept_in_f32"] == {
        "sensitive operators": {"layer_norm": 1, "softmax": 1}
    }
    for keep, half in (("head", {"body.fc1", "body.act"}), ("*.fc*", {"body.act"})):
        assert precision.halved(graph, given, keep=[keep]).half == half
    report = backend.export(graph, given, tmp_path / "n.onnx", precision="fp16", keep=["head"])
    assert max(report.drift.values()) < 5e-3
    kinds = {t.name: t.data_type for t in onnx.load(tmp_path / "n.onnx").graph.initializer}
    assert kinds["body.fc1.weight"] == onnx.TensorProto.FLOAT16
    assert kinds["body.norm.weight"] == kinds["head.fc.weight"] == onnx.TensorProto.FLOAT
    with pytest.raises(ArchirError, match="A549: there is no node `tail`") as caught:
        backend.export(graph, given, tmp_path / "m.onnx", precision="fp16", keep=["tail"])
    assert caught.value.status == 2
    assert files(tmp_path) == ["n.onnx"]


def test_weights_beyond_float16_stay_in_float32(net: Any, tmp_path: Path) -> None:
    x = net.add("fc1", "linear", net.input("x", "N", 6), out=6)
    graph = net.build(y=net.add("fc2", "linear", net.add("s", "mul", x, x), out=2))
    given = weights(graph)
    given["fc2.weight"][:] = 1e5
    report = backend.export(graph, given, tmp_path / "n.onnx", precision="fp16")
    assert report.half is not None
    assert report.half["kept_in_f32"] == {"weights beyond float16": {"linear": 1}}


@pytest.mark.parametrize("io", [False, True])
def test_a_tied_weight_is_held_in_both_precisions(net: Any, tmp_path: Path, io: bool) -> None:
    x = net.input("x", "N", 4)
    y = net.add("first", "linear", x, out=4)
    y = net.add("second", "linear", y, out=4, params={"weight": "first.weight"})
    free = net.add("gain", "parameter", shape=(4,), init=0.5)
    graph = net.build(y=net.add("scaled", "mul", y, free), own=free, same=x)
    path = tmp_path / "n.onnx"
    backend.export(graph, weights(graph), path, precision="fp16", keep=["second"], half_io=io)
    made = {t.name: t.data_type for t in onnx.load(path).graph.initializer}
    assert made["first.weight"] == onnx.TensorProto.FLOAT16
    assert made["first.weight/float32"] == onnx.TensorProto.FLOAT


CHOSEN = [
    *("avg_pool", "batch_norm", "celu", "conv_transpose", "einsum", "embedding", "gelu"),
    *("group_norm", "max", "mean", "mish", "pad", "prelu", "softmax", "split", "upsample"),
]


@pytest.mark.parametrize("op", CHOSEN)
def test_operators_in_float16(net: Any, tmp_path: Path, op: str) -> None:
    for number, sample in enumerate(STANDARD[op].samples[:2]):
        fresh = type(net)()
        inputs = [
            fresh.input(f"x{i}", *map(int, t.shape), dtype=t.dtype)
            for i, t in enumerate(sample.inputs)
        ]
        graph = fresh.build(y=fresh.add("node", op, *inputs, **sample.attrs))
        path = tmp_path / f"{number}.onnx"
        report = backend.export(graph, weights(graph), path, precision="fp16")
        assert report.drift["y"] < 5e-3


def test_an_overflow_that_the_cpu_hides_is_found(net: Any, tmp_path: Path) -> None:
    x = net.input("x", "N", 6)
    y = net.add("up.fc", "linear", x, out=6)
    z = net.add("up.again", "linear", y, out=6)
    graph = net.build(y=net.add("down", "linear", net.add("act", "relu", z), out=3))
    given = weights(graph)
    given["up.fc.weight"] *= np.float32(3e3)
    given["up.again.weight"] *= np.float32(3e3)
    given["down.weight"] *= np.float32(1e-4)
    path = tmp_path / "n.onnx"
    with pytest.raises(ArchirError) as caught:
        backend.export(graph, given, path, precision="fp16")
    (found,) = caught.value.diagnostics
    assert (found.code, found.node, caught.value.status) == ("A550", "up.again", 1)
    assert "where every value is rounded to float16, the bound is 2e-02" in found.message
    assert "the first layer that is not finite is up.again" in found.message
    assert found.hint.startswith("--keep up.again --keep act --keep down leaves these layers")
    assert files(tmp_path) == []
    keep = ["up.again", "act", "down"]
    report = backend.export(graph, given, path, precision="fp16", keep=keep)
    assert report.drift["y"] < 5e-3


def test_values_too_small_for_float16_are_found(net: Any, tmp_path: Path) -> None:
    x = net.add("tiny", "linear", net.input("x", "N", 6), out=6)
    graph = net.build(y=net.add("up", "linear", net.add("act", "tanh", x), out=3))
    given = weights(graph)
    path = tmp_path / "n.onnx"
    given["tiny.weight"] *= np.float32(3e-7)
    with pytest.raises(ArchirError, match="A506") as caught:  # the weights are hit as well
        backend.export(graph, given, path, precision="fp16")
    (found,) = caught.value.diagnostics
    assert "and below 6.1e-05 float16 holds fewer and fewer digits" in found.message
    assert found.hint.startswith("--keep tiny --keep act --keep up leaves")
    keep = ["tiny", "act", "up"]
    assert backend.export(graph, given, path, precision="fp16", keep=keep).drift["y"] < 1e-4


def test_many_layers_to_keep_are_named_as_blocks() -> None:
    nodes = [f"stage{i}.{j}.conv" for i in range(2) for j in range(9)]
    assert blame._kept(nodes) == "--keep stage0 --keep stage1 leaves these layers in float32"


# --- where it ran


def test_what_was_asked_for_and_what_ran(small_net: Graph, tmp_path: Path) -> None:
    report = backend.export(small_net, weights(small_net), tmp_path / "n.onnx")
    assert report.placement is not None
    assert report.placement.asked == "cpu"
    assert report.placement.providers == ("CPUExecutionProvider",)
    assert not report.placement.fell_back
    assert "CPUExecutionProvider" in report.placement.available


def test_a_provider_that_is_not_there(
    small_net: Graph, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    known = onnxruntime.get_all_providers()
    away = next(p for p in known if p not in onnxruntime.get_available_providers())
    report = backend.export(
        small_net, weights(small_net), tmp_path / "n.onnx", device=runtime.short(away)
    )
    assert report.provider == "CPUExecutionProvider"
    assert report.placement is not None
    assert report.placement.text().endswith("is not in this ONNX Runtime; the file ran on cpu")
    with pytest.raises(ArchirError, match="A546") as caught:
        backend.export(small_net, weights(small_net), tmp_path / "m.onnx", device=away, strict=True)
    assert caught.value.status == 3
    assert files(tmp_path) == ["n.onnx"]
    with pytest.raises(ArchirError, match="A545") as caught:
        backend.export(small_net, weights(small_net), tmp_path / "m.onnx", device="gpu")
    assert caught.value.status == 2
    assert "cuda" in caught.value.diagnostics[0].hint
    assert capfd.readouterr() == ("", "")


class Two:
    """A session with two providers, of which the second runs one node."""

    def __init__(self, made: Any, folder: Path) -> None:
        self.made, self.folder = made, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made, name)

    def get_providers(self) -> list[str]:
        return [runtime.CUDA, runtime.CPU]

    def end_profiling(self) -> str:
        events = [
            {"cat": "Session", "name": "model_run", "args": {}},
            *(
                {"cat": "Node", "name": f"{n}_kernel_time", "args": {"op_name": op, "provider": p}}
                for n, op, p in (
                    ("conv", "Conv", runtime.CUDA),
                    ("relu", "Relu", runtime.CUDA),
                    ("relu", "Relu", runtime.CUDA),
                    ("shape", "Shape", runtime.CPU),
                )
            ),
        ]
        path = self.folder / "profile.json"
        path.write_text(json.dumps(events))
        return str(path)


def test_nodes_that_fell_back(
    small_net: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = runtime._opened
    monkeypatch.setattr(runtime, "_usable", lambda provider: True)
    (tmp_path / "out").mkdir()

    def opened(source: Any, provider: str, **how: Any) -> Any:
        return Two(plain(source, runtime.CPU), tmp_path)

    monkeypatch.setattr(runtime, "_opened", opened)
    path = tmp_path / "out" / "n.onnx"
    report = backend.export(small_net, weights(small_net), path, device="cuda")
    assert report.placement is not None
    assert report.placement.nodes == {runtime.CUDA: 2, runtime.CPU: 1}
    assert report.placement.elsewhere == {"Shape": ("shape",)}
    assert report.placement.text() == "some nodes ran on cpu and not on cuda: 1 Shape"
    with pytest.raises(ArchirError, match="A546: some nodes ran on cpu and not on cuda: 1 Shape"):
        backend.export(small_net, weights(small_net), path, device="cuda", strict=True, force=True)


def test_a_profile_of_a_real_run(small_net: Graph, tmp_path: Path) -> None:
    backend.export(small_net, weights(small_net), tmp_path / "n.onnx")
    made = runtime._opened(tmp_path / "n.onnx", runtime.CPU, profile=tmp_path / "run")
    runtime.run(made, feeds.feeds_of(small_net, {"N": 1}, np.random.default_rng(0)))
    ran = runtime.placed(json.loads(Path(made.end_profiling()).read_text()))
    assert {provider for _, provider in ran.values()} == {runtime.CPU}
    assert "Conv" in "".join(op for op, _ in ran.values())


# --- batches and inputs


def test_batches_that_are_asked_for(small_net: Graph, net: Any, tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    assert backend.export(small_net, weights(small_net), path, batches=[5, 3]).batches == [5, 3]
    fixed = net.build(y=net.add("relu", "relu", net.input("x", 3, 2)))
    assert backend.export(fixed, {}, path, batches=[3], force=True).batches == [3]
    for graph, batches in ((fixed, [1]), (small_net, [0])):
        with pytest.raises(ArchirError, match="A548") as caught:
            backend.export(graph, weights(graph), path, batches=batches, force=True)
        assert caught.value.status == 2


def test_batches_that_leave_a_size_broken(net: Any) -> None:
    half = quotient(product([symbol("N")]), 2)
    assert half is not None
    net.input("x", "N", 3)
    net.builder.add(Node("o", "input", {}, (), {}, (TensorType("f32", (half, 3)),)))
    net.builder.inputs.append("o")
    graph = net.build(y=net.add("r", "relu", Value("o")))
    assert list(feeds.sizes_of(graph, [4]).symbols) == [4]
    with pytest.raises(ArchirError, match="A548: no such batch: with N = 3 not all"):
        feeds.sizes_of(graph, [3])


def test_batches_that_are_too_large_are_left_out(small_net: Graph, tmp_path: Path) -> None:
    one = feeds.alive(small_net, {"N": 1})
    assert feeds.alive(small_net, {"N": 7}) == 7 * one
    # A residual block: the skip, its operand and its sum.
    assert one == 3 * 4 * 6 * 8 * 8
    found = feeds.sizes_of(small_net, live=2 * one)
    assert list(found.symbols) == [1, 2]
    assert found.left_out == {7: 7 * one}
    assert list(feeds.sizes_of(small_net, live=1).symbols) == [1]
    assert list(feeds.sizes_of(small_net, [9], live=1).symbols) == [9]


def test_indices_are_drawn_from_the_whole_table(net: Any, tmp_path: Path) -> None:
    ids = net.input("ids", "N", 50, dtype="i64")
    mask = net.input("mask", "N", 50, 4)
    table = net.add("table", "embedding", ids, num=90, dim=4)
    graph = net.build(y=net.add("sum", "add", table, mask))
    found = feeds.feeds_of(graph, {"N": 20}, np.random.default_rng(0))
    assert found["ids"].dtype == np.int64
    assert (found["ids"].min(), found["ids"].max()) == (0, 89)
    report = backend.export(graph, weights(graph), tmp_path / "n.onnx")
    assert report.batches == [1, 2, 7]


# --- files


def test_weights_of_the_file_before_are_removed(small_net: Graph, tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    given = weights(small_net)
    first = backend.export(small_net, given, path, largest=0)
    (tmp_path / "n-000000000000.data").write_text("somebody else's")
    other = {**given, "fc.bias": given["fc.bias"] + np.float32(1)}
    second = backend.export(small_net, other, path, largest=0, force=True)
    assert first.data != second.data
    assert files(tmp_path) == sorted(["n-000000000000.data", "n.onnx", str(second.data)])
    again = backend.export(small_net, other, path, largest=0, force=True)
    assert again.data == second.data
    assert files(tmp_path) == sorted(["n-000000000000.data", "n.onnx", str(second.data)])
    backend.export(small_net, other, path, force=True)
    assert files(tmp_path) == ["n-000000000000.data", "n.onnx"]
