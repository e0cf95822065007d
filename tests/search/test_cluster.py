"""Searches on Ray, of this machine and of three machines that share no folder."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import archir as library
from archir.diag import ArchirError
from archir.search.broker import Terms, told_of_ray
from archir.search.cluster import Ray
from archir.search.run import run_search
from archir.search.work import RESULT, DataRef
from archir.train.data import load_data
from archir.train.recipe import TrainConfig

sys.path.insert(0, str(Path(__file__).parent))  # as workers find it too
from mortal import Mortal
from trials import Trial, Trials, job

from .toys import TEXT, Wider, files_of, write_data

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]
HERE = Path(__file__).parent


class Nodes(NamedTuple):
    """A Ray of three machines: two of one CPU and a GPU, and this one of none."""

    address: str
    folder: Path


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    folder = tempfile.mkdtemp(prefix="archir-", dir="/tmp")  # a short name: it is one of sockets
    words = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**words, "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(name, value)
        started = subprocess.Popen(
            [sys.executable, HERE / "nodes.py", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env={**os.environ, "TMPDIR": folder},
        )
        assert started.stdout is not None
        yield Nodes(started.stdout.readline().strip(), Path(folder))
        started.communicate("", timeout=60)
    shutil.rmtree(folder)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_data(tmp_path / "data.npz")
    (tmp_path / "toy.arch").write_text(TEXT, "utf-8")
    return tmp_path


def search(place: Path, run: str, strategy: Any, address: str | None = None, **how: Any) -> Any:
    """A search in this process, or on the Ray at an address."""
    data = str(place / "data.npz")
    dataset = load_data(data)
    executor = Ray(dataset, address=address, device="cpu") if address else None
    return run_search(
        strategy,
        start=library.load(place / "toy.arch").init(0),
        dataset=dataset,
        data=DataRef(data, 0, dataset.sha256),
        run_dir=place / run,
        device="cpu",
        executor=executor,
        **how,
    )


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes(word: str) -> list[int]:
    """The processes whose command lines have a word, and those that they have started."""
    found, parents = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found[int(entry.name)] = (entry / "cmdline").read_bytes()
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:
            continue
    ours = {pid for pid, line in found.items() if word.encode() in line and pid != os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return [pid for pid in ours if alive(pid)]


def waiting(folder: Path) -> list[int]:
    """The processes of evaluations that wait."""
    files = folder.glob("archir-evaluation-*/*/waiting")
    return [int(text) for file in files if (text := file.read_text())]


def until(holds: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


@dataclass(frozen=True)
class Trained(Wider):
    """Children are trained for two epochs."""

    evaluator: Any = field(default_factory=lambda: Mortal(TRAINING))
    steps: int = 2
    children: int = 2


TRAINING = TrainConfig(epochs=2, batch_size=16, lr=0.1)


def test_a_worker_that_is_killed_changes_nothing(place: Path, nodes: Nodes) -> None:
    """Every file of the search is what it is without Ray, and without a loss."""
    mark = place / "mark"
    strategy = Trained(evaluator=Mortal(TRAINING, mark=str(mark)))
    search(place, "ray", strategy, nodes.address)
    assert int(mark.read_text()) != os.getpid()
    search(place, "here", strategy)
    wanted = files_of(place / "here")
    assert files_of(place / "ray") == wanted
    assert {"best.safetensors", "best.onnx", "result.json", "members/0004.seed.txt"} <= set(wanted)


def interrupting(after: int) -> Callable[[Any], object]:
    """Ctrl-C when so many members are known."""

    def told(progress: Any) -> None:
        if progress.done == after:
            raise KeyboardInterrupt

    return told


def test_a_search_goes_on_elsewhere(place: Path, nodes: Nodes) -> None:
    """It begins here and ends on Ray, or the other way round: to the same bytes."""
    strategy = Wider(evaluator=Trials(("well",)))
    search(place, "whole", strategy)
    for run, first, second in (("to", None, nodes.address), ("from", nodes.address, None)):
        with pytest.raises(KeyboardInterrupt):
            search(place, run, strategy, first, progress=interrupting(4))
        assert not (place / run / "result.json").exists()
        search(place, run, strategy, second, existing="resume")
        assert files_of(place / run) == files_of(place / "whole")


def result(job: Any) -> tuple[str, str]:
    found = json.loads((job.folder / RESULT).read_text("utf-8"))
    return found["status"], found["reason"]


def test_an_evaluation_that_ends_each_of_its_workers_has_failed(
    tmp_path: Path, nodes: Nodes
) -> None:
    """The others go on; as does what fails, or what only a GPU of its own lets go well."""
    jobs = [
        job(tmp_path, n, Trial(act)) for n, act in enumerate(("segfault", "well", "nan", "gpu"))
    ]
    dataset = load_data(str(tmp_path / "data.npz"))
    done: list[int] = []
    with Ray(dataset, address=nodes.address, device="cuda", gpus=0.5) as ray:
        ray.run(jobs, lambda one: done.append(one.number))
        assert sorted(done) == [0, 1, 2, 3]
        assert result(jobs[0]) == ("failed", "A712: its process ended, 3 times")
        assert [result(one)[0] for one in jobs[1:]] == ["scored", "failed", "scored"]
        assert json.loads((jobs[3].folder / RESULT).read_text())["scores"] == {"score": 1.0}
        with pytest.raises(OSError, match="No space left on device on "):
            ray.run([job(tmp_path, 4, Trial("full disk"))], print)
    assert not (tmp_path / "work" / "0004" / RESULT).exists()


def test_a_command_on_ray(place: Path, nodes: Nodes, archir: Callable[..., Any]) -> None:
    """It says nothing of Ray, and its files are those of one process."""
    words = ["search", place / "toy.arch", "--init", 0, "--data", place / "data.npz"]
    words += ["--strategy", "random", "--evaluator", "params", "--set", "n_steps=1"]
    words += ["--device", "cpu"]
    on_ray = ["--executor", "ray", "--address", nodes.address, "--workers", "auto"]
    for run, more in (("ray", on_ray), ("here", [])):
        answer = archir(*words, "--run", place / run, "--json", *more)
        assert answer.status == 0, answer.err
        assert answer.document["status_counts"]["failed"] == 0
        assert "ray" not in answer.err.replace(str(place), "")
    assert files_of(place / "ray", without=OTHERS) == files_of(place / "here", without=OTHERS)


OTHERS = ("timings.jsonl", ".lock", "search.json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_a_search_with_a_ray_of_its_own(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Neither Ray's processes nor evaluations nor files."""
    script = tmp_path / "begun.py"
    script.write_text(
        f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(HERE)!r})\n"
        "if __name__ == '__main__':\n"
        "    from trials import Trial, job\n"
        "    from archir.search.cluster import Ray\n"
        f"    root = Path({str(tmp_path)!r})\n"
        "    with Ray(device='cpu', workers=1) as ray:\n"
        "        ray.run([job(root, 0, Trial('wait'))], print)\n"
    )
    before = set(Path("/tmp").glob("archir-ray-*"))
    begun = subprocess.Popen([sys.executable, script], start_new_session=True)
    new = set()

    def waits() -> bool:
        new.update(set(Path("/tmp").glob("archir-ray-*")) - before)
        return any(map(waiting, new))

    assert until(waits)
    folder = next(folder for folder in new if waiting(folder))
    assert len(processes(str(folder))) > 4
    if number == signal.SIGINT:  # as a terminal sends it: to all of them
        os.killpg(begun.pid, number)
    else:
        begun.send_signal(number)
    assert begun.wait(30) == -number
    assert until(lambda: not processes(str(folder)) and not folder.exists(), 30)


def test_nothing_outlives_a_search_on_machines_that_stay(tmp_path: Path, nodes: Nodes) -> None:
    asked = job(tmp_path, 0, Trial("wait"))

    def jobs() -> Iterator[Any]:
        yield asked
        assert until(lambda: bool(waiting(nodes.folder)))
        found.extend(waiting(nodes.folder))
        raise KeyboardInterrupt

    found: list[int] = []
    with pytest.raises(KeyboardInterrupt), Ray(address=nodes.address, device="cpu") as ray:
        ray.run(jobs(), print)
    assert until(lambda: not any(map(alive, found)), 30)


# ---- errors


def test_no_machine_is_large_enough(nodes: Nodes) -> None:
    with (
        pytest.raises(ArchirError, match="A783: no machine of this Ray has 2 CPUs"),
        Ray(address=nodes.address, device="cpu", threads=2),
    ):
        pass


def test_another_token() -> None:
    """As Ray tells of it, after some twenty seconds."""
    import ray

    terms = Terms("head:6379", None, 1, 1, 0.0, (), {}, "")
    with (
        pytest.raises(ArchirError, match="A781: the Ray at head:6379 wants another token"),
        told_of_ray(ray, terms),
    ):
        raise ConnectionError from RuntimeError("RPC error: InvalidAuthToken: ...")


def test_nobody_at_the_address() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with (
            pytest.raises(ArchirError, match=f"A781: there is no Ray at {address}"),
            Ray(address=address, device="cpu"),
        ):
            pass


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--device", "cuda:1"], "the device cuda:1 names one GPU of a machine"),
        (["--address", "ray://head:10001"], "ray://head:10001 is no address of a Ray"),
        (["--executor", "auto", "--address", "head:1"], "nothing is evaluated at head:1"),
    ],
)
def test_what_ray_cannot_have(
    place: Path, archir: Callable[..., Any], words: list[str], told: str
) -> None:
    given = ["search", place / "toy.arch", "--init", 0, "--data", place / "data.npz"]
    answer = archir(*given, "--run", place / "run", "--executor", "ray", *words)
    assert answer.status == 2
    assert "A784" in answer.err
    assert told in answer.err


def test_ray_is_not_installed(
    place: Path, archir: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    given = ["search", place / "toy.arch", "--init", 0, "--data", place / "data.npz"]
    answer = archir(*given, "--run", place / "run", "--executor", "ray")
    assert answer.status == 3
    assert "A780" in answer.err
    assert "pip install 'archir[cluster]'" in answer.err
