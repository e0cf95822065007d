"""The export gate: a file is checked, run and compared before it is put in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from archir.diag import CHECK_FAILED, ArchirError, Diagnostic, error
from archir.ir.dims import Dim, Size, substitute
from archir.ir.graph import Graph, Value
from archir.ops import STANDARD
from archir.ops.arithmetic import Array, Floating
from archir.ops.closeness import distance
from archir.ops.evaluate import run as run_reference
from archir.target import backends
from archir.weights.store import numpy_dtype

from . import runtime

BATCHES = (1, 2, 7)
BOUNDS = {"f32": 1e-4, "f64": 1e-4, "f16": 1e-2, "bf16": 5e-2, "i64": 0.0, "i32": 0.0, "bool": 0.0}
"""By element type of an output: the largest max|a-b| / max|a| that passes."""

_OTHER = 6


def check(path: Path) -> tuple[int, int]:
    """Run the ONNX checker with strict shape inference; returns opset and IR version as found.

    Raises:
        ArchirError: A507, the checker refuses the file.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
    except Exception as reason:
        # The checker and shape inference raise classes of their own without a common base.
        text = " ".join(str(reason).split())[:300]
        raise error("A507", f"the ONNX checker refuses the model: {text}") from reason
    return next(o.version for o in model.opset_import if not o.domain), model.ir_version


def compare(
    path: Path,
    graph: Graph,
    weights: Mapping[str, Array],
    *,
    device: runtime.Device = "cpu",
    bound: float | None = None,
    seed: int = 0,
) -> tuple[str, str, list[int], dict[str, float]]:
    """Run the file and the network on random inputs of several batch sizes.

    Returns:
        Execution provider, reference, batch sizes, and for each output the largest
        max|a-b| / max|a| over them, where ``a`` is the reference.

    Raises:
        ArchirError: A506 (they differ), A507 (ONNX Runtime cannot run the file).
    """
    made = runtime.session(path, device)
    stream = np.random.Generator(np.random.PCG64(seed))
    drift: dict[str, float] = {output.name: 0.0 for output in graph.outputs}
    reference, expected = reference_of(graph, weights)
    batches = sizes_of(graph)
    for batch, symbols in batches.items():
        feeds = {name: _feed(graph, name, symbols, stream) for name in graph.inputs}
        pairs = zip(expected(feeds), runtime.run(made, feeds), strict=True)
        for output, (a, b) in zip(graph.outputs, pairs, strict=True):
            limit = BOUNDS[graph.type_of(output.value).dtype] if bound is None else bound
            found = distance(a, b)
            if not found <= limit:
                raise _differs(output.name, batch, found, limit)
            drift[output.name] = max(drift[output.name], found)
    return runtime.provider_of(made), reference, list(batches), drift


def _differs(name: str, batch: int, found: float, limit: float) -> ArchirError:
    amount = f"{found:.1e}" if math.isfinite(found) else "beyond measure (not finite, or a shape)"
    message = (
        f"output `{name}` at batch {batch} differs from the network's: max|a-b| / max|a| is "
        f"{amount}, the bound is {limit:.0e}; nothing was written"
    )
    return ArchirError(Diagnostic("A506", message, node=name), status=CHECK_FAILED)


def reference_of(
    graph: Graph, weights: Mapping[str, Array]
) -> tuple[str, Callable[[Mapping[str, Array]], list[Array]]]:
    """What computes the outputs: torch where it is installed and can run it, else NumPy."""
    try:
        torch: Any = backends()["torch"]
        return "torch", torch.runner(graph, weights)
    except ArchirError as reason:
        if reason.diagnostics[0].code not in ("A501", "A502", "A503"):
            raise

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        fed = {Value(name): array for name, array in feeds.items()}
        found = run_reference(graph, STANDARD, Floating(np.float32), fed, weights)
        return [found.values[output.value] for output in graph.outputs]

    return "numpy", run


def sizes_of(graph: Graph) -> dict[int, dict[str, int]]:
    """For each batch size, a value for every symbol that makes all sizes whole.

    The batch is the first axis of the first input; if that is a number, there is one run.
    """
    shapes = [type_.shape for node in graph for type_ in node.types]
    dims = [size for shape in shapes for size in shape if isinstance(size, Dim)]
    names = list(dict.fromkeys(name for dim in dims for name, _ in dim.symbols))
    whole = math.lcm(*(dim.coefficient.denominator for dim in dims))
    first: Size = graph.node(graph.inputs[0]).types[0].shape[0] if _has_axes(graph) else 1
    others = dict.fromkeys(names, _OTHER * whole)
    if isinstance(first, int):
        return {first: others}
    leading = first.symbols[0][0]
    return {
        int(str(substitute(first, {**others, leading: size * whole}))): {
            **others,
            leading: size * whole,
        }
        for size in BATCHES
    }


def _has_axes(graph: Graph) -> bool:
    return bool(graph.inputs) and bool(graph.node(graph.inputs[0]).types[0].shape)


def _feed(
    graph: Graph, name: str, symbols: Mapping[str, int], stream: np.random.Generator
) -> Array:
    type_ = graph.node(name).types[0]
    shape = [int(str(substitute(size, symbols))) for size in type_.shape]
    if type_.dtype in ("i64", "i32", "bool"):
        return stream.integers(0, 2, shape).astype(numpy_dtype(type_.dtype))
    return stream.standard_normal(shape).astype(numpy_dtype(type_.dtype))
