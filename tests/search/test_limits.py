"""Limits of a search, and how the latency of a candidate is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import archir
from archir import measure as timing
from archir.api import Network
from archir.diag import ArchirError
from archir.ops.cost import cost
from archir.search import limits
from archir.search.limits import MOST_SAMPLES, SAMPLES, Limits, measure_latency, too_slow

from .toys import TEXT


@pytest.fixture
def net(tmp_path: Path) -> Network:
    (tmp_path / "toy.arch").write_text(TEXT, "utf-8")
    return archir.load(tmp_path / "toy.arch")


@pytest.mark.parametrize("name", [f.name for f in fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, True, "1", math.nan, math.inf, 1.5])
def test_wrong_limits(name: str, value: Any) -> None:
    if name in ("latency", "time") and value == 1.5:
        assert getattr(Limits(**{name: value}), name) == 1.5
        return
    with pytest.raises(ArchirError, match=f"A713: the limit of {name} is") as caught:
        Limits(**{name: value})
    assert caught.value.status == 2


def test_sizes(net: Network) -> None:
    found = cost(net.graph, net.ops)
    assert Limits().over(found) is None
    assert Limits(params=found.params, macs=found.macs).over(found) is None
    told = Limits(params=found.params - 1).over(found)
    assert told == f"{found.params} parameters, the limit is {found.params - 1}"
    told = Limits(params=10**9, macs=1000).over(found)
    assert told == f"{found.macs:,} MACs, the limit is 1,000"


def test_a_latency_is_that_of_the_exported_file(net: Network, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    found = measure_latency(net, tmp_path, threads=1)
    assert set(tmp_path.iterdir()) == before
    assert set(found) == {"median", "low", "high", "level", "engine", "threads", "samples"}
    assert 0 < found["low"] <= found["median"] <= found["high"] < 1
    assert found["engine"].startswith("ONNX Runtime ")
    assert (found["threads"], found["samples"]) == (1, SAMPLES)
    assert found["level"] >= 0.95


def test_a_network_that_cannot_be_exported(
    net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise archir.diag.error("A505", "the outputs differ")

    monkeypatch.setattr(Network, "export", refused)
    before = set(tmp_path.iterdir())
    with pytest.raises(ArchirError, match="A505"):
        measure_latency(net, tmp_path)
    assert set(tmp_path.iterdir()) == before


def test_a_folder_that_is_not_there(net: Network, tmp_path: Path) -> None:
    with pytest.raises(ArchirError, match="A602"):
        measure_latency(net, tmp_path / "absent")


LIMIT = 1e-3


def measured(
    monkeypatch: pytest.MonkeyPatch, net: Network, folder: Path, *rounds: Sequence[float]
) -> dict[str, Any]:
    """The latency of a network whose samples are known, in milliseconds."""
    left = list(rounds)

    def samples(jobs: Sequence[timing.Job], *, repeats: int) -> list[timing.Latency]:
        few = left.pop(0)
        seconds = tuple(few[i % len(few)] / 1e3 for i in range(repeats))
        return [timing.Latency(jobs[0].path, "engine", "cpu", 1, 1, 1, seconds, None)]

    monkeypatch.setattr(Network, "export", lambda self, path: None)
    monkeypatch.setattr(limits, "measure", samples)
    found = measure_latency(net, folder, limit=LIMIT)
    assert not left
    return found


def test_one_round_is_enough_where_the_interval_is_clear(
    net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = measured(monkeypatch, net, tmp_path, [0.5, 0.6, 0.7])
    assert (quick["samples"], quick["median"]) == (SAMPLES, pytest.approx(6e-4, abs=1e-9))
    assert too_slow(quick, LIMIT) is None
    slow = measured(monkeypatch, net, tmp_path, [1.5, 1.6, 1.7])
    assert slow["samples"] == SAMPLES
    told = too_slow(slow, LIMIT)
    assert told == "1.6 ms for an image (between 1.5 ms and 1.7 ms), the limit is 1 ms"


def test_more_samples_are_taken_near_the_limit(
    net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = [0.9, 1.1]
    once_more = measured(monkeypatch, net, tmp_path, near, [1.2])
    assert once_more["samples"] == 2 * SAMPLES
    assert once_more["low"] > LIMIT
    never = measured(monkeypatch, net, tmp_path, near, near, near, near)
    assert never["samples"] == MOST_SAMPLES
    assert never["low"] < LIMIT < never["high"]


def test_the_median_decides_in_the_end() -> None:
    found = {"median": 1.01e-3, "low": 0.9e-3, "high": 1.1e-3}
    told = too_slow(found, LIMIT)
    assert told is not None
    assert told.endswith("the limit is 1 ms, which the interval holds: the median decides")
    assert too_slow({**found, "median": 0.99e-3}, LIMIT) is None
    assert too_slow({**found, "median": LIMIT}, LIMIT) is None
