"""The text of networks from elsewhere: blocks, repeats, names, sizes; and what rewrites leave."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph
from archir.ir.same import difference
from archir.lang import Program, edit, format_text, load, print_graph
from archir.lang.layout import WIDTH
from archir.lang.outline import block_names
from archir.ops import STANDARD
from archir.rewrite.library import installed
from archir.rewrite.sites import Planner

from .graphs import build

FOLDER = Path(__file__).parent.parent / "golden" / "imported"
NETWORKS = {
    "resnet50": 30,
    "mobilenet_v3_small": 65,
    "shufflenet_v2_x0_5": 45,
    "vit_b_32": 50,
    "swin_t": 105,
}
"""Networks of torchvision, and how many lines each may have."""


@cache
def imported(name: str) -> tuple[Graph, Mapping[str, str]]:
    """A network of torchvision as a graph, and names for its blocks."""
    torch = pytest.importorskip("torch", reason="torch captures the networks")
    models = pytest.importorskip("torchvision", reason="the networks are torchvision's").models
    from archir.backends.torch_fx.raising.capture import capture
    from archir.backends.torch_fx.raising.paths import block_names as named
    from archir.backends.torch_fx.raising.walk import Walk

    module = models.get_model(name, weights=None)
    program = capture(module, [torch.zeros(2, 3, 224, 224)], train=True)
    classes = {path: type(each).__name__ for path, each in module.named_modules()}
    walk = Walk(program, STANDARD, name, train=True, classes=classes)
    return walk.run(1).graph, named(classes)


@cache
def golden(name: str) -> Program:
    """The program of a golden text, which needs no torch."""
    return load(Source(f"{name}.arch", (FOLDER / f"{name}.arch").read_text()), STANDARD)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_text_of_a_network(name: str, update_golden: bool) -> None:
    graph, kinds = imported(name)
    text = print_graph(graph, STANDARD, kinds)
    expected = FOLDER / f"{name}.arch"
    if update_golden:
        FOLDER.mkdir(exist_ok=True)
        expected.write_text(text)
    assert text == expected.read_text()
    assert difference(graph, build(text).graph) is None


@pytest.mark.parametrize("name", NETWORKS)
def test_a_text_is_short_and_stays(name: str) -> None:
    program = golden(name)
    text = program.source.text
    assert text.count("\n") <= NETWORKS[name]
    assert max(map(len, text.splitlines())) <= WIDTH
    assert format_text(Source(name, text)) == text
    assert print_graph(program.graph, STANDARD, block_names(program.origins)) == text


@pytest.mark.parametrize(
    ("name", "rule", "at", "arguments", "most"),
    [
        ("resnet50", "deepen", "layer2.1.relu1", {}, 9),
        ("resnet50", "deepen", "relu", {}, 4),
        ("resnet50", "widen", "layer3.2.conv1", {"width": 300}, 9),
        ("resnet50", "widen", "layer3.0.conv3", {"width": 1100}, 11),
        ("resnet50", "widen", "conv1", {"width": 80}, 2),
        ("resnet50", "squeeze_excite.insert", "layer3.2.bn3", {}, 15),
        ("resnet50", "branch.split_add", "layer3.2.conv2", {}, 11),
        ("mobilenet_v3_small", "widen", "features.7.block.0.0", {"width": 130}, 12),
        ("mobilenet_v3_small", "deepen", "features.5.block.2.relu", {"kernel": 3}, 15),
        ("shufflenet_v2_x0_5", "deepen", "conv5.relu", {"kernel": 3}, 8),
        ("vit_b_32", "widen", "encoder.layers.encoder_layer_5.mlp.0", {"width": 3100}, 14),
        ("vit_b_32", "transformer.insert", "encoder.layers.encoder_layer_5.add2", {}, 15),
        ("swin_t", "widen", "features.5.1.mlp.0", {"width": 1600}, 14),
    ],
)
def test_a_rewrite_is_a_small_diff(
    name: str, rule: str, at: str, arguments: dict[str, int], most: int
) -> None:
    program = golden(name)
    planner = Planner(program.graph, STANDARD)
    chosen = installed(STANDARD)[rule]
    plan = planner.plan(chosen, at, arguments or planner.example_arguments(chosen, at))
    text = edit(program, plan.after, STANDARD)
    assert difference(build(text).graph, plan.after) is None
    assert format_text(Source(name, text)) == text
    lines = difflib.ndiff(program.source.text.splitlines(), text.splitlines())
    assert len([line for line in lines if line[0] in "+-"]) <= most


# -- the pieces, in small networks


def again(text: str, kinds: Mapping[str, str] | None = None) -> str:
    """A text printed anew from its graph, which must come back."""
    program = build(text)
    new = print_graph(program.graph, STANDARD, kinds)
    assert difference(build(new).graph, program.graph) is None
    return new


def test_parameters_beside_a_layer() -> None:
    text = """version 1
block attn(width) {
    y = input |> relu
              |> in_proj: linear(width) params { weight: .in_proj_weight, bias: .deep.in_proj_bias }
    output y + input
}

arch net {
    input x: f32[N, 8]
    a = x |> 2 * attn(8)
    output logits = a |> head: linear(3) params { weight: .head_weight }
}
"""
    program = build(text)
    assert "a.0.in_proj_weight" in program.graph.parameters
    assert "a.1.deep.in_proj_bias" in program.graph.parameters
    assert "head_weight" in program.graph.parameters
    assert "{ weight: .in_proj_weight, bias: .deep.in_proj_bias }" in again(text)


def test_two_owners_of_a_parameter_below_the_scope() -> None:
    shared = """version 1
arch net {
    input x: f32[N, 8]
    a = x |> p: linear(8, bias = false) params { weight: .w }
          |> q: linear(8, bias = false) params { weight: .w }
    output a
}
"""
    assert set(build(shared).graph.parameters) == {"a.w"}
    with pytest.raises(ArchirError) as caught:
        build(shared.replace("q: linear(8, ", "q: linear(4, "))
    assert [d.code for d in caught.value.diagnostics] == ["A121"]


def test_a_path_that_begins_with_a_dot_stands_in_renames_alone() -> None:
    with pytest.raises(ArchirError) as caught:
        build("arch net { input x: f32[N, 8] output y = x |> .relu }")
    assert caught.value.diagnostics[0].code == "A001"


def test_blocks_are_called_after_classes() -> None:
    text = """version 1
block one { output (input |> a: linear(8) |> relu) + input }
block two { output (input |> a: linear(8) |> relu |> down.0: linear(8)) + input }
arch net {
    input x: f32[N, 8]
    y = x |> one |> one |> two
    output logits = y
}
"""
    kinds = {"y.0": "unit_block", "y.1": "unit_block", "y.2": "unit_block"}
    new = again(text, kinds)
    assert "2 * unit_block |> unit_block_down" in new
    assert "block unit_block {" in new
    assert print_graph(build(new).graph, STANDARD, block_names(build(new).origins)) == new


def test_sizes_are_reckoned_from_the_input() -> None:
    text = """version 1
block mlp(a, b) {
    output (input |> fc1: linear(a) |> relu |> fc2: linear(b)) + input
}
arch net {
    input x: f32[N, 8]
    s = x |> mlp(32, 8)
    t = s |> linear(16)
    u = t |> mlp(64, 16)
    output u
}
"""
    new = again(text)
    assert "fc1: linear(4 * channels(input))" in new
    assert "fc2: linear(channels(input))" in new
    assert "block s {" in new
    assert "s = x |> s" in new


def test_entries_of_a_list_are_parameters() -> None:
    text = """version 1
block folded(a, b) {
    output input |> reshape([0, 2, a, b]) |> transpose(1, 2) |> reshape([0, 24]) |> relu
}
arch net {
    input x: f32[N, 24]
    y = x |> folded(3, 4) |> folded(6, 2)
    output y
}
"""
    assert "reshape([0, 2, extent, extent2])" in again(text)


def test_numbers_stand_where_they_are_read() -> None:
    text = """version 1
block gated {
    y = input |> a: linear(8)
    mul1 = mul1: (y * 0.5)
    output mul2: (mul1 * input)
}
arch net {
    input x: f32[N, 8]
    y = x |> 2 * gated
    output y
}
"""
    assert "a * 0.5" in again(text)
    named = text.replace("mul1 = mul1: (y * 0.5)", "c = constant(0.5)\n    mul1 = y * c")
    assert "c    = constant(0.5)" in again(named)


def test_tensors_of_a_block() -> None:
    text = """version 1
block scaled {
    param gamma: f32[8] = 1.0
    buffer count: i64[8]
    table = parameter([8], persistent = false)
    y = gamma * input
    output z: (y + table)
}
arch net {
    input x: f32[N, 8]
    y = x |> 2 * scaled
    output y
}
"""
    text = text.replace("    buffer count: i64[8]\n", "")
    new = again(text)
    assert "param gamma: f32[8] = 1.0" in new
    assert "table = parameter([8], persistent = false)" in new
    assert "2 * scaled" not in new
    assert "2 * " in new


def test_a_block_with_two_tensors() -> None:
    text = """version 1
block join(skip: tensor, width) {
    y = input |> a: linear(width)
    z = skip |> b: linear(width)
    output y + z |> relu
}
arch net {
    input x: f32[N, 8]
    input y: f32[N, 4]
    s = join(x, y, 8)
    t = join(s, y, 6)
    output t
}
"""
    new = again(text, {"s": "join", "t": "join"})
    assert "block join(skip: tensor, width)" in new
    assert "x |> join(y, 8)" in new


def test_what_joins_any_number_of_tensors_stands_before_a_block() -> None:
    text = """version 1
arch net {
    input x: f32[N, 4]
    a = concat: concat(x) |> fc: linear(4) |> relu |> out: linear(4)
    b = concat: concat(x, a) |> fc: linear(4) |> relu |> out: linear(4)
    c = concat: concat(x, a, b) |> fc: linear(4) |> relu |> out: linear(4)
    output c
}
"""
    new = again(text)
    assert new.count("block ") == 1
    assert new.count("fc: linear(4)") == 1


def test_sizes_that_follow_are_left_alone() -> None:
    text = """version 1
block mlp(hidden) {
    output (input |> fc1: linear(hidden) |> relu |> fc2: linear(channels(input))) + input
}

arch net {
    input x: f32[N, 8]
    stem = x |> linear(16)
    y    = stem |> 3 * mlp(32)
    output logits = y |> head: linear(3)
}
"""
    program = build(format_text(Source("net", text)))
    planner = Planner(program.graph, STANDARD)
    plan = planner.plan(installed(STANDARD)["widen"], "stem", {"width": 20})
    new = edit(program, plan.after, STANDARD)
    assert difference(build(new).graph, plan.after) is None
    assert new == program.source.text.replace("linear(16)", "linear(20)")
