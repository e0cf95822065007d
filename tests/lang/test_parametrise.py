"""Classes and size as parameters of a text that came as numbers."""

from __future__ import annotations

import pytest

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph
from archir.ir.same import equal
from archir.lang import load
from archir.lang.parametrise import parametrised
from archir.ops import STANDARD

INPUT = "input image: f32[N, 3, 32, 32]"


def text(body: str, head: str = "net", blocks: str = "") -> str:
    return f"version 1\n{blocks}arch {head} {{\n    {INPUT}\n    {body}\n}}\n"


def graph(source: str, **params: int) -> Graph:
    return load(Source("test", source), STANDARD, params).graph


PLAIN = "stem = image |> c: conv(8, 3, 2) |> relu"
BOTH = "net(classes = 1000, size = 32)"


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (f"{PLAIN}\n output y = stem |> global_avg_pool |> fc: linear(1000)", BOTH),
        (f"{PLAIN}\n output y = stem |> adaptive_avg_pool(4) |> flatten |> fc: linear(1000)", BOTH),
        (f"{PLAIN}\n output y = stem |> mean([2, 3]) |> fc: linear(out = 1000)", BOTH),
        (f"{PLAIN}\n output y = stem |> last: conv(1000) |> relu |> global_avg_pool", BOTH),
        # the features of a flattened image depend on its size
        (f"{PLAIN}\n output y = stem |> flatten |> fc: linear(1000)", "net(classes = 1000)"),
        # a window for these pixels alone
        (
            f"{PLAIN}\n output y = stem |> avg_pool(16) |> flatten |> fc: linear(1000)",
            "net(classes = 1000)",
        ),
        # so many pixels are left out, counted at this size
        (
            (
                f"{PLAIN}\n cut = stem |> slice(1, 14, axis = 2)\n"
                "output y = cut |> global_avg_pool |> fc: linear(1000)"
            ),
            "net(classes = 1000)",
        ),
        # a tensor for each pixel
        (
            (
                f"{PLAIN}\n param pos: f32[1, 8, 16, 16]\n"
                "output y = (stem + pos) |> global_avg_pool |> fc: linear(1000)"
            ),
            "net(classes = 1000)",
        ),
        # a map of pixels comes out
        (f"{PLAIN}\n output y = stem |> last: conv(21)", "net(classes = 21)"),
        # two layers give the classes, or none does
        (
            (
                f"{PLAIN}\n p = stem |> global_avg_pool\n a = p |> linear(10)\n"
                " b = p |> linear(10)\n output y = a + b"
            ),
            "net(size = 32)",
        ),
        (f"{PLAIN}\n output y = stem |> global_avg_pool", "net(size = 32)"),
        # two outputs
        (
            f"{PLAIN}\n p = stem |> global_avg_pool\n output y = p |> f: linear(10)\n output z = p",
            "net(size = 32)",
        ),
        # two layers behind one another: the second gives the classes
        (
            (
                f"{PLAIN}\n p = stem |> global_avg_pool |> one: linear(9)\n"
                "output y = p |> softmax |> two: linear(1000)"
            ),
            BOTH,
        ),
    ],
)
def test_what_becomes_a_parameter(body: str, head: str) -> None:
    before = text(body)
    after = parametrised(before, STANDARD)
    assert f"arch {head} {{" in after
    assert equal(graph(before), graph(after))
    assert parametrised(after, STANDARD) == after


def test_the_parameters_do_what_they_say() -> None:
    body = f"{PLAIN}\n output y = stem |> global_avg_pool |> fc: linear(1000)"
    made = parametrised(text(body), STANDARD)
    found = graph(made, classes=10, size=64)
    assert str(found.type_of(found.outputs[0].value)) == "f32[N, 10]"
    assert str(found.parameters["fc.weight"].type) == "f32[10, 8]"
    assert found.node("image").types[0].shape[2:] == (64, 64)
    assert parametrised(text(body), STANDARD, size=False).count("size") == 0


def test_what_is_there_stays() -> None:
    """Comments, parameters of its own, names that are taken."""
    body = f"# a comment\n{PLAIN}\n output y = stem |> global_avg_pool |> fc: linear(10 * k)"
    made = parametrised(text(body, "net(k = 100)"), STANDARD)
    assert "arch net(k = 100, size = 32) {" in made
    assert "# a comment" in made
    body = "size = image |> c: conv(8, 3)\n classes = size |> global_avg_pool |> linear(10)"
    taken = text(f"{body}\n output y = classes |> relu")
    assert parametrised(taken, STANDARD) == taken


def test_a_head_in_a_block_stays() -> None:
    block = "block tail { output input |> global_avg_pool |> fc: linear(10) }\n"
    before = text(f"{PLAIN}\n output y = stem |> tail", blocks=block)
    after = parametrised(before, STANDARD)
    assert "arch net(size = 32) {" in after
    assert "linear(10)" in after


def test_an_image_that_is_not_square() -> None:
    before = text(f"{PLAIN}\n output y = stem |> global_avg_pool").replace("32, 32", "32, 48")
    assert parametrised(before, STANDARD) == before


def test_a_text_that_is_no_network() -> None:
    with pytest.raises(ArchirError):
        parametrised("version 1\narch", STANDARD)
