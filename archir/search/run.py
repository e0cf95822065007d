"""A whole search: its folder, its strategy, and the networks that it ends with.

Importing this module needs no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from archir.api import Network
from archir.diag import ArchirError, error
from archir.files import cannot_write, writing
from archir.proof.certificate import state_of
from archir.search.engine import LINEAGE, MEMBERS, WORK, ProgressCallback, Search
from archir.search.executors import Executor, InProcess
from archir.search.journal import JOURNAL, TIMINGS, VERSION, Ledger
from archir.search.limits import Limits
from archir.search.parts import Member, Outcome, Strategy, front
from archir.search.work import DataRef, environmental, few_threads
from archir.train.data import Dataset

SEARCH, RESULT, FRONT, LOCK = "search.json", "result.json", "front", ".lock"
"""Names in a run folder."""

_FILE = re.compile(r"(.+\.(?:py|rule))(?::[\w.]+)?")

Existing = Literal["refuse", "replace", "resume"]


@dataclass(frozen=True)
class Result:
    """How a search ended."""

    folder: Path
    best: Member
    front: tuple[Member, ...]
    members: tuple[Member, ...]
    facts: Mapping[str, Any]
    """What ``result.json`` holds."""
    seconds: float


def run_search(
    strategy: Strategy,
    *,
    start: Network | None,
    dataset: Dataset,
    data: DataRef,
    run_dir: Path,
    seed: int = 0,
    limits: Limits | None = None,
    cost: str = "macs",
    executor: Executor | None = None,
    device: str = "auto",
    threads: int = 1,
    existing: Existing = "refuse",
    settings: Mapping[str, Any] | None = None,
    progress: ProgressCallback = lambda _: None,
) -> Result:
    """Search, or go on with a search that was interrupted.

    Args:
        strategy: What proposes networks.
        start: The network that it starts from, where it wants one.
        dataset: The validation split selects; the test split is looked at once, at the end.
        data: How other processes load the same data.
        run_dir: The run folder; made if missing.
        seed: Of everything that is drawn.
        limits: What no candidate may exceed, and what the whole search may take.
        cost: What the Pareto front sets against the score: ``macs``, ``params`` or ``latency``.
        executor: Where evaluations run; here, one after the other, by default.
        device: What they run on.
        threads: Of an evaluation; float sums depend on it, so it belongs to what a search is.
        existing: What to do with a search that the folder holds.
        settings: What the search was asked for, as JSON values, kept for whoever resumes it.
        progress: Told how it goes.

    Raises:
        ArchirError: A602, a file cannot be written; A603, the folder holds a search; A700 or A701,
            its journal is damaged or does not fit; A702, it holds another search; A704, another
            process is at work there; A705, nothing was scored; those of the strategy.
    """
    limits = limits or Limits()
    facts = {
        "event": "search",
        "version": VERSION,
        "strategy": strategy.name,
        "settings": strategy.record(),
        "start": None if start is None else _state(start),
        "data": {"name": dataset.name, "sha256": dataset.sha256, "images": len(dataset.train)},
        "seed": seed,
        "limits": asdict(limits),
        "cost": cost,
        "device": _kind(device),
        "threads": threads,
    }
    facts = json.loads(json.dumps(facts))
    if code := _code([facts["settings"], settings]):
        facts["code"] = code
    # statistics for rules and the test images are reckoned here, with as many threads
    with _alone(run_dir), few_threads(threads), executor or InProcess(dataset) as runner:
        if not may_resume(run_dir, facts, existing):
            _begin(run_dir, facts, settings or {}, start)
        for left in run_dir.rglob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        ledger = Ledger(run_dir)
        try:
            ledger.put(facts)
            (run_dir / MEMBERS).mkdir(exist_ok=True)
            search = Search(
                strategy.name,
                start=start,
                dataset=dataset,
                data=data,
                seed=seed,
                limits=limits,
                folder=run_dir,
                ledger=ledger,
                executor=runner,
                device=device,
                threads=threads,
                cost=cost,
                expected=strategy.expected(),
                progress=progress,
            )
            try:
                return _finish(search, strategy.run(search), ledger, device)
            except ArchirError as reason:
                if not environmental(reason) and all(m.status != "scored" for m in search.members):
                    (run_dir / SEARCH).unlink(missing_ok=True)  # there is nothing to go on with
                raise
        finally:
            ledger.close()


def _code(settings: Any) -> dict[str, str]:
    """The user's own files that settings name (strategies, evaluators, rules), by their sha256."""
    if isinstance(settings, Mapping):
        return _code(list(settings.values()))
    if isinstance(settings, list | tuple):
        return {name: digest for entry in settings for name, digest in _code(entry).items()}
    named = _FILE.fullmatch(settings) if isinstance(settings, str) else None
    if named is None or not Path(named[1]).is_file():
        return {}
    return {named[1]: hashlib.sha256(Path(named[1]).read_bytes()).hexdigest()}


def _state(network: Network) -> dict[str, Any]:
    found = state_of(network.text, network.graph, network.weights)
    return {"name": network.graph.name, "graph": found.graph, "weights": found.weights}


def _kind(device: str) -> str:
    """The kind of a device: results agree to the bit on a CPU only."""
    if device == "cpu":
        return device
    from archir.train.device import resolve  # noqa: PLC0415 - it imports torch

    return str(resolve(device).type)


def may_resume(run_dir: Path, facts: Mapping[str, Any], existing: Existing) -> bool:
    """Whether a folder holds this search, to be gone on with.

    Raises:
        ArchirError: A603, it holds a search; A702, another one than this.
    """
    file = run_dir / SEARCH
    if not file.exists() or existing == "replace":
        return False
    if existing == "refuse":
        raise error(
            "A603", f"{run_dir} holds a search", hint="--resume continues it, --force starts anew"
        )
    held = read_search(run_dir)["facts"]
    changed = [k for k in facts if held.get(k) != facts[k]]
    if changed:
        told = "; ".join(_changed(k, held.get(k), facts[k]) for k in changed)
        raise error(
            "A702",
            f"{run_dir} holds another search: {told}",
            hint="resume with what it was started with, or take another folder",
        )
    return True


def _changed(name: str, old: Any, new: Any) -> str:
    """How an entry differs, down to the values that do."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        return ", ".join(_changed(f"{name}.{k}", old.get(k), new.get(k)) for k in keys)
    short = [json.dumps(value) for value in (old, new)]
    was, now = (text if len(text) <= 40 else f"{text[:37]}..." for text in short)
    return f"{name} was {was}, is {now}"


def read_search(run_dir: Path) -> dict[str, Any]:
    """What a run folder says of its search: ``settings`` and ``facts``.

    Raises:
        ArchirError: A703, the folder holds no search, or its file is damaged.
    """
    file = run_dir / SEARCH
    try:
        found = json.loads(file.read_text("utf-8"))
        if not isinstance(found["facts"], dict) or not isinstance(found["settings"], dict):
            raise TypeError  # noqa: TRY301 - the same as any other damage
    except FileNotFoundError:
        raise error(
            "A703", f"{run_dir} holds no search", hint="`archir search ... --run DIR` makes one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise error("A703", f"{file} is damaged") from None
    return dict(found)


def _begin(
    run_dir: Path, facts: Mapping[str, Any], settings: Mapping[str, Any], start: Network | None
) -> None:
    """Clear a run folder of what a search left there, and write down what the new one is."""
    try:
        (run_dir / SEARCH).unlink(missing_ok=True)  # first: without it there is nothing to resume
        for name in (JOURNAL, TIMINGS, RESULT):
            (run_dir / name).unlink(missing_ok=True)
        for name in (MEMBERS, WORK, FRONT):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        for old in {
            f for name in ("best.*", "start.*", "*.safetensors") for f in run_dir.glob(name)
        }:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    except OSError as reason:
        raise cannot_write(run_dir, reason) from reason
    if start is not None:
        start.save(run_dir / "start.arch", force=True)
    _write_json(run_dir / SEARCH, {"settings": settings, "facts": facts})


def _write_json(path: Path, content: Any) -> None:
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Make sure that no other process searches in this folder, which is made if missing.

    Raises:
        ArchirError: A602, it cannot be made; A704.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as reason:
        raise cannot_write(run_dir, reason) from reason
    try:
        with contextlib.suppress(ImportError):  # Windows has no such locks
            import fcntl  # noqa: PLC0415

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise error("A704", f"another process searches in {run_dir}") from None
        yield
    finally:
        os.close(handle)


def _finish(search: Search, outcome: Outcome, ledger: Ledger, device: str) -> Result:
    """Write the front, the best network and what the test set says of it."""
    folder, best = search.folder, outcome.best
    if best.status != "scored":
        raise error("A705", "no network was scored", hint=_why(search.members))
    ahead = front(competing(search, outcome), search.cost)
    network = search.network(best)
    facts: dict[str, Any] = {
        "strategy": search.strategy,
        "best": best.number,
        "front": [m.number for m in ahead],
        "members": len(search.members),
        "scores": dict(best.scores),
        "params": best.params,
        "macs": best.macs,
        "ensemble": [m.number for m in outcome.ensemble],
        "test": None,
        "onnx": None,
    }
    if network.weights is not None:
        facts["test"] = _tested(search, network, outcome.ensemble, device)
    end = {"event": "end", **{k: facts[k] for k in ("best", "front", "ensemble", "test")}}
    ledger.check(end)  # before anything of a search that ended otherwise is replaced
    shutil.rmtree(folder / FRONT, ignore_errors=True)
    (folder / FRONT).mkdir()
    for member in ahead:
        target = folder / FRONT / f"{member.number:04d}.arch"
        search.network(member).save(target, force=True, lineage=folder / FRONT / LINEAGE)
    network.save(folder / "best.arch", force=True)
    for name, found in outcome.files.items():
        with writing(folder / name) as temporary:
            shutil.copyfile(found, temporary)
    if network.weights is not None:
        facts["onnx"] = _exported(network, folder / "best.onnx")
    _write_json(folder / RESULT, facts)
    ledger.put(end)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return Result(folder, best, tuple(ahead), tuple(search.members), facts, search.elapsed)


def competing(search: Search, outcome: Outcome) -> list[Member]:
    """The members whose scores can be compared."""
    stages = outcome.stages or tuple(
        name for name, record in search.stages.items() if not record.get("join")
    )
    return [m for m in search.members if m.stage in stages]


def _why(members: Sequence[Member]) -> str:
    return next((f"member {m.number}: {m.reason}" for m in members if m.reason), "")


def _tested(
    search: Search, best: Network, ensemble: Sequence[Member], device: str
) -> dict[str, Any]:
    """What the test set says of the best network, and of the ensemble."""
    from archir.train.evaluate import Evaluation, evaluate  # noqa: PLC0415 - it imports torch

    def told(found: Evaluation) -> dict[str, Any]:
        counts = {"correct": found.correct, "count": found.count}
        return {"accuracy": found.accuracy, **counts, "loss": found.loss}

    images = search.dataset
    said = {"best": told(evaluate(best.graph, dict(best.weights or {}), images, device=device))}
    if ensemble:
        from archir.train.evaluate import evaluate_together  # noqa: PLC0415

        networks = [search.network(m) for m in ensemble]
        said["ensemble"] = told(evaluate_together(networks, images, device=device))
    return said


def _exported(network: Network, path: Path) -> dict[str, Any]:
    """Export through the gate; where that cannot be done, why."""
    try:
        network.export(path, force=True)
    except ArchirError as reason:
        if environmental(reason) and reason.diagnostics[0].code != "A503":  # onnx is no must
            raise
        return {"error": " ".join(str(reason.diagnostics[0]).split())}
    return {"file": path.name}
