"""`archir explain` of large classes: what is printed is readable, what --json gives is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]
WORDS = ("explain", EXAMPLES / "vit_tiny.arch", "--rule", "prune", "--at", "cls_token")


def test_many_alike_lines_are_cut(archir: Archir) -> None:
    whole = archir(*WORDS, "--json").document["about"]
    members = [line for line in whole if line.startswith("    ")]
    needs = [line for line in whole if line.startswith("  at ")]
    assert (len(members), len(needs)) == (127, 25)
    answer = archir(*WORDS)
    assert answer.status == 1
    lines = answer.out.splitlines()
    assert [line for line in lines if line in members] == members[:12]
    assert [line for line in lines if line in needs] == needs[:12]
    assert "    ... and 115 more (--json has all)" in lines
    assert "  ... and 13 more (--json has all)" in lines


def test_few_are_not(archir: Archir) -> None:
    words = ("explain", EXAMPLES / "resnet20.arch", "--rule", "widen", "--at", "stage3.0.conv1")
    about = archir(*words, "--json").document["about"]
    assert 2 < len(about) <= 12
    assert archir(*words).out.splitlines()[1:] == about


@pytest.mark.parametrize("operator", ["attention", "stochastic_depth"])
def test_texts_of_operators_fit(archir: Archir, operator: str) -> None:
    document = archir("explain", operator, "--json").document
    out = archir("explain", operator).out
    assert " ".join(out.split()).startswith(f"{operator}: {document['doc']}")
    texts = [line for line in out.splitlines() if "─" not in line]
    assert max(map(len, texts)) <= 100


def test_a_rule_for_which_nothing_is_there(archir: Archir) -> None:
    answer = archir("rewrite", EXAMPLES / "vit_tiny.arch", "--rule", "deepen", "--dry-run")
    assert answer.status == 1
    assert answer.err.splitlines()[0] == (
        "error[A302]: `deepen` applies nowhere in this network: nothing like it occurs"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vit", "`vit_tiny`?"), ("ResNet", "`resnet20`?"), ("digit", "`digits`?"), ("", "there are:")],
)
def test_parts_of_names_are_understood(archir: Archir, name: str, hint: str) -> None:
    answer = archir("new", name)
    assert answer.status == 2
    assert hint in answer.err
