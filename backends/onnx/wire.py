"""Serialising a model without copying its weights.

protobuf would copy them twice, into a message and out of it. A serialised message is the
concatenation of its fields, so the weights can go from the arrays into the file: the small
parts are serialised by protobuf, and only the lengths around the data are written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import ModelProto, TensorProto

from archir.ir.graph import Graph
from archir.ops.arithmetic import Array
from archir.weights.store import check_weights

from .frame import BY_NAME
from .model import Skeleton, skeleton
from .versions import DEFAULT


def _tag(message: type[ModelProto | TensorProto], path: str) -> bytes:
    """The bytes that begin a field of variable length."""
    descriptor = message.DESCRIPTOR
    *outer, last = path.split(".")
    for name in outer:
        descriptor = descriptor.fields_by_name[name].message_type
    return _varint(descriptor.fields_by_name[last].number << 3 | 2)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


GRAPH = _tag(ModelProto, "graph")
INITIALIZER = _tag(ModelProto, "graph.initializer")
RAW_DATA = _tag(TensorProto, "raw_data")


def serialise(
    graph: Graph,
    weights: Mapping[str, Array],
    opset: int = DEFAULT,
    *,
    ir_version: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[bytes | memoryview]:
    """What :func:`build` makes, serialised, in pieces that do not copy the weights.

    ``file.writelines(serialise(graph, weights))`` writes a model that nothing has checked;
    :func:`export` is for files that are kept.

    Raises:
        ArchirError: As :func:`build`.
    """
    check_weights(graph, weights)
    return chunks(skeleton(graph, weights, opset, ir_version=ir_version, metadata=metadata))


def chunks(made: Skeleton) -> Iterator[bytes | memoryview]:
    """The serialised model, piece by piece; the weights are views of their arrays."""
    initializers: list[tuple[bytes, memoryview]] = []
    for name, array in made.initializers.items():
        head = TensorProto(name=name, data_type=BY_NAME[array.dtype.name], dims=array.shape)
        start = head.SerializeToString() + RAW_DATA + _varint(array.nbytes)
        length = _varint(len(start) + array.nbytes)
        initializers.append((INITIALIZER + length + start, data_of(array)))
    frame = ModelProto()
    frame.CopyFrom(made.model)
    frame.ClearField("graph")
    graph = made.model.graph.SerializeToString()
    total = len(graph) + sum(len(start) + data.nbytes for start, data in initializers)
    yield frame.SerializeToString() + GRAPH + _varint(total) + graph
    for start, data in initializers:
        yield start
        yield data


def data_of(array: Array) -> memoryview:
    """The bytes of an array, without a copy where they are contiguous."""
    return array.reshape(-1).view("uint8").data
