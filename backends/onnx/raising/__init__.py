"""Raising: an ONNX file as a network of archir, with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from archir.target import Imported, ImportOptions

from .building import Raised as Raised
from .building import build
from .reading import read
from .structure import check


def raise_file(path: Path, size: tuple[int, ...] | None = None) -> tuple[Raised, dict[str, Any]]:
    """Raise a file without running it; what was read comes with it as facts.

    Raises:
        ArchirError: As :func:`import_onnx`, but for A537 and A538.
    """
    source = read(path)
    checked = check(source)
    raised = build(source, checked, size)
    facts: dict[str, Any] = {
        "source": path.name,
        "sha256": source.sha256,
        "opset": checked.opset,
        "ir_version": source.model.ir_version,
        "producer": f"{source.model.producer_name} {source.model.producer_version}".strip()[:80],
        "onnx": onnx.__version__,
        "nodes": {
            "in the file": len(checked.nodes) + checked.dead,
            "folded": raised.folded,
            "without use": checked.dead,
            "in the network": len(raised.graph),
        },
        "inputs": raised.inputs,
        "outputs": raised.outputs,
    }
    return raised, facts


def import_onnx(source: str, options: ImportOptions) -> Imported:
    """Import a network from an ONNX file; see :class:`archir.target.Importer`.

    The file is not trusted: it is looked over before it is parsed, other files are read from its
    own folder alone, and what is too large or too deep is refused. The network that comes of it
    is run beside the file, in torch and exported anew, and handed out only if they agree.

    Args:
        source: The path of the file.
        options: What the user said; ``size`` states open sizes of the first input.

    Raises:
        ArchirError: A601 (the file cannot be read), A530 to A534 (it is wrong, too large, or of
            an unknown version), A535, A536 (archir has no counterpart for what it does), A537
            (it cannot be run), A538 (what was raised computes something else).
    """
    from . import comparing  # noqa: PLC0415 - a file that is refused needs no runtime

    path = Path(source)
    options.report(f"reading {path.name}")
    raised, facts = raise_file(path, options.size)
    options.report("comparing with ONNX Runtime")
    compared = comparing.compare(path, raised)
    facts["compared"] = compared.facts()
    nodes = facts["nodes"]
    many, folded, left = (nodes[k] for k in ("in the file", "folded", "in the network"))
    size = f"{many} nodes, {folded} of them known beforehand; {left} in the network"
    notes = [f"opset {facts['opset']}, {size}", *comparing.notes(compared, raised.outputs)]
    renamed = {theirs: ours for ours, theirs in raised.inputs.items() if ours != theirs}
    if renamed:
        pairs = ", ".join(f"{theirs!a} is {ours}" for theirs, ours in list(renamed.items())[:4])
        notes.append(f"inputs were renamed: {pairs}")
    if raised.ties:
        notes.append(f"{raised.ties} tensors are shared by several layers, as in the file")
    return Imported(raised.graph, raised.weights, facts, tuple(notes))
