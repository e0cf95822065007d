"""Files of ``torch.save`` as trees of tensors, and tables of positions resampled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

from archir.diag import error
from archir.ops.arithmetic import Array
from archir.weights.checkpoint import MAX_DEPTH, Stored

_SHORT = {"float": "f", "int": "i", "uint": "u", "bfloat": "bf", "complex": "c"}


def read_checkpoint(path: Path, *, mmap: bool) -> object:
    """The tree of tensors in a file of ``torch.save``; no code of the file is run.

    Args:
        path: The file, looked through by :func:`archir.weights.pickles.check_torch_file`.
        mmap: Whether tensors stay in the file until they are read (archives alone).

    Raises:
        ArchirError: A626, torch cannot read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as reason:  # whatever a damaged pickle leads to
        what = (str(reason) or type(reason).__name__).partition("\n")[0][:200]
        raise error("A626", f"cannot read {path}: torch says: {what}") from None
    return _tree(found, {}, MAX_DEPTH)


def _tree(node: object, seen: dict[int, object], depth: int) -> object:
    """Mappings with text for keys, and stored tensors; all else is None."""
    if isinstance(node, torch.Tensor):
        return _stored(node)
    if id(node) in seen:
        return seen[id(node)]
    items: Mapping[Any, object] | None = None
    if isinstance(node, Mapping):
        items = node
    elif isinstance(node, list | tuple):
        items = dict(enumerate(node))
    if items is None or depth < 0:
        return None
    made: dict[str, object] = {}
    seen[id(node)] = made
    for key, value in items.items():
        if isinstance(key, str | int):
            made[str(key)] = _tree(value, seen, depth - 1)
    return made


def _stored(tensor: torch.Tensor) -> Stored:
    name = str(tensor.dtype).removeprefix("torch.")
    stem = name.rstrip("0123456789")
    dtype = _SHORT.get(stem, stem) + name[len(stem) :]

    def read() -> Array:
        plain = tensor.detach()
        if plain.dtype == torch.bfloat16:
            plain = plain.to(torch.float32)
        made: Array = plain.numpy(force=True)
        return made

    return Stored(tuple(tensor.shape), dtype, read)


def resample(
    array: Array, axis: int, rows: int, old: tuple[int, int], new: tuple[int, int]
) -> Array:
    """A table of positions for another grid: bicubic, the rows before the grid as they are."""
    table = torch.from_numpy(array.astype("float32")).movedim(axis, -1)
    before, grid = table[..., :rows], table[..., rows:]
    planes = grid.reshape(1, -1, *old)
    resized = interpolate(planes, new, mode="bicubic", align_corners=False)
    made = torch.cat([before, resized.reshape(*grid.shape[:-1], new[0] * new[1])], dim=-1)
    found: Array = made.movedim(-1, axis).contiguous().numpy()
    return found
