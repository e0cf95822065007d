"""What a lowering to ONNX builds, and what a lowering function sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node, Value
from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Array
from archir.weights.store import numpy_dtype

from .precision import FULL, Precision

DTYPES = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "f64": TensorProto.DOUBLE,
    "i64": TensorProto.INT64,
    "i32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
BY_NAME = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}


@dataclass
class Frame:
    """Nodes and initializers in the making, and the names of all values."""

    graph: Graph
    weights: Mapping[str, Array]
    opset: int
    names: dict[Value, str]
    taken: set[str]
    node_names: set[str]
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)
    """By parameter path, in the order of first use."""
    precision: Precision = FULL
    parameters: dict[tuple[str, str], str] = field(default_factory=dict)
    """The names of the initializers, by a parameter's path and their element type."""
    casts: dict[tuple[Value, str], str] = field(default_factory=dict)
    """The names under which values are held in another precision than they are made in."""

    def site(self, node: Node) -> Site:
        """A node that is to be lowered, with its operands in the precision that it computes in."""
        types = tuple(self.graph.type_of(value) for value in node.inputs)
        if not self.precision.half:
            return Site(self, node, types, tuple(self.names[v] for v in node.inputs))
        types = tuple(self.precision.within(node.name, t) for t in types)
        pairs = zip(node.inputs, types, strict=True)
        args = tuple(self.name_of(value, type_.dtype) for value, type_ in pairs)
        attrs = {
            name: self.precision.dtype(node.name, value) if name == "dtype" else value
            for name, value in node.attrs.items()
        }
        own = tuple(self.precision.within(node.name, t) for t in node.types)
        return Site(self, replace(node, attrs=attrs, types=own), types, args)

    def name_of(self, value: Value, dtype: str) -> str:
        """The name of a value as this element type; a cast is put behind what makes it."""
        made = self.precision.within(value.node, self.graph.type_of(value)).dtype
        if made == dtype:
            return self.names[value]
        if (value, dtype) not in self.casts:
            name = self.unique(f"{value}/{dtype}")
            self.emit("Cast", [self.names[value]], [name], name, to=DTYPES[dtype])
            self.casts[value, dtype] = name
        return self.casts[value, dtype]

    def initializer(self, path: str, dtype: np.dtype[Any]) -> str:
        """The name of a parameter in the element type of its reader: its path, if it can be."""
        array = self.weights[path]
        if array.dtype != np.float32:
            dtype = array.dtype
        key = path, dtype.name
        if key not in self.parameters:
            name = self.unique(f"{path}/{dtype}") if path in self.initializers else path
            self.initializers[name] = array.astype(dtype, copy=False)
            self.parameters[key] = name
        return self.parameters[key]

    def unique(self, name: str) -> str:
        """A name no value has yet: the one asked for, or one made of it."""
        return _free(name, self.taken)

    def emit(
        self, op: str, inputs: Sequence[str], results: Sequence[str], name: str, **attrs: Any
    ) -> None:
        """Emit a node on the way to others, under this name or one made of it."""
        name = _free(name, self.node_names)
        self.nodes.append(helper.make_node(op, inputs, results, name=name, **attrs))


def _free(name: str, taken: set[str]) -> str:
    made, number = name, 1
    while made in taken:
        number += 1
        made = f"{name}.{number}"
    taken.add(made)
    return made


@dataclass(frozen=True)
class Site:
    """One node that is being lowered."""

    frame: Frame
    node: Node
    types: tuple[TensorType, ...]
    """The types of the operands."""
    args: tuple[str, ...]
    """The names of the operands."""

    @property
    def rank(self) -> int:
        """The rank of the first operand."""
        return self.types[0].rank

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the first operand."""
        return numpy_dtype(self.types[0].dtype)

    def attr(self, name: str) -> Any:
        """An attribute."""
        return self.node.attrs[name]

    def ints(self, name: str) -> list[int]:
        """An attribute that holds integers."""
        value: AttrValue = self.node.attrs[name]
        assert isinstance(value, tuple)
        return [int(entry) for entry in value if isinstance(entry, int)]

    def emit(self, op: str, *inputs: str, **attrs: Any) -> None:
        """Emit the node that gives the results: it bears the path as its name."""
        results = [
            self.frame.names[Value(self.node.name, port)] for port in range(len(self.node.types))
        ]
        made = helper.make_node(op, inputs, results, name=self.node.name, **attrs)
        self.frame.nodes.append(made)

    def helper(self, role: str, op: str, *inputs: str, **attrs: Any) -> str:
        """Emit a node on the way to the results, named PATH/ROLE; returns its result."""
        name = self.frame.unique(f"{self.node.name}/{role}")
        self.frame.emit(op, inputs, [name], name, **attrs)
        return name

    def constant(self, role: str, values: Array) -> str:
        """Emit a constant."""
        return self.helper(role, "Constant", value=tensor(role, values))

    def param(self, role: str) -> str | None:
        """The name of a parameter, its path; None where the node has none of that role."""
        path = self.node.params.get(role)
        if path is None:
            return None
        return self.frame.initializer(path, self.frame.precision.array(self.node.name))

    def params(self, *roles: str) -> list[str]:
        """The names of those of the parameters that are present."""
        return [path for role in roles if (path := self.param(role)) is not None]

    def refuse(self, reason: str) -> ArchirError:
        """The diagnostic for a use that ONNX cannot express."""
        return error(
            "A502", f"ONNX cannot express this `{self.node.op}`: {reason}", node=self.node.name
        )


def tensor(name: str, values: Array) -> TensorProto:
    """A tensor with its data in it."""
    made = TensorProto(name=name, data_type=BY_NAME[values.dtype.name], dims=values.shape)
    made.raw_data = values.tobytes()
    return made
