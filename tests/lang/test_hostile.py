"""Broken and hostile texts: an error in the user's terms, soon, and nothing else."""

from __future__ import annotations

import random
import time

import pytest

from archir.diag import ArchirError, Source
from archir.lang import format_text, load
from archir.ops import STANDARD
from archir.render import render

from .graphs import EXAMPLES

MUTANTS = 2000
SLOWEST = 2.0
PIECES = [
    "{", "}", "(", ")", "[", "]", "|>", ",", "=", ":", "*", "+", "-", "/", '"', "`", "#", ".", "\\",
    "input", "output", "block", "arch", "let", "param", "if", "then", "else", "not", "params",
    "none", "0", "1", "7", "999999999", "1e308", "N",
    "x", "same", "relu", "conv", "basic", "\n", " ", "é",
    "\x00", "image", "-1", "1.5", "true", "preprocess", "split(", "3 *", "weight = ", "a.b.c: ",
]  # fmt: skip


def mutate(text: str, rng: random.Random) -> str:
    """A text with one to four places broken."""
    for _ in range(rng.randint(1, 4)):
        at, to = rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:at] + text[at + rng.randint(1, 12) :]
        elif kind == 1:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind == 2:
            size = rng.randint(1, 40)
            text = text[:at] + text[to : to + size] + text[at:]
        elif kind == 3:
            text = text[:at] + rng.choice(PIECES) + text[at + rng.randint(1, 4) :]
        else:
            text = text[: max(at, 20)]
    return text


@pytest.mark.parametrize("part", range(4))
def test_mutants_end_in_an_error_or_a_network(part: int) -> None:
    rng = random.Random(f"mutants {part}")
    texts = [path.read_text() for path in EXAMPLES if "50" not in path.name]
    loaded = failed = 0
    for _ in range(MUTANTS // 4):
        text = mutate(rng.choice(texts), rng)
        source = Source("mutant.arch", text)
        start = time.perf_counter()
        shown, located = "a network", True
        try:
            load(source, STANDARD)
            once = format_text(source)
            assert format_text(Source("mutant.arch", once)) == once
            loaded += 1
        except ArchirError as problem:
            found = problem.diagnostics
            shown = render(found)
            failed += 1
            located = all(d.span is not None or d.code == "A100" for d in found)
        assert shown
        assert located, text
        assert time.perf_counter() - start < SLOWEST, text
    assert loaded > 10
    assert failed > 100


BLOCK = "block b { output input |> relu }\n"
NET = "arch n { input x: f32[N, 4, 8, 8] output x |> %s }"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (NET % "1000000000 * relu", "A122"),
        (BLOCK + NET % "100000000000000000 * b", "A122"),
        (NET % "conv(99999999999999)", "A114"),
        (NET % "conv(4, [" + "1, " * 5000 + "1]) }", "A001"),
        ("arch n { let k = " + "9999999 * " * 50 + "1 }", "A108"),
        ("arch n { let k = " + "not " * 500 + "true }", "A005"),
        ("arch n { let k = " + "if true then 1 else " * 200 + "1 }", "A005"),
        ("arch n { let k = " + "[" * 99 + "]" * 99 + " }", "A005"),
        ("{" * 101, "A005"),
        ("arch n { let k = " + "9" * 5000 + " }", "A006"),
        ("$" * 100_000, "A002"),
        ("arch n {\n" + "x = \n" * 5000 + "}", "A001"),
        ("# only a comment", "A100"),
        ("", "A100"),
    ],
)  # fmt: skip
def test_limits(text: str, code: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ArchirError) as caught:
        load(Source("hostile.arch", text), STANDARD)
    assert code in [d.code for d in caught.value.diagnostics]
    assert len(caught.value.diagnostics) <= 50
    assert time.perf_counter() - start < SLOWEST


def test_blocks_that_call_blocks_do_not_explode() -> None:
    blocks = [BLOCK] + [
        f"block b{i} {{ output input |> 9 * b{i - 1 if i else ''} }}\n" for i in range(30)
    ]
    start = time.perf_counter()
    with pytest.raises(ArchirError) as caught:
        load(Source("hostile.arch", "".join(blocks) + NET % "b29"), STANDARD)
    assert caught.value.diagnostics[0].code == "A122"
    assert time.perf_counter() - start < 4 * SLOWEST


def test_building_takes_linear_time() -> None:
    text = "block b { output input |> conv(4, 3) |> relu }\n" + NET
    times = []
    for count in (500, 5000):
        source = Source("large.arch", text % f"{count} * b")
        start = time.perf_counter()
        program = load(source, STANDARD)
        times.append(time.perf_counter() - start)
        assert len(program.graph) == 2 * count + 1
    assert times[1] < 40 * times[0]
