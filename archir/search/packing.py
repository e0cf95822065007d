"""Jobs as bytes for other processes, which may not have the user's files loaded."""

from __future__ import annotations

import functools
import io
import operator
import pickle
import sys
import tempfile
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from archir.diag import ArchirError, error
from archir.search.work import Job
from archir.train.sources import USER_MODULE, read_module


def pack(job: Job, *, carried: bool = False) -> bytes:
    """A job as bytes.

    Args:
        job: It.
        carried: Whether the user's files are sent too, to where they do not lie.

    Raises:
        ArchirError: A712, its evaluator cannot be sent.
    """
    found = io.BytesIO()
    try:
        (_Carrier if carried else _Packer)(found).dump(job)
    except Exception as failure:
        raise _cannot(failure) from failure
    return found.getvalue()


def unpack(packed: bytes) -> Job:
    """A job from the bytes that this machine's own process made of it.

    Raises:
        ArchirError: A712, its evaluator's class cannot be found.
    """
    try:
        job: Job = pickle.loads(packed)
    except ArchirError:
        raise
    except Exception as failure:
        raise _cannot(failure) from failure
    return job


class _Packer(pickle.Pickler):
    """Names classes and functions of ``FILE.py:NAME`` by their file, as no module can."""

    def reducer_override(self, item: Any) -> Any:
        if isinstance(item, type | FunctionType) and item.__module__.startswith(USER_MODULE):
            file = sys.modules[item.__module__].__file__
            return _named, (str(Path(str(file)).resolve()), item.__qualname__)
        return NotImplemented


class _Carrier(pickle.Pickler):
    """Sends the file that a class or function of the user's stands in, its script as well."""

    def reducer_override(self, item: Any) -> Any:
        if isinstance(item, type | FunctionType) and (
            item.__module__.startswith(USER_MODULE) or item.__module__ == "__main__"
        ):
            file = Path(str(sys.modules[item.__module__].__file__))
            return _unfolded, (file.name, file.read_bytes(), item.__qualname__)
        return NotImplemented


def _unfolded(file: str, content: bytes, name: str) -> Any:
    return operator.attrgetter(name)(_carried_module(file, content))


@functools.cache
def _carried_module(file: str, content: bytes) -> ModuleType:
    """The user's file as it was sent, which is run once in a process."""
    with tempfile.TemporaryDirectory(prefix="archir-") as folder:
        path = Path(folder, file)
        path.write_bytes(content)
        return read_module(path, "A712")


def _named(file: str, name: str) -> Any:
    return operator.attrgetter(name)(_module(file))


@functools.cache
def _module(file: str) -> ModuleType:
    """The user's file, which is run once in a process."""
    return read_module(Path(file), "A712")


def _cannot(failure: Exception) -> ArchirError:
    text = f"the evaluator cannot be sent to another process: {type(failure).__name__}: {failure}"
    hint = "its class belongs at the top of a file or module; one worker needs no other process"
    return error("A712", " ".join(text.split())[:500], hint=hint)
