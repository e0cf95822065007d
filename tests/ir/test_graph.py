"""The graph façade and its builder."""

from __future__ import annotations

import pytest

from archir.ir.graph import GraphBuilder, Node, Output, Parameter, Value, reachable
from archir.ir.types import TensorType

T = TensorType("f32", (2, 3))


def node(name: str, op: str, *inputs: str, **params: str) -> Node:
    return Node(name, op, {}, tuple(Value(i) for i in inputs), params, (T,))


def chain() -> GraphBuilder:
    builder = GraphBuilder("chain", inputs=["x"], outputs=[Output("y", Value("c"))])
    for made in (
        node("x", "input"),
        node("a", "relu", "x"),
        node("b", "add", "a", "x", "a"),
        node("c", "relu", "b"),
    ):
        builder.add(made)
    return builder


def test_queries() -> None:
    graph = chain().build()
    assert [n.name for n in graph] == ["x", "a", "b", "c"]
    assert len(graph) == 4
    assert "a" in graph
    assert "z" not in graph
    assert [(r.name, i) for r, i, _ in graph.readers("a")] == [("b", 0), ("b", 2)]
    assert graph.type_of(Value("b")) == T
    assert graph.is_output("c")
    assert not graph.is_output("b")
    assert "chain" in repr(graph)
    assert str(Value("s", 2)) == "s:2"
    with pytest.raises(KeyError):
        graph.node("z")


def test_editing_leaves_the_graph_alone() -> None:
    graph = chain().build()
    builder = graph.edit()
    builder.put(node("c", "softmax", "a"))
    after = builder.build()
    assert (graph.node("c").op, after.node("c").op) == ("relu", "softmax")
    assert after.node("a") is graph.node("a")
    assert reachable(after) == {"x", "a", "c"}


def test_values_move_all_at_once() -> None:
    """Two values that change places do not end up as one."""
    builder = chain()
    builder.rewire({Value("a"): Value("x"), Value("x"): Value("a")}, but=["a"])
    after = builder.build()
    assert [v.node for v in after.node("b").inputs] == ["x", "a", "x"]
    builder.rewire({Value("c"): Value("b")})
    assert builder.outputs == [Output("y", Value("b"))]


def test_nodes_are_put_in_order() -> None:
    builder = GraphBuilder("late", inputs=["x"])
    builder.add(node("b", "relu", "a"))
    builder.add(node("x", "input"))
    builder.add(node("a", "relu", "x"))
    assert [n.name for n in builder.build()] == ["x", "a", "b"]


def test_what_cannot_be_frozen() -> None:
    builder = chain()
    builder.put(node("a", "relu", "c"))
    with pytest.raises(ValueError, match="cycle"):
        builder.build()
    builder.put(node("a", "relu", "gone"))
    with pytest.raises(ValueError, match="a reads gone, which does not exist"):
        builder.build()
    builder.put(node("a", "relu", "a"))
    with pytest.raises(ValueError, match="cycle"):
        builder.build()


def test_parameters_that_nothing_holds_are_dropped() -> None:
    builder = chain()
    builder.put(node("a", "scale", "x", weight="w"))
    builder.put(node("c", "scale", "b", weight="w"))
    for path in ("w", "old"):
        builder.parameters[path] = Parameter(path, T)
    graph = builder.build()
    assert list(graph.parameters) == ["w"]
    assert graph.users() == {"w": [("a", "weight"), ("c", "weight")]}
