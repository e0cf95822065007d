"""Well-formedness: each law notices the breach that it is there for."""

from dataclasses import replace

import pytest

from archir.diag import ArchirError, Source
from archir.ir.check import check, problems
from archir.ir.graph import Graph, GraphBuilder, Output, Parameter, Value
from archir.lang import load
from archir.ops import STANDARD

TEXT = """
arch net {
    input x: f32[N, 3]
    a = x |> linear(5)
    b = a |> relu
    output y = b
}
"""


def network() -> Graph:
    return load(Source("net.arch", TEXT), STANDARD).graph


def broken(change: str) -> Graph:
    """The network with one thing wrong."""
    builder: GraphBuilder = network().edit()
    node = builder.nodes["b"]
    if change == "port":
        builder.put(replace(node, inputs=(Value("a", 1),)))
    elif change == "no output":
        builder.outputs = []
    elif change == "doubled output":
        builder.outputs.append(Output("y", Value("a")))
    elif change == "output of nothing":
        builder.outputs = [Output("y", Value("b", 3))]
    elif change == "input":
        builder.inputs = ["a"]
    elif change == "missing parameter":
        del builder.parameters["a.bias"]
    elif change == "filed elsewhere":
        parameter = builder.parameters["a.bias"]
        builder.parameters["a.bias"] = Parameter("c.bias", parameter.type)
    return builder.build()


def test_a_loaded_network_is_well_formed() -> None:
    assert problems(network()) == []
    check(network(), "the test")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("port", "b reads output 1 of a"),
        ("no output", "no output"),
        ("doubled output", "two outputs are named y"),
        ("output of nothing", "b:3"),
        ("input", "x is an input node but no input of the network"),
        ("missing parameter", "the bias of a is a.bias"),
        ("filed elsewhere", "c.bias is filed under a.bias"),
    ],
)
def test_each_breach_is_named(change: str, words: str) -> None:
    graph = broken(change)
    assert any(words in text for text in problems(graph))
    with pytest.raises(ArchirError) as caught:
        check(graph, "the test")
    assert caught.value.diagnostics[0].code == "A911"
