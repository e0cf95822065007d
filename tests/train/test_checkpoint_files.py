"""Run folders that are damaged, another run's, or on a full disk: one line, nothing lost."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archir.diag import BAD_INPUT, ArchirError
from archir.ir.graph import Graph
from archir.ops import STANDARD
from archir.ops.arithmetic import Array
from archir.train import loop
from archir.train.data import Dataset, load_data
from archir.train.logs import BEST, LAST, METRICS, RUN, TIMINGS
from archir.train.loop import TrainResult, train
from archir.train.recipe import TrainConfig
from archir.weights.init import init_weights
from archir.weights.store import load_metadata, load_weights, save_weights

from .nets import Net, small

CONFIG = TrainConfig(epochs=2, batch_size=96, device="cpu", log_every=4, ema=0.9)
KEY = "archir.checkpoint"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


def fit(
    data: Dataset, folder: Path, config: TrainConfig = CONFIG, seed: int = 0, **more: Any
) -> TrainResult:
    graph: Graph = more.pop("graph", None) or small(4)
    weights = init_weights(graph, STANDARD, seed)
    return train(graph, weights, data, config, run_dir=folder, **more)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def settled(folder: Path) -> dict[str, bytes]:
    return {name: found for name, found in files(folder).items() if name != TIMINGS}


def refused(act: Callable[[], object], code: str) -> str:
    with pytest.raises(ArchirError) as caught:
        act()
    assert caught.value.status == BAD_INPUT
    (found,) = caught.value.diagnostics
    assert found.code == code, found
    assert "\n" not in found.message
    return str(found)


@pytest.fixture(scope="module")
def stopped(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was cut off in its second epoch, with a checkpoint at its 18th step of 26."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    update = loop._Run._update

    def cut(self: Any, *batch: torch.Tensor) -> torch.Tensor:
        if self.step == 18:
            self._save()
            raise KeyboardInterrupt
        return update(self, *batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop._Run, "_update", cut)
        with pytest.raises(KeyboardInterrupt):
            fit(digits, folder)
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    fit(digits, folder)
    return settled(folder)


def test_the_stopped_run_goes_on(digits: Dataset, folder: Path, whole: dict[str, bytes]) -> None:
    fit(digits, folder, existing="resume")
    assert settled(folder) == whole


# ---- files that are not what was written


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the counters of a checkpoint."""
    counters = json.loads(load_metadata(path)[KEY])
    change(counters)
    save_weights(path, load_weights(path), {KEY: json.dumps(counters)})


def rearranged(path: Path, change: Callable[[dict[str, Array]], object]) -> None:
    """Change the tensors of a checkpoint."""
    arrays = load_weights(path)
    change(arrays)
    save_weights(path, arrays, {KEY: load_metadata(path)[KEY]})


COUNTERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no step": lambda c: c.pop("step"),
    "a step that is text": lambda c: c.update(step="18"),
    "a step that is true": lambda c: c.update(step=True),
    "a step of another epoch": lambda c: c.update(step=10**9),
    "a negative step": lambda c: c.update(step=-18),
    "an epoch beyond the end": lambda c: c.update(epoch=99),
    "an epoch that is over": lambda c: c.update(done=13, step=26),
    "a total that is text": lambda c: c.update(total="1"),
    "a total that is none": lambda c: c.update(total=None),
    "a history that is none": lambda c: c.update(history=None),
    "a history without epochs": lambda c: c.update(history=[]),
    "a history of numbers": lambda c: c.update(history=[1]),
    "a line with more in it": lambda c: c["history"][0].update(evil=1),
    "a best of two": lambda c: c.update(best=[0.5, 1]),
    "a best that is a mapping": lambda c: c.update(best={}),
    "a negative stage": lambda c: c.update(stage=-1),
    "negative metrics": lambda c: c.update(metrics_bytes=-5),
    "more metrics than there are": lambda c: c.update(metrics_bytes=10**12),
    "no scaler": lambda c: c.pop("scaler"),
    "a scaler that is on": lambda c: c.update(scaler={"scale": 1.0}),
}


@pytest.mark.parametrize("name", COUNTERS)
def test_hostile_counters(digits: Dataset, folder: Path, name: str) -> None:
    changed(folder / LAST, COUNTERS[name])
    before = files(folder)
    refused(lambda: fit(digits, folder, existing="resume"), "A637")
    assert files(folder) == before


TENSORS: dict[str, Callable[[dict[str, Array]], object]] = {
    "no weight": lambda a: a.pop("weights/fc.weight"),
    "no average": lambda a: a.pop("ema/fc.weight"),
    "a weight of another shape": lambda a: a.update(
        {"weights/fc.bias": np.zeros((2, 5), np.float32)}
    ),
    "a weight of another type": lambda a: a.update({"weights/fc.bias": np.zeros(10, np.int64)}),
    "no statistics": lambda a: a.pop("weights/bn1.running_mean"),
    "momentum of another shape": lambda a: a.update(
        {"momentum_buffer/fc.bias": np.zeros(1, np.float32)}
    ),
    "Adam's state": lambda a: a.update({"exp_avg/fc.bias": np.zeros(10, np.float32)}),
    "state of nobody": lambda a: a.update({"momentum_buffer/x": np.zeros(10, np.float32)}),
}


@pytest.mark.parametrize("name", TENSORS)
def test_hostile_tensors(digits: Dataset, folder: Path, name: str) -> None:
    rearranged(folder / LAST, TENSORS[name])
    before = files(folder)
    refused(lambda: fit(digits, folder, existing="resume"), "A637")
    assert files(folder) == before


ADAM: dict[str, Callable[[dict[str, Array]], object]] = {
    "no second moment": lambda a: a.pop("exp_avg_sq/fc.bias"),
    "a step of two": lambda a: a.update({"step/fc.bias": np.ones(2, np.float32)}),
    "a step below zero": lambda a: a.update({"step/fc.bias": np.full((), -1, np.float32)}),
    "a step that is no number": lambda a: a.update({"step/fc.bias": np.full((), np.nan, "f4")}),
}


@pytest.mark.parametrize("name", ADAM)
def test_hostile_moments(digits: Dataset, tmp_path: Path, name: str) -> None:
    config = replace(CONFIG, optimizer="adamw", epochs=1)
    fit(digits, tmp_path, config)
    rearranged(tmp_path / LAST, ADAM[name])
    refused(lambda: fit(digits, tmp_path, config, existing="resume"), "A637")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x80\x04", b"PK\x03\x04", b"\xff" * 8, b"\0" * 64, None]
)
def test_a_checkpoint_that_is_none(digits: Dataset, folder: Path, content: bytes | None) -> None:
    if content is None:
        content = (folder / LAST).read_bytes()[:-7]
    (folder / LAST).write_bytes(content)
    before = files(folder)
    assert LAST in refused(lambda: fit(digits, folder, existing="resume"), "A637")
    assert files(folder) == before


def test_weights_of_another_tool(digits: Dataset, folder: Path) -> None:
    save_weights(folder / LAST, {"fc.weight": np.zeros(3, np.float32)})
    refused(lambda: fit(digits, folder, existing="resume"), "A637")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"version": 99}', '{"version": null}', "[" * 10**5, None],
    ids=lambda text: str(text)[:20],
)
def test_run_json(digits: Dataset, folder: Path, text: str | None) -> None:
    if text is None:
        (folder / RUN).unlink()
    else:
        (folder / RUN).write_text(text)
    before = files(folder)
    assert RUN in refused(lambda: fit(digits, folder, existing="resume"), "A637")
    assert files(folder) == before


def test_metrics_that_were_changed(digits: Dataset, folder: Path) -> None:
    path = folder / METRICS
    path.write_bytes(path.read_bytes()[:-20])
    before = files(folder)
    assert "shorter" in refused(lambda: fit(digits, folder, existing="resume"), "A637")
    assert files(folder) == before
    path.unlink()
    assert METRICS in refused(lambda: fit(digits, folder, existing="resume"), "A637")
    assert not path.exists()


def test_timings_that_are_gone(digits: Dataset, folder: Path, whole: dict[str, bytes]) -> None:
    (folder / TIMINGS).unlink()
    fit(digits, folder, existing="resume")
    assert settled(folder) == whole
    assert (folder / TIMINGS).read_text().count("\n") == 1


def test_the_best_weights_are_gone(digits: Dataset, tmp_path: Path) -> None:
    config = replace(CONFIG, keep="best")
    fit(digits, tmp_path, config)
    (tmp_path / BEST).unlink()
    assert BEST in refused(lambda: fit(digits, tmp_path, config, existing="resume"), "A601")


# ---- another run


def another_net() -> Graph:
    net = Net(1, 8, 8)
    net.add("flatten", "flatten")
    net.add("fc", "linear", out=10)
    return net.graph()


def test_another_run(digits: Dataset, folder: Path) -> None:
    before = files(folder)
    other_data = replace(digits, sha256="0" * 64)
    for said, act in {
        "lr was 0.05, is 0.1": lambda: fit(
            digits, folder, replace(CONFIG, lr=0.1), existing="resume"
        ),
        "freeze was [], is ['fc']": lambda: fit(
            digits, folder, replace(CONFIG, freeze=("fc",)), existing="resume"
        ),
        "another weights": lambda: fit(digits, folder, seed=1, existing="resume"),
        "another graph": lambda: fit(digits, folder, graph=another_net(), existing="resume"),
        "another data": lambda: fit(other_data, folder, existing="resume"),
        "another teacher": lambda: fit(
            digits,
            folder,
            teacher=(small(4), init_weights(small(4), STANDARD, 3)),
            existing="resume",
        ),
    }.items():
        assert said in refused(act, "A638")
    assert "--resume" in refused(lambda: fit(digits, folder), "A603")
    assert files(folder) == before


def test_a_run_that_cannot_begin_clears_nothing(digits: Dataset, folder: Path) -> None:
    """--force, and then a slip in the recipe: the old run is still there."""
    before = files(folder)
    wrong = replace(CONFIG, freeze=("nobody",))
    refused(lambda: fit(digits, folder, wrong, existing="replace"), "A670")
    assert files(folder) == before


# ---- disks


@contextmanager
def largest_file(bytes_: int) -> Iterator[None]:
    """As on a disk with so much room: writing beyond it fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_a_checkpoint(digits: Dataset, folder: Path, whole: dict[str, bytes]) -> None:
    last = (folder / LAST).read_bytes()
    with largest_file(len(last) // 2):
        said = refused(lambda: fit(digits, folder, existing="resume"), "A602")
    assert "File too large" in said
    assert f"{folder}; --resume goes on from it" in said
    assert (folder / LAST).read_bytes() == last
    assert {p.name for p in folder.iterdir()} == {LAST, METRICS, RUN, TIMINGS, BEST}
    fit(digits, folder, existing="resume")
    assert settled(folder) == whole


@pytest.mark.parametrize("name", [METRICS, TIMINGS])
def test_no_room_for_a_line(
    digits: Dataset,
    folder: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    last = (folder / LAST).read_bytes()
    if name == METRICS:
        room = largest_file((folder / METRICS).stat().st_size + 10)
    else:
        with (folder / TIMINGS).open("a") as file:
            file.write("{}\n" * 10000)
        room = largest_file((folder / TIMINGS).stat().st_size + 10)
    with room:
        said = refused(lambda: fit(digits, folder, existing="resume"), "A602")
    assert name in said
    assert "--resume goes on" in said
    assert (folder / LAST).read_bytes() == last
    assert not (folder / name).read_bytes().endswith(b"\n")  # a line was cut short
    fit(digits, folder, existing="resume")
    assert settled(folder) == whole
    lines = (folder / TIMINGS).read_text().splitlines()
    assert json.loads(lines[-1])["epoch"] == 2


def test_no_room_at_the_start(digits: Dataset, tmp_path: Path) -> None:
    with largest_file(10):
        said = refused(lambda: fit(digits, tmp_path / "run"), "A602")
    assert "--resume" not in said  # there is nothing yet
    assert not list((tmp_path / "run").iterdir())


def test_a_folder_that_cannot_be_made(digits: Dataset, tmp_path: Path) -> None:
    refused(lambda: fit(digits, Path("/proc/archir/run")), "A602")
    (tmp_path / RUN).mkdir()
    refused(lambda: fit(digits, tmp_path, existing="replace"), "A602")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / METRICS).mkdir()
    refused(lambda: fit(digits, tmp_path / "a"), "A602")
