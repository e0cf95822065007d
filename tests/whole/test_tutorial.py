"""docs/writing-rules.md, followed word by word: a wrong rule is refuted, the right one proved."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archir.rewrite.maps import MAKERS
from archir.rewrite.names import OF_TENSORS
from archir.rewrite.rule import KINDS
from archir.weights.functions import FUNCTIONS

TEXT = (Path(__file__).parents[2] / "docs" / "writing-rules.md").read_text(encoding="utf-8")
LESSON = TEXT.partition("## The parts of a rule")[0]
BLOCKS = [textwrap.dedent(b) for b in re.findall(r"(?:^(?: {4}.*)?\n)+", LESSON, re.M) if b.strip()]
Archir = Callable[..., Any]


def block(start: str) -> str:
    """The only block that begins so."""
    (found,) = [b.strip("\n") + "\n" for b in BLOCKS if b.strip().startswith(start)]
    return found


def commands() -> list[list[str]]:
    """Every command of the lesson, without `archir`."""
    lines = [line for b in BLOCKS if b.strip().startswith("$") for line in b.strip().splitlines()]
    return [shlex.split(line.removeprefix("$ "))[1:] for line in lines]


def test_the_lesson(archir: Archir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.arch").write_text(block("version 1"))
    wrong = block("rule deepen.tanh")
    assert len(wrong.splitlines()) == 9  # a rule in ten lines
    Path("mine.rule").write_text(wrong)
    prove, rewrite, verify, explain = commands()
    refuted = archir(*prove)
    assert refuted.status == 1
    assert "refuted" in refuted.out
    assert len(refuted.out.splitlines()) <= 40
    assert archir(*rewrite).status == 1  # it never runs
    assert not Path("deeper.arch").exists()

    (old,) = [line for line in wrong.splitlines() if "replace" in line]
    right = wrong.replace(old, "    " + block("replace").strip())
    Path("mine.rule").write_text(right)
    proved = archir(*prove)
    assert proved.status == 0
    assert "refuted" not in proved.out
    assert proved.out.count("proved ") == 2
    done = archir(*rewrite)
    assert done.status == 0, done.err
    assert "rule proved; this use equal" in done.out
    assert "verified" in archir(*verify).out
    said = archir(*explain)
    assert said.status == 1
    assert "fc" in said.out


def test_the_widening(archir: Archir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = block("rule thicken")
    Path("wide.rule").write_text(wrong)
    refuted = archir("prove", "wide.rule")
    assert refuted.status == 1
    assert "before and" in refuted.out
    (fixed,) = re.findall(
        r"`(consume take\(g\) / count\(g\))` it is proved", " ".join(TEXT.split())
    )
    Path("wide.rule").write_text(wrong.replace("consume take(g)", fixed))
    assert archir("prove", "wide.rule").status == 0


@pytest.mark.parametrize("name", [*FUNCTIONS, *MAKERS, *OF_TENSORS, *KINDS])
def test_the_page_names_all_there_is(name: str) -> None:
    """Weight functions, maps, what can be asked of tensors, kinds of parameters."""
    if name not in ("add", "subtract", "multiply", "divide"):
        assert re.search(rf"`[^`]*\b{re.escape(name)}\b[^`]*`", TEXT), f"`{name}` is not explained"
