"""Wrong programs, each with the diagnostics it must give."""

from __future__ import annotations

from pathlib import Path

import pytest

from archir.codes import CODES
from archir.diag import ArchirError, Source
from archir.ir.dims import symbol
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Value
from archir.ir.types import TensorType
from archir.lang import load, parsing, print_graph
from archir.ops import STANDARD
from archir.render import explain, render

FOLDER = Path(__file__).parent.parent / "golden" / "arch"
CASES = sorted(FOLDER.glob("*.arch"))
ELSEWHERE = {"A004", "A140", "A910"}
"""Codes that no small file gives; tested below, and where initial weights are."""


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_diagnostics(case: Path, update_golden: bool) -> None:
    with pytest.raises(ArchirError) as caught:
        load(Source(case.name, case.read_text()), STANDARD)
    text = render(caught.value.diagnostics)
    expected = case.with_suffix(".txt")
    if update_golden:
        expected.write_text(text)
    assert text == expected.read_text()
    assert f"error[{case.stem.split('_')[0].upper()}]" in text
    assert caught.value.status == 2


def test_every_code_of_the_language_has_a_case() -> None:
    shown = {path.stem.split("_")[0].upper() for path in CASES}
    ours = {code for code in CODES if code.startswith(("A0", "A1"))}
    assert ours - ELSEWHERE == shown


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_every_code_given_is_explained(case: Path) -> None:
    for line in case.with_suffix(".txt").read_text().splitlines():
        if line.startswith("error["):
            assert explain(line[6:10])


def test_a_text_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "MAX_CHARACTERS", 100)
    with pytest.raises(ArchirError) as caught:
        load(Source("long.arch", "# " + "x" * 100), STANDARD)
    assert [d.code for d in caught.value.diagnostics] == ["A004"]


def test_a_graph_without_words() -> None:
    with pytest.raises(ArchirError) as caught:
        print_graph(_lower_case_symbol(), STANDARD)
    assert [d.code for d in caught.value.diagnostics] == ["A910"]


def _lower_case_symbol() -> Graph:
    builder = GraphBuilder("net")
    builder.add(Node("x", "input", {}, (), {}, (TensorType("f32", (symbol("n"), 3)),)))
    builder.inputs = ["x"]
    builder.outputs = [Output("y", Value("x"))]
    return builder.build()


def test_an_unknown_code_is_not_explained() -> None:
    assert explain("A799") is None


def test_an_arch_parameter_that_does_not_exist() -> None:
    text = "arch net(classes = 10) { input x: f32[N, 3] output x |> linear(classes) }"
    with pytest.raises(ArchirError) as caught:
        load(Source("net.arch", text), STANDARD, {"clases": 3})
    (found,) = caught.value.diagnostics
    assert (found.code, found.hint) == ("A124", "did you mean `classes`?")


def test_a_problem_in_a_block_names_the_instance() -> None:
    text = (FOLDER / "a110_in_a_block.txt").read_text()
    assert "= node: body.0" in text


def test_long_lines_are_cut_around_the_span() -> None:
    text = "arch net { input x: f32[N, 3] " + "let k = 1 " * 1 + " " * 400 + "output z }"
    with pytest.raises(ArchirError) as caught:
        load(Source("net.arch", text), STANDARD)
    shown = render(caught.value.diagnostics)
    assert max(map(len, shown.splitlines())) < 200
    line, marks = shown.splitlines()[3:5]
    assert line[marks.index("^")] == "z"
