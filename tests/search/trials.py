"""Evaluators that go wrong, in a module that other processes can import.

Run as a script it starts a pool whose evaluations wait: FOLDER, then `guarded` or nothing.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from archir.api import Network
from archir.diag import error
from archir.search.executors import Pool
from archir.search.parts import Evaluated
from archir.search.work import DataRef, Job
from archir.train.data import Dataset, load_data

ON_RAY = Path(sys.argv[0]).name == "default_worker.py"
if multiprocessing.parent_process() is not None or ON_RAY:
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # its import takes seconds

TEXT = """\
version 1
arch tiny {
    input image: f32[N, 1, 4, 4]
    output logits = image |> conv: conv(4, 3) |> relu |> global_avg_pool |> fc: linear(3)
}
"""


def _raise(failure: BaseException) -> Any:
    raise failure


def _first_time(folder: Path) -> Any:
    """As where memory is short: it goes well once nothing else runs."""
    mark = folder / "begun"
    if not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.5


def _full_for_now(folder: Path) -> Any:
    """The disk is full as long as a file beside the run folder says so."""
    if (folder.parents[2] / "full").exists():
        raise OSError(errno.ENOSPC, "No space left on device")
    return 0.5


def _wait(folder: Path) -> Any:
    (folder / "waiting").write_text(str(os.getpid()))
    time.sleep(60)
    return 0.5


ACTS: dict[str, Callable[[Path], Any]] = {
    "well": lambda _: 0.5,
    "nan": lambda _: float("nan"),
    "infinite": lambda _: float("-inf"),
    "text": lambda _: "good",
    "astray": lambda _: _raise(error("A631", "the loss is nan", hint="a lower rate")),
    "no memory": lambda _: _raise(MemoryError()),
    "crash": lambda _: _raise(ValueError("two\nlines")),
    "no file": lambda _: _raise(FileNotFoundError(errno.ENOENT, "No such file", "absent")),
    "full disk": lambda _: _raise(OSError(errno.ENOSPC, "No space left on device")),
    "cannot write": lambda _: _raise(error("A602", "cannot write x: No space left on device")),
    "no device": lambda _: _raise(error("A630", "there is no cuda here")),
    "interrupt": lambda _: _raise(KeyboardInterrupt()),
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda _: ctypes.string_at(0),
    "exit": lambda _: os._exit(3),
    "first time": _first_time,
    "full for now": _full_for_now,
    "wait": _wait,
    "gpu": lambda _: float(os.environ["CUDA_VISIBLE_DEVICES"] in ("0", "1")),
}


@dataclass(frozen=True)
class Trial:
    """Scores a half, or does what its name says."""

    what: str

    @property
    def inherits(self) -> bool:
        return False

    def record(self) -> Mapping[str, Any]:
        return asdict(self)

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        with (folder / "times").open("a") as file:
            file.write("x")
        if self.what == "nothing":
            return Evaluated({"accuracy": 0.5})
        if self.what == "no JSON":
            return Evaluated({"score": 0.5}, history=({"x": object()},))
        if self.what == "lost line":
            return Evaluated({"score": 0.5}, history=({"loss": float("nan"), "at": [1, 2.0]},))
        return Evaluated({"score": ACTS[self.what](folder)})


@dataclass(frozen=True)
class Trials:
    """Does what its seed stands for; the later ones score better."""

    acts: tuple[str, ...]

    @property
    def inherits(self) -> bool:
        return False

    def record(self) -> Mapping[str, Any]:
        return asdict(self)

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        found = ACTS[self.acts[seed]](folder)
        if found == 0.5:
            found = (seed + 1) / 16
        return Evaluated({"score": found, "accuracy": found}, history=({"epoch": 1},))


def job(root: Path, number: int, evaluator: Any, **how: Any) -> Job:
    """A job on images of noise, with a folder of its own."""
    file, images = root / "tiny.arch", root / "data.npz"
    if not file.exists():
        file.write_text(TEXT, "utf-8")
        x = np.random.default_rng(0).standard_normal((60, 1, 4, 4)).astype(np.float32)
        np.savez(images, x=x, y=np.arange(60) % 3)
    folder = root / "work" / f"{number:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    data = DataRef(str(images), 0, load_data(str(images)).sha256)
    words = {"network": file, "data": data, "seed": 0, "device": "cpu", **how}
    return Job(number=number, key=f"key {number}", evaluator=evaluator, folder=folder, **words)


def main(root: Path) -> None:
    with Pool(2) as pool:
        pool.run([job(root, n, Trial("wait")) for n in range(3)], print)


SCRIPT = Path(sys.argv[0]).name == Path(__file__).name and len(sys.argv) > 1
if SCRIPT and (__name__ == "__main__" or "guarded" not in sys.argv):
    main(Path(sys.argv[1]))
