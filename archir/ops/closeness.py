"""How far two arrays of floats are apart, on the scale of the first."""

from __future__ import annotations

import math

import numpy as np

from archir.ops.arithmetic import Array


def distance(a: Array, b: Array) -> float:
    """max|a-b| / max|a|; infinite where shapes differ or a value is not finite."""
    if a.shape != b.shape:
        return math.inf
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not a.size:
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    scale = float(np.abs(a).max())
    far = float(np.abs(a - b).max())
    return far / scale if scale else (math.inf if far else 0.0)
