"""Weight functions that compute entry by entry, with the gradient maps of what is linear."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from archir.ops.arithmetic import Arithmetic, Array
from archir.weights.record import (
    Gradient,
    Shape,
    WeightError,
    WeightFunction,
    axis_of,
    need,
    whole,
)
from archir.weights.terms import Apply, Argument, Term


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


def _share(k: Arithmetic, m: Array, v: Any, powers: int, axis: int | None = None) -> Array:
    """The map of moments that belongs to ``w * v``, with the copies that broadcasting makes.

    Entry i of w becomes the entries w[i] * v[i, j]; the transposed pseudo-inverse of that is
    c[i, j] = v[i, j] / sum_j v[i, j]**2 (0 where all are 0), applied ``powers`` times. With an
    axis, v is a vector along it.
    """
    v = _number(k, v)
    if axis is not None:
        v = v.reshape(tuple(-1 if i == axis % m.ndim else 1 for i in range(m.ndim)))
    shape = np.broadcast_shapes(m.shape, v.shape)
    rank = len(shape)
    aligned = m.reshape((1,) * (rank - m.ndim) + m.shape)
    v = np.broadcast_to(v, shape)
    over = tuple(i for i in range(rank) if aligned.shape[i] != shape[i])
    total = k.sum(k.multiply(v, v), over).reshape(aligned.shape)
    none = total == 0
    safe = np.where(none, k.array(np.ones(total.shape, np.int64)), total)
    share = np.where(none, k.array(np.zeros(v.shape, np.int64)), k.divide(v, safe))
    out = np.broadcast_to(aligned, shape)
    for _ in range(powers):
        out = k.multiply(out, share)
    return out


def _linear(
    name: str,
    coefficient: Callable[[int, Any], Argument],
    linear_in: tuple[int, ...] = (0, 1),
) -> Gradient:
    """The gradient map of an operation that is linear in each of its two arguments.

    ``coefficient`` gives, for the argument in the place ``which`` that holds the parent's tensor,
    what it is multiplied by, from the other argument.
    """

    def moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
        held = [i for i in (0, 1) if moments[i] is not None]
        if not held:
            return None
        need(len(held) == 1, f"a {name} of two of the parent's tensors has no gradient map")
        (which,) = held
        need(which in linear_in, f"a {name} by one of the parent's tensors has no gradient map")
        factor = coefficient(which, args[1 - which])
        made: Term = Apply("share", (moments[which], factor, 2 if squared else 1))
        return made

    return moment


def _one(other: Any) -> Term:
    return Apply("add", (Apply("multiply", (other, 0)), 1))


_PLUS = _linear("sum", lambda which, other: _one(other))
_MINUS = _linear(
    "difference",
    lambda which, other: _one(other) if which == 0 else Apply("multiply", (_one(other), -1)),
)
_TIMES = _linear("product", lambda which, other: other)
_OVER = _linear("quotient", lambda which, other: Apply("divide", (1, other)), linear_in=(0,))


def _nonlinear(name: str) -> Gradient:
    def moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
        need(moments[0] is None, f"`{name}` of the parent's tensor has no gradient map")
        return None

    return moment


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


def _along_moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
    need(moments[1] is None, "a vector of the parent along an axis has no gradient map")
    return (
        None
        if moments[0] is None
        else Apply("share", (moments[0], args[1], 2 if squared else 1, args[2]))
    )


def _divide_along_moment(
    args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool
) -> Term | None:
    return _along_moment((args[0], Apply("divide", (1, args[1])), args[2]), moments, squared)


def _scale(k: Arithmetic, w: Array, p: int, q: int) -> Array:
    return k.multiply(w, np.asarray(k.number(Fraction(p, q))))


def _scale_shape(w: Shape, p: int, q: int) -> Shape:
    whole("scale", p, q)
    need(q, "scale: a fraction with the denominator 0")
    return w


def _scale_moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
    _, p, q = args
    if moments[0] is None:
        return None
    term: Term = moments[0]
    for _ in range(2 if squared else 1):
        term = Apply("scale", (term, q, p)) if p else Apply("scale", (term, 0, 1))
    return term


def _arithmetic(name: str, signature: str, doc: str, gradient: Gradient) -> WeightFunction:
    return WeightFunction(
        name, signature, doc, 2, _broadcast, _binary(name), gradient, numbers=True
    )


ARITHMETIC = (
    WeightFunction(
        "sqrt",
        "sqrt(v)",
        "The square root of each entry.",
        1,
        lambda v: v,
        lambda k, v: k.sqrt(v),
        _nonlinear("sqrt"),
    ),
    _arithmetic("add", "a + b", "The sum, with broadcasting.", _PLUS),
    _arithmetic("subtract", "a - b", "The difference, with broadcasting.", _MINUS),
    WeightFunction(
        "scale",
        "scale(w, p, q)",
        "The tensor times the fraction p / q of whole numbers.",
        1,
        _scale_shape,
        _scale,
        _scale_moment,
    ),
    _arithmetic("multiply", "a * b", "The product, with broadcasting.", _TIMES),
    _arithmetic("divide", "a / b", "The quotient, with broadcasting.", _OVER),
    WeightFunction(
        "divide_along",
        "divide_along(w, v, axis)",
        "A tensor divided by a vector along one of its axes. In a rule over a class, `/ count(g)`.",
        2,
        _divide_along_shape,
        _scale_along("divide"),
        _divide_along_moment,
    ),
    WeightFunction(
        "multiply_along",
        "multiply_along(w, v, axis)",
        "A tensor multiplied by a vector along one of its axes. In a rule over a class, "
        "`* count(g)`.",
        2,
        _divide_along_shape,
        _scale_along("multiply"),
        _along_moment,
    ),
)

SHARE = WeightFunction(
    "share",
    "share(m, v, powers, axis)",
    "The gradient map of a product; no rule can say it.",
    2,
    lambda m, v, powers, axis=None: m if axis is not None else _broadcast(m, v),
    _share,
    numbers=True,
)
"""The gradient map of a product."""
