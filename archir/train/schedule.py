"""How the learning rate moves over a run: pure functions of the step. Needs no torch.

| kind | rate, as a factor of the base rate | source |
|---|---|---|
| ``constant`` | 1 | |
| ``cosine`` | half a cosine from 1 to ``floor`` over all steps | Loshchilov, Hutter 2017 |
| ``sgdr`` | such half cosines with restarts, each longer by a factor | the same |
| ``onecycle`` | up from ``1 / div_factor`` to 1 and down to almost nothing, while momentum goes \
the other way | Smith, Topin 2019; annealed by cosines as in torch's ``OneCycleLR`` |

Each may be preceded by a linear warmup (Goyal et al. 2017, section 2.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from archir.train.recipe import TrainConfig

Kind = Literal["constant", "cosine", "sgdr", "onecycle"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rate of each step. Steps are counted from 0; all but ``warmup`` starts after it."""

    kind: Kind = "cosine"
    warmup: float = 0.0
    """For how long the rate rises in a straight line at first; less than the whole run."""
    warmup_unit: Literal["epochs", "steps"] = "epochs"
    warmup_start: float = 0.01
    """Where it rises from, as a factor of the rate at which the schedule itself starts."""
    floor: float = 0.0
    """The lowest rate of ``cosine`` and ``sgdr``, as a factor of the base rate."""
    cycle: float = 10.0
    """Epochs from the start to the first restart of ``sgdr``, T_0; at least a step."""
    cycle_factor: float = 2.0
    """How much longer each cycle of ``sgdr`` is than the last one, at least 1: T_mult."""
    peak: float = 0.3
    """Where in ``onecycle`` the rate is highest, as a share of all steps: pct_start."""
    div_factor: float = 25.0
    """By what ``onecycle`` divides the base rate for its first step."""
    final_div_factor: float = 1e4
    """By what it divides that of the first step for the last one."""
    cycle_momentum: bool = True
    """Whether ``onecycle`` moves the momentum (of AdamW: the first beta) as well."""
    base_momentum: float = 0.85
    """The momentum where the rate of ``onecycle`` is highest."""
    max_momentum: float = 0.95
    """The momentum where it is lowest."""

    @classmethod
    def of(cls, config: TrainConfig) -> Schedule:
        """What a recipe says of the rate."""
        return cls(
            config.schedule,
            warmup=config.warmup,
            floor=config.lr_min / config.lr if config.lr else 0.0,
            cycle=config.cycle,
            cycle_factor=config.cycle_factor,
            peak=config.peak,
        )

    def rate(self, step: int, per_epoch: int, steps: int) -> float:
        """The rate of a step as a factor of the base rate.

        Args:
            step: Counted from 0, less than ``steps``.
            per_epoch: Steps in an epoch.
            steps: Steps in all.
        """
        warm = self._warm(per_epoch)
        if step < warm:
            rising = self.warmup_start + (1 - self.warmup_start) * step / warm
            return rising * self._rate(0, per_epoch, max(steps - warm, 1))
        return self._rate(step - warm, per_epoch, steps - warm)

    def momentum(self, step: int, per_epoch: int, steps: int) -> float | None:
        """The momentum of a step; None where the schedule leaves it alone."""
        if self.kind != "onecycle" or not self.cycle_momentum:
            return None
        warm = self._warm(per_epoch)
        low, high = self.base_momentum, self.max_momentum
        return self._onecycle(max(step - warm, 0), max(steps - warm, 1), high, low, high)

    def _warm(self, per_epoch: int) -> int:
        """How many steps the warmup takes."""
        return round(self.warmup * per_epoch if self.warmup_unit == "epochs" else self.warmup)

    def _rate(self, step: int, per_epoch: int, steps: int) -> float:
        if self.kind == "cosine":
            return self._falling(step, steps)
        if self.kind == "sgdr":
            return self._falling(*self._cycle(step, max(self.cycle * per_epoch, 1)))
        if self.kind == "onecycle":
            low = 1 / self.div_factor
            return self._onecycle(step, steps, low, 1.0, low / self.final_div_factor)
        return 1.0

    def _falling(self, step: float, length: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * step / length)) / 2

    def _cycle(self, step: float, length: float) -> tuple[float, float]:
        """How far a step lies within its cycle, and that cycle's length, in steps."""
        if self.cycle_factor == 1:
            return math.fmod(step, length), length
        while step >= length:
            step -= length
            length *= self.cycle_factor
        return step, length

    def _onecycle(self, step: int, steps: int, start: float, top: float, end: float) -> float:
        """The value at a step of what goes from ``start`` over ``top`` to ``end``."""
        rising, last = self.peak * steps - 1, steps - 1
        if step <= rising:
            return _between(start, top, step / rising if rising > 0 else 1.0)
        return _between(top, end, (step - rising) / (last - rising))


def _between(start: float, end: float, share: float) -> float:
    """From one value to the other along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
