"""Folders of images: found, decoded once into a file of bytes, and read from there.

A folder holds a folder for each class, or ``train`` and ``val`` or ``test`` that do. Decoding is
what torchvision's ``Resize`` and ``CenterCrop`` do with an image that PIL opened, to the bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archir.diag import ArchirError, error
from archir.files import cannot_write, writing_all
from archir.train.published import CACHE_FOLDER, STALE, cache_folder

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
"""The endings of image files, as torchvision has them; other files are no images."""

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""What PIL may find in them; its other readers (some start programs) stay shut."""

MAX_PIXELS = 100_000_000
"""Pixels of an image, before and after it is resized."""

BLOCK = 64 << 20
"""Bytes of decoded images that are held at once."""

CHECKED = 1 << 30
"""Bytes of a file of decoded images that are compared with their digests when it is opened."""

WORKERS = 16
"""Images that are decoded at once, at most: each may take 400 MB."""

Report = Callable[[str], object]


@dataclass(frozen=True, slots=True, eq=False)
class StoredImages:
    """Images that stay in a file: some rows of a large array of bytes."""

    array: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    """The SHA-256 of each row of the array: ``[len(array), 32]``."""
    rows: NDArray[np.int64]
    """Which rows these images are, in order."""

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """Bytes."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``[N, C, H, W]``."""
        return (len(self.rows), *self.array.shape[1:])

    @property
    def nbytes(self) -> int:
        """How much memory they would take."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """Some of the images, as an array in memory."""
        return np.array(self.array[self.rows[key]])

    def only(self, part: NDArray[np.intp]) -> StoredImages:
        """Some of the images, in the file as before."""
        return StoredImages(self.array, self.digests, self.rows[part])


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a folder by their part (``train``, ``validation``, ``test``, or ``""``)."""

    folder: Path
    classes: tuple[str, ...]
    parts: dict[str, list[tuple[Path, int]]]


def read_images(
    folder: Path, size: Sequence[int] | int | None, report: Report | None = None
) -> dict[str, Any] | None:
    """The images of a folder by class; None where it holds none.

    Args:
        folder: The folder.
        size: The shape ``[C, H, W]`` that the images are to have, or a number for both sides of
            coloured ones.
        report: Told what is done.

    Raises:
        ArchirError: A602, the cache cannot be written; A622, pillow is not installed; A662, an
            image cannot be decoded; A663, the folder is laid out otherwise; A664, the size is
            missing; A691, the disk is full.
    """
    listing = list_images(folder)
    if listing is None:
        return None
    shape = _shape(size, folder)
    stored = _stored(listing, shape, report or (lambda _: None))
    arrays: dict[str, Any] = {"classes": np.array(listing.classes)}
    start = 0
    for part, files in listing.parts.items():
        suffix = f"_{part}" if part else ""
        rows = np.arange(start, start + len(files))
        arrays[f"x{suffix}"] = stored.only(rows)
        arrays[f"y{suffix}"] = np.array([label for _, label in files], np.int64)
        start += len(files)
    return arrays


def _shape(size: Sequence[int] | int | None, folder: Path) -> tuple[int, int, int]:
    shape = (3, size, size) if isinstance(size, int) else tuple(size or ())
    if len(shape) != 3 or shape[0] not in (1, 3) or not all(side > 0 for side in shape):
        what = "no size" if size is None else f"the shape {list(shape)}"
        raise error(
            "A664",
            f"the images of {folder} are to have {what}",
            hint="a network that takes [N, 3, H, W] or [N, 1, H, W] says it; in Python: size=224",
        )
    return shape


# ----- which images there are


def list_images(folder: Path) -> Listing | None:
    """The images of a folder, those of a class in the order of torchvision's ``ImageFolder``.

    Raises:
        ArchirError: A663, it is laid out otherwise.
    """
    found = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
    if not found:
        classes = _classes(folder)
        names = tuple(classes)
        return Listing(folder, names, {"": _labelled(classes, names)}) if classes else None
    if "train" not in found or len(found) < 2:
        what = "`train` and none called `val` or `test`" if "train" in found else "no `train`"
        raise error(
            "A663",
            f"of the folders train, val and test {folder} has {what}",
            hint="a folder of classes alone is cut into parts by the seed",
        )
    listed = {name: _classes(place) for name, place in found.items()}
    names = tuple(listed["train"])
    for part, classes in listed.items():
        other = next((name for name in classes if name not in names), None)
        if other is not None:
            raise error("A663", f"{found['train']} has no class `{other}`, {found[part]} has")
        if not classes:
            raise error("A663", f"{found[part]} has no folders of images")
    # a set with one held-out part is tested on it, whatever it is called
    parts = {"train": "train", "val": "validation" if "test" in found else "test", "test": "test"}
    by_part = {parts[part]: _labelled(classes, names) for part, classes in listed.items()}
    return Listing(folder, names, by_part)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The image files below each folder of a folder; hidden folders are no classes."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    found = {name: list(_below(folder / name)) for name in names}
    if not any(found.values()):
        return {}
    empty = next((name for name, files in found.items() if not files), None)
    if empty is not None:
        raise error("A663", f"{folder / empty} holds no images, unlike the folders beside it")
    return found


def _below(folder: Path) -> Iterator[Path]:
    for place, _, files in sorted(os.walk(folder)):
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES:
                yield Path(place, name)


def _labelled(classes: dict[str, list[Path]], names: Sequence[str]) -> list[tuple[Path, int]]:
    numbers = {name: number for number, name in enumerate(names)}
    return [(path, numbers[name]) for name, paths in classes.items() for path in paths]


# ----- the file of decoded images


def _stored(listing: Listing, shape: tuple[int, int, int], report: Report) -> StoredImages:
    report("listing images")
    files = [path for part in listing.parts.values() for path, _ in part]
    key = _key(listing.folder, files, shape)
    images, digests = (cache_folder() / "images" / f"{key}{end}" for end in (".npy", ".sha256"))
    found = _opened(images, digests, (len(files), *shape))
    if found is None:
        _decode_all(files, shape, images, digests, report)
        found = _opened(images, digests, (len(files), *shape))
    if found is None:
        raise error("A602", f"cannot write {images}: it does not hold what was written")
    return found


def _key(folder: Path, files: Sequence[Path], shape: tuple[int, ...]) -> str:
    """What decoded images are known by: any file that is written to, moved or removed changes it.

    The time of the last change of a file's entry is in it, which nobody sets by hand as they can
    that of its content.
    """
    try:
        from PIL import __version__  # noqa: PLC0415 (an extra)
    except ImportError:
        raise error(
            "A622",
            "images are decoded by pillow, which is not installed",
            hint="pip install 'archir[data]'",
        ) from None
    digest = hashlib.sha256(json.dumps([1, __version__, shape]).encode())
    for path in files:
        try:
            stat = path.stat()
        except OSError as reason:
            raise _undecodable(path, reason.strerror or str(reason)) from None
        if not S_ISREG(stat.st_mode):
            raise _undecodable(path, "it is no regular file")
        numbers = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        digest.update(json.dumps([os.fsdecode(path.relative_to(folder)), *numbers]).encode())
    return digest.hexdigest()[:32]


def _opened(images: Path, digests: Path, shape: tuple[int, ...]) -> StoredImages | None:
    """Decoded images, if they are whole: of many images some are compared with their digests."""
    try:
        lines = np.frombuffer(digests.read_bytes(), np.uint8).reshape(-1, 32)
        array = np.load(images, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if array.shape != shape or array.dtype != np.uint8 or len(lines) != len(array) + 1:
        return None
    if hashlib.sha256(lines[:-1].tobytes()).digest() != lines[-1].tobytes():
        return None
    for number in range(0, len(array), 1 + array.nbytes // CHECKED):
        if hashlib.sha256(array[number].data).digest() != lines[number].tobytes():
            return None
    return StoredImages(array, lines[:-1], np.arange(len(array)))


def _decode_all(
    files: Sequence[Path], shape: tuple[int, int, int], images: Path, digests: Path, report: Report
) -> None:
    """Write the decoded images, and a digest of each and of all digests."""
    size = int(np.prod(shape))
    _make_room(images.parent, len(files) * size)
    block = max(1, min(256, BLOCK // size))
    marks = []
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool,
        writing_all([images, digests]) as (to_images, to_digests),
    ):
        warnings.simplefilter("ignore")  # PIL's, of palettes and metadata: no loss for pixels
        with to_images.open("wb") as file:
            head = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
            np.lib.format.write_array_header_1_0(file, head)
            for start in range(0, len(files), block):
                for made in pool.map(partial(decode, shape=shape), files[start : start + block]):
                    marks.append(hashlib.sha256(made.data).digest())
                    file.write(made.data)
                report(f"decoding images: {len(marks):,} of {len(files):,}")
        marks.append(hashlib.sha256(b"".join(marks)).digest())
        to_digests.write_bytes(b"".join(marks))


def _make_room(folder: Path, needed: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as reason:
        raise cannot_write(folder, reason) from reason
    if free < needed:
        raise error(
            "A691",
            f"decoded images take {needed / 2**30:,.1f} GiB, and {folder} has {free / 2**30:,.1f}",
            hint=f"{CACHE_FOLDER} names another folder for them",
        )


# ----- one image


def decode(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """An image as bytes ``[C, H, W]``, red, green and blue or grey: resized, its middle cut out.

    The shorter side becomes the longer side of the result, bilinear with PIL's antialiasing.

    Raises:
        ArchirError: A662, it is no image, damaged, or too large.
    """
    from PIL import Image  # noqa: PLC0415 (an extra)

    channels, height, width = shape
    try:
        with Image.open(path, formats=FORMATS) as opened:
            resized = _resized_to(opened.size, max(height, width))
            image = opened.convert("RGB" if channels == 3 else "L")
        image = image.resize(resized, Image.Resampling.BILINEAR)
        left, top = (round((a - b) / 2.0) for a, b in zip(resized, (width, height), strict=True))
        cut = np.asarray(image.crop((left, top, left + width, top + height)))
    except Exception as reason:  # PIL's readers raise what they like at damaged bytes
        raise _undecodable(path, str(reason) or type(reason).__name__) from None
    return np.ascontiguousarray(cut.reshape(height, width, channels).transpose(2, 0, 1))


def _resized_to(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height whose shorter is ``shorter``, rounded as torchvision does."""
    w, h = size
    longer = int(shorter * max(size) / min(size))
    resized = (shorter, longer) if w <= h else (longer, shorter)
    for width, height in (size, resized):
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
    return resized


def _undecodable(path: Path, why: str) -> ArchirError:
    return error("A662", f"cannot decode {path}: {why.splitlines()[0]}")
