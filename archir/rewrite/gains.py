"""What a rule would cost or save at a site: parameters and multiply-accumulates, new minus old."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from archir.diag import ArchirError
from archir.ir.types import AttrValue
from archir.ops.cost import cost, elements, macs
from archir.ops.infer import instance_of
from archir.rewrite.match import Matcher
from archir.rewrite.pattern_rules import Exchange, exchange
from archir.rewrite.plan import Plan
from archir.rewrite.rule import Reshaping, Rule
from archir.rewrite.sites import Planner

MOST = 5_000_000
"""Costs of all sites are told where sites times nodes are no more than this."""


@dataclass(frozen=True)
class Gain:
    """What changes at a site with these arguments: parameters (no buffers) and MACs."""

    params: int
    macs: int
    arguments: Mapping[str, AttrValue]


def gain(planner: Planner, rule: Rule, at: str) -> Gain | None:
    """What a rule would change at a site, with defaults or values that fit; None if it cannot."""
    try:
        if isinstance(rule.body, Reshaping) or rule.body.assumes:
            arguments = planner.example_arguments(rule, at)
            return gain_of(planner.plan(rule, at, arguments), planner)
        found = planner.example(rule, planner.graph.node(at))
        if found is None:
            return None
        arguments, match, matcher = found
        swap = exchange(rule, matcher, match)
    except ArchirError:
        return None
    work, numbers = _exchanged(swap, matcher)
    return Gain(numbers, work, arguments)


def gain_of(plan: Plan, planner: Planner) -> Gain:
    """What a plan changes."""
    ops = planner.ops
    names = [n for n in plan.before if n.name in plan.matched]
    if isinstance(plan.rule.body, Reshaping):
        old = cost(plan.before, ops, names)
        new = cost(plan.after, ops, [plan.after.node(n.name) for n in names])
    else:
        old, new = cost(plan.before, ops), cost(plan.after, ops)
    return Gain(new.params - old.params, new.macs - old.macs, dict(plan.arguments))


def _exchanged(swap: Exchange, matcher: Matcher) -> tuple[int, int]:
    """MACs and parameters, new minus old."""
    graph, ops = matcher.graph, matcher.ops
    work = sum(macs(use) for use in swap.uses.values())
    work -= sum(macs(instance_of(n, graph, ops)) for n in swap.gone if n.op != "input")
    names = {n.name for n in swap.gone}
    before = {path for n in swap.gone for path in n.params.values()}
    before = {path for path in before if all(u in names for u, _ in matcher.users[path])}
    after = {path for n in swap.made.values() for path in n.params.values()}
    after -= {path for path in after if path in matcher.users and path not in before}
    old = [graph.parameters[path] for path in before]
    new = [swap.parameters[path] for path in after]
    numbers = sum(elements(p.type) for p in new if not p.buffer)
    return work, numbers - sum(elements(p.type) for p in old if not p.buffer)
