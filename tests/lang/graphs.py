"""Networks from text and changes of networks, for the tests of the language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from archir.diag import Source
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Parameter, Value
from archir.ir.types import AttrValue
from archir.lang import Program, load
from archir.ops import STANDARD
from archir.ops.infer import bind_attrs, infer, instance

EXAMPLES = sorted((Path(__file__).parent.parent.parent / "examples").glob("*.arch"))


def build(text: str) -> Program:
    """Load a text."""
    return load(Source("test.arch", text), STANDARD)


def example(name: str) -> Program:
    """Load an example."""
    path = EXAMPLES[0].parent / f"{name}.arch"
    return load(Source(path.name, path.read_text()), STANDARD)


def put(
    builder: GraphBuilder,
    name: str,
    op: str,
    given: Mapping[str, AttrValue],
    inputs: Sequence[Value],
    params: Mapping[str, str] | None = None,
) -> Value:
    """Add a node, its parameters with it."""
    record = STANDARD[op]
    types = tuple(builder.nodes[v.node].types[v.port] for v in inputs)
    attrs = bind_attrs(record, given, types)
    found = instance(record, attrs, types)
    paths = {role: name if op == "parameter" else f"{name}.{role}" for role in found.params}
    paths |= params or {}
    for role, type_ in found.params.items():
        buffer = record.param(role).buffer or bool(op == "parameter" and attrs["buffer"])
        builder.parameters.setdefault(paths[role], Parameter(paths[role], type_, buffer))
    return builder.add(Node(name, op, attrs, tuple(inputs), paths, found.types))


def widen(graph: Graph, names: Sequence[str], out: int) -> Graph:
    """Change the output channels of nodes."""
    builder = graph.edit()
    for at in names:
        node = builder.nodes[at]
        builder.nodes[at] = replace(node, attrs={**node.attrs, "out": out})
    return infer(builder.build(), STANDARD)


def deepen(graph: Graph, at: str, *, norm: bool = False) -> Graph:
    """Put conv, optionally batch norm, and relu behind a node."""
    builder = graph.edit()
    scope = at.rpartition(".")[0]
    prefix = f"{scope}." if scope else ""
    value = Value(at)
    channels = graph.node(at).types[0].shape[1]
    assert isinstance(channels, int)
    added: list[str] = []
    stages: list[tuple[str, dict[str, AttrValue]]] = [("conv", {"out": channels, "kernel": 3})]
    stages += [("batch_norm", {})] if norm else []
    for op, given in [*stages, ("relu", {})]:
        name, number = f"{prefix}new_{op}", 1
        while name in builder.nodes:
            number += 1
            name = f"{prefix}new_{op}{number}"
        value = put(builder, name, op, given, [value])
        added.append(name)
    rewire(builder, Value(at), value, added[0])
    return builder.build()


def rewire(builder: GraphBuilder, old: Value, new: Value, but: str = "") -> None:
    """Let every reader of a value, but one, read another instead."""
    for node in list(builder.nodes.values()):
        if old in node.inputs and node.name != but:
            inputs = tuple(new if value == old else value for value in node.inputs)
            builder.nodes[node.name] = replace(node, inputs=inputs)
    builder.outputs = [Output(o.name, new if o.value == old else o.value) for o in builder.outputs]
