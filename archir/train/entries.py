"""Entries of TOML files as flat dataclasses: what recipes and the settings of searches share.

Importing this module needs no torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from archir.diag import ArchirError, error
from archir.files import read_source

LARGEST = 1e300
"""Beyond it numbers count as none: integers may be too large for a float."""

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    NoneType: "`none`",
}


def read_toml(path: str | Path, code: str) -> dict[str, Any]:
    """The entries of a TOML file.

    Raises:
        ArchirError: A601, it cannot be read; the given code, it is no TOML.
    """
    try:
        return tomllib.loads(read_source(path).text)
    except ValueError as reason:  # an integer of 5,000 digits, for one
        raise error(code, f"{path} is no TOML: {reason}") from None
    except RecursionError:
        raise error(code, f"{path} is no TOML: it nests too deeply") from None


def unknown(
    code: str, message: str, name: str, known: Iterable[str], otherwise: str
) -> ArchirError:
    """The error of an entry that there is not, with the nearest one."""
    close = get_close_matches(name, list(known), 1)
    return error(code, message, hint=f"did you mean `{close[0]}`?" if close else otherwise)


def listed(names: Iterable[object]) -> str:
    """Names as people list them: ``a, b or c``."""
    *some, last = map(str, names)
    return f"{', '.join(some)} or {last}" if some else last


def read_value(code: str, name: str, value: object, kind: Any) -> Any:
    """A value of the kind that an entry's type says; where None is one it is written ``none``.

    Args:
        code: Of the error.
        name: What the message calls the entry.
        value: As it stands in the file.
        kind: The type: of a number, a string, a boolean, a ``Literal``, a tuple of such, or a
            union of them.

    Raises:
        ArchirError: the value is of another kind.
    """
    try:
        return _as(value, kind)
    except TypeError:
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."
        raise error(code, f"{name} is {shown}, it should be {_described(kind)}") from None


def _as(value: object, kind: Any) -> Any:
    """A value of a kind; TypeError where it is none."""
    origin, choices = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        if NoneType in choices and value in (None, "none"):
            return None
        for choice in choices:
            try:
                return _as(value, choice)
            except TypeError:
                continue
        raise TypeError
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        kinds = choices[:1] * len(value) if Ellipsis in choices else choices
        if len(kinds) != len(value):
            raise TypeError
        return tuple(map(_as, value, kinds))
    if origin is Literal and any(type(value) is type(c) and value == c for c in choices):
        return value
    if kind is float and is_number(value):
        return float(value)
    if kind is not float and type(value) is kind:
        return value
    raise TypeError


def _described(kind: Any) -> str:
    """A kind of values as a message names it."""
    origin, choices = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return listed(dict.fromkeys(map(_described, choices)))
    if origin is tuple:
        if Ellipsis not in choices:
            return f"a list of {len(choices)}"
        word = _described(choices[0])
        return f"a list of {word.removeprefix('a ')}{'s' * word.startswith('a ')}"
    if origin is Literal:
        return listed(choices)
    return _KINDS.get(kind, str(kind))


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number that a float can be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -LARGEST < value < LARGEST


def check_entries(
    code: str, config: Any, ranges: Mapping[str, tuple[float, float]], where: str = ""
) -> None:
    """Make sure of the kinds of entries and of the ranges of numbers.

    Args:
        code: Of the error.
        config: A dataclass.
        ranges: The least and the most of its numbers, by name; None lies in each.
        where: What stands before a message, such as the name of a file.

    Raises:
        ArchirError: with the entry and its range.
    """
    hints = get_type_hints(type(config))
    for name in (entry.name for entry in fields(config)):
        value = read_value(code, where + name, getattr(config, name), hints[name])
        if name not in ranges:
            continue
        least, most = ranges[name]
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, int | float) and not least <= number <= most:
                told = f"{where}{name} is {number}, it should be from {least:g} to {most:g}"
                raise error(code, told)
