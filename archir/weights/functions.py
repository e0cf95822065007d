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
from archir.weights.terms import Apply, Argument, IndexMap, Ref, Statistic, Term, references

Shape = tuple[int, ...]
Gradient = Callable[[tuple[Any, ...], tuple[Any, ...], bool], Term | None]


class WeightError(Exception):
    """A weight term is ill-formed; the text says how, with shapes."""


@dataclass(frozen=True)
class WeightFunction:
    """A function of the weight language.

    The first ``tensors`` arguments are tensors (or numbers, where ``numbers``), the others are
    not. ``shape`` maps the shapes of tensors (other arguments as they are) to the result's;
    ``gradient`` gets the arguments, the arguments with tensors replaced by their moments (None
    for constants), and whether the moment is a second one.
    """

    name: str
    signature: str
    doc: str
    tensors: int
    shape: Callable[..., Shape]
    value: Callable[..., Array]
    gradient: Gradient | None = None
    numbers: bool = False


def _need(condition: object, text: str) -> None:
    if not condition:
        raise WeightError(text)


def _whole(name: str, *values: object) -> None:
    for value in values:
        fits = isinstance(value, int) and not isinstance(value, bool)
        _need(fits, f"{name}: {value} is not an integer")


def _axis(name: str, shape: Shape, axis: int) -> int:
    _whole(name, axis)
    _need(-len(shape) <= axis < len(shape), f"{name}: no axis {axis} in {shape}")
    return axis % len(shape)


# --- gathering ------------------------------------------------------------------------------


def _take_shape(w: Shape, g: IndexMap, axis: int) -> Shape:
    axis = _axis("take", w, axis)
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


def _place_shape(w: Shape, g: IndexMap, axis: int) -> Shape:
    axis = _axis("place", w, axis)
    _need(isinstance(g, IndexMap), "place needs an index map")
    _need(
        w[axis] == len(g.entries),
        f"place: axis {axis} has size {w[axis]}, the map places {len(g.entries)}",
    )
    return (*w[:axis], g.source, *w[axis + 1 :])


def _place(k: Arithmetic, w: Array, g: IndexMap, axis: int) -> Array:
    axis %= w.ndim
    out = np.zeros((*w.shape[:axis], g.source, *w.shape[axis + 1 :]), w.dtype)
    if w.dtype == object:
        out[...] = k.number(0)
    out[(slice(None),) * axis + (g.entries,)] = w
    return out


def _count_shape(g: IndexMap) -> Shape:
    _need(isinstance(g, IndexMap), "count needs an index map")
    return (len(g.entries),)


def _count(k: Arithmetic, g: IndexMap) -> Array:
    return k.array(g.counts())


def _slice_shape(w: Shape, axis: int, start: int, stop: int) -> Shape:
    axis = _axis("slice", w, axis)
    _whole("slice", start, stop)
    _need(0 <= start <= stop <= w[axis], f"slice {start}:{stop} of axis {axis} of {w}")
    return (*w[:axis], stop - start, *w[axis + 1 :])


def _slice(k: Arithmetic, w: Array, axis: int, start: int, stop: int) -> Array:
    return w[(slice(None),) * (axis % w.ndim) + (slice(start, stop),)]


# --- making ---------------------------------------------------------------------------------


MAX_ENTRIES = 2**30
"""How many entries a tensor that a rule makes may have."""


def _sizes(*sizes: int | tuple[int, ...]) -> Shape:
    flat = tuple(n for s in sizes for n in (s if isinstance(s, tuple) else (s,)))
    _whole("a shape", *flat)
    _need(all(n >= 0 for n in flat), f"not a shape: {flat}")
    _need(math.prod(flat) <= MAX_ENTRIES, f"{flat} has more than {MAX_ENTRIES:,} entries")
    return flat


def _identity_shape(channels: int, *kernel: int | tuple[int, ...]) -> Shape:
    taps = _sizes(*kernel)
    _need(all(k % 2 for k in taps), f"an identity kernel has odd extents, got {taps}")
    return _sizes(channels, channels, taps)


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
    _need(len(w) > 2, f"pad: {w} has no spatial axes")
    each = amount if isinstance(amount, tuple) else (amount,) * (len(w) - 2)
    _whole("pad", *each)
    _need(len(each) == len(w) - 2, f"pad: {len(each)} amounts for {len(w) - 2} spatial axes")
    _need(all(a >= 0 for a in each), f"pad: {each} is negative")
    return (*w[:2], *(s + 2 * a for s, a in zip(w[2:], each, strict=True)))


def _pad(k: Arithmetic, w: Array, amount: int | tuple[int, ...]) -> Array:
    each = amount if isinstance(amount, tuple) else (amount,) * (w.ndim - 2)
    widths = [(0, 0), (0, 0), *((a, a) for a in each)]
    return np.pad(w, widths, constant_values=k.number(0))


def _concat_shape(a: Shape, b: Shape, axis: int) -> Shape:
    axis = _axis("concat", a, axis)
    rest = (a[:axis] + a[axis + 1 :], b[:axis] + b[axis + 1 :])
    _need(len(a) == len(b) and rest[0] == rest[1], f"concat: {a} and {b} along axis {axis}")
    return (*a[:axis], a[axis] + b[axis], *a[axis + 1 :])


def _apart(what: str, a: object, b: object) -> None:
    """Two parts of a term must not read one tensor: its shares would not add up."""
    paths = [{*references(x)} if isinstance(x, Ref | Statistic | Apply) else set() for x in (a, b)]
    _need(not paths[0] & paths[1], f"{what} has no gradient map; `take` makes copies that have one")


def _concat_moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
    a, b, axis = args
    _apart("a tensor joined with itself", a, b)
    if moments[0] is None and moments[1] is None:
        return None
    first = moments[0] if moments[0] is not None else Apply("multiply", (a, 0))
    second = moments[1] if moments[1] is not None else Apply("multiply", (b, 0))
    return Apply("concat", (first, second, axis))


def _transpose_shape(w: Shape, *order: int) -> Shape:
    _whole("transpose", *order)
    _need(sorted(order) == list(range(len(w))), f"transpose: {order} of {len(w)} axes")
    return tuple(w[i] for i in order)


def _reshape_shape(w: Shape, *sizes: int) -> Shape:
    new = _sizes(*sizes)
    _need(math.prod(new) == math.prod(w), f"reshape: {w} into {new}")
    return new


def _along_shape(v: Shape, axis: int, rank: int) -> Shape:
    _need(len(v) == 1, f"along: needs a vector, got {v}")
    _whole("along", axis, rank)
    _need(0 <= axis < rank, f"along: no axis {axis} among {rank}")
    return tuple(v[0] if i == axis else 1 for i in range(rank))


def _along(k: Arithmetic, v: Array, axis: int, rank: int) -> Array:
    return v.reshape(_along_shape(v.shape, axis, rank))


# --- arithmetic -----------------------------------------------------------------------------


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
        _need(len(held) == 1, f"a {name} of two of the parent's tensors has no gradient map")
        (which,) = held
        _need(which in linear_in, f"a {name} by one of the parent's tensors has no gradient map")
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
        _need(moments[0] is None, f"`{name}` of the parent's tensor has no gradient map")
        return None

    return moment


def _divide_along_shape(w: Shape, v: Shape, axis: int) -> Shape:
    axis = _axis("a vector along an axis", w, axis)
    _need(v == (w[axis],), f"{v} along axis {axis} of {w}")
    return w


def _scale_along(name: str) -> Callable[..., Array]:
    def compute(k: Arithmetic, w: Array, v: Array, axis: int) -> Array:
        spread = v.reshape(tuple(-1 if i == axis % w.ndim else 1 for i in range(w.ndim)))
        result: Array = getattr(k, name)(w, spread)
        return result

    return compute


def _along_moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
    _need(moments[1] is None, "a vector of the parent along an axis has no gradient map")
    return (
        None
        if moments[0] is None
        else Apply("share", (moments[0], args[1], 2 if squared else 1, args[2]))
    )


def _divide_along_moment(
    args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool
) -> Term | None:
    return _along_moment((args[0], Apply("divide", (1, args[1])), args[2]), moments, squared)


def _same(name: str) -> Gradient:
    """Maps that only move entries have themselves as gradient map."""

    def moment(args: tuple[Any, ...], moments: tuple[Any, ...], squared: bool) -> Term | None:
        return None if moments[0] is None else Apply(name, (moments[0], *args[1:]))

    return moment


def _arithmetic(name: str, signature: str, doc: str, gradient: Gradient) -> WeightFunction:
    return WeightFunction(
        name, signature, doc, 2, _broadcast, _binary(name), gradient, numbers=True
    )


FUNCTIONS: Mapping[str, WeightFunction] = {
    f.name: f
    for f in (
        WeightFunction(
            "take",
            "take(w, g, axis)",
            "Gather entries of an axis: new entry j is old entry g[j].",
            1,
            _take_shape,
            _take,
            _take_moment,
        ),
        WeightFunction(
            "place",
            "place(w, g, axis)",
            "Put entry j of an axis at g[j] of a longer one, zeros elsewhere.",
            1,
            _place_shape,
            _place,
            _same("place"),
        ),
        WeightFunction(
            "count",
            "count(g)",
            "For each new index, how many new indices copy the same old one.",
            0,
            _count_shape,
            _count,
        ),
        WeightFunction(
            "slice",
            "slice(w, axis, start, stop)",
            "Entries start to stop (excluded) of an axis.",
            1,
            _slice_shape,
            _slice,
            _same("slice"),
        ),
        WeightFunction(
            "identity",
            "identity(channels, kernel...)",
            "The kernel of the identity convolution: 1 at the centre where output equals input "
            "channel. Without kernel extents, the identity matrix.",
            0,
            _identity_shape,
            _identity,
        ),
        WeightFunction("zeros", "zeros(sizes...)", "Zeros.", 0, _sizes, _filled(0)),
        WeightFunction("ones", "ones(sizes...)", "Ones.", 0, _sizes, _filled(1)),
        WeightFunction(
            "pad",
            "pad(w, amount)",
            "Zeros around the spatial axes of a kernel, `amount` on both sides.",
            1,
            _pad_shape,
            _pad,
            _same("pad"),
        ),
        WeightFunction(
            "concat",
            "concat(a, b, axis)",
            "Two tensors joined along an axis.",
            2,
            _concat_shape,
            lambda k, a, b, axis: np.concatenate((a, b), axis=axis),
            _concat_moment,
        ),
        WeightFunction(
            "transpose",
            "transpose(w, order...)",
            "The axes in another order.",
            1,
            _transpose_shape,
            lambda k, w, *order: w.transpose(order),
            _same("transpose"),
        ),
        WeightFunction(
            "reshape",
            "reshape(w, sizes...)",
            "The same entries in another shape, row-major.",
            1,
            _reshape_shape,
            lambda k, w, *sizes: w.reshape(_sizes(*sizes)),
            _same("reshape"),
        ),
        WeightFunction(
            "along",
            "along(v, axis, rank)",
            "A vector laid along one of `rank` axes, the others of size 1.",
            1,
            _along_shape,
            _along,
            _same("along"),
        ),
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
        _arithmetic("multiply", "a * b", "The product, with broadcasting.", _TIMES),
        _arithmetic("divide", "a / b", "The quotient, with broadcasting.", _OVER),
        WeightFunction(
            "divide_along",
            "divide_along(w, v, axis)",
            "A tensor divided by a vector along one of its axes. In a rule over a class, "
            "`/ count(g)`.",
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
}
"""Every weight function. Maps, `mean` and `variance` are read when a rewrite is planned."""

_SHARE = WeightFunction(
    "share",
    "share(m, v, powers, axis)",
    "The gradient map of a product; no rule can say it.",
    2,
    lambda m, v, powers, axis=None: m if axis is not None else _broadcast(m, v),
    _share,
    numbers=True,
)


def _function(name: str) -> WeightFunction:
    return _SHARE if name == "share" else FUNCTIONS[name]


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
    function = _function(term.function)
    for place, arg in enumerate(term.args):
        tensor = isinstance(arg, Ref | Statistic | Apply)
        number = isinstance(arg, int | float) and not isinstance(arg, bool)
        fits = (tensor or (function.numbers and number)) if place < function.tensors else not tensor
        _need(fits, f"argument {place + 1} does not fit {function.signature}")
    args = [shape_of(a, shapes) if isinstance(a, Ref | Statistic | Apply) else a for a in term.args]
    try:
        return function.shape(*args)
    except TypeError:
        raise WeightError(f"wrong arguments: {function.signature}") from None


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
    return _function(term.function).value(arithmetic, *args)


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
    gradient = _function(term.function).gradient
    return None if gradient is None else gradient(term.args, moments, squared)
