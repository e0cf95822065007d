"""Timing networks side by side: what is said of them, and how it ends."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.measure import Job, Latency, _load, _Member, interval, measure

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ARCH = """version 1
arch tiny {
    input x: f32[N, 4]
    output y = x |> fc: linear(3) |> relu
}
"""


def save_onnx(path: Path, shape: list[int | str], kind: int = 1) -> Path:
    from onnx import helper

    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.arch"
    path.write_text(ARCH)
    return path


@pytest.mark.parametrize(("n", "k"), [(6, 1), (10, 2), (20, 6), (30, 10), (100, 40)])
def test_the_interval_is_the_one_of_the_tables(n: int, k: int) -> None:
    """The ranks for 95 % are those of any table of the sign test."""
    low, high, level = interval([float(value) for value in reversed(range(1, n + 1))])
    assert (low, high) == (k, n + 1 - k)
    tail = sum(math.comb(n, j) for j in range(k)) / 2**n
    assert level == pytest.approx(1 - 2 * tail, abs=1e-12)
    assert level >= 0.95
    assert 1 - 2 * (tail + math.comb(n, k) / 2**n) < 0.95


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    stream = np.random.Generator(np.random.PCG64(1))
    rows = stream.exponential(size=(2000, 12))
    held = [low <= math.log(2) <= high for low, high, _ in map(interval, rows.tolist())]
    _, _, level = interval(rows[0].tolist())
    assert abs(np.mean(held) - level) < 4 * math.sqrt(level * (1 - level) / 2000)


def test_few_values_say_less() -> None:
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0, 0.75)
    assert interval([1.0]) == (1.0, 1.0, 0.0)


def latency(*seconds: float) -> Latency:
    return Latency("a", "torch", "cpu", 4, 1, 1, seconds, None)


def test_ties_and_throughput() -> None:
    slow, quick = latency(*[2.0, 2.1, 2.2] * 4), latency(*[1.0, 1.1, 1.2] * 4)
    both = latency(*[1.0, 2.0] * 6)
    assert not slow.ties(quick)
    assert slow.ties(both)
    assert both.ties(quick)
    assert quick.to_json()["throughput"] == pytest.approx(4 / 1.1)


def test_text_and_onnx_side_by_side(tiny: Path, tmp_path: Path, archir: Callable[..., Any]) -> None:
    other = save_onnx(tmp_path / "i.onnx", ["N", 4])
    done = archir(
        "bench", tiny, other, "--batch", 2, "--threads", 1, "--repeats", 6, "--device", "cpu",
        "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    found = done.document
    assert (found["batch"], found["threads"], found["repeats"]) == (2, 1, 6)
    a, b = found["files"]
    assert a["engine"].startswith("torch ")
    assert a["where"] == "cpu"
    assert a["note"] == "initial weights"
    assert b["engine"].startswith("ONNX Runtime ")
    assert b["where"] == "CPUExecutionProvider"
    for each in (a, b):
        assert len(each["seconds"]) == 6
        assert 0 < each["low"] <= each["median"] <= each["high"] < 5
        assert each["throughput"] == pytest.approx(2 / each["median"])
        assert each["memory"] > 2**20
        assert each["runs"] >= 1
    assert a["ratio"] == 1
    assert b["ratio"] == pytest.approx(b["median"] / a["median"])
    assert not a["tie"]


def test_the_table(tmp_path: Path, archir: Callable[..., Any]) -> None:
    files = [save_onnx(tmp_path / f"{name}.onnx", [1, 4]) for name in "ab"]
    done = archir("bench", *files, "--threads", 1, "--repeats", 6)
    assert done.status == 0
    first, heads, *_ = done.out.splitlines()
    assert first == "batch 1, 1 thread, 6 samples each in turn"
    assert heads.split()[:3] == ["file", "engine", "on"]
    assert "95 % interval" in heads
    assert "a.onnx" in done.out
    assert "b.onnx" in done.out


def test_what_cannot_be_timed(tiny: Path, tmp_path: Path, archir: Callable[..., Any]) -> None:
    done = archir("bench", tmp_path / "a.pt")
    assert (done.status, done.out, "A563" in done.err) == (2, "", True)
    done = archir("bench", tiny, tiny, "--init", 0)
    assert (done.status, done.out, "A609" in done.err) == (2, "", True)
    (tmp_path / "bad.onnx").write_bytes(b"\x00\x01")
    done = archir("bench", tmp_path / "bad.onnx", "--threads", 1)
    assert (done.status, done.out, "A507" in done.err) == (3, "", True)


def test_inputs_that_cannot_be_made(tmp_path: Path) -> None:
    for shape, kind, says in (
        ([2, 4], 1, "does not take a batch of 1.*--batch 2"),
        (["N", "W"], 1, "sizes W are open"),
        (["N", 4], 8, "no values for the input `x`"),
    ):
        file = save_onnx(tmp_path / "a.onnx", shape, kind)  # type: ignore[arg-type]
        with pytest.raises(ArchirError, match=f"A564.*{says}"):
            _load(Job(str(file)))
    with pytest.raises(ArchirError, match="A601"):
        _load(Job(str(tmp_path / "none.onnx")))


def test_a_device_that_is_not_there(tiny: Path) -> None:
    with pytest.raises(ArchirError, match="A508"):
        _load(Job(str(tiny), device="cuda:97"))


def test_a_process_that_ends_is_named(tmp_path: Path) -> None:
    job = Job(str(save_onnx(tmp_path / "i.onnx", ["N", 4])), device="cpu")
    with _Member(job) as member:
        os.kill(member._process.pid, signal.SIGKILL)
        with pytest.raises(ArchirError, match=r"A565.*signal 9"):
            member.sample()


def test_they_take_turns(tmp_path: Path) -> None:
    files = [save_onnx(tmp_path / f"{name}.onnx", ["N", 4]) for name in "ab"]
    told: list[tuple[int, int, str]] = []
    jobs = [Job(str(file), device="cpu") for file in files]
    found = measure(jobs, repeats=3, warm_up=1, progress=lambda *entry: told.append(entry))
    assert [entry[2] for entry in told] == ["a.onnx", "b.onnx"] * 4
    assert [entry[0] for entry in told] == list(range(1, 9))
    assert {entry[1] for entry in told} == {8}
    assert all(len(each.seconds) == 3 for each in found)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interruption_leaves_no_process(tmp_path: Path) -> None:
    file = save_onnx(tmp_path / "i.onnx", ["N", 4])
    words = ["bench", file, "--repeats", "1000000", "--threads", "1"]
    command = [sys.executable, "-m", "archir", *map(str, words)]
    group = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    children = Path(f"/proc/{group.pid}/task/{group.pid}/children")
    if not children.exists():
        group.kill()
        pytest.skip("the system does not list a process's children")
    until = time.monotonic() + 30
    while not (inner := children.read_text().split()) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1)
    group.send_signal(signal.SIGINT)
    out, err = group.communicate(timeout=30)
    assert group.returncode == 130
    assert out == ""
    assert "interrupted" in err
    assert inner
    assert not any(Path(f"/proc/{number}").exists() for number in inner)
