"""``archir rules``: the rules, and where they apply."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.ir.graph import Graph
from archir.ops import installed_ops
from archir.rewrite.library import Library, find_rule, installed, read_rule_file
from archir.rewrite.rule import Rule
from archir.rewrite.sites import Site


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
    file: str | None, param: tuple[str, ...], rule_files: tuple[str, ...], rule: str | None
) -> Report:
    """List the rules; with FILE, every site where they apply.

    `archir rewrite --rule RULE --at SITE` applies one; RULE@SITE says both.
    """
    from pathlib import Path

    ops = installed_ops()
    library: Library = installed(ops)
    if rule_files:
        library = library.joined([r for f in rule_files for r in read_rule_file(Path(f), ops)])
    chosen = [find_rule(rule, library, ops)] if rule else list(library.values())
    if file is None:
        return _list(chosen)
    planner = options.planner(file, param, chosen)
    sites = [site for one in chosen for site in planner.sites(one)]
    data = {
        "file": file,
        "rules": [rule_facts(r) for r in chosen],
        "sites": [{"rule": s.rule, "at": s.at, "site": str(s), "size": s.size} for s in sites],
    }
    return Report(data, _table(sites, planner.graph))


def _table(sites: list[Site], graph: Graph) -> str:
    """The sites in program order, each with its rules."""
    if not sites:
        return "no rule applies"
    place = {node.name: number for number, node in enumerate(graph)}
    rules: dict[tuple[str, int | None], list[str]] = {}
    for site in sites:
        rules.setdefault((site.at, site.size), []).append(site.rule)

    def order(key: tuple[str, int | None]) -> int:
        return place[key[0] if key[0] in place else key[0].rpartition(".")[0]]

    rows = [
        (at, "" if size is None else str(size), ", ".join(rules[at, size]))
        for at, size in sorted(rules, key=order)
    ]
    text = options.table(("site", "channels", "rules"), rows, right=(1,))
    return f"{text}\n{len(sites)} sites; `archir rewrite FILE --rule RULE --at SITE`"


def _list(chosen: list[Rule]) -> Report:
    facts = [rule_facts(r) for r in chosen]
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
    example="archir rules net.arch --rule widen",
)(rules)
