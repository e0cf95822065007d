"""Moves are drawn on graphs alone, and whatever is drawn can be done to the network."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir
from archir.api import Application, Network, load, rewrite
from archir.diag import ArchirError
from archir.search.nash import NashConfig, moves_of
from archir.search.space import MOST_REFUSED, Move, Space, draw_applications, read_moves

EXAMPLES = Path(__file__).parents[2] / "examples"
MOVES = moves_of(NashConfig(max_channels=64, kernels=(3,), pool_factors=(2,)))


@cache
def network(name: str) -> Network:
    return archir.load(EXAMPLES / f"{name}.arch").init(0)


def drawn(net: Network, moves: Any, seed: int = 0, count: int = 5, **more: Any) -> list[Any]:
    return Space(net, tuple(moves)).draw(net, np.random.default_rng(seed), count, **more)


def kind(rule: str) -> str:
    return next(move.kind for move in MOVES if move.rule == rule)


@pytest.mark.parametrize("name", ["nash_digits", "digits", "nash_start", "resnet20"])
@pytest.mark.parametrize("seed", range(2))
def test_what_is_drawn_can_be_done(name: str, seed: int, tmp_path: Path) -> None:
    net = network(name)
    uses = drawn(net, MOVES, seed)
    assert len(uses) == 5
    done = rewrite(net, uses, seed=seed)
    assert [use.plan.site for use in done.uses] == [use.at for use in uses]
    assert done.drift is not None
    assert done.drift.fine
    again = drawn(done.network, MOVES, seed + 100, 2)  # on the text as it was written, unrolled
    done.network.save(tmp_path / "child.arch")
    assert rewrite(load(tmp_path / "child.arch"), again).drift is not None


@pytest.mark.parametrize("name", ["densenet_bc_40_12", "mobilenet_v2"])
def test_texts_of_large_networks_can_be_rewritten(name: str) -> None:
    net = archir.load(EXAMPLES / f"{name}.arch")
    uses = drawn(net, moves_of(NashConfig()), 1, 3)
    assert uses
    assert len(rewrite(net, uses).uses) == len(uses)


def test_every_family_has_the_same_chance() -> None:
    net, draws = network("nash_digits"), 240
    found = Counter(kind(drawn(net, MOVES, seed, 1)[0].rule) for seed in range(draws))
    # No two results of a ReLU or a pooling have one shape, so that a skip by addition offers
    # nothing, and skips by concatenation have its chances.
    expected = {"insert": 1 / 3, "widen": 1 / 3, "skip/concat": 1 / 3, "skip/add": 0}
    for family, share in expected.items():
        spread = (share * (1 - share) / draws) ** 0.5
        assert abs(found[family] / draws - share) <= 4 * spread, family


def test_nested_families_share_the_chance_of_theirs() -> None:
    net = rewrite(network("nash_digits"), drawn(network("nash_digits"), MOVES[:1], 0, 3)).network
    draws = 240
    found = Counter(kind(drawn(net, MOVES, seed, 1)[0].rule) for seed in range(draws))
    for family, share in {"insert": 1 / 3, "skip/concat": 1 / 6, "skip/add": 1 / 6}.items():
        spread = (share * (1 - share) / draws) ** 0.5
        assert abs(found[family] / draws - share) <= 4 * spread, family


def test_values_are_drawn_alike() -> None:
    net = network("nash_digits")
    widths: Counter[Any] = Counter()
    for seed in range(180):
        (use,) = drawn(net, [Move("widen", times={"width": (2, 4)}, most=64)], seed, 1)
        widths[use.at, use.arguments["width"]] += 1
    sizes = {"stage1.conv": 4, "stage2.conv": 8, "stage3.conv": 16}
    assert set(widths) == {(at, n * size) for at, size in sizes.items() for n in (2, 4)}
    assert all(8 <= count <= 52 for count in widths.values())  # 30 each; 4.4 deviations


def test_the_largest_size_is_kept() -> None:
    net = network("nash_digits")
    only = [Move("widen", times={"width": (4,)}, most=20)]
    uses = drawn(net, only, 0, 9)
    assert [(use.at, use.arguments["width"]) for use in uses] == [("stage1.conv", 16)]


def test_no_layer_gets_wider_than_that_through_a_part_of_it() -> None:
    net = network("nash_digits")
    pooled = {"factor": 4, "source": "stage1.relu"}, {"factor": 2, "source": "stage1.pool"}
    joined = [Application("skip.concat_pooled", "stage3.conv", given) for given in pooled]
    joined.append(Application("skip.convex", "stage3.relu", {"source": "stage3.concat1"}))
    wide = rewrite(net, joined).network  # stage3.conv is as wide as three tensors together
    loose = rewrite(wide, [Application("widen", "stage1.conv", {"width": 24})]).network
    assert loose.graph.node("stage3.conv").attrs["out"] == 8 + 24 + 24
    for seed in range(4):
        uses = drawn(wide, [Move("widen", times={"width": (2, 4)}, most=32)], seed, 9)
        assert uses
        after = rewrite(wide, uses).network.graph
        assert max(n.attrs["out"] for n in after if n.op == "conv") <= 32  # type: ignore[type-var]


def test_levels_go_up_one_by_one() -> None:
    uses = drawn(network("nash_digits"), [Move("widen", levels={"width": (8, 12, 24)})], 0, 99)
    by_site: dict[str, list[Any]] = {}
    for use in uses:
        by_site.setdefault(use.at, []).append(use.arguments["width"])
    assert by_site == {
        "stage1.conv": [8, 12, 24],
        "stage2.conv": [12, 24],
        "stage3.conv": [24],
    }


def test_what_is_not_allowed_is_drawn_again() -> None:
    net = network("nash_digits")
    most = len(net.graph)

    def small(graph: Any) -> bool:
        return len(graph) <= most

    uses = drawn(net, MOVES, 0, 5, allows=small)
    assert [kind(use.rule) for use in uses] == ["widen"] * 5  # all others add nodes


def test_nothing_is_left() -> None:
    net, asked = network("nash_digits"), []

    def never(graph: Any) -> bool:
        asked.append(graph)
        return False

    assert drawn(net, MOVES, 0, 5, allows=never) == []
    assert 0 < len(asked) <= MOST_REFUSED * len(MOVES)
    assert drawn(net, [Move("deepen.linear")], 0, 5) == []


def test_no_skip_joins_two_tensors_twice() -> None:
    net = network("nash_digits")
    skips = [move for move in MOVES if move.kind.startswith("skip")]
    uses = drawn(net, skips, 0, 99)
    assert 0 < len(uses) < 99
    assert len({(use.at, use.arguments["source"]) for use in uses}) == len(uses)
    with_pool = Move("skip.concat_pooled", "skip", {"factor": (2,)})
    at = {(use.at, use.arguments["source"]) for use in drawn(net, [with_pool], 0, 99)}
    assert ("stage2.conv", "stage1.relu") not in at  # it reads that tensor's pooling already


def test_a_stream_gives_the_same_moves() -> None:
    net = network("digits")
    assert drawn(net, MOVES, 7) == drawn(net, MOVES, 7)
    assert drawn(net, MOVES, 7) != drawn(net, MOVES, 8)


def test_weights_are_not_looked_at() -> None:
    bare = archir.load(EXAMPLES / "digits.arch")
    args = bare.ops, bare.library, MOVES, np.random.default_rng(7), 5
    assert draw_applications(bare.graph, *args) == drawn(network("digits"), MOVES, 7)


def test_moves_are_read_from_tables() -> None:
    tables = [
        {"rule": "deepen", "arguments": {"kernel": [3, 5]}},
        {"rule": "widen", "family": "wide/plain", "times": {"width": 2}, "most": 64},
        {"rule": "skip.convex", "tensors": ["relu"]},
    ]
    moves = read_moves(tables, "search.toml: ")
    assert moves == (
        Move("deepen", arguments={"kernel": (3, 5)}),
        Move("widen", "wide/plain", times={"width": (2,)}, most=64),
        Move("skip.convex", tensors=("relu",)),
    )
    assert [move.kind for move in moves] == ["deepen", "wide/plain", "skip"]
    for move in moves:
        assert read_moves([move.record()], "")[0].record() == move.record()


@pytest.mark.parametrize(
    ("table", "code", "words"),
    [
        ({"rul": "deepen"}, "A720", "did you mean `rule`"),
        ({}, "A720", "names no rule"),
        ({"rule": 3}, "A720", "should be a name"),
        ({"rule": "wide"}, "A604", "did you mean"),
        ({"rule": "widen"}, "A720", r"nothing says what `width`"),
        ({"rule": "widen", "arguments": {"with": 3}}, "A720", "did you mean `width`"),
        ({"rule": "widen", "arguments": {"width": [-1]}}, "A720", "takes no -1"),
        ({"rule": "widen", "arguments": {"width": []}}, "A720", "offers nothing"),
        ({"rule": "widen", "times": 2}, "A720", "should be a table"),
        ({"rule": "widen", "times": {"width": 2}, "levels": {"width": 9}}, "A720", "twice"),
        ({"rule": "widen", "times": {"width": ["two"]}}, "A720", "takes no 'two'"),
        ({"rule": "widen", "times": {"width": 2}, "most": -1}, "A720", "whole number"),
        ({"rule": "deepen", "times": {"kernel": 2}}, "A720", "not over a class"),
        ({"rule": "skip.add", "tensors": ["rellu"]}, "A720", "did you mean `relu`"),
        ({"rule": "drop.unread"}, "A720", "depends on weights"),
    ],
)
def test_wrong_tables(table: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(ArchirError, match=words) as failure:
        read_moves([table], "search.toml: ")
    assert failure.value.diagnostics[0].code == code
    if code == "A720":
        assert "search.toml: move 1: " in str(failure.value)


def test_moves_are_tables() -> None:
    with pytest.raises(ArchirError, match="should be tables"):
        read_moves({"rule": "deepen"}, "")  # type: ignore[arg-type]
