"""The texts of axioms, found without parsing them: what a verdict's validity is read off.

A proof rests on the axioms that it used, so a verdict is good as long as their texts are the
same. Looking a verdict up must be cheap, so the files are only cut at their axioms' heads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.resources.abc import Traversable
from types import MappingProxyType

_TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*")|(?P<comment>#[^\n]*)|\baxiom\s+(?P<name>[\w.]+)\s+in\b', re.S
)


def axiom_files(folder: Traversable) -> Iterator[tuple[str, str]]:
    """Name and text of every ``.axiom`` file of a folder, in the order of their names."""
    for entry in sorted(folder.iterdir(), key=lambda e: e.name) if folder.is_dir() else ():
        if entry.name.endswith(".axiom"):
            yield entry.name, entry.read_text(encoding="utf-8")


def texts_in(folder: Traversable) -> dict[str, str]:
    """The axioms of a folder by name, each as its folded text."""
    return {n: text for _, whole in axiom_files(folder) for n, text in texts_of(whole).items()}


@lru_cache(maxsize=256)
def texts_of(whole: str) -> Mapping[str, str]:
    """The axioms of a file's text by name, white space folded and comments left out."""
    found: dict[str, list[str]] = {}
    held: list[str] = []
    end = 0
    for token in _TOKEN.finditer(whole):
        held.append(whole[end : token.start()])
        end = token.end()
        if token["name"] is not None:
            held = found[token["name"]] = [token[0]]
        elif token["comment"] is None:
            held.append(token[0])
    held.append(whole[end:])
    return MappingProxyType({n: " ".join("".join(p).split()) for n, p in found.items()})


def texts_hash(names: Iterable[str], texts: Mapping[str, str]) -> str | None:
    """sha256 over the texts of some axioms; None where one of them is not there."""
    digest = hashlib.sha256(b"archir axioms 2\n")
    for name in sorted(set(names)):
        if name not in texts:
            return None
        digest.update(texts[name].encode() + b"\n")
    return digest.hexdigest()
