"""Jobs as bytes for other processes, which may not have the user's files loaded."""

from __future__ import annotations

import functools
import io
import operator
import pickle
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from archir.diag import ArchirError, error
from archir.search.work import Job
from archir.train.sources import USER_MODULE, read_module


def pack(job: Job) -> bytes:
    """A job as bytes.

    Raises:
        ArchirError: A712, its evaluator cannot be sent.
    """
    found = io.BytesIO()
    try:
        _Packer(found).dump(job)
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
