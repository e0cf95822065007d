"""Checkpoints of other programs: the tensors they hold, by name, none read before it is wanted.

A checkpoint is a tree of mappings with tensors at its leaves; every mapping that holds tensors
itself may be the state dict that is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from archir.diag import error
from archir.ops.arithmetic import Array
from archir.weights.store import malformed, numpy_dtype

MAX_DEPTH = 8
"""How deep mappings are searched for tensors."""

_SAFETENSORS = {"BF16": "bf16", "BOOL": "bool"} | {
    f"{kind}{size}": f"{kind.lower()}{size}" for kind in "FIU" for size in (8, 16, 32, 64)
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a checkpoint: its shape, its element type in archir's words, and its values."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array] = field(repr=False)
    """Reads the values; bf16 may come as float32."""

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


StateDict = Mapping[str, Stored]
"""The tensors of a network by name."""


@dataclass(frozen=True)
class Checkpoint:
    """A file with tensors."""

    path: Path
    format: str
    bytes: int
    sha256: str
    entries: Mapping[str, StateDict]
    """The mappings that hold tensors, by their place in the tree; "" is the file itself."""
    ordered: bool
    """Whether the order of the keys is the network's (safetensors files are sorted)."""


def is_safetensors(path: Path, head: bytes) -> bool:
    """Whether a file is (or calls itself) a safetensors file."""
    return path.suffix == ".safetensors" or (head[8:9] == b"{" and not head.startswith(b"\x80"))


def read_safetensors(path: Path, head: bytes) -> StateDict:
    """The tensors of a safetensors file.

    Raises:
        ArchirError: A610, the file is not whole.
    """
    try:
        file: Any = safe_open(path, framework="np")
        return {key: _stored(path, file, key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as reason:
        raise malformed(path, head, str(reason)) from None


def _stored(path: Path, file: Any, key: str) -> Stored:
    found = file.get_slice(key)
    raw = str(found.get_dtype())

    def read() -> Array:
        if raw == "BF16":
            numpy_dtype("bf16")  # NumPy knows it once ml_dtypes is imported
        try:
            values: Array = file.get_tensor(key)
        except (SafetensorError, TypeError, AttributeError, ImportError, KeyError) as reason:
            raise error("A613", f"{path}: {key} cannot be read: {reason}") from reason
        return values

    return Stored(tuple(found.get_shape()), _SAFETENSORS.get(raw, raw.lower()), read)


def state_dicts(tree: object) -> dict[str, StateDict]:
    """The mappings of a tree that hold tensors themselves, by their place in the tree.

    A mapping that stands at several places is named by the first.
    """
    found: dict[str, StateDict] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, object, int]] = [("", tree, 0)]
    while waiting:
        place, node, depth = waiting.pop(0)
        if not isinstance(node, Mapping) or id(node) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(node))
        own = {str(key): value for key, value in node.items() if isinstance(value, Stored)}
        if own:
            found[place] = own
        waiting += [
            (f"{place}.{key}" if place else str(key), value, depth + 1)
            for key, value in node.items()
            if isinstance(value, Mapping)
        ]
    return found
