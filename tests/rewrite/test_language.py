"""What the rule language can say beyond patterns of operators and maps of their weights."""

from __future__ import annotations

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.ir.types import AttrValue
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating
from archir.proof.exact import trial_of
from archir.rewrite.plan import apply_terms
from archir.rewrite.sites import Planner
from archir.weights.functions import evaluate, moment
from archir.weights.init import init_weights

from .nets import HEAD, IMAGE, drift, equal, failure, net, plan, rule

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
