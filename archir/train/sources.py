"""Where data comes from: each reader returns named arrays as they lie in the source.

The names are ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test`` with or
without ``x_validation`` and ``y_validation``; ``classes`` may hold the names of the classes.
Nothing is executed or unpickled but what :func:`read_factory` is asked to run.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import pickle  # for the published CIFAR-10 files alone, through a closed list of names
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from archir.diag import ArchirError, error

Arrays = dict[str, NDArray[Any]]

log = logging.getLogger(__name__)

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_ARRAY_NAMES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}
"""What a pickled array refers to; nothing else is looked up."""


def read_digits() -> Arrays:
    """The 1,797 images that scikit-learn carries, one channel, values 0 to 1.

    Raises:
        ArchirError: A622, scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 (an extra)
    except ImportError:
        raise error(
            "A622",
            "the digits images come with scikit-learn, which is not installed",
            hint="pip install 'archir[data]'",
        ) from None
    images, labels = load_digits(return_X_y=True)
    x = (np.asarray(images, np.float32) / np.float32(16)).reshape(-1, 1, 8, 8)
    return {"x": x, "y": np.asarray(labels), "classes": np.array([str(d) for d in range(10)])}


def read_npz(path: Path) -> Arrays:
    """The arrays of an ``.npz`` file, without unpickling anything.

    Raises:
        ArchirError: A621, the file cannot be read or holds pickled objects.
    """
    try:
        # opened here, since np.load leaves the file open where it is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, BadZipFile, TypeError) as reason:
        raise error("A621", f"cannot read {path}: {reason}") from None


def read_cifar10(folder: Path) -> Arrays:
    """CIFAR-10 as published: the folder, or the one inside it, of Python or binary batches.

    Raises:
        ArchirError: A621, no batches are there, or one is damaged.
    """
    for place in (folder / "cifar-10-batches-py", folder):
        if (place / "data_batch_1").is_file():
            return _cifar10([place / f"data_batch_{n}" for n in range(1, 6)], place / "test_batch")
    for place in (folder / "cifar-10-batches-bin", folder):
        if (place / "data_batch_1.bin").is_file():
            train = [place / f"data_batch_{n}.bin" for n in range(1, 6)]
            return _cifar10(train, place / "test_batch.bin")
    raise error(
        "A621",
        f"{folder} holds no data that is known here",
        hint="expected data_batch_1 ... data_batch_5 and test_batch (with .bin or without) in it, "
        "or in cifar-10-batches-py or cifar-10-batches-bin inside it",
    )


def _cifar10(train: list[Path], test: Path) -> Arrays:
    parts = [_batch(path) for path in train]
    x_test, y_test = _batch(test)
    return {
        "x_train": np.concatenate([x for x, _ in parts]),
        "y_train": np.concatenate([y for _, y in parts]),
        "x_test": x_test,
        "y_test": y_test,
        "classes": np.array(CIFAR10_CLASSES),
    }


def _batch(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        content = path.read_bytes()
        if path.suffix == ".bin":
            rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3072)
            x, y = rows[:, 1:], rows[:, 0]
        else:
            stored = _Unpickler(io.BytesIO(content), encoding="bytes").load()
            x, y = np.asarray(stored[b"data"]), np.asarray(stored[b"labels"])
        return x.reshape(-1, 3, 32, 32), y
    except (OSError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as reason:
        raise error("A621", f"cannot read {path}: {reason}") from None


class _Unpickler(pickle.Unpickler):
    """Reads arrays, lists and strings; refuses whatever could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_NAMES:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is no array")
        return super().find_class(module, name)


def read_factory(path: Path, factory: str, code: str = "A624") -> Any:
    """Run a function of the user's Python file and return what it returns. Logs a warning.

    Raises:
        ArchirError: A624 (or another code), the file does not run, has no such function, or the
            function fails.
    """
    log.warning("running %s of %s: its code is not archir's", factory, path)
    spec = importlib.util.spec_from_file_location(f"_archir_data_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise error(code, f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, factory, None)
        if callable(make):
            return make()
    except ArchirError:
        raise
    except Exception as reason:
        what = f"{type(reason).__name__}: {reason}"
        raise error(code, f"{path}:{factory} failed with {what}") from reason
    raise error(code, f"{path} has no function `{factory}`")


def arrays_of(found: object, source: str) -> Arrays:
    """What a factory returned, as named arrays.

    Raises:
        ArchirError: A624, it is not a mapping from names to arrays.
    """
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        kind = type(found).__name__
        raise error(
            "A624",
            f"{source} returned {kind}",
            hint="expected a mapping with x_train, y_train, x_test, y_test, or x, y",
        )
    return {name: np.asarray(value) for name, value in found.items()}
