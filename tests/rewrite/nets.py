"""Networks and rules from text, and what is measured of a planned rewrite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph, Value
from archir.ir.types import AttrValue
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.arithmetic import Array, Floating
from archir.ops.closeness import distance
from archir.ops.evaluate import run
from archir.ops.record import Mode
from archir.proof.exact import shape_in_check
from archir.proof.uses import check_plan
from archir.rewrite.library import Library, installed
from archir.rewrite.plan import Plan
from archir.rewrite.rule import Rule
from archir.rewrite.rulefile import parse_rules
from archir.rewrite.sites import Planner
from archir.weights.functions import evaluate
from archir.weights.init import init_weights

LIBRARY: Library = installed(STANDARD)
IMAGE = "input x: f32[N, 3, 8, 8]\n"
HEAD = "\noutput y = end |> global_avg_pool |> fc: linear(5)"


def net(body: str) -> Graph:
    """The graph of an arch with this body."""
    return load(Source("test.arch", f"arch test {{\n{body}\n}}\n"), STANDARD).graph


def rule(text: str) -> Rule:
    """A rule from its text; a text and a contract are added where they are missing."""
    head, _, rest = text.partition("{")
    more = "" if '"' in rest else '"For a test."\n'
    more += "" if "preserves" in rest else "preserves function in eval, train\n"
    (found,) = parse_rules(Source("test.rule", f"{head}{{\n{more}{rest}"), STANDARD)
    return found


def plan(graph: Graph, of: Rule | str, at: str, seed: int = 0, **arguments: AttrValue) -> Plan:
    """A plan of a rule, or of an installed one by its name."""
    found = LIBRARY[of] if isinstance(of, str) else of
    return Planner(graph, STANDARD).plan(found, at, arguments, seed)


def failure(graph: Graph, of: Rule | str, at: str, **arguments: AttrValue) -> ArchirError:
    """The error of a plan that must not exist."""
    try:
        plan(graph, of, at, **arguments)
    except ArchirError as found:
        return found
    raise AssertionError("the rule applies")


def equal(made: Plan) -> set[str]:
    """The modes in which both sides are equal in GF(p); an error where they are not."""
    checks, _ = check_plan(made, STANDARD)
    assert all(c.equal and c.nodes for c in checks)
    return {c.mode for c in checks}


def drift(made: Plan, mode: Mode = "eval", weights: Mapping[str, Array] | None = None) -> float:
    """max|a-b| / max|a| of the outputs, all in float64, statistics far from 0 and 1."""
    k = Floating(np.float64)
    old = weights or init_weights(made.before, STANDARD, 3, random_statistics=True)
    old = {path: np.asarray(a, np.float64) for path, a in old.items()}
    new = {
        path: evaluate(made.terms[path], k, old) if path in made.terms else old[path]
        for path in made.after.parameters
    }
    shapes = {p: tuple(q.type.shape) for p, q in made.after.parameters.items()}
    assert shapes == {p: a.shape for p, a in new.items()}
    rng = np.random.Generator(np.random.PCG64(5))
    feeds = {}
    for name in made.before.inputs:
        value = Value(name)
        feeds[value] = rng.standard_normal(shape_in_check(made.before.type_of(value), 3))
    sides = [
        run(graph, STANDARD, k, feeds, held, mode=mode)
        for graph, held in ((made.before, old), (made.after, new))
    ]
    pairs = zip(made.before.outputs, made.after.outputs, strict=True)
    return max(distance(sides[0].values[a.value], sides[1].values[b.value]) for a, b in pairs)


def with_term(made: Plan, path: str, term: object) -> Plan:
    """A plan with one weight map exchanged."""
    assert path in made.terms
    return replace(made, terms={**made.terms, path: term})  # type: ignore[dict-item]
