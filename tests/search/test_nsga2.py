"""NSGA-II: what it finds, that a run depends on its seed alone, and what it survives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.optimize import minimize

import archir
from archir.api import Network
from archir.diag import ArchirError, error
from archir.search import nsga2
from archir.search.encodings.encoding import encoding, remade
from archir.search.evolution import Evolution, Found, genetic, hypervolume
from archir.search.journal import read_journal
from archir.search.limits import Limits
from archir.search.parts import Evaluated, Member, front
from archir.search.run import Result, run_search
from archir.search.space import Move
from archir.search.work import DataRef
from archir.train.data import Dataset, load_data

from .toys import TEXT, files_of

TINY = nsga2.Nsga2Config(
    channels=2,
    layers=1,
    population=6,
    offspring=4,
    generations=3,
    final_candidates=2,
    epoch_candidates=1,
    epoch_final=1,
    flip=False,
    crop=0,
    cutout=0,
)

# --- the toy: how far a genome is from two targets; what lies between them is the true front -----

LOWEST, HIGHEST = (0,) * 30, (4,) * 30


def distances(genome: Sequence[int]) -> tuple[float, float]:
    """Their sum is 60 on the front, and any pair of that sum is that of some genome."""
    one, two = (float(np.abs(np.asarray(genome) - target).sum()) for target in (1, 3))
    return one, two


def toy(seed: int, population: int = 20, offspring: int = 20) -> Evolution:
    return genetic(
        LOWEST,
        HIGHEST,
        tuple,
        np.random.default_rng(seed),
        population=population,
        offspring=offspring,
        crossover=0.9,
        mutation=0.9,
        per_gene=0.0,
        eta=3.0,
    )


def evolved(
    evolution: Evolution,
    generations: int,
    objectives: Callable[[Sequence[int]], tuple[float, float] | None],
) -> list[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Each generation's genomes with the numbers of their parents."""
    made = []
    count = 0
    for _ in range(generations):
        asked = evolution.ask()
        made.append([(one.value, one.parents) for one in asked])
        evolution.tell([Found(count + k, objectives(one.value)) for k, one in enumerate(asked)])
        count += len(asked)
    return made


def test_the_front_of_a_toy_is_approached() -> None:
    reference = (70.0, 70.0)
    best = hypervolume([(k, 60 - k) for k in range(61)], reference)
    made = evolved(toy(0, 40, 40), 100, distances)
    found = hypervolume([distances(g) for generation in made for g, _ in generation], reference)
    generator = np.random.default_rng(0)
    blind = [distances(generator.integers(0, 5, 30)) for _ in range(sum(map(len, made)))]
    assert best >= found >= 0.9 * best
    assert found > 1.4 * hypervolume(blind, reference)


def test_it_is_pymoos_own_search_with_an_equal_seed() -> None:
    class Toy(Problem):  # type: ignore[misc]
        def __init__(self) -> None:
            reach = 0.5 - 1e-9
            super().__init__(n_var=30, n_obj=2, n_ieq_constr=1, xl=-reach, xu=4 + reach)

        def _evaluate(self, x: Any, out: Any, *args: Any, **kwargs: Any) -> None:
            out["F"] = np.array([distances(row) for row in x])
            out["G"] = np.zeros((len(x), 1))

    ours = toy(5)
    evolved(ours, 8, distances)
    generator = np.random.default_rng(5)
    algorithm = NSGA2(
        pop_size=20,
        sampling=generator.integers(0, 5, (20, 30)),
        crossover=TwoPointCrossover(prob=0.9),
        mutation=PM(prob=0.9, eta=3.0, vtype=float, repair=RoundingRepair()),
    )
    theirs = minimize(Toy(), algorithm, ("n_gen", 8), seed=generator)
    assert sorted(map(tuple, theirs.pop.get("X"))) == sorted(
        tuple(one.X) for one in ours.algorithm.pop
    )


def test_all_randomness_comes_from_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the state that is not to be touched
    real = np.random.default_rng

    def seeded(seed: Any = None) -> np.random.Generator:
        assert seed is not None, "a generator of its own, from the system's entropy"
        return real(seed)

    monkeypatch.setattr(np.random, "default_rng", seeded)
    one = evolved(toy(3), 5, distances)
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    two = evolved(toy(3), 5, distances)
    assert one == two != evolved(toy(4), 5, distances)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert len(state) == len(before)


def test_what_was_not_scored_loses() -> None:
    """Half of the space fails; it dies out, and the smaller excess goes on while all fail."""

    def half(genome: Sequence[int]) -> tuple[float, float] | None:
        return distances(genome) if genome[0] < 2 else None

    evolution = toy(1)
    evolved(evolution, 12, half)
    assert all(one.X[0] < 2 for one in evolution.algorithm.pop)
    failing = toy(1)
    asked = failing.ask()
    failing.tell([Found(k, None, excess=float(sum(one.value))) for k, one in enumerate(asked)])
    more = failing.ask()
    failing.tell([Found(20 + k, None, float(sum(one.value))) for k, one in enumerate(more)])
    kept = sorted(sum(one.X) for one in failing.algorithm.pop)
    assert kept == sorted(sum(one.value) for one in [*asked, *more])[:20]


def test_parents_are_those_that_genes_come_from() -> None:
    made = evolved(toy(2), 6, distances)
    genomes = [genome for generation in made for genome, _ in generation]
    assert all(not parents for _, parents in made[0])
    fresh = 0
    for generation in made[1:]:
        for genome, parents in generation:
            assert 1 <= len(parents) <= 2
            pools = zip(*(genomes[p] for p in parents), strict=True)
            fresh += sum(gene not in pool for gene, pool in zip(genome, pools, strict=True))
    assert 0 < fresh <= 0.1 * 30 * sum(map(len, made[1:])), "mutation changes some integers alone"


# --- whole searches ------------------------------------------------------------------------------


@dataclass(frozen=True)
class BySize:
    """A score that rises with parameters and fails for some networks: takes no time."""

    fails: bool = False
    proxy: bool = False

    @property
    def inherits(self) -> bool:
        return False

    def record(self) -> Mapping[str, Any]:
        return {"kind": "by_size", **dataclasses.asdict(self)}

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        found = network.cost()
        digest = hashlib.sha256(network.text.encode()).digest()[0]
        if self.fails and digest % 3 == 0:
            raise error("A734", "with random weights the network's features are not finite")
        score = found.params / (found.params + 1000) - digest / 2000
        return Evaluated({"score": score} | ({} if self.proxy else {"accuracy": score}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nsga2")
    x = np.random.default_rng(0).standard_normal((60, 1, 4, 4)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=np.arange(60) % 3)
    (folder / "toy.arch").write_text(TEXT, "utf-8")
    return folder


def search(
    place: Path, run: Path, config: nsga2.Nsga2Config = TINY, *, seed: int = 0, **how: Any
) -> Result:
    name = str(place / "data.npz")
    dataset = load_data(name)
    given = {"evaluator": how.pop("evaluator", BySize()), "moves": how.pop("moves", None)}
    start = archir.load(place / "toy.arch").init(0) if config.encoding == "rules" else None
    return run_search(
        nsga2.make(config, **given),
        start=start,
        dataset=dataset,
        data=DataRef(name, 0, dataset.sha256),
        run_dir=run,
        device="cpu",
        seed=seed,
        **how,
    )


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    search(place, place / "whole")
    return place / "whole"


def searched(folder: Path) -> list[Member]:
    return [m for m in read_journal(folder / "journal.jsonl").members if m.stage == "search"]


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    rows = (folder / "journal.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, rows) if row["event"] == event]


def test_a_search_ends_with_a_trained_network(place: Path, whole: Path) -> None:
    journal = read_journal(whole / "journal.jsonl")
    assert set(journal.stages) == {"search", "candidates", "final"}
    found = searched(whole)
    assert len(found) == 6 + 2 * 4
    generations = lines(whole, "generation")
    assert [row["generation"] for row in generations] == [1, 2, 3]
    volumes = [row["hypervolume"] for row in generations]
    assert volumes == sorted(volumes)
    assert len({tuple(row["reference"]) for row in generations}) == 1
    ahead = [m.number for m in front(found)]
    assert generations[-1]["front"] == ahead
    assert generations[-1]["hypervolume"] == pytest.approx(
        hypervolume([(1 - m.score, m.macs / 1e6) for m in found], generations[0]["reference"]),
        rel=1e-12,
    )
    (chosen,) = lines(whole, "candidates")
    assert set(chosen["members"]) <= set(ahead)
    assert chosen["members"][0] == max(found, key=lambda m: m.score).number
    best = journal.members[-1]
    assert best.stage == "final"
    assert best.parents[0] in chosen["members"]
    assert json.loads((whole / "result.json").read_text("utf-8"))["best"] == best.number
    assert all(f.holds for f in archir.load(whole / "best.arch").verify())


def test_members_can_be_made_again_from_the_journal(whole: Path) -> None:
    for member in searched(whole):
        assert member.origin["kind"] == "genome"
        if member.same_as is None and member.status == "scored":
            text = (whole / "members" / f"{member.number:04d}.arch").read_text("utf-8")
            assert remade(member.origin) == text


def test_networks_of_genomes_have_certificates_that_name_them(whole: Path) -> None:
    members = {m.number: m for m in searched(whole)}
    for file in sorted((whole / "front").glob("*.arch")):
        network = archir.load(file)
        assert all(f.holds for f in network.verify())
        (step,) = network.certificate.steps
        assert step.kind == "given"
        assert step.facts["origin"] == members[int(file.stem)].origin


def test_equal_seeds_give_equal_runs_and_half_a_journal_goes_on(place: Path, whole: Path) -> None:
    search(place, place / "again")
    assert files_of(place / "again") == files_of(whole)
    search(place, place / "other", seed=1)
    assert files_of(place / "other")["journal.jsonl"] != files_of(whole)["journal.jsonl"]
    for keep in (4, 12):
        half = place / f"half{keep}"
        shutil.copytree(whole, half)
        rows = (half / "journal.jsonl").read_text("utf-8").splitlines(keepends=True)
        (half / "journal.jsonl").write_text("".join(rows[:keep]), "utf-8")
        (half / "result.json").unlink()
        search(place, half, existing="resume")
        assert files_of(half)["journal.jsonl"] == files_of(whole)["journal.jsonl"]


def test_failures_and_limits_are_survived(place: Path) -> None:
    run = place / "failing"
    costs = [m.macs for m in searched(place / "whole")]
    limits = Limits(macs=int(np.median(costs)))
    search(place, run, evaluator=BySize(fails=True), limits=limits)
    statuses = {m.status for m in searched(run)}
    assert statuses == {"scored", "refused", "failed"}
    assert all(m.macs <= limits.macs for m in searched(run) if m.status == "scored")  # type: ignore[operator]


def test_a_proxy_is_negated(place: Path) -> None:
    search(place, place / "proxy", evaluator=BySize(proxy=True))
    first = lines(place / "proxy", "generation")[0]
    scores = [m.score for m in searched(place / "proxy")[:6]]
    assert first["reference"][0] == pytest.approx(-min(scores), rel=1e-12)


@pytest.mark.parametrize("name", ["nsga_macro", "nasbench201"])
def test_the_other_encodings_are_searched_too(place: Path, name: Any) -> None:
    config = replace(TINY, encoding=name, cells=1, generations=2, offspring=2, nodes=3)
    result = search(place, place / name, config)
    assert {m.origin["encoding"] for m in searched(place / name)} == {name}
    assert result.best.stage == "final"


def test_rules_mutate_the_users_network(place: Path) -> None:
    config = replace(TINY, encoding="rules")
    search(place, place / "rules", config)
    found = searched(place / "rules")
    start, *others = found
    assert start.origin == {"kind": "start"}
    assert {m.origin["kind"] for m in others} == {"rewrite"}
    numbers = {m.number for m in found}
    assert all(len(m.parents) == 1 and m.parents[0] in numbers for m in others)
    assert any(m.parents[0] != start.number for m in others), "children of children"
    scored = [m for m in others if m.status == "scored"]
    assert min(m.macs for m in scored) < start.macs < max(m.macs for m in scored)
    assert len({m.graph for m in found}) == len(found), "equal networks are not made twice"
    search(place, place / "rules again", config)
    assert files_of(place / "rules again") == files_of(place / "rules")


def test_the_users_moves_take_the_place_of_the_defaults(place: Path) -> None:
    config = replace(TINY, encoding="rules", generations=2)
    moves = [Move("widen", times={"width": (2,)})]
    search(place, place / "moves", config, moves=moves)
    uses = [u for m in searched(place / "moves") for u in m.origin.get("uses", [])]
    assert {use["rule"] for use in uses} == {"widen"}


def test_random_weights_score_by_default(place: Path) -> None:
    search(place, place / "rwe", replace(TINY, generations=1, population=3), evaluator=None)
    (stage,) = (row for row in lines(place / "rwe", "stage") if row["stage"] == "search")
    assert stage["evaluator"]["kind"] == "rwe"
    assert all("std" in m.scores for m in searched(place / "rwe"))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [9]), (3, [9, 6, 3]), (10, [*range(9, -1, -1)]), (99, [*range(9, -1, -1)])],
)
def test_candidates_are_spread_over_the_front(count: int, expected: list[int]) -> None:
    members = [Member(k, "search", (), {}, 0, "scored") for k in range(10)]
    assert [m.number for m in nsga2.spread(members, count)] == expected


# --- what is refused -----------------------------------------------------------------------------


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ArchirError) as caught:
        call()
    return caught.value.diagnostics[0].code


def test_wrong_settings_are_refused() -> None:
    for change, code in [
        ({"population": 1}, "A744"),
        ({"encoding": "nsga_nano"}, "A744"),
        ({"eta": "much"}, "A744"),
        ({"channels": 3}, "A743"),
    ]:
        assert code_of(lambda c=change: nsga2.make(replace(TINY, **c))) == code  # type: ignore[misc]
    assert code_of(lambda: nsga2.make(TINY, moves=[Move("widen")])) == "A746"
    for preset in nsga2.PRESETS.values():
        nsga2.make(preset)
        assert nsga2.RWE.needs_start(preset) == (preset.encoding == "rules")


def test_where_nothing_is_scored_the_reason_is_told(place: Path) -> None:
    tight = Limits(params=1)
    assert code_of(lambda: search(place, place / "tight", limits=tight)) == "A745"
    rules = replace(TINY, encoding="rules")
    assert code_of(lambda: search(place, place / "tight2", rules, limits=tight)) == "A745"


def test_images_that_cannot_be_halved_are_refused(place: Path) -> None:
    config = replace(TINY, layers=6, encoding="nsga_micro")
    x = np.zeros((60, 1, 6, 6), np.float32)
    (place / "odd").mkdir()
    np.savez(place / "odd" / "data.npz", x=x, y=np.arange(60) % 3)
    assert code_of(lambda: search(place / "odd", place / "odd" / "run", config)) == "A743"


def test_without_pymoo_it_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['pymoo'] = None\n"
        "from archir.search import nsga2\n"
        "from archir.diag import ArchirError\n"
        "assert 'torch' not in sys.modules\n"
        "try: nsga2._evolution_module()\n"
        "except ArchirError as e: print(e.diagnostics[0].code, e.status, e.diagnostics[0].hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "A740 3 pip install 'archir[search]'"


def test_a_broken_pymoo_is_no_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pymoo").mkdir()
    (tmp_path / "pymoo" / "__init__.py").write_text("raise ImportError('built for another NumPy')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "pymoo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "archir.search.evolution", raising=False)
    monkeypatch.delattr("archir.search.evolution", raising=False)
    with pytest.raises(ArchirError, match="built for another NumPy") as found:
        nsga2._evolution_module()
    assert found.value.diagnostics[0].code == "A740"


def test_the_space_is_that_of_the_settings() -> None:
    assert nsga2.space_of(nsga2.PRESETS["paper"]) == encoding("nsga_micro", channels=16, layers=8)
    assert len(nsga2.space_of(nsga2.PRESETS["readme_macro"]).lowest) == 21
