"""Weights as safetensors files: read with every defect named, written whole or not at all.

Weights are a mapping from parameter paths to NumPy arrays. bfloat16 arrays are those of
``ml_dtypes``. Metadata is stored as one JSON text, so that the same weights and metadata
always give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from archir.diag import ArchirError, Diagnostic, error
from archir.files import writing
from archir.ir.graph import Graph
from archir.ops.arithmetic import Array

Weights = dict[str, Array]

FORMAT = 1
"""The version of the files that are written; newer ones are refused."""

_KEY = "archir"
_NUMPY = {"f32": "float32", "f16": "float16", "f64": "float64", "bf16": "bfloat16"} | {
    "i64": "int64",
    "i32": "int32",
    "bool": "bool",
}
_MOST = 20
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it"),
    (b"\x80", "a pickle"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
)


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype of an element type.

    Raises:
        ArchirError: A613, bf16 without ``ml_dtypes``.
    """
    if dtype == "bf16":
        try:
            import ml_dtypes  # noqa: PLC0415 - an optional package, needed by bf16 alone
        except ImportError:
            raise error(
                "A613", "bf16 weights need the package ml_dtypes", hint="pip install ml_dtypes"
            ) from None
        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    return np.dtype(_NUMPY[dtype])


def computed_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What terms are computed in: half precision in single; integers in double."""
    if dtype.kind != "f":
        return np.dtype(np.float64)
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def load_weights(path: str | Path) -> Weights:
    """Read a safetensors file: path of a parameter -> array (writable, its own memory).

    Raises:
        ArchirError: A601 (cannot be read), A610 (no whole safetensors file), A613 (dtype).
    """
    return _read(Path(path))[0]


def load_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata that :func:`save_weights` stored; empty for a file of another writer.

    Raises:
        ArchirError: A601 or A610, as :func:`load_weights`.
    """
    return _read(Path(path), tensors=False)[1]


def is_untouched(path: str | Path) -> bool:
    """Whether the header of a whole file says what :func:`save_weights` writes, to the letter.

    The tensors are no part of the question: they have hashes of their own.
    """
    with safe_open(path, framework="np") as file:
        return bool(file.metadata() == {_KEY: json.dumps({"version": FORMAT}, sort_keys=True)})


def _read(path: Path, *, tensors: bool = True) -> tuple[Weights, dict[str, str]]:
    head = b""
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
        if not path.is_file():
            raise error("A601", f"cannot read {path}: it is not a regular file")
        with safe_open(path, framework="np") as file:
            found = file.get_tensors() if tensors else {}
            stored = file.metadata() or {}
    except OSError as reason:
        raise error("A601", f"cannot read {path}: {reason.strerror or reason}") from reason
    except SafetensorError as reason:
        raise malformed(path, head, str(reason)) from reason
    except (KeyError, TypeError, AttributeError, ImportError) as reason:
        raise error(
            "A613", f"{path} holds a tensor of an element type that archir has no use for: {reason}"
        ) from reason
    for name, array in found.items():
        if array.dtype.name not in _NUMPY.values():
            raise error("A613", f"{path}: {name} is {array.dtype}, which archir has no use for")
    return dict(found), _metadata(path, stored.get(_KEY))


def malformed(path: Path, head: bytes, reason: str) -> ArchirError:
    """The diagnostic for a file that is no whole safetensors file; ``head`` is how it begins."""
    if not head:
        return error("A610", f"{path} is empty")
    what = foreign(head)
    if what:
        return error("A610", f"{path} is no safetensors file but {what}")
    reason = reason.removeprefix("Error while deserializing header: ")
    hint = "the file is cut short; copy or download it again" if "incomplete" in reason else ""
    return error("A610", f"{path} is no whole safetensors file: {reason}", hint=hint)


def foreign(head: bytes) -> str:
    """What a file of another kind is, by its first bytes; empty where that is not known."""
    return next((what for magic, what in _FOREIGN if head.startswith(magic)), "")


def _metadata(path: Path, text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    try:
        stored = json.loads(text)
        version = stored.pop("version")
        known = all(isinstance(value, str) for value in stored.values())
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as reason:
        raise error("A610", f"the metadata of {path} is damaged") from reason
    if not known or not isinstance(version, int):
        raise error("A610", f"the metadata of {path} is damaged")
    if version > FORMAT:
        raise error(
            "A610",
            f"{path} has format version {version}, this archir reads up to {FORMAT}",
            hint="pip install --upgrade archir",
        )
    return dict(stored)


def save_weights(
    path: str | Path,
    weights: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    *,
    force: bool = True,
) -> None:
    """Write a safetensors file, atomically; equal weights and metadata give equal bytes.

    Raises:
        ArchirError: A602 (cannot be written, a full disk for one), A603 (it exists, without
            ``force``), A613 (an element type that cannot be stored).
    """
    for name, array in weights.items():
        if array.dtype.name not in _NUMPY.values():
            raise error("A613", f"{name}: weights of type {array.dtype} cannot be stored")
    plain = {name: _plain(array) for name, array in weights.items()}
    text = json.dumps({**(metadata or {}), "version": FORMAT}, sort_keys=True)
    with writing(path, force=force) as temporary:
        try:
            save_file(plain, temporary, metadata={_KEY: text})
        except SafetensorError as reason:
            cause = str(reason).removeprefix("Error while serializing: ")
            raise error("A602", f"cannot write {path}: {cause}") from reason


def _plain(array: Array) -> Array:
    # np.ascontiguousarray would give a scalar an axis.
    return np.require(array, requirements=["C", "A"]).reshape(array.shape)


def check_weights(graph: Graph, weights: Mapping[str, Array], *, extra: bool = False) -> None:
    """Check that weights are exactly those of a network: names, shapes, element types.

    Args:
        graph: The network.
        weights: Its weights.
        extra: Whether tensors that the network does not have are allowed.

    Raises:
        ArchirError: A611 (missing or superfluous), A612 (shape or element type); all of them,
            up to twenty.
    """
    found: list[Diagnostic] = []
    superfluous = [name for name in weights if name not in graph.parameters]
    for path, parameter in graph.parameters.items():
        if path not in weights:
            close = get_close_matches(path, superfluous, 1, 0.8) if len(found) < _MOST else []
            hint = f"the weights have a `{close[0]}`" if close else ""
            found.append(Diagnostic("A611", f"the weights lack `{path}`", hint=hint))
            continue
        array = weights[path]
        wanted, dtype = parameter.type.shape, numpy_dtype(parameter.type.dtype)
        if array.shape != wanted or array.dtype != dtype:
            has = f"{array.dtype}{list(array.shape)}"
            needs = f"{dtype}{list(wanted)}"
            found.append(Diagnostic("A612", f"`{path}` is {has}, the network needs {needs}"))
    if not extra:
        found += [Diagnostic("A611", f"the network has no `{n}`") for n in superfluous]
    if len(found) > _MOST:
        more = len(found) - _MOST
        found = [*found[:_MOST], Diagnostic("A611", f"and {more} more that do not fit")]
    if found:
        raise ArchirError(*found)
