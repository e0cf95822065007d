"""What only a process of its own shows: signals, closed streams, packages that are absent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ARCHIR = (sys.executable, "-m", "archir")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    file = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path / "net.arch"))
    assert run("weights", "init", file).returncode == 0
    return file


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*ARCHIR, *map(str, words)]
    chosen = {"capture_output": True, **options}
    return subprocess.run(command, text=True, check=False, timeout=120, **chosen)


def start(*words: object) -> subprocess.Popen[str]:
    command = [*ARCHIR, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


# ---- signals


def test_ctrl_c_in_training(net: Path) -> None:
    out = net.with_name("out.arch")
    assert run("weights", "init", shutil.copy(net, out)).returncode == 0
    before = contents(net.parent)
    train = start("train", net, "--epochs", "100000", "-o", out, "--force")
    assert train.stderr is not None
    for line in train.stderr:
        if line.startswith("epoch 3/"):
            break
    train.send_signal(signal.SIGINT)
    said, more = train.communicate(timeout=60)
    assert train.returncode == 130
    assert said == ""
    assert more.splitlines()[-1] == "interrupted; nothing was left half written"
    assert "Traceback" not in more
    assert contents(net.parent) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rewrite_that_is_stopped_at_any_moment(net: Path, number: signal.Signals) -> None:
    """All or nothing: it was done and verifies, or the old files are as they were."""
    out = net.with_name("out.arch")
    words = ("rewrite", net, "--rule", "widen@stem.conv", "--set", "width=24", "-o", out)
    began = time.perf_counter()
    assert run(*words).returncode == 0
    whole = time.perf_counter() - began
    done = contents(net.parent)
    shutil.rmtree(out.with_suffix(".lineage"))
    for old in net.parent.glob("out.*"):
        old.unlink()
    statuses = []
    for part in (0.6, 0.8, 0.95):
        job = start(*words)
        time.sleep(whole * part)
        job.send_signal(number)
        _, said = job.communicate(timeout=60)
        assert job.returncode in (0, 128 + number), said
        assert "Traceback" not in said
        statuses.append(job.returncode)
        left = contents(net.parent)
        assert not [name for name in left if name.endswith(".tmp")]
        if out.exists():
            assert left == done
            for new in net.parent.glob("out.*"):
                shutil.rmtree(new) if new.is_dir() else new.unlink()
        else:
            assert not [name for name in left if name.startswith("out.") and "lineage" not in name]
    assert 128 + number in statuses


# ---- streams


def test_a_reader_that_goes_away(net: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        for words in (("show", net), ("show", net, "--json"), ("rules",)):
            done = run(*words, capture_output=False, stdout=write, stderr=subprocess.PIPE)
            assert (done.returncode, done.stderr) == (0, "")
    finally:
        os.close(write)


@pytest.mark.parametrize("words", [("show",), ("show", "--json"), ("check",)])
def test_stdout_is_closed(net: Path, words: Sequence[str]) -> None:
    done = run(
        words[0],
        net,
        *words[1:],
        preexec_fn=lambda: os.close(1),
        capture_output=False,
        stderr=subprocess.PIPE,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_stderr_is_closed(net: Path) -> None:
    done = run(
        "show",
        "absent.arch",
        preexec_fn=lambda: os.close(2),
        capture_output=False,
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_stdout_is_full(net: Path, flags: Sequence[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run("show", net, *flags, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == "error[A691]: the disk is full: standard output\n"


def test_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    file = tmp_path / "net.arch"
    text = (
        "# \u00e9\u00df\narch net { input x: f32[N, 3] output y = x |> `\u00e9\u00df`: linear(2) }"
    )
    file.write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for verb in ("check", "show", "cost"):
        done = run(verb, file, env=environment)
        assert (done.returncode, done.stderr) == (0, "")


# ---- packages

BLOCK = """
import sys
for name in {names!r}:
    sys.modules[name] = None
from archir.cli.main import run
sys.exit(run(sys.argv[1:]))
"""
OPTIONAL = (
    *("torch", "torchvision", "onnx", "onnxruntime", "egglog", "sklearn", "scipy"),
    "ml_dtypes",
)


def without(names: Sequence[str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK.format(names=names), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_check_needs_no_framework() -> None:
    files = sorted(EXAMPLES.glob("*.arch"))
    assert len(files) >= 5
    done = without([*OPTIONAL, "safetensors"], "check", *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(": ok: ") == len(files)


@pytest.mark.parametrize(
    "words",
    [
        ("show", "resnet50"),
        ("cost", "vgg16_bn"),
        ("fmt", "--check", "digits"),
        ("rules", "resnet20"),
        ("rules",),
        ("explain", "A303"),
        ("explain", "digits", "--rule", "widen", "--at", "stem.conv"),
        ("prove",),
        ("new",),
        ("--help",),
    ],
    ids=" ".join,
)
def test_what_reads_text_needs_no_framework(words: Sequence[str]) -> None:
    known = {path.stem: path for path in EXAMPLES.glob("*.arch")}
    done = without(OPTIONAL, *(known.get(word, word) for word in words))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_rewrite_needs_no_framework(net: Path) -> None:
    """The drift is then measured by NumPy, and the verdicts are those that are shipped."""
    out = net.with_name("out.arch")
    words = ("rewrite", net, "--rule", "widen@stem.conv", "--set", "width=20", "-o", out)
    done = without(OPTIONAL, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rule proved" in done.stdout
    assert "(numpy, float32)" in done.stdout
    assert without(OPTIONAL, "verify", out).returncode == 0


@pytest.mark.parametrize(
    ("names", "words", "status", "hint"),
    [
        (("torch",), ("train", "{net}", "-o", "{out}.arch"), 2, "archir[torch]"),
        (("torch",), ("eval", "{net}"), 2, "archir[torch]"),
        (("onnx",), ("export", "{net}", "-o", "{out}.onnx"), 3, "archir[onnx]"),
        (("onnxruntime",), ("export", "{net}", "-o", "{out}.onnx"), 3, "archir[onnx]"),
        (("sklearn",), ("train", "{net}", "-o", "{out}.arch"), 2, "archir[data]"),
        (("egglog",), ("prove", "--no-cache", "deepen"), 3, "archir[proof]"),
    ],
)
def test_what_is_missing_is_named(
    net: Path, names: Sequence[str], words: Sequence[str], status: int, hint: str
) -> None:
    filled = [word.format(net=net, out=net.with_name("out")) for word in words]
    done = without(names, *filled)
    assert done.returncode == status, done.stderr
    assert f"pip install '{hint}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(net.parent.glob("out*"))


def test_doctor_says_what_is_missing() -> None:
    done = without(["torch", "onnx", "egglog", "sklearn"], "doctor")
    assert "pip install 'archir[torch]'" in done.stdout
    assert "pip install 'archir[onnx]'" in done.stdout
