"""Evaluations as parcels: what travels, what comes back, and what is left where they were done."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

import archir
from archir.diag import ArchirError
from archir.search.parcels import perform_parcel, take, versions_here, wrap
from archir.search.work import DONE, RESULT, Job, perform
from archir.train.data import Dataset, load_data
from archir.train.recipe import TrainConfig
from archir.train.sources import read_name

sys.path.insert(0, str(Path(__file__).parent))
from mortal import Mortal
from trials import Trial, job


def sent(asked: Job, dataset: Dataset | None = None) -> bytes:
    """The answer of another machine: nothing but bytes goes there."""
    parcel = wrap(asked, with_data=dataset is not None)
    return perform_parcel(parcel, dataset, (), versions_here())


def held(folder: Path) -> dict[str, bytes]:
    """Files by name; of results all but the times."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name in [name for name in found if name.endswith(RESULT)]:
        document = {k: v for k, v in json.loads(found[name]).items() if "seconds" not in k}
        found[name] = json.dumps(document).encode()
    return {n: data for n, data in found.items() if "/train/" not in n and "data.npz" not in n}


def test_what_comes_back_is_what_is_made_here(tmp_path: Path) -> None:
    """A training of a network with a history, its kept file and its lineage, to the same bytes."""
    mark = tmp_path / "mark"
    mark.touch()  # nothing dies
    evaluator = Mortal(TrainConfig(epochs=2, batch_size=16), device="cpu", mark=str(mark))
    data = job(tmp_path, 0, evaluator).data
    for name in ("here", "there", "without"):
        root = tmp_path / name
        root.mkdir()
        asked = job(root, 0, evaluator, data=data)
        network = archir.load(asked.network).init(1).rewrite("widen", "conv", width=5)
        network = network.rewrite("widen", "conv", width=6)
        lineage = None if name == "without" else root / "lineage"
        start = network.save(asked.folder / "start.arch", lineage=lineage)
        asked = replace(asked, network=start, lineage=lineage)
        if name == "here":
            perform(asked)
            continue
        parcel = wrap(asked, with_data=True)
        assert str(tmp_path).encode() not in parcel.replace(str(mark).encode(), b"")
        assert not (asked.folder / DONE).exists()
        take(asked, sent(asked, load_data(asked.data.name)))
        if name == "there":
            assert held(tmp_path / "here") == held(root)
            assert "work/0000/kept/seed.txt" in held(root)
        done = archir.load(asked.folder / DONE, lineage=lineage)
        findings = done.verify()
        assert findings
        assert all(finding.holds for finding in findings)


def test_an_evaluator_of_a_file_travels_with_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    lines = ["import trials", "class Mine(trials.Trial):", "    class Inner(trials.Trial): ..."]
    file.write_text("\n".join(lines))
    mine = read_name(file, "Mine", "A716")
    jobs = [job(tmp_path, 0, mine("well")), job(tmp_path, 1, mine.Inner("crash"))]
    parcels = [wrap(asked, with_data=False) for asked in jobs]
    file.unlink()
    found = []
    for asked, parcel in zip(jobs, parcels, strict=True):
        take(asked, perform_parcel(parcel, None, (), versions_here()))
        found.append(json.loads((asked.folder / RESULT).read_text())["status"])
    assert found == ["scored", "failed"]


def test_what_an_evaluation_had_left_goes_along(tmp_path: Path) -> None:
    asked = job(tmp_path, 0, Trial("first time"))
    (asked.folder / "begun").touch()  # without it the process ends
    take(asked, sent(asked))
    assert json.loads((asked.folder / RESULT).read_text())["status"] == "scored"


@pytest.mark.parametrize("what", ["full disk", "cannot write", "no device"])
def test_what_no_network_is_to_blame_for_is_told_with_the_machine(
    tmp_path: Path, what: str
) -> None:
    asked = job(tmp_path, 0, Trial(what))
    answer = sent(asked)
    with pytest.raises((ArchirError, OSError), match=platform.node()):
        take(asked, answer)
    assert list(asked.folder.iterdir()) == []


def test_another_version_is_refused(tmp_path: Path) -> None:
    asked = job(tmp_path, 0, Trial("well"))
    versions = {**versions_here(), "archir": "0.0.7"}
    answer = perform_parcel(wrap(asked, with_data=False), None, (), versions)
    with pytest.raises(ArchirError, match=r"A782: on .*: archir is .*, it should be 0\.0\.7"):
        take(asked, answer)


def test_an_evaluator_that_cannot_travel(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Local(Trial):
        pass

    with pytest.raises(ArchirError, match="A712: the evaluator cannot be sent"):
        wrap(job(tmp_path, 0, Local("well")), with_data=False)


def test_nothing_is_left_of_workers_that_were_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "run").mkdir()
    asked = job(tmp_path / "run", 0, Trial("well"))
    dead, fresh = tmp_path / "archir-evaluation-dead", tmp_path / "archir-evaluation-fresh"
    for left in (dead, fresh):
        left.mkdir()
        (left / ".lock").touch()
    (dead / ".lock").write_text("held")
    (dead / "large").write_bytes(b"x")
    take(asked, sent(asked))
    assert sorted(p.name for p in tmp_path.iterdir()) == [fresh.name, "run"]
