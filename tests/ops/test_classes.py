"""Axis classes: what changes together, and what holds an axis fast."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archir.ir.graph import Value
from archir.ops import STANDARD
from archir.ops.classes import AxisClass, AxisClasses
from archir.ops.structure import FIXED, Factor, Structure, lift

from .nets import net

IMAGE = "input x: f32[N, 3, 8, 8]\n"
HEAD = "\noutput y = end |> global_avg_pool |> fc: linear(5)"


def class_of(classes: AxisClasses, path: str, axis: int, size: int | None = None) -> AxisClass:
    """The one class on an axis of a parameter (of a size, where there are several)."""
    found = [
        c
        for c in classes.classes.values()
        if any((m.path, m.axis) == (path, axis) for m in c.members) and size in (None, c.size)
    ]
    assert len(found) == 1, found
    return found[0]


def members(held: AxisClass) -> set[str]:
    return {f"{m.path}:{m.axis} {m.kind}" for m in held.members}


FREE = {
    "chain": (
        "a = x |> conv(4, 3)\nn = a |> batch_norm\nend = n |> relu |> d: conv(6, 3)",
        ("a.weight", 0, 4),
        (
            "a.weight:0 produce, a.bias:0 produce, n.weight:0 carry, n.bias:0 carry, "
            "n.running_mean:0 carry, n.running_var:0 carry, end.d.weight:1 consume"
        ),
    ),
    "residual": (
        "a = x |> conv(4, 3)\nb = a |> conv(7, 3)\nc = b |> conv(4, 3)\nend = relu(a + c)",
        ("a.weight", 0, 4),
        (
            "a.weight:0 produce, a.bias:0 produce, b.weight:1 consume, "
            "c.weight:0 produce, c.bias:0 produce, fc.weight:1 consume"
        ),
    ),
    "residual of one layer": (
        "a = x |> conv(4, 3)\nb = a |> conv(4, 3)\nend = a + b",
        ("b.weight", 1, 4),
        (
            "a.weight:0 produce, a.bias:0 produce, b.weight:1 consume, b.weight:0 produce, "
            "b.bias:0 produce, fc.weight:1 consume"
        ),
    ),
    "depthwise": (
        "a = x |> conv(4, 3)\nend = a |> conv(4, 3, groups = 4)",
        ("a.weight", 0, 4),
        (
            "a.weight:0 produce, a.bias:0 produce, end.weight:0 carry, end.bias:0 carry, "
            "fc.weight:1 consume"
        ),
    ),
    "depthwise multiplier": (
        "a = x |> conv(4, 3)\nend = a |> conv(12, 3, groups = 4)",
        ("a.weight", 0, 4),
        (
            "a.weight:0 produce, a.bias:0 produce, end.weight:0 carry, end.bias:0 carry, "
            "fc.weight:1 consume"
        ),
    ),
    "grouped, then grouped alike": (
        "i = x |> conv(6)\na = i |> conv(6, 3, groups = 3)\nend = a |> conv(9, 3, groups = 3)",
        ("end.weight", 1, 2),
        "a.weight:0 produce, a.bias:0 produce, end.weight:1 consume",
    ),
    "concat": (
        "a = x |> conv(4, 3)\nb = x |> conv(2, 3)\nend = concat(b, a, b) |> e: conv(6, 1)",
        ("b.weight", 0, 2),
        "b.weight:0 produce, b.bias:0 produce, end.e.weight:1 consume",
    ),
    "flatten": (
        (
            "a = x |> conv(4, 3)\nend = a |> max_pool(2) |> relu\nf = end |> flatten\n"
            "output z = f |> g: linear(7)"
        ),
        ("g.weight", 1, 4),
        "a.weight:0 produce, a.bias:0 produce, g.weight:1 consume, fc.weight:1 consume",
    ),
    "flatten of one channel": (
        "a = x |> conv(1, 3)\nend = a |> relu\nf = end |> flatten\noutput z = f |> g: linear(7)",
        ("g.weight", 1, 1),
        "a.weight:0 produce, a.bias:0 produce, g.weight:1 consume, fc.weight:1 consume",
    ),
    "split along the seams of a concat": (
        (
            "a = x |> conv(4, 3)\nb = x |> conv(2, 3)\nj = concat(a, b)\n"
            "p, q = split(j, sizes = [4, 2])\nend = p |> conv(3, 1)\n"
            "output z = q |> flatten |> g: linear(2)"
        ),
        ("a.weight", 0, 4),
        "a.weight:0 produce, a.bias:0 produce, end.weight:1 consume",
    ),
    "tied in one role": (
        (
            "a = x |> conv(4, 3)\nb = x |> conv(4, 3, weight = a.weight)\n"
            "c = a |> conv(2, 1)\nd = b |> conv(2, 1)\nend = concat(c, d)"
        ),
        ("a.weight", 0, 4),
        (
            "a.weight:0 produce, a.bias:0 produce, b.bias:0 produce, c.weight:1 consume, "
            "d.weight:1 consume"
        ),
    ),
    "a gate": (
        (
            "a = x |> conv(4, 3)\np = a |> global_avg_pool\ng = p |> linear(2)\n"
            "h = g |> relu |> s: linear(4)\nend = a |> conv(6, 1)\noutput z = p * h |> f: linear(2)"
        ),
        ("a.weight", 0, 4),
        (
            "a.weight:0 produce, a.bias:0 produce, g.weight:1 consume, h.s.weight:0 produce, "
            "h.s.bias:0 produce, end.weight:1 consume, f.weight:1 consume"
        ),
    ),
    "a scale of the network's own": (
        "param s: f32[4, 1, 1] = 1.0\na = x |> conv(4, 3)\nend = a * s",
        ("s", 0, 4),
        "s:0 produce, a.weight:0 produce, a.bias:0 produce, fc.weight:1 consume",
    ),
    "grouped: the groups": (
        "a = x |> conv(6, 3)\nend = a |> conv(4, 3, groups = 2)",
        ("a.weight", 0, 2),
        (
            "a.weight:0 produce, a.bias:0 produce, end.weight:0 carry, end.bias:0 carry, "
            "fc.weight:1 consume"
        ),
    ),
    "grouped: inside of the groups": (
        "a = x |> conv(6, 3)\nend = a |> conv(4, 3, groups = 2)",
        ("end.weight", 1, 3),
        "a.weight:0 produce, a.bias:0 produce, end.weight:1 consume",
    ),
    "grouped after a concatenation of unequal parts": (
        (
            "a = x |> conv(4, 3)\nb = x |> conv(2, 3)\nj = concat(a, b)\n"
            "end = j |> conv(9, 3, groups = 3)"
        ),
        ("end.weight", 1, 2),
        (
            "a.weight:0 produce, a.bias:0 produce, b.weight:0 produce, b.bias:0 produce, "
            "end.weight:1 consume"
        ),
    ),
    "split across: one part": (
        (
            "a = x |> conv(4, 3)\np, q = split(a, sizes = [1, 3])\nend = p |> relu\n"
            "output z = q |> flatten |> g: linear(2)"
        ),
        ("fc.weight", 1, 1),
        "a.weight:0 produce, a.bias:0 produce, fc.weight:1 consume",
    ),
    "split across: the other part": (
        (
            "a = x |> conv(4, 3)\np, q = split(a, sizes = [1, 3])\nend = p |> relu\n"
            "output z = q |> flatten |> g: linear(2)"
        ),
        ("g.weight", 1, 3),
        "a.weight:0 produce, a.bias:0 produce, g.weight:1 consume",
    ),
    "a concatenation added to a layer": (
        (
            "a = x |> conv(4, 3)\nb = x |> conv(2, 3)\nc = x |> conv(6, 3)\n"
            "j = concat(a, b)\nend = j + c"
        ),
        ("b.weight", 0, 2),
        (
            "b.weight:0 produce, b.bias:0 produce, c.weight:0 produce, c.bias:0 produce, "
            "fc.weight:1 consume"
        ),
    ),
    "concatenations that overlap": (
        "a = x |> conv(4, 3)\nb = x |> conv(2, 3)\nend = concat(a, b) + concat(b, a)",
        ("b.weight", 0, 2),
        (
            "b.weight:0 produce, b.bias:0 produce, a.weight:0 produce, a.bias:0 produce, "
            "fc.weight:1 consume"
        ),
    ),
}
"""Body, an axis of a parameter and its size, and the members of its class."""


@pytest.mark.parametrize("name", FREE)
def test_members(name: str) -> None:
    body, (path, axis, size), wanted = FREE[name]
    classes = AxisClasses(net(IMAGE + body + HEAD), STANDARD)
    held = class_of(classes, path, axis, size)
    assert members(held) == set(wanted.split(", "))
    assert held.size == size
    assert held.obstacles == ()
    assert held.name == next(m.node for m in held.members if m.kind == "produce")


UNEQUAL = "a = x |> conv(4, 3)\nb = x |> conv(2, 3)\nc = x |> conv(6, 3)\nj = concat(a, b)\n"
BLOCKED = {
    "input": ("end = x |> conv(4, 3)", ("end.weight", 1), "x", "it is the input `x`"),
    "output": ("end = x |> conv(4, 3)", ("fc.weight", 0), "fc", "it is the output `y`"),
    "residual with the input": (
        "end = x + (x |> c: conv(3, 3))",
        *(("end.c.weight", 0), "x", "it is the input"),
    ),
    "output before a relu": (
        "a = x |> conv(4, 3)\nend = relu(a)\noutput z = a",
        *(("a.weight", 0), "a", "it is the output `z`"),
    ),
    "softmax": (
        "a = x |> conv(4, 3)\nend = a |> softmax(1)",
        *(("a.weight", 0), "end", "`softmax` mixes the entries of that axis"),
    ),
    "constant": (
        "a = x |> conv(3, 1)\nk = constant([[[1.0]], [[2.0]], [[3.0]]])\nend = a * k",
        *(("a.weight", 0), "end", "whose size is fixed"),
    ),
    "a gate of one channel": (
        "a = x |> conv(4, 3)\ng = x |> conv(1, 1)\nend = a * g",
        *(("g.weight", 0), "end", "`mul` wants a single entry there"),
    ),
    "the words of a table that another layer reads": (
        (
            "param w: f32[5, 4]\nend = x |> conv(4, 3)\ninput i: i64[N, 7]\n"
            "output z = i |> embedding(5, 4, weight = w) |> e: linear(5, weight = w)"
        ),
        *(("w", 0), "embedding", "`embedding` picks its entries by their numbers"),
    ),
    "an axis that is squeezed": (
        "a = x |> conv(1, 3)\nend = a |> squeeze(1) |> unsqueeze(1)",
        *(("a.weight", 0), "end.squeeze", "`squeeze` wants a single entry there"),
    ),
    "tied to the output's layer": (
        (
            "a = x |> conv(4, 3)\nb = a |> conv(4, 3)\nend = relu(b)\n"
            "output z = a |> e: conv(4, 3, weight = b.weight)"
        ),
        *(("b.weight", 0), "e", "it is the output `z`"),
    ),
}


@pytest.mark.parametrize("name", BLOCKED)
def test_obstacles(name: str) -> None:
    body, (path, axis), node, says = BLOCKED[name]
    classes = AxisClasses(net(IMAGE + body + HEAD), STANDARD)
    held = class_of(classes, path, axis)
    assert any(o.node == node and says in o.reason for o in held.obstacles), held.obstacles


def test_a_shared_weight_in_a_chain_is_one_class() -> None:
    """Both axes of the weight, each in one role: it can be widened."""
    graph = net(
        IMAGE + "a = x |> conv(4, 3)\nb = a |> conv(4, 3)\n"
        "end = b |> conv(4, 3, weight = b.weight)" + HEAD
    )
    held = class_of(AxisClasses(graph, STANDARD), "b.weight", 0)
    assert {(m.path, m.axis) for m in held.members} >= {("b.weight", 0), ("b.weight", 1)}
    assert held.obstacles == ()


def test_many_parts_in_another_order() -> None:
    """Cut in halves of halves: 64 parts are six cuts deep."""
    names = [f"s{j}" for j in range(64)]
    graph = net(
        IMAGE + f"a = x |> conv(128)\n{', '.join(names)} = split(a, sizes = {[2] * 64})\n"
        f"b = x |> conv(128)\nend = concat({', '.join(reversed(names))}) + a + b" + HEAD
    )
    held = [c for c in AxisClasses(graph, STANDARD).classes.values() if c.name == "a"]
    assert [c.size for c in held] == [2] * 32
    assert not any(c.obstacles for c in held)


def test_groups_across_the_seams_of_a_concatenation() -> None:
    graph = net(
        IMAGE + "a = x |> conv(33)\nb = x |> conv(31)\n"
        "end = concat(a, b) |> g: conv(64, groups = 32)" + HEAD
    )
    held = [c for c in AxisClasses(graph, STANDARD).classes.values() if c.name in ("a", "b")]
    assert {(c.name, c.size) for c in held} == {("a", 16), ("a", 1), ("b", 15)}
    assert not any(c.obstacles for c in held)


def test_a_padding_of_nothing_is_no_part() -> None:
    graph = net(
        IMAGE + "a = x |> conv(5)\nb = a |> pad(before = [0, 1, 0, 0], after = [0, 0, 0, 0])\n"
        "end = b |> g: conv(6, groups = 3)" + HEAD
    )
    classes = AxisClasses(graph, STANDARD)
    assert [[f.size for f in s] for s in classes.structure(Value("b"), 1)] == [[1], [1], [2, 2]]


def test_structures() -> None:
    graph = net(
        IMAGE + "a = x |> conv(4, 3)\nb = x |> conv(2, 3)\nj = concat(a, b, a)\n"
        "f = j |> flatten\nend = j\noutput z = f |> g: linear(2)" + HEAD
    )
    classes = AxisClasses(graph, STANDARD)
    a, b = (class_of(classes, f"{n}.weight", 0).number for n in "ab")
    seams = [[f.number for f in segment] for segment in classes.structure(Value("j"), 1)]
    assert seams == [[a], [b], [a]]
    flat = [[f[:2] for f in segment] for segment in classes.structure(Value("f"), 1)]
    assert flat == [[(n, s), (FIXED, 8), (FIXED, 8)] for n, s in ((a, 4), (b, 2), (a, 4))]


def test_batch_is_a_class_of_its_own() -> None:
    graph = net(IMAGE + "end = x |> conv(4, 3)" + HEAD)
    classes = AxisClasses(graph, STANDARD)
    ((batch,),) = classes.structure(Value("fc"), 0)
    held = classes.classes[batch.number]
    assert str(held.size) == "N"
    assert held.members == ()
    assert held.obstacles[0].node == "x"


CLASS = 7


@st.composite
def structures(draw: st.DrawFn) -> tuple[Structure, list[int], int]:
    """A sum of products of factors, some of them the class; and a gather of the class."""
    size = draw(st.integers(1, 4))
    other = st.builds(Factor, st.sampled_from([FIXED, 3, 9]), st.integers(1, 3), st.just(()))
    factor = st.one_of(st.just(Factor(CLASS, size)), other)
    segments = st.lists(st.lists(factor, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
    entries = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6))
    return tuple(draw(segments)), entries, size


@given(structures())
def test_lift(case: tuple[Structure, list[int], int]) -> None:
    """Against gathering with NumPy, factor by factor."""
    structure, entries, size = case
    found, old = lift(structure, CLASS, np.array(entries), size)
    wanted, start = [], 0
    for segment in structure:
        cube = np.arange(int(np.prod([f.size for f in segment]))).reshape([f.size for f in segment])
        start_of_next = start + cube.size
        for axis, factor in enumerate(segment):
            if factor.number == CLASS:
                cube = np.take(cube, entries, axis=axis)
        wanted += [start + int(v) for v in cube.reshape(-1)]
        start = start_of_next
    assert old == start
    assert found.tolist() == wanted


def test_the_order_of_statements_does_not_matter() -> None:
    """Slices that overlap, under groups: what is cut first decides into what."""
    group = "c = a |> conv(2, 3, groups = 2)\n"
    slices = "p = a |> slice(5, 6)\nq = a |> slice(1, 6)\n"
    end = "d = p + q\nend = d |> conv(3)\noutput z = c |> flatten |> e: linear(2)"
    found = [
        {(c.site, c.size, c.obstacles) for c in AxisClasses(net(body), STANDARD).classes.values()}
        for body in (
            IMAGE + "a = x |> conv(12)\n" + group + slices + end + HEAD,
            IMAGE + "a = x |> conv(12)\n" + slices + group + end + HEAD,
        )
    ]
    assert found[0] == found[1]
    assert any(site.startswith("a.") for site, _, _ in found[0])


def test_heads_beside_a_symbolic_batch_are_a_class() -> None:
    """torch's multi-head attention puts the heads behind the batch, on one axis."""
    text = """
    input x: f32[5, N, 12]
    q = linear(x, 12) |> reshape([5, -1, 3]) |> permute([1, 0, 2])
    heads = q |> reshape([-1, 4, 5, 3]) |> permute([2, 0, 1, 3]) |> reshape([5, -1, 12])
    output y = linear(heads, 2)
    """
    graph = net(text)
    classes = AxisClasses(graph, STANDARD)
    maker = next(node.name for node in graph if node.op == "linear")
    held = class_of(classes, f"{maker}.weight", 0, 4)
    assert not held.obstacles
    assert held.site == f"{maker}.outer"
    whole = [(len(c.obstacles), c.size) for c in classes.classes.values() if c.name == maker]
    assert sorted(whole) == [(0, 3), (0, 4)]
