"""How functions of single entries, comparisons and choices are written in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from .frame import DTYPES, Site

Lowering = Callable[[Site], None]


def _plain(op: str) -> Lowering:
    def lowering(at: Site) -> None:
        at.emit(op, *at.args)

    return lowering


def _scalar(at: Site, role: str, value: float) -> str:
    return at.constant(role, np.asarray(value, at.dtype))


def _rsqrt(at: Site) -> None:
    at.emit("Reciprocal", at.helper("root", "Sqrt", *at.args))


def _pow(at: Site) -> None:
    at.emit("Pow", *at.args, _scalar(at, "exponent", at.attr("exponent")))


def _cast(at: Site) -> None:
    at.emit("Cast", *at.args, to=DTYPES[at.attr("dtype")])


def _log_sigmoid(at: Site) -> None:
    at.emit("Neg", at.helper("log", "Softplus", at.helper("below", "Neg", *at.args)))


def _threshold(at: Site) -> None:
    (x,) = at.args
    above = at.helper("above", "Greater", x, _scalar(at, "threshold", at.attr("threshold")))
    at.emit("Where", above, x, _scalar(at, "value", at.attr("value")))


def _hardshrink(at: Site) -> None:
    at.emit("Shrink", *at.args, lambd=at.attr("width"), bias=0.0)


def _softshrink(at: Site) -> None:
    at.emit("Shrink", *at.args, lambd=at.attr("width"), bias=at.attr("width"))


def _not_equal(at: Site) -> None:
    at.emit("Not", at.helper("equal", "Equal", *at.args))


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "log": _plain("Log"),
        "reciprocal": _plain("Reciprocal"),
        "rsqrt": _rsqrt,
        "sin": _plain("Sin"),
        "cos": _plain("Cos"),
        "tan": _plain("Tan"),
        "atan": _plain("Atan"),
        "erf": _plain("Erf"),
        "sign": _plain("Sign"),
        "floor": _plain("Floor"),
        "ceil": _plain("Ceil"),
        "round": _plain("Round"),
        "pow": _pow,
        "power": _plain("Pow"),
        "cast": _cast,
        "log_sigmoid": _log_sigmoid,
        "threshold": _threshold,
        "hardshrink": _hardshrink,
        "softshrink": _softshrink,
        "minimum": _plain("Min"),
        "maximum": _plain("Max"),
        "equal": _plain("Equal"),
        "not_equal": _not_equal,
        "less": _plain("Less"),
        "less_equal": _plain("LessOrEqual"),
        "greater": _plain("Greater"),
        "greater_equal": _plain("GreaterOrEqual"),
        "logical_and": _plain("And"),
        "logical_or": _plain("Or"),
        "logical_xor": _plain("Xor"),
        "logical_not": _plain("Not"),
        "where": _plain("Where"),
    }
)
"""These operators in ONNX."""
