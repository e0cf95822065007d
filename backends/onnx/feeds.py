"""What a file is tried on: batch sizes, and random inputs that its network takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from archir.diag import BAD_INPUT, ArchirError, error
from archir.ir.dims import Dim, Size, product, substitute
from archir.ir.graph import Graph, Value
from archir.ir.types import TensorType
from archir.ops.arithmetic import Array
from archir.ops.cost import BYTES
from archir.weights.store import numpy_dtype

BATCHES = (1, 2, 7)
LIVE = 2 << 30
"""Bytes of values alive at once that a batch may need; larger batches are left out."""

_OTHER = 6
Symbols = Mapping[str, int]


@dataclass(frozen=True)
class Batches:
    """The batch sizes that a file is run at."""

    symbols: Mapping[int, Symbols]
    """For each batch size, a value for every symbol."""
    left_out: Mapping[int, int]
    """Batch sizes that are left out, with the bytes of values that they would need."""


def sizes_of(graph: Graph, batches: Sequence[int] | None = None, *, live: int = LIVE) -> Batches:
    """For each batch size, a value for every symbol that makes all sizes whole.

    The batch is the first axis of the first input; if that is a number, there is one run. Of the
    usual sizes those are left out whose values need more than ``live`` bytes; the first stays.

    Args:
        graph: The network.
        batches: Sizes that the user wants, all of which are run.
        live: Bytes of values alive at once that a batch may need.

    Raises:
        ArchirError: A548, the network cannot have such a batch.
    """
    shapes = [type_.shape for node in graph for type_ in node.types]
    dims = [size for shape in shapes for size in shape if isinstance(size, Dim)]
    names = list(dict.fromkeys(name for dim in dims for name, _ in dim.symbols))
    whole = math.lcm(*(dim.coefficient.denominator for dim in dims))
    first: Size = graph.node(graph.inputs[0]).types[0].shape[0] if _has_axes(graph) else 1
    others = dict.fromkeys(names, _OTHER * whole)
    if isinstance(first, int):
        if batches and set(batches) != {first}:
            raise _impossible(f"the network's batch is fixed, it is {first}")
        return Batches({first: others}, {})
    leading = first.symbols[0][0]
    chosen = [size * whole for size in BATCHES] if batches is None else list(batches)
    wrong = next((size for size in chosen if size < 1 or size % whole), None)
    if wrong is not None:
        raise _impossible(f"with {leading} = {wrong} not all of its sizes are whole numbers")
    found = {_whole(first, {**others, leading: n}): {**others, leading: n} for n in chosen}
    if batches is not None:
        return Batches(found, {})
    needs = {batch: alive(graph, symbols) for batch, symbols in found.items()}
    smallest = min(found)
    out = {batch: need for batch, need in needs.items() if need > live and batch != smallest}
    return Batches({batch: s for batch, s in found.items() if batch not in out}, out)


def _impossible(reason: str) -> ArchirError:
    return error("A548", f"no such batch: {reason}", status=BAD_INPUT)


def alive(graph: Graph, symbols: Symbols) -> int:
    """The most bytes of values that are alive at once when the nodes run in their order."""
    last: dict[str, int] = {}
    for place, node in enumerate(graph):
        last[node.name] = place
        last.update(dict.fromkeys((value.node for value in node.inputs), place))
    last.update({output.value.node: len(graph) for output in graph.outputs})
    held: dict[int, int] = {}
    now = most = 0
    for place, node in enumerate(graph):
        size = sum(size_of(type_, symbols) for type_ in node.types)
        held[last[node.name]] = held.get(last[node.name], 0) + size
        now += size
        most = max(most, now)
        now -= held.pop(place, 0)
    return most


def size_of(type_: TensorType, symbols: Symbols) -> int:
    """Bytes of a value."""
    return _whole(product(type_.shape), symbols) * BYTES[type_.dtype]


def shape_of(type_: TensorType, symbols: Symbols) -> tuple[int, ...]:
    """The shape of a value."""
    return tuple(_whole(size, symbols) for size in type_.shape)


def feeds_of(graph: Graph, symbols: Symbols, stream: np.random.Generator) -> dict[str, Array]:
    """Random values for the inputs: standard normal numbers, and indices that can be looked up."""
    feeds: dict[str, Array] = {}
    for name in graph.inputs:
        type_ = graph.type_of(Value(name))
        shape = shape_of(type_, symbols)
        if type_.dtype in ("i64", "i32", "bool"):
            most = 2 if type_.dtype == "bool" else _indices(graph, name)
            feeds[name] = stream.integers(0, most, shape).astype(numpy_dtype(type_.dtype))
        else:
            feeds[name] = stream.standard_normal(shape).astype(numpy_dtype(type_.dtype))
    return feeds


def _indices(graph: Graph, name: str) -> int:
    """How many indices an input of whole numbers may have: the rows of the tables it reads."""
    readers = {reader.name: reader for reader, _, _ in graph.readers(name)}.values()
    rows = [int(str(r.attrs["num"])) for r in readers if r.op == "embedding"]
    return min(rows) if rows and len(rows) == len(readers) else 2


def _whole(size: Size, symbols: Symbols) -> int:
    return int(str(substitute(size, symbols)))


def _has_axes(graph: Graph) -> bool:
    return bool(graph.inputs) and bool(graph.node(graph.inputs[0]).types[0].shape)
