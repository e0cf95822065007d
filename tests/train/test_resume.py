"""A run that is cut off and resumed is the run that was not: the same bytes in every file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archir.ops import STANDARD
from archir.train import loop
from archir.train.data import Dataset, Split
from archir.train.logs import METRICS, RUN, TIMINGS
from archir.train.loop import TrainResult, train
from archir.train.recipe import TrainConfig
from archir.weights.init import init_weights
from archir.weights.store import Weights

from .nets import small

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sgdr": {
        "schedule": "sgdr", "cycle": 0.7, "warmup": 0.5, "ema": 0.9, "clip": 1.0, "keep": "best",
        "flip": True, "crop": 1, "cutout": 3, "mixup": 0.4, "label_smoothing": 0.1,
    },
    "adamw": {"optimizer": "adamw", "lr": 0.005, "decay_vectors": False, "rates": (("fc", 2.0),)},
    "without momentum": {"momentum": 0.0, "freeze": ("conv1", "bn1"), "keep": "best"},
    "onecycle": {"schedule": "onecycle", "momentum": 0.0, "loss": "mse"},
    "bf16": {"precision": "bf16", "ema": 0.99, "channels_last": True},
    "f16": {"precision": "f16", "clip": 0.5, "optimizer": "adamw", "lr": 0.005},
    "distilled": {"distill_weight": 0.7, "temperature": 2.0, "log_every": 3},
}  # fmt: skip


def images(count: int, seed: int) -> Split:
    stream = np.random.default_rng(seed)
    x = stream.random((count, 1, 8, 8), np.float32)
    return Split(x, (x.reshape(count, -1).sum(1) * 2).astype(np.int64) % 10)


@pytest.fixture(scope="module")
def data() -> Dataset:
    names = tuple(map(str, range(10)))
    return Dataset("made", images(150, 0), images(40, 1), images(10, 2), names, "made")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(data: Dataset, name: str, folder: Path, **more: Any) -> TrainResult:
    graph = small(4, dropout=0.2)
    config = TrainConfig(**{"epochs": 3, "batch_size": 32, "device": "cpu", "log_every": 1}
                         | RECIPES[name])  # fmt: skip
    teacher = small(6)
    return train(
        graph,
        init_weights(graph, STANDARD, 0),
        data,
        config,
        run_dir=folder,
        teacher=(teacher, init_weights(teacher, STANDARD, 1)) if name == "distilled" else None,
        **more,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != TIMINGS}


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def snapshots(monkeypatch: pytest.MonkeyPatch, folder: Path, to: Path) -> list[Path]:
    """Where the run folder is copied to after each checkpoint, one for each step."""
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(loop, "SAVE_WITHIN", -1.0)
    save: Callable[[Any], None] = loop._Run._save
    made: list[Path] = []

    def kept(self: Any) -> None:
        save(self)
        made.append(Path(shutil.copytree(folder, to / str(len(made)))))

    monkeypatch.setattr(loop._Run, "_save", kept)
    return made


@pytest.mark.parametrize("name", RECIPES)
def test_from_any_checkpoint(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plain = run(data, name, tmp_path / "plain")
    expected = files(tmp_path / "plain")
    assert expected[METRICS].count(b"\n") == (7 if name == "distilled" else 15)
    with monkeypatch.context() as patched:
        made = snapshots(patched, tmp_path / "run", tmp_path)
        saved_often = run(data, name, tmp_path / "run")
    assert same(saved_often.weights, plain.weights)
    assert len(made) == 13
    for folder in made[::2]:
        # what a run writes after its last checkpoint, before it is killed
        with (folder / METRICS).open("ab") as metrics, (folder / TIMINGS).open("ab") as timings:
            metrics.write(b'{"event": "step", "step": 99')
            timings.write(b'{"epoch": 9')
        found = run(data, name, folder, existing="resume")
        assert same(found.weights, plain.weights)
        assert found.validation.loss == plain.validation.loss
        assert found.history == plain.history
        assert found.steps == plain.steps
        assert files(folder) == expected
        assert all(line.endswith("}") for line in (folder / TIMINGS).read_text().splitlines())


def test_a_run_that_is_done(data: Dataset, tmp_path: Path) -> None:
    first = run(data, "sgdr", tmp_path)
    expected = files(tmp_path)
    again = run(data, "sgdr", tmp_path, existing="resume")
    assert same(again.weights, first.weights)
    assert again.validation.loss == first.validation.loss
    assert files(tmp_path) == expected


def test_nothing_to_resume_begins_the_run(data: Dataset, tmp_path: Path) -> None:
    expected = run(data, "plain", tmp_path / "plain")
    new = run(data, "plain", tmp_path / "new", existing="resume")
    assert same(new.weights, expected.weights)
    (tmp_path / "killed").mkdir()
    shutil.copy(tmp_path / "plain" / RUN, tmp_path / "killed")  # before the first checkpoint
    run(data, "plain", tmp_path / "killed", existing="resume")
    for folder in ("new", "killed"):
        assert files(tmp_path / folder) == files(tmp_path / "plain")


def test_replacing_a_run_leaves_nothing_of_it(data: Dataset, tmp_path: Path) -> None:
    run(data, "sgdr", tmp_path / "a")
    run(data, "plain", tmp_path / "a", existing="replace")
    run(data, "plain", tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_processes_that_are_killed() -> None:
    """Two moments here, one on the clock and one before a write; the script has 20."""
    script = Path(__file__).parents[2] / "benchmarks" / "resume.py"
    words = ["--moments", "2", "--recipes", "sgd", "--seed", "3"]
    done = subprocess.run(
        [sys.executable, str(script), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed before operation" in done.stdout
    assert "killed after" in done.stdout
    assert done.stdout.count("the same") == 2
