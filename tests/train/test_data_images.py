"""Folders of images: decoded as torchvision does it, once, and never from a folder of before."""

from __future__ import annotations

import io
import os
import shutil
import struct
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from archir.train import images
from archir.train.data import Dataset, calibration_batch, check_fits, image_shape, load_data
from archir.train.images import SUFFIXES, StoredImages, decode
from archir.train.published import CACHE_FOLDER

from .nets import Net
from .test_data import refused

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Any:
    stream = np.random.default_rng(seed)
    rough = stream.integers(0, 256, (1 + height // 4, 1 + width // 4, 4), np.uint8)
    made = Image.fromarray(rough, "RGBA").resize((width, height))
    return made.convert("L").convert("I;16") if mode == "I;16" else made.convert(mode)


def write(folder: Path, classes: dict[str, int], seed: int = 0) -> None:
    """So many images of each class, of different sizes and formats."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            ending = (".jpg", ".png", ".JPEG", ".bmp")[index % 4]
            file = folder / name / f"{index:02}{ending}"
            picture(20 + index, 31 - index % 7, seed + 100 * number + index).save(file)


def parts(data: Dataset) -> list[int]:
    return [len(data.train), len(data.validation), len(data.test)]


# ----- pixels


SIZES = [(40, 30), (30, 40), (33, 33), (8, 8), (7, 200), (200, 7), (301, 299), (1, 1), (224, 225)]


MODES = {
    ".jpg": "RGB L CMYK 1",
    ".jpeg": "RGB L",
    ".png": "RGB L P RGBA 1 LA I;16",
    ".ppm": "RGB L 1",
    ".pgm": "L",
    ".bmp": "RGB L P RGBA 1",
    ".tif": "RGB L P RGBA CMYK 1 LA",
    ".tiff": "RGB",
    ".webp": "RGB L P RGBA",
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize(
    ("suffix", "mode"), [(suffix, mode) for suffix in MODES for mode in MODES[suffix].split()]
)
def test_pixels_are_torchvisions(tmp_path: Path, suffix: str, mode: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    loader = pytest.importorskip("torchvision.datasets.folder").pil_loader
    for number, (width, height) in enumerate(SIZES):
        file = tmp_path / f"{number}{suffix}"
        picture(width, height, number, mode).save(file)
        for channels, h, w in ((3, 8, 8), (3, 32, 32), (3, 33, 32), (1, 16, 24)):
            both = [transforms.Resize(max(h, w)), transforms.CenterCrop((h, w))]
            image = Image.open(file).convert("L") if channels == 1 else loader(str(file))
            theirs = np.asarray(transforms.Compose(both)(image)).reshape(h, w, channels)
            ours = decode(file, (channels, h, w))
            assert ours.shape == (channels, h, w)
            np.testing.assert_array_equal(ours, theirs.transpose(2, 0, 1))


def test_files_and_classes_are_torchvisions(tmp_path: Path) -> None:
    folders = pytest.importorskip("torchvision.datasets")
    write(tmp_path / "d" / "train", {"b": 5, "a": 7})
    write(tmp_path / "d" / "test", {"b": 2, "a": 3}, seed=9)
    nested = tmp_path / "d" / "train" / "a" / "more"
    nested.mkdir()
    picture(20, 20).save(nested / "0.png")
    (tmp_path / "d" / "train" / "b" / "notes.txt").write_text("no image")
    (tmp_path / "d" / "train" / ".hidden").mkdir()
    listing = images.list_images(tmp_path / "d")
    assert listing is not None
    theirs = folders.ImageFolder(tmp_path / "d" / "test")
    assert listing.classes == tuple(theirs.classes)
    assert [(str(path), label) for path, label in listing.parts["test"]] == theirs.samples
    assert listing.classes == ("a", "b")
    shutil.rmtree(tmp_path / "d" / "train" / ".hidden")  # torchvision takes it for a class
    theirs = folders.ImageFolder(tmp_path / "d" / "train")
    assert [(str(path), label) for path, label in listing.parts["train"]] == theirs.samples


def test_every_ending_was_tried() -> None:
    assert set(MODES) == SUFFIXES


# ----- parts


@pytest.mark.parametrize("held", [("val",), ("test",), ("val", "test")])
def test_parts_of_their_own(tmp_path: Path, held: tuple[str, ...]) -> None:
    folder = tmp_path / "data"
    write(folder / "train", {"cat": 12, "dog": 8})
    for number, part in enumerate(held):
        write(folder / part, {"cat": 2 + number, "dog": 3}, seed=1000 * (1 + number))
    data = load_data(str(folder), size=8)
    assert data.classes == ("cat", "dog")
    assert data.shape == (3, 8, 8)
    assert parts(data) == ([20, 5, 6] if len(held) == 2 else [18, 2, 5])
    tested = folder / held[-1]
    files = [tested / "cat" / "00.jpg", tested / "dog" / "02.JPEG"]
    for index, file in zip((0, -1), files, strict=True):
        np.testing.assert_array_equal(data.test.x[index], decode(file, (3, 8, 8)))
    assert data.test.y.tolist() == [0] * (2 + len(held) // 2) + [1] * 3
    if len(held) == 2:
        np.testing.assert_array_equal(
            data.validation.x[0], decode(folder / "val" / "cat" / "00.jpg", (3, 8, 8))
        )


def test_a_folder_of_classes_is_cut_by_the_seed(tmp_path: Path) -> None:
    write(tmp_path / "data", {"a": 15, "b": 15})
    one, same, other = (load_data(str(tmp_path / "data"), s, size=8) for s in (0, 0, 1))
    assert parts(one) == parts(other) == [21, 3, 6]
    assert one.test.x[:].tobytes() == other.test.x[:].tobytes()
    assert one.validation.x[:].tobytes() != other.validation.x[:].tobytes()
    assert one.sha256 == same.sha256 != other.sha256
    rows = [x.tobytes() for d in (one.train, one.validation, one.test) for x in d.x[:]]
    files = sorted((tmp_path / "data").rglob("*.*"))
    assert sorted(rows) == sorted(decode(file, (3, 8, 8)).tobytes() for file in files)


def test_images_stay_in_their_file(tmp_path: Path) -> None:
    write(tmp_path / "data", {"a": 15, "b": 15})
    data = load_data(str(tmp_path / "data"), size=8)
    kept = data.train.x
    assert isinstance(kept, StoredImages)
    assert isinstance(kept.array, np.memmap)
    assert (kept.dtype, kept.shape, kept.nbytes) == (np.uint8, (21, 3, 8, 8), 21 * 192)
    every = kept[:]
    assert type(every) is np.ndarray
    np.testing.assert_array_equal(kept[np.array([3, 1])], every[[3, 1]])
    np.testing.assert_array_equal(kept[4], every[4])
    assert len(calibration_batch(data, 5)) == 5
    assert calibration_batch(data, 5).dtype == np.float32


def test_a_feed_of_images_in_a_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from archir.train.feed import Feed, order

    write(tmp_path / "data", {"a": 15, "b": 15})
    data = load_data(str(tmp_path / "data"), size=8)
    graph = Net(3, 8, 8).graph({"preprocess": (("mean", (0.5, 0.4, 0.3)),)})
    chosen = order(0, 0, 21)
    wanted = Dataset("", *(type(s)(s.x[:], s.y) for s in (data.train,) * 3), (), "").train
    for budget in (None, 0):
        feed = Feed(graph, data.train, torch.device("cpu"), budget=budget)
        whole = Feed(graph, wanted, torch.device("cpu"))
        for (x, y), (x_whole, y_whole) in zip(
            feed.batches(chosen, 4), whole.batches(chosen, 4), strict=True
        ):
            assert torch.equal(x, x_whole)
            assert torch.equal(y, y_whole)


# ----- the size


def test_the_size_is_the_networks(tmp_path: Path) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    net = Net(1, 12, 9)
    net.add("flatten", "flatten")
    net.add("fc", "linear", out=2)
    assert image_shape(net.graph()) == (1, 12, 9)
    data = load_data(str(tmp_path / "data"), size=image_shape(net.graph()))
    assert data.shape == (1, 12, 9)
    check_fits(net.graph(), data)


@pytest.mark.parametrize("size", [None, (8, 8), (2, 8, 8), (3, 0, 8), (), 0, -3])
def test_the_size_is_missing_or_wrong(tmp_path: Path, size: Any, cache: Path) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    found = refused(lambda: load_data(str(tmp_path / "data"), size=size))
    assert found.code == "A664"
    assert "size=224" in found.hint
    assert not cache.exists()


# ----- the cache


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that are decoded from now on."""
    seen: list[Path] = []

    def count(path: Path, shape: tuple[int, int, int]) -> Any:
        seen.append(path)
        return decode(path, shape)

    monkeypatch.setattr(images, "decode", count)
    return seen


def test_images_are_decoded_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    seen, told = counted(monkeypatch), list[str]()
    first = load_data(str(tmp_path / "data"), size=8, report=told.append)
    assert len(seen) == 16
    assert told[-1] == "decoding images: 16 of 16"
    assert load_data(str(tmp_path / "data"), 3, size=8).shape == (3, 8, 8)
    assert load_data(str(tmp_path / "data"), size=8).sha256 == first.sha256
    assert len(seen) == 16
    assert sorted(p.suffix for p in cache.iterdir()) == [".npy", ".sha256"]
    load_data(str(tmp_path / "data"), size=9)
    assert len(seen) == 32


def change_in_place(folder: Path) -> None:
    """Other pixels under the same name, of the same size and age."""
    file = folder / "a" / "03.bmp"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-9] ^= 255
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


CHANGES = {
    "a file in place": change_in_place,
    "a file more": lambda folder: picture(20, 20, 77).save(folder / "a" / "more.png"),
    "a file less": lambda folder: (folder / "a" / "01.png").unlink(),
    "a file under another name": lambda folder: (folder / "a" / "01.png").rename(
        folder / "b" / "01b.png"
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_folder_is_decoded_anew(
    tmp_path: Path, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    first = load_data(str(tmp_path / "data"), size=8)
    seen = counted(monkeypatch)
    change(tmp_path / "data")
    second = load_data(str(tmp_path / "data"), size=8)
    assert len(seen) >= 15
    assert second.sha256 != first.sha256


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


DAMAGES = {
    "cut": cut,
    "flipped": flip,
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "other": lambda file: file.write_bytes(npy(np.zeros(3))),
    "a pickle": lambda file: file.write_bytes(npy(np.array([{}]))),
}


@pytest.mark.parametrize("ending", [".npy", ".sha256"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_made_anew(
    tmp_path: Path, cache: Path, damage: Any, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    first = load_data(str(tmp_path / "data"), size=8)
    pixels = first.train.x[:].tobytes()
    (file,) = cache.glob(f"*{ending}")
    copy = file.read_bytes()
    replaced = file.with_name("replaced")  # a mapped file must not be cut: it is another one
    replaced.write_bytes(copy)
    replaced.replace(file)
    damage(file)
    seen = counted(monkeypatch)
    again = load_data(str(tmp_path / "data"), size=8)
    assert len(seen) == 16
    assert again.sha256 == first.sha256
    assert again.train.x[:].tobytes() == pixels
    assert file.read_bytes() == copy


def test_of_a_large_cache_some_images_are_compared(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    monkeypatch.setattr(images, "CHECKED", 8 * 192)
    load_data(str(tmp_path / "data"), size=8)
    read: list[bytes] = []
    sha256 = images.hashlib.sha256
    monkeypatch.setattr(images.hashlib, "sha256", lambda b=b"": read.append(bytes(b)) or sha256(b))
    load_data(str(tmp_path / "data"), size=8)
    assert sum(len(b) == 192 for b in read) in range(4, 9)


def test_what_a_killed_process_left_is_removed(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    cache.mkdir(parents=True)
    old, new = (cache / f".{name}.npy.tmp" for name in ("old", "new"))
    old.touch()
    new.touch()
    day_before = time.time() - images.STALE - 60
    os.utime(old, (day_before, day_before))
    load_data(str(tmp_path / "data"), size=8)
    assert (old.exists(), new.exists()) == (False, True)


def test_an_interruption_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})

    def stop(line: str) -> None:
        if line.startswith("decoding"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_data(str(tmp_path / "data"), size=8, report=stop)
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_said_before(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    usage = SimpleNamespace(free=16 * 192 - 1)
    monkeypatch.setattr(images.shutil, "disk_usage", lambda _: usage)
    found = refused(lambda: load_data(str(tmp_path / "data"), size=8))
    assert found.code == "A691"
    assert CACHE_FOLDER in found.hint
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path / "file"))
    assert refused(lambda: load_data(str(tmp_path / "data"), size=8)).code == "A602"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from archir.train.published import cache_folder

    monkeypatch.delenv(CACHE_FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "archir"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "archir"


# ----- folders and files that are no images


def test_folders_that_are_laid_out_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "train", {"a": 3, "b": 3})
    said = refused(lambda: load_data(str(folder), size=8))
    assert (said.code, "none called `val` or `test`" in said.message) == ("A663", True)
    write(folder / "val", {"a": 3, "c": 3})
    said = refused(lambda: load_data(str(folder), size=8))
    assert (said.code, "no class `c`" in said.message) == ("A663", True)
    shutil.rmtree(folder / "val")
    (folder / "val" / "a").mkdir(parents=True)
    said = refused(lambda: load_data(str(folder), size=8))
    assert (said.code, "has no folders of images" in said.message) == ("A663", True)
    (folder / "train" / "c").mkdir()
    said = refused(lambda: load_data(str(folder), size=8))
    assert (said.code, "c holds no images" in said.message) == ("A663", True)
    shutil.rmtree(folder / "train")
    said = refused(lambda: load_data(str(folder), size=8))
    assert (said.code, "has no `train`" in said.message) == ("A663", True)
    shutil.rmtree(folder / "val")
    assert refused(lambda: load_data(str(folder), size=8)).code == "A621"


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, held: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + held))
        return struct.pack(">I", len(held)) + kind + held + check

    head = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    stream = io.BytesIO()
    picture(64, 64).save(stream, "JPEG")
    return stream.getvalue()


BAD: list[tuple[str, bytes, str]] = [
    ("empty", b"", "cannot identify"),
    ("text", b"no image", "cannot identify"),
    ("cut", jpeg()[:-200], "truncated"),
    ("a head", jpeg()[:30], "cannot decode"),
    ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
    ("100,000 x 100,000", png(100_000, 100_000, b""), "cannot decode"),
    ("9,000 x 12,000", png(9_000, 12_000, b""), "9000 x 12000 pixels are more than 100,000,000"),
    ("thin", png(1, 60_000, bytes(2 * 60_000)), "pixels are more than 100,000,000"),
    ("no width", png(0, 5, b""), "cannot decode"),
]


@pytest.mark.parametrize(("content", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_images_that_are_none(tmp_path: Path, cache: Path, content: bytes, says: str) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    bad = tmp_path / "data" / "b" / "bad.png"
    bad.write_bytes(content)
    start = time.perf_counter()
    found = refused(lambda: load_data(str(tmp_path / "data"), size=224))
    assert time.perf_counter() - start < 5
    assert found.code == "A662"
    assert str(bad) in found.message
    assert says in found.message
    assert list(cache.iterdir()) == []


def test_files_that_are_none(tmp_path: Path) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    (tmp_path / "data" / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    found = refused(lambda: load_data(str(tmp_path / "data"), size=8))
    assert (found.code, "gone.png: No such file" in found.message) == ("A662", True)
    (tmp_path / "data" / "a" / "gone.png").unlink()
    os.mkfifo(tmp_path / "data" / "a" / "pipe.png")
    found = refused(lambda: load_data(str(tmp_path / "data"), size=8))
    assert (found.code, "no regular file" in found.message) == ("A662", True)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data", {"a": 8, "b": 8})
    monkeypatch.setitem(sys.modules, "PIL", None)
    found = refused(lambda: load_data(str(tmp_path / "data"), size=8))
    assert found.code == "A622"
    assert "archir[data]" in found.hint
