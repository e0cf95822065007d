"""Cost: parameters, multiply-accumulates and activation memory, derived from the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from archir.ir.dims import Size, product, substitute, symbols_of
from archir.ir.graph import Graph, Node
from archir.ir.types import TensorType
from archir.ops.infer import Instance, instance_of
from archir.ops.record import OpSet

BYTES = {"f32": 4, "f16": 2, "bf16": 2, "f64": 8, "i64": 8, "i32": 4, "bool": 1}


@dataclass(frozen=True, slots=True)
class LayerCost:
    """The cost of one node, for a batch of one (every symbolic size counts as 1)."""

    node: str
    op: str
    params: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a network for a batch of one.

    ``params`` counts trained numbers once however often they are read, ``buffers`` the
    statistics; ``macs`` are multiply-accumulates (half of what is called FLOPs).
    """

    params: int
    buffers: int
    macs: int
    activation_bytes: int
    layers: tuple[LayerCost, ...]


def concrete(size: Size, batch: int = 1) -> int:
    """A size with every symbol replaced by ``batch``."""
    found = substitute(size, dict.fromkeys(symbols_of([size]), batch))
    assert isinstance(found, int)
    return found


@lru_cache(maxsize=16384)
def elements(type_: TensorType) -> int:
    """How many numbers a tensor holds, every symbolic size counted as 1."""
    return concrete(product(type_.shape))


@lru_cache(maxsize=16384)
def macs(use: Instance) -> int:
    """Multiply-accumulates of a use: the product of all its axes where one is contracted."""
    if use.products is not None:
        return sum(concrete(product(use.sizes[n] for n in term.split())) for term in use.products)
    results = {n for axes in use.axes.results for axis in axes for n in axis.names()}
    inside = {n for axes in use.axes.operands for axis in axes for n in axis.names()}
    weights = {n for axes in use.axes.params.values() for axis in axes for n in axis.names()}
    if not (inside & weights) - results:
        return 0
    return concrete(product(use.sizes[name] for name in results | weights))


def cost(graph: Graph, ops: OpSet, nodes: Iterable[Node] | None = None) -> Cost:
    """The cost of a network and of each of its layers, or of some of its nodes alone."""
    layers = []
    counted: set[str] = set()
    for node in graph if nodes is None else nodes:
        own = 0
        for path in node.params.values():
            parameter = graph.parameters[path]
            if path not in counted and not parameter.buffer:
                own += elements(parameter.type)
            counted.add(path)
        size = sum(elements(t) * BYTES[t.dtype] for t in node.types)
        work = 0 if node.op == "input" else macs(instance_of(node, graph, ops))
        layers.append(LayerCost(node.name, node.op, own, work, size))
    read = graph.parameters if nodes is None else sorted(counted)
    buffers = [graph.parameters[path] for path in read if graph.parameters[path].buffer]
    return Cost(
        sum(layer.params for layer in layers),
        sum(elements(p.type) for p in buffers),
        sum(layer.macs for layer in layers),
        sum(layer.activation_bytes for layer in layers),
        tuple(layers),
    )
