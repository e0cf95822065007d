"""NSGA-II over error and MACs, with random-weight evaluation in the place of training.

The search is NSGA-Net's (Lu et al. 2019, arXiv 1810.03522), the evaluation that of RWE (Hu et al.
2021, arXiv 2110.05242).

Importing this module needs neither torch nor pymoo; searching needs both.

Figures are tagged by where they come from: [C] the code of NSGA-Net (its defaults, or the commands
of its README); [P] what NSGA-Net left to pymoo 0.3.0, as copies of its operators in public
repositories have it (that release itself was not at hand); [own] our choice. RWE's own population,
generations, operators and final training were not found anywhere; these are NSGA-Net's instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from archir.api import Application, Network
from archir.diag import UNSUPPORTED, error
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.rewrite.library import find_rule
from archir.rewrite.sites import Planner
from archir.search.encodings.encoding import Encoding, encoding, network_of
from archir.search.parts import (
    Evaluator,
    Kind,
    Member,
    Outcome,
    Proposal,
    front,
    scored_of,
    seed_of,
)
from archir.search.space import Move, draw_applications, use_record
from archir.search.training import Training
from archir.train.entries import check_entries
from archir.train.recipe import TrainConfig

if TYPE_CHECKING:
    from archir.search.engine import Search
    from archir.search.evolution import Candidate, Evolution, Found


@dataclass(frozen=True)
class Nsga2Config:
    """The numbers of the search; the defaults are NSGA-Net's for its micro space."""

    encoding: Literal["nsga_micro", "nsga_macro", "nasbench201", "nat_cells", "rules"] = (
        "nsga_micro"
    )
    """What an individual is: a genome of a space of the literature, or, with ``rules``, what moves
    make of the user's network."""
    channels: int = 16
    """Of a genome's network at the start: micro 16, macro 32 [C, README]."""
    layers: int = 8
    """Cells of the micro space [C, README]; the code's default is 11."""
    nodes: int = 4
    """Of a phase of the macro space [C]; the published network has 6."""
    cells: int = 5
    """In each stage of NAS-Bench-201 (its section 2.1)."""
    moves: int = 2
    """Moves that make a child, with ``rules`` [own]."""

    population: int = 40
    """Individuals that survive a generation [C]."""
    offspring: int = 40
    """Individuals that are made in each [C]; the README's command for micro has 20."""
    generations: int = 50
    """The first, random one among them [C]; the README's commands have 30."""

    crossover: float = 1.0
    """The share of matings that cross their parents at two points [P]; two points [C]."""
    mutation: float = 1.0
    """The share of children that mutate [P]."""
    mutation_gene: float = 0.0
    """The chance of each integer of these; 0: one in the number of integers [P]."""
    eta: float = 3.0
    """Of the polynomial mutation: the larger, the nearer to the parent [C]."""

    final_candidates: int = 3
    """Networks of the front that are trained to find the best [own]: the one of the highest score,
    and others in equal steps from it down the front, whose cheapest end is left out. NSGA-Net
    trains one that its user picks."""
    epoch_candidates: int = 20
    """Of each of them: what NSGA-Net gives each individual [C, README], by default 25."""
    epoch_final: int = 600
    """Of the best, from new weights, on training and validation images [C]; macro 350."""
    final_joins: bool = True
    """Whether the final training is on validation images too [own]. NSGA-Net keeps the epoch that
    is best on test images; here the last one stays."""

    lr: float = 0.025
    """The rate falls along half a cosine from here to 0 [C]."""
    momentum: float = 0.9
    """[C]"""
    weight_decay: float = 3e-4
    """[C]"""
    clip: float = 5.0
    """The largest norm of gradients [C]."""
    batch_candidates: int = 128
    """[C]"""
    batch_final: int = 96
    """[C]; macro 128."""
    flip: bool = True
    """[C]"""
    crop: int = 4
    """Pixels of translation [C]."""
    cutout: int = 16
    """The side of the square, in the final training only [C]. Its auxiliary head, its dropped
    paths and its squeeze-and-excitation are left out."""


RANGES: Mapping[str, tuple[float, float]] = {
    "channels": (1, 10_000),
    "layers": (1, 1_000),
    "nodes": (2, 6),
    "cells": (1, 1_000),
    "moves": (1, 1_000),
    "population": (2, 100_000),
    "offspring": (1, 100_000),
    "generations": (1, 100_000),
    "crossover": (0, 1),
    "mutation": (0, 1),
    "mutation_gene": (0, 1),
    "eta": (1, 100),
    "final_candidates": (1, 1_000),
    "epoch_candidates": (1, 10**6),
    "epoch_final": (1, 10**6),
    "lr": (0, 1e3),
    "momentum": (0, 1),
    "weight_decay": (0, 1e3),
    "clip": (0, 1e9),
    "batch_candidates": (1, 10**6),
    "batch_final": (1, 10**6),
    "crop": (0, 10**4),
    "cutout": (0, 10**4),
}

JOINED = ("relu", "max_pool", "add", "concat")

MOVES = (
    Move("widen.zero_outgoing", "grow/widen", times={"width": (1.5, 2)}, most=512),
    Move("deepen.batch_norm", "grow/deepen", {"kernel": (3, 5)}),
    Move("kernel.grow", "grow/kernel"),
    Move("skip.convex", "grow/skip", tensors=JOINED),
    Move("prune", "shrink/prune", times={"width": (0.5, 0.75)}),
    Move("conv.separable", "shrink/replace"),
    Move("nat.conv_to_sep", "shrink/replace", {"kernel": (3,)}),
    Move("conv.kernel", "shrink/kernel", {"kernel": (1, 3)}),
    Move("layer.drop", "shrink/drop"),
    Move("branch.drop", "shrink/drop"),
)
"""What ``rules`` mutates by, where the user states no moves: those that make networks dearer and
those that make them cheaper have equal chances, so that the front grows both ways [own]."""


def check_config(config: Nsga2Config) -> None:
    """Make sure that settings make sense.

    Raises:
        ArchirError: A744, with the entry and its range; A743, they make no network.
    """
    check_entries("A744", config, RANGES)
    if config.encoding != "rules":
        space_of(config)


def space_of(config: Nsga2Config) -> Encoding:
    """The space of genomes that settings name."""
    depth = {"nsga_macro": "nodes", "nasbench201": "cells"}
    name = depth.get(config.encoding, "layers")
    return encoding(config.encoding, channels=config.channels, **{name: getattr(config, name)})


def recipe(config: Nsga2Config, *, final: bool) -> TrainConfig:
    """How the front's candidates, and at last the best, are trained."""
    return TrainConfig(
        epochs=config.epoch_final if final else config.epoch_candidates,
        batch_size=config.batch_final if final else config.batch_candidates,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=False,
        weight_decay=config.weight_decay,
        clip=config.clip,
        schedule="cosine",
        flip=config.flip,
        crop=config.crop,
        cutout=config.cutout if final else 0,
    )


@dataclass(frozen=True)
class Nsga2:
    """The strategy."""

    config: Nsga2Config
    moves: tuple[Move, ...] = MOVES
    evaluator: Evaluator | None = None
    """Scores individuals; random-weight evaluation where none is given."""
    name: str = "rwe"

    def record(self) -> Mapping[str, Any]:
        """Its settings, as JSON values."""
        moves = [move.record() for move in self.moves] if self.config.encoding == "rules" else None
        other = None if self.evaluator is None else dict(self.evaluator.record())
        return {"strategy": self.name, **asdict(self.config), "moves": moves, "evaluator": other}

    def expected(self) -> int:
        """The evaluations of a whole run: generations, candidates, final training."""
        config = self.config
        made = config.population + (config.generations - 1) * config.offspring
        return made + config.final_candidates + 1

    def run(self, search: Search) -> Outcome:
        """Evolve, then train what the front offers.

        Raises:
            ArchirError: A740, pymoo is missing; A743, the images make no networks of this
                encoding; A745, nothing could be scored, or nothing trained.
        """
        evaluator = self.evaluator or _random_weights()
        evolution = _evolution_module()
        if self.config.encoding == "rules":
            source: _Genomes | _Rewrites = _Rewrites(self, search, evaluator, evolution)
        else:
            source = _Genomes(self, search, evolution)
        self._evolve(search, source, evaluator, evolution)
        return self._trained(search)

    def _evolve(
        self, search: Search, source: _Genomes | _Rewrites, evaluator: Evaluator, evolution: Any
    ) -> None:
        """Let generations compete; one at least, whatever the limits of time."""
        reference: list[float] = []
        for generation in range(1, self.config.generations + 1):
            if generation > 1 and not search.goes_on():
                return
            candidates = source.evolution.ask()
            if not candidates:
                search.note("generation", generation=generation, note="nothing new can be made")
                return
            members = source.evaluated(candidates, generation, evaluator)
            source.evolution.tell([_found(member, evolution) for member in members])
            scored = scored_of(_searched(search))
            if not scored:
                reason = next((m.reason for m in members if m.reason), "")
                raise error(
                    "A745",
                    f"none of the first {len(members)} networks could be scored; {reason}",
                    hint="looser limits, or fewer channels, let some through",
                )
            values = [_objectives(member) for member in scored]
            reference = reference or [max(v[0] for v in values), max(v[1] for v in values)]
            best = front(scored)
            search.note(
                "generation",
                generation=generation,
                evaluated=len(members),
                front=[member.number for member in best],
                hypervolume=evolution.hypervolume(values, reference),
                reference=reference,
            )

    def _trained(self, search: Search) -> Outcome:
        """Train some of the front, and the best of these once more to the end."""
        config = self.config
        chosen = spread(front(_searched(search)), config.final_candidates)
        search.note("candidates", members=[member.number for member in chosen])
        seed = seed_of(search, "candidates")
        proposals = [self._again(search, member, seed) for member in chosen]
        short = Training(recipe(config, final=False))
        trained = search.evaluate("candidates", short, proposals)
        ranked = sorted(scored_of(trained), key=lambda m: (-m.score, m.macs, m.number))
        if not ranked and all(member.status == "refused" for member in trained):
            return Outcome(chosen[0], stages=("search",))  # the time was over
        if not ranked:
            raise error("A745", f"no network of the front could be trained; {trained[0].reason}")
        best = ranked[0]
        origin = next(m for m in chosen if m.number == best.parents[0])
        search.note("chosen", member=best.number, score=best.score)
        last = Training(recipe(config, final=True), join=config.final_joins)
        again = self._again(search, origin, seed_of(search, "final"))
        (final,) = search.evaluate("final", last, [again])
        return Outcome(final if final.status == "scored" else best, stages=("search",))

    def _again(self, search: Search, member: Member, seed: int) -> Proposal:
        """A member of the search, to be trained: from the weights it has, else from new ones."""
        make = partial(search.network, member)
        return Proposal({"kind": "parent"}, make, (member.number,), seed)


def spread(members: Sequence[Member], count: int) -> list[Member]:
    """Some members of a front, the highest score first, in equal steps towards the cheapest.

    The cheapest end is left out, unless there are no more than ``count``.

    Args:
        members: The front, the cheapest first.
        count: How many.
    """
    most = len(members)
    taken = min(count, most)
    return [members[most - 1 - step * most // taken] for step in range(taken)]


class _Genomes:
    """Individuals that are genomes of a space."""

    def __init__(self, strategy: Nsga2, search: Search, evolution: Any) -> None:
        config, dataset = strategy.config, search.dataset
        self.search, self.space = search, space_of(config)
        self.facts: dict[str, Any] = {"classes": len(dataset.classes), "shape": dataset.shape}
        self.space.program(self.space.lowest, **self.facts)  # refuses images of another kind
        self.seed = seed_of(search, "search")
        self.evolution: Evolution = evolution.genetic(
            self.space.lowest,
            self.space.highest,
            self.space.canonical,
            search.draw("nsga2"),
            population=config.population,
            offspring=config.offspring,
            crossover=config.crossover,
            mutation=config.mutation,
            per_gene=config.mutation_gene,
            eta=config.eta,
        )

    def evaluated(
        self, candidates: Sequence[Candidate], generation: int, evaluator: Evaluator
    ) -> list[Member]:
        """The members that candidates become, in order."""
        proposals = [
            Proposal(
                self.space.origin(one.value, **self.facts),
                partial(self._network, one.value),
                one.parents,
                self.seed,
            )
            for one in candidates
        ]
        return self.search.evaluate("search", evaluator, proposals)

    def _network(self, genome: Sequence[int]) -> Network:
        return network_of(self.space.program(genome, **self.facts), self.space.name)


@dataclass(eq=False)
class _Individual:
    """A network by how it is made of another one."""

    graph: Graph
    parent: int
    uses: tuple[Application, ...]
    member: Member | None = None


class _Rewrites:
    """Individuals that moves make of the user's network."""

    def __init__(
        self, strategy: Nsga2, search: Search, evaluator: Evaluator, evolution: Any
    ) -> None:
        config = strategy.config
        assert search.start is not None, "rules need a start network"
        self.search, self.inherits, self.count = search, evaluator.inherits, config.moves
        self.ops, self.library, self.moves = search.start.ops, search.start.library, strategy.moves
        self.seed = seed_of(search, "search")
        start = search.start if self.inherits else replace(search.start, weights=None)
        first = Proposal({"kind": "start"}, lambda: start, (), self.seed)
        (member,) = search.evaluate("search", evaluator, [first])
        if member.status != "scored":
            raise error("A745", f"the start network was {member.status}; {member.reason}")
        self.start = _Individual(start.graph, member.number, (), member)
        stream = search.draw("nsga2")
        others = [self._changed(self.start, stream) for _ in range(config.population - 1)]
        self.evolution: Evolution = evolution.mutating(
            [self.start, *others],
            self._changed,
            lambda one: graph_hash(one.graph),
            stream,
            population=config.population,
            offspring=config.offspring,
        )

    def _changed(self, parent: _Individual, stream: np.random.Generator) -> _Individual:
        """A child by random moves; the start's where the parent was refused or failed."""
        if parent.member is None or parent.member.status != "scored":
            parent = self.start
        assert parent.member is not None, "a parent was evaluated"
        graph, allows = parent.graph, self.search.allows
        ops, library, moves = self.ops, self.library, self.moves
        uses = draw_applications(graph, ops, library, moves, stream, self.count, allows)
        for use in uses:
            assert use.at is not None, "moves are drawn with their sites"
            rule = find_rule(use.rule, library, ops)
            graph = Planner(graph, ops).plan(rule, use.at, use.arguments).after
        return _Individual(graph, parent.member.number, tuple(uses))

    def evaluated(
        self, candidates: Sequence[Candidate], generation: int, evaluator: Evaluator
    ) -> list[Member]:
        """The members that candidates become, in order; the start is one already."""
        new = [one.value for one in candidates if one.value.member is None]
        proposals = [self._proposal(one, generation, place) for place, one in enumerate(new)]
        members = self.search.evaluate("search", evaluator, proposals)
        for one, member in zip(new, members, strict=True):
            one.member = member
        return [one.value.member for one in candidates]

    def _proposal(self, one: _Individual, generation: int, place: int) -> Proposal:
        seed = seed_of(self.search, "rewrite", generation, place)
        uses = [use_record(use) for use in one.uses]
        origin = {"kind": "rewrite", "uses": uses, "seed": seed}
        return Proposal(origin, partial(self._network, one, seed), (one.parent,), self.seed)

    def _network(self, one: _Individual, seed: int) -> Network:
        """The network, as a text alone where no score depends on its weights."""
        parent = next(m for m in self.search.members if m.number == one.parent)
        network = self.search.network(parent)
        kept = network if self.inherits else replace(network, weights=None)
        return self.search.rewritten(kept, one.uses, seed)


def _objectives(member: Member) -> tuple[float, float]:
    """Error, or the negative score of a proxy, and millions of MACs."""
    error_ = -member.score if member.accuracy is None else 1 - member.score
    return error_, member.macs / 1e6


def _found(member: Member, evolution: Any) -> Found:
    """What NSGA-II is told: what was not scored loses, of what was too large the larger first."""
    scored = member.status == "scored"
    objectives = _objectives(member) if scored else None
    found: Found = evolution.Found(member.number, objectives, 1 + member.macs / 1e6)
    return found


def _searched(search: Search) -> list[Member]:
    return [member for member in search.members if member.stage == "search"]


def _random_weights() -> Evaluator:
    from archir.search.rwe import Rwe  # noqa: PLC0415 - it needs torch

    return Rwe()


def _evolution_module() -> Any:
    """The module that drives pymoo.

    Raises:
        ArchirError: A740, pymoo is not installed, or cannot be imported.
    """
    try:
        from archir.search import evolution  # noqa: PLC0415 - it needs pymoo
    except ImportError as reason:
        raise error(
            "A740",
            f"this strategy needs pymoo, which cannot be imported: {reason}",
            hint="pip install 'archir[search]'",
            status=UNSUPPORTED,
        ) from None
    return evolution


def make(
    config: Nsga2Config,
    moves: Sequence[Move] | None = None,
    evaluator: Evaluator | None = None,
) -> Nsga2:
    """The strategy with its own moves and evaluator, or the user's.

    Raises:
        ArchirError: A743 or A744, the settings make no sense; A746, moves are stated for genomes.
    """
    check_config(config)
    if moves is not None and config.encoding != "rules":
        raise error(
            "A746",
            f"moves are stated, and individuals of `{config.encoding}` are genomes",
            hint='encoding = "rules" searches among what moves make of a start network',
        )
    return Nsga2(config, MOVES if moves is None else tuple(moves), evaluator)


SMALL = Nsga2Config(
    channels=8,
    layers=3,
    population=12,
    offspring=12,
    generations=4,
    final_candidates=3,
    epoch_candidates=4,
    epoch_final=15,
    batch_candidates=64,
    batch_final=64,
    flip=False,
    crop=0,
    cutout=0,
)
"""Under two minutes on two cores with digits [own]."""

CPU20 = Nsga2Config(
    encoding="nsga_macro",
    channels=8,
    population=16,
    offspring=16,
    generations=5,
    final_candidates=2,
    epoch_candidates=2,
    epoch_final=20,
    batch_final=128,
    cutout=0,
)
"""Within twenty CPU minutes with CIFAR-10 [own]; of the two spaces the macro one, since depthwise
convolutions take a CPU several times as long as their MACs say."""

PRESETS = {
    "small": SMALL,
    "small_rules": replace(SMALL, encoding="rules"),
    "paper": Nsga2Config(),
    "readme_micro": Nsga2Config(offspring=20, generations=30),
    "readme_macro": Nsga2Config(
        encoding="nsga_macro", channels=32, generations=30, epoch_final=350, batch_final=128
    ),
    "cpu20": CPU20,
}

RWE = Kind(
    "rwe",
    "NSGA-II over random-weight accuracy and MACs (Hu et al. 2021; NSGA-Net, Lu et al. 2019).",
    Nsga2Config,
    PRESETS,
    make,
    lambda config: config.encoding == "rules",
)
