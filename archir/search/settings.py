"""The settings of a search: a TOML file, flags over it, and the strategy's preset below.

Importing this module needs no torch; a strategy's own module may.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from archir.diag import ArchirError, error
from archir.search.kinds import build, find_evaluator, find_kind, read_entries
from archir.search.parts import Evaluator, Kind, Strategy
from archir.search.run import SEARCH, read_search
from archir.train.entries import LARGEST, read_toml, read_value, unknown

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PIECE = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)"

_TIMES = ("max_latency", "max_time")
_SMALL = 2**63 - 1


@dataclass(frozen=True)
class SearchConfig:
    """What every search has, whatever its strategy. Times are in seconds."""

    strategy: str = "nash"
    """The name of an installed strategy, or ``FILE.py:NAME`` of your own."""
    preset: str = "small"
    """The values of the strategy that its table and ``--set`` change."""
    data: str = "digits"
    """A data set, as ``archir train --data`` takes it."""
    data_seed: int = 0
    """Draws the validation images, where the data set has none of its own."""
    seed: int = 0
    """Of all that is drawn."""
    evaluator: str | None = None
    """What scores networks in place of the strategy's own: one of the table below, or
    ``FILE.py:NAME``."""
    cost: Literal["macs", "params", "latency"] = "macs"
    """What the Pareto front sets against the score."""
    max_params: int | None = None
    """Parameters that a network may have."""
    max_macs: int | None = None
    """MACs that a network may have, for one image."""
    max_latency: float | None = None
    """Seconds that a network may take for one image in ONNX Runtime; ``"5ms"`` is 0.005, and the
    flag takes milliseconds."""
    max_time: float | None = None
    """Seconds after which the search takes no further step; ``"20m"`` and ``"1h30m"`` do too."""
    max_evaluations: int | None = None
    """Evaluations after which the search takes no further step."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``."""
    workers: int | Literal["auto"] = 1
    """Processes that evaluate side by side; ``auto``: as many as cores by ``threads``. Results do
    not depend on it."""
    threads: int = 1
    """Of each evaluation; float sums depend on it."""
    executor: Literal["auto", "ray"] = "auto"
    """Where evaluations run: ``auto``, in processes of this machine; ``ray``, on Ray, which may
    have several machines (``docs/cluster.md``). Results do not depend on it."""
    address: str | None = None
    """Of the Ray that is there: ``HOST:PORT``, or ``auto`` for the one on this machine; without it
    the search starts one of its own."""
    gpus: float = 1.0
    """Of each evaluation on Ray where the device is no CPU: one, or a part of one."""

    RANGES: ClassVar[Mapping[str, tuple[float, float]]] = {
        "data_seed": (0, _SMALL),
        "seed": (0, _SMALL),
        "max_params": (1, 10**15),
        "max_macs": (1, 10**18),
        "max_latency": (1e-6, 1e6),
        "max_time": (1e-3, 1e9),
        "max_evaluations": (1, 10**9),
        "workers": (1, 1024),
        "threads": (1, 1024),
        "gpus": (0.01, 1),
    }


ENTRIES = tuple(f.name for f in fields(SearchConfig))
_FREE = ("device", "workers", "executor", "address", "gpus")
"""Entries that a run may be gone on with otherwise: nothing in it depends on them, or, of the
device, its kind alone, which the engine looks at."""


@dataclass(frozen=True)
class Settings:
    """All that a search is told, beside its start network."""

    config: SearchConfig
    kind: Kind
    values: Any
    """The strategy's own entries: an instance of ``kind.config``."""
    evaluator: Mapping[str, Any] = field(default_factory=dict)
    """The table of the evaluator that the user has chosen."""
    moves: tuple[Mapping[str, Any], ...] = ()
    """The tables ``[[moves]]``."""
    where: str = ""
    """What stands before messages."""

    @property
    def needs_start(self) -> bool:
        """Whether the search starts from a network of the user's."""
        return self.kind.needs_start(self.values)

    def record(self) -> dict[str, Any]:
        """All of it as JSON values, in the form of a settings file; :func:`make_settings` reads it.

        Entries that are None are left out.
        """
        found = {k: v for k, v in asdict(self.config).items() if v is not None}
        found[self.kind.name] = _plain(asdict(self.values))
        if self.evaluator:
            *above, last = self.table.split(".")
            (found[above[0]] if above else found)[last] = _plain(self.evaluator)
        if self.moves:
            found["moves"] = [_plain(move) for move in self.moves]
        return found

    @property
    def table(self) -> str:
        """The dotted name of the evaluator's table; empty where it has none."""
        return _table_of(self.config.evaluator or "none", self.kind.name)

    def strategy(self) -> Strategy:
        """What :func:`archir.search.run.run_search` takes.

        Raises:
            ArchirError: A716, A715 or A632, of the evaluator; A720 and others, of the moves; those
                of the strategy.
        """
        evaluator = self.made_evaluator()
        moves = None
        if self.moves:
            from archir.search.space import read_moves  # noqa: PLC0415 - it reads all rules

            moves = read_moves(self.moves, self.where)
        return self.kind.make(self.values, moves=moves, evaluator=evaluator)

    def made_evaluator(self) -> Evaluator | None:
        """The evaluator that the user has chosen, if any.

        Raises:
            ArchirError: A716, A715 or A632.
        """
        config = self.config
        if config.evaluator is None:
            return None
        place = f"{self.where}[{self.table}] "
        return find_evaluator(config.evaluator, self.evaluator, place)


def read_settings(
    path: str | Path | None, changes: Mapping[str, Any], sets: Mapping[str, Any]
) -> Settings:
    """The settings of a file, with what is said otherwise.

    Args:
        path: A TOML file, if any.
        changes: Entries of :class:`SearchConfig` that take the place of the file's.
        sets: Entries of the strategy, and, with its table and a dot before them, of the evaluator.

    Raises:
        ArchirError: A601, the file cannot be read; A715, it is no TOML, or an entry is unknown, of
            another kind or out of its range; A716, there is no such strategy.
    """
    found = {} if path is None else read_toml(path, "A715")
    where = "" if path is None else f"{path}: "
    return _said(found, changes, sets, where)


def read_again(
    run_dir: Path, path: str | Path | None, changes: Mapping[str, Any], sets: Mapping[str, Any]
) -> Settings:
    """The settings that a run was started with; what is said beside them has to agree.

    Args:
        run_dir: The run folder.
        path: As of :func:`read_settings`, like the rest.
        changes: Those of what no result depends on (such as ``workers``) may differ.
        sets: Entries of the strategy and the evaluator.

    Raises:
        ArchirError: A702, something differs, with the old and the new value; A703, the folder holds
            no search; those of :func:`read_settings`.
    """
    record = read_search(run_dir)["settings"]
    held = make_settings(record, f"{run_dir / SEARCH}: ")
    found = {} if path is None else read_toml(path, "A715")
    said = _over(found, changes)
    where = "" if path is None else f"{path}: "
    names = [n for n in ("strategy", "evaluator") if n in said and said[n] != record.get(n, "none")]
    differing = [f"{n} was {_text(record.get(n, 'none'))}, is {_text(said[n])[:80]}" for n in names]
    # the tables of another strategy would be unknown ones
    given = held if differing else _said(_over(record, found), changes, sets, where)
    if differing := differing or _changed(held, given):
        raise error(
            "A702",
            f"{run_dir} holds another search: {', '.join(differing)}",
            hint="--resume alone goes on with what it was started with; or take another folder",
        )
    return replace(given, where="")


def _said(
    found: Mapping[str, Any], changes: Mapping[str, Any], sets: Mapping[str, Any], where: str
) -> Settings:
    """Settings with what flags say; a message about that names the flag, not the file."""
    try:
        return _set(_over(found, changes), sets, where)
    except ArchirError:
        if not _is_read(found):
            raise
        now: Mapping[str, Any] = found
        for name, value in changes.items():
            now = _over(now, {name: value})
            if not _is_read(now):
                unit = ", in seconds" if name in _TIMES else ""
                _set(now, {}, f"--{name.replace('_', '-')}{unit}: ")
        for name, value in sets.items():
            if not _is_read(now, {name: value}):
                _set(now, {name: value}, f"--set {name}: ")
        raise


def _is_read(found: Mapping[str, Any], sets: Mapping[str, Any] | None = None) -> bool:
    """Whether entries are settings."""
    try:
        _set(found, sets or {}, "")
    except ArchirError:
        return False
    return True


def _set(found: Mapping[str, Any], sets: Mapping[str, Any], where: str) -> Settings:
    """Settings with entries of the strategy and the evaluator put in."""
    kind = find_kind(_name(found, "strategy", where, "nash"))
    table = _table_of(_name(found, "evaluator", where, "none"), kind.name)
    for name, value in sets.items():
        owner, _, entry = name.rpartition(".")
        more: dict[str, Any] = {entry: value} if table and owner == table else {name: value}
        for part in reversed((table if table and owner == table else kind.name).split(".")):
            more = {part: more}
        found = _over(found, more)
    return make_settings(found, where, kind)


def make_settings(found: Mapping[str, Any], where: str = "", kind: Kind | None = None) -> Settings:
    """Settings from the entries of a file, or from a record.

    Raises:
        ArchirError: A715 or A716.
    """
    kind = kind or find_kind(_name(found, "strategy", where, "nash"))
    if kind.name in (*ENTRIES, "moves"):
        raise error("A716", f"the strategy's name `{kind.name}` is that of an entry")
    table = _table_of(_name(found, "evaluator", where, "none"), kind.name)
    above, _, within = table.rpartition(".")
    plain = {k: v for k, v in found.items() if k not in (kind.name, table, "moves")}
    for name, value in plain.items():
        if name not in ENTRIES:
            raise _no_entry(where, name, value, [t for t in (kind.name, table) if t])
    plain |= {k: _seconds(where, k, plain[k]) for k in _TIMES if k in plain}
    config = build(SearchConfig, read_entries(SearchConfig, plain, where), where)
    if config.preset not in kind.presets:
        there = f"{kind.name} has: {', '.join(kind.presets)}"
        told = f"{where}there is no preset `{config.preset}`"
        raise unknown("A715", told, config.preset, kind.presets, there)
    place = f"{where}[{kind.name}] "
    own = _table(found, kind.name, where)
    own = {k: v for k, v in own.items() if not above or k != within}
    values = read_entries(kind.config, own, place)
    values = build(kind.presets[config.preset], values, place)
    moves = found.get("moves", [])
    if not isinstance(moves, list) or not all(isinstance(move, dict) for move in moves):
        raise error("A715", f"{where}moves should be tables [[moves]]")
    chosen = _table(found, table, where) if table else {}
    settings = Settings(config, kind, values, chosen, tuple(moves), where)
    _as_json(settings.record(), where)
    return settings


def _changed(held: Settings, given: Settings) -> list[str]:
    """What makes one search another: for each entry the old and the new value."""
    old, new = (_flat(settings.record()) for settings in (held, given))
    return [
        f"{name} was {_text(old.get(name, 'none'))}, is {_text(new.get(name, 'none'))}"
        for name in {**old, **new}
        if name not in _FREE and old.get(name) != new.get(name)
    ]


def to_toml(record: Mapping[str, Any]) -> str:
    """A record as a TOML file."""
    top = {k: v for k, v in record.items() if k != "moves" and not isinstance(v, dict)}
    lines = [f"{_key(k)} = {_text(v)}" for k, v in top.items()]
    for name, table in record.items():
        if isinstance(table, dict):
            lines += ["", f"[{_key(name)}]", *(f"{_key(k)} = {_text(v)}" for k, v in table.items())]
    for move in record.get("moves", []):
        lines += ["", "[[moves]]", *(f"{_key(k)} = {_text(v)}" for k, v in move.items())]
    return "\n".join(lines) + "\n"


def duration(text: str) -> float | None:
    """Seconds from text such as ``90``, ``20m`` or ``1h30m``; None where it is no time."""
    bare = text.replace(" ", "").lower()
    if re.fullmatch(r"\d+(\.\d+)?", bare):
        return float(bare)
    if not re.fullmatch(f"({_PIECE})+", bare):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PIECE, bare))


def _seconds(where: str, name: str, value: object) -> object:
    """A time as a number of seconds."""
    if not isinstance(value, str) or value == "none":
        return value
    found = duration(value)
    if found is None or not found < LARGEST:
        raise error(
            "A715",
            f"{where}{name} is {value[:80]!r}, it should be a time",
            hint='such as 90 (seconds), "5ms", "20m" or "1h30m"',
        )
    return found


def _name(found: Mapping[str, Any], name: str, where: str, default: str) -> str:
    given: str = read_value("A715", where + name, found.get(name, default), str)
    return given


def _table_of(evaluator: str, strategy: str) -> str:
    """The dotted name of the table that holds an evaluator's entries; empty without one.

    Where it bears the strategy's name that table is the strategy's, and its own lies within.
    """
    name = evaluator.rpartition(":")[2]
    return "" if name == "none" else f"{name}.evaluator" if name == strategy else name


def _table(found: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    table: Any = found
    for part in name.split("."):
        table = table.get(part, {})
        if not isinstance(table, dict):
            raise error("A715", f"{where}{name} is {table!r:.80}, it should be a table [{name}]")
    return dict(table)


def _no_entry(where: str, name: str, value: object, tables: list[str]) -> ArchirError:
    if isinstance(value, dict):
        told = f"{where}this search reads no table [{name}]"
        here = " and ".join(f"[{table}]" for table in tables)
        return unknown("A715", told, name, tables, f"its strategy and evaluator read {here}")
    told = f"{where}a search has no entry `{name}`"
    hint = f"docs/search.md lists the entries; those of the strategy stand below [{tables[0]}]"
    return unknown("A715", told, name, ENTRIES, hint)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Entries over others; tables are merged entry by entry."""
    found = dict(below)
    for name, value in above.items():
        old = found.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            found[name] = _over(old, value)
        else:
            found[name] = value
    return found


def _plain(value: Any) -> Any:
    """Tuples as lists, and None, which TOML has not, as its word."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return "none" if value is None else value


def _as_json(record: Mapping[str, Any], where: str) -> None:
    """Make sure that settings can be written down: TOML has dates, and numbers that are none."""
    try:
        json.dumps(record, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as reason:
        raise error("A715", f"{where}an entry is no plain value: {reason}") from None


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the entries of its tables by dotted names."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= {f"{name}.{k}": v for k, v in _flat(value).items()}
        else:
            found[name] = value
    return found


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(k)} = {_text(v)}' for k, v in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)
