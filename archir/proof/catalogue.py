"""The catalogue of rules as a page of Markdown: docs/rules.md is made by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from archir.proof.verdict import ModeVerdict, Verdict, shipped
from archir.rewrite.rule import Rule

HEAD = """# The rules

This page is made by `archir rules --markdown`. Each rule is shown whole, as it is read: what it
says is what archir does. `docs/writing-rules.md` explains the language, `docs/proof.md` what a
verdict means, `archir explain FILE --rule RULE --at SITE` a rule at a place of a network.
"""


def catalogue(rules: Sequence[Rule]) -> str:
    """Every rule with its contract, its verdict and its text, by the file it stands in."""
    kinds = Counter(_kind(shipped(rule)) for rule in rules)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    families = [
        (name, list(group)) for name, group in groupby(rules, key=lambda r: r.span.source.name)
    ]
    lines = [HEAD, f"{len(rules)} rules: {counts}.", "", "| family | rules |", "|---|---|"]
    for name, group in families:
        lines.append(f"| {_title(name, group[0])} | {', '.join(_link(r) for r in group)} |")
    for name, group in families:
        lines += ["", *_family(name, group)]
    return "\n".join(lines) + "\n"


def _kind(verdict: Verdict | None) -> str:
    return "without a verdict" if verdict is None else verdict.kind


def _title(name: str, rule: Rule) -> str:
    """The first comment of a rule file, up to its first full stop, else the file's name."""
    comment: list[str] = []
    for line in rule.span.source.text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    text = " ".join(comment).partition(". ")[0].rstrip(".")
    return text or name.removesuffix(".rule")


def _link(rule: Rule) -> str:
    return f"[`{rule.name}`](#{rule.name.replace('.', '').lower()})"


def _family(name: str, rules: Sequence[Rule]) -> list[str]:
    lines = [f"## {_title(name, rules[0])}", ""]
    for rule in rules:
        lines += [f"### {rule.name}", ""]
        verdict = shipped(rule)
        lines += [f"- {_said(held)}" for held in (verdict.modes if verdict else ())]
        lines += ["", "```", rule.text.strip(), "```", ""]
    return lines[:-1]


def _said(held: ModeVerdict) -> str:
    promise = "shape and cost claims" if held.mode == "shape" else f"function in {held.mode}"
    if held.axioms:
        return f"{promise}: {held.kind}, from {', '.join(held.axioms)}"
    if held.kind == "proved":
        return f"{promise}: {held.kind}"
    why = f" ({held.reason})" if held.reason else ""
    return f"{promise}: {held.kind} on {held.instances} small networks{why}"
