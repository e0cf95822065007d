"""The rule library: rule files that installed packages offer, and the user's own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from archir.diag import Source, error
from archir.ops.record import OpSet
from archir.rewrite.rule import Rule
from archir.rewrite.rulefile import parse_rules

GROUP = "archir.rules"


class Library(Mapping[str, Rule]):
    """Rules by name; a value, passed explicitly."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules: dict[str, Rule] = {}
        for rule in rules:
            other = self._rules.setdefault(rule.name, rule)
            if other is not rule:
                raise error(
                    "A203",
                    f"two rules are named `{rule.name}`: in {other.package} and in {rule.package}",
                    span=rule.span,
                )

    def __getitem__(self, name: str) -> Rule:
        return self._rules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def find(self, name: str) -> Rule:
        """The rule of a name.

        Raises:
            ArchirError: A604, with the nearest names.
        """
        if name in self._rules:
            return self._rules[name]
        close = difflib.get_close_matches(name, list(self._rules), 1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(self._rules)}"
        raise error("A604", f"there is no rule `{name}`", hint=hint)

    def joined(self, rules: Sequence[Rule]) -> Library:
        """This library with more rules."""
        return Library([*self._rules.values(), *rules])


_FILE = re.compile(r"(?P<file>.+?\.rule)(?::(?P<name>[^@]+))?")
_SITED = re.compile(r"(.+?\.rule(?::[^@]+)?)(?:@(.*))?")
"""A rule of a file, and one at a site."""


def find_rule(spec: str, library: Library, ops: OpSet) -> Rule:
    """The rule that a user means: one of the library by its name, or one of a file.

    `./my.rule` is the only rule of that file, `./my.rule:name` one of several.

    Raises:
        ArchirError: A604, there is no such rule, with the nearest; A607, the file cannot be read.
    """
    parts = None if spec in library else _FILE.fullmatch(spec)
    if parts is None:
        return library.find(spec)
    rules = Library(read_rule_file(Path(parts["file"]), ops))
    if parts["name"]:
        return rules.find(parts["name"])
    if len(rules) == 1:
        return next(iter(rules.values()))
    count = "no rule" if not rules else f"{len(rules)} rules"
    hint = f"say which: {parts['file']}:{next(iter(rules), 'NAME')}"
    shown = f": {', '.join(rules)}" if rules else ""
    raise error("A604", f"{parts['file']} holds {count}{shown}", hint=hint if rules else "")


def split_site(spec: str) -> tuple[str, str]:
    """`RULE@SITE` as its two parts; a file's path may hold an `@` too."""
    parts = _SITED.fullmatch(spec)
    if parts is not None:
        return parts[1], parts[2] or ""
    name, _, site = spec.partition("@")
    return name, site


def rules_in(folder: Traversable, ops: OpSet, package: str) -> list[Rule]:
    """The rules of every ``.rule`` file of a folder, files in the order of their names."""
    found: list[Rule] = []
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".rule"):
            source = Source(entry.name, entry.read_text(encoding="utf-8"))
            found.extend(_parsed(source, ops, package))
    return found


@lru_cache(maxsize=256)
def _parsed(source: Source, ops: OpSet, package: str) -> tuple[Rule, ...]:
    """The rules of a text; reading all of them takes longer than loading a network does."""
    return tuple(parse_rules(source, ops, package))


def installed(ops: OpSet, points: Sequence[EntryPoint] | None = None) -> Library:
    """The rules of all installed packages.

    Raises:
        ArchirError: A203, two packages offer rules of one name; A214, a package cannot be read.
    """
    found: list[Rule] = []
    for point in entry_points(group=GROUP) if points is None else points:
        owner = point.dist.name if point.dist is not None else point.value
        try:
            folder = files(point.value)
        except (ImportError, TypeError) as reason:
            raise error(
                "A214",
                f"the rules of `{owner}` cannot be read: {reason}",
                hint=f"install {owner} again",
            ) from None
        found.extend(rules_in(folder, ops, owner))
    return Library(found)


def read_rule_file(path: Path, ops: OpSet) -> list[Rule]:
    """The rules of a user's file.

    Raises:
        ArchirError: A607, the file cannot be read; A2xx, what is wrong in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        what = reason.strerror if isinstance(reason, OSError) else "it is not UTF-8 text"
        raise error("A607", f"cannot read {path}: {what}") from None
    return parse_rules(Source(str(path), text), ops, str(path))
