"""Random networks of all families through text, backends and rules; and planted faults found."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from archir.diag import Source
from archir.ir.graph import Graph
from archir.ops import STANDARD
from archir.rewrite.plan import Plan
from archir.rewrite.rulefile import parse_rules
from archir.rewrite.sites import Planner

from .checks import (
    LIBRARY,
    Tally,
    Wrong,
    check_backends,
    check_rules,
    check_text,
    read,
)
from .networks import Case, networks, seeded
from .reduce import Check, Failure, hold, reduce

FEW = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


def test_text_and_graph_are_one() -> None:
    hold(check_text, settings(FEW, max_examples=150))


def test_backends_agree_with_the_reference() -> None:
    far: dict[str, float] = {}

    def check(case: Case) -> None:
        for name, amount in check_backends(case).items():
            far[name] = max(far.get(name, 0.0), amount)

    hold(check, FEW)
    print(far)
    assert set(far) == {"torch", "onnx", "torch in training"}
    assert all(far.values())


def test_rules_are_exact_at_every_site() -> None:
    tally = Tally()

    def check(case: Case) -> None:
        nonlocal tally
        tally += check_rules(case)

    hold(check, FEW)
    print(tally)
    assert tally.classes > 200
    assert len(tally.uses) >= 30
    assert tally.uses.total() > 250
    assert tally.checked["eval"] > 100
    assert tally.checked["train"] > 50


def test_a_seed_gives_its_network() -> None:
    cases = [seeded(1, number) for number in range(400)]
    assert [case.text for case in cases[:9]] == [seeded(1, n).text for n in range(9)]
    assert seeded(2, 0).text != cases[0].text
    drawn = Counter(node.op for case in cases for node in case.graph)
    assert set(drawn) == set(STANDARD) - WITHOUT
    assert max(len(case.graph) for case in cases) > 20
    graphs = [case.graph for case in cases]
    assert any(len(graph.inputs) > 1 for graph in graphs)
    assert any(len(graph.outputs) > 1 for graph in graphs)
    assert any(len(users) > 1 for graph in graphs for users in graph.users().values())


WITHOUT = {
    *("addcmul", "argmax", "argmin", "atan", "cast", "ceil", "contiguous", "cos", "cumsum"),
    *("dynamic_batch_norm", "dynamic_conv", "dynamic_linear", "equal", "erf", "flip", "floor"),
    *("fold", "greater", "greater_equal", "hardshrink", "interpolate", "l2_norm", "less"),
    *("less_equal", "log", "log_sigmoid", "logical_and", "logical_not", "logical_or"),
    *("logical_xor", "maximum", "min", "minimum", "not_equal", "pow", "power", "prod"),
    *("reciprocal", "repeat_interleave", "round", "rsqrt", "scaled_dot_product_attention"),
    *("sign", "sin", "softshrink", "std", "tan", "threshold", "tile", "unfold", "var", "where"),
    "windows",
}
"""Operators that no network here has: those that imports brought, and published networks try."""


# --- faults that are planted --------------------------------------------------------------


def found(check: Check) -> Case:
    """The network that is reported for a check that fails."""
    with pytest.raises(Failure) as caught:
        hold(check, FEW)
    assert str(caught.value).endswith(repr(caught.value.case))
    return caught.value.case


def inner(case: Case) -> list[str]:
    """The operators of a network beside its inputs."""
    return [node.op for node in case.graph if node.op != "input"]


def test_a_wrong_lowering_is_found_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from archir.backends.torch_fx import module

    right = module.LOWER["concat"]

    def reversed_(at: Any) -> Any:
        return right(replace(at, inputs=at.inputs[::-1]))

    monkeypatch.setattr(module, "LOWER", {**module.LOWER, "concat": reversed_})
    case = found(check_backends)
    assert inner(case).count("concat") == 1
    assert len(inner(case)) <= 3
    assert len(case.text.splitlines()) <= 9


def test_a_wrong_rule_is_found_and_small() -> None:
    text = LIBRARY["widen"].text.replace("consume take(g) / count(g)", "consume take(g)")
    assert text != LIBRARY["widen"].text
    (wrong,) = parse_rules(Source("wrong.rule", text), STANDARD)
    case = found(lambda case: check_rules(case, {"widen": wrong}))
    assert len(inner(case)) <= 3


def test_a_forgotten_member_is_found_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Planner.plan

    def forgetful(self: Planner, *given: Any) -> Plan:
        plan = right(self, *given)
        terms = {p: t for p, t in plan.terms.items() if not p.endswith("running_var")}
        return replace(plan, terms=terms)

    def check(case: Case) -> None:
        try:
            check_rules(case, {"widen": LIBRARY["widen"]})
        except Wrong as wrong:
            if "running_var" in str(wrong):
                raise

    monkeypatch.setattr(Planner, "plan", forgetful)
    case = found(check)
    assert "batch_norm" in inner(case)
    assert len(inner(case)) <= 4


def test_a_failure_shows_its_program() -> None:
    def wants_no_pooling(case: Case) -> None:
        if "global_avg_pool" in inner(case):
            raise Wrong("it has a pooling")

    @settings(FEW, phases=[Phase.generate, Phase.shrink], print_blob=False)
    @given(networks())
    def every(case: Case) -> None:
        wants_no_pooling(case)

    with pytest.raises(Wrong) as caught:
        every()
    shown = "\n".join(caught.value.__notes__)
    start, end = shown.index("version 1"), shown.rindex("}") + 1
    assert 1 <= len(inner(Case(read(shown[start:end])))) <= 2
    assert "benchmarks/fuzz.py --file" in shown
    assert inner(found(wants_no_pooling)) == ["global_avg_pool"]


def test_a_failing_network_is_reduced() -> None:
    def fails(graph: Graph) -> str | None:
        return "it has both" if {"softmax", "conv"} <= {node.op for node in graph} else None

    cases = (seeded(3, number) for number in range(200))
    case = next(c for c in cases if fails(c.graph) and len(c.graph) > 15)
    small = reduce(case.graph, fails)
    assert sorted(inner(Case(small))) == ["conv", "softmax"]
