"""Scalar values of the language and their arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from archir.ir.dims import Dim, Size, product, quotient, total
from archir.ir.types import DTYPES

MAX_INTEGER = 2**53
"""Integers beyond this are refused: nothing in a network is that large."""

CONSTANTS: dict[str, object] = {
    "same": "same",
    "inf": math.inf,
    "nan": math.nan,
    **{dtype: dtype for dtype in DTYPES},
}
"""Names that stand for themselves where nothing else is bound to them."""


class ScalarError(Exception):
    """Scalars do not go together; the text says how."""


def is_number(value: object) -> bool:
    """Whether a value is an integer, a float or a symbolic size."""
    return isinstance(value, int | float | Dim) and not isinstance(value, bool)


def show(value: object) -> str:
    """A scalar as it is written in the language."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        text = "[" + ", ".join(show(v) for v in value[:8]) + (", ..." if len(value) > 8 else "")
        return text + "]"
    return str(value)


def arithmetic(op: str, a: Any, b: Any) -> Any:
    """``a op b`` for ``+ - * / // %``.

    Raises:
        ScalarError: the operands are not numbers, the divisor is zero, a symbolic size would
            have no closed form, or the result is out of range.
    """
    if not (is_number(a) and is_number(b)):
        raise ScalarError(f"`{op}` needs numbers, got {show(a)} and {show(b)}")
    if op in "//%" and b == 0:
        raise ScalarError(f"division by zero: {show(a)} {op} 0")
    if isinstance(a, Dim) or isinstance(b, Dim):
        result: object = _symbolic(op, a, b)
    else:
        try:
            result = _NUMERIC[op](a, b)
        except OverflowError:
            raise ScalarError("the number is out of range") from None
    if isinstance(result, int) and abs(result) > MAX_INTEGER:
        raise ScalarError(f"{show(a)} {op} {show(b)} is out of range")
    return result


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int) and a % b == 0:
        return a // b
    return a / b


_NUMERIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}


def _symbolic(op: str, a: Any, b: Any) -> Size:
    if isinstance(a, float) or isinstance(b, float):
        raise ScalarError(f"a symbolic size goes with whole numbers only: {show(a)} {op} {show(b)}")
    found: Size | None = None
    if op == "*":
        found = product([a, b])
    elif op in ("/", "//"):
        found = quotient(a, b)
    elif op in ("+", "-"):
        found = total([a, b if op == "+" else product([-1, b])])
    if found is None:
        raise ScalarError(f"{show(a)} {op} {show(b)} cannot be written as a size")
    return found


def compare(op: str, a: Any, b: Any) -> bool:
    """``a op b`` for the comparisons.

    Raises:
        ScalarError: an order is asked of what has none.
    """
    if op == "==":
        return bool(a == b)
    if op == "!=":
        return bool(a != b)
    if not (is_number(a) and is_number(b)) or isinstance(a, Dim) or isinstance(b, Dim):
        raise ScalarError(f"`{op}` compares numbers, got {show(a)} and {show(b)}")
    return bool({"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[op])
