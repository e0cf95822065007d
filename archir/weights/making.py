"""Weight functions that make tensors out of sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from archir.ops.arithmetic import Arithmetic, Array
from archir.weights.record import Shape, WeightFunction, need, whole

MAX_ENTRIES = 2**30
"""How many entries a tensor that a rule makes may have."""


def sizes_of(*sizes: int | tuple[int, ...]) -> Shape:
    """A shape, given as sizes and lists of sizes."""
    flat = tuple(n for s in sizes for n in (s if isinstance(s, tuple) else (s,)))
    whole("a shape", *flat)
    need(all(n >= 0 for n in flat), f"not a shape: {flat}")
    need(math.prod(flat) <= MAX_ENTRIES, f"{flat} has more than {MAX_ENTRIES:,} entries")
    return flat


def _identity_shape(channels: int, *kernel: int | tuple[int, ...]) -> Shape:
    taps = sizes_of(*kernel)
    need(all(k % 2 for k in taps), f"an identity kernel has odd extents, got {taps}")
    return sizes_of(channels, channels, taps)


def _identity(k: Arithmetic, channels: int, *kernel: int | tuple[int, ...]) -> Array:
    shape = _identity_shape(channels, *kernel)
    out = np.zeros(shape, np.int64)
    centre = tuple(size // 2 for size in shape[2:])
    diagonal = np.arange(channels)
    out[(diagonal, diagonal, *(np.full(channels, c) for c in centre))] = 1
    return k.array(out)


def filled(value: float) -> Callable[..., Array]:
    """The value of a function that makes a tensor with one number everywhere."""

    def make(k: Arithmetic, *sizes: int | tuple[int, ...]) -> Array:
        return np.broadcast_to(k.array(value), sizes_of(*sizes)).copy()

    return make


MAKING = (
    WeightFunction(
        "identity",
        "identity(channels, kernel...)",
        "The kernel of the identity convolution: 1 at the centre where output equals input "
        "channel. Without kernel extents, the identity matrix.",
        0,
        _identity_shape,
        _identity,
    ),
    WeightFunction("zeros", "zeros(sizes...)", "Zeros.", 0, sizes_of, filled(0)),
    WeightFunction("ones", "ones(sizes...)", "Ones.", 0, sizes_of, filled(1)),
)
