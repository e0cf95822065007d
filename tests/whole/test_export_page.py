"""docs/export.md says what is so: its commands run, its listings have the real form."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archir.cleaning import RULES
from archir.cli.export import command
from archir.codes import CODES

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

TEXT = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(b) for b in re.findall(r"(?:^(?: {4}.*)?\n)+", TEXT, re.M) if b.strip()]
Archir = Callable[..., Any]


def block(start: str) -> str:
    """The only block that begins so."""
    (found,) = [b.strip("\n") for b in BLOCKS if b.strip().startswith(start)]
    return found


def shape(text: str) -> list[str]:
    """Lines with their numbers left out."""
    return [re.sub(r"[0-9a-f]{16}|\d[\d.,]*(e-\d+)?", "#", line) for line in text.splitlines()]


def test_the_page(archir: Archir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answers = []
    for line in block("archir new").splitlines():
        words = shlex.split(line.partition("#")[0])
        answers.append(archir(*words[1:]))
        assert answers[-1].status == 0, answers[-1].err
    _, _, plain, as_is, half, wide, gpu, document = answers
    assert shape(plain.out.rstrip()) == shape(block("wrote net.onnx"))
    assert "clean-ups" not in as_is.out
    assert "with every value rounded to float16" in half.out
    assert "bound 2e-02" in half.out
    assert re.search(r"of which the weights are in wide-[0-9a-f]{12}\.data\n", wide.out)
    assert "opset 21" in wide.out
    assert "at batch 1, 32:" in wide.out
    assert "not where it was to run: cuda" in gpu.out or "CUDAExecutionProvider agrees" in gpu.out
    found = document.document
    assert found["clean_ups"]["rules"].keys() == {"fold.batch_norm"}
    keys = {
        key
        for row in re.findall(r"^\| (`archir.*?) \|", TEXT, re.M)
        for key in re.findall(r"`(.*?)`", row)
    }
    assert keys == {*found["metadata"], "archir.preprocess"}
    space: dict[str, Any] = {}
    exec(block("import json"), space)
    assert space["report"].half["kept_in_f32"] == {"kept by the user": {"linear": 1}}


def test_what_it_names() -> None:
    flags = {option for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"`(--[a-z-]+)", TEXT)) | set(
        re.findall(r" (--[a-z-]+)", block("archir new"))
    )
    assert named - {"--random-statistics"} <= flags
    for code in re.findall(r"A\d{3}", TEXT):
        assert code in CODES
    assert set(re.findall(r"`archir prove ([\w.]+)`", TEXT)) <= set(RULES)
