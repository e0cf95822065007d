"""The rules over a class, through every structure that a class can meet.

For each network: the classes that each rule may change, and that every use is exact in GF(p) in
both modes and keeps the function in floating point with weights of usual size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from archir.diag import Source
from archir.ir.graph import Graph
from archir.lang import load, print_graph
from archir.ops import STANDARD
from archir.ops.forest import Need
from archir.ops.structure import FIXED, Factor, lift, measure
from archir.proof.uses import share_read
from archir.rewrite.class_rules import class_at
from archir.rewrite.plan import apply_terms, as_assumed
from archir.rewrite.rule import Reshaping
from archir.rewrite.sites import Planner
from archir.weights.init import init_weights

from .nets import LIBRARY, drift, equal, failure, plan

CLASS_RULES = sorted(r.name for r in LIBRARY.values() if isinstance(r.body, Reshaping))
GROWING, ALL = ("pad", "widen"), ("pad", "permute", "prune", "widen")

STRUCTURES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "group norm inside of a grouped residual": (
        """
        arch net {
            input x: f32[N, 3, 8, 8]
            a = x |> conv(12, 3) |> gn: group_norm(4) |> silu |> dw: conv(12, 3, groups = 12)
            c = a + (a |> pw: conv(12, 1)) |> gc: conv(8, 3, groups = 2) |> leaky_relu
            u = c |> conv_transpose(6, 3, groups = 2) |> prelu
            output y = u |> global_avg_pool |> fc: linear(3)
        }""",
        {
            "a.conv.groups": ALL,
            "a.conv.group1": ("permute", "widen"),
            "a.conv.group2": ALL,
            "c.gc": ALL,
            "u.conv_transpose": ALL,
        },
    ),
    "layer norm and RMS norm on a residual stream": (
        """
        arch net {
            input x: f32[N, 5, 6]
            e = x |> linear(8)
            h = e |> ln: layer_norm |> fc1: linear(16) |> gelu |> fc2: linear(8)
            output y = e + h |> rms: rms_norm |> head: linear(3)
        }""",
        {"e": ("permute", "widen"), "h.fc1": ALL},
    ),
    "packed attention, a class token and positions": (
        """
        block layer(dim, heads) {
            q, k, v = input |> ln1: layer_norm |> qkv: linear(3 * dim) |> chunk(3, axis = -1)
            h = input + (attention(q, k, v, heads = heads) |> proj: linear(dim))
            output h + (h |> ln2: layer_norm |> fc1: linear(4 * dim) |> gelu |> fc2: linear(dim))
        }
        arch net {
            input x: f32[N, 3, 8, 8]
            p = x |> patch: conv(12, 4, 4, padding = 0) |> flatten(2) |> transpose(1, 2)
            param cls: f32[1, 1, 12]
            param pos: f32[1, 5, 12]
            t = concat(expand(cls, p), p, axis = 1) + pos |> layer(12, 3)
            output y = t |> select(0, axis = 1) |> head: linear(5)
        }""",
        {
            "p.patch": ("permute", "widen"),
            "t.qkv.heads": ALL,
            "t.qkv.head": ("permute", "widen"),
            "t.fc1": ALL,
        },
    ),
    "separate attention": (
        """
        arch net {
            input x: f32[N, 5, 8]
            e = x |> linear(8)
            q = e |> linear(12)
            k = e |> linear(12)
            v = e |> linear(6)
            output y = attention(q, k, v, heads = 3) |> proj: linear(8)
        }""",
        {"e": ALL, "q.heads": ALL, "q.head": ("permute", "widen"), "v.head": ALL},
    ),
    "channel shuffle": (
        """
        arch net {
            input x: f32[N, 3, 8, 8]
            a = x |> conv(12, 3) |> g1: conv(24, 1, groups = 3) |> batch_norm
            s = a |> reshape([0, 3, 8, 8, 8]) |> permute([0, 2, 1, 3, 4]) |> reshape([0, 24, 8, 8])
            b = s |> dw: conv(24, 3, groups = 24)
            output y = b |> global_avg_pool |> fc: linear(3)
        }""",
        {"a.conv.groups": ALL, "a.conv.group": ALL, "a.g1": ALL},
    ),
    "halves that are shuffled": (
        """
        arch net {
            input x: f32[N, 3, 8, 8]
            a = x |> conv(12, 3)
            l, r = chunk(a, 2)
            b = r |> conv1: conv(5, 1) |> conv2: conv(6, 1)
            s = concat(l, b) |> reshape([0, 2, -1, 8, 8]) |> transpose(1, 2)
            output y = s |> reshape([0, 12, 8, 8]) |> global_avg_pool |> fc: linear(3)
        }""",
        {"a.inner": ALL, "b.conv1": ALL},
    ),
    "squeeze and excite, split, padded and joined": (
        """
        arch net {
            input x: f32[N, 3, 8, 8]
            a = x |> conv(12, 3) |> relu
            s = a |> adaptive_avg_pool(1) |> fc1: conv(4) |> silu |> fc2: conv(12) |> sigmoid
            q, w = split(a, sizes = [5, 7])
            z = pad(q, before = [0, 1, 0, 0], after = [0, 2, 0, 0])
            j = concat(a * s, w, z) |> conv(6) |> upsample(2)
            output y = j |> global_avg_pool |> fc: linear(3)
        }""",
        {"a.conv.part1": ALL, "a.conv.part2": ALL, "s.fc1": ALL, "j.conv": ALL},
    ),
    "nested concatenations under a grouped convolution": (
        """
        arch net {
            input x: f32[N, 3, 6, 6]
            a = x |> conv(4, 3)
            b = concat(a, a |> k1: conv(2, 3))
            c = concat(b, b |> k2: conv(3, 3), a)
            d = c |> g: conv(13, 1, groups = 13) |> flatten
            output y = d |> fc: linear(3)
        }""",
        {"a": ALL, "b.k1": ALL, "c.k2": ALL},
    ),
    "a shared weight, and a slice": (
        """
        arch net {
            input x: f32[N, 6]
            a = x |> linear(8)
            b = a |> linear(8) |> relu
            c = b |> linear(8, weight = b.linear.weight) |> relu
            output y = c |> fc1: linear(9) |> slice(2, 4, axis = -1) |> fc2: linear(3)
        }""",
        {"a": ALL, "fc1.part1": ALL, "fc1.part2": ALL, "fc1.part3": ALL},
    ),
    "two inputs, a gate between them, and a table of words": (
        """
        arch net {
            input x: f32[N, 5, 6]
            input w: i64[N, 5]
            a = x |> linear(7) |> sigmoid
            e = w |> embedding(11, 7)
            output y = a * e |> mean([1]) |> fc: linear(3)
        }""",
        {"a.linear": ALL},
    ),
    "an outer product of a class with itself": (
        """
        arch net {
            input x: f32[N, 5, 6]
            a = x |> linear(3)
            b = einsum(a, a, equation = "nti,ntj->ntij") |> flatten(2)
            c = concat(a, a, axis = 2)
            s = attention(b, b, c)
            output y = s |> fc: linear(4)
        }""",
        {
            "a": ("permute", "widen"),
        },
    ),
    "a table of words that the output layer reads": (
        """
        arch net {
            input w: i64[N, 5]
            e = w |> embedding(11, 8)
            h = e + (e |> fc1: linear(9) |> gelu |> fc2: linear(8))
            output y = h |> head: linear(11, bias = false, weight = e.weight)
        }""",
        {
            "e": ("pad", "permute", "prune"),
            "h.fc1": ALL,
        },
    ),
    "one channel on its own, a quotient, pixels out of channels": (
        """
        arch net {
            input x: f32[N, 3, 8, 8]
            a = x |> conv(6, 3)
            s = x |> conv(1, 3)
            b = x |> conv(4, 3) |> pixel_shuffle(2) |> flatten |> p: linear(5)
            den = x |> conv(3) |> sigmoid
            c = (x |> num: conv(3)) / den |> global_avg_pool |> q: linear(5)
            d = a |> mean([1]) |> flatten |> m: linear(5)
            output y = s |> select(0) |> flatten |> r: linear(5)
            output z = b + c + d
        }""",
        {
            "den.conv": ("permute", "prune", "widen"),
            "a": ("permute", "widen"),
        },
    ),
    "parameters that bear the name of a class": (
        """
        arch net {
            input x: f32[N, 5, 6]
            a = x |> l1: linear(4)
            b = x |> l2: linear(6)
            param w: f32[3, 4, 6]
            param mask: f32[2, 5, 5]
            q = x |> linear(8)
            e = einsum(a, w, b, equation = "nti,kij,ntj->ntk")
            s = attention(q, x |> k: linear(8), x |> v: linear(4), mask, heads = 2)
            output y = concat(e, s, axis = 2) |> fc: linear(2)
        }""",
        {
            "w": ALL,
            "mask": ALL,
            "s.v.head": ALL,
            "a.l1": ("permute",),
            "b.l2": ("permute",),
            "q.head": ("permute", "widen"),
        },
    ),
    "transposed convolutions of single channels": (
        """
        arch net {
            input x: f32[N, 3, 4, 4]
            a = x |> conv(4, 1) |> conv_transpose(2, groups = 2)
            b = a |> relu |> dw: conv_transpose(2, 2, 2, groups = 2)
            output y = b |> global_avg_pool |> fc: linear(3)
        }""",
        {
            "a.conv.groups": ALL,
            "a.conv.group": ALL,
            "a.conv_transpose": ("pad", "widen"),
            "b.dw": ("pad", "widen"),
        },
    ),
    "a shape that repeats sizes of the input": (
        """
        arch net {
            input x: f32[N, 4, 8]
            a = x |> l1: linear(6) |> reshape([0, 2, 0, 2])
            output y = a |> flatten |> l2: linear(3)
        }""",
        {
            "a.l1.outer": ALL,
            "a.l1.inner": ALL,
        },
    ),
    "concatenations in two orders": (
        """
        arch net {
            input x: f32[N, 3, 8, 8]
            a = x |> c1: conv(4)
            b = x |> c2: conv(2)
            c = x |> c3: conv(3)
            e = concat(a, b, c) + concat(c, a, b) |> g: conv(9, 1, groups = 3)
            output y = e |> global_avg_pool |> fc: linear(3)
        }""",
        {
            "a.c1.part1": ALL,
            "a.c1.part2": ("pad", "widen"),
            "e.g": ALL,
        },
    ),
}
"""A network, and for each of its sites the rules that apply there."""


def graph(name: str) -> Graph:
    return load(Source(f"{name}.arch", STRUCTURES[name][0]), STANDARD).graph


LIKE = {
    "prune.keep": "prune",
    "prune.magnitude": "prune",
    "widen.pairs": "pad",
    "widen.shares": "widen",
    "widen.zero_outgoing": "pad",
}
"""Rules with the sites of another, but for a tied weight if they do not do the same to both."""
IN_WEIGHTS = ("drop.unread", "merge.duplicates")
"""Rules whose sites depend on the weights."""


def test_the_rules_are_those_of_the_tables() -> None:
    assert {*CLASS_RULES} == {*ALL, *LIKE, *IN_WEIGHTS}


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_class_that_may_change_is_a_site(name: str) -> None:
    before = graph(name)
    planner = Planner(before, STANDARD, init_weights(before, STANDARD, 3))
    for rule in (*ALL, *LIKE):
        base = LIKE.get(rule, rule)
        wanted = {site for site, rules in STRUCTURES[name][1].items() if base in rules}
        if base == "pad" != rule:
            wanted -= {s for s in wanted if any(n.condition == "alike" for n in needs(planner, s))}
        sites = planner.sites(LIBRARY[rule])
        assert {s.at for s in sites} == wanted, rule
        for site in sites:
            assert class_at(planner.classes, planner.graph, site.at).site == site.at


def needs(planner: Planner, site: str) -> tuple[Need, ...]:
    return class_at(planner.classes, planner.graph, site).needs


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_use_is_exact(name: str) -> None:
    before = graph(name)
    weights = init_weights(before, STANDARD, 3, random_statistics=True)
    planner = Planner(before, STANDARD, weights)
    for rule in (*ALL, *LIKE):
        for site in planner.sites(LIBRARY[rule]):
            arguments = planner.example_arguments(LIBRARY[rule], site.at)
            made = planner.plan(LIBRARY[rule], site.at, arguments, 1)
            assert equal(made) == {"eval", "train"}, (rule, site)
            kept = {**weights, **as_assumed(made, weights)}
            assert share_read(made, kept) == 0
            if not any(t.dtype == "i64" for n in before.inputs for t in before.node(n).types):
                assert drift(made, weights=kept) < 1e-10, (rule, site)
            text = print_graph(made.after, STANDARD)
            assert load(Source("after.arch", text), STANDARD).graph.outputs == made.after.outputs


BACK = {"widen": "merge.duplicates", "pad": "drop.unread", "widen.zero_outgoing": "drop.unread"}
"""What grows a class, and what finds in the weights what has been added."""


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("there", BACK)
def test_what_was_added_is_found_in_the_weights_and_taken_out(there: str, name: str) -> None:
    """Bit for bit: each channel is copied once, and halves of a float add up to it."""
    before = graph(name)
    weights = init_weights(before, STANDARD, 3, random_statistics=True)
    planner = Planner(before, STANDARD, weights)
    back = LIBRARY[BACK[there]]
    idle = {s.at for s in planner.sites(back)}  # cut off by a slice; a parameter of zeros
    assert idle <= {"w", "fc1.part1", "fc1.part3"}
    for site in (s for s in planner.sites(LIBRARY[there]) if s.at not in idle):
        assert isinstance(site.size, int)
        made = planner.plan(LIBRARY[there], site.at, {"width": 2 * site.size}, 1)
        grown = apply_terms(made.terms, made.after, weights)
        again = Planner(made.after, STANDARD, grown)
        (found,) = [s for s in again.sites(back) if s.at not in idle]
        undone = again.plan(back, found.at, {}, 0)
        assert equal(undone) == {"eval", "train"}
        assert share_read(undone, grown) == 0
        old = apply_terms(undone.terms, undone.after, grown)
        assert {p: a.tobytes() for p, a in old.items()} == {
            p: a.tobytes() for p, a in weights.items()
        }, (there, site)
        assert [n.types for n in undone.after] == [n.types for n in before]


def test_growth_composes() -> None:
    """The same class again and again, and others after it."""
    made = graph("packed attention, a class token and positions")
    for rule, at, arguments in (
        ("widen", "p.patch", {"width": 24}),
        ("widen", "t.qkv.head", {"width": 8}),
        ("widen", "t.qkv.heads", {"width": 5}),
        ("permute", "p.patch", {}),
        ("prune", "t.qkv.heads", {"width": 2}),
        ("pad", "t.fc1", {"width": 50}),
    ):
        step = plan(made, rule, at, **arguments)
        assert equal(step) == {"eval", "train"}
        made = step.after
    layer = made.node("t.attention").attrs
    assert (layer["heads"], layer["scale"]) == (2, 0.25)
    assert made.node("t.qkv").attrs["out"] == 48
    assert made.node("p.patch").attrs["out"] == 24


REFUSED: dict[str, tuple[str, str, str, dict[str, Any], str, str]] = {
    "layer norm, not evenly": (
        "layer norm and RMS norm on a residual stream",
        *("widen", "e", {"width": 12}, "h.ln", "take a multiple of 8: 16, 24"),
    ),
    "layer norm, fewer": (
        "layer norm and RMS norm on a residual stream",
        *("prune", "e", {"width": 4}, "h.ln", "only maps that take every channel equally often"),
    ),
    "the head dimension, not evenly": (
        "separate attention",
        *("widen", "q.head", {"width": 5}, "attention", "take a multiple of 4: 8, 12"),
    ),
    "a table that is made and read": (
        "a table of words that the output layer reads",
        *("widen", "e", {"width": 16}, "head", "a rule that does the same to both"),
    ),
    "a denominator": (
        "one channel on its own, a quotient, pixels out of channels",
        *("pad", "den.conv", {"width": 4}, "c.div", "zeros cannot stand there"),
    ),
    "a channel that is selected": (
        "one channel on its own, a quotient, pixels out of channels",
        *("pad", "s", {"width": 4}, "select", ""),
    ),
    "pixels out of channels": (
        "one channel on its own, a quotient, pixels out of channels",
        *("pad", "b.p.in", {"width": 4}, "b.pixel_shuffle", ""),
    ),
    "chunks": (
        "halves that are shuffled",
        *("widen", "a.outer", {"width": 3}, "l", ""),
    ),
}
"""Structure, rule, site, arguments; the node to blame and the hint."""


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_node_and_what_would_do(name: str) -> None:
    structure, rule, at, arguments, node, hint = REFUSED[name]
    (found,) = failure(graph(structure), rule, at, **arguments).diagnostics
    assert found.code == "A303"
    assert found.node == node
    assert hint in found.hint


@pytest.mark.parametrize("at", ["t.qkv.heads", "qkv.heads", "widen@qkv.heads"])
def test_a_part_is_found_by_the_end_of_its_path(at: str) -> None:
    made = plan(graph("packed attention, a class token and positions"), "widen", at, width=4)
    assert made.after.node("t.attention").attrs["heads"] == 4


def test_what_is_read_is_measured() -> None:
    before = graph("separate attention")
    made = plan(before, "prune", "e", width=4)
    weights = init_weights(before, STANDARD, 3)
    rest = share_read(made, weights)
    assert 0.5 < rest < 0.9
    assert drift(made, weights=weights) > 0.01
    weights.update(as_assumed(made, weights))
    assert share_read(made, weights) == 0
    assert drift(made, weights=weights) < 1e-12


def test_a_sum_inside_of_a_product_is_lifted() -> None:
    """(a + 2) entries, each of them three times over, seen from a class of two in the sum."""
    inner = ((Factor(7, 2),), (Factor(FIXED, 1),))
    structure = ((Factor(FIXED, 2), Factor(9, 3, inner)),)
    found, old = lift(structure, 7, np.array([0, 1, 0]), 2)
    assert old == 6
    assert found.tolist() == [0, 1, 0, 2, 3, 4, 3, 5]
    assert measure(structure, 7, 3) == 8
