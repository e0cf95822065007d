"""Labelled images (or any tensors) as NumPy arrays, from where a user has them.

| name | what |
|---|---|
| ``digits`` | the 8x8 images that scikit-learn carries |
| ``cifar10`` and others | published sets (:mod:`archir.train.published`), found or fetched |
| a folder | one of these, or images in a folder for each class |
| ``FILE.npz`` | arrays named as in :mod:`archir.train.sources` |
| ``FILE.py:FACTORY`` | a function of no arguments that returns such arrays, or a Dataset |

The test set never depends on the seed. The seed draws the validation set from what is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from archir.diag import error
from archir.ir.graph import Graph
from archir.ir.types import AttrValue
from archir.train.images import StoredImages, read_images
from archir.train.published import SETS, read_published, recognise
from archir.train.sources import (
    EXPECTED,
    Arrays,
    arrays_of,
    read_digits,
    read_factory,
    read_npz,
)

if TYPE_CHECKING:
    from archir.api import Calibration

Images = NDArray[np.float32] | NDArray[np.uint8]
"""Images ``[N, ...]``: numbers, or bytes that stand for their 255th parts."""

MAX_CLASSES = 100_000

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
"""Of all images, what becomes the test set, and the validation set, where the source has none."""


@dataclass(frozen=True, slots=True, repr=False)
class Split:
    """Some of the images: ``x`` ``[N, ...]``, ``y`` int64 ``[N]``, classes from 0.

    ``x`` is float32, or uint8 where the source has bytes, which stand for their 255th parts. It
    may stay in a file: as an ``np.memmap``, or, of folders of images, as what gives arrays when
    it is indexed. :func:`normalise` makes floats of any of these arrays.
    """

    x: Images | StoredImages
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"<Split: {len(self)} of {list(self.x.shape[1:])}>"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Three disjoint splits. ``sha256`` is that of their contents, order included."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    sha256: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.train.x.shape[1:]


def load_data(
    name: str,
    seed: int = 0,
    *,
    size: Sequence[int] | int | None = None,
    download: bool = False,
    report: Callable[[str], object] | None = None,
) -> Dataset:
    """Load a data set by its name, file or factory.

    Args:
        name: One of the names above.
        seed: Draws the validation set, where the source has none.
        size: The shape ``[C, H, W]`` that images of a folder are to have (see
            :func:`image_shape`), or a number for both sides of coloured ones. Other sources
            have their own.
        download: Whether a published set that is not there is fetched.
        report: Told in a few words what is done, where it takes long.

    Raises:
        ArchirError: A620, no such data; A621, it cannot be read or is malformed; A622, a package
            is missing; A624, the user's factory failed; A660, a published set is not there;
            A661, it cannot be fetched; A662, an image cannot be decoded; A663, a folder is laid
            out otherwise; A664, the size is missing; A602 or A691, decoded images or what was
            fetched cannot be written.
    """
    path, _, factory = name.rpartition(":")
    if path.endswith(".py"):
        found = read_factory(Path(path), factory)
        return found if isinstance(found, Dataset) else _dataset(name, arrays_of(found, name), seed)
    if name in SETS:
        return _dataset(name, read_published(name, download=download, report=report), seed)
    return _dataset(name, _read(name, size, report), seed)


def image_shape(graph: Graph) -> tuple[int, ...] | None:
    """The shape of an image that a network takes, ``[C, H, W]``; None where it is left open."""
    taken = graph.node(graph.inputs[0]).types[0].shape[1:] if graph.inputs else ()
    sides = tuple(side for side in taken if isinstance(side, int))
    return sides if sides and len(sides) == len(taken) else None


def _read(
    name: str, size: Sequence[int] | int | None, report: Callable[[str], object] | None
) -> Arrays:
    if name == "digits":
        return read_digits()
    if name.endswith(".npz") and Path(name).is_file():
        return read_npz(Path(name))
    if name and Path(name).is_dir():
        return _read_folder(Path(name), size, report)
    known = f"digits, {', '.join(SETS)}, a folder, FILE.npz or FILE.py:FACTORY"
    raise error("A620", f"there is no data named `{name}`", hint=f"data is one of: {known}")


def _read_folder(
    folder: Path, size: Sequence[int] | int | None, report: Callable[[str], object] | None
) -> Arrays:
    published = recognise(folder)
    found = published.read() if published else read_images(folder, size, report)
    if found is None:
        layouts = [layout.folder or layout.files[0] for s in SETS.values() for layout in s.layouts]
        raise error(
            "A621",
            f"{folder} holds no data that is known here",
            hint=f"expected {', '.join(layouts)}, or folders of images, one for each class",
        )
    return found


def _dataset(name: str, arrays: Arrays, seed: int) -> Dataset:
    if "x_train" in arrays:
        rest, test = _pair(name, arrays, "_train"), _pair(name, arrays, "_test")
    else:
        every = _pair(name, arrays, "")
        # one fixed order, whatever the seed: a test set that moves is no test set
        test, rest = _cut(every, max(1, round(TEST_SHARE * len(every))), seed=None)
    if "x_validation" in arrays:
        validation, train = _pair(name, arrays, "_validation"), rest
    else:
        total = len(rest) + ("x_train" not in arrays) * len(test)
        validation, train = _cut(rest, max(1, round(VALIDATION_SHARE * total)), seed=seed)
    splits = (train, validation, test)
    if not all(map(len, splits)):
        raise error("A621", f"{name} has too few images: {' + '.join(str(len(s)) for s in splits)}")
    if len({split.x.shape[1:] for split in splits}) > 1:
        shapes = " and ".join(str(list(split.x.shape[1:])) for split in splits)
        raise error("A621", f"the images of {name} differ in shape: {shapes}")
    classes = _classes(name, arrays, splits)
    return Dataset(name, train, validation, test, classes, _hash(splits, classes))


def _pair(name: str, arrays: Arrays, suffix: str) -> Split:
    for key in (f"x{suffix}", f"y{suffix}"):
        if key not in arrays:
            raise error(
                "A621",
                f"{name} has no `{key}`; it has {', '.join(sorted(arrays)) or 'nothing'}",
                hint=EXPECTED,
            )
    x, y = arrays[f"x{suffix}"], arrays[f"y{suffix}"]
    if y.ndim != 1 or not (y.dtype.kind in "iu" or y.size == 0):
        raise error(
            "A621", f"`y{suffix}` of {name} is {y.dtype}{list(y.shape)}, expected integers [N]"
        )
    if y.size and not 0 <= y.min() <= y.max() < MAX_CLASSES:
        wrong = int(y.min()) if y.min() < 0 else int(y.max())
        raise error(
            "A621",
            f"`y{suffix}` of {name} holds the class {wrong}",
            hint=f"classes start at 0, and there are {MAX_CLASSES:,} at most",
        )
    if isinstance(x, StoredImages):
        return Split(x, np.ascontiguousarray(y, np.int64))
    return Split(_images(x, len(y), f"`x{suffix}` of {name}"), np.ascontiguousarray(y, np.int64))


def _images(x: NDArray[Any], labels: int, what: str) -> Images:
    if x.ndim < 2 or len(x) != labels or x.dtype.kind not in "fu" or x.dtype.itemsize > 8:
        raise error(
            "A621",
            f"{what} is {x.dtype}{list(x.shape)} for {labels} labels",
            hint="expected floats, or bytes from 0 to 255, with one image per label",
        )
    if x.dtype == np.uint8:
        return x if x.flags.c_contiguous else np.ascontiguousarray(x)
    if x.dtype.kind == "u":
        raise error("A621", f"{what} is {x.dtype}, expected floats or bytes")
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(made).all():
        raise error("A621", f"{what} holds values that are not finite as float32")
    return made


def _order(count: int, seed: int) -> NDArray[np.intp]:
    """A permutation from the raw bits of PCG64: NumPy keeps those stable over its versions."""
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")


def _cut(split: Split, count: int, seed: int | None) -> tuple[Split, Split]:
    order = _order(len(split), 0x7E57 if seed is None else seed)
    parts = np.sort(order[:count]), np.sort(order[count:])
    first, second = (Split(_only(split.x, part), split.y[part]) for part in parts)
    return first, second


def _only(x: Images | StoredImages, part: NDArray[np.intp]) -> Images | StoredImages:
    return x.only(part) if isinstance(x, StoredImages) else x[part]


def _classes(name: str, arrays: Arrays, splits: tuple[Split, ...]) -> tuple[str, ...]:
    count = 1 + max(int(split.y.max()) for split in splits)
    if "classes" not in arrays:
        return tuple(str(number) for number in range(count))
    stated = arrays["classes"]
    if stated.size > MAX_CLASSES:
        raise error("A621", f"{name} names {stated.size:,} classes, at most {MAX_CLASSES:,} may be")
    names = tuple(str(entry) for entry in stated.ravel())
    if len(names) < count:
        raise error("A621", f"{name} names {len(names)} classes and has labels up to {count - 1}")
    return names


def _hash(splits: tuple[Split, ...], classes: tuple[str, ...]) -> str:
    """Of what a data set holds: of images in a file, of their digests, not to read them again."""
    found = hashlib.sha256("\n".join(classes).encode("utf-8", "surrogateescape"))
    for split in splits:
        for array in (split.x, split.y):
            found.update(f"{array.dtype.str}{array.shape}".encode())
            if isinstance(array, StoredImages):
                found.update(array.digests[array.rows].tobytes())
            elif array.size:
                found.update(array.data.cast("B"))
    return found.hexdigest()


def joined(dataset: Dataset) -> Dataset:
    """A data set whose training images are those for training and for validation together.

    The validation images are among them: what is measured on these says how a network fits them,
    and nothing about others. Images in one file stay there; others are copied.
    """
    first, second = dataset.train, dataset.validation
    labels = np.concatenate([first.y, second.y])
    digest = hashlib.sha256(f"train and validation of {dataset.sha256}".encode()).hexdigest()
    whole = Split(_together(first.x, second.x), labels)
    return replace(dataset, name=f"{dataset.name}, validation too", train=whole, sha256=digest)


def _together(a: Images | StoredImages, b: Images | StoredImages) -> Images | StoredImages:
    if isinstance(a, StoredImages) and isinstance(b, StoredImages) and a.array is b.array:
        return StoredImages(a.array, a.digests, np.concatenate([a.rows, b.rows]))
    parts: list[Any] = [a[:], b[:]]
    if a.dtype != b.dtype:
        parts = [as_floats(part) for part in parts]
    return cast("Images", np.concatenate(parts))


def check_fits(graph: Graph, dataset: Dataset) -> None:
    """Make sure that a network takes the images of a data set and tells its classes.

    Raises:
        ArchirError: A623, with the shapes on both sides; A625, the network has not one input
            and one output.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise error(
            "A625",
            f"{graph.name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
            "training and evaluation take one of each",
        )
    taken = graph.node(graph.inputs[0]).types[0]
    wanted, given = taken.shape[1:], dataset.shape
    fits = len(wanted) == len(given) and all(
        w == g or not isinstance(w, int) for w, g in zip(wanted, given, strict=True)
    )
    if not fits or taken.dtype != "f32":
        raise error(
            "A623",
            f"{graph.name} takes {taken}, an image of {dataset.name} is "
            f"f32[{', '.join(map(str, given))}]",
            node=graph.inputs[0],
        )
    output = graph.outputs[0]
    made = graph.type_of(output.value)
    if made.rank != 2 or made.shape[1] != len(dataset.classes):
        raise error(
            "A623",
            f"{graph.name} gives {output.name}: {made}, {dataset.name} has "
            f"{len(dataset.classes)} classes",
            hint=f"the output should be [N, {len(dataset.classes)}]",
            node=output.value.node,
        )


def normalisation(graph: Graph) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Mean and standard deviation per channel, as a network's ``preprocess`` states them.

    Both have the shape that broadcasts over ``[N, C, ...]``; None where nothing is stated.
    """
    entries = _entries(graph.meta.get("preprocess"))
    if "mean" not in entries and "std" not in entries:
        return None
    rank = graph.node(graph.inputs[0]).types[0].rank
    mean, std = (
        np.asarray(entries.get(key, default), np.float32).reshape(-1, *[1] * (rank - 2))
        for key, default in (("mean", 0.0), ("std", 1.0))
    )
    return mean, std


def _entries(stated: AttrValue) -> dict[str, Any]:
    if not isinstance(stated, tuple):
        return {}
    return {str(entry[0]): entry[1] for entry in stated if isinstance(entry, tuple)}


def as_floats(x: Images) -> NDArray[np.float32]:
    """Images as float32, bytes over 255; those that are are given back as they are."""
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    return cast("NDArray[np.float32]", x)


def normalise(graph: Graph, x: Images) -> NDArray[np.float32]:
    """Images as the network wants them, float32: ``(x - mean) / std`` where it states these."""
    stated, floats = normalisation(graph), as_floats(x)
    return floats if stated is None else (floats - stated[0]) / stated[1]


def calibration_batch(
    dataset: Dataset, count: int, seed: int = 0, graph: Graph | None = None
) -> NDArray[np.float32]:
    """``count`` training images (all, where there are fewer), drawn by ``seed``: ``[count, ...]``.

    With ``graph`` they are normalised as that network states.
    """
    chosen = dataset.train.x[_order(len(dataset.train), seed)[:count]]
    return as_floats(chosen) if graph is None else normalise(graph, chosen)


CALIBRATION_IMAGES = 1024
"""Training images that a rule's statistics are measured on."""


def calibration_of(graph: Graph, dataset: Dataset, seed: int) -> Calibration:
    """Training images of a data set, as a rule's statistics are measured on them.

    Raises:
        ArchirError: A623 or A625, network and data do not fit.
    """
    from archir.api import Calibration  # noqa: PLC0415 - data is read without the compiler

    check_fits(graph, dataset)
    batch = calibration_batch(dataset, CALIBRATION_IMAGES, seed, graph)
    return Calibration({graph.inputs[0]: batch}, dataset.name, dataset.sha256)
