"""``archir rules``: the rules, and where they apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import shorten, wrap
from typing import Any

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.ir.graph import Graph
from archir.ir.types import AttrValue
from archir.lang.words import write_value
from archir.ops import installed_ops
from archir.rewrite.gains import MOST, Gain, gain
from archir.rewrite.library import Library, find_rule, installed, read_rule_file
from archir.rewrite.rule import Rule
from archir.rewrite.sites import Site

WIDTH = 90
"""Columns for the names of the rules at a site."""


def rule_facts(rule: Rule) -> dict[str, Any]:
    """A rule as JSON values."""
    from archir.proof.prove import shipped_verdict

    verdict = shipped_verdict(rule)
    return {
        "name": rule.name,
        "doc": rule.doc,
        "source": rule.source,
        "parameters": [
            {"name": p.name, "kind": p.kind, "default": p.default} for p in rule.parameters
        ],
        "preserves": {"function": list(rule.contract.function), "shape": rule.contract.shape},
        "decreases": list(rule.contract.decreases),
        "kept": list(rule.contract.keeps),
        "package": rule.package,
        "hash": rule.hash,
        "verdict": None if verdict is None else verdict.kind,
    }


def rules(
    file: str | None,
    param: tuple[str, ...],
    rule_files: tuple[str, ...],
    rule: str | None,
    at: str | None,
    cost: bool | None,
    markdown: bool,
) -> Report:
    """List the rules; with FILE, every site where they apply.

    Each site is shown with what changes there: parameters and MACs, new minus old, with the
    rule's defaults or values that fit. `archir rewrite --rule RULE --at SITE` applies one;
    RULE@SITE says both.
    """
    from fnmatch import fnmatchcase
    from pathlib import Path

    ops = installed_ops()
    library: Library = installed(ops)
    if rule_files:
        library = library.joined([r for f in rule_files for r in read_rule_file(Path(f), ops)])
    chosen = [find_rule(rule, library, ops)] if rule else list(library.values())
    if file is None:
        return _list(chosen, markdown=markdown)
    planner = options.planner(file, param, chosen)
    found = [(one, site) for one in chosen for site in planner.sites(one)]
    if at is not None:
        found = [(r, s) for r, s in found if fnmatchcase(s.at, at) or s.at.startswith(f"{at}.")]
    if cost is None:
        cost = len(found) * len(planner.graph) <= MOST
    rows = [(site, gain(planner, one, site.at) if cost else None) for one, site in found]
    data = {
        "file": file,
        "rules": [rule_facts(r) for r in chosen],
        "sites": [_site(site, change) for site, change in rows],
    }
    if not rows:
        return Report(data, "no rule applies")
    text = _costs(rows, planner.graph) if cost else _table([s for s, _ in rows], planner.graph)
    last = f"{len(rows)} sites; `archir rewrite FILE --rule RULE --at SITE`"
    return Report(data, f"{text}\n{last}{'' if cost else '; --cost tells what changes'}")


def _site(site: Site, change: Gain | None) -> dict[str, Any]:
    facts = {"rule": site.rule, "at": site.at, "site": str(site), "size": site.size}
    if change is None:
        return {**facts, "arguments": None, "params": None, "macs": None}
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in change.arguments.items()}
    return {**facts, "arguments": given, "params": change.params, "macs": change.macs}


def _order(graph: Graph) -> Callable[[str], int]:
    """Where a site stands in the program."""
    place = {node.name: number for number, node in enumerate(graph)}
    return lambda at: place[at if at in place else at.rpartition(".")[0]]


def _costs(found: Sequence[tuple[Site, Gain | None]], graph: Graph) -> str:
    """The sites in program order, a line for each rule there."""
    order, rows = _order(graph), []

    def place(site: Site) -> tuple[int, str, int]:
        return order(site.at), site.at, site.size or 0

    last: tuple[str, int | None] | None = None
    for site, change in sorted(found, key=lambda each: place(each[0])):
        first = ("", "") if last == (site.at, site.size) else (site.at, site.size or "")
        last = (site.at, site.size)
        settings = {} if change is None else change.arguments
        given = " ".join(f"{k}={_setting(v)}" for k, v in settings.items())
        told = ("?", "?") if change is None else map(_signed, (change.params, change.macs))
        rows.append((*first, site.rule, shorten(given, 40, placeholder=" ..."), *told))
    headers = ("site", "channels", "rule", "with", "parameters", "MACs")
    return options.table(headers, rows, right=(1, 4, 5))


def _setting(value: AttrValue) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else write_value(value)


def _signed(number: int) -> str:
    return f"+{options.human(number)}" if number > 0 else options.human(number)


def _table(sites: list[Site], graph: Graph) -> str:
    """The sites in program order, each with its rules."""
    order = _order(graph)
    rules: dict[tuple[str, int | None], list[str]] = {}
    for site in sites:
        rules.setdefault((site.at, site.size), []).append(site.rule)
    rows = []
    for at, size in sorted(rules, key=lambda key: order(key[0])):
        first = at, "" if size is None else str(size)
        for line in wrap(", ".join(rules[at, size]), WIDTH, break_on_hyphens=False):
            rows.append((*first, line))
            first = "", ""
    return options.table(("site", "channels", "rules"), rows, right=(1,))


def _list(chosen: list[Rule], *, markdown: bool) -> Report:
    facts = [rule_facts(r) for r in chosen]
    if markdown:
        from archir.proof.catalogue import catalogue

        return Report({"rules": facts}, catalogue(chosen).rstrip("\n"))
    rows = []
    for fact in facts:
        kept = fact["preserves"]
        what = ", ".join(kept["function"]) if kept["function"] else "shape only"
        given = " ".join(
            f"{p['name']}:{p['kind']}" + ("" if p["default"] is None else f"={p['default']}")
            for p in fact["parameters"]
        )
        rows.append(
            (
                fact["name"],
                given,
                what,
                fact["verdict"] or "-",
                shorten(fact["doc"], 60, placeholder=" ..."),
            )
        )
    headers = ("rule", "parameters", "exact in", "verdict", "")
    return Report({"rules": facts}, options.table(headers, rows))


command = make(
    "rules",
    click.argument("file", required=False, type=click.Path(dir_okay=False)),
    options.params,
    options.rule_files,
    click.option("--rule", metavar=options.RULE, help="This rule only."),
    click.option("--at", metavar="SITE", help="What applies there only: a path, a scope, a glob."),
    click.option(
        "--cost/--no-cost",
        default=None,
        help="Tell what changes at each site, or not; in large networks it is left out.",
    ),
    click.option("--markdown", is_flag=True, help="The rules whole, with their proofs, as a page."),
    example="archir rules net.arch --rule widen",
)(rules)
