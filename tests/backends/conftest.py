"""Networks built node by node, so that backends are tested without the language."""

from __future__ import annotations

import pytest

from archir.ir.dims import symbol
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Parameter, Value
from archir.ir.types import AttrValue, TensorType
from archir.ops import STANDARD
from archir.ops.infer import bind_attrs, instance


class Net:
    """Adds nodes with everything inferred."""

    def __init__(self, name: str = "net") -> None:
        self.builder = GraphBuilder(name)

    def input(self, name: str, *shape: int | str, dtype: str = "f32") -> Value:
        sizes = tuple(symbol(s) if isinstance(s, str) else s for s in shape)
        self.builder.inputs.append(name)
        return self.builder.add(Node(name, "input", {}, (), {}, (TensorType(dtype, sizes),)))

    def add(
        self,
        path: str,
        op: str,
        *inputs: Value,
        params: dict[str, str] | None = None,
        buffer: bool = False,
        **attrs: AttrValue,
    ) -> Value:
        """Add a node; ``params`` says where parameters lie that are not at ``PATH.role``."""
        record = STANDARD[op]
        types = tuple(self.builder.nodes[v.node].types[v.port] for v in inputs)
        bound = bind_attrs(record, attrs, types)
        found = instance(record, bound, types)
        paths = {}
        for role, type_ in found.params.items():
            default = path if op == "parameter" else f"{path}.{role}"
            paths[role] = (params or {}).get(role, default)
            is_buffer = record.param(role).buffer or buffer
            self.builder.parameters.setdefault(
                paths[role], Parameter(paths[role], type_, is_buffer)
            )
        return self.builder.add(Node(path, op, bound, inputs, paths, found.types))

    def build(self, **outputs: Value) -> Graph:
        self.builder.outputs = [Output(name, value) for name, value in outputs.items()]
        return self.builder.build()


def small() -> Graph:
    """A residual network with every kind of tensor: 8 x 8 images to 4 logits."""
    net = Net("small")
    x = net.input("image", "N", 3, 8, 8)
    x = net.add("stem.conv", "conv", x, out=6, kernel=3, bias=False)
    x = net.add("stem.bn", "batch_norm", x)
    x = net.add("stem.relu", "relu", x)
    y = net.add("stage.0.conv1", "conv", x, out=6, kernel=3, groups=2)
    y = net.add("stage.0.bn1", "batch_norm", y)
    y = net.add("stage.0.add", "add", y, x)
    y = net.add("stage.0.relu", "relu", y)
    y = net.add("pool", "max_pool", y, kernel=2)
    y = net.add("drop", "dropout", y, p=0.5)
    y = net.add("flatten", "flatten", y)
    y = net.add("fc", "linear", y, out=4)
    return net.build(logits=y)


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def small_net() -> Graph:
    return small()
