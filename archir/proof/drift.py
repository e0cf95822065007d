"""How far rounding moves the outputs: both networks with their real weights, in floating point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from archir.ir.graph import Graph, Value
from archir.ops.arithmetic import Array, Floating
from archir.ops.closeness import distance
from archir.ops.evaluate import run
from archir.ops.record import OpSet
from archir.proof.exact import shape_in_check
from archir.weights.store import numpy_dtype

Forward = Callable[..., list[Array]]
LIMIT = 1e-3
"""What no exact rewrite in float32 comes near; beyond it the weights are not fit to be compared."""


@dataclass(frozen=True)
class Drift:
    """max|a-b| / max|a| over all outputs, and how it was measured."""

    value: float
    engine: str
    dtype: str
    batch: int
    finite: bool

    @property
    def fine(self) -> bool:
        """Whether the outputs are finite and agree within ``LIMIT``."""
        return self.finite and self.value <= LIMIT


def random_feeds(graph: Graph, seed: int, batch: int) -> dict[str, Array]:
    """Standard normal inputs, float32, by name; 0 or 1 where whole numbers are wanted."""
    rng = np.random.Generator(np.random.PCG64([seed, 0xD21F7]))
    feeds: dict[str, Array] = {}
    for name in graph.inputs:
        type_ = graph.type_of(Value(name))
        shape = shape_in_check(type_, batch)
        dtype = numpy_dtype(type_.dtype)
        if dtype.kind in "iub":
            feeds[name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            feeds[name] = rng.standard_normal(shape, dtype=np.float32)
    return feeds


def measure(
    before: tuple[Graph, Mapping[str, Array]],
    after: tuple[Graph, Mapping[str, Array]],
    ops: OpSet,
    forward: Forward | None,
    *,
    seed: int = 0,
    batch: int = 1,
) -> Drift:
    """Run both networks in evaluation mode on the same random batch.

    Args:
        before: The parent and its weights.
        after: The child and its weights.
        ops: The operators.
        forward: A backend's ``forward``; the NumPy reference runs where it is None.
        seed: Of the batch.
        batch: How many samples.
    """
    feeds = random_feeds(before[0], seed, batch)
    sides = [outputs(graph, weights, ops, forward, feeds) for graph, weights in (before, after)]
    finite = all(bool(np.isfinite(a).all()) for side in sides for a in side)
    value = 0.0
    if finite:
        value = max((distance(a, b) for a, b in zip(*sides, strict=True)), default=0.0)
    engine = "numpy" if forward is None else "torch"
    return Drift(value, engine, "float32", batch, finite)


def outputs(
    graph: Graph,
    weights: Mapping[str, Array],
    ops: OpSet,
    forward: Forward | None,
    feeds: Mapping[str, Array],
    values: list[Value] | None = None,
) -> list[Array]:
    """Values of a network in evaluation mode (its outputs by default)."""
    wanted = values if values is not None else [o.value for o in graph.outputs]
    if forward is not None:
        return forward(graph, weights, feeds, values=wanted)
    fed: dict[Value, Any] = {Value(name): array for name, array in feeds.items()}
    with np.errstate(all="ignore"):  # the outputs are looked at afterwards
        found = run(graph, ops, Floating(np.float32), fed, weights, wanted=wanted)
    return [found.values[v] for v in wanted]
