"""docs/rules.md is what `archir rules --markdown` prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from archir.ops import STANDARD
from archir.rewrite.library import installed

DOCS = Path(__file__).parents[2] / "docs" / "rules.md"


def test_the_page_of_rules(archir: Callable[..., Any], update_golden: bool) -> None:
    made = archir("rules", "--markdown")
    assert made.status == 0
    if update_golden:
        DOCS.write_text(made.out, encoding="utf-8")
    assert DOCS.read_text(encoding="utf-8") == made.out


def test_every_rule_says_what_it_does_and_where_it_comes_from() -> None:
    for rule in installed(STANDARD).values():
        assert rule.doc.endswith("."), rule.name
        assert rule.source, rule.name
        assert rule.contract.function or rule.contract.shape, rule.name


def test_what_applies_at_one_place(archir: Callable[..., Any]) -> None:
    net = Path(__file__).parents[2] / "examples" / "resnet20.arch"
    found = archir("rules", net, "--at", "stem.relu", "--json").document["sites"]
    assert {site["at"] for site in found} == {"stem.relu"}
    assert {"deepen", "deepen.batch_norm"} <= {site["rule"] for site in found}
    (deepen,) = [site for site in found if site["rule"] == "deepen"]
    assert (deepen["params"], deepen["macs"]) == (16 * 16 * 9 + 16, 16 * 16 * 9 * 32 * 32)
    within = archir("rules", net, "--at", "stage2", "--rule", "deepen", "--json").document["sites"]
    assert within
    assert all(site["at"].startswith("stage2.") for site in within)


def test_sites_with_many_rules_take_several_lines(archir: Callable[..., Any]) -> None:
    net = Path(__file__).parents[2] / "examples" / "digits.arch"
    lines = archir("rules", net, "--no-cost").out.splitlines()
    assert max(map(len, lines)) <= 125
    assert not any("…" in line for line in lines)
    whole = " ".join(lines)
    sites = archir("rules", net, "--no-cost", "--json").document["sites"]
    assert all(site["at"] in whole and site["rule"] in whole for site in sites)
