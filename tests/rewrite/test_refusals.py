"""Rules where they do not apply: the reason, the node to blame, the exit status."""

from __future__ import annotations

from typing import Any

import pytest

from archir.diag import BAD_INPUT, CHECK_FAILED, ArchirError
from archir.ops import STANDARD
from archir.proof.uses import check_plan
from archir.rewrite.sites import Planner

from .nets import HEAD, IMAGE, LIBRARY, failure, net, plan, rule

GROW = rule("""rule grow() {
    match   { y = x |> c: conv(o, k) |> relu }                  where rank(x) == 4
    replace { y = x |> c: conv(o, k + 2, padding = c.padding + 1) |> relu }
    weights { c.weight = pad(c.weight, 1) }
}""")
LAYERS = IMAGE + "a = x |> conv(4, 3)\nr = a |> relu\nend = r |> conv(6, 3)" + HEAD

REFUSED: dict[str, tuple[str, Any, str, dict[str, Any], str, str, str]] = {
    "an input": (LAYERS, "widen", "a.in", {"width": 5}, "A303", "x", "it is the input `x`"),
    "the network's output": (LAYERS, "widen", "fc", {"width": 9}, "A303", "fc", "the output `y`"),
    "through softmax": (
        IMAGE + "a = x |> conv(4, 3)\ns = a |> softmax(1)\nend = s |> conv(6, 3)" + HEAD,
        *("widen", "a", {"width": 6}, "A303", "s", "`softmax` mixes the entries"),
    ),
    "a residual stream that begins at the input": (
        IMAGE + "a = x |> conv(3, 3)\nend = x + a" + HEAD,
        *("widen", "a", {"width": 6}, "A303", "x", "it is the input"),
    ),
    "a tied weight on one side only": (
        IMAGE + "a = x |> conv(4, 3)\nb = x |> conv(4, 3, weight = a.weight)\nend = a\n"
        "output z = b" + HEAD,
        *("widen", "a", {"width": 6}, "A303", "b", "the output `z`"),
    ),
    "a tied weight that makes and reads": (
        IMAGE + "param w: f32[5, 4]\na = x |> conv(4, 3)\nt = w |> linear(2)\nend = a\n"
        "output z = a |> global_avg_pool |> e: linear(5, weight = w)\noutput u = t" + HEAD,
        *("widen", "a", {"width": 6}, "A303", "e", "reads it too"),
    ),
    "groups of several channels": (
        IMAGE + "a = x |> conv(4, 3)\nend = a |> conv(6, 3, groups = 2)" + HEAD,
        *(
            "widen",
            "a",
            {"width": 6},
            "A305",
            "a",
            "several classes: `a.groups` (2), `a.group` (2)",
        ),
    ),
    "a cut inside the class": (
        IMAGE + "a = x |> conv(4, 3)\np, q = split(a, sizes = [1, 3])\nend = concat(q, p)" + HEAD,
        *("widen", "a", {"width": 6}, "A305", "a", "several classes: `a.part1` (1), `a.part2` (3)"),
    ),
    "a narrower width": (LAYERS, "widen", "a", {"width": 3}, "A302", "a", "wants width > size(c)"),
    "the same width": (LAYERS, "widen", "a", {"width": 4}, "A302", "a", "has 4 channels"),
    "an even kernel": (LAYERS, "deepen", "r", {"kernel": 4}, "A307", "r", "an odd number, got 4"),
    "a wrong type of parameter": (
        *(LAYERS, "widen", "a", {"width": 2.5}, "A307", "a", "an integer, got 2.5"),
    ),
    "true for a number": (LAYERS, "widen", "a", {"width": True}, "A307", "a", "got true"),
    "a negative width": (LAYERS, "widen", "a", {"width": -1}, "A307", "a", "from 0 to 1,048,576"),
    "a width out of range": (LAYERS, "widen", "a", {"width": 2**30}, "A307", "a", "from 0 to"),
    "a matrix under deepen": (
        "input x: f32[N, 6]\na = x |> linear(4)\nr = a |> relu\noutput y = r |> fc: linear(2)",
        *("deepen", "r", {}, "A302", "r", "the rule wants rank(x) == 4"),
    ),
    "channels without a number": (
        "input x: f32[N, T, 1, 1]\noutput y = x |> relu",
        *("deepen", "relu", {}, "A302", "relu", "axis 1 of `x` has the symbolic size T"),
    ),
    "another operator": (
        LAYERS,
        "deepen",
        "a",
        {},
        "A302",
        "a",
        "it is `conv`, the rule wants `relu`",
    ),
    "a node without a class": (
        LAYERS,
        "widen",
        "global_avg_pool.in",
        {"width": 9},
        "A304",
        *("global_avg_pool", "no axis that could change as `.in`"),
    ),
    "an interior node that is read elsewhere too": (
        IMAGE + "a = x |> conv(4, 3)\nr = a |> relu\ns = a |> dropout\nend = concat(r, s)" + HEAD,
        rule("rule r() { match { y = x |> conv(o, k) |> relu } replace { y = relu(x) } }"),
        *("r", {}, "A302", "s", "it also reads `a`"),
    ),
    "an interior node that is an output of the network": (
        IMAGE + "a = x |> conv(4, 3)\nend = a |> relu\noutput z = a" + HEAD,
        rule("rule r() { match { y = x |> conv(o, k) |> relu } replace { y = relu(x) } }"),
        *("end", {}, "A302", "a", "it is an output of the network"),
    ),
    "an interior node that becomes another operator": (
        IMAGE + "a = x |> max_pool(2)\nr = a |> relu\ns = a |> dropout\nend = concat(r, s)" + HEAD,
        rule("""rule r() {
            match { y = x |> p: max_pool(2) |> relu }
            replace { y = x |> p: avg_pool(2) |> relu }
        }"""),
        *("r", {}, "A302", "s", "it also reads `a`"),
    ),
    "a tensor that another layer shares": (
        IMAGE + "a = x |> conv(4, 3)\nend = a |> relu\n"
        "output z = x |> e: conv(4, 3, weight = a.weight)" + HEAD,
        *(GROW, "end", {}, "A302", "e", "it shares `a.weight`, which would change"),
    ),
    "a result of another shape": (
        LAYERS,
        rule("rule r() { match { y = relu(x) } replace { y = x |> max_pool(2) } }"),
        *("r", {}, "A306", "r", "`y` would be f32[N, 4, 4, 4] instead of f32[N, 4, 8, 8]"),
    ),
    "an attribute out of range": (
        LAYERS,
        rule("rule r() { match { y = relu(x) } replace { y = x |> max_pool(0) } }"),
        *("r", {}, "A306", "r", "at least 1, got 0"),
    ),
    "tensors that do not fit together": (
        IMAGE + "a = x |> conv(4, 3)\nend = a |> relu" + HEAD,
        rule(
            """rule r() {
                match { a = conv(x, o, k)  y = relu(a) }
                replace { a = conv(x, o, k)  y = relu(a) + x }
            }"""
        ),
        *("end", {}, "A306", "end", "f32[N, 4, 8, 8] and f32[N, 3, 8, 8]"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    body, of, at, arguments, code, node, says = REFUSED[name]
    found = failure(net(body), of, at, **arguments)
    (diagnostic,) = found.diagnostics
    assert diagnostic.code == code, diagnostic
    assert diagnostic.node == node, diagnostic
    assert says in diagnostic.message
    assert found.status == CHECK_FAILED


USAGE: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    "unknown parameter": ("deepen", "r", {"depth": 3}, "A608", "has no parameter `depth`"),
    "missing parameter": ("widen", "a", {}, "A608", "`widen` needs `width`"),
    "unknown node": ("deepen", "rr", {}, "A605", "the network has no node `rr`"),
    "unknown suffix": ("widen", "a.tails", {"width": 9}, "A605", "no node `a.tails`"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage(name: str) -> None:
    of, at, arguments, code, says = USAGE[name]
    found = failure(net(LAYERS), of, at, **arguments)
    assert found.diagnostics[0].code == code
    assert says in found.diagnostics[0].message
    assert found.status == BAD_INPUT


def test_unknown_rules() -> None:
    with pytest.raises(ArchirError) as caught:
        LIBRARY.find("deepn")
    assert caught.value.status == BAD_INPUT
    assert caught.value.diagnostics[0].code == "A604"
    assert caught.value.diagnostics[0].hint == "did you mean `deepen`?"
    with pytest.raises(ArchirError) as caught:
        LIBRARY.find("zzz")
    assert "there are: " in caught.value.diagnostics[0].hint


SITES = (
    IMAGE
    + """
    a = x |> c: conv(4, 3) |> relu
    b = a |> c: conv(4, 3) |> relu
    end = b |> c: conv(4, 3)
"""
    + HEAD
)


def choose(of: str, at: str | None, seed: int = 0) -> list[str]:
    return Planner(net(SITES), STANDARD).choose(LIBRARY[of], at, seed)


def test_choosing_sites() -> None:
    assert choose("deepen", "all") == ["a.relu", "b.relu"]
    assert choose("deepen", "b*") == ["b.relu"]
    assert choose("deepen", "anything") == ["anything"]
    assert {choose("deepen", "random", s)[0] for s in range(20)} == {"a.relu", "b.relu"}
    assert choose("deepen", "random", 3) == choose("deepen", "random", 3)
    for at in (None, "z*"):
        with pytest.raises(ArchirError) as caught:
            choose("deepen", at)
        assert caught.value.diagnostics[0].code == ("A606" if at is None else "A605")
        assert caught.value.status == BAD_INPUT
    with pytest.raises(ArchirError, match=r"deepen@a\.relu"):
        choose("deepen", None)


def test_words_for_a_site() -> None:
    planner = Planner(net(SITES), STANDARD)
    deepen, widen = LIBRARY["deepen"], LIBRARY["widen"]
    assert planner.resolve(deepen, "deepen@a.relu") == "a.relu"
    assert planner.resolve(deepen, "b") == "b.relu"
    assert planner.resolve(widen, "end") == "end.c"
    assert planner.resolve(widen, "end.c.in") == "end.c.in"
    for at in ("relu", "c"):
        with pytest.raises(ArchirError, match="fits several nodes: a"):
            planner.resolve(deepen, at)
    with pytest.raises(ArchirError) as caught:
        planner.resolve(deepen, "end")
    assert (caught.value.diagnostics[0].code, caught.value.status) == ("A302", CHECK_FAILED)
    assert caught.value.diagnostics[0].hint == "it applies at a.relu, b.relu"
    with pytest.raises(ArchirError) as caught:
        planner.resolve(deepen, "a.rleu")
    assert "did you mean" in caught.value.diagnostics[0].hint


def test_where_a_rule_applies_nowhere() -> None:
    flat = net("input x: f32[N, 6]\na = x |> linear(4) |> relu\noutput y = a |> fc: linear(2)")
    with pytest.raises(ArchirError) as caught:
        Planner(flat, STANDARD).choose(LIBRARY["deepen"], None, 0)
    (found,) = caught.value.diagnostics
    assert (found.code, found.node) == ("A302", "a.relu")
    assert "nearest: at a.relu, the rule wants rank(x) == 4" in found.message
    single = net("input x: f32[N, 6]\noutput y = x |> fc: linear(2)")
    with pytest.raises(ArchirError) as caught:
        Planner(single, STANDARD).choose(LIBRARY["widen"], None, 0)
    assert caught.value.diagnostics[0].node in ("x", "fc")
    with pytest.raises(ArchirError, match="nothing like it occurs"):
        Planner(single, STANDARD).choose(LIBRARY["deepen"], None, 0)


def test_the_only_site_needs_no_name() -> None:
    graph = net(IMAGE + "a = x |> conv(4, 3)\nend = a |> relu" + HEAD)
    assert Planner(graph, STANDARD).choose(LIBRARY["widen"], None, 0) == ["a"]
    assert plan(graph, "widen", "a.out", width=5).after.node("a").attrs["out"] == 5


def test_what_rests_on_the_values_of_a_stand_in_is_said() -> None:
    squared = rule("""rule squared() {
        match   { y = exp(x + x) }
        replace { e = exp(x)    y = e * e }
    }""")
    graph = net(IMAGE + "a = x |> conv(4, 3)\nend = exp(a + a)" + HEAD)
    with pytest.raises(ArchirError) as found:
        check_plan(plan(graph, squared, "end"), STANDARD)
    (said,) = found.value.diagnostics
    assert said.code == "A401"
    assert "in double precision both sides are equal" in said.hint
