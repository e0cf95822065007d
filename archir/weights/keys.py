"""The keys of a foreign checkpoint, and which parameter of a network each belongs to."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from archir.diag import error
from archir.files import read_source

Shape = tuple[int, ...]
How = Literal["key", "prefix", "order"]
"""By the same key, by the key without (or with) a prefix, or in order of equal shapes."""


@dataclass(frozen=True, slots=True)
class Rename:
    """One line of a key map: what a regular expression finds in a key is replaced."""

    pattern: re.Pattern[str]
    replacement: str

    def __str__(self) -> str:
        return f"{self.pattern.pattern}={self.replacement}"


def rename(text: str, where: str = "--map") -> Rename:
    """A line ``REGEX=REPLACEMENT``; the last ``=`` is the one that divides.

    Raises:
        ArchirError: A629, it has no ``=`` or the regular expression is wrong.
    """
    pattern, divides, replacement = text.rpartition("=")
    if not divides:
        raise error(
            "A629", f"{where}: `{text}` is not REGEX=REPLACEMENT", hint=r"--map '^backbone\.='"
        )
    return _compiled(pattern.strip(), replacement.strip(), where)


def _compiled(pattern: str, replacement: str, where: str) -> Rename:
    try:
        found = re.compile(pattern)
        found.sub(replacement, "")  # reads the replacement too, whether the pattern is found or not
    except (re.error, IndexError, RecursionError, OverflowError) as reason:
        raise error("A629", f"{where}: `{pattern}={replacement}` is wrong: {reason}") from None
    return Rename(found, replacement)


def read_map(path: Path) -> list[Rename]:
    """A key map from a file: lines ``REGEX=REPLACEMENT``, or a JSON object from one to the other.

    Raises:
        ArchirError: A601, the file cannot be read; A629, it is no key map.
    """
    text = read_source(path).text
    if path.suffix != ".json":
        lines = (line.strip() for line in text.splitlines())
        return [rename(line, str(path)) for line in lines if line and not line.startswith("#")]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise error("A629", f"{path} is no JSON: {reason}") from None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise error("A629", f"{path} is no JSON object from expressions to replacements")
    return [_compiled(pattern, text, str(path)) for pattern, text in found.items()]


def renamed(keys: Sequence[str], renames: Sequence[Rename]) -> tuple[dict[str, str], list[int]]:
    """New key -> old key, and how many keys each line of the map changed.

    Raises:
        ArchirError: A629, two keys become one.
    """
    counts = [0] * len(renames)
    out: dict[str, str] = {}
    for key in keys:
        now = key
        for number, line in enumerate(renames):
            before, now = now, line.pattern.sub(line.replacement, now)
            counts[number] += now != before
        if now in out:
            raise error(
                "A629",
                f"the key map makes `{now}` of `{out[now]}` and of `{key}`",
                hint="expressions are searched for anywhere in a key; ^ and $ are its ends",
            )
        out[now] = key
    return out, counts


@dataclass(frozen=True)
class Matching:
    """Which key belongs to which parameter."""

    pairs: Mapping[str, tuple[str, How]]
    """The key of a parameter's path, and how it was found."""
    removed: str = ""
    """The prefix that keys have and paths do not."""
    added: str = ""
    """The prefix that paths have and keys do not."""
    rivals: tuple[str, ...] = ()
    """Prefixes of which each fits as many keys, so that none was taken."""


def match(paths: Iterable[str], keys: Iterable[str]) -> Matching:
    """Match by equal keys, and what is left by the prefix that fits most keys.

    >>> match(["conv.weight", "fc.bias"], ["module.conv.weight", "module.fc.bias"]).removed
    'module.'
    """
    every = list(paths)
    wanted, rest = dict.fromkeys(every), dict.fromkeys(keys)
    pairs: dict[str, tuple[str, How]] = {p: (p, "key") for p in wanted if p in rest}
    for path in pairs:
        del wanted[path], rest[path]
    counts: Counter[tuple[str, str]] = Counter()
    counts.update(("removed", p) for key in rest for p, short in _cuts(key) if short in wanted)
    counts.update(("added", p) for path in wanted for p, short in _cuts(path) if short in rest)
    if not counts:
        return Matching(pairs)
    most = max(counts.values())
    best = [found for found, count in counts.items() if count == most]
    if len(best) > 1:
        return Matching(pairs, rivals=tuple(sorted({prefix for _, prefix in best})))
    ((kind, prefix),) = best
    for path in list(wanted):
        key = prefix + path if kind == "removed" else path.removeprefix(prefix)
        if key in rest and (kind == "removed" or path.startswith(prefix)):
            pairs[path] = (key, "prefix")
    removed, added = (prefix, "") if kind == "removed" else ("", prefix)
    return Matching({path: pairs[path] for path in every if path in pairs}, removed, added)


def _cuts(key: str) -> Iterator[tuple[str, str]]:
    """Every way to cut a key behind a dot: a prefix and the rest."""
    at = key.find(".")
    while at >= 0:
        yield key[: at + 1], key[at + 1 :]
        at = key.find(".", at + 1)


def match_order(paths: Mapping[str, Shape], keys: Mapping[str, Shape]) -> dict[str, str]:
    """Pair what is left in order of equal shapes: path -> key.

    Tensors that also share the last part of their names go first: the four vectors of a batch
    norm have one shape. Where the two sides have another number of tensors of a shape, none of
    them is paired: their order would say nothing.
    """
    found: dict[str, str] = {}
    for with_leaf in (True, False):
        ours, theirs = (
            _grouped({n: s for n, s in side.items() if n not in done}, with_leaf=with_leaf)
            for side, done in ((paths, found.keys()), (keys, set(found.values())))
        )
        for group, names in ours.items():
            others = theirs.get(group, [])
            if len(names) == len(others):
                found.update(zip(names, others, strict=True))
    return {path: found[path] for path in paths if path in found}


def _grouped(names: Mapping[str, Shape], *, with_leaf: bool) -> dict[object, list[str]]:
    groups: defaultdict[object, list[str]] = defaultdict(list)
    for name, shape in names.items():
        groups[shape, name.rpartition(".")[2] if with_leaf else ""].append(name)
    return groups


def natural(key: str) -> tuple[object, ...]:
    """A key to sort by in which numbers count as numbers: layer.2 before layer.10."""
    parts = re.split(r"(\d+)", key)
    return tuple((len(part), part) if n % 2 else part for n, part in enumerate(parts))
