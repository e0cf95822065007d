"""Rules that keep the function where some weights are what the rule says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archir import api
from archir.diag import ArchirError
from archir.ir.graph import Graph
from archir.ops import STANDARD
from archir.ops.arithmetic import Array, Residues
from archir.proof.exact import trial_of
from archir.proof.uses import assured, check_plan
from archir.rewrite.assumed import UNITS, distances, put_in_place
from archir.rewrite.rule import Rule
from archir.rewrite.sites import Planner
from archir.weights.init import init_weights

from .nets import HEAD, IMAGE, drift, equal, failure, net, plan, rule

IDLE = rule("""rule idle() {
    "Take an identity convolution out."
    assumes c.weight == identity(channels(x), k, k)
    assumes c.bias == 0
    match   { y = c: conv(x, o, k, stride = 1, padding = "same", groups = 1) }
            where rank(x) == 4, k % 2 == 1
    replace { y = x }
}""")
DEAD = rule("""rule dead() {
    assumes c.weight == 0    assumes c.bias == 0
    match   { f = c: conv(z)  y = add(x, f) }                   where shape(x) == shape(f)
    replace { y = x }
}""")
BORDER = rule("""rule border() {
    assumes c.weight == pad(slice(slice(c.weight, 2, 1, 4), 3, 1, 4), 1)
    match   { y = c: conv(x, kernel = 5, padding = 2, dilation = 1) }    where rank(x) == 4
    replace { y = c: conv(x, kernel = 3, padding = 1) }
    weights { c.weight = slice(slice(c.weight, 2, 1, 4), 3, 1, 4) }
}""")
TWINS = rule("""rule twins() {
    assumes p.weight == q.weight    assumes p.bias == q.bias
    match   { a = p: conv(x)  b = q: conv(x)  y = concat(a, b) }
    replace { a = p: conv(x)  y = concat(a, a) }
}""")
BODY = IMAGE + "a = x |> c: conv(3, 3)\nb = a |> d: conv(3, 5, bias = false)\nend = a + b" + HEAD


def weights_of(graph: Graph, **given: Array | float) -> dict[str, Array]:
    """Initial weights, some of them replaced or filled."""
    held = init_weights(graph, STANDARD, 1)
    for path, value in given.items():
        name = path.replace("__", ".")
        held[name] = np.broadcast_to(np.float32(value), held[name].shape).copy()
    return held


def at(rule: Rule, graph: Graph, **given: Array | float) -> list[str]:
    return [s.at for s in Planner(graph, STANDARD, weights_of(graph, **given)).sites(rule)]


def centre(channels: int, kernel: int) -> Array:
    out = np.zeros((channels, channels, kernel, kernel), np.float32)
    out[range(channels), range(channels), kernel // 2, kernel // 2] = 1
    return out


def test_sites_are_where_the_assumption_holds() -> None:
    graph = net(BODY)
    assert at(IDLE, graph) == []
    assert at(IDLE, graph, a__c__weight=centre(3, 3)) == ["a.c"], "its bias is drawn as zeros"
    assert at(IDLE, graph, a__c__weight=centre(3, 3), a__c__bias=0.1) == []
    assert at(IDLE, graph, b__d__weight=centre(3, 5)) == ["b.d"], "an absent bias is zero"
    assert Planner(graph, STANDARD).sites(IDLE) == [], "without weights nothing tells"


@pytest.mark.parametrize(("of", "site"), [(IDLE, "a.c"), (DEAD, "end"), (BORDER, "b.d")])
def test_a_use_is_checked_where_the_assumption_holds(of: Rule, site: str) -> None:
    made = plan(net(BODY), of, site)
    assert made.assumed
    assert equal(made) == {"eval", "train"}
    trial = trial_of(made)
    again = put_in_place(made.assumed, trial.old, Residues())
    assert all(np.array_equal(array, trial.old[path]) for path, array in again.items())


def test_weights_that_are_as_assumed_keep_the_outputs() -> None:
    graph = net(BODY)
    made = plan(graph, BORDER, "b.d")
    held = weights_of(graph)
    held["b.d.weight"][:, :, [0, 4]] = 0
    held["b.d.weight"][:, :, :, [0, 4]] = 0
    assert [d.value for d in distances(made.assumed, held)] == [0]
    assert drift(made, weights=held) < 1e-12
    assert drift(made, weights=weights_of(graph)) > 1e-3


def test_the_distance_is_a_share_of_the_norm() -> None:
    graph = net(BODY)
    made = plan(graph, IDLE, "a.c")
    wrong = centre(3, 3)
    wrong[0, 0, 0, 0] = 2
    far, bias = distances(made.assumed, weights_of(graph, a__c__weight=wrong, a__c__bias=0.5))
    assert far.value == pytest.approx(2 / 7**0.5)
    assert bias.value == 1
    near = centre(3, 3) * np.float32(1 + UNITS * 2**-23)
    (held, zero) = distances(made.assumed, weights_of(graph, a__c__weight=near))
    assert held.holds
    assert held.value > 0
    assert zero.value == 0
    with pytest.raises(ArchirError) as found:
        assured(made, weights_of(graph, a__c__weight=wrong), approximate=False)
    assert found.value.diagnostics[0].code == "A314"
    assert "0.756 of its norm" in found.value.diagnostics[0].message


def test_of_two_matches_the_one_that_holds_is_taken() -> None:
    graph = net(IMAGE + "a = x |> c: conv(3, 3)\nb = x |> d: conv(3, 3)\nend = a + b" + HEAD)
    for zero, stays in (("a.c", "b.d"), ("b.d", "a.c")):
        given = {f"{zero.replace('.', '__')}__{role}": 0.0 for role in ("weight", "bias")}
        planner = Planner(graph, STANDARD, weights_of(graph, **given))
        assert [s.at for s in planner.sites(DEAD)] == ["end"]
        made = planner.plan(DEAD, "end", {})
        assert [new.node for new in made.values.values()] == [stays]
        assert equal(made) == {"eval", "train"}


@pytest.mark.parametrize(
    ("one", "two", "fits"), [("true", "true", 2), ("false", "false", 1), ("true", "false", 0)]
)
def test_weights_that_are_absent(one: str, two: str, fits: int) -> None:
    text = f"a = x |> p: conv(2, 1, bias = {one})\nb = x |> q: conv(2, 1, bias = {two})"
    graph = net(f"{IMAGE}{text}\nend = concat(a, b){HEAD}")
    if not fits:
        assert failure(graph, TWINS, "end").diagnostics[0].code == "A306"
        return
    made = plan(graph, TWINS, "end")
    assert len(made.assumed) == fits
    assert equal(made) == {"eval", "train"}


def test_what_does_not_stay_in_place_cannot_be_assumed() -> None:
    twice = rule("""rule twice() {
        assumes c.weight == c.weight * 2
        match   { y = c: conv(x) }
        replace { y = x |> new: conv(channels(y), c.kernel, c.stride, c.padding, bias = false) }
        weights { new.weight = c.weight }
    }""")
    with pytest.raises(ArchirError) as found:
        check_plan(plan(net(BODY), twice, "b.d"), STANDARD)
    assert found.value.diagnostics[0].code == "A405"


def test_an_assumption_of_another_shape_does_not_fit() -> None:
    graph = net(IMAGE + "end = x |> c: conv(4, 3)" + HEAD)
    found = failure(graph, IDLE, "c").diagnostics[0]
    assert found.code == "A306"
    assert "of shape [3, 3, 3, 3]; `end.c.weight` has [4, 3, 3, 3]" in found.message


@pytest.mark.parametrize(
    "text",
    [
        "rule bad() { assumes c.weight != 0 match { y = c: conv(x) } replace { y = x } }",
        "rule bad() { assumes 0 == c.weight match { y = c: conv(x) } replace { y = x } }",
        "rule bad() { assumes c.kernel == 3 match { y = c: conv(x) } replace { y = x } }",
        "rule bad() { assumes unread(g) match { y = c: conv(x) } replace { y = x } }",
        "rule bad() { assumes c.bias == mean(x) match { y = c: conv(x) } replace { y = x } }",
        """rule bad() { preserves shape assumes c.weight == 0
           match { y = c: conv(x) } replace { y = x } }""",
        """rule bad() { assumes c.weight == 0  over c = class(at)  let g = shuffle(size(c))
           produce take(g)  carry take(g)  consume take(g) }""",
    ],
)
def test_what_cannot_be_assumed(text: str) -> None:
    with pytest.raises(ArchirError) as found:
        rule(text)
    assert found.value.diagnostics[0].code == "A205"


def test_a_rewrite_that_assumes_is_certified(tmp_path: Path) -> None:
    (tmp_path / "idle.rule").write_text(IDLE.text)
    (tmp_path / "net.arch").write_text(f"version 1\narch test {{\n{BODY}\n}}\n")
    spec = str(tmp_path / "idle.rule")
    network = api.load(tmp_path / "net.arch").init(1)
    with pytest.raises(ArchirError) as found:
        network.rewrite(spec)
    assert "nearest: at b.d, it assumes" in found.value.diagnostics[0].message
    with pytest.raises(ArchirError) as found:
        network.rewrite(spec, "a.c")
    assert found.value.diagnostics[0].code == "A314"
    moved = network.rewrite(spec, "a.c", approximate=True)
    assert all(f.holds for f in moved.verify())
    (use,) = moved.certificate.steps[-1].facts["uses"]
    assert use["assumed"][0]["value"] > 0.5
    held = dict(network.weights or {}) | {"a.c.weight": centre(3, 3)}
    exact = network.with_weights(held, "given", {"note": "made idle"}).rewrite(spec)
    assert [d["value"] for d in exact.certificate.steps[-1].facts["uses"][0]["assumed"]] == [0, 0]
    assert exact.certificate.steps[-1].facts["drift"]["value"] == 0
    exact.save(tmp_path / "less.arch")
    assert all(f.holds for f in api.load(tmp_path / "less.arch").verify())
