"""What the rule language can say beyond patterns of operators and maps of their weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archir import api
from archir.diag import ArchirError
from archir.ir.types import AttrValue
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating
from archir.ops.cost import cost
from archir.proof.exact import trial_of
from archir.rewrite.explain import account, lines_of
from archir.rewrite.gains import gain
from archir.rewrite.gradients import maps_of
from archir.rewrite.library import find_rule, split_site
from archir.rewrite.plan import apply_terms
from archir.rewrite.sites import Planner
from archir.weights.functions import evaluate
from archir.weights.init import init_weights

from .nets import HEAD, IMAGE, LIBRARY, drift, equal, failure, net, plan, rule

ANYWHERE = rule("""rule anywhere(kernel: odd = 3) {
    match   { y = x }                                           where rank(x) == 4
    replace { y = x |> new: conv(channels(x), kernel) }
    weights { new.weight = identity(channels(x), kernel, kernel)    new.bias = 0 }
}""")
FRESH = rule("""rule fresh() {
    preserves shape
    match   { y = relu(x) }                                     where rank(x) == 4
    replace { y = relu(x) |> new: conv(channels(x), 3) |> bn: batch_norm }
    weights {
        new.weight = initial() * 2     new.bias = initial()
        bn.weight = initial()     bn.bias = initial()
        bn.running_mean = initial()     bn.running_var = initial()
    }
}""")
BLOCK = IMAGE + "a = x |> c: conv(4, 3) |> relu\nb = a |> d: conv(4, 3)\nend = a + b" + HEAD


# --- initial values -----------------------------------------------------------------------------


def test_initial_values_are_those_of_an_untrained_network() -> None:
    made = plan(net(BLOCK), FRESH, "a.relu", seed=7)
    old = init_weights(made.before, STANDARD, 1)
    new = apply_terms(made.terms, made.after, old)
    drawn = init_weights(made.after, STANDARD, 7)
    assert np.array_equal(new["a.new.weight"], drawn["a.new.weight"] * 2)
    for role in ("weight", "bias", "running_mean", "running_var"):
        assert np.array_equal(new[f"a.bn.{role}"], drawn[f"a.bn.{role}"])
    assert new["a.c.weight"] is old["a.c.weight"]
    other = plan(net(BLOCK), FRESH, "a.relu", seed=8)
    again = apply_terms(other.terms, other.after, old)
    assert not np.array_equal(new["a.new.weight"], again["a.new.weight"])


def test_initial_values_are_anything_in_a_check_and_start_without_momentum() -> None:
    made = plan(net(BLOCK), FRESH, "a.relu")
    trial = trial_of(made)
    assert len(np.unique(trial.new["a.bn.bias"])) == 4, "zeros would hide what depends on them"
    term = made.terms["a.new.bias"]
    held = init_weights(made.before, STANDARD, 3)
    maps = maps_of(made, held, frozenset(held)).maps
    assert {maps.none[path] for path in ("a.new.weight", "a.new.bias", "a.bn.weight")} == {"new"}
    assert maps.groups == ()
    wide = evaluate(term, Floating(np.float64), {})
    assert wide.dtype == np.float64
    assert np.array_equal(wide.astype(np.float32), evaluate(term, Floating(np.float32), {}))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("let w = initial()  new.weight = w  new.bias = 0", "stands in `weights`"),
        ("new.weight = initial(3)  new.bias = 0", "as `initial()`"),
    ],
)
def test_initial_values_belong_to_one_parameter(weights: str, says: str) -> None:
    text = f"""rule bad() {{
        match {{ y = relu(x) }} where rank(x) == 4
        replace {{ y = relu(x) |> new: conv(channels(x), 3) }}
        weights {{ {weights} }}
    }}"""
    with pytest.raises(ArchirError) as found:
        rule(text)
    assert found.value.diagnostics[0].code == "A211"
    assert says in found.value.diagnostics[0].message


# --- any tensor ---------------------------------------------------------------------------------


def test_any_tensor_is_a_site() -> None:
    graph = net(BLOCK)
    sites = [s.at for s in Planner(graph, STANDARD).sites(ANYWHERE)]
    assert sites == ["x", "a.c", "a.relu", "b.d", "end"]
    for site in sites:
        made = plan(graph, ANYWHERE, site)
        assert equal(made) == {"eval", "train"}
        assert drift(made) == 0
        readers = {reader.name for reader, _, _ in made.after.readers(site)}
        assert readers == {made.made["new"]}, "all that read the tensor read the new one"


def test_an_output_may_be_any_tensor() -> None:
    graph = net(IMAGE + "output z = x |> c: conv(4, 3)")
    made = plan(graph, ANYWHERE, "z.c" if "z.c" in graph else "c")
    assert made.after.outputs[0].value.node == made.made["new"]
    assert equal(made) == {"eval", "train"}


@pytest.mark.parametrize(
    "match", ["y = relu(x)  z = x", "y = x  z = x", "y = x  z = w"], ids=["beside", "twice", "two"]
)
def test_any_tensor_stands_alone(match: str) -> None:
    with pytest.raises(ArchirError) as found:
        rule(f"rule bad() {{ match {{ {match} }} replace {{ y = relu(x) }} }}")
    assert found.value.diagnostics[0].code == "A209"


# --- tensors by their paths -----------------------------------------------------------------------

SKIP = rule("""rule skip(source: path) {
    match   { y = x }                   where shape(x) == shape(source), rank(x) == 4
    replace { y = x + (source |> gate: conv(channels(x))) }
    weights { gate.weight = 0    gate.bias = 0 }
}""")
COLUMNS = rule("""rule columns(source: path) {
    match   { y = c: conv(x, bias = false) }
            where rank(x) == 4, size(x, 2) == size(source, 2), size(x, 3) == size(source, 3)
    replace { y = c: conv(concat(x, source, axis = 1)) }
    weights {
        let gap = zeros(size(c.weight, 0), channels(source), size(c.weight, 2), size(c.weight, 3))
        c.weight = concat(c.weight, gap, 1)
    }
}""")


def test_sites_are_where_some_earlier_tensor_fits() -> None:
    graph = net(BLOCK)
    planner = Planner(graph, STANDARD)
    assert [s.at for s in planner.sites(SKIP)] == ["a.relu", "b.d", "end"]
    assert planner.example_arguments(SKIP, "b.d") == {"source": "a.relu"}
    made = plan(graph, SKIP, "end", source="a.c")
    assert equal(made) == {"eval", "train"}
    assert drift(made) == 0
    assert made.arguments == {"source": "a.c"}
    assert made.after.node("gate").inputs[0].node == "a.c"


def test_weights_and_tensors_tell_their_sizes() -> None:
    graph = net(IMAGE + "a = x |> relu\nend = a |> d: conv(4, [1, 3], bias = false)" + HEAD)
    made = plan(graph, COLUMNS, "d", source="x")
    assert made.after.parameters["end.d.weight"].type.shape == (4, 6, 1, 3)
    assert equal(made) == {"eval", "train"}
    assert drift(made) < 1e-12


def test_a_second_result() -> None:
    graph = net(IMAGE + "a, b, c = x |> s: split([1, 1, 1])\nend = concat(a, c, b) |> relu" + HEAD)
    assert failure(graph, SKIP, "end.relu", source="s:7").diagnostics[0].code == "A605"
    wide = net(IMAGE + "a, b = x |> s: split([1, 2])\nend = concat(a, b) |> c: conv(2, 1)" + HEAD)
    assert equal(plan(wide, SKIP, "c", source="s:1")) == {"eval", "train"}


@pytest.mark.parametrize(
    ("site", "arguments", "code", "says", "hint"),
    [
        ("a.relu", {}, "A608", "needs `source`", "--set source=a.c"),
        ("a.relu", {"source": "b.d"}, "A302", "the network would run in a circle", "fitting: a.c"),
        ("a.relu", {"source": "a.relu"}, "A302", "is what the rule matches", "fitting: a.c"),
        ("a.relu", {"source": "x"}, "A302", "wants shape(x) == shape(source)", "source=a.c"),
        ("a.relu", {"source": "b.e"}, "A605", "no node `b.e`", "did you mean"),
        ("a.relu", {"source": 3}, "A605", "no node `3`", ""),
        ("x", {"source": "a.c"}, "A302", "the network would run in a circle", "no other tensor"),
    ],
)
def test_a_path_that_does_not_fit(
    site: str, arguments: dict[str, AttrValue], code: str, says: str, hint: str
) -> None:
    found = failure(net(BLOCK), SKIP, site, **arguments).diagnostics[0]
    assert found.code == code
    assert says in found.message
    assert hint in found.hint


@pytest.mark.parametrize(
    "text",
    [
        'rule bad(p: path = "x") { match { y = relu(x) } replace { y = relu(x) + p } }',
        "rule bad(y: path) { match { y = relu(x) } replace { y = relu(x) } }",
        """rule bad(p: path) { over c = class(at)  let g = shuffle(size(c))
           produce take(g)  carry take(g)  consume take(g) }""",
    ],
    ids=["default", "two things", "class"],
)
def test_a_path_is_one_tensor_of_a_pattern(text: str) -> None:
    with pytest.raises(ArchirError) as found:
        rule(text)
    assert found.value.diagnostics[0].code == "A204"


# --- operands in either order ---------------------------------------------------------------------

GATED = rule("""rule gated() {
    match   { g = sigmoid(x)  y = mul(x, g) }
    replace { y = silu(x) }
}""")
SWAPPED = rule("""rule swapped() {
    match   { y = add(a, relu(b)) }
    replace { y = add(relu(b), a) |> relu |> relu }
}""")


@pytest.mark.parametrize("product", ["x * g", "g * x"])
def test_factors_stand_in_either_order(product: str) -> None:
    graph = net(f"{IMAGE}g = x |> sigmoid\nend = {product}{HEAD}")
    made = plan(graph, GATED, "end")
    assert [n.op for n in made.after][1:2] == ["silu"]
    assert drift(made) < 1e-12


@pytest.mark.parametrize("total", ["a + b", "b + a"])
def test_a_sum_in_another_order_is_the_same_node(total: str) -> None:
    graph = net(f"{IMAGE}a = x |> relu\nb = x |> c: conv(3, 1)\nend = {total}{HEAD}")
    made = plan(graph, SWAPPED, "end")
    assert made.after.node("end").inputs == made.before.node("end").inputs


def test_three_summands_stay_in_order() -> None:
    graph = net(f"{IMAGE}a = x |> relu\nend = add(a, x, x){HEAD}")
    assert not Planner(graph, STANDARD).sites(SWAPPED)


# --- rules of files -------------------------------------------------------------------------------

TWO = """rule one { "a" preserves function in eval match { y = relu(x) } replace { y = relu(x) } }
rule two { "b" preserves function in eval match { y = relu(x) } replace { y = relu(x) } }"""


def test_a_rule_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "some@where" / "mine.rule"
    file.parent.mkdir()
    file.write_text(TWO.splitlines()[0])
    assert find_rule(str(file), LIBRARY, STANDARD).name == "one"
    file.write_text(TWO)
    assert find_rule(f"{file}:two", LIBRARY, STANDARD).name == "two"
    assert find_rule("deepen", LIBRARY, STANDARD) is LIBRARY["deepen"]
    assert split_site(f"{file}:two@a.relu") == (f"{file}:two", "a.relu")
    assert split_site(f"{file}@a.relu") == (str(file), "a.relu")
    assert split_site("deepen@a.relu") == ("deepen", "a.relu")
    assert split_site("deepen") == ("deepen", "")


@pytest.mark.parametrize(
    ("spec", "code", "says"),
    [
        ("mine.rule", "A604", "holds 2 rules: one, two"),
        ("mine.rule:on", "A604", "no rule `on`"),
        ("none.rule", "A607", "cannot read"),
        ("empty.rule", "A604", "holds no rule"),
        ("depen", "A604", "no rule `depen`"),
    ],
)
def test_no_rule_of_a_file(tmp_path: Path, spec: str, code: str, says: str) -> None:
    (tmp_path / "mine.rule").write_text(TWO)
    (tmp_path / "empty.rule").write_text("")
    with pytest.raises(ArchirError) as found:
        find_rule(str(tmp_path / spec) if "rule" in spec else spec, LIBRARY, STANDARD)
    assert found.value.diagnostics[0].code == code
    assert says in found.value.diagnostics[0].message


def test_a_rewrite_by_a_rule_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "skip.rule").write_text(SKIP.text)
    text = f"version 1\narch test {{\n{BLOCK}\n}}\n"
    (tmp_path / "net.arch").write_text(text)
    network = api.load(tmp_path / "net.arch").init(1)
    made = network.rewrite(f"{tmp_path / 'skip.rule'}:skip", "end", source="d")
    assert "gate.weight" in (made.weights or {})
    assert all(f.holds for f in made.verify())
    made.save(tmp_path / "more.arch")
    assert all(f.holds for f in api.load(tmp_path / "more.arch").verify())


# --- guards ---------------------------------------------------------------------------------------

GUARDED = """rule guarded(times: int) {{
    match   {{ y = c: conv(x) }}                                  where {guard}
    replace {{ y = c: conv(x) |> relu }}
}}"""


@pytest.mark.parametrize(
    ("guard", "fits"),
    [
        ("c.stride == [2, 2]", True),
        ("c.stride == 2", True),
        ("c.stride == [2, 1]", False),
        ("c.kernel == [3, 5]", True),
        ("c.kernel == 3", False),
        ("channels(x) % 3 == 0", True),
        ("channels(x) % 2 == 0", False),
        ("size(c.weight, 0) == 4 * times", True),
        ("shape(c.weight) == [4, 3, 3, 5]", True),
        ("shape(x) == shape(y)", False),
        ("rank(c.bias) == 1", True),
    ],
)
def test_guards(guard: str, fits: bool) -> None:
    graph = net(IMAGE + "end = x |> c: conv(4, [3, 5], 2)" + HEAD)
    of = rule(GUARDED.format(guard=guard))
    assert [s.at for s in Planner(graph, STANDARD).sites(of)] == ["end.c"] * fits
    if not fits:
        assert failure(graph, of, "end.c", times=1).diagnostics[0].code == "A302"


@pytest.mark.parametrize(
    ("guard", "says", "hint"),
    [
        ("channels(x) % 2 == 0", "wants channels(x) % 2 == 0; channels(x) % 2 is 1", "nowhere"),
        ("channels(x) == times", "channels(x) is 3, times is 1", "--set times=3"),
        ("c.kernel == 5", "c.kernel is [3, 5]", "nowhere"),
        ("uses(x) > times and rank(x) == 4", "wants uses(x) > times and rank(x) == 4", "nowhere"),
    ],
)
def test_a_guard_that_does_not_hold_says_what_is_there(guard: str, says: str, hint: str) -> None:
    graph = net(IMAGE + "end = x |> c: conv(4, [3, 5], 2)" + HEAD)
    found = failure(graph, rule(GUARDED.format(guard=guard)), "end.c", times=1).diagnostics[0]
    assert says in found.message
    assert hint in found.hint


def test_an_uneven_kernel() -> None:
    of = rule("""rule uneven() {
        match   { y = relu(x) }                                 where rank(x) == 4
        replace { y = relu(x) |> new: conv(channels(x), [1, 3]) }
        weights { new.weight = identity(channels(x), 1, 3)    new.bias = 0 }
    }""")
    made = plan(net(BLOCK), of, "a.relu")
    assert made.after.node("a.new").attrs["padding"] == (0, 1)
    assert equal(made) == {"eval", "train"}


# --- what a site would cost -----------------------------------------------------------------------


MERGED = rule("""rule merged() {
    preserves shape
    match   { y = x |> c: conv(o, 1) |> d: conv(p, 1) }
    replace { y = x |> d: conv(p, 3, padding = 1) }
    weights { d.weight = initial()  d.bias = d.bias }
}""")


def test_gains_are_differences_of_costs() -> None:
    rules = [*LIBRARY.values(), SKIP, ANYWHERE, COLUMNS, MERGED]
    for body in (BLOCK, IMAGE + "a = x |> c: conv(4, 1)\nend = a |> d: conv(5, 1)" + HEAD):
        graph = net(body)
        planner = Planner(graph, STANDARD, init_weights(graph, STANDARD, 1))
        before = cost(graph, STANDARD)
        told = 0
        for of in rules:
            for site in planner.sites(of)[:3]:
                found = gain(planner, of, site.at)
                assert found is not None, (of.name, site.at)
                after = cost(planner.plan(of, site.at, found.arguments).after, STANDARD)
                assert found.params == after.params - before.params, (of.name, site.at)
                assert found.macs == after.macs - before.macs, (of.name, site.at)
                told += 1
        assert told > 40


def test_a_plan_is_accounted_for() -> None:
    graph = net(BLOCK)
    planner = Planner(graph, STANDARD)
    found = account(planner, planner.plan(SKIP, "d", {"source": "a.c"}))
    assert found["bound"]["x"] == "b.d, f32[N, 4, 8, 8]"
    assert found["bound"]["source"] == "a.c, f32[N, 4, 8, 8]"
    assert found["weights"] == {"b.gate.weight": "[4, 4, 1, 1] = 0", "b.gate.bias": "[4] = 0"}
    assert (found["params"], found["macs"]) == (20, 4 * 4 * 64)
    assert "  parameters +20, MACs +1,024" in lines_of(found)
    two = net(IMAGE + "a = x |> c: conv(4, 1)\nend = a |> d: conv(5, 1)" + HEAD)
    found = account(Planner(two, STANDARD), plan(two, MERGED, "end.d"))
    assert found["gone"] == ["a.c"]
    assert found["changed"] == {"end.d": "kernel 1 -> 3, padding 0 -> 1"}
