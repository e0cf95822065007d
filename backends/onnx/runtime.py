"""ONNX Runtime: sessions that say where they run, and nothing on stderr."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from archir.diag import error
from archir.ops.arithmetic import Array

Device = Literal["cpu", "cuda", "auto"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_FATAL = 4


def session(model: bytes | str | os.PathLike[str], device: Device = "cpu") -> Any:
    """A session for a model, given as bytes or as a path.

    Args:
        model: The serialised model, or the path of its file.
        device: ``auto`` takes a GPU where one works.

    Raises:
        ArchirError: A507 (ONNX Runtime refuses the model), A508 (no such device here).
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        if device != "cpu" and _has_gpu():
            # TF32 keeps 10 bits of a factor, too few to compare by.
            wanted = [(CUDA, {"use_tf32": 0}), CPU]
            made = onnxruntime.InferenceSession(source, options, providers=wanted)
        else:
            made = onnxruntime.InferenceSession(source, options, providers=[CPU])
    except Exception as reason:
        # ONNX Runtime raises a class of its own for each status; they share no base class.
        raise error("A507", f"ONNX Runtime refuses the model: {_short(reason)}") from reason
    if device == "cuda" and provider_of(made) != CUDA:
        raise error("A508", "ONNX Runtime has no working CUDA device here", hint="--device auto")
    return made


def provider_of(made: Any) -> str:
    """The execution provider that a session prefers, and so runs on."""
    return str(made.get_providers()[0])


def run(made: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """Run a session on arrays, by input name.

    Raises:
        ArchirError: A507, ONNX Runtime fails.
    """
    try:
        found: Sequence[Array] = made.run(None, dict(feeds))
    except Exception as reason:
        raise error("A507", f"ONNX Runtime cannot run the model: {_short(reason)}") from reason
    return [np.asarray(value) for value in found]


def accepts(model: bytes) -> bool:
    """Whether ONNX Runtime loads a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    try:
        onnxruntime.InferenceSession(model, options, providers=[CPU])
    except Exception:  # noqa: BLE001,RUF100 - its exceptions share no base class
        return False
    return True


def _has_gpu() -> bool:
    # Asking ONNX Runtime for CUDA where there is none makes it complain on stderr.
    return CUDA in onnxruntime.get_available_providers() and (
        Path("/dev/nvidiactl").exists() or os.name == "nt"
    )


def _short(reason: Exception) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= 300 else text[:297] + "..."
