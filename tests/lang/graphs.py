"""Random networks and changes of networks, for the tests of the language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from archir.diag import Source
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Parameter, Value
from archir.ir.types import AttrValue, TensorType
from archir.lang import Program, load
from archir.ops import STANDARD
from archir.ops.infer import bind_attrs, infer, instance

EXAMPLES = sorted((Path(__file__).parent.parent.parent / "examples").glob("*.arch"))
IMAGE = TensorType("f32", (2, 4, 6, 6))
SEGMENTS = ["a", "b", "relu", "relu1", "conv", "0", "1", "2", "input", "x-y", "we`ird", "k", ""]


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


@st.composite
def networks(draw: st.DrawFn) -> Graph:  # noqa: C901 - one branch a kind of node
    """A network of one shape of tensor: odd paths, ties, sums, splits, free tensors, dead ends."""
    builder = GraphBuilder("net")
    names: set[str] = set()

    def name() -> str:
        path = ".".join(draw(st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=3)))
        number = 0
        while path in names or not path:
            number += 1
            path = f"{path}{number}"
        names.add(path)
        return path

    values: list[Value] = []
    for _ in range(draw(st.integers(1, 2))):
        at = name()
        values.append(builder.add(Node(at, "input", {}, (), {}, (IMAGE,))))
        builder.inputs.append(at)
    value = st.deferred(lambda: st.sampled_from(values[-4:]))
    convs: list[str] = []
    for _ in range(draw(st.integers(1, 14))):
        kind = draw(
            st.sampled_from(
                [
                    *(
                        "relu",
                        "conv",
                        "bn",
                        "add",
                        "split",
                        "param",
                        "mul",
                        "pool",
                        "sub",
                        "div",
                        "neg",
                    )
                ]
            )
        )
        at, x = name(), draw(value)
        if kind == "conv":
            tie = draw(st.sampled_from(["", "", *convs]))
            params = {"weight": f"{tie}.weight"} if tie else {}
            if not tie and draw(st.integers(0, 3)) == 0:
                params = {"bias": draw(st.sampled_from([f"{at}.own", f"far.{at}"]))}
            values.append(put(builder, at, "conv", {"out": 4, "kernel": 3}, [x], params))
            if not tie:
                convs.append(at)
        elif kind == "bn":
            eps = draw(st.sampled_from([1e-5, 1e-3]))
            values.append(put(builder, at, "batch_norm", {"eps": eps}, [x]))
        elif kind in ("add", "mul"):
            values.append(
                put(builder, at, kind, {}, [x, *draw(st.lists(value, min_size=1, max_size=2))])
            )
        elif kind in ("sub", "div"):
            values.append(put(builder, at, kind, {}, [x, draw(value)]))
        elif kind == "split":
            put(builder, at, "split", {"sizes": (1, 3)}, [x])
            joined = put(builder, name(), "concat", {}, [Value(at, 1), Value(at, 0)])
            values.append(joined)
        elif kind == "param":
            given = {"shape": (4, 1, 1), "init": draw(st.sampled_from([0.0, 0.5, -1e-7]))}
            given["buffer"] = draw(st.booleans())
            scale = put(builder, at, "parameter", given, [])
            values.append(put(builder, name(), "mul", {}, [x, scale]))
        elif kind == "pool":
            values.append(
                put(builder, at, "max_pool", {"kernel": 3, "stride": 1, "padding": 1}, [x])
            )
        else:
            values.append(put(builder, at, kind, {}, [x]))
    count = draw(st.integers(1, 3))
    builder.outputs = [Output(f"out{i}", draw(value)) for i in range(count)]
    return builder.build()


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
