"""Evaluations on Ray: on this machine, or on those of a cluster.

Nothing of Ray is in this process: a process of its own (:mod:`archir.search.broker`) speaks with
it, hands on parcels and answers, and ends with this one. Ray would print here what it has to say,
and would end this process with the cluster.

Importing this module needs neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from archir.diag import UNSUPPORTED, error
from archir.search.broker import LOG, PATIENCE, TRIES, Terms, remove, serve
from archir.search.executors import Done, surroundings
from archir.search.parcels import take, versions_here, wrap
from archir.search.work import Job, placed, result_of, said, write_result
from archir.train.data import Dataset
from archir.train.images import StoredImages

_BEGINS = 180.0
"""Seconds in which Ray has to be reached, or started."""


class Ray:
    """Runs evaluations as tasks of Ray, wherever it has room for them.

    An evaluation whose worker is lost is begun again elsewhere, and has failed when it has ended
    three. On a CPU results are those of any other executor, byte for byte.
    """

    def __init__(
        self,
        dataset: Dataset | None = None,
        *,
        address: str | None = None,
        workers: int | None = None,
        threads: int = 1,
        device: str = "auto",
        gpus: float = 1.0,
    ) -> None:
        """Start nothing yet.

        Args:
            dataset: The data, which are sent to each machine once. Images that stay in a file
                (folders of images) are not: workers load them by their name, as without this.
            address: ``HOST:PORT`` of a Ray of which this machine is a part, or ``auto`` for the
                one that runs here; without it a Ray of its own is started, on this machine.
            workers: Evaluations at a time; as many as there is room for without it.
            threads: CPUs of each.
            device: What they run on: ``auto``, ``cpu`` or ``cuda``.
            gpus: GPUs of each where that is not the CPU: a part of one, or one.

        Raises:
            ArchirError: A780, Ray is not installed; A784, a device or an address that Ray cannot
                have.
        """
        if importlib.util.find_spec("ray") is None:
            told = "evaluations on Ray need ray, which is not installed"
            raise error("A780", told, hint="pip install 'archir[cluster]'", status=UNSUPPORTED)
        if device not in ("auto", "cpu", "cuda"):
            hint = "`cuda`: Ray chooses which one"
            raise error("A784", f"the device {device} names one GPU of a machine", hint=hint)
        if address not in (None, "auto") and not re.fullmatch(r"[^/]+:\d{1,5}", str(address)):
            hint = "HOST:PORT, such as 10.0.0.1:6379, or auto for the Ray on this machine"
            raise error("A784", f"{address} is no address of a Ray", hint=hint)
        sends = dataset is not None and not any(
            isinstance(split.x, StoredImages)
            for split in (dataset.train, dataset.validation, dataset.test)
        )
        self._dataset = dataset if sends else None
        self._address, self._most, self._threads = address, workers, threads
        self._device, self._gpus = device, gpus
        self._room = 0
        self._broker: _Broker | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, jobs: Iterable[Job], done: Done) -> None:
        """As of :class:`archir.search.executors.Executor`.

        Raises:
            ArchirError: A712, the evaluator cannot be sent; A781, there is no Ray, or it is gone;
                A782, other versions there; A783, no machine is large enough; those of
                :func:`archir.search.work.perform`.
        """
        broker = self._broker or self._start()
        waiting, sent = iter(jobs), dict[int, Job]()
        try:
            while True:
                while len(sent) < self._room and (job := next(waiting, None)):
                    if result_of(job) is not None:
                        done(job)
                        continue
                    on_device = self._on_device(job)
                    broker.send((job.number, wrap(on_device, with_data=self._dataset is not None)))
                    sent[job.number] = job
                if not sent:
                    return
                number, answer, seconds, self._room = broker.hear()
                job = sent.pop(number)
                _settle(job, answer, seconds)
                done(job)
        except BaseException:
            self._end()
            raise

    def _start(self) -> _Broker:
        """Start the broker; returns once it has reached Ray."""
        if self._device == "auto":
            from archir.train.device import resolve  # noqa: PLC0415 - it imports torch

            self._device = resolve("auto").type
        terms = Terms(
            address=self._address,
            most=self._most,
            cores=self._threads * (self._most or max(1, _cores() // self._threads)),
            threads=self._threads,
            gpus=0.0 if self._device == "cpu" else self._gpus,
            paths=tuple(dict.fromkeys(str(Path(path).absolute()) for path in sys.path)),
            versions=dict(versions_here()),
            folder=tempfile.mkdtemp(prefix="archir-ray-", dir=_short()),
        )
        self._broker = _Broker(terms, self._dataset)
        try:
            self._room = self._broker.hear(_BEGINS)
        except BaseException:
            self._end()
            raise
        return self._broker

    def _on_device(self, job: Job) -> Job:
        """A job whose device is known: Ray shows a worker no GPU that it has not asked for."""
        return replace(job, device=self._device, evaluator=placed(job.evaluator, self._device))

    def _end(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.end()


class _Broker:
    """The process that speaks with Ray, as it is seen from here."""

    def __init__(self, terms: Terms, dataset: Dataset | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=serve, args=(there, terms), daemon=True)
        self._folder = Path(terms.folder)
        with surroundings(terms.threads):
            self._process.start()
        there.close()
        self.send((dataset,))

    def send(self, what: object) -> None:
        with contextlib.suppress(ConnectionError):  # it is gone, as will be heard
            self._pipe.send_bytes(pickle.dumps(what, protocol=5))

    def hear(self, within: float | None = None) -> Any:
        """What it says, within so many seconds.

        Raises:
            ArchirError: A781, it is gone, as it is where a part of Ray on this machine ends; what
                it says.
        """
        if within is not None and not self._pipe.poll(within):
            raise error("A781", f"Ray did not answer in {within:g} seconds{self._last_words()}")
        try:
            heard = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise error("A781", f"the connection to Ray was lost{self._last_words()}") from None
        if isinstance(heard, BaseException):
            raise heard
        return heard

    def _last_words(self) -> str:
        """The end of what Ray said, where there is any."""
        with contextlib.suppress(OSError):
            lines = (self._folder / LOG).read_text("utf-8", errors="replace").splitlines()
            said = [" ".join(line.split()) for line in lines if line.strip()]
            return f": {said[-1][:300]}" if said else ""
        return ""

    def end(self) -> None:
        """End it, and with it a Ray of its own."""
        self._process.terminate()
        self._process.join(PATIENCE)
        self._process.kill()
        self._process.join()
        self._pipe.close()
        remove(self._folder)


def _settle(job: Job, answer: bytes | None, seconds: float) -> None:
    """Put a result in place; where every worker was lost, that it failed."""
    if answer is not None:
        take(job, answer)
        return
    failed = {"status": "failed", "scores": {}, "history": []}
    lost = error("A712", f"its process ended, {TRIES} times")
    write_result(job, {**failed, "reason": said(lost), "seconds": seconds, "cpu_seconds": 0.0})


def _cores() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _short() -> str:
    """A folder for temporary files whose path leaves room: Ray's sockets have 107 characters."""
    found = tempfile.gettempdir()
    return found if len(found) <= 24 else "/tmp"
