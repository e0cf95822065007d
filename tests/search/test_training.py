"""Training as an evaluator: from inherited weights, resumable, on validation images or joined."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import archir
from archir.api import Network
from archir.search.training import Training
from archir.train.data import Dataset, Split, joined, load_data
from archir.train.images import StoredImages
from archir.train.recipe import TrainConfig

pytest.importorskip("torch")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = Training(TrainConfig(epochs=2, batch_size=128, device="cpu"), device="cpu")


@cache
def net() -> Network:
    return archir.load(EXAMPLES / "nash_digits.arch")


@cache
def digits() -> Dataset:
    return load_data("digits")


def weights(network: Network | None) -> dict[str, np.ndarray]:
    assert network is not None
    return dict(network.weights or {})


def test_a_network_is_trained_and_scored(tmp_path: Path) -> None:
    found = SHORT.evaluate(net(), digits(), 3, tmp_path)
    assert found.network is not None
    assert [step.kind for step in found.network.certificate.steps] == ["init", "train"]
    assert set(found.scores) == {"score", "accuracy", "loss"}
    assert found.scores["score"] == found.scores["accuracy"]
    assert [line["epoch"] for line in found.history] == [1, 2]
    assert found.history[-1]["accuracy"] == found.scores["accuracy"]
    assert set(found.history[0]) == {"epoch", "loss", "validation_loss", "accuracy", "lr"}


def test_the_seed_is_that_of_the_evaluation_and_weights_are_inherited(tmp_path: Path) -> None:
    def trained(network: Network, seed: int, name: str) -> dict[str, np.ndarray]:
        folder = tmp_path / name
        folder.mkdir()
        return weights(SHORT.evaluate(network, digits(), seed, folder).network)

    start = net().init(5)
    one = trained(start, 1, "a")
    assert all(np.array_equal(one[k], v) for k, v in trained(start, 1, "b").items())
    assert any((one[k] != v).any() for k, v in trained(start, 2, "c").items())
    assert any((one[k] != v).any() for k, v in trained(net().init(6), 1, "d").items())


def test_an_evaluation_that_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archir.train import loop

    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        folder.mkdir()
    whole = SHORT.evaluate(net(), digits(), 0, folders[0])
    epochs: list[int] = []
    real = loop._Run._epoch

    def epoch(run: loop._Run, progress: object) -> float:
        if len(epochs) == 1:
            raise KeyboardInterrupt
        epochs.append(run.epoch)
        return real(run, None)

    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(loop._Run, "_epoch", epoch)
    with pytest.raises(KeyboardInterrupt):
        SHORT.evaluate(net(), digits(), 0, folders[1])
    epochs.clear()
    again = SHORT.evaluate(net(), digits(), 0, folders[1])
    assert epochs == [2]
    assert (again.scores, again.history) == (whole.scores, whole.history)
    found = weights(again.network)
    assert all(np.array_equal(found[k], v) for k, v in weights(whole.network).items())


def test_the_record_has_all_that_a_score_depends_on() -> None:
    record = SHORT.record()
    assert record["join"] is False
    assert "seed" not in record["recipe"]
    assert "device" not in record["recipe"]
    assert record != replace(SHORT, join=True).record()
    assert record != replace(SHORT, config=replace(SHORT.config, lr=0.1)).record()
    assert record == replace(SHORT, device="cuda").record()
    assert SHORT.inherits


def test_the_final_training_is_on_validation_images_too(tmp_path: Path) -> None:
    found = replace(SHORT, join=True).evaluate(net(), digits(), 0, tmp_path)
    assert set(found.scores) == {"score", "fitted", "loss"}  # no accuracy: it saw these images
    assert found.network is not None
    facts = found.network.certificate.steps[-1].facts
    assert facts["data"]["images"] == len(digits().train) + len(digits().validation)
    assert facts["data"]["sha256"] != digits().sha256


def test_joined_data() -> None:
    data = digits()
    whole = joined(data)
    assert len(whole.train) == len(data.train) + len(data.validation)
    np.testing.assert_array_equal(whole.train.x[len(data.train) :], data.validation.x)
    np.testing.assert_array_equal(whole.train.y[: len(data.train)], data.train.y)
    assert (whole.validation, whole.test) == (data.validation, data.test)
    assert whole.sha256 != data.sha256
    assert whole.name != data.name


def test_images_in_one_file_stay_there() -> None:
    array = np.arange(5 * 12, dtype=np.uint8).reshape(5, 3, 2, 2)
    stored = StoredImages(array, np.zeros((5, 32), np.uint8), np.arange(5))
    parts = [stored.only(np.array(rows)) for rows in ([4, 0], [2], [1, 3])]
    splits = [Split(part, np.arange(len(part))) for part in parts]
    data = Dataset("photos", *splits, ("a", "b"), "0")
    whole = joined(data).train
    assert isinstance(whole.x, StoredImages)
    assert whole.x.array is array
    np.testing.assert_array_equal(whole.x[:], array[[4, 0, 2]])
    np.testing.assert_array_equal(whole.y, [0, 1, 0])


@pytest.mark.parametrize("kind", ["f", "memmap", "stored"])
def test_images_of_other_kinds_are_copied(kind: str, tmp_path: Path) -> None:
    first = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    second: object = np.full((1, 3, 2, 2), 255, np.uint8)
    if kind == "f":
        second = np.ones((1, 3, 2, 2), np.float32)
    if kind == "memmap":
        held = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(1, 3, 2, 2))
        held[:] = 255
        second = held
    if kind == "stored":
        rows = np.arange(1)
        second = StoredImages(np.asarray(second), np.zeros((1, 32), np.uint8), rows)
    one, two = Split(first, np.array([0, 1])), Split(second, np.array([1]))  # type: ignore[arg-type]
    whole = joined(Dataset("images", one, two, one, ("a", "b"), "0")).train.x
    assert isinstance(whole, np.ndarray)
    scale = 255 if kind == "f" else 1
    np.testing.assert_array_equal(whole[:2], first / np.float32(scale))
    np.testing.assert_array_equal(whole[2:], np.full((1, 3, 2, 2), 255 / scale))
