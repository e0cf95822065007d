"""The README says what is so: its commands run, its listings and numbers are the real ones."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archir.api import library
from archir.cli.main import VERBS
from archir.files import read_source
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.cost import cost
from archir.rewrite.rule import Reshaping

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(b) for b in re.findall(r"(?:^(?: {4}.*)?\n)+", README, re.M) if b.strip()]
Archir = Callable[..., Any]


def block(start: str) -> str:
    """The only block of code that begins so."""
    (found,) = [b.strip("\n") + "\n" for b in BLOCKS if b.strip().startswith(start)]
    return found


def cells(head: str) -> list[list[str]]:
    """The rows of the table whose head begins so, cell by cell."""
    table = README[README.index(f"\n| {head}") :].lstrip().split("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]


def code(words: str) -> list[str]:
    return re.findall(r"`([^`]+)`", words)


def test_every_block_is_tested_here() -> None:
    starts = ("pip install uv", "version 1", "archir new", "import archir", "rule deepen")
    assert len(BLOCKS) == len(starts)  # the first is what .ci/run and tests/packaging look at
    for start in starts:
        assert block(start)


def test_the_network_is_the_one_that_is_shipped() -> None:
    assert block("version 1") == (ROOT / "examples" / "resnet20.arch").read_text()


def test_the_rule_is_the_one_that_is_shipped() -> None:
    shipped = re.split(r"\n(?=rule )", (ROOT / "rewrites" / "deepen.rule").read_text())
    assert block("rule deepen").strip() == shipped[1].strip()


@pytest.mark.slow
def test_the_session(archir: Archir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command by command, and then the Python beside the files that they left."""
    monkeypatch.chdir(tmp_path)
    answers = {}
    for line in block("archir new").splitlines():
        command = line.partition("#")[0].strip()
        answers[command] = archir(*shlex.split(command)[1:])
        refused = command.startswith(("archir explain", "archir diff"))  # and different
        assert answers[command].status == (1 if refused else 0), answers[command].err
    told = "\n".join(answer.out + answer.err for answer in answers.values())
    assert "it is the output `logits` of the network" in told
    assert "wider.arch: verified" in told
    space: dict[str, Any] = {}
    exec(block("import archir"), space)
    assert space["module"].get_parameter("stem.conv.weight").shape[0] == 24
    assert (tmp_path / "python.safetensors").is_file()


def test_the_picture(archir: Archir) -> None:
    (command,) = re.findall(r"^`(archir show resnet20.*?)`", README, re.M)
    words = shlex.split(command.replace("resnet20.arch", str(ROOT / "examples" / "resnet20.arch")))
    (target,) = re.findall(r'<img src="(.*?)"', README)
    assert Path(target).name == words[-1]
    drawn = archir(*words[1 : words.index("-o")], "--format", "svg").out
    assert drawn == (ROOT / target).read_text(encoding="utf-8")


def test_the_networks() -> None:
    rows = {code(row[0])[0]: row[2:] for row in cells("name | from")}
    expected = {}
    for path in (ROOT / "examples").glob("*.arch"):
        found = cost(load(read_source(path), STANDARD).graph, STANDARD)
        expected[path.stem] = [f"{found.params:,}", f"{found.macs:,}"]
    assert rows == expected


def test_the_rules() -> None:
    named = [name for row in cells("family | what") for name in code(row[0])]
    rules = library(STANDARD)
    assert sorted(named) == sorted({name.partition(".")[0] for name in rules})
    told = code(README.partition(" act on an *axis class*")[0].rpartition("\n\n")[2])
    reach = {n for n, rule in rules.items() if isinstance(rule.body, Reshaping)}
    assert {n for n in reach if not any(n.startswith(f"{t}.") for t in told)} == set(told)
    for row in cells("family | what"):
        for name in code(row[0]):
            found = [r.contract for n, r in rules.items() if n.partition(".")[0] == name]
            assert all(c.shape for c in found) or not row[2].startswith("shape"), name


def test_the_commands() -> None:
    listed = README.partition("## Commands")[2].partition(". Each has")[0]
    assert [name.split()[0] for name in code(listed)] == list(VERBS)


def test_what_it_points_to_is_there() -> None:
    named = re.findall(r"`((?:docs|tests|benchmarks|examples)/[\w./-]*|[A-Z]+\.md)`", README)
    assert len(named) >= 6
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert {f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")} <= set(named)
