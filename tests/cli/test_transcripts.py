"""What a user reads: transcripts of commands, word for word.

`pytest tests/cli --update-golden` writes them anew; times and digits that depend on the machine
are no part of them.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cli"
Archir = Callable[..., Any]

SESSIONS: dict[str, tuple[str, ...]] = {
    "look": (
        *("check net.arch", "show net.arch", "cost net.arch"),
        *("rules net.arch --rule widen", "rules net.arch --at relu", "rules --rule deepen", "new"),
    ),
    "show": (
        "new resnet20 -o resnet20.arch",
        "show resnet20.arch",
        "show resnet20.arch --depth 1",
        "show resnet20.arch --at stage2.0",
        "show resnet20.arch --at stage2.7",
        "show resnet20.arch -o resnet20.svg",
        "show resnet20.arch -o resnet20.svg",
        "show net.arch -o net.png",
        "show resnet20.arch --at stage2 --format dot --depth 0",
    ),
    "rewrite": (
        "weights init net.arch --seed 1 --random-statistics",
        "rewrite net.arch --rule deepen --at stem.relu --dry-run",
        "rewrite net.arch --rule widen --at tail.conv --set width=40 -o wider.arch",
        "rewrite wider.arch --rule deepen.batch_norm --at all -o deeper.arch",
        "verify deeper.arch",
    ),
    "diff": (
        "weights init net.arch --seed 1",
        "rewrite net.arch --rule widen@stem.conv --rule deepen@tail.relu --set width=24 -o w.arch",
        "diff net.arch w.arch",
        "diff w.arch net.arch --structure",
        "diff --textconv w.arch",
        "diff net.arch net.arch",
        "diff net.arch",
    ),
    "undo": (
        "weights init net.arch --seed 1",
        "rewrite net.arch --rule widen@stem.conv --set width=24 -o w.arch",
        "rewrite w.arch --rule deepen@tail.relu -o d.arch",
        "undo d.arch -o back.arch",
        "undo d.arch --steps 3 -o x.arch",
        "undo net.arch -o x.arch",
        "lineage back.arch",
        "lineage back.arch --step 2 -o old.arch",
        "verify back.arch",
    ),
    "refused": (
        "rewrite net.arch --rule widen --at fc2 --set width=20 --dry-run",
        "rewrite net.arch --rule widen --at stem.conv --set width=8 --dry-run",
        "rewrite net.arch --rule widen --at stem.conv --dry-run",
        "rewrite net.arch --rule widen --dry-run",
        "rewrite net.arch --rule deepen --at relu --dry-run",
        "rewrite net.arch --rule deepen --at stem.relu --set kernel=4 --dry-run",
        "rewrite net.arch --rule depen --at stem.relu --dry-run",
        "rewrite net.arch --rule deepen --at stem.rellu --dry-run",
        "rewrite net.arch --rule deepen --at stem.relu --max-params 14000 --dry-run",
        "explain net.arch --rule widen --at fc2",
        "explain net.arch --rule widen --at stem.conv",
        "explain net.arch --rule deepen --at stem.relu",
        "explain A303",
        "explain A999",
        "explain conv",
        "explain gelu",
        "explain convolve",
    ),
    "wrong": (
        "check absent.arch",
        "check broken.arch net.arch",
        "fmt --check broken.arch net.arch",
        "chek net.arch",
        "rewrite net.arch --rule deepen --at stem.relu",
        "eval net.arch",
        "new digit",
        "new inception",
        "verify net.arch",
    ),
}
BROKEN = """version 1
arch broken {
    input image: f32[N, 3, 32, 32]
    a = image |> conv(16, 3) |> rellu
    b = image |> conv(8, 3, 2)
    output a + b + c
}
"""


@pytest.mark.parametrize("session", SESSIONS)
def test_transcript(
    archir: Archir,
    session: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    update_golden: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    shutil.copy(ROOT / "examples" / "digits.arch", "net.arch")
    Path("broken.arch").write_text(BROKEN)
    lines = []
    for command in SESSIONS[session]:
        answer = archir(*shlex.split(command))
        lines += [f"$ archir {command}", answer.out + answer.err + f"[{answer.status}]", ""]
    text = steady("\n".join(lines))
    file = GOLDEN / f"{session}.txt"
    if update_golden:
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
    ours = [line for line in text.splitlines() if line[:1] not in "+-"]
    assert max(map(len, ours)) <= 120


def steady(text: str) -> str:
    """A transcript without what rounding and engines decide: the drift."""
    text = re.sub(r"(max\|a-b\|/max\|a\| = )\S+ \(\w+, ", r"\1... (..., ", text)
    return re.sub(r"\d\.\de[-+]\d\d", "...e-..", text)
