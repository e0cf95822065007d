"""Data on the command line: sizes from the network, downloads on demand, errors of one screen."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archir.diag import BAD_INPUT
from archir.train.published import CACHE_FOLDER, DATA_FOLDER

from .test_data_images import write

pytest.importorskip("torch")
Archir = Callable[..., Any]

TEXT = """version 1

arch tiny(classes = 2) {
    input image: f32[N, 3, 10, 8]
    stem = image |> conv: conv(4, 3) |> bn: batch_norm |> relu
    output logits = stem |> global_avg_pool |> fc: linear(classes)
}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(DATA_FOLDER, str(tmp_path / "root"))
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path / "cache"))
    (tmp_path / "tiny.arch").write_text(TEXT)
    write(tmp_path / "photos" / "train", {"cat": 12, "dog": 12})
    write(tmp_path / "photos" / "val", {"cat": 4, "dog": 4}, seed=500)
    return tmp_path


def test_a_folder_of_images_from_training_to_refit(archir: Archir, here: Path) -> None:
    words = ["tiny.arch", "--data", "photos", "--epochs", 2, "--batch-size", 8, "--device", "cpu"]
    trained = archir("train", *words, "-o", "trained.arch", "--json")
    assert trained.status == 0, trained.err
    found = archir("eval", "trained.arch", "--data", "photos", "--device", "cpu", "--json")
    assert found.status == 0, found.err
    assert found.document["count"] == 8
    assert found.document["data"]["sha256"] == trained.document["data"]["sha256"]
    deeper = ["--rule", "deepen.batch_norm", "--at", "stem.relu", "-o", "deeper.arch"]
    done = archir("rewrite", "trained.arch", *deeper, "--calibrate", "photos")
    assert done.status == 0, done.err
    assert "statistics of 22 images of photos" in done.out
    assert len(list((here / "cache" / "images").glob("*.npy"))) == 1  # decoded once for all


@pytest.mark.parametrize(
    "words",
    [
        ("train", "tiny.arch", "-o", "out.arch", "--data", "svhn"),
        ("eval", "tiny.arch", "--init", 0, "--data", "svhn"),
        (
            "rewrite",
            "tiny.arch",
            "--init",
            0,
            "--rule",
            "deepen",
            "-o",
            "out.arch",
            "--calibrate",
            "svhn",
        ),
    ],
)
def test_a_set_that_is_not_here(archir: Archir, here: Path, words: tuple[object, ...]) -> None:
    answer = archir(*words)
    assert answer.status == BAD_INPUT
    assert "A660" in answer.err
    assert "--download" in answer.err
    assert len(answer.err.splitlines()) < 15
    assert not (here / "root").exists()
    assert not (here / "out.arch").exists()


def test_a_download_without_a_connection(
    archir: Archir, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        answer = archir("train", "tiny.arch", "-o", "out.arch", "--data", "mnist", "--download")
    assert answer.status == BAD_INPUT
    assert "A661" in answer.err
    assert "Traceback" not in answer.err
    assert len(answer.err.splitlines()) < 15
    assert list((here / "root").iterdir()) == []


def test_a_network_without_a_size(archir: Archir, here: Path) -> None:
    (here / "free.arch").write_text(TEXT.replace("10, 8]", "H, W]"))
    answer = archir("eval", "free.arch", "--init", 0, "--data", "photos")
    assert answer.status == BAD_INPUT
    assert "A664" in answer.err
