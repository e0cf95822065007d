"""Settings of a search: presets, a file over them, flags over both; what is wrong in one line."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archir.diag import BAD_INPUT, ArchirError
from archir.search import kinds
from archir.search.nash import NASH, RANDOM, SMALL
from archir.search.settings import (
    ENTRIES,
    SearchConfig,
    duration,
    make_settings,
    read_again,
    read_settings,
    to_toml,
)
from archir.search.training import Training
from archir.train.recipe import TrainConfig


def refusal(act: Callable[[], object], *codes: str) -> str:
    """What was refused, in one line with one of some codes."""
    with pytest.raises(ArchirError) as caught:
        act()
    assert caught.value.status == BAD_INPUT
    (found,) = caught.value.diagnostics
    assert found.code in (codes or ("A715",)), found
    assert "\n" not in found.message
    return str(found)


def read(tmp_path: Path, text: str, sets: dict[str, Any] | None = None, **changes: Any) -> Any:
    (tmp_path / "search.toml").write_text(text, "utf-8")
    return read_settings(tmp_path / "search.toml", changes, sets or {})


def test_nothing_said_is_the_small_preset() -> None:
    found = read_settings(None, {}, {})
    assert found.config == SearchConfig()
    assert (found.kind, found.values) == (NASH, SMALL)
    assert found.made_evaluator() is None
    assert found.strategy().name == "nash"


def test_flags_beat_the_file_and_the_file_beats_the_preset(tmp_path: Path) -> None:
    text = """
        preset = "paper"
        seed = 3
        max_time = "1h30m"
        max_latency = "5ms"
        workers = "auto"
        [nash]
        n_steps = 8
        kernels = [3]
        [[moves]]
        rule = "deepen"
        arguments = { kernel = [3, 5] }
    """
    found = read(tmp_path, text, {"n_nm": 1, "n_steps": 9}, seed=4)
    assert (found.config.seed, found.config.workers) == (4, "auto")
    assert (found.config.max_time, found.config.max_latency) == (5400.0, 0.005)
    values = found.values
    assert (values.n_steps, values.n_nm, values.kernels, values.epoch_neigh) == (9, 1, (3,), 17)
    (move,) = found.strategy().moves
    assert (move.rule, move.arguments) == ("deepen", {"kernel": (3, 5)})


def test_an_evaluator_has_a_table(tmp_path: Path) -> None:
    text = 'evaluator = "training"\n[training]\nepochs = 3\nlr = 1'
    found = read(tmp_path, text, {"training.batch_size": 7, "n_steps": 1})
    recipe = TrainConfig(epochs=3, lr=1.0, batch_size=7)
    assert found.made_evaluator() == Training(recipe)
    assert found.strategy().evaluator == Training(recipe)
    assert make_settings(json.loads(json.dumps(found.record()))).made_evaluator() == Training(
        recipe
    )


def test_the_evaluator_of_the_strategys_name_has_a_table_within(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    text = f'strategy = "{tmp_path}/own.py:KIND"\nevaluator = "{tmp_path}/own.py:own"\n'
    found = read(tmp_path, text + "[own]\nn = 5\n[own.evaluator]\nn = 6", {"own.evaluator.most": 3})
    assert (found.values.n, found.values.most) == (5, None)
    own = found.made_evaluator()
    assert (own.n, own.most) == (6, 3.0)
    again = make_settings(tomllib.loads(to_toml(found.record())))
    assert again.record() == found.record()
    said = refusal(read(tmp_path, text + "[own.evaluator]\nm = 6").strategy)
    assert "search.toml: [own.evaluator] has no entry `m`" in said


def test_the_record_of_settings_is_those_settings(tmp_path: Path) -> None:
    text = 'strategy = "random"\nmax_params = 9\n[[moves]]\nrule = "deepen"'
    found = read(tmp_path, text, {"pool_factors": (2,)})
    assert found.kind == RANDOM
    record = json.loads(json.dumps(found.record()))
    assert dataclasses.replace(found, where="") == make_settings(record)
    assert tomllib.loads(to_toml(record)) == record


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seed = -1", "seed is -1, it should be from 0"),
        ("seed = 9223372036854775808", "from 0"),
        ("seed = 1.0", "seed is 1.0, it should be a whole number"),
        ("seed = true", "it should be a whole number"),
        ("seeds = 1", "did you mean `seed`?"),
        ("foo = 1", "docs/search.md lists the entries"),
        ("n_steps = 1", "those of the strategy stand below [nash]"),
        ("data = 3", "it should be a string"),
        ("strategy = 3", "strategy is 3, it should be a string"),
        ("evaluator = ['rwe']", "it should be a string"),
        ("preset = 'papr'", "did you mean `paper`?"),
        ("preset = 'large'", "nash has: small, paper, paper8, cpu20"),
        ("cost = 'time'", "it should be macs, params or latency"),
        ("max_params = 0", "from 1"),
        ("max_params = 1e6", "it should be a whole number or `none`"),
        ("max_macs = 1979-05-27", "it should be a whole number"),
        ("max_latency = 0", "from 1e-06"),
        ("max_latency = 'soon'", "max_latency is 'soon', it should be a time"),
        ("max_time = nan", "max_time is nan"),
        ("max_time = ''", "it should be a time"),
        ("max_time = '-5m'", "it should be a time"),
        (f"max_time = '{'9' * 400}h'", "it should be"),
        ("max_evaluations = -3", "from 1"),
        ("device = 0", "it should be a string"),
        ("workers = 0", "from 1 to 1024"),
        ("workers = 'all'", "it should be a whole number or auto"),
        ("workers = 1.5", "it should be a whole number or auto"),
        ("threads = 'auto'", "it should be a whole number"),
        ("nash = 3", "nash is 3, it should be a table [nash]"),
        ("[nash]\nn_step = 3", "[nash] has no entry `n_step` (did you mean `n_steps`?)"),
        ("[nash]\nn_steps = '3'", "[nash] n_steps is '3', it should be a whole number"),
        ("[nash]\nlr_start = inf", "[nash] lr_start is inf, it should be a number"),
        ("[nash]\nkernels = 3", "it should be a list of whole numbers"),
        ("[nash]\nkernels = [3.5]", "it should be a list of whole numbers"),
        ("[nash]\nprecision = 'f8'", "it should be f32, bf16 or f16"),
        ("[nash]\nflip = 1", "it should be true or false"),
        ("[rwe]\nseeds = 3", "this search reads no table [rwe] (its strategy and evaluator read"),
        ("moves = 3", "moves should be tables [[moves]]"),
        ("moves = [3]", "moves should be tables [[moves]]"),
        ("[[moves]]\nrule = 1979-05-27", "an entry is no plain value"),
        ("[[moves]]\nrule = nan", "an entry is no plain value"),
        ("seed = ", "is no TOML"),
        ("seed = 1\nseed = 2", "is no TOML"),
        (f"seed = 1{'0' * 5000}", "is no TOML"),
        (f"seed = {'[' * 10000}", "is no TOML"),
    ],
    ids=lambda text: text[:30],
)
def test_wrong_entries(tmp_path: Path, line: str, said: str) -> None:
    found = refusal(lambda: read(tmp_path, line))
    assert said in found
    assert "search.toml" in found
    assert len(found) < 400


@pytest.mark.parametrize(
    ("changes", "sets", "said"),
    [
        ({"max_latency": 1e-9}, {}, "--max-latency, in seconds: max_latency is 1e-09, it should"),
        ({"seed": 1, "max_params": 0}, {}, "--max-params: max_params is 0, it should be from 1"),
        ({"preset": "papr"}, {}, "--preset: there is no preset `papr`"),
        ({"seed": 1}, {"n_step": 3}, "--set n_step: [nash] has no entry `n_step`"),
    ],
)
def test_a_flag_is_not_told_of_as_the_file(
    tmp_path: Path, changes: dict[str, Any], sets: dict[str, Any], said: str
) -> None:
    found = refusal(lambda: read(tmp_path, "seed = 2", sets, **changes))
    assert said in found
    assert "search.toml" not in found
    # what the file says stays the file's, whatever stands beside it
    assert "search.toml: threads" in refusal(lambda: read(tmp_path, "threads = 0", seed=1))


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("strategy = 'nahs'", "A716", "did you mean `nash`?"),
        ("strategy = ''", "A716", "there are: eas, eas_random, nash, nat, random, rwe"),
        ("strategy = 'none.py:K'", "A716", "none.py is no Python file"),
        ("evaluator = 'trainin'", "A716", "did you mean `training`?"),
        ("evaluator = 'none.py:K'", "A716", "none.py is no Python file"),
        ("evaluator = 'training'\n[training]\nepoch = 1", "A632", "did you mean `epochs`?"),
        ("evaluator = 'training'\n[training]\nepochs = 0", "A632", "from 1"),
        ("evaluator = 'training'\n[training]\nseed = 0", "A715", "the search has one for all"),
        ("[nash]\nn_steps = 0", "A721", "n_steps"),
        ("[nash]\nkernels = [4]", "A721", "kernels"),
        ("strategy = 'random'\n[random]\nn_neigh = 2", "A721", "n_neigh"),
        ("[[moves]]\nrule = 'depen'", "A604", "did you mean `deepen`?"),
        ("[[moves]]\nkernel = 3", "A720", "kernel"),
    ],
    ids=lambda text: text[:30],
)
def test_what_a_strategy_refuses(tmp_path: Path, line: str, code: str, said: str) -> None:
    assert said in refusal(lambda: read(tmp_path, line).strategy(), code)


def test_times() -> None:
    told = {"90": 90, "1.5": 1.5, "5ms": 0.005, "20m": 1200, "1h30m": 5400, "2 D": 172800}
    assert {text: duration(text) for text in told} == told
    assert [duration(text) for text in ("", "m", "5 x", "1e3", "-1", "5m3", "inf")] == [None] * 7


# ---- hostile files

FEW = hypothesis.settings(max_examples=60, deadline=None)
NAMES = st.sampled_from([*ENTRIES, "nash", "training", "moves", "n_steps", "kernels", "x", "é", ""])
LEAVES = (
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["nash", "training", "paper", "auto", "none", "5m"])
)
TABLES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
CODES = ("A715", "A716", "A721", "A604", "A607", "A632", "A720", "A601")


@FEW
@given(st.dictionaries(NAMES, TABLES, max_size=5))
def test_hostile_tables(found: dict[str, Any]) -> None:
    try:
        made = make_settings(found)
        made.strategy()
    except ArchirError as failure:
        assert failure.diagnostics[0].code in CODES  # noqa: PT017 - some of them are right
    else:
        assert dataclasses.replace(make_settings(made.record()), where="") == made


@FEW
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_hostile_files(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "hostile.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    try:
        read_settings(file, {}, {})
    except ArchirError as failure:
        assert failure.diagnostics[0].code in CODES  # noqa: PT017 - some of them are right


WORDS = st.text(st.characters(codec="utf-8"), max_size=5)
ROW = st.dictionaries(WORDS, TABLES, max_size=2)


@FEW
@given(st.dictionaries(WORDS, TABLES, max_size=3), st.lists(ROW, max_size=2))
def test_what_is_written_is_read_again(record: dict[str, Any], moves: list[Any]) -> None:
    whole = {**record, "moves": moves} if moves else record
    assert tomllib.loads(to_toml(whole)) == whole


# ---- strategies of one's own

OWN = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from archir.search.parts import Kind

@dataclass(frozen=True)
class own:
    n: int = 1
    words: tuple[str, ...] = ()
    most: float | None = None
    RANGES: ClassVar = {"n": (1, 9)}

    def __post_init__(self):
        if self.n == 7:
            raise ValueError("7 is not liked")

@dataclass(frozen=True)
class Unreadable:
    n: Nobody = 1

class Plain:
    pass

KIND = Kind("own", "", own, {"small": own(2)}, lambda config, moves, evaluator: config)
CLASH = Kind("seed", "", own, {"small": own()}, KIND.make)
NAMELESS = Kind("a b", "", own, {"small": own()}, KIND.make)
BARE = Kind("own", "", own, {}, KIND.make)
PLAIN = Kind("own", "", Plain, {"small": Plain()}, KIND.make)
OTHER = Kind("own", "", own, {"small": 3}, KIND.make)
UNREADABLE = Kind("own", "", Unreadable, {"small": Unreadable()}, KIND.make)
"""


def test_a_strategy_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    name = f"{tmp_path}/own.py:KIND"
    found = read_settings(None, {"strategy": name}, {"words": ("a",), "most": 3})
    assert (found.values.n, found.values.words, found.values.most) == (2, ("a",), 3.0)
    again = make_settings(found.record()).values  # of another class: the file was run again
    assert dataclasses.asdict(again) == dataclasses.asdict(found.values)
    none = read_settings(None, {"strategy": name}, {"most": "none"})
    assert none.values.most is None
    assert make_settings(none.record()).values.most is None
    for entries, said in (({"n": 10}, "from 1 to 9"), ({"n": 7}, "7 is not liked")):
        assert said in refusal(lambda e=entries: read_settings(None, {"strategy": name}, e))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CLASH", "the strategy's name `seed` is that of an entry"),
        ("NAMELESS", "no name that a table can have"),
        ("BARE", "has no presets"),
        ("PLAIN", "has no dataclass"),
        ("OTHER", "the preset `small`"),
        ("UNREADABLE", "name 'Nobody' is not defined"),
        ("own", "is a type, it should be an archir.search.parts.Kind"),
        ("nobody", "is not there"),
    ],
)
def test_what_is_no_strategy(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    strategy = f"{tmp_path}/own.py:{name}"
    assert said in refusal(lambda: read_settings(None, {"strategy": strategy}, {}), "A716")


def test_a_file_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("1 / 0")
    strategy = f"{tmp_path}/own.py:KIND"
    said = refusal(lambda: read_settings(None, {"strategy": strategy}, {}), "A716")
    assert "ZeroDivisionError" in said


def test_evaluators_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    found = read_settings(None, {"evaluator": f"{tmp_path}/own.py:KIND"}, {})
    assert "is no dataclass" in refusal(found.strategy, "A716")


def test_packages_that_bring_strategies() -> None:
    nash = EntryPoint("nash", "archir.search.nash:NASH", kinds.GROUP)
    other = EntryPoint("nash", "package:NASH", kinds.GROUP)
    absent = EntryPoint("more", "no_such_package:MORE", kinds.GROUP)
    assert kinds.find_kind("nash", [nash, nash, absent]) is NASH
    assert "two packages" in refusal(lambda: kinds.find_kind("nash", [nash, other]), "A716")
    assert "no_such_package" in refusal(lambda: kinds.find_kind("more", [absent]), "A716")
    gone = EntryPoint("gone", "archir.search.nash:GONE", kinds.GROUP)
    assert "GONE" in refusal(lambda: kinds.find_kind("gone", [gone]), "A716")


def test_every_installed_strategy_can_be_used() -> None:
    for name in kinds.strategies():
        kind = kinds.find_kind(name)
        assert kind.name == name
        assert kind.about.endswith(".")
        assert {"small", "paper"} <= kind.presets.keys()
        for preset in kind.presets:
            made = read_settings(None, {"strategy": name, "preset": preset}, {})
            assert made.strategy().expected() > 0
            assert json.loads(json.dumps(made.strategy().record()))


@pytest.mark.parametrize("name", kinds.EVALUATORS)
def test_every_evaluator_can_be_used(name: str) -> None:
    made = read_settings(None, {"evaluator": name}, {}).made_evaluator()
    assert made is not None
    assert json.loads(json.dumps(made.record()))


# ---- going on


def test_a_run_is_gone_on_with_as_it_was_begun(tmp_path: Path) -> None:
    held = read_settings(None, {"evaluator": "training", "max_time": 60}, {"training.epochs": 2})
    (tmp_path / "search.json").write_text(json.dumps({"settings": held.record(), "facts": {}}))
    assert read_again(tmp_path, None, {}, {}) == held
    same = {"seed": 0, "max_time": "1m", "evaluator": "training"}
    assert read_again(tmp_path, None, same, {"n_steps": 4, "training.epochs": 2}) == held
    other = read_again(tmp_path, None, {"workers": 3, "device": "cpu"}, {})
    assert (other.config.workers, other.config.device) == (3, "cpu")
    (tmp_path / "search.toml").write_text("seed = 5\n[nash]\nn_nm = 4")
    for file, changes, sets, said in (
        (None, {"seed": 1}, {}, "seed was 0, is 1"),
        (None, {"max_params": 9}, {}, "max_params was 'none', is 9"),
        (None, {"strategy": "random"}, {}, "strategy was 'nash', is 'random'"),
        (None, {"evaluator": "none"}, {}, "evaluator was 'training', is 'none'"),
        (None, {"preset": "paper"}, {"n_steps": 9}, "nash.n_steps was 4, is 9"),
        (None, {}, {"training.epochs": 3}, "training.epochs was 2, is 3"),
        (tmp_path / "search.toml", {}, {}, "seed was 0, is 5, nash.n_nm was 3, is 4"),
    ):
        act = lambda f=file, c=changes, s=sets: read_again(tmp_path, f, c, s)  # noqa: E731
        assert said in refusal(act, "A702").replace('"', "'")
    (tmp_path / "search.json").write_text(json.dumps({"settings": {"seed": -1}, "facts": {}}))
    assert "search.json: seed is -1" in refusal(lambda: read_again(tmp_path, None, {}, {}))
    (tmp_path / "search.json").unlink()
    assert "holds no search" in refusal(lambda: read_again(tmp_path, None, {}, {}), "A703")
