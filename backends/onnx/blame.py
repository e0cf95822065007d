"""What is to blame where a file and its network differ, as errors that name the layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from archir.diag import CHECK_FAILED, ArchirError, Diagnostic
from archir.ir.graph import Graph, Value
from archir.ops.arithmetic import Array
from archir.ops.closeness import distance
from archir.target import backends

from . import layers, runtime
from .feeds import Symbols
from .precision import FULL, LARGEST, SMALLEST, Precision

MOST = 8
"""So many layers are named in a hint."""
GIVEN = ("input", "parameter", "constant")


@dataclass(frozen=True)
class Subject:
    """What a file was made of: a network, perhaps after clean-ups, perhaps in float16."""

    graph: Graph
    weights: Mapping[str, Array]
    precision: Precision = FULL
    half_io: bool = False


@dataclass(frozen=True)
class Case:
    """One run of a file and of the network that it stands for."""

    path: Path
    subject: Subject
    graph: Graph
    """The network whose outputs are right."""
    weights: Mapping[str, Array]
    batch: int
    symbols: Symbols
    feeds: Mapping[str, Array]
    right: Sequence[Array]
    """The network's outputs."""

    @property
    def given(self) -> dict[str, Array]:
        """The inputs as the file takes them."""
        half = self.subject.half_io
        return {
            name: array.astype(np.float16) if half and array.dtype == np.float32 else array
            for name, array in self.feeds.items()
        }


def differs(case: Case, output: str, far: float, limit: float, *, finite: bool) -> ArchirError:
    """The error of a file that computes something else, with the first layer that does."""
    message = (
        f"output `{output}` at batch {case.batch} differs from the network's: max|a-b| / max|a| "
        f"is {_amount(far, finite=finite)}, the bound is {limit:.0e}; nothing was written"
    )
    try:
        found = _first(case, limit)
        why, hint = (_text(case, found), _hint(case, found)) if found else _otherwise(case, limit)
    except ArchirError as failure:  # the file runs, but not with more outputs
        found, hint = None, ""
        why = f"its layers cannot be looked at one by one: {failure.diagnostics[0].message}"
    node = found.node if found else output
    made = Diagnostic("A506", f"{message}; {why}", hint=hint, node=node)
    return ArchirError(made, status=CHECK_FAILED)


def flat(case: Case) -> list[str]:
    """The outputs that are one number throughout, as those of a layer that starts at zero are.

    They agree with whatever comes before them.
    """
    pairs = zip(case.graph.outputs, case.right, strict=True)
    return [o.name for o, a in pairs if a.dtype.kind == "f" and a.size > 1 and not np.ptp(a)]


def check_layers(case: Case, output: str, limit: float) -> None:
    """Compare the layers of a file whose outputs show nothing.

    Raises:
        ArchirError: A506, with the first layer that differs.
    """
    found = _first(case, limit)
    if found is not None:
        message = (
            f"output `{output}` is one number throughout and shows nothing, and inside the file "
            f"differs from the network by more than {limit:.0e}; nothing was written; "
            f"{_text(case, found)}"
        )
        made = Diagnostic("A506", message, hint=_hint(case, found), node=found.node)
        raise ArchirError(made, status=CHECK_FAILED)


def imprecise(case: Case, output: str, far: float, limit: float, *, finite: bool) -> ArchirError:
    """The error of a network that float16 is too coarse for, with the first layer of which."""
    message = (
        f"in float16 output `{output}` differs from the network's: max|a-b| / max|a| is "
        f"{_amount(far, finite=finite)} where every value is rounded to float16, the bound is "
        f"{limit:.0e}; nothing was written"
    )
    own = case.subject
    found = layers.first_difference(
        own.graph, case.symbols, _reference(case), _rounded(case), _inner(own.graph), limit
    )
    why = f"; {_text(case, found)}" if found else ""
    hint = _hint(case, found) if found else "--precision fp32"
    node = found.node if found else output
    made = Diagnostic("A550", message + why, hint=hint, node=node)
    return ArchirError(made, status=CHECK_FAILED)


def _outside(case: Case) -> list[str]:
    """The float16 nodes whose values float16 cannot hold or holds coarsely, and their readers."""
    own = case.subject
    found: set[str] = set()
    for group in layers.groups(own.graph, _inner(own.graph), case.symbols):
        for value, array in zip(group, _reference(case)(group), strict=True):
            most = float(np.abs(array).max(initial=0)) if array.dtype.kind == "f" else 1.0
            if most and not SMALLEST <= most <= LARGEST:
                found |= {value.node, *(r.name for r, _, _ in own.graph.readers(value.node))}
    return [node.name for node in own.graph if node.name in found & own.precision.half]


def _kept(nodes: Sequence[str]) -> str:
    """What to say on the command line so that some layers stay in float32; blocks where many."""
    parts = [node.split(".") for node in nodes]
    names, depth = list(nodes), max(map(len, parts))
    while len(names) > MOST and depth > 1:
        depth -= 1
        names = list(dict.fromkeys(".".join(part[:depth]) for part in parts))
    shown = " ".join(f"--keep {name}" for name in names)
    return f"{shown} leaves {'that layer' if len(nodes) == 1 else 'these layers'} in float32"


def not_finite(case: Case) -> ArchirError:
    """The error of a network whose own outputs are not finite, with what makes them so."""
    pairs = zip(case.graph.outputs, case.right, strict=True)
    output = next(o.name for o, array in pairs if not np.isfinite(array).all())
    message = (
        f"the network's own output `{output}` is not finite at batch {case.batch}, so that there "
        "is nothing to compare a file with; nothing was written"
    )
    node = output
    for path in case.graph.parameters:
        array = case.weights[path]
        wrong = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0
        if wrong:
            message += f"; `{path}` holds NaN in {wrong} of {array.size} entries"
            node = path
            break
    else:
        node = _first_not_finite(case) or output
        if node != output:
            message += f"; the first layer that is not is {node} ({case.graph.node(node).op})"
    return ArchirError(Diagnostic("A547", message, node=node), status=CHECK_FAILED)


def _first_not_finite(case: Case) -> str | None:
    """The first layer of the network whose value is not finite."""
    for values in layers.groups(case.graph, _inner(case.graph), case.symbols):
        _, run = layers.reference_of(case.graph, case.weights, values)
        for value, array in zip(values, run(case.feeds), strict=True):
            if not np.isfinite(array).all():
                return value.node
    return None


def rounded_outputs(case: Case) -> list[Array]:
    """The outputs of a network whose float16 nodes hand on what float16 holds.

    ONNX Runtime's CPU computes most operators in float32, whatever the file says, and drops casts
    that follow each other: run there, a file shows neither rounding nor overflow between layers.
    """
    return _rounded(case)([output.value for output in case.subject.graph.outputs])


def _amount(far: float, *, finite: bool) -> str:
    if math.isfinite(far):
        return f"{far:.1e}"
    return "beyond measure (its shape is another)" if finite else "beyond measure (not finite)"


def _text(case: Case, found: layers.Difference) -> str:
    if not (case.subject.precision.half and found.finite and found.largest < SMALLEST):
        return found.text()
    return (
        f"{found.text()}; its largest magnitude is {found.largest:.1e}, and below {SMALLEST:.1e} "
        "float16 holds fewer and fewer digits"
    )


def _hint(case: Case, found: layers.Difference) -> str:
    if not case.subject.precision.half:
        return "`archir explain A506` says what may be to blame"
    coarse = not found.finite or found.largest < SMALLEST
    return _kept((_outside(case) if coarse else None) or [found.node])


def _inner(graph: Graph) -> list[Value]:
    """The values that layers compute, in the network's order."""
    nodes = [node for node in graph if node.op not in GIVEN]
    return [Value(node.name, port) for node in nodes for port in range(len(node.types))]


def _reference(case: Case) -> layers.Values:
    """The values of the network that was written."""
    own = case.subject

    def run(values: Sequence[Value]) -> list[Array]:
        return layers.reference_of(own.graph, own.weights, values)[1](case.feeds)

    return run


def _rounded(case: Case) -> layers.Values:
    """The same with every value rounded to float16 that the file computes in it."""
    own = case.subject
    torch: Any = backends()["torch"]
    half = own.precision.half
    read = {path for name in half for path in own.graph.node(name).params.values()}
    with np.errstate(over="ignore"):
        weights = {
            path: array.astype(np.float16).astype(array.dtype)
            if path in read and array.dtype == np.float32
            else array
            for path, array in own.weights.items()
        }

    def run(values: Sequence[Value]) -> list[Array]:
        made = torch.runner(own.graph, weights, values=values, rounded=half)
        found: list[Array] = made(case.feeds)
        return found

    return run


def _first(case: Case, limit: float) -> layers.Difference | None:
    """The first layer of the file whose value is not that of the network that was written."""
    names = layers.values_in(case.path, case.subject.graph)
    among = [value for value in _inner(case.subject.graph) if value in names]
    ours = layers.values_of_file(case.path, names, case.given)
    theirs = _reference(case)
    return layers.first_difference(case.subject.graph, case.symbols, theirs, ours, among, limit)


def _otherwise(case: Case, limit: float) -> tuple[str, str]:
    """Why outputs differ though each layer agrees, and what to do about it."""
    outputs = [output.value for output in case.subject.graph.outputs]
    written = _reference(case)(outputs)
    moved = max(map(distance, case.right, written), default=0.0)
    if not moved <= limit:
        said = f"the clean-ups move the outputs by {moved:.1e}, the file is right apart from that"
        return said, "--as-is writes the network without clean-ups"
    plain = runtime.run(runtime.unoptimised(case.path), case.given)
    if max(map(distance, case.right, plain), default=0.0) <= limit:
        said = "with ONNX Runtime's graph optimisations off the file agrees: they are to blame"
        return said, "a newer ONNX Runtime, or another --opset"
    return "every layer agrees by itself, as far as it can be looked at", ""
