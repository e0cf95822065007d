"""What proofs say of convolutions, poolings and linear maps beside the operators themselves.

An operator like ``conv`` does several things at once. The laws take it apart: zeros around the
image (``pad``), a sum over windows (``correlate``), a bias (``channel_add``). Attributes that a
kernel's shape tells are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from archir.ir.types import AttrValue
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.conv import CONV
from archir.ops.window import windows
from archir.weights.record import WeightError, need

Steps = tuple[int, ...]


def _correlate(
    k: Arithmetic, x: Array, w: Array, stride: Steps | int, dilation: Steps | int, groups: int
) -> Array:
    """A convolution of what is there: no padding, no bias. One step may stand for all axes."""
    need(x.ndim == w.ndim and x.shape[1] == groups * w.shape[1], "correlate: channels")
    need(w.shape[0] % groups == 0, "correlate: groups")
    attrs: dict[str, AttrValue] = {"kernel": w.shape[2:], "padding": (0,) * (w.ndim - 2)}
    for name, steps in (("stride", stride), ("dilation", dilation)):
        attrs[name] = steps if isinstance(steps, tuple) else (steps,) * (w.ndim - 2)
    attrs["groups"] = groups
    (result,) = CONV.reference(k, (x,), {"weight": w}, attrs, "eval")
    return result


def _window_sum(k: Arithmetic, x: Array, kernel: Steps, stride: Steps) -> Array:
    """The sum of each window of what is there."""
    attrs = {"kernel": kernel, "stride": stride, "padding": (0,) * len(kernel)}
    seen = windows(x, attrs, k.number(0))
    return k.sum(seen, tuple(range(seen.ndim - len(kernel), seen.ndim)))


def _across(k: Arithmetic, x: Array, w: Array) -> Array:
    """A matrix applied to the channels at each place."""
    need(w.ndim == 2 and x.ndim > 1 and x.shape[1] == w.shape[1], "across: channels")
    y = k.matmul(w, x.reshape(*x.shape[:2], -1))
    return y.reshape(x.shape[0], w.shape[0], *x.shape[2:])


def _last_across(k: Arithmetic, x: Array, w: Array) -> Array:
    """A matrix applied along the last axis."""
    need(w.ndim == 2 and x.ndim > 0 and x.shape[-1] == w.shape[1], "last_across: the last axis")
    return k.matmul(x, w.T)


def _mix_by_channel(k: Arithmetic, a: Array, b: Array, v: Array) -> Array:
    """Of each channel the share 1 - v of the one and v of the other."""
    need(a.shape == b.shape and a.ndim > 1, "mix_by_channel: two tensors of one shape")
    need(v.shape in ((1,), (a.shape[1],)), "mix_by_channel: a vector of the channels")
    share = v.reshape(-1, *(1,) * (a.ndim - 2))
    return k.add(a, k.multiply(k.subtract(b, a), share))


def _mix(k: Arithmetic, a: Array, b: Array, share: float) -> Array:
    """The same with one share for all channels."""
    need(a.shape == b.shape, "mix: two tensors of one shape")
    return k.add(a, k.multiply(k.subtract(b, a), k.array(share)))


def _thinned(k: Arithmetic, x: Array, share: float) -> Array:
    """What is left where entries are dropped with a probability; only 0 leaves a value."""
    need(share == 0, "thinned: what is left is random")
    return x


def _each(compute: Callable[[int, int], Any]) -> Callable[..., Any]:
    """Arithmetic of whole numbers, or of one for each spatial axis."""

    def apply(k: Arithmetic, a: Any, b: Any) -> Any:
        if not (isinstance(a, tuple) or isinstance(b, tuple)):
            return compute(a, b)
        count = len(a if isinstance(a, tuple) else b)
        one = a if isinstance(a, tuple) else (a,) * count
        two = b if isinstance(b, tuple) else (b,) * count
        return tuple(compute(i, j) for i, j in zip(one, two, strict=True))

    return apply


def _quotient(a: int, b: int) -> int:
    if b == 0 or a % b:
        raise WeightError("not a whole multiple")
    return a // b


WINDOWS: Mapping[str, Callable[..., Any]] = {
    "correlate": _correlate,
    "window_sum": _window_sum,
    "across": _across,
    "last_across": _last_across,
    "mix_by_channel": _mix_by_channel,
    "mix": _mix,
    "thinned": _thinned,
    "volume": lambda k, kernel: math.prod(kernel),
    "plus": _each(lambda a, b: a + b),
    "minus": _each(lambda a, b: a - b),
    "times": _each(lambda a, b: a * b),
    "quotient": _each(_quotient),
}
