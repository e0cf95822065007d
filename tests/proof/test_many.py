"""Many rules in several processes: the same verdicts, and nothing is left running."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from archir.diag import INTERRUPTED, ArchirError, error
from archir.proof import saturation
from archir.proof.many import prove_all
from archir.proof.pool import spread
from archir.proof.prove import prove
from archir.proof.saturation import Budget

ALIKE = """rule twice {
    "A ReLU and another."
    preserves function in eval, train
    macs kept
    match   { y = relu(x) }
    replace { y = relu(x) |> relu }
}"""
WRONG = """rule dropped {
    "A ReLU less."
    preserves function in eval, train
    match   { y = x |> relu |> conv(o) }
    replace { y = x |> relu }
}"""
SHAPE = """rule smaller {
    "A smaller kernel of the same shape."
    preserves shape
    match   { y = c: conv(x, kernel = 3, padding = 1, bias = true) }        where rank(x) == 4
    replace { y = x |> new: conv(channels(y), 1, c.stride) }
    weights { new.weight = zeros(channels(y), channels(x), 1, 1)  new.bias = c.bias }
}"""
HALVED = """rule halved(width: int) {
    "Copies that nothing divides."
    preserves function in eval
    over c = class(at)          where width > size(c)
    let g = replicate(size(c), width)
    produce take(g)             carry take(g)             consume take(g)
}"""


def timeless(verdicts) -> list[object]:
    found = [v.to_json() for v in verdicts]
    for held in found:
        for mode in held["modes"]:
            mode["seconds"] = 0
    return found


def test_verdicts_do_not_depend_on_the_number_of_processes(library, read, axioms, few) -> None:
    rules = [read(SHAPE), library["widen"], read(ALIKE), read(HALVED)]
    told = []
    one = prove_all(rules, few, axioms, progress=lambda *what: told.append(what))
    assert [v.rule for v in one] == ["smaller", "widen", "twice", "halved"]
    assert [v.kind for v in one] == ["tested", "proved", "proved", "refuted"]
    assert told[-1][0] == told[-1][1] == len(rules) + len(few)
    three = prove_all(rules, few, axioms, jobs=3)
    assert timeless(three) == timeless(one)
    assert timeless([prove(library["widen"], few, axioms)]) == timeless(one[1:2])


def test_a_rule_over_a_class_that_is_not_proved_is_tested(library, axioms, few) -> None:
    rest = axioms.without(["consumed"])
    (verdict,) = prove_all([library["widen"]], few, rest, jobs=2)
    assert verdict.kind == "tested"
    assert "no proof of `conv.i (rank 4)` and" in verdict.modes[0].reason
    (late,) = prove_all([library["widen"]], few, axioms, budget=Budget(seconds=0.0))
    assert "within 0 s" in late.modes[0].reason


def test_it_needs_egglog(library, axioms, few, monkeypatch) -> None:
    monkeypatch.setattr(saturation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArchirError, match="A413"):
        prove_all([library["widen"]], few, axioms)


# --- processes ----------------------------------------------------------------------------------


@contextmanager
def squares():
    def work(task: object) -> object:
        if task == "wrong":
            raise error("A415", "it does not hold", hint="look")
        if task == "fault":
            raise KeyError("nothing")
        if task == "end":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "wait":
            time.sleep(60)
        return task * task, os.getpid()

    yield work


def test_tasks_are_spread() -> None:
    found = dict(spread(list(range(20)), squares, 3))
    assert {n: square for n, (square, _) in found.items()} == {n: n * n for n in range(20)}
    assert os.getpid() not in {process for _, process in found.values()}
    assert {process for _, (_, process) in spread([1, 2], squares, 1)} == {os.getpid()}
    assert multiprocessing.active_children() == []


def test_what_goes_wrong_in_a_process_is_raised_here() -> None:
    with pytest.raises(ArchirError) as failure:
        list(spread(["wait", "wrong"], squares, 2))
    assert failure.value.diagnostics[0].code == "A415"
    assert failure.value.diagnostics[0].hint == "look"
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        list(spread(["wait", "fault"], squares, 2))
    with pytest.raises(ArchirError, match="A414"):
        list(spread(["wait", "end"], squares, 2))
    assert multiprocessing.active_children() == []


def descendants(parent: int) -> list[int]:
    """The processes below one, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                above = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if above == parent:
                found += [int(entry.name), *descendants(int(entry.name))]
    return found


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_command_is_stopped(how) -> None:
    words = [sys.executable, "-m", "archir", "prove", "--no-cache", "--jobs", "2"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        below: list[int] = []
        while len(below) < 4 and time.monotonic() < end:
            assert process.poll() is None
            below = descendants(process.pid)
            time.sleep(0.02)
        assert len(below) == 4  # two that work, with a child each
        process.send_signal(how)
        process.communicate()
    if how == signal.SIGINT:
        assert process.returncode == INTERRUPTED
    while any(map(running, below)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(running, below))


def test_the_command_counts(tmp_path) -> None:
    file = tmp_path / "my.rule"
    file.write_text(f"{ALIKE}\n{WRONG}\n{SHAPE}")
    words = [sys.executable, "-m", "archir", "prove", str(file), "--json", "--jobs", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    kinds = [(v["rule"], m["mode"], m["kind"]) for v in found["verdicts"] for m in v["modes"]]
    assert kinds == [
        ("twice", "eval", "proved"),
        ("twice", "train", "proved"),
        ("dropped", "eval", "refuted"),
        ("dropped", "train", "refuted"),
        ("smaller", "shape", "tested"),
    ]
    summary = found["summary"]
    assert summary.pop("seconds") > 0
    assert summary == {"proved": 1, "tested": 1, "refuted": 1, "unknown": 0}
    for verdict in found["verdicts"]:
        for mode in verdict["modes"]:
            assert {"mode", "kind", "instances", "seconds"} <= set(mode)
            assert mode["kind"] != "proved" or mode["axioms"]
    against = found["verdicts"][1]["modes"][0]["counterexample"]
    assert against["network"].startswith("version 1\narch ")
    assert against["numbers"]
