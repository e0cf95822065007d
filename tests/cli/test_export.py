"""`archir export`: what it says, what it refuses, and what the file says of itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir as package
from archir.weights.store import load_weights, save_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with initial weights, its statistics far from 0 and 1, and preprocessing."""
    file = tmp_path_factory.mktemp("start") / "net.arch"
    text = (EXAMPLES / "digits.arch").read_text()
    head, brace, _ = text.rpartition("}")
    said = '    preprocess { mean = [0.5], std = [0.25], size = 8, classes = ["zero", "one"] }\n'
    file.write_text(head + said + brace + "\n")
    return package.load(file).init(0, random_statistics=True).save(file, force=True)


@pytest.fixture
def net(start: Path, tmp_path: Path) -> Path:
    for file in start.parent.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path / file.name)
    return tmp_path / "net.arch"


def metadata(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}


def test_what_it_says(archir: Archir, net: Path) -> None:
    out = net.with_name("net.onnx")
    answer = archir("export", net, "-o", out)
    assert answer.status == 0, answer.err
    lines = answer.out.splitlines()
    assert lines[0].startswith(f"wrote {out}: opset 20, IR version 9, ")
    assert lines[1].startswith("  clean-ups: ")
    assert "4 fold.batch_norm" in lines[1]
    assert lines[2].startswith("  CPUExecutionProvider agrees with ")
    assert lines[2].endswith(", bound 1e-04")
    assert lines[3].startswith("  certificate ")
    assert lines[4:] == ["  preprocessing: mean, std, size, classes"]
    ops = {node.op_type for node in onnx.load(out).graph.node}
    assert "BatchNormalization" not in ops
    assert "Dropout" not in ops


def test_what_the_file_says_of_itself(archir: Archir, net: Path) -> None:
    out = net.with_name("net.onnx")
    answer = archir("export", net, "-o", out, "--opset", "21", "--json")
    found = metadata(out)
    assert answer.document["metadata"] == found
    steps = json.loads(net.with_name("net.cert.json").read_text())["steps"]
    assert found["archir.certificate"] == steps[-1]["digest"]
    assert found["archir.graph"] == steps[-1]["after"]["graph"]
    assert found["archir.version"] == package.__version__
    assert (found["archir.opset"], found["archir.precision"]) == ("21", "fp32")
    assert json.loads(found["archir.clean_ups"])["rules"]["fold.batch_norm"] == 4
    assert json.loads(found["archir.preprocess"]) == {
        "mean": [0.5],
        "std": [0.25],
        "size": 8,
        "classes": ["zero", "one"],
    }


def test_the_document_is_complete(archir: Archir, net: Path) -> None:
    answer = archir("export", net, "-o", net.with_name("n.onnx"), "--precision", "fp16", "--json")
    document = answer.document
    assert document["status"] == 0
    assert document["bounds"] == {"logits": 0.02}
    assert document["drift"]["logits"] < 0.02
    assert document["placement"]["asked"] == "cpu"
    assert document["placement"]["providers"] == ["CPUExecutionProvider"]
    assert document["half"]["half_nodes"] > 5
    assert document["clean_ups"]["rules"]["fold.batch_norm"]
    assert document["clean_ups"]["left"] == []
    assert document["left_out"] == {}


def test_a_certificate_of_another_network_is_not_named(archir: Archir, net: Path) -> None:
    weights = load_weights(net.with_suffix(".safetensors"))
    name = next(name for name in weights if name.endswith(".bias"))
    weights[name] = weights[name] + np.float32(0.5)
    save_weights(net.with_suffix(".safetensors"), weights, {})
    out = net.with_name("net.onnx")
    answer = archir("export", net, "-o", out)
    assert "  no certificate of this network" in answer.out.splitlines()
    assert "archir.certificate" not in metadata(out)


def test_as_it_is(archir: Archir, net: Path) -> None:
    out = net.with_name("net.onnx")
    answer = archir("export", net, "-o", out, "--as-is")
    assert "clean-ups" not in answer.out
    made = onnx.load(out)
    assert "BatchNormalization" in {node.op_type for node in made.graph.node}
    assert "archir.clean_ups" not in metadata(out)
    held = load_weights(net.with_suffix(".safetensors"))
    assert {tensor.name for tensor in made.graph.initializer} <= set(held)


def test_weights_in_a_file_of_their_own(archir: Archir, net: Path) -> None:
    out = net.with_name("net.onnx")
    words = ("export", net, "-o", out, "--force", "--external-data")
    for _ in range(2):
        answer = archir(*words, "--precision", "fp16", "--json")
        assert answer.status == 0
        data = [path.name for path in net.parent.glob("*.data")]
        assert data == [answer.document["data"]]
    assert archir("export", net, "-o", out, "--force").status == 0
    assert not list(net.parent.glob("*.data"))


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("--keep", "tail"), 2, "A609"),
        (("--half-io",), 2, "A609"),
        (("--batches", "1,x"), 2, "A609"),
        (("--batches", "0"), 2, "A609"),
        (("--precision", "fp16", "--keep", "nowhere"), 2, "A549"),
        (("--provider", "gpu"), 2, "A545"),
        (("--provider", "vitisai", "--strict-provider"), 3, "A546"),
        (("--opset", "3"), 3, "A505"),
        (("--bound", "0"), 1, "A506"),
    ],
)
def test_what_is_refused(
    archir: Archir, net: Path, words: tuple[str, ...], status: int, code: str
) -> None:
    out = net.with_name("net.onnx")
    answer = archir("export", net, "-o", out, *words, "--json")
    assert (answer.status, answer.document["diagnostics"][0]["code"]) == (status, code)
    assert not out.exists()


def test_a_fixed_batch_and_two_inputs(archir: Archir, tmp_path: Path) -> None:
    net = tmp_path / "net.arch"
    net.write_text(
        "version 1\narch two {\n    input ids: i64[4, 5]\n    input side: f32[4, 6]\n"
        "    words = ids |> table: embedding(30, 6) |> mean(axes = [1])\n"
        "    output y = words + side |> fc: linear(3)\n}\n"
    )
    out = tmp_path / "net.onnx"
    answer = archir("export", net, "--init", "0", "-o", out)
    assert answer.status == 0, answer.err
    assert "at batch 4:" in answer.out
    assert archir("export", net, "--init", "0", "-o", out, "--force", "--batches", "1").status == 2
