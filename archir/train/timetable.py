"""When a network grows in training, and by which rules: the file of ``archir train --grow``.

Importing this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archir.api import Application, Network, rewrite
from archir.applying import named_applications
from archir.diag import ArchirError, error
from archir.ir.types import AttrValue
from archir.ops.cost import Cost
from archir.rewrite.sites import looks_at_weights
from archir.train.entries import read_toml, unknown

_ENTRIES = ("step", "epoch", "rule", "rules", "at", "set", "seed")


@dataclass(frozen=True)
class Change:
    """One growth: rules that are applied together before a step is taken.

    Either ``step``, from 0, or ``epoch``, from 1, before whose first step it comes.
    """

    applications: tuple[Application, ...]
    step: int | None = None
    epoch: int | None = None
    seed: int = 0

    def due(self, per_epoch: int) -> int:
        """The step before which it comes, in epochs of so many steps."""
        return self.step if self.step is not None else (_one(self.epoch) - 1) * per_epoch

    @property
    def when(self) -> str:
        """The time in the file's words."""
        return f"step {self.step}" if self.step is not None else f"epoch {self.epoch}"

    def record(self, network: Network) -> dict[str, Any]:
        """The change as JSON values: what a run depends on."""
        rules = [
            {
                "rule": found.rule,
                "hash": network.rule(found.rule).hash,
                "at": found.at,
                "set": {k: list(v) if isinstance(v, tuple) else v for k, v in _sorted(found)},
            }
            for found in self.applications
        ]
        when = {"step": self.step} if self.step is not None else {"epoch": self.epoch}
        return {**when, "rules": rules, "seed": self.seed}


def _one(epoch: int | None) -> int:
    assert epoch is not None, "a change has a step or an epoch"
    return epoch


def _sorted(found: Application) -> list[tuple[str, AttrValue]]:
    return sorted(found.arguments.items())


def read_timetable(path: str | Path, network: Network) -> tuple[Change, ...]:
    """The growths that a TOML file lists, each a table ``[[grow]]``.

    Raises:
        ArchirError: A601, the file cannot be read; A680, it is no TOML, or an entry is unknown,
            missing or of another kind; A604 or A607, there is no such rule.
    """
    found = read_toml(path, "A680")
    for name in found:
        if name != "grow":
            raise error("A680", f"{path}: unknown entry `{name}`", hint="growths are [[grow]]")
    tables = found.get("grow")
    if not isinstance(tables, list) or not tables:
        raise error("A680", f"{path} lists no growth", hint="each is a table [[grow]]")
    return tuple(_change(f"{path}: growth {n}", t, network) for n, t in enumerate(tables, 1))


def _change(where: str, table: object, network: Network) -> Change:
    if not isinstance(table, dict):
        raise error("A680", f"{where} is {table!r}, it should be a table [[grow]]")
    for name in table:
        if name not in _ENTRIES:
            message = f"{where} has the unknown entry `{name}`"
            raise unknown("A680", message, name, _ENTRIES, f"known: {', '.join(_ENTRIES)}")
    step, epoch = (_whole(where, table, name, least) for name, least in (("step", 0), ("epoch", 1)))
    if (step is None) == (epoch is None):
        raise error("A680", f"{where}: either `step` or `epoch` tells when")
    at = table.get("at")
    if at is not None and not isinstance(at, str):
        raise error("A680", f"{where}: at is {at!r}, it should be a string")
    settings = table.get("set", {})
    if not isinstance(settings, dict):
        raise error("A680", f"{where}: set is {settings!r}, it should be a table of parameters")
    specs = _specs(where, table)
    seed = _whole(where, table, "seed", 0) or 0
    try:
        named = named_applications(network, specs, at, _flat(f"{where}: set", settings))
    except ArchirError as failure:
        raise _at(where, failure) from None
    return Change(tuple(named), step, epoch, seed)


def _whole(where: str, table: Mapping[str, Any], name: str, least: int) -> int | None:
    value = table.get(name)
    if value is None or (type(value) is int and least <= value < 2**63):
        return value
    kind = f"a whole number from {least}"
    raise error("A680", f"{where}: {name} is {value!r}, it should be {kind}")


def _specs(where: str, table: Mapping[str, Any]) -> list[str]:
    """The rules that a growth names, as RULE or RULE@SITE."""
    if ("rule" in table) == ("rules" in table):
        raise error("A680", f"{where}: either `rule` or `rules` tells what is applied")
    name = "rule" if "rule" in table else "rules"
    found = [table["rule"]] if name == "rule" else table["rules"]
    if isinstance(found, list) and found and all(isinstance(f, str) and f for f in found):
        return found
    kind = "a string" if name == "rule" else "a list of strings"
    raise error("A680", f"{where}: {name} is {table[name]!r}, it should be {kind}")


def _flat(where: str, settings: Mapping[str, Any]) -> dict[str, AttrValue]:
    """Settings by name; TOML reads ``widen.width = 32`` as a table within a table."""
    found: dict[str, AttrValue] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= {f"{name}.{k}": v for k, v in _flat(f"{where}.{name}", value).items()}
        elif isinstance(value, list) and all(isinstance(v, bool | int | float) for v in value):
            found[name] = tuple(value)
        elif isinstance(value, bool | int | float | str):
            found[name] = value
        else:
            kind = "a number, a string, true, false or a list of numbers"
            raise error("A680", f"{where}.{name} is {value!r}, it should be {kind}")
    return found


def check_times(changes: Sequence[Change], per_epoch: int, steps: int) -> None:
    """Make sure that growths come in order and within a run.

    Raises:
        ArchirError: A681.
    """
    last = 0
    for number, change in enumerate(changes, 1):
        due = change.due(per_epoch)
        if due >= steps:
            raise error(
                "A681",
                f"growth {number} comes at {change.when}, the run has {steps} steps "
                f"({steps // per_epoch} epochs of {per_epoch})",
            )
        if due < last:
            raise error(
                "A681",
                f"growth {number} comes at {change.when}, before growth {number - 1} "
                f"({changes[number - 2].when}; an epoch has {per_epoch} steps)",
                hint="growths stand in the order in which they come",
            )
        last = due


def rehearse(network: Network, changes: Sequence[Change]) -> list[Cost]:
    """Apply growths to the text alone, so that what cannot work fails before anything is trained.

    Rules that look at weights can only be planned when they are due: there it ends.

    Returns:
        What the network costs after each growth that was tried.

    Raises:
        ArchirError: A30x, a rule does not apply; A31x or A40x, it may not, or a check failed.
    """
    bare, found = replace(network, weights=None), []
    for number, change in enumerate(changes, 1):
        if any(looks_at_weights(network.rule(a.rule)) for a in change.applications):
            break
        try:
            done = rewrite(bare, change.applications, seed=change.seed)
        except ArchirError as failure:
            raise named(failure, number, change) from None
        bare = done.network
        found.append(done.after)
    return found


def named(failure: ArchirError, number: int, change: Change) -> ArchirError:
    """The error of a rewrite that says which growth it belongs to."""
    return _at(f"growth {number} ({change.when})", failure)


def _at(where: str, failure: ArchirError) -> ArchirError:
    first, *others = failure.diagnostics
    first = replace(first, message=f"{where}: {first.message}")
    return ArchirError(first, *others, status=failure.status)
