"""ONNX files that are ready to be timed in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from archir.diag import error
from archir.measure import Job, Timed
from archir.ops.arithmetic import Array

from .runtime import CPU, CUDA

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
_FATAL = 4


def timed(path: Path, job: Job) -> Timed:
    """A file in ONNX Runtime, with random inputs.

    Raises:
        ArchirError: A507 (ONNX Runtime refuses it), A508 (there is no such device), A564 (it
            does not take such a batch), A601 (there is no such file).
    """
    if not path.is_file():
        raise error("A601", f"cannot read {path}: no such file")
    session = _session(path, job)
    stream = np.random.Generator(np.random.PCG64(0))
    feeds = {entry.name: _feed(entry, job.batch, stream) for entry in session.get_inputs()}
    provider = str(session.get_providers()[0])
    if job.device.startswith("cuda") and provider != CUDA:
        raise error("A508", "ONNX Runtime has no working CUDA device here", hint="--device auto")
    note = "--compile is for .arch files" if job.compiled else ""
    engine = f"ONNX Runtime {onnxruntime.__version__}"
    return Timed(lambda: session.run(None, feeds), engine, provider, note)


def _session(path: Path, job: Job) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    onnxruntime.set_default_logger_severity(_FATAL)
    gpu = job.device != "cpu" and CUDA in onnxruntime.get_available_providers()
    _, _, index = job.device.partition(":")
    wanted = [(CUDA, {"device_id": int(index or 0)}), CPU] if gpu else [CPU]
    try:
        return onnxruntime.InferenceSession(str(path), options, wanted, enable_fallback=0)
    except Exception as reason:
        # ONNX Runtime raises a class of its own for each status; they share no base class.
        text = " ".join(str(reason).split())[:300]
        raise error("A507", f"ONNX Runtime refuses {path}: {text}") from reason


def _feed(entry: Any, batch: int, stream: np.random.Generator) -> Array:
    """Random values for an input; its first axis is the batch."""
    shape = list(entry.shape)
    if shape and not isinstance(shape[0], int):
        shape[0] = batch
    open_ = [str(size) for size in shape if not isinstance(size, int)]
    stated = f"its input `{entry.name}` is {[str(size) for size in entry.shape]}"
    if open_:
        raise error("A564", f"the sizes {', '.join(open_)} are open: {stated}".replace("'", ""))
    if shape and shape[0] != batch:
        raise error(
            "A564",
            f"the file does not take a batch of {batch}: {stated}".replace("'", ""),
            hint=f"--batch {shape[0]}",
        )
    if entry.type not in _TYPES:
        raise error("A564", f"no values for the input `{entry.name}` of type {entry.type}")
    dtype = np.dtype(_TYPES[entry.type])
    if dtype.kind in "ib":
        return stream.integers(0, 2, shape).astype(dtype)
    return stream.standard_normal(shape).astype(dtype)
