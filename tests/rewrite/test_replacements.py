"""Replacements that keep the shape: which there are, what they cost, what their weights are."""

from __future__ import annotations

import textwrap
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph, Value
from archir.ir.hash import graph_hash
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating, Residues
from archir.ops.cost import cost
from archir.ops.evaluate import run
from archir.proof.prove import tried
from archir.rewrite.library import installed
from archir.rewrite.match import Match, Matcher
from archir.rewrite.plan import Plan, apply_terms
from archir.rewrite.rule import Rule
from archir.rewrite.rulefile import parse_rules
from archir.rewrite.sites import Planner
from archir.rewrite.sources import paths_of
from archir.weights.functions import WeightError, evaluate, shape_of
from archir.weights.init import init_weights
from archir.weights.terms import Apply, Ref

LIBRARY = installed(STANDARD)
SHAPED = [rule for rule in LIBRARY.values() if rule.contract.shape]
NAT = [rule for rule in SHAPED if rule.name.startswith("nat.")]
KERNELS = (1, 3, 5, 7)
NAMED = {"nat.skip_to_null.named", "nat.null_to_skip.named"}
"""Those that take the path of a tensor."""

# --- the transitions of NAT and NAT++ ---------------------------------------------------------

CONV = "|> relu |> c: conv({w}, {k}, {s}, bias = false) |> b: batch_norm"
UNIT = (
    "|> relu |> d{n}: conv({w}, {k}, {s}, dilation = {d}, groups = {w}, bias = false) "
    "|> q{n}: conv({w}, bias = false) |> b{n}: batch_norm"
)
EDGES = {
    **{f"conv{k}": CONV.replace("{k}", str(k)) for k in (1, 3, 5)},
    **{
        f"sep{k}": UNIT.format(n=1, w="{w}", k=k, s="{s}", d=1)
        + UNIT.format(n=2, w="{w}", k=k, s=1, d=1)
        for k in (3, 5)
    },
    **{f"dil{k}": UNIT.format(n=1, w="{w}", k=k, s="{s}", d=2) for k in (3, 5)},
    **{f"max{k}": f"|> max_pool({k}, {{s}}, {k // 2})" for k in (3, 5)},
    **{f"avg{k}": f"|> avg_pool({k}, {{s}}, {k // 2}, false)" for k in (3, 5)},
    "skip": "",
    "null": "|> null({s})",
}
"""The operations of NAT++ as edges of a cell, with a width and a stride."""

TABLE = {
    "conv5": "conv3 conv1 sep5 sep3 dil5 dil3 max5 max3 avg5 avg3 skip null",
    "conv3": "conv1 sep3 dil3 max3 avg3 skip null",
    "conv1": "skip null",
    "sep5": "sep3 dil5 dil3 max5 max3 avg5 avg3 skip null",
    "sep3": "dil3 max3 avg3 skip null",
    "dil5": "dil3 max5 max3 avg5 avg3 skip null",
    "dil3": "max3 avg3 skip null",
    "max5": "avg5 max3 avg3 skip null",
    "avg5": "max5 max3 avg3 skip null",
    "max3": "avg3 skip null",
    "avg3": "max3 skip null",
    "skip": "null",
    "null": "skip",
}
"""The valid sets of NAT++, as its authors' code has them."""


@cache
def cell(edge: str, stride: int = 1, width: int = 5) -> Graph:
    """A node that sums an edge and another tensor; the edge's source is read elsewhere too."""
    body = EDGES[edge].format(w=width, s=stride)
    beside = f"|> beside: conv({width}, 1, {stride}) |> sigmoid"
    text = f"""arch net {{
        input image: f32[N, 3, 9, 8]
        a = image |> stem: conv({width})
        e = {f"a {body}" if body else "a"}
        z = e + (a {beside})
        output y = z |> out: conv(2)
        output more = a |> tanh
    }}"""
    return load(Source("net.arch", text), STANDARD).graph


@cache
def shape_of_edge(stride: int) -> dict[str, str]:
    """Edges by what they are, whatever they are called."""
    return {graph_hash(cell(e, stride)): e for e in EDGES if e != "skip" or stride == 1}


def planned(planner: Planner, rule: Rule, at: str, given: dict[str, Any]) -> Plan | None:
    """The plan at a node; None where the rule does not match, which is the only other way."""
    try:
        return planner.plan(rule, at, given, 0)
    except ArchirError as failure:
        if failure.diagnostics[0].code != "A302":
            raise
        return None


def transitions(edge: str, stride: int) -> dict[str, set[str]]:
    """What each rule makes of an edge, over all kernels; by the rule's name."""
    graph = cell(edge, stride)
    planner = Planner(graph, STANDARD)
    found: dict[str, set[str]] = {}
    for rule in NAT:
        if rule.name in NAMED:
            continue
        choices = [{p.name: k for p in rule.parameters if p.kind == "odd"} for k in KERNELS]
        for given, node in product(choices, graph):
            plan = planned(planner, rule, node.name, given)
            if plan is None:
                continue
            after = graph_hash(plan.after)
            assert after in shape_of_edge(stride), f"{rule.name} makes no edge of {edge}"
            found.setdefault(rule.name, set()).add(shape_of_edge(stride)[after])
    return found


@pytest.mark.parametrize("edge", EDGES)
def test_the_rules_are_the_transitions_of_the_table(edge: str) -> None:
    found = transitions(edge, 1)
    assert set().union(*found.values()) == set(TABLE[edge].split())
    for name, targets in found.items():
        one, other = (t.rstrip("135") for t in name.removeprefix("nat.").split("_to_"))
        assert edge.rstrip("135") == one
        assert {t.rstrip("135") for t in targets} == {other}


@pytest.mark.parametrize("edge", [e for e in EDGES if e not in ("skip", "null")])
def test_edges_that_halve_the_image_keep_their_stride_and_are_never_skipped(edge: str) -> None:
    found = set().union(*transitions(edge, 2).values())
    assert found == set(TABLE[edge].split()) - {"skip"}


def test_a_skip_of_a_subsampled_null_is_no_skip() -> None:
    assert transitions("null", 2) == {}


def test_there_is_a_rule_for_every_transition_and_no_other() -> None:
    pairs = {
        (one.rstrip("135"), other.rstrip("135"))
        for one, targets in TABLE.items()
        for other in targets.split()
    }
    names = {f"nat.{one}_to_{other}" for one, other in pairs} | {"nat.skip_to_null.of_three"}
    assert {rule.name for rule in NAT} == names | NAMED | set(BETWEEN) | {"nat.skip_to_null.halved"}


def test_a_skip_into_a_sum_of_three() -> None:
    text = """arch net {{ input x: f32[N, 3, 4, 4]
        y = x |> conv(3)
        output z = {0} + y + (x |> relu)
    }}"""
    graphs = [load(Source("n.arch", text.format(x)), STANDARD).graph for x in ("x", "null(x)")]
    planner = Planner(graphs[0], STANDARD)
    (site,) = planner.sites(LIBRARY["nat.skip_to_null.of_three"])
    plan = planner.plan(LIBRARY["nat.skip_to_null.of_three"], site.at, {}, 0)
    assert graph_hash(plan.after) == graph_hash(graphs[1])


CROSSED = "|> relu |> c: conv(4, [1, {k}], {s}) |> d: conv(4, [{k}, 1], {t}) |> batch_norm".replace(
    ")", ", bias = false)"
)
BETWEEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "nat.crossed_to_skip": (CROSSED.format(k=7, s=1, t=1), {}, ""),
    "nat.crossed_to_null": (
        CROSSED.format(k=3, s=[1, 2], t=[2, 1]),
        {"kernel": 3, "stride": 2},
        "|> null(2)",
    ),
    "nat.max_to_null.even": ("|> max_pool(2, 2, 0)", {}, "|> null(2)"),
    "nat.avg_to_null.even": ("|> avg_pool(2, 2, 0)", {}, "|> null(2)"),
}
"""Rules for operations that NAT++'s table does not have: an edge, arguments, what it becomes."""


def of_edge(edge: str, rest: str = "") -> Graph:
    return network(f"input x: f32[N, 4, 8, 6] a = x |> stem: conv(4) {rest} output y = a {edge}")


@pytest.mark.parametrize("rule", BETWEEN)
def test_operations_of_naonet_alone(rule: str) -> None:
    edge, given, target = BETWEEN[rule]
    graph = of_edge(edge)
    (site,) = [
        n.name for n in graph if planned(Planner(graph, STANDARD), LIBRARY[rule], n.name, given)
    ]
    plan = Planner(graph, STANDARD).plan(LIBRARY[rule], site, given, 0)
    assert graph_hash(plan.after) == graph_hash(of_edge(target))
    small = network(f"input x: f32[N, 4, 7, 6] a = x |> stem: conv(4) output y = a {edge}")
    assert ("crossed" in rule) == bool(
        [n for n in small if planned(Planner(small, STANDARD), LIBRARY[rule], n.name, given)]
    )  # a window of two leaves the last of seven rows out


def test_a_skip_that_halves_becomes_null() -> None:
    rule = LIBRARY["nat.skip_to_null.halved"]
    halved = (
        "r = a |> relu s = r |> slice(1, {h}, axis = 2) |> slice(1, {w}, axis = 3) "
        "j = concat(r |> c: conv(2, 1, 2, bias = false), s |> d: conv({n}, 1, 2, bias = false))"
    )

    def graph(n: int, start: str = "x: f32[N, 4, 8, 6]") -> Graph:
        body = halved.format(h=7, w=5, n=n)
        return network(f"input {start} a = x |> stem: conv(4) {body} output y = j |> b: batch_norm")

    plan = Planner(graph(2), STANDARD).plan(rule, "b", {}, 0)
    assert graph_hash(plan.after) == graph_hash(of_edge("|> null(2)"))
    assert planned(Planner(graph(4), STANDARD), rule, "b", {}) is None  # another number of channels


def test_of_two_tensors_that_meet_the_named_one_becomes_null() -> None:
    text = "input x: f32[N, 3, 4, 4] y = x |> conv(3) w = x |> tanh output z = {} output v = y * w"
    graph = network(text.format("s: add(y, w)"))
    rule = LIBRARY["nat.skip_to_null.named"]
    for source, after in (("conv", "add(null(y), w)"), ("tanh", "add(null(w), y)")):
        at = next(n.name for n in graph if n.op == "add")
        path = next(n.name for n in graph if n.op == source)
        plan = Planner(graph, STANDARD).plan(rule, at, {"source": path}, 0)
        assert graph_hash(plan.after) == graph_hash(network(text.format(f"s: {after}")))
        assert at in plan.after  # which others name


def test_a_named_tensor_is_added_where_nothing_was() -> None:
    text = "input x: f32[N, 3, 4, 4] y = x |> c: conv(3) output z = {} |> tanh"
    graph = network(text.format("y"))
    plan = Planner(graph, STANDARD).plan(LIBRARY["nat.null_to_skip.named"], "c", {"source": "x"}, 0)
    assert graph_hash(plan.after) == graph_hash(network(text.format("(y + x)")))
    assert cost(plan.after, STANDARD).macs == cost(graph, STANDARD).macs


# --- claims -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SHAPED, ids=lambda r: r.name)
def test_shape_and_claims_hold_wherever_they_were_tried(rule: Any) -> None:
    (held,) = (m for m in tried(rule, STANDARD).modes if m.mode == "shape")
    assert (held.kind, held.counterexample) == ("tested", None)
    assert held.instances >= 10
    assert set(rule.contract.decreases) | set(rule.contract.keeps) == {"macs", "params"}


def fits(rule: Any, graph: Graph, at: str, arguments: dict[str, Any]) -> bool:
    """Whether a rule matches at a node with a path."""
    return isinstance(Matcher(rule, graph, STANDARD, arguments).at(graph.node(at)), Match)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("width", [1, 2, 3, 16])
def test_no_transition_costs_more(edge: str, width: int) -> None:
    """At any width: where a separable edge would cost more than a convolution there is no site."""
    graph = cell(edge, 1, width)
    planner, before = Planner(graph, STANDARD), cost(graph, STANDARD)
    sources = [node.name for node in graph]
    for rule in NAT:
        named = [{name: source} for name in paths_of(rule) for source in sources]
        plans = [
            planner.plan(rule, site.at, arguments, 0)
            for site in planner.sites(rule)
            for arguments in named or [{}]
            if not named or fits(rule, graph, site.at, arguments)
        ]
        assert plans or not named
        for plan in plans:
            after = cost(plan.after, STANDARD)
            assert (after.params, after.macs) <= (before.params, before.macs)
            if rule.contract.decreases:
                assert after.params < before.params
                assert after.macs < before.macs


def test_a_claim_that_costs_are_kept_is_judged() -> None:
    text = """rule {0}() {{
        "A layer {0}."
        preserves shape
        macs kept
        params kept
        match   {{ y = relu(x) }}                             where rank(x) == 4
        replace {{ y = relu(x) |> {1} }}
        {2}
    }}"""
    more = "weights { new.weight = ones(channels(x)) new.bias = zeros(channels(x)) "
    more += "new.running_mean = zeros(channels(x)) new.running_var = ones(channels(x)) }"
    for name, then, weights, kind in (
        ("same", "tanh", "", "tested"),
        ("more", "new: batch_norm", more, "refuted"),
    ):
        source = Source("r.rule", text.format(name, then, weights))
        (rule,) = parse_rules(source, STANDARD)
        verdict = tried(rule, STANDARD)
        assert verdict.kind == kind
        against = verdict.modes[0].counterexample
        assert (against is None) == (kind == "tested")
        assert against is None or against.value == "params"


# --- weights ------------------------------------------------------------------------------------


def network(text: str) -> Graph:
    return load(Source("net.arch", f"arch net {{ {text} }}"), STANDARD).graph


def sides(
    graph: Graph, rule: str, at: str, weights: dict[str, Any] | None = None, **given: int
) -> tuple[Any, Any, dict[str, Any]]:
    """The first output before and after a rule on one random batch, and the new weights."""
    held = weights or init_weights(graph, STANDARD, 3, random_statistics=True)
    plan = Planner(graph, STANDARD).plan(LIBRARY[rule], at, given, 0)
    new = apply_terms(plan.terms, plan.after, held)
    rng = np.random.Generator(np.random.PCG64(5))
    shape = [n if isinstance(n, int) else 2 for n in graph.node(graph.inputs[0]).types[0].shape]
    x = rng.standard_normal(shape)
    k = Floating(np.float64)
    found = []
    for side, tensors in ((plan.before, held), (plan.after, new)):
        (value,) = (o.value for o in side.outputs[:1])
        fed = {Value(side.inputs[0]): x}
        wide = {p: a.astype(np.float64) for p, a in tensors.items()}
        found.append(run(side, STANDARD, k, fed, wide, wanted=[value]).values[value])
    return found[0], found[1], new


IMAGE = "input x: f32[N, 4, 7, 6]"


@pytest.mark.parametrize(
    ("rule", "text", "given"),
    [
        ("conv.low_rank", "conv(6, 3, 2)", {"rank": 4}),
        ("conv.low_rank", "conv(6, 3, dilation = 2, bias = false)", {"rank": 3}),
        ("conv.low_rank.spatial", "conv(6, 3)", {"rank": 7}),
        ("conv.low_rank", "conv(6, [3, 2], padding = [1, 0])", {"rank": 3}),
        ("conv.separable", "conv(6, 3, 2, 0)", {}),
        ("conv.separable", "conv(6, [3, 5])", {}),
        ("conv.kernel", "conv(6, 5, 2)", {"kernel": 3}),
        ("conv.grouped", "conv(6, 3, 2)", {"groups": 2}),
    ],
)
def test_convolutions(rule: str, text: str, given: dict[str, int]) -> None:
    """They are as near as the best approximation of their kind, and keep what is of that kind."""
    graph = network(f"{IMAGE} output y = x |> c: {text}")
    (site,) = Planner(graph, STANDARD).sites(LIBRARY[rule])
    weight = next(p for p in graph.parameters if p.endswith("weight"))
    held = init_weights(graph, STANDARD, 3)
    before, after, _ = sides(graph, rule, site.at, held, **given)
    assert before.shape == after.shape
    assert np.abs(before - after).max() > 1e-3  # a random kernel is of no such kind
    w = held[weight].astype(np.float64)
    held[weight] = _of_that_kind(rule, w, given)
    before, after, _ = sides(graph, rule, site.at, held, **given)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


def _of_that_kind(rule: str, w: Any, given: dict[str, int]) -> Any:
    """A kernel near ``w`` that the replacement can say."""
    o, i, k, _ = w.shape

    def low(m: Any, rank: int) -> Any:
        u, s, v = np.linalg.svd(m, full_matrices=False)
        return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]

    if rule == "conv.low_rank":
        return low(w.reshape(o, -1), given["rank"]).reshape(w.shape)
    if rule == "conv.low_rank.spatial":
        flat = low(w.transpose(1, 2, 0, 3).reshape(i * k, o * k), given["rank"])
        return flat.reshape(i, k, o, k).transpose(2, 0, 1, 3)
    if rule == "conv.separable":
        turned = w.swapaxes(0, 1)
        return low(turned.reshape(i, o, -1), 1).reshape(turned.shape).swapaxes(0, 1)
    out = np.zeros_like(w)
    if rule == "conv.kernel":
        out[:, :, 1:-1, 1:-1] = w[:, :, 1:-1, 1:-1]
    else:
        for g in range(given["groups"]):
            here = np.s_[g * o // 2 : (g + 1) * o // 2, g * i // 2 : (g + 1) * i // 2]
            out[here] = w[here]
    return out


def test_a_linear_layer_of_low_rank() -> None:
    graph = network("input x: f32[N, 7, 9] output y = x |> fc: linear(8)")
    (site,) = Planner(graph, STANDARD).sites(LIBRARY["linear.low_rank"])
    held = init_weights(graph, STANDARD, 3)
    weight = next(p for p in graph.parameters if p.endswith("weight"))
    u, s, v = np.linalg.svd(held[weight])
    held[weight] = (u[:, :3] * s[:3]) @ v[:3]
    before, after, new = sides(graph, "linear.low_rank", site.at, held, rank=3)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    assert sum(a.size for a in new.values()) == 3 * (8 + 9) + 8


def test_a_guard_wants_a_rank_that_saves() -> None:
    graph = network("input x: f32[N, 9] output y = x |> fc: linear(8)")
    (site,) = Planner(graph, STANDARD).sites(LIBRARY["linear.low_rank"])
    for rank in (0, 5, 8):
        with pytest.raises(ArchirError) as caught:
            Planner(graph, STANDARD).plan(LIBRARY["linear.low_rank"], site.at, {"rank": rank}, 0)
        assert caught.value.diagnostics[0].code == "A302"


@pytest.mark.parametrize("stride", [1, 2])
def test_a_separable_edge_is_a_separable_convolution_at_first(stride: int) -> None:
    """Its first half hands its input on: the edge computes what `conv.separable` would."""
    graph = network(
        f"{IMAGE} output y = x |> relu |> c: conv(4, 3, {stride}, bias = false) |> b: batch_norm"
    )
    held = init_weights(graph, STANDARD, 3, random_statistics=True)
    weight = next(p for p in graph.parameters if p.endswith("c.weight"))
    w = held[weight].astype(np.float64)
    held[weight] = _of_that_kind("conv.separable", w, {})
    (site,) = Planner(graph, STANDARD).sites(LIBRARY["nat.conv_to_sep"])
    before, after, _ = sides(graph, "nat.conv_to_sep", site.at, held)
    same = np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    assert same == (stride == 1)  # the stride moves to the front, as cells have it


@pytest.mark.parametrize("rule", ["layer.drop", "branch.drop"])
def test_what_made_a_branch_goes_with_it(rule: str) -> None:
    graph = network(
        f"{IMAGE} a = x |> stem: conv(5) "
        "b = a |> c1: conv(5, 3) |> b1: batch_norm |> relu |> c2: conv(5, 3) |> b2: batch_norm "
        "output y = b + a"
    )
    (site,) = Planner(graph, STANDARD).sites(LIBRARY[rule])
    plan = Planner(graph, STANDARD).plan(LIBRARY[rule], site.at, {}, 0)
    kept = {p.rpartition(".")[0].rpartition(".")[2] for p in plan.after.parameters}
    assert kept == ({"stem", "c2", "b2"} if rule == "layer.drop" else {"stem"})


# --- factors ------------------------------------------------------------------------------------


def factors(w: Any, rank: int, each: int = 0, k: Any = None) -> tuple[Any, Any]:
    pair = []
    for name in ("svd_left", "svd_right"):
        term = Apply(name, (Ref("w"), rank, each))
        value = evaluate(term, k or Floating(np.float64), {"w": w})
        assert value.shape == shape_of(term, {"w": w.shape})
        pair.append(value)
    return pair[0], pair[1]


def test_factors_are_the_best_of_their_rank() -> None:
    w = np.random.Generator(np.random.PCG64(0)).standard_normal((6, 4, 3))
    s = np.linalg.svd(w.reshape(6, 12), compute_uv=False)
    for rank in range(1, 7):
        left, right = factors(w, rank)
        assert (left.shape, right.shape) == ((6, rank), (rank, 4, 3))
        lost = np.square(left @ right.reshape(rank, 12) - w.reshape(6, 12)).sum()
        assert abs(lost - np.square(s[rank:]).sum()) <= 1e-9


def test_factors_of_each_of_many_matrices() -> None:
    w = np.random.Generator(np.random.PCG64(0)).standard_normal((5, 6, 3, 3))
    left, right = factors(w, 1, 1)
    assert (left.shape, right.shape) == ((5, 6, 1), (5, 1, 3, 3))
    for place in range(5):
        one, other = factors(w[place], 1)
        assert np.array_equal(left[place], one)
        assert np.array_equal(right[place], other)


def test_signs_and_last_bits_of_factors_do_not_depend_on_the_machine() -> None:
    """The largest entry of a right vector is positive; 20 bits are kept."""
    w = np.random.Generator(np.random.PCG64(2)).standard_normal((5, 7))
    left, right = factors(w, 5)
    assert all(row[np.abs(row).argmax()] > 0 for row in right)
    assert np.array_equal(right.astype(np.float32), right)
    for moved in (w * (1 + 1e-15), np.nextafter(w, np.inf)):
        other, more = factors(moved, 5)
        assert np.mean(other == left) > 0.95
        assert np.mean(more == right) > 0.95
    one, two = factors(-w, 5)
    assert np.array_equal(one, -left)
    assert np.array_equal(two, right)


def test_factors_have_no_exact_values() -> None:
    for name in ("svd_left", "svd_right"):
        with pytest.raises(WeightError, match="exists in no gf arithmetic"):
            evaluate(Apply(name, (Ref("w"), 1)), Residues(), {"w": np.ones((2, 2))})


@pytest.mark.parametrize("given", [(0, 0), (4, 0), (1, 2), (1, -1), (True, 0)])
def test_factors_that_do_not_exist(given: tuple[int, int]) -> None:
    with pytest.raises(WeightError):
        shape_of(Apply("svd_left", (Ref("w"), *given)), {"w": (3, 5, 2)})


def test_factors_of_what_is_not_finite_are_not_finite() -> None:
    left, right = factors(np.array([[1.0, np.inf], [0.0, 1.0]]), 1)
    assert np.isnan(left).all()
    assert np.isnan(right).all()


# --- the page -----------------------------------------------------------------------------------


def test_the_page_names_every_rule_and_its_network_has_the_parameters_it_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "replacements.md").read_text(encoding="utf-8")
    network = page[page.index("    version 1") : page.index("## What is not there")]
    graph = load(Source("resnet20.arch", textwrap.dedent(network)), STANDARD).graph
    params = cost(graph, STANDARD).params
    assert f"| none | | {params:,} |" in page
    table = page[: page.index("## Where the weights")]
    others = {r.name for r in SHAPED} - {r.name for r in NAT}
    assert {name for name in others if f"`{name}`" not in table} == set()
    for rule in NAT:
        one, _, other = rule.name.partition("_to_")
        assert f"`{rule.name}`" in table or (f"`{one}_to_" in table and f"`_{other}`" in table)
