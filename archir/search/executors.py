"""Where evaluations run: in this process, or in several others.

Importing this module needs no torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread, main_thread
from typing import NoReturn, Protocol, Self

from archir.diag import ArchirError, error
from archir.search.packing import pack, unpack
from archir.search.work import Job, perform, said, write_result
from archir.train.data import Dataset

Done = Callable[[Job], object]
"""Told of each job whose result is written."""

GRACE = 3.0
"""Seconds that a process has to leave no file half written before it is killed."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_READY = b"ready"


class Executor(Protocol):
    """Runs evaluations. A context: what it started is gone when it is left, however that is."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self, jobs: Iterable[Job], done: Done) -> None:
        """Perform jobs; returns when all have a result.

        Args:
            jobs: The jobs; the next one is asked for when there is room for it.
            done: Called as each finishes, in any order, in this process and thread.

        Raises:
            ArchirError: what is no fault of a network, see :func:`archir.search.work.perform`.
        """


class InProcess:
    """Runs one evaluation after the other, in this process."""

    def __init__(self, dataset: Dataset | None = None) -> None:
        """Keep the data, where they are loaded already."""
        self._dataset = dataset

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Iterable[Job], done: Done) -> None:
        for job in jobs:
            perform(job, self._dataset)
            done(job)


class Pool:
    """Runs evaluations in processes of their own, which stay for further jobs.

    Where a process comes to an end by itself, its job is tried once more when no other is under
    way (memory may have been short), and has failed if that ends its process too. The executors
    of ``concurrent.futures`` would give up all jobs, and do not say which one it was.
    """

    def __init__(self, workers: int) -> None:
        """Start nothing yet: there will be as many processes as jobs, at most ``workers``."""
        self._most = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(self._workers)

    def run(self, jobs: Iterable[Job], done: Done) -> None:
        """As of :class:`Executor`.

        Raises:
            ArchirError: A712, a process does not start, or the evaluator cannot be sent to one;
                those of :func:`archir.search.work.perform`.
        """
        waiting, again = iter(jobs), list[Job]()
        try:
            while True:
                while len(self._busy()) < self._most and (job := next(waiting, None)):
                    self._begin(job, alone=self._most == 1)
                if not self._busy():
                    if not again:
                        return
                    self._begin(again.pop(0), alone=True)
                for worker in self._heard():
                    self._settle(worker, again, done)
        except BaseException:
            self._end(self._workers)
            raise

    def _begin(self, job: Job, *, alone: bool) -> None:
        """Give a job to a process that has none, a new one where there is no such process."""
        self._end([w for w in self._workers if w.job is None and not w.process.is_alive()])
        worker = next((w for w in self._workers if w.job is None), None)
        if worker is None:
            worker = _Worker(job.threads)
            self._workers.append(worker)
        worker.begin(job, alone=alone)

    def _settle(self, worker: _Worker, again: list[Job], done: Done) -> None:
        """Take what a process has to say of its job."""
        heard = worker.hear()
        if heard == _READY:
            return
        job, worker.job = worker.job, None
        assert job is not None
        if heard is None:
            self._end([worker])
            if not worker.alone:
                again.append(job)
                return
            failed = {"status": "failed", "scores": {}, "history": []}
            spent = {"seconds": time.perf_counter() - worker.begun, "cpu_seconds": 0.0}
            write_result(job, {**failed, "reason": said(_ended(worker.process)), **spent})
        elif heard:
            raise pickle.loads(heard)
        done(job)

    def _busy(self) -> list[_Worker]:
        return [w for w in self._workers if w.job is not None]

    def _heard(self) -> list[_Worker]:
        """The processes that have something to say, or are gone; waits for the first."""
        busy = self._busy()
        found = wait([w.pipe for w in busy] + [w.process.sentinel for w in busy])
        return [w for w in busy if w.pipe in found or w.process.sentinel in found]

    def _end(self, workers: list[_Worker]) -> None:
        """End processes: asked at first, killed if they take long."""
        ending = list(workers)
        for worker in ending:
            worker.process.terminate()
        until = time.monotonic() + GRACE
        for worker in ending:
            worker.process.join(max(0.0, until - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
            self._workers.remove(worker)


class _Worker:
    """A process, and what it does."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there,), daemon=True)
        with surroundings(threads):
            self.process.start()
        there.close()
        self.job: Job | None = None
        self.alone = False
        self.begun = 0.0
        self._ready = False

    def begin(self, job: Job, *, alone: bool) -> None:
        """Send a job.

        Raises:
            ArchirError: A712, its evaluator cannot be sent.
        """
        packed = pack(job)
        self.job, self.alone, self.begun = job, alone, time.perf_counter()
        with contextlib.suppress(BrokenPipeError):  # it is gone, as will be heard
            self.pipe.send_bytes(packed)

    def hear(self) -> bytes | None:
        """What was sent: ready; nothing, the job is done; an error. None where it is gone.

        Raises:
            ArchirError: A712, it is gone before it was ready.
        """
        try:
            heard = self.pipe.recv_bytes() if self.pipe.poll() else None
        except (EOFError, OSError):
            heard = None
        if heard is None:
            self.process.join(GRACE)
            if not self._ready:
                hint = "in a script, a search begins below `if __name__ == '__main__':`"
                raise error("A712", f"{_how(self.process)} before it had begun", hint=hint)
        self._ready = True
        return heard


def _ended(process: multiprocessing.process.BaseProcess) -> ArchirError:
    return error("A712", _how(process))


def _how(process: multiprocessing.process.BaseProcess) -> str:
    status = process.exitcode
    if status is None or status >= 0:
        return f"its process ended: status {status}"
    with contextlib.suppress(ValueError):
        return f"its process ended: signal {-status} ({signal.Signals(-status).name})"
    return f"its process ended: signal {-status}"


@contextlib.contextmanager
def surroundings(threads: int) -> Iterator[None]:
    """What a new process finds: its number of threads, and Ctrl-C held back until it ignores it.

    BLAS and OpenMP read the environment when they are loaded, which is before any code of ours.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    resource_tracker.ensure_running()  # its start would let the signal through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


# -- in the process


def _serve(pipe: Connection) -> None:
    """Perform the jobs that come, until there is nobody to send any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this decides
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    Thread(target=_end_with_parent, daemon=True).start()
    # where it closes the pipe with something unread, that is no end but a reset
    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send_bytes(_READY)
        while True:
            pipe.send_bytes(_performed(pipe.recv_bytes()))


def _performed(packed: bytes) -> bytes:
    """Do a job; empty, or the error that is to be raised where the job comes from."""
    try:
        perform(unpack(packed))
    except (ArchirError, OSError) as failure:
        return pickle.dumps(failure)
    except Exception as failure:
        return pickle.dumps(RuntimeError(f"{type(failure).__name__}: {failure}"))
    return b""


def stop(number: int, _: object) -> NoReturn:
    """End this process, as a handler of a signal."""
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    """End this process when the one that started it has come to an end, however it did."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    # to that thread: another one would not wake it
    signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
