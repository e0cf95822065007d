"""Networks as Python files: run by themselves they give the very bits of the network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.ir.graph import Graph
from archir.lang import load
from archir.ops import STANDARD
from archir.weights.init import init_weights
from archir.weights.store import save_weights
from tests.conformance.test_ops import OPS, draw, network
from tests.fuzz.checks import _nameable, feeds_for, weights_for
from tests.fuzz.networks import seeded

torch = pytest.importorskip("torch")
from archir.backends import torch_fx  # noqa: E402
from archir.backends.torch_fx.standalone import deliver, layout, probe, source  # noqa: E402
from archir.backends.torch_fx.standalone.write import Words, write  # noqa: E402

from archir.diag import Source as Text  # noqa: E402  isort: skip

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "torch"
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.arch"))


def made(graph: Graph, weights: dict[str, Any]) -> tuple[Any, Any, str]:
    """The lowered network, the one that its file makes, and the file's text."""
    module = torch_fx.lower(graph, weights)
    written = write(graph, module, STANDARD, Words())
    space: dict[str, Any] = {"__name__": "model", "__file__": "model.py"}
    exec(compile(written.text, "model.py", "exec"), space)
    space["read"] = lambda _: {**module.state_dict(), **written.constants}
    return module, space["model"]("weights"), written.text


def agrees(graph: Graph, weights: dict[str, Any], feeds: dict[str, Any]) -> bool:
    """Whether the file's network and the lowered one agree in both modes."""
    module, net, _ = made(graph, weights)
    inputs = [torch.from_numpy(feeds[name]) for name in graph.inputs]
    a, b = probe.observe(module, [inputs]), probe.observe(net, [inputs])
    pairs = [*zip(a["eval"][0], b["eval"][0], strict=True)]
    pairs += [*zip(a["train"] or [], b["train"] or [], strict=True)]
    pairs += [(tensor, b["state"][key]) for key, tensor in a["state"].items()]
    same = a["keys"] == b["keys"] and a["drop"] == b["drop"]
    return same and all(deliver._same(x, y) for x, y in pairs)


def test_every_operator_is_written() -> None:
    tried, wrong = 0, []
    for op in OPS:
        for number, sample in enumerate(STANDARD[op].samples):
            graph = network(STANDARD[op], sample)
            feeds, weights = draw(graph, number, sample)
            tried += 1
            if not agrees(graph, weights, feeds):
                wrong.append(f"{op} {number}")
    assert tried > 300
    assert wrong == []


@pytest.mark.parametrize("number", range(40))
def test_random_networks_are_written(number: int) -> None:
    graph = _nameable(seeded(number).graph)
    assert agrees(graph, weights_for(graph), feeds_for(graph))


def test_a_value_keeps_its_name_until_it_is_read() -> None:
    """Of a sum's two operands the first was written into it, past a line that took its name."""
    graph = _nameable(seeded(234).graph)
    assert agrees(graph, weights_for(graph), feeds_for(graph))


def example(name: str) -> Graph:
    path = ROOT / "examples" / f"{name}.arch"
    return load(Text(path.name, path.read_text()), STANDARD).graph


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "vgg16_bn"])
def test_examples_are_written_and_clean(name: str, tmp_path: Path) -> None:
    graph = example(name)
    (given,) = graph.inputs
    shape = [s if isinstance(s, int) else 2 for s in graph.node(given).types[0].shape]
    stream = np.random.Generator(np.random.PCG64(0))
    module, net, text = made(graph, init_weights(graph, STANDARD, 0, random_statistics=True))
    x = torch.from_numpy(stream.standard_normal(shape, np.float32))
    with torch.inference_mode():
        assert torch.equal(module.eval()(x), net.eval()(x))
    assert list(net.state_dict()) == list(module.state_dict()) == list(graph.parameters)
    assert "archir." not in text.replace("archir wrote", "")
    file = tmp_path / "model.py"
    file.write_text(text)
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    assert ruff is not None
    rules = ["--select=E,F,W,I,UP,B,C4,PIE,RET,SIM,N"]
    for words in (["check", "--isolated", *rules], ["format", "--isolated", "--check"]):
        done = subprocess.run([ruff, *words, file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["resnet20", "vit_tiny"])
def test_golden(name: str, tmp_path: Path, archir: Callable[..., Any], update_golden: bool) -> None:
    done = archir(
        "export", ROOT / "examples" / f"{name}.arch", "--init", 0, "--format", "torch",
        "-o", tmp_path / name, "--json",
    )  # fmt: skip
    assert done.status == 0
    assert done.document["batches"] == [1, 3]
    assert done.document["train"] is True
    text = (tmp_path / name / "model.py").read_text()
    golden = GOLDEN / f"{name}.py.txt"
    if update_golden:
        golden.write_text(text)
    assert text == golden.read_text()


def test_folders_names_and_files_that_are_there(tmp_path: Path, archir: Callable[..., Any]) -> None:
    net = ROOT / "examples" / "lenet_300_100.arch"
    words = ("export", net, "--format", "torch", "-o")
    assert "A600" in archir(*words, tmp_path / "a").err
    assert not (tmp_path / "a").exists()
    assert "A602" in archir(*words, tmp_path / "a.onnx", "--init", 0).err
    assert "A602" in archir(*words, tmp_path / "no" / "such" / "m.py", "--init", 0).err
    assert "--opset is for ONNX" in archir(*words, tmp_path / "a", "--opset", 20).err
    assert archir(*words, tmp_path / "my-net.py", "--init", 0).status == 0
    assert {p.name for p in tmp_path.iterdir()} == {"my-net.py", "my-net.safetensors"}
    assert "A603" in archir(*words, tmp_path / "my-net.py", "--init", 0).err


def small(net: Any) -> Graph:
    x = net.input("x", "N", 4)
    return net.build(y=net.add("fc", "linear", x, out=3))


def test_the_gate_notices(net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small(net)
    weights = init_weights(graph, STANDARD, 0)
    true = deliver.write

    def broken(old: str, new: str) -> Callable[..., Any]:
        def wrong(*given: Any) -> Any:
            written = true(*given)
            assert old in written.text
            return type(written)(written.text.replace(old, new), written.constants)

        return wrong

    for old, new, code in (
        ("return self.fc(x)", "return -self.fc(x)", "A560"),
        ("return self.fc(x)", "return self.fc(x) if x.shape[0] == 1 else x", "A560"),
        ("return self.fc(x)", "return self.fc(x) + self.training", "A560"),
        ("import json", "import json\nimport archir", "A561"),
        ("import json", "import json\nimport safetensors", "A561"),
    ):
        monkeypatch.setattr(deliver, "write", broken(old, new))
        with pytest.raises(ArchirError, match=code):
            torch_fx.write_source(graph, weights, tmp_path / "m.py")
        assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    report = torch_fx.write_source(graph, weights, tmp_path / "m.py")
    assert report.train
    assert json.dumps(report.to_json())


def test_weights_of_another_network_are_refused(net: Any, tmp_path: Path) -> None:
    graph = small(net)
    torch_fx.write_source(graph, init_weights(graph, STANDARD, 0), tmp_path / "m.py")
    for name, arrays in {
        "names": {"fc.weight": np.zeros((3, 4), np.float32)},
        "shape": {"fc.weight": np.zeros((1, 4), np.float32), "fc.bias": np.zeros(3, np.float32)},
    }.items():
        save_weights(tmp_path / f"{name}.safetensors", arrays)
    space: dict[str, Any] = {"__name__": "m", "__file__": str(tmp_path / "m.py")}
    exec((tmp_path / "m.py").read_text(), space)
    assert space["model"](space["WEIGHTS"]).fc.weight.std() > 0
    for name, says in (("names", "fc.bias"), ("shape", "another shape")):
        with pytest.raises(ValueError, match=says):
            space["model"](tmp_path / f"{name}.safetensors")


def test_constants_are_there_without_weights(net: Any, tmp_path: Path) -> None:
    x = net.input("x", "N", 3, 5)
    y = net.add("shift", "parameter", shape=(3, 5), persistent=False, buffer=True)
    graph = net.build(y=net.add("sum", "add", x, y))
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    torch_fx.write_source(graph, {"shift": values}, tmp_path / "m.py")
    space: dict[str, Any] = {"__name__": "m", "__file__": str(tmp_path / "m.py")}
    exec((tmp_path / "m.py").read_text(), space)
    made_ = space["model"]()
    assert not made_.state_dict()
    assert torch.equal(made_(torch.zeros(1, 3, 5))[0], torch.from_numpy(values))


class Foreign(torch.nn.Module):
    """A layer of another package."""

    def forward(self, x: Any) -> Any:
        return OTHER(x)


OTHER = np.abs


def test_what_cannot_go_along_is_named() -> None:
    with pytest.raises(ArchirError, match=r"A562.*`Foreign`.*`OTHER`"):
        source.Carried().layer(Foreign())
    with pytest.raises(ArchirError, match="A562"):
        source.Carried().function(lambda x: x)


def test_layout_breaks_lines_as_ruff_does() -> None:
    long = layout.call("f", *["a" * 30] * 3)
    assert layout.lay("x = ", long, 0) == ["x = f(", *[f"    {'a' * 30},"] * 3, ")"]
    pair = layout.call("f", *["a" * 40] * 2)
    assert layout.lay("x = ", pair, 0) == ["x = f(", f"    {'a' * 40}, {'a' * 40}", ")"]
    assert layout.flat(layout.Group("", (("", "1"),))) == "(1,)"
    assert layout.literal((0.5, float("inf"), "a")) == '(0.5, float("inf"), "a")'
