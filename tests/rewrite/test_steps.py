"""Rules over a class with several steps, and what grows without a copy, on real networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph
from archir.ir.types import AttrValue
from archir.lang import load
from archir.ops import STANDARD
from archir.rewrite.explain import describe
from archir.rewrite.maps import MAKERS, make
from archir.rewrite.plan import Plan, apply_terms
from archir.rewrite.rule import Reshaping
from archir.rewrite.rulefile import parse_rules
from archir.rewrite.sites import Planner
from archir.weights.init import init_weights

from .nets import HEAD, IMAGE, LIBRARY, drift, equal, failure, net, plan, rule

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CHAIN = net(IMAGE + "a = x |> conv(6, 3)\nb = a |> batch_norm |> relu\nend = b |> conv(4)" + HEAD)
TWICE = """rule twice(width: int) {
    over c = class(at)          where width > size(c)
    let g = embed(size(c), width)
    produce place(g)            carry place(g)            consume place(g)
    then
    let h = replicate(size(c), 2 * size(c))
    produce take(h)             carry take(h)             consume take(h) / count(h)
    then
    let k = shuffle(size(c))
    produce take(k)             carry take(k)             consume take(k)
}"""


def example(name: str, **params: AttrValue) -> Graph:
    text = (EXAMPLES / f"{name}.arch").read_text()
    return load(Source(f"{name}.arch", text), STANDARD, params).graph


def moved(made: Plan, seed: int = 3) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights before and after."""
    held = init_weights(made.before, STANDARD, seed, random_statistics=True)
    return held, apply_terms(made.terms, made.after, held)


# --- steps ------------------------------------------------------------------------------------


def test_each_step_starts_with_what_the_one_before_has_made() -> None:
    of = rule(TWICE)
    assert isinstance(of.body, Reshaping)
    assert len(of.body.steps) == 3
    made = plan(CHAIN, of, "a", 5, width=7)
    assert made.after.node("a").attrs["out"] == 14
    assert made.after.parameters["end.weight"].type.shape == (4, 14, 1, 1)
    assert equal(made) == {"eval", "train"}
    assert drift(made) < 1e-12
    old, new = moved(made)
    rows = {row.tobytes() for row in new["a.weight"]}
    assert rows == {row.tobytes() for row in old["a.weight"]} | {bytes(27 * 4)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("take(h) / count(h)", "take(h)"),
        ("carry take(h) ", "carry take(h) * 2 "),
        ("consume take(k)", "consume take(k) * 2"),
        ("2 * size(c)", "size(c) + 1"),
    ],
)
def test_a_step_that_is_wrong_changes_the_function(old: str, new: str) -> None:
    assert TWICE.count(old) == 1
    wrong = plan(CHAIN, rule(TWICE.replace(old, new)), "a", 5, width=7)
    if old == "2 * size(c)":
        assert equal(wrong) == {"eval", "train"}  # any replication will do
        return
    with pytest.raises(ArchirError, match="A401"):
        equal(wrong)


def read(text: str) -> list[str]:
    with pytest.raises(ArchirError) as caught:
        parse_rules(Source("t.rule", text), STANDARD)
    return [f"{d.code} {d.message}" for d in caught.value.diagnostics]


def test_steps_are_whole() -> None:
    head, steps = TWICE.split("{", 1)
    whole = f'{head}{{ "Twice." preserves function in eval\n{steps}'
    parse_rules(Source("t.rule", whole), STANDARD)
    cut = whole.replace("carry take(h) ", "")
    assert read(cut) == ["A202 a rule over a class says what members carry"]
    doubled = whole.replace("carry take(h) ", "carry take(h) carry take(h) ")
    assert read(doubled) == ["A202 the rule has two `carry` parts"]
    pattern = 'rule r() { "." preserves shape match { y = relu(x) } then replace { y = x } }'
    assert "A202 a rule over a pattern has no `then` part" in read(pattern)
    early = whole.replace("size(c), width)", "size(h), width)")
    assert [line[:4] for line in read(early)] == ["A212"]
    for assumed in ("unread(h)", "unread(g)", "repeated(h)", "nothing(g)"):
        claimed = whole.replace("over c", f"assumes {assumed}\n over c")
        assert [line[:4] for line in read(claimed)] == ["A205"], assumed


def test_a_later_step_reads_no_weights() -> None:
    with pytest.raises(ArchirError, match="A213: `alike` makes the map of a rule's first step"):
        rule(TWICE.replace("shuffle(size(c))", "alike(size(c))"))


def test_a_rule_over_a_pattern_finds_no_map_in_weights() -> None:
    body = "match { y = relu(x) } replace { y = relu(x) } weights { let g = alike(3) }"
    found = failure(CHAIN, rule(f"rule r() {{ {body} }}"), "b.relu").diagnostics[0]
    assert (found.code, found.message) == ("A213", "`alike` makes the map of a rule over a class")


# --- maps ---------------------------------------------------------------------------------------


def made(name: str, *args: object) -> list[int]:
    return make(name, args, np.random.Generator(np.random.PCG64(1))).entries.tolist()


def test_maps() -> None:
    assert made("again", 5, 3) == [0, 1, 2, 3, 4, 3, 4]
    assert made("choose", 5, (3, 0)) == [0, 3]
    assert made("embed", 3, 5) == [0, 1, 2]
    assert sorted(made("replicate", 3, 8)) in ([0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2, 2])
    assert sorted(made("shuffle", 6)) == [*range(6)] != made("shuffle", 6)
    kept = made("select", 6, 4)
    assert kept == sorted({*kept})
    assert len(kept) == 4


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("again", (5, 6), "wants 1 to 5, got 6"),
        ("again", (5, 0), "wants 1 to 5, got 0"),
        ("replicate", (5, 4), "wants 5 to"),
        ("replicate", (5, True), "takes sizes"),
        ("select", (5,), "takes 2 arguments, got 1"),
        ("shuffle", (0,), "takes sizes"),
        ("embed", (3, 2**21), "wants 3 to"),
        ("choose", (5, 3), "a list of indices"),
        ("choose", (5, (2.0,)), "a list of indices"),
    ],
)
def test_maps_that_cannot_be(name: str, args: tuple[object, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(name, args, np.random.Generator(np.random.PCG64(1)))


def test_every_map_holds_what_it_says() -> None:
    from archir.proof.vocabulary import CONDITIONS

    arguments = {1: (6,), 2: (6, 6)}
    for name, maker in MAKERS.items():
        assert set(maker.holds) <= set(CONDITIONS)
        if maker.reads:
            continue
        given: tuple[object, ...] = (6, (5, 2)) if name == "choose" else arguments[maker.arguments]
        for seed in range(5):
            g = make(name, given, np.random.Generator(np.random.PCG64(seed)))
            assert all(CONDITIONS[condition](g) for condition in maker.holds), name


# --- what is new --------------------------------------------------------------------------------


def test_new_channels_are_drawn_like_the_old_and_read_by_nothing() -> None:
    made = plan(CHAIN, "widen.zero_outgoing", "a", 4, width=200)
    old, new = moved(made)
    for path in ("a.weight", "a.bias", "b.batch_norm.weight", "b.batch_norm.running_var"):
        assert (new[path][:6] == old[path]).all()
        assert np.isin(new[path][6:], old[path]).all()
        if old[path].any():
            assert 0.5 < new[path][6:].std() / old[path].std() < 2
            assert len(np.unique(new[path][6:], axis=0)) > 3
    assert (new["b.batch_norm.running_var"] > 0).all()
    assert (new["end.weight"][:, 6:] == 0).all()
    assert (
        moved(plan(CHAIN, "widen.zero_outgoing", "a", 5, width=200))[1]["a.weight"]
        != new["a.weight"]
    ).any()


def test_a_pair_is_made_alike_and_read_with_opposite_signs() -> None:
    made = plan(CHAIN, "widen.pairs", "a", 4, width=12)
    assert equal(made) == {"eval", "train"}
    old, new = moved(made)
    assert (new["end.weight"][:, :6] == old["end.weight"]).all()
    for path in ("a.weight", "a.bias", "b.batch_norm.weight", "b.batch_norm.running_mean"):
        assert (new[path][:6] == old[path]).all()
        assert (new[path][6:9] == new[path][9:]).all()
    one, two = new["end.weight"][:, 6:9], new["end.weight"][:, 9:]
    assert (one == -two).all()
    assert (one != 0).mean() > 0.8
    assert drift(made) < 1e-15
    (found,) = failure(CHAIN, "widen.pairs", "a", width=11).diagnostics
    assert (found.code, "% 2 == 0" in found.message) == ("A302", True)


def test_shares_differ() -> None:
    made = plan(CHAIN, "widen.shares", "a", 4, width=12)
    old, new = moved(made)
    rows = {row.tobytes(): j for j, row in enumerate(old["a.weight"])}
    origin = [rows[row.tobytes()] for row in new["a.weight"]]
    ratio = (new["end.weight"] / old["end.weight"][:, origin])[0, :, 0, 0]
    assert ((ratio > 0.2) & (ratio < 0.8)).all()
    assert len({*np.round(ratio, 3)}) > 6


# --- real networks ------------------------------------------------------------------------------


TRANSFORMER = """
block layer(dim, heads) {
    n = input |> rms1: rms_norm
    q = n |> linear(dim, bias = false)
    k = n |> linear(dim, bias = false)
    v = n |> linear(dim, bias = false)
    h = input + (attention(q, k, v, heads = heads) |> proj: linear(dim, bias = false))
    m = h |> rms2: rms_norm
    g = m |> gate: linear(3 * dim, bias = false) |> silu
    u = m |> up: linear(3 * dim, bias = false)
    output h + (g * u |> down: linear(dim, bias = false))
}
arch net {
    input w: i64[N, 5]
    e = w |> embedding(11, 8)
    t = e |> layer(8, 2) |> layer(8, 2)
    output y = t |> rms: rms_norm |> head: linear(11, bias = false)
}"""
GATED = load(Source("gated.arch", TRANSFORMER), STANDARD).graph


VIT = {
    "hidden units": ("widen.zero_outgoing", "blocks.1.mlp.fc1", 800),
    "pairs of hidden units": ("widen.pairs", "blocks.1.mlp.fc1", 770),
    "a head": ("widen.zero_outgoing", "blocks.1.attn.qkv.heads", 4),
    "a pair of heads": ("widen.pairs", "blocks.0.attn.qkv.heads", 5),
    "head dimension": ("widen", "blocks.0.attn.qkv.head", 128),
    "unequal shares of heads": ("widen.shares", "blocks.0.attn.qkv.heads", 5),
}


@pytest.mark.parametrize("part", VIT)
def test_the_parts_of_a_vision_transformer_grow(part: str) -> None:
    name, site, width = VIT[part]
    made = plan(example("vit_tiny", size=32, depth=2), name, site, 3, width=width)
    assert equal(made) == {"eval", "train"}
    assert drift(made) < 1e-12


def test_hidden_units_of_a_gated_transformer() -> None:
    """Of a SwiGLU: gate and up make one class, which `down` reads."""
    made = plan(GATED, "widen.zero_outgoing", "t.0.gate", 3, width=30)
    assert {p.split(".")[2] for p in made.terms} == {"gate", "up", "down"}
    assert equal(made) == {"eval", "train"}


@pytest.mark.parametrize("name", ["widen", "widen.shares"])
@pytest.mark.parametrize("times", [2, 3])
def test_a_residual_stream_grows_by_whole_multiples(name: str, times: int) -> None:
    """Through layer norm and RMS norm, with the scale of attention kept."""
    vit, gated = example("vit_tiny", size=32, depth=1), GATED
    for before, site, width in ((vit, "cls_token", 192), (gated, "e", 8)):
        made = plan(before, name, site, 3, width=times * width)
        assert equal(made) == {"eval", "train"}
        if before is vit:
            assert drift(made) < 1e-12
        found = failure(before, name, site, width=times * width + 1).diagnostics[0]
        assert (found.code, "averages over that axis" in found.message) == ("A303", True)
        assert f"take a multiple of {width}: {2 * width}, {3 * width}" in found.hint
        for other in ("widen.zero_outgoing", "widen.pairs"):
            (found,) = failure(before, other, site, width=2 * width).diagnostics
            assert found.code == "A303"
            assert "every channel equally often" in found.hint


def test_explain_says_how_a_residual_stream_may_grow() -> None:
    before = example("vit_tiny", size=32, depth=1)
    lines = describe(Planner(before, STANDARD), LIBRARY["widen"], "cls_token")
    text = "\n".join(lines)
    assert "192 channels" in text
    assert "at blocks.norm1, `layer_norm` averages over that axis: every channel equally often" in (
        text.replace("blocks.0.", "blocks.")
    )
