"""Why a file computes something else than its network: both run side by side, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from archir.diag import ArchirError
from archir.ir.graph import Graph, Value
from archir.ops import STANDARD
from archir.ops.arithmetic import Array, Floating
from archir.ops.closeness import distance
from archir.ops.evaluate import run as run_numpy
from archir.target import backends

from . import runtime
from .feeds import Symbols, shape_of, size_of

GROUP = 1 << 30
"""Bytes of values that are looked at in one run."""

Run = Callable[[Mapping[str, Array]], list[Array]]
Values = Callable[[Sequence[Value]], list[Array]]
"""Gives the values of a network, or of what stands for it, on fixed inputs."""


@dataclass(frozen=True)
class Difference:
    """The first layer whose value is not what it is in the network."""

    node: str
    op: str
    operands: tuple[tuple[int, ...], ...]
    """The shapes of its operands, and of its result."""
    result: tuple[int, ...]
    before: float
    """The largest max|a-b| / max|a| among its operands."""
    at: float
    finite: bool
    """Whether its value is finite; in the network it is."""
    largest: float
    """The largest magnitude in the network's value."""

    def text(self) -> str:
        """The layer, and how far it is off, in words."""
        shapes = ", ".join(str(list(shape)) for shape in self.operands)
        where = f"{self.node} ({self.op}, {shapes} -> {list(self.result)})"
        if not self.finite:
            return (
                f"the first layer that is not finite is {where}; in the network its largest "
                f"magnitude is {self.largest:.5g}"
            )
        return (
            f"the first layer that differs is {where}: {_amount(self.at)} there, "
            f"{_amount(self.before)} before it"
        )


def _amount(found: float) -> str:
    return f"{found:.1e}" if np.isfinite(found) else "beyond measure"


def first_difference(
    graph: Graph,
    symbols: Symbols,
    theirs: Values,
    ours: Values,
    among: Sequence[Value],
    limit: float,
) -> Difference | None:
    """Walk through the layers in their order, up to the first that differs by more than a bound.

    Args:
        graph: The network.
        symbols: Its symbolic sizes in this run.
        theirs: The right values.
        ours: What is compared with them.
        among: The values that both can give, in the network's order.
        limit: The largest max|a-b| / max|a| that passes; whole numbers must be equal.
    """
    known: dict[Value, float] = {}
    shapes: dict[Value, tuple[int, ...]] = {}
    for values in groups(graph, among, symbols):
        for value, a, b in zip(values, theirs(values), ours(values), strict=True):
            node = graph.node(value.node)
            known[value], shapes[value] = distance(a, b), a.shape
            most = limit if a.dtype.kind == "f" else 0.0
            if known[value] <= most or not np.isfinite(a).all():
                continue
            return Difference(
                node.name,
                node.op,
                tuple(shapes.get(v) or shape_of(graph.type_of(v), symbols) for v in node.inputs),
                b.shape,
                max((known.get(v, 0.0) for v in node.inputs), default=0.0),
                known[value],
                bool(np.isfinite(b).all()),
                float(np.abs(np.asarray(a, np.float64)).max(initial=0)),
            )
    return None


def groups(graph: Graph, values: Sequence[Value], symbols: Symbols) -> Iterator[list[Value]]:
    """Cut a list of values into parts that fit into memory."""
    group: list[Value] = []
    held = 0
    for value in values:
        size = size_of(graph.type_of(value), symbols)
        if group and held + size > GROUP:
            yield group
            group, held = [], 0
        group.append(value)
        held += size
    if group:
        yield group


# --- what gives values --------------------------------------------------------------------------


def reference_of(
    graph: Graph, weights: Mapping[str, Array], values: Sequence[Value] | None = None
) -> tuple[str, Run]:
    """What computes values (by default the outputs): torch where it can, else NumPy."""
    wanted = [output.value for output in graph.outputs] if values is None else list(values)
    try:
        torch: Any = backends()["torch"]
        return "torch", torch.runner(graph, weights, values=wanted)
    except ArchirError as reason:
        if reason.diagnostics[0].code not in ("A501", "A502", "A503"):
            raise

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        fed = {Value(name): array for name, array in feeds.items()}
        with np.errstate(all="ignore"):  # what is not finite is looked at afterwards
            found = run_numpy(graph, STANDARD, Floating(np.float32), fed, weights, wanted=wanted)
        return [found.values[value] for value in wanted]

    return "numpy", run


def values_in(path: Path, graph: Graph) -> dict[Value, str]:
    """The names that a file gives to the values of its network: a node bears its path."""
    model = onnx.load(os.fspath(path), load_external_data=False)
    made = {node.name: node.output for node in model.graph.node}
    return {
        Value(node.name, port): name
        for node in graph
        if node.name in made
        for port, name in enumerate(made[node.name][: len(node.types)])
    }


def values_of_file(path: Path, names: Mapping[Value, str], feeds: Mapping[str, Array]) -> Values:
    """The values of a file: it is run with them as outputs beside its own."""
    model = onnx.load(os.fspath(path), load_external_data=False)
    own = list(model.graph.output)

    def run(values: Sequence[Value]) -> list[Array]:
        del model.graph.output[:]
        wanted = list(dict.fromkeys(names[value] for value in values))
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
        made = runtime.in_memory(model.SerializeToString(), path.parent)
        del model.graph.output[:]
        model.graph.output.extend(own)
        found = dict(zip(wanted, runtime.run(made, feeds), strict=True))
        return [found[names[value]] for value in values]

    return run
