"""The closed-form refit: it recovers what can be, says what cannot, and is the same again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from archir.diag import Source
from archir.ir.graph import Graph, Value
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating
from archir.ops.evaluate import run
from archir.proof import refit as module
from archir.proof.refit import Recovery, refit
from archir.rewrite.library import installed
from archir.rewrite.plan import Plan, apply_terms
from archir.rewrite.rulefile import parse_rules
from archir.rewrite.sites import Planner
from archir.weights.init import init_weights

LIBRARY = installed(STANDARD)
IMAGES = 24
Weights = dict[str, Any]


def network(body: str) -> Graph:
    return load(Source("net.arch", f"arch net {{ {body} }}"), STANDARD).graph


def forget(match: str, replace: str, weights: str) -> Any:
    """A rule that puts other weights in the place of a layer's."""
    text = f"""rule forget() {{
        "Other weights."
        preserves shape
        match   {{ y = {match} }}
        replace {{ y = {replace} }}
        weights {{ {weights} }}
    }}"""
    (rule,) = parse_rules(Source("forget.rule", text), STANDARD)
    return rule


def planned(graph: Graph, rule: Any, **given: int) -> tuple[Plan, Weights, Weights]:
    """A plan at the rule's only site, and the weights before and after."""
    rule = LIBRARY[rule] if isinstance(rule, str) else rule
    old = init_weights(graph, STANDARD, 1, random_statistics=True)
    rng = np.random.Generator(np.random.PCG64(9))
    for path, array in old.items():
        if path.endswith(".bias"):
            old[path] = rng.standard_normal(array.shape).astype(np.float32)
    planner = Planner(graph, STANDARD)
    site = planner.sites(rule)[0]
    plan = planner.plan(rule, site.at, given, 2)
    return plan, old, apply_terms(plan.terms, plan.after, old)


def images(graph: Graph, count: int = IMAGES) -> Weights:
    rng = np.random.Generator(np.random.PCG64(4))
    feeds = {}
    for name in graph.inputs:
        shape = [n for n in graph.node(name).types[0].shape[1:] if isinstance(n, int)]
        feeds[name] = rng.standard_normal((count, *shape), dtype=np.float32)
    return feeds


def values(graph: Graph, weights: Weights, feeds: Weights, name: str | None = None) -> Any:
    k = Floating(np.float64)
    wide = {p: np.asarray(a, np.float64) for p, a in weights.items()}
    fed = {Value(n): np.asarray(x, np.float64) for n, x in feeds.items()}
    wanted = graph.outputs[0].value if name is None else Value(name)
    return run(graph, STANDARD, k, fed, wide, wanted=[wanted]).values[wanted]


X4 = "input x: f32[N, 4, 6, 5]"
CONV = "x |> c: conv(o, k, s, p, d, g)", "x |> new: conv(o, k, s, p, d, g, bias = c.bias)"


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (f"{X4} output y = x |> c: conv(6, 3, 2)", forget(*CONV, "new.weight = c.weight * 0.3\n"
         "new.bias = c.bias * 0.1")),
        (f"{X4} output y = x |> c: conv(6, 3, groups = 2)", forget(*CONV, "new.weight = initial()\n"
         "new.bias = 0")),
        (f"{X4} output y = x |> c: conv(6, 3, 1, 0, 2, bias = false)", forget(
            "x |> c: conv(o, k, s, p, d)", "x |> new: conv(o, k, s, p, d, bias = false)",
            "new.weight = initial()")),
        ("input x: f32[N, 5, 7] output y = x |> c: linear(3)", forget(
            "x |> c: linear(o)", "x |> new: linear(o)", "new.weight = initial() new.bias = 0")),
        ("input x: f32[N, 7] output y = x |> c: linear(3, bias = false)", forget(
            "x |> c: linear(o)", "x |> new: linear(o, bias = false)", "new.weight = initial()")),
        (f"{X4} output y = x |> c: conv(6, 3, bias = false) |> b: batch_norm", forget(
            "x |> c: conv(o, k) |> b: batch_norm",
            "x |> new: conv(o, k, bias = false) |> n: batch_norm",
            "new.weight = initial() n.weight = 1 n.bias = 0 n.running_mean = 0 n.running_var = 1")),
        (f"{X4} output y = x |> c: conv(6, 3) |> b: batch_norm", forget(
            "x |> c: conv(o, k) |> b: batch_norm", "x |> new: conv(o, k) |> n: batch_norm",
            "new.weight = initial() new.bias = 2 n.weight = 1 n.bias = 0\n"
            "n.running_mean = 0 n.running_var = 1")),
        (f"{X4} output y = x |> b: batch_norm", forget(
            "x |> b: batch_norm", "x |> n: batch_norm",
            "n.weight = 1 n.bias = 0 n.running_mean = 0 n.running_var = 1")),
    ],
)  # fmt: skip
def test_what_the_layer_can_say_is_recovered_whole(body: str, rule: Any) -> None:
    graph = network(body)
    plan, old, new = planned(graph, rule)
    feeds = images(graph)
    before = values(graph, old, feeds)
    assert np.abs(values(plan.after, new, feeds) - before).max() > 0.1 * np.abs(before).max()
    weights, (found,) = refit(plan, STANDARD, old, new, feeds)
    assert (found.layer != "", found.reason) == (True, "")
    assert found.before > 0.05
    assert found.after < 1e-6
    assert found.recovered > 0.9999
    after = values(plan.after, weights, images(graph, 50))
    wanted = values(graph, old, images(graph, 50))
    assert np.abs(after - wanted).max() <= 2e-3 * np.abs(wanted).max()
    assert {p: a.dtype for p, a in weights.items()} == {p: a.dtype for p, a in new.items()}


def test_a_batch_norm_that_is_fit_holds_the_statistics_of_what_it_reads() -> None:
    graph = network(f"{X4} output y = x |> relu |> c: conv(4, 5, bias = false) |> b: batch_norm")
    plan, old, new = planned(graph, "nat.conv_to_conv", kernel=3)
    feeds = images(graph, 40)
    weights, (found,) = refit(plan, STANDARD, old, new, feeds)
    assert found.after < found.before
    fitted = {"x": feeds["x"][: found.fitted]}
    norm = next(n for n in plan.after if n.op == "batch_norm")
    read = values(plan.after, weights, fitted, norm.inputs[0].node)
    for role, wanted in (("mean", read.mean((0, 2, 3))), ("var", read.var((0, 2, 3)))):
        held = weights[norm.params[f"running_{role}"]]
        assert np.abs(held - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_it_is_least_squares() -> None:
    """Against another way to solve it: what is held out shows what was fit."""
    graph = network("input x: f32[N, 9] output y = x |> fc: linear(8)")
    plan, old, new = planned(graph, "linear.low_rank", rank=3)
    mixed = np.random.Generator(np.random.PCG64(6)).standard_normal((9, 9), dtype=np.float32)
    feeds = {"x": images(graph, 200)["x"] @ mixed}  # of white noise there is nothing to learn
    weights, (found,) = refit(plan, STANDARD, old, new, feeds)
    fit, rest = slice(found.fitted), slice(found.fitted, None)
    narrow = np.asarray(feeds["x"], np.float64) @ new["narrow.weight"].T.astype(np.float64)
    target = values(graph, old, feeds)
    columns = np.c_[narrow, np.ones(len(narrow))]
    solution = np.linalg.lstsq(columns[fit], target[fit], rcond=None)[0]
    assert np.abs(weights["fc.weight"] - solution[:-1].T).max() <= 1e-4
    assert np.abs(weights["fc.bias"] - solution[-1]).max() <= 1e-4
    wrong = np.square(columns[rest] @ solution - target[rest]).sum()
    assert abs(found.after - wrong / np.square(target[rest]).sum()) <= 1e-6
    lost = values(plan.after, new, feeds)[rest] - target[rest]
    assert abs(found.before - np.square(lost).sum() / np.square(target[rest]).sum()) <= 1e-9


def test_other_batch_norms_get_the_statistics_of_what_they_now_read() -> None:
    unit = "|> relu |> d{0}: conv(4, 5, groups = 4, bias = false) |> q{0}: conv(4, bias = false)"
    graph = network(f"{X4} output y = x {unit.format(1)} |> b1: batch_norm {unit.format(2)}"
                    " |> b2: batch_norm")  # fmt: skip
    plan, old, new = planned(graph, "nat.sep_to_sep")
    feeds = images(graph)
    weights, (found,) = refit(plan, STANDARD, old, new, feeds)
    assert "q2" in found.layer
    first = next(n for n in plan.after if n.op == "batch_norm")
    read = values(plan.after, weights, {"x": feeds["x"][: found.fitted]}, first.inputs[0].node)
    wanted = read.mean(axis=(0, 2, 3))
    assert np.abs(weights[first.params["running_mean"]] - wanted).max() <= 1e-6
    assert np.abs(old[first.params["running_mean"]] - wanted).max() > 1e-2
    untouched = [p for p in new if "d1" in p or "q1" in p or "d2" in p]
    assert all(np.array_equal(new[p], weights[p]) for p in untouched)


def test_what_reads_a_pruned_class_is_fit() -> None:
    graph = network(f"{X4} a = x |> c1: conv(8, 3) |> relu output y = a |> c2: conv(3, 3)")
    rule = LIBRARY["prune"]
    old = init_weights(graph, STANDARD, 1, random_statistics=True)
    plan = Planner(graph, STANDARD).plan(rule, "a.c1", {"width": 6}, 0)
    new = apply_terms(plan.terms, plan.after, old)
    weights, (found,) = refit(plan, STANDARD, old, new, images(graph, 64))
    assert found.layer == "c2"
    assert found.after < 0.9 * found.before
    assert np.array_equal(weights["a.c1.weight"], new["a.c1.weight"])


EDGE = "x |> relu |> c: conv(4, 5, bias = false)"


@pytest.mark.parametrize(
    ("body", "rule", "given", "reason"),
    [
        (f"{X4} output y = x |> relu |> c: conv(4, 3, bias = false) |> b: batch_norm",
         "nat.conv_to_max", {"kernel": 3}, "`max_pool`, which has no weights"),
        (f"{X4} output y = x |> relu |> c: conv(4, 3, bias = false) |> b: batch_norm",
         "nat.conv_to_skip", {}, "handed on"),
        (f"{X4} output y = {EDGE} |> b: batch_norm(affine = false)",
         "nat.conv_to_conv", {"kernel": 3}, "no scale and statistics"),
    ],
)  # fmt: skip
def test_where_there_is_nothing_to_fit_it_says_so(
    body: str, rule: str, given: Any, reason: str
) -> None:
    plan, old, new = planned(network(body), rule, **given)
    weights, (found,) = refit(plan, STANDARD, old, new, images(plan.before))
    assert reason in found.reason
    assert found.layer == ""
    assert found.before == found.after > 0
    assert "not refit" in found.text()
    assert all(np.array_equal(new[p], weights[p]) for p in new)


def test_a_layer_with_too_many_inputs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COLUMNS", 8)
    plan, old, new = planned(network(f"{X4} output y = x |> c: conv(6, 5)"), "conv.kernel")
    _, (found,) = refit(plan, STANDARD, old, new, images(plan.before))
    assert "more than 8 inputs" in found.reason


def test_a_fit_that_does_no_better_on_other_images_is_not_kept() -> None:
    graph = network("input x: f32[N, 30] output y = x |> fc: linear(29)")
    plan, old, new = planned(graph, "linear.low_rank", rank=14)
    weights, (found,) = refit(plan, STANDARD, old, new, images(graph, 16))
    assert found.reason == "no fit does better on the held-out images"
    assert all(np.array_equal(new[p], weights[p]) for p in new)


def test_nothing_is_fit_where_nothing_was_lost() -> None:
    graph = network(f"{X4} output y = x |> relu |> c: conv(4, 3)")
    plan, old, new = planned(graph, "deepen")
    weights, (found,) = refit(plan, STANDARD, old, new, images(graph))
    assert found.before == 0
    assert all(np.array_equal(new[p], weights[p]) for p in new)


def test_too_few_images_fit_nothing() -> None:
    plan, old, new = planned(network(f"{X4} output y = x |> c: conv(6, 5)"), "conv.kernel")
    assert refit(plan, STANDARD, old, new, images(plan.before, 3)) == (new, [])


def test_it_comes_out_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 100)
    monkeypatch.setattr(module, "PER_COLUMN", 2)
    rule = forget(*CONV, "new.weight = initial() new.bias = 0")
    plan, old, new = planned(network(f"{X4} output y = x |> c: conv(6, 3)"), rule)
    one, two = (refit(plan, STANDARD, old, new, images(plan.before)) for _ in range(2))
    assert one[1] == two[1]
    assert one[1][0].after < 1e-6  # from a part of the positions too
    assert all(np.array_equal(one[0][p], two[0][p]) for p in new)


@pytest.mark.parametrize(("total", "share"), [(10, 1.0), (10, 0.35), (1, 0.01), (4096, 0.1)])
def test_places_are_spread(total: int, share: float) -> None:
    found = module._spread(total, share)
    assert len(set(found.tolist())) == len(found) == max(1, round(total * share))
    assert found.min() >= 0
    assert found.max() < total
    if len(found) > 100:
        assert np.diff(found).max() <= 4 / share


def test_what_is_said() -> None:
    found = Recovery("conv1", "conv1.point", 0.41, 0.07, 768, 256)
    assert found.text() == (
        "conv1: refit of conv1.point recovered 83% of the lost output energy: 0.41 -> 0.07 "
        "(fit to 768 images, measured on 256 others)"
    )
