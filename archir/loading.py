"""Checkpoints of other programs taken into a network: read, fit, certify."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from archir.api import Network, frozen
from archir.diag import ArchirError, Diagnostic, error
from archir.ops.arithmetic import Array
from archir.target import backends
from archir.weights.checkpoint import (
    Checkpoint,
    StateDict,
    is_safetensors,
    read_safetensors,
    state_dicts,
)
from archir.weights.fitting import Choice, Fitter, Fitting, values
from archir.weights.keys import match, renamed
from archir.weights.pickles import check_torch_file
from archir.weights.store import Weights, foreign

SHOWN = 8
"""How many problems the error of :func:`load_checkpoint` names."""


def read_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a safetensors file or a file of ``torch.save``; none of them is read yet.

    Raises:
        ArchirError: A601, there is no such file; A610 or A626, it is not whole or of another
            kind; A627, it holds code; A503, it needs torch, which is not installed.
    """
    try:
        if not path.is_file():
            what = "it is not a regular file" if path.exists() else "there is no such file"
            raise error("A601", f"cannot read {path}: {what}")
        with path.open("rb") as stream:
            head = stream.read(32)
            stream.seek(0)
            entries, kind = _entries(path, head)
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
    except (OSError, ValueError) as reason:
        what = getattr(reason, "strerror", None) or str(reason)
        raise error("A601", f"cannot read {path}: {what}") from reason
    entries = {place: held for place, held in entries.items() if held}
    if not entries:
        raise error("A626", f"{path} holds no tensors")
    return Checkpoint(path, kind, size, digest, entries, kind != "safetensors")


def _entries(path: Path, head: bytes) -> tuple[Mapping[str, StateDict], str]:
    if not head:
        raise error("A626", f"cannot read {path}: it is empty")
    if is_safetensors(path, head):
        return {"": read_safetensors(path, head)}, "safetensors"
    if not head.startswith((b"PK", b"\x80")):
        what = foreign(head)
        if what:
            raise error("A626", f"cannot read {path}: it is {what}")
    layout = check_torch_file(path)
    backend: Any = backends()["torch"]
    return state_dicts(backend.read_checkpoint(path, mmap=layout == "zip")), "torch"


@dataclass(frozen=True)
class Loading:
    """How a checkpoint fits a network, before anything is changed."""

    network: Network
    checkpoint: Checkpoint
    choice: Choice
    entry: str
    fitting: Fitting
    others: tuple[str, ...] = ()
    """Further mappings with tensors in the file, which have no keys of the network."""

    def weights(self, constants: Mapping[str, Array]) -> Weights:
        """The weights.

        Raises:
            ArchirError: A140, a constant is missing; A613, a tensor cannot be read; A636, a value
                is beyond the parameter's element type.
        """
        fitting, stored = self.fitting, self.checkpoint.entries[self.entry]
        held = {path: constants[path] for path in fitting.kept if path in constants}
        missing = [path for path in fitting.kept if path not in held]
        if missing:
            raise error(
                "A140",
                f"`{missing[0]}` is a constant that no checkpoint holds",
                hint="keep the safetensors file of the network beside its text",
                node=missing[0],
            )
        backend: Any = backends()["torch"] if fitting.interpolated else None
        resample = backend.resample if backend is not None else None
        found = self.network.graph, self.network.ops, stored, fitting, self.choice.seed
        return values(*found, held, resample)

    def facts(self) -> dict[str, Any]:
        """What the certificate says of the step, as JSON values."""
        fitting, choice = self.fitting, self.choice
        lines = zip(choice.renames, fitting.counts, strict=True)
        return {
            "source": {
                "name": self.checkpoint.path.name,
                "sha256": self.checkpoint.sha256,
                "bytes": self.checkpoint.bytes,
                "format": self.checkpoint.format,
                "entry": self.entry,
            },
            "map": [{"line": str(line), "keys": count} for line, count in lines],
            "prefix": {"removed": fitting.matching.removed, "added": fitting.matching.added},
            "by_order": fitting.by_order,
            "loaded": len(fitting.pairs),
            "cast": fitting.cast,
            "interpolated": {path: asdict(grid) for path, grid in fitting.interpolated.items()},
            "zeroed": fitting.zeroed,
            "kept": fitting.kept,
            "drawn": fitting.drawn,
            "initialised": fitting.initialised,
            "seed": choice.seed if fitting.drawn or fitting.initialised else None,
            "missing": fitting.missing,
            "unexpected": fitting.unexpected,
            "ignored": fitting.ignored,
        }

    def apply(self, constants: Mapping[str, Array] | None = None) -> Network:
        """The network with these weights, as one more attested step (or the first).

        Args:
            constants: Where tensors are that no checkpoint holds; by default the present weights.

        Raises:
            ArchirError: A634, the checkpoint does not fit; those of :meth:`weights`.
        """
        if not self.fitting.fits:
            raise self.misfit()
        network = self.network
        held = constants if constants is not None else network.weights or {}
        made = self.weights(held)
        if network.weights is not None and network.certificate.steps:
            return network.with_weights(made, "load", self.facts())
        fresh = type(network.certificate)(params=dict(network.program.params))
        started = replace(network, weights=frozen(made), certificate=fresh)
        return started.stepped("load", self.facts())

    def misfit(self) -> ArchirError:
        """The error that says why the checkpoint does not fit; a failed check, status 1."""
        fitting = self.fitting
        found = [
            *(f"`{w.path}` is {w.network}, the checkpoint has {w.checkpoint}"
              for w in (*fitting.wrong_shape, *fitting.wrong_dtype)),
            *(f"the checkpoint lacks `{path}`" for path in fitting.missing),
            *(f"the network has no `{key}`" for key in fitting.unexpected),
        ]  # fmt: skip
        if not found:
            found = ["no tensor of the checkpoint has a place in the network"]
        more = len(found) - SHOWN
        shown = [*found[:SHOWN], f"and {more} more that do not fit"] if more > 0 else found
        return ArchirError(*(Diagnostic("A634", text) for text in shown), status=1)


def fit(network: Network, path: Path, choice: Choice | None = None) -> Loading:
    """Find out how a checkpoint fits a network.

    Raises:
        ArchirError: those of :func:`read_checkpoint`; A609, a glob fits nothing; A628, which of
            several mappings is meant is not clear; A629, the key map or a prefix is ambiguous;
            A635, a table of positions cannot be resampled.
    """
    choice = choice or Choice()
    checkpoint = read_checkpoint(path)
    entry, others = _entry(network, checkpoint, choice)
    fitter = Fitter(network.graph, network.ops, checkpoint.entries[entry], choice)
    fitting = fitter.run(ordered=checkpoint.ordered)
    return Loading(network, checkpoint, choice, entry, fitting, others)


def _entry(network: Network, checkpoint: Checkpoint, choice: Choice) -> tuple[str, tuple[str, ...]]:
    """The state dict that is meant, and others that have nothing of the network."""
    entries = checkpoint.entries
    if choice.entry is not None:
        ends = [p for p in entries if choice.entry in (p, p.rpartition(".")[2])]
        if choice.entry in ends or len(ends) == 1:
            return (choice.entry if choice.entry in ends else ends[0]), ()
        raise _unclear(network, checkpoint, choice, f"has no entry `{choice.entry}`")
    if len(entries) == 1:
        return next(iter(entries)), ()
    fitting = [place for place in entries if _score(network, entries[place], choice)]
    if len(fitting) == 1:
        return fitting[0], tuple(place for place in entries if place != fitting[0])
    raise _unclear(network, checkpoint, choice, "holds several state dicts")


def _score(network: Network, stored: StateDict, choice: Choice) -> int:
    """How many parameters a state dict has keys for."""
    keys = renamed(list(stored), choice.renames)[0] if choice.renames else stored
    found = match(network.graph.parameters, keys)
    if found.rivals:
        return max(1, len(found.pairs))
    return len(found.pairs)


def _unclear(network: Network, checkpoint: Checkpoint, choice: Choice, what: str) -> ArchirError:
    total = len(network.graph.parameters)
    rows = [
        f"{place or 'the file itself'} ({len(held)} tensors, keys for "
        f"{_score(network, held, choice)} of {total} parameters)"
        for place, held in checkpoint.entries.items()
    ]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    named = [place for place in checkpoint.entries if place]
    return error(
        "A628",
        f"{checkpoint.path} {what}: " + ", ".join(rows[:SHOWN]) + more,
        hint=f"--entry {named[0]}" if named else "",
    )


def load_checkpoint(network: Network, path: Path, choice: Choice | None = None) -> Network:
    """The network with the weights of a checkpoint, which must fit whole.

    Raises:
        ArchirError: A634 (status 1), something is missing or of another shape or element type;
            those of :func:`fit` and :meth:`Loading.apply`.
    """
    return fit(network, path, choice).apply()


def not_finite(weights: Mapping[str, Array]) -> list[str]:
    """The tensors that hold values that are no numbers."""
    floats = ((path, array) for path, array in weights.items() if array.dtype.kind not in "iub")
    return [path for path, array in floats if not np.isfinite(array).all()]
