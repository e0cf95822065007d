"""The rules on structure: skips, branches, dense layers, transformer parts, clean-ups.

That a rule is proved is tested with the prover; here each is used on a small network, its weights
compared with a map written by hand, and on a network of the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.arithmetic import Array, Floating
from archir.rewrite.plan import Plan
from archir.weights.functions import evaluate
from archir.weights.init import init_weights

from .nets import HEAD, IMAGE, LIBRARY, drift, equal, net, plan

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
FAMILIES = ("skip", "branch", "transformer", "dense", "clean")
CHAIN = IMAGE + (
    "s = x |> c0: conv(4, 3) |> r0: relu\n"
    "end = s |> a: conv(4, 3) |> n: batch_norm |> r: relu |> b: conv(4, 1, 2)" + HEAD
)
BARE = IMAGE + "end = x |> a: conv(5, 3, bias = false)" + HEAD
FLAT = "input x: f32[N, 6]\np = x |> a: linear(4) |> r: relu\noutput y = p |> b: linear(3)"
TOKENS = "input x: f32[N, 5, 6]\np = x |> a: linear(8) |> r: relu\noutput y = p |> b: linear(3)"
POOLED = IMAGE + "s = x |> c: conv(4, 3)\nend = s |> max_pool(2) |> a: conv(3)" + HEAD
DENSE = IMAGE + (
    "s = x |> c: conv(4, 3)\nf = s |> d: conv(3, 3)\n"
    "end = concat(s, f) |> n: batch_norm |> r: relu |> a: conv(5, bias = false)" + HEAD
)
LAYER = IMAGE + (
    "s = x |> c: conv(4, 3)\n"
    "f = s |> n1: batch_norm |> r1: relu |> c1: conv(6) |> n2: batch_norm |> r2: relu "
    "|> c2: conv(5, 3, bias = false)\nend = concat(s, f)" + HEAD
)
NORMS = IMAGE + (
    "s = x |> c: conv(4, 3)\nt = x |> d: conv(3, 3)\nj = concat(s, t)\n"
    "n = concat(s |> a: batch_norm, t |> b: batch_norm)\nend = concat(j, n)" + HEAD
)
RESIDUAL = IMAGE + "s = x |> c: conv(4, 3)\nt = s |> r: relu |> a: conv(4, 3)\nend = s + t" + HEAD
NORMED = IMAGE + "s = x |> c: conv(4, 3)\nt = s |> r: relu |> n: batch_norm\nend = s + t" + HEAD
STREAM = (
    "input x: f32[N, 5, 6]\ns = x |> c: linear(4)\nt = s |> g: gelu |> a: linear(4)\n"
    "output y = s + t"
)
NULL = IMAGE + "s = x |> c: conv(4, 3)\nt = s |> e: null\nend = s + t" + HEAD
GATED = IMAGE + (
    "param g: f32[1] = 0.0\ns = x |> c: conv(4, 3)\nt = s |> r: relu\nend = t + g * s" + HEAD
)
SCALED = IMAGE + "param g: f32[4, 1, 1] = 1.0\ns = x |> c: conv(4, 3)\nend = s * g" + HEAD
ONE = IMAGE + "s = x |> c: conv(4, 3)\nend = s * 1.0" + HEAD


def parallel(sign: str, bias: str) -> str:
    """Two convolutions of one tensor, added up or joined."""
    two = f"p = x |> a: conv(4, 3, bias = {bias})\nq = x |> b: conv(4, 3, bias = {bias})\n"
    return IMAGE + two + ("end = p + q" if sign == "+" else "end = concat(p, q)") + HEAD


PACKED = (
    "input x: f32[N, 5, 6]\nq, k, v = x |> a: linear(12) |> chunk(3, axis = 2)\n"
    "output y = attention(q, k, v, 2) |> b: linear(3)"
)
HALVES = IMAGE + "s = x |> c: conv(4, 3)\np, q = chunk(s, 2)\nend = concat(p, q)" + HEAD
LAID = "input x: f32[N, 6]\ns = x |> a: linear(4)\nt = s |> {}\noutput y = t |> b: linear(3)"

Weights = Mapping[str, Array]


def columns(w: Array, more: int) -> Array:
    """Weights with columns of zeros after their own."""
    return np.concatenate((w, np.zeros((w.shape[0], more, *w.shape[2:]))), axis=1)


def split_relu(old: Weights) -> Weights:
    made = {
        "end.n.weight": old["end.n.weight"] * 9 / 25,
        "end.n.bias": old["end.n.bias"] * 9 / 25,
        "end.copy_bn.weight": old["end.n.weight"] * 16 / 25,
        "end.copy_bn.bias": old["end.n.bias"] * 16 / 25,
    }
    for new, held in (
        ("copy.weight", "a.weight"),
        ("copy.bias", "a.bias"),
        ("copy_bn.running_mean", "n.running_mean"),
        ("copy_bn.running_var", "n.running_var"),
    ):
        made[f"end.{new}"] = old[f"end.{held}"]
    return made


def dense_layer(old: Weights) -> Weights:
    """The last two channels are made by a copy that has columns of zeros for the first three."""
    made = {
        "f.c2.weight": old["f.c2.weight"][:3],
        "conv.weight": old["f.c2.weight"][3:],
        "narrow.weight": columns(old["f.c1.weight"], 3),
        "narrow.bias": old["f.c1.bias"],
        "norm_own.weight": np.ones(3),
        "norm_own.running_var": np.ones(3),
    }
    for role in ("weight", "bias", "running_mean", "running_var"):
        made[f"norm.{role}"] = old[f"f.n1.{role}"]
        made[f"norm_narrow.{role}"] = old[f"f.n2.{role}"]
    return made


def one_norm(old: Weights) -> Weights:
    roles = ("weight", "bias", "running_mean", "running_var")
    return {f"n.a.{r}": np.concatenate((old[f"n.a.{r}"], old[f"n.b.{r}"])) for r in roles}


@dataclass(frozen=True)
class Case:
    """A use of a rule on a small network, and what the weights are afterwards."""

    body: str
    at: str
    made: Callable[[Weights], Weights] = lambda old: {}
    given: Mapping[str, Any] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)
    """Weights that the rule assumes: filled with a number."""
    gone: tuple[str, ...] = ()
    """Nodes that are taken out."""


CASES: Mapping[str, Case] = {
    "skip.add": Case(CHAIN, "end.r", lambda old: {"end.share": np.zeros(1)}, {"source": "s.r0"}),
    "skip.convex": Case(CHAIN, "end.r", lambda old: {"end.share": np.zeros(1)}, {"source": "s.c0"}),
    "skip.project": Case(
        CHAIN,
        "end.b",
        lambda old: {"end.skip.weight": np.zeros((4, 3, 1, 1))},
        {"source": "x", "stride": 2},
    ),
    "skip.concat": Case(
        CHAIN,
        "end.a",
        lambda old: {"end.a.weight": columns(old["end.a.weight"], 3)},
        {"source": "x"},
    ),
    "skip.concat_linear": Case(
        FLAT, "b", lambda old: {"b.weight": columns(old["b.weight"], 6)}, {"source": "x"}
    ),
    "skip.concat_pooled": Case(
        POOLED,
        "end.a",
        lambda old: {"end.a.weight": columns(old["end.a.weight"], 3)},
        {"source": "x"},
    ),
    "skip.concat_normed": Case(
        CHAIN,
        "end.b",
        lambda old: {
            "end.b.weight": columns(old["end.b.weight"], 3),
            "end.norm.weight": np.ones(3),
            "end.norm.running_var": np.ones(3),
        },
        {"source": "x"},
    ),
    "branch.replicate": Case(
        BARE,
        "end",
        lambda old: {
            "end.a.weight": old["end.a.weight"] / 2,
            "end.copy.weight": old["end.a.weight"] / 2,
        },
    ),
    "branch.split_add": Case(
        CHAIN,
        "end.a",
        lambda old: {
            "end.a.weight": old["end.a.weight"] * 0.25,
            "end.copy.weight": old["end.a.weight"] * 0.75,
            "end.a.bias": old["end.a.bias"] * 0.25,
            "end.copy.bias": old["end.a.bias"] * 0.75,
        },
        {"p": 1, "q": 3},
    ),
    "branch.split_concat": Case(
        CHAIN,
        "end.a",
        lambda old: {
            "end.a.weight": old["end.a.weight"][:3],
            "end.a.bias": old["end.a.bias"][:3],
            "end.rest.weight": old["end.a.weight"][3:],
            "end.rest.bias": old["end.a.bias"][3:],
        },
        {"first": 3},
    ),
    "branch.split_relu": Case(CHAIN, "end.r", split_relu),
    "branch.zero": Case(
        CHAIN,
        "end.b",
        lambda old: {"end.branch_bn.weight": np.zeros(4), "end.branch_bn.bias": np.zeros(4)},
    ),
    "deepen.dense": Case(
        DENSE,
        "end.a",
        lambda old: {"end.a.weight": columns(old["end.a.weight"], 2)},
        {"growth": 2},
    ),
    "deepen.dense_layer": Case(LAYER, "end", dense_layer, {"growth": 2}),
    "transformer.insert": Case(
        TOKENS,
        "p.r",
        lambda old: {"p.proj.weight": np.zeros((8, 8)), "p.fc2.weight": np.zeros((8, 16))},
        {"heads": 2, "ratio": 2},
    ),
    "transformer.insert_attention": Case(
        TOKENS, "p.r", lambda old: {"p.proj.weight": np.zeros((8, 8))}, {"heads": 4}
    ),
    "transformer.insert_mlp": Case(
        TOKENS, "p.a", lambda old: {"p.fc2.weight": np.zeros((8, 32)), "p.fc2.bias": np.zeros(8)}
    ),
    "attention.split_qkv": Case(
        PACKED,
        "q.chunk",
        lambda old: {
            "q.query.weight": old["q.a.weight"][:4],
            "q.query.bias": old["q.a.bias"][:4],
            "q.key.weight": old["q.a.weight"][4:8],
            "q.key.bias": old["q.a.bias"][4:8],
            "q.value.weight": old["q.a.weight"][8:],
            "q.value.bias": old["q.a.bias"][8:],
        },
    ),
    "drop.branch": Case(
        RESIDUAL, "end", held={"t.a.weight": 0, "t.a.bias": 0}, gone=("end", "t.a", "t.r")
    ),
    "drop.branch.batch_norm": Case(
        NORMED, "end", held={"t.n.weight": 0, "t.n.bias": 0}, gone=("end", "t.n", "t.r")
    ),
    "drop.branch.linear": Case(
        STREAM, "add", held={"t.a.weight": 0, "t.a.bias": 0}, gone=("add", "t.a", "t.g")
    ),
    "drop.null": Case(NULL, "end", gone=("end", "t")),
    "remove.gate": Case(GATED, "end.add", held={"g": 0}, gone=("end.add", "end.mul", "g")),
    "remove.scale": Case(SCALED, "end", held={"g": 1}, gone=("end", "g")),
    "remove.one": Case(ONE, "end", gone=("end.mul",)),
    "remove.zero": Case(ONE.replace("s * 1.0", "s + 0.0"), "end", gone=("end.add", "end.constant")),
    "remove.avg_pool": Case(ONE.replace("s * 1.0", "s |> p: avg_pool(1)"), "end", gone=("end.p",)),
    "merge.parallel_conv": Case(
        parallel("+", "false"),
        "end",
        lambda old: {"p.a.weight": old["p.a.weight"] + old["q.b.weight"]},
    ),
    "merge.parallel_conv.biased": Case(
        parallel("+", "true"),
        "end",
        lambda old: {
            "p.a.weight": old["p.a.weight"] + old["q.b.weight"],
            "p.a.bias": old["p.a.bias"] + old["q.b.bias"],
        },
    ),
    "merge.concat_conv": Case(
        parallel("|", "false"),
        "end",
        lambda old: {"p.a.weight": np.concatenate((old["p.a.weight"], old["q.b.weight"]))},
    ),
    "merge.concat_conv.biased": Case(
        parallel("|", "true"),
        "end",
        lambda old: {
            "p.a.weight": np.concatenate((old["p.a.weight"], old["q.b.weight"])),
            "p.a.bias": np.concatenate((old["p.a.bias"], old["q.b.bias"])),
        },
    ),
    "merge.concat_norm": Case(NORMS, "n", one_norm),
    "remove.concat_of_halves": Case(HALVES, "end", gone=("end", "chunk")),
    "remove.reshape": Case(LAID.format("l: reshape([0, 4])"), "t", gone=("t",)),
    "remove.reshape_pair": Case(
        LAID.format("l: reshape([0, 2, 2]) |> m: reshape([0, 4])"), "t.m", gone=("t.l", "t.m")
    ),
    "remove.transpose_pair": Case(
        STREAM.replace("s |> g: gelu", "s |> g: transpose(1, 2) |> h: transpose(1, 2)"),
        "t.h",
        gone=("t.g", "t.h"),
    ),
    "remove.flatten": Case(LAID.format("flatten"), "t", gone=("t",)),
}


def graph_of(body: str) -> Graph:
    return net(body)


def weights_of(graph: Graph, held: Mapping[str, float]) -> dict[str, Array]:
    drawn = init_weights(graph, STANDARD, 3, random_statistics=True)
    old = {path: np.asarray(a, np.float64) for path, a in drawn.items()}
    return {path: np.full_like(a, held[path]) if path in held else a for path, a in old.items()}


def made_by(name: str) -> Plan:
    case = CASES[name]
    return plan(graph_of(case.body), name, case.at, **case.given)


def test_every_rule_of_these_families_has_a_case() -> None:
    held = set()
    for family in FAMILIES:
        text = (EXAMPLES.parent / "rewrites" / f"{family}.rule").read_text()
        held |= {line.split("(")[0].split()[1] for line in text.splitlines() if line[:5] == "rule "}
    assert held == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_use_keeps_the_function(name: str) -> None:
    case, made = CASES[name], made_by(name)
    assert equal(made) == set(LIBRARY[name].contract.function)
    old = weights_of(made.before, case.held)
    for mode in LIBRARY[name].contract.function:
        assert drift(made, mode, old) < 1e-13
    assert not [node for node in case.gone if node in made.after]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.gone])
def test_the_weights_are_what_the_rule_says(name: str) -> None:
    made = made_by(name)
    old = weights_of(made.before, {})
    wanted = CASES[name].made(old)
    assert wanted
    for path, array in wanted.items():
        found = evaluate(made.terms[path], Floating(np.float64), old)
        assert found.shape == array.shape
        assert np.allclose(found, array, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.held])
def test_what_is_assumed_matters(name: str) -> None:
    """With other weights the network is another."""
    made = made_by(name)
    assert drift(made, "eval", weights_of(made.before, dict.fromkeys(CASES[name].held, 2))) > 1e-3


@pytest.mark.parametrize(
    ("name", "at", "given", "example"),
    [
        ("skip.add", "stage2.2.relu2", {"source": "stage2.1.relu2"}, "resnet20"),
        ("skip.project", "stage3.0.bn2", {"source": "stem.relu", "stride": 4}, "resnet20"),
        ("skip.concat", "stage1.2.conv2", {"source": "stage1.0.conv1"}, "resnet20"),
        ("skip.concat_pooled", "stage3.conv", {"source": "stage2.relu"}, "nash_start"),
        ("branch.split_relu", "stage2.relu", {"p": 5, "q": 12, "r": 13}, "nash_start"),
        ("branch.split_concat", "stage3.conv", {"first": 100}, "nash_start"),
        ("branch.zero", "stage2.0.conv1", {}, "resnet20"),
        ("deepen.dense", "transition1.conv", {"width": 48, "growth": 12}, "densenet_bc_40_12"),
        ("deepen.dense", "denseblock2.3.conv1", {"growth": 6}, "densenet_bc_40_12"),
        ("deepen.dense_layer", "denseblock2.3.concat", {"growth": 5}, "densenet_bc_40_12"),
        (
            "skip.concat_normed",
            "transition2.conv",
            {"source": "transition1.pool"},
            "densenet_bc_40_12",
        ),
    ],
)
def test_networks_of_the_examples(
    name: str, at: str, given: Mapping[str, Any], example: str
) -> None:
    path = EXAMPLES / f"{example}.arch"
    graph = load(Source(path.name, path.read_text()), STANDARD).graph
    assert equal(plan(graph, name, at, **given)) == set(LIBRARY[name].contract.function)


def test_a_skip_reads_nothing_that_comes_later() -> None:
    with pytest.raises(ArchirError) as failure:
        plan(graph_of(CHAIN), "skip.add", "s.r0", source="end.r")
    assert failure.value.status == 1


def test_shares_of_a_relu_are_those_of_a_right_triangle() -> None:
    with pytest.raises(ArchirError) as failure:
        plan(graph_of(CHAIN), "branch.split_relu", "end.r", p=1, q=2, r=3)
    assert "p * p + q * q == r * r" in failure.value.diagnostics[0].message


def test_a_layer_whose_output_is_read_twice_is_not_shared_out() -> None:
    body = IMAGE + ("n = x |> a: conv(4, 3) |> n: batch_norm\nr = n |> relu\nend = n + r" + HEAD)
    with pytest.raises(ArchirError) as failure:
        plan(graph_of(body), "branch.split_relu", "r")
    assert "also reads `n.n`" in failure.value.diagnostics[0].message


@pytest.mark.parametrize(
    ("there", "back", "at"),
    [
        ("branch.replicate", "merge.parallel_conv", "end"),
        ("branch.split_concat", "merge.concat_conv", "end"),
    ],
)
def test_there_and_back(there: str, back: str, at: str) -> None:
    """A branch, and the layers of it made one again: the weights are the old ones."""
    made = plan(graph_of(BARE), there, at)
    old = weights_of(made.before, {})
    k = Floating(np.float64)
    middle = {
        p: evaluate(made.terms[p], k, old) if p in made.terms else old[p]
        for p in made.after.parameters
    }
    joint = next(n.name for n in made.after if n.op in ("add", "concat"))
    undone = plan(made.after, back, joint)
    (path,) = undone.terms
    assert np.allclose(
        evaluate(undone.terms[path], k, middle), old["end.a.weight"], rtol=1e-15, atol=0
    )
    assert {p: q.type for p, q in undone.after.parameters.items()} == {
        p: q.type for p, q in made.before.parameters.items()
    }
