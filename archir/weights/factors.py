"""Weight functions that take a tensor apart into two of lower rank.

They are computed by a singular value decomposition in double precision, on one thread, and exist in
floating point only: no field and no fractions have singular values. Of the signs, which are free,
those are taken that make the largest entry of each right vector positive. The factors are
rounded to 20 significant bits, so that the last bits in which two machines' decompositions differ
do not show.
"""

from __future__ import annotations

import math

import numpy as np
from threadpoolctl import threadpool_limits

from archir.ops.arithmetic import Arithmetic, Array, Floating
from archir.weights.record import Shape, WeightError, WeightFunction, need, whole

BITS = 20
"""How many significant bits the factors have."""


def _matrices(name: str, w: Shape, rank: int, each: int) -> tuple[int, int, int]:
    """How many matrices a tensor is, and their rows and columns."""
    whole(name, rank, each)
    need(0 <= each <= len(w) - 2, f"{name}: {w} has no matrix behind its first {each} axes")
    rows, columns = w[each], math.prod(w[each + 1 :])
    most = min(rows, columns)
    need(0 < rank <= most, f"{name}: a {rows} x {columns} matrix has no {rank} singular values")
    return math.prod(w[:each]), rows, columns


def _left_shape(w: Shape, rank: int, each: int = 0) -> Shape:
    _matrices("svd_left", w, rank, each)
    return (*w[: each + 1], rank)


def _right_shape(w: Shape, rank: int, each: int = 0) -> Shape:
    _matrices("svd_right", w, rank, each)
    return (*w[:each], rank, *w[each + 1 :])


def _rounded(a: Array) -> Array:
    fraction, exponent = np.frexp(a)
    return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, BITS)), exponent - BITS))


def _factors(k: Arithmetic, w: Array, rank: int, each: int) -> tuple[Array, Array]:
    """The two factors, the roots of the singular values in both."""
    if not isinstance(k, Floating):
        raise WeightError(f"a singular value decomposition exists in no {k.name} arithmetic")
    count, rows, columns = _matrices("svd", w.shape, rank, each)
    stack = np.asarray(w, np.float64).reshape(count, rows, columns)
    if not np.isfinite(stack).all():
        nan = np.full((count, rows + columns, rank), np.nan)
        return nan[:, :rows], nan[:, rows:].swapaxes(1, 2)
    with threadpool_limits(1, user_api="blas"):
        u, s, v = np.linalg.svd(stack, full_matrices=False)
    u, v = u[:, :, :rank], v[:, :rank]
    largest = np.take_along_axis(v, np.abs(v).argmax(axis=2)[:, :, None], axis=2)
    root = np.sqrt(s[:, :rank]) * np.where(largest[:, :, 0] < 0, -1.0, 1.0)
    return _rounded(u * root[:, None, :]), _rounded(v * root[:, :, None])


def _left(k: Arithmetic, w: Array, rank: int, each: int = 0) -> Array:
    left, _ = _factors(k, w, rank, each)
    return k.array(left.reshape(_left_shape(w.shape, rank, each)))


def _right(k: Arithmetic, w: Array, rank: int, each: int = 0) -> Array:
    _, right = _factors(k, w, rank, each)
    return k.array(right.reshape(_right_shape(w.shape, rank, each)))


# They have no derivative here: the factors are not linear in the tensor.
FACTORS = (
    WeightFunction(
        "svd_left",
        "svd_left(w, rank, each = 0)",
        "The left factor L of the best L @ R of that rank for a matrix (its first axis, and all "
        "others as one); for one matrix for each entry of the first `each` axes.",
        1,
        _left_shape,
        _left,
        inexact=True,
    ),
    WeightFunction(
        "svd_right",
        "svd_right(w, rank, each = 0)",
        "The right factor R of that product, in the shape of the tensor.",
        1,
        _right_shape,
        _right,
        inexact=True,
    ),
)
