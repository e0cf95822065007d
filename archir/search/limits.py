"""What a search may spend: on a network, and in all. Importing this module needs no torch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from archir.api import Network
from archir.diag import error
from archir.files import cannot_write
from archir.measure import Job, interval, measure
from archir.ops.cost import Cost

SAMPLES = 30
"""Of a latency, at first: our choice. A 95 % interval of the median needs six."""
MOST_SAMPLES = 240
"""Of a latency that is too near the limit to tell; then the median decides. Our choice."""


@dataclass(frozen=True)
class Limits:
    """The largest values that are allowed; None for any.

    Raises:
        ArchirError: A713, a limit is no number, or not positive.
    """

    params: int | None = None
    """Parameters of a network."""
    macs: int | None = None
    """Of a forward pass of one image."""
    latency: float | None = None
    """Seconds of a forward pass of one image in ONNX Runtime."""
    time: float | None = None
    """Seconds of the whole search."""
    evaluations: int | None = None
    """Of the whole search; members that were refused, or are equal to another, count for none."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None:
                continue
            seconds = entry.name in ("latency", "time")
            kind = "a number of seconds greater than 0" if seconds else "a whole number from 1 on"
            number = isinstance(value, int | float if seconds else int) and value is not True
            if not number or not 0 < value < math.inf:
                raise error("A713", f"the limit of {entry.name} is {value!r}, it should be {kind}")

    def over(self, cost: Cost) -> str | None:
        """Why a network of this cost is too large; None where it is not."""
        for name, what in (("params", "parameters"), ("macs", "MACs")):
            size, most = getattr(cost, name), getattr(self, name)
            if most is not None and size > most:
                return f"{size:,} {what}, the limit is {most:,}"
        return None


def measure_latency(
    network: Network, folder: Path, *, threads: int = 1, limit: float | None = None
) -> dict[str, Any]:
    """How long a network takes for one image, as the ONNX file that it is exported to.

    The file passes the gate of :func:`archir.exporting.export`, in a folder of its own that is
    removed. With a limit, samples are taken until their interval lies on one side of it, at most
    :data:`MOST_SAMPLES`.

    Args:
        network: It; where it has no weights it gets initial ones.
        folder: Where the file is written for the while.
        threads: Of ONNX Runtime.
        limit: Seconds that it may take.

    Returns:
        ``median``, and ``low`` and ``high``, the ends of its confidence interval of probability
        ``level`` (see :func:`archir.measure.interval`), all in seconds; ``engine``, ``threads``
        and ``samples``.

    Raises:
        ArchirError: A5xx, it cannot be exported, or fails the gate; A565, the process that ran it
            ended; A602.
    """
    held = network if network.weights is not None else network.init(0)
    samples: list[float] = []
    try:
        place = tempfile.TemporaryDirectory(prefix=".latency-", dir=folder)
    except OSError as reason:
        raise cannot_write(folder, reason) from reason
    with place as name:
        file = Path(name) / "network.onnx"
        held.export(file)
        job = Job(str(file), threads=threads, device="cpu")
        while True:
            (found,) = measure([job], repeats=max(SAMPLES, len(samples)))
            samples += found.seconds
            low, high, level = interval(samples)
            clear = limit is None or high < limit or low > limit
            if clear or len(samples) >= MOST_SAMPLES:
                break
    ordered = sorted(samples)
    middle = len(ordered) // 2
    return {
        "median": (ordered[middle] + ordered[-middle - 1]) / 2,
        "low": low,
        "high": high,
        "level": level,
        "engine": found.engine,
        "threads": threads,
        "samples": len(samples),
    }


def too_slow(latency: Mapping[str, Any], limit: float) -> str | None:
    """Why a network of this latency is refused; None where it is not.

    The median decides. Where a limit was told, it was measured until the whole interval lay on
    the median's side of it, or there were :data:`MOST_SAMPLES`.
    """
    median, low, high = (float(latency[name]) for name in ("median", "low", "high"))
    if median <= limit:
        return None
    told = f"{_ms(median)} for an image (between {_ms(low)} and {_ms(high)})"
    unsure = ", which the interval holds: the median decides" if low <= limit else ""
    return f"{told}, the limit is {_ms(limit)}{unsure}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
