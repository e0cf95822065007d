"""The closed list of weight functions, each with its shape rule, value and gradient map.

The gradient map says how an accumulated gradient (a first moment) of the parent becomes that
of the child: the transposed pseudo-inverse of the linear map that makes the child's tensor. A
replicated row takes ``dW[g] / n``, a divided column keeps ``dW``. Second moments follow with
squared coefficients. What is constant starts at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from archir.ops.arithmetic import Arithmetic, Array
from archir.weights.terms import Apply, Argument, IndexMap, Ref, Statistic, Term

Shape = tuple[int, ...]
Gradient = Callable[[tuple[Any, ...], tuple[Any, ...], bool], Term | None]


class WeightError(Exception):
    """A weight term is ill-formed; the text says how, with shapes."""


@dataclass(frozen=True)
class WeightFunction:
    """A function of the weight language.

    ``shape`` maps the shapes of tensor arguments (other arguments as they are) to the result's;
    ``gradient`` gets the arguments, the arguments with tensors replaced by their moments (None
    for constants), and whether the moment is a second one.
    """

    name: str
    signature: str
    doc: str
    shape: Callable[..., Shape]
    value: Callable[..., Array]
    gradient: Gradient | None = None


def _need(condition: object, text: str) -> None:
    if not condition:
        raise WeightError(text)


def _axis(shape: Shape, axis: object) -> int:
    _need(isinstance(axis, int) and -len(shape) <= axis < len(shape), f"no axis {axis} in {shape}")
    assert isinstance(axis, int)
    return axis % len(shape)


# --- gathering ------------------------------------------------------------------------------


def _take_shape(w: Shape, g: IndexMap, axis: int) -> Shape:
    axis = _axis(w, axis)
    _need(isinstance(g, IndexMap), "take needs an index map")
    _need(w[axis] == g.source, f"take: axis {axis} has size {w[axis]}, the map is over {g.source}")
    return (*w[:axis], len(g.entries), *w[axis + 1 :])


def _take(k: Arithmetic, w: Array, g: IndexMap, axis: int) -> Array:
    return np.take(w, g.entries, axis=axis)


def _take_moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
    _, g, axis = args
    if moments[0] is None:
        return None
    shares = Apply("count", (g,))
    term: Term = Apply("take", (moments[0], g, axis))
    for _ in range(2 if squared else 1):
        term = Apply("divide_along", (term, shares, axis))
    return term


def _count(k: Arithmetic, g: IndexMap) -> Array:
    return k.array(g.counts())


def _slice_shape(w: Shape, axis: int, start: int, stop: int) -> Shape:
    axis = _axis(w, axis)
    _need(0 <= start <= stop <= w[axis], f"slice {start}:{stop} of an axis of size {w[axis]}")
    return (*w[:axis], stop - start, *w[axis + 1 :])


def _slice(k: Arithmetic, w: Array, axis: int, start: int, stop: int) -> Array:
    return w[(slice(None),) * (axis % w.ndim) + (slice(start, stop),)]


# --- making ---------------------------------------------------------------------------------


def _sizes(*sizes: int | tuple[int, ...]) -> Shape:
    flat = tuple(n for s in sizes for n in (s if isinstance(s, tuple) else (s,)))
    _need(all(n >= 0 for n in flat), f"not a shape: {flat}")
    return flat


def _identity_shape(channels: int, *kernel: int | tuple[int, ...]) -> Shape:
    taps = _sizes(*kernel)
    _need(all(k % 2 for k in taps), f"an identity kernel has odd extents, got {taps}")
    return (channels, channels, *taps)


def _identity(k: Arithmetic, channels: int, *kernel: int | tuple[int, ...]) -> Array:
    shape = _identity_shape(channels, *kernel)
    out = np.zeros(shape, np.int64)
    centre = tuple(size // 2 for size in shape[2:])
    diagonal = np.arange(channels)
    out[(diagonal, diagonal, *(np.full(channels, c) for c in centre))] = 1
    return k.array(out)


def _filled(value: float) -> Callable[..., Array]:
    def make(k: Arithmetic, *sizes: int | tuple[int, ...]) -> Array:
        return np.broadcast_to(k.array(value), _sizes(*sizes)).copy()

    return make


# --- moving ---------------------------------------------------------------------------------


def _pad_shape(w: Shape, amount: int | tuple[int, ...]) -> Shape:
    each = amount if isinstance(amount, tuple) else (amount,) * (len(w) - 2)
    _need(len(each) == len(w) - 2, f"pad: {len(each)} amounts for {len(w) - 2} spatial axes")
    _need(all(a >= 0 for a in each), f"pad: {each} is negative")
    return (*w[:2], *(s + 2 * a for s, a in zip(w[2:], each, strict=True)))


def _pad(k: Arithmetic, w: Array, amount: int | tuple[int, ...]) -> Array:
    each = amount if isinstance(amount, tuple) else (amount,) * (w.ndim - 2)
    widths = [(0, 0), (0, 0), *((a, a) for a in each)]
    return np.pad(w, widths, constant_values=k.number(0))


def _concat_shape(a: Shape, b: Shape, axis: int) -> Shape:
    axis = _axis(a, axis)
    rest = (a[:axis] + a[axis + 1 :], b[:axis] + b[axis + 1 :])
    _need(len(a) == len(b) and rest[0] == rest[1], f"concat: {a} and {b} along axis {axis}")
    return (*a[:axis], a[axis] + b[axis], *a[axis + 1 :])


def _concat_moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
    a, b, axis = args
    if moments[0] is None and moments[1] is None:
        return None
    first = moments[0] if moments[0] is not None else Apply("multiply", (a, 0))
    second = moments[1] if moments[1] is not None else Apply("multiply", (b, 0))
    return Apply("concat", (first, second, axis))


def _transpose_shape(w: Shape, *order: int) -> Shape:
    _need(sorted(order) == list(range(len(w))), f"transpose: {order} of {len(w)} axes")
    return tuple(w[i] for i in order)


def _reshape_shape(w: Shape, *sizes: int) -> Shape:
    new = _sizes(*sizes)
    _need(math.prod(new) == math.prod(w), f"reshape: {w} into {new}")
    return new


def _along_shape(v: Shape, axis: int, rank: int) -> Shape:
    _need(len(v) == 1, f"along: needs a vector, got {v}")
    _need(0 <= axis < rank, f"along: no axis {axis} among {rank}")
    return tuple(v[0] if i == axis else 1 for i in range(rank))


def _along(k: Arithmetic, v: Array, axis: int, rank: int) -> Array:
    return v.reshape(_along_shape(v.shape, axis, rank))


# --- arithmetic -----------------------------------------------------------------------------


def _broadcast(a: object, b: object) -> Shape:
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


def _sum_moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
    first, second = moments
    if first is not None and second is not None:
        raise WeightError("a sum of two of the parent's tensors has no gradient map")
    found: Term | None = first if first is not None else second
    return found


def _scale_moment(inverse: str) -> Gradient:
    def moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
        which = 0 if moments[0] is not None else 1
        if moments[which] is None:
            return None
        if moments[1 - which] is not None:
            raise WeightError("a product of two of the parent's tensors has no gradient map")
        term: Term = moments[which]
        for _ in range(2 if squared else 1):
            term = Apply(inverse, (term, args[1 - which]))
        return term

    return moment


def _divide_along_shape(w: Shape, v: Shape, axis: int) -> Shape:
    axis = _axis(w, axis)
    _need(v == (w[axis],), f"divide along axis {axis}: {w} by {v}")
    return w


def _scale_along(name: str) -> Callable[..., Array]:
    def compute(k: Arithmetic, w: Array, v: Array, axis: int) -> Array:
        spread = v.reshape(tuple(-1 if i == axis % w.ndim else 1 for i in range(w.ndim)))
        result: Array = getattr(k, name)(w, spread)
        return result

    return compute


def _along_moment(inverse: str) -> Gradient:
    def moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
        if moments[0] is None:
            return None
        term: Term = moments[0]
        for _ in range(2 if squared else 1):
            term = Apply(inverse, (term, args[1], args[2]))
        return term

    return moment


def _same(name: str) -> Gradient:
    """Maps that only move entries have themselves as gradient map."""

    def moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
        return None if moments[0] is None else Apply(name, (moments[0], *args[1:]))

    return moment


FUNCTIONS: Mapping[str, WeightFunction] = {
    f.name: f
    for f in (
        WeightFunction(
            "take",
            "take(w, g, axis)",
            "Gather entries of an axis: new entry j is old entry g[j].",
            _take_shape,
            _take,
            _take_moment,
        ),
        WeightFunction(
            "count",
            "count(g)",
            "For each new index, how many new indices copy the same old one.",
            lambda g: (len(g.entries),),
            _count,
        ),
        WeightFunction(
            "slice",
            "slice(w, axis, start, stop)",
            "Entries start to stop (excluded) of an axis.",
            _slice_shape,
            _slice,
            _same("slice"),
        ),
        WeightFunction(
            "identity",
            "identity(channels, kernel...)",
            "The kernel of the identity convolution: 1 at the centre where output equals input "
            "channel. Without kernel extents, the identity matrix.",
            _identity_shape,
            _identity,
        ),
        WeightFunction("zeros", "zeros(sizes...)", "Zeros.", _sizes, _filled(0)),
        WeightFunction("ones", "ones(sizes...)", "Ones.", _sizes, _filled(1)),
        WeightFunction(
            "pad",
            "pad(w, amount)",
            "Zeros around the spatial axes of a kernel, `amount` on both sides.",
            _pad_shape,
            _pad,
            _same("pad"),
        ),
        WeightFunction(
            "concat",
            "concat(a, b, axis)",
            "Two tensors joined along an axis.",
            _concat_shape,
            lambda k, a, b, axis: np.concatenate((a, b), axis=axis),
            _concat_moment,
        ),
        WeightFunction(
            "transpose",
            "transpose(w, order...)",
            "The axes in another order.",
            _transpose_shape,
            lambda k, w, *order: w.transpose(order),
            _same("transpose"),
        ),
        WeightFunction(
            "reshape",
            "reshape(w, sizes...)",
            "The same entries in another shape, row-major.",
            _reshape_shape,
            lambda k, w, *sizes: w.reshape(_sizes(*sizes)),
            _same("reshape"),
        ),
        WeightFunction(
            "along",
            "along(v, axis, rank)",
            "A vector laid along one of `rank` axes, the others of size 1.",
            _along_shape,
            _along,
            _same("along"),
        ),
        WeightFunction(
            "sqrt", "sqrt(v)", "The square root of each entry.", lambda v: v, lambda k, v: k.sqrt(v)
        ),
        WeightFunction(
            "add", "a + b", "The sum, with broadcasting.", _broadcast, _binary("add"), _sum_moment
        ),
        WeightFunction(
            "subtract",
            "a - b",
            "The difference, with broadcasting.",
            _broadcast,
            _binary("subtract"),
        ),
        WeightFunction(
            "multiply",
            "a * b",
            "The product, with broadcasting.",
            _broadcast,
            _binary("multiply"),
            _scale_moment("divide"),
        ),
        WeightFunction(
            "divide",
            "a / b",
            "The quotient, with broadcasting.",
            _broadcast,
            _binary("divide"),
            _scale_moment("multiply"),
        ),
        WeightFunction(
            "divide_along",
            "w / v, along the class",
            "A tensor divided by a vector along one of its axes.",
            _divide_along_shape,
            _scale_along("divide"),
            _along_moment("multiply_along"),
        ),
        WeightFunction(
            "multiply_along",
            "w * v, along the class",
            "A tensor multiplied by a vector along one of its axes.",
            _divide_along_shape,
            _scale_along("multiply"),
            _along_moment("divide_along"),
        ),
    )
}
"""Every weight function. `replicate`, `mean` and `variance` are read when a rewrite is planned."""


def shape_of(term: Term, shapes: Mapping[str, Shape]) -> Shape:
    """The shape of a term, given the shapes of the parent's parameters.

    Raises:
        WeightError: an argument's shape does not fit its function.
    """
    if isinstance(term, Ref):
        if term.path not in shapes:
            raise WeightError(f"there is no parameter {term.path}")
        return shapes[term.path]
    if isinstance(term, Statistic):
        return (term.channels,)
    args = [shape_of(a, shapes) if isinstance(a, Ref | Statistic | Apply) else a for a in term.args]
    try:
        return FUNCTIONS[term.function].shape(*args)
    except TypeError:
        raise WeightError(f"wrong arguments: {FUNCTIONS[term.function].signature}") from None


def evaluate(
    term: Term,
    arithmetic: Arithmetic,
    weights: Mapping[str, Array],
    measured: Mapping[Statistic, Array] | None = None,
) -> Array:
    """The value of a term.

    ``measured`` holds the calibration statistics; where one is missing the mean is 0 and the
    variance 1 (the map is exact for any values).
    """
    if isinstance(term, Ref):
        return weights[term.path]
    if isinstance(term, Statistic):
        if measured is not None and term in measured:
            return measured[term]
        return _filled(0 if term.kind == "mean" else 1)(arithmetic, term.channels)
    args: list[Argument | Array] = [
        evaluate(a, arithmetic, weights, measured) if isinstance(a, Ref | Statistic | Apply) else a
        for a in term.args
    ]
    return FUNCTIONS[term.function].value(arithmetic, *args)


def moment(term: Term, *, squared: bool = False) -> Term | None:
    """The gradient map of a term: how a first (or second) moment of the parent becomes the child's.

    The result is a term in which each path stands for the moment of that parameter; None where
    the moment starts at zero.

    Raises:
        WeightError: the term mixes tensors of the parent in a way that has no gradient map.
    """
    if isinstance(term, Ref):
        return term
    if isinstance(term, Statistic):
        return None
    moments = tuple(
        moment(a, squared=squared) if isinstance(a, Ref | Statistic | Apply) else None
        for a in term.args
    )
    gradient = FUNCTIONS[term.function].gradient
    return None if gradient is None else gradient(term.args, moments, squared)
