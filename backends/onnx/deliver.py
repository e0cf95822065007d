"""Exporting: build, check, run, compare; only then is the file put in place."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from archir.diag import error
from archir.files import check_target, writing
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.ops.arithmetic import Array
from archir.weights.store import check_weights

from . import gate, wire
from .blame import Subject
from .model import Skeleton, external, skeleton
from .precision import FULL, halved
from .runtime import Placement, named
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
    """The file beside it that holds the weights, where the model file does not."""
    bounds: dict[str, float] = field(default_factory=dict)
    """For each output, the largest drift that would have passed."""
    left_out: dict[int, int] = field(default_factory=dict)
    """Batch sizes that were too large to run, with the bytes of values that they need."""
    placement: Placement | None = None
    """Which provider was asked for, and what ran where."""
    precision: str = "fp32"
    half: dict[str, object] | None = None
    """For a file in float16: how many nodes are, which stay in float32 and why, and the drift of
    the outputs where every value between layers is rounded to float16."""
    clean_ups: Mapping[str, Any] | None = None
    """What was taken out before, by which rules and where; None where nothing was to be."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The model's metadata."""
    flat: tuple[str, ...] = ()
    """Outputs that are one number throughout: for them the layers were compared one by one."""

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
    device: str = "cpu",
    bound: float | None = None,
    largest: int = LARGEST,
    strict: bool = False,
    batches: Sequence[int] | None = None,
    precision: str = "fp32",
    keep: Sequence[str] = (),
    half_io: bool = False,
    original: tuple[Graph, Mapping[str, Array]] | None = None,
    clean_ups: Mapping[str, Any] | None = None,
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
        device: Where ONNX Runtime runs the file: ``cpu``, ``cuda``, ``auto``, or the name of
            another execution provider.
        bound: The largest max|a-b| / max|a| that passes; by default that of the output's
            element type in :data:`gate.BOUNDS`, or :data:`gate.HALF_BOUND`.
        largest: Weights of more bytes go into a file beside the model.
        strict: Whether it fails where something runs on another provider than ``device``.
        batches: The batch sizes; by default 1, 2 and 7 as far as memory allows.
        precision: ``fp32``, or ``fp16`` to compute in float16 what can be.
        keep: With ``fp16``, paths or globs of nodes that stay in float32.
        half_io: With ``fp16``, whether inputs and outputs are float16 too.
        original: The network whose outputs are right and which the metadata names, where
            ``graph`` is what clean-ups made of it.
        clean_ups: What these did, for the report and the metadata.

    Raises:
        ArchirError: A501, A502, A505 (it cannot be written), A506 (it computes something
            else), A507 (it cannot be run), A545, A546 (provider), A547 (the network's outputs
            are not finite), A548 (batches), A549, A550 (float16), A602, A603 (files), A611, A612
            (weights).
    """
    target = Path(path)
    check_target(target, force=force)
    named(device)
    check_weights(graph, weights)
    known = original or (graph, weights)
    half = halved(graph, weights, keep=keep, io=half_io) if precision == "fp16" else FULL
    subject = Subject(graph, weights, half, half_io)
    said = {"archir.precision": precision, "archir.graph": graph_hash(known[0])}
    if clean_ups is not None:
        said["archir.clean_ups"] = json.dumps(_in_short(clean_ups))
    made = skeleton(
        graph,
        weights,
        opset,
        ir_version=ir_version,
        metadata={**said, **(metadata or {})},
        precision=half,
        half_outputs=half_io,
    )
    old = _data_of(target)
    with writing(target, force=force) as temporary, _data_file(made, target, largest) as data:
        _write(temporary, made, apart=data is not None)
        found = gate.check(temporary)
        if found[0] != opset:
            raise error("A505", f"opset {opset} was asked for and the file has {found[0]}")
        ran = gate.compare(
            temporary,
            *known,
            device=device,
            bound=bound,
            subject=subject,
            strict=strict,
            batches=batches,
        )
        size = temporary.stat().st_size + (data.stat().st_size if data else 0)
    for file in old - ({data} if data else set()):
        file.unlink(missing_ok=True)
    return Report(
        str(target),
        *found,
        ran.provider,
        ran.reference,
        ran.batches,
        ran.drift,
        size,
        data.name if data else None,
        ran.bounds,
        ran.left_out,
        ran.placement,
        precision,
        {**half.facts(graph), "rounded_drift": ran.rounded} if half.half else None,
        clean_ups,
        {entry.key: entry.value for entry in made.model.metadata_props},
        ran.flat,
    )


def _in_short(clean_ups: Mapping[str, Any]) -> dict[str, object]:
    """What a file says of its clean-ups: how often each rule was used."""
    rules = {name: len(sites) for name, sites in clean_ups["rules"].items()}
    return {"rules": rules, "dead": len(clean_ups["dead"])}


def _data_of(target: Path) -> set[Path]:
    """The files of weights that an earlier export put beside a model, which is to be replaced."""
    ours = re.compile(re.escape(target.stem) + r"-[0-9a-f]{12}\.data")
    beside = {file.name for file in target.parent.glob("*.data") if ours.fullmatch(file.name)}
    if not beside or not target.is_file():
        return set()
    try:
        model = onnx.load(str(target), load_external_data=False)
    except Exception:  # noqa: BLE001,RUF100 - it is no model; protobuf has its own errors
        return set()
    named = {e.value for t in model.graph.initializer for e in t.external_data}
    return {target.with_name(name) for name in named & beside}


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
