"""`archir train` as a user types it: what it says, what it refuses, and how it can end."""

from __future__ import annotations

import errno
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archir import files
from archir.train import loop

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]
SHORT = "--data digits --device cpu --epochs 2 --batch-size 96 --init 0 -o out.arch"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(EXAMPLES / "digits.arch", tmp_path / "net.arch")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def arch(name: str, shape: str, body: str) -> None:
    Path(name).write_text(f"version 1\narch net {{\n input image: f32[N, {shape}]\n {body}\n}}\n")


def made(name: str, count: int) -> None:
    stream = np.random.default_rng(0)
    sizes = {"train": count, "validation": 5, "test": 5}
    arrays = {f"x_{k}": stream.random((n, 1, 8, 8), np.float32) for k, n in sizes.items()}
    labels = {f"y_{k}": np.arange(n) % 10 for k, n in sizes.items()}
    np.savez(name, **arrays, **labels, classes=np.arange(10))


LINEAR = "f = image |> flatten\n output logits = f |> fc: linear"
LOSSES = """
import torch
def number():
    return 3
def fails():
    raise ValueError("on purpose")
def leaves():
    raise SystemExit(7)
def divides():
    return lambda logits, y: 1 / 0
def many():
    return lambda logits, y: logits
def flat():
    return lambda logits, y: torch.tensor(1.0)
def nan():
    return lambda logits, y: logits.sum() * float("nan")
"""


# ---- what is written and said


def test_a_recipe_and_flags(archir: Archir, home: Path) -> None:
    Path("recipe.toml").write_text('epochs = 1\nlr = 0.1\noptimizer = "adamw"\ndevice = "cpu"\n')
    words = "train net.arch --data digits --recipe recipe.toml --lr 0.004 --init 0 -o out.arch"
    answer = archir(*words.split(), "--json", "--rate", "stem=0.5", "--freeze", "fc2")
    assert answer.status == 0, answer.out
    found = json.loads(answer.out)["config"]
    assert found["lr"] == 0.004
    assert found["optimizer"] == "adamw"
    assert found["rates"] == [["stem", 0.5]]
    assert found["freeze"] == ["fc2"]
    (step,) = (s for s in json.loads(Path("out.cert.json").read_text())["steps"]
               if s["kind"] == "train")  # fmt: skip
    assert found.items() <= step["config"].items()


def test_one_document_and_lines_elsewhere(archir: Archir, home: Path) -> None:
    answer = archir("train", "net.arch", *SHORT.split(), "--json", "--run", "run")
    assert answer.status == 0
    found = json.loads(answer.out)
    assert [line["epoch"] for line in found["history"]] == [1, 2]
    lines = answer.err.splitlines()
    assert lines[0].startswith("training on cpu")
    assert [line.split()[:2] for line in lines[1:]] == [["epoch", "1/2"], ["epoch", "2/2"]]
    for part in ("loss", "accuracy", "images/s"):
        assert part in lines[1]
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation_accuracy"] == found["validation"]["accuracy"]


def test_a_bar_on_a_terminal(home: Path) -> None:
    """Under a terminal of its own; what it draws is looked at, without the control sequences."""
    main, side = pty.openpty()
    job = subprocess.Popen(
        [sys.executable, "-m", "archir", "train", "net.arch", *SHORT.split(), "--epochs", "8"],
        stdout=subprocess.PIPE,
        stderr=side,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "OMP_NUM_THREADS": "1"},
    )
    os.close(side)
    seen = b""
    while job.poll() is None or select.select([main], [], [], 0)[0]:
        if select.select([main], [], [], 0.1)[0]:
            try:
                seen += os.read(main, 65536)
            except OSError:  # the other side is closed
                break
    said = job.communicate(timeout=60)[0].decode()
    os.close(main)
    text = seen.decode()
    for part in ("epoch 8/8", "loss 0.", "accuracy ", "%", " images/s", "0:00:0"):
        assert part in text, text[-500:]
    assert said.startswith("validation accuracy ")


def test_the_best_weights(archir: Archir, home: Path) -> None:
    words = ["--run", "run", "--keep", "best", "--epochs", "4", "--lr", "0.2"]
    assert archir("train", "net.arch", *SHORT.split(), *words, "--json").status == 0
    lines = [json.loads(t) for t in Path("run/metrics.jsonl").read_text().splitlines()]
    best = max(line["validation_accuracy"] for line in lines)
    answer = archir("eval", "out.arch", "--data", "digits", "--split", "validation", "--json")
    assert json.loads(answer.out)["accuracy"] == best


def test_tensorboard(archir: Archir, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The events are the metrics, each once, also where the run was cut off and resumed."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["train", "net.arch", *SHORT.split(), "--run", "run", "--tensorboard"]
    words += ["--log-every", "3"]
    update = loop._Run._update

    def cut(self: Any, *batch: torch.Tensor) -> torch.Tensor:
        if self.step == 14:
            self._save()
        if self.step == 23:  # lines of four more have been logged
            raise KeyboardInterrupt
        return update(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_update", cut)
        assert archir(*words).status == 130
    assert archir(*words, "--resume").status == 0
    expected: dict[str, list[tuple[int, float]]] = {}
    for text in Path("run/metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for name, value in line.items():
            if isinstance(value, float):
                key = f"{line['event']}/{name}"
                expected.setdefault(key, []).append((line["step"], value))
    board = EventAccumulator("run").Reload()
    assert set(board.Tags()["scalars"]) == set(expected)
    for name, values in expected.items():
        found = [(event.step, event.value) for event in board.Scalars(name)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in values]
    assert archir(*words, "--force").status == 0
    assert len(list(Path("run").glob("events*"))) == 1


def test_tensorboard_that_is_missing(
    archir: Archir, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    words = ["train", "net.arch", *SHORT.split(), "--tensorboard"]
    answer = archir(*words, "--run", "run")
    assert answer.status == 2
    assert "error[A622]" in answer.err
    assert "archir[tensorboard]" in answer.err
    assert not Path("run").exists()
    assert "A609" in archir(*words).err  # and no folder to put them


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("net.arch --resume", 2, "A609"),
        ("net.arch --rate stem", 2, "A609"),
        ("net.arch --rate stem=-1", 2, "A632"),
        ("net.arch --rate stem=nan", 2, "A632"),
        ("net.arch --rate nobody=1", 2, "A670"),
        ("net.arch --freeze nobody", 2, "A670"),
        ("net.arch --freeze *", 2, "A671"),
        ("net.arch --epochs 0", 2, "A632"),
        ("net.arch --epochs many", 2, "is not a valid integer"),
        ("net.arch --lr nan", 2, "A632"),
        ("net.arch --precision f8", 2, "A632"),
        ("net.arch --crop 20", 2, "A674"),
        ("net.arch --optimizer adamw --recipe beta.toml", 2, "A632"),
        ("net.arch --device cuda:77", 2, "A630"),
        ("net.arch --device tpu", 2, "A630"),
        ("net.arch --recipe none.toml", 2, "A601"),
        ("net.arch --run net.arch", 2, "is a file"),
        ("net.arch --data none.npz", 2, "A620"),
        ("net.arch --loss nobody", 2, "A632"),
        ("net.arch --loss losses.py:nobody", 2, "A672"),
        ("net.arch --loss losses.py:number", 2, "A672"),
        ("net.arch --loss losses.py:fails", 2, "A672"),
        ("net.arch --loss losses.py:leaves", 2, "A672"),
        ("net.arch --loss losses.py:divides", 2, "A673"),
        ("net.arch --loss losses.py:many", 2, "A673"),
        ("net.arch --loss losses.py:flat", 2, "A673"),
        ("net.arch --loss losses.py:nan", 2, "A631"),
        ("net.arch --lr 900", 2, "A631"),
        ("net.arch --data losses.py:fails", 2, "A624"),
        ("colours.arch", 2, "A623"),
        ("seven.arch", 2, "A623"),
        ("pairs.arch", 2, "A625"),
        ("net.arch --distill none.arch", 2, "A601"),
        ("net.arch --distill colours.arch", 2, "A600"),
        ("point.arch --data one.npz", 2, "A632"),
        ("point.arch --batch-size 1", 2, "A632"),
    ],
)
def test_one_clear_error(archir: Archir, home: Path, words: str, status: int, said: str) -> None:
    arch("colours.arch", "3, 8, 8", f"{LINEAR}(10)")
    arch("seven.arch", "1, 8, 8", f"{LINEAR}(7)")
    arch("pairs.arch", "1, 8, 8", f"{LINEAR}(10)\n output more = f |> fd: linear(3)")
    points = "f = image |> conv: conv(4, 8, padding = 0) |> bn: batch_norm |> flatten"
    arch("point.arch", "1, 8, 8", f"{points}\n output logits = f |> fc: linear(10)")
    made("one.npz", 1)
    Path("losses.py").write_text(LOSSES)
    Path("beta.toml").write_text("beta2 = 1.0\n")
    before = contents(home)
    given = words.split()
    answer = archir("train", *SHORT.split(), *given)
    assert answer.status == status, answer.err
    assert said in answer.err
    assert answer.out == ""
    assert "A901" not in answer.err
    assert {k: v for k, v in contents(home).items() if "__pycache__" not in k} == before


def test_a_teacher_that_sees_other_images(archir: Archir, home: Path) -> None:
    text = Path("net.arch").read_text().rpartition("}")[0]
    Path("other.arch").write_text(f"{text}    preprocess {{ mean = [0.5], std = [0.25] }}\n}}\n")
    arch("seven.arch", "1, 8, 8", f"{LINEAR}(7)")
    for name, said in (("other", "other means or deviations"), ("seven", "has 10 classes")):
        assert archir("weights", "init", f"{name}.arch").status == 0
        answer = archir("train", "net.arch", *SHORT.split(), "--distill", f"{name}.arch")
        assert (answer.status, "error[A623]" in answer.err) == (2, True)
        assert said in answer.err


@pytest.mark.parametrize("count", [1, 5])
def test_few_images(archir: Archir, home: Path, count: int) -> None:
    made("few.npz", count)
    answer = archir("train", "net.arch", *SHORT.split(), "--data", "few.npz", "--json")
    assert answer.status == 0, answer.out
    assert json.loads(answer.out)["data"]["images"] == count


# ---- how a run can end


def command(*words: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "archir", "train", "net.arch", *SHORT.split(), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **more,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end(home: Path, number: signal.Signals) -> None:
    job = command("--run", "run", "--epochs", "100000")
    assert job.stderr is not None
    for line in job.stderr:
        if line.startswith("epoch 3/"):
            break
    job.send_signal(number)
    out, more = job.communicate(timeout=60)
    assert job.returncode == 128 + number
    assert out == ""
    assert "the last good checkpoint is in run; --resume goes on from it" in more.splitlines()
    assert "Traceback" not in more
    assert not [p for p in home.rglob("*") if p.suffix == ".tmp" or p.name.startswith("out.")]


def test_a_machine_without_memory(home: Path) -> None:
    """The address space is cut once torch is there: its libraries take gigabytes of it."""
    code = (
        "import resource, sys, torch, torch._dynamo, sklearn.datasets, archir.train.loop\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)\n"
        "from archir.cli.main import run\nsys.exit(run(sys.argv[1:]))\n"
    )
    arch("wide.arch", "1, 8, 8", f"f = image |> conv: conv(4000, 3) |> relu |> flatten\n{' '}"
         "output logits = f |> fc: linear(10)")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "wide.arch", *SHORT.split(), "--run", "run"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "error[A633]: cpu has not enough memory" in done.stderr
    assert "a smaller batch" in done.stderr


def test_a_gpu_without_memory(archir: Archir, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = loop._Run._update

    def full(self: Any, *batch: torch.Tensor) -> torch.Tensor:
        if self.step == 15:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update(self, *batch)

    words = ["train", "net.arch", *SHORT.split(), "--run", "run"]
    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_update", full)
        answer = archir(*words)
    assert answer.status == 2
    assert "error[A633]" in answer.err
    assert "the last good checkpoint is in run; --resume goes on from it" in answer.err
    assert archir(*words, "--resume").status == 0


def test_no_room_for_the_result(
    archir: Archir, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = files._sync

    def full(path: Path) -> None:
        if ".out." in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    words = ["train", "net.arch", *SHORT.split(), "--run", "run"]
    with monkeypatch.context() as patched:
        patched.setattr(files, "_sync", full)
        answer = archir(*words)
    assert answer.status == 2
    assert "error[A602]" in answer.err
    assert "No space left on device" in answer.err
    assert not [p for p in home.glob("*out.*") if p.name != "out.lineage"]
    assert archir(*words, "--resume").status == 0
    assert Path("out.arch").exists()


def test_astray_after_a_good_start(
    archir: Archir, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that stays is finite, and going on with the same recipe is not offered."""
    update = loop._Run._update

    def poisoned(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return update(self, x * torch.nan if self.step == 20 else x, y)

    monkeypatch.setattr(loop, "SAVE_WITHIN", -1.0)
    monkeypatch.setattr(loop._Run, "_update", poisoned)
    answer = archir("train", "net.arch", *SHORT.split(), "--run", "run")
    assert answer.status == 2
    assert "error[A631]: training went astray in epoch 2" in answer.err
    assert "the last good checkpoint is in run\n" in answer.err
    from archir.train.checkpoint import load_checkpoint

    found = load_checkpoint(Path("run/last.safetensors"))
    assert found.counters["step"] == 20
    assert all(np.isfinite(array).all() for array in found.arrays.values())


def without(names: Sequence[str], *words: str) -> subprocess.CompletedProcess[str]:
    block = f"import sys\nfor n in {list(names)}: sys.modules[n] = None\n"
    code = f"{block}from archir.cli.main import run\nsys.exit(run(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_no_torch(home: Path) -> None:
    for more in ("", "--run run", "--json"):
        done = without(["torch"], "train", "net.arch", *SHORT.split(), *more.split())
        assert done.returncode == 2
        assert "A622" in done.stderr + done.stdout
        assert "archir[torch]" in done.stderr + done.stdout
    assert "--label-smoothing" in without(["torch"], "train", "--help").stdout


def test_no_compiler(home: Path) -> None:
    nowhere = {"PATH": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(home / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "archir", "train", "net.arch", *SHORT.split(), "--compile"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**{k: v for k, v in os.environ.items() if k not in ("CXX", "CC")}, **nowhere},
    )
    assert done.returncode == 3, done.stderr
    assert "error[A675]: torch.compile failed" in done.stderr
    assert "Traceback" not in done.stderr
