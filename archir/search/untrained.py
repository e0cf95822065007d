"""Networks as they are before training: random weights, and the part that makes the features.

Importing this module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from archir.api import Network
from archir.diag import UNSUPPORTED, error
from archir.ir.graph import Graph, Node, Output, Value
from archir.ir.hash import numbering
from archir.ops.record import OpSet
from archir.weights.init import INITIALISERS, constants_of, init_weights, initial
from archir.weights.store import Weights, numpy_dtype

Init = Literal["he", "torch"]
"""``he``: convolutions and linear layers from N(0, 2 / fan_in), biases 0 (He et al. 2015);
``torch``: torch's defaults, weights and biases uniform within 1 / sqrt(fan_in)."""

DENSE = ("conv", "conv_transpose", "linear")
"""The operators whose weights those schemes are about."""


def draw_weights(network: Network, init: Init, key: Sequence[int]) -> Weights:
    """Draw all weights of a network, whatever it comes with; constants stay.

    Each parameter has a stream of its own, by its number in the order of the graph's hash: equal
    graphs have equal weights, whatever their layers are called.

    Args:
        network: It, with or without weights.
        init: The scheme; what it says nothing of (batch norms, embeddings) is archir's default.
        key: What the streams come from, numbers >= 0.

    Raises:
        ArchirError: A140, a constant is missing.
    """
    graph = network.graph
    owner: dict[str, tuple[Node, str]] = {}
    for node in graph:
        for role, path in node.params.items():
            owner.setdefault(path, (node, role))
    kept: Weights = {}
    if constants_of(graph):
        every = init_weights(graph, network.ops, 0, constants=network.weights or {})
        kept = {path: every[path] for path in constants_of(graph)}
    found: Weights = {}
    for number, path in enumerate(numbering(graph).parameters):
        if path not in kept:
            values = _drawn(stream(*key, number), *owner[path], graph, network.ops, init)
            dtype = numpy_dtype(graph.parameters[path].type.dtype)
            found[path] = values.astype(dtype, copy=False)
    return found | kept


def _drawn(
    drawing: np.random.Generator, node: Node, role: str, graph: Graph, ops: OpSet, init: Init
) -> NDArray[Any]:
    first = initial(node, role, graph.parameters[node.params[role]], ops, 0)
    if node.op in DENSE and role == "weight":
        scheme = {"he": "he_normal", "torch": "lecun_uniform"}[init]
        return INITIALISERS[scheme](drawing, first.shape, None)
    if node.op in DENSE and init == "torch":
        weight = initial(node, "weight", graph.parameters[node.params["weight"]], ops, 0)
        reach = 1 / math.sqrt(math.prod(weight.shape[1:]))
        return drawing.uniform(-reach, reach, first.shape)
    return INITIALISERS[first.initialiser](drawing, first.shape, first.fill)


def body(graph: Graph) -> Graph:
    """What the last linear layer reads, as a network of its own.

    Raises:
        ArchirError: A730, the output is not made by a linear layer of ``[N, D]``.
    """
    last = graph.node(graph.outputs[0].value.node)
    if last.op != "linear" or graph.type_of(last.inputs[0]).rank != 2:
        raise error(
            "A730",
            f"the output of {graph.name} is made by `{last.op}`",
            hint="random-weight evaluation trains the linear layer that makes the output, from "
            "[N, D]: let the network end in `flatten` or `global_avg_pool`, then `linear`",
            node=last.name,
            status=UNSUPPORTED,
        )
    return _upto(graph, last.inputs[0])


def _upto(graph: Graph, value: Value) -> Graph:
    """The network that ends in a value, without what that does not depend on."""
    needed, stack = set(graph.inputs), [value.node]
    while stack:
        name = stack.pop()
        if name not in needed:
            needed.add(name)
            stack.extend(read.node for read in graph.node(name).inputs)
    builder = graph.edit()
    builder.nodes = {name: node for name, node in builder.nodes.items() if name in needed}
    builder.outputs = [Output("features", value)]
    return builder.build()


def stream(*key: int) -> np.random.Generator:
    """Random numbers from a key."""
    return np.random.Generator(np.random.PCG64(key))
