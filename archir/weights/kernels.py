"""Weight functions over the taps and channels of kernels."""

from __future__ import annotations

import numpy as np

from archir.ops.arithmetic import Arithmetic, Array
from archir.weights.record import (
    Shape,
    WeightFunction,
    need,
    whole,
)

Amount = int | tuple[int, ...]


def _each(name: str, w: Shape, amount: Amount, least: int) -> tuple[int, ...]:
    """One number for each spatial axis of a kernel."""
    need(len(w) > 2, f"{name}: {w} has no spatial axes")
    each = amount if isinstance(amount, tuple) else (amount,) * (len(w) - 2)
    whole(name, *each)
    need(len(each) == len(w) - 2, f"{name}: {len(each)} numbers for {len(w) - 2} spatial axes")
    need(all(a >= least for a in each), f"{name}: {each} is below {least}")
    return each


# --- taps -----------------------------------------------------------------------------------


def _crop_shape(w: Shape, amount: Amount) -> Shape:
    each = _each("crop", w, amount, 0)
    need(all(s > 2 * a for s, a in zip(w[2:], each, strict=True)), f"crop: {each} of {w}")
    return (*w[:2], *(s - 2 * a for s, a in zip(w[2:], each, strict=True)))


def _crop(k: Arithmetic, w: Array, amount: Amount) -> Array:
    each = _each("crop", w.shape, amount, 0)
    inner = (slice(a, s - a) for s, a in zip(w.shape[2:], each, strict=True))
    return w[(slice(None), slice(None), *inner)]


def _dilate_shape(w: Shape, steps: Amount) -> Shape:
    each = _each("dilate", w, steps, 1)
    return (*w[:2], *((s - 1) * e + 1 for s, e in zip(w[2:], each, strict=True)))


def _dilate(k: Arithmetic, w: Array, steps: Amount) -> Array:
    out = np.zeros(_dilate_shape(w.shape, steps), w.dtype)
    if w.dtype == object:
        out[...] = k.number(0)
    taps = (slice(None, None, e) for e in _each("dilate", w.shape, steps, 1))
    out[(slice(None), slice(None), *taps)] = w
    return out


def _undilate_shape(w: Shape, steps: Amount) -> Shape:
    each = _each("undilate", w, steps, 1)
    fits = all((s - 1) % e == 0 for s, e in zip(w[2:], each, strict=True))
    need(fits, f"undilate: no whole number of steps of {each} between the ends of {w}")
    return (*w[:2], *((s - 1) // e + 1 for s, e in zip(w[2:], each, strict=True)))


def _undilate(k: Arithmetic, w: Array, steps: Amount) -> Array:
    taps = (slice(None, None, e) for e in _each("undilate", w.shape, steps, 1))
    return w[(slice(None), slice(None), *taps)]


# --- channels -------------------------------------------------------------------------------


def _tile_shape(w: Shape, times: int) -> Shape:
    whole("tile", times)
    need(len(w) > 0 and times > 0, f"tile: {times} copies of {w}")
    return (w[0] * times, *w[1:])


def _tile(k: Arithmetic, w: Array, times: int) -> Array:
    return np.concatenate((w,) * times)


def _blocks_shape(w: Shape, groups: int) -> Shape:
    whole("block_diagonal", groups)
    need(len(w) > 1, f"block_diagonal: {w} has no input channels")
    fits = groups > 0 and w[0] % groups == 0
    need(fits, f"block_diagonal: {w[0]} output channels in {groups} groups")
    return (w[0], w[1] * groups, *w[2:])


def _blocks(k: Arithmetic, w: Array, groups: int) -> Array:
    out = np.zeros(_blocks_shape(w.shape, groups), w.dtype)
    if w.dtype == object:
        out[...] = k.number(0)
    rows, columns = w.shape[0] // groups, w.shape[1]
    for g in range(groups):
        made = slice(g * rows, (g + 1) * rows)
        out[made, g * columns : (g + 1) * columns] = w[made]
    return out


def _diagonal_shape(w: Shape, groups: int) -> Shape:
    whole("diagonal_blocks", groups)
    need(len(w) > 1, f"diagonal_blocks: {w} has no input channels")
    fits = groups > 0 and w[0] % groups == 0 and w[1] % groups == 0
    need(fits, f"diagonal_blocks: {groups} groups of {w}")
    return (w[0], w[1] // groups, *w[2:])


def _diagonal(k: Arithmetic, w: Array, groups: int) -> Array:
    rows, columns = w.shape[0] // groups, w.shape[1] // groups
    blocks = (w[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] for g in range(groups))
    return np.concatenate(tuple(blocks), axis=0)


# --- matrices -------------------------------------------------------------------------------


def _pointwise_shape(w: Shape, axes: int) -> Shape:
    whole("pointwise", axes)
    need(len(w) == 2, f"pointwise: needs a matrix, got {w}")
    need(0 < axes < 4, f"pointwise: {axes} spatial axes")
    return (*w, *(1,) * axes)


def _pointwise(k: Arithmetic, w: Array, axes: int) -> Array:
    return w.reshape(_pointwise_shape(w.shape, axes))


def _matrix_shape(w: Shape) -> Shape:
    need(len(w) > 1 and all(s == 1 for s in w[2:]), f"matrix: {w} is no pointwise kernel")
    return w[:2]


def _matrix(k: Arithmetic, w: Array) -> Array:
    return w.reshape(_matrix_shape(w.shape))


def _matmul_shape(a: Shape, b: Shape) -> Shape:
    need(len(a) == 2, f"matmul: needs a matrix on the left, got {a}")
    need(b and a[1] == b[0], f"matmul: {a} and {b}")
    return (a[0], *b[1:])


def _matmul(k: Arithmetic, a: Array, b: Array) -> Array:
    return k.matmul(a, b.reshape(b.shape[0], -1)).reshape(_matmul_shape(a.shape, b.shape))


def _row_sums_shape(w: Shape) -> Shape:
    need(len(w) > 1, f"row_sums: {w} has no rows")
    return w[:1]


def _row_sums(k: Arithmetic, w: Array) -> Array:
    return k.sum(w, tuple(range(1, w.ndim)))


KERNELS = (
    WeightFunction(
        "crop",
        "crop(w, amount)",
        "A kernel without its outer taps, `amount` on both sides of each spatial axis.",
        1,
        _crop_shape,
        _crop,
    ),
    WeightFunction(
        "dilate",
        "dilate(w, steps)",
        "The taps of a kernel `steps` apart, zeros between them.",
        1,
        _dilate_shape,
        _dilate,
    ),
    WeightFunction(
        "undilate",
        "undilate(w, steps)",
        "Every `steps`-th tap of a kernel, from the first to the last.",
        1,
        _undilate_shape,
        _undilate,
    ),
    WeightFunction(
        "tile",
        "tile(w, times)",
        "Copies of a tensor side by side along its first axis.",
        1,
        _tile_shape,
        _tile,
    ),
    WeightFunction(
        "block_diagonal",
        "block_diagonal(w, groups)",
        "The kernel of a grouped convolution as that of one with a single group: zeros where a "
        "group does not read.",
        1,
        _blocks_shape,
        _blocks,
    ),
    WeightFunction(
        "diagonal_blocks",
        "diagonal_blocks(w, groups)",
        "What each of `groups` groups of output channels reads of its own group.",
        1,
        _diagonal_shape,
        _diagonal,
    ),
    WeightFunction(
        "pointwise",
        "pointwise(w, axes)",
        "A matrix as the kernel of a convolution with a single tap on each of `axes` spatial axes.",
        1,
        _pointwise_shape,
        _pointwise,
    ),
    WeightFunction(
        "matrix",
        "matrix(w)",
        "The kernel of a convolution with a single tap as a matrix.",
        1,
        _matrix_shape,
        _matrix,
    ),
    WeightFunction(
        "matmul",
        "matmul(a, b)",
        "The matrix a times the rows of b, which may be a vector, a matrix or a kernel.",
        2,
        _matmul_shape,
        _matmul,
    ),
    WeightFunction(
        "row_sums",
        "row_sums(w)",
        "The sums over all axes but the first.",
        1,
        _row_sums_shape,
        _row_sums,
    ),
)
