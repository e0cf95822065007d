"""Rank correlation with intervals: scipy's values, fair ties, intervals that hold."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from archir.diag import ArchirError

stats = pytest.importorskip("scipy.stats")
from archir.search.ranking import correlate, difference  # noqa: E402

TABLE = Path(os.environ.get("ARCHIR_DATA", "")) / "nb201"


def test_the_values_are_those_of_scipy() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=30)
    scores = np.round(truth + draw.normal(size=30), 1)  # with ties
    assert len(set(scores)) < 30
    found = correlate(scores, truth, draws=50)
    assert found.kendall.value == stats.kendalltau(scores, truth).statistic
    assert found.spearman.value == pytest.approx(
        stats.spearmanr(scores, truth).statistic, abs=1e-12
    )
    assert (found.count, found.draws, found.best, found.level) == (30, 50, 10, 0.95)


def test_the_ends_of_the_scale() -> None:
    truth = np.arange(20.0)
    assert correlate(truth**3, truth, top=5, draws=20).top.value == 1
    backwards = correlate(-truth, truth, top=5, draws=20)
    assert (backwards.kendall.value, backwards.top.value) == (-1, 0)
    assert backwards.kendall.low == pytest.approx(-1, abs=1e-12)
    assert backwards.kendall.high == pytest.approx(-1, abs=1e-12)


def test_a_shared_last_place_counts_in_part() -> None:
    # the best two are 4 and 3; by score 4 is first, and 3 shares the second place with 0 and 1
    assert correlate([1, 1, 0, 1, 2], [0, 1, 2, 3, 4], top=2, draws=5).top.value == pytest.approx(
        (1 + 1 / 3) / 2
    )


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of normal pairs Kendall's tau is known: 2 / pi * asin(r)."""
    draw, held = np.random.default_rng(3), 0
    wanted = 2 / np.pi * np.arcsin(0.6)
    for seed in range(40):
        x, y = draw.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 40).T
        found = correlate(x, y, draws=60, seed=seed).kendall
        held += found.low <= wanted <= found.high
    assert 33 <= held <= 40  # 95 % of 40 are 38; fewer than 33 have a chance below 0.1 %


def test_differences_are_paired() -> None:
    draw = np.random.default_rng(1)
    truth = draw.normal(size=60)
    good = truth + draw.normal(size=60)
    same = difference(good, good * 2 + 1, truth, draws=50)
    assert (same.kendall.low, same.kendall.value, same.kendall.high) == (0, 0, 0)
    found = difference(good, draw.normal(size=60), truth, draws=200)
    assert found.kendall.low > 0
    assert correlate(good, truth, draws=50, seed=4) == correlate(good, truth, draws=50, seed=4)


@pytest.mark.parametrize(
    ("scores", "truth", "said"),
    [
        ([1.0, 2.0, float("nan"), 4.0], [1.0, 2.0, 3.0, 4.0], "network 2 has the score nan"),
        ([1.0, 2.0, 3.0, 4.0], [1.0, float("-inf"), 3.0, 4.0], "network 1 has the score 2"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "3 scores and 2 true values"),
        ([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0], "all scores are equal"),
        ([1.0, 2.0], [1.0, 2.0], "the best 1 of 2"),
    ],
)
def test_what_cannot_be_ranked(scores: list[float], truth: list[float], said: str) -> None:
    with pytest.raises(ArchirError, match=said) as caught:
        correlate(scores, truth, top=1)
    assert caught.value.diagnostics[0].code == "A731"


@pytest.mark.skipif(not TABLE.is_dir(), reason="ARCHIR_DATA names no folder with nb201/ in it")
@pytest.mark.parametrize(
    ("name", "spearman"),
    [("nwot", 0.80), ("synflow", 0.78), ("params", 0.77), ("flops", 0.75), ("jacov", 0.73)],
)
def test_published_scores_rank_as_published(name: str, spearman: float) -> None:
    accuracy = np.load(TABLE / "nb201_accuracy.npz")["c10_test_200"]
    with (TABLE / "nb201_zero_cost_subset_cifar10.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[name] not in ("", "-inf")]
    assert len(rows) >= 724
    truth = [float(accuracy[int(row["index"])]) for row in rows]
    found = correlate([float(row[name]) for row in rows], truth, draws=20)
    assert round(found.spearman.value, 2) == spearman
