"""Tensors of a network that are part of no state_dict: position indices, masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir
from archir.diag import ArchirError
from archir.weights.init import init_weights
from archir.weights.store import load_weights, save_weights

TEXT = """
version 1
arch net {
    input x: f32[N, 3, 6]
    attn.index = parameter([2, 4], dtype = i64, persistent = false)
    fc = x |> linear(5)
    act = fc |> relu
    rows = act |> gather(attn.index, axis = 2) |> flatten(2)
    buffer shift: f32[8] = 0.5
    output y = rows + shift
}
"""
PATH = "attn.index"
INDEX = np.array([[0, 4, 1, 1], [2, 3, 0, 4]])


def weighted(folder: Path) -> archir.Network:
    """A network with its constant, on the disk."""
    file = folder / "net.arch"
    file.write_text(TEXT)
    network = archir.load(file)
    weights = init_weights(network.graph, network.ops, 0, constants={PATH: INDEX})
    network.with_weights(weights, "given", {}).save(file, force=True)
    return archir.load(file)


def test_a_constant_is_in_the_file_and_in_no_state_dict(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from archir.backends import torch_fx

    network = weighted(tmp_path)
    assert "attn.index = parameter([2, 4], dtype = i64, persistent = false)" in network.text
    assert (load_weights(tmp_path / "net.safetensors")[PATH] == INDEX).all()
    module = network.to_torch()
    assert sorted(module.state_dict()) == ["fc.bias", "fc.weight", "shift"]
    assert torch.equal(dict(module.named_buffers())[PATH], torch.tensor(INDEX.tolist()))
    held = torch_fx.weights_of(module, network.graph)
    assert {path: a.tobytes() for path, a in held.items()} == {
        path: a.tobytes() for path, a in (network.weights or {}).items()
    }


def test_onnx_holds_it_as_an_initializer(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    network = weighted(tmp_path)
    network.export(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    (found,) = [t for t in model.graph.initializer if t.name == PATH]
    assert (onnx.numpy_helper.to_array(found) == INDEX).all()


def test_rewrites_go_around_it(tmp_path: Path) -> None:
    found = weighted(tmp_path).rewrite("deepen.linear", at="act")
    assert found.weights is not None
    assert (found.weights[PATH] == INDEX).all()
    assert "persistent = false" in found.text


def test_no_seed_gives_a_constant(tmp_path: Path, archir: Callable[..., Any]) -> None:
    network = weighted(tmp_path)
    file, tensors = tmp_path / "net.arch", tmp_path / "net.safetensors"
    before = load_weights(tensors)
    assert archir("weights", "init", file, "--seed", "7", "--force").status == 0
    after = load_weights(tensors)
    assert (after[PATH] == INDEX).all()
    assert (after["fc.weight"] != before["fc.weight"]).any()
    assert archir("verify", file).status == 0
    with pytest.raises(ArchirError, match=PATH):
        init_weights(network.graph, network.ops, 0)

    tensors.unlink()
    said = archir("weights", "init", file, "--force", "--json")
    assert (said.status, said.document["diagnostics"][0]["code"]) == (2, "A140")
    assert PATH in said.document["diagnostics"][0]["message"]
    assert not tensors.exists()

    save_weights(tensors, {**after, PATH: INDEX[:1]})
    said = archir("weights", "init", file, "--force", "--json")
    assert "int64[1, 4]" in said.document["diagnostics"][0]["message"]


def test_what_is_trained_is_in_the_state(tmp_path: Path, archir: Callable[..., Any]) -> None:
    file = tmp_path / "net.arch"
    file.write_text(TEXT.replace("persistent = false", "persistent = false, `buffer` = false"))
    said = archir("check", file, "--json")
    assert (said.status, said.document["diagnostics"][0]["code"]) == (2, "A114")
