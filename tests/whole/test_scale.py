"""Large networks: every stage takes them, at a cost that is linear in their size.

The cost is counted in function calls, which do not depend on the machine. The stages and the
networks are those of benchmarks/scale.py, which measures seconds up to 10^5 nodes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    """The benchmark's module."""
    spec = importlib.util.spec_from_file_location("scale", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Counter:
    """Counts the function calls of every stage."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def __call__(self, stage: str, work: Callable[[], Any]) -> Any:
        count = 0

        def note(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            done = work()
        finally:
            sys.setprofile(before)
        self.calls[stage] = count
        return done


@pytest.mark.parametrize("shape", ["chain", "stream", "dense"])
def test_calls_grow_with_the_number_of_nodes(scale: ModuleType, shape: str) -> None:
    """Four times the nodes: hardly more than four times the calls, in every stage."""
    found: list[tuple[int, dict[str, int]]] = []
    for size in (500, 500, 2000):  # the first fills caches
        counter = Counter()
        graph = scale.front(scale.SHAPES[shape](size), counter)
        scale.back(graph, counter)
        found.append((len(graph), counter.calls))
    (few, small), (many, large) = found[1:]
    assert small.keys() == large.keys()
    slack = 2000  # what a stage costs whatever the network
    steep = {s: n for s, n in large.items() if n > 1.1 * many / few * small[s] + slack}
    assert not steep, {s: (small[s], n) for s, n in steep.items()}


def test_a_stage_that_looks_at_all_pairs_is_noticed() -> None:
    """The count tells linear from quadratic."""
    counter = Counter()

    def pairs(size: int) -> int:
        return sum(abs(a - b) for a in range(size) for b in range(size))

    for size in (100, 400):
        counter(f"pairs of {size}", partial(pairs, size))
    assert counter.calls["pairs of 400"] > 10 * counter.calls["pairs of 100"]


@pytest.mark.parametrize("shape", ["chain", "stream"])
def test_twenty_thousand_nodes(scale: ModuleType, shape: str) -> None:
    """Deep networks meet no limit of recursion or size."""
    graph = scale.front(scale.SHAPES[shape](20_000), lambda stage, work: work())
    assert len(graph) > 19_900
    if shape == "chain":
        scale.back(graph, lambda stage, work: work())
