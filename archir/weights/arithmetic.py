"""Weight functions that compute entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from archir.ops.arithmetic import Arithmetic, Array
from archir.weights.record import (
    Shape,
    WeightError,
    WeightFunction,
    axis_of,
    need,
    whole,
)


def _broadcast(a: Shape | float, b: Shape | float) -> Shape:
    one = a if isinstance(a, tuple) else ()
    two = b if isinstance(b, tuple) else ()
    try:
        return np.broadcast_shapes(one, two)
    except ValueError:
        raise WeightError(f"shapes {one} and {two} do not broadcast") from None


def _number(k: Arithmetic, x: Any) -> Array:
    return x if isinstance(x, np.ndarray) else k.array(x)


def _binary(name: str) -> Callable[..., Array]:
    def compute(k: Arithmetic, a: Any, b: Any) -> Array:
        result: Array = getattr(k, name)(_number(k, a), _number(k, b))
        return result

    return compute


def _divide_along_shape(w: Shape, v: Shape, axis: int) -> Shape:
    axis = axis_of("a vector along an axis", w, axis)
    need(v == (w[axis],), f"{v} along axis {axis} of {w}")
    return w


def _scale_along(name: str) -> Callable[..., Array]:
    def compute(k: Arithmetic, w: Array, v: Array, axis: int) -> Array:
        spread = v.reshape(tuple(-1 if i == axis % w.ndim else 1 for i in range(w.ndim)))
        result: Array = getattr(k, name)(w, spread)
        return result

    return compute


def _scale(k: Arithmetic, w: Array, p: int, q: int) -> Array:
    return k.multiply(w, np.asarray(k.number(Fraction(p, q))))


def _scale_shape(w: Shape, p: int, q: int) -> Shape:
    whole("scale", p, q)
    need(q, "scale: a fraction with the denominator 0")
    return w


def _arithmetic(name: str, signature: str, doc: str) -> WeightFunction:
    return WeightFunction(name, signature, doc, 2, _broadcast, _binary(name), numbers=True)


ARITHMETIC = (
    WeightFunction(
        "sqrt",
        "sqrt(v)",
        "The square root of each entry.",
        1,
        lambda v: v,
        lambda k, v: k.sqrt(v),
    ),
    _arithmetic("add", "a + b", "The sum, with broadcasting."),
    _arithmetic("subtract", "a - b", "The difference, with broadcasting."),
    WeightFunction(
        "scale",
        "scale(w, p, q)",
        "The tensor times the fraction p / q of whole numbers.",
        1,
        _scale_shape,
        _scale,
    ),
    _arithmetic("multiply", "a * b", "The product, with broadcasting."),
    _arithmetic("divide", "a / b", "The quotient, with broadcasting."),
    WeightFunction(
        "divide_along",
        "divide_along(w, v, axis)",
        "A tensor divided by a vector along one of its axes. In a rule over a class, `/ count(g)`.",
        2,
        _divide_along_shape,
        _scale_along("divide"),
    ),
    WeightFunction(
        "multiply_along",
        "multiply_along(w, v, axis)",
        "A tensor multiplied by a vector along one of its axes. In a rule over a class, "
        "`* count(g)`.",
        2,
        _divide_along_shape,
        _scale_along("multiply"),
    ),
)
