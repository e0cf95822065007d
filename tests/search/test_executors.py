"""Evaluations in this process and in others: equal results, and what becomes of bad ones."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import archir
from archir.diag import ArchirError
from archir.search.executors import Executor, InProcess, Pool, _serve
from archir.search.work import DONE, RESULT, Job, perform
from archir.train.recipe import TrainConfig
from archir.train.sources import read_name

sys.path.insert(0, str(Path(__file__).parent))  # as the processes of a pool find it too
from trials import Trial, job

SCRIPT = Path(__file__).with_name("trials.py")


def result(done: Job) -> Any:
    return json.loads((done.folder / RESULT).read_text("utf-8"))


def run(executor: Executor, *jobs: Job) -> list[int]:
    """The numbers of the jobs in the order in which they were done."""
    here, found = (os.getpid(), threading.get_ident()), []

    def done(job: Job) -> None:
        assert (os.getpid(), threading.get_ident()) == here
        assert (job.folder / RESULT).exists()
        found.append(job.number)

    executor.run(jobs, done)
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie that nobody has waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# ---- one evaluation


def test_a_score(tmp_path: Path) -> None:
    asked = job(tmp_path, 0, Trial("lost line"))
    perform(asked)
    found = result(asked)
    assert found.pop("seconds") > 0
    assert found.pop("cpu_seconds") >= 0
    history = [{"loss": None, "at": [1, 2.0]}]
    wanted = {"key": "key 0", "status": "scored", "reason": "", "scores": {"score": 0.5}}
    assert found == {**wanted, "history": history}
    assert not (asked.folder / DONE).exists()


def test_a_result_that_is_there_is_kept_where_it_is_of_this_job(tmp_path: Path) -> None:
    asked = job(tmp_path, 0, Trial("well"))
    perform(asked)
    before = (asked.folder / RESULT).read_bytes()
    perform(asked)
    assert (asked.folder / RESULT).read_bytes() == before
    assert (asked.folder / "times").read_text() == "x"
    perform(replace(asked, key="another"))
    assert result(asked)["key"] == "another"
    (asked.folder / RESULT).write_text("{")
    perform(asked)
    assert result(asked)["key"] == "key 0"
    assert (asked.folder / "times").read_text() == "xxx"


REASONS = {
    "nan": "A714: `score` is nan, it should be finite",
    "infinite": "A714: `score` is -inf, it should be finite",
    "text": "A714: `score` is 'good', it should be a number",
    "nothing": "A714: the evaluator gave `accuracy` and no `score`",
    "no JSON": "A714: the history holds what JSON has no words for: "
    "Object of type object is not JSON serializable",
    "astray": "A631: the loss is nan",
    "no memory": "A690: the machine has no memory left for this",
    "crash": "A711: ValueError: two lines",
    "no file": "A711: FileNotFoundError: [Errno 2] No such file: 'absent'",
}


@pytest.mark.parametrize("what", REASONS)
def test_a_failure_is_a_result(tmp_path: Path, what: str) -> None:
    asked = job(tmp_path, 0, Trial(what))
    assert run(InProcess(), asked) == [0]
    found = result(asked)
    assert (found["status"], found["reason"]) == ("failed", REASONS[what])
    assert (found["scores"], found["history"]) == ({}, [])


def test_a_network_that_cannot_be_read_has_failed(tmp_path: Path) -> None:
    (tmp_path / "other.arch").write_text("arch {")
    asked = job(tmp_path, 0, Trial("well"), network=tmp_path / "other.arch")
    perform(asked)
    assert result(asked)["status"] == "failed"
    assert result(asked)["reason"].startswith("A0")


@pytest.mark.parametrize("what", ["full disk", "cannot write", "no device", "interrupt"])
def test_what_no_network_is_to_blame_for_ends_the_search(tmp_path: Path, what: str) -> None:
    asked = job(tmp_path, 0, Trial(what))
    with pytest.raises((ArchirError, OSError, KeyboardInterrupt)):
        run(InProcess(), asked, job(tmp_path, 1, Trial("well")))
    assert [p.name for p in asked.folder.iterdir()] == ["times"]
    assert not (tmp_path / "work" / "0001" / RESULT).exists()
    run(InProcess(), replace(asked, evaluator=Trial("well")))
    assert result(asked)["status"] == "scored"


def test_data_that_have_changed(tmp_path: Path) -> None:
    asked = job(tmp_path, 0, Trial("well"))
    with pytest.raises(ArchirError, match=r"A710: the data .*data.npz have changed"):
        perform(replace(asked, data=replace(asked.data, sha256="0" * 64)))
    assert list(asked.folder.iterdir()) == []


def test_threads_are_put_back(tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    perform(job(tmp_path, 0, Trial("well"), threads=before + 1))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("room", [0, 1_000, 2_000])
def test_a_full_disk(tmp_path: Path, room: int) -> None:
    """Nothing is half written, and the evaluation is done anew once there is room."""
    from archir.search.training import Training

    asked = job(tmp_path, 0, Training(TrainConfig(epochs=1, batch_size=16)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises((ArchirError, OSError)) as caught:
            run(InProcess(), asked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "A602" in str(caught.value) or isinstance(caught.value, OSError)
    left = [p.name for p in asked.folder.rglob("*") if p.is_file()]
    assert RESULT not in left
    assert DONE not in left
    assert not [name for name in left if name.endswith(".tmp")]
    assert run(InProcess(), asked) == [0]
    assert result(asked)["status"] == "scored"
    assert not [f for f in archir.load(asked.folder / DONE).verify() if not f.holds]


# ---- several processes


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as made:
        yield made
    assert not multiprocessing.active_children()


def test_equal_results_here_and_in_other_processes(tmp_path: Path) -> None:
    """A real training, to the same bytes."""
    from archir.search.training import Training

    evaluator = Training(TrainConfig(epochs=2, batch_size=16))
    first = job(tmp_path, 0, evaluator)
    start = archir.load(first.network).init(1)
    files = {}
    for made, folder in ((InProcess(), tmp_path / "here"), (Pool(2), tmp_path / "there")):
        folder.mkdir()
        shared = folder / "lineage"
        network = start.save(folder / "start.arch", lineage=shared)
        words = {"network": network, "lineage": shared, "data": first.data}
        jobs = [job(folder, n, evaluator, seed=n, **words) for n in range(3)]
        with made as executor:
            assert sorted(run(executor, *jobs)) == [0, 1, 2]
        for one in jobs:
            found = {k: v for k, v in result(one).items() if "seconds" not in k}
            assert found["status"] == "scored"
            known = [one.folder / DONE, *sorted(shared.iterdir())]
            known += [(one.folder / DONE).with_suffix(s) for s in (".safetensors", ".cert.json")]
            held = {str(p.relative_to(folder)): p.read_bytes() for p in known}
            files.setdefault(folder.name, []).append((found, held))
    assert files["here"] == files["there"]
    first, second, _ = (held for _, held in files["here"])
    assert first["work/0000/done.safetensors"] != second["work/0001/done.safetensors"]


ENDS = {
    "segfault": "A712: its process ended: signal 11 (SIGSEGV)",
    "exit": "A712: its process ended: status 3",
}


def test_a_process_that_dies_takes_no_other_evaluation_along(tmp_path: Path, pool: Pool) -> None:
    acts = ["well", "segfault", "nan", "exit", "well"]
    jobs = [job(tmp_path, number, Trial(act)) for number, act in enumerate(acts)]
    assert sorted(run(pool, *jobs)) == list(range(5))
    for act, asked in zip(acts, jobs, strict=True):
        found = result(asked)
        assert found["status"] == ("scored" if act == "well" else "failed")
        assert found["reason"] == {**ENDS, "nan": REASONS["nan"]}.get(act, "")
        assert (asked.folder / "times").read_text() == ("xx" if act in ENDS else "x")
    again = job(tmp_path, 5, Trial("well"))
    assert run(pool, again) == [5]


def test_where_memory_was_short_a_second_try_goes_well(tmp_path: Path, pool: Pool) -> None:
    jobs = [job(tmp_path, number, Trial("first time")) for number in range(2)]
    assert sorted(run(pool, *jobs)) == [0, 1]
    assert [result(one)["status"] for one in jobs] == ["scored", "scored"]


def test_jobs_are_asked_for_when_there_is_room(tmp_path: Path, pool: Pool) -> None:
    asked, done = [], []

    def jobs() -> Iterator[Job]:
        for number in range(5):
            asked.append(number)
            assert len(asked) - len(done) <= 2
            yield job(tmp_path, number, Trial("well"))

    pool.run(jobs(), done.append)
    assert sorted(one.number for one in done) == list(range(5))


@pytest.mark.parametrize("what", ["full disk", "cannot write"])
def test_an_error_of_the_machine_ends_all(tmp_path: Path, what: str) -> None:
    with Pool(2) as pool:
        jobs = [job(tmp_path, 0, Trial("wait")), job(tmp_path, 1, Trial(what))]
        with pytest.raises((ArchirError, OSError), match="No space left"):
            run(pool, *jobs)
        assert not [p for p in multiprocessing.active_children() if p in pool_of(pool)]
        assert run(pool, job(tmp_path, 2, Trial("well"))) == [2]
    assert not (jobs[1].folder / RESULT).exists()


def pool_of(pool: Pool) -> list[Any]:
    return [worker.process for worker in pool._workers]


def test_what_is_told_of_a_job_may_stop_all(tmp_path: Path, pool: Pool) -> None:
    def stop(_: Job) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run([job(tmp_path, n, Trial("well")) for n in range(3)], stop)
    assert pool_of(pool) == []
    assert run(pool, job(tmp_path, 3, Trial("well"))) == [3]


def test_an_evaluator_that_cannot_travel(tmp_path: Path, pool: Pool) -> None:
    @dataclass(frozen=True)
    class Local(Trial):
        pass

    with pytest.raises(ArchirError, match="A712: the evaluator cannot be sent"):
        run(pool, job(tmp_path, 0, Local("well")))


def test_an_evaluator_that_cannot_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "elsewhere.py").write_text("import trials\nclass Mine(trials.Trial):\n    pass\n")
    with Pool(1) as pool:
        run(pool, job(tmp_path, 0, Trial("well")))
        monkeypatch.syspath_prepend(folder)  # the process that is there knows nothing of it
        import elsewhere

        with pytest.raises(ArchirError, match=r"A712: .* No module named 'elsewhere'"):
            run(pool, job(tmp_path, 1, elsewhere.Mine("well")))


def test_an_evaluator_of_a_file(tmp_path: Path, pool: Pool) -> None:
    """It arrives though no module has its name, and though its file was read again since."""
    file = tmp_path / "mine.py"
    lines = [
        "import trials",
        "class Mine(trials.Trial):",
        "    class Inner(trials.Trial):",
        "        ...",
    ]
    file.write_text("\n".join(lines))
    mine = read_name(file, "Mine", "A716")
    assert read_name(file, "Mine", "A716") is not mine
    jobs = [job(tmp_path, 0, mine("well")), job(tmp_path, 1, mine.Inner("crash"))]
    assert sorted(run(pool, *jobs)) == [0, 1]
    assert [result(one)["status"] for one in jobs] == ["scored", "failed"]
    file.write_text("1 / 0")
    with (
        pytest.raises(ArchirError, match=r"A712: .*mine.py failed with ZeroDivisionError"),
        Pool(1) as new,
    ):
        run(new, job(tmp_path, 2, mine("well")))


def test_one_process_alone_needs_no_second_try(tmp_path: Path) -> None:
    jobs = [job(tmp_path, 0, Trial("killed")), job(tmp_path, 1, Trial("well"))]
    with Pool(1) as pool:
        assert run(pool, *jobs) == [0, 1]
    assert result(jobs[0])["reason"] == "A712: its process ended: signal 9 (SIGKILL)"
    assert result(jobs[0])["seconds"] > 0
    assert (jobs[0].folder / "times").read_text() == "x"
    assert result(jobs[1])["status"] == "scored"


# ---- what only a process of its own shows


def started(folder: Path, *words: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A pool at work, and its processes once they evaluate."""
    made = subprocess.Popen(
        [sys.executable, SCRIPT, folder, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while made.poll() is None and time.monotonic() < until:
        found = [p.read_text() for p in folder.glob("work/*/waiting")]
        if len(found) == 2 and all(found):
            return made, [int(text) for text in found]
        time.sleep(0.05)
    return made, []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_search(tmp_path: Path, number: signal.Signals) -> None:
    parent, workers = started(tmp_path, "guarded")
    assert len(workers) == 2
    assert all(map(alive, workers))
    if number == signal.SIGINT:  # as a terminal sends it: to all of them
        os.killpg(parent.pid, number)
    else:
        parent.send_signal(number)
    _, said = parent.communicate(timeout=20)
    assert parent.returncode == -number
    until = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    assert said.count("Traceback") == (number == signal.SIGINT)  # the script's own
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob(RESULT))


def test_a_pipe_that_closes_with_something_unread_is_an_end() -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    assert here.poll(60)
    here.close()
    process.join(60)
    assert process.exitcode == 0, "no traceback"


def test_a_script_that_begins_a_search_whenever_it_is_imported(tmp_path: Path) -> None:
    parent, _ = started(tmp_path)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 1
    assert "A712: its process ended: status 1 before it had begun" in said
    assert "__main__" in said
