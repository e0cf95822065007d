"""What the command line says of every shipped network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.arch"))
WIDEST = 120


@pytest.mark.parametrize("name", NAMES)
def test_a_network_to_begin_from(name: str, archir: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "net.arch"
    assert archir("new", name, "-o", file).status == 0
    assert file.read_text() == (EXAMPLES / f"{name}.arch").read_text()
    for words in (("fmt", "--check"), ("check",), ("show",), ("cost",), ("rules",)):
        answer = archir(*words, file, "--json")
        assert (answer.status, answer.err) == (0, ""), words
    assert max(map(len, file.read_text().splitlines())) <= WIDEST


@pytest.mark.parametrize("name", NAMES)
def test_classes_can_be_chosen(name: str, archir: Callable[..., Any]) -> None:
    answer = archir("check", EXAMPLES / f"{name}.arch", "--param", "classes=7")
    assert answer.status == 0
    assert "logits f32[N, 7]" in answer.out


@pytest.mark.parametrize(
    ("name", "setting", "entry"),
    [
        ("lenet_300_100", "size=8", "f32[N, 1, 8, 8]"),
        ("vit_tiny", "size=32", "f32[N, 3, 32, 32]"),
    ],
)
def test_other_sizes(name: str, setting: str, entry: str, archir: Callable[..., Any]) -> None:
    answer = archir("check", EXAMPLES / f"{name}.arch", "--param", setting)
    assert answer.status == 0
    assert entry in answer.out


def test_the_list_says_what_each_is(archir: Callable[..., Any]) -> None:
    answer = archir("new")
    rows = [line for line in answer.out.splitlines() if line.split(" ")[0] in NAMES]
    assert [row.split(" ")[0] for row in rows] == NAMES
    assert all(len(row) <= WIDEST and not row.endswith("...") for row in rows)
