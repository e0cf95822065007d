"""Files with a few bytes changed: data, or one error that says so; nothing else, and soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.train.data import load_data
from archir.train.images import decode
from archir.train.published import CACHE_FOLDER

from .test_data_published import write_cifar100, write_idx, write_svhn

pytest.importorskip("scipy.io")


ROUNDS = 150


def npz(folder: Path) -> None:
    stream = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    x, y = stream.random((40, 2, 3), np.float32), np.arange(40) % 3
    np.savez_compressed(folder / "data.npz", x=x, y=y, classes=np.array(["a", "b", "c"]))


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "idx": (lambda folder: write_idx(folder / "raw"), "raw/train-images-idx3-ubyte"),
    "packed idx": (
        lambda folder: write_idx(folder / "raw", packed=True),
        "raw/t10k-labels-idx1-ubyte.gz",
    ),
    "batch": (lambda folder: write_cifar100(folder / "cifar-100-python"), "cifar-100-python/test"),
    "names": (lambda folder: write_cifar100(folder / "cifar-100-python"), "cifar-100-python/meta"),
    "mat": (write_svhn, "test_32x32.mat"),
    "npz": (npz, "data.npz"),
}


def changed(content: bytes, stream: np.random.Generator) -> bytes:
    """Some bytes changed, taken out or put in; most of them near the start, where headers are."""
    held = bytearray(content)
    for _ in range(int(stream.integers(1, 4))):
        reach = min(len(held), 200) if stream.random() < 0.8 else len(held)
        at = int(stream.integers(reach))
        match int(stream.integers(4)):
            case 0:
                held[at] ^= 1 << int(stream.integers(8))
            case 1:
                held[at] = int(stream.integers(256))
            case 2:
                del held[at : at + int(stream.integers(1, 20))]
            case _:
                held[at:at] = stream.bytes(int(stream.integers(1, 9)))
    return bytes(held)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path / "cache"))
    make, name = KINDS[kind]
    folder = tmp_path / "data"
    make(folder)
    file = folder / name
    content, stream = file.read_bytes(), np.random.default_rng(len(kind))
    what = str(file if kind == "npz" else folder)
    refused = 0
    for _ in range(ROUNDS):
        file.write_bytes(changed(content, stream))
        start = time.perf_counter()
        try:
            load_data(what)
        except ArchirError as failure:
            (found,) = failure.diagnostics
            assert found.code == "A621", found
            assert "\n" not in found.message
            refused += 1
        assert time.perf_counter() - start < 5
    assert refused > ROUNDS // 10
    file.write_bytes(content)
    assert len(load_data(what).test) >= 8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".ppm", ".bmp", ".tif", ".webp"])
def test_changed_images(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from .test_data_images import picture

    file, stream = tmp_path / f"image{suffix}", np.random.default_rng(0)
    picture(40, 30).save(file)
    content, refused = file.read_bytes(), 0
    for _ in range(ROUNDS):
        file.write_bytes(changed(content, stream))
        start = time.perf_counter()
        try:
            assert decode(file, (3, 16, 16)).shape == (3, 16, 16)
        except ArchirError as failure:
            (found,) = failure.diagnostics
            assert found.code == "A662"
            assert str(file) in found.message
            refused += 1
        assert time.perf_counter() - start < 5
    assert refused > ROUNDS // 20
