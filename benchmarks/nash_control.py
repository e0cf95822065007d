"""Controls of NASH: its start network trained for as many epochs, and never changed.

    archir search NET --strategy benchmarks/nash_control.py:CYCLES --preset small --run runs/cycles

Both have NASH's settings and presets, and train for `epoch_start + n_steps * epoch_neigh +
epoch_final` epochs, which is what lies behind a network that NASH ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from archir.api import Network
from archir.search.engine import Search
from archir.search.nash import NASH, Nash, NashConfig, recipe
from archir.search.parts import Evaluator, Kind, Member, Outcome, Proposal
from archir.search.space import Move, Space
from archir.search.training import Training


@dataclass(frozen=True)
class Cycles(Nash):
    """NASH without children: in each step the parent is trained, and nothing else."""

    def _children(self, search: Search, space: Space, best: Member, step: int) -> list[Proposal]:
        seed = int(search.draw(self.name, step).integers(2**31))
        make = partial(search.network, best)
        return [Proposal({"kind": "parent"}, make, (best.number,), seed)]


@dataclass(frozen=True)
class OneCycle(Nash):
    """One training for all epochs, on training and validation images throughout."""

    def expected(self) -> int:
        """One evaluation."""
        return 1

    def run(self, search: Search) -> Outcome:
        """Train."""
        config = self.config
        epochs = config.epoch_start + config.n_steps * config.epoch_neigh + config.epoch_final
        training = Training(recipe(config, epochs), join=config.final_joins)
        seed = int(search.draw(self.name).integers(2**31))
        start = Proposal({"kind": "start"}, partial(_given, search), (), seed)
        (member,) = search.evaluate("final", training, [start])
        return Outcome(member, stages=("final",))


def _given(search: Search) -> Network:
    assert search.start is not None
    return search.start


def _kind(name: str, about: str, strategy: type[Nash]) -> Kind:
    """A control with NASH's presets."""

    def make(
        config: NashConfig,
        moves: Sequence[Move] | None = None,
        evaluator: Evaluator | None = None,
    ) -> Nash:
        return strategy(config, (), evaluator, name)

    presets = {preset: replace(c, n_neigh=1) for preset, c in NASH.presets.items()}
    return Kind(name, about, NashConfig, presets, make)


CYCLES = _kind("cycles", "The start network in the cycles of NASH.", Cycles)
ONE_CYCLE = _kind("one_cycle", "The start network in one cycle.", OneCycle)
