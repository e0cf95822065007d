"""Rule files: what they say, every wrong one with its diagnostics, and texts gone astray."""

from __future__ import annotations

import time
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from archir.codes import CODES
from archir.diag import ArchirError, Source
from archir.ops import STANDARD
from archir.render import explain, render
from archir.rewrite import rulefile
from archir.rewrite.library import Library, installed, read_rule_file
from archir.rewrite.rule import Reshaping, Rewriting, RuleParameter
from archir.rewrite.rulefile import parse_rules

from .nets import LIBRARY, rule

FOLDER = Path(__file__).parent.parent / "golden" / "rule"
CASES = sorted(FOLDER.glob("*.rule"))
ELSEWHERE = {"A200", "A213", "A214", "A220", "A221"}
"""Codes that need a long file, a network or a package; tested below and in test_patterns."""
SHIPPED = sorted((Path(__file__).parent.parent.parent / "rewrites").glob("*.rule"))


def parse(text: str) -> list[str]:
    return [found.name for found in parse_rules(Source("t.rule", text), STANDARD)]


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_diagnostics(case: Path, update_golden: bool) -> None:
    with pytest.raises(ArchirError) as caught:
        parse_rules(Source(case.name, case.read_text()), STANDARD)
    text = render(caught.value.diagnostics)
    expected = case.with_suffix(".txt")
    if update_golden:
        expected.write_text(text)
    assert text == expected.read_text()
    assert f"error[{case.stem.split('_')[0].upper()}]" in text
    assert caught.value.status == 2
    assert all(d.span is not None and explain(d.code) for d in caught.value.diagnostics)


def test_every_code_of_rule_files_has_a_case() -> None:
    shown = {path.stem.split("_")[0].upper() for path in CASES}
    assert {code for code in CODES if code.startswith("A2")} - ELSEWHERE == shown


def test_what_a_rule_file_says() -> None:
    text = next(p for p in SHIPPED if p.name == "deepen.rule").read_text() + "# the end\n"
    rules = parse_rules(Source("deepen.rule", text), STANDARD, "mine")
    assert [r.name for r in rules][:2] == ["deepen", "deepen.batch_norm"]
    deepen = rules[0]
    assert deepen.doc == "Insert an identity convolution after a ReLU (Net2DeeperNet)."
    assert deepen.source.startswith("Chen, Goodfellow, Shlens 2016")
    assert deepen.contract.function == ("eval", "train")
    assert rules[1].contract.function == ("eval",)
    assert deepen.parameters == (RuleParameter("kernel", "odd", 3),)
    assert deepen.package == "mine"
    assert deepen.text.startswith("rule deepen(")
    assert deepen.text.endswith("}")
    assert isinstance(deepen.body, Rewriting)
    assert [n.op for n in deepen.body.replace.nodes] == ["relu", "conv", "relu"]
    widen = LIBRARY["widen"]
    assert isinstance(widen.body, Reshaping)
    assert widen.body.variable == "c"
    claims = rule(
        "rule r() { preserves shape macs decreases params decreases "
        "match { y = relu(x) } replace { y = x } }"
    )
    assert (claims.contract.shape, claims.contract.decreases) == (True, ("macs", "params"))


def test_the_hash_folds_white_space_and_comments_alone() -> None:
    text = (
        'rule r() {{ "say {}"  # why\n preserves function in eval '
        "match {{ y = relu(x) }} replace {{ y = {} }} }}"
    )

    def digest(*parts: str, old: str = "", new: str = "") -> str:
        (found,) = parse_rules(Source("t", text.format(*parts).replace(old, new)), STANDARD)
        return found.hash

    plain = digest("it", "x")
    assert digest("it", "x", old="# why", new="\t # whatever { \n") == plain
    assert digest("it", "relu(x)") != plain
    assert digest("that", "x") != plain
    assert digest("# this", "x") != digest("# that", "x"), "a # in a string begins no comment"
    assert digest("it # one", "x") != digest("it # one", "relu(x)")


def test_parameters_take_what_fits() -> None:
    assert RuleParameter("a", "float", None).fit(3) == 3.0
    assert RuleParameter("a", "even", None).fit(0) == 0
    for kind, values in {
        "int": (1.0, True, "1", None, -1, 2**21),
        "odd": (2, 0, True),
        "even": (3, 2.0),
        "float": (True, "x", float("inf"), float("nan")),
        "bool": (0, 1, "true", None),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=r"number|integer|true"):
                RuleParameter("a", kind, None).fit(value)  # type: ignore[arg-type]


def test_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rulefile, "MAX_TEXT", 100)
    with pytest.raises(ArchirError) as caught:
        parse("#" * 101)
    assert [d.code for d in caught.value.diagnostics] == ["A200"]


def test_a_class_rule_without_a_map() -> None:
    for lets in ("", "let n = size(c)", "let g = shuffle(size(c)) let h = shuffle(size(c))"):
        with pytest.raises(ArchirError) as caught:
            rule(f"""rule wrong(width: int) {{
                over c = class(at)
                {lets}
                produce zeros(width)    carry zeros(width)    consume zeros(width)
            }}""")
        assert [d.code for d in caught.value.diagnostics] == ["A213"]
        assert caught.value.status == 2


def test_empty_files_and_parameters() -> None:
    assert parse("") == parse("# nothing\n") == []
    assert parse('rule a.b() { "t" preserves shape match { y = relu(x) } replace { y = x } }') == [
        "a.b"
    ]


def test_libraries(tmp_path: Path) -> None:
    assert {"widen", "deepen", "deepen.batch_norm"} <= set(LIBRARY)
    assert len(LIBRARY.joined([])) == len(LIBRARY)
    with pytest.raises(ArchirError) as caught:
        LIBRARY.joined([LIBRARY["widen"], rule(LIBRARY["widen"].text)])
    assert caught.value.diagnostics[0].code == "A203"
    assert "in archir and in test.rule" in caught.value.diagnostics[0].message
    point = EntryPoint("gone", "no_such_package.rules", "archir.rules")
    with pytest.raises(ArchirError) as caught:
        installed(STANDARD, [point])
    assert caught.value.diagnostics[0].code == "A214"
    own = tmp_path / "own.rule"
    own.write_text(LIBRARY["widen"].text)
    (found,) = read_rule_file(own, STANDARD)
    assert found.hash == LIBRARY["widen"].hash
    assert Library([found]).find("widen") is found
    own.write_bytes(b"\xff\xfe")
    for path in (own, tmp_path / "none.rule", tmp_path):
        with pytest.raises(ArchirError) as caught:
            read_rule_file(path, STANDARD)
        assert caught.value.diagnostics[0].code == "A607"
        assert caught.value.status == 2


PIECES = [
    *("rule", "match", "replace", "weights", "over", "class", "(at)", "where", "let", "produce"),
    *("{", "}", "(", ")", "[", "]", '"', "#", "=", "|>", "3 *", "relu", "conv(8, 3)", "x", "y ="),
    *('params { weight: "w" }', "999999999999999999999", "1e999", "`a b`", "\0", "é", "-", "/ 0"),
    *("if x then", "output", "input", "not", "and", "take(g)", "((((((((", "[[[[[[[[", "\n", "  "),
]


def mutated(rng: np.random.Generator, texts: list[str]) -> str:
    """A shipped or wrong text with a few pieces taken out, doubled, moved or put in."""
    text = texts[int(rng.integers(len(texts)))]
    for _ in range(int(rng.integers(1, 5))):
        start = int(rng.integers(len(text) + 1))
        end = min(len(text), start + int(rng.integers(1, 30)))
        piece = PIECES[int(rng.integers(len(PIECES)))]
        if rng.integers(10) == 0:
            piece *= int(rng.integers(200))
        text = [
            text[:start] + text[end:],
            text[:end] + text[start:],
            text[:start] + piece + text[start:],
            text[:start] + piece + text[end:],
            text[end:] + text[:start],
        ][int(rng.integers(5))]
    return text


def test_texts_gone_astray() -> None:
    """1,500 mutated texts: rules or diagnostics, never anything else, and never slow."""
    rng = np.random.Generator(np.random.PCG64(20))
    texts = [path.read_text() for path in (*SHIPPED, *CASES)]
    good = 0
    for _ in range(1500):
        text = mutated(rng, texts)
        start = time.perf_counter()
        failure = outcome(text)
        assert time.perf_counter() - start < 2, text
        good += failure is None
        assert failure is None or (failure.status == 2 and render(failure.diagnostics))
    assert 15 < good < 750


def outcome(text: str) -> ArchirError | None:
    try:
        parse(text)
    except ArchirError as failure:
        return failure
    return None


@pytest.mark.parametrize(
    "text", ["(" * 20_000, "rule " * 20_000, '"' * 50_001, "[" * 5000, "x" * 900_000]
)
def test_hostile_texts(text: str) -> None:
    for body in (text, f"rule r() {{ match {{ y = {text} }} }}"):
        start = time.perf_counter()
        with pytest.raises(ArchirError):
            parse(body)
        assert time.perf_counter() - start < 2
