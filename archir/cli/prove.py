"""``archir prove``: what is proved of rules, tested, or refuted."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import error
from archir.ops import installed_ops
from archir.ops.record import OpSet
from archir.proof.saturation import Prover
from archir.proof.verdict import FILE, Verdict, document_of, shipped
from archir.rewrite.library import installed, read_rule_file
from archir.rewrite.rule import Rule

BUILTIN = "archir"


def prove(names: tuple[str, ...], *, cache: bool, write: bool, seconds: float) -> Report:
    """Prove rules of the library, or those of .rule files.

    Without names, all of the library. Proved: for every size, from the axioms. Tested: equal on
    so many small networks, in exact arithmetic. Refuted: a small network shows it. The rules that
    archir ships carry their verdicts; --no-cache proves them again, which needs egglog.
    """
    ops = installed_ops()
    with Prover() as prover:
        verdicts = [
            _verdict(rule, ops, cache=cache and not write, seconds=seconds, prover=prover)
            for rule in _chosen(names, ops)
        ]
    if write:
        _write(verdicts, ops)
    status = 1 if any(v.kind == "refuted" for v in verdicts) else 0
    return Report({"verdicts": [v.to_json() for v in verdicts]}, _text(verdicts), status)


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


def _verdict(rule: Rule, ops: OpSet, *, cache: bool, seconds: float, prover: Prover) -> Verdict:
    found = shipped(rule) if cache else None
    if found is not None:
        return found
    from archir.proof.axioms import installed_axioms
    from archir.proof.prove import prove as proved
    from archir.proof.saturation import Budget

    with options.spinner(f"proving {rule.name}"):
        return proved(rule, ops, installed_axioms(), budget=Budget(seconds=seconds), prover=prover)


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


def _text(verdicts: Sequence[Verdict]) -> str:
    rows = []
    notes: list[str] = []
    for verdict in verdicts:
        for held in verdict.modes:
            said = f"{held.kind} ({held.instances})" if held.kind == "tested" else held.kind
            what = _list(held.axioms) if held.axioms else textwrap.shorten(held.reason, 90)
            rows.append((verdict.rule, held.mode, said, what, f"{held.seconds:.1f}"))
            if held.counterexample is not None:
                notes.append(
                    f"{verdict.rule}, {held.mode}: refuted by\n\n{held.counterexample.text()}"
                )
            notes += [f"{verdict.rule}: note: {m}" for m in held.misfits[:1]]
    headers = ("rule", "mode", "verdict", "axioms or reason", "seconds")
    return "\n\n".join([options.table(headers, rows, right=(4,)), *dict.fromkeys(notes)])


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
    example="archir prove my.rule",
)(prove)
