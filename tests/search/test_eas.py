"""EAS in a search: what is sampled, rewarded and learned, and that it is resumed to the bit."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import archir
from archir.api import Network
from archir.diag import ArchirError, error
from archir.ir.graph import Graph
from archir.ops.cost import cost
from archir.search.eas import (
    EAS,
    EAS_RANDOM,
    PRESETS,
    SMALL,
    Eas,
    EasConfig,
    make,
    recipe,
    space_of,
)
from archir.search.eas_policy import Deeper, Wider
from archir.search.encodings.encoding import network_of
from archir.search.journal import Journal, read_journal
from archir.search.limits import Limits
from archir.search.nash import rank
from archir.search.parts import Evaluated, Evaluator, Member, Proposal
from archir.search.plain_space import PlainSpace
from archir.search.run import Result, run_search
from archir.search.training import Training
from archir.search.work import DataRef
from archir.train.data import Dataset, load_data

from .toys import files_of, write_data

TEXT = """\
version 1
arch toy(classes = 3) {
    input image: f32[N, 1, 4, 4]
    one = image |> conv: conv(4, 3, bias = false) |> bn: batch_norm |> relu |> pool: max_pool(2)
    two = one |> conv: conv(4, 3, bias = false) |> bn: batch_norm |> relu |> global_avg_pool
    hid = two |> fc: linear(8, bias = false) |> bn: batch_norm |> relu
    output logits = hid |> fc: linear(classes)
}
"""
CONFIG = replace(SMALL, nets=9, batch=4, epoch_final=1)


@dataclass(frozen=True)
class BySize:
    """The more parameters, the more accurate."""

    fails: bool = False

    @property
    def inherits(self) -> bool:
        return False

    def record(self) -> Mapping[str, Any]:
        return asdict(self)

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        if self.fails:
            raise error("A631", "the loss is nan")
        score = min(1.0, network.cost().params / 2000)
        return Evaluated({"score": score, "accuracy": score})


@cache
def toy() -> Network:
    return network_of(TEXT, "toy")


@dataclass
class Memory:
    """What a strategy sees of an engine; accuracies come from how networks are made."""

    accuracy: Callable[[Mapping[str, Any]], float | None] = lambda origin: 0.5
    """By a member's origin; None fails."""
    most: int = 10**9
    other: bool = False
    """Whether the score is none of accuracy."""
    start: Network = field(default_factory=toy)
    dataset: Any = field(default_factory=lambda: SimpleNamespace(validation=range(10)))
    members: list[Member] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def draw(self, *words: str | int) -> np.random.Generator:
        digest = hashlib.sha256(repr(words).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def evaluate(
        self, stage: str, evaluator: Evaluator, proposals: Sequence[Proposal]
    ) -> list[Member]:
        found = [self._scored(stage, proposal) for proposal in proposals]
        self.members += found
        return found

    def _scored(self, stage: str, proposal: Proposal) -> Member:
        value = self.accuracy(proposal.origin) if stage == "sampled" else 0.1
        scores = {} if value is None else {"score": value, "accuracy": value}
        if self.other:
            scores.pop("accuracy", None)
        number, status = next(self.numbers), "failed" if value is None else "scored"
        told = stage, proposal.parents, proposal.origin, proposal.seed, cast("Any", status)
        return Member(number, *told, scores=scores)

    def network(self, member: Member) -> Network:
        return self.start

    def allows(self, graph: Graph) -> bool:
        return cost(graph, self.start.ops).params <= self.most

    def note(self, event: str, **facts: Any) -> None:
        self.steps.append(facts)

    def goes_on(self, then: float = 0.0) -> bool:
        return True


def sampled(config: EasConfig, name: str = "eas", **how: Any) -> Memory:
    memory = Memory(**how)
    make(config, name=name).run(cast("Any", memory))
    return memory


def widened(origin: Mapping[str, Any]) -> float:
    """The more layers are widened, the better; all of them twice is perfect."""
    return float(sum(use["rule"] == "widen.shares" for use in origin.get("uses", ())) / 6)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eas")
    write_data(folder / "data.npz")
    (folder / "toy.arch").write_text(TEXT, "utf-8")
    return folder


def search(
    place: Path,
    run: Path,
    config: EasConfig = CONFIG,
    evaluator: Any = BySize(),
    name: str = "eas",
    **how: Any,
) -> tuple[Result, Journal]:
    dataset = load_data(str(place / "data.npz"))
    found = run_search(
        make(config, evaluator=evaluator, name=name),
        start=archir.load(place / "toy.arch").init(0),
        dataset=dataset,
        data=DataRef(str(place / "data.npz"), 0, dataset.sha256),
        run_dir=run,
        device="cpu",
        **how,
    )
    return found, read_journal(run / "journal.jsonl")


def steps(journal: Journal) -> list[Mapping[str, Any]]:
    return [event for event in journal.events if event["event"] == "step"]


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """Two stages that nothing interrupted."""
    search(place, place / "whole", replace(CONFIG, nets_second=5))
    return place / "whole"


def test_a_search_of_two_stages(whole: Path) -> None:
    journal = read_journal(whole / "journal.jsonl")
    members, told = journal.members, steps(journal)
    assert [len(step["nets"]) for step in told] == [4, 4, 1, 4, 1]
    assert list(journal.stages) == ["start", "sampled", "final"]
    sampled = [m for m in members if m.stage == "sampled"]
    first, second = ({n for step in part for n in step["nets"]} for part in (told[:3], told[3:]))
    assert first | second == {m.number for m in sampled}
    assert not first & second
    assert {m.parents for m in sampled if m.number in first} == {(0,)}
    best = min((members[n] for n in {0} | first), key=rank)
    assert {m.parents for m in sampled if m.number in second} == {(best.number,)}
    assert told[2]["best"] == best.number
    last = members[-1]
    assert (last.stage, last.parents) == ("final", (told[-1]["best"],))
    assert "fitted" in last.scores
    assert journal.end is not None
    assert journal.end["best"] == last.number
    assert all(f.holds for f in archir.load(whole / "best.arch").verify())


def test_architectures_are_trained_once() -> None:
    memory = sampled(replace(CONFIG, nets=40, batch=10, n_wider=1, n_deeper=0, nets_second=10))
    first = [m for m in memory.members if m.stage == "sampled" and m.parents == (0,)]
    numbers = [n for step in memory.steps[:4] for n in step["nets"]]
    assert len(numbers) == 40
    assert set(numbers) == {m.number for m in first}
    kinds = [tuple(use["at"] for use in m.origin.get("uses", ())) for m in first]
    assert sorted(kinds) == sorted(set(kinds))
    assert len(kinds) <= 8  # of three layers some, all or none
    (same,) = [m for m in first if m.origin["kind"] == "parent"]
    assert same.origin == {"kind": "parent"}
    second = memory.steps[4]["nets"]
    assert not set(second) & set(numbers)  # from other weights


def test_children_are_what_the_space_makes(whole: Path) -> None:
    space = space_of(CONFIG)
    for member in read_journal(whole / "journal.jsonl").members:
        if member.stage != "sampled":
            continue
        uses = member.origin["uses"]
        rules = [use["rule"] for use in uses]
        assert rules == sorted(rules, key=lambda rule: rule != "widen.shares")  # widened first
        inserted = [rule for rule in rules if rule != "widen.shares"]
        assert len(inserted) == CONFIG.n_deeper
        assert set(inserted) <= {"deepen.batch_norm", "deepen.linear.batch_norm"}
        assert space.read(archir.load(whole / f"members/{member.number:04d}.arch").graph).layers


@pytest.mark.parametrize("torn", [False, True])
def test_a_search_that_was_cut_off_ends_as_if_it_had_not_been(
    place: Path, whole: Path, tmp_path: Path, *, torn: bool
) -> None:
    lines = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
    kept = len(lines) * (1 if torn else 2) // 3
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    part = lines[kept][: len(lines[kept]) // 2] if torn else b""
    (run / "journal.jsonl").write_bytes(b"".join(lines[:kept]) + part)
    for name in ("result.json", "best.arch", "best.onnx"):
        (run / name).unlink()
    done = sum(json.loads(line)["event"] == "member" for line in lines[:kept])
    for file in (run / "members").glob("*.*"):
        if file.name[:4].isdigit() and int(file.name[:4]) >= done:
            file.unlink()
    search(place, run, replace(CONFIG, nets_second=5), existing="resume")
    assert files_of(run) == files_of(whole)


def test_rewards_and_baselines() -> None:
    for baseline in ("ema", "code"):
        config = replace(CONFIG, nets_second=5, baseline=baseline)
        memory = sampled(config, accuracy=widened)
        assert [len(step["nets"]) for step in memory.steps] == [4, 4, 1, 4, 1]
        old = None
        for number, step in enumerate(memory.steps):
            # of ten validation images: 1 has no reward
            found = [min(0.95, memory.members[n].score) for n in step["nets"]]
            mean = sum(math.tan(accuracy * math.pi / 2) for accuracy in found) / len(found)
            assert step["reward"] == pytest.approx(mean, abs=2e-6)
            old = None if number in (0, 3) else old  # anew in the second stage
            if baseline == "code":
                old = (old or 0.0) + 0.95 * (mean - (old or 0.0))
            else:
                old = mean if old is None else 0.95 * old + 0.05 * mean
            assert step["baseline"] == pytest.approx(old, abs=2e-6)


def test_the_accuracy_itself_or_another_score_as_reward() -> None:
    plain = sampled(replace(CONFIG, reward="accuracy"), accuracy=widened)
    assert all(step["reward"] == step["score"] > 0 for step in plain.steps)
    other = sampled(CONFIG, accuracy=lambda origin: -5.0, other=True)
    assert [step["reward"] for step in other.steps] == [-5.0] * 3


def test_a_network_that_fails_has_the_lowest_reward() -> None:
    def some(origin: Mapping[str, Any]) -> float | None:
        return None if widened(origin) == best else widened(origin)

    config = replace(CONFIG, nets=8, batch=8, reward="accuracy")
    well = sampled(config, accuracy=widened)
    scores = [well.members[n].score for n in well.steps[0]["nets"]]
    best = max(scores)
    assert min(scores) < best
    (step,) = sampled(config, accuracy=some).steps
    wanted = [min(scores) if score == best else score for score in scores]
    assert step["reward"] == pytest.approx(sum(wanted) / 8, abs=2e-6)
    none = sampled(config, accuracy=lambda origin: None)
    assert [step["note"] for step in none.steps] == ["no network of this episode has a score"]
    assert none.members[-1].parents == (0,)


def test_the_policy_finds_what_is_rewarded() -> None:
    config = replace(CONFIG, nets=112, batch=8, n_deeper=0, lr_policy=0.05, reward="accuracy")
    learned, uniform = (sampled(config, name, accuracy=widened) for name in ("eas", "eas_random"))
    assert all({"loss", "entropy"} <= step.keys() for step in learned.steps)
    assert not any({"loss", "entropy"} & step.keys() for step in uniform.steps)
    assert abs(learned.steps[0]["score"] - uniform.steps[0]["score"]) < 0.25
    assert sum(step["score"] for step in learned.steps[-4:]) / 4 > 0.85
    assert max(step["score"] for step in uniform.steps) < 0.75


def test_nothing_is_beyond_the_limits() -> None:
    learned: list[Any] = []

    class Watched(Eas):
        def _learn(self, search: Any, actor: Any, stage: Any, grown: Any, *more: Any) -> None:
            learned.extend(grown)
            super()._learn(search, actor, stage, grown, *more)

    for most in (10**9, 700):
        learned.clear()
        memory = Memory(most=most)
        Watched(CONFIG).run(cast("Any", memory))
        largest = max(cost(one.graph, toy().ops).params for one in learned)
        assert (largest <= 700) == (most == 700)
        widers = [d for one in learned for d in one.decisions if isinstance(d, Wider)]
        left_out = [
            yes
            for d in widers
            for yes, counted, layer in zip(d.yes, d.counted, d.sequence.layers, strict=True)
            if layer.wider and not counted
        ]
        assert all(left_out)  # only what was decided, and not done
        assert bool(left_out) == (most == 700)
        uses = sum(len(one.uses) for one in learned)
        counted = sum(y and c for d in widers for y, c in zip(d.yes, d.counted, strict=True))
        inserted = sum(isinstance(d, Deeper) for one in learned for d in one.decisions)
        assert uses == counted + inserted


def test_a_search_that_may_not_go_on_ends_with_the_final_training(
    place: Path, tmp_path: Path
) -> None:
    limits = Limits(evaluations=3)
    config = replace(CONFIG, nets=6, batch=2, nets_second=5)
    found, journal = search(place, tmp_path / "run", config, limits=limits)
    assert len(steps(journal)) == 1
    assert found.best.stage == "final"


def test_children_are_trained_from_what_they_inherit(place: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, nets=2, nets_second=1, batch=2, batch_size=8, epoch_longer=2)
    config = replace(config, epoch_start=1, lr_longer=0.2)
    found, journal = search(place, tmp_path / "run", config, evaluator=None)
    stages = ["start", "sampled", "longer", "sampled", "final"]
    assert list(dict.fromkeys(m.stage for m in journal.members)) == list(dict.fromkeys(stages))
    recipes = {name: told["recipe"] for name, told in journal.stages.items()}
    lengths = {name: told["epochs"] for name, told in recipes.items()}
    assert lengths == {"start": 1, "sampled": 1, "longer": 2, "final": 1}
    rates = {name: told["lr"] for name, told in recipes.items()}
    assert rates == {"start": 0.05, "sampled": 0.02, "longer": 0.2, "final": 0.05}
    assert [told["join"] for told in journal.stages.values()] == [False, False, False, True]
    longer = next(m for m in journal.members if m.stage == "longer")
    assert journal.members[longer.number + 1].parents == (longer.number,)
    assert (
        make(config).expected()
        == 6
        == len(journal.members) + sum(len(s["nets"]) - len(set(s["nets"])) for s in steps(journal))
    )
    network = archir.load(tmp_path / "run" / "members" / "0001.arch")
    assert [step.kind for step in network.certificate.steps] == [
        *("init", "train", "rewrite", "train")
    ]
    assert all(f.holds for f in archir.load(found.folder / "best.arch").verify())


def test_a_search_that_cannot_begin(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchirError, match="the start network was failed") as failure:
        search(place, tmp_path / "none", evaluator=BySize(fails=True))
    assert failure.value.diagnostics[0].code == "A722"
    for config, code in (
        (replace(CONFIG, widen_rule="deepen"), "A763"),
        (replace(CONFIG, widen_rule="prune.keep"), "A763"),
        (replace(CONFIG, widen_rule="widens"), "A604"),
        (replace(CONFIG, filters=(8, 16)), "A762"),
        (replace(CONFIG, filters=(4,), units=(8,), n_deeper=0), "A764"),
    ):
        with pytest.raises(ArchirError) as failure:
            search(place, tmp_path / code, config)
        assert failure.value.diagnostics[0].code == code
        assert not (tmp_path / code / "members").exists() or not list(
            (tmp_path / code / "members").iterdir()
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nets": 0}, "nets is 0, it should be from 1"),
        ({"filters": ()}, "filters is [], it should be numbers in rising order"),
        ({"units": (16, 8)}, "units is [16, 8]"),
        ({"kernels": (2, 3)}, "kernels holds 2, they should be odd"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"n_wider": 0, "n_deeper": 0}, "no network would change"),
        ({"precision": "f8"}, "should be f32, bf16 or f16"),
        ({"space": "resnet"}, "should be plain or dense"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchirError) as failure:
        EAS.make(replace(CONFIG, **changes), moves=None, evaluator=None)
    assert failure.value.diagnostics[0].code == "A763"
    assert words in str(failure.value)


def test_moves_are_refused() -> None:
    with pytest.raises(ArchirError, match="moves are stated") as failure:
        EAS.make(CONFIG, moves=[], evaluator=None)
    assert failure.value.diagnostics[0].code == "A763"


def test_the_numbers_are_the_papers() -> None:
    paper = PRESETS["paper"]
    assert (paper.nets, paper.nets_second, paper.batch) == (300, 150, 10)
    assert (paper.n_wider, paper.n_deeper) == (4, 5)
    assert PRESETS["paper_dense"].n_wider == 10
    assert cast("PlainSpace", space_of(paper)).filters[:4] == (16, 32, 64, 96)
    child = recipe(paper, paper.epoch_child, paper.lr_child)
    assert (child.epochs, child.lr, child.schedule, child.nesterov) == (20, 0.02, "cosine", True)
    assert (child.momentum, child.weight_decay, child.batch_size) == (0.9, 1e-4, 64)
    assert (paper.decay, paper.entropy, paper.lr_policy) == (0.95, 1e-5, 2e-3)
    assert (paper.epoch_longer, paper.epoch_final, paper.lr_final) == (100, 300, 0.1)


def test_kinds_are_complete() -> None:
    assert EAS.presets == EAS_RANDOM.presets
    for kind in (EAS, EAS_RANDOM):
        for preset in kind.presets.values():
            made = kind.make(preset, moves=None, evaluator=None)
            assert isinstance(made, Eas)
            assert made.name == kind.name == made.record()["strategy"]
    trained = make(CONFIG, evaluator=Training())
    assert trained.record()["evaluator"]["kind"] == "training"
