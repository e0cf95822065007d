"""The journal of a search: one JSON object a line, in order of proposal, only ever appended to.

What differs between equal runs (times) goes to a file of its own. Importing this module needs no
torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from archir.diag import error
from archir.files import cannot_write
from archir.search.parts import Member

JOURNAL, TIMINGS = "journal.jsonl", "timings.jsonl"
VERSION = 1
_FIELDS = {f.name: f for f in dataclasses.fields(Member)}


@dataclass(frozen=True)
class Journal:
    """What a journal says, as far as it goes."""

    facts: Mapping[str, Any]
    """The first line: what the search is."""
    stages: Mapping[str, Mapping[str, Any]]
    """The evaluator of each stage."""
    members: tuple[Member, ...]
    events: tuple[Mapping[str, Any], ...]
    """All lines, in order."""
    end: Mapping[str, Any] | None
    """The last line of a search that ended."""


def entry_of(member: Member) -> dict[str, Any]:
    """A member's line."""
    return {"event": "member", **asdict(member)}


def member_of(entry: Mapping[str, Any]) -> Member:
    """A member from its line.

    Raises:
        KeyError, TypeError: it is no such line.
    """
    found = {name: entry[name] for name in _FIELDS}
    found["parents"] = tuple(int(n) for n in found["parents"])
    found["history"] = tuple(dict(line) for line in found["history"])
    return Member(**found)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; one that was cut off at the end is not counted.

    Raises:
        ArchirError: A700, it cannot be read, or a line is no JSON object.
    """
    try:
        raw = path.read_bytes()
    except OSError as reason:
        raise error("A700", f"cannot read {path}: {reason.strerror}") from None
    found = []
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry["event"], str):
                raise TypeError  # noqa: TRY301 - the same as any other damage
        except (ValueError, TypeError, KeyError, RecursionError):
            raise error("A700", f"line {number} of {path} is damaged") from None
        found.append(entry)
    return found


def read_journal(path: Path) -> Journal:
    """Read the journal of a search, finished or not.

    Raises:
        ArchirError: A700, it cannot be read, is damaged, or of another format.
    """
    lines = read_lines(path)
    if not lines or lines[0]["event"] != "search":
        raise error("A700", f"{path} does not begin like the journal of a search")
    if lines[0].get("version") != VERSION:
        told = f"has format version {lines[0].get('version')}, this archir reads {VERSION}"
        raise error("A700", f"{path} {told}")
    stages: dict[str, Mapping[str, Any]] = {}
    members: list[Member] = []
    for number, entry in enumerate(lines, 1):
        try:
            if entry["event"] == "stage":
                stages[str(entry["stage"])] = dict(entry["evaluator"])
            elif entry["event"] == "member":
                members.append(member_of(entry))
                if members[-1].number != len(members) - 1:
                    raise ValueError  # noqa: TRY301 - the same as any other damage
        except (KeyError, TypeError, ValueError):
            raise error("A700", f"line {number} of {path} is damaged") from None
    end = lines[-1] if lines[-1]["event"] == "end" else None
    return Journal(lines[0], stages, tuple(members), tuple(lines), end)


class Ledger:
    """The journal of a run under way.

    A search that is resumed runs again from its beginning: what it says is compared with the lines
    that are there, until they end; from then on it is appended.
    """

    def __init__(self, folder: Path) -> None:
        """Read what is there and cut off a line that was left incomplete.

        Raises:
            ArchirError: A700, the journal is damaged; A602, it cannot be written.
        """
        self.path = folder / JOURNAL
        self.old = read_lines(self.path) if self.path.exists() else []
        self.at = 0
        """How many lines have been said."""
        try:
            self._file: IO[bytes] = self.path.open("ab")
            whole = self.path.read_bytes().rfind(b"\n") + 1
            self._file.truncate(whole)
            self._timings: IO[bytes] = (folder / TIMINGS).open("ab")
        except OSError as reason:
            raise cannot_write(self.path, reason) from reason

    @property
    def coming(self) -> Mapping[str, Any] | None:
        """The next line of those that are there already; None at their end."""
        return self.old[self.at] if self.at < len(self.old) else None

    def check(self, entry: Mapping[str, Any]) -> None:
        """Make sure that a line may be said.

        Raises:
            ArchirError: A701, the journal says something else there.
        """
        if self.coming is not None and json.loads(json.dumps(entry)) != self.coming:
            raise self.unlike(entry)

    def put(self, entry: Mapping[str, Any]) -> None:
        """Say a line, which is on the disk when this returns.

        Raises:
            ArchirError: A701, the journal says something else there; A602, it cannot be written.
        """
        self.check(entry)
        if self.coming is None:
            self._write(self._file, json.dumps(entry))
        self.at += 1

    def unlike(self, entry: Mapping[str, Any]) -> Exception:
        """The error of a run that does not repeat what its journal says."""
        coming = self.coming or {}
        names = [k for k in {**coming, **entry} if coming.get(k) != entry.get(k)]
        return error(
            "A701",
            f"line {self.at + 1} of {self.path} is not what this run says there: "
            f"it differs in {', '.join(names[:4])}",
            hint="a search is resumed with the archir, the files and the data that it began with",
        )

    def time(self, entry: Mapping[str, Any]) -> None:
        """Note what equal runs do not share."""
        self._write(self._timings, json.dumps(entry))

    def _write(self, file: IO[bytes], line: str) -> None:
        start = file.tell()
        try:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError as reason:
            with contextlib.suppress(OSError):  # if not now, then when the journal is read again
                file.truncate(start)
            raise cannot_write(Path(file.name), reason) from reason

    def close(self) -> None:
        """Close the files."""
        for file in (self._file, self._timings):
            with contextlib.suppress(OSError):  # what a full disk did not take was reported
                file.close()
