"""Scores that train nothing, held against their definitions and against published values."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import archir
from archir.api import Network
from archir.diag import ArchirError
from archir.search.encodings.nasbench201 import OPERATIONS, program
from archir.search.parts import Evaluator
from archir.search.proxies import GradNorm, Jacov, Macs, Nwot, Params, Snip, SynFlow
from archir.search.untrained import draw_weights, stream
from archir.target import backends
from archir.train.data import Dataset, Split, load_data

pytest.importorskip("torch")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[2] / "examples"
TABLE = Path(os.environ.get("ARCHIR_DATA", "")) / "nb201"


@cache
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Network]:
    """The network of a pipeline from `image` on."""

    def load(pipeline: str) -> Network:
        path = tmp_path / "net.arch"
        lines = f"input image: f32[N, 1, 8, 8]\n output logits = image |> {pipeline}"
        path.write_text(f"version 1\narch net {{\n {lines}\n}}\n", encoding="utf-8")
        return archir.load(path)

    return load


def score(proxy: Evaluator, network: Network, seed: int = 0) -> float:
    return proxy.evaluate(network, digits(), seed, Path()).scores["score"]


ALL = (
    *(Params(), Macs(), SynFlow(device="cpu"), Nwot(device="cpu")),
    *(GradNorm(device="cpu"), Snip(device="cpu"), Jacov(device="cpu")),
)


@pytest.mark.parametrize("proxy", ALL, ids=lambda proxy: type(proxy).__name__)
def test_equal_arguments_give_equal_scores_that_are_no_accuracy(proxy: Evaluator) -> None:
    net = archir.load(EXAMPLES / "nash_digits.arch")
    found = proxy.evaluate(net, digits(), 0, Path()).scores
    assert set(found) == {"score"}
    assert proxy.evaluate(net.init(5), digits(), 0, Path()).scores == found
    assert not proxy.inherits
    assert "device" not in proxy.record()
    if not isinstance(proxy, Params | Macs):
        assert score(proxy, net, 1) != found["score"]
    assert len({other.record()["kind"] for other in ALL}) == len(ALL)


def test_costs() -> None:
    net = archir.load(EXAMPLES / "nash_digits.arch")
    assert (score(Params(), net), score(Macs(), net)) == (net.cost().params, net.cost().macs)


def test_synflow_of_two_layers(written: Callable[[str], Network]) -> None:
    net = written("a: conv(5, 3, bias = false) |> relu |> global_avg_pool |> fc: linear(10)")
    drawn = {path: np.abs(w).astype(np.float64) for path, w in weights(net).items()}
    # a unit of the conv at a place is the sum of the weights that meet the image of ones
    padded = np.pad(np.ones((8, 8)), 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    means = np.einsum("hwij,oij->o", windows, drawn["a.weight"][:, 0]) / 64
    through = (drawn["fc.weight"] @ means).sum()
    # what is linear in its weights is their sum of weight times gradient: once for each layer
    assert score(SynFlow(device="cpu"), net) == pytest.approx(math.log(2 * through), rel=1e-9)


def weights(net: Network) -> dict[str, np.ndarray]:
    """Those that a proxy draws for the seed 0."""
    return draw_weights(net, "torch", (0, 1))


def batch(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The images that a proxy draws for the seed 0, and their labels."""
    rows = stream(0, 0).permutation(len(digits().train))[:count]
    return digits().train.x[rows], digits().train.y[rows]


def test_nwot_counts_what_agrees(written: Callable[[str], Network]) -> None:
    net = written(
        "a: conv(6, 3) |> bn: batch_norm |> relu |> b: conv(4) |> relu |> flatten |> fc: linear(10)"
    )
    values = [net.graph.node(node.name).inputs[0] for node in net.graph if node.op == "relu"]
    feeds = {"image": batch(20)[0]}
    before = backends()["torch"].forward(net.graph, weights(net), feeds, train=True, values=values)
    codes = np.concatenate([value.reshape(20, -1) > 0 for value in before], axis=1)
    alike = (codes[:, None] == codes[None]).sum(-1).astype(np.float64)
    wanted = np.linalg.slogdet(alike)[1]
    assert score(Nwot(batch=20, device="cpu"), net) == pytest.approx(wanted, rel=1e-6)


def test_gradients_of_one_layer(written: Callable[[str], Network]) -> None:
    net = written("flatten |> fc: linear(10)")
    x, labels = batch(64)
    x = x.reshape(64, -1).astype(np.float64)
    drawn = weights(net)
    logits = x @ drawn["fc.weight"].T + drawn["fc.bias"]
    off = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    off[np.arange(64), labels] -= 1
    gradient = off.T @ x / 64
    assert score(GradNorm(device="cpu"), net) == pytest.approx(
        np.sqrt((gradient**2).sum()), rel=1e-5
    )
    wanted = np.abs(gradient * drawn["fc.weight"]).sum()
    assert score(Snip(device="cpu"), net) == pytest.approx(wanted, rel=1e-5)
    # the gradient by the image is the same for each image: all correlations are 1
    k, n = 1e-5, 64
    wanted = -(math.log(n + k) + 1 / (n + k) + (n - 1) * (math.log(k) + 1 / k))
    assert score(Jacov(device="cpu"), net) == pytest.approx(wanted, rel=1e-6)


def test_a_network_that_its_input_does_not_reach_is_the_worst(
    written: Callable[[str], Network],
) -> None:
    dead = written("null |> a: conv(6, 3) |> relu |> flatten |> fc: linear(10)")
    alive = written("a: conv(6, 3) |> relu |> flatten |> fc: linear(10)")
    for proxy in (Nwot(device="cpu"), Jacov(device="cpu")):
        assert -math.inf < score(proxy, dead) < score(proxy, alive)
    cut = written("a: conv(6, 3, bias = false) |> relu |> null |> flatten |> fc: linear(10)")
    assert score(SynFlow(device="cpu"), cut) == math.log(5e-324)


@pytest.mark.parametrize(
    ("proxy", "pipeline", "code"),
    [
        (Nwot(device="cpu"), "flatten |> fc: linear(10)", "A735"),
        (SynFlow(device="cpu"), "flatten |> slice(0, 10)", "A735"),
        (SynFlow(device="cpu"), "flatten |> 4 * exp |> fc: linear(10)", "A734"),
        (Snip(device="cpu"), "flatten |> 8 * exp |> fc: linear(10)", "A734"),
    ],
)
def test_what_has_no_score(
    proxy: Evaluator, pipeline: str, code: str, written: Callable[[str], Network]
) -> None:
    with pytest.raises(ArchirError) as caught:
        score(proxy, written(pipeline))
    assert caught.value.diagnostics[0].code == code


def test_a_batch_of_one() -> None:
    with pytest.raises(ArchirError) as caught:
        Nwot(batch=1)
    assert caught.value.diagnostics[0].code == "A733"


@pytest.mark.skipif(not TABLE.is_dir(), reason="ARCHIR_DATA names no folder with nb201/ in it")
def test_synflow_is_the_published_one(tmp_path: Path) -> None:
    """Other random weights, the same score: published values spread from 10 to 110."""
    ops = np.load(TABLE / "nb201_accuracy.npz")["ops"]
    with (TABLE / "nb201_zero_cost_subset_cifar10.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["synflow"]][::150]
    image = Split(np.zeros((2, 3, 32, 32), np.float32), np.arange(2) * 9)
    data = Dataset("zeros", image, image, image, tuple("0123456789"), "")
    for row in rows:
        path = tmp_path / "cell.arch"
        text = program([OPERATIONS[code] for code in ops[int(row["index"])]])
        path.write_text(text, encoding="utf-8")
        found = SynFlow(device="cpu").evaluate(archir.load(path), data, 0, tmp_path)
        assert abs(found.scores["score"] - float(row["synflow"])) <= 0.5, row
