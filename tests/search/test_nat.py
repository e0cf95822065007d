"""NAT: which sample is chosen, that none is dearer, and whole searches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import archir
from archir.api import Network
from archir.diag import ArchirError
from archir.search import nat
from archir.search.cells import Cell, is_alive, targets
from archir.search.encodings.nat_cells import family
from archir.search.limits import Limits
from archir.search.nat import NAT, PRESETS, SMALL, Nat, _saves, make
from archir.search.nat_config import NatConfig
from archir.search.nat_policy import Policy, PolicyConfig, fill, load_policy, shapes_of
from archir.search.parts import Member
from archir.search.reading_cells import read_cells
from archir.search.run import Result, run_search
from archir.search.work import DataRef
from archir.train.data import load_data
from tests.search.toys import files_of

TINY = replace(
    SMALL,
    channels=2,
    epochs=2,
    warmup=0,
    reward_images=64,
    alphas=2,
    samples=6,
    judged=1,
    epoch_trained=1,
    epoch_final=1,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of VGG's cells, and images for it."""
    folder = tmp_path_factory.mktemp("nat")
    generator = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = generator.standard_normal((120, 1, 8, 8)).astype(np.float32) + y[:, None, None, None]
    np.savez(folder / "data.npz", x=x.astype(np.float32), y=y)
    text = family("vgg", channels=4, layers=3, classes=3, shape=(1, 8, 8))
    (folder / "net.arch").write_text(text, "utf-8")
    return folder


def searched(place: Path, run: Path, config: NatConfig = TINY, **how: Any) -> Result:
    name = str(place / "data.npz")
    dataset = load_data(name)
    options: dict[str, Any] = {"device": "cpu", "existing": "resume", **how}
    start: Network = archir.load(place / "net.arch").init(0)
    return run_search(
        make(config),
        start=start,
        dataset=dataset,
        data=DataRef(name, 0, dataset.sha256),
        run_dir=run,
        **options,
    )


@pytest.fixture(scope="module")
def whole(place: Path) -> Result:
    return searched(place, place / "whole")


def test_the_stages(whole: Result) -> None:
    stages = [member.stage for member in whole.members]
    assert stages == sorted(stages, key=["policy", "derive", "trained", "final"].index)
    assert stages.count("policy") == stages.count("final") == 1
    assert 1 < stages.count("derive") <= 8
    learned, first = whole.members[0], whole.members[1]
    assert set(learned.scores) == {"score", "saved", "uniform", "uniform_saved", "input"}
    assert all(m.parents == (0,) for m in whole.members if m.stage == "derive")
    assert first.scores["accuracy"] == learned.scores["input"]
    assert whole.best.stage == "final"
    trained = [m for m in whole.members if m.stage == "trained"]
    assert len({m.seed for m in trained}) == 1  # alike
    assert whole.best.parents[0] in [m.number for m in trained]
    assert {m.stage for m in whole.front} == {"trained"}


def test_no_member_is_dearer_than_the_input(whole: Result) -> None:
    first = whole.members[0]
    derived = [m for m in whole.members if m.stage == "derive"]
    assert all(m.status == "scored" for m in derived)
    assert all(m.macs <= first.macs and m.params <= first.params for m in whole.members)
    assert len({m.graph for m in derived}) > 2
    for member in derived[1:]:
        rules = {use["rule"] for use in member.origin["uses"]}
        assert rules
        assert all(rule.startswith("nat.") for rule in rules)


def test_what_is_derived_is_what_the_policy_samples(whole: Result) -> None:
    """The cells of a member, read again, are legal changes of the input's."""
    start = archir.load(whole.folder / "start.arch")
    found = read_cells(start.graph)
    policy = load_policy(whole.folder / "policy.safetensors")
    assert policy.transitions == "nat"
    assert policy.config.self_loops
    for cell in found:
        for edge, op in zip(cell.cell.edges, policy.choose(cell.cell), strict=True):
            assert op in targets("nat", edge.op, strided=edge.strided)


def test_the_best_verifies(whole: Result, archir: Callable[..., Any]) -> None:
    assert archir("verify", str(whole.folder / "best.arch")).status == 0
    again = json.loads((whole.folder / "result.json").read_text("utf-8"))
    assert again["best"] == whole.best.number


@pytest.mark.parametrize("after", [2, 8])
def test_a_search_that_is_cut_off_ends_with_the_same_bytes(
    after: int, whole: Result, place: Path
) -> None:
    run = place / f"cut{after}"

    def progress(now: Any) -> None:
        if now.member is not None and now.member.number == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(place, run, progress=progress)
    searched(place, run)
    assert files_of(run) == files_of(whole.folder)
    shutil.rmtree(run)


def test_evaluations_may_end_before_the_training(place: Path) -> None:
    few = searched(place, place / "few", limits=Limits(evaluations=1))
    assert few.best.stage == "derive"
    assert (few.folder / "policy.safetensors").exists()


def test_a_supernet_that_was_changed(
    whole: Result, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place / "changed"
    shutil.copytree(whole.folder, run)
    journal = run / "journal.jsonl"
    lines = journal.read_text("utf-8").splitlines(keepends=True)
    until = next(n for n, line in enumerate(lines) if '"stage": "derive"' in line)
    journal.write_text("".join(lines[:until]), "utf-8")
    shutil.copyfile(
        run / "members" / "0000.policy.safetensors", next(run.glob("members/*supernet*"))
    )
    found = searched(place, run)
    derived = [m for m in found.members if m.stage == "derive"]
    assert all("A776" in m.reason for m in derived)
    assert found.best.stage == "policy"


def test_a_dearer_network_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Search:
        def rewritten(self, network: Network, uses: Any, seed: int) -> Network:
            text = family("vgg", channels=6, layers=3, classes=3, shape=(1, 8, 8))
            (place / "dear.arch").write_text(text, "utf-8")
            return archir.load(place / "dear.arch")

    use = archir.Application("nat.conv_to_null", "x")
    with pytest.raises(ArchirError) as failure:
        nat._derived(cast("Any", Search()), archir.load(place / "net.arch"), (use,), 0)
    assert failure.value.diagnostics[0].code == "A779"


def member(number: int, score: float, macs: int, half: float = 0.02) -> Member:
    scores = {"score": score, "difference": score - 0.9, "half": half}
    return Member(number, "derive", (0,), {}, number, "scored", macs=macs, scores=scores)


def test_the_chosen_sample() -> None:
    first = member(1, 0.9, 100, 0)
    some = [member(2, 0.95, 100), member(3, 0.89, 60), member(4, 0.89, 50), member(5, 0.8, 10)]
    one = replace(TINY, candidates=1)
    best, cheapest = make(replace(one, derive="best")), make(replace(one, derive="cheapest"))
    assert best._chosen(first, some) == [some[0]]
    assert cheapest._chosen(first, some) == [some[2]]  # within 0.02 of the input
    assert cheapest._chosen(first, [some[0], some[3]]) == [some[3]]  # the best of what is cheaper
    assert cheapest._chosen(first, some[:1]) == []
    assert best._chosen(first, [replace(some[0], status="failed")]) == []
    equal = [member(2, 0.95, 100), member(3, 0.95, 90)]
    assert best._chosen(first, equal) == [equal[1]]


def test_a_policy_that_is_sure_of_itself_has_cheaper_samples_all_the_same(place: Path) -> None:
    found = read_cells(archir.load(place / "net.arch").graph)
    sure = Policy(PolicyConfig())
    shapes = shapes_of(sure.config).items()
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes}
    weights["actions_bias"][1::3] = 200  # all stays as it is; a null or a skip may become the other
    fill(sure, weights)
    stays = make(replace(TINY, derive="best"))._samples(cast("Any", Trainings(())), sure, found)
    cells = tuple(f.cell for f in found)
    assert not any(_saves(a, _ops(b)) for s in stays for a, b in zip(cells, s.cells, strict=True))
    more = make(replace(TINY, derive="cheapest"))._samples(cast("Any", Trainings(())), sure, found)
    assert more[: len(stays)] == stays
    assert any(_saves(a, _ops(b)) for s in more for a, b in zip(cells, s.cells, strict=True))
    assert all(map(is_alive, (cell for sample in more for cell in sample.cells)))


def _ops(cell: Cell) -> list[str]:
    return [edge.op for edge in cell.edges]


def test_several_samples_go_on() -> None:
    first = member(1, 0.9, 100, 0)
    some = [member(n, 0.9, 10 * n) for n in range(2, 9)]
    cheapest = make(replace(TINY, derive="cheapest", candidates=3))
    assert [m.macs for m in cheapest._chosen(first, some)] == [20, 50, 80]
    assert [m.macs for m in cheapest._chosen(first, some[:2])] == [20, 30]
    assert [m.macs for m in cheapest._chosen(first, some[:1])] == [20]
    assert cheapest._chosen(first, []) == []
    trained = cast("Any", Trainings((0.95, 0.85, 0.94)))
    members = [first, member(2, 0.9, 50), member(3, 0.9, 70)]
    assert cheapest._trained(trained, members).number == 12  # the cheapest within the interval


@dataclass
class Trainings:
    """A search whose trainings end with given accuracies."""

    accuracies: Sequence[float]
    dataset: Any = field(default_factory=lambda: load_data("digits"))

    def goes_on(self, then: float = 0.0) -> bool:
        return True

    def draw(self, *words: str | int) -> np.random.Generator:
        return np.random.default_rng([len(w) if isinstance(w, str) else w for w in words])

    def evaluate(self, stage: str, evaluator: Any, proposals: Any) -> list[Member]:
        assert len({proposal.seed for proposal in proposals}) == 1
        return [
            Member(
                10 + n,
                stage,
                proposal.parents,
                {},
                0,
                "scored",
                macs=100 - 50 * n if len(proposals) == 2 else (100, 50, 70)[n],
                scores={"score": accuracy, "accuracy": accuracy},
            )
            for n, (proposal, accuracy) in enumerate(zip(proposals, self.accuracies, strict=True))
        ]


@pytest.mark.parametrize(
    ("derive", "accuracies", "best"),
    [
        ("best", (0.95, 0.94), 10),
        ("best", (0.95, 0.95), 11),
        ("cheapest", (0.95, 0.94), 11),  # the interval of 180 images is wider than 0.04
        ("cheapest", (0.95, 0.85), 10),
        ("cheapest", (0.85, 0.95), 11),
    ],
)
def test_the_better_of_the_trained(derive: Any, accuracies: Sequence[float], best: int) -> None:
    strategy = make(replace(TINY, derive=derive))
    pair = [member(1, 0.9, 100), member(2, 0.9, 50)]
    assert strategy._trained(cast("Any", Trainings(accuracies)), pair).number == best


def test_the_presets() -> None:
    assert {"small", "paper", "paper2", "cpu20"} == set(PRESETS)
    for preset in PRESETS.values():
        made = NAT.make(preset, moves=None, evaluator=None)
        assert isinstance(made, Nat)
        assert made.record()["strategy"] == made.name == "nat"
        assert made.expected() > preset.samples
    paper, second = PRESETS["paper"], PRESETS["paper2"]
    assert (paper.channels, paper.layers, paper.epochs, paper.batch_size) == (20, 8, 100, 64)
    assert (paper.entropy, paper.policy_lr, paper.share, paper.alphas) == (0.003, 3e-4, 0.4, 1)
    assert (paper.samples, paper.derive, paper.saving) == (10, "best", 0)
    assert (second.transitions, second.epochs) == ("nat++", 200)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": 3}, "channels is 3, it should be even"),
        ({"warmup": 2}, "warmup takes 2 of 2 epochs"),
        ({"alphas": 1}, "the baseline `others` needs two alphas"),
        ({"share": 1.5}, "share is 1.5, it should be from 0.01 to 0.99"),
        ({"transitions": "nat3"}, "should be nat or nat\\+\\+"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchirError, match=words) as failure:
        NAT.make(replace(TINY, **changes), moves=None, evaluator=None)
    assert failure.value.diagnostics[0].code == "A778"


def test_moves_are_refused() -> None:
    with pytest.raises(ArchirError, match="NAT has no moves") as failure:
        NAT.make(TINY, moves=[], evaluator=None)
    assert failure.value.diagnostics[0].code == "A778"


def test_a_network_without_cells(archir: Callable[..., Any], tmp_path: Path) -> None:
    body = "input x: f32[N, 1, 8, 8]\noutput y = x |> flatten |> f: linear(10)"
    (tmp_path / "mlp.arch").write_text(f"version 1\narch mlp {{\n{body}\n}}\n", "utf-8")
    run = tmp_path / "run"
    answer = archir("search", str(tmp_path / "mlp.arch"), "--strategy", "nat", "--run", str(run))
    assert answer.status == 2
    assert "error[A777]: mlp has no cells" in answer.err
    assert not (run / "search.json").exists()
