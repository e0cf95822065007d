"""Small networks for the tests of training, built without the language."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.dims import symbol
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Parameter, Value
from archir.ir.types import AttrValue, TensorType
from archir.ops import STANDARD
from archir.ops.infer import bind_attrs, instance


class Net:
    """Chains layers: each call adds a node that reads the last one (or what it is given)."""

    def __init__(self, *shape: int, name: str = "net") -> None:
        self.builder = GraphBuilder(name)
        self.types: dict[Value, TensorType] = {}
        self.last = self.source("image", *shape)

    def source(self, name: str, *shape: int) -> Value:
        type_ = TensorType("f32", (symbol("N"), *shape))
        value = self.builder.add(Node(name, "input", {}, (), {}, (type_,)))
        self.builder.inputs.append(name)
        self.types[value] = type_
        return value

    def add(self, name: str, op: str, *operands: Value, **attrs: AttrValue) -> Value:
        record, inputs = STANDARD[op], operands or (self.last,)
        types = tuple(self.types[value] for value in inputs)
        bound = bind_attrs(record, attrs, types)
        made = instance(record, bound, types)
        params: dict[str, str] = {}
        for role, type_ in made.params.items():
            params[role] = f"{name}.{role}"
            buffer = record.param(role).buffer
            self.builder.parameters[params[role]] = Parameter(params[role], type_, buffer)
        self.last = self.builder.add(Node(name, op, bound, inputs, params, made.types))
        self.types[self.last] = made.types[0]
        return self.last

    def output(self, name: str = "logits", value: Value | None = None) -> None:
        self.builder.outputs.append(Output(name, value or self.last))

    def graph(self, meta: Mapping[str, AttrValue] | None = None) -> Graph:
        if not self.builder.outputs:
            self.output()
        self.builder.meta.update(meta or {})
        return self.builder.build()


def small(width: int = 16, dropout: float = 0.0) -> Graph:
    """A convolutional network for the digits: 8x8, one channel, ten classes."""
    net = Net(1, 8, 8, name="small")
    net.add("conv1", "conv", out=width, kernel=3, bias=False)
    net.add("bn1", "batch_norm")
    net.add("relu1", "relu")
    net.add("conv2", "conv", out=2 * width, kernel=3, stride=2)
    net.add("bn2", "batch_norm")
    net.add("relu2", "relu")
    if dropout:
        net.add("dropout", "dropout", p=dropout)
    net.add("pool", "max_pool", kernel=2)
    net.add("flatten", "flatten")
    net.add("fc", "linear", out=10)
    return net.graph()
