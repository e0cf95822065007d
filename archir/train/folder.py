"""A run folder: which run it holds, and whether another may use it.

Importing this module needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from archir.diag import error
from archir.files import cannot_write, writing
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.proof.certificate import weights_hash
from archir.train.checkpoint import Checkpoint, load_checkpoint
from archir.train.data import Dataset
from archir.train.logs import BEST, LAST, RUN
from archir.train.recipe import TrainConfig
from archir.weights.store import Weights

RUN_VERSION = 1

Existing = Literal["refuse", "replace", "resume"]


def kept_in(run_dir: Path | None) -> str:
    """What a user is told when a run ends early; empty without a folder."""
    if run_dir is None:
        return ""
    return f"the last good checkpoint is in {run_dir}; --resume goes on from it"


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
        "teacher": None if teacher is None else weights_hash(*teacher),
    }


def opened(
    run_dir: Path | None, folder: Path | None, facts: Mapping[str, Any], existing: Existing
) -> Checkpoint | None:
    """The checkpoint to go on from, if any; else the run folder is started anew.

    Args:
        run_dir: The run folder.
        folder: The same, for the process that writes; None for the others.
        facts: What the run is.
        existing: What to do with a run that is there.

    Raises:
        ArchirError: A602, the folder cannot be written; A603, it holds a run; A637, its files are
            damaged; A638, it holds another run.
    """
    if run_dir is None:
        return None
    file = run_dir / RUN
    if file.exists() and existing == "refuse":
        raise error(
            "A603", f"{run_dir} holds a run", hint="--resume continues it, --force starts anew"
        )
    if existing == "resume" and (run_dir / LAST).exists():
        _same(file, facts)
        return load_checkpoint(run_dir / LAST)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (LAST, BEST):
                (folder / name).unlink(missing_ok=True)
        except OSError as reason:
            raise cannot_write(folder, reason) from reason
        with writing(file) as temporary:
            temporary.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", "utf-8")
    return None


def _same(file: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with another run's checkpoint."""
    try:
        stored = json.loads(file.read_text("utf-8"))
        version = stored["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise error("A637", f"{file} is missing or damaged", hint="--force starts anew") from None
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
            hint="resume with the arguments that it was started with, or start anew with --force",
        )
