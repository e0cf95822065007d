"""Weights in files: round trips, and every defect named."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from archir.diag import ArchirError
from archir.files import writing
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Parameter
from archir.ir.types import TensorType
from archir.ops import STANDARD
from archir.ops.infer import bind_attrs, instance
from archir.weights.init import init_weights, stream_of
from archir.weights.store import check_weights, load_metadata, load_weights, save_weights


def network(
    *layers: tuple[str, str, dict[str, Any]], dtype: str = "f32", channels: int = 64
) -> Graph:
    """A chain of layers over [2, channels, 3, 3]."""
    builder = GraphBuilder("net")
    builder.inputs.append("x")
    type_ = TensorType(dtype, (2, channels, 3, 3))
    value = builder.add(Node("x", "input", {}, (), {}, (type_,)))
    for path, name, given in layers:
        op = STANDARD[name]
        inputs = (value,) if op.operands[0] else ()
        types = tuple(builder.nodes[v.node].types[0] for v in inputs)
        attrs = bind_attrs(op, given, types)
        found = instance(op, attrs, types)
        params = {r: path if name == "parameter" else f"{path}.{r}" for r in found.params}
        for role, made in found.params.items():
            builder.parameters[params[role]] = Parameter(params[role], made, op.param(role).buffer)
        node = builder.add(Node(path, name, attrs, inputs, params, found.types))
        value = node if inputs else value
    builder.outputs = [Output("y", value)]
    return builder.build()


def tensors() -> dict[str, Any]:
    import ml_dtypes

    return {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "0.odd name": np.ones((2, 0), np.float64),
        "half": np.arange(3).astype(np.float16),
        "brain": np.arange(3).astype(ml_dtypes.bfloat16),
        "count": np.asarray(7, np.int64),
        "index": np.arange(4, dtype=np.int32),
        "mask": np.array([True, False]),
    }


def code_of(action: Any) -> str:
    with pytest.raises(ArchirError) as caught:
        action()
    assert caught.value.status == 2
    return caught.value.diagnostics[0].code


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, tensors(), {"graph": "abc", "b": "ü"})
    found = load_weights(path)
    assert found.keys() == tensors().keys()
    for name, array in tensors().items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array)
        assert found[name].flags.writeable
    assert load_metadata(path) == {"graph": "abc", "b": "ü"}


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    names = {str(i): str(i) for i in range(20)}
    save_weights(tmp_path / "a", tensors(), names)
    save_weights(tmp_path / "b", dict(reversed(tensors().items())), dict(reversed(names.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_of_others_can_be_read(tmp_path: Path) -> None:
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "w", metadata={"format": "pt"})
    assert load_weights(tmp_path / "w").keys() == {"x"}
    assert load_metadata(tmp_path / "w") == {}


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", {})
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def header(table: object, data: bytes = b"") -> bytes:
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"abc", "header too small"),
        (b"PK\x03\x04" + bytes(99), "a zip archive, as torch.save writes it"),
        (pickle.dumps({"a": 1}), "a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\xff" * 64, "header too large"),
        (header({"a": F32}, bytes(7)), "not fully covered"),
        (header({"a": F32}, bytes(9)), "not fully covered"),
        (header({"a": {**F32, "shape": [2**62, 4]}}, bytes(8)), "no whole"),
        (header({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)), "no whole"),
        (header({"a": {**F32, "data_offsets": [0, 2**63]}}, bytes(8)), "no whole"),
        (header({"a": F32, "b": F32}, bytes(8)), "no whole"),
        (header({"a": {**F32, "dtype": "F33"}}, bytes(8)), "no whole"),
        (header([1, 2]), "no whole"),
        ((10).to_bytes(8, "little") + b"{" * 10, "no whole"),
        ((10**5).to_bytes(8, "little") + b"[" * 10**5, "no whole"),
        (header({"__metadata__": {"archir": "{"}}), "metadata"),
        (header({"__metadata__": {"archir": "[1]"}}), "metadata"),
        (header({"__metadata__": {"archir": '{"a": 1, "version": 1}'}}), "metadata"),
        (header({"__metadata__": {"archir": '{"version": 99}'}}), "format version 99"),
    ],
)
def test_damaged_and_foreign_files(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(ArchirError) as caught:
        load_weights(path)
    (found,) = caught.value.diagnostics
    assert (found.code, caught.value.status) == ("A610", 2)
    assert str(path) in found.message
    assert says in found.message


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(path, tensors())
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert code_of(lambda: load_weights(path)) == "A610"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert code_of(lambda: load_weights(tmp_path / "none")) == "A601"
    assert code_of(lambda: load_weights(tmp_path)) == "A601"
    assert code_of(lambda: load_weights("/dev/null")) == "A601"


def test_element_types_without_use(tmp_path: Path) -> None:
    table = {"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}
    (tmp_path / "w").write_bytes(header(table, bytes(8)))
    assert code_of(lambda: load_weights(tmp_path / "w")) == "A613"
    save_file({"a": np.ones(3, np.uint8)}, tmp_path / "v")
    assert code_of(lambda: load_weights(tmp_path / "v")) == "A613"
    assert code_of(lambda: save_weights(tmp_path / "u", {"a": np.ones(3, "O")})) == "A613"
    assert not (tmp_path / "u").exists()


def test_writes_are_whole_or_not_at_all(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "w"
    save_weights(path, {"a": np.ones(3, np.float32)})
    before = path.read_bytes()
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from archir.weights.store import save_weights\n"
        "from archir.diag import ArchirError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "try: save_weights(sys.argv[1], {'a': np.ones(100000, np.float32)})\n"
        "except ArchirError as e: sys.exit(e.diagnostics[0].code)\n"
    )
    import subprocess
    import sys

    assert resource.RLIMIT_FSIZE >= 0
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=False, capture_output=True, text=True
    )
    assert done.stderr.strip() == "A602"
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_writing_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "w"
    assert code_of(lambda: save_weights(tmp_path / "no" / "w", {})) == "A602"
    assert code_of(lambda: save_weights(tmp_path, {})) == "A602"
    assert code_of(lambda: save_weights("/dev/null", {})) == "A602"
    path.write_text("mine")
    assert code_of(lambda: save_weights(path, {}, force=False)) == "A603"
    assert path.read_text() == "mine"
    if os.geteuid():
        tmp_path.chmod(0o500)
        assert code_of(lambda: save_weights(tmp_path / "v", {})) == "A602"


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def fail() -> None:
        with writing(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert path.read_text() == "old"
    with writing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


# --- fitting a network

CHAIN = (
    ("conv", "conv", {"out": 128, "kernel": 3}),
    ("bn", "batch_norm", {}),
    ("flat", "flatten", {}),
    ("fc", "linear", {"out": 40}),
    ("free", "parameter", {"shape": (2, 3), "init": 0.25}),
)


def test_weights_that_do_not_fit() -> None:
    graph = network(*CHAIN)
    good = init_weights(graph, STANDARD, 0)
    check_weights(graph, good)
    wrong = dict(good)
    wrong["fc.wieght"] = wrong.pop("fc.weight")
    wrong["conv.weight"] = good["conv.weight"][:1]
    wrong["bn.bias"] = good["bn.bias"].astype(np.float64)
    wrong["more"] = good["bn.bias"]
    with pytest.raises(ArchirError) as caught:
        check_weights(graph, wrong)
    found = [(d.code, d.message) for d in caught.value.diagnostics]
    assert found == [
        ("A612", "`conv.weight` is float32[1, 64, 3, 3], the network needs float32[128, 64, 3, 3]"),
        ("A612", "`bn.bias` is float64[128], the network needs float32[128]"),
        ("A611", "the weights lack `fc.weight`"),
        ("A611", "the network has no `fc.wieght`"),
        ("A611", "the network has no `more`"),
    ]
    assert caught.value.diagnostics[2].hint == "the weights have a `fc.wieght`"
    check_weights(graph, {**good, "more": good["bn.bias"]}, extra=True)
    with pytest.raises(ArchirError) as caught:
        check_weights(graph, {str(i): good["bn.bias"] for i in range(100)})
    assert len(caught.value.diagnostics) == 21


# --- initial weights


def test_initial_values() -> None:
    graph = network(*CHAIN)
    found = init_weights(graph, STANDARD, 5)
    assert list(found) == list(graph.parameters)
    check_weights(graph, found)
    conv, linear = found["conv.weight"], found["fc.weight"]
    # 73,728 draws: the standard error of the deviation is 0.26 %, of the mean 0.37 %.
    wanted = np.sqrt(2 / (64 * 9))
    assert abs(conv.std() / wanted - 1) < 0.02
    assert abs(conv.mean()) < 0.03 * wanted
    reach = 1 / np.sqrt(128 * 9)
    assert np.abs(linear).max() <= reach
    assert linear.min() < -0.99 * reach
    assert linear.max() > 0.99 * reach
    for path, value in {"conv.bias": 0, "bn.weight": 1, "bn.bias": 0, "bn.running_mean": 0}.items():
        assert (found[path] == value).all()
    assert (found["bn.running_var"] == 1).all()
    assert (found["free"] == 0.25).all()
    assert found["bn.num_batches_tracked"] == 0


def test_each_parameter_has_its_own_stream() -> None:
    small, large = network(CHAIN[0]), network(("new", "conv", {"out": 64, "kernel": 3}), *CHAIN)
    a, b = init_weights(small, STANDARD, 5), init_weights(large, STANDARD, 5)
    assert np.array_equal(a["conv.weight"], b["conv.weight"])
    assert not np.array_equal(b["conv.weight"][:64], b["new.weight"])
    other = init_weights(small, STANDARD, 6)
    assert not np.array_equal(a["conv.weight"], other["conv.weight"])


def test_streams_stay_as_they_are() -> None:
    """Certificates replay initial weights: these numbers must never change."""
    assert stream_of(0, "stem.conv.weight").integers(0, 1000, 5).tolist() == STREAM
    weight = init_weights(network(CHAIN[0], channels=2), STANDARD, 1)["conv.weight"]
    assert weight.reshape(-1)[:3].tolist() == pytest.approx(WEIGHT, rel=1e-6)


STREAM = [716, 999, 282, 986, 684]
WEIGHT = [0.06608463, -0.00684021, -0.5264145]


@pytest.mark.parametrize("dtype", ["f64", "f16", "bf16"])
def test_other_element_types(dtype: str) -> None:
    graph = network(CHAIN[0], dtype=dtype)
    check_weights(graph, init_weights(graph, STANDARD, 0))


def test_random_statistics_are_far_from_the_usual() -> None:
    graph = network(*CHAIN)
    found = init_weights(graph, STANDARD, 5, random_statistics=True)
    plain = init_weights(graph, STANDARD, 5)
    for path, usual in {
        "bn.weight": 1,
        "bn.bias": 0,
        "bn.running_mean": 0,
        "bn.running_var": 1,
    }.items():
        assert np.abs(found[path] - usual).mean() > 0.25, path
        assert len(np.unique(found[path])) == 128
    assert found["bn.running_var"].min() >= 0.4
    assert (found["bn.weight"] < 0).any()
    for path in set(found) - {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}:
        assert np.array_equal(found[path], plain[path])


def test_deep_networks_with_random_statistics_stay_well_conditioned() -> None:
    from archir.ir.graph import Value
    from archir.ops.arithmetic import Floating
    from archir.ops.evaluate import run

    layers: list[tuple[str, str, dict[str, Any]]] = []
    for i in range(50):
        layers += [
            (f"{i}.conv", "conv", {"out": 32, "kernel": 3, "bias": False}),
            (f"{i}.bn", "batch_norm", {}),
            (f"{i}.relu", "relu", {}),
        ]
    graph = network(*layers, channels=32)
    given = init_weights(graph, STANDARD, 0, random_statistics=True)
    stream = np.random.Generator(np.random.PCG64(0))
    x = stream.standard_normal((2, 32, 3, 3), np.float32)
    out = run(graph, STANDARD, Floating(np.float32), {Value("x"): x}, given).values
    (y,) = out.values()
    assert 0.05 < y.std() < 20
    assert np.isfinite(y).all()
    # The output still depends on the input: two images differ by more than rounding.
    assert np.abs(y[0] - y[1]).max() > 1e-4 * np.abs(y).max()
