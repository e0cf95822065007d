"""NAT: a policy learns to give the edges of a network's cells cheaper operations.

Guo et al. 2019 (NAT, arXiv 1910.14488) and 2021 (NAT++, arXiv 2102.10301). The stages: ``policy``,
a supernet over the network's cells and the policy are trained; ``derive``, samples of the policy
and the input are scored with the shared weights on validation images; ``trained``, the input and
the sample that was chosen are trained alike; ``final``, the better of the two is trained on all
images. A sample costs no more than the input: no dearer operation can be drawn, and that its MACs
and parameters are no more is checked. Importing this module needs no torch.

Our own, for want of a source: cells are those that archir reads in any network, equal ones
together; where there are several kinds that do not halve the image they take turns in the supernet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from archir.diag import error
from archir.search.cells import Cell, is_alive, with_ops
from archir.search.nat_config import NatConfig, check_config, recipe
from archir.search.nat_training import NatTraining, SharedWeights
from archir.search.parts import Evaluator, Kind, Member, Outcome, Proposal, scored_of, seed_of
from archir.search.reading_cells import FoundCell, applications, read_cells, rewriting
from archir.search.space import Move, use_record
from archir.search.training import Training

if TYPE_CHECKING:
    from archir.api import Application, Network
    from archir.search.engine import Search
    from archir.search.nat_policy import Policy

POLICY = "policy.safetensors"


@dataclass(frozen=True)
class _Sample:
    """Operations for all edges, and the rules that make them of the input's."""

    cells: tuple[Cell, ...]
    uses: tuple[Application, ...]


@dataclass(frozen=True)
class Nat:
    """The strategy."""

    config: NatConfig
    evaluator: Evaluator | None = None
    """Scores input and chosen sample in the place of training; the last is trained all the same."""
    name: str = "nat"

    def record(self) -> Mapping[str, Any]:
        """Its settings, as JSON values."""
        other = None if self.evaluator is None else dict(self.evaluator.record())
        return {"strategy": self.name, **asdict(self.config), "evaluator": other}

    def expected(self) -> int:
        """The policy, input and samples, those that are trained."""
        config = self.config
        made = config.samples + config.likeliest + config.candidates
        return 3 + made + bool(config.epoch_final)

    def run(self, search: Search) -> Outcome:
        """Learn a policy, derive a network, train it.

        Raises:
            ArchirError: A777, the start network has no cells; A722, it was refused, or the policy
                could not be trained.
        """
        start = search.start
        assert start is not None, "NAT needs a start network"
        found = read_cells(start.graph)
        if not found:
            raise error(
                "A777",
                f"{start.graph.name} has no cells that NAT could change",
                hint="a cell is made of operations on edges that meet in sums: docs/search.md",
            )
        first = Proposal({"kind": "start"}, lambda: start, (), seed_of(search, "policy"))
        cells = tuple(cell.cell for cell in found)
        training = NatTraining(self.config, cells)
        (learned,) = search.evaluate("policy", training, [first])
        if learned.status != "scored":
            raise error("A722", f"the start network was {learned.status}: {learned.reason}")
        path = search.kept(learned, POLICY)
        from archir.search.nat_policy import load_policy  # noqa: PLC0415 - it needs torch

        samples = self._samples(search, load_policy(path), found)
        derived = self._derive(search, learned, samples)
        best = self._trained(search, derived) if derived else learned
        last = self._final(search, best) if best.stage == "trained" else best
        return Outcome(last, stages=(best.stage,), files={POLICY: path})

    def _samples(self, search: Search, policy: Policy, found: Sequence[FoundCell]) -> list[_Sample]:
        """The input, then what the policy makes of it: each only once.

        Where the cheapest is looked for, and nothing that a policy draws is cheaper (it may be sure
        that all should stay), equally likely legal operations are drawn besides [own].
        """
        config = self.config
        drawn = [[policy.choose(f.cell) for f in found]] if config.likeliest else []
        self._draw(search, policy, found, "sample", drawn)
        pairs = [pair for ops in drawn for pair in zip(found, ops, strict=True)]
        if config.derive == "cheapest" and not any(_saves(f.cell, ops) for f, ops in pairs):
            self._draw(search, type(policy)(policy.config), found, "uniform", drawn)
        every = [_Sample(tuple(f.cell for f in found), ())]
        for ops in drawn:
            sample = _sample(found, ops)
            alive = all(map(is_alive, sample.cells)) or not config.living
            if alive and sample.cells not in [other.cells for other in every]:
                every.append(sample)
        return every

    def _draw(
        self,
        search: Search,
        policy: Policy,
        found: Sequence[FoundCell],
        word: str,
        drawn: list[list[list[str]]],
    ) -> None:
        """Add operations for the edges of each cell to those that were drawn before."""
        for number in range(self.config.samples):
            stream = search.draw(self.name, word, number)
            for _ in range(self.config.attempts):
                ops = [policy.sample(f.cell, stream, living=self.config.living) for f in found]
                if ops not in drawn:
                    drawn.append(ops)
                    break

    def _derive(self, search: Search, learned: Member, samples: list[_Sample]) -> list[Member]:
        """The input and the samples that are chosen, as far as they could be scored."""
        supernet = search.kept(learned, "supernet.safetensors").read_bytes()
        cells = tuple(sample.cells for sample in samples)
        shared = SharedWeights(supernet, cells, self.config.shared_images)
        seed = seed_of(search, "rules")
        start = self._untrained(search, learned)
        proposals = [
            Proposal(
                _origin(sample.uses, seed),
                partial(_derived, search, start, sample.uses, seed),
                (learned.number,),
                number,
            )
            for number, sample in enumerate(samples)
        ]
        first, *others = search.evaluate("derive", shared, proposals)
        chosen = self._chosen(first, others)
        search.note("derived", input=first.number, samples=[member.number for member in chosen])
        return scored_of([first, *chosen])

    def _chosen(self, first: Member, others: Sequence[Member]) -> list[Member]:
        """The samples that go on."""

        def accurate(member: Member) -> tuple[float, int, int]:
            return member.score, -member.macs, -member.number

        ordered = sorted(scored_of(others), key=accurate, reverse=True)
        if self.config.derive == "cheapest":
            ordered = [member for member in ordered if member.macs < first.macs]
            equal = [m for m in ordered if m.scores["difference"] + m.scores["half"] >= 0]
            if equal:
                ordered = sorted(equal, key=lambda m: (m.macs, -m.score, m.number))
        count = min(self.config.candidates, len(ordered))
        steps = max(1, count - 1)
        return [ordered[step * (len(ordered) - 1) // steps] for step in range(count)]

    def _trained(self, search: Search, derived: Sequence[Member]) -> Member:
        """Train the input and the samples alike; the best one, of equals the cheapest one.

        Where the cheapest sample was asked for, what differs by no more than the 95 % interval of
        the difference counts as equal [own].
        """
        config = self.config
        *_, untrained = derived[:2]  # the sample that was chosen first, else the input
        if not search.goes_on(len(derived) + bool(config.epoch_final)):
            return untrained
        training = self.evaluator or Training(recipe(config, config.epoch_trained))
        seed = seed_of(search, "trained")
        proposals = [
            Proposal({"kind": "parent"}, partial(self._untrained, search, m), (m.number,), seed)
            for m in derived
        ]
        scored = scored_of(search.evaluate("trained", training, proposals))
        if not scored:
            return untrained
        best = max(scored, key=lambda m: (m.score, -m.macs, -m.number))
        if config.derive == "cheapest":
            images = len(search.dataset.validation)
            equal = [m for m in scored if m.score + _half(m, best, images) >= best.score]
            return min(equal, key=lambda m: (m.macs, -m.score, m.number))
        return best

    def _final(self, search: Search, best: Member) -> Member:
        """The best after a training on all images; before it, where there is none or it failed."""
        config = self.config
        if not config.epoch_final or not search.goes_on():
            return best
        training = Training(recipe(config, config.epoch_final), join=config.final_joins)
        make = partial(self._untrained, search, best)
        last = Proposal({"kind": "parent"}, make, (best.number,), seed_of(search, "final"))
        (trained,) = search.evaluate("final", training, [last])
        return trained if trained.status == "scored" else best

    def _untrained(self, search: Search, member: Member) -> Network:
        """A member as its training begins."""
        network = search.network(member)
        return network if self.config.weights == "inherited" else replace(network, weights=None)


def _saves(cell: Cell, ops: Sequence[str]) -> bool:
    """Whether an operation that has MACs gives way to another."""
    pairs = zip(cell.edges, ops, strict=True)
    return any("conv" in edge.op and op != edge.op for edge, op in pairs)


def _half(one: Member, other: Member, images: int) -> float:
    """Half the width of the 95 % interval of the difference of two accuracies."""
    shares = [m.accuracy for m in (one, other) if m.accuracy is not None]
    return 1.96 * math.sqrt(sum(max(0.0, p * (1 - p)) for p in shares) / images)


def _sample(found: Sequence[FoundCell], ops: Sequence[Sequence[str]]) -> _Sample:
    """Cells with other operations; an edge that no rule makes so stays as it is."""
    made = [
        [
            op if op == edge.op or applications(cell, number, op) else edge.op
            for number, (edge, op) in enumerate(zip(cell.cell.edges, names, strict=True))
        ]
        for cell, names in zip(found, ops, strict=True)
    ]
    cells = [with_ops(cell.cell, names) for cell, names in zip(found, made, strict=True)]
    return _Sample(tuple(cells), tuple(rewriting(found, made)))


def _origin(uses: Sequence[Application], seed: int) -> Mapping[str, Any]:
    if not uses:
        return {"kind": "parent"}
    return {"kind": "rewrite", "uses": [use_record(use) for use in uses], "seed": seed}


def _derived(search: Search, network: Network, uses: Sequence[Application], seed: int) -> Network:
    """The network of a sample.

    Raises:
        ArchirError: A779, it is dearer than the input.
    """
    if not uses:
        return network
    made = search.rewritten(network, uses, seed)
    before, after = network.cost(), made.cost()
    if after.macs > before.macs or after.params > before.params:
        raise error(
            "A779",
            f"{after.params:,} parameters and {after.macs:,} MACs are more than the input's "
            f"{before.params:,} and {before.macs:,}",
        )
    return made


def make(
    config: NatConfig,
    moves: Sequence[Move] | None = None,
    evaluator: Evaluator | None = None,
) -> Nat:
    """The strategy.

    Raises:
        ArchirError: A778, the settings make no sense, or there are moves.
    """
    check_config(config)
    if moves is not None:
        raise error("A778", "NAT has no moves: its policy chooses among the rules `nat.*`")
    return Nat(config, evaluator)


SMALL = NatConfig(
    self_loops=True,
    inputs="given",
    channels=4,
    layers=3,
    epochs=60,
    warmup=20,
    batch_size=32,
    lr=0.05,
    flip=False,
    crop=0,
    reward_images=128,
    entropy=0.02,
    living=True,
    saving=0.2,
    alphas=4,
    policy_lr=1e-3,
    baseline="others",
    samples=20,
    attempts=50,
    likeliest=True,
    derive="cheapest",
    candidates=3,
    epoch_trained=20,
    epoch_final=20,
    batch_trained=64,
    lr_trained=0.05,
    cutout=0,
)
"""Under two minutes on two cores with the cells of a family and digits [own]."""

CPU20 = replace(
    SMALL,
    epochs=6,
    warmup=2,
    batch_size=64,
    flip=True,
    crop=4,
    alphas=2,
    policy_lr=2e-3,
    samples=10,
    attempts=1,
    candidates=1,
    judged=5,
    shared_images=2000,
    epoch_trained=2,
    epoch_final=3,
    batch_trained=96,
)
"""Within twenty CPU minutes with ``nat_darts`` of 8 channels and 3 cells, and CIFAR-10 [own]."""

PRESETS = {
    "small": SMALL,
    "paper": NatConfig(),
    "paper2": NatConfig(transitions="nat++", epochs=200),
    "cpu20": CPU20,
}

NAT = Kind(
    "nat",
    "A policy gives the edges of a network's cells cheaper operations (Guo et al. 2019).",
    NatConfig,
    PRESETS,
    make,
)
