"""The verdict of an import: the file and what was made of it, run side by side.

ONNX Runtime runs the file; torch runs the network; archir's own exporter writes the network, and
ONNX Runtime runs that too. All are given the same random inputs, at batches 1 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from archir.backends.onnx.model import skeleton
from archir.backends.onnx.runtime import run, session
from archir.backends.onnx.wire import chunks
from onnx import ValueInfoProto

from archir.diag import CHECK_FAILED, ArchirError, error
from archir.ir.dims import Dim, substitute
from archir.ir.graph import Graph, Value
from archir.ir.types import TensorType
from archir.ops import STANDARD
from archir.ops.arithmetic import Array
from archir.ops.closeness import distance
from archir.ops.cost import cost
from archir.target import backends
from archir.weights.store import numpy_dtype

from .building import Raised
from .reading import malformed

BATCHES = (1, 3)
BOUNDS = {"f32": 1e-4, "f64": 1e-4, "f16": 1e-2, "bf16": 5e-2, "i64": 0.0, "i32": 0.0, "bool": 0.0}
"""By element type of an output: the largest max|a-b| / max|a| that passes."""
_OTHER = 6
"""What further symbols stand for."""
_LARGEST = 2**28
"""Elements of one value at most."""
_MOST_LOOKED_AT = 2**27
"""Elements of all values together that are compared to find the first that differs."""
_MOST_MACS = 4 * 10**12


@dataclass(frozen=True)
class Compared:
    """What was compared, and how far it was apart."""

    batches: list[int]
    torch: dict[str, float]
    """For each output: max|a-b| / max|a| between the file and torch; empty without torch."""
    again: dict[str, float]
    """The same between the file and the network exported anew; empty where that cannot be."""
    why: str = ""
    """Why the network was not exported anew."""
    fixed: bool = False
    """Whether the outputs were the same for different inputs: then they say little."""

    def facts(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        found: dict[str, Any] = {"with": "ONNX Runtime", "measure": "max|a-b| / max|a|"}
        found["batches"] = self.batches
        if self.torch:
            found["torch"] = self.torch
        found["exported again"] = self.again if self.again else self.why
        if self.fixed:
            found["outputs depend on the inputs"] = False
        found["bounds"] = dict(BOUNDS)
        found["onnxruntime"] = onnxruntime.__version__
        return found

    @property
    def worst(self) -> float:
        """The largest distance."""
        return max([*self.torch.values(), *self.again.values()], default=0.0)


def compare(path: Path, raised: Raised, *, seed: int = 0) -> Compared:
    """Run a file and the network that was raised from it on the same inputs.

    Raises:
        ArchirError: A538 (they differ), A537 (the file or the network cannot be run), A533
            (running them would take too much).
    """
    graph = raised.graph
    _affordable(graph)
    try:
        original = session(path)
    except ArchirError as reason:
        raise _cannot(reason) from None
    again, why = _again(raised)
    ways = {"torch": _torch(raised), "again": again}
    if not any(ways.values()):
        raise error("A537", f"the network cannot be compared with the file: {why}")
    stream = np.random.Generator(np.random.PCG64(seed))
    drift: dict[str, dict[str, float]] = {"torch": {}, "again": {}}
    batches, seen = sizes_of(graph), []
    # A batch that is stated is run twice, with different inputs.
    for batch, symbols in [*batches.items(), *batches.items()][: max(2, len(batches))]:
        feeds = {name: _feed(raised, name, symbols, stream) for name in graph.inputs}
        try:
            expected = run(original, {raised.inputs[n]: array for n, array in feeds.items()})
        except ArchirError as reason:
            raise _cannot(reason) from None
        seen.append([array[:1] if array.ndim else array for array in expected])
        for way, runner in ways.items():
            if runner is None:
                continue
            pairs = zip(graph.outputs, expected, runner(feeds), strict=True)
            for output, theirs, found in pairs:
                limit = BOUNDS[graph.type_of(output.value).dtype]
                far = _distance(theirs, found)
                if not far <= limit:
                    first = _first(path, raised, feeds) if way == "torch" else ""
                    raise _differs(output.name, batch, far, limit, way, first)
                drift[way][output.name] = max(drift[way].get(output.name, 0.0), far)
    fixed = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*seen[:2], strict=True))
    return Compared(list(batches), drift["torch"], drift["again"], why, fixed)


def _distance(a: Array, b: Array) -> float:
    """How far apart two outputs are; where the file's are not finite, both must be so alike."""
    odd = ~np.isfinite(np.asarray(a, np.float64))
    if odd.any() and a.shape == b.shape:
        if not np.array_equal(np.where(odd, a, 0), np.where(odd, b, 0), equal_nan=True):
            return math.inf
        a, b = np.where(odd, 0, a), np.where(odd, 0, b)
    return distance(a, b)


def _cannot(reason: ArchirError) -> ArchirError:
    text = reason.diagnostics[0].message
    message = f"the file cannot be run, so nothing can be compared: {text}"
    return error("A537", message)


def _first(path: Path, raised: Raised, feeds: Mapping[str, Array]) -> str:
    """The first node of the network whose value is not the file's; empty where that is dear."""
    graph, made = raised.graph, {v: n for n, v in reversed(raised.inner.items())}
    order = [Value(node.name, port) for node in graph for port in range(len(node.types))]
    values = [v for v in order if v in made and graph.node(v.node).op not in ("input", "parameter")]
    if sum(_count(graph.type_of(v), 3) for v in values) > _MOST_LOOKED_AT:
        return ""
    try:
        model = onnx.load(str(path))
        kept = {output.name for output in model.graph.output}
        names = [made[v] for v in values]
        model.graph.output.extend(ValueInfoProto(name=n) for n in names if n not in kept)
        given = {raised.inputs[name]: array for name, array in feeds.items()}
        theirs = session(model.SerializeToString()).run(names, given)
        torch: Any = backends()["torch"]
        ours = torch.runner(graph, raised.weights, values=values)(feeds)
    except Exception:  # noqa: BLE001,RUF100 - a search on the way to an error must not hide it
        return ""
    for value, a, b in zip(values, theirs, ours, strict=True):
        if not _distance(a, b) <= BOUNDS[graph.type_of(value).dtype]:
            return str(value.node)
    return ""


def _differs(
    name: str, batch: int, far: float, limit: float, way: str, first: str = ""
) -> ArchirError:
    amount = f"{far:.1e}" if math.isfinite(far) else "beyond measure (not finite, or a shape)"
    what = "the network in torch" if way == "torch" else "the network exported anew"
    message = (
        f"output `{name}` of {what} differs from the file's at batch {batch}: max|a-b| / max|a| "
        f"is {amount}, the bound is {limit:.0e}; nothing was imported"
    )
    if first:
        message += f"; the first layer that differs is `{first}`"
    hint = "please report it with the file"
    return error("A538", message, hint=hint, node=name, status=CHECK_FAILED)


def _torch(raised: Raised) -> Callable[[Mapping[str, Array]], list[Array]] | None:
    """The network in torch, where torch is installed."""
    try:
        torch: Any = backends()["torch"]
    except ArchirError:
        return None
    try:
        made: Callable[[Mapping[str, Array]], list[Array]] = torch.runner(
            raised.graph, raised.weights
        )
    except ArchirError as reason:
        text = reason.diagnostics[0].message
        raise error("A537", f"the network cannot be run in torch: {text}") from None

    def run_(feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return made(feeds)
        except (RuntimeError, IndexError, TypeError, ValueError) as reason:
            # torch has no kernel for some element types, and says so with these.
            text = " ".join(str(reason).split())[:200]
            raise error("A537", f"torch cannot run the network: {text}") from None

    return run_


def _again(
    raised: Raised,
) -> tuple[Callable[[Mapping[str, Array]], list[Array]] | None, str]:
    """The network as archir exports it; why it does not, where it does not."""
    try:
        made = session(b"".join(chunks(skeleton(raised.graph, raised.weights))))
    except ArchirError as reason:
        return None, reason.diagnostics[0].message
    return (lambda feeds: run(made, feeds)), ""


def _affordable(graph: Graph) -> None:
    """Refuse to run what would take all memory, or hours."""
    worst = max((_count(t, 3) for node in graph for t in node.types), default=0)
    if worst > _LARGEST:
        message = f"a value of the network has {worst:,} elements for a batch of 3"
        raise malformed(f"{message}, too many to compare it", code="A533")
    macs = cost(graph, STANDARD).macs
    if macs > _MOST_MACS:
        message = f"the network takes {macs:.1e} multiplications, too many to compare it"
        raise malformed(message, code="A533")


def _count(type_: TensorType, batch: int) -> int:
    count = 1
    for size in type_.shape:
        if isinstance(size, Dim):
            whole = size.coefficient
            count = int(count * whole * math.prod(batch for _, power in size.symbols if power > 0))
        else:
            count *= size
    return count


def sizes_of(graph: Graph) -> dict[int, dict[str, int]]:
    """For each batch size, a value for every symbol that makes all sizes whole."""
    dims = [s for node in graph for t in node.types for s in t.shape if isinstance(s, Dim)]
    names = list(dict.fromkeys(name for dim in dims for name, _ in dim.symbols))
    whole = math.lcm(*(dim.coefficient.denominator for dim in dims))
    shapes = [graph.node(name).types[0].shape for name in graph.inputs]
    firsts = [shape[0] for shape in shapes if shape]
    leading = next((f.symbols[0][0] for f in firsts if isinstance(f, Dim)), None)
    others = dict.fromkeys(names, _OTHER * whole)
    if leading is None:
        first = firsts[0] if firsts and isinstance(firsts[0], int) else 1
        return {first: others}
    return {size * whole: {**others, leading: size * whole} for size in BATCHES}


def _feed(
    raised: Raised, name: str, symbols: Mapping[str, int], stream: np.random.Generator
) -> Array:
    type_ = raised.graph.node(name).types[0]
    shape = [int(str(substitute(size, symbols))) for size in type_.shape]
    if type_.dtype in ("i64", "i32", "bool"):
        return stream.integers(0, 2, shape).astype(numpy_dtype(type_.dtype))
    return np.asarray(stream.standard_normal(shape), numpy_dtype(type_.dtype))


def notes(compared: Compared, outputs: Sequence[str]) -> list[str]:
    """The comparison as lines for the user."""
    batches = " and ".join(map(str, compared.batches))
    many = f"{len(outputs)} outputs" if len(outputs) > 1 else "the output"
    with_ = "torch" if compared.torch else "ONNX Runtime, exported anew,"
    far = f"max|a-b|/max|a| = {compared.worst:.1e}"
    lines = [f"{with_} agrees with the file in {many} at batch {batches}: {far}"]
    if compared.fixed:
        lines.append("the outputs do not depend on the inputs, so that says little")
    return lines
