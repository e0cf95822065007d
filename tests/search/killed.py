"""Run as a script: a search is killed before a file operation and resumed, at many of them.

Each run is a process forked from this one, which has imported what runs import. It kills itself
with SIGKILL right before it opens a file for writing, or renames, removes or cuts one. The same
files with the same bytes as those of a run that nothing killed are what is wanted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: its threads do not outlive a fork

import torch  # noqa: F401

import archir
from archir.search.run import run_search
from archir.search.training import Training
from archir.search.work import DataRef
from archir.train import loop
from archir.train.data import load_data
from archir.train.recipe import TrainConfig

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.search.toys import TEXT, Wider, files_of, write_data

WRITES = ("os.rename", "os.remove", "os.truncate", "os.rmdir", "shutil.rmtree")
loop.SAVE_EVERY, loop.SAVE_WITHIN = 0.0, 0.0


@dataclass(frozen=True)
class Trained(Wider):
    """Children are trained for two epochs."""

    evaluator: Any = field(
        default_factory=lambda: Training(TrainConfig(epochs=2, batch_size=16, lr=0.1))
    )
    steps: int = 2
    children: int = 2


def search(place: Path, run: Path) -> None:
    name = str(place / "data.npz")
    dataset = load_data(name)
    run_search(
        Trained(),
        start=archir.load(place / "toy.arch").init(0),
        dataset=dataset,
        data=DataRef(name, 0, dataset.sha256),
        run_dir=run,
        device="cpu",
        existing="resume",
    )


def child(place: Path, run: Path, kill_at: int) -> None:
    count = 0

    def watch(event: str, given: tuple[object, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(given[2], int) and given[2] & os.O_ACCMODE
        if event not in WRITES and not writes:
            return
        if not str(Path(str(given[0])).absolute()).startswith(str(run)):
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    search(place, run)
    (place / "count").write_text(str(count), "utf-8")


def ended(place: Path, run: Path, kill_at: int = 0) -> int:
    job = get_context("fork").Process(target=child, args=(place, run, kill_at))
    job.start()
    job.join()
    assert job.exitcode in (0, -signal.SIGKILL), job.exitcode
    return int(job.exitcode or 0)


def main(place: Path, moments: int) -> None:
    write_data(place / "data.npz")
    (place / "toy.arch").write_text(TEXT, "utf-8")
    assert ended(place, place / "whole") == 0
    wanted = files_of(place / "whole")
    operations = int((place / "count").read_text("utf-8"))
    told = []
    for number in range(moments):
        run, at = place / str(number), 1 + number * operations // moments
        died = ended(place, run, at) != 0
        again = number % 3 == 2 and ended(place, run, max(1, at // 2)) != 0
        assert ended(place, run) == 0
        found = files_of(run)
        differ = sorted(n for n in wanted.keys() | found if wanted.get(n) != found.get(n))
        told.append({"at": at, "kills": died + again, "differ": differ})
    print(json.dumps({"operations": operations, "files": len(wanted), "runs": told}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
