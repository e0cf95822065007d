"""``archir prove``: what is proved of rules, tested, or refuted."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import error
from archir.ops import installed_ops
from archir.ops.record import OpSet
from archir.proof.verdict import FILE, Kind, Verdict, document_of, shipped
from archir.rewrite.library import installed, read_rule_file
from archir.rewrite.pattern import changes_nothing
from archir.rewrite.rule import Rule

BUILTIN = "archir"
STAYS = "an attribute that the right side does not state stays what it is"

MOST_JOBS = 8


def prove(
    names: tuple[str, ...], *, cache: bool, write: bool, seconds: float, jobs: int | None
) -> Report:
    """Prove rules of the library, or those of .rule files.

    Without names, all of the library. Proved: for every size, from the axioms. Tested: equal on
    so many small networks, in exact arithmetic. Refuted: a small network shows it. The rules that
    archir ships carry their verdicts; --no-cache proves them again, which needs egglog.
    """
    start = time.perf_counter()
    ops = installed_ops()
    rules = _chosen(names, ops)
    known = {r.hash: shipped(r) for r in rules} if cache and not write else {}
    wanted = [rule for rule in rules if known.get(rule.hash) is None]
    new = iter(_proved(wanted, ops, seconds, jobs) if wanted else [])
    verdicts = [known.get(rule.hash) or next(new) for rule in rules]
    if write:
        _write(verdicts, ops)
    kinds = {kind: sum(v.kind == kind for v in verdicts) for kind in get_args(Kind)}
    summary = {**kinds, "seconds": round(time.perf_counter() - start, 2)}
    status = 1 if kinds["refuted"] else 0
    data = {"verdicts": [v.to_json() for v in verdicts], "summary": summary}
    idle = [rule.name for rule in rules if changes_nothing(rule)]
    return Report(data, _text(verdicts, summary, idle), status)


def _proved(rules: Sequence[Rule], ops: OpSet, seconds: float, jobs: int | None) -> list[Verdict]:
    from archir.proof.axioms import installed_axioms
    from archir.proof.many import prove_all
    from archir.proof.pool import cores
    from archir.proof.saturation import Budget

    with options.progress("proving") as progress:
        return prove_all(
            rules,
            ops,
            installed_axioms(),
            budget=Budget(seconds=seconds),
            jobs=jobs or min(cores(), MOST_JOBS),
            progress=progress,
        )


def _chosen(names: Sequence[str], ops: OpSet) -> list[Rule]:
    library = installed(ops)
    if not names:
        return list(library.values())
    rules: list[Rule] = []
    for name in names:
        if name.endswith(".rule") or Path(name).is_file():
            rules += read_rule_file(Path(name), ops)
        else:
            rules.append(library.find(name))
    return rules


def _write(verdicts: Sequence[Verdict], ops: OpSet) -> None:
    from importlib.resources import as_file, files

    from archir.files import writing

    folder = files("archir.rewrites")
    own = {r.hash for r in installed(ops).values() if r.package == BUILTIN}
    kept = [v for v in verdicts if v.hash in own]
    if {v.hash for v in kept} != own:
        raise error("A601", "--write takes no names: it proves the whole library")
    with as_file(folder.joinpath(FILE)) as target, writing(target) as temporary:
        temporary.write_text(document_of(kept), encoding="utf-8")


def _text(
    verdicts: Sequence[Verdict], summary: Mapping[str, float], idle: Sequence[str] = ()
) -> str:
    rows = []
    notes = [f"{name}: note: both sides say the same; {STAYS}" for name in idle]
    for verdict in verdicts:
        shown = False
        for held in verdict.modes:
            said = f"{held.kind} ({held.instances})" if held.kind == "tested" else held.kind
            what = _list(held.axioms) if held.axioms else textwrap.shorten(held.reason, 90)
            if held.counterexample is not None:
                what = textwrap.shorten(held.counterexample.difference(), 90)
                text = f"{verdict.rule}, {held.mode}: refuted by\n\n{held.counterexample.text()}"
                notes += [] if shown else [text]  # that of another mode is much the same
                shown = True
            rows.append((verdict.rule, held.mode, said, what, f"{held.seconds:.1f}"))
            notes += [f"{verdict.rule}: note: {m}" for m in held.misfits[:1]]
    headers = ("rule", "mode", "verdict", "axioms or reason", "seconds")
    counts = ", ".join(f"{summary[k]} {k}" for k in get_args(Kind) if summary[k]) or "no rules"
    last = f"{counts}; {summary['seconds']:.1f} s"
    table = options.table(headers, rows, right=(4,))
    return "\n\n".join([table, *dict.fromkeys(notes), last])


def _list(axioms: Sequence[str]) -> str:
    shown = ", ".join(axioms[:4])
    return shown if len(axioms) <= 4 else f"{shown} and {len(axioms) - 4} more"


command = make(
    "prove",
    click.argument("names", nargs=-1, metavar="[RULE | FILE.rule]..."),
    click.option("--cache/--no-cache", default=True, help="Use the verdicts that are shipped."),
    click.option("--write", is_flag=True, help="Renew the shipped verdicts (for maintainers)."),
    click.option(
        "--seconds", default=60.0, show_default=True, help="For each proof, until it is given up."
    ),
    click.option(
        "--jobs", type=click.IntRange(1), help="Processes at once; else one for each core."
    ),
    example="archir prove my.rule",
)(prove)
