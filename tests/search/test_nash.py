"""NASH on a search that lives in memory: who competes, who wins, what is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import archir
from archir import api
from archir.api import Application, Network
from archir.diag import ArchirError
from archir.ir.graph import Graph
from archir.search.nash import (
    NASH,
    PRESETS,
    RANDOM,
    SMALL,
    Nash,
    NashConfig,
    make,
    moves_of,
    recipe,
)
from archir.search.parts import Evaluated, Evaluator, Member, Outcome, Proposal
from archir.search.space import Move
from archir.search.training import Training
from archir.train.data import Dataset

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = replace(SMALL, n_steps=3, n_neigh=4, n_nm=2)


@cache
def start() -> Network:
    return archir.load(EXAMPLES / "nash_digits.arch")


@dataclass(frozen=True)
class Scores:
    """Scores in a given order; an empty list is a row of falling ones. None fails."""

    given: tuple[float | None, ...] = ()
    inherits: bool = True

    def record(self) -> Mapping[str, Any]:
        return {"kind": "scores", "given": list(self.given)}

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        raise AssertionError


@dataclass
class Memory:
    """What a strategy sees of an engine; scores come from a list, networks are never trained."""

    start: Network = field(default_factory=start)
    scores: Sequence[float | None] = ()
    losses: Sequence[float] = ()
    seed: int = 0
    most: int = 10**9
    steps: int = 10**9
    members: list[Member] = field(default_factory=list)
    made: dict[int, Network] = field(default_factory=dict)
    stages: dict[str, Evaluator] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)

    def draw(self, *words: str | int) -> np.random.Generator:
        digest = hashlib.sha256(repr((self.seed, words)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def evaluate(
        self, stage: str, evaluator: Evaluator, proposals: Sequence[Proposal]
    ) -> list[Member]:
        assert self.stages.setdefault(stage, evaluator) == evaluator
        return [self._scored(stage, p) for p in proposals]

    def _scored(self, stage: str, proposal: Proposal) -> Member:
        number = len(self.members)
        network = self.made[number] = proposal.make()
        value = self.scores[number] if number < len(self.scores) else 0.5
        loss = self.losses[number] if number < len(self.losses) else 1.0
        member = Member(
            number,
            stage,
            proposal.parents,
            proposal.origin,
            proposal.seed,
            "failed" if value is None else "scored",
            "it went astray" if value is None else "",
            params=network.cost().params,
            scores={} if value is None else {"score": value, "loss": loss},
        )
        self.members.append(member)
        return member

    def network(self, member: Member) -> Network:
        return self.made[member.number]

    def rewritten(
        self, parent: Network | Member, applications: Sequence[Application], seed: int
    ) -> Network:
        network = self.network(parent) if isinstance(parent, Member) else parent
        return api.rewrite(network, applications, seed=seed).network

    def allows(self, graph: Graph) -> bool:
        return len(graph) <= self.most

    def note(self, event: str, **facts: Any) -> None:
        self.notes.append({"event": event, **facts})

    def goes_on(self, then: float = 0.0) -> bool:
        return sum(note["event"] == "step" for note in self.notes) < self.steps


def climb(search: Memory, config: NashConfig = CONFIG, **how: Any) -> Outcome:
    return make(config, **how).run(cast("Any", search))


def winners(search: Memory) -> list[int]:
    return [note["best"] for note in search.notes if note["event"] == "step"]


def test_the_parent_competes_in_each_step_and_the_best_has_the_children() -> None:
    #             start  step 1: child 3 wins   step 2: the parent wins   step 3
    search = Memory(scores=[0.1, 0.2, 0.3, 0.4, 0.35, 0.1, 0.2, 0.3, 0.5, 0.6, 0.4, 0.4, 0.5, 0.9])
    outcome = climb(search)
    assert [m.stage for m in search.members] == ["start", *["neighbours"] * 12, "final"]
    steps = [search.members[1 + 4 * n : 5 + 4 * n] for n in range(3)]
    for step, parent in zip(steps, (0, 3, 8), strict=True):
        assert [m.origin["kind"] for m in step] == ["rewrite", "rewrite", "rewrite", "parent"]
        assert all(m.parents == (parent,) for m in step)
        assert search.made[step[-1].number] is search.made[parent]
        assert all(len(m.origin["uses"]) == 2 for m in step[:-1])
    assert winners(search) == [3, 8, 9]
    assert search.members[13].parents == (9,)
    assert outcome.best is search.members[13]
    assert [m.number for m in outcome.ensemble] == [3, 8, 9]
    assert len(search.members) == make(CONFIG).expected()


def test_equal_scores_are_told_apart() -> None:
    lower = Memory(scores=[0.5] * 14, losses=[9, 3, 2, 1, 4])
    assert climb(lower) is not None
    assert winners(lower)[0] == 3  # the lower loss
    equal = Memory(scores=[0.5] * 14)
    climb(equal, replace(CONFIG, n_steps=2))
    assert winners(equal) == [4, 8]  # the smaller network: the parent
    alone = Memory(scores=[0.5, 0.5, 0.5, 0.5, None])
    climb(alone, replace(CONFIG, n_steps=1))
    sizes = [m.params for m in alone.members[1:4]]
    assert winners(alone) == [1 + sizes.index(min(sizes))]  # the smallest, the earliest of those


def test_a_failed_network_never_wins() -> None:
    search = Memory(scores=[0.9, None, 0.2, None, 0.1, *[None] * 4, 0.8])
    outcome = climb(search)
    assert winners(search)[:3] == [2, 2, 9]  # of step 2 nothing has a score: the best stays
    assert [m.number for m in outcome.ensemble] == [2, 9]
    last = Memory(scores=[0.5] * 13 + [None])
    assert climb(last).best.number == 12  # the final training failed
    with pytest.raises(ArchirError, match="went astray") as failure:
        climb(Memory(scores=[None]))
    assert failure.value.diagnostics[0].code == "A722"


def test_the_baseline_takes_its_child_whatever_the_score() -> None:
    search = Memory(scores=[0.9, 0.1, 0.5, 0.2])
    config = replace(CONFIG, n_neigh=1)
    outcome = climb(search, config, name="random")
    assert [m.origin["kind"] for m in search.members] == ["start", *["rewrite"] * 3, "parent"]
    assert [m.parents for m in search.members] == [(), (0,), (1,), (2,), (3,)]
    assert winners(search) == [1, 2, 3]
    assert outcome.best.number == 4
    assert len(search.members) == make(config).expected()
    with pytest.raises(ArchirError, match="one child in each step") as failure:
        RANDOM.make(CONFIG, moves=None, evaluator=None)
    assert failure.value.diagnostics[0].code == "A721"


def test_the_recipes_are_those_of_the_settings() -> None:
    search = Memory()
    climb(search, replace(CONFIG, n_steps=1))
    start_, steps, final = (cast("Training", search.stages[s]) for s in search.stages)
    assert [start_.config.epochs, steps.config.epochs, final.config.epochs] == [5, 6, 20]
    assert [start_.join, steps.join, final.join] == [False, False, True]
    paper = recipe(PRESETS["paper"], 17)
    assert (paper.lr, paper.lr_min, paper.schedule, paper.warmup) == (0.05, 0.0, "cosine", 0.0)
    assert (paper.momentum, paper.weight_decay, paper.batch_size) == (0.9, 5e-4, 128)
    assert (PRESETS["paper"].n_steps, PRESETS["paper"].n_neigh, PRESETS["paper"].n_nm) == (5, 8, 5)
    assert (PRESETS["paper8"].n_steps, PRESETS["paper8"].n_neigh) == (8, 8)
    assert {preset.n_neigh for preset in RANDOM.presets.values()} == {1}


def test_another_evaluator_takes_the_place_of_training() -> None:
    search = Memory(scores=[0.1, 0.9])
    search.start = start().init(0)
    once = replace(CONFIG, n_steps=1)
    climb(search, once, evaluator=Scores(inherits=False))
    assert search.stages["start"] == search.stages["neighbours"] == Scores(inherits=False)
    assert isinstance(search.stages["final"], Training)
    kinds = {m.origin["kind"]: search.made[m.number].weights for m in search.members[:5]}
    assert kinds["rewrite"] is None  # no score depends on them
    keeping = Memory()
    keeping.start = start().init(0)
    climb(keeping, once, evaluator=Scores())
    assert keeping.made[1].weights is not None


def test_the_same_seed_proposes_the_same() -> None:
    def told(search: Memory) -> list[Any]:
        climb(search, replace(CONFIG, n_steps=2))
        return [(m.origin, m.parents, m.seed) for m in search.members]

    first = told(Memory())
    assert told(Memory()) == first
    assert told(Memory(seed=1)) != first
    uses = [str(origin) for origin, _, _ in first if origin["kind"] == "rewrite"]
    assert len(set(uses)) > len(uses) // 2
    assert len({seed for _, _, seed in first}) == len(first)


def test_a_search_that_may_not_go_on_ends_with_the_final_training() -> None:
    search = Memory(steps=1)
    assert climb(search).best.stage == "final"
    assert len(search.members) == 6


def test_children_are_within_the_limits() -> None:
    search = Memory(most=len(start().graph))
    climb(search)
    rules = {use["rule"] for m in search.members for use in m.origin.get("uses", [])}
    assert rules == {"widen.zero_outgoing"}
    none = Memory()
    climb(none, moves=[Move("deepen.linear")])
    assert [m.stage for m in none.members] == ["start", "final"]
    assert none.notes[-1]["note"] == "no move applies any more"


def test_the_moves_are_the_papers() -> None:
    moves = {move.rule: move for move in moves_of(NashConfig())}
    assert {m.kind for m in moves.values()} == {"insert", "widen", "skip/concat", "skip/add"}
    assert moves["deepen.batch_norm"].arguments == {"kernel": (3, 5)}
    assert moves["widen.zero_outgoing"].times == {"width": (2, 4)}
    record = make(CONFIG).record()
    assert record["n_neigh"] == 4
    assert [m["rule"] for m in record["moves"]] == list(moves)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_steps": 0}, "n_steps is 0, it should be from 1"),
        ({"n_neigh": 2.5}, "n_neigh is 2.5"),
        ({"kernels": (4,)}, "kernels holds 4, they should be odd"),
        ({"kernels": ()}, "kernels is empty"),
        ({"widen_factors": (1,)}, "widen_factors is 1"),
        ({"lr_end": 0.5}, "lr_end is 0.5, more than lr_start"),
        ({"precision": "f8"}, "should be f32, bf16 or f16"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchirError, match=words) as failure:
        NASH.make(replace(CONFIG, **changes), moves=None, evaluator=None)
    assert failure.value.diagnostics[0].code == "A721"


def test_kinds_are_complete() -> None:
    for kind in (NASH, RANDOM):
        assert {"small", "paper"} <= set(kind.presets)
        for preset in kind.presets.values():
            made = kind.make(preset, moves=None, evaluator=None)
            assert isinstance(made, Nash)
            assert made.name == kind.name
