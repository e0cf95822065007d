"""Whether the goals of a rule say what the rule does: compared with the networks it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from archir.ir.graph import Value
from archir.ops.arithmetic import Array, Residues
from archir.ops.evaluate import run
from archir.ops.record import Mode, OpSet
from archir.proof.audit import draw, equal
from archir.proof.instances import Instance
from archir.proof.terms import Formula, Goal, variables
from archir.proof.vocabulary import UndefinedError, World, evaluate
from archir.rewrite.assumed import put_in_place
from archir.rewrite.plan import Plan
from archir.rewrite.rule import Rewriting
from archir.weights.functions import evaluate as weight_of
from archir.weights.functions import shape_of
from archir.weights.terms import Free, Initial, Statistic, free

Measured = Mapping[Free, Array]


def valuation(found: Instance, wanted: set[str]) -> tuple[dict[str, Any], Measured]:
    """Values in GF(p) for the variables of a rule's goals, from one of its instances."""
    k, rng = Residues(), np.random.Generator(np.random.PCG64([found.number, 0xA0D17]))
    plan = found.plan
    values: dict[str, Any] = dict(plan.arguments)
    for node in plan.before:
        values.update({f"{node.name}.{name}": value for name, value in node.attrs.items()})
        for role, path in node.params.items():
            shape = plan.before.parameters[path].type.shape
            whole = tuple(n for n in shape if isinstance(n, int))
            values[f"{node.name}.{role}"] = draw(k, rng, whole)
            values[f"old shape {node.name}.{role}"] = whole
    held = _parameters(plan, values)
    held.update(put_in_place(plan.assumed, held, k))
    for node in plan.before:
        values.update({f"{node.name}.{role}": held[path] for role, path in node.params.items()})
    for name in plan.before.inputs:
        shape = plan.before.type_of(Value(name)).shape
        whole = tuple(n if isinstance(n, int) else 2 for n in shape)
        values[f"tensor {name}"] = draw(k, rng, whole)
        values[f"tensor {name.removesuffix('_in')}"] = values[f"tensor {name}"]
    measured: dict[Free, Array] = {}
    for leaf in (leaf for term in plan.terms.values() for leaf in free(term)):
        if leaf not in measured:
            measured[leaf] = draw(k, rng, shape_of(leaf, {}))
        if isinstance(leaf, Statistic):
            named = {name for name in wanted if name.startswith(f"{leaf.kind}(")}
            values.update(dict.fromkeys(named - values.keys(), measured[leaf]))
    drawn = {leaf.path: array for leaf, array in measured.items() if isinstance(leaf, Initial)}
    for name, path in plan.made.items():
        for role, own in plan.after.node(path).params.items():
            values[f"shape {name}.{role}"] = plan.after.parameters[own].type.shape
            if own in drawn:
                values[f"initial {name}.{role}"] = drawn[own]
    return values, measured


def _parameters(plan: Plan, values: Mapping[str, Any]) -> dict[str, Array]:
    """The parameters before, by their paths."""
    return {
        path: values[f"{node.name}.{role}"]
        for node in plan.before
        for role, path in node.params.items()
    }


def untrue(
    found: Instance,
    goals: Sequence[Goal],
    values: Mapping[str, Any],
    measured: Measured,
    ops: OpSet,
    mode: Mode,
) -> str | None:
    """A value of the pattern for which no goal has the sides that the networks have; None if none.

    A rule that leaves a parameter open has a goal for each case, and an instance is one of them.
    """
    plan = found.plan
    body = plan.rule.body
    assert isinstance(body, Rewriting)
    k = Residues()
    old = _parameters(plan, values)
    new = {**old, **{p: weight_of(term, k, old, measured) for p, term in plan.terms.items()}}
    feeds = {Value(name): values[f"tensor {name}"] for name in plan.before.inputs}
    world = World(k, mode, ops, values)
    for name, operand in body.match.bindings.items():
        if name not in body.replace.bindings:
            continue
        before = Value(operand.node or str(operand.variable), operand.port)
        after = plan.values.get(before, before)
        sides = (
            run(plan.before, ops, k, feeds, old, wanted=[before], mode=mode).values[before],
            run(plan.after, ops, k, feeds, new, wanted=[after], mode=mode).values[after],
        )
        cases = [g for g in goals if g.name.split(",")[0] == name]
        if not any(
            equal(_value(g.left, world), sides[0]) and equal(_value(g.right, world), sides[1])
            for g in cases
        ):
            return name
    return None


def _value(term: Formula, world: World) -> Any:
    if not variables(term) <= set(world.values):
        return None
    try:
        return evaluate(term, world)
    except UndefinedError:
        return None
