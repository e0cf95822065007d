"""``archir import``: files, messages and exit statuses."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
Archir = Callable[..., Any]
MODULES = Path(__file__).parents[1] / "backends" / "modules.py"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(MODULES, tmp_path / "nets.py")
    return tmp_path


def test_it_writes_a_whole_network(here: Path, archir: Archir) -> None:
    done = archir("import", "nets.py:residual", "-o", "net.arch", "--size", "3,16,16")
    assert done.status == 0, done.err
    assert "ran the code of nets.py" in done.out
    assert "equal to the module bit for bit" in done.out
    names = {"net.arch", "net.cert.json", "net.safetensors", "nets.py"}
    assert {p.name for p in here.iterdir() if p.is_file()} == names
    assert archir("verify", "net.arch").status == 0
    assert archir("fmt", "--check", "net.arch").status == 0
    assert archir("eval", "net.arch", "--data", "digits").status != 0  # another shape of image
    again = archir("import", "nets.py:residual", "-o", "net.arch")
    assert again.status == 2
    assert "--force" in again.err


def test_what_it_found_as_json(here: Path, archir: Archir) -> None:
    done = archir("import", "nets.py:residual", "-o", "net.arch", "--size", "3x16x16", "--json")
    found = json.loads(done.out)
    assert found["facts"]["source"] == "nets.py:residual"
    assert found["facts"]["equal"]["batches"] == [1, 3]
    assert found["facts"]["captured"] == "train"
    steps = json.loads((here / "net.cert.json").read_text())["steps"]
    assert [step["kind"] for step in steps] == ["import"]
    assert steps[0]["sha256"] == found["facts"]["sha256"]


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("nets.py:ValueFlow",), 3, "if x.sum() > 0:"),
        (("nets.py:Heads",), 3, "--aux"),
        (("nets.py:residual", "--size", "a,b"), 2, "--size"),
        (("nets.py:residual", "--size", "4,16,16"), 3, "does not run on"),
        (("nets.py",), 2, "file.py:factory"),
        (("nowhere.py:make",), 2, "nowhere.py"),
        (("nowhere.onnx",), 2, "nowhere.onnx"),
        (("nowhere.pt2",), 2, "nowhere.pt2"),
        (("huggingface:bert",), 2, "torchvision:NAME"),
        (("pickled.pt2",), 2, "pickled.pt2"),
    ],
)
def test_what_it_refuses(
    here: Path, archir: Archir, words: tuple[str, ...], status: int, told: str
) -> None:
    (here / "pickled.pt2").write_bytes(pickle.dumps({"a": 1}))
    before = {p.name for p in here.iterdir()}
    done = archir("import", *words, "-o", "net.arch")
    assert done.status == status, done.err
    assert told in done.err
    assert "Traceback" not in done.err
    assert {p.name for p in here.iterdir()} - {"__pycache__"} == before - {"__pycache__"}


def test_names_of_outputs_are_checked_first(here: Path, archir: Archir) -> None:
    done = archir("import", "nets.py:boom", "-o", "net.onnx")
    assert done.status == 2
    assert "net.onnx.arch" in done.err


def test_heads_are_kept_or_dropped(here: Path, archir: Archir) -> None:
    assert archir("import", "nets.py:Heads", "-o", "kept.arch", "--aux").status == 0
    assert archir("import", "nets.py:Heads", "-o", "dropped.arch", "--aux", "drop").status == 0
    assert "aux" in (here / "kept.arch").read_text()
    assert "aux" not in (here / "dropped.arch").read_text()
