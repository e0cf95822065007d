"""The page of a report: what was gathered, put into the template."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from archir.search.parts import Member, cost_of
from archir.search.report.commands import resuming
from archir.search.report.figures import COSTS, Pane, count, family, panes
from archir.search.report.gather import Gathered
from archir.search.report.words import made_by

MANY = 300
"""From so many networks on marks are smaller."""
DASH = "\N{EN DASH}"
HASH = 12
"""Digits of a hash that are shown."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and what it is sorted by where that is a number."""

    text: str
    value: float | None = None
    short: str = ""
    """What stands for a long number where there is little room."""


@dataclass(frozen=True)
class Row:
    """A row of the table of all networks."""

    number: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Finding:
    """A row of what was found."""

    kind: str
    symbol: str
    name: str
    number: int | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Fact:
    """An entry of a list of facts; ``whole`` is what a shortened text stands for."""

    text: str
    whole: str = ""


def page(run: Gathered, *, title: str, version: str) -> str:
    """The report as the text of an HTML file.

    Args:
        run: What :func:`archir.search.report.gather.gather` read.
        title: What stands on top.
        version: Of archir.
    """
    members = run.journal.members
    found = panes(members, run.groups)
    cost = str(run.journal.facts.get("cost", "macs"))
    fronted = list(found[0].fronted.get(cost, ())) if found else []
    stars = [_star(pane, run) for pane in found]
    judging = {stage for stages in run.groups for stage in stages}
    script = text_of("report.js")
    environment = Environment(
        loader=PackageLoader("archir.search.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "sort_keys": False}
    columns, rows = _table(run)
    return environment.get_template("report.html").render(
        title=title,
        version=version,
        folder=str(run.folder),
        script=Markup(script),
        script_hash=Markup(sha256_of(script)),
        style=Markup(text_of("report.css")),
        lead=_lead(run),
        unfinished=run.unfinished,
        resume=resuming(run.folder),
        headings=[_measure(members), "test", "parameters", "MACs"],
        headline=list(_findings(run)),
        footnote=_footnote(run),
        facts=list(_facts(run)),
        settings=list(_flat({k: v for k, v in run.journal.facts.items() if k != "event"})),
        panes=found,
        labels={name: label for name, (label, _) in COSTS.items()},
        cost=cost,
        notes=[_note(pane, run, star) for pane, star in zip(found, stars, strict=True)],
        many=len(members) > MANY,
        stars=stars,
        kinds={name: str(record.get("kind")) for name, record in run.journal.stages.items()},
        final=None if run.best is None else run.best.number,
        start=None if run.start is None else run.start.number,
        special={run.start.number, *stars} if run.start else set(stars),
        front=set(fronted),
        members=members,
        scores=[_score(m, digits=1) if m.stage in judging else m.stage for m in members],
        family=family(members, run.generations),
        generations=run.generations,
        columns=columns,
        rows=rows,
        data={
            **run.data,
            "best": None if run.best is None else run.best.number,
            "start": None if run.start is None else run.start.number,
            "ensemble": list(run.ensemble),
            "front": fronted,
            "ended": run.journal.end is not None,
            "test": _tests(run),
        },
    )


def text_of(name: str) -> str:
    """A file of the template."""
    return files("archir.search.report").joinpath(name).read_text("utf-8")


def sha256_of(script: str) -> str:
    """A script as a policy of contents names it: nothing else runs on the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


# --- what stands on top ---------------------------------------------------------------------------


def _lead(run: Gathered) -> str:
    facts, members = run.journal.facts, run.journal.members
    number = len(members)
    named = (facts.get("data") or {}).get("name", "")
    words = f"The search {facts.get('strategy', '')} on {named}, seed {facts.get('seed', 0)}"
    done = "proposed" if run.unfinished else "proposed and judged"
    return f"{words}: {number:,} network{'s' * (number != 1)} {done}."


def _findings(run: Gathered) -> Iterator[Finding]:
    """Start, best and ensemble, as far as there are such."""
    if run.start is not None and run.start is not run.best:
        alike = any(run.chosen and {run.start.stage, run.chosen.stage} <= {*g} for g in run.groups)
        yield _finding(run.start, run.start if alike else None, "start", "square", "start", "")
    if run.best is not None:
        test = _percent(run.test.get("best"))
        name = "best so far" if run.unfinished else "best"
        yield _finding(run.best, run.chosen, "best", "star", name, test)
    if run.ensemble:
        test = _percent(run.test.get("ensemble"))
        members = [run.journal.members[n] for n in run.ensemble]
        sums = [_size(sum(getattr(m, cost) for m in members)) for cost in ("params", "macs")]
        cells = (Cell(DASH), Cell(test), *sums)
        yield Finding("ensemble", "", f"ensemble of {len(members)}", None, cells)


def _finding(
    member: Member, judged: Member | None, kind: str, symbol: str, name: str, test: str
) -> Finding:
    """A row; ``judged`` is whose score stands there, where one can be compared."""
    found = Cell(DASH if judged is None else _score(judged)), Cell(test or DASH)
    cells = (*found, _size(member.params), _size(member.macs))
    return Finding(kind, symbol, name, member.number, cells)


def _size(number: int) -> Cell:
    return Cell(f"{number:,}", short=count(number))


def _footnote(run: Gathered) -> str:
    """Whose validation accuracy stands beside the best network, where it is not its own."""
    if run.best is None or run.best is run.chosen:
        return ""
    told = f"#{run.best.number} was trained on the validation images too"
    if run.chosen is None:
        return f"{told}; no score of it compares with others."
    kind, last = (run.journal.stages[m.stage].get("kind") for m in (run.chosen, run.best))
    by = "" if kind == last else f" by {kind}"
    what = "score" if run.chosen.accuracy is None else "validation accuracy"
    number = run.chosen.number
    return f"{told}; the {what}{by} is that of #{number}, the same network without that training."


def _percent(result: Mapping[str, Any] | None) -> str:
    return DASH if not result else _share(float(result["accuracy"]))


def _share(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _measure(members: Sequence[Member]) -> str:
    """What members are judged by."""
    return "validation" if any(m.accuracy is not None for m in members) else "score"


def _score(member: Member, digits: int = 2) -> str:
    """What a member is judged by, as people read it; its status where it has no score."""
    if member.status != "scored":
        return member.status
    if "fitted" in member.scores:  # accuracy on images that it was trained on
        return f"fitted {_share(member.scores['fitted'], digits)}"
    return f"{member.score:.5g}" if member.accuracy is None else _share(member.accuracy, digits)


def _tests(run: Gathered) -> dict[int, float]:
    """Accuracies on the test set, by member."""
    found = run.test.get("best")
    return {run.best.number: float(found["accuracy"])} if found and run.best else {}


def _facts(run: Gathered) -> Iterator[tuple[str, Fact]]:
    facts, members = run.journal.facts, run.journal.members
    yield "strategy", Fact(str(facts.get("strategy", "")))
    start = facts.get("start")
    if start:
        yield "start", _hashed(str(start.get("name", "")), str(start.get("graph", "")))
    data = facts.get("data") or {}
    images = f", {data['images']:,} training images" if "images" in data else ""
    yield "data", _hashed(f"{data.get('name', '')}{images}", str(data.get("sha256", "")))
    yield "seed", Fact(str(facts.get("seed", "")))
    limits = {k: v for k, v in (facts.get("limits") or {}).items() if v is not None}
    said = ", ".join(f"{name} {value:,}" for name, value in limits.items())
    yield "limits", Fact(said or "none")
    count = {s: sum(m.status == s for m in members) for s in ("scored", "refused", "failed")}
    again = sum(m.same_as is not None for m in members)
    judged = ", ".join(f"{number:,} {status}" for status, number in count.items() if number)
    yield "networks", Fact(judged + (f"; {again:,} equal to another" if again else ""))
    for name, record in run.journal.stages.items():
        number = sum(m.stage == name for m in members)
        yield f"stage {name}", Fact(f"{number:,}, by {_evaluator(record)}")
    stop = next((e for e in run.journal.events if e["event"] == "stop"), None)
    if stop is not None:
        yield "stopped by", Fact(f"the limit of {stop.get('reason', '')}")
    if run.seconds:
        yield "time", Fact(_duration(run.seconds))


def _hashed(text: str, digest: str) -> Fact:
    return Fact(f"{text} ({digest[:HASH]})" if digest else text, digest)


def _evaluator(record: Mapping[str, Any]) -> str:
    recipe = record.get("recipe") or {}
    epochs = f", {recipe['epochs']} epochs" if "epochs" in recipe else ""
    joined = ", on validation images too" if record.get("join") else ""
    return f"{record.get('kind', 'its evaluator')}{epochs}{joined}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as names with dots; lists stay together."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, "none" if value is None or value == {} else str(value)


def _star(pane: Pane, run: Gathered) -> int | None:
    """The best network in a plot: itself, or what it was trained from."""
    if run.best is None:
        return None
    shown = {point.number for point in pane.points}
    same = [m for m in (run.best, run.chosen) if m is not None]
    same += [m for m in run.journal.members[::-1] if m.number in run.best.parents]
    return next((m.number for m in same if m.number in shown), None)


def _note(pane: Pane, run: Gathered, star: int | None) -> str:
    """What is not drawn where it belongs."""
    below = sum(point.below for point in pane.points)
    shown = {point.number for point in pane.points}
    lost = [m for m in run.journal.members if m.status != "scored"]
    drawn = sum(m.number in shown for m in lost)
    said = []
    if below:
        said.append(f"Arrows on the lower edge: {below:,} with lower scores.")
    if drawn:
        said.append(f"Crosses there: {drawn:,} refused or failed, at their cost.")
    if len(lost) > drawn:
        said.append(f"Not drawn, for want of a cost: {len(lost) - drawn:,} that could not be made.")
    if run.best is not None and star not in (None, run.best.number):
        said.append(f"The star is #{star}, which #{run.best.number} was trained from.")
    return " ".join(said)


# --- the table ------------------------------------------------------------------------------------


def _columns(run: Gathered) -> dict[str, tuple[str, ...]]:
    """The columns of scores, and the stages whose scores each holds.

    What compares with nothing stands in that of its evaluator, or the last, and is marked.
    """
    stages, members = run.journal.stages, run.journal.members
    scored = {m.stage for m in members if m.status == "scored"}
    groups = [group for group in run.groups if scored & {*group}]
    found: dict[str, tuple[str, ...]] = {}
    for group in groups:
        accurate = any(m.accuracy is not None for m in members if m.stage in group)
        by = f" by {stages[group[0]].get('kind')}" if len(groups) > 1 else ""
        found[("accuracy" if accurate else "score") + by] = group
    held = {stage for group in groups for stage in group}
    for stage in scored - held:
        kind = stages[stage].get("kind")
        alike = [n for n, group in found.items() if stages[group[0]].get("kind") == kind]
        name = (alike or [*found] or ["score"])[-1]
        found[name] = (*found.get(name, ()), stage)
    return found or {"score": ()}


def _judgement(member: Member, stages: Sequence[str], alone: Container[str]) -> Cell:
    """A cell of a column of scores; what compares with nothing is not sorted among others."""
    if member.status != "scored" or member.stage not in stages:
        return Cell("")
    if member.stage not in alone:
        return Cell(_score(member), member.score)
    return Cell(_score(member) if "fitted" in member.scores else DASH)


def _table(run: Gathered) -> tuple[list[dict[str, Any]], list[Row]]:
    """All networks: the columns, and a row each; scores that do not compare share no column."""
    members = run.journal.members
    timed = any(m.latency is not None for m in members)
    judging = _columns(run)
    alone = {*run.journal.stages} - {stage for stages in run.groups for stage in stages}
    names = ["#", "stage", "made by", "from", "status", *judging]
    names += ["parameters", "MACs", *(["latency"] if timed else [])]
    number = {"#", *judging, "parameters", "MACs", "latency"}
    rows = []
    for member in members:
        cells = [
            Cell(str(member.number), member.number),
            Cell(member.stage),
            Cell(made_by(member)),
            Cell(", ".join(map(str, member.parents))),
            Cell(member.status if member.same_as is None else f"as #{member.same_as}"),
            *(_judgement(member, stages, alone) for stages in judging.values()),
            *(
                Cell(f"{cost:,}", cost) if cost else Cell("")
                for cost in (member.params, member.macs)
            ),
        ]
        if timed:
            known = member.latency is not None
            latency = cost_of(member, "latency")
            cells.append(Cell(COSTS["latency"][1](latency), latency) if known else Cell(""))
        rows.append(Row(member.number, tuple(cells)))
    return [{"name": name, "number": name in number} for name in names], rows
