"""How long networks take: each in a process of its own, in turn, and what can be said of it.

The processes are asked one after the other, A B A B, so that whatever else the machine does
meets all of them alike; the threads of one framework do not get in the way of another's, and
the memory that each takes is its own.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from archir import api
from archir.diag import BAD_INPUT, ArchirError, Diagnostic, error
from archir.proof.drift import random_feeds
from archir.target import backends

LEVEL = 0.95
SHORTEST = 0.002
"""Seconds that a sample takes at least: what is quicker is run several times for one."""
_SERVE = "from archir.measure import serve; serve()"


@dataclass(frozen=True)
class Job:
    """What is run, and how."""

    path: str
    batch: int = 1
    threads: int = 1
    device: str = "auto"
    compiled: bool = False
    params: Mapping[str, Any] | None = None
    weights: str | None = None
    init: int | None = None


@dataclass(frozen=True)
class Timed:
    """A network that is ready to run, and what runs it."""

    run: Callable[[], object]
    """One forward pass, finished when it returns."""
    engine: str
    """Such as ``torch 2.15.0`` or ``ONNX Runtime 1.31.0``."""
    where: str
    """The device or execution provider that runs it."""
    note: str = ""


@dataclass(frozen=True)
class Latency:
    """The seconds of one forward pass, sample by sample."""

    path: str
    engine: str
    where: str
    batch: int
    threads: int
    runs: int
    """Forward passes in one sample."""
    seconds: tuple[float, ...]
    memory: int | None
    """The largest memory of its process, libraries included; None where that is not known."""
    note: str = ""

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def interval(self) -> tuple[float, float]:
        """A confidence interval of the median, see :func:`interval`."""
        low, high, _ = interval(self.seconds)
        return low, high

    def ties(self, other: Latency) -> bool:
        """Whether the intervals overlap."""
        (a, b), (c, d) = self.interval, other.interval
        return a <= d and c <= b

    def to_json(self) -> dict[str, Any]:
        """What was measured as a JSON object."""
        low, high, level = interval(self.seconds)
        found = asdict(self) | {"seconds": list(self.seconds), "median": self.median}
        return found | {
            "low": low,
            "high": high,
            "level": level,
            "throughput": self.batch / self.median,
        }


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """A confidence interval of the median that assumes nothing of the distribution.

    Its ends are order statistics: the k-th smallest and the k-th largest value, with the largest
    k for which the median lies between them with at least this probability. Fewer than six
    values allow no 95 %; then the ends are the smallest and the largest value.

    Returns:
        Low end, high end, and the probability, 1 - 2 P(Bin(n, 1/2) < k).
    """
    ordered = sorted(values)
    n, k, outside = len(ordered), 1, 2.0 / 2 ** len(ordered)
    while k < (n + 1) // 2:
        more = outside + 2 * math.comb(n, k) / 2**n
        if more > 1 - level:
            break
        outside, k = more, k + 1
    return ordered[k - 1], ordered[n - k], 1 - min(outside, 1.0)


def measure(
    jobs: Sequence[Job],
    *,
    repeats: int = 30,
    warm_up: int = 5,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Latency]:
    """Time networks side by side.

    Args:
        jobs: What is run; all of them are loaded before the first is timed.
        repeats: Samples of each, taken in turn.
        warm_up: Forward passes of each that are not counted; at least one.
        progress: Told of samples done, samples in all, and the file of the last one.

    Raises:
        ArchirError: A563 (no file that can be run), A564 (it does not take such a batch), A565
            (its process ended), and what loading the file raises.
    """
    total, done = len(jobs) * (repeats + 1), 0
    with ExitStack() as stack:
        members = [stack.enter_context(_Member(job)) for job in jobs]
        for member in members:
            done += 1
            progress(done, total, Path(member.job.path).name)
            member.warm(max(1, warm_up))
        seconds: list[list[float]] = [[] for _ in jobs]
        for _ in range(repeats):
            for member, found in zip(members, seconds, strict=True):
                found.append(member.sample())
                done += 1
                progress(done, total, Path(member.job.path).name)
        pairs = zip(members, seconds, strict=True)
        return [member.latency(tuple(found)) for member, found in pairs]


class _Member:
    """The process of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.runs = 1
        self.about: dict[str, Any] = {}

    def __enter__(self) -> Self:
        threads = str(self.job.threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **dict.fromkeys(names, threads)},
            start_new_session=True,  # Ctrl-C ends it through this process alone
        )
        try:
            self.about = self._ask(asdict(self.job))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def warm(self, passes: int) -> None:
        """Run some passes, and find how many make a sample."""
        self._ask({"runs": passes})
        once = self._ask({"runs": 1})["seconds"]
        self.runs = max(1, math.ceil(SHORTEST / max(once, 1e-9)))

    def sample(self) -> float:
        """Seconds of one pass, the mean of a sample."""
        return float(self._ask({"runs": self.runs})["seconds"]) / self.runs

    def latency(self, seconds: tuple[float, ...]) -> Latency:
        """What was found."""
        memory = self._ask({"memory": True})["memory"]
        known = (self.about["engine"], self.about["where"], self.job.batch, self.job.threads)
        return Latency(
            self.job.path, *known, self.runs, seconds, memory, self.about["note"]
        )  # fmt: skip

    def _ask(self, what: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            status = self._process.wait()
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise error("A565", f"the process that ran {self.job.path} ended ({how})")
        found: dict[str, Any] = json.loads(line)
        if "diagnostics" in found:
            known = [Diagnostic(**entry) for entry in found["diagnostics"]]
            raise ArchirError(*known, status=found["status"])
        return found


# -- in the process


def serve() -> None:
    """Load the network that a line on stdin names, then run it as often as further lines say."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a framework prints goes elsewhere

    def answer(found: Mapping[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    with _told(answer):
        timed = _load(Job(**json.loads(sys.stdin.readline())))
        answer({"engine": timed.engine, "where": timed.where, "note": timed.note})
        for line in sys.stdin:
            wanted = json.loads(line)
            if "memory" in wanted:
                answer({"memory": peak_memory()})
                continue
            start = time.perf_counter()
            for _ in range(wanted["runs"]):
                timed.run()
            answer({"seconds": time.perf_counter() - start})


@contextmanager
def _told(answer: Callable[[Mapping[str, Any]], None]) -> Any:
    """Send on what goes wrong, as diagnostics."""
    try:
        yield
    except ArchirError as failure:
        found = failure
    except MemoryError:
        found = error("A690", "the machine has no memory left for this")
    except Exception as failure:
        text = " ".join(str(failure).split())[:300]
        found = error("A565", f"the network cannot be run: {type(failure).__name__}: {text}")
    else:
        return
    told = [
        {"code": d.code, "message": d.message, "hint": d.hint, "node": d.node}
        for d in found.diagnostics
    ]
    answer({"diagnostics": told, "status": found.status})


def _load(job: Job) -> Timed:
    suffix = Path(job.path).suffix
    if suffix == ".onnx":
        backend: Any = backends()["onnx"]
        found: Timed = backend.timed(Path(job.path), job)
        return found
    check_name(job.path)
    network = api.load(job.path, params=job.params, weights=job.weights)
    note = ""
    if job.init is not None or network.weights is None:
        network = network.init(job.init or 0)
        note = "initial weights"
    backend = backends()["torch"]
    feeds = random_feeds(network.graph, 0, job.batch)
    return backend.timed(network.graph, network.weights, feeds, job, note)  # type: ignore[no-any-return]


def check_name(path: str) -> None:
    """Refuse a file that nothing here runs.

    Raises:
        ArchirError: A563, its name ends neither in .arch nor in .onnx.
    """
    if Path(path).suffix not in (".arch", ".onnx"):
        message = f"{path} is neither a network's text nor an ONNX file"
        hint = "files end in .arch or .onnx"
        raise ArchirError(Diagnostic("A563", message, hint=hint), status=BAD_INPUT)


def peak_memory() -> int | None:
    """The most memory this process has taken, in bytes; None where the system does not say."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used) if sys.platform == "darwin" else int(used) * 1024
