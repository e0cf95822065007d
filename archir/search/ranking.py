"""How well a score ranks networks: rank correlation with the truth, and how sure that is.

Importing this module needs scipy (``archir[search]``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from archir.diag import error

Vector = NDArray[np.float64]

LEVEL = 0.95
"""Of the intervals."""
DRAWS = 2000
"""Samples of the bootstrap. They are ours, as the percentile interval is (Efron 1979)."""


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Correlation:
    """How well a score ranks what is known."""

    kendall: Estimate
    """Kendall's tau-b, which allows for ties."""
    spearman: Estimate
    """Spearman's rho, equal values sharing the mean of their ranks."""
    top: Estimate
    """The share of the truly best ``best`` that are among the ``best`` by score; where the last
    place is shared, each of those that share it counts in part."""
    best: int
    count: int
    draws: int
    level: float


def correlate(
    scores: Sequence[float],
    truth: Sequence[float],
    *,
    top: int = 10,
    draws: int = DRAWS,
    seed: int = 0,
) -> Correlation:
    """Compare a score with the truth, larger being better for both.

    Args:
        scores: One for each network.
        truth: What they are worth, in the same order.
        top: How many count as the best.
        draws: Samples of the bootstrap, each of as many networks, drawn with replacement.
        seed: Draws them.

    Raises:
        ArchirError: A731, these cannot be ranked.
    """
    x, y = _checked(scores, truth, top)
    return _correlation(lambda of, rows: of(x[rows], y[rows]), len(x), top, draws, seed)


def difference(
    one: Sequence[float],
    other: Sequence[float],
    truth: Sequence[float],
    *,
    top: int = 10,
    draws: int = DRAWS,
    seed: int = 0,
) -> Correlation:
    """How much better one score ranks the same networks than another: one's numbers less other's.

    The samples of the bootstrap are the same for both, so that the intervals are those of paired
    differences.

    Raises:
        ArchirError: A731, these cannot be ranked.
    """
    (x, y), (z, _) = _checked(one, truth, top), _checked(other, truth, top)
    return _correlation(
        lambda of, rows: of(x[rows], y[rows]) - of(z[rows], y[rows]), len(x), top, draws, seed
    )


Measure = Callable[[Vector, Vector], float]


def _correlation(
    value: Callable[[Measure, NDArray[np.intp]], float], count: int, top: int, draws: int, seed: int
) -> Correlation:
    """The measures, each with an interval from the same samples."""

    def estimate(of: Measure) -> Estimate:
        drawing = np.random.Generator(np.random.PCG64(seed))
        found = [value(of, drawing.integers(0, count, count)) for _ in range(draws)]
        # a sample whose values are all equal has no correlation
        low, high = np.nanpercentile(found, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        return Estimate(value(of, np.arange(count)), float(low), float(high))

    def best(x: Vector, y: Vector) -> float:
        return float((_among(x, top) * _among(y, top)).sum() / top)

    return Correlation(
        kendall=estimate(_kendall),
        spearman=estimate(_spearman),
        top=estimate(best),
        best=top,
        count=count,
        draws=draws,
        level=LEVEL,
    )


def _among(values: Vector, top: int) -> Vector:
    """How much each is one of the ``top`` largest: 1, 0, or a share of the last places."""
    edge = np.sort(values)[-top]
    above, tied = values > edge, values == edge
    share: Vector = above + tied * (top - above.sum()) / tied.sum()
    return share


def _checked(scores: Sequence[float], truth: Sequence[float], top: int) -> tuple[Vector, Vector]:
    x, y = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
    wrong = ""
    if x.shape != y.shape or x.ndim != 1:
        wrong = f"there are {x.size} scores and {y.size} true values"
    elif not 1 <= top < len(x) or len(x) < 3:
        wrong = f"the best {top} of {len(x)} networks are asked for"
    elif not (np.isfinite(x).all() and np.isfinite(y).all()):
        where = int(np.flatnonzero(~(np.isfinite(x) & np.isfinite(y)))[0])
        wrong = f"network {where} has the score {x[where]:g} and the true value {y[where]:g}"
    elif x.min() == x.max() or y.min() == y.max():
        wrong = f"all {'scores' if x.min() == x.max() else 'true values'} are equal"
    if wrong:
        raise error("A731", f"these cannot be ranked: {wrong}")
    return x, y


def _kendall(x: Vector, y: Vector) -> float:
    return float(stats.kendalltau(x, y).statistic)


def _spearman(x: Vector, y: Vector) -> float:
    """The correlation of the ranks; nan where either side has one value alone."""
    ranks = stats.rankdata(x), stats.rankdata(y)
    a, b = (rank - rank.mean() for rank in ranks)
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else float("nan")
