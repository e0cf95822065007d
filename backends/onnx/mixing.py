"""How attention, products, reductions and resampling are written in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from archir.ir.dims import product
from archir.ops.arithmetic import Array
from archir.ops.interpolation import scales, sources, weights
from archir.ops.resample import averages, interpolation, shares

from .frame import DTYPES, Site, tensor
from .shapes import whole

Lowering = Callable[[Site], None]


def _attention(at: Site) -> None:
    rank = at.rank
    ahead = list(range(rank - 2))
    turn = [*ahead, rank - 1, rank - 2, rank]
    turns = {"queries": turn, "keys": [*ahead, rank - 1, rank, rank - 2], "values": turn}
    apart = whole(at, "heads", *[0] * (rank - 1), at.attr("heads"), -1)
    queries, keys, values = (
        at.helper(role, "Transpose", at.helper(f"{role}_apart", "Reshape", x, apart), perm=order)
        for (role, order), x in zip(turns.items(), at.args[:3], strict=True)
    )
    scale = at.constant("scale", np.asarray(at.attr("scale"), at.dtype))
    products = at.helper("products", "MatMul", queries, keys)
    scores = at.helper("scores", "Mul", products, scale)
    if len(at.args) > 3:
        scores = at.helper("masked", "Add", scores, at.args[3])
    if at.attr("causal"):
        scores = _causal(at, scores)
    weights = at.helper("shares", "Softmax", scores, axis=-1)
    mixed = at.helper("mixed", "MatMul", weights, values)
    back = at.helper("back", "Transpose", mixed, perm=turn)
    at.emit("Reshape", back, whole(at, "shape", *[0] * (rank - 1), -1))


def _causal(at: Site, scores: str) -> str:
    """Scores without those of keys behind a query's own place."""
    extents = at.helper("extents", "Shape", scores, start=-2)
    never = tensor("never", np.asarray([-np.inf], at.dtype))
    shut = at.helper("shut", "ConstantOfShape", extents, value=never)
    first = at.constant("first", np.asarray(1, np.int64))
    behind = at.helper("behind", "Trilu", shut, first, upper=1)
    return at.helper("causal", "Add", scores, behind)


def _sdpa(at: Site) -> None:
    queries, keys, values, *mask = at.args
    turn = [*range(at.rank - 2), at.rank - 1, at.rank - 2]
    scale = at.constant("scale", np.asarray(at.attr("scale"), at.dtype))
    products = at.helper(
        "products", "MatMul", queries, at.helper("k", "Transpose", keys, perm=turn)
    )
    scores = at.helper("scores", "Mul", products, scale)
    if at.attr("causal"):
        scores = _causal(at, scores)
    if mask and at.attr("bool_mask"):
        never = at.constant("never", np.asarray(-np.inf, at.dtype))
        scores = at.helper("masked", "Where", *mask, scores, never)
    elif mask:
        scores = at.helper("masked", "Add", scores, *mask)
    weights = at.helper("shares", "Softmax", scores, axis=-1)
    if mask and at.attr("bool_mask"):  # a query that sees nothing gets zeros, not 0 / 0
        weights = at.helper("shown", "Where", *mask, weights, at.constant("zero", at.dtype.type(0)))
    at.emit("MatMul", weights, values)


def _matmul(at: Site) -> None:
    at.emit("MatMul", *at.args)


def _einsum(at: Site) -> None:
    at.emit("Einsum", *at.args, equation=at.attr("equation"))


def _reduction(op: str, since: int) -> Lowering:
    """Axes are an input from an opset on, an attribute before."""

    def lowering(at: Site) -> None:
        axes, keep = at.ints("axes"), int(at.attr("keep"))
        if not axes:
            at.emit("Identity", *at.args)
        elif at.frame.opset < since:
            at.emit(op, *at.args, axes=axes, keepdims=keep)
        else:
            at.emit(op, *at.args, whole(at, "axes", *axes), keepdims=keep)

    return lowering


def _extreme(op: str) -> Lowering:
    """True and false are compared as whole numbers: as such only opset 20 has them."""
    plain = _reduction(op, 18)

    def lowering(at: Site) -> None:
        axes, keep = at.ints("axes"), int(at.attr("keep"))
        if not axes or at.types[0].dtype != "bool":
            plain(at)
            return
        x = at.helper("numbers", "Cast", *at.args, to=DTYPES["i32"])
        at.emit("Cast", _reduce(at, "extreme", op, x, axes, keep), to=DTYPES["bool"])

    return lowering


def _reduce(at: Site, role: str, op: str, x: str, axes: list[int], keep: int) -> str:
    """A reduction on the way to the result, of an operator whose axes are an input since 18."""
    if at.frame.opset < 18:
        return at.helper(role, op, x, axes=axes, keepdims=keep)
    return at.helper(role, op, x, whole(at, f"{role}_axes", *axes), keepdims=keep)


def _spread(*, root: bool) -> Lowering:
    def lowering(at: Site) -> None:
        axes, keep, correction = at.ints("axes"), int(at.attr("keep")), at.attr("correction")
        away = at.helper(
            "away", "Sub", *at.args, _reduce(at, "mean", "ReduceMean", at.args[0], axes, 1)
        )
        squares = at.helper("squares", "Mul", away, away)
        spread = _reduce(at, "spread", "ReduceMean", squares, axes, keep)
        if correction:
            sizes = [at.types[0].shape[axis] for axis in axes]
            count = product(sizes)
            if not isinstance(count, int):
                raise at.refuse(f"it divides by {count} - {correction}, a symbolic number")
            share = at.constant("share", np.asarray(count / (count - correction), at.dtype))
            spread = at.helper("corrected", "Mul", spread, share)
        at.emit("Sqrt" if root else "Identity", spread)

    return lowering


def _place(op: str) -> Lowering:
    def lowering(at: Site) -> None:
        at.emit(op, *at.args, axis=at.attr("axis"), keepdims=int(at.attr("keep")))

    return lowering


def _adaptive(
    at: Site, pool: str, decomposed: Callable[[Site, list[tuple[int, int]]], None]
) -> None:
    sizes = at.ints("size")
    if set(sizes) == {1}:
        at.emit(f"Global{pool}", *at.args)
        return
    pairs = []
    for extent, size in zip(at.types[0].shape[2:], sizes, strict=True):
        if not isinstance(extent, int):
            raise at.refuse(f"it cuts the symbolic extent {extent} into {size} parts")
        pairs.append((extent, size))
    if any(extent % size for extent, size in pairs):
        decomposed(at, pairs)
        return
    kernel = [extent // size for extent, size in pairs]
    at.emit(pool, *at.args, kernel_shape=kernel, strides=kernel)


def _adaptive_avg_pool(at: Site) -> None:
    _adaptive(at, "AveragePool", _averages)


def _averages(at: Site, pairs: list[tuple[int, int]]) -> None:
    """Along each axis the mean of a window is a product with a matrix."""
    _along(at, [averages(extent, size) for extent, size in pairs])


def _along(at: Site, matrices: list[Array]) -> None:
    """Multiply each spatial axis by a matrix [new extent, old extent]."""
    value, last = at.args[0], at.rank - 1
    for axis, matrix in enumerate(matrices, 2):
        weights = at.constant(f"weights{axis}", np.asarray(matrix.T, at.dtype))
        order = list(range(at.rank))
        order[axis], order[last] = last, axis
        if axis != last:
            value = at.helper(f"turned{axis}", "Transpose", value, perm=order)
            value = at.helper(f"along{axis}", "MatMul", value, weights)
            value = at.helper(f"back{axis}", "Transpose", value, perm=order)
        else:
            at.emit("MatMul", value, weights)


def _adaptive_max_pool(at: Site) -> None:
    _adaptive(at, "MaxPool", _largest)


def _largest(at: Site, pairs: list[tuple[int, int]]) -> None:
    """Gather the windows of one axis after the other, filled up with entries of their own."""
    value = at.args[0]
    for axis, (extent, size) in enumerate(pairs, 2):
        windows = shares(extent, size)
        longest = max(end - first for first, end in windows)
        rows = [[min(first + j, end - 1) for j in range(longest)] for first, end in windows]
        entries = at.constant(f"entries{axis}", np.asarray(rows, np.int64))
        seen = at.helper(f"windows{axis}", "Gather", value, entries, axis=axis)
        over: dict[str, list[int]] = {} if at.frame.opset >= 18 else {"axes": [axis + 1]}
        inputs = [seen] if over else [seen, whole(at, f"axes{axis}", axis + 1)]
        if axis == at.rank - 1:
            at.emit("ReduceMax", *inputs, keepdims=0, **over)
        else:
            value = at.helper(f"largest{axis}", "ReduceMax", *inputs, keepdims=0, **over)


def _upsample(at: Site) -> None:
    scale, linear = at.ints("scale"), at.attr("mode") == "bilinear"
    if linear and (at.rank != 4 or at.attr("align_corners")):
        _interpolate(at, scale)
        return
    at.emit(
        "Resize",
        at.args[0],
        "",
        at.constant("scales", np.asarray([1, 1, *scale], np.float32)),
        mode="linear" if linear else "nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="half_pixel" if linear else "asymmetric",
    )


def _interpolate(at: Site, scale: list[int]) -> None:
    """Runtimes interpolate images, hardly anything else: a product with a matrix an axis."""
    matrices = []
    for extent, factor in zip(at.types[0].shape[2:], scale, strict=True):
        if not isinstance(extent, int):
            raise at.refuse(f"it interpolates an axis of the symbolic extent {extent}")
        matrices.append(interpolation(extent, factor, corners=at.attr("align_corners")))
    _along(at, matrices)


def _resized(at: Site) -> None:
    """Resize where runtimes agree on what it means; else picked entries, or matrices."""
    mode, extents = at.attr("mode"), list(at.types[0].shape[2:])
    after = at.node.types[0].shape[2:]
    factors = scales(at.node.attrs, at.rank - 2) or [None] * len(extents)
    pairs = []
    for old, new, factor in zip(extents, after, factors, strict=True):
        if not isinstance(old, int) or not isinstance(new, int):
            raise at.refuse(f"it resizes an axis of the symbolic extent {old}")
        pairs.append((old, new, factor))
    exact = all(factor is None or old * factor == new for old, new, factor in pairs)
    nearest = mode == "nearest" and all(not max(a, b) % min(a, b) for a, b, _ in pairs)
    smooth = mode in ("bilinear", "bicubic") and not at.attr("align_corners")
    if exact and (nearest or (smooth and not at.attr("antialias"))):
        _resize(at, [new for _, new, _ in pairs])
    elif mode.startswith("nearest"):
        value = at.args[0]
        for axis, (old, new, factor) in enumerate(pairs, 2):
            entries = whole(at, f"entries{axis}", *sources(old, new, factor, mode).tolist())
            if axis < at.rank - 1:
                value = at.helper(f"axis{axis}", "Gather", value, entries, axis=axis)
            else:
                at.emit("Gather", value, entries, axis=axis)
    else:
        flags = {"corners": at.attr("align_corners"), "smooth": at.attr("antialias")}
        _along(at, [weights(old, new, factor, mode, **flags) for old, new, factor in pairs])


def _resize(at: Site, sizes: list[int]) -> None:
    """Resize to sizes; those of batch and channels are the input's."""
    mode, (x,) = at.attr("mode"), at.args
    kept = at.helper("kept", "Shape", x, end=2)
    wanted = at.helper("sizes", "Concat", kept, whole(at, "after", *sizes), axis=0)
    how = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}[mode]
    given = {"mode": how, "coordinate_transformation_mode": "half_pixel"}
    if mode == "nearest":
        given.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    if mode == "bicubic":
        at.emit("Resize", x, "", "", wanted, **given, cubic_coeff_a=-0.75)
    else:
        at.emit("Resize", x, "", "", wanted, **given)


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "attention": _attention,
        "scaled_dot_product_attention": _sdpa,
        "matmul": _matmul,
        "einsum": _einsum,
        "mean": _reduction("ReduceMean", 18),
        "sum": _reduction("ReduceSum", 13),
        "prod": _reduction("ReduceProd", 18),
        "max": _extreme("ReduceMax"),
        "min": _extreme("ReduceMin"),
        "var": _spread(root=False),
        "std": _spread(root=True),
        "l2_norm": _reduction("ReduceL2", 18),
        "argmax": _place("ArgMax"),
        "argmin": _place("ArgMin"),
        "adaptive_avg_pool": _adaptive_avg_pool,
        "adaptive_max_pool": _adaptive_max_pool,
        "upsample": _upsample,
        "interpolate": _resized,
    }
)
"""These operators in ONNX."""
