"""Pictures of one block: what enters and leaves it, and how far it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from archir.backends.draw import svg
from archir.backends.draw.picture import GLANCE, Box, picture
from archir.backends.draw.texts import last_line

from archir.diag import ArchirError, Source
from archir.files import read_source
from archir.ir.graph import Graph
from archir.lang import load
from archir.lang.outline import block_names
from archir.ops import STANDARD
from archir.target import draw

EXAMPLES = Path(__file__).parents[2] / "examples"
NS = "{http://www.w3.org/2000/svg}"


def network(text: str) -> Graph:
    return load(Source("net.arch", text), STANDARD).graph


def example(name: str) -> Graph:
    return load(read_source(EXAMPLES / f"{name}.arch"), STANDARD).graph


def ends(graph: Graph, at: str, **options: Any) -> tuple[list[str], list[str], list[Box]]:
    """The lines of the small ends above and below, and the boxes between."""
    boxes = picture(graph, STANDARD, at=at, **options).boxes
    small = [box for box in boxes if not box.nodes]
    between = [box for box in boxes if box.nodes]
    into = [last_line(box) for box in small if box.name.startswith("from ")]
    assert boxes[: len(into)] == small[: len(into)]
    assert boxes[len(into) : -len(small) + len(into)] == between
    return into, [last_line(box) for box in small[len(into) :]], between


def test_the_cell_of_darts() -> None:
    """Figure 4 of the paper: what each node reads, and through which operation."""
    program = load(read_source(EXAMPLES / "darts_v2.arch"), STANDARD)
    kinds = block_names(program.origins)
    found = picture(program.graph, STANDARD, at="cells.3", kinds=kinds)
    assert found.title == "darts_v2, cells.3 (normal): 29,124 parameters, 28,864,512 MACs"
    texts = [" + ".join(box.parts) or last_line(box) for box in found.boxes]
    older, newer = "from cells.1.concat : 144 x 32 x 32", "from cells.2.concat : 144 x 32 x 32"
    assert texts[:2] == [older, newer]
    assert texts[-1] == "to cells.4, cells.5 : 144 x 32 x 32"
    sep = [box for box in found.boxes if box.parts == ["sep_conv"]]
    assert [box.name for box in sep] == [f"_ops.{i}, 8 layers" for i in range(5)]
    short = {
        path: index
        for index, box in enumerate(found.boxes)
        for path in [box.name.partition(",")[0].removesuffix(".op.1")]
    }
    edges = {(edge.source, edge.target) for edge in found.edges}
    a, b = short["preprocess0"], short["preprocess1"]
    drawn_edges = {
        (a, short["_ops.0"]), (b, short["_ops.1"]), (a, short["_ops.2"]), (b, short["_ops.3"]),
        (b, short["_ops.4"]), (a, short["add3"]), (a, short["add4"]),
        (short["add1"], short["_ops.7"]), (short["_ops.7"], short["add4"]),
        *((short[f"add{i}"], short["concat"]) for i in (1, 2, 3, 4)),
        *((short[f"_ops.{i}"], short[f"add{1 + i // 2}"]) for i in range(5)),
        (0, a), (1, b), (short["concat"], len(texts) - 1),
    }  # fmt: skip
    assert edges == drawn_edges


@pytest.mark.parametrize(
    ("name", "at", "into", "out"),
    [
        ("resnet20", "stem", ["from image : 3 x 32 x 32"], ["to stage1 : 16 x 32 x 32"]),
        ("resnet20", "stage2", ["from stage1.2.relu2 : 16 x 32 x 32"],
         ["to stage3 : 32 x 16 x 16"]),
        ("resnet20", "stage2.1", ["from stage2.0.relu2 : 32 x 16 x 16"],
         ["to stage2.2 : 32 x 16 x 16"]),
        ("resnet20", "fc", ["from global_avg_pool : 64"], ["to output logits : 10"]),
        ("vit_tiny", "blocks.3.attn", ["from blocks.3.norm1 : 197 x 192",
         "from blocks.3.attention : 197 x 192"],
         ["to blocks.3.chunk : 197 x 576", "to blocks.3.add1 : 197 x 192"]),
        ("shufflenet_v2_x1_0", "stage2.1.branch2", ["from stage2.1.a:1 : 58 x 28 x 28"],
         ["to stage2.1.concat : 58 x 28 x 28"]),
    ],
)  # fmt: skip
def test_what_enters_and_leaves_a_block(
    name: str, at: str, into: list[str], out: list[str]
) -> None:
    graph = example(name)
    above, below, between = ends(graph, at)
    assert (above, below) == (into, out)
    inside = {node.name for node in graph if f"{node.name}.".startswith(f"{at}.")}
    whole = [node.name for box in ends(graph, at, fold=False, depth=9)[2] for node in box.nodes]
    assert sorted(whole) == sorted(inside)
    assert {node.name for box in between for node in box.nodes} <= inside
    drawn = ElementTree.fromstring(svg.write(graph, STANDARD, at=at).text)
    boxes = [g.get("data-path") for g in drawn.iter(f"{NS}g") if "box" in str(g.get("class"))]
    assert len(boxes) == len(set(boxes)) == len(into) + len(between) + len(out)


def test_a_block_is_opened_as_far_as_is_read_at_a_glance() -> None:
    graph = example("efficientnet_b0")
    shown = {depth: len(ends(graph, "features.6", depth=depth)[2]) for depth in (0, 1, 2, 9, None)}
    assert shown[None] == max(n for n in shown.values() if n <= GLANCE)
    assert shown[0] < shown[1] < shown[9]
    assert shown[9] > GLANCE
    (box,) = ends(graph, "features.0")[2]
    assert box.parts == ["conv 3x3, 32 /2", "bn", "silu"]


def test_what_has_nothing_to_close_is_drawn_whole() -> None:
    chain = " |> ".join(f"fc{i}: linear(3) |> reshape([0, 3])" for i in range(20))
    graph = network(
        f"block long {{ output input |> {chain} }}\n"
        "arch net() { input x: f32[N, 3]\n output y = x |> s: long }"
    )
    assert len(ends(graph, "s")[2]) == 40 > GLANCE
    assert [box.family for box in ends(graph, "s.fc3")[2]] == ["linear"]


def test_a_value_that_many_read_names_a_few() -> None:
    readers = "\n".join(f"b{i} = m |> linear(2)" for i in range(7))
    total = " + ".join(f"b{i}" for i in range(7))
    graph = network(
        f"arch net() {{ input x: f32[N, 3]\n m = x |> fc1: linear(3) |> fc2: linear(3)\n{readers}\n"
        f"output y = {total}\n output z = m }}"
    )
    _, below, _ = ends(graph, "m")
    assert below == ["to b0, b1, b2, b3 and 4 more : 3"]


@pytest.mark.parametrize("form", ["svg", "dot"])
def test_no_such_block(form: str) -> None:
    graph = example("resnet20")
    with pytest.raises(ArchirError, match=r"A605: .*no block or layer `stage4`") as caught:
        draw(form)(graph, STANDARD, at="stage4")
    assert caught.value.diagnostics[0].hint == "did you mean stage3 or stage2 or stage1?"
