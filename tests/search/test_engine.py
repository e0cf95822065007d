"""The engine: what it writes, and that a search that was cut off ends as if it had not been."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import archir
from archir.api import Network
from archir.diag import ArchirError
from archir.ir.hash import graph_hash
from archir.search.engine import Search
from archir.search.journal import read_journal
from archir.search.limits import Limits
from archir.search.parts import Evaluated, Outcome, Proposal
from archir.search.run import Result, run_search
from archir.search.work import DataRef
from archir.train.data import Dataset, load_data

from .toys import TEXT, ByHash, Wider, files_of, write_data


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_data(folder / "data.npz")
    (folder / "toy.arch").write_text(TEXT, "utf-8")
    return folder


def search(place: Path, run: Path, strategy: Any = None, **how: Any) -> Result:
    name = str(place / "data.npz")
    dataset = load_data(name)
    start = archir.load(place / "toy.arch").init(0)
    return run_search(
        strategy or Wider(),
        start=start,
        dataset=dataset,
        data=DataRef(name, 0, dataset.sha256),
        run_dir=run,
        device="cpu",
        **how,
    )


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A search that nothing interrupted."""
    search(place, place / "whole")
    return place / "whole"


def test_a_search_ends_with_what_it_promises(place: Path, whole: Path) -> None:
    journal = read_journal(whole / "journal.jsonl")
    assert journal.end is not None
    assert [m.number for m in journal.members] == list(range(10))
    assert set(journal.stages) == {"start", "step"}
    best = max(journal.members, key=lambda m: (m.score, -m.number))
    assert journal.end["best"] == best.number
    facts = json.loads((whole / "result.json").read_text("utf-8"))
    assert facts["onnx"] == {"file": "best.onnx"}
    assert facts["test"]["best"]["count"] == 12
    for number in facts["front"]:
        network = archir.load(whole / "front" / f"{number:04d}.arch")
        assert all(f.holds for f in network.verify())
        assert network.cost().params == journal.members[number].params
    ahead = [journal.members[n] for n in facts["front"]]
    for member in journal.members:
        beaten = any(a.score >= member.score and a.macs <= member.macs for a in ahead)
        assert beaten, "every member is on the front or behind one that is"
    assert all(f.holds for f in archir.load(whole / "best.arch").verify())
    assert not (whole / "work").exists()


def test_members_are_the_networks_that_were_scored(whole: Path) -> None:
    journal = read_journal(whole / "journal.jsonl")
    for member in journal.members:
        if member.same_as is not None:
            assert not (whole / "members" / f"{member.number:04d}.arch").exists()
            continue
        network = archir.load(whole / "members" / f"{member.number:04d}.arch")
        assert network.cost().macs == member.macs
        assert all(f.holds for f in network.verify())
    assert any(m.same_as is not None for m in journal.members), "some were drawn twice"


def test_equal_runs_write_equal_bytes(place: Path, whole: Path, tmp_path: Path) -> None:
    search(place, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(whole)


@pytest.mark.parametrize("torn", [False, True])
def test_a_search_that_was_cut_off_ends_as_if_it_had_not_been(
    place: Path, whole: Path, tmp_path: Path, *, torn: bool
) -> None:
    lines = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(0, len(lines) + 1, 5 if torn else 3):
        run = tmp_path / str(kept)
        shutil.copytree(whole, run)
        part = lines[kept][: len(lines[kept]) // 2] if torn and kept < len(lines) else b""
        (run / "journal.jsonl").write_bytes(b"".join(lines[:kept]) + part)
        for name in ("result.json", "best.arch", "best.onnx"):
            (run / name).unlink()
        done = sum(json.loads(line)["event"] == "member" for line in lines[:kept])
        for file in (run / "members").glob("*.*"):
            if file.name[:4].isdigit() and int(file.name[:4]) >= done:
                file.unlink()
        search(place, run, existing="resume")
        assert files_of(run) == files_of(whole), f"cut after {kept} lines"


@dataclass(frozen=True)
class Leaves(ByHash):
    """Leaves a file with each member."""

    name: str = "leaves"

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        (folder / "kept").mkdir(exist_ok=True)
        (folder / "kept" / "policy.safetensors").write_text(graph_hash(network.graph))
        return super().evaluate(network, dataset, seed, folder)


class Keeps(Wider):
    """Has what the best member left in its outcome."""

    def run(self, search: Search) -> Outcome:
        best = super().run(search).best
        with pytest.raises(ArchirError, match="A703"):
            search.kept(best, "other")
        return Outcome(best, files={"found.safetensors": search.kept(best, "policy.safetensors")})


def test_what_an_evaluation_leaves_stays_with_its_member(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for existing in ("refuse", "resume", "replace"):  # the second time the journal answers
        how: Any = {"existing": existing}
        best = search(place, run, Keeps(evaluator=Leaves()), **how).best
        assert (run / "found.safetensors").read_text("utf-8") == best.graph
        for member in read_journal(run / "journal.jsonl").members:
            left = run / "members" / f"{member.number:04d}.policy.safetensors"
            if member.same_as is None:
                assert left.read_text("utf-8") == member.graph
            else:
                assert not left.exists()
    search(place, run, existing="replace")
    assert not (run / "found.safetensors").exists()


def test_a_search_that_ended_is_not_run_again(place: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run" / "timings.jsonl").read_bytes()
    search(place, tmp_path / "run", existing="resume")
    assert (tmp_path / "run" / "timings.jsonl").read_bytes() == before
    assert files_of(tmp_path / "run") == files_of(whole)


def test_a_folder_that_holds_a_search_is_not_taken(place: Path, whole: Path) -> None:
    with pytest.raises(ArchirError, match="A603"):
        search(place, whole)


def test_another_search_is_not_gone_on_with(place: Path, whole: Path) -> None:
    with pytest.raises(ArchirError, match="A702") as found:
        search(place, whole, Wider(steps=4), existing="resume")
    assert "settings.steps was 3, is 4" in str(found.value)
    with pytest.raises(ArchirError, match="A702") as found:
        search(place, whole, seed=1, existing="resume")
    assert "seed was 0, is 1" in str(found.value)


def test_a_journal_that_says_something_else_is_refused(
    place: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "journal.jsonl"
    lines = file.read_text("utf-8").splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if '"kind": "rewrite"' in line)
    lines[at] = lines[at].replace('"rule": "widen"', '"rule": "widen.pairs"')
    file.write_text("".join(lines), "utf-8")
    with pytest.raises(ArchirError, match="A701") as found:
        search(place, tmp_path / "run", existing="resume")
    assert f"line {at + 1}" in str(found.value)


@pytest.mark.parametrize("damage", ["{", "[]", '{"event": "member"}', "\x00", '{"event": 3}'])
def test_a_damaged_journal_is_refused(
    place: Path, whole: Path, tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    lines = (run / "journal.jsonl").read_text("utf-8").splitlines()
    (run / "journal.jsonl").write_text("\n".join([*lines[:4], damage, *lines[5:], ""]), "utf-8")
    with pytest.raises(ArchirError, match="A70"):
        search(place, run, existing="resume")
    with pytest.raises(ArchirError, match="line 5"):
        read_journal(run / "journal.jsonl")


def test_a_member_that_was_changed_is_not_gone_on_with(
    place: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    file = run / "members" / "0000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:4]))
    with pytest.raises(ArchirError, match="A703: member 0 was changed"):
        search(place, run, existing="resume")


def test_two_processes_do_not_share_a_folder(place: Path, tmp_path: Path) -> None:
    found: list[ArchirError] = []

    def meanwhile(_: object) -> None:
        if not found:
            with pytest.raises(ArchirError, match="A704") as failure:
                search(place, tmp_path / "run", existing="replace")
            found.append(failure.value)

    search(place, tmp_path / "run", progress=meanwhile)
    assert found


def test_the_number_of_evaluations_is_a_limit(place: Path, tmp_path: Path) -> None:
    search(place, tmp_path / "run", limits=Limits(evaluations=5))
    journal = read_journal(tmp_path / "run" / "journal.jsonl")
    assert [e["reason"] for e in journal.events if e["event"] == "stop"] == ["evaluations"]
    assert len(journal.members) == 7
    held = files_of(tmp_path / "run")
    search(place, tmp_path / "run", limits=Limits(evaluations=5), existing="resume")
    assert files_of(tmp_path / "run") == held


def test_a_search_that_ran_out_of_time_stops_there_when_it_is_resumed(
    place: Path, tmp_path: Path
) -> None:
    search(place, tmp_path / "run", limits=Limits(time=1e-6))
    held = files_of(tmp_path / "run")
    events = read_journal(tmp_path / "run" / "journal.jsonl").events
    assert [e["reason"] for e in events if e["event"] == "stop"] == ["time"]
    (tmp_path / "run" / "result.json").unlink()
    search(place, tmp_path / "run", limits=Limits(time=1e-6), existing="resume")
    assert files_of(tmp_path / "run") == held


def test_candidates_over_a_limit_are_recorded_and_survived(place: Path, tmp_path: Path) -> None:
    params = archir.load(place / "toy.arch").cost().params
    search(place, tmp_path / "run", limits=Limits(params=params + 60))
    members = read_journal(tmp_path / "run" / "journal.jsonl").members
    refused = [m for m in members if m.status == "refused"]
    assert refused
    assert all("A312" in m.reason for m in refused)
    assert all(m.params <= params + 60 for m in members if m.status == "scored")


def test_nothing_is_begun_when_the_time_is_over(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock says that the time is over as soon as the second step has begun."""
    real = Search.elapsed.fget
    assert real is not None

    def late(search: Search) -> float:
        return 1000.0 if len(search.members) >= 5 else float(real(search)) / 1e6

    monkeypatch.setattr(Search, "elapsed", property(late))
    result = search(place, tmp_path / "run", limits=Limits(time=500.0))
    members = read_journal(tmp_path / "run" / "journal.jsonl").members
    assert [m.status for m in members[:5]] == ["scored"] * 5
    begun = [m for m in members[5:] if m.status == "scored"]
    assert begun == []
    assert {m.reason for m in members[5:]} == {"not begun: the 500 seconds of this search are over"}
    assert result.best.number < 5
    monkeypatch.undo()
    held = files_of(tmp_path / "run")
    search(place, tmp_path / "run", limits=Limits(time=500.0), existing="resume")
    assert files_of(tmp_path / "run") == held


def test_time_is_left_for_what_comes_after_the_steps(place: Path, tmp_path: Path) -> None:
    class Asking(Wider):
        def run(self, search: Any) -> Any:
            start = Proposal({"kind": "start"}, lambda: search.start)
            (best,) = search.evaluate("start", self.evaluator, [start])
            assert search.goes_on()
            assert not search.goes_on(1e9)
            return Outcome(best)

    search(place, tmp_path / "run", Asking(), limits=Limits(time=3600.0))
    events = read_journal(tmp_path / "run" / "journal.jsonl").events
    assert [e["reason"] for e in events if e["event"] == "stop"] == ["time"]


def test_a_search_that_ended_otherwise_is_not_written_over(
    place: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    lines = (run / "journal.jsonl").read_text("utf-8").splitlines()
    end = {**json.loads(lines[-1]), "best": 1}
    (run / "journal.jsonl").write_text("\n".join([*lines[:-1], json.dumps(end), ""]), "utf-8")
    held = files_of(run)
    with pytest.raises(ArchirError, match="A701"):
        search(place, run, existing="resume")
    assert files_of(run) == held


def test_the_users_own_files_belong_to_a_search(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("ONE = 1\n", "utf-8")
    settings = {"strategy": f"{file}:WIDER", "other": [{"rule": str(tmp_path / "none.rule")}]}
    search(place, tmp_path / "run", settings=settings)
    search(place, tmp_path / "run", settings=settings, existing="resume")
    file.write_text("ONE = 2\n", "utf-8")
    with pytest.raises(ArchirError, match="A702") as found:
        search(place, tmp_path / "run", settings=settings, existing="resume")
    assert "mine.py" in str(found.value)


def test_nothing_scored_is_an_error(place: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the folder is not kept from another try
        with pytest.raises(ArchirError, match="A705"):
            search(place, tmp_path / "run", limits=Limits(params=3))


def test_a_stage_has_one_evaluator(place: Path, tmp_path: Path) -> None:
    class Two(Wider):
        def run(self, search: Any) -> Any:
            search.evaluate("start", self.evaluator, [])
            search.evaluate("start", replace(self.evaluator, name="other"), [])

    with pytest.raises(ValueError, match="another one"):
        search(place, tmp_path / "run", Two())


def test_all_is_reckoned_with_the_threads_of_the_search(place: Path, tmp_path: Path) -> None:
    seen = []

    class Looking(Wider):
        def run(self, search: Any) -> Outcome:
            seen.append(torch.get_num_threads())
            return super().run(search)

    before = torch.get_num_threads()
    search(place, tmp_path / "run", Looking(steps=1), threads=before + 1)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
