"""``archir explain``: what a code or an operator means, or why a rule does (not) apply."""

from __future__ import annotations

import difflib
import itertools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import click

from archir.cli import options
from archir.cli.common import Report, parse_settings, to_json
from archir.cli.common import command as make
from archir.codes import CODES
from archir.diag import CHECK_FAILED, ArchirError, error
from archir.lang.words import write_value
from archir.ops import installed_ops
from archir.ops.record import REQUIRED, Attr, Derived, Op, SameAs

MOST = 12
"""Lines of one kind that are printed; --json has all."""


def explain(
    subject: str,
    rule: str | None,
    at: str | None,
    settings: tuple[str, ...],
    param: tuple[str, ...],
    rule_files: tuple[str, ...],
) -> Report:
    """Explain a diagnostic's code, an operator, or a rule at a site.

    SUBJECT is a code such as A110, an operator such as conv (`operators` lists them all), or a
    network's file together with --rule and --at. A class that a rule would change is listed
    member by member; what blocks it is named.
    """
    if re.fullmatch(r"[Aa]\d{3}", subject):
        return _code(subject.upper())
    if rule is None and subject == "operators":
        return _operators()
    if rule is None and subject in installed_ops():
        return _operator(installed_ops()[subject])
    if rule is None and not Path(subject).exists():
        close = difflib.get_close_matches(subject, [*installed_ops(), "operators"], 1)
        hint = f"did you mean `{close[0]}`?" if close else "`archir explain operators`"
        raise error("A609", f"`{subject}` is no code, operator or file", hint=hint)
    if rule is None:
        raise error("A609", "say which rule", hint="archir explain FILE --rule RULE --at SITE")
    return _rule(subject, rule, at, settings, param, rule_files)


def _code(code: str) -> Report:
    if code not in CODES:
        close = difflib.get_close_matches(code, list(CODES), 3)
        hint = f"near it: {', '.join(close)}" if close else f"from {min(CODES)} to {max(CODES)}"
        raise error("A609", f"there is no code {code}", hint=hint)
    found = CODES[code]
    data = {"code": code, "title": found.title, "explanation": found.explanation}
    return Report(data, f"{code}: {found.title}\n\n{textwrap.fill(found.explanation, 80)}")


def _operators() -> Report:
    ops = [op for op in installed_ops().values() if op.name != "input"]
    rows = [(op.name, op.doc) for op in ops]
    return Report({"operators": [op.name for op in ops]}, options.table(("operator", ""), rows))


def _default(attr: Attr) -> str:
    if attr.default is REQUIRED:
        return "required"
    if isinstance(attr.default, SameAs):
        return f"that of {attr.default.attr}"
    return "computed" if isinstance(attr.default, Derived) else write_value(attr.default)


def _operator(op: Op) -> Report:
    """An operator as its record says it."""
    lines = [*_wrapped(f"{op.name}: {op.doc}"), ""]
    if isinstance(op.signature, str):
        lines += [f"  {op.signature}", ""]
    rows = [(a.name, a.kind.value, _default(a), a.doc) for a in op.attrs]
    if rows:
        lines += [options.table(("attribute", "", "default", ""), rows), ""]
    if op.field:
        lines += _wrapped(f"  In exact checks: {op.field}.")
    data = {
        "operator": op.name,
        "doc": op.doc,
        "signature": op.signature if isinstance(op.signature, str) else None,
        "attributes": [{"name": n, "kind": k, "default": d, "doc": t} for n, k, d, t in rows],
        "parameters": [{"role": p.role, "buffer": p.buffer} for p in op.params],
        "field": op.field,
    }
    return Report(data, "\n".join(lines).rstrip())


def _rule(
    file: str,
    name: str,
    at: str | None,
    settings: tuple[str, ...],
    param: tuple[str, ...],
    rule_files: tuple[str, ...],
) -> Report:
    from archir.api import library
    from archir.render import render
    from archir.rewrite.explain import account, describe, lines_of
    from archir.rewrite.library import find_rule

    ops = installed_ops()
    rule = find_rule(name, library(ops, rule_files), ops)
    planner = options.planner(file, param, [rule])
    if at is None:
        at = planner.choose(rule, None, 0)[0]
    arguments = parse_settings(settings, "--set")
    lines = describe(planner, rule, at)
    try:
        plan = planner.plan(rule, at, {**planner.example_arguments(rule, at), **arguments})
    except ArchirError as failure:
        if failure.status != CHECK_FAILED:
            raise
        text = render(failure.diagnostics).rstrip()
        data = {
            "applies": False,
            "diagnostics": [to_json(d) for d in failure.diagnostics],
            "about": lines,
        }
        return Report(data, "\n".join([text, *_readable(lines)]), CHECK_FAILED)
    found = account(planner, plan)
    lines += lines_of(found)
    text = "\n".join([f"`{rule.name}` applies at {plan.site}", *_readable(lines)])
    return Report({"applies": True, "site": plan.site, "about": lines, **found}, text)


def _readable(lines: Sequence[str]) -> list[str]:
    """Lines that fit a terminal; of many alike ones (members, needs, obstacles) the first few."""
    found: list[str] = []
    for _, group in itertools.groupby(lines, lambda line: line[:4]):
        alike = list(group)
        if len(alike) > MOST + 1:
            indent = " " * (len(alike[0]) - len(alike[0].lstrip()))
            alike[MOST:] = [f"{indent}... and {len(alike) - MOST:,} more (--json has all)"]
        found += [part for line in alike for part in _wrapped(line)]
    return found


def _wrapped(line: str) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, 100, subsequent_indent=indent, break_on_hyphens=False)


command = make(
    "explain",
    click.argument("subject", metavar="CODE|OPERATOR|FILE"),
    click.option("--rule", metavar=options.RULE, help="The rule to explain."),
    click.option("--at", metavar="SITE", help="Where."),
    click.option(
        "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A rule's parameter."
    ),
    options.params,
    options.rule_files,
    example="archir explain net.arch --rule widen --at fc",
)(explain)
