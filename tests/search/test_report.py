"""The report of a search: what it says, what it refuses, and that nothing in it is markup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from archir.search.parts import Member
from archir.search.report import page
from archir.search.report.figures import axis, count, family, panes
from archir.search.report.gather import gather

from .made import FACTS, write_genomes, write_run

EVIL = "</script><img src=x onerror=\"document.title='taken'\">&<b>'"


def html_of(folder: Path, title: str = "a run") -> str:
    return page(gather(folder), title=title, version="1")


def data_of(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def member(number: int, score: float | None = 0.5, **facts: Any) -> Member:
    given: dict[str, Any] = {
        "stage": "search",
        "parents": (),
        "origin": {"kind": "start"},
        "seed": 0,
        "status": "failed" if score is None else "scored",
        "params": 100 + number,
        "macs": 1000 + number,
        "scores": {} if score is None else {"score": score, "accuracy": score},
    }
    return Member(number, **{**given, **facts})


class Tags(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(html)
    return parser.found


@pytest.fixture(scope="module")
def genomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_genomes(tmp_path_factory.mktemp("made") / "genomes", 40, each=10)


def test_one_file_that_loads_nothing(genomes: Path) -> None:
    html = html_of(genomes)
    assert len(html.encode()) < 2_000_000
    for tag, attributes in tags(html):
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form"), tag
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
    assert re.findall(r"(?:https?:)?//[\w.]+\.\w+", html) == ["http://www.w3.org"]  # SVG's name
    assert "@import" not in html
    assert "url(" not in html
    (policy,) = [a["content"] for t, a in tags(html) if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")


def test_all_members_are_there(genomes: Path) -> None:
    run = gather(genomes)
    html = html_of(genomes)
    members = run.journal.members
    data = data_of(html)
    assert [m["n"] for m in data["members"]] == [m.number for m in members]
    drawn = re.findall(r'<circle class="p[^>]*data-m="(\d+)"', html)
    drawn += re.findall(r'<svg class="p spot[^>]*data-m="(\d+)"', html)
    scored = {m.number for m in members if m.status == "scored"}
    assert {int(n) for n in drawn} >= scored
    assert len(re.findall(r'<tr data-m="\d+"', html)) == len(members)
    assert data["best"] == max(scored, key=lambda n: members[n].score)
    assert {m.status for m in members} == {"scored", "refused", "failed"}


def cells_of(html: str, table: str) -> list[list[str]]:
    """The texts of the cells of a table, row by row, its header first."""
    found = re.search(rf"<table {table}>.*?</table>", html, re.DOTALL)
    assert found is not None
    rows = re.findall(r"<tr.*?</tr>", found[0], re.DOTALL)
    cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in rows]
    plain = [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]
    return [[text.replace("\N{NO-BREAK SPACE}", " ") for text in row] for row in plain]


TRAINING = {"kind": "training", "join": False}
JOINED = {"kind": "training", "join": True}
FITTED = {"score": 0.2619, "fitted": 0.2619}


@pytest.mark.parametrize(
    ("scores", "head", "start", "best"),
    [
        (({"score": 607.0}, {"score": 887.0}), "score", "607", "887"),
        (
            ({"score": 0.3, "accuracy": 0.3}, {"score": 0.5, "accuracy": 0.5}),
            "accuracy",
            "30.00 %",
            "50.00 %",
        ),
    ],
)
def test_a_last_training_shares_no_scores_with_another_evaluator(
    tmp_path: Path, scores: tuple[dict[str, float], ...], head: str, start: str, best: str
) -> None:
    members = [
        member(0, stage="start", scores=scores[0], graph="a"),
        member(1, stage="neighbours", parents=(0,), scores=scores[1], graph="b"),
        member(2, stage="final", parents=(1,), scores=FITTED, graph="b"),
    ]
    chosen = {"kind": "chosen"}
    stages = {"start": chosen, "neighbours": chosen, "final": JOINED}
    html = html_of(write_run(tmp_path / "run", members, {}, stages=stages, end={"best": 2}))
    headline = cells_of(html, 'class="headline"')
    assert [row[:2] for row in headline[1:]] == [["start #0", start], ["best #2", best]]
    what = "score" if head == "score" else "validation accuracy"
    assert f"the {what} by chosen is that of #1, the same network without that training." in html
    names, *rows = cells_of(html, 'id="members"')
    assert [row[names.index(head)] for row in rows] == [start, best, "fitted 26.19 %"]
    # it is not sorted among the others
    assert re.search(r'data-v="">\s*fitted', html)


def test_nothing_compares_where_only_the_last_training_was_scored(tmp_path: Path) -> None:
    stages = {"start": TRAINING, "final": JOINED}
    members = [member(0, stage="start"), member(1, stage="final", scores=FITTED, graph="c")]
    html = html_of(write_run(tmp_path / "run", members, {}, stages=stages, end={"best": 1}))
    assert cells_of(html, 'class="headline"')[2][:2] == ["best #1", "\N{EN DASH}"]
    assert "no score of it compares with others" in html


def test_two_evaluators_have_two_columns(tmp_path: Path) -> None:
    stages = {"search": {"kind": "params"}, "candidates": TRAINING, "final": JOINED}
    members = [
        member(0, scores={"score": 1234.0}, graph="a"),
        member(1, stage="candidates", parents=(0,), graph="a"),
        member(2, stage="final", parents=(0,), scores=FITTED, graph="a"),
    ]
    html = html_of(write_run(tmp_path / "run", members, {}, stages=stages, end={"best": 2}))
    names, *rows = cells_of(html, 'id="members"')
    place = names.index("score by params")
    assert names[place + 1] == "accuracy by training"
    shown = [row[place : place + 2] for row in rows]
    assert shown == [["1234", ""], ["", "50.00 %"], ["", "fitted 26.19 %"]]


def test_programs_and_their_differences(genomes: Path) -> None:
    """The page's numbers of lines give the files back, and its changes lead from one to another."""
    data = data_of(html_of(genomes))

    def lines(number: int) -> list[str]:
        return [data["lines"][n] for n in data["texts"][number]]

    compared = 0
    for told in data["members"]:
        own = told.get("same", told["n"])
        file = genomes / "members" / f"{own:04d}.arch"
        assert ("text" in told) == file.exists()
        if "text" in told:
            assert lines(told["text"]) == file.read_text("utf-8").splitlines()
        for diff in told.get("diffs", ()):
            before, after = lines(diff["text"]), lines(told["text"])
            for a1, a2, b1, b2 in reversed(diff["changes"]):
                before[a1:a2] = after[b1:b2]
            assert before == after
            compared += 1
    assert compared > 30


def test_nothing_that_a_run_says_is_markup(tmp_path: Path) -> None:
    name = f"arch net {{ # {EVIL}\u2028\n}}\n"
    hostile = member(
        1, None, stage=EVIL, reason=EVIL, parents=(0,),
        origin={"kind": "rewrite", "uses": [{"rule": EVIL, "at": EVIL, "arguments": {EVIL: EVIL}}]},
    )  # fmt: skip
    facts = {**FACTS, "strategy": EVIL, "data": {"name": EVIL, "sha256": EVIL}, "cost": EVIL}
    folder = tmp_path / 'a <b>run\'s & "folder"'
    stages = {"search": {"kind": EVIL, EVIL: EVIL}, EVIL: {"kind": "x"}}
    write_run(folder, [member(0), hostile], {0: name, 1: EVIL}, facts=facts, stages=stages)
    html = html_of(folder, title=EVIL)
    found = tags(html)
    assert [t for t, _ in found].count("script") == 2
    assert not {"img", "b"} & {t for t, _ in found}
    assert not [a for _, a in found if any(key.startswith("on") for key in a)]
    told = data_of(html)["members"]
    assert told[1]["reason"] == EVIL
    assert f"# {EVIL}\u2028".split("\u2028")[0] in "\n".join(data_of(html)["lines"])


@pytest.mark.parametrize("whole", [1, 2, 3])
def test_a_run_under_way(tmp_path: Path, whole: int) -> None:
    """However many lines are there, and a torn one after them."""
    write_run(tmp_path / "run", [member(0, 0.25)], {0: "arch net {}\n"})
    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_text("utf-8").splitlines(keepends=True)
    journal.write_text("".join(lines[:whole]) + '{"event": "mem', "utf-8")
    html = html_of(tmp_path / "run")
    assert "Unfinished." in html
    assert ("No network has been scored." in html) == (whole < 3)
    if whole == 3:
        assert "best so far" in html
        assert "25.00\u00a0%" in html


def test_refused_input(archir: Callable[..., Any], tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    answer = archir("report", tmp_path, "-o", target)
    assert (answer.status, "A751" in answer.err) == (2, True)
    write_run(tmp_path / "run", [member(0), member(1)], {})
    journal = tmp_path / "run" / "journal.jsonl"
    good = journal.read_text("utf-8").splitlines(keepends=True)
    for line, damage in ((3, "{}\n"), (4, "not JSON\n"), (3, good[2].replace('"params"', '"x"'))):
        journal.write_text("".join([*good[: line - 1], damage, *good[line:]]), "utf-8")
        answer = archir("report", tmp_path / "run", "-o", target)
        assert (answer.status, "A750" in answer.err, f"line {line} " in answer.err) == (
            2,
            True,
            True,
        )
    journal.write_text("".join(good), "utf-8")
    assert not target.exists()
    assert archir("report", tmp_path / "run", "-o", target).status == 0
    again = archir("report", tmp_path / "run", "-o", target)
    assert (again.status, "A603" in again.err) == (2, True)
    forced = archir("report", tmp_path / "run", "-o", target, "--force", "--json").document
    assert forced["members"] == 2
    assert forced["finished"] is False
    assert forced["bytes"] == len(target.read_bytes())


def test_without_the_packages(
    archir: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith("archir.search.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    answer = archir("report", tmp_path, "-o", tmp_path / "r.html")
    assert (answer.status, "A752" in answer.err) == (3, True)


def test_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [member(0)], {0: "arch net {}\n"})
    words = ["report", str(tmp_path / "run"), "-o", str(tmp_path / "r.html")]
    script = f"import sys\nfrom archir.cli.main import run\nassert run({words!r}) == 0\n"
    script += "assert not {'torch', 'onnx', 'pymoo'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


# --- figures --------------------------------------------------------------------------------------


def test_axes() -> None:
    flat = axis([0.5, 0.9], str, may_be_log=True)
    assert not flat.log
    assert (flat.at(0.4), flat.at(0.7), flat.at(2)) == (0, 50, 100)
    steep = axis([1e3, 1e5], count, may_be_log=True)
    assert steep.log
    assert steep.at(1e4) == 50
    assert [t.label.replace("\u00a0", " ") for t in steep.ticks] == ["1 k", "10 k", "100 k"]
    assert axis([7, 7], count, may_be_log=True).at(7) == 50
    assert axis([0, 0], count, may_be_log=True).at(0) == 50
    for low, high in ((1e3, 1.2e3), (3e5, 4e6), (1e-4, 2e-3), (2e6, 1e9)):
        ticks = axis([low, high], count, may_be_log=True).ticks
        assert 2 <= len(ticks) <= 7, (low, high)


def test_a_front_goes_up_in_stairs() -> None:
    found = [member(0, 0.5, macs=1000), member(1, 0.7, macs=2000), member(2, 0.6, macs=3000)]
    (pane,) = panes(found, [("search",)])
    assert pane.fronted["macs"] == (0, 1)
    (x1, y1, x2, y2), up, last = pane.fronts["macs"]
    assert y1 == y2 == 100 - pane.points[0].y  # type: ignore[operator]
    assert (x1, x2) == (pane.points[0].x["macs"], pane.points[1].x["macs"])
    assert (up[0], up[2]) == (x2, x2)
    assert last[2] == 100
    assert len(pane.record) == 3
    errors = [t.value for t in pane.errors]
    assert errors == sorted(errors)[::-1] or errors == sorted(errors)


def test_few_that_learned_nothing_do_not_press_the_others_together() -> None:
    scores = [0.1, *(0.9 + n / 1000 for n in range(50))]
    (pane,) = panes([member(n, s) for n, s in enumerate(scores)], [("search",)])
    assert [p.number for p in pane.points if p.below] == [0]
    half = [0.1] * 25 + [0.9 + n / 1000 for n in range(25)]
    (pane,) = panes([member(n, s) for n, s in enumerate(half)], [("search",)])
    assert not any(p.below for p in pane.points)


def test_children_stand_behind_their_parents() -> None:
    found = [member(0), *(member(n, 0.1 * n, parents=((n - 1) // 2,)) for n in range(1, 9))]
    tree = family(found, {})
    place = {n.number: n for n in tree.nodes}
    assert len(tree.edges) == 8
    for parent, child, _ in tree.edges:
        assert place[parent].x < place[child].x
    assert place[2].y < place[1].y  # the better one is higher
    assert max(n.x for n in tree.nodes) < tree.width
    assert max(n.y for n in tree.nodes) < tree.height
    later = family(found, dict.fromkeys(range(3, 7), 5))
    assert [name for _, name in later.columns] == ["0", "1", "5", "6"]


@pytest.mark.slow
def test_two_thousand_members(tmp_path: Path) -> None:
    html = html_of(write_genomes(tmp_path / "run", 2000))
    assert len(html.encode()) < 10_000_000
