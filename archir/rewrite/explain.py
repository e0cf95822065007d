"""What a rule would touch at a site, in words: a class's members, or what a pattern is bound to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archir.diag import ArchirError
from archir.ir.graph import Node, Value
from archir.rewrite.assumed import distances
from archir.rewrite.class_rules import class_at
from archir.rewrite.expressions import plain, text_of
from archir.rewrite.gains import gain_of
from archir.rewrite.match import Match, Matcher
from archir.rewrite.plan import Plan
from archir.rewrite.rule import Reshaping, Rewriting, Rule
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


def account(planner: Planner, plan: Plan) -> dict[str, Any]:
    """What a plan does, as plain data: what is bound, new, changed and gone, and what it costs."""
    found: dict[str, Any] = {"arguments": dict(plan.arguments)}
    if isinstance(plan.rule.body, Rewriting):
        before, after = plan.before, plan.after
        match = _match(planner, plan)
        found["bound"] = {} if match is None else _bound(plan, match)
        found["new"] = {
            n.name: f"{n.op}, {', '.join(map(str, n.types))}" for n in after if n.name not in before
        }
        found["gone"] = [n.name for n in before if n.name not in after]
        both = [(n, after.node(n.name)) for n in before if n.name in after]
        found["changed"] = {a.name: _change(a, b) for a, b in both if a.attrs != b.attrs}
        found["weights"] = _weights(plan, plan.rule.body)
        found["assumed"] = _assumed(planner, plan)
    change = gain_of(plan, planner)
    return {**found, "params": change.params, "macs": change.macs}


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """The same for a person."""
    lines: list[str] = []
    if found["arguments"]:
        given = ", ".join(f"{name} = {_show(value)}" for name, value in found["arguments"].items())
        lines.append(f"  with {given}")
    lines += [f"  {name} is {what}" for name, what in found.get("bound", {}).items()]
    lines += [f"  gone: {name}" for name in found.get("gone", ())]
    lines += [f"  new: {name}: {what}" for name, what in found.get("new", {}).items()]
    lines += [f"  changed: {name}: {what}" for name, what in found.get("changed", {}).items()]
    lines += [f"  weight {path} {what}" for path, what in found.get("weights", {}).items()]
    lines += [f"  assumes {text}: {what}" for text, what in found.get("assumed", {}).items()]
    lines.append(f"  parameters {found['params']:+,}, MACs {found['macs']:+,}")
    return lines


def _match(planner: Planner, plan: Plan) -> Match | None:
    """The match that a plan was made of."""
    matcher = Matcher(plan.rule, planner.graph, planner.ops, plan.arguments)
    every = matcher.every(planner.graph.node(plan.site))
    return next((m for m in every if tuple(n.name for n in m.nodes.values()) == plan.matched), None)


def _bound(plan: Plan, match: Match) -> dict[str, str]:
    """What each name of the pattern is bound to: tensors, layers, attributes."""
    graph = plan.before
    out = {name: f"{value}, {graph.type_of(value)}" for name, value in match.variables.items()}
    for name, node in match.nodes.items():
        out[name] = f"{node.name}: {node.op}, {graph.type_of(Value(node.name))}"
    given = plan.arguments
    out.update({n: _show(v) for n, v in match.scalars.items() if n not in given})
    return out


def _change(old: Node, new: Node) -> str:
    different = [name for name in new.attrs if old.attrs[name] != new.attrs[name]]
    return ", ".join(
        f"{name} {_show(plain(old.attrs[name]))} -> {_show(plain(new.attrs[name]))}"
        for name in different
    )


def _weights(plan: Plan, body: Rewriting) -> dict[str, str]:
    """The terms of new and changed weights, as the rule says them."""
    out: dict[str, str] = {}
    for target, expression in body.weights:
        owner, _, role = target.rpartition(".")
        path = plan.after.node(plan.made[owner]).params[role]
        shape = list(plan.after.parameters[path].type.shape)
        out[path] = f"{shape} = {text_of(expression)}"
    return out


def _assumed(planner: Planner, plan: Plan) -> dict[str, str]:
    """How far the weights are from each assumption."""
    if planner.weights is None:
        return {a.text: "there are no weights to tell" for a in plan.assumed}
    return {
        d.text: f"{d.path} is so" if d.holds else f"{d.path} is {d.value:.3g} of its norm away"
        for d in distances(plan.assumed, planner.weights)
    }


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)
