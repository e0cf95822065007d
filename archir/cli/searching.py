"""How a search is told of: while it runs, and at its end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from archir.cli import options
from archir.search.parts import Member

if TYPE_CHECKING:
    from archir.search.engine import Progress
    from archir.search.run import Result
    from archir.search.settings import SearchConfig

WIDTH = 80


def clock(seconds: float) -> str:
    """A time as people read it: ``7 s``, ``3:07``, ``1:02:07``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def scored(member: Member) -> str:
    """A member's score, by its name: ``accuracy 0.9421``."""
    for name in ("accuracy", "fitted"):
        if name in member.scores:
            return f"{name} {member.scores[name]:.4f}"
    return f"score {member.score:.6g}"


def made(member: Member) -> str:
    """How a member came about, in a few words."""
    origin = member.origin
    of = f"of {', '.join(map(str, member.parents))}" if member.parents else ""
    if origin.get("kind") == "rewrite":
        rules = Counter(use["rule"] for use in origin["uses"])
        named = [f"{count} {rule}" if count > 1 else rule for rule, count in rules.items()]
        return f"{of}: {', '.join(named)}"
    if origin.get("kind") == "genome":
        what = f"{origin['encoding']} {''.join(map(str, origin['genome']))}"
        return f"{what} {of}".rstrip()
    if origin.get("kind") == "parent":
        return f"{of}, as it is"
    return f"{origin.get('kind', '')} {of}".strip()


def became(member: Member) -> str:
    """What became of a member, in a line."""
    if member.status != "scored":
        return f"{member.status}: {member.reason}"
    size = f"{member.params:,} parameters, {options.human(member.macs)} MACs"
    twin = "" if member.same_as is None else f" (as member {member.same_as})"
    return f"{scored(member)}{twin}, {size}"


def cut(text: str, width: int) -> str:
    """Text of at most so many characters."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


@contextmanager
def told(config: SearchConfig) -> Iterator[Callable[[Progress], None]]:
    """A live view on a terminal's stderr; elsewhere a line for each member."""
    if not sys.stderr.isatty():
        yield _line
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    class View:
        """What is shown: where the search stands, with a clock that goes on."""

        def __init__(self, now: Progress) -> None:
            self.now, self.since = now, time.monotonic()

        def __rich__(self) -> Group:
            now = replace(self.now, elapsed=self.now.elapsed + time.monotonic() - self.since)
            head = Table.grid(padding=(0, 1), expand=True)
            head.add_column(no_wrap=True)
            head.add_column(ratio=1)
            head.add_column(no_wrap=True, justify="right")
            bar = ProgressBar(total=max(1, now.expected), completed=now.done)
            head.add_row(Text(now.stage), bar, Text(f"{now.done}/{now.expected}"))
            lines = standing(now, self.now, config)
            return Group(head, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))

    # bound to the stream of now: what is printed within may be caught
    console = Console(file=sys.stderr, highlight=False)
    with Live(console=console, transient=True, refresh_per_second=4) as live:

        def update(now: Progress) -> None:
            if now.note:
                live.console.print(Text(now.note))
            live.update(View(now))

        yield update


def standing(now: Progress, last: Progress, config: SearchConfig) -> list[str]:
    """Where a search stands, in two lines: the best so far, and what is spent.

    Args:
        now: Where it stands, with the time of now.
        last: The same when a member was finished last: what is left was told by that.
        config: Its limits.
    """
    best = "best: none yet" if now.best is None else f"best: {became(now.best)}"
    spent = clock(now.elapsed)
    if config.max_time is not None:
        spent = f"{spent} of {clock(config.max_time)}"
    evaluations = ""
    if config.max_evaluations is not None:
        evaluations = f"   {now.done} of at most {config.max_evaluations} evaluations"
    left = remaining(last, config)
    if left is not None:
        left = max(0.0, left - (now.elapsed - last.elapsed))
    eta = "" if left is None else f"   about {clock(left)} left"
    return [best, f"front: {now.front}   {spent}{evaluations}{eta}"]


def remaining(now: Progress, config: SearchConfig) -> float | None:
    """Seconds that are likely left; None before anything is known."""
    if not now.done:
        return None
    expected = min(now.expected, config.max_evaluations or now.expected)
    left = max(0.0, now.elapsed / now.done * (expected - now.done))
    return left if config.max_time is None else min(left, max(0.0, config.max_time - now.elapsed))


def _line(now: Progress) -> None:
    if now.note:
        print(now.note, file=sys.stderr)
    if now.member is not None:
        text = f"{now.done}/{now.expected} {now.stage}: {became(now.member)}"
        print(f"{text}, {clock(now.elapsed)}", file=sys.stderr, flush=True)


def report(result: Result, cost: str, stopped: str | None) -> tuple[dict[str, Any], str]:
    """How a search ended, as JSON values and in words.

    Args:
        result: It.
        cost: What the front sets against the score.
        stopped: The limit that ended it early, if one did.
    """
    counts = {
        status: sum(m.status == status for m in result.members)
        for status in ("scored", "refused", "failed")
    }
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    lines = [f"{len(result.members)} members ({', '.join(parts)}) in {clock(result.seconds)}"]
    if stopped is not None:
        lines.append(f"stopped early: no {stopped} left")
    best, facts = result.best, result.facts
    name = _name_of(result.front)
    lines += [
        "",
        f"front of {name} and {_COSTS[cost]}:",
        _table(result.front, name, cost, best),
        "",
    ]
    lines.append(f"best: member {best.number}, {scored(best)} {_ON[_name(best)]}".rstrip())
    lost = _lost(result.members)
    if lost is not None:
        told = f"of the last stage, {lost.stage}, nothing was scored; the best is of an earlier one"
        lines += [told, f"  member {lost.number} {became(lost)}"]
    tests: Mapping[str, Any] = facts.get("test") or {}
    for name, found in tests.items():
        what = "" if name == "best" else f" of the ensemble of {len(facts['ensemble'])}"
        told = f"({found['correct']} of {found['count']})"
        lines.append(f"test accuracy{what}: {found['accuracy']:.4f} {told}")
    kinds = (".arch", ".safetensors", ".cert.json", ".onnx")
    there = [kind for kind in kinds if (result.folder / f"best{kind}").exists()]
    lines += ["", f"wrote {result.folder}/best{', '.join(there)}; front/, members/"]
    onnx: Mapping[str, Any] = facts.get("onnx") or {}
    if "error" in onnx:
        lines.append(f"no best.onnx: {onnx['error']}")
    lines += [
        f"archir report {result.folder} -o report.html",
        f"archir verify {result.folder}/best.arch",
    ]
    data = {
        "run": str(result.folder),
        **facts,
        "front": [_row(member) for member in result.front],
        "status_counts": counts,
        "stopped": stopped,
        "lost": None if lost is None else _loss(lost),
        "seconds": result.seconds,
    }
    return data, "\n".join(lines)


def _lost(members: Sequence[Member]) -> Member | None:
    """The last member, where nothing of its stage was scored: such as a last training that failed.

    The strategy then ends with what it had before.
    """
    last = [member for member in members if member.stage == members[-1].stage]
    return None if any(member.status == "scored" for member in last) else last[-1]


def _loss(member: Member) -> dict[str, Any]:
    told = {"stage": member.stage, "number": member.number}
    return {**told, "status": member.status, "reason": member.reason}


_COSTS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
_ON = {"accuracy": "on validation images", "fitted": "on images it was trained on", "score": ""}


def _name(member: Member) -> str:
    return next((n for n in ("accuracy", "fitted") if n in member.scores), "score")


def _row(member: Member) -> dict[str, Any]:
    """A member of the front as JSON values."""
    found = {"number": member.number, "scores": dict(member.scores), "params": member.params}
    found |= {"macs": member.macs, "parents": list(member.parents), "origin": dict(member.origin)}
    return found if member.latency is None else {**found, "latency": dict(member.latency)}


def _name_of(members: Sequence[Member]) -> str:
    """What the score of some members is called."""
    kinds = {_name(member) for member in members}
    return kinds.pop() if len(kinds) == 1 else "score"


def _table(members: Sequence[Member], name: str, cost: str, best: Member) -> str:
    """The front, in lines of at most 80 characters."""
    latency = cost == "latency"
    headers = ["member", name, "parameters", "MACs", *["ms"] * latency, "how made"]
    rows = []
    for member in members:
        value = member.scores.get(name, member.score)
        row = [
            f"{member.number}{'*' * (member.number == best.number)}",
            f"{value:.4f}" if name == "accuracy" else f"{value:.6g}",
            f"{member.params:,}",
            options.human(member.macs),
        ]
        if latency and member.latency is not None:
            row.append(f"{member.latency['median'] * 1e3:.3g}")
        rows.append(row)
    columns = zip(*[headers[:-1], *rows], strict=True)
    room = WIDTH - sum(max(map(len, column)) + 3 for column in columns)  # 3: between columns
    whole = [[*row, cut(made(m), room)] for row, m in zip(rows, members, strict=True)]
    return options.table(headers, whole, [*range(1, len(headers) - 1)])
