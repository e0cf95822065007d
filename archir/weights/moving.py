"""Weight functions that lay the same entries out otherwise."""

from __future__ import annotations

import math

import numpy as np

from archir.ops.arithmetic import Arithmetic, Array
from archir.weights.making import sizes_of
from archir.weights.record import Shape, WeightFunction, axis_of, need, whole


def _pad_shape(w: Shape, amount: int | tuple[int, ...]) -> Shape:
    need(len(w) > 2, f"pad: {w} has no spatial axes")
    each = amount if isinstance(amount, tuple) else (amount,) * (len(w) - 2)
    whole("pad", *each)
    need(len(each) == len(w) - 2, f"pad: {len(each)} amounts for {len(w) - 2} spatial axes")
    need(all(a >= 0 for a in each), f"pad: {each} is negative")
    return (*w[:2], *(s + 2 * a for s, a in zip(w[2:], each, strict=True)))


def _pad(k: Arithmetic, w: Array, amount: int | tuple[int, ...]) -> Array:
    each = amount if isinstance(amount, tuple) else (amount,) * (w.ndim - 2)
    widths = [(0, 0), (0, 0), *((a, a) for a in each)]
    return np.pad(w, widths, constant_values=k.number(0))


def _concat_shape(a: Shape, b: Shape, axis: int) -> Shape:
    axis = axis_of("concat", a, axis)
    rest = (a[:axis] + a[axis + 1 :], b[:axis] + b[axis + 1 :])
    need(len(a) == len(b) and rest[0] == rest[1], f"concat: {a} and {b} along axis {axis}")
    return (*a[:axis], a[axis] + b[axis], *a[axis + 1 :])


def _transpose_shape(w: Shape, *order: int) -> Shape:
    whole("transpose", *order)
    need(sorted(order) == list(range(len(w))), f"transpose: {order} of {len(w)} axes")
    return tuple(w[i] for i in order)


def _reshape_shape(w: Shape, *sizes: int) -> Shape:
    new = sizes_of(*sizes)
    need(math.prod(new) == math.prod(w), f"reshape: {w} into {new}")
    return new


def _along_shape(v: Shape, axis: int, rank: int) -> Shape:
    need(len(v) == 1, f"along: needs a vector, got {v}")
    whole("along", axis, rank)
    need(0 <= axis < rank, f"along: no axis {axis} among {rank}")
    return tuple(v[0] if i == axis else 1 for i in range(rank))


def _along(k: Arithmetic, v: Array, axis: int, rank: int) -> Array:
    return v.reshape(_along_shape(v.shape, axis, rank))


MOVING = (
    WeightFunction(
        "pad",
        "pad(w, amount)",
        "Zeros around the spatial axes of a kernel, `amount` on both sides.",
        1,
        _pad_shape,
        _pad,
    ),
    WeightFunction(
        "concat",
        "concat(a, b, axis)",
        "Two tensors joined along an axis.",
        2,
        _concat_shape,
        lambda k, a, b, axis: np.concatenate((a, b), axis=axis),
    ),
    WeightFunction(
        "transpose",
        "transpose(w, order...)",
        "The axes in another order.",
        1,
        _transpose_shape,
        lambda k, w, *order: w.transpose(order),
    ),
    WeightFunction(
        "reshape",
        "reshape(w, sizes...)",
        "The same entries in another shape, row-major.",
        1,
        _reshape_shape,
        lambda k, w, *sizes: w.reshape(sizes_of(*sizes)),
    ),
    WeightFunction(
        "along",
        "along(v, axis, rank)",
        "A vector laid along one of `rank` axes, the others of size 1.",
        1,
        _along_shape,
        _along,
    ),
)
