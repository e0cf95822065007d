"""The file that says when a network grows: what it may say, and what is said of what it may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from archir.api import Network, load, rewrite
from archir.codes import CODES
from archir.diag import BAD_INPUT, CHECK_FAILED, ArchirError
from archir.train.timetable import Change, check_times, read_timetable, rehearse

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def digits() -> Network:
    return load(EXAMPLES / "digits.arch")


def read(tmp_path: Path, network: Network, text: str) -> tuple[Change, ...]:
    file = tmp_path / "schedule.toml"
    file.write_text(text)
    return read_timetable(file, network)


def failure(act: object) -> ArchirError:
    assert callable(act)
    with pytest.raises(ArchirError) as caught:
        act()
    return caught.value


WHOLE = """
[[grow]]
step = 500
rule = "widen"
at = "stem.conv"
set = { width = 24 }

[[grow]]
epoch = 40
rules = ["widen@tail.conv", "deepen", "deepen.linear@relu"]
at = "tail.relu"
set = { width = 48, deepen.kernel = 5 }
seed = 7
"""


def test_what_a_timetable_says(digits: Network, tmp_path: Path) -> None:
    first, second = read(tmp_path, digits, WHOLE)
    assert (first.step, first.epoch, first.seed) == (500, None, 0)
    (widen,) = first.applications
    assert (widen.rule, widen.at, widen.arguments) == ("widen", "stem.conv", {"width": 24})
    assert (second.step, second.epoch, second.seed) == (None, 40, 7)
    found = [(a.rule, a.at, a.arguments) for a in second.applications]
    assert found == [
        ("widen", "tail.conv", {"width": 48}),
        ("deepen", "tail.relu", {"kernel": 5}),
        ("deepen.linear", "relu", {}),
    ]
    assert (first.due(19), second.due(19)) == (500, 39 * 19)
    assert (first.when, second.when) == ("step 500", "epoch 40")
    check_times((first, second), 19, 40 * 19)


def test_the_record_tells_changes_apart(digits: Network, tmp_path: Path) -> None:
    first, second = read(tmp_path, digits, WHOLE)
    assert first.record(digits) == {
        "step": 500,
        "rules": [
            {
                "rule": "widen",
                "hash": digits.rule("widen").hash,
                "at": "stem.conv",
                "set": {"width": 24},
            }
        ],
        "seed": 0,
    }
    assert second.record(digits)["epoch"] == 40
    (other,) = read(tmp_path, digits, '[[grow]]\nstep = 500\nrule = "widen@stem.conv"\nseed = 1')
    assert other.record(digits) != first.record(digits)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[grow", "is no TOML"),
        ("a = " + "[" * 100_000, "nests too deeply"),
        ("", "lists no growth"),
        ("grow = 3", "lists no growth"),
        ("grow = []", "lists no growth"),
        ("grow = [3]", "growth 1 is 3"),
        ("[[grows]]", "unknown entry `grows`"),
        ('[[grow]]\nstepp = 1\nrule = "deepen"', "unknown entry `stepp`"),
        ('[[grow]]\nrule = "deepen"', "either `step` or `epoch`"),
        ('[[grow]]\nstep = 1\nepoch = 1\nrule = "deepen"', "either `step` or `epoch`"),
        ('[[grow]]\nstep = 1.5\nrule = "deepen"', "step is 1.5"),
        ('[[grow]]\nstep = true\nrule = "deepen"', "step is True"),
        ('[[grow]]\nstep = -1\nrule = "deepen"', "step is -1"),
        ('[[grow]]\nepoch = 0\nrule = "deepen"', "epoch is 0"),
        ('[[grow]]\nstep = 1\nseed = "a"\nrule = "deepen"', "seed is 'a'"),
        ("[[grow]]\nstep = 1", "either `rule` or `rules`"),
        ('[[grow]]\nstep = 1\nrule = "deepen"\nrules = []', "either `rule` or `rules`"),
        ("[[grow]]\nstep = 1\nrule = 5", "a string"),
        ("[[grow]]\nstep = 1\nrules = []", "a list of strings"),
        ('[[grow]]\nstep = 1\nrules = ["deepen", 2]', "a list of strings"),
        ('[[grow]]\nstep = 1\nrule = "deepen"\nat = 4', "at is 4"),
        ('[[grow]]\nstep = 1\nrule = "deepen"\nset = 4', "set is 4"),
        ('[[grow]]\nstep = 1\nrule = "deepen"\nset = {kernel = 2000-01-01}', "set.kernel is"),
        ('[[grow]]\nstep = 1\nrule = "deepen"\nset = {kernel = ["a"]}', "set.kernel is"),
        ('[[grow]]\nstep = 1\nrule = "deepen"\nset = {a.b.c = [[1]]}', "set.a.b.c is"),
    ],
)
def test_wrong_timetables(digits: Network, tmp_path: Path, text: str, message: str) -> None:
    found = failure(lambda: read(tmp_path, digits, text))
    assert found.diagnostics[0].code == "A680"
    assert found.status == BAD_INPUT
    assert message in found.diagnostics[0].message
    assert "schedule.toml" in found.diagnostics[0].message


def test_a_slip_gets_a_hint(digits: Network, tmp_path: Path) -> None:
    found = failure(lambda: read(tmp_path, digits, '[[grow]]\nstepp = 1\nrule = "deepen"'))
    assert found.diagnostics[0].hint == "did you mean `step`?"


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('[[grow]]\nstep = 1\nrule = "widn"', "A604", "growth 1: there is no rule `widn`"),
        ('[[grow]]\nstep = 1\nrule = "no.rule:a"', "A607", "growth 1: "),
    ],
)
def test_rules_that_are_not_there(
    digits: Network, tmp_path: Path, text: str, code: str, message: str
) -> None:
    found = failure(lambda: read(tmp_path, digits, text)).diagnostics[0]
    assert found.code == code
    assert message in found.message


def test_a_timetable_that_is_not_there(digits: Network, tmp_path: Path) -> None:
    found = failure(lambda: read_timetable(tmp_path / "none.toml", digits))
    assert found.diagnostics[0].code == "A601"


def changes(network: Network, tmp_path: Path, *times: str) -> tuple[Change, ...]:
    text = "".join(f'[[grow]]\n{time}\nrule = "deepen@tail.relu"\n' for time in times)
    return read(tmp_path, network, text)


def test_times_within_a_run(digits: Network, tmp_path: Path) -> None:
    found = changes(digits, tmp_path, "step = 0", "step = 19", "epoch = 2", "step = 37")
    check_times(found, 19, 38)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["step = 38"], "growth 1 comes at step 38, the run has 38 steps (2 epochs of 19)"),
        (["epoch = 3"], "growth 1 comes at epoch 3, the run has 38 steps"),
        (["step = 5", "step = 4"], "growth 2 comes at step 4, before growth 1 (step 5"),
        (["epoch = 2", "step = 18"], "growth 2 comes at step 18, before growth 1 (epoch 2; an ep"),
    ],
)
def test_times_that_cannot_be(
    digits: Network, tmp_path: Path, times: list[str], message: str
) -> None:
    found = failure(lambda: check_times(changes(digits, tmp_path, *times), 19, 38))
    assert found.diagnostics[0].code == "A681"
    assert found.status == BAD_INPUT
    assert message in found.diagnostics[0].message


def test_a_rehearsal_ends_where_the_network_would(digits: Network, tmp_path: Path) -> None:
    found = read(tmp_path, digits, WHOLE)
    costs = rehearse(digits.init(0), found)
    grown = digits
    for change, cost in zip(found, costs, strict=True):
        grown = rewrite(grown, change.applications, seed=change.seed).network
        assert cost == grown.cost()


def test_a_rehearsal_says_which_growth_fails(digits: Network, tmp_path: Path) -> None:
    text = '[[grow]]\nstep = 1\nrule = "deepen@tail.relu"\n'
    wrong = '[[grow]]\nstep = 2\nrule = "widen@stem.conv"\nset = { width = 8 }'
    found = failure(lambda: rehearse(digits, read(tmp_path, digits, text + wrong)))
    assert found.status == CHECK_FAILED
    assert found.diagnostics[0].message.startswith("growth 2 (step 2): ")
    nobodys = '[[grow]]\nepoch = 1\nrule = "deepen@tail.relu"\nset = { kernl = 3 }'
    found = failure(lambda: rehearse(digits, read(tmp_path, digits, nobodys)))
    assert "kernl" in found.diagnostics[0].message


def test_a_rehearsal_stops_at_rules_that_look_at_weights(digits: Network, tmp_path: Path) -> None:
    text = """
        [[grow]]
        step = 1
        rule = "deepen@tail.relu"
        [[grow]]
        step = 2
        rule = "merge.duplicates"
        at = "all"
        [[grow]]
        step = 3
        rule = "deepen@nowhere"
    """
    assert len(rehearse(digits.init(0), read(tmp_path, digits, text))) == 1


def test_the_timetable_of_the_docs_is_one(tmp_path: Path) -> None:
    page = (EXAMPLES.parent / "docs" / "growing.md").read_text()
    text = page.partition("    [[grow]]\n")[2].partition("\n\nGrowths stand")[0]
    network = load(EXAMPLES / "resnet20.arch")
    first, second = read(tmp_path, network, "[[grow]]\n" + text.replace("\n    ", "\n"))
    assert first.due(10**6) == 500
    assert second.applications[1].arguments == {"kernel": 5}
    assert len(rehearse(network, (first, second))) == 2
    assert set(re.findall(r"A\d{3}", page)) <= CODES.keys()
