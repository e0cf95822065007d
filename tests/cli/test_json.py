"""`--json`: one document on stdout, of every command, whether it succeeds or fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from archir.cli.main import VERBS, group

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]

COMMANDS = (*(verb for verb in VERBS if verb != "weights"), "weights init")

GOOD: dict[str, tuple[str, ...]] = {
    "new": ("new", "digits", "-o", "copy.arch"),
    "import": ("import", "make.py:make", "-o", "imported.arch"),
    "check": ("check", "net.arch"),
    "fmt": ("fmt", "net.arch"),
    "show": ("show", "net.arch"),
    "cost": ("cost", "net.arch"),
    "diff": ("diff", "net.arch", "net.arch"),
    "weights init": ("weights", "init", "bare.arch"),
    "rules": ("rules", "net.arch"),
    "undo": ("undo", "grown.arch", "-o", "back.arch"),
    "lineage": ("lineage", "net.arch"),
    "rewrite": ("rewrite", "net.arch", "--rule", "deepen@stem.relu", "-o", "after.arch"),
    "prove": ("prove", "deepen"),
    "verify": ("verify", "net.arch"),
    "explain": ("explain", "A303"),
    "train": ("train", "net.arch", "--epochs", "1", "-o", "trained.arch"),
    "eval": ("eval", "net.arch"),
    "search": (
        *("search", "bare.arch", "--evaluator", "params", "--run", "found"),
        *("--set", "n_steps=1", "--set", "n_neigh=2", "--set", "epoch_final=1"),
    ),
    "report": ("report", "run", "-o", "report.html"),
    "export": ("export", "net.arch", "-o", "net.onnx"),
    "bench": ("bench", "net.arch", "--repeats", "6", "--threads", "1"),
    "doctor": ("doctor",),
}
"""The tour has a test of its own."""

BAD: dict[str, tuple[tuple[str, ...], int]] = {
    "new": (("new", "nothing"), 2),
    "import": (("import", "make.py", "-o", "x.arch"), 2),
    "check": (("check", "broken.arch", "net.arch"), 2),
    "fmt": (("fmt", "worse.arch"), 2),
    "show": (("show", "absent.arch"), 2),
    "cost": (("cost", "broken.arch"), 2),
    "diff": (("diff", "net.arch"), 2),
    "weights init": (("weights", "init", "net.arch"), 2),
    "rules": (("rules", "net.arch", "--rule", "none"), 2),
    "rewrite": (
        ("rewrite", "net.arch", "--rule", "widen@fc2", "--set", "width=99", "--dry-run"),
        1,
    ),
    "undo": (("undo", "net.arch", "-o", "x.arch"), 1),
    "lineage": (("lineage", "bare.arch"), 1),
    "prove": (("prove", "none"), 2),
    "verify": (("verify", "bare.arch"), 1),
    "explain": (("explain", "net.arch", "--rule", "widen", "--at", "fc2"), 1),
    "train": (("train", "net.arch", "--epochs", "0", "-o", "x.arch"), 2),
    "eval": (("eval", "bare.arch"), 2),
    "search": (("search", "bare.arch", "--seed", "-1", "--run", "found"), 2),
    "report": (("report", ".", "-o", "report.html"), 2),
    "export": (("export", "net.arch", "--opset", "99", "-o", "x.onnx"), 3),
    "bench": (("bench", "net.pt"), 2),
    "doctor": (("doctor", "--bogus"), 2),
    "tour": (("tour", "--epochs", "0"), 2),
}


MODULE = "import torch\n\n\ndef make():\n    return torch.nn.Linear(4, 2)\n"


@pytest.fixture(scope="module")
def nets(archir: Archir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    for name in ("net", "bare"):
        shutil.copy(EXAMPLES / "digits.arch", folder / f"{name}.arch")
    (folder / "broken.arch").write_text("arch net { input x: f32[N, 3] output y }")
    (folder / "worse.arch").write_text("arch")
    (folder / "make.py").write_text(MODULE)
    assert archir("weights", "init", folder / "net.arch").status == 0
    grown = ("--rule", "deepen@stem.relu", "-o", folder / "grown.arch")
    assert archir("rewrite", folder / "net.arch", *grown).status == 0
    (folder / "run").mkdir()
    (folder / "run" / "journal.jsonl").write_text('{"event": "search", "version": 1}\n')
    return folder


@pytest.fixture
def here(nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of networks to work in, as the current one."""
    folder = Path(shutil.copytree(nets, tmp_path / "work"))
    monkeypatch.chdir(folder)
    return folder


def test_every_command_is_tried() -> None:
    assert set(GOOD) | {"tour"} == set(COMMANDS)
    assert set(BAD) == set(COMMANDS)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.usefixtures("here")
def test_success(archir: Archir, name: str) -> None:
    answer = archir(*GOOD[name], "--json")
    document = answer.document
    assert list(document)[:3] == ["schema", "command", "status"]
    assert (document["schema"], document["command"], document["status"]) == ("archir/1", name, 0)
    assert answer.status == 0
    assert "diagnostics" not in document
    assert len(document) > 3


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("here")
def test_failure(archir: Archir, name: str) -> None:
    words, status = BAD[name]
    answer = archir(*words, "--json")
    document = answer.document
    assert (document["schema"], document["command"], document["status"]) == (
        "archir/1",
        name,
        status,
    )
    assert answer.status == status
    for found in document["diagnostics"]:
        assert found["code"].startswith("A")
        assert found["message"]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("here")
def test_failure_in_words(archir: Archir, name: str) -> None:
    words, status = BAD[name]
    answer = archir(*words)
    assert answer.status == status
    assert answer.out == "" or name in ("explain", "check", "fmt")  # which answer all the same
    said = answer.err + answer.out
    assert "error" in said.lower()
    assert "Traceback" not in said
    assert "A901" not in said


@pytest.mark.parametrize(
    ("words", "command"),
    [(("chek",), "archir"), (("weights", "instantiate"), "weights"), ((), "archir")],
)
def test_no_such_command(archir: Archir, words: tuple[str, ...], command: str) -> None:
    document = archir(*words, "--json").document
    assert (document["command"], document["status"]) == (command, 2)


def test_a_slip_of_the_pen(archir: Archir) -> None:
    answer = archir("chek")
    assert answer.status == 2
    assert "Did you mean 'check'?" in answer.err


def test_stdout_of_a_process_holds_the_document_alone(here: Path) -> None:
    """Frameworks print at import and in threads, where redirecting sys.stdout does not reach."""
    words = [
        sys.executable,
        "-m",
        "archir",
        "train",
        "net.arch",
        "--epochs",
        "1",
        "-o",
        "t.arch",
        "--json",
    ]
    done = subprocess.run(words, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "train"
    assert "epoch 1/1" in done.stderr


def test_wrong_places_are_given(archir: Archir, here: Path) -> None:
    (found,) = archir("check", "broken.arch", "--json").document["diagnostics"]
    assert found["code"] == "A101"
    assert (found["file"], found["line"], found["column"]) == ("broken.arch", 1, 38)


def test_check_reports_all_files(archir: Archir, here: Path) -> None:
    document = archir("check", "broken.arch", "net.arch", "worse.arch", "--json").document
    assert {d["file"] for d in document["diagnostics"]} == {"broken.arch", "worse.arch"}
    assert [f["file"] for f in document["files"]] == ["net.arch"]


# ---- help


def leaves() -> dict[str, click.Command]:
    context = click.Context(group)
    found: dict[str, click.Command] = {}
    for verb in VERBS:
        command = group.get_command(context, verb)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{verb} {n}": c for n, c in command.commands.items()}
        else:
            found[verb] = command
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help(archir: Archir, name: str) -> None:
    answer = archir(*name.split(), "--help")
    assert (answer.status, answer.err) == (0, "")
    assert "--json" in answer.out
    lines = answer.out.splitlines()
    example = lines[lines.index("  Example:") + 1]
    words = example.split()
    assert words[0] == "archir"
    assert " ".join(words[1:]).startswith(name)
    flags = {flag for parameter in leaves()[name].params for flag in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= flags
    assert max(map(len, lines)) <= 80
    assert "\b" not in answer.out
    assert "\\b" not in answer.out


def test_help_lists_every_command_in_a_sentence(archir: Archir) -> None:
    for words in ((), ("--help",), ("-h",)):
        answer = archir(*words)
        shown = answer.out + answer.err
        listed = shown[shown.index("Commands:") :]
        assert [line.split()[0] for line in listed.splitlines()[1:]] == list(VERBS)
        assert "..." not in listed
        assert "\\b" not in shown


def test_version(archir: Archir) -> None:
    from archir import __version__

    assert archir("--version").out == f"archir, version {__version__}\n"
