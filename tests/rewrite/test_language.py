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
from archir.proof.exact import trial_of
from archir.rewrite.library import find_rule, split_site
from archir.rewrite.plan import apply_terms
from archir.rewrite.sites import Planner
from archir.weights.functions import evaluate, moment
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
    assert moment(term) is None
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
