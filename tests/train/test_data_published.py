"""Published data sets in torchvision's layout: found, read, and refused where they are damaged."""

from __future__ import annotations

import codecs
import gzip
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from archir.diag import ArchirError, Diagnostic
from archir.train import formats
from archir.train.data import Dataset, load_data
from archir.train.published import CACHE_FOLDER, DATA_FOLDER, DIGITS, FASHION_CLASSES

from .test_data import refused

scipy_io = pytest.importorskip("scipy.io")
Bytes = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of the data sets, and a cache, that are this test's alone."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv(DATA_FOLDER, str(root))
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path / "cache"))
    return root


def pixels(count: int, *shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


# ----- writers of each layout


def idx(array: Bytes) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, packed: bool = False) -> tuple[Bytes, Bytes]:
    """MNIST's four files; the test images and labels."""
    folder.mkdir(parents=True)
    made = {}
    for part, count in (("train", 40), ("t10k", 10)):
        made[f"{part}-images-idx3-ubyte"] = pixels(count, 28, 28, seed=count)
        made[f"{part}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
    for name, array in made.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return made["t10k-images-idx3-ubyte"], made["t10k-labels-idx1-ubyte"]


def write_svhn(folder: Path) -> tuple[Bytes, Bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 30), ("test", 10)):
        x, y = pixels(count, 32, 32, 3, seed=count), 1 + np.arange(count, dtype=np.uint8) % 10
        content = {"X": np.moveaxis(x, 0, 3), "y": y[:, None]}
        scipy_io.savemat(folder / f"{part}_32x32.mat", content, do_compression=True)
    return np.moveaxis(x, 3, 1), y % 10


def write_cifar100(folder: Path, binary: bool = False) -> tuple[Bytes, list[int]]:
    folder.mkdir(parents=True)
    names = [f"class{number}" for number in range(100)]
    for part, count in (("train", 40), ("test", 10)):
        x, y = pixels(count, 3072, seed=count), [7 * i % 100 for i in range(count)]
        coarse = [label // 5 for label in y]
        if binary:
            lines = np.concatenate([np.array([coarse, y], np.uint8).T, x], axis=1)
            (folder / f"{part}.bin").write_bytes(lines.tobytes())
        else:
            stored = {b"data": x, b"fine_labels": y, b"coarse_labels": coarse}
            (folder / part).write_bytes(pickle.dumps(stored, protocol=2))
    if binary:
        (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    else:
        stored = {b"fine_label_names": [name.encode() for name in names]}
        (folder / "meta").write_bytes(pickle.dumps(stored, protocol=2))
    return x.reshape(-1, 3, 32, 32), y


def same_test(data: Dataset, x: Bytes, y: Any) -> None:
    assert data.test.x.dtype == np.uint8
    np.testing.assert_array_equal(data.test.x[:], x)
    np.testing.assert_array_equal(data.test.y, y)


# ----- what is read


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "inside", "classes"),
    [("mnist", "MNIST/raw", DIGITS), ("fashion_mnist", "FashionMNIST/raw", FASHION_CLASSES)],
)
def test_mnist_and_its_double(
    folders: Path, name: str, inside: str, classes: tuple[str, ...], packed: bool
) -> None:
    x, y = write_idx(folders / inside, packed)
    by_name = load_data(name)
    same_test(by_name, x[:, None], y)
    assert by_name.shape == (1, 28, 28)
    assert (len(by_name.train), len(by_name.validation)) == (36, 4)
    for folder in (folders, folders / Path(inside).parts[0], folders / inside):
        found = load_data(str(folder))
        assert found.classes == by_name.classes == classes
        assert found.sha256 == by_name.sha256
    other = "mnist" if name != "mnist" else "fashion_mnist"
    assert refused(lambda: load_data(other)).code == "A660"


def test_svhn(folders: Path) -> None:
    x, y = write_svhn(folders / "svhn")
    assert set(y) == set(range(10))  # the file calls the digit 0 ten
    data = load_data("svhn")
    same_test(data, x, y)
    assert data.shape == (3, 32, 32)
    assert data.classes == DIGITS
    assert load_data(str(folders / "svhn")).sha256 == data.sha256


@pytest.mark.parametrize("binary", [False, True])
def test_cifar100(folders: Path, binary: bool) -> None:
    place = folders / f"cifar-100-{'binary' if binary else 'python'}"
    x, y = write_cifar100(place, binary)
    data = load_data("cifar100")
    same_test(data, x, y)
    assert data.classes == tuple(f"class{number}" for number in range(100))
    assert load_data(str(place)).sha256 == load_data(str(folders)).sha256 == data.sha256


def test_cifar100_without_its_names(folders: Path) -> None:
    write_cifar100(folders / "cifar-100-python")
    (folders / "cifar-100-python" / "meta").unlink()
    assert load_data("cifar100").classes[:2] == ("0", "1")


def test_a_folder_of_several(folders: Path) -> None:
    write_idx(folders / "MNIST" / "raw")
    write_cifar100(folders / "cifar-100-python")
    found = refused(lambda: load_data(str(folders)))
    assert found.code == "A663"
    assert "cifar100 and mnist" in found.message
    assert len(load_data("mnist").test) == len(load_data("cifar100").test) == 10


# ----- what is missing


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("svhn", "train_32x32.mat and test_32x32.mat"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
    ],
)
def test_a_set_that_is_not_there(folders: Path, name: str, wanted: str) -> None:
    found = refused(lambda: load_data(name))
    assert found.code == "A660"
    assert str(folders) in found.message
    assert "--download" in found.hint
    assert wanted in found.hint
    assert list(folders.iterdir()) == []


def test_without_a_folder_the_cache_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATA_FOLDER)
    assert DATA_FOLDER in refused(lambda: load_data("mnist")).hint
    write_idx(tmp_path / "cache" / "data" / "MNIST" / "raw")
    assert len(load_data("mnist").test) == 10


def test_a_set_that_is_not_whole(folders: Path) -> None:
    write_idx(folders / "MNIST" / "raw")
    (folders / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    for name in ("mnist", str(folders)):
        found = refused(lambda name=name: load_data(name))  # type: ignore[misc]
        assert found.code == "A621"
        assert "has no `t10k-labels-idx1-ubyte`" in found.message
        assert "--download" in found.hint


# ----- files that are damaged, or made to be harmful


def broken(act: Callable[[], object], *says: str) -> Diagnostic:
    found = refused(act)
    assert found.code == "A621"
    for text in says:
        assert text in found.message
    return found


IDX: list[tuple[str, bytes, str]] = [
    ("empty", b"", "no IDX file"),
    ("cut in its header", idx(pixels(2, 28, 28))[:9], "no IDX file"),
    ("of another rank", idx(pixels(2, 28)), "no IDX file of bytes [N, 28, 28]"),
    ("of floats", struct.pack(">4I", 0x0D03, 1, 28, 28), "no IDX file"),
    (
        "of another size",
        idx(pixels(2, 27, 29)),
        "the shape [2, 27, 29], expected bytes [N, 28, 28]",
    ),
    ("cut", idx(pixels(2, 28, 28))[:-1], "less than the 1,568 bytes"),
    ("long", idx(pixels(2, 28, 28)) + b"!", "more than the 1,568 bytes"),
    ("boastful", struct.pack(">4I", 0x0803, 2**32 - 1, 28, 28), "speaks of 3,367,254,359,280"),
    ("cut gzip", gzip.compress(idx(pixels(9, 28, 28)))[:-20], "end-of-stream"),
    ("damaged gzip", b"\x1f\x8b" + bytes(300), "Unknown compression method"),
    ("a bomb", gzip.compress(struct.pack(">4I", 0x0803, 3, 28, 28) + bytes(5 << 20)), "more than"),
]


@pytest.mark.parametrize(("content", "says"), [row[1:] for row in IDX], ids=[row[0] for row in IDX])
def test_idx_that_is_none(folders: Path, content: bytes, says: str) -> None:
    write_idx(folders / "MNIST" / "raw")
    (folders / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(content)
    broken(lambda: load_data("mnist"), "t10k-images", says)


class Made:
    """Pickles as a call of what it is given."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


good = pixels(4, 3072)
PICKLES: list[tuple[str, Any, str]] = [
    ("no pickle", b"no pickle", "cannot read"),
    ("cut", pickle.dumps({b"data": good}, 2)[:-100], "cannot read"),
    ("a list", [1, 2], "no batch with"),
    ("no labels", {b"data": good}, "no batch with `data` and `fine_labels`"),
    ("floats", {b"data": good.astype(float), b"fine_labels": [1] * 4}, "an array of 'f8'"),
    ("objects", {b"data": np.array([{}] * 4), b"fine_labels": [1] * 4}, "an array of 'O8'"),
    ("short", {b"data": good[:, :9], b"fine_labels": [1] * 4}, "uint8[4, 9]"),
    ("few labels", {b"data": good, b"fine_labels": [1]}, "for labels [1]"),
    ("named labels", {b"data": good, b"fine_labels": ["a"] * 4}, "a list of numbers"),
    ("a call of ndarray", {b"data": Made(np.ndarray, (10**12,))}, "not callable"),
    ("hex of hex", {b"data": Made(codecs.encode, "a", "hex_codec")}, "other than latin1"),
    ("a memo of 2**31", b"\x80\x02]r\xff\xff\xff\x7f.", "at random"),
    ("a string of 2**62", b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"ab.", "cannot read"),
]


@pytest.mark.parametrize(
    ("content", "says"), [row[1:] for row in PICKLES], ids=[row[0] for row in PICKLES]
)
def test_pickles_that_are_no_batch(folders: Path, content: Any, says: str) -> None:
    place = folders / "cifar-100-python"
    write_cifar100(place)
    if not isinstance(content, bytes):
        content = pickle.dumps(content, 2)
    (place / "test").write_bytes(content)
    broken(lambda: load_data("cifar100"), str(place / "test"), says)


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_labels_in_either_byte_order(folders: Path, order: str) -> None:
    place = folders / "cifar-100-python"
    write_cifar100(place)
    labels = np.array([3, 99, 300 // 4, 0], order + "i8")
    stored = {b"data": np.asfortranarray(good), b"fine_labels": labels}
    (place / "test").write_bytes(pickle.dumps(stored, 2))
    same_test(load_data("cifar100"), good.reshape(-1, 3, 32, 32), labels)


def mat(*elements: tuple[int, bytes]) -> bytes:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    return head + b"".join(struct.pack("<2I", kind, len(held)) + held for kind, held in elements)


labels = np.ones((2, 1), np.uint8)
MATS: list[tuple[str, bytes | dict[str, Any], str]] = [
    ("empty", b"", "no file of MATLAB 5"),
    ("text", b"MATLAB, or so" * 99, "no file of MATLAB 5"),
    ("HDF5", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(99), "no file of MATLAB 5"),
    ("cut", mat((15, zlib.compress(bytes(999))))[:-4], "cut short"),
    ("a cut stream", mat((15, zlib.compress(bytes(999))[:-9])), "cut short"),
    ("no stream", mat((15, b"abcdefgh")), "decompressing"),
    ("boastful", mat()[:128] + struct.pack("<2I", 15, 2**32 - 1), "speaks of 4,294,967,295"),
    ("a bomb", mat((15, zlib.compress(bytes(5 << 20)))), "unpacks to more than 4,194,304"),
    ("many", mat(*[(15, zlib.compress(bytes(1 << 20)))] * 5), "unpacks to more than 4,194,304"),
    ("random", mat((14, bytes(range(256)))), "cannot read"),
    ("others", {"a": np.ones(3)}, "no array `X`"),
    ("of floats", {"X": np.ones((32, 32, 3, 2)), "y": labels}, "`X` is float64"),
    ("small", {"X": pixels(9, 9, 3, 2), "y": labels}, "uint8[9, 9, 3, 2] for 2 labels"),
    ("few labels", {"X": pixels(32, 32, 3, 2), "y": labels[:1]}, "for 1 labels"),
    (
        "text for labels",
        {"X": pixels(32, 32, 3, 2), "y": np.array(["a", "b"])},
        "expected integers",
    ),
]


@pytest.mark.parametrize(
    ("content", "says"), [row[1:] for row in MATS], ids=[row[0] for row in MATS]
)
def test_mat_that_is_none(
    folders: Path, content: bytes | dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MOST", 4 << 20)
    write_svhn(folders)
    if isinstance(content, bytes):
        (folders / "test_32x32.mat").write_bytes(content)
    else:
        scipy_io.savemat(folders / "test_32x32.mat", content)
    broken(lambda: load_data("svhn"), says)


def test_svhn_without_scipy(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    write_svhn(folders)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    found = refused(lambda: load_data("svhn"))
    assert found.code == "A622"
    assert "archir[data]" in found.hint


@pytest.mark.parametrize("size", [0, 5])
def test_files_of_another_size_than_rows(folders: Path, size: int) -> None:
    place = folders / "cifar-100-binary"
    write_cifar100(place, binary=True)
    (place / "test.bin").write_bytes(bytes(size))
    with pytest.raises(ArchirError) as caught:
        load_data("cifar100")
    assert caught.value.diagnostics[0].code == "A621"
