"""The export gate: a file is checked, run and compared before it is put in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from archir.diag import error
from archir.ir.graph import Graph
from archir.ops.arithmetic import Array
from archir.ops.closeness import distance

from . import layers, runtime
from .blame import (
    Case,
    Subject,
    check_layers,
    differs,
    flat,
    imprecise,
    not_finite,
    rounded_outputs,
)
from .feeds import feeds_of, sizes_of

BOUNDS = {"f32": 1e-4, "f64": 1e-4, "f16": 1e-2, "bf16": 5e-2, "i64": 0.0, "i32": 0.0, "bool": 0.0}
"""By element type of an output: the largest max|a-b| / max|a| that passes."""
HALF_BOUND = 2e-2
"""The same for the float32 outputs of a network whose file computes in float16."""


class Comparison(NamedTuple):
    """What came of running a file beside its network."""

    provider: str
    """The execution provider that ran it."""
    reference: str
    """What it was compared with: ``torch`` or ``numpy``."""
    batches: list[int]
    drift: dict[str, float]
    """For each output the largest max|a-b| / max|a| over the batches."""
    bounds: dict[str, float]
    """For each output, what would still have passed."""
    left_out: dict[int, int]
    """Batch sizes that were too large to run, with the bytes of values that they need."""
    placement: runtime.Placement
    rounded: dict[str, float] | None = None
    """For a file in float16, the drift where each value is rounded to it; at the first batch."""
    flat: tuple[str, ...] = ()
    """Outputs that are one number throughout: for them the layers were compared one by one."""


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
    device: str = "cpu",
    bound: float | None = None,
    seed: int = 0,
    subject: Subject | None = None,
    strict: bool = False,
    batches: Sequence[int] | None = None,
) -> Comparison:
    """Run the file and the network on random inputs of several batch sizes.

    Args:
        path: The file.
        graph: The network whose outputs are right.
        weights: An array for each of its parameters.
        device: The execution provider of ONNX Runtime, as it is given to ``--provider``.
        bound: The largest max|a-b| / max|a| that passes; by default that of :data:`BOUNDS`.
        seed: Of the inputs.
        subject: What the file was made of, where that is not the network as it is.
        strict: Whether the file fails where a node runs on another provider.
        batches: The batch sizes; by default 1, 2 and 7 as far as memory allows.

    Raises:
        ArchirError: A506 (they differ; the first layer that does is named), A507 (ONNX Runtime
            cannot run the file), A545, A546 (provider), A547 (the network's own outputs are not
            finite), A548 (batches), A550 (float16 is too coarse for the network).
    """
    made_of = subject or Subject(graph, weights)
    sizes = sizes_of(graph, batches)
    stream = np.random.Generator(np.random.PCG64(seed))
    reference, expected = layers.reference_of(graph, weights)
    limits = {o.name: _limit(graph, o.name, made_of, bound) for o in graph.outputs}
    drift = dict.fromkeys(limits, 0.0)
    rounded: dict[str, float] | None = None
    constant: list[str] | None = None
    with runtime.running(path, device) as runner:
        for batch, symbols in sizes.symbols.items():
            feeds = feeds_of(graph, symbols, stream)
            case = Case(path, made_of, graph, weights, batch, symbols, feeds, expected(feeds))
            if not all(np.isfinite(array).all() for array in case.right):
                raise not_finite(case)
            found = runner.run(case.given)
            if strict and runner.placement.fell_back:
                raise error(
                    "A546",
                    f"{runner.placement.text()}; nothing was written",
                    hint="without --strict-provider the file is written, and this is reported",
                )
            for name, far in _checked(case, found, limits).items():
                drift[name] = max(drift[name], far)
            if constant is None:
                constant = flat(case)
                for name in constant[:1]:
                    check_layers(case, name, limits[name])
            if made_of.precision.half and reference == "torch" and rounded is None:
                rounded = _checked(case, rounded_outputs(case), limits, rounded=True)
        where = runner.placement
    shown = list(sizes.symbols)
    return Comparison(
        where.providers[0],
        reference,
        shown,
        drift,
        limits,
        dict(sizes.left_out),
        where,
        rounded,
        tuple(constant or ()),
    )


def _limit(graph: Graph, name: str, made_of: Subject, bound: float | None) -> float:
    if bound is not None:
        return bound
    (value,) = [output.value for output in graph.outputs if output.name == name]
    dtype = graph.type_of(value).dtype
    half = made_of.precision.half and dtype in ("f32", "f64")
    return HALF_BOUND if half else BOUNDS[dtype]


def _checked(
    case: Case, found: Sequence[Array], limits: Mapping[str, float], *, rounded: bool = False
) -> dict[str, float]:
    """How far each output is from the right one, once it is sure that none is too far."""
    names = [output.name for output in case.graph.outputs]
    far = {n: distance(a, b) for n, a, b in zip(names, case.right, found, strict=True)}
    for name, b in zip(names, found, strict=True):
        if not far[name] <= limits[name]:
            finite = bool(np.isfinite(b).all())
            blamed = imprecise if rounded else differs
            raise blamed(case, name, far[name], limits[name], finite=finite)
    return far
