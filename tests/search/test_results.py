"""docs/results.md holds the tables that the benchmarks make of the figures beside them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "results" / "search.json"
DOCS = (ROOT / "docs" / "results.md").read_text("utf-8")


NEIGHBOURS = ("search", "four", "figures", "measure", "eas", "nat_families")


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    sys.path.append(str(ROOT / "benchmarks"))  # where a benchmark finds its neighbours
    before = {name: sys.modules.pop(name, None) for name in NEIGHBOURS}
    try:
        import search

        yield search
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def test_the_tables_are_those_of_the_figures(benchmark: ModuleType) -> None:
    found = json.loads(FIGURES.read_text("utf-8"))
    tables = benchmark.tables(found["runs"])
    assert len(tables) >= 4
    for table in tables:
        assert table in DOCS


def test_the_commands_are_those_that_were_run(benchmark: ModuleType, tmp_path: Path) -> None:
    held = json.loads(FIGURES.read_text("utf-8"))["runs"]
    for part in {run["part"] for run in held}:
        seeds = 1 + max(run["seed"] for run in held if run["part"] == part)
        planned = {(r.strategy, r.seed): r for r in benchmark.plan(part, tmp_path, seeds)}
        for run in (run for run in held if run["part"] == part):
            words = " ".join(["archir search", *planned[run["strategy"], run["seed"]].words])
            assert run["command"] == words.replace(f"{tmp_path.resolve()}/", "")


def test_networks_of_a_comparison_have_been_trained_for_as_long() -> None:
    held = json.loads(FIGURES.read_text("utf-8"))["runs"]
    for part in ("digits", "few"):
        assert len({run["epochs"] for run in held if run["part"] == part}) <= 1


def test_searches_within_one_budget_took_about_as_long(benchmark: ModuleType) -> None:
    held = [r for r in json.loads(FIGURES.read_text("utf-8"))["runs"] if r["part"] == "same"]
    assert {run["strategy"] for run in held} <= set(benchmark.four.SEARCHES)
    for name in {run["strategy"] for run in held}:
        seconds = [run["cpu_seconds"] for run in held if run["strategy"] == name]
        assert len(seconds) == 5
        assert 40 <= sum(seconds) / len(seconds) <= 80
        # the words that fix all that runs have in common
        assert all(run["macs"] <= 2_000_000 for run in held)
        assert all("--max-macs 2000000" in run["command"] for run in held)


@pytest.mark.parametrize(
    ("script", "figures"), [("eas", "eas_digits"), ("nat_families", "nat_families")]
)
def test_the_shows_are_those_of_their_figures(
    benchmark: ModuleType, script: str, figures: str
) -> None:
    found = json.loads((FIGURES.parent / f"{figures}.json").read_text("utf-8"))
    assert "\n".join(importlib.import_module(script).tables(found["records"])) in DOCS


def test_all_was_checked_and_nothing_failed() -> None:
    for run in json.loads(FIGURES.read_text("utf-8"))["runs"]:
        assert run["verified"]["best.arch"] == 0
        # what genomes stand for has no weights before the final training, and no certificate
        bare = run["strategy"].startswith("rwe")
        assert set(run["verified"].values()) <= ({0, None} if bare else {0})
        assert run["onnx"] == {"file": "best.onnx"}


def test_intervals(benchmark: ModuleType) -> None:
    # by hand: mean 0.2, standard deviation sqrt(2.5) * 0.1 of 5 values, t(0.975, 4) = 2.776
    pairs = [(0.9 + d / 1000, 0.9) for d in (0, 1, 2, 3, 4)]
    assert benchmark.mean_difference(pairs) == (
        "+0.20 (+0.00 to +0.40, excludes zero) | 4 : 0 of 5 | 0.12"
    )
    assert "includes zero" in benchmark.mean_difference([(0.5, 0.4), (0.4, 0.5)])
    assert benchmark.share(0, 10) == "0.00 % (0.00 % to 30.85 %)"  # 1 - 0.025 ** 0.1
