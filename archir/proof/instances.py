"""Rules tried on small networks in exact fractions, and the counterexamples that come of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from archir.diag import ArchirError
from archir.ir.dims import Size
from archir.ir.graph import Graph
from archir.ir.types import AttrValue
from archir.lang import print_graph
from archir.ops.arithmetic import Array, Rational
from archir.ops.cost import cost
from archir.ops.record import OpSet
from archir.proof.draws import Tiny
from archir.proof.exact import Mismatch, Trial, check_use, feeds_of, trial_of
from archir.proof.sketches import UnfitError, class_network, pattern_network
from archir.proof.stand_ins import only_stand_ins_differ
from archir.rewrite.class_rules import reads_weights, sites_of
from archir.rewrite.found import sample
from archir.rewrite.plan import Plan, dropout_in, region_of
from archir.rewrite.rule import Reshaping, Rule, RuleParameter
from archir.rewrite.sites import Planner

Aspect = Literal["eval", "train", "shape"]
ATTEMPTS = 160
MISFITS = ("A306", "A220", "A221", "A211", "A207", "A212", "A213", "A303")
"""What the planner says where the left side matches and the right side does not fit."""


@dataclass(frozen=True)
class Counterexample:
    """A small network in which a rule breaks its contract, with the numbers that show it."""

    network: str
    site: str
    arguments: Mapping[str, AttrValue]
    mode: Aspect
    value: str
    index: tuple[int, ...]
    before: str
    after: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    rewritten: str = ""
    """The network after the rewrite."""

    def text(self) -> str:
        """As it is shown to a person."""
        given = "".join(f" --set {k}={v}" for k, v in self.arguments.items())
        old = self.network.strip().splitlines()
        changed = [line for line in self.rewritten.splitlines() if line.strip() and line not in old]
        lines = [
            *old,
            *(["", "becomes", *changed] if changed else []),
            "",
            f"at {self.site}{given}, mode {self.mode}:",
        ]
        lines.append(f"  {self.difference()}")
        lines += [f"  {name} = {value}" for name, value in self.numbers.items()]
        return "\n".join(lines)

    def difference(self) -> str:
        """What differs, in a line."""
        where = f"{self.value}[{', '.join(map(str, self.index))}]" if self.index else self.value
        return f"{where} is {_near(self.before)} before and {_near(self.after)} after"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "arguments": dict(self.arguments), "index": list(self.index)}


@dataclass(frozen=True)
class Instance:
    """A rule planned at a site of a small network."""

    plan: Plan
    number: int

    @cached_property
    def trial(self) -> Trial:
        """Random whole numbers for its parameters, the same in all modes."""
        return trial_of(self.plan, seed=self.number, arithmetic=Rational())


class Instances:
    """Plans of a rule on small networks, the smallest first; made when asked for, and kept."""

    def __init__(self, rule: Rule, ops: OpSet, *, tiny: Tiny = None) -> None:
        self.rule, self.ops, self.tiny = rule, ops, tiny
        self._held: list[Instance | str] = []
        self._more = self._made()

    def __iter__(self) -> Iterator[Instance | str]:
        """The instances; where the left side matches and the right side does not fit, why."""
        at = 0
        while True:
            if at == len(self._held):
                new = next(self._more, None)
                if new is None:
                    return
                self._held.append(new)
            yield self._held[at]
            at += 1

    def found(self) -> Iterator[Instance]:
        """The instances alone."""
        return (item for item in self if isinstance(item, Instance))

    def _made(self) -> Iterator[Instance | str]:
        over_class = isinstance(self.rule.body, Reshaping)
        for number in range(ATTEMPTS):
            try:
                graph, at = _network(self.rule, self.ops, number, self.tiny)
            except UnfitError:
                continue
            planner = Planner(graph, self.ops)
            sites: dict[str, Size | None] = {at: None}
            if over_class:
                sites = {name: c.size for name, c in sites_of(self.rule, planner.classes)}
            for site, size in sites.items():
                plan, reasons = planned(planner, self.rule, site, number, size)
                if plan is not None:
                    yield Instance(plan, number)
                yield from (f"{reason} (at {site} of {_line(graph)})" for reason in reasons[:1])


def planned(
    planner: Planner, rule: Rule, site: str, number: int, size: Size | None
) -> tuple[Plan | None, list[str]]:
    """A plan with the first arguments that fit; else why those that the rule wants do not."""
    choices = [arguments(rule, number, size)]
    if isinstance(size, int):
        free = [p.name for p in rule.parameters if p.default is None and p.kind == "int"]
        near = (size - 1, size + 1, 2 * size) if number % 2 else (2 * size, size - 1, size + 1)
        choices += [{**choices[0], **dict.fromkeys(free, n)} for n in near if free]
    reasons: list[str] = []
    rng = np.random.Generator(np.random.PCG64([number, 0xF0D]))
    known = partial(sample, rng=rng)  # whatever weights could give
    choices *= 3 if reads_weights(rule) else 1
    for given in choices:
        try:
            return planner.plan(rule, site, given, seed=number, known=known), []
        except ArchirError as failure:
            code = failure.diagnostics[0].code
            if code in MISFITS and not (code == "A303" and reads_weights(rule)):
                reasons.append(failure.diagnostics[0].message)
    return None, reasons


def _network(rule: Rule, ops: OpSet, number: int, tiny: Tiny) -> tuple[Graph, str]:
    if isinstance(rule.body, Reshaping):
        return class_network(ops, number), ""
    return pattern_network(rule, ops, number, arguments(rule, number, None), tiny=tiny)


def _line(graph: Graph) -> str:
    return ", ".join(f"{n.name}: {n.op} {n.types[0]}" for n in graph)


def arguments(rule: Rule, number: int, size: Size | None) -> dict[str, AttrValue]:
    """Values for a rule's parameters: defaults first, then others."""
    rng = np.random.Generator(np.random.PCG64([number, 0xA465]))
    return {p.name: _argument(p, number, size, rng) for p in rule.parameters}


def _argument(
    parameter: RuleParameter, number: int, size: Size | None, rng: np.random.Generator
) -> AttrValue:
    if parameter.default is not None and number % 2 == 0:
        return parameter.default
    if parameter.kind == "int" and isinstance(size, int):
        return size + 1 + number % 3
    if parameter.kind == "indices":
        most = size if isinstance(size, int) else 3
        return tuple(int(j) for j in rng.permutation(most)[: 1 + number % max(most - 1, 1)])
    if parameter.kind == "path":
        return parameter.name  # the network around the pattern has an input of that name
    choices: dict[str, list[Any]] = {
        "odd": [1, 3, 5],
        "even": [2, 4],
        "int": [2, 3, 4, 6],
        "float": [0.5, 0.25, 2.0],
        "bool": [True, False],
    }
    value: AttrValue = choices[parameter.kind][int(rng.integers(len(choices[parameter.kind])))]
    return value


def against(
    found: Instance, rule: Rule, ops: OpSet, aspect: Aspect
) -> Counterexample | Literal[True, "near"] | None:
    """A counterexample; True where the contract is kept; None where it says nothing.

    "near" where only the stand-ins of exact arithmetic differ.
    """
    if aspect == "shape":
        return _shape_and_cost(found.plan, rule, ops)
    if aspect == "train" and dropout_in(region_of(found.plan), ops) is not None:
        return None
    try:
        trial = found.trial
        check = check_use(found.plan, ops, aspect, trial=trial)
    except (ZeroDivisionError, ValueError):
        return None  # outside what the operators are defined on
    if check.equal:
        return True
    assert check.mismatch is not None
    if only_stand_ins_differ(found.plan, ops, aspect, found.number):
        return "near"
    numbers: dict[str, Any] = {}
    for value, array in feeds_of(found.plan, trial, aspect).items():
        numbers[str(value)] = _shown(array)
    numbers.update({path: _shown(array) for path, array in trial.old.items()})
    numbers.update({f"{p} after": _shown(a) for p, a in trial.new.items() if p in found.plan.terms})
    return _counterexample(found.plan, ops, aspect, check.mismatch, numbers)


def _counterexample(
    plan: Plan, ops: OpSet, aspect: Aspect, mismatch: Mismatch, numbers: Mapping[str, Any]
) -> Counterexample:
    text = print_graph(plan.before, ops)
    return Counterexample(
        text,
        f"{plan.rule.name}@{plan.site}",
        plan.arguments,
        aspect,
        mismatch.value,
        mismatch.index,
        mismatch.before,
        mismatch.after,
        numbers,
        print_graph(plan.after, ops),
    )


def _near(number: str) -> str:
    """A long fraction, and about how much it is."""
    if len(number) < LONG or not re.fullmatch(r"-?\d+/\d+", number):
        return number
    return f"{number} (about {float(Fraction(number)):.6g})"


LONG = 12
"""Fractions of so many characters are said to be about something."""
MOST = 64
"""Tensors with more entries than this are not written out."""


def _shown(array: Array) -> str:
    if array.size > MOST:
        return f"{list(array.shape)}, {array.size} numbers"

    def spell(part: Any) -> str:
        if isinstance(part, list):
            return "[" + ", ".join(spell(p) for p in part) + "]"
        return str(part)

    return spell(array.tolist())


def _shape_and_cost(plan: Plan, rule: Rule, ops: OpSet) -> Counterexample | Literal[True]:
    for a, b in region_of(plan).checks:
        before, after = plan.before.type_of(a), plan.after.type_of(b)
        if before != after:
            mismatch = Mismatch(f"shape of {a}", (), 1, 1, str(before), str(after))
            return _counterexample(plan, ops, "shape", mismatch, {})
    old, new = cost(plan.before, ops), cost(plan.after, ops)
    for claim in (*rule.contract.decreases, *rule.contract.keeps):
        one, two = getattr(old, claim), getattr(new, claim)
        if two > one or (two == one and claim in rule.contract.decreases):
            mismatch = Mismatch(claim, (), 1, 1, str(one), str(two))
            return _counterexample(plan, ops, "shape", mismatch, {})
    return True
