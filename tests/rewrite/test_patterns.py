"""Rules of a user's own: matching, planning and checking."""

from __future__ import annotations

import pytest

from archir.diag import ArchirError
from archir.ir.graph import Graph, Value
from archir.ops import STANDARD
from archir.ops.arithmetic import Rational
from archir.proof import uses
from archir.proof.exact import Trial, check_use, trial_of
from archir.proof.uses import check_plan
from archir.rewrite.match import Failure, Match, Matcher
from archir.rewrite.plan import Plan, region_of
from archir.rewrite.rule import Rule
from archir.rewrite.sites import Planner

from .nets import HEAD, IMAGE, drift, equal, failure, net, plan, rule

GROW = rule("""rule grow(more: even = 2) {
    match   { y = x |> c: conv(o, k, padding = p) |> relu }     where rank(x) == 4
    replace { y = x |> c: conv(o, k + more, padding = p + more // 2) |> relu }
    weights { c.weight = pad(c.weight, more // 2) }
}""")
DROP = rule("""rule drop() {
    match   { y = x |> relu |> relu }
    replace { y = relu(x) }
}""")
LONE = rule("""rule lone() {
    match   { y = x |> max_pool(1) }
    replace { y = x }
}""")
MERGE = rule("""rule merge() {
    match   { a = x |> p: conv(o, k, s)  b = x |> q: conv(r, k, s)  y = concat(a, b) }
    replace { y = x |> p: conv(o + r, k, s) }
    weights { p.weight = concat(p.weight, q.weight, 0)    p.bias = concat(p.bias, q.bias, 0) }
}""")
BRANCH = rule("""rule branch() {
    match   { y = relu(x) }                                     where rank(x) == 4
    replace { y = relu(x) + (x |> new: conv(channels(x), 3) |> bn: batch_norm) }
    weights {
        let n = channels(x)
        new.weight = ones(n, n, 3, 3)   new.bias = 0.5
        bn.weight = zeros(n)    bn.bias = 0    bn.running_mean = 0    bn.running_var = ones(n)
    }
}""")
LAYERS = IMAGE + "a = x |> c: conv(4, 3, 2) |> relu\nend = a |> d: conv(6, [3, 5]) |> relu" + HEAD


def at(of: Rule, graph: Graph, name: str) -> Match | Failure:
    arguments = {p.name: p.default for p in of.parameters if p.default is not None}
    return Matcher(of, graph, STANDARD, arguments).at(graph.node(name))


def sites(of: Rule, graph: Graph) -> list[str]:
    return [site.at for site in Planner(graph, STANDARD).sites(of)]


def test_attributes_are_bound() -> None:
    found = at(GROW, net(LAYERS), "a.relu")
    assert isinstance(found, Match)
    assert found.variables == {"x": Value("x")}
    assert {k: n.name for k, n in found.nodes.items()} == {"c": "a.c", "relu": "a.relu"}
    assert found.scalars == {"more": 2, "o": 4, "k": 3, "p": 1}
    found = at(GROW, net(LAYERS), "end.relu")
    assert isinstance(found, Match)
    assert (found.scalars["k"], found.scalars["p"]) == ((3, 5), (1, 2))


def test_an_updated_node() -> None:
    made = plan(net(LAYERS), GROW, "a.relu", more=4)
    assert equal(made) == {"eval", "train"}
    assert drift(made) < 1e-12
    node = made.after.node("a.c")
    assert node.attrs["kernel"] == (7, 7)
    assert node.attrs["padding"] == (3, 3)
    assert node.attrs["stride"] == (2, 2), "what the rule does not state stays"
    assert made.terms.keys() == {"a.c.weight"}
    assert made.after.parameters["a.c.weight"].type.shape == (4, 3, 7, 7)
    assert {n.name for n in made.after} == {n.name for n in made.before}


def test_an_identity_is_removed() -> None:
    graph = net(IMAGE + "a = x |> relu\nb = a |> relu\nend = b |> conv(4, 3)\noutput z = b" + HEAD)
    made = plan(graph, DROP, "b")
    assert equal(made) == {"eval", "train"}
    assert drift(made) == 0
    assert {n.name for n in made.before} - {n.name for n in made.after} == {"b"}
    assert [o.value.node for o in made.after.outputs] == ["a", "fc"]
    graph = net(IMAGE + "a = x |> max_pool(1)\nend = a |> conv(4, 3)\noutput z = a" + HEAD)
    made = plan(graph, LONE, "a")
    assert equal(made) == {"eval", "train"}
    assert made.after.outputs[0].value == Value("x")
    assert made.values == {Value("a"): Value("x")}


def test_two_layers_are_merged() -> None:
    graph = net(
        IMAGE + "a = x |> conv(4, 3, 2)\nb = x |> conv(2, 3, 2)\nend = concat(a, b) |> relu" + HEAD
    )
    assert sites(MERGE, graph) == ["end.concat"]
    made = plan(graph, MERGE, "end.concat")
    assert equal(made) == {"eval", "train"}
    assert drift(made) < 1e-12
    assert "b" not in made.after
    assert made.after.node("a").attrs["out"] == 6
    assert "b.weight" not in made.after.parameters


@pytest.mark.parametrize(
    ("body", "node", "says"),
    [
        ("a = x |> conv(4, 3)\nb = x |> conv(2, 5)", "b", "its kernel is 5, the rule wants 3"),
        ("a = x |> conv(4, 3)\nb = x |> relu |> c: conv(2, 3)", "b.c", "`x` would be"),
        ("a = x |> conv(4, 3)\nb = x |> max_pool(3, 1, 1)", "b", "it is `max_pool`"),
        ("a = x |> conv(4, 3)\nb = a", "end", "it reads 1 tensors"),
    ],
)
def test_the_best_failed_match(body: str, node: str, says: str) -> None:
    joined = "concat(a)" if "b = a" in body else "concat(a, b)"
    graph = net(f"{IMAGE}{body}\nend = {joined}{HEAD}")
    found = at(MERGE, graph, "end")
    assert isinstance(found, Failure)
    assert found.node == node, found
    assert says in found.reason


def test_a_merge_of_layers_that_others_read() -> None:
    graph = net(
        IMAGE + "a = x |> conv(4, 3)\nb = x |> conv(2, 3)\nend = concat(a, b)\noutput z = b" + HEAD
    )
    found = at(MERGE, graph, "end")
    assert isinstance(found, Failure)
    assert (found.node, found.reason) == ("b", "it is an output of the network")


def test_one_node_is_not_matched_twice() -> None:
    graph = net(IMAGE + "a = x |> conv(4, 3)\nend = concat(a, a)" + HEAD)
    assert isinstance(at(MERGE, graph, "end"), Failure)


def test_new_nodes() -> None:
    graph = net(IMAGE + "a = x |> conv(4, 3)\nend = a |> relu" + HEAD)
    made = plan(graph, BRANCH, "end")
    assert equal(made) == {"eval", "train"}
    assert drift(made) == drift(made, "train") == 0
    new = {n.name for n in made.after} - {n.name for n in graph}
    assert new == {"add", "new", "bn"}
    assert made.after.node("global_avg_pool").inputs == (Value("add"),)
    assert made.after.parameters["bn.running_mean"].buffer
    assert not made.after.parameters["bn.weight"].buffer
    assert {"bn.num_batches_tracked", "new.bias"} <= made.terms.keys()


def test_fresh_names() -> None:
    graph = net(
        IMAGE
        + "new = x |> conv(4, 3)\nbn.add = new |> relu\nend = bn.add |> conv(4) |> relu"
        + HEAD
    )
    made = plan(graph, BRANCH, "end.relu")
    new = {n.name for n in made.after} - {n.name for n in graph}
    assert new == {"end.new", "end.bn", "end.add"}
    twice = plan(made.after, BRANCH, "end.relu")
    assert equal(twice) == {"eval", "train"}
    assert {n.name for n in twice.after} - {n.name for n in made.after} == {
        *("end.new1", "end.bn1", "end.add1")
    }
    assert len(twice.after) == len(graph) + 6
    paths = [p for n in twice.after for p in n.params.values()]
    assert len(paths) == len(set(paths)) == len(twice.after.parameters)


def test_a_new_layer_is_not_taken_for_a_matched_one() -> None:
    """The right side's new convolution has the operator, operand and sizes of the left's."""
    twin = rule("""rule twin() {
        match   { y = x |> c: conv(o, k) }                      where channels(x) == o
        replace { y = (x |> d: conv(o, k)) + (x |> c: conv(o, k)) }
        weights { d.weight = zeros(o, o, k, k)   d.bias = zeros(o) }
    }""")
    graph = net(IMAGE + "a = x |> conv(4)\nend = a |> conv(4, 3)" + HEAD)
    made = plan(graph, twin, "end")
    assert equal(made) == {"eval", "train"}
    assert made.terms.keys() == {"d.weight", "d.bias"}
    assert drift(made) == 0


def test_a_new_layer_takes_defaults_not_what_was_matched() -> None:
    pools = rule("""rule pools() {
        match   { y = x |> p: max_pool(k, 1) }
        replace { y = max_pool(x, k, 1) }
    }""")
    graph = net(IMAGE + "a = x |> conv(4, 3)\nend = a |> max_pool(3, 1, 1)" + HEAD)
    found = failure(graph, pools, "end").diagnostics[0]
    assert found.code == "A306"
    assert "f32[N, 4, 6, 6] instead of f32[N, 4, 8, 8]" in found.message
    graph = net(IMAGE + "a = x |> conv(4, 3)\nend = a |> max_pool(3, 1)" + HEAD)
    assert equal(plan(graph, pools, "end")) == {"eval", "train"}


def test_values_may_change_places() -> None:
    """p becomes q and q becomes p: both are moved at once, and both are checked."""
    swap = rule("""rule swap() {
        match   { p = relu(x)   q = relu(p) }
        replace { s = relu(x)   t = relu(s)   p = t   q = s }
    }""")
    graph = net(IMAGE + "a = x |> relu\nb = a |> relu\nend = a |> conv(4)\noutput z = b" + HEAD)
    made = plan(graph, swap, "b")
    assert made.values == {Value("a"): Value("b"), Value("b"): Value("a")}
    assert made.after.node("end").inputs == (Value("b"),)
    assert made.after.outputs[0].value == Value("a")
    assert equal(made) == {"eval", "train"}
    twice = rule("""rule swap() {
        match   { p = relu(x)   q = dropout(p) }
        replace { s = relu(x)   t = s + s   p = t   q = s }
    }""")
    graph = net(IMAGE + "a = x |> relu\nb = a |> dropout\nend = a |> conv(4)\noutput z = b" + HEAD)
    with pytest.raises(ArchirError, match="A401"):
        check_plan(plan(graph, twice, "b"), STANDARD)


def test_a_parameter_of_the_networks_own() -> None:
    scale = rule("""rule scale() {
        match   { y = x |> c: conv(o, k, bias = false) }        where rank(x) == 4
        replace { y = (x |> c: conv(o, k, bias = false)) * (s: parameter([o, 1, 1])) }
        weights { s.value = 1 }
    }""")
    graph = net(IMAGE + "end = x |> conv(4, 3, bias = false)" + HEAD)
    made = plan(graph, scale, "end")
    assert equal(made) == {"eval", "train"}
    assert made.after.parameters["s"].type.shape == (4, 1, 1)
    assert made.after.node("s").params == {"value": "s"}


def test_several_results() -> None:
    with pytest.raises(ArchirError, match="an attribute of the left side is"):
        rule("rule r() { match { a, b = split(x, [m, n])  y = a + b } replace { y = x } }")
    body = IMAGE + "c = x |> conv(6, 3)\np, q = split(c, sizes = [2, 4])\n"
    graph = net(body + "end = concat(p, q) |> relu" + HEAD)
    halves = rule("""rule halves() {
        match   { a, b = split(x, cuts)  y = concat(a, b) }
        replace { y = x }
    }""")
    assert equal(plan(graph, halves, "end.concat")) == {"eval", "train"}
    turned = net(body + "end = concat(q, p) |> relu" + HEAD)
    found = at(halves, turned, "end.concat")
    assert isinstance(found, Failure)
    assert "through another output" in found.reason


def test_guards() -> None:
    used = rule("""rule used(least: int) {
        match { y = relu(x) }    where uses(y) >= 2, size(x, 2) > least, channels(x) % 2 == 0
        replace { y = relu(x) }
    }""")
    graph = net(
        IMAGE
        + "a = x |> conv(4) |> relu\nb = a |> relu\nc = x |> relu\nend = concat(a, b, c, c)"
        + HEAD
    )
    assert sites(used, graph) == ["a.relu"], "a guard on a parameter without a value holds"
    assert failure(graph, used, "b", least=1).diagnostics[0].message.endswith("uses(y) is 1")
    found = failure(graph, used, "a.relu", least=8).diagnostics[0]
    assert "the rule wants size(x, 2) > least" in found.message
    assert failure(graph, used, "c", least=1).diagnostics[0].message.endswith("% 2 is 1")
    assert plan(graph, used, "a.relu", least=7).terms == {}


def test_a_guard_on_a_symbolic_size_does_not_hold() -> None:
    wide = rule(
        "rule wide() { match { y = relu(x) } where size(x, 0) > 0 replace { y = relu(x) } }"
    )
    assert sites(wide, net(IMAGE + "end = x |> relu" + HEAD)) == []
    fixed = net("input x: f32[2, 3, 8, 8]\nend = x |> relu" + HEAD)
    assert sites(wide, fixed) == ["end"]


def test_a_wrong_rule_is_refuted_at_use() -> None:
    graph = net(LAYERS)
    for text, weight in (
        ("c.weight", "pad(c.weight, 1) * 2"),
        (
            "c.weight",
            "concat(slice(pad(c.weight, 1), 0, 1, 4), slice(pad(c.weight, 1), 0, 0, 1), 0)",
        ),
    ):
        wrong = rule(f"""rule wrong() {{
            match   {{ y = x |> c: conv(o, k) |> relu }}
            replace {{ y = x |> c: conv(o, k + 2, padding = c.padding + 1) |> relu }}
            weights {{ {text} = {weight} }}
        }}""")
        with pytest.raises(ArchirError) as caught:
            check_plan(plan(graph, wrong, "a.relu"), STANDARD)
        assert caught.value.diagnostics[0].code == "A401"
        assert caught.value.diagnostics[0].node == "a.relu"


def test_a_map_that_divides_by_nothing_cannot_be_checked() -> None:
    graph = net(IMAGE + "end = x |> conv(4)" + HEAD)
    for divisor in ("zeros(1)", "(c.weight - c.weight)"):
        wrong = rule(f"""rule wrong() {{
            match   {{ y = x |> c: conv(o) }}
            replace {{ y = x |> c: conv(o, c.kernel, c.stride, c.padding) }}
            weights {{ c.weight = c.weight / {divisor} }}
        }}""")
        with pytest.raises(ArchirError) as caught:
            check_plan(plan(graph, wrong, "end"), STANDARD)
        assert [d.code for d in caught.value.diagnostics] == ["A405"]


def test_another_draw_where_a_weight_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(net(IMAGE + "end = x |> relu" + HEAD), "deepen", "end")
    seeds = []

    def unlucky(plan: Plan, *, seed: int) -> Trial:
        seeds.append(seed)
        if len(seeds) == 1:
            raise ZeroDivisionError
        return trial_of(plan, seed=seed)

    monkeypatch.setattr(uses, "trial_of", unlucky)
    assert equal(made) == {"eval", "train"}
    assert seeds == [0, 1]


def test_what_an_order_decides_goes_to_fractions() -> None:
    """ReLU and maximum commute; in GF(p) their stand-ins do not."""
    commute = rule("""rule commute() {
        match   { y = x |> relu |> max_pool(k, padding = 0) }
        replace { y = x |> max_pool(k, padding = 0) |> relu }
    }""")
    graph = net(IMAGE + "a = x |> relu\nend = a |> max_pool(2)" + HEAD)
    made = plan(graph, commute, "end")
    assert not check_use(made, STANDARD, "eval").equal
    assert check_use(made, STANDARD, "eval", arithmetic=Rational()).equal
    assert equal(made) == {"eval", "train"}
    wrong = rule("""rule wrong() {
        match   { y = x |> relu |> max_pool(k, padding = 0) }
        replace { y = x |> relu |> avg_pool(k, padding = 0) }
    }""")
    with pytest.raises(ArchirError) as caught:
        check_plan(plan(graph, wrong, "end"), STANDARD)
    assert "in rational" in caught.value.diagnostics[0].message


def test_dropout_in_the_region_is_no_claim_in_training() -> None:
    through = rule("""rule through() {
        match   { y = x |> dropout |> relu }
        replace { y = x |> relu |> dropout }
    }""")
    graph = net(IMAGE + "a = x |> d: dropout\nend = a |> relu" + HEAD)
    checks, skipped = check_plan(plan(graph, through, "end"), STANDARD)
    assert [c.mode for c in checks] == ["eval"]
    assert skipped == {"train": "active dropout at a"} or "dropout" in skipped["train"]


def test_the_region_is_what_changes() -> None:
    body = "a = x |> conv(4, 3) |> relu\n" + "".join(
        f"b{i} = {'a' if not i else f'b{i - 1}'} |> conv(4, 3) |> relu\n" for i in range(5)
    )
    graph = net(IMAGE + body + "end = b4" + HEAD)
    region = region_of(plan(graph, GROW, "b2.relu"))
    assert [n.name for n in region.before] == ["b2.conv", "b2.relu"]
    assert region.feeds == (Value("b1.relu"),)
    assert region.checks == ((Value("b2.relu"), Value("b2.relu")),)


def test_rules_that_lack_a_weight() -> None:
    lacks = rule("""rule lacks() {
        match   { y = relu(x) }
        replace { y = relu(x) |> new: conv(channels(x), 3) }
        weights { new.bias = zeros(channels(x)) }
    }""")
    found = failure(net(LAYERS), lacks, "a.relu")
    assert found.diagnostics[0].code == "A221"
    assert "`lacks` gives no value to `a.new.weight`" in found.diagnostics[0].message
    assert found.status == 2


@pytest.mark.parametrize(
    ("weight", "code", "says"),
    [
        ("new.weight = identity(channels(x), 5, 5)", "A220", "[4, 4, 5, 5], its operator wants"),
        ("new.weight = identity(channels(x), 2, 2)", "A220", "odd extents"),
        ("new.weight = zeros(2.0)", "A220", "2.0 is not an integer"),
        ("new.weight = zeros(zeros(1))", "A220", "does not fit zeros(sizes...)"),
        ("new.weight = take(ones(3), replicate(4, 5), 0)", "A220", "size 3, the map is over 4"),
        ("new.weight = true", "A211", "given no weight"),
        ("new.weight = ones(1) // 2", "A211", "`//` has no meaning for weights"),
        ("new.weight = zeros(1 / 0)", "A211", "division by zero"),
        ("new.weight = zeros(none)", "A211", "no weight function takes none"),
        ("new.weight = ones(1) * [0.5]", "A211", "no weight function takes (0.5,)"),
        ("new.weight = zeros(99999999999 * 99999999999)", "A211", "too large"),
        ("new.weight = replicate(5, 4)", "A211", "replicate of 5 entries wants 5 to"),
        ("new.weight = zeros(size(x, 7))", "A211", "none is 7"),
        ("new.weight = zeros(size(x, 0))", "A211", "symbolic size N"),
        ("new.weight = zeros(ones(1) + 1 < 2)", "A211", "a number is wanted"),
    ],
)
def test_wrong_weights(weight: str, code: str, says: str) -> None:
    wrong = rule(f"""rule wrong() {{
        match   {{ y = relu(x) }}
        replace {{ y = relu(x) |> new: conv(channels(x), 3, bias = false) }}
        weights {{ {weight} }}
    }}""")
    found = failure(net(LAYERS), wrong, "a.relu")
    assert found.diagnostics[0].code == code
    assert says in found.diagnostics[0].message
    assert found.status == 2


def test_what_is_too_large_for_fractions_says_so() -> None:
    commute = rule("""rule commute() {
        match   { y = x |> relu |> max_pool(k, padding = 0) }
        replace { y = x |> max_pool(k, padding = 0) |> relu }
    }""")
    graph = net("input x: f32[N, 3, 199, 199]\na = x |> relu\nend = a |> max_pool(2)" + HEAD)
    with pytest.raises(ArchirError) as caught:
        check_plan(plan(graph, commute, "end"), STANDARD)
    hint = caught.value.diagnostics[0].hint
    assert "end depends on an order, which a field does not have" in hint


def test_patterns_hold_differences_and_quotients() -> None:
    turned = rule(
        "rule turn() { match { d = a - b } where rank(a) == 4\n"
        "replace { m = neg(b)\n d = a + m } weights { } }"
    )
    graph = net(IMAGE + "a = x |> conv(4, 3)\nb = x |> conv(4, 3)\nend = a - b" + HEAD)
    made = plan(graph, turned, "end")
    assert equal(made) == {"eval", "train"}
    assert [n.op for n in made.after].count("sub") == 0
