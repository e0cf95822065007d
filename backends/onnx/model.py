"""A network as an ONNX model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from archir.diag import error
from archir.ir.graph import Graph, Output, Value
from archir.ir.hash import graph_hash
from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Array
from archir.ops.carried import is_carried
from archir.weights.store import check_weights

from .frame import BY_NAME, DTYPES, Frame, tensor
from .lowering import LOWER, UNSUPPORTED
from .precision import FULL, Precision
from .versions import DEFAULT, resolve

CARRIED = "it is an operator of ATen that archir does not know, and is carried for torch alone"


@dataclass(frozen=True)
class Skeleton:
    """A model whose initializers are still apart: only their data is large."""

    model: ModelProto
    initializers: Mapping[str, Array]

    @property
    def size(self) -> int:
        """Bytes of all initializers."""
        return sum(array.nbytes for array in self.initializers.values())


def build(
    graph: Graph,
    weights: Mapping[str, Array],
    opset: int = DEFAULT,
    *,
    ir_version: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ModelProto:
    """Build the ONNX model of a network in eval mode.

    Initializers are named by their parameter paths, nodes by their paths, inputs and outputs
    by their names; a symbolic size is a symbolic dimension. Beyond 2 GB protobuf cannot
    hold a model: use :func:`export`, which puts the data beside it.

    Args:
        graph: The network.
        weights: An array for each parameter.
        opset: The opset, which is delivered exactly.
        ir_version: The IR version; the lowest that the opset allows, where None.
        metadata: Further entries of the model's metadata.

    Raises:
        ArchirError: A501, A502 (ONNX cannot express the network), A505 (opset), A611, A612
            (the weights do not fit).
    """
    check_weights(graph, weights)
    made = skeleton(graph, weights, opset, ir_version=ir_version, metadata=metadata)
    tensors = (tensor(name, array) for name, array in made.initializers.items())
    made.model.graph.initializer.extend(tensors)
    return made.model


def skeleton(
    graph: Graph,
    weights: Mapping[str, Array],
    opset: int = DEFAULT,
    *,
    ir_version: int | None = None,
    metadata: Mapping[str, str] | None = None,
    outputs: Sequence[Output] | None = None,
    precision: Precision = FULL,
    half_outputs: bool = False,
) -> Skeleton:
    """Build everything but the initializers; ``outputs`` stand in for the network's own.

    With a ``precision``, some nodes compute in float16, and casts stand between them and the
    others; the outputs are cast to float16 with ``half_outputs`` and else are what they were.
    """
    opset, ir_version = resolve(opset, ir_version)
    results = graph.outputs if outputs is None else tuple(outputs)
    types = {output.name: graph.type_of(output.value) for output in results}
    if half_outputs:
        types = {n: replace(t, dtype="f16") if t.dtype == "f32" else t for n, t in types.items()}
    frame = _named(graph, weights, opset, results, types, precision)
    for node in graph:
        if node.op not in LOWER:
            unlisted = CARRIED if is_carried(node.op) else "it has no entry in the backend's table"
            reason = UNSUPPORTED.get(node.op, unlisted)
            raise error("A501", f"ONNX cannot express `{node.op}`: {reason}", node=node.name)
        LOWER[node.op](frame.site(node))
    for output in results:
        held = frame.name_of(output.value, types[output.name].dtype)
        if held != output.name:
            frame.emit("Identity", [held], [output.name], output.name)
    proto = helper.make_graph(
        frame.nodes,
        graph.name,
        [_info(name, precision.within(name, graph.node(name).types[0])) for name in graph.inputs],
        [_info(name, type_) for name, type_ in types.items()],
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
        producer_name="archir",
        producer_version=_version(),
    )
    said = {"archir.version": _version(), "archir.opset": str(opset), **_metadata(graph)}
    helper.set_model_props(model, {**said, **(metadata or {})})
    return Skeleton(model, frame.initializers)


def _named(
    graph: Graph,
    weights: Mapping[str, Array],
    opset: int,
    results: Sequence[Output],
    types: Mapping[str, TensorType],
    precision: Precision,
) -> Frame:
    """Give every value a name: inputs, outputs and parameters have theirs, the rest fit in."""
    taken: set[str] = set()
    fixed = [("input", n) for n in graph.inputs] + [("output", o.name) for o in results]
    for kind, name in [*fixed, *(("parameter", path) for path in graph.parameters)]:
        if name in taken:
            raise error(
                "A502",
                f"ONNX needs different names for inputs, outputs and parameters, and the {kind} "
                f"`{name}` has that of another",
                hint=f"rename the {kind}",
                node=name,
            )
        taken.add(name)
    nodes = {node.name for node in graph}
    frame = Frame(graph, weights, opset, {}, taken, nodes, precision=precision)
    direct: dict[Value, str] = {}
    for output in results:
        made = precision.within(output.value.node, graph.type_of(output.value))
        if made.dtype != types[output.name].dtype:
            continue  # a cast gives it
        if graph.node(output.value.node).op not in ("input", "parameter"):
            direct.setdefault(output.value, output.name)
    for node in graph:
        if node.op == "input":
            frame.names[Value(node.name)] = node.name
        elif node.op == "parameter":
            path = node.params["value"]
            if precision.half:  # its name is fixed, so it comes before other readers
                path = frame.initializer(path, precision.array(node.name))
            frame.names[Value(node.name)] = path
        else:
            for port in range(len(node.types)):
                value = Value(node.name, port)
                frame.names[value] = direct.get(value) or frame.unique(str(value))
    return frame


def _info(name: str, type_: TensorType) -> ValueInfoProto:
    shape = [size if isinstance(size, int) else str(size) for size in type_.shape]
    return helper.make_tensor_value_info(name, DTYPES[type_.dtype], shape)


def _metadata(graph: Graph) -> dict[str, str]:
    found = {"archir.graph": graph_hash(graph)}
    for name, value in graph.meta.items():
        found[f"archir.{name}"] = json.dumps(_plain(value))
    return found


def _plain(value: AttrValue) -> object:
    """A meta entry for JSON: pairs of a name and a value are an object."""
    if not isinstance(value, tuple):
        return value
    pairs = [entry for entry in value if isinstance(entry, tuple) and len(entry) == 2]
    if value and len(pairs) == len(value) and all(isinstance(p[0], str) for p in pairs):
        return {str(pair[0]): _plain(pair[1]) for pair in pairs}
    return [_plain(entry) for entry in value]


def _version() -> str:
    try:
        return version("archir")
    except PackageNotFoundError:
        return "unknown"


def external(skeleton: Skeleton, location: str) -> list[int]:
    """List the initializers as data in another file; returns each one's offset there.

    Offsets are multiples of 4096, so that a runtime can map the file into memory.
    """
    offsets, end = [], 0
    for name, array in skeleton.initializers.items():
        offset = -(-end // 4096) * 4096
        made = TensorProto(name=name, data_type=BY_NAME[array.dtype.name], dims=array.shape)
        made.data_location = TensorProto.EXTERNAL
        entries = {"location": location, "offset": offset, "length": array.nbytes}
        for key, value in entries.items():
            made.external_data.add(key=key, value=str(value))
        skeleton.model.graph.initializer.append(made)
        offsets.append(offset)
        end = offset + array.nbytes
    return offsets
