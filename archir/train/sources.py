"""Where data comes from: each reader returns named arrays as they lie in the source.

The names are ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test`` with or
without ``x_validation`` and ``y_validation``; ``classes`` may hold the names of the classes.
Nothing is executed or unpickled but what :func:`read_factory` is asked to run.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archir.diag import ArchirError, error
from archir.train.formats import MOST, reading

Arrays = dict[str, Any]
"""NumPy arrays by name; images may be :class:`archir.train.images.StoredImages`."""

log = logging.getLogger(__name__)

NAMES = {f"{what}{part}" for what in "xy" for part in ("", "_train", "_validation", "_test")}
NAMES |= {"classes"}
"""The names of arrays that mean something."""

EXPECTED = "expected x_train, y_train, x_test, y_test, or x, y"

USER_MODULE = "_archir_user_"
"""How the names of modules begin that are the user's files."""

TIGHTEST = 200
"""How many times smaller images may be packed, where they unpack to a GiB or more."""


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
    """The arrays of an ``.npz`` file that a data set has, without unpickling anything.

    Raises:
        ArchirError: A621, the file cannot be read, or an array is of objects, or its header
            states another size than lies there, or is packed more tightly than images can be.
    """
    with reading(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
        known = {name: member for name, member in members.items() if name in NAMES}
        if not known:
            held = ", ".join(sorted(members)[:20]) or "nothing"
            raise error("A621", f"{path} has no `x`; it has {held}", hint=EXPECTED)
        return {name: _member(archive, member) for name, member in known.items()}


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    name = member.filename
    if member.file_size > MOST and member.file_size > TIGHTEST * member.compress_size:
        raise ValueError(f"{name} unpacks to {member.file_size:,} bytes")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{name} is of the unknown version {version}")
        shape, _, dtype = read(stream)
        size = dtype.itemsize * math.prod(shape)
        if dtype.hasobject or dtype.kind not in "biufUS" or dtype.itemsize == 0:
            raise ValueError(f"{name} is an array of {dtype}, not of numbers or text")
        if stream.tell() + size != member.file_size:
            raise ValueError(f"{name} has another size than its header states")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def read_factory(path: Path, factory: str, code: str = "A624") -> Any:
    """Run a function of the user's Python file and return what it returns. Logs a warning.

    Raises:
        ArchirError: A624 (or another code), the file does not run, has no such function, or the
            function fails.
    """
    make = read_name(path, factory, code)
    if not callable(make):
        raise error(code, f"{path} has no function `{factory}`")
    with _told(f"{path}:{factory}", code):
        return make()


def read_name(path: Path, name: str, code: str) -> Any:
    """What a name of the user's Python file stands for; None where it has none. Logs a warning.

    Raises:
        ArchirError: of the code, the file does not run.
    """
    log.warning("running %s of %s: its code is not archir's", name, path)
    return getattr(read_module(path, code), name, None)


def read_module(path: Path, code: str) -> ModuleType:
    """The user's Python file as a module, which it becomes anew each time.

    Raises:
        ArchirError: of the code, the file does not run.
    """
    module_name = f"{USER_MODULE}{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise error(code, f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look there for the module that they stand in
    with _told(str(path), code):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _told(what: str, code: str) -> Iterator[None]:
    """Say of the user's code that it failed."""
    try:
        yield
    except ArchirError:
        raise
    except (Exception, SystemExit) as reason:
        why = f"{type(reason).__name__}: {reason}"
        raise error(code, f"{what} failed with {why}") from reason


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
            hint=f"{EXPECTED} as a mapping",
        )
    return {name: np.asarray(value) for name, value in found.items()}
