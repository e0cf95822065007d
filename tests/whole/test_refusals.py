"""Rewrites that must be refused, as the command line tells it: exit 1, and the node to blame."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]

PLAIN = """
    a = x |> conv1: conv(8, 3) |> relu
    b = a |> conv2: conv(8, 3) |> act: relu
    output y = b |> global_avg_pool |> fc: linear(4)"""
MATRIX = """
    a = x |> global_avg_pool |> fc1: linear(8) |> relu
    output y = a |> fc2: linear(4)"""

REFUSED: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "through softmax": (
        """
    a = x |> conv1: conv(8, 3) |> soft: softmax(1) |> conv2: conv(8, 3)
    output y = a |> global_avg_pool |> fc: linear(4)""",
        ("widen@a.conv1", "width=10"),
        *("A303", "a.soft"),
    ),
    "the network's output": (PLAIN, ("widen@fc", "width=10"), "A303", "fc"),
    "an input": (PLAIN, ("widen@x", "width=10"), "A303", "x"),
    "what reads an input": (PLAIN, ("widen@a.conv1.in", "width=10"), "A303", "x"),
    "a tied weight on one side only": (
        """
    a = x |> conv1: conv(8, 3) |> relu |> conv2: conv(3, 3)
    b = x |> twin: conv(8, 3, weight = a.conv1.weight)
    output y = a |> global_avg_pool |> fc: linear(4)
    output z = b""",
        ("widen@a.conv1", "width=10"),
        *("A303", "b.twin"),
    ),
    "a residual stream that begins at the input": (
        """
    a = x |> conv1: conv(3, 3) |> relu
    s = a + x
    output y = s |> global_avg_pool |> fc: linear(4)""",
        ("widen@a.conv1", "width=10"),
        *("A303", "x"),
    ),
    "several channels a group": (
        """
    a = x |> conv1: conv(8, 3) |> relu |> grouped: conv(8, 3, groups = 2)
    output y = a |> global_avg_pool |> fc: linear(4)""",
        ("widen@a.conv1", "width=10"),
        *("A305", "a.conv1"),
    ),
    "a class that meets a constant": (
        """
    k = constant([[[0.5]], [[2.0]], [[1.5]], [[1.0]]])
    a = x |> conv1: conv(4, 3)
    s = a * k
    output y = s |> global_avg_pool |> fc: linear(4)""",
        ("widen@a.conv1", "width=10"),
        *("A303", "s"),
    ),
    "a split that cuts through a part of a concatenation": (
        """
    a = x |> conv1: conv(8, 3) |> relu
    b = x |> conv2: conv(8, 3) |> relu
    both = concat(a, b, axis = 1)
    l, r = split(both, sizes = [4, 12], axis = 1)
    output y = l
    output z = r""",
        ("widen@a.conv1", "width=10"),
        *("A303", "l"),
    ),
    "a narrower width": (PLAIN, ("widen@a.conv1", "width=4"), "A302", "a.conv1"),
    "the same width": (PLAIN, ("widen@a.conv1", "width=8"), "A302", "a.conv1"),
    "a width that no machine holds": (
        PLAIN,
        ("widen@a.conv1", "width=1000000000"),
        "A307",
        "a.conv1",
    ),
    "an even kernel": (PLAIN, ("deepen@a.relu", "kernel=4"), "A307", "a.relu"),
    "a negative kernel": (PLAIN, ("deepen@a.relu", "kernel=-3"), "A307", "a.relu"),
    "a kernel that is no number": (PLAIN, ("deepen@a.relu", "kernel=big"), "A307", "a.relu"),
    "a ReLU of a matrix": (MATRIX, ("deepen@a.relu",), "A302", "a.relu"),
    "a ReLU of a matrix, for the other rule": (
        MATRIX,
        ("deepen.batch_norm@a.relu",),
        "A302",
        "a.relu",
    ),
    "a convolution instead of a ReLU": (PLAIN, ("deepen@a.conv1",), "A302", "a.conv1"),
    "nothing to deepen at all": (
        "\n    output y = x |> fc: linear(4)",
        ("deepen",),
        *("A302", "net"),
    ),
}


def write(folder: Path, body: str) -> Path:
    file = folder / "net.arch"
    file.write_text(f"arch net {{\n    input x: f32[N, 3, 8, 8]{body}\n}}\n")
    return file


def refuse(archir: Archir, file: Path, *words: object) -> tuple[int, Any]:
    """Try a rewrite that must not happen: nothing may be written."""
    before = sorted(file.parent.iterdir())
    answer = archir("rewrite", file, *words, "-o", file.with_name("after.arch"), "--json")
    assert sorted(file.parent.iterdir()) == before
    assert answer.err == ""
    document = answer.document
    assert (document["schema"], document["command"]) == ("archir/1", "rewrite")
    assert document["status"] == answer.status
    return answer.status, document["diagnostics"][0]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, archir: Archir, tmp_path: Path) -> None:
    body, (rule, *settings), code, node = REFUSED[case]
    file = write(tmp_path, body)
    assert archir("check", file).status == 0
    words = [word for pair in settings for word in ("--set", pair)]
    status, found = refuse(archir, file, "--rule", rule, *words)
    assert (status, found["code"], found["node"]) == (1, code, node)


@pytest.mark.parametrize("case", [c for c in REFUSED if REFUSED[c][2] in ("A302", "A303")])
def test_explain_says_the_same(case: str, archir: Archir, tmp_path: Path) -> None:
    body, (named, *settings), code, node = REFUSED[case]
    rule, _, site = named.partition("@")
    words = [word for pair in settings for word in ("--set", pair)]
    at = ("--at", site) if site else ()
    answer = archir("explain", write(tmp_path, body), "--rule", rule, *at, *words, "--json")
    (found,) = answer.document["diagnostics"]
    assert (answer.status, found["code"], found["node"]) == (1, code, node)


@pytest.mark.parametrize("flag", ["--max-params", "--max-macs"])
def test_limits(flag: str, archir: Archir, tmp_path: Path) -> None:
    file = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path))
    words = ("rewrite", file, "--rule", "widen@stem.conv", "--set", "width=24", "--json")
    fits = archir(*words, "--dry-run").document
    name = flag.removeprefix("--max-")
    before, after = fits[name]
    assert before < after
    assert archir(*words, "--dry-run", flag, after).status == 0
    status, found = refuse(archir, file, *words[2:-1], flag, after - 1)
    assert (status, found["code"]) == (1, "A312")
    assert f"{after:,}" in found["message"]


def test_all_or_nothing(archir: Archir, tmp_path: Path) -> None:
    file = write(tmp_path, PLAIN)
    status, found = refuse(archir, file, "--rule", "deepen@a.relu", "--rule", "deepen@a.conv1")
    assert (status, found["node"]) == (1, "a.conv1")


def test_dropout_is_no_obstacle_but_takes_the_claim_for_training(
    archir: Archir, tmp_path: Path
) -> None:
    body = """
    a = x |> conv1: conv(8, 3) |> relu |> drop: dropout(0.5)
    output y = a |> global_avg_pool |> fc: linear(4)"""
    file = write(tmp_path, body)
    words = ("rewrite", file, "--rule", "widen@a.conv1", "--set", "width=10", "--dry-run")
    (use,) = archir(*words, "--json").document["uses"]
    assert list(use["exact"]) == ["eval"]
    assert use["not_claimed"] == {"train": "active dropout at a.drop"}
    assert "not claimed in train: active dropout at a.drop" in archir(*words).out


def test_dropout_elsewhere_takes_no_claim(archir: Archir, tmp_path: Path) -> None:
    body = """
    a = x |> conv1: conv(8, 3) |> relu |> conv2: conv(8, 3) |> drop: dropout(0.5)
    output y = a |> global_avg_pool |> fc: linear(4)"""
    file = write(tmp_path, body)
    words = ("rewrite", file, "--rule", "widen@a.conv1", "--set", "width=10", "--dry-run", "--json")
    (use,) = archir(*words).document["uses"]
    assert list(use["exact"]) == ["eval", "train"]
    assert use["not_claimed"] == {}


MISUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no such rule": (("--rule", "deeper"), "A604"),
    "no such node": (("--rule", "deepen", "--at", "stem.rellu"), "A605"),
    "a glob that fits nothing": (("--rule", "deepen", "--at", "stage9.*"), "A605"),
    "several sites": (("--rule", "deepen"), "A606"),
    "several within a scope": (("--rule", "deepen", "--at", "body"), "A606"),
    "no such parameter": (("--rule", "deepen", "--at", "stem.relu", "--set", "kernle=3"), "A608"),
    "a parameter is missing": (("--rule", "widen", "--at", "stem.conv"), "A608"),
    "no rule": ((), "A609"),
    "a setting without a value": (
        ("--rule", "deepen", "--at", "stem.relu", "--set", "kernel"),
        "A609",
    ),
    "an unknown option": (("--rule", "deepen", "--where", "stem.relu"), "A609"),
}


@pytest.mark.parametrize("case", MISUSED)
def test_misused(case: str, archir: Archir, tmp_path: Path) -> None:
    words, code = MISUSED[case]
    file = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path))
    status, found = refuse(archir, file, *words)
    assert (status, found["code"]) == (2, code)


def test_nothing_says_where_to_write(archir: Archir, tmp_path: Path) -> None:
    file = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path))
    answer = archir("rewrite", file, "--rule", "deepen@stem.relu")
    assert answer.status == 2
    assert "--dry-run" in answer.err
