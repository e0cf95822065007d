"""Differences that only stand-ins make.

Exact fractions know the exponential, the root of what is no square and functions of single
entries only as some functions. Where two sides differ that need more of them (``exp(a + b)``,
``tanh(-x)``), the difference may be the stand-in's. Then both sides are compared in double
precision as well, on other numbers: a counterexample must show there too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from archir.ops.arithmetic import Array, Floating, Rational
from archir.ops.record import Mode, OpSet
from archir.proof.exact import Mismatch, check_use, trial_of
from archir.rewrite.plan import Plan

BOUND = 1e-12
"""The largest max|a-b| / max|a| of two sides that are taken for equal in double precision."""
DRAWS = 3
"""How often numbers are drawn; the sides must be equal each time."""


class Noting(Rational):
    """Exact fractions that note whether a stand-in took the place of a function."""

    def __init__(self) -> None:
        self.used = False

    def sqrt(self, a: Array) -> Array:
        self.used = True
        return super().sqrt(a)

    def exp(self, a: Array) -> Array:
        self.used = True
        return super().exp(a)

    def function(self, name: str, a: Array, real: Callable[[Array], Array]) -> Array:
        self.used = True
        return super().function(name, a, real)


class Real(Floating):
    """Double precision, in which each number has a root."""

    def sqrt(self, a: Array) -> Array:
        return super().sqrt(np.abs(a))


def only_stand_ins_differ(plan: Plan, ops: OpSet, mode: Mode, seed: int) -> bool:
    """Whether a difference in exact fractions is due to a stand-in, as far as can be seen."""
    noting = Noting()
    check_use(plan, ops, mode, trial=trial_of(plan, seed=seed, arithmetic=noting))
    if not noting.used:
        return False
    with np.errstate(all="ignore"):
        return all(
            check_use(plan, ops, mode, trial=trial, compare=close).equal
            for trial in (trial_of(plan, seed=n, arithmetic=Real()) for n in range(DRAWS))
        )


def equal_in_doubles(plan: Plan, ops: OpSet, mode: Mode, seed: int) -> bool:
    """Whether both sides of a use are equal, within the bound, in double precision."""
    with np.errstate(all="ignore"):
        trial = trial_of(plan, seed=seed, arithmetic=Real())
        return check_use(plan, ops, mode, trial=trial, compare=close).equal


def close(name: str, a: Array, b: Array) -> Mismatch | None:
    """Where two tensors in double precision differ by more than the bound."""
    if a.shape != b.shape:
        return Mismatch(name, (), max(a.size, b.size), a.size)
    scale = max(float(np.max(np.abs(side), initial=0.0)) for side in (a, b))
    wrong = ~(np.abs(a - b) <= BOUND * scale)  # also where a side is no number
    if not wrong.any():
        return None
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    return Mismatch(name, index, int(wrong.sum()), int(wrong.size), str(a[index]), str(b[index]))
