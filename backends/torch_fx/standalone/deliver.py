"""Writing a network as a Python file with its weights: run by itself, then put in place."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from archir.diag import CHECK_FAILED, ArchirError, error
from archir.files import check_target, writing_all
from archir.ir.graph import Graph, Value
from archir.ops import STANDARD
from archir.ops.arithmetic import Array
from archir.ops.record import OpSet
from archir.proof.drift import random_feeds
from archir.weights.store import numpy_dtype, save_weights

from ..frame import array_of, tensor_of  # noqa: TID252 - the backend's own package
from ..module import lower  # noqa: TID252
from . import probe
from .write import Words, write

BATCHES = (1, 3)
PATIENCE = 1800
"""Seconds that the file may take to run."""


@dataclass(frozen=True)
class Report:
    """What was written and how it was checked."""

    path: str
    weights: str
    lines: int
    classes: int
    bytes: int
    """Size of both files."""
    batches: list[int]
    outputs: int
    train: bool
    """Whether it was compared in training mode too; some networks cannot run in it."""

    def to_json(self) -> dict[str, object]:
        """The report as a JSON object."""
        return asdict(self)


def write_source(
    graph: Graph,
    weights: Mapping[str, Array],
    path: str | Path,
    *,
    ops: OpSet = STANDARD,
    blocks: Mapping[str, str] | None = None,
    values: Mapping[str, Mapping[str, Value]] | None = None,
    about: Sequence[str] = (),
    force: bool = False,
) -> Report:
    """Write a network as a Python file that needs torch alone, with its weights beside it.

    The file is run in a process of its own that can import neither archir nor safetensors. It
    must load its weights there, have the network's ``state_dict`` keys, and give the very bits
    that the lowered network gives: in eval mode, and in train mode (nothing dropped) with the
    same running statistics afterwards.

    Args:
        graph: The network.
        weights: An array for each parameter.
        path: Where the file belongs; the weights go beside it, under the ending
            ``.safetensors``.
        ops: The operators.
        blocks: The block of the text that is instantiated at a path; classes are called so.
        values: By the path of an instance, the names of values in the text.
        about: Lines for the file's docstring.
        force: Whether files may be replaced.

    Raises:
        ArchirError: A501, A502 (torch cannot run the network), A560 (the file computes something
            else), A561 (it cannot be run), A562 (a layer cannot be written), A602, A603 (files),
            A611, A612 (weights).
    """
    target = Path(path)
    beside = target.with_suffix(".safetensors")
    for file in (target, beside):
        check_target(file, force=force)
    module = lower(graph, weights, ops)
    name = target.stem if target.stem.isidentifier() else "model"
    written = write(graph, module, ops, Words(blocks or {}, values or {}, about, name))
    constants = {key: array_of(tensor) for key, tensor in written.constants.items()}
    with writing_all([beside, target], force=force) as (tensors, source):
        save_weights(tensors, {**weights, **constants}, {})
        source.write_text(written.text, encoding="utf-8")
        train = _compare(graph, module, source, tensors)
        size = source.stat().st_size + tensors.stat().st_size
    return Report(
        str(target),
        str(beside),
        written.text.count("\n"),
        written.text.count("\nclass "),
        size,
        list(BATCHES),
        len(graph.outputs),
        train,
    )


def _compare(graph: Graph, module: fx.GraphModule, source: Path, weights: Path) -> bool:
    """Run the file and the network on the same inputs; whether in training mode too.

    Raises:
        ArchirError: A560, A561.
    """
    inputs = [_inputs(graph, batch) for batch in BATCHES]
    found = _run(source, weights, inputs)
    wanted = probe.observe(module, inputs)
    names = [output.name for output in graph.outputs]
    if found["keys"] != wanted["keys"]:
        raise _differs("the keys of its state_dict")
    for batch, ours, theirs in zip(BATCHES, wanted["eval"], found["eval"], strict=True):
        for name, a, b in zip(names, ours, theirs, strict=True):
            if not _same(a, b):
                raise _differs(f"output `{name}` at batch {batch}")
    if found["drop"] != wanted["drop"]:
        raise _differs("how often its layers drop what they are given")
    if wanted["train"] is None or found["train"] is None:
        if wanted.get("failed") != found.get("failed"):
            raise _differs("whether it runs in train mode")
        return False
    for name, a, b in zip(names, wanted["train"], found["train"], strict=True):
        if not _same(a, b):
            raise _differs(f"output `{name}` in train mode")
    for key, tensor in wanted["state"].items():
        if not _same(tensor, found["state"][key]):
            raise _differs(f"`{key}` after a batch in train mode")
    return True


def _inputs(graph: Graph, batch: int) -> list[torch.Tensor]:
    feeds = random_feeds(graph, 0, batch)
    types = {name: numpy_dtype(graph.node(name).types[0].dtype) for name in graph.inputs}
    return [tensor_of(feeds[name].astype(types[name]), copy=True) for name in graph.inputs]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit, or not a number at the same places."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _run(source: Path, weights: Path, inputs: list[list[torch.Tensor]]) -> dict[str, Any]:
    """What the file computes, in a process that has torch alone."""
    with tempfile.TemporaryDirectory() as folder:
        given, target = Path(folder) / "inputs.pt", Path(folder) / "found.pt"
        torch.save(inputs, given)
        words = [source, weights, given, target, torch.get_num_threads()]
        command = [sys.executable, "-I", probe.__file__, json.dumps(sys.path), *map(str, words)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            raise _fails(f"it took more than {PATIENCE} s") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise _fails(lines[-1][:300])
        found: dict[str, Any] = torch.load(target, weights_only=True)
        return found


def _differs(what: str) -> ArchirError:
    message = f"the written file is not the network: {what} differs; nothing was written"
    return error("A560", message, status=CHECK_FAILED)


def _fails(reason: str) -> ArchirError:
    return error("A561", f"the written file cannot be run by itself: {reason}; nothing was written")
