"""A strategy and an evaluator that take no time, for tests of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from archir.api import Application, Network
from archir.ir.hash import graph_hash
from archir.search.engine import Search
from archir.search.parts import Evaluated, Member, Outcome, Proposal
from archir.train.data import Dataset

TEXT = """\
version 1
arch toy(classes = 3) {
    input image: f32[N, 1, 4, 4]
    stem = image |> conv: conv(4, 3) |> relu
    body = stem |> conv: conv(4, 3) |> relu
    output logits = body |> global_avg_pool |> fc: linear(classes)
}
"""


def write_data(path: Path) -> Path:
    """Sixty images of noise in three classes."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60, 1, 4, 4)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(60) % 3)
    return path


@dataclass(frozen=True)
class ByHash:
    """A score that looks random and depends on graph and seed alone."""

    name: str = "by_hash"

    @property
    def inherits(self) -> bool:
        return False

    def record(self) -> Mapping[str, Any]:
        return asdict(self)

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        text = f"{self.name} {graph_hash(network.graph)} {seed}"
        score = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
        return Evaluated({"score": score, "accuracy": score}, history=({"epoch": 1, "x": score},))


@dataclass(frozen=True)
class Wider:
    """Widens the best at one of two layers by a drawn number of channels, a few times."""

    steps: int = 3
    children: int = 3
    evaluator: Any = field(default_factory=ByHash)
    name: str = "wider"

    def record(self) -> Mapping[str, Any]:
        return {"steps": self.steps, "children": self.children}

    def expected(self) -> int:
        return 1 + self.steps * self.children

    def run(self, search: Search) -> Outcome:
        start = search.start
        assert start is not None
        first = Proposal({"kind": "start"}, lambda: start)
        (best,) = search.evaluate("start", self.evaluator, [first])
        for step in range(self.steps):
            if not search.goes_on():
                break
            proposals = [self._child(search, best, step, child) for child in range(self.children)]
            found = search.evaluate("step", self.evaluator, proposals)
            best = max([best, *found], key=lambda m: (m.score, -m.number))
            search.note("step", number=step, best=best.number)
        return Outcome(best)

    def _child(self, search: Search, parent: Member, step: int, child: int) -> Proposal:
        generator = search.draw("wider", step, child)
        at = ("stem.conv", "body.conv")[int(generator.integers(2))]
        width = int(generator.integers(5, 8)) + 3 * step
        use = {"rule": "widen", "at": at, "arguments": {"width": width}}
        origin = {"kind": "rewrite", "uses": [use], "seed": step}
        uses = [Application("widen", at, {"width": width})]
        return Proposal(
            origin, lambda: search.rewritten(parent, uses, step), (parent.number,), seed=0
        )


def files_of(
    folder: Path, *, without: Sequence[str] = ("timings.jsonl", ".lock")
) -> dict[str, bytes]:
    """All files of a folder by their path."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in sorted(found.items()) if name not in without}
