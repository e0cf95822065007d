"""Files of published data sets, read with bounded memory, and nothing in them executed.

What a file says of its own size is checked before memory is taken for it: a file that is cut
short, damaged or made to be harmful ends in one error.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle  # for the published CIFAR files alone, through a closed list of names
import pickletools
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archir.diag import ArchirError, error

MOST = 1 << 30
"""Bytes of one file, unpacked, that are read at most; the largest published one has 225 MB."""

Batch = tuple[NDArray[np.uint8], NDArray[Any]]
"""Images ``[N, 3, 32, 32]`` and labels ``[N]``."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into one error.

    Raises:
        ArchirError: A621.
    """
    try:
        yield
    except ArchirError:
        raise
    except MemoryError:
        why = "it asks for more memory than there is"
        raise error("A621", f"cannot read {path}: {why}") from None
    except Exception as reason:  # readers of others raise what they like at damaged bytes
        why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise error("A621", f"cannot read {path}: {why.splitlines()[0]}") from None


def whole(path: Path, most: int = MOST) -> bytes:
    """The content of a file of at most ``most`` bytes."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return content


# ----- IDX, the format of MNIST


def read_idx(path: Path, inner: Sequence[int]) -> NDArray[np.uint8]:
    """Bytes ``[N, *inner]`` of an IDX file, packed by gzip or not.

    Raises:
        ArchirError: A621, it is damaged, or holds something else.
    """
    with reading(path), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if packed else raw as file:
            head = file.read(4 * (2 + len(inner)))
            wanted = f"bytes [{', '.join(['N', *map(str, inner)])}]"
            if not head.startswith(bytes((0, 0, 8, 1 + len(inner)))) or len(head) % 4:
                raise ValueError(f"it is no IDX file of {wanted}")
            count, *sides = np.frombuffer(head[4:], ">u4").tolist()
            if sides != list(inner):
                raise ValueError(f"it has the shape {[count, *sides]}, expected {wanted}")
            size = count * math.prod(inner)
            if size > MOST:
                raise ValueError(f"its header speaks of {size:,} bytes")
            content = file.read(size + 1)
            if len(content) != size:
                what = "less" if len(content) < size else "more"
                raise ValueError(f"it holds {what} than the {size:,} bytes that its header states")
            return np.frombuffer(content, np.uint8).reshape(count, *inner)


# ----- batches, the format of CIFAR


def read_batch(path: Path, labels: bytes = b"labels") -> Batch:
    """A batch of CIFAR's Python version.

    Raises:
        ArchirError: A621, it is damaged, or its pickle is more than arrays, lists and strings.
    """
    with reading(path):
        stored = unpickled(whole(path))
        if not isinstance(stored, dict) or not {b"data", labels} <= stored.keys():
            raise ValueError(f"it is no batch with `data` and `{labels.decode()}`")
        x, y = (_array(stored[name]) for name in (b"data", labels))
        if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3072 or y.shape != x.shape[:1]:
            raise ValueError(f"its data is {x.dtype}{list(x.shape)} for labels {list(y.shape)}")
        return x.reshape(-1, 3, 32, 32), y


def read_binary_batch(path: Path, labels: int = 1) -> Batch:
    """A batch of CIFAR's binary version: rows of labels, the last of which counts, and an image.

    Raises:
        ArchirError: A621, its length is not that of whole rows.
    """
    with reading(path):
        content = whole(path)
        if len(content) % (labels + 3072):
            raise ValueError(f"{len(content):,} bytes are no rows of {labels + 3072}")
        rows = np.frombuffer(content, np.uint8).reshape(-1, labels + 3072)
        return rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1]


def _array(stored: object) -> NDArray[Any]:
    if isinstance(stored, _Array) and stored.content is not None:
        return stored.content
    if isinstance(stored, list) and all(type(entry) is int for entry in stored):
        return np.array(stored)
    raise ValueError("it holds something other than an array or a list of numbers")


class _Kind:
    """A pickled dtype: integers of a size."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if text not in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"):
            raise pickle.UnpicklingError(f"it holds an array of {text!r:.40}")
        self.code, self.order = text, "<"

    def __setstate__(self, state: Sequence[Any]) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.order = ">" if order == ">" else "<"


class _Array:
    """A pickled array; NumPy's own maker would take memory for any shape."""

    content: NDArray[Any] | None = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, kind, columns, content = state
        if not isinstance(kind, _Kind) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array without a type or content")
        flat = np.frombuffer(content, np.dtype(kind.order + kind.code))
        self.content = flat.reshape(shape, order="F" if columns else "C")


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into old pickles; other encodings can make much out of little."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError("it holds text in an encoding other than latin1")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,  # is named, and never called
    ("numpy", "dtype"): _Kind,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _encode,
}
"""What a pickled array refers to, and what stands in for it; nothing else is looked up."""


class _Unpickler(pickle.Unpickler):
    """Reads arrays, lists and strings; refuses whatever could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is no array")
        return _STAND_INS[module, name]


def unpickled(content: bytes) -> object:
    """What a pickle holds, arrays as stand-ins.

    Raises:
        pickle.UnpicklingError: It refers to anything else.
    """
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        # a pickle numbers what it remembers from 0; memory is taken up to the largest number
        if "PUT" in opcode.name and not (isinstance(argument, int) and argument <= number):
            raise pickle.UnpicklingError("it numbers what it holds at random")
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


# ----- MATLAB 5, the format of SVHN


def read_mat(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Arrays of a MATLAB 5 file by their names.

    Raises:
        ArchirError: A621, it is damaged or has no such arrays; A622, scipy is not installed.
    """
    try:
        from scipy.io import loadmat  # noqa: PLC0415 (an extra)
    except ImportError:
        raise error(
            "A622",
            "files of MATLAB are read by scipy, which is not installed",
            hint="pip install 'archir[data]'",
        ) from None
    with reading(path):
        found = loadmat(_inflated(path), variable_names=list(names))
        missing = [name for name in names if not isinstance(found.get(name), np.ndarray)]
        if missing:
            raise ValueError(f"it has no array `{missing[0]}`")
        return {name: found[name] for name in names}


def _inflated(path: Path) -> io.BytesIO:
    """The same file with nothing packed in it: scipy would unpack without an end."""
    made = io.BytesIO()
    with path.open("rb") as file:
        head = file.read(128)
        if not head.startswith(b"MATLAB 5.0") or head[126:] not in (b"IM", b"MI"):
            raise ValueError("it is no file of MATLAB 5")
        order = "<" if head[126:] == b"IM" else ">"
        made.write(head)
        while tag := file.read(8):
            kind, size = np.frombuffer(tag, order + "u4").tolist()  # a cut tag is a ValueError
            if size > MOST:
                raise ValueError(f"it speaks of {size:,} bytes")
            content = file.read(size)
            if len(content) < size:
                raise ValueError("it is cut short")
            if kind == _PACKED:
                unpack = zlib.decompressobj()
                content = unpack.decompress(content, MOST + 1)
                if not unpack.eof and len(content) <= MOST:
                    raise ValueError("it is cut short")
            else:
                made.write(tag)
            made.write(content)
            if made.tell() > MOST:
                raise ValueError(f"it unpacks to more than {MOST:,} bytes")
    made.seek(0)
    return made


_PACKED = 15
"""The type of an element that is packed by zlib."""
