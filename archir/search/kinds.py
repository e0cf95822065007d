"""Strategies and evaluators by name: those that are installed, and the user's own.

Importing this module needs no torch; what it hands out may.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast, get_type_hints

from archir.diag import ArchirError, error
from archir.search.parts import Evaluator, Kind
from archir.train.entries import check_entries, read_value, unknown
from archir.train.recipe import make_recipe
from archir.train.sources import read_name

GROUP = "archir.strategies"

EVALUATORS: Mapping[str, str] = {
    "training": "archir.search.training:Training",
    "rwe": "archir.search.rwe:Rwe",
    "params": "archir.search.proxies:Params",
    "macs": "archir.search.proxies:Macs",
    "synflow": "archir.search.proxies:SynFlow",
    "nwot": "archir.search.proxies:Nwot",
    "grad_norm": "archir.search.proxies:GradNorm",
    "snip": "archir.search.proxies:Snip",
    "jacov": "archir.search.proxies:Jacov",
}
"""Dataclasses by the name that users give them."""

_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")


def strategies(points: Sequence[EntryPoint] | None = None) -> dict[str, EntryPoint]:
    """The installed strategies by name.

    Raises:
        ArchirError: A716, two packages offer one of a name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP) if points is None else points:
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            told = f"two packages offer a strategy `{point.name}`: {other.value} and {point.value}"
            raise error("A716", told, hint="uninstall one of them")
    return dict(sorted(found.items()))


def find_kind(name: str, points: Sequence[EntryPoint] | None = None) -> Kind:
    """A strategy by its name, or as ``FILE.py:NAME``.

    Raises:
        ArchirError: A716, there is none, or it cannot be used; A622, a package that it needs is
            not installed.
    """
    own = _FILE.fullmatch(name)
    if own is not None:
        return _checked(name, read_name(Path(own["file"]), own["name"], "A716"))
    installed = strategies(points)
    if name not in installed:
        there = f"there are: {', '.join(installed)}; or FILE.py:NAME"
        raise unknown("A716", f"there is no strategy `{name}`", name, installed, there)
    return _checked(name, _loaded(f"the strategy `{name}`", installed[name].value))


def find_evaluator(name: str, entries: Mapping[str, Any], place: str) -> Evaluator:
    """An evaluator by its name.

    Args:
        name: One of :data:`EVALUATORS`, or ``FILE.py:NAME`` of a dataclass.
        entries: Its settings, as they stand in a file.
        place: What stands before a message about them, such as the names of file and table.

    Raises:
        ArchirError: A716, there is no such evaluator; A715, or A632 of a recipe, an entry is wrong.
    """
    own = _FILE.fullmatch(name)
    if own is None and name not in EVALUATORS:
        there = f"there are: {', '.join(EVALUATORS)}; or FILE.py:NAME"
        raise unknown("A716", f"there is no evaluator `{name}`", name, EVALUATORS, there)
    if own is not None:
        made: Any = read_name(Path(own["file"]), own["name"], "A716")
    else:
        made = _loaded(f"the evaluator `{name}`", EVALUATORS[name])
    if not (isinstance(made, type) and is_dataclass(made)):
        raise error("A716", f"the evaluator `{name}` is no dataclass")
    for entry in ("seed", "device"):
        if entry in entries:
            raise error("A715", f"{place}has no `{entry}`", hint="the search has one for all")
    if name == "training":
        recipe = make_recipe(entries, {}, place)
        return cast("Evaluator", cast("Any", made)(config=recipe))
    return cast("Evaluator", build(made, read_entries(made, entries, place), place))


def read_entries(config: type[Any], entries: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The entries of a table as a dataclass takes them.

    Raises:
        ArchirError: A715, an entry is unknown or of another kind.
    """
    hints = get_type_hints(config)
    kinds = {f.name: hints[f.name] for f in fields(config) if f.init}
    found = {}
    for name, value in entries.items():
        if name not in kinds:
            there = f"there are: {', '.join(kinds)}" if kinds else "it has none"
            raise unknown("A715", f"{where}has no entry `{name}`", name, kinds, there)
        found[name] = read_value("A715", where + name, value, kinds[name])
    return found


def build(base: Any, changes: Mapping[str, Any], where: str) -> Any:
    """A dataclass with some entries, or another one with some changed, when all are sensible.

    What a class says of itself in ``RANGES`` (the least and the most of a number, by name) is
    looked at, and what its ``__post_init__`` has to say.

    Raises:
        ArchirError: A715, an entry is out of its range, or the class refuses.
    """
    try:
        made = base(**changes) if isinstance(base, type) else replace(base, **changes)
    except ArchirError:
        raise
    except (TypeError, ValueError) as reason:
        raise error("A715", f"{where}is refused: {reason}") from None
    check_entries("A715", made, getattr(made, "RANGES", {}), where)
    return made


def _loaded(what: str, value: str) -> Any:
    """What an entry point's value names.

    Raises:
        ArchirError: A716, it is not there; A622, a package that it needs is not installed.
    """
    module, _, name = value.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as reason:
        missing = (reason.name or "").partition(".")[0]
        if missing in ("", "archir") or not module.startswith("archir."):
            raise error("A716", f"{what} cannot be loaded: {reason}") from reason
        extra = "torch" if missing == "torch" else "search"
        raise error(
            "A622",
            f"{what} needs {missing}, which is not installed",
            hint=f"pip install 'archir[{extra}]'",
        ) from reason
    except AttributeError as reason:
        raise error("A716", f"{what} cannot be loaded: {reason}") from reason


def _checked(name: str, kind: object) -> Kind:
    """A kind that settings can be read for.

    Raises:
        ArchirError: A716, it is none.
    """
    if not isinstance(kind, Kind):
        what = "is not there" if kind is None else f"is a {type(kind).__name__}"
        told = f"the strategy `{name}` {what}, it should be an archir.search.parts.Kind"
        raise error("A716", told)
    if not is_dataclass(kind.config):
        raise error("A716", f"the strategy `{name}` has no dataclass as its `config`")
    try:
        get_type_hints(kind.config)
    except Exception as reason:  # annotations are code, of whoever wrote them
        told = f"the `config` of the strategy `{name}` cannot be read: {reason}"
        raise error("A716", told) from None
    for preset, config in kind.presets.items():
        if not isinstance(config, kind.config):
            told = f"the preset `{preset}` of the strategy `{name}` is no {kind.config.__name__}"
            raise error("A716", told)
    if not re.fullmatch(r"[A-Za-z_]\w*", kind.name) or not kind.presets:
        raise error(
            "A716", f"the strategy `{name}` has no presets, or no name that a table can have"
        )
    return kind
