"""`archir train --grow`: one command, whose network is verified, and what it says of mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]

TIMETABLE = """
[[grow]]
step = 5
rule = "widen"
at = "tail.conv"
set = { width = 36 }

[[grow]]
epoch = 2
rule = "deepen@tail.relu"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(EXAMPLES / "digits.arch", tmp_path / "net.arch")
    (tmp_path / "grow.toml").write_text(TIMETABLE)
    return tmp_path


def train(archir: Archir, folder: Path, *words: object) -> Any:
    common = ("--grow", folder / "grow.toml", "--epochs", 2, "--device", "cpu")
    return archir("train", folder / "net.arch", *common, *words, "-o", folder / "out.arch")


def test_a_network_that_grew_is_verified(archir: Archir, folder: Path) -> None:
    answer = train(archir, folder, "--run", folder / "run", "--json")
    assert answer.status == 0, answer.out
    first, second = answer.document["growths"]
    assert first["rules"] == [{"rule": "widen", "site": "tail.conv", "set": {"width": 36}}]
    assert first["params"][1] == second["params"][0]
    assert second["stage"] == 2
    assert "growth 1 (step 5): widen@tail.conv" in answer.err
    assert answer.document["steps"] == [19, 38]
    found = archir("verify", folder / "out.arch", "--json")
    assert found.status == 0, found.out
    shown = archir("lineage", folder / "out.arch").out
    assert shown.index("widen") < shown.index("deepen")
    cost = archir("cost", folder / "out.arch", "--json").document
    assert second["params"][1] in json.loads(json.dumps(cost), parse_int=int).values()


def test_a_run_that_is_over_is_resumed(archir: Archir, folder: Path) -> None:
    first = train(archir, folder, "--run", folder / "run")
    assert first.status == 0, first.err
    assert "grew: parameters 13,978 -> " in first.out
    weights = (folder / "out.safetensors").read_bytes()
    again = train(archir, folder, "--run", folder / "run", "--resume", "--force", "--json")
    assert again.status == 0, again.out
    assert (folder / "out.safetensors").read_bytes() == weights
    assert [line["stage"] for line in again.document["growths"]] == [1, 2]
    assert archir("verify", folder / "out.arch").status == 0


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("[[grow]]\nstep = 1", 2, "A680"),
        ('[[grow]]\nstep = 38\nrule = "deepen@tail.relu"', 2, "A681"),
        ('[[grow]]\nstep = 1\nrule = "deepn"', 2, "A604"),
        ('[[grow]]\nstep = 1\nrule = "widen@tail.conv"\nset = { width = 3 }', 1, "A302"),
    ],
)
def test_mistakes_are_told_at_once(
    archir: Archir, folder: Path, text: str, status: int, code: str
) -> None:
    (folder / "grow.toml").write_text(text)
    answer = train(archir, folder, "--run", folder / "run", "--json")
    assert answer.status == status, answer.out
    (found,) = answer.document["diagnostics"]
    assert found["code"] == code
    assert "growth 1" in found["message"]
    assert not (folder / "run").exists()
    assert not (folder / "out.arch").exists()


def test_a_timetable_that_is_not_there(archir: Archir, folder: Path) -> None:
    (folder / "grow.toml").unlink()
    answer = train(archir, folder)
    assert answer.status == 2
    assert "error[A601]: cannot read" in answer.err
    assert "Traceback" not in answer.err
