"""The canonical hash: what it must not see, and what it must."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archir.diag import Source
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Value
from archir.ir.hash import graph_hash, numbering
from archir.lang import load
from archir.ops import STANDARD

BODY = """
    input image: f32[N, 3, 8, 8]
    input other: f32[N, 4, 8, 8]
    a = image |> conv1: conv(4, 3) |> bn: batch_norm |> relu
    b = a |> conv2: conv(4, 3)
    c = a |> conv3: conv(4, 3, weight = b.conv2.weight)
    p, q = split(b + other, sizes = [1, 3])
    d = concat(q, p, c)
    output left = d |> global_avg_pool |> fc: linear(5)
    output right = d |> global_max_pool |> softmax
"""


def net(body: str) -> Graph:
    return load(Source("test.arch", f"arch test {{\n{body}\n}}\n"), STANDARD).graph


NET = net(BODY)


def renamed(graph: Graph, shuffle: list[Node], prefix: str) -> Graph:
    """The same network with other names, built in another order."""
    new = {node.name: f"{prefix}{i}" for i, node in enumerate(shuffle)}
    paths = {path: f"{prefix}p{i}" for i, path in enumerate(sorted(graph.parameters, reverse=True))}
    builder = GraphBuilder("other name")
    for node in shuffle:
        builder.add(
            Node(
                new[node.name],
                node.op,
                dict(reversed(node.attrs.items())),
                tuple(Value(new[v.node], v.port) for v in node.inputs),
                {r: paths[p] for r, p in reversed(node.params.items())},
                node.types,
            )
        )
    builder.inputs = [new[name] for name in graph.inputs]
    builder.outputs = [
        Output(f"{prefix}{o.name}", Value(new[o.value.node], o.value.port)) for o in graph.outputs
    ]
    for path, p in graph.parameters.items():
        builder.parameters[paths[path]] = replace(p, path=paths[path])
    return builder.build()


@settings(max_examples=50, deadline=None)
@given(st.permutations(list(NET)), st.sampled_from(["n", "z.", "conv"]))
def test_names_and_order_do_not_count(shuffle: list[Node], prefix: str) -> None:
    other = renamed(NET, shuffle, prefix)
    assert graph_hash(other) == graph_hash(NET)
    assert len(numbering(other).nodes) == len(NET)
    ops = [[g.node(n).op for n in numbering(g).nodes] for g in (NET, other)]
    assert ops[0] == ops[1]
    types = [[g.parameters[p].type for p in numbering(g).parameters] for g in (NET, other)]
    assert types[0] == types[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("conv3: conv(4, 3, weight = b.conv2.weight)", "conv3: conv(4, 3)"),
        ("weight = b.conv2.weight)", "weight = b.conv2.weight, bias = b.conv2.bias)"),
        ("concat(q, p, c)", "concat(p, q, c)"),
        ("concat(q, p, c)", "concat(q, p, b)"),
        ("split(b + other", "split(other + b"),
        ("sizes = [1, 3]", "sizes = [3, 1]"),
        ("bn: batch_norm", "bn: batch_norm(eps = 0.001)"),
        ("bn: batch_norm", "bn: batch_norm(momentum = 0.2)"),
        ("conv1: conv(4, 3)", "conv1: conv(4, 5)"),
        ("|> softmax", ""),
        ("linear(5)", "linear(6)"),
        ("f32[N, 3, 8, 8]", "f32[M, 3, 8, 8]"),
        ("f32[N, 3, 8, 8]", "f32[2, 3, 8, 8]"),
    ],
)
def test_what_counts(old: str, new: str) -> None:
    assert BODY.count(old) == 1
    text = BODY.replace(old, new)
    if "M" in new or "2, 3" in new:
        text = text.replace("[N, 4", new[3:5] + ", 4")
    assert graph_hash(net(text)) != graph_hash(NET)


def test_the_order_of_inputs_and_outputs_counts() -> None:
    swapped = NET.edit()
    swapped.outputs.reverse()
    turned = NET.edit()
    turned.inputs.reverse()
    hashes = {graph_hash(g) for g in (NET, swapped.build(), turned.build())}
    assert len(hashes) == 3


def test_the_order_of_the_walk() -> None:
    order = numbering(NET)
    assert order.nodes[:2] == ("image", "a.conv1")
    assert order.nodes.index("b.conv2") < order.nodes.index("other")
    assert order.parameters[:3] == ("a.conv1.bias", "a.conv1.weight", "a.bn.bias")
    assert sorted(order.parameters) == sorted(NET.parameters)
    for name in order.nodes:
        for value in NET.node(name).inputs:
            assert order.nodes.index(value.node) < order.nodes.index(name)


def test_dead_nodes_and_unread_inputs_are_numbered() -> None:
    graph = net("""
        input x: f32[N, 3]
        input idle: f32[N, 4]
        dead = x |> fc: linear(7)
        output y = x |> relu
    """)
    assert set(numbering(graph).nodes) == {node.name for node in graph}
    lively = net("input x: f32[N, 3]\ninput idle: f32[N, 4]\noutput y = x |> relu")
    assert graph_hash(graph) != graph_hash(lively)


def test_a_deep_network() -> None:
    """The walk keeps its own stack."""
    builder = GraphBuilder("deep")
    types = NET.node("other").types
    value = builder.add(Node("x", "input", {}, (), {}, types))
    builder.inputs.append("x")
    for number in range(5000):
        value = builder.add(Node(f"r{number}", "relu", {}, (value,), {}, types))
    builder.outputs.append(Output("y", value))
    assert len(numbering(builder.build()).nodes) == 5001
