"""Rules over a class that are told which channels they mean, or find them in the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir import api
from archir.diag import ArchirError
from archir.ir.types import AttrValue
from archir.ops import STANDARD
from archir.ops.arithmetic import Array
from archir.ops.structure import FIXED, Factor, Structure, lift
from archir.proof.uses import share_read
from archir.rewrite.class_rules import class_at
from archir.rewrite.found import SLACK, equal, norms, owners, read
from archir.rewrite.plan import Plan, apply_terms
from archir.rewrite.sites import Planner
from archir.weights.init import init_weights

from .nets import HEAD, IMAGE, LIBRARY, net
from .nets import equal as exact

CHAIN = net(IMAGE + "a = x |> conv(6, 3)\nb = a |> batch_norm |> relu\nend = b |> conv(4)" + HEAD)
RESIDUAL = net(
    IMAGE
    + "a = x |> conv(6, 3)\nb = a |> relu |> c1: conv(5, 3) |> relu |> c2: conv(6, 3)\n"
    + "end = a + b"
    + HEAD
)
NORMED = net(
    "input x: f32[N, 3, 6]\na = x |> linear(6)\nb = a |> layer_norm |> fc: linear(5)\noutput y = b"
)


def weights(graph: Any, seed: int = 3) -> dict[str, Array]:
    return init_weights(graph, STANDARD, seed, random_statistics=True)


def planned(
    graph: Any, rule: str, at: str, held: Any, known: Any = (), **arguments: AttrValue
) -> Plan:
    return Planner(graph, STANDARD, held).plan(LIBRARY[rule], at, arguments, 0, known)


def refused(graph: Any, rule: str, at: str, held: Any, known: Any = (), **arguments: Any) -> Any:
    with pytest.raises(ArchirError) as failure:
        planned(graph, rule, at, held, known, **arguments)
    (found,) = failure.value.diagnostics
    return found


# --- the user's choice --------------------------------------------------------------------------


def test_the_channels_that_are_kept_are_those_that_were_named() -> None:
    held = weights(CHAIN)
    made = planned(CHAIN, "prune.keep", "a", None, keep=(4, 0, 1))
    assert exact(made) == {"eval", "train"}
    assert made.found == ()
    after = apply_terms(made.terms, made.after, held)
    assert (after["a.weight"] == held["a.weight"][[0, 1, 4]]).all()
    assert (after["b.batch_norm.running_var"] == held["b.batch_norm.running_var"][[0, 1, 4]]).all()
    assert (after["end.weight"] == held["end.weight"][:, [0, 1, 4]]).all()


@pytest.mark.parametrize(
    ("keep", "code", "text"),
    [
        ((0, 6), "A211", "indices from 0 to 5, got 6"),
        ((), "A307", "a list of one or more different indices"),
        ((1, 1), "A307", "a list of one or more different indices"),
        ((0, -1), "A307", "a list of one or more different indices"),
        ((0, 1.5), "A307", "a list of one or more different indices"),
        (3, "A307", "a list of one or more different indices"),
        ((True,), "A307", "a list of one or more different indices"),
        (None, "A608", "needs `keep`"),
    ],
)
def test_what_is_no_list_of_channels(keep: Any, code: str, text: str) -> None:
    given = {} if keep is None else {"keep": keep}
    found = refused(CHAIN, "prune.keep", "a", None, **given)
    assert found.code == code
    assert text in found.message


# --- the largest --------------------------------------------------------------------------------


def test_the_largest_are_kept() -> None:
    held = weights(CHAIN)
    size = np.sqrt(np.square(held["a.weight"].astype(np.float64)).sum((1, 2, 3)))
    best = sorted(np.argsort(size)[-2:].tolist())
    made = planned(CHAIN, "prune.magnitude", "a", held, width=2)
    assert list(made.found) == best
    assert exact(made) == {"eval", "train"}
    held["a.weight"][3] *= 100
    held["a.bias"][1] = 1000  # a bias makes no channel larger
    assert 3 in planned(CHAIN, "prune.magnitude", "a", held, width=2).found
    assert list(planned(CHAIN, "prune.magnitude", "a", held, width=2).found) != [1, 3]


def test_norms_are_added_up_over_what_makes_a_class() -> None:
    held = weights(RESIDUAL)
    planner = Planner(RESIDUAL, STANDARD, held)
    found = norms(class_at(planner.classes, RESIDUAL, "a"), held)
    each = [
        np.sqrt(np.square(held[path].astype(np.float64)).sum((1, 2, 3)))
        for path in ("a.weight", "b.c2.weight")
    ]
    assert np.allclose(found, each[0] + each[1], rtol=1e-12, atol=0)


def test_norms_and_readers_by_heads() -> None:
    """The channels of a class among others on one axis."""
    graph = net(
        "input x: f32[N, 5, 8]\nqkv = x |> linear(24)\nq, k, v = chunk(qkv, 3, axis = -1)\n"
        "s = attention(q, k, v, heads = 4)\nproj = s |> linear(8)\noutput y = proj"
    )
    held = weights(graph)
    planner = Planner(graph, STANDARD, held)
    heads = class_at(planner.classes, graph, "qkv.heads")
    member = next(m for m in heads.members if m.path == "qkv.weight")
    places = owners(member.structure, heads.number)
    assert [p.tolist() for p in places] == [[0, 0, 1, 1, 2, 2, 3, 3] * 3]
    held["qkv.weight"][2:4] = held["qkv.weight"][10:12] = held["qkv.weight"][18:20] = 0
    held["proj.weight"][:, 4:6] = 0
    assert norms(heads, held)[1] == 0
    assert read(heads, held).tolist() == [True, True, False, True]
    assert planned(graph, "drop.unread", "qkv.heads", held).found == (0, 1, 3)
    held["proj.weight"][:, 4] = 1
    assert read(heads, held).all()


STRUCTURES = (
    ((Factor(0, 4),),),
    ((Factor(FIXED, 3), Factor(0, 4), Factor(FIXED, 2)),),
    ((Factor(FIXED, 3),), (Factor(0, 4),), (Factor(0, 4), Factor(FIXED, 2))),
    ((Factor(0, 4), Factor(0, 4)),),
    ((Factor(FIXED, 2), Factor(1, 5, ((Factor(0, 4),), (Factor(FIXED, 1),)))),),
)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_entry_is_owned_by_the_channels_it_goes_with(structure: Structure) -> None:
    """What a map that leaves a channel out leaves out of the axis."""
    places = owners(structure, 0)
    for gone in range(4):
        left, length = lift(structure, 0, np.delete(np.arange(4), gone), 4)
        owned = np.flatnonzero(np.any([p == gone for p in places], axis=0))
        assert owned.tolist() == sorted({*range(length)} - {*left.tolist()})


def test_without_weights_it_says_so() -> None:
    planner = Planner(CHAIN, STANDARD)
    for rule in ("prune.magnitude", "merge.duplicates", "drop.unread"):
        given = {"width": 2} if rule == "prune.magnitude" else {}
        assert refused(CHAIN, rule, "a", None, **given).code == "A313"
        assert planner.sites(LIBRARY[rule]) == []
        with pytest.raises(ArchirError, match="A313"):
            planner.choose(LIBRARY[rule], "all", 0)


# --- duplicates and what nothing reads ----------------------------------------------------------


def test_only_what_is_equal_in_every_weight_is_merged() -> None:
    held = weights(CHAIN)
    assert refused(CHAIN, "merge.duplicates", "a", held).code == "A302"
    paths = [p for p in held if p.startswith(("a.", "b.")) and held[p].ndim]
    assert len(paths) == 6
    for path in paths:
        held[path][4] = held[path][1]
    assert planned(CHAIN, "merge.duplicates", "a", held).found == (0, 1, 2, 3, 1, 4)
    held["a.weight"][1, 0, 0, 0] = 0.0
    held["a.weight"][4, 0, 0, 0] = -0.0
    made = planned(CHAIN, "merge.duplicates", "a", held)
    after = apply_terms(made.terms, made.after, held)
    columns = held["end.weight"]
    assert (after["end.weight"][:, 1] == columns[:, 1] + columns[:, 4]).all()
    assert share_read(made, held) == 0
    for path in paths:
        other = {**held, path: held[path].copy()}
        other[path][4] += 1
        assert refused(CHAIN, "merge.duplicates", "a", other).code == "A302"
        assert share_read(replace(made), other) > 0


def test_what_is_averaged_is_merged_evenly_or_not_at_all() -> None:
    held = weights(NORMED)
    for path in ("a.weight", "a.bias", "b.layer_norm.weight", "b.layer_norm.bias"):
        held[path][4] = held[path][1]
    found = refused(NORMED, "merge.duplicates", "a", held)
    assert Planner(NORMED, STANDARD, held).sites(LIBRARY["merge.duplicates"]) == []
    assert (found.code, found.node) == ("A303", "b.layer_norm")
    assert "every channel equally often" in found.hint
    for path in ("a.weight", "a.bias", "b.layer_norm.weight", "b.layer_norm.bias"):
        held[path][[3, 5]] = held[path][[0, 2]]
    made = planned(NORMED, "merge.duplicates", "a", held)
    (site,) = Planner(NORMED, STANDARD, held).sites(LIBRARY["merge.duplicates"])
    assert site.at == "a"
    assert made.found == (0, 1, 2, 0, 1, 2)
    assert exact(made) == {"eval", "train"}


def test_a_tied_weight_that_makes_a_class_reads_it_too() -> None:
    graph = net(
        "input w: i64[N, 5]\ne = w |> embedding(11, 6)\nh = e |> relu\n"
        "output y = h |> head: linear(11, bias = false, weight = e.weight)"
    )
    held = weights(graph)
    assert refused(graph, "drop.unread", "e", held).message.startswith("every channel of e")
    held["e.weight"][:, [1, 4]] = 0
    made = planned(graph, "drop.unread", "e", held)
    assert made.found == (0, 2, 3, 5)
    assert share_read(made, held) == 0
    assert exact(made) == {"eval", "train"}


def test_where_nothing_is_read_one_channel_stays() -> None:
    held = weights(CHAIN)
    held["end.weight"][:] = 0
    made = planned(CHAIN, "drop.unread", "a", held)
    assert made.after.node("a").attrs["out"] == 1
    after = apply_terms(made.terms, made.after, held)
    again = Planner(made.after, STANDARD, after)
    assert [s.at for s in again.sites(LIBRARY["drop.unread"])] == []


# --- what a certificate holds -------------------------------------------------------------------


def test_a_known_map_is_compared_with_the_weights() -> None:
    held = weights(CHAIN)
    held["a.weight"][5] = held["a.weight"][2]
    size = norms(class_at(Planner(CHAIN, STANDARD).classes, CHAIN, "a"), held)
    order = np.argsort(-size, kind="stable").tolist()
    rank = order.index(2)
    assert order[rank + 1] == 5  # equal norms
    width = rank + 1
    known = sorted(order[:width])
    other = sorted({*order[:rank], 5})
    for entries in (known, other):
        made = planned(CHAIN, "prune.magnitude", "a", held, entries, width=width)
        assert list(made.found) == entries
    held["a.weight"][5] *= 1 - 10 * SLACK
    held = {p: a.astype(np.float64) for p, a in held.items()}
    held["a.weight"][5] = held["a.weight"][2] * (1 - 10 * SLACK)
    assert refused(CHAIN, "prune.magnitude", "a", held, other, width=width).code == "A302"
    for wrong in ([0, 0], [1, 0], [0, 6], [-1, 0], [0], [0, 1, 2]):
        assert refused(CHAIN, "prune.magnitude", "a", None, wrong, width=2).code == "A302"


@pytest.mark.parametrize("wrong", [(0, 2, 1, 3, 4, 5), (0, 1), (1, 0, 2, 3, 4, 5), (0,) * 7])
def test_a_known_merge_is_numbered_in_order(wrong: tuple[int, ...]) -> None:
    assert refused(CHAIN, "merge.duplicates", "a", None, wrong).code == "A302"


def test_a_known_merge_is_that_of_the_weights() -> None:
    held = weights(CHAIN)
    assert refused(CHAIN, "merge.duplicates", "a", held, (0, 0, 1, 2, 3, 4)).code == "A302"
    assert refused(CHAIN, "drop.unread", "a", held, (0, 1, 2)).code == "A302"
    assert equal(class_at(Planner(CHAIN, STANDARD).classes, CHAIN, "a"), held).tolist() == [
        *range(6)
    ]


NETWORK = """arch net {
    input x: f32[N, 3, 8, 8]
    a = x |> conv(6, 3) |> bn: batch_norm |> relu |> c: conv(4)
    output y = a |> global_avg_pool |> fc: linear(5)
}
"""


@pytest.fixture
def network(tmp_path: Path) -> api.Network:
    path = tmp_path / "net.arch"
    path.write_text(NETWORK)
    return api.load(path).init(3, random_statistics=True)


def test_growing_and_taking_out_in_one_transaction(network: api.Network, tmp_path: Path) -> None:
    """What the second rule looks at is what the first has made."""
    steps = [
        api.Application("widen", "conv", {"width": 12}),
        api.Application("merge.duplicates", "conv"),
        api.Application("widen.pairs", "conv", {"width": 10}),
        api.Application("prune.magnitude", "c", {"width": 3}),
    ]
    done = api.rewrite(network, steps)
    assert done.uses[1].plan.found == tuple(j % 6 for j in done.uses[1].plan.found)
    assert done.network.graph.node("a.conv").attrs["out"] == 10
    assert all(finding.holds for finding in done.network.verify())
    saved = done.network.save(tmp_path / "out.arch")
    assert all(finding.holds for finding in api.load(saved).verify())


def test_tampering_with_what_was_found_is_noticed(network: api.Network) -> None:
    made = network.rewrite("prune.magnitude", "conv", width=2)
    (use,) = made.certificate.steps[-1].facts["uses"]
    assert use["map"] == sorted(use["map"])
    assert all(finding.holds for finding in made.verify())
    step = made.certificate.steps[-1]
    rest = [j for j in range(6) if j not in use["map"]]
    for changed in ([rest[0], rest[1]], [], None, [0, 99], "01", [use["map"][0]]):
        facts = json.loads(json.dumps(dict(step.facts)))
        facts["uses"][0]["map"] = changed
        if changed is None:
            del facts["uses"][0]["map"]
        chain = replace(made.certificate, steps=made.certificate.steps[:-1])
        again = chain.then("rewrite", step.after, made.graph, facts)
        forged = replace(made, certificate=again)
        assert not all(finding.holds for finding in forged.verify()), changed


def test_the_command_line_looks_at_the_weights_beside_a_network(
    network: api.Network, tmp_path: Path, archir: Callable[..., Any]
) -> None:
    saved = network.rewrite("pad", "conv", width=9).save(tmp_path / "out.arch")
    listed = archir("rules", saved, "--rule", "drop.unread", "--json").document
    assert [site["at"] for site in listed["sites"]] == ["a.conv"]
    assert archir("explain", saved, "--rule", "drop.unread", "--json").document["applies"] is True
    asked = ("rewrite", saved, "--at", "a.conv", "-o", tmp_path / "more.arch")
    kept = archir(*asked, "--rule", "prune.keep", "--set", "keep=[0,2,4]")
    assert kept.status == 0
    assert "prune.keep@a.conv keep=[0,2,4]" in kept.out
    assert api.load(tmp_path / "more.arch").graph.node("a.conv").attrs["out"] == 3
    saved.with_suffix(".safetensors").unlink()
    assert archir("rules", saved, "--rule", "drop.unread", "--json").document["sites"] == []
    blind = archir(*asked, "--rule", "drop.unread", "--force")
    assert (blind.status, "A313" in blind.err) == (1, True)
