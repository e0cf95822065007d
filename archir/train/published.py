"""Published data sets: how their files lie in a folder, what their classes are called."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archir.diag import ArchirError, error
from archir.train.formats import (
    Batch,
    read_batch,
    read_binary_batch,
    read_idx,
    read_mat,
    reading,
    unpickled,
    whole,
)

DATA_FOLDER = "ARCHIR_DATA"
"""The environment variable that names the folder of the user's data sets."""

CACHE_FOLDER = "ARCHIR_CACHE"
"""The environment variable that names the folder for what can be made or fetched again."""

STALE = 86_400.0
"""Seconds after which what a killed process left half written is removed."""

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
DIGITS = tuple("0123456789")


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a set below a folder; each may be packed by gzip where its reader knows that."""

    folder: str
    files: tuple[str, ...]
    packed: bool = False

    def file(self, place: Path, name: str) -> Path | None:
        """A file of the set, if it is there."""
        names = [name, f"{name}.gz"] if self.packed else [name]
        return next((place / n for n in names if (place / n).is_file()), None)

    def places(self, folder: Path) -> list[Path]:
        """Where the files may lie: as published, or with the last folders given themselves."""
        parts = Path(self.folder).parts
        return [folder.joinpath(*parts[skipped:]) for skipped in range(len(parts) + 1)]

    def missing(self, place: Path) -> list[str]:
        """The files that are not at a place."""
        return [name for name in self.files if self.file(place, name) is None]


Read = Callable[[Path, Layout], dict[str, NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Published:
    """A data set that has a name."""

    name: str
    title: str
    megabytes: int
    """What a download fetches."""
    layouts: tuple[Layout, ...]
    read: Read
    mark: str = ""
    """What the last two folders of a path tell it from its double by: see :func:`_is_meant`."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where a set lies, and which of its files do not."""

    published: Published
    layout: Layout
    place: Path
    missing: tuple[str, ...] = ()

    def read(self) -> dict[str, NDArray[Any]]:
        """Its arrays.

        Raises:
            ArchirError: A621, a file is missing or damaged; A622, a package is missing.
        """
        if self.missing:
            raise error(
                "A621",
                f"{self.published.title} is not whole: {self.place} has no `{self.missing[0]}`",
                hint=f"`--data {self.published.name} --download` fetches it again",
            )
        return self.published.read(self.place, self.layout)


def find(published: Published, folder: Path) -> Found | None:
    """A set in a folder, or in the one inside it that has its published name.

    Where no place has all files, the one that lacks fewest; there the folder's name must speak
    for the set, since a file called `train` may be anything.
    """
    found = [
        Found(published, layout, place, tuple(layout.missing(place)))
        for layout in published.layouts
        for place in layout.places(folder)
        if _is_meant(published, place)
    ]
    some = [
        f
        for f in found
        if not f.missing
        or (len(f.missing) < len(f.layout.files) and f.place.name == Path(f.layout.folder).name)
    ]
    return min(some, key=lambda f: len(f.missing)) if some else None


def _is_meant(published: Published, place: Path) -> bool:
    """Of two sets with the same names of files, whether the folders' names speak of this one."""
    doubles = {p.mark for p in SETS.values() if p.layouts[0].files == published.layouts[0].files}
    spoken = "/".join(place.absolute().parts[-2:]).lower()
    marks = {mark for mark in doubles if mark and mark in spoken}
    return published.mark in (marks or {""})


def recognise(folder: Path) -> Found | None:
    """The published set that a folder holds.

    Raises:
        ArchirError: A663, it holds several.
    """
    found = [f for f in (find(published, folder) for published in SETS.values()) if f]
    complete = [f for f in found if not f.missing] or found
    if len(complete) > 1:
        names = [f.published.name for f in complete]
        raise error(
            "A663",
            f"{folder} holds {', '.join(names[:-1])} and {names[-1]}",
            hint=f"name one of them, and let {DATA_FOLDER} name the folder",
        )
    return complete[0] if complete else None


def cache_folder() -> Path:
    """What ``ARCHIR_CACHE`` names, or ``archir`` in the user's cache folder."""
    if named := os.environ.get(CACHE_FOLDER):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archir"


def data_folders() -> list[Path]:
    """Where published sets are looked for; what is fetched goes to the first."""
    named = os.environ.get(DATA_FOLDER)
    return [*([Path(named)] if named else []), cache_folder() / "data"]


def read_published(
    name: str, *, download: bool = False, report: Callable[[str], object] | None = None
) -> dict[str, NDArray[Any]]:
    """A published set by its name.

    Raises:
        ArchirError: A621, a file is damaged; A622, a package is missing; A660, the set is not
            there; A661, it cannot be fetched; A602, or not be put in place.
    """
    published, folders = SETS[name], data_folders()
    found = [find(published, place) for folder in folders for place in (folder / name, folder)]
    there = [f for f in found if f is not None]
    best = min(there, key=lambda f: len(f.missing)) if there else None
    if best is not None and (not best.missing or not download):
        return best.read()
    if not download:
        raise _absent(published, folders)
    from archir.train.download import fetch  # noqa: PLC0415 (torchvision)

    fetch(name, published.title, folders[0], report)
    again = find(published, folders[0])
    if again is None:
        raise error("A661", f"{published.title} was fetched, and has none of the files expected")
    return again.read()


def _absent(published: Published, folders: Sequence[Path]) -> ArchirError:
    looked = " and ".join(map(str, folders))
    first = published.layouts[0]
    wanted = first.folder or " and ".join(first.files)
    return error(
        "A660",
        f"{published.title} is not in {looked}",
        hint=f"--download (download=True in Python) fetches {published.megabytes} MB into "
        f"{folders[0]}; or let {DATA_FOLDER} name the folder that holds {wanted}",
    )


# ----- how each is read


def _arrays(train: Batch, test: Batch, classes: Sequence[str]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = dict(zip(("x_train", "y_train"), train, strict=True))
    arrays |= zip(("x_test", "y_test"), test, strict=True)
    return arrays | ({"classes": np.array(classes)} if classes else {})


def _cifar10(place: Path, layout: Layout) -> dict[str, NDArray[Any]]:
    read = read_binary_batch if layout.files[0].endswith(".bin") else read_batch
    *train, test = (read(place / name) for name in layout.files)
    joined = np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train])
    return _arrays(joined, test, CIFAR10_CLASSES)


def _cifar100(place: Path, layout: Layout) -> dict[str, NDArray[Any]]:
    if layout.files[0].endswith(".bin"):
        train, test = (read_binary_batch(place / name, 2) for name in layout.files)
    else:
        train, test = (read_batch(place / name, b"fine_labels") for name in layout.files)
    return _arrays(train, test, _fine_names(place))


def _fine_names(place: Path) -> list[str]:
    """The hundred names that lie beside the images, where they do."""
    text, meta = place / "fine_label_names.txt", place / "meta"
    if text.is_file():
        with reading(text):
            return whole(text, 10_000).decode("utf-8").split()
    if not meta.is_file():
        return []
    with reading(meta):
        stored = unpickled(whole(meta, 100_000))
        names = stored.get(b"fine_label_names") if isinstance(stored, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
            raise ValueError("it has no list `fine_label_names`")
        return [name.decode("utf-8") for name in names]


def _mnist(classes: Sequence[str]) -> Read:
    def read(place: Path, layout: Layout) -> dict[str, NDArray[Any]]:
        files = [layout.file(place, name) for name in layout.files]
        x, y, x_test, y_test = (
            read_idx(file, (28, 28) if number % 2 == 0 else ())
            for number, file in enumerate(files)
            if file is not None
        )
        return _arrays((x[:, None], y), (x_test[:, None], y_test), classes)

    return read


def _svhn(place: Path, layout: Layout) -> dict[str, NDArray[Any]]:
    train, test = (_house_numbers(place / name) for name in layout.files)
    return _arrays(train, test, DIGITS)


def _house_numbers(path: Path) -> Batch:
    found = read_mat(path, ("X", "y"))
    x, y = found["X"], found["y"].reshape(-1)
    with reading(path):
        if y.dtype.kind not in "iu":
            raise ValueError(f"`y` is {y.dtype}, expected integers")
        if x.dtype != np.uint8 or x.shape != (32, 32, 3, len(y)):
            raise ValueError(f"`X` is {x.dtype}{list(x.shape)} for {len(y)} labels")
        return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), np.where(y == 10, 0, y)


_CIFAR_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_IDX = tuple(
    f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
)
SETS: Mapping[str, Published] = {
    published.name: published
    for published in (
        Published(
            "cifar10",
            "CIFAR-10",
            171,
            (
                Layout("cifar-10-batches-py", _CIFAR_BATCHES),
                Layout("cifar-10-batches-bin", tuple(f"{name}.bin" for name in _CIFAR_BATCHES)),
            ),
            _cifar10,
        ),
        Published(
            "cifar100",
            "CIFAR-100",
            169,
            (
                Layout("cifar-100-python", ("train", "test")),
                Layout("cifar-100-binary", ("train.bin", "test.bin")),
            ),
            _cifar100,
        ),
        Published("svhn", "SVHN", 246, (Layout("", ("train_32x32.mat", "test_32x32.mat")),), _svhn),
        Published("mnist", "MNIST", 12, (Layout("MNIST/raw", _IDX, packed=True),), _mnist(DIGITS)),
        Published(
            "fashion_mnist",
            "Fashion-MNIST",
            31,
            (Layout("FashionMNIST/raw", _IDX, packed=True),),
            _mnist(FASHION_CLASSES),
            mark="fashion",
        ),
    )
}
"""The sets, by the names that users give them."""
