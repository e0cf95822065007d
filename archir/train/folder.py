"""A run folder: which run it holds, and whether another may use it.

Importing this module needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from archir.diag import ArchirError, error
from archir.files import cannot_write, writing
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.proof.certificate import weights_hash
from archir.train.data import Dataset
from archir.train.logs import ANEW, BEST, EVENTS, LAST, RUN, kept_in
from archir.train.recipe import TrainConfig
from archir.weights.store import Weights

RUN_VERSION = 1

Existing = Literal["refuse", "replace", "resume"]


_ENDS = ("A602", "A631", "A633", "A673")
"""Errors in the midst of a run: a full disk, a loss that is no number, no memory, a user's loss."""


def facts_of(
    graph: Graph,
    weights: Weights,
    dataset: Dataset,
    config: TrainConfig,
    grow: Any,
    teacher: tuple[Graph, Weights] | None,
) -> dict[str, Any]:
    """What a run is: equal facts, equal metrics (on a CPU)."""
    return {
        "version": RUN_VERSION,
        "graph": graph_hash(graph),
        "weights": weights_hash(graph, weights),
        "data": dataset.sha256,
        "recipe": config.record(),
        "grow": grow,
        "teacher": None if teacher is None else [graph_hash(teacher[0]), weights_hash(*teacher)],
    }


def may_resume(run_dir: Path, facts: Mapping[str, Any], existing: Existing) -> bool:
    """Whether there is a checkpoint to go on from, so that the run is not to be begun.

    Raises:
        ArchirError: A603, the folder holds a run; A637, its files are damaged; A638, it holds
            another run.
    """
    file = run_dir / RUN
    if file.exists() and existing == "refuse":
        raise error(
            "A603", f"{run_dir} holds a run", hint="--resume continues it, --force starts anew"
        )
    if existing != "resume" or not (run_dir / LAST).exists():
        return False
    _same(file, facts)
    return True


def begun(run_dir: Path, facts: Mapping[str, Any]) -> None:
    """Make a run folder, or clear it of the run that it holds.

    Raises:
        ArchirError: A602, it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / LAST).unlink(missing_ok=True)  # first: without it there is nothing to resume
        for old in (run_dir / BEST, *run_dir.glob(EVENTS)):
            old.unlink(missing_ok=True)
    except OSError as reason:
        raise cannot_write(run_dir, reason) from reason
    with writing(run_dir / RUN) as temporary:
        temporary.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", "utf-8")


@contextmanager
def keeping(run_dir: Path | None) -> Iterator[None]:
    """Say in errors that end a run how to go on, where a checkpoint is kept."""
    try:
        yield
    except ArchirError as failure:
        first, *others = failure.diagnostics
        # the same recipe would go astray again
        told = kept_in(run_dir, resumable=first.code != "A631")
        if not told or first.code not in _ENDS:
            raise
        hint = f"{first.hint}; {told}" if first.hint else told
        more = replace(first, hint=hint)
        raise ArchirError(more, *others, status=failure.status) from failure.__cause__


def _same(file: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with another run's checkpoint."""
    try:
        stored = json.loads(file.read_text("utf-8"))
        version = stored["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise error("A637", f"{file} is missing or damaged", hint=ANEW) from None
    if version != RUN_VERSION:
        raise error("A637", f"{file} has format version {version}, this archir reads {RUN_VERSION}")
    wanted = json.loads(json.dumps(facts))
    for name in wanted:
        if stored.get(name) == wanted[name]:
            continue
        what = f"it has another {name}"
        if name == "recipe":
            old, new = dict(stored.get(name) or {}), wanted[name]
            changed = [k for k in new if old.get(k) != new[k]]
            what = ", ".join(f"{k} was {old.get(k)}, is {new[k]}" for k in changed)
        raise error(
            "A638",
            f"{file.parent} holds another run: {what}",
            hint=f"resume with the arguments that it was started with; {ANEW}",
        )
