"""What a lowering to ONNX builds, and what a lowering function sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node, Value
from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Array
from archir.weights.store import numpy_dtype

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
        if path is not None:
            self.frame.initializers[path] = self.frame.weights[path]
        return path

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
