from __future__ import annotations

import io
import logging
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import BAD_INPUT, ArchirError, Diagnostic
from archir.train.data import (
    Dataset,
    calibration_batch,
    check_fits,
    load_data,
    normalisation,
    normalise,
)
from archir.train.published import CACHE_FOLDER, CIFAR10_CLASSES, DATA_FOLDER

from .nets import Net, small


def refused(act: Callable[[], object]) -> Diagnostic:
    with pytest.raises(ArchirError) as caught:
        act()
    assert caught.value.status == BAD_INPUT
    (found,) = caught.value.diagnostics
    return found


def arrays(count: int = 40, seed: int = 3) -> dict[str, Any]:
    stream = np.random.default_rng(seed)
    x = stream.random((count, 2, 3, 3), np.float32)
    return {"x": x, "y": np.arange(count) % 4}


def saved(path: Path, **content: Any) -> str:
    np.savez(path / "data.npz", **content)
    return str(path / "data.npz")


def rows(dataset: Dataset) -> list[bytes]:
    splits = (dataset.train, dataset.validation, dataset.test)
    return [x.tobytes() + y.tobytes() for s in splits for x, y in zip(s.x, s.y, strict=True)]


# ----- digits and the splits


def test_digits_are_images_from_0_to_1() -> None:
    data = load_data("digits")
    assert data.shape == (1, 8, 8)
    assert (len(data.train), len(data.validation), len(data.test)) == (1258, 180, 359)
    assert data.classes == tuple("0123456789")
    for split in (data.train, data.validation, data.test):
        assert split.x.dtype == np.float32
        assert split.y.dtype == np.int64
        assert split.x.min() == 0
        assert split.x.max() == 1
        assert set(split.y) == set(range(10))


def test_the_splits_hold_every_image_once() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    all_rows = [a.tobytes() + b.tobytes() for a, b in zip(x, labels.astype(np.int64), strict=True)]
    assert len(set(all_rows)) == 1797  # no duplicates, so equal multisets mean disjoint splits
    assert sorted(rows(load_data("digits", seed=5))) == sorted(all_rows)


def test_the_seed_moves_the_validation_set_and_never_the_test_set() -> None:
    one, same, other = (load_data("digits", seed) for seed in (0, 0, 1))
    assert one.test.x.tobytes() == other.test.x.tobytes()
    assert one.validation.x.tobytes() != other.validation.x.tobytes()
    assert rows(one) == rows(same)
    assert one.sha256 == same.sha256 != other.sha256


def test_the_digits_are_what_they_have_always_been() -> None:
    # A change here changes every published number on the digits.
    assert load_data("digits").sha256.startswith("a85aed7feb116441")


def test_the_hash_sees_a_label_and_a_pixel(tmp_path: Path) -> None:
    content = arrays()
    first = load_data(saved(tmp_path, **content)).sha256
    content["y"][7] = (content["y"][7] + 1) % 4
    second = load_data(saved(tmp_path, **content)).sha256
    content["x"][7, 0, 0, 0] += 0.25
    third = load_data(saved(tmp_path, **content)).sha256
    assert len({first, second, third}) == 3


def test_images_without_pixels(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, x=np.ones((20, 0)), y=np.arange(20) % 2))
    assert data.shape == (0,)


def test_reading_data_imports_no_torch() -> None:
    code = "import sys; from archir.train.data import load_data; load_data('digits')"
    code += "; print(*sorted({'torch', 'torchvision', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    found = refused(lambda: load_data("digits"))
    assert found.code == "A622"
    assert "archir[data]" in found.hint


# ----- npz


def test_npz_with_x_and_y(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, **arrays()))
    assert (len(data.train), len(data.validation), len(data.test)) == (28, 4, 8)
    assert data.classes == ("0", "1", "2", "3")


def test_npz_with_splits_of_its_own(tmp_path: Path) -> None:
    one, two, three = arrays(20, 1), arrays(6, 2), arrays(5, 3)
    path = saved(
        tmp_path,
        x_train=one["x"],
        y_train=one["y"],
        x_test=two["x"],
        y_test=two["y"],
        x_validation=three["x"],
        y_validation=three["y"],
        classes=np.array(["a", "b", "c", "d", "e"]),
    )
    data = load_data(path, seed=9)
    for split, given in ((data.train, one), (data.test, two), (data.validation, three)):
        np.testing.assert_array_equal(split.x, given["x"])
        np.testing.assert_array_equal(split.y, given["y"])
    assert data.classes == ("a", "b", "c", "d", "e")


def test_npz_without_a_validation_set_gives_a_tenth_of_the_training_images(tmp_path: Path) -> None:
    one, two = arrays(50, 1), arrays(6, 2)
    path = saved(tmp_path, x_train=one["x"], y_train=one["y"], x_test=two["x"], y_test=two["y"])
    data = load_data(path)
    assert (len(data.train), len(data.validation), len(data.test)) == (45, 5, 6)


def test_bytes_stay_bytes_and_stand_for_numbers_from_0_to_1(tmp_path: Path) -> None:
    x = np.zeros((20, 1, 2, 2), np.uint8)
    x[:, 0, 0, 0] = 255
    data = load_data(saved(tmp_path, x=x, y=np.zeros(20, np.uint8)))
    assert data.train.x.dtype == np.uint8
    for floats in (normalise(Net(1, 2, 2).graph(), data.train.x), calibration_batch(data, 9)):
        assert floats.dtype == np.float32
        assert floats[3].tolist() == [[[1.0, 0.0], [0.0, 0.0]]]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"x": np.ones((4, 2))}, "has no `y`"),
    ({"images": np.ones((4, 2))}, "has no `x`; it has images"),
    ({"x": np.ones((4, 2)), "y": np.zeros(3, int)}, "for 3 labels"),
    ({"x": np.ones((4, 2)), "y": np.zeros(4)}, "float64[4], expected integers [N]"),
    ({"x": np.ones((4, 2)), "y": np.zeros((4, 1), int)}, "int64[4, 1], expected integers"),
    ({"x": np.ones(4), "y": np.zeros(4, int)}, "float64[4] for 4 labels"),
    ({"x": np.ones((4, 2), np.uint16), "y": np.zeros(4, int)}, "uint16"),
    ({"x": np.full((4, 2), np.nan), "y": np.zeros(4, int)}, "not finite"),
    ({"x": np.full((4, 2), 1e300), "y": np.zeros(4, int)}, "not finite as float32"),
    ({"x": np.ones((4, 2)), "y": np.array([0, 1, 0, 10**9])}, "holds the class 1000000000"),
    ({"x": np.ones((4, 2)), "y": np.full(4, 2**64 - 1, np.uint64)}, "the class 184467440737095"),
    ({"x": np.ones((9, 2)), "y": np.arange(9), "classes": np.arange(10**5 + 1)}, "names 100,001"),
    ({"x": np.ones((4, 2)), "y": np.array([0, 1, -1, 0])}, "holds the class -1"),
    ({"x": np.ones((1, 2)), "y": np.zeros(1, int)}, "too few images"),
    ({"x": np.ones((9, 2)), "y": np.arange(9), "classes": np.array(["a"])}, "names 1 classes"),
    ({"x": np.ones((9, 2)), "y": np.array([0] * 9, object)}, "cannot read"),
]


@pytest.mark.parametrize(("content", "says"), BAD, ids=[says for _, says in BAD])
def test_malformed_npz(tmp_path: Path, content: dict[str, Any], says: str) -> None:
    path = saved(tmp_path, **content)
    found = refused(lambda: load_data(path))
    assert found.code == "A621"
    assert says in found.message


def test_splits_of_unlike_shapes(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        x_train=np.ones((20, 3, 4)),
        y_train=np.zeros(20, int),
        x_test=np.ones((20, 3, 5)),
        y_test=np.zeros(20, int),
    )
    found = refused(lambda: load_data(path))
    assert (found.code, found.message.split(": ")[-1]) == ("A621", "[3, 4] and [3, 4] and [3, 5]")


@pytest.mark.parametrize("kind", ["damaged", "empty", "npy", "pickle"])
def test_an_npz_that_is_none(tmp_path: Path, kind: str) -> None:
    npy = io.BytesIO()
    np.save(npy, np.ones(3))
    content = {"damaged": b"PK\x03\x04 and no more", "empty": b"", "npy": npy.getvalue()}
    (tmp_path / "data.npz").write_bytes(content.get(kind, pickle.dumps({"x": 1})))
    assert refused(lambda: load_data(str(tmp_path / "data.npz"))).code == "A621"


def npy(shape: tuple[int, ...], kind: str, content: bytes, version: bytes = b"\1\0") -> bytes:
    """A file of NumPy's whose header says what it likes."""
    head = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + version + len(head).to_bytes(2, "little") + head + content


HOSTILE: list[tuple[str, bytes, str]] = [
    ("boastful", npy((10**12, 4), "<f8", b""), "another size"),
    ("more than it says", npy((2, 1), "<f8", bytes(99)), "another size"),
    ("of nothing", npy((10**15,), "<U0", b""), "not of numbers or text"),
    ("of objects", npy((1,), "|O", pickle.dumps([1])), "not of numbers or text"),
    ("of records", npy((1,), "[('a', '<f8')]", bytes(8)), "cannot read"),
    ("of a negative size", npy((-1, 2), "<f8", b""), "another size"),
    ("no npy", b"no npy at all", "magic string is not correct"),
    ("of a version to come", npy((1, 1), "<f8", bytes(8), b"\x09\0"), "version"),
    ("of a header that is code", b"\x93NUMPY\1\0\x0a\0exit()    \n", "cannot read"),
]


@pytest.mark.parametrize(
    ("content", "says"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
@pytest.mark.parametrize("name", ["x", "y", "classes"])
def test_an_npz_made_to_harm(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = saved(tmp_path, **{k: v for k, v in arrays().items() if k != name})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", content)
    found = refused(lambda: load_data(path))
    assert found.code == "A621"
    assert says in found.message


def test_an_npz_that_is_packed_too_tightly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archir.train.sources.MOST", 1 << 20)
    path = str(tmp_path / "data.npz")
    np.savez_compressed(path, x=np.zeros((4000, 300), np.uint8), y=np.arange(4000) % 2)
    found = refused(lambda: load_data(path))
    assert found.code == "A621"
    assert "x.npy unpacks to 1,200,128 bytes" in found.message
    rough = np.random.default_rng(0).integers(0, 2, (4000, 300), np.uint8)
    np.savez_compressed(path, x=rough, y=np.arange(4000) % 2)
    assert len(load_data(path).train) == 2800


def test_arrays_of_other_names_are_not_read(tmp_path: Path) -> None:
    path = saved(tmp_path, **arrays())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.npy", b"not an array")
    assert len(load_data(path).test) == 8


@pytest.mark.parametrize("name", ["digit", "nowhere.npz", "nowhere/", "", "http://x/y.npz"])
def test_unknown_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = refused(lambda: load_data(name))
    assert found.code == "A620"
    assert "digits" in found.hint


# ----- CIFAR-10 in its published layouts


def cifar_rows(count: int, seed: int) -> tuple[np.ndarray[Any, Any], list[int]]:
    stream = np.random.default_rng(seed)
    return stream.integers(0, 256, (count, 3072), np.uint8), stream.integers(0, 10, count).tolist()


def write_cifar(folder: Path, binary: bool) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        x, y = cifar_rows(4, number)
        if binary:
            lines = np.concatenate([np.array(y, np.uint8)[:, None], x], axis=1)
            (folder / f"{name}.bin").write_bytes(lines.tobytes())
        else:
            (folder / name).write_bytes(pickle.dumps({b"data": x, b"labels": y}, protocol=2))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_cifar10_folder(tmp_path: Path, binary: bool, inside: bool) -> None:
    folder = tmp_path / f"cifar-10-batches-{'bin' if binary else 'py'}"
    write_cifar(folder, binary)
    data = load_data(str(tmp_path if inside else folder))
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 4)
    assert data.classes == CIFAR10_CLASSES
    x, y = cifar_rows(4, 5)
    np.testing.assert_array_equal(data.test.x, x.reshape(4, 3, 32, 32))
    assert data.test.y.tolist() == y


def test_cifar10_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_FOLDER, raising=False)
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path / "cache"))
    assert DATA_FOLDER in refused(lambda: load_data("cifar10")).hint
    write_cifar(tmp_path / "cifar-10-batches-py", binary=False)
    monkeypatch.setenv(DATA_FOLDER, str(tmp_path))
    assert len(load_data("cifar10").test) == 4


def test_a_folder_without_data(tmp_path: Path) -> None:
    found = refused(lambda: load_data(str(tmp_path)))
    assert found.code == "A621"
    assert "cifar-10-batches-py" in found.hint


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("touched", "w"))  # type: ignore[return-value]


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, binary=False)
    stream = io.BytesIO()
    pickle.dump({b"data": Evil(), b"labels": []}, stream, protocol=2)
    (folder / "data_batch_3").write_bytes(stream.getvalue())
    found = refused(lambda: load_data(str(folder)))
    assert found.code == "A621"
    assert "open, which is no array" in found.message
    assert not (tmp_path / "touched").exists()


# ----- a factory of the user's


def test_factory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "def make():\n"
        "    return {'x': np.ones((30, 2, 2)), 'y': [i % 3 for i in range(30)]}\n"
        "def ready():\n"
        "    from archir.train.data import load_data\n"
        "    return load_data('digits', 4)\n"
        "def broken():\n"
        "    return 1 / 0\n"
        "def nothing():\n"
        "    return None\n"
    )
    with caplog.at_level(logging.WARNING):
        data = load_data(f"{file}:make")
    assert "running make of" in caplog.text
    assert data.shape == (2, 2)
    assert data.classes == ("0", "1", "2")
    assert load_data(f"{file}:ready").sha256 == load_data("digits", 4).sha256
    expected = {
        "broken": "ZeroDivisionError: division by zero",
        "nothing": "returned NoneType",
        "absent": "no function `absent`",
    }
    for name, says in expected.items():
        found = refused(lambda name=name: load_data(f"{file}:{name}"))  # type: ignore[misc]
        assert found.code == "A624"
        assert says in found.message
    assert "is no Python file" in refused(lambda: load_data(f"{tmp_path}/no.py:make")).message


# ----- data and network


def test_data_that_fits() -> None:
    check_fits(small(), load_data("digits"))


@pytest.mark.parametrize(
    ("shape", "classes", "code", "both"),
    [
        ((3, 8, 8), 10, "A623", ("f32[N, 3, 8, 8]", "f32[1, 8, 8]")),
        ((1, 8), 10, "A623", ("f32[N, 1, 8]", "f32[1, 8, 8]")),
        ((1, 8, 8), 7, "A623", ("logits: f32[N, 7]", "10 classes")),
    ],
)
def test_data_that_does_not_fit(
    shape: tuple[int, ...], classes: int, code: str, both: tuple[str, str]
) -> None:
    net = Net(*shape)
    net.add("flatten", "flatten")
    net.add("fc", "linear", out=classes)
    found = refused(lambda: check_fits(net.graph(), load_data("digits")))
    assert found.code == code
    for side in both:
        assert side in found.message


def test_networks_with_several_ends_are_refused() -> None:
    net = Net(1, 8, 8)
    net.add("flatten", "flatten")
    net.add("fc", "linear", out=10)
    net.output("a")
    net.output("b")
    assert refused(lambda: check_fits(net.graph(), load_data("digits"))).code == "A625"


def test_images_are_normalised_as_the_network_states() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    net = Net(3, 2, 2)
    assert normalisation(net.graph()) is None
    assert normalise(net.graph(), x) is x
    stated = (("mean", (1.0, 2.0, 3.0)), ("std", (2.0, 4.0, 8.0)), ("size", 2))
    graph = net.graph({"preprocess": stated})
    expected = np.stack([(x[:, c] - m) / s for c, (m, s) in enumerate([(1, 2), (2, 4), (3, 8)])], 1)
    np.testing.assert_array_equal(normalise(graph, x), expected)
    only = net.graph({"preprocess": (("std", (2.0, 2.0, 2.0)),)})
    np.testing.assert_array_equal(normalise(only, x), x / 2)


def test_calibration_batch() -> None:
    data = load_data("digits")
    one, same, other = (calibration_batch(data, 32, seed) for seed in (0, 0, 1))
    assert one.shape == (32, 1, 8, 8)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    training = {x.tobytes() for x in data.train.x}
    assert {x.tobytes() for x in one} <= training
    assert len({x.tobytes() for x in one}) == 32
    assert len(calibration_batch(data, 10**6)) == len(data.train)
    graph = Net(1, 8, 8).graph({"preprocess": (("mean", (0.5,)), ("std", (0.25,)))})
    np.testing.assert_array_equal(calibration_batch(data, 32, graph=graph), (one - 0.5) / 0.25)
