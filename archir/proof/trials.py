"""Rules tried on small networks; what breaks a contract is shown on the smallest that does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from math import prod

from archir.ir.graph import Graph, Value
from archir.proof.instances import (
    Aspect,
    Counterexample,
    Instance,
    Instances,
    against,
    planned,
)
from archir.proof.sketches import small_class_networks
from archir.rewrite.class_rules import sites_of
from archir.rewrite.rule import Reshaping
from archir.rewrite.sites import Planner

DRAWS = 4
"""How often numbers are drawn for a smaller network: some of few numbers hide a difference."""


@dataclass
class Trials:
    """What trying a rule gave."""

    equal: int = 0
    near: int = 0
    """On how many of these only in double precision: stand-ins of exact arithmetic differ."""
    counterexample: Counterexample | None = None
    misfits: list[str] = field(default_factory=list)


def try_rule(among: Instances, aspect: Aspect, wanted: int, *, shrink: bool = True) -> Trials:
    """Try a rule on up to ``wanted`` instances; stops at the first that breaks its contract.

    That one is made as small as it goes, if ``shrink``.
    """
    trials = Trials()
    for found in among:
        if isinstance(found, str):
            trials.misfits.append(found)
            continue
        outcome = against(found, among.rule, among.ops, aspect)
        if outcome is None:
            continue
        if isinstance(outcome, Counterexample):
            smaller = _smallest(among, aspect, found) if shrink else None
            trials.counterexample = smaller or outcome
            return trials
        trials.equal += 1
        trials.near += outcome == "near"
        if trials.equal >= wanted:
            break
    return trials


def _smallest(among: Instances, aspect: Aspect, found: Instance) -> Counterexample | None:
    """The first of the smaller instances, in the order of their sizes, that shows it too."""
    over_class = isinstance(among.rule.body, Reshaping)
    others = _over_classes(among) if over_class else _around_pattern(among, found)
    for other in sorted(others, key=_size):
        if _size(other) >= _size(found):
            break
        for number in range(DRAWS):
            outcome = against(Instance(other.plan, number), among.rule, among.ops, aspect)
            if isinstance(outcome, Counterexample):
                return outcome
    return None


def _around_pattern(among: Instances, found: Instance) -> Iterator[Instance]:
    """The instances up to one, with sizes of 1 and 2."""
    for tiny in ((1, 1), (1, 2), (2, 1), (2, 2)):
        less = Instances(among.rule, among.ops, tiny=tiny).found()
        yield from takewhile(lambda other: other.number <= found.number, less)


def _over_classes(among: Instances) -> Iterator[Instance]:
    for graph in small_class_networks(among.ops):
        planner = Planner(graph, among.ops)
        for name, held in sites_of(among.rule, planner.classes):
            for number in range(3):  # the arguments depend on it
                plan, _ = planned(planner, among.rule, name, number, held.size)
                if plan is not None:
                    yield Instance(plan, number)


def _size(found: Instance) -> tuple[int, int]:
    """How many nodes there are to read, and how many numbers."""
    before, after = found.plan.before, found.plan.after
    return len(list(before)), _numbers(before) + _numbers(after)


def _numbers(graph: Graph) -> int:
    held = [graph.type_of(Value(name)).shape for name in graph.inputs]
    held += [parameter.type.shape for parameter in graph.parameters.values()]
    return sum(prod(n for n in shape if isinstance(n, int)) for shape in held)
