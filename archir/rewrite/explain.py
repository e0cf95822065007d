"""What a rule would touch at a site, in words."""

from __future__ import annotations

from archir.diag import ArchirError
from archir.rewrite.class_rules import class_at
from archir.rewrite.rule import Reshaping, Rule
from archir.rewrite.sites import Planner

VERBS = {"produce": "makes it", "carry": "carries it", "consume": "reads it"}
ONLY = {"even": "every channel equally often", "bijective": "only another order"}


def describe(planner: Planner, rule: Rule, at: str) -> list[str]:
    """The rule's text, and for a rule over a class its members and what blocks it."""
    lines = [f"  {rule.doc}"]
    if not isinstance(rule.body, Reshaping):
        return lines
    try:
        held = class_at(planner.classes, planner.graph, planner.resolve(rule, at))
    except ArchirError:
        return lines
    count = len(held.nodes)
    nodes = "node" if count == 1 else "nodes"
    lines.append(f"  the class of {held.site}: {held.size} channels, in {count} {nodes}")
    members = (f"    {m.path} (axis {m.axis}) {VERBS[m.kind]}" for m in held.members)
    lines += dict.fromkeys(members)  # a tied weight is a member for each of its uses
    lines += [f"  at {n.node}, {n.reason}: {ONLY[n.condition]}" for n in held.needs]
    lines += [f"  blocked at {o.node}: {o.reason}" for o in held.obstacles]
    return lines
