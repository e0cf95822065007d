"""Interleaved timing of several pieces of work, and ratios with intervals."""

from __future__ import annotations

import functools
import gc
import io
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Work = Callable[[], Callable[[], object]]
"""Prepares (untimed) and returns what is timed."""


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


def interleaved(
    works: Mapping[str, Work], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Time each work once a round, after one untimed round; the rounds share the machine's mood.

    On a machine that is busy with other things, ``time.process_time`` tells what the work took
    of the processor, its threads added up.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(repeats + 1):
        for name, prepare in works.items():
            work = prepare()
            gc.collect()
            start = clock()
            work()
            seconds = clock() - start
            if round_:
                found[name].append(seconds)
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def ratio(of: Timing, to: Timing) -> tuple[float, float, float]:
    """The median of paired ratios, with the smallest and largest."""
    pairs = [a / b for a, b in zip(of.seconds, to.seconds, strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)


def report(title: str, timings: Mapping[str, Timing], against: str) -> None:
    """Print medians, and each one's ratio to the peer."""
    print(f"\n{title}")
    width = max(map(len, timings))
    for name, timing in timings.items():
        line = f"  {name:<{width}}  {timing.median:8.3f} s  (best {timing.best:.3f})"
        if name != against:
            middle, low, high = ratio(timing, timings[against])
            line += f"  {middle:6.2f} x {against}  [{low:.2f}, {high:.2f}]"
        print(line)


def machine() -> str:
    """What the figures were taken on."""
    system = f"{platform.system()} {platform.machine()}"
    return f"{system}, {os.cpu_count()} cores, Python {platform.python_version()}"


def save_svg(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib as an SVG, the same bytes for the same numbers, and few."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    tenths = functools.partial(re.sub, r"(\d+\.\d)\d+", r"\1")  # of a pixel; labels stay whole
    shorter = re.sub(r"<[^>]*>", lambda tag: tenths(tag[0]), drawn.getvalue())
    shorter = re.sub(r"\s+L ", " ", shorter)  # what follows M is a line anyhow
    path.write_text(re.sub(r"(?m)^ +", "", shorter), encoding="utf-8")
