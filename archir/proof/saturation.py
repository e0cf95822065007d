"""Equality saturation: goals and laws go to a child process, which knows egglog.

The child gets a budget of steps, of e-graph size and of seconds, and is killed when the last
runs out. A goal is proved when its two terms fall into one e-class; what is not proved within
the budget is not known.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, Any, Self, get_args

from archir.diag import UNSUPPORTED, ArchirError, Diagnostic
from archir.ops.record import Mode, OpSet
from archir.proof.axioms import Axioms, Lawful
from archir.proof.opaque import hidden
from archir.proof.spelling import Lawbook, read
from archir.proof.terms import Formula, Goal, replaced


@dataclass(frozen=True, slots=True)
class Budget:
    """How far a proof may go: saturation steps, tuples of the e-graph, seconds for all goals."""

    steps: int = 30
    size: int = 20_000
    seconds: float = 60.0


@dataclass(frozen=True)
class Proof:
    """What was found for a goal: an irreducible set of axioms, and members of the e-class."""

    goal: str
    proved: bool
    axioms: tuple[str, ...] = ()
    members: tuple[Formula, ...] = ()
    steps: int = 0
    size: int = 0
    """How many tuples the e-graph held at the end."""
    seconds: float = 0.0


def available() -> bool:
    """Whether egglog is installed."""
    return importlib.util.find_spec("egglog") is not None


def version() -> str:
    """The version of egglog."""
    return importlib.metadata.version("egglog")


def missing() -> ArchirError:
    """The error that says how to get egglog (exit status 3)."""
    text = "proving a rule needs egglog, which is not installed"
    hint = "pip install 'archir[proof]'; the rules that archir ships carry their verdicts"
    return ArchirError(Diagnostic("A413", text, hint=hint), status=UNSUPPORTED)


class Prover:
    """Proves goals in a child process, which it keeps, and remembers what it has proved.

    A context manager: the child is gone when it ends.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._known: dict[str, Proof] = {}
        self._books: dict[tuple[int, int, Mode], tuple[Axioms, OpSet, Lawbook]] = {}
        self.audited: set[Any] = set()
        """What of the proofs has been audited."""
        self.kept: dict[Any, Any] = {}
        """What came of goals that belong to no rule."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child; another is started when there is a goal."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def book(self, axioms: Axioms, ops: OpSet, mode: Mode) -> Lawbook:
        """The laws that hold in a mode, for some operators."""
        key = (id(axioms), id(ops), mode)
        if key not in self._books:
            laws = axioms.laws(ops)
            for held in get_args(Mode):
                book = Lawbook([law for law in laws if held in law.modes])
                # What the key stands for is kept, so that it goes on standing for it.
                self._books[id(axioms), id(ops), held] = (axioms, ops, book)
        return self._books[key][2]

    def prove(
        self,
        goals: Sequence[Goal],
        book: Lawbook,
        budget: Budget,
        *,
        minimal: bool = True,
        members: int = 24,
        narrow: bool = False,
    ) -> dict[str, Proof]:
        """Try all goals. Those it did not get to are not in the answer.

        A goal that stood before the same laws earlier is not tried again. If ``narrow``, only the
        laws are used that speak of a goal's signatures.

        Raises:
            ArchirError: A413, egglog is not installed (exit status 3); A414, the child failed.
        """
        if not goals:
            return {}
        if not available():
            raise missing()
        limits = {"steps": budget.steps, "size": budget.size, "members": members}
        limits["minimal"] = minimal
        plain = {goal.name: hidden(goal) for goal in goals}
        jobs = [book.job(goal, narrow=narrow) for goal, _ in plain.values()]
        keys = {j["name"]: f"{j['setup']}{j['laws']}{limits}" for j in jobs}
        first = {keys[j["name"]]: j for j in reversed(jobs) if keys[j["name"]] not in self._known}
        if first:
            asked = {**limits, "goals": list(first.values())}
            for a in self._ask(asked, budget.seconds):
                self._known[keys[a["name"]]] = Proof(
                    a["name"],
                    a["proved"],
                    tuple(a["axioms"]),
                    tuple(read(m) for m in a["members"]),
                    a["steps"],
                    a["size"],
                    a["seconds"],
                )
        found: dict[str, Proof] = {}
        for name, key in keys.items():
            if key in self._known:
                proof = self._known[key]
                terms = tuple(replaced(m, plain[name][1]) for m in proof.members)
                found[name] = replace(proof, goal=name, members=terms)
        return found

    def _ask(self, job: dict[str, Any], seconds: float) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + seconds
        if self._child is None:
            self._child = _Child()
        try:
            self._child.tell(json.dumps(job))
            for line in self._child.lines(end):
                yield json.loads(line)
        except BaseException:
            self.close()
            raise
        if self._child.late:
            self.close()


def prove_goals(
    goals: Sequence[Goal], laws: Sequence[Lawful], budget: Budget, *, minimal: bool = True
) -> dict[str, Proof]:
    """Try all goals, in a child process that ends with them.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A414, the child failed.
    """
    with Prover() as prover:
        return prover.prove(goals, Lawbook(laws), budget, minimal=minimal)


class _Child:
    """The process, and what it says."""

    def __init__(self) -> None:
        self._trouble: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by kill)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "archir.proof.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._trouble,
        )
        self._said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.late = False
        """Whether it was too slow with its last job: then it still works at it."""

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line)
        self._said.put(b"")

    def tell(self, job: str) -> None:
        """Give it a job."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(job.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None

    def lines(self, end: float) -> Iterator[str]:
        """Its answers to a job, as long as they come in time."""
        while True:
            try:
                line = self._said.get(timeout=max(end - time.monotonic(), 0))
            except queue.Empty:
                self.late = True
                return
            if not line:
                raise self._failed()
            if line == b"\n":
                return
            yield line.decode()

    def _failed(self) -> ArchirError:
        self._process.wait()
        self._trouble.seek(0)
        text = self._trouble.read().decode(errors="replace")
        last = text.strip().splitlines()[-1:] or ["no message"]
        return ArchirError(Diagnostic("A414", f"the prover's process failed: {last[0][:300]}"))

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for stream in (self._process.stdin, self._process.stdout, self._trouble):
            if stream is not None:
                with suppress(BrokenPipeError):  # what was not sent yet is not wanted any more
                    stream.close()
