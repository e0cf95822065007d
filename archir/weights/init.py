"""Initial weights: one seeded stream for each parameter.

A parameter's stream follows from the seed and its path alone, so adding, removing or
reordering layers leaves the others' initial values as they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from archir.diag import error
from archir.ir.graph import Graph, Node, Parameter
from archir.ops.arithmetic import Array
from archir.ops.record import OpSet
from archir.weights.store import Weights, numpy_dtype
from archir.weights.terms import Initial

Initialiser = Callable[[np.random.Generator, tuple[int, ...], float | None], Array]


def _fan_in(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _he_normal(stream: np.random.Generator, shape: tuple[int, ...], fill: float | None) -> Array:
    values = stream.standard_normal(shape, np.float32)
    return np.multiply(values, np.float32(math.sqrt(2 / _fan_in(shape))), out=values)


def _lecun_uniform(
    stream: np.random.Generator, shape: tuple[int, ...], fill: float | None
) -> Array:
    reach = 1 / math.sqrt(_fan_in(shape))
    return (stream.random(shape, np.float32) * 2 - 1) * np.float32(reach)


def _zeros(stream: np.random.Generator, shape: tuple[int, ...], fill: float | None) -> Array:
    return np.zeros(shape, np.float32)


def _ones(stream: np.random.Generator, shape: tuple[int, ...], fill: float | None) -> Array:
    return np.ones(shape, np.float32)


def _quarter(stream: np.random.Generator, shape: tuple[int, ...], fill: float | None) -> Array:
    return np.full(shape, 0.25, np.float32)


def _normal(stream: np.random.Generator, shape: tuple[int, ...], fill: float | None) -> Array:
    return stream.standard_normal(shape, np.float32)


def _fill(stream: np.random.Generator, shape: tuple[int, ...], fill: float | None) -> Array:
    assert fill is not None
    return np.full(shape, fill)


INITIALISERS: dict[str, Initialiser] = {
    "he_normal": _he_normal,
    "lecun_uniform": _lecun_uniform,
    "zeros": _zeros,
    "ones": _ones,
    "quarter": _quarter,
    "normal": _normal,
    "fill": _fill,
}
"""What an operator's record may name as the initialiser of a parameter."""


def _between(low: float, high: float) -> Initialiser:
    return lambda stream, shape, fill: stream.uniform(low, high, shape)


def _variance(stream: np.random.Generator, shape: tuple[int, ...], fill: float | None) -> Array:
    return np.exp(stream.uniform(math.log(0.4), math.log(2.5), shape))


def _scale(stream: np.random.Generator, shape: tuple[int, ...], fill: float | None) -> Array:
    size = np.exp(stream.uniform(math.log(0.5), math.log(1.6), shape))
    return size * np.where(stream.random(shape) < 0.25, -1.0, 1.0)


NORMS = ("batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm")

STATISTICS: dict[tuple[str, str], Initialiser] = {
    ("batch_norm", "running_mean"): _between(-0.6, 0.6),
    ("batch_norm", "running_var"): _variance,
    **{(op, "weight"): _scale for op in NORMS},
    **{(op, "bias"): _between(-0.6, 0.6) for op in NORMS},
}
"""Random values for what trials want far from 0 and 1. The geometric mean of
weight / sqrt(running_var) is 0.9: a plain stack hardly fades, and a residual stream grows by
about a quarter a block, which float32 bears at any depth in use."""


def init_weights(
    graph: Graph,
    ops: OpSet,
    seed: int,
    *,
    random_statistics: bool = False,
    constants: Mapping[str, Array] = MappingProxyType({}),
) -> Weights:
    """Draw the initial weights of a network.

    Args:
        graph: The network.
        ops: The operators it uses; their records name the initialisers.
        seed: A number >= 0.
        random_statistics: Draw statistics, scale and shift of normalisations at random.
        constants: Arrays among which those of :func:`constants_of` are: no seed gives them.

    Returns:
        An array for each parameter of the graph, in the graph's order. A shared parameter is
        drawn for its first user.

    Raises:
        ArchirError: A140, a constant is missing or does not fit.
    """
    kept = {path: _constant(graph.parameters[path], constants) for path in constants_of(graph)}
    owner: dict[str, tuple[Node, str]] = {}
    for node in graph:
        for role, path in node.params.items():
            owner.setdefault(path, (node, role))
    out: Weights = {}
    for path, parameter in graph.parameters.items():
        if path in kept:
            out[path] = kept[path]
            continue
        node, role = owner[path]
        first = initial(node, role, parameter, ops, seed)
        values = drawn(first)
        if random_statistics and (node.op, role) in STATISTICS:
            values = STATISTICS[node.op, role](stream_of(seed, path), first.shape, None)
        out[path] = values.astype(numpy_dtype(parameter.type.dtype), copy=False)
    return out


def constants_of(graph: Graph) -> tuple[str, ...]:
    """The paths of the tensors that are not persistent: their values belong to the network."""
    return tuple(
        node.params["value"]
        for node in graph
        if node.op == "parameter" and not node.attrs["persistent"]
    )


def _constant(parameter: Parameter, constants: Mapping[str, Array]) -> Array:
    found = constants.get(parameter.path)
    dtype, shape = numpy_dtype(parameter.type.dtype), _shape(parameter)
    if found is not None and (found.shape, found.dtype) == (shape, dtype):
        return found
    held = "" if found is None else f", and what is there is {found.dtype}{list(found.shape)}"
    raise error(
        "A140",
        f"`{parameter.path}` is a constant ({parameter.type}) that no seed gives{held}",
        hint="keep the safetensors file of the network beside its text: constants are taken "
        "from there",
        node=parameter.path,
    )


def initial(node: Node, role: str, parameter: Parameter, ops: OpSet, seed: int) -> Initial:
    """What a node's parameter holds in an untrained network, as a weight term."""
    value = node.attrs.get("init")
    fill = float(value) if isinstance(value, int | float) else None
    return Initial(parameter.path, _shape(parameter), ops[node.op].param(role).init, seed, fill)


def drawn(first: Initial) -> Array:
    """The values that a term stands for."""
    stream = stream_of(first.seed, first.path)
    return INITIALISERS[first.initialiser](stream, first.shape, first.fill)


def stream_of(seed: int, path: str) -> np.random.Generator:
    """The random stream of a parameter (or of anything else that has a path)."""
    key = int.from_bytes(hashlib.sha256(path.encode()).digest()[:16], "big")
    return np.random.Generator(np.random.PCG64([seed, key]))


def _shape(parameter: Parameter) -> tuple[int, ...]:
    shape = parameter.type.shape
    whole = tuple(size for size in shape if isinstance(size, int))
    assert len(whole) == len(shape), f"{parameter.path} has a size that is no number"
    return whole
