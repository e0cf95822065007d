"""The files of a network: their names, and writing them together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from archir.diag import error
from archir.files import check_target, writing_all
from archir.proof.lineage import folder_of
from archir.weights.store import save_weights

if TYPE_CHECKING:
    from archir.api import Network

Writer = Callable[[Path], None]
"""Writes a file at the path that it is handed."""


def weights_path(path: Path) -> Path:
    """Where the weights of a network's file are by default."""
    return path.with_suffix(".safetensors")


def certificate_path(path: Path) -> Path:
    """Where the certificate of a network's file is."""
    return path.with_suffix(".cert.json")


def optimizer_path(path: Path) -> Path:
    """Where the optimizer's state of a network's file is."""
    return path.with_suffix(".optim.safetensors")


def check_name(path: Path) -> Path:
    """A path for a network's text, once it is sure that its other files get names of their own.

    Raises:
        ArchirError: A602, it does not end in ``.arch``.
    """
    if path.suffix == ".arch":
        return path
    raise error(
        "A602",
        f"cannot write {path}: a network's file ends in .arch",
        hint=f"{path}.arch; its weights and its certificate are put beside it",
    )


def check_output(path: Path, *, force: bool) -> Path:
    """Make sure, before any work is done, that a network may be saved at a path.

    Raises:
        ArchirError: A602, A603.
    """
    for name in (check_name, weights_path, certificate_path, optimizer_path):
        check_target(name(path), force=force)
    return path


def save(
    network: Network,
    path: Path,
    *,
    force: bool,
    beside: Mapping[Path, Writer] | None = None,
    lineage: Path | None = None,
) -> Path:
    """Write text, weights, certificate and lineage; see :meth:`archir.api.Network.save`."""
    target = check_name(path)
    writers: dict[Path, Writer] = {}
    if (weights := network.weights) is not None:
        writers[weights_path(target)] = lambda file: save_weights(file, dict(weights), {})
    if network.certificate.steps:
        certificate = network.certificate.to_json()
        writers[certificate_path(target)] = lambda file: _write(file, certificate)
    writers |= beside or {}
    writers[target] = lambda file: _write(file, network.text)
    known = (weights_path(target), certificate_path(target), optimizer_path(target))
    stale = [file for file in known if file not in writers and file.exists()]
    for file in (*writers, *stale):
        check_target(file, force=force)
    if network.certificate.steps:
        network.lineage.save(network.certificate, lineage or folder_of(target))
    with writing_all(list(writers), force=force, stale=stale) as temporaries:
        for write, temporary in zip(writers.values(), temporaries, strict=True):
            write(temporary)
    return target


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
