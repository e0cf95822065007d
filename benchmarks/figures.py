"""What pages of search results say in the same way: runs, shares with their intervals, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A search: the words behind `archir search`, said in the root of the project."""

    part: str
    strategy: str
    seed: int
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.part}-{self.strategy}-{self.seed}"


def share(correct: int, count: int) -> str:
    """A share of images in per cent, with its exact interval."""
    low, high = stats.binomtest(correct, count).proportion_ci(method="exact")
    return f"{correct / count:.2%} ({low:.2%} to {high:.2%})".replace("%", " %")


def right(correct: int, count: int, **_: float) -> str:
    """How many images, with the exact interval of their share."""
    low, high = stats.binomtest(correct, count).proportion_ci(method="exact")
    return f"{correct} ({100 * low:.1f} to {100 * high:.1f} %)"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of Student's interval of it."""
    found = np.array(values)
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return float(found.mean()), float(half)


def mean_difference(pairs: Sequence[tuple[float, float]]) -> str:
    """The mean of paired differences in points, its interval, and the sign test."""
    found = [100 * (a - b) for a, b in pairs]
    if len(found) < 2:
        return f"{found[0]:+.2f} (one seed) | |"
    mean, half = interval(found)
    more, less = sum(d > 0 for d in found), sum(d < 0 for d in found)
    p = stats.binomtest(more, more + less).pvalue if more + less else 1.0
    zero = "includes zero" if abs(mean) <= half else "excludes zero"
    span = f"{mean - half:+.2f} to {mean + half:+.2f}, {zero}"
    return f"{mean:+.2f} ({span}) | {more} : {less} of {len(found)} | {p:.2g}"


def head(*titles: str) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"
