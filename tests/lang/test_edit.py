"""A change of a graph is a small change of its text."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

import pytest

from archir.ir.graph import Graph, Value
from archir.ir.same import difference
from archir.lang import Program, edit, format_text, print_graph
from archir.ops import STANDARD
from archir.ops.infer import infer
from archir.rewrite.library import installed
from archir.rewrite.sites import Planner

from .graphs import build, deepen, example, rewire, widen

Change = Callable[[Graph], Graph]


def changed(program: Program, change: Change) -> tuple[str, list[str]]:
    """The edited text and the lines that differ; the graph is checked."""
    after = change(program.graph)
    text = edit(program, after, STANDARD)
    assert difference(build(text).graph, after) is None
    lines = difflib.ndiff(program.source.text.splitlines(), text.splitlines())
    return text, [line for line in lines if line[0] in "+-"]


SECOND = ["stage2.0.conv2", "stage2.0.conv", "stage2.1.conv2", "stage2.2.conv2"]
STAGE = ["stem.conv", "stage1.0.conv2", "stage1.1.conv2", "stage1.2.conv2"]


@pytest.mark.parametrize(
    ("name", "change", "most"),
    [
        ("resnet20", lambda g: widen(g, ["stage1.1.conv1"], 24), 9),
        ("resnet20", lambda g: widen(g, STAGE, 24), 11),
        ("resnet20", lambda g: widen(g, SECOND, 40), 9),
        ("resnet20", lambda g: deepen(g, "stem.relu"), 5),
        ("resnet20", lambda g: deepen(g, "stage2.0.relu1"), 11),
        ("resnet20", lambda g: deepen(g, "stage2.1.relu2", norm=True), 10),
        ("resnet50", lambda g: deepen(g, "stem.relu"), 2),
        ("resnet50", lambda g: deepen(g, "layer2.1.relu3"), 13),
        ("resnet50", lambda g: deepen(g, "layer1.0.relu2"), 14),
        ("resnet50", lambda g: widen(g, ["layer3.2.conv1"], 300), 13),
        ("vgg16_bn", lambda g: widen(g, ["stage2.0.conv"], 160), 2),
        ("vgg16_bn", lambda g: widen(g, ["stage2.0.conv", "stage2.1.conv"], 160), 2),
        ("vgg16_bn", lambda g: widen(g, ["hidden.1.fc"], 5000), 2),
        ("vgg16_bn", lambda g: deepen(g, "stage5.2.relu"), 7),
        ("nash_start", lambda g: deepen(g, "stage2.relu", norm=True), 6),
        ("digits", lambda g: widen(g, ["fc1"], 48), 2),
        ("digits", lambda g: deepen(deepen(g, "body.relu2"), "body.relu1"), 5),
    ],
)
def test_the_difference_is_small(name: str, change: Change, most: int) -> None:
    program = example(name)
    text, lines = changed(program, change)
    assert 0 < len(lines) <= most
    assert all(line in text for line in program.source.text.splitlines() if line.startswith("#"))
    assert format_text(build(text).source) == text


@pytest.mark.parametrize("name", ["resnet20", "digits", "nash_start"])
def test_every_relu_can_be_deepened_twice(name: str) -> None:
    program = example(name)
    plain = print_graph(program.graph, STANDARD)
    for node in program.graph:
        if node.op == "relu" and node.types[0].rank == 4:
            text, _ = changed(program, lambda g, at=node.name: deepen(g, at))  # type: ignore[misc]
            assert text != plain
            changed(build(text), lambda g, at=node.name: deepen(g, at, norm=True))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "digits"])
def test_any_value_can_be_followed_by_more(name: str) -> None:
    program = example(name)
    for node in program.graph:
        if node.op in ("conv", "add", "input", "max_pool", "batch_norm"):
            assert node.types[0].rank == 4
            changed(program, lambda g, at=node.name: deepen(g, at))  # type: ignore[misc]


def test_stages_are_put_into_arithmetic_of_tensors() -> None:
    program = build("""arch n {
    input x: f32[N, 4, 8, 8]
    a = x |> relu
    b = (x - a) / a
    c = -b
    d = low: (1 - c)
    output y = gap: (-d) - a
}
""")
    tail = "new_conv: conv(4, 3) |> new_relu: relu"
    for at, now in {
        "a": "b        = (x - new_relu) / new_relu",
        "b.sub": f"b = (x - a |> {tail}) / a",
        "b.div": f"b = (x - a) / a |> {tail}",
        "c": "c        = -b",
        "d.low": f"d = low: (1 - c) |> {tail}",
        "gap": f"output y = (gap: (-d) |> {tail}) - a",
        "sub": f"output y = gap: (-d) - a |> {tail}",
    }.items():
        text, _ = changed(program, lambda g, at=at: deepen(g, at))  # type: ignore[misc]
        assert now in text


def test_comments_stay() -> None:
    program = build("""# head
block b(width) {  # block
    # own line
    y = input |> c: conv(width, 3)  # trailing
              # between
              |> relu
    output y
}

arch n {
    input x: f32[N, 4, 8, 8]
    y = x |> 3 * b(4)  # three
    output y  # end
}
""")
    text, _ = changed(program, lambda g: deepen(widen(g, ["y.2.c"], 9), "y.1.relu"))
    for comment in ("head", "block", "own line", "trailing", "between", "three", "end"):
        assert f"# {comment}\n" in text
    assert "|> b(4) |> b_1(4) |> b(9)" in text


def test_nested_blocks_are_copied_as_far_as_needed() -> None:
    program = build("""block inner(w) {
    output input |> c: conv(w, 3) |> relu
}
block outer(w) {
    output input |> k: 2 * inner(w) |> d: conv(w)
}
arch n {
    input x: f32[N, 4, 8, 8]
    y = x |> 3 * outer(4)
    output y
}
""")
    text, lines = changed(program, lambda g: widen(g, ["y.1.k.0.c"], 7))
    assert "k.0: inner(7) |> k.1: inner(w)" in text
    assert "y = x |> outer(4) |> outer_1(4) |> outer(4)" in text
    assert text.count("block inner") == 1
    text, _ = changed(program, lambda g: deepen(g, "y.2.k.1.relu"))
    assert text.count("block ") == 4
    assert len(lines) <= 6


def test_instances_that_change_alike_share_the_block() -> None:
    program = example("resnet20")
    relus = [n.name for n in program.graph if n.name.endswith("relu1")]

    def change(graph: Graph) -> Graph:
        for name in relus:
            if name.startswith("stage1"):
                graph = deepen(graph, name)
        return graph

    text, _ = changed(program, change)
    assert text.count("block ") == 2
    assert "3 * basic_1(16)" in text


def test_a_stage_that_goes_takes_only_itself() -> None:
    program = build(
        "arch n {\n    input x: f32[N, 4]\n    y = x |> relu |> dropout |> relu\n    output y\n}\n"
    )

    def without(graph: Graph) -> Graph:
        builder = graph.edit()
        rewire(builder, Value("y.relu1"), Value("x"))
        del builder.nodes["y.relu1"]
        return builder.build()

    text, _ = changed(program, without)
    assert "y = x |> dropout |> relu2: relu\n" in text.replace("dropout: dropout", "dropout")


def test_what_is_unchanged_stays_as_it_is() -> None:
    program = build("arch n { input x : f32[ N,4 ]  output x|>relu }")
    assert edit(program, program.graph, STANDARD) == program.source.text


def test_a_text_that_was_not_formatted_stays_so() -> None:
    program = build("arch n { input x : f32[ N,4 ]\n  y=x|>linear(5)|>relu\n output y }")
    text, _ = changed(program, lambda g: widen(g, ["y.linear"], 9))
    assert text == program.source.text.replace("linear(5)", "linear(9)")


def test_free_tensors_take_their_new_sizes() -> None:
    program = build("""# head
block scaled(width) {
    param gamma: f32[width, 1, 1] = 0.5  # trained
    output (input |> c: conv(width, 3)) * gamma + 1
}

arch n {
    input x: f32[N, 3, 8, 8]
    buffer shift: f32[6, 1, 1] = 0.25  # not trained
    y = x |> scaled(6)
    z = y + shift  # sum
    output z |> relu |> end: conv(2)
}
""")

    def change(graph: Graph) -> Graph:
        builder = graph.edit()
        for at, attr, value in (
            ("y.c", "out", 9),
            ("y.gamma", "shape", (9, 1, 1)),
            ("shift", "shape", (9, 1, 1)),
        ):
            node = builder.nodes[at]
            builder.nodes[at] = replace(node, attrs={**node.attrs, attr: value})
        return infer(builder.build(), STANDARD)

    text, lines = changed(program, change)
    assert all(f"# {word}" in text for word in ("head", "trained", "not trained", "sum"))
    assert "buffer shift: f32[9, 1, 1] = 0.25" in text
    assert len(lines) <= 8


def test_instances_named_after_their_block_keep_their_paths() -> None:
    program = build("""block unit(w) {  # small
    output input |> c: conv(w, 3) |> relu
}

block pair(w) {
    output input |> 2 * unit(w) |> tail: unit(w)
}

block one(w) {
    output input |> unit(w) |> relu
}

arch n {
    input x: f32[N, 4, 8, 8]
    y = x |> 2 * pair(4) |> one(4)
    output y
}
""")
    text, lines = changed(program, lambda g: deepen(g, "y.1.unit.0.relu"))
    assert "input |> unit.0: unit_1(w) |> unit.1: unit(w) |> tail: unit(w)" in text
    assert "# small" in text
    assert len(lines) <= 12
    text, _ = changed(program, lambda g: deepen(g, "y.2.unit.relu"))
    assert "input |> unit: unit_1(w) |> relu" in text
    text, _ = changed(program, lambda g: deepen(deepen(g, "y.0.unit.0.relu"), "y.0.unit.1.relu"))
    assert "input |> unit: 2 * unit_1(w) |> tail: unit(w)" in text


def rewritten(name: str, rule: str, at: str) -> tuple[str, list[str]]:
    """The text after a rule of the library, and the lines that differ; the graph is checked."""
    program = example(name)
    planner = Planner(program.graph, STANDARD)
    chosen = installed(STANDARD)[rule]
    plan = planner.plan(chosen, at, planner.example_arguments(chosen, at))
    return changed(program, lambda _: plan.after)


@pytest.mark.parametrize(
    ("name", "rule", "at", "most"),
    [
        ("resnet20", "deepen.residual", "stem.relu", 13),
        ("resnet20", "deepen.residual", "stem.conv", 13),
        ("resnet20", "deepen.residual", "stage1.1.relu1", 10),
        ("resnet20", "branch.zero", "stage2.0.conv2", 12),
        ("resnet20", "branch.replicate", "stage2.1.conv1", 12),
        ("resnet20", "skip.add", "stage1.0.relu2", 14),
        ("resnet20", "skip.concat", "stage3.2.conv1", 10),
        ("resnet20", "activation.prelu", "stage1.0.relu2", 10),
        ("resnet20", "norm.group", "fc", 16),
        ("resnet20", "fold.batch_norm", "stage1.0.bn1", 10),
        ("resnet20", "bias.insert", "stem.conv", 2),
        ("resnet50", "branch.split_add", "layer2.1.conv2", 20),
        ("vit_tiny", "transformer.insert", "blocks.1.add2", 22),
    ],
)
def test_what_branches_and_joins_is_put_into_its_block(
    name: str, rule: str, at: str, most: int
) -> None:
    text, lines = rewritten(name, rule, at)
    assert 0 < len(lines) <= most, "\n".join(lines)
    before = example(name).source.text
    for line in before.splitlines():
        if line.lstrip().startswith("#") or line.startswith(("block", "arch")):
            assert line in text.splitlines()


def test_comments_within_a_statement_that_is_stated_anew_stay() -> None:
    text = """version 1
arch net {
    input x: f32[N, 4, 8, 8]
    y = x |> conv1: conv(4, 3)  # the first
          # one more
          |> relu |> conv2: conv(4, 3)
    output y
}
"""
    program = build(text)
    planner = Planner(program.graph, STANDARD)
    plan = planner.plan(installed(STANDARD)["deepen.residual"], "y.relu", {"kernel": 3})
    new, _ = changed(program, lambda _: plan.after)
    assert "# the first" in new
    assert "# one more" in new
