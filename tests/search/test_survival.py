"""What a search survives: evaluations that go wrong, limits, a full disk, Ctrl-C."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import archir
from archir.api import Network
from archir.diag import ArchirError, error
from archir.search import engine
from archir.search.engine import Progress, Search
from archir.search.executors import Pool
from archir.search.journal import read_journal
from archir.search.limits import Limits, measure_latency
from archir.search.parts import Outcome, Proposal
from archir.search.run import Result, run_search
from archir.search.work import DataRef
from archir.train.data import load_data

sys.path.insert(0, str(Path(__file__).parent))  # as the processes of a pool find it too
from trials import Trials

from .toys import TEXT, Wider, files_of, write_data


@dataclass(frozen=True)
class Ordeal:
    """Proposes the start network and wider ones, each of which meets another fate."""

    acts: tuple[str, ...]
    name: str = "ordeal"

    def record(self) -> Mapping[str, Any]:
        return {}

    def expected(self) -> int:
        return len(self.acts)

    def run(self, search: Search) -> Outcome:
        start = search.start
        assert start is not None
        found = search.evaluate("all", Trials(self.acts), [self._wider(start, n) for n in self])
        return Outcome(max(found, key=lambda m: (m.score, -m.number)))

    def __iter__(self) -> Any:
        return iter(range(len(self.acts)))

    def _wider(self, start: Network, number: int) -> Proposal:
        """Made without the engine's help, so that its limits are all there is."""
        use = {"rule": "widen", "at": "stem.conv", "arguments": {"width": 5 + number}}
        origin = {"kind": "rewrite", "uses": [use], "seed": 0}
        return Proposal(
            origin, lambda: start.rewrite("widen", "stem.conv", width=5 + number), seed=number
        )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_data(tmp_path / "data.npz")
    (tmp_path / "toy.arch").write_text(TEXT, "utf-8")
    return tmp_path


def search(place: Path, run: str, strategy: Any, **how: Any) -> Result:
    data = str(place / "data.npz")
    dataset = load_data(data)
    return run_search(
        strategy,
        start=archir.load(place / "toy.arch").init(0),
        dataset=dataset,
        data=DataRef(data, 0, dataset.sha256),
        run_dir=place / run,
        device="cpu",
        **how,
    )


def members_of(run: Path) -> list[Any]:
    return list(read_journal(run / "journal.jsonl").members)


FAILURES = {
    "nan": "A714: `score` is nan, it should be finite",
    "astray": "A631: the loss is nan",
    "no memory": "A690: the machine has no memory left for this",
    "crash": "A711: ValueError: two lines",
}
DEATHS = {
    "segfault": "A712: its process ended: signal 11 (SIGSEGV)",
    "exit": "A712: its process ended: status 3",
}


def test_evaluations_that_go_wrong_are_recorded(place: Path) -> None:
    acts = ("well", *FAILURES, "well")
    found = search(place, "run", Ordeal(acts))
    assert found.best.number == 5
    for act, member in zip(acts, members_of(place / "run"), strict=True):
        wanted = ("scored", "") if act == "well" else ("failed", FAILURES[act])
        assert (member.status, member.reason) == wanted
        assert member.params > 0
    assert found.facts["front"] == [0, 5]
    with Pool(2) as pool:
        search(place, "other", Ordeal(acts), executor=pool)
    assert files_of(place / "other") == files_of(place / "run")


def test_processes_that_die_are_recorded(place: Path) -> None:
    acts = ("segfault", "well", "first time", "well", "exit")
    with Pool(2) as pool:
        found = search(place, "run", Ordeal(acts), executor=pool)
    assert found.best.number == 3
    told = {m.number: m.reason for m in members_of(place / "run") if m.status != "scored"}
    assert told == {0: DEATHS["segfault"], 4: DEATHS["exit"]}
    assert not (place / "run" / "work").exists()


def test_nothing_but_failures(place: Path) -> None:
    with pytest.raises(ArchirError, match="A705") as caught:
        search(place, "run", Ordeal(("crash", "nan")))
    assert "member 0: A711: ValueError: two lines" in str(caught.value)
    assert not (place / "run" / "result.json").exists()


# ---- limits


def refused(run: Path) -> dict[int, str]:
    return {m.number: m.reason for m in members_of(run) if m.status == "refused"}


def test_parameters_and_macs(place: Path) -> None:
    acts = ("well",) * 4
    search(place, "run", Ordeal(acts))
    sizes = members_of(place / "run")
    for name, what in (("params", "parameters"), ("macs", "MACs")):
        most = getattr(sizes[1], name)
        found = search(place, name, Ordeal(acts), limits=Limits(**{name: most}))
        assert found.best.number == 1
        assert refused(place / name) == {
            n: f"{getattr(sizes[n], name):,} {what}, the limit is {most:,}" for n in (2, 3)
        }
        assert [m.params for m in members_of(place / name)] == [m.params for m in sizes]


def test_latency(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(place, "run", Ordeal(("well",)), limits=Limits(latency=60), cost="latency")
    latency = found.best.latency
    assert latency is not None
    assert 0 < latency["low"] <= latency["median"] <= latency["high"] < 60
    assert json.loads(json.dumps(latency)) == latency
    with pytest.raises(ArchirError, match="A705"):
        search(place, "slow", Ordeal(("well",)), limits=Limits(latency=1e-9))
    assert refused(place / "slow")[0].endswith("the limit is 1e-06 ms")
    export = Network.export

    def gate(self: Network, path: Path, **options: Any) -> Any:
        if self.graph.parameters["stem.conv.weight"].type.shape[0] == 6:
            raise error("A505", "the outputs differ by 0.1 of their largest")
        return export(self, path, **options)

    monkeypatch.setattr(Network, "export", gate)
    found = search(place, "gate", Ordeal(("well",) * 2), limits=Limits(latency=60))
    assert found.best.number == 0
    assert refused(place / "gate") == {1: "A505: the outputs differ by 0.1 of their largest"}


def test_a_latency_is_measured_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed search reads it in the journal: what was refused stays so, bytes stay equal."""

    class Twice(Ordeal):
        """Two networks, two seeds of each."""

        def _wider(self, start: Network, number: int) -> Proposal:
            return replace(super()._wider(start, number % 2), seed=number)

    measured = []

    def counted(network: Network, *words: Any, **named: Any) -> dict[str, Any]:
        measured.append(network.cost().params)
        return measure_latency(network, *words, **named)

    monkeypatch.setattr(engine, "measure_latency", counted)
    limits = Limits(latency=60)
    search(place, "twice", Twice(("well",) * 4), limits=limits)
    assert len(measured) == len(set(measured)) == 2
    assert len({str(m.latency) for m in members_of(place / "twice")}) == 2
    search(place, "run", Ordeal(("well",) * 2), limits=limits)
    before = files_of(place / "run")
    lines = (place / "run" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (place / "run" / "journal.jsonl").write_bytes(b"".join(lines[:-1]))
    (place / "run" / "result.json").unlink()
    before_all = len(measured)
    search(place, "run", Ordeal(("well",) * 2), limits=limits, existing="resume")
    assert len(measured) == before_all
    assert files_of(place / "run") == before


# ---- a full disk


def test_an_evaluation_that_meets_a_full_disk(place: Path) -> None:
    strategy = Ordeal(("well", "full for now", "well"))
    search(place, "whole", strategy)
    (place / "full").touch()
    with pytest.raises(OSError, match="No space left"):
        search(place, "run", strategy)
    with pytest.raises(OSError, match="No space left"), Pool(2) as pool:
        search(place, "pool", strategy, executor=pool)
    (place / "full").unlink()
    for run in ("run", "pool"):
        known = [m.status for m in members_of(place / run)]
        assert known == ["scored"] or (run == "pool" and known == [])  # whichever was quicker
        search(place, run, strategy, existing="resume")
        assert files_of(place / run) == files_of(place / "whole")


class Room:
    """No file can grow beyond some bytes, as on a full disk."""

    def __init__(self, bytes_: int) -> None:
        self.bytes = bytes_

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_disk_that_is_full_anywhere(place: Path) -> None:
    """Whichever file is the first that cannot be written, the search is resumed to the same end."""
    strategy = Wider(steps=2, children=2)
    search(place, "whole", strategy)
    whole = files_of(place / "whole")
    sizes = sorted({len(content) for content in whole.values()})
    rooms = [size - 1 for size in sizes]
    stopped = 0
    for room in rooms[:: -max(1, len(rooms) // 8)]:
        shutil.rmtree(place / "run", ignore_errors=True)
        try:
            with Room(room):
                search(place, "run", strategy)
        except (ArchirError, OSError):
            stopped += 1
        assert not list((place / "run").rglob("*.tmp"))
        resumable = (place / "run" / "search.json").exists()
        search(place, "run", strategy, existing="resume" if resumable else "replace")
        assert files_of(place / "run") == whole, f"with room for {room:,} bytes"
    assert stopped >= 8


def test_an_onnx_file_for_which_there_is_no_room(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the last file: nothing says that the search is done, unless the gate refuses it."""
    strategy = Ordeal(("well",))
    search(place, "whole", strategy)

    def export(code: str) -> None:
        def fail(self: Network, path: Path, **_: object) -> None:
            raise error(code, f"cannot write {path.name}")

        monkeypatch.setattr(Network, "export", fail)

    export("A602")
    with pytest.raises(ArchirError, match="A602"):
        search(place, "run", strategy)
    assert not (place / "run" / "result.json").exists()
    monkeypatch.undo()
    search(place, "run", strategy, existing="resume")
    assert files_of(place / "run") == files_of(place / "whole")
    export("A505")
    assert search(place, "gate", strategy).facts["onnx"] == {
        "error": "A505: cannot write best.onnx"
    }


# ---- Ctrl-C


def interrupting(after: int) -> Callable[[Progress], object]:
    """Ctrl-C when so many members are known."""

    def told(progress: Progress) -> None:
        if progress.done == after:
            raise KeyboardInterrupt

    return told


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c(place: Path, workers: int) -> None:
    strategy = Ordeal(("well", "nan", "well", "crash", "well"))
    search(place, "whole", strategy)
    for after in (3,) if workers else (1, 3, 5):
        executor = Pool(workers) if workers else None
        with pytest.raises(KeyboardInterrupt):
            search(
                place,
                "run",
                strategy,
                executor=executor,
                progress=interrupting(after),
                existing="replace",
            )
        assert not multiprocessing.active_children()
        assert not list((place / "run").rglob("*.tmp"))
        assert not (place / "run" / "result.json").exists()
        assert len(members_of(place / "run")) == after
        search(place, "run", strategy, existing="resume")
        assert files_of(place / "run") == files_of(place / "whole")


def test_ctrl_c_in_the_midst_of_an_evaluation(place: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(place, "run", Ordeal(("well", "interrupt", "well")))
    assert [m.status for m in members_of(place / "run")] == ["scored"]
    assert sorted(p.name for p in (place / "run" / "work").iterdir()) == ["0001"]
    assert not (place / "run" / "work" / "0001" / "result.json").exists()
