"""Several networks as one: their class probabilities are averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir
from archir.api import Network
from archir.diag import ArchirError
from archir.ops.arithmetic import Floating
from archir.ops.evaluate import run
from archir.train.data import Dataset, Split, load_data, normalise
from archir.train.evaluate import evaluate, evaluate_together

pytest.importorskip("torch")
pytest.importorskip("sklearn")

TEXT = """\
version 1
arch net(classes = 10) {{
    {preprocess}
    input image: f32[N, 1, {side}, {side}]
    output logits = image |> conv: conv(4, 3) |> relu |> global_avg_pool |> fc: linear(classes)
}}
"""


@cache
def digits() -> Dataset:
    return load_data("digits")


def net(folder: Path, seed: int, side: int = 8, preprocess: str = "") -> Network:
    path = folder / f"net{seed}{side}.arch"
    path.write_text(TEXT.format(side=side, preprocess=preprocess), "utf-8")
    found = archir.load(path).init(seed)
    wide = {name: array * np.float32(3) for name, array in (found.weights or {}).items()}
    return replace(found, weights=wide)  # less alike than untrained networks are


def probabilities(network: Network, data: Dataset) -> Any:
    """In NumPy and float64."""
    wide = {path: array.astype(np.float64) for path, array in (network.weights or {}).items()}
    value = network.graph.outputs[0].value
    x = normalise(network.graph, data.test.x).astype(np.float64)
    feeds = {archir.ir.graph.Value("image"): x}
    logits = run(network.graph, network.ops, Floating(), feeds, wide).values[value]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_the_average_of_probabilities(tmp_path: Path) -> None:
    stated = "preprocess { mean = [0.3], std = [0.4] }"
    networks = [net(tmp_path, 0), net(tmp_path, 1, preprocess=stated), net(tmp_path, 2)]
    found = evaluate_together(networks, digits(), device="cpu")
    mean = sum(probabilities(n, digits()) for n in networks) / 3
    np.testing.assert_array_equal(found.predictions, mean.argmax(1))
    loss = -np.log(mean[np.arange(found.count), digits().test.y]).mean()
    assert abs(found.loss - loss) < 1e-5 * loss
    assert found.correct == (found.predictions == digits().test.y).sum()


def test_one_network_alone_is_itself(tmp_path: Path) -> None:
    alone = net(tmp_path, 0)
    together = evaluate_together([alone, alone], digits(), "validation", device="cpu")
    itself = evaluate(alone.graph, dict(alone.weights or {}), digits(), "validation", device="cpu")
    np.testing.assert_array_equal(together.predictions, itself.predictions)
    assert abs(together.loss - itself.loss) < 1e-5 * itself.loss


def test_images_in_two_sizes(tmp_path: Path) -> None:
    test = digits().test
    twice = Split(np.repeat(np.repeat(np.asarray(test.x), 2, 2), 2, 3), test.y)
    large = replace(digits(), test=twice, train=twice)
    networks = [net(tmp_path, 0), net(tmp_path, 1, side=16)]
    found = evaluate_together(networks, [digits(), large], device="cpu")
    mean = (probabilities(networks[0], digits()) + probabilities(networks[1], large)) / 2
    np.testing.assert_array_equal(found.predictions, mean.argmax(1))
    other = replace(large, test=Split(twice.x, twice.y[::-1].copy()))
    with pytest.raises(ArchirError) as failure:
        evaluate_together(networks, [digits(), other], device="cpu")
    assert failure.value.diagnostics[0].code == "A723"


def test_a_network_without_weights(tmp_path: Path) -> None:
    bare = replace(net(tmp_path, 0), weights=None)
    with pytest.raises(ArchirError) as failure:
        evaluate_together([net(tmp_path, 1), bare], digits(), device="cpu")
    assert failure.value.diagnostics[0].code == "A600"


def test_on_the_command_line(archir: Callable[..., Any], tmp_path: Path) -> None:
    networks = [net(tmp_path, seed) for seed in range(3)]
    paths = [tmp_path / f"n{seed}.arch" for seed in range(3)]
    for network, path in zip(networks, paths, strict=True):
        network.save(path)
    words = ("eval", paths[0], "--with", paths[1], "--with", paths[2], "--device", "cpu")
    found = archir(*words, "--data", "digits", "--json").document
    together = evaluate_together(networks, digits(), device="cpu")
    assert found["correct"] == together.correct
    assert found["predictions"] == together.predictions.tolist()
    assert found["with"] == [str(path) for path in paths[1:]]
    alone = archir("eval", paths[0], "--data", "digits", "--device", "cpu", "--json").document
    assert found["alone"] == alone["accuracy"]
    assert f"{together.correct} of 359" in archir(*words, "--data", "digits").out
    missing = archir("eval", paths[0], "--with", tmp_path / "no.arch", "--data", "digits")
    assert (missing.status, "A601" in missing.err) == (2, True)
