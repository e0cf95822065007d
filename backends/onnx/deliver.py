"""Exporting: build, check, run, compare; only then is the file put in place."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from archir.diag import error
from archir.files import check_target, writing
from archir.ir.graph import Graph
from archir.ops.arithmetic import Array
from archir.weights.store import check_weights

from . import gate, wire
from .model import Skeleton, external, skeleton
from .runtime import Device
from .versions import DEFAULT

LARGEST = 2_000_000_000
"""Bytes of weights that still go into the model file; protobuf ends at 2**31."""


@dataclass(frozen=True)
class Report:
    """What was exported and how it was checked."""

    path: str
    opset: int
    ir_version: int
    provider: str
    """The execution provider of ONNX Runtime that ran the file."""
    reference: str
    """What it was compared with: ``torch`` or ``numpy``."""
    batches: list[int]
    drift: dict[str, float]
    """For each output: max|a-b| / max|a|, the largest over the batches."""
    bytes: int
    """Size of the model file and of the data beside it."""
    data: str | None = None
    """The file beside it that holds the weights, where the model file cannot."""

    def to_json(self) -> dict[str, object]:
        """The report as a JSON object."""
        return asdict(self)


def export(
    graph: Graph,
    weights: Mapping[str, Array],
    path: str | Path,
    opset: int = DEFAULT,
    *,
    force: bool = False,
    ir_version: int | None = None,
    metadata: Mapping[str, str] | None = None,
    device: Device = "cpu",
    bound: float | None = None,
    largest: int = LARGEST,
) -> Report:
    """Write a network in eval mode as an ONNX file that ONNX Runtime agrees with.

    The file is built beside its place, passes the ONNX checker with strict shape inference, is
    run at several batch sizes, and its outputs are compared with the network's. A file that
    fails leaves nothing behind, and one that it would have replaced stays.

    Args:
        graph: The network.
        weights: An array for each parameter.
        path: Where the file belongs.
        opset: The opset, which is delivered exactly.
        force: Whether a file may be replaced.
        ir_version: The IR version; the lowest that the opset allows, where None.
        metadata: Further entries of the model's metadata.
        device: Where ONNX Runtime runs the file.
        bound: The largest max|a-b| / max|a| that passes; by default that of the output's
            element type in :data:`gate.BOUNDS`.
        largest: Weights of more bytes go into a file beside the model.

    Raises:
        ArchirError: A501, A502, A505 (it cannot be written), A506 (it computes something
            else), A507 (it cannot be run), A508 (device), A602, A603 (files), A611, A612
            (weights).
    """
    target = Path(path)
    check_target(target, force=force)
    check_weights(graph, weights)
    made = skeleton(graph, weights, opset, ir_version=ir_version, metadata=metadata)
    with writing(target, force=force) as temporary, _data_file(made, target, largest) as data:
        _write(temporary, made, apart=data is not None)
        found = gate.check(temporary)
        if found[0] != opset:
            raise error("A505", f"opset {opset} was asked for and the file has {found[0]}")
        provider, reference, batches, drift = gate.compare(
            temporary, graph, weights, device=device, bound=bound
        )
        size = temporary.stat().st_size + (data.stat().st_size if data else 0)
    return Report(
        str(target), *found, provider, reference, batches, drift, size, data.name if data else None
    )


def _write(path: Path, made: Skeleton, *, apart: bool) -> None:
    with path.open("wb") as file:
        if apart:
            file.write(made.model.SerializeToString())
        else:
            file.writelines(wire.chunks(made))


@contextlib.contextmanager
def _data_file(made: Skeleton, target: Path, largest: int) -> Iterator[Path | None]:
    """Put weights that the model file cannot hold beside it, under a name of their own.

    The name follows from the contents: the file of an earlier export is not overwritten while
    its model still stands.
    """
    if made.size <= largest:
        yield None
        return
    digest = hashlib.sha256()
    for array in made.initializers.values():
        digest.update(wire.data_of(array))
    path = target.with_name(f"{target.stem}-{digest.hexdigest()[:12]}.data")
    existed = path.exists()
    offsets = external(made, path.name)
    with writing(path) as temporary, temporary.open("wb") as file:
        for offset, array in zip(offsets, made.initializers.values(), strict=True):
            file.seek(offset)
            file.write(wire.data_of(array))
    try:
        yield path
    except BaseException:
        if not existed:
            path.unlink()
        raise
