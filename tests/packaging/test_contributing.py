"""The recipes of CONTRIBUTING.md work as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating
from archir.ops.record import Op, OpSet
from archir.target import backends
from archir.weights.init import init_weights

from .project import FOLDERS, ROOT, modules

BOUND = 1e-6


def sections() -> dict[str, list[tuple[str, str]]]:
    """For each recipe its blocks: the file named in the first line, if any, and the text."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = {}
    for part in text.split("\n## ")[1:]:
        blocks = re.findall(r"^```(?:python)?\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        named = [(re.match(r"# (\S+\.\w+)\n", block), block) for block in blocks]
        found[part.splitlines()[0]] = [(m[1] if m else "", block) for m, block in named]
    return found


def recipe(title: str) -> list[tuple[str, str]]:
    blocks = sections()[title]
    assert blocks
    return blocks


def run_in(module: str, text: str) -> dict[str, Any]:
    """Run a block as if it stood at the end of a module's file."""
    namespace = dict(vars(__import__(module, fromlist=["*"])))
    exec(compile(text, "CONTRIBUTING.md", "exec"), namespace)
    return namespace


def network(body: str, ops: OpSet = STANDARD) -> Graph:
    text = f"arch net() {{ input x: f32[N, 7]\n output y = x |> {body} }}"
    return load(Source("net.arch", text), ops).graph


def test_a_new_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for name, text in recipe("A new rule"):
        if name:
            Path(name).write_text(text)
        else:
            exec(compile(text, "CONTRIBUTING.md", "exec"), {})
            ran += 1
    assert ran == 1


def test_a_new_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {str(path.relative_to(ROOT)): module for module, path in modules().items()}
    made = {name: run_in(names[name], text) for name, text in recipe("A new operator")}
    op: Op = made.pop("archir/ops/elementwise.py")["SQUARE"]
    ops = OpSet([*STANDARD.values(), op])
    graph = network("linear(4) |> square", ops)
    weights = init_weights(graph, ops, 0)
    x = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    before = x @ weights["linear.weight"].T + weights["linear.bias"]
    (own,) = op.reference(Floating(np.float32), (before,), {}, {}, "eval")
    np.testing.assert_array_equal(own, before * before)
    assert len(made) == 2
    for name, namespace in made.items():
        package = names[name].rpartition(".")[0]
        user = {"archir.backends.torch_fx": "module", "archir.backends.onnx": "model"}[package]
        table = {**namespace["LOWER"], "square": namespace["_square"]}
        monkeypatch.setattr(f"{package}.{user}.LOWER", table)
        backend = backends()[package.rpartition(".")[2].removesuffix("_fx")]
        (found,) = backend.forward(graph, weights, {"x": x})
        assert np.abs(found - own).max() <= BOUND * np.abs(own).max()


def test_a_new_backend() -> None:
    ((name, text),) = recipe("A new backend")
    assert name.partition("/")[0] in FOLDERS.values()
    namespace: dict[str, Any] = {}
    exec(compile(text, "CONTRIBUTING.md", "exec"), namespace)
    plain = SimpleNamespace(**namespace)
    assert set(plain.LOWER) | set(plain.UNSUPPORTED) == set(STANDARD)
    graph = network("a: linear(5) |> relu |> b: linear(3, bias = false)")
    weights = init_weights(graph, STANDARD, 0)
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    (own,) = plain.forward(graph, weights, {"x": x})
    (other,) = backends()["torch"].forward(graph, weights, {"x": x})
    assert np.abs(own - other).max() <= BOUND * np.abs(other).max()
    with pytest.raises(ArchirError) as caught:
        plain.forward(network("softmax"), {}, {"x": x})
    assert caught.value.diagnostics[0].code == "A501"


def test_every_file_that_is_named_exists() -> None:
    named = set(
        re.findall(
            r"`((?:archir|backends|rewrites|tests|\.ci)/[\w/.]+)`",
            (ROOT / "CONTRIBUTING.md").read_text(),
        )
    )
    fill_in = {name for name in named if re.search(r"[A-Z]{3}", name)}
    assert fill_in
    assert [name for name in sorted(named - fill_in) if not (ROOT / name).exists()] == []
