"""Random-weight evaluation: a pure function of graph, images and seed, right in its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import archir
from archir.api import Network
from archir.diag import ArchirError
from archir.search.rwe import Rwe
from archir.search.untrained import body, draw_weights
from archir.train.data import Dataset, Split, load_data

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
from archir.search import features  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = Rwe(seeds=2, train_images=200, validation_images=100, calibration_images=50, device="cpu")


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


def net() -> Network:
    return archir.load(EXAMPLES / "nash_digits.arch")


def test_it_tells_digits_apart_and_repeats_itself(tmp_path: Path) -> None:
    first = Rwe(device="cpu").evaluate(net(), digits(), 0, tmp_path)
    accuracies = [line["accuracy"] for line in first.history]
    assert first.scores["accuracy"] == first.scores["score"] == pytest.approx(np.mean(accuracies))
    assert first.scores["std"] == pytest.approx(np.std(accuracies), abs=1e-15)
    assert len(set(accuracies)) > 1
    assert first.scores["score"] > 0.5  # chance is 0.1
    again = Rwe(device="cpu").evaluate(net(), digits(), 0, tmp_path)
    assert again == first
    assert Rwe(device="cpu").evaluate(net(), digits(), 1, tmp_path).scores != first.scores


def test_weights_are_drawn_anew_and_names_do_not_matter(
    tmp_path: Path, written: Callable[[str], Network]
) -> None:
    plain = "{0}: conv(6, 3) |> {1}: batch_norm |> relu |> global_avg_pool |> {2}: linear(10)"
    one = written(plain.format("zebra", "bn", "fc"))
    scores = QUICK.evaluate(one, digits(), 0, tmp_path).scores
    assert QUICK.evaluate(one.init(7), digits(), 0, tmp_path).scores == scores
    other = written(plain.format("alpha", "zz", "b"))
    assert QUICK.evaluate(other, digits(), 0, tmp_path).scores == scores
    # a rewrite that keeps the function keeps no score: its weights are drawn anew too
    grown = one.init(7).rewrite("widen", at="zebra", width=9)
    assert QUICK.evaluate(grown, digits(), 0, tmp_path).scores != scores
    assert not QUICK.inherits


def test_the_test_set_is_not_looked_at(tmp_path: Path) -> None:
    data = digits()
    spoilt = replace(data, test=Split(np.full_like(data.test.x, np.nan), data.test.y))
    scores = QUICK.evaluate(net(), data, 0, tmp_path).scores
    assert QUICK.evaluate(net(), spoilt, 0, tmp_path).scores == scores


CHANGES = {
    "seeds": 3,
    "init": "torch",
    "train_images": 150,
    "validation_images": 77,
    "calibration_images": 0,
    "project": 5,
    "head": "sgd",
    "ridge": 30.0,
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_the_score_depends_on_is_recorded(name: str, tmp_path: Path) -> None:
    changed = replace(QUICK, **{name: CHANGES[name]})
    assert changed.record() != QUICK.record()
    one, other = (e.evaluate(net(), digits(), 0, tmp_path).history for e in (QUICK, changed))
    assert one != other
    assert replace(QUICK, device="auto").record() == QUICK.record()


def test_the_schemes_of_initial_weights(written: Callable[[str], Network]) -> None:
    net = written("a: conv(400, 3) |> bn: batch_norm |> global_avg_pool |> fc: linear(300)")
    he, other = (draw_weights(net, init, (0,)) for init in ("he", "torch"))
    assert he["a.weight"].std() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert he["fc.weight"].std() == pytest.approx((2 / 400) ** 0.5, rel=0.05)
    assert not he["a.bias"].any()
    for path, reach in (("a.weight", 1 / 3), ("a.bias", 1 / 3), ("fc.bias", 1 / 20)):
        assert 0.95 * reach < np.abs(other[path]).max() <= np.float32(reach)
    assert (he["bn.weight"] == 1).all()
    assert {path: w.dtype for path, w in he.items()} == {p: w.dtype for p, w in other.items()}


def test_calibration_is_the_mean_over_batches(written: Callable[[str], Network]) -> None:
    net = written("bn: batch_norm |> dropout(0.9) |> flatten |> fc: linear(10)")
    graph = body(net.graph)
    drawn = draw_weights(net, "he", (0,))
    with features.placed(graph, digits(), "cpu") as place:
        module = place.module(graph, {path: drawn[path] for path in graph.parameters})
        images = place.some("train", 90, np.random.default_rng(0))
        features.calibrate(module, images.first(60), 30)
        found = features.features(module, images, 40)
    x = torch.cat(list(images.batches(1000))).double()
    parts = x[:60].split(30)
    mean = torch.stack([part.mean() for part in parts]).mean()
    variance = torch.stack([part.var() for part in parts]).mean()
    wanted = ((x - mean) / (variance + 1e-5).sqrt()).flatten(1)
    assert (found - wanted).abs().max() < 1e-5  # of values up to about 3, in float32


@pytest.mark.parametrize("width", [5, 60])
def test_ridge_is_that_of_scikit_learn(width: int) -> None:
    from sklearn.linear_model import Ridge

    draw = np.random.default_rng(width)
    x, unseen = draw.normal(size=(40, width)), draw.normal(size=(7, width))
    x -= x.mean(0)
    labels = torch.from_numpy(draw.integers(0, 3, 40))
    targets = features.one_hot(labels, 3)
    found = features.ridge(torch.from_numpy(x), targets, 0.3, torch.from_numpy(unseen))
    # scikit-learn adds up over images where this takes the mean
    wanted = Ridge(alpha=0.3 * 40).fit(x, targets.numpy()).predict(unseen)
    assert np.abs(found.numpy() - wanted).max() < 1e-10


def test_sgd_is_that_of_torch() -> None:
    draw = np.random.default_rng(0)
    x, unseen = (torch.from_numpy(draw.normal(size=(n, 6))) for n in (50, 8))
    labels = torch.from_numpy(draw.integers(0, 3, 50))
    how = {"epochs": 4, "lr": 0.2}
    targets = features.one_hot(labels, 3)
    found = features.sgd(x, targets, unseen, batch=20, drawing=np.random.default_rng(1), **how)
    layer = torch.nn.Linear(6, 3, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * 3)
    order = np.random.default_rng(1)
    for _ in range(4):
        for part in torch.from_numpy(order.permutation(50)).split(20):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
    assert (found - layer(unseen)).abs().max() < 1e-10


def code(caught: pytest.ExceptionInfo[ArchirError]) -> str:
    return caught.value.diagnostics[0].code


@pytest.mark.parametrize(
    "pipeline",
    ["conv(10, 8, padding = 0) |> flatten", "flatten |> fc: linear(10) |> softmax"],
)
def test_networks_without_a_last_linear_layer(
    pipeline: str, written: Callable[[str], Network], tmp_path: Path
) -> None:
    with pytest.raises(ArchirError) as caught:
        QUICK.evaluate(written(pipeline), digits(), 0, tmp_path)
    assert code(caught) == "A730"


def test_features_that_overflow(written: Callable[[str], Network], tmp_path: Path) -> None:
    growing = written("flatten |> 8 * exp |> fc: linear(10)")
    with pytest.raises(ArchirError) as caught:
        QUICK.evaluate(growing, digits(), 0, tmp_path)
    assert code(caught) == "A734"


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"head": "svm"}, {"ridge": 0.0}, {"batch": 1}])
def test_settings_that_make_no_evaluation(wrong: dict[str, object]) -> None:
    with pytest.raises(ArchirError) as caught:
        Rwe(**wrong)
    assert code(caught) == "A733"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_finds_about_the_same(tmp_path: Path) -> None:
    here, there = (
        replace(QUICK, device=device).evaluate(net(), digits(), 0, tmp_path).scores["score"]
        for device in ("cpu", "cuda")
    )
    assert abs(here - there) <= 0.03  # six of 200 images, by rounding
