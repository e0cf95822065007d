"""Tasks done in several processes, which are gone when the work is, however it ends.

Each process is a copy of this one (a fork), so tasks may speak of anything; what comes of them
is sent back. Where processes cannot be copied safely, or one is enough, all is done here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, Self, TypeVar

from threadpoolctl import threadpool_limits

from archir.diag import ArchirError, Diagnostic

T = TypeVar("T")
R = TypeVar("R")
Begin = Callable[[], AbstractContextManager[Callable[[T], R]]]
"""Gives what does a task; entered once in each process."""


def cores() -> int:
    """How many processes can work at once."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spread(tasks: Sequence[T], begin: Begin[T, R], jobs: int) -> Generator[tuple[int, R]]:
    """Do tasks in up to so many processes; what comes of each, with its number, as it comes.

    An error in a task ends all of them, and is raised here.

    Raises:
        ArchirError: A414, a process came to an end by itself; or what a task raises.
    """
    count = min(jobs, len(tasks))
    if count <= 1 or sys.platform != "linux":
        with begin() as work:
            for number, task in enumerate(tasks):
                yield number, work(task)
        return
    with _Team(begin, count) as team:
        yield from team.work(tasks)


class _Team:
    """The processes, and a pipe to each."""

    def __init__(self, begin: Begin[Any, Any], count: int) -> None:
        context = multiprocessing.get_context("fork")
        self._members: dict[Connection, multiprocessing.process.BaseProcess] = {}
        for _ in range(count):
            here, there = context.Pipe()
            member = context.Process(target=_serve, args=(there, begin, os.getpid()), daemon=True)
            member.start()
            there.close()
            self._members[here] = member

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members.values():
            member.terminate()
        for pipe, member in self._members.items():
            member.join()
            pipe.close()

    def work(self, tasks: Sequence[Any]) -> Generator[tuple[int, Any]]:
        """Each process gets the next task when it is done with one."""
        left = iter(enumerate(tasks))
        busy: list[Connection] = []
        for pipe in self._members:
            pipe.send(next(left))
            busy.append(pipe)
        while busy:
            ready = wait(busy)
            for pipe in [member for member in busy if member in ready]:
                try:
                    number, result, failure = pipe.recv()
                except EOFError:
                    text = "a process that proves came to an end by itself"
                    raise ArchirError(Diagnostic("A414", text)) from None
                if failure is not None:
                    _raise(*failure)
                following = next(left, None)
                if following is None:
                    busy.remove(pipe)
                else:
                    pipe.send(following)
                yield number, result


def _raise(diagnostics: tuple[Diagnostic, ...], status: int, text: str) -> NoReturn:
    if diagnostics:
        raise ArchirError(*diagnostics, status=status)
    raise RuntimeError(f"in a process of the prover:\n{text}")


def _serve(pipe: Connection, begin: Begin[Any, Any], parent: int) -> None:
    """What a process does: tasks, until it is told to stop or nobody is there to tell it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started this decides
    signal.signal(signal.SIGTERM, _stop)
    with threadpool_limits(1, user_api="blas"), begin() as work:
        while os.getppid() == parent:
            if not pipe.poll(1.0):
                continue
            number, task = pipe.recv()
            answer: tuple[int, Any, tuple[tuple[Diagnostic, ...], int, str] | None]
            try:
                answer = (number, work(task), None)
            except ArchirError as failure:
                answer = (number, None, (failure.diagnostics, failure.status, ""))
            except Exception:
                answer = (number, None, ((), 0, traceback.format_exc()))
            pipe.send(answer)


def _stop(signum: int, frame: object) -> NoReturn:
    raise SystemExit(128 + signum)
