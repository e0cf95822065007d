"""One evaluation: what is asked for, and doing it. Jobs and results pass through files.

Importing this module needs no torch; :func:`perform` uses it where it is installed.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from archir.api import load
from archir.diag import ArchirError, error
from archir.files import writing
from archir.search.parts import Evaluated, Evaluator
from archir.train.data import Dataset, load_data

DONE, RESULT, KEPT = "done.arch", "result.json", "kept"
"""What an evaluation leaves in its folder: the network, where it has changed, the scores, and a
folder of files that its evaluator wants to be kept with the member (a policy, say)."""

_DISK = {"A602", "A691", "A692"}
_LACKING = {"A503", "A622", "A630", "A780", "A781", "A782", "A783"}
"""A backend, a package, a device or a Ray that is not there: no network would do better."""
_REFUSED = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.ENFILE,
    errno.EMFILE,
}
"""What the system says of its own state, whatever the network."""


@dataclass(frozen=True)
class DataRef:
    """A data set by what it is loaded with, and the hash that it has to have."""

    name: str
    seed: int
    sha256: str
    size: tuple[int, ...] | None = None
    """The shape ``[C, H, W]`` of images in folders."""


@dataclass(frozen=True)
class Job:
    """A network that is to be scored."""

    number: int
    key: str
    """What the score depends on; a result that is there with the same key is kept."""
    evaluator: Evaluator
    network: Path
    """Its ``.arch`` file, with weights and certificate beside it where it has any."""
    data: DataRef
    seed: int
    folder: Path
    """The evaluation's own; it is there."""
    lineage: Path | None = None
    """The lineage folder that the networks of a search share."""
    device: str = "auto"
    threads: int = 1


def perform(job: Job, dataset: Dataset | None = None) -> None:
    """Score a network and write down what comes of it, ``result.json`` last.

    A network that fails is a result. What no network is to blame for is raised, so that the
    search ends and can be resumed.

    Args:
        job: What is to be done. On a CPU its result depends on nothing but its fields.
        dataset: Its data, where that is at hand.

    Raises:
        ArchirError: A710, the data are not what they were; A602, A691 or A692, a file cannot be
            written; A503, A622 or A630, something is not installed or not there; what
            :func:`archir.train.data.load_data` raises.
        OSError: the disk is full, or the system refuses in another way.
    """
    if result_of(job) is not None:
        return
    if dataset is None:
        dataset = _data(job.data)
    begun, cpu = time.perf_counter(), time.process_time()
    failed = {"status": "failed", "scores": {}, "history": []}
    try:
        with few_threads(job.threads):
            network = load(job.network, lineage=job.lineage)
            found = job.evaluator.evaluate(network, dataset, job.seed, job.folder)
        outcome = {"status": "scored", "reason": "", **_plain(found)}
    except Exception as failure:
        if environmental(failure):
            raise
        outcome = {**failed, "reason": said(failure)}
    else:
        if found.network is not None:
            found.network.save(job.folder / DONE, force=True, lineage=job.lineage)
    spent = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    write_result(job, {**outcome, **spent})


def result_of(job: Job) -> Mapping[str, Any] | None:
    """The result that a job's folder holds; None where there is none of this job."""
    try:
        found = json.loads((job.folder / RESULT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == job.key else None


def write_result(job: Job, outcome: Mapping[str, Any]) -> None:
    """Put a job's result in place.

    Raises:
        ArchirError: A602.
    """
    text = json.dumps({"key": job.key, **outcome}, indent=1, allow_nan=False) + "\n"
    with writing(job.folder / RESULT) as temporary:
        temporary.write_text(text, "utf-8")


def placed(evaluator: Evaluator, device: str) -> Evaluator:
    """An evaluator that runs on a device, where it says on which."""
    if not hasattr(evaluator, "device"):
        return evaluator
    made: Evaluator = replace(evaluator, device=device)  # type: ignore[type-var]
    return made


def environmental(failure: BaseException) -> bool:
    """Whether an error is the fault of the machine or its setup, not of a network."""
    if isinstance(failure, ArchirError):
        return failure.diagnostics[0].code in _DISK | _LACKING
    return isinstance(failure, OSError) and failure.errno in _REFUSED


def said(failure: BaseException) -> str:
    """An error in one line, its code first."""
    if isinstance(failure, ArchirError):
        text = str(replace(failure.diagnostics[0], hint=""))
    elif isinstance(failure, MemoryError):
        text = "A690: the machine has no memory left for this"
    else:
        text = f"A711: {type(failure).__name__}: {failure}"
    plain = "".join(c if c.isprintable() else " " for c in text)  # a terminal obeys some others
    return " ".join(plain.split())[:500]


@functools.lru_cache(maxsize=1)
def _data(data: DataRef) -> Dataset:
    """The data set, which is kept from one job to the next."""
    found = load_data(data.name, data.seed, size=data.size)
    if found.sha256 != data.sha256:
        raise error(
            "A710",
            f"the data {data.name} have changed since the search began: their hash is "
            f"{found.sha256[:12]}, it was {data.sha256[:12]}",
        )
    return found


@contextmanager
def few_threads(count: int) -> Iterator[None]:
    """So many threads, for BLAS and for torch: the order of float sums depends on them."""
    try:
        import torch  # here: a score may need none
    except ImportError:
        with threadpool_limits(count):
            yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _plain(found: Evaluated) -> dict[str, Any]:
    """Scores and history as JSON values.

    Raises:
        ArchirError: A714, a score is not finite, no number, or missing.
    """
    scores: dict[str, float] = {}
    for name, value in found.scores.items():
        try:
            scores[name] = float(value)
        except (TypeError, ValueError):
            raise error("A714", f"`{name}` is {value!r:.80}, it should be a number") from None
        if not math.isfinite(scores[name]):
            raise error("A714", f"`{name}` is {scores[name]}, it should be finite")
    if "score" not in scores:
        named = ", ".join(f"`{name}`" for name in scores) or "nothing"
        raise error("A714", f"the evaluator gave {named} and no `score`")
    history = [_finite(line) for line in found.history]
    try:
        json.dumps(history)
    except (TypeError, ValueError) as reason:
        raise error("A714", f"the history holds what JSON has no words for: {reason}") from None
    return {"scores": scores, "history": history}


def _finite(value: Any) -> Any:
    """A value with null in place of floats that are no numbers."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
