"""The rules that come with archir: equal in GF(p), equal in float64, wrong maps caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.ir.graph import Graph, Value
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating
from archir.ops.evaluate import run
from archir.proof.exact import check_use
from archir.proof.uses import check_plan
from archir.rewrite.plan import Plan, apply_terms, compose_terms, region_of
from archir.rewrite.sites import Planner
from archir.weights.functions import evaluate
from archir.weights.init import init_weights
from archir.weights.terms import Apply, IndexMap, Ref, Statistic

from .nets import HEAD, IMAGE, LIBRARY, drift, equal, failure, net, plan, with_term

CHAIN = (
    IMAGE + "a = x |> conv(4, 3)\nn = a |> batch_norm\nr = n |> relu\nend = r |> conv(6, 3)" + HEAD
)
WIDENED = {
    "chain": (CHAIN, "a", 9),
    "chain, by what carries": (CHAIN, "n", 5),
    "chain, by what reads": (CHAIN, "end.in", 6),
    "residual": (
        IMAGE + "a = x |> conv(4, 3)\nb = a |> batch_norm |> relu |> c: conv(7, 3) |> d: conv(4)\n"
        "end = relu(a + b) |> max_pool(2)" + HEAD,
        *("a", 7),
    ),
    "residual of one layer": (
        IMAGE + "a = x |> conv(4, 3)\nend = a + (a |> d: conv(4, 3))" + HEAD,
        *("a", 6),
    ),
    "flatten": (
        IMAGE + "a = x |> conv(4, 3)\nend = a |> max_pool(2) |> relu\n"
        "output z = end |> flatten |> n: batch_norm |> g: linear(7)" + HEAD,
        *("a", 9),
    ),
    "flatten of one channel": (
        IMAGE + "end = x |> conv(1, 3)\noutput z = end |> flatten |> g: linear(7)" + HEAD,
        *("end", 3),
    ),
    "depthwise": (
        IMAGE + "a = x |> conv(4, 3)\nb = a |> conv(4, 5, 2, groups = 4) |> relu\n"
        "end = b |> conv(6)" + HEAD,
        *("a", 7),
    ),
    "depthwise multiplier": (
        IMAGE + "a = x |> conv(4, 3)\nend = a |> conv(12, 3, groups = 4)" + HEAD,
        *("a", 7),
    ),
    "channels within groups": (
        IMAGE + "i = x |> conv(6)\na = i |> conv(6, 3, groups = 3)\n"
        "end = a |> conv(9, 3, groups = 3)" + HEAD,
        *("a", 5),
    ),
    "concat": (
        IMAGE + "a = x |> conv(4, 3)\nb = x |> conv(2, 3)\n"
        "end = concat(b, a, b) |> n: batch_norm |> relu |> e: conv(6, 1)" + HEAD,
        *("b", 5),
    ),
    "split": (
        IMAGE + "a = x |> conv(4, 3)\nb = x |> conv(2, 3)\nj = concat(a, b)\n"
        "p, q = split(j, sizes = [4, 2])\nend = p |> conv(3, 1)\n"
        "output z = q |> flatten |> g: linear(2)" + HEAD,
        *("a", 6),
    ),
    "tied": (
        IMAGE + "a = x |> conv(4, 3)\nb = x |> relu |> c: conv(4, 3, weight = a.weight)\n"
        "end = concat(a |> d: conv(2), b |> e: conv(2))" + HEAD,
        *("a", 6),
    ),
    "tied in a chain": (
        IMAGE + "a = x |> conv(4, 3)\nb = a |> relu |> c: conv(4, 3)\n"
        "end = b |> d: conv(4, 3, weight = b.c.weight)" + HEAD,
        *("a", 6),
    ),
    "gate": (
        IMAGE + "a = x |> conv(4, 3)\np = a |> global_avg_pool\n"
        "g = p |> linear(2) |> relu |> s: linear(4)\nend = a |> conv(6, 1)\n"
        "output z = p * g |> f: linear(2)" + HEAD,
        *("a", 7),
    ),
    "scale": (
        IMAGE + "param s: f32[4, 1, 1] = 1.5\na = x |> conv(4, 3)\nend = a * s + 0.5" + HEAD,
        *("a", 7),
    ),
    "linear layers": (
        "input x: f32[N, 6]\nh = x |> a: linear(4) |> relu |> b: linear(3)\noutput y = h",
        *("h.a", 7),
    ),
}
ATS = sorted(WIDENED)


@pytest.mark.parametrize("name", ATS)
def test_widen(name: str) -> None:
    body, at, width = WIDENED[name]
    made = plan(net(body), "widen", at, width=width)
    assert equal(made) == {"eval", "train"}
    assert drift(made) < 1e-12
    assert drift(made, "train") < 1e-12
    region = region_of(made)
    assert region.checks
    kept = {path for path in made.after.parameters if path not in made.terms}
    assert all(made.before.parameters[p] == made.after.parameters[p] for p in kept)


def test_widen_takes_its_map_from_the_seed() -> None:
    graph = net(CHAIN)
    maps = []
    for seed in (0, 0, 1):
        term = plan(graph, "widen", "a", seed, width=9).terms["a.bias"]
        assert isinstance(term, Apply)
        assert isinstance(term.args[1], IndexMap)
        maps.append(term.args[1].entries.tolist())
    assert maps[0] == maps[1] != maps[2]
    assert all(m[:4] == [0, 1, 2, 3] and set(m) <= {0, 1, 2, 3} for m in maps)


WRONG: dict[str, Any] = {
    "the reader does not divide": lambda p: with_term(
        p, "end.weight", p.terms["end.weight"].args[0]
    ),
    "the reader is forgotten": lambda p: with_term(
        p,
        "end.weight",
        Apply("take", (Ref("end.weight"), IndexMap(np.array([0, 1, 2, 3, 0]), 4), 1)),
    ),
    "another vector": lambda p: with_term(p, "n.bias", p.terms["n.weight"]),
    "another statistic": lambda p: with_term(p, "n.running_mean", p.terms["n.running_var"]),
    "another map for the shift": lambda p: with_term(
        p, "n.bias", Apply("take", (Ref("n.bias"), IndexMap(np.array([0, 1, 2, 3, 3]), 4), 0))
    ),
    "zeros": lambda p: with_term(p, "a.bias", Apply("zeros", (5,))),
    "the rows in another order": lambda p: with_term(
        p, "a.weight", Apply("take", (Ref("a.weight"), IndexMap(np.array([1, 0, 2, 3, 0]), 4), 0))
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_maps_are_caught(name: str) -> None:
    graph = net(CHAIN)
    seed = next(s for s in range(99) if drawn(plan(graph, "widen", "a", s, width=5)) == 0)
    good = plan(graph, "widen", "a", seed, width=5)
    assert check_use(good, STANDARD, "eval").equal
    wrong = WRONG[name](good)
    check = check_use(wrong, STANDARD, "eval")
    assert not check.equal
    assert check.mismatch is not None
    assert check.mismatch.count > 0
    with pytest.raises(ArchirError) as caught:
        check_plan(wrong, STANDARD)
    (found,) = caught.value.diagnostics
    assert (found.code, caught.value.status) == ("A401", 1)
    assert "`widen` at a changes the function in eval mode" in found.message
    assert f"{check.mismatch.count} of {check.mismatch.total}" in found.message


def drawn(made: Plan) -> int:
    """The channel that the one new channel copies."""
    term = made.terms["a.bias"]
    assert isinstance(term, Apply)
    assert isinstance(term.args[1], IndexMap)
    return int(term.args[1].entries[-1])


def test_a_buffer_that_moves_otherwise_is_caught_in_training() -> None:
    """In training the running mean is not read, but what becomes of it must fit."""
    good = plan(net(CHAIN), "widen", "a", width=5)
    moved = IndexMap(np.array([3, 2, 1, 0, 0]), 4)
    wrong = with_term(good, "n.running_mean", Apply("take", (Ref("n.running_mean"), moved, 0)))
    check = check_use(wrong, STANDARD, "train")
    assert not check.equal
    assert check.mismatch is not None
    assert check.mismatch.value == "n.running_mean"


def test_a_plan_that_moves_a_reader_elsewhere_is_caught() -> None:
    """The check reads what nodes read off the graphs, whatever the plan says of it."""
    graph = net(IMAGE + "a = x |> conv(4, 3)\nb = a |> relu\nend = b |> conv(6, 3)" + HEAD)
    builder = graph.edit()
    builder.put(replace(graph.node("end"), inputs=(Value("a"),)))
    forged = Plan(LIBRARY["deepen"], "b", {}, 0, graph, builder.build(), {})
    assert not check_use(forged, STANDARD, "eval").equal
    builder = graph.edit()
    builder.outputs = [replace(graph.outputs[0], value=Value("global_avg_pool"))]
    forged = Plan(LIBRARY["deepen"], "b", {}, 0, graph, builder.build(), {})
    assert not check_use(forged, STANDARD, "eval").equal


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_deepen(kernel: int) -> None:
    graph = net(IMAGE + "a = x |> conv(4, 3) |> relu\nend = a |> relu" + HEAD)
    made = plan(graph, "deepen", "a.relu", kernel=kernel)
    assert equal(made) == {"eval", "train"}
    assert drift(made) == 0
    node = made.after.node("a.new")
    assert node.attrs["kernel"] == (kernel, kernel)
    assert [v.node for v in made.after.node("end").inputs] != ["a.relu"]
    assert "a.new.weight" in made.after.parameters


def test_deepen_of_a_value_that_is_an_output_and_is_read() -> None:
    graph = net(IMAGE + "a = x |> conv(4, 3)\nend = a |> relu\noutput z = end" + HEAD)
    made = plan(graph, "deepen", "end")
    assert equal(made) == {"eval", "train"}
    old = {o.name: o.value.node for o in graph.outputs}
    new = {o.name: o.value.node for o in made.after.outputs}
    assert (old["z"], new["y"]) == ("end", "fc")
    assert new["z"] not in graph


DEEP = net(IMAGE + "a = x |> conv(4, 3)\nend = a |> relu" + HEAD)


def test_deepen_batch_norm_uncalibrated() -> None:
    made = plan(DEEP, "deepen.batch_norm", "end")
    assert equal(made) == {"eval"}
    assert drift(made) < 1e-12
    assert drift(made, "train") > 1e-3
    params = {p.removeprefix("new_bn.") for p in made.terms if p.startswith("new_bn.")}
    assert params == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def test_deepen_batch_norm_calibrated() -> None:
    """With the biased statistics of the very batch it is exact in training too."""
    made = plan(DEEP, "deepen.batch_norm", "end")
    k = Floating(np.float64)
    weights = init_weights(DEEP, STANDARD, 3)
    old = {p: np.asarray(a, np.float64) for p, a in weights.items()}
    x = np.random.Generator(np.random.PCG64(5)).standard_normal((6, 3, 8, 8))
    feeds = {Value("x"): x}
    (values,) = run(DEEP, STANDARD, k, feeds, old, wanted=[Value("end")]).values.values()
    measured = {
        Statistic("mean", "end", 0, 4): values.mean(axis=(0, 2, 3)),
        Statistic("variance", "end", 0, 4): values.var(axis=(0, 2, 3)),
    }
    new = dict(old)
    new.update({p: evaluate(t, k, old, measured) for p, t in made.terms.items()})
    for mode in ("eval", "train"):
        (a,) = run(DEEP, STANDARD, k, feeds, old).values.values()
        (b,) = run(made.after, STANDARD, k, feeds, new, mode=mode).values.values()
        assert np.abs(a - b).max() < 1e-12 * np.abs(a).max()
    assert (new["new_bn.running_mean"] == values.mean(axis=(0, 2, 3))).all()
    applied = apply_terms(made.terms, made.after, weights, measured)
    assert {a.dtype.name for a in applied.values()} == {"float32", "int64"}
    assert applied["a.weight"] is weights["a.weight"]


def test_rewrites_compose() -> None:
    """Two plans in a row, as one pass over the weights and one after the other."""
    graph: Graph = net(CHAIN)
    first = plan(graph, "deepen", "r")
    second = plan(first.after, "widen", "a", 1, width=6)
    third = plan(second.after, "widen", "end", 2, width=9)
    weights = {p: np.asarray(a, np.float64) for p, a in init_weights(graph, STANDARD, 1).items()}
    step = weights
    whole: dict[str, Any] = {}
    for made in (first, second, third):
        assert equal(made) == {"eval", "train"}
        step = apply_terms(made.terms, made.after, step)
        whole = compose_terms(whole, made.terms, made.after)
    once = apply_terms(whole, third.after, weights)
    assert once.keys() == step.keys()
    for path, array in once.items():
        assert np.allclose(array, step[path], rtol=1e-6, atol=0)


def test_every_site_that_is_listed_is_accepted() -> None:
    for body, _, _ in WIDENED.values():
        planner = Planner(net(body), STANDARD)
        for found in LIBRARY.values():
            for site in planner.sites(found):
                arguments = planner.example_arguments(found, site.at)
                made = planner.plan(found, site.at, arguments)
                assert equal(made) == set(found.contract.function)


def test_a_parameter_with_two_axes_has_two_sites() -> None:
    free = net(
        "input x: f32[N, 8]\nparam v: f32[8, 4]\nw = v * 2.0 |> b: linear(6) |> softmax\n"
        "output y = x"
    )
    planner = Planner(free, STANDARD)
    assert [s.at for s in planner.sites(LIBRARY["widen"])] == ["v.axis0", "v.axis1"]
    for at, axis in (("v.axis0", 0), ("v.axis1", 1)):
        made = planner.plan(LIBRARY["widen"], at, {"width": 9})
        assert equal(made) == {"eval", "train"}
        assert made.after.node("v").attrs["shape"][axis] == 9  # type: ignore[index]
        assert drift(made) < 1e-12
    found = failure(free, "widen", "v", width=9)
    assert found.diagnostics[0].code == "A305"
    assert "`v.axis0` (8), `v.axis1` (4)" in found.diagnostics[0].message
    assert found.status == 1


def test_the_channels_of_a_linear_layer_are_its_last_axis() -> None:
    body = "input x: f32[N, 8, 6]\na = x |> linear(5)\nr = a |> relu\noutput y = r |> b: linear(3)"
    made = plan(net(body), "widen", "r", width=7)
    assert equal(made) == {"eval", "train"}
    assert made.after.node("a").attrs["out"] == 7
    found = failure(net("input x: f32[N, 8, 6]\noutput y = x |> relu"), "widen", "relu", width=9)
    assert found.diagnostics[0].node == "x"
