"""Python source laid out as ruff and black do, for the few forms that are written here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 88
"""Columns: the default of ruff and of black."""


@dataclass(frozen=True)
class Group:
    """Something in brackets: a call with its arguments, or a list, tuple or dict.

    Each item is what stands before its value (``stride=``, ``"a": ``, ``*``) and the value.
    """

    head: str
    items: tuple[tuple[str, Doc], ...]
    brackets: str = "()"

    @property
    def is_call(self) -> bool:
        """Whether it is a call, whose arguments may share a line of their own."""
        return bool(self.head)


Doc = str | Group
"""An expression: text that stays on one line, or something that can be broken up."""


def call(head: str, *values: Doc, **named: Doc) -> Group:
    """A call."""
    items = [("", value) for value in values]
    return Group(head, (*items, *((f"{name}=", value) for name, value in named.items())))


def flat(doc: Doc) -> str:
    """An expression on one line."""
    if isinstance(doc, str):
        return doc
    inner = ", ".join(before + flat(value) for before, value in doc.items)
    lone = doc.brackets == "()" and not doc.is_call and len(doc.items) == 1
    return f"{doc.head}{doc.brackets[0]}{inner}{',' * lone}{doc.brackets[1]}"


def lay(before: str, doc: Doc, indent: int, after: str = "") -> list[str]:
    """A statement, or a part of one, in as many lines as it takes.

    Args:
        before: What stands before the expression, such as ``x = `` or ``return ``.
        doc: The expression.
        indent: Columns of indentation.
        after: What follows it, such as a comma.
    """
    margin = " " * indent
    whole = margin + before + flat(doc) + after
    if len(whole) <= WIDTH:
        return [whole]
    if isinstance(doc, str):
        inner = f"{margin}    {doc}"
        if before.endswith("= ") and not after and len(inner) <= WIDTH and " " in doc:
            return [f"{margin}{before}(", inner, f"{margin})"]
        return [whole]
    lines = [f"{margin}{before}{doc.head}{doc.brackets[0]}"]
    together = f"{margin}    {', '.join(b + flat(v) for b, v in doc.items)}"
    if doc.is_call and len(together) <= WIDTH:
        lines.append(together)
    else:
        comma = "," if len(doc.items) > 1 or not doc.is_call else ""
        for prefix, value in doc.items:
            lines += lay(prefix, value, indent + 4, comma)
    return [*lines, f"{margin}{doc.brackets[1]}{after}"]


def unpacked(names: Sequence[str], doc: Doc, indent: int) -> list[str]:
    """An assignment of an expression's parts to several names."""
    left = ", ".join(names)
    if indent + len(left) + len(flat(doc)) + 3 <= WIDTH or len(names) == 1:
        return lay(f"{left} = ", doc, indent)
    if isinstance(doc, Group) and indent + len(left) + len(doc.head) + 4 <= WIDTH:
        return lay(f"{left} = ", doc, indent)
    margin = " " * indent
    return [
        f"{margin}(",
        *(f"{margin}    {name}," for name in names),
        *lay(") = ", doc, indent),
    ]


def returned(values: Sequence[Doc], indent: int) -> list[str]:
    """A return statement."""
    if len(values) == 1:
        return lay("return ", values[0], indent)
    line = " " * indent + "return " + ", ".join(map(flat, values))
    if len(line) <= WIDTH:
        return [line]
    return lay("return ", Group("", tuple(("", value) for value in values)), indent)


def header(name: str, parameters: Sequence[str], result: str, indent: int) -> list[str]:
    """The first line or lines of a function."""
    margin = " " * indent
    line = f"{margin}def {name}({', '.join(parameters)}) -> {result}:"
    if len(line) <= WIDTH:
        return [line]
    together = f"{margin}    {', '.join(parameters)}"
    inner = [together] if len(together) <= WIDTH else [f"{margin}    {p}," for p in parameters]
    return [f"{margin}def {name}(", *inner, f"{margin}) -> {result}:"]


def literal(value: object) -> str:
    """A number, text, or tuple of them as Python writes it, text in double quotes."""
    if isinstance(value, str):
        plain = value.isprintable() and '"' not in value and "\\" not in value
        return f'"{value}"' if plain else repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, tuple):
        inner = ", ".join(map(literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    return repr(value)
