"""What a report says, read from a run folder. Weights are not read, torch is not imported."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archir.diag import ArchirError, error
from archir.files import read_source
from archir.proof.certificate import Certificate, Step, read_certificate
from archir.saving import certificate_path
from archir.search.engine import MEMBERS, elapsed_before
from archir.search.journal import JOURNAL, Journal, read_journal
from archir.search.parts import Member, front
from archir.search.report.commands import Told, commands_of, verifying
from archir.search.report.words import made_by
from archir.search.run import read_search

Compare = Callable[[Path, Path], Sequence[str]]
"""The difference of two networks in lines, the mark of each in front."""

DIGITS = 6
"""Significant digits of scores and curves in the page; the journal has all."""

LAYERS = 200
"""In a run of more networks than this only the best, the front and their first parents' lines are
compared with their parents layer by layer; the others line by line, which is much quicker."""

SHORT = 120
"""Characters of how a member came about that are shown where one points at it."""


@dataclass
class Pool:
    """Texts by number, each held once: most lines of a program are those of its parent."""

    numbers: dict[str, int] = field(default_factory=dict)

    def put(self, value: str) -> int:
        """The number of a text."""
        return self.numbers.setdefault(value, len(self.numbers))

    def lines(self, lines: Sequence[str]) -> list[int]:
        """The numbers of several."""
        return [self.put(line) for line in lines]


@dataclass(frozen=True)
class Gathered:
    """A run as a report shows it."""

    folder: Path
    """As it was named: the commands are to be run where it has this name."""
    journal: Journal
    groups: tuple[tuple[str, ...], ...]
    """The stages whose scores can be compared, by evaluator; what trains on validation images is
    in none of them."""
    best: Member | None
    """What the run ended with; the best one so far where it did not end."""
    chosen: Member | None
    """The best; or the same network before it was trained on validation images; None where none
    such was scored."""
    start: Member | None
    ensemble: tuple[int, ...]
    test: Mapping[str, Mapping[str, Any]]
    """What the test set said of ``best`` and ``ensemble``."""
    generations: Mapping[int, int]
    unfinished: str
    """How far a run is that did not end; empty where it did."""
    seconds: float
    """What it took so far."""
    data: Mapping[str, Any]
    """What the page's script reads."""


def gather(folder: Path, compare: Compare | None = None) -> Gathered:
    """Read a run, finished or not.

    Args:
        folder: The run folder.
        compare: What says how two ``.arch`` files differ, layer by layer.

    Raises:
        ArchirError: A751, the folder holds no run; A750, its journal is damaged.
    """
    journal = _journal(folder)
    groups = _groups(journal.stages)
    end = journal.end or {}
    members = journal.members
    best = _best(members, groups, end.get("best"))
    return Gathered(
        folder,
        journal,
        groups,
        best,
        _judged(best, journal),
        next((m for m in members if m.origin.get("kind") == "start"), None),
        tuple(end.get("ensemble") or ()),
        end.get("test") or {},
        _generations(journal.events),
        _unfinished(journal),
        elapsed_before(folder),
        _Data(folder, journal, compare, _looked_at(journal, groups, best)).all(),
    )


def _journal(folder: Path) -> Journal:
    file = folder / JOURNAL
    if not file.is_file():
        raise error(
            "A751",
            f"{folder} holds no search",
            hint="`archir search ... --run DIR` makes one; DIR is what is reported",
        )
    try:
        found = read_journal(file)
    except ArchirError as damage:
        raise error("A750", damage.diagnostics[0].message) from None
    return found


def _groups(stages: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """Stages by what scores their members."""
    found: dict[str, list[str]] = {}
    for name, record in stages.items():
        if not record.get("join"):
            found.setdefault(str(record.get("kind")), []).append(name)
    return tuple(map(tuple, found.values()))


def _best(
    members: Sequence[Member], groups: Sequence[Sequence[str]], number: object
) -> Member | None:
    """The member that the run ended with; the best of its last stages if it did not end."""
    if isinstance(number, int) and 0 <= number < len(members):
        return members[number]
    for stages in reversed(groups):
        rivals = [m for m in members if m.status == "scored" and m.stage in stages]
        if rivals:
            return max(rivals, key=lambda m: (m.score, -m.number))
    return None


def _judged(best: Member | None, journal: Journal) -> Member | None:
    """The member whose score tells of the best network: images that were trained on do not."""
    stages = journal.stages
    if best is None or not stages[best.stage].get("join"):
        return best
    kind = stages[best.stage].get("kind")
    before = [
        m
        for m in journal.members
        if m.status == "scored" and m.graph == best.graph and not stages[m.stage].get("join")
    ]
    alike = [m for m in before if stages[m.stage].get("kind") == kind] or before
    parents = [m for m in alike if m.number in best.parents]
    return next(reversed(parents or alike), None)


def _looked_at(
    journal: Journal, groups: Sequence[Sequence[str]], best: Member | None
) -> Container[int]:
    """The members that are compared with their parents layer by layer."""
    members = journal.members
    if len(members) <= LAYERS:
        return range(len(members))
    found: set[int] = set()
    ahead = [m for stages in groups for m in front([m for m in members if m.stage in stages])]
    left = [m.number for m in (best, *ahead) if m is not None]
    while left:
        number = left.pop()
        if number not in found:
            found.add(number)
            left += members[number].parents[:1]
    return found


def _unfinished(journal: Journal) -> str:
    if journal.end is not None:
        return ""
    scored = sum(m.status == "scored" for m in journal.members)
    return f"{len(journal.members)} networks so far, {scored} of them scored"


def _generations(events: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """The generation of each member, where a strategy says when one ends."""
    found: dict[int, int] = {}
    now = 0
    for event in events:
        if event["event"] == "member":
            found[int(event["number"])] = now
        elif event["event"] in ("step", "generation"):
            now += 1
    return found if now else {}


def _data_seed(folder: Path) -> int:
    """What the validation images were drawn by; 0 where nothing tells."""
    try:
        found = read_search(folder)["settings"].get("data_seed", 0)
    except ArchirError:
        return 0
    return found if isinstance(found, int) else 0


class _Data:
    """What the page's script reads, each text once."""

    def __init__(
        self, folder: Path, journal: Journal, compare: Compare | None, looked_at: Container[int]
    ) -> None:
        self.folder, self.journal, self.compare = folder, journal, compare
        self.looked_at = looked_at
        self.run = Told(folder, journal.facts, _data_seed(folder))
        self.lines = Pool()
        self.steps: dict[str, int] = {}
        self.texts: dict[tuple[int, ...], int] = {}
        self.told: list[dict[str, Any]] = []
        self._programs: dict[int, list[str] | None] = {}

    def all(self) -> dict[str, Any]:
        """All of it."""
        members = [self._member(m) for m in self.journal.members]
        return {
            "members": members,
            "stages": list(self.journal.stages),
            "lines": list(self.lines.numbers),
            "texts": list(self.texts),
            "steps": self.told,
        }

    def _member(self, member: Member) -> dict[str, Any]:
        own = member if member.same_as is None else self.journal.members[member.same_as]
        certificate = self._certificate(own)
        joined = bool(self.journal.stages[member.stage].get("join"))
        program = self._program(own.number)
        found = {
            "n": member.number,
            "stage": member.stage,
            "parents": list(member.parents),
            "status": member.status,
            "reason": member.reason,
            "params": member.params,
            "macs": member.macs,
            "seed": member.seed,
            "graph": member.graph,
            "same": member.same_as,
            "scores": {name: _short(value) for name, value in member.scores.items()},
            "latency": member.latency,
            "origin": member.origin,
            "short": made_by(member)[:SHORT],
            "history": _columns(own.history),
            "text": None if program is None else self._text(program),
            "diffs": [d for p in dict.fromkeys(member.parents) if (d := self._diff(own, p))],
            "steps": [] if certificate is None else [self._step(s) for s in certificate.steps],
            "commands": list(commands_of(member, self.run, joined, certificate)),
            "verify": None if certificate is None else verifying(own, self.run),
        }
        return {name: value for name, value in found.items() if value not in (None, [], {}, "")}

    def _path(self, number: int) -> Path:
        return self.folder / MEMBERS / f"{number:04d}.arch"

    def _certificate(self, member: Member) -> Certificate | None:
        path = certificate_path(self._path(member.number))
        try:
            return read_certificate(path) if path.is_file() else None
        except ArchirError:
            return None  # `archir verify` says what is wrong with it

    def _program(self, number: int) -> list[str] | None:
        """The lines of a member's program; None where it has none."""
        if number not in self._programs:
            try:
                found = read_source(self._path(number)).text.splitlines()
            except ArchirError:
                found = None
            self._programs[number] = found
        return self._programs[number]

    def _text(self, program: Sequence[str]) -> int:
        lines = tuple(self.lines.lines(program))
        return self.texts.setdefault(lines, len(self.texts))

    def _diff(self, member: Member, parent: int) -> dict[str, Any] | None:
        """How a program differs from a parent's: line by line, and layer by layer."""
        if not 0 <= parent < len(self.journal.members):
            return None
        old = self.journal.members[parent]
        known = parent if old.same_as is None else old.same_as
        before, after = self._program(known), self._program(member.number)
        if before is None or after is None:
            return None
        codes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        layers: Sequence[str] = ()
        if self.compare is not None and before != after and member.number in self.looked_at:
            layers = self.compare(self._path(known), self._path(member.number))
        return {
            "parent": parent,
            "text": self._text(before),
            "changes": [list(places) for tag, *places in codes if tag != "equal"],
            "layers": self.lines.lines(layers),
        }

    def _step(self, step: Step) -> int:
        """The number of a step of a certificate; members share the first steps of theirs."""
        if step.digest not in self.steps:
            self.steps[step.digest] = len(self.told)
            self.told.append(_told(step))
        return self.steps[step.digest]


def _told(step: Step) -> dict[str, Any]:
    """What is shown of a step."""
    facts = step.facts
    found: dict[str, Any] = {
        "kind": step.kind,
        "digest": step.digest,
        "graph": step.after.graph,
        "weights": step.after.weights,
    }
    uses = facts.get("uses")
    if isinstance(uses, list):
        found["uses"] = [_use(use) for use in uses if isinstance(use, dict)]
    for name in ("drift", "data", "seed", "note", "steps", "validation", "config", "device"):
        if facts.get(name) is not None:
            found[name] = facts[name]
    return found


def _use(use: Mapping[str, Any]) -> dict[str, Any]:
    verdict, exact = use.get("verdict") or {}, use.get("exact") or {}
    return {
        "rule": use.get("rule"),
        "hash": use.get("rule_hash"),
        "site": use.get("site"),
        "arguments": use.get("arguments") or {},
        "seed": use.get("seed"),
        "verdict": verdict.get("kind"),
        "exact": {mode: bool(check.get("equal")) for mode, check in exact.items()},
        "field": next((check.get("field") for check in exact.values()), None),
    }


def _columns(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A history as a list of numbers for each name: what is no number is left out."""
    names = [name for name, value in (history[0] if history else {}).items() if _number(value)]
    return {
        name: [_short(line[name]) if _number(line.get(name)) else None for line in history]
        for name in names
    }


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")
