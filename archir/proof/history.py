"""The states of a network's past: rewrites done again, and any ancestor brought back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from archir.diag import Source, error
from archir.ir.graph import Graph
from archir.lang import load
from archir.lang.program import Program
from archir.ops.arithmetic import Array
from archir.ops.record import OpSet
from archir.proof.certificate import ATTESTED, Certificate, State, Step, state_of
from archir.proof.lineage import Lineage
from archir.proof.uses import decode
from archir.rewrite.plan import Plan, apply_terms
from archir.rewrite.rulefile import parse_rules
from archir.rewrite.sites import Planner
from archir.weights.init import init_weights
from archir.weights.terms import Statistic


@dataclass(frozen=True)
class Moment:
    """A network at one moment of its past."""

    program: Program
    weights: Mapping[str, Array] | None

    @property
    def state(self) -> State:
        """Its hashes."""
        return state_of(self.program.source.text, self.program.graph, self.weights)


@dataclass(frozen=True)
class Redone:
    """A use of a rule done again: its plan, what it measured, and the weights before it."""

    use: Mapping[str, Any]
    plan: Plan
    measured: Mapping[Statistic, Array]
    weights: Mapping[str, Array] | None


def redone(
    step: Step, graph: Graph, weights: Mapping[str, Array] | None, ops: OpSet
) -> Iterator[Redone]:
    """The uses of a rewrite, planned again one after the other.

    Raises:
        ArchirError: a rule does not apply any more.
    """
    for use in step.facts["uses"]:
        (rule,) = parse_rules(Source(f"{use['rule']}.rule", use["rule_text"]), ops, "certificate")
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in use["arguments"].items()}
        entries = tuple(use.get("map", ()))
        planner = Planner(graph, ops, weights)
        plan = planner.plan(rule, use["site"], given, use["seed"], entries)
        measured = {
            Statistic(raw["kind"], raw["node"], raw["port"], raw["channels"]): decode(raw["values"])
            for raw in use["measured"]
        }
        yield Redone(use, plan, measured, weights)
        if weights is not None:
            weights = apply_terms(plan.terms, plan.after, weights, measured)
        graph = plan.after


def program_of(state: State, lineage: Lineage, certificate: Certificate, ops: OpSet) -> Program:
    """The program of an earlier state.

    Raises:
        ArchirError: A404, its text is not in the lineage folder.
    """
    return load(Source("parent.arch", lineage.text(state.text)), ops, certificate.params)


Replay = Callable[["History", int, Moment], Moment]
"""Does a step again, given its number and the network before it."""


@dataclass
class History:
    """The states of a chain, each made once."""

    certificate: Certificate
    lineage: Lineage
    ops: OpSet
    undo: Replay
    known: dict[int, Moment] = field(default_factory=dict)

    def at(self, number: int) -> Moment:
        """The network as it was after the step of a number (counted from 1).

        Raises:
            ArchirError: A404, the lineage folder lacks what is needed, or what comes out has
                other hashes than the certificate says.
        """
        steps = self.certificate.steps
        first = number
        while first not in self.known and steps[first - 1].kind not in (*ATTESTED, "init"):
            if steps[first - 1].after.weights is None:
                break
            first -= 1
        for current in range(first, number + 1):
            if current not in self.known:
                self.known[current] = self._made(current)
        found = self.known[number]
        if found.state != steps[number - 1].after:
            raise error(
                "A404",
                f"step {number} does not come out as its certificate says",
                hint="`archir verify` tells which step is at fault",
            )
        return found

    def _made(self, number: int) -> Moment:
        step = self.certificate.steps[number - 1]
        if step.kind == "undo" and step.after.weights is not None:
            return self.undo(self, number, self.known[number - 1])
        program = program_of(step.after, self.lineage, self.certificate, self.ops)
        return Moment(program, self._weights(number, step, program))

    def _weights(self, number: int, step: Step, program: Program) -> Mapping[str, Array] | None:
        if step.after.weights is None:
            return None
        if step.kind in ATTESTED:
            return self.lineage.tensors(step.after.weights, program.graph)
        if step.kind == "init":
            spread = step.facts["random_statistics"]
            seed = step.facts["seed"]
            return init_weights(program.graph, self.ops, seed, random_statistics=spread)
        before = self.known[number - 1]
        weights = before.weights
        for use in redone(step, before.program.graph, weights, self.ops):
            assert use.weights is not None
            weights = apply_terms(use.plan.terms, use.plan.after, use.weights, use.measured)
        return weights
