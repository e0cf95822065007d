"""Lineage folders: parents of networks, each under the hash of its content."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from archir.diag import ArchirError, error
from archir.files import cannot_write, writing
from archir.ir.graph import Graph
from archir.ops.arithmetic import Array
from archir.proof.certificate import ATTESTED, Certificate, Step, text_hash, weights_hash
from archir.weights.store import load_weights, save_weights

_PARENT = re.compile(r"[0-9a-f]{64}\.(arch|safetensors)")


def folder_of(path: Path) -> Path:
    """The lineage folder of a network's file."""
    return path.with_suffix(".lineage")


def folders_of(path: Path) -> tuple[Path, Path]:
    """Where the parents of a network's file are: its own folder, and one that all files share."""
    return folder_of(path), path.with_name("lineage")


@dataclass(frozen=True)
class Lineage:
    """What is known of a network's parents: in memory, and in folders."""

    texts: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()

    def with_parent(
        self, text: str, weights: Mapping[str, Array] | None, weights_digest: str | None
    ) -> Lineage:
        """This lineage with one more parent."""
        texts = {**self.texts, text_hash(text): text}
        held = dict(self.weights)
        if weights is not None and weights_digest is not None:
            held[weights_digest] = weights
        return Lineage(texts, held, self.folders)

    def text(self, digest: str) -> str:
        """A parent's text.

        Raises:
            ArchirError: A404, it is missing or its content has another hash.
        """
        if digest in self.texts:
            return self.texts[digest]
        path = self._find(f"{digest}.arch")
        text = path.read_bytes().decode("utf-8", errors="replace")  # line ends as they are
        if text_hash(text) != digest:
            raise error(
                "A404", f"{path} was changed: its content does not have the hash in its name"
            )
        return text

    def tensors(self, digest: str, graph: Graph) -> Mapping[str, Array]:
        """A parent's weights.

        Raises:
            ArchirError: A404, they are missing or have another hash.
        """
        if digest in self.weights:
            return self.weights[digest]
        path = self._find(f"{digest}.safetensors")
        try:
            found = load_weights(path)
        except ArchirError as reason:
            why = reason.diagnostics[0].message
            raise error("A404", f"a parent's weights were changed: {why}") from None
        if set(graph.parameters) - set(found) or weights_hash(graph, found) != digest:
            raise error(
                "A404", f"{path} was changed: its content does not have the hash in its name"
            )
        return found

    def lacking(self, step: Step, *, last: bool) -> list[str]:
        """The files that are missing of those that an earlier step's network is kept in."""
        texts, tensors = ([], []) if last else needed_of(step)
        names = [f"{d}.arch" for d in texts if d not in self.texts]
        names += [f"{d}.safetensors" for d in tensors if d not in self.weights]
        return [n for n in names if not any((folder / n).is_file() for folder in self.folders)]

    def _find(self, name: str) -> Path:
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        raise error(
            "A404",
            f"the parent {name[:12]}... is missing",
            hint="the .lineage folder belongs to the network: copy it along; `archir lineage FILE` "
            "lists what is there",
        )

    def save(self, certificate: Certificate, folder: Path) -> None:
        """Write to a folder what replaying a certificate needs and is not there yet."""
        texts, tensors = needed(certificate)
        if texts or tensors:
            try:
                folder.mkdir(exist_ok=True)
            except OSError as reason:
                raise cannot_write(folder, reason) from reason
        for digest in texts:
            target = folder / f"{digest}.arch"
            if not target.exists():
                with writing(target) as temporary:
                    temporary.write_bytes(self.text(digest).encode("utf-8"))
        for digest in tensors:
            target = folder / f"{digest}.safetensors"
            if target.exists():
                continue
            if digest in self.weights:
                save_weights(target, dict(self.weights[digest]), {})
            else:
                with writing(target) as temporary:
                    shutil.copyfile(self._find(target.name), temporary)


def spare(certificate: Certificate, folder: Path) -> list[Path]:
    """The files of a network's own lineage folder that no step of its certificate needs."""
    texts, tensors = needed(certificate)
    names = {f"{d}.arch" for d in texts} | {f"{d}.safetensors" for d in tensors}
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p for p in files if _PARENT.fullmatch(p.name) and p.name not in names]


def needed(certificate: Certificate) -> tuple[list[str], list[str]]:
    """Hashes of the texts and of the weights of all earlier states that cannot be replayed."""
    found = [needed_of(step) for step in certificate.steps[:-1]]
    texts = dict.fromkeys(digest for some, _ in found for digest in some)
    tensors = dict.fromkeys(digest for _, some in found for digest in some)
    return list(texts), list(tensors)


def needed_of(step: Step) -> tuple[list[str], list[str]]:
    """Hashes of the text and, if they cannot be made again, of the weights after a step."""
    weights = step.after.weights
    return [step.after.text], [weights] if step.kind in ATTESTED and weights is not None else []
