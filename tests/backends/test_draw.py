"""Pictures: what is on them, where it lies, and that any network can be drawn or is refused."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from archir.backends.draw import dot, labels, svg
from archir.backends.draw.picture import Box, Cluster, picture
from archir.backends.draw.place import PADDING, SMALL, TEXT, Rect, place
from archir.backends.draw.texts import LONGEST, last_line, text_width, title_lines

from archir.diag import ArchirError, Source
from archir.files import read_source
from archir.ir.graph import Graph, Value
from archir.lang import load
from archir.lang.outline import MAX_SCOPES
from archir.ops import STANDARD
from archir.target import draw, formats

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "draw"
NAMES = ("digits", "resnet20", "resnet50", "vgg16_bn", "googlenet", "nasbench201")
NS = "{http://www.w3.org/2000/svg}"
EDGE = 0.11
"""Coordinates are written to a tenth."""
JOG = 0.6
"""What is no bend to the eye."""

TANGLE = """
block side(width) { output input |> relu |> conv: conv(width) |> bn: batch_norm }
block cell(other: tensor) {
    a = input |> a: side(4)
    b = other |> b: side(4)
    n = a + b
    c = n |> c: side(4)
    output concat(n, c, a)
}
arch tangle() {
    input x: f32[N, 4, 8, 8]
    input z: f32[N, 4, 8, 8]
    one = cell(x, z)
    two = cell(one, x)
    output y = cell(two, one)
    output side = one
}
"""
CHAIN = """
block unit(width) {
    y = input |> conv1: conv(width, 3) |> bn1: batch_norm |> relu1: relu |> conv2: conv(width, 3)
    output y + input
}
arch chain() {
    input x: f32[N, 4, 8, 8]
    body = x |> 3 * unit(4)
    output y = body
}
"""


def network(text: str) -> Graph:
    return load(Source("net.arch", text), STANDARD).graph


def example(name: str) -> Graph:
    return load(read_source(ROOT / "examples" / f"{name}.arch"), STANDARD).graph


def graphs() -> dict[str, Graph]:
    return {
        **{name: example(name) for name in NAMES},
        "tangle": network(TANGLE),
        "chain": network(CHAIN),
    }


@pytest.fixture(scope="module", params=[*NAMES, "tangle", "chain"])
def graph(request: pytest.FixtureRequest) -> Graph:
    return graphs()[request.param]


@pytest.fixture(params=[True, False], ids=["folded", "all"])
def fold(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def drawn(graph: Graph, **options: Any) -> ElementTree.Element:
    return ElementTree.fromstring(svg.write(graph, STANDARD, **options).text)


def groups(root: ElementTree.Element, kind: str) -> dict[str, ElementTree.Element]:
    found = [g for g in root.iter(f"{NS}g") if kind in g.get("class", "").split()]
    assert len({g.get("data-path") for g in found}) == len(found)
    return {str(g.get("data-path")): g for g in found}


def rect_of(group: ElementTree.Element) -> Rect:
    rect = group.findall(f"{NS}rect")[-1]
    return Rect(*(float(str(rect.get(name))) for name in ("x", "y", "width", "height")))


def contains(outer: Rect, inner: Rect, slack: float = EDGE) -> bool:
    return (
        outer.x <= inner.x + slack
        and outer.y <= inner.y + slack
        and inner.x + inner.width <= outer.x + outer.width + slack
        and inner.y + inner.height <= outer.y + outer.height + slack
    )


def overlap(one: Rect, other: Rect) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


def path_edges(root: ElementTree.Element) -> list[tuple[str, str]]:
    paths = [p for p in root.iter(f"{NS}path") if p.get("data-from") is not None]
    return [(str(p.get("data-from")), str(p.get("data-to"))) for p in paths]


def test_every_layer_is_in_one_box_and_every_edge_is_drawn(graph: Graph) -> None:
    made = picture(graph, STANDARD, fold=False)
    owners = {node.name: box.path for box in made.boxes for node in box.nodes}
    assert sorted(owners) == sorted(node.name for node in graph)
    assert sum(len(box.nodes) for box in made.boxes) == len(graph)
    expected = {
        (owners[value.node], owners[node.name])
        for node in graph
        for value in node.inputs
        if owners[value.node] != owners[node.name]
    } | {(owners[output.value.node], output.name) for output in graph.outputs}
    root = drawn(graph, fold=False)
    found = path_edges(root)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert set(groups(root, "box")) == set(owners.values()) | {o.name for o in graph.outputs}


def test_boxes_do_not_overlap_and_lie_in_their_clusters(graph: Graph, fold: bool) -> None:
    root = drawn(graph, fold=fold)
    boxes = {path: rect_of(group) for path, group in groups(root, "box").items()}
    assert not any(overlap(a, b) for a, b in itertools.combinations(boxes.values(), 2))
    clusters = {path: rect_of(group) for path, group in groups(root, "cluster").items()}
    made = picture(graph, STANDARD, fold=fold)
    page = Rect(-20, -50, float(str(root.get("width"))), float(str(root.get("height"))))

    def check(cluster: Cluster, frame: Rect) -> None:
        rects = []
        for member in cluster.members:
            rects.append(boxes[member.path] if isinstance(member, Box) else clusters[member.path])
            assert contains(frame, rects[-1], 0.0 if cluster is made.root else EDGE)
            if isinstance(member, Cluster):
                check(member, rects[-1])
        assert not any(overlap(a, b) for a, b in itertools.combinations(rects, 2))

    check(made.root, page)


def test_texts_lie_in_their_boxes(graph: Graph) -> None:
    root = drawn(graph)
    for group in groups(root, "box").values():
        rect = rect_of(group)
        texts = group.findall(f"{NS}text")
        assert len(texts) >= 2
        for text in texts:
            size = SMALL if text.get("class") == "small" else TEXT
            width = text_width(str(text.text), size)
            assert width <= rect.width
            assert abs(float(str(text.get("x"))) - (rect.x + rect.width / 2)) <= EDGE
            y = float(str(text.get("y")))
            assert rect.y + 0.8 * size <= y + EDGE
            assert y <= rect.y + rect.height - 0.25 * size


@pytest.mark.parametrize(
    ("text", "ems"),
    [  # advances of DejaVu Sans, the widest of the fonts that are usual
        ("conv 3x3, 64 /2 + bn + relu", 13.91),
        ("max pool 2x2 /2", 8.11),
        ("stage1.0.conv1 : 16 x 32 x 32", 14.96),
        ("WWMM@@%%", 7.61),
        ("illj.,:;'| /-", 4.05),
    ],
)
def test_texts_are_no_wider_than_is_thought(text: str, ems: float) -> None:
    assert ems <= text_width(text, 1.0) <= 1.35 * ems


def test_edges_run_from_border_to_border_and_through_no_other_box(graph: Graph, fold: bool) -> None:
    made = picture(graph, STANDARD, fold=fold)
    placed = place(made)
    for edge, way in zip(made.edges, placed.ways, strict=True):
        source, target = placed.boxes[edge.source], placed.boxes[edge.target]
        for rect, (x, y) in ((source, way[0]), (target, way[-1])):
            assert contains(rect, Rect(x, y, 0, 0), 1e-6)
        assert way[0][1] == pytest.approx(source.y + source.height)
        for (x1, y1), (x2, y2) in itertools.pairwise(way):
            assert abs(x1 - x2) < JOG or abs(y1 - y2) < JOG
            line = Rect(min(x1, x2), min(y1, y2), abs(x1 - x2), abs(y1 - y2))
            for index, rect in enumerate(placed.boxes):
                if index not in (edge.source, edge.target):
                    assert not overlap(rect, line)


def test_main_texts() -> None:
    found = {
        box.path: "".join(title_lines(box)) for box in picture(example("resnet50"), STANDARD).boxes
    }
    assert found["conv1"] == "conv 7x7, 64 /2 + bn"
    assert found["layer1.0.conv1"] == "conv 1x1, 64 + bn + relu"
    assert found["layer2.0.downsample.0"] == "conv 1x1, 512 /2 + bn"
    assert found["layer1.0.add"] == "add + relu"
    assert found["fc"] == "linear 1000"


def test_layers_take_what_stands_beside_them() -> None:
    text = """arch net() {
        input x: f32[N, 4, 8, 8]
        a = x |> bn1: batch_norm |> relu1: relu |> conv1: conv(6) |> bn2: batch_norm
              |> relu2: relu |> conv2: conv(6, 3) |> dropout(0.1) |> pool: max_pool(2) |> flatten
        b = a |> linear(5)
        c = b |> relu
        output y = c + b
    }"""
    boxes = picture(network(text), STANDARD).boxes
    assert [" + ".join(box.parts) for box in boxes] == [
        "x",
        "bn + relu + conv 1x1, 6",
        "bn + relu + conv 3x3, 6 + dropout 0.1",
        "max pool 2x2 /2 + flatten",
        "linear 5",  # read twice: the relu is no part of it
        "relu",
        "add",
        "y",
    ]
    assert [box.family for box in boxes[2:6]] == ["conv", "pool", "linear", "activation"]
    assert boxes[1].path == "a.conv1"
    assert boxes[1].shape == "6 x 8 x 8"


def test_a_value_that_leaves_the_network_ends_its_box() -> None:
    text = """arch net() {
        input x: f32[N, 4, 8, 8]
        a = x |> conv(6)
        output raw = a
        output y = a |> relu
    }"""
    boxes = picture(network(text), STANDARD).boxes
    assert [box.parts for box in boxes] == [["x"], ["conv 1x1, 6"], ["relu"], ["raw"], ["y"]]


def clusters_of(cluster: Cluster) -> list[Cluster]:
    inner = [member for member in cluster.members if isinstance(member, Cluster)]
    return [*inner, *(found for member in inner for found in clusters_of(member))]


def test_a_chain_is_drawn_once() -> None:
    graph = network(CHAIN)
    found = picture(graph, STANDARD, kinds={"body.0": "unit"})
    (cluster,) = [c for c in clusters_of(found.root) if c.count > 1]
    assert (cluster.path, cluster.name, cluster.count) == ("body.0", "0 .. 2", 3)
    ends = [(found.boxes[e.source].path, found.boxes[e.target].path, e.skip) for e in found.edges]
    assert ends == [
        ("x", "body.0.conv1", False),
        ("body.0.conv1", "body.0.conv2", False),
        ("body.0.conv2", "body.0.add", False),
        ("x", "body.0.add", True),
        ("body.0.add", "y", False),
    ]
    names = [t.text for t in drawn(graph, kinds={"body.0": "unit"}).iter(f"{NS}text")]
    assert "0 .. 2 : unit  \N{MULTIPLICATION SIGN} 3" in names
    assert len(picture(graph, STANDARD, fold=False).boxes) == 3 * 3 + 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("output y = body", "output y = body\n output z = early"),
        ("body = x |> 3 * unit(4)", "body = x |> unit(4) |> unit(4) |> relu |> unit(4)"),
        ("body = x |> 3 * unit(4)", "body = x |> unit(4) |> unit(5) |> unit(4)"),
    ],
)
def test_what_is_read_in_between_or_differs_is_no_chain(before: str, after: str) -> None:
    text = CHAIN.replace(before, after)
    if "early" in text:
        text = text.replace(
            "body = x |> 3 * unit(4)", "early = x |> unit(4) body = early |> 2 * unit(4)"
        )
    if "unit(5)" in text:
        text = text.replace("output y + input", "output y |> relu")
    found = picture(network(text), STANDARD)
    assert all(c.count < 3 for c in clusters_of(found.root))
    shown = sum(box.path.endswith("conv1") for box in found.boxes)
    assert shown >= 2


def test_a_chain_may_read_one_value_all_along() -> None:
    text = """
    block step(memory: tensor) { output (input |> fc: linear(4)) + memory }
    arch net() {
        input x: f32[N, 4]
        input m: f32[N, 4]
        output y = x |> 4 * step(m)
    }"""
    found = picture(network(text), STANDARD)
    assert max(c.count for c in clusters_of(found.root)) == 4
    other = text.replace("x |> 4 * step(m)", "x |> step(m) |> step(m) |> step(x) |> step(m)")
    found = picture(network(other), STANDARD)
    assert sorted(c.count for c in clusters_of(found.root) if c.path[-1].isdigit()) == [1, 1, 2]


def test_a_block_that_is_left_and_entered_again_is_taken_apart(net: Any) -> None:
    x = net.input("x", "N", 4)
    a = net.add("a.one", "linear", x, out=4)
    b = net.add("between", "linear", a, out=4)
    net.add("a.two", "linear", b, out=4)
    graph = net.build(y=Value("a.two"))
    for depth in (None, 0, 1):
        found = picture(graph, STANDARD, depth=depth)
        assert clusters_of(found.root) == []
        assert [box.name for box in found.boxes] == ["input", "a.one", "between", "a.two", "output"]
        assert all(edge.source < edge.target for edge in found.edges)


def test_depth() -> None:
    graph = example("resnet20")
    whole = picture(graph, STANDARD, depth=0)
    assert [box.parts[0] for box in whole.boxes if box.family == labels.BLOCK] == [
        "stage1", "stage2", "stage3",
    ]  # fmt: skip
    assert whole.boxes[1].parts == ["conv 3x3, 16", "bn", "relu"]  # the stem is one box anyway
    assert whole.boxes[1].name == "stem.conv"
    assert clusters_of(whole.root) == []
    one = picture(graph, STANDARD, depth=1, kinds={"stage1.0": "basic"})
    (box,) = [box for box in one.boxes if box.path == "stage1.0"]
    assert box.parts == ["basic \N{MULTIPLICATION SIGN} 3"]
    assert (box.name, box.shape) == ("0 .. 2, 7 layers", "16 x 32 x 32")
    assert len(picture(graph, STANDARD, depth=2).boxes) == len(picture(graph, STANDARD).boxes)


def test_every_operator_has_a_text_and_a_colour(net: Any) -> None:
    assert set(labels.FAMILY.values()) <= set(labels.COLOURS)
    assert {labels.OTHER, labels.BLOCK} <= set(labels.COLOURS)
    for op in STANDARD.values():
        for place_, sample in enumerate(op.samples):
            fresh = type(net)()
            inputs = [
                fresh.input(f"x{i}", *type_.shape, dtype=type_.dtype)
                for i, type_ in enumerate(sample.inputs)
            ]
            if op.name == "input":
                continue
            fresh.add(f"it{place_}", op.name, *inputs, **sample.attrs)
            graph = fresh.build(y=Value(f"it{place_}"))
            text = labels.text(graph.node(f"it{place_}"), graph, STANDARD)
            assert text.strip()
            assert "_" not in text.partition(" ")[0]
            assert labels.full(graph.node(f"it{place_}"), graph, STANDARD).startswith(op.name)


HOSTILE = (
    "<script>alert(1)</script>",
    "]]><!--&amp;'\"",
    'quote" -> evil [label="x',
    "back\\slash\\",
    "line\nbreak\ttab\rreturn",
    "nul\x00bell\x07\x1b[31m\ufffe\ud800",
    "sehr lang " * 3000,
    "日本語のレイヤー" * 20,
    "url(#tip); } text { display: none",
    "{record|shape}",
    "",
)


def hostile(net: Any) -> Graph:
    x = net.input("x", "N", 4)
    for index, name in enumerate(HOSTILE):
        x = net.add(f"{name}.{index}.{name}", "linear", x, out=4)
        x = net.add(f"{name}.{index}.again{name}", "linear", x, out=4)
    graph = net.build(**{HOSTILE[0]: x})
    graph.name = HOSTILE[1]
    return graph


def test_svg_of_hostile_names(net: Any) -> None:
    text = svg.write(hostile(net), STANDARD, kinds=dict.fromkeys(HOSTILE, HOSTILE[0])).text
    root = ElementTree.fromstring(text.encode())
    tags = {str(element.tag).removeprefix(NS) for element in root.iter()}
    assert tags == {"svg", "title", "style", "defs", "marker", "path", "rect", "g", "text"}
    assert not any(
        name.startswith("on") or "href" in name for e in root.iter() for name in e.attrib
    )
    assert all(len(str(t.text)) <= 3 * LONGEST for t in root.iter(f"{NS}text"))
    assert len(list(root.iter(f"{NS}style"))) == 1
    assert float(str(root.get("width"))) < 2000
    assert len(groups(root, "box")) == 2 * len(HOSTILE) + 2


STRING = r'"(?:[^"\\\x00-\x1f]|\\[\\"n])*"'
ATTRIBUTE = rf"\w+=(?:{STRING}|[\w.]+)"
STATEMENTS = [
    rf"digraph {STRING} {{",
    rf"subgraph {STRING} {{",
    r"}",
    rf"(?:n\d+|node|edge)(?: \[{ATTRIBUTE}(?:, {ATTRIBUTE})*\])?;",
    rf"n\d+ -> n\d+(?: \[{ATTRIBUTE}(?:, {ATTRIBUTE})*\])?;",
    rf"(?:{ATTRIBUTE};? ?)+",
]
"""The part of Graphviz's grammar that is used, a statement a line."""


def check_dot(text: str) -> None:
    depth = 0
    lines = text.splitlines()
    for number, line in enumerate(lines):
        statement = line.strip()
        assert any(re.fullmatch(pattern, statement) for pattern in STATEMENTS), statement
        depth += statement.endswith("{") - (statement == "}")
        assert (depth == 0) == (number == len(lines) - 1)


def test_dot(graph: Graph, fold: bool) -> None:
    made = picture(graph, STANDARD, fold=fold)
    text = dot.write(graph, STANDARD, fold=fold).text
    check_dot(text)
    assert text.count(" -> ") == len(made.edges)
    assert len(re.findall(r"^ *n\d+ \[", text, re.MULTILINE)) == len(made.boxes)
    assert text.count("subgraph") == len(clusters_of(made.root))


def test_dot_of_hostile_names(net: Any) -> None:
    text = dot.write(hostile(net), STANDARD).text
    text.encode()
    check_dot(text)
    assert "evil" in text


def test_the_same_network_gives_the_same_text(graph: Graph) -> None:
    for write in (svg.write, dot.write):
        assert write(graph, STANDARD).text == write(graph, STANDARD).text


@pytest.mark.parametrize("form", ["svg", "dot"])
def test_golden(form: str, update_golden: bool) -> None:
    text = draw(form)(network(CHAIN), STANDARD, kinds={"body.0": "unit"}).text
    path = GOLDEN / f"chain.{form}"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_paths_of_many_parts(net: Any) -> None:
    x = net.input("x", "N", 4)
    for index in range(3):
        path = ".".join(["a"] * (500 - index)) + f".b{index}"
        x = net.add(path, "linear", x, out=4)
        x = net.add(f"{path}.c", "add", x, x)
    graph = net.build(y=x)
    found = picture(graph, STANDARD)
    assert len(found.boxes) == 3 * 2 + 2

    def height(cluster: Cluster) -> int:
        inner = [m for m in cluster.members if isinstance(m, Cluster)]
        return 1 + max(map(height, inner), default=0)

    assert height(found.root) <= MAX_SCOPES + 1
    drawn(graph)


@pytest.mark.parametrize("form", ["svg", "dot"])
def test_too_many_boxes(net: Any, form: str) -> None:
    x = net.input("x", "N", 4)
    for index in range(2100):
        x = net.add(f"block.{index}", "add", x, x)
    graph = net.build(y=x)
    with pytest.raises(ArchirError, match=r"A641: .*more than 2,000 boxes") as caught:
        draw(form)(graph, STANDARD)
    assert "--depth 1" in str(caught.value.diagnostics[0].hint)
    assert draw(form)(graph, STANDARD, depth=0).boxes == 3


def test_too_many_edges(net: Any) -> None:
    xs = [net.input("x0", "N", 4), net.input("x1", "N", 4)]
    for index in range(140):
        xs.append(net.add(f"y{index}", "add", *xs))
    with pytest.raises(ArchirError, match=r"A641: .*more than 8,000 edges"):
        dot.write(net.build(y=xs[-1]), STANDARD)


def test_formats() -> None:
    assert formats() == ["dot", "svg"]
    with pytest.raises(ArchirError, match=r"A503: .*no format `png` \(installed: dot, svg\)"):
        draw("png")


WITHOUT = """
import sys
sys.modules["graphlay"] = None
from archir.cli.main import run
status = run(["show", sys.argv[1], "--format", sys.argv[2]])
assert not {"torch", "onnx", "onnxruntime", "egglog"} & set(sys.modules)
sys.exit(status)
"""


@pytest.mark.parametrize(("form", "status"), [("svg", 3), ("dot", 0)])
def test_without_the_package(form: str, status: int) -> None:
    file = ROOT / "examples" / "digits.arch"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(file), form],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert ("A503" in done.stderr) == (status == 3)
    assert ("pip install 'archir[draw]'" in done.stderr) == (status == 3)


def test_the_padding_is_within_the_box() -> None:
    box = Box("p", "name", "conv", ["conv 3x3, 16"], 0, "16 x 8 x 8")
    made = picture(network(CHAIN), STANDARD)
    rects = dict(zip((b.path for b in made.boxes), place(made).boxes, strict=True))
    for found in made.boxes:
        width = text_width(last_line(found), SMALL) + 2 * PADDING
        assert rects[found.path].width >= int(width)
    assert title_lines(box) == ["conv 3x3, 16"]
