"""Supernet and policy in training: which images, what is a baseline, going on after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

import archir
from archir.api import Network
from archir.diag import ArchirError
from archir.search import nat_loop
from archir.search.cells import ACTIONS, FAMILIES, NULL, OPS, SKIP, is_alive, with_ops
from archir.search.nat_config import NatConfig
from archir.search.nat_loop import CHECKPOINT, POLICY, SUPERNET, compare, form_of, learn
from archir.search.nat_policy import load_policy
from archir.search.parts import Evaluated
from archir.search.supernet import load_supernet
from archir.train.data import Dataset, Split

CELLS = (FAMILIES["vgg"].normal, FAMILIES["vgg"].reduction)
CONFIG = NatConfig(
    channels=2,
    layers=3,
    epochs=3,
    batch_size=16,
    flip=False,
    crop=0,
    reward_images=16,
    judged=2,
    inputs="given",
    self_loops=True,
)
TEXT = """\
version 1
arch toy(classes = 3) {
    input image: f32[N, 1, 4, 4]
    output logits = image |> conv: conv(4, 3) |> global_avg_pool |> fc: linear(classes)
}
"""


def parsed(text: str) -> Network:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "toy.arch"
        path.write_text(text, "utf-8")
        return archir.load(path)


@cache
def network() -> Network:
    return parsed(TEXT)


def split(count: int, seed: int) -> Split:
    generator = np.random.default_rng(seed)
    y = generator.integers(3, size=count)
    x = generator.standard_normal((count, 1, 4, 4)) + y[:, None, None, None]
    return Split(x.astype(np.float32), y.astype(np.int64))


def data(train: int = 0, validation: int = 1, test: int = 2) -> Dataset:
    parts = split(60, train), split(30, validation), split(30, test)
    return Dataset("toy", *parts, ("a", "b", "c"), "0" * 64)


def trained(folder: Path, config: NatConfig = CONFIG, dataset: Dataset | None = None) -> Evaluated:
    folder.mkdir(exist_ok=True)
    how: dict[str, Any] = {"seed": 5, "folder": folder, "device": "cpu"}
    return learn(network(), CELLS, dataset or data(), config, **how)


def kept(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "kept" / name).read_bytes() for name in (POLICY, SUPERNET)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Evaluated]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    yield folder, trained(folder)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(
    epoch: int, whole: tuple[Path, Evaluated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    run = nat_loop._Run
    before = run._policy_step

    def step(self: Any, *given: Any) -> Any:
        if self.epoch == epoch:
            raise Killed
        return before(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(run, "_policy_step", step)
        with pytest.raises(Killed):
            trained(tmp_path)
    assert (tmp_path / CHECKPOINT).exists()
    assert not (tmp_path / "kept").exists()
    begun = []
    counted = run.one_epoch

    def one_epoch(self: Any) -> None:
        begun.append(self.epoch)
        counted(self)

    monkeypatch.setattr(run, "one_epoch", one_epoch)
    assert trained(tmp_path) == whole[1]
    assert begun == list(range(epoch, 3))
    assert kept(tmp_path) == kept(whole[0])


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_checkpoint_is_not_used(
    damage: str, whole: tuple[Path, Evaluated], tmp_path: Path
) -> None:
    bytes_ = (whole[0] / CHECKPOINT).read_bytes()
    if damage == "other":
        trained(tmp_path, replace(CONFIG, epochs=1))
    else:
        (tmp_path / CHECKPOINT).write_bytes(bytes_[:-9])
    assert trained(tmp_path) == whole[1]
    assert kept(tmp_path) == kept(whole[0])


def test_neither_validation_nor_test_images_are_learned_from(
    whole: tuple[Path, Evaluated], tmp_path: Path
) -> None:
    assert trained(tmp_path / "test", dataset=data(test=9)) == whole[1]
    other = trained(tmp_path / "validation", dataset=data(validation=9))
    assert kept(tmp_path / "validation") == kept(tmp_path / "test") == kept(whole[0])
    assert other.scores != whole[1].scores  # which are measured on them
    trained(tmp_path / "train", dataset=data(train=9))
    assert kept(tmp_path / "train") != kept(whole[0])


def test_shared_weights_are_compared_on_validation_images(
    whole: tuple[Path, Evaluated],
) -> None:
    dead = [with_ops(cell, [NULL] * 8) for cell in CELLS]

    def told(cells: Any, dataset: Dataset) -> Evaluated:
        path = whole[0] / "kept" / SUPERNET
        pair = (CELLS, cells)
        return compare(network(), path, pair, dataset, most=1000, device="cpu")

    same, less = told(CELLS, data()), told(dead, data())
    assert same.scores == {
        "score": whole[1].scores["input"],
        "accuracy": whole[1].scores["input"],
        "difference": 0.0,
        "half": 0.0,
    }
    assert told(dead, data(test=9)) == told(dead, data(train=9)) == less
    assert told(dead, data(validation=9)) != less
    # what is told right by the most frequent class, and the interval of paired differences
    labels = data().validation.y
    difference = less.scores["accuracy"] - same.scores["accuracy"]
    assert less.scores["difference"] == pytest.approx(difference)
    assert less.scores["accuracy"] in [pytest.approx((labels == k).mean()) for k in range(3)]
    assert 0 < less.scores["half"] <= 1.96 / (len(labels) - 1) ** 0.5


def test_the_parts_are_two_fifths_and_three_fifths() -> None:
    run = nat_loop._Run(network(), CELLS, data(), CONFIG, 0, torch.device("cpu"))
    weights, policy = run.parts
    assert (len(weights), len(policy)) == (24, 36)
    assert set(weights) | set(policy) == set(range(60))
    seen = torch.cat([x for x, _ in run._batches(0, 16)])
    mine = torch.from_numpy(np.asarray(data().train.x)[weights])
    assert {*map(float, seen.sum((1, 2, 3)))} == {*map(float, mine.sum((1, 2, 3)))}


def test_baselines_by_hand() -> None:
    def found(rewards: list[list[float]], **changes: Any) -> list[list[float]]:
        run = nat_loop._Run(
            network(), CELLS, data(), replace(CONFIG, **changes), 0, torch.device("cpu")
        )
        return [run._advantages(row) for row in rewards]

    rewards = [[0.2], [0.1]]
    # the mean of what is left follows it by a tenth of each: 0.1 * 0.2
    assert found(rewards, baseline_decay=0.9) == [[0.2], [pytest.approx(0.1 - 0.02)]]
    three = [[0.2], [0.1], [0.0]]
    left = 0.1 - 0.02
    after = 0.9 * 0.02 + 0.1 * left
    assert found(three, baseline_decay=0.9)[2] == [pytest.approx(-after)]
    kinds = found(three, baseline="reward", baseline_decay=0.9)
    assert kinds[2] == [pytest.approx(-(0.9 * 0.02 + 0.1 * 0.1))]
    others = found([[0.3, 0.0, 0.6]], baseline="others", alphas=3)
    assert others == [[pytest.approx(x) for x in (0.0, -0.45, 0.45)]]


def test_the_uniform_policy_learns_nothing(tmp_path: Path) -> None:
    found = trained(tmp_path, replace(CONFIG, policy="uniform"))
    policy = load_policy(tmp_path / "kept" / POLICY)
    assert all(not value.any() for value in policy.parameters())
    assert all("reward" not in line for line in found.history)


def test_what_saves_is_rewarded(tmp_path: Path) -> None:
    """With nothing but savings to gain, the policy leaves all that costs."""
    config = replace(CONFIG, saving=100.0, alphas=4, baseline="others", policy_lr=0.01, epochs=12)
    found = trained(tmp_path, config)
    assert found.scores["saved"] > 0.9 > found.scores["uniform_saved"]
    policy = load_policy(tmp_path / "kept" / POLICY)
    assert not {"conv_3x3"} & {op for cell in CELLS for op in policy.choose(cell)}


@pytest.mark.parametrize("inputs", ["random", "mixed"])
@pytest.mark.parametrize("transitions", ["nat", "nat++"])
def test_random_inputs(inputs: Any, transitions: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, inputs=inputs, transitions=transitions, epochs=1)
    found = trained(tmp_path, config)
    assert set(found.scores) == {"score", "saved", "uniform", "uniform_saved", "input"}
    supernet = load_supernet(tmp_path / "kept" / SUPERNET)
    assert supernet.form == form_of(CELLS, config, data())
    assert supernet.form.free


def test_the_operations_of_random_cells_are_the_published() -> None:
    def ops(family: str, **changes: Any) -> set[str]:
        cells = (FAMILIES[family].normal, FAMILIES[family].reduction)
        return set(form_of(cells, replace(CONFIG, inputs="random", **changes), data()).ops)

    whole = {"max_pool_3x3", "avg_pool_3x3", SKIP, "sep_conv_3x3", "sep_conv_5x5", NULL}
    assert ops("darts") == whole | {"dil_conv_3x3", "dil_conv_5x5", "conv_3x3"}
    assert ops("enas") == whole | {"conv_1x1", "conv_3x3", "conv_5x5"}
    assert ops("enas", transitions="nat++") == set(OPS[:13])
    given = (FAMILIES["vgg"].normal, FAMILIES["vgg"].reduction)
    assert set(form_of(given, CONFIG, data()).ops) == {"conv_3x3", "max_pool_3x3", SKIP, NULL}
    assert {SKIP, NULL} < set(ACTIONS["nat"])


def test_changed_cells_hand_on_something() -> None:
    config = replace(CONFIG, changed=1.0)
    run = nat_loop._Run(network(), CELLS, data(), config, 0, torch.device("cpu"))
    generator = np.random.default_rng(0)
    made = [run._changed(CELLS[0], generator) for _ in range(50)]
    assert all(map(is_alive, made))
    assert len({tuple(e.op for e in cell.edges) for cell in made}) > 10
    assert not is_alive(with_ops(CELLS[0], [NULL, SKIP, NULL, "conv_3x3", NULL, NULL, NULL, SKIP]))


def test_data_that_are_no_images(tmp_path: Path) -> None:
    flat = parsed("version 1\narch toy {\ninput x: f32[N, 16]\noutput y = x |> fc: linear(3)\n}\n")
    part = Split(split(60, 0).x[:].reshape(-1, 16), split(60, 0).y)
    dataset = Dataset("flat", part, part, part, ("a", "b", "c"), "0" * 64)
    with pytest.raises(ArchirError) as failure:
        learn(flat, CELLS, dataset, CONFIG, seed=0, folder=tmp_path, device="cpu")
    assert failure.value.diagnostics[0].code == "A674"
