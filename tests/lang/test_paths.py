"""Paths of nodes and parameters; the example networks."""

from __future__ import annotations

import math

import pytest

from archir.lang import Origin

from .graphs import build, example

HEAD = "block b { output input |> c: conv(4) |> relu }\n"


def paths(body: str, head: str = HEAD) -> list[str]:
    graph = build(f"{head}arch n {{ input x: f32[N, 4, 8, 8]\n{body}\n}}").graph
    return [node.name for node in graph if node.op != "input"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = x |> relu output y", ["y"]),
        ("y = x |> r: relu output y", ["y.r"]),
        ("y = x |> relu |> dropout output y", ["y.relu", "y.dropout"]),
        ("y = x |> relu |> relu output y", ["y.relu1", "y.relu2"]),
        ("y = x |> relu |> a: relu |> relu output y", ["y.relu1", "y.a", "y.relu2"]),
        ("y = x |> a.0: relu output y", ["y.a.0"]),
        ("y = x |> 2 * relu output y", ["y.relu1", "y.relu2"]),
        ("y = x |> r: 2 * relu output y", ["y.r.0", "y.r.1"]),
        ("output x |> relu", ["relu"]),
        ("output x |> relu output x |> relu", ["relu1", "relu2"]),
        ("output x |> f: relu", ["f"]),
        ("y = x |> b output y", ["y.c", "y.relu"]),
        ("y = x |> 1 * b output y", ["y.0.c", "y.0.relu"]),
        ("y = x |> b |> b output y", ["y.0.c", "y.0.relu", "y.1.c", "y.1.relu"]),
        ("y = x |> b |> 0 * b output y", ["y.0.c", "y.0.relu"]),
        ("y = x |> k: b output y", ["y.k.c", "y.k.relu"]),
        ("y = x |> k: 2 * b output y", ["y.k.0.c", "y.k.0.relu", "y.k.1.c", "y.k.1.relu"]),
        ("y = x |> b |> p: max_pool(2) output y", ["y.c", "y.relu", "y.p"]),
        ("output x |> b", ["b.c", "b.relu"]),
        ("output x |> 2 * b", ["b.0.c", "b.0.relu", "b.1.c", "b.1.relu"]),
        ("y = x + x output y", ["y"]),
        ("y = x + x + x output y", ["y"]),
        ("y = (x + x) + x output y", ["y.add1", "y.add2"]),
        ("y = relu(x + x) output y", ["y.add", "y.relu"]),
        ("y = s: (x + x) output y", ["y.s"]),
        ("y = x * 2 output y", ["y.constant", "y.mul"]),
        ("y = r: relu(x) output y", ["y.r"]),
        ("p, q = split(x, [1, 3]) output p, q", ["p"]),
        ("param s: f32[4, 1, 1] y = x * s output y", ["s", "y"]),
        ("y = if channels(x) == 4 then x |> relu else x |> b output y", ["y"]),
        ("y = x output y", []),
    ],
)
def test_paths(body: str, expected: list[str]) -> None:
    assert paths(body) == expected


def test_bindings_in_a_block_open_no_scope() -> None:
    head = """block inner { output input |> relu }
    block b {
        one = input |> relu
        two = one |> relu |> l: dropout
        three = two |> inner
        four = three |> inner |> inner
        output four |> relu |> inner
    }
    """
    assert paths("y = x |> b output y", head) == [
        "y.one", "y.relu1", "y.l", "y.three.relu", "y.four.0.relu", "y.four.1.relu", "y.relu2",
        "y.inner.relu",
    ]  # fmt: skip


def test_several_tensors_go_in_and_out_of_a_block() -> None:
    graph = build("""block both(skip: tensor, width) {
        y = input |> conv(width)
        output y + skip, relu(y)
    }
    arch n {
        input x: f32[2 * N, 4, 8, 8]
        input `z z`: f32[2 * N, 4, 8, 8]
        a, b = x |> both(`z z`, 4)
        c, d = both(a, b, width = 4)
        output c, d
    }""").graph
    assert graph.inputs == ("x", "z z")
    assert [o.name for o in graph.outputs] == ["c", "d"]
    assert [str(v) for v in graph.node("c.add").inputs] == ["c.y", "a.relu"]
    assert str(graph.node("x").types[0]) == "f32[2*N, 4, 8, 8]"


def test_parameters_are_tied_and_renamed() -> None:
    graph = build("""block twin {
        output input |> a: linear(4, bias = false) |> b: linear(4, weight = a.weight)
    }
    arch n {
        input x: f32[N, 4]
        param free: f32[4, 4] = 0.5
        buffer count: f32[4]
        y = x |> 2 * twin
        z = y |> linear(4, weight = y.0.a.weight) params { bias: "own" }
        v = z |> linear(4, bias = false, weight = free)
        w = v |> linear(4, bias = false) params { weight: far.away }
        output w + count
    }""").graph
    assert graph.node("y.1.b").params == {"weight": "y.1.a.weight", "bias": "y.1.b.bias"}
    assert graph.node("z").params == {"weight": "y.0.a.weight", "bias": "z.own"}
    assert graph.node("v").params == {"weight": "free"}
    assert graph.node("w").params == {"weight": "far.away"}
    assert graph.parameters["count"].buffer
    assert not graph.parameters["free"].buffer


def test_sums_are_one_node_and_numbers_become_constants() -> None:
    graph = build("arch n { input x: f32[N, 4] y = x + 1 + x output y }").graph
    assert [str(v) for v in graph.node("y.add").inputs] == ["x", "y.constant", "x"]
    assert graph.node("y.constant").attrs == {"value": 1, "dtype": "f32"}


def test_scalars_are_computed() -> None:
    graph = build("""block b(n, k = 2 * n - 1) {
        let w = if n >= 2 and not (k < 3 or n == 5) then max(channels(input) // 2, 1) else 7 % 4
        output input |> conv(w + rank(input) - 4 + size(input, -1) / 8, k)
    }
    arch n { input x: f32[N, 6, 8, 8] output x |> one: b(1) |> two: b(2) }""").graph
    assert [graph.node(f"{n}.conv").attrs["out"] for n in ("one", "two")] == [4, 3]
    assert graph.node("two.conv").attrs["kernel"] == (3, 3)


COUNTS = {
    "resnet20": 272_474,
    "resnet50": 25_557_032,
    "vgg16_bn": 138_365_992,
    "nash_start": 374_282,
    "nash_digits": 1_730,
    "digits": 13_978,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    program = example(name)
    parameters = program.graph.parameters.values()
    assert sum(math.prod(p.type.shape) for p in parameters if not p.buffer) == COUNTS[name]  # type: ignore[arg-type]
    assert f"{COUNTS[name]:,}" in program.source.text


def test_resnet50_has_the_keys_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    state = torchvision.models.resnet50(weights=None).state_dict()
    ours = {path: p.type.shape for path, p in example("resnet50").graph.parameters.items()}
    assert ours == {key: tuple(value.shape) for key, value in state.items()}


def test_origins_lead_back_to_the_text() -> None:
    program = example("resnet20")

    def text(origin: Origin) -> str:
        return program.source.text[origin.span.start : origin.span.end]

    origin = program.origins["stage2.0.conv"]
    assert text(origin) == "conv: conv(width, 1, stride, bias = false)"
    assert (origin.path, origin.scope.index, origin.default) == ("stage2.0", None, False)
    assert program.origins["stage2.2.relu1"].scope.index == 1
    assert program.origins["stage2.2.relu1"].default
    assert text(program.origins["stage1.0.add"]) == "y + shortcut"
    assert set(program.origins) == {node.name for node in program.graph}
