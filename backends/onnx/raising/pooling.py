"""Pooling, resizing and reductions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from archir.ir.dims import Size
from archir.ir.types import AttrValue
from archir.ops.window import ints

from .layering import even, pads_of, window
from .site import RefusedError, Site
from .values import Made

Raise = Callable[[Site], None]


def _kernel(at: Site) -> list[int]:
    kernel = [int(k) for k in at.attr("kernel_shape", [])]
    if not kernel or min(kernel) < 1:
        raise RefusedError(f"its kernel_shape is {kernel}")
    return kernel


def _count(size: Size, pads: int, reach: int, stride: int, before: int, *, up: bool) -> int:
    """How many windows fit an axis, rounded up where a last one may hang over."""
    if not isinstance(size, int):
        raise RefusedError(f"it rounds up the number of windows over {size}")
    room = size + pads - reach
    count = (room + stride - 1) // stride + 1 if up else room // stride + 1
    if up and (count - 1) * stride >= size + before:
        count -= 1
    return count


def _ends(at: Site, x: Made, kernel: Sequence[int], pads: Sequence[int]) -> list[int]:
    """The padding at the ends, once what rounding up adds is spelled out as padding."""
    spatial = len(kernel)
    after = list(pads[spatial:])
    if not at.attr("ceil_mode", 0):
        return after
    found = window(at, kernel)
    strides, dilations = ints(found["stride"]), ints(found["dilation"])
    for axis, size in enumerate(x.type.shape[2:]):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if strides[axis] == 1:
            continue
        total, before = pads[axis] + after[axis], pads[axis]
        count = _count(size, total, reach, strides[axis], before, up=True)
        assert isinstance(size, int)
        last = (count - 1) * strides[axis] + reach
        after[axis] = max(after[axis], last - size - before)
    return after


def _max_pool(at: Site) -> None:
    if at.attr("storage_order", 0) or (len(at.node.output) > 1 and at.node.output[1]):
        raise RefusedError("the places of its maxima are asked for")
    x, kernel = at.x(), _kernel(at)
    found = window(at, kernel)
    pads = pads_of(at, x, kernel, ints(found["dilation"]))
    spatial, reach = len(kernel), _reach(kernel, ints(found["dilation"]))
    ends = _ends(at, x, kernel, pads)
    before = pads[:spatial]
    if any(2 * p > r for p, r in zip(before, reach, strict=True)):
        x, before, ends = _edged(at, x, before, ends, reach)
    given = {"kernel": tuple(kernel), "padding": tuple(before), **found}
    if before == ends or _counts(x, before, ends, reach, found) == _counts(
        x, before, before, reach, found
    ):
        at.give(at.put("max_pool", x, **given))
        return
    if _counts(x, before, ends, reach, found) == _counts(x, before, None, reach, found):
        at.give(at.put("max_pool", x, ceil_mode=True, **given))
        return
    x, before, _ = _edged(at, x, before, ends, reach)
    given["padding"] = tuple(before)
    at.give(at.put("max_pool", x, **given))


def _reach(kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    return [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]


def _counts(
    x: Made,
    before: Sequence[int],
    ends: Sequence[int] | None,
    reach: Sequence[int],
    attrs: Mapping[str, AttrValue],
) -> list[int]:
    """How many windows there are; without ends as many as torch makes when it rounds up."""
    found = []
    for j, (size, stride) in enumerate(zip(x.type.shape[2:], ints(attrs["stride"]), strict=True)):
        pads = before[j] + (before if ends is None else ends)[j]
        found.append(_count(size, pads, reach[j], stride, before[j], up=ends is None))
    return found


def _edged(
    at: Site, x: Made, before: Sequence[int], ends: Sequence[int], reach: Sequence[int]
) -> tuple[Made, list[int], list[int]]:
    """Padding that never wins: a window that hangs over an edge holds the edge's entry."""
    if any(max(b, e) >= r for b, e, r in zip(before, ends, reach, strict=True)):
        raise RefusedError("a whole window of it is padding")
    if any(d > 1 for d in at.attr("dilations") or [1]):
        raise RefusedError("it is dilated and padded unevenly")
    widths = {"before": (0, 0, *before), "after": (0, 0, *ends)}
    nothing = [0] * len(before)
    return at.put("pad", x, mode="replicate", **widths), nothing, nothing


def _avg_pool(at: Site) -> None:
    x, kernel = at.x(), _kernel(at)
    found = window(at, kernel)
    stride, dilation = ints(found["stride"]), ints(found.pop("dilation"))
    if set(dilation) != {1}:
        raise RefusedError("its windows are dilated")
    spatial = len(kernel)
    pads = pads_of(at, x, kernel, dilation)
    ends = _ends(at, x, kernel, pads)
    counted = bool(at.attr("count_include_pad", 0))
    given: dict[str, AttrValue] = {"kernel": tuple(kernel), **found}
    symmetric = pads[:spatial] == ends
    fits = all(2 * p <= k for p, k in zip(pads, kernel, strict=False))
    if symmetric and fits:
        padding = tuple(pads[:spatial])
        include = counted or not any(pads)
        at.give(at.put("avg_pool", x, padding=padding, count_include_pad=include, **given))
        return
    if pads[:spatial] == pads[spatial:] and fits:
        padding = tuple(pads[:spatial])
        given |= {"padding": padding, "count_include_pad": counted, "ceil_mode": True}
        at.give(at.put("avg_pool", x, **given))
        return
    sizes = [size for size in x.type.shape[2:] if isinstance(size, int)]
    if len(sizes) != spatial:
        raise RefusedError("its windows hang over axes whose sizes are symbols")
    # The mean over a window with zeros in it, and how much of the window counts.
    shares = [
        _shares(size, kernel[j], stride[j], (pads[j], pads[spatial + j], ends[j]), counted=counted)
        for j, size in enumerate(sizes)
    ]
    wide, _ = even(at, x, [*pads[:spatial], *ends])
    if wide is x:
        wide = at.put("pad", x, before=(0, 0, *pads[:spatial]), after=(0, 0, *ends))
    result = at.put("avg_pool", wide, padding=0, **given)
    grid = np.ones((1,) * spatial)
    for axis, share in enumerate(shares):
        grid = grid * share.reshape([-1 if j == axis else 1 for j in range(spatial)])
    if not (grid == 1).all():
        result = at.put("mul", result, at.numbers(grid, result))
    at.give(result)


def _shares(
    size: int, kernel: int, stride: int, pads: tuple[int, int, int], *, counted: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """For each window, its length over how many of its places count."""
    before, after, end = pads
    count = (size + before + end - kernel) // stride + 1
    starts = np.arange(count) * stride - before
    low, high = (-before, size + after) if counted else (0, size)
    inside = np.minimum(starts + kernel, high) - np.maximum(starts, low)
    return np.asarray(kernel / np.maximum(inside, 1), np.float64)


def _global(ours: str, adaptive: str) -> Raise:
    def run(at: Site) -> None:
        x = at.x()
        if x.type.rank < 3:
            at.give(x)
            return
        after = at.follower()
        if after is not None and _flattens(at, after, x):
            at.take(after, at.put(ours, x))
            return
        at.give(at.put(adaptive, x, size=1))

    return run


def _flattens(at: Site, node: object, x: Made) -> bool:
    """Whether a node makes the axes of extent 1 go, and nothing else."""
    after = Site(at.net, node)  # type: ignore[arg-type]
    kind = after.node.op_type
    if after.node.domain not in ("", "ai.onnx") or after.node.input[0] != at.node.output[0]:
        return False
    pooled = [*x.type.shape[:2], *[1] * (x.type.rank - 2)]
    try:
        if kind == "Flatten":
            return int(after.attr("axis", 1)) == 1
        if kind == "Squeeze":
            axes = after.ints(1, "axes")
            space = list(range(2, x.type.rank))
            return axes is not None and sorted(a % x.type.rank for a in axes) == space
        if kind == "Reshape":
            like = Made(-1, 0, type(x.type)(x.type.dtype, tuple(pooled)))
            return at.solved(like, after.sizes(1)) == list(x.type.shape[:2])
    except (RefusedError, KeyError):
        return False
    return False


def _reduction(ours: str) -> Raise:
    def run(at: Site) -> None:
        x = at.x()
        axes, keep = over(at, x)
        if not axes:
            at.give(x)
            return
        space = tuple(range(2, x.type.rank))
        if ours == "mean" and not keep and space and axes == space:
            at.give(at.put("global_avg_pool", x))
            return
        after = at.follower() if ours == "mean" and keep and space and axes == space else None
        if after is not None and _flattens(at, after, x):
            at.take(after, at.put("global_avg_pool", x))
            return
        at.give(at.put(ours, x, axes=axes, keep=keep))

    return run


def over(at: Site, x: Made) -> tuple[tuple[int, ...], bool]:
    """The axes that a reduction goes over, and whether they stay."""
    axes, rank = at.ints(1, "axes"), x.type.rank
    if any(not -rank <= axis < rank for axis in axes or ()):
        raise RefusedError(f"it goes over the axes {axes} of {x.type}")
    keep = bool(at.attr("keepdims", 1))
    if axes:
        return tuple(sorted({axis % rank for axis in axes})), keep
    empty = bool(at.attr("noop_with_empty_axes", 0))
    return ((), keep) if empty else (tuple(range(rank)), keep)


def _composed(before: str, after: str) -> Raise:
    """A sum of a function of the entries, and a function of the sum."""

    def run(at: Site) -> None:
        x = at.x()
        axes, keep = over(at, x)
        if before == "square":
            x = at.put("mul", x, x)
        elif before:
            x = at.put(before, x)
        x = at.put("sum", x, axes=axes, keep=keep) if axes else x
        at.give(at.put(after, x) if after else x)

    return run


def _log_sum_exp(at: Site) -> None:
    """The logarithm of a sum of exponentials, none of them beyond 1."""
    x = at.x()
    axes, keep = over(at, x)
    if not axes:
        at.give(x)
        return
    top = at.put("max", x, axes=axes, keep=True)
    powers = at.put("exp", at.put("sub", x, top))
    log = at.put("log", at.put("sum", powers, axes=axes, keep=keep))
    rest = top if keep else at.put("max", x, axes=axes, keep=False)
    at.give(at.put("add", log, rest))


def _arg(ours: str) -> Raise:
    def run(at: Site) -> None:
        if at.attr("select_last_index", 0):
            raise RefusedError("it wants the last of several")
        axis, keep = int(at.attr("axis", 0)), bool(at.attr("keepdims", 1))
        at.give(at.put(ours, at.x(), axis=axis, keep=keep))

    return run


def _lp_normal(at: Site) -> None:
    if at.attr("p", 2) != 2:
        raise RefusedError(f"its norm is of order {at.attr('p')}")
    x = at.x()
    norm = at.put("l2_norm", x, axes=int(at.attr("axis", -1)), keep=True)
    # Without a direction nothing is divided by zero.
    at.give(at.put("div", x, at.put("maximum", norm, at.number(1e-30, x))))


def _mean_variance(at: Site) -> None:
    x = at.x()
    axes = tuple(int(a) for a in at.attr("axes", [0, 2, 3]))
    centred = at.put("sub", x, at.put("mean", x, axes=axes, keep=True))
    square = at.put("mean", at.put("mul", centred, centred), axes=axes, keep=True)
    deviation = at.put("sqrt", square)
    at.give(at.put("div", centred, at.put("add", deviation, at.number(1e-9, x))))


POOLS: Mapping[str, Raise] = MappingProxyType(
    {
        "MaxPool": _max_pool,
        "AveragePool": _avg_pool,
        "GlobalAveragePool": _global("global_avg_pool", "adaptive_avg_pool"),
        "GlobalMaxPool": _global("global_max_pool", "adaptive_max_pool"),
        "ReduceMean": _reduction("mean"),
        "ReduceSum": _reduction("sum"),
        "ReduceMax": _reduction("max"),
        "ReduceMin": _reduction("min"),
        "ReduceProd": _reduction("prod"),
        "ReduceL2": _reduction("l2_norm"),
        "ReduceL1": _composed("abs", ""),
        "ReduceSumSquare": _composed("square", ""),
        "ReduceLogSumExp": _log_sum_exp,
        "ReduceLogSum": _composed("", "log"),
        "ArgMax": _arg("argmax"),
        "ArgMin": _arg("argmin"),
        "LpNormalization": _lp_normal,
        "MeanVarianceNormalization": _mean_variance,
    }
)
"""How these operators are raised."""
