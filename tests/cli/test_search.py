"""`archir search` as a user types it: what it says, what it refuses, how it is gone on with."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archir.cli.searching import became, clock, cut, made, remaining, report, standing
from archir.search.engine import Progress
from archir.search.parts import Member
from archir.search.run import Result
from archir.search.settings import SearchConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]

QUICK = '''
"""A strategy that trains nothing: children of the start network, scored by their hash."""
import hashlib
import time
from dataclasses import asdict, dataclass

from archir.ir.hash import graph_hash
from archir.search.parts import Evaluated, Kind, Outcome, Proposal
from archir.search.space import Move, Space


@dataclass(frozen=True)
class Config:
    children: int = 4
    pause: float = 0.0
    RANGES = {"children": (1, 99), "pause": (0, 9)}


@dataclass(frozen=True)
class ByHash:
    pause: float
    inherits = False

    def record(self):
        return {"kind": "by_hash"}

    def evaluate(self, network, dataset, seed, folder):
        time.sleep(self.pause)
        digest = hashlib.sha256(f"{graph_hash(network.graph)} {seed}".encode()).hexdigest()
        score = int(digest[:8], 16) / 2**32
        return Evaluated({"score": score, "accuracy": score})


@dataclass(frozen=True)
class Quick:
    config: Config
    moves: tuple
    evaluator: object
    name: str = "quick"

    def record(self):
        moves = [move.record() for move in self.moves]
        return {"children": self.config.children, "moves": moves}

    def expected(self):
        return 1 + self.config.children

    def run(self, search):
        start = [Proposal({"kind": "start"}, lambda: search.start)]
        members = search.evaluate("quick", self.evaluator, start)
        space = Space(search.start, self.moves)
        for number in range(self.config.children):
            if not search.goes_on():
                break
            uses = space.draw(search.start, search.draw(number), 2)
            origin = {"kind": "rewrite", "seed": number}
            origin["uses"] = [{"rule": u.rule, "at": u.at, "arguments": u.arguments} for u in uses]
            make = lambda uses=uses, number=number: search.rewritten(search.start, uses, number)
            child = Proposal(origin, make, (0,), number)
            members += search.evaluate("quick", self.evaluator, [child])
            search.note("step", step=number)
        return Outcome(max(members, key=lambda member: member.score))


def make(config, moves=None, evaluator=None):
    own = (Move("deepen", arguments={"kernel": (3, 5)}), Move("widen", times={"width": (2,)}))
    return Quick(config, moves or own, evaluator or ByHash(config.pause))


QUICK = Kind("quick", "By hash.", Config, {"small": Config(), "paper": Config(9)}, make)
ALONE = Kind("alone", "Without.", Config, {"small": Config()}, make, lambda config: False)
'''
SEARCH = "search net.arch --strategy quick.py:QUICK --device cpu"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(EXAMPLES / "nash_digits.arch", tmp_path / "net.arch")
    (tmp_path / "quick.py").write_text(QUICK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """All that equal runs share."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in ("timings.jsonl", "search.json", ".lock")
    }


# ---- what is written and said


def test_a_search(archir: Archir, home: Path) -> None:
    answer = archir(*SEARCH.split(), "--run", "runs/a", "--set", "children=2")
    assert answer.status == 0, answer.err
    lines = answer.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("3 members (3 scored) in ")
    assert "front of accuracy and MACs:" in lines
    assert "archir report runs/a -o report.html" in lines
    told = [line for line in answer.err.splitlines() if "/3 quick: " in line]
    assert [line[:3] for line in told] == ["1/3", "2/3", "3/3"]
    assert re.search(r"accuracy 0\.\d{4}, [\d,]+ parameters, [\d,]+ MACs, \d+ s", told[0])
    pattern = r"^best: member (\d), accuracy (0\.\d{4}) on validation images"
    best = re.search(pattern, answer.out, re.M)
    assert best is not None
    assert any(line.startswith(f"{best[1]}*") and best[2] in line for line in lines)
    assert archir("check", "runs/a/best.arch").status == 0


def test_json(archir: Archir, home: Path) -> None:
    found = archir(*SEARCH.split(), "--run", "runs/a", "--max-params", "2_000", "--json").document
    assert found["run"] == "runs/a"
    assert found["members"] == sum(found["status_counts"].values()) == 5
    assert found["status_counts"]["refused"] > 0
    assert found["stopped"] is None
    assert [row["number"] for row in found["front"]] == json.loads(
        Path("runs/a/result.json").read_text()
    )["front"]
    assert {"scores", "params", "macs", "parents", "origin"} <= found["front"][0].keys()


def test_settings_are_printed_and_read_again(archir: Archir, home: Path) -> None:
    words = [*SEARCH.split()[2:], "--max-latency", "5", "--max-time", "20m", "--workers", "auto"]
    printed = archir("search", *words, "--set", "children=3", "--print-config")
    assert printed.status == 0, printed.err
    found = tomllib.loads(printed.out)
    assert (found["max_latency"], found["max_time"], found["workers"]) == (0.005, 1200.0, "auto")
    assert found["quick"] == {"children": 3, "pause": 0.0}
    Path("search.toml").write_text(printed.out)
    again = archir("search", "--config", "search.toml", "--print-config", "--json")
    assert again.document["settings"] == found
    changed = archir("search", "--config", "search.toml", "--seed", "7", "--print-config")
    assert tomllib.loads(changed.out) == {**found, "seed": 7}
    assert sorted(p.name for p in home.iterdir()) == ["net.arch", "quick.py", "search.toml"]


def test_limits_end_a_search_early(archir: Archir, home: Path) -> None:
    answer = archir(*SEARCH.split(), "--run", "runs/a", "--max-evaluations", "2")
    assert answer.status == 0
    assert answer.out.splitlines()[1] == "stopped early: no evaluations left"
    assert answer.out.startswith("2 members")
    answer = archir(*SEARCH.split(), "--run", "runs/b", "--max-time", "1ms")
    assert answer.out.splitlines()[1] == "stopped early: no time left"


def test_nothing_within_the_limits(archir: Archir, home: Path) -> None:
    answer = archir(*SEARCH.split(), "--run", "runs/a", "--max-params", "10")
    assert answer.status == 2
    assert "A705" in answer.err
    assert "the limit is 10" in answer.err


def test_workers_and_cost(archir: Archir, home: Path) -> None:
    """Other processes import the evaluator: it is one of archir's, and trains nothing."""
    words = [*SEARCH.split(), "--evaluator", "params", "--cost", "params", "--set", "children=2"]
    alone = archir(*words, "--run", "runs/a")
    assert alone.status == 0, alone.err
    assert "front of score and parameters:" in alone.out
    assert archir(*words, "--run", "runs/b", "--workers", "2").status == 0
    assert contents(home / "runs/a") == contents(home / "runs/b")


def test_a_strategy_without_a_start(archir: Archir, home: Path) -> None:
    words = ["search", "--strategy", "quick.py:ALONE", "--run", "runs/a"]
    answer = archir(*words, "net.arch")
    assert (answer.status, "makes its own networks" in answer.err) == (2, True)


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("search net.arch", "A609", "--run runs/first"),
        ("search --run runs/a", "A609", "there is no FILE"),
        ("search none.arch --run runs/a", "A601", "none.arch"),
        ("search --init 0 --run runs/a", "A609", "say how FILE is loaded"),
        ("search net.arch --resume", "A609", "--run"),
        ("search net.arch --run runs/a --resume --force", "A609", "one of them"),
        ("search --run runs/a --resume", "A703", "holds no search"),
        ("search net.arch --run runs/a --strategy nahs", "A716", "did you mean `nash`?"),
        ("search net.arch --run runs/a --set n_step=1", "A715", "did you mean `n_steps`?"),
        ("search net.arch --run runs/a --set n_steps", "A609", "name=value"),
        ("search net.arch --run runs/a --set n_steps=0", "A721", "n_steps"),
        ("search net.arch --run runs/a --workers all", "A609", "a whole number, or auto"),
        ("search net.arch --run runs/a --workers 0", "A715", "from 1"),
        ("search net.arch --run runs/a --max-latency soon", "A609", "milliseconds"),
        ("search net.arch --run runs/a --max-time soon", "A715", "it should be a time"),
        ("search net.arch --run runs/a --max-params 0", "A715", "from 1"),
        ("search net.arch --run runs/a --data none", "A620", "none"),
        ("search net.arch --run runs/a --config none.toml", "A601", "none.toml"),
        ("search net.arch --run runs/a --param classes=x", "A", "classes"),
        ("search net.arch --run net.arch", "A", "net.arch"),
        ("search net.arch --run net.arch/a", "A", "net.arch"),
    ],
)
def test_wrong_usage(archir: Archir, home: Path, words: str, code: str, said: str) -> None:
    answer = archir(*words.split())
    assert answer.status == 2, answer.err
    if "File 'net.arch'" not in answer.err and "Directory 'net.arch'" not in answer.err:
        assert f"error[{code}" in answer.err
    assert said in answer.err
    assert not (home / "runs").exists()


# ---- going on


def test_a_folder_that_holds_a_search(archir: Archir, home: Path) -> None:
    words = [*SEARCH.split(), "--run", "runs/a", "--seed", "1"]
    assert archir(*words).status == 0
    before = contents(home / "runs/a")
    refused = archir(*words)
    assert (refused.status, "A603" in refused.err) == (2, True)
    for more in ([], ["net.arch", "--seed", "1"], ["--workers", "2"]):
        answer = archir("search", *more, "--run", "runs/a", "--resume")
        assert answer.status == 0, answer.err
        assert contents(home / "runs/a") == before
    for more, said in (
        (["--seed", "2"], "seed was 1, is 2"),
        (["--set", "children=9"], "quick.children was 4, is 9"),
        (["--strategy", "nash"], 'strategy was "quick.py:QUICK", is "nash"'),
        (["--max-params", "9"], 'max_params was "none", is 9'),
    ):
        answer = archir("search", *more, "--run", "runs/a", "--resume")
        assert answer.status == 2
        assert "A702" in answer.err
        assert said in answer.err
    assert contents(home / "runs/a") == before
    text = Path("net.arch").read_text().replace("conv(8, 3)", "conv(9, 3)")
    Path("other.arch").write_text(text)
    answer = archir("search", "other.arch", "--run", "runs/a", "--resume")
    assert (answer.status, "A702" in answer.err) == (2, True)
    assert archir(*words[:-1], "2", "--force").status == 0
    assert contents(home / "runs/a") != before


def test_resume_begins_where_nothing_is_yet(archir: Archir, home: Path) -> None:
    assert archir(*SEARCH.split(), "--run", "runs/a", "--resume").status == 0


def begun(home: Path, *more: str) -> subprocess.Popen[str]:
    words = [*SEARCH.split(), "--set", "pause=0.3", *more]
    command = [sys.executable, "-m", "archir", *words]
    return subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, stdout=-1, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cut_off_and_gone_on_with(archir: Archir, home: Path, number: signal.Signals) -> None:
    assert archir(*SEARCH.split(), "--set", "pause=0.3", "--run", "runs/whole").status == 0
    process = begun(home, "--run", "runs/cut")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("2/5"):
            break
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert "archir search --resume --run runs/cut goes on" in err
    assert (out, "Traceback" in err) == ("", False)
    assert not (home / "runs/cut/result.json").exists()
    assert archir("search", "--resume", "--run", "runs/cut").status == 0
    assert contents(home / "runs/cut") == contents(home / "runs/whole")


def test_the_view_on_a_terminal(home: Path) -> None:
    """80 columns: a bar, the best, the front, the time and what is left of it."""
    main, other = pty.openpty()
    size = struct.pack("HHHH", 24, 80, 0, 0)
    import fcntl
    import termios

    fcntl.ioctl(other, termios.TIOCSWINSZ, size)
    words = [*SEARCH.split(), "--set", "pause=0.3", "--max-time", "10m", "--run", "runs/a"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-m", "archir", *words],
        cwd=home,
        env=environment,
        stderr=other,
        stdout=subprocess.DEVNULL,
    )
    os.close(other)
    shown, until = b"", time.monotonic() + 120
    while time.monotonic() < until:
        if select.select([main], [], [], 0.5)[0]:
            try:
                shown += os.read(main, 65536)
            except OSError:  # the process is gone
                break
    os.close(main)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", shown.decode()).replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.strip()]
    assert max(map(len, lines)) <= 80
    best = r"best: accuracy 0\.\d{4}, [\d,]+ parameters, .* MACs"
    spent = r"front: \d   \d+ s of 10:00   about \d+ s left"
    for pattern in (best, spent):
        assert any(re.fullmatch(pattern, line) for line in lines)
    assert "4/5" in text


# ---- words


def member(**more: Any) -> Member:
    found = {"number": 3, "stage": "s", "parents": (1,), "origin": {"kind": "parent"}, "seed": 0}
    found |= {"status": "scored", "params": 1234, "macs": 5678, "scores": {"score": 0.5}}
    return Member(**{**found, **more})


def test_how_members_are_told_of() -> None:
    uses = [{"rule": rule} for rule in ("widen", "deepen", "widen")]
    origins: dict[str, tuple[Any, tuple[int, ...]]] = {
        "start": ({"kind": "start"}, ()),
        "of 1, as it is": ({"kind": "parent"}, (1,)),
        "of 1: 2 widen, deepen": ({"kind": "rewrite", "uses": uses, "seed": 1}, (1,)),
        "micro 0213": ({"kind": "genome", "encoding": "micro", "genome": [0, 2, 1, 3]}, ()),
        "micro 01 of 2, 3": ({"kind": "genome", "encoding": "micro", "genome": [0, 1]}, (2, 3)),
    }
    for told, (origin, parents) in origins.items():
        assert made(member(origin=origin, parents=parents)) == told
    size = "1,234 parameters, 5,678 MACs"
    assert became(member()) == f"score 0.5, {size}"
    assert became(member(scores={"score": 0.5, "accuracy": 0.5})) == f"accuracy 0.5000, {size}"
    assert became(member(same_as=2)) == f"score 0.5 (as member 2), {size}"
    assert became(member(status="failed", reason="A631: gone")) == "failed: A631: gone"


def test_times_and_lengths() -> None:
    assert [clock(s) for s in (0, 59.4, 59.6, 61, 3599.7, 3727)] == [
        "0 s",
        "59 s",
        "1:00",
        "1:01",
        "1:00:00",
        "1:02:07",
    ]
    assert (cut("abcdef", 6), cut("abcdefg", 6)) == ("abcdef", "abc...")


def test_what_is_left() -> None:
    config = SearchConfig()
    now = Progress("s", 4, 10, None, None, 0, 20.0)
    assert remaining(now, config) == 30
    assert remaining(Progress("s", 0, 10, None, None, 0, 20.0), config) is None
    assert remaining(now, SearchConfig(max_time=25.0)) == 5
    assert remaining(now, SearchConfig(max_evaluations=6)) == 10
    later = Progress("s", 4, 10, None, member(), 2, 24.0)
    config = SearchConfig(max_evaluations=6, max_time=60.0)
    assert standing(later, now, config) == [
        "best: score 0.5, 1,234 parameters, 5,678 MACs",
        "front: 2   24 s of 1:00   4 of at most 6 evaluations   about 6 s left",
    ]


def test_how_the_end_is_told_of(tmp_path: Path) -> None:
    uses = [{"rule": f"a.rule.with.a.long.name.{n}"} for n in range(9)]
    long = member(origin={"kind": "rewrite", "uses": uses}, latency={"median": 0.00123})
    facts = {
        "ensemble": [1, 2],
        "test": {
            "best": {"accuracy": 0.5, "correct": 5, "count": 10},
            "ensemble": {"accuracy": 0.6, "correct": 6, "count": 10},
        },
        "onnx": {"error": "A501: no such operator"},
    }
    result = Result(tmp_path / "a", long, (long,), (long, member(status="failed")), facts, 61.0)
    data, text = report(result, "latency", "time")
    assert text.splitlines()[:2] == [
        "2 members (1 scored, 1 failed) in 1:01",
        "stopped early: no time left",
    ]
    assert "front of score and latency:" in text
    (row,) = [line for line in text.splitlines() if line.startswith("3*")]
    assert " 1.23 " in row
    assert len(row) == 80
    assert "test accuracy: 0.5000 (5 of 10)" in text
    assert "test accuracy of the ensemble of 2: 0.6000 (6 of 10)" in text
    assert "no best.onnx: A501: no such operator" in text
    assert data["front"][0]["latency"] == {"median": 0.00123}
    assert data["lost"] is None


def test_a_last_training_that_failed_is_told_of(tmp_path: Path) -> None:
    last = member(number=4, stage="final", status="failed", reason="A631: the loss is nan")
    facts: dict[str, Any] = {"ensemble": [], "test": None, "onnx": None}
    result = Result(tmp_path / "a", member(), (member(),), (member(), last), facts, 61.0)
    data, text = report(result, "macs", None)
    lines = text.splitlines()
    place = lines.index("best: member 3, score 0.5")
    assert lines[place + 1 : place + 3] == [
        "of the last stage, final, nothing was scored; the best is of an earlier one",
        "  member 4 failed: A631: the loss is nan",
    ]
    said = {"stage": "final", "number": 4, "status": "failed", "reason": "A631: the loss is nan"}
    assert data["lost"] == said
