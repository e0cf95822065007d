"""Text and graph: neither loses anything on the way to the other (see tests/fuzz as well)."""

from __future__ import annotations

from pathlib import Path

import pytest

from archir.diag import Source
from archir.ir.same import difference, equal
from archir.lang import format_text, load, print_graph
from archir.lang.flat import print_flat
from archir.lang.tree import read_path, write_path
from archir.ops import STANDARD

from .graphs import EXAMPLES, build, example


@pytest.mark.parametrize(
    ("name", "lines"),
    [("resnet50", 30), ("resnet20", 25), ("vgg16_bn", 22), ("nash_start", 14), ("digits", 16)],
)
def test_examples_print_short(name: str, lines: int) -> None:
    graph = example(name).graph
    text = print_graph(graph, STANDARD)
    assert equal(graph, build(text).graph)
    assert print_graph(build(text).graph, STANDARD) == text
    assert len(text.splitlines()) <= lines


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_formatted(path: Path) -> None:
    source = Source(path.name, path.read_text())
    assert format_text(source) == source.text


COMMENTED = """# top

# second
version   1 # v


# about b
block b(x,  # why
  y=2) { # head


  # first
  z = input|>relu   # t
  zz = z|>relu
  # mid

  q = zz # one
     # two
     |> relu|> k:conv(3, # deep
       3) # end

  output (if y==2 and x>3
     then q else z)
  # last

}
# tail of b
block c {} # c
arch n { input x:f32[N,3,2 *3,6] output a = x|>relu  let w=[1,2,3, "a, # b"] # two
output b =x|>b(1)
}
# eof"""


def test_formatting_keeps_comments_and_is_idempotent() -> None:
    once = format_text(Source("c.arch", COMMENTED))
    assert format_text(Source("c.arch", once)) == once
    comments = [
        "top",
        "second",
        "v",
        "why",
        "head",
        "first",
        "t",
        "mid",
        "one",
        "two",
        "deep",
        "end",
        "last",
        "c",
        "eof",
    ]
    for comment in [*comments, "about b", "tail of b"]:
        assert f"# {comment}\n" in once
    assert "\n\n\n" not in once
    assert "    zz = z     |> relu\n    # mid\n\n" in once
    assert once.count('"a, # b"') == 1


def test_long_lists_wrap() -> None:
    names = ", ".join(f'"class, {i}"' for i in range(100))
    text = f"arch n {{ input x: f32[N, 3] output x preprocess {{ classes = [{names}] }} }}"
    formatted = format_text(Source("f.arch", text))
    assert max(map(len, formatted.splitlines())) <= 120
    assert build(formatted).graph.meta == build(text).graph.meta


@pytest.mark.parametrize(
    "path", ["a", "a.b.0", "input", "input.x", "0", "x-y.z", "a..b", "`", "\\", "\n", ""]
)
def test_any_path_can_be_written(path: str) -> None:
    written = write_path(path)
    assert read_path(written) == path
    program = build(f"arch n {{ input x: f32[2] {written} = x |> relu output {written} }}")
    assert path in program.graph
    assert program.graph.outputs[0].value.node == path


def test_parameters_of_an_arch_can_be_set() -> None:
    path = EXAMPLES[0].parent / "resnet20.arch"
    program = load(Source(path.name, path.read_text()), STANDARD, {"classes": 100})
    assert program.graph.parameters["fc.weight"].type.shape == (100, 64)


@pytest.mark.parametrize("folded", [True, False])
def test_a_weight_tied_to_a_later_layer(folded: bool) -> None:
    graph = build("""arch n {
    input x: f32[N, 4]
    a = x |> linear(4, weight = b.c.weight) |> relu
    b = a |> c: linear(4) |> relu |> d: linear(4, bias = b.c.bias)
    output b |> end: linear(2)
}
""").graph
    text = print_graph(graph, STANDARD) if folded else print_flat(graph, STANDARD)
    assert difference(build(text).graph, graph) is None
    assert "weight = b.c.weight" in text


@pytest.mark.parametrize("folded", [True, False])
def test_a_shared_weight_whose_path_begins_like_the_node(folded: bool) -> None:
    """`c.weight` as a name below `b` would be a second parameter of that path."""
    graph = build("""arch n {
    input x: i64[N, 3]
    b.c = x |> embedding(6, 6)
    b = b.c |> linear(6, weight = b.c.weight)
    output b |> end: linear(2)
}
""").graph
    assert graph.node("b").params["weight"] == graph.node("b.c").params["weight"] == "b.c.weight"
    text = print_graph(graph, STANDARD) if folded else print_flat(graph, STANDARD)
    assert difference(build(text).graph, graph) is None


ARITHMETIC = """version 1
arch n {
    input x: f32[N, 4]
    input y: f32[N, 4]
    a = x - y
    b = 1 - a
    c = x / (y - 2) |> relu
    d = -c
    e = b |> linear(4) |> k: linear(4)
    f = lab: (e - a)
    output o = lab2: (-d) - f / 0.5
}
"""


def test_arithmetic_of_tensors() -> None:
    """Differences and quotients keep their order; what is printed means the same."""
    graph = build(ARITHMETIC).graph
    ops = {node.name: (node.op, [value.node for value in node.inputs]) for node in graph}
    assert ops["a"] == ("sub", ["x", "y"])
    assert ops["b.sub"][0] == "sub"
    assert ops["b.sub"][1][1] == "a"
    assert graph.node(ops["b.sub"][1][0]).attrs["value"] == 1
    assert ops["c.div"][0] == "div"
    assert ops["c.div"][1][0] == "x"
    assert ops["d"] == ("neg", ["c.relu"])
    assert ops["f.lab"] == ("sub", ["e.k", "a"])
    assert ops["lab2"] == ("neg", ["d"])
    assert ops["sub"] == ("sub", ["lab2", "div"])
    assert ops["div"][1][0] == "f.lab"
    text = print_graph(graph, STANDARD)
    assert difference(graph, build(text).graph) is None
    assert "x - y" in text


def test_a_scale_that_is_no_default_is_stated() -> None:
    """1.0 is what heads of width 1 have; the printer does not see the width."""
    graph = build("""arch net {
        input x: f32[N, 3, 3]
        output y = attention(x, x, x, scale = 1.0)
    }""").graph
    assert equal(build(print_graph(graph, STANDARD)).graph, graph)
