"""NAT's policy: nothing illegal can be drawn, what it sees, its gradient, its files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archir.diag import ArchirError
from archir.search.cells import (
    ACTIONS,
    FAMILIES,
    NULL,
    OPS,
    Cell,
    Edge,
    action,
    is_alive,
    targets,
    with_ops,
)
from archir.search.nat_policy import (
    Policy,
    PolicyConfig,
    Sampled,
    adjacency_of,
    load_policy,
    save_policy,
    shapes_of,
    surrogate,
)
from archir.weights.store import load_metadata, load_weights, save_weights

SMALL = PolicyConfig(embedding=4, features=16, hidden=8)
DARTS = FAMILIES["darts"].normal


@cache
def policy(config: PolicyConfig = SMALL) -> Policy:
    return Policy(config, np.random.default_rng(0))


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    inputs = draw(st.integers(1, 3))
    edges = []
    for node in range(inputs, inputs + draw(st.integers(1, 6))):
        for _ in range(2):
            source = draw(st.integers(0, node - 1))
            strided = source < inputs and draw(st.booleans())
            edges.append(Edge(draw(st.sampled_from(OPS)), source, node, strided))
    return Cell(tuple(edges), (edges[-1].target,), inputs)


@settings(max_examples=60, deadline=None)
@given(
    cell=cells(),
    config=st.builds(
        PolicyConfig,
        st.sampled_from(("nat", "nat++")),
        st.booleans(),
        embedding=st.just(4),
        features=st.just(16),
        hidden=st.just(8),
    ),
    scale=st.sampled_from([0.0, 1.0, 300.0]),
    seed=st.integers(0, 2**32),
)
def test_no_operation_is_illegal(cell: Cell, config: PolicyConfig, scale: float, seed: int) -> None:
    made = Policy(config, np.random.default_rng(seed))
    with torch.no_grad():
        made.actions_weight.mul_(scale)  # type: ignore[operator]
        made.actions_bias.normal_(0, 1 + scale)  # type: ignore[operator]
    drawn = made.sampled(cell, np.random.default_rng(seed))
    for ops in (drawn.ops, made.choose(cell), made.sample(cell, np.random.default_rng(seed))):
        assert len(ops) == len(cell.edges)
        for edge, op in zip(cell.edges, ops, strict=True):
            assert op in targets(config.transitions, edge.op, strided=edge.strided)
    most = sum(
        np.log(len(targets(config.transitions, e.op, strided=e.strided))) for e in cell.edges
    )
    assert drawn.log_prob.isfinite()
    assert -1e-3 <= float(drawn.entropy.detach()) <= most + 1e-3


def test_each_legal_operation_is_drawn_with_its_probability() -> None:
    cell = Cell((Edge("sep_conv_5x5", 0, 2), Edge(NULL, 1, 2)), (2,))
    made = Policy(replace(SMALL, transitions="nat++"))  # of zeros: all are equally likely
    generator = np.random.default_rng(0)
    rows = [made.sample(cell, generator) for _ in range(2000)]
    legal = targets("nat++", "sep_conv_5x5")
    counts = Counter(first for first, _ in rows)
    assert set(counts) == set(legal)
    expected = len(rows) / len(legal)
    # five deviations of a binomial count
    assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())
    assert made.choose(cell) == ["sep_conv_5x5", NULL]  # of equals what changes nothing


def test_living_samples_hand_on_something() -> None:
    made, generator = Policy(SMALL), np.random.default_rng(0)  # all are equally likely
    cell = FAMILIES["vgg"].normal
    rows = [made.sample(cell, generator, living=True) for _ in range(100)]
    assert all(is_alive(with_ops(cell, ops)) for ops in rows)
    dead = [made.sample(cell, generator) for _ in range(100)]
    assert not all(is_alive(with_ops(cell, ops)) for ops in dead)


def test_the_most_likely_is_that_of_the_legal_logits() -> None:
    made = policy()
    for family in FAMILIES.values():
        for cell in (family.normal, family.reduction):
            logits = made.logits(cell)
            assert logits.shape == (len(cell.edges), 3)
            for edge, row, op in zip(cell.edges, logits, made.choose(cell), strict=True):
                legal = targets("nat", edge.op, strided=edge.strided)
                best = max(row[action("nat", edge.op, target)] for target in legal)
                assert row[action("nat", edge.op, op)] == best


def changed(cell: Cell, node: int) -> Cell:
    """The cell with other operations on the edges into a node."""
    edges = [
        replace(e, op="conv_1x1" if e.op != "conv_1x1" else "conv_3x3") if e.target == node else e
        for e in cell.edges
    ]
    return replace(cell, edges=tuple(edges))


@pytest.mark.parametrize("node", range(2, 6))
def test_a_node_sees_its_own_operations_with_self_loops_alone(node: int) -> None:
    """Without them two layers look two edges up: into no operation of DARTS's normal cell."""
    rows = slice(2 * (node - 2), 2 * (node - 1))
    without = policy(replace(SMALL, self_loops=False))
    before, after = without.logits(DARTS), without.logits(changed(DARTS, node))
    assert (before == after).all()
    own = policy()
    before, after = own.logits(DARTS)[rows], own.logits(changed(DARTS, node))[rows]
    assert (before != after).any(axis=1).all()


def test_the_adjacency() -> None:
    cell = Cell((Edge("conv_1x1", 0, 1), Edge(NULL, 0, 1), *_two(0, 1, 2)), (2,), inputs=1)
    assert adjacency_of(cell, self_loops=False).tolist() == [[0, 0, 0], [2, 0, 0], [1, 1, 0]]
    # Kipf, Welling 2017: D^-1/2 (A + I) D^-1/2 with degrees 1, 3 and 3
    third = 1 / 3**0.5
    wanted: list[list[float]] = [[1, 0, 0], [2 * third, 1 / 3, 0], [third, 1 / 3, 1 / 3]]
    assert np.allclose(adjacency_of(cell, self_loops=True), wanted, atol=1e-6)


def _two(first: int, second: int, target: int) -> tuple[Edge, Edge]:
    return Edge("conv_3x3", first, target), Edge("conv_3x3", second, target)


def test_the_sizes_are_the_papers() -> None:
    shapes = shapes_of(PolicyConfig())
    assert shapes["node_weight"] == (1024, 200)
    assert (shapes["gcn1_weight"], shapes["gcn2_weight"]) == ((1024, 100), (100, 100))
    assert (shapes["inputs"], shapes["actions_weight"]) == ((2, 200), (6, 100))
    assert shapes_of(PolicyConfig("nat++"))["actions_weight"] == (2 * len(ACTIONS["nat++"]), 100)


def test_the_gradient_is_reinforces() -> None:
    """By hand: of log p over the legal logits it is [chosen] - p, of H it is -p (log p + H)."""
    made = Policy(replace(SMALL, transitions="nat++"), np.random.default_rng(3)).double()
    cell, advantage, weight = DARTS, -0.7, 0.05
    sample = made.sampled(cell, np.random.default_rng(1))
    surrogate([sample], advantage, weight).backward()  # type: ignore[no-untyped-call]
    by_hand = np.zeros((2, len(OPS)))
    with torch.no_grad():
        logits = made(cell).numpy()
    for number, (edge, op) in enumerate(zip(cell.edges, sample.ops, strict=True)):
        legal = targets("nat++", edge.op)
        places = [OPS.index(target) for target in legal]
        p = np.exp(logits[number, places])
        p /= p.sum()
        entropy = -(p * np.log(p)).sum()
        chosen = np.array([target == op for target in legal])
        slope = -advantage * (chosen - p) + weight * p * (np.log(p) + entropy)
        by_hand[number % 2, places] += slope
    found = made.actions_bias.grad
    assert isinstance(found, torch.Tensor)
    assert np.abs(found.numpy() - by_hand.ravel()).max() < 1e-6


def test_a_rewarded_action_becomes_likelier() -> None:
    made = Policy(SMALL, np.random.default_rng(0))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    generator = np.random.default_rng(0)

    def share() -> float:
        edge = made.logits(DARTS)[0]
        return float(np.exp(edge[0] - np.logaddexp.reduce(edge)))

    before = share()
    for _ in range(100):
        sample: Sampled = made.sampled(DARTS, generator)
        optimizer.zero_grad()
        surrogate([sample], 1.0 if sample.ops[0] == NULL else -1.0, 0.0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert share() > 0.9 > before


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    for config in (SMALL, replace(SMALL, transitions="nat++", self_loops=False)):
        made = policy(config)
        save_policy(tmp_path / "a.safetensors", made)
        save_policy(tmp_path / "b.safetensors", made)
        assert (tmp_path / "a.safetensors").read_bytes() == (
            tmp_path / "b.safetensors"
        ).read_bytes()
        read = load_policy(tmp_path / "a.safetensors")
        assert read.config == config
        assert (read.logits(DARTS) == made.logits(DARTS)).all()


def _metadata(**changes: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        weights, held = load_weights(path), load_metadata(path)
        ((key, text),) = held.items()
        save_weights(path, weights, {key: json.dumps({**json.loads(text), **changes})})

    return damage


def _tensor(name: str, value: np.ndarray | None) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        weights, held = load_weights(path), load_metadata(path)
        kept = {k: v for k, v in weights.items() if k != name}
        save_weights(path, kept if value is None else kept | {name: value}, held)

    return damage


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _other(path: Path) -> None:
    save_weights(path, load_weights(path))


HOSTILE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "cut": (_cut, "A610", "cut short"),
    "no metadata": (_other, "A775", "does not say"),
    "nested": (lambda p: save_weights(p, {}, {"archir.nat_policy": "[" * 10**5}), "A775", "say"),
    "a list": (lambda p: save_weights(p, {}, {"archir.nat_policy": "[]"}), "A775", "does not say"),
    "version": (_metadata(version=2), "A775", "another version"),
    "true": (_metadata(version=True), "A775", "another version"),
    "operations": (_metadata(ops=list(OPS[::-1])), "A775", "another version"),
    "transitions": (_metadata(transitions="nat+++"), "A775", "transitions are 'nat"),
    "unhashable": (_metadata(transitions=[]), "A775", "transitions are"),
    "loops": (_metadata(self_loops=1), "A775", "loops 1"),
    "other actions": (_metadata(transitions="nat++"), "A775", "`actions_weight` is float32"),
    "missing": (_tensor("gcn2_bias", None), "A775", "`gcn2_bias` is missing"),
    "no sizes": (_tensor("ops", None), "A775", "`ops` or `gcn1_weight`"),
    "vector": (_tensor("ops", np.zeros(3, np.float32)), "A775", "no matrix"),
    "empty": (_tensor("ops", np.zeros((17, 0), np.float32)), "A775", "no matrix"),
    "shape": (_tensor("ops", np.zeros((3, 4), np.float32)), "A775", "it should be float32[17, 4]"),
    "type": (_tensor("gcn2_bias", np.zeros(8)), "A775", "`gcn2_bias` is float64"),
    "more": (_tensor("extra", np.zeros(8, np.float32)), "A775", "`extra` is no part"),
    "nan": (_tensor("gcn2_bias", np.full(8, np.nan, np.float32)), "A775", "not finite"),
    "huge": (_tensor("gcn2_bias", np.full(8, -3e38, np.float32)), "A775", "beyond 100000"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    damage, code, words = HOSTILE[name]
    path = tmp_path / "policy.safetensors"
    save_policy(path, policy())
    damage(path)
    with pytest.raises(ArchirError) as failure:
        load_policy(path)
    (found,) = failure.value.diagnostics
    assert found.code == code
    assert words in f"{found.message} {found.hint}"


def test_what_is_no_cell() -> None:
    wrong = [
        Cell((Edge("conv_3x3", 0, 2),), (2,)),
        Cell(_two(0, 1, 3), (3,)),
        Cell(_two(0, 2, 2), (2,)),
        Cell((Edge("conv_9x9", 0, 2), Edge(NULL, 0, 2)), (2,)),
        Cell((), (0,), inputs=0),
    ]
    for cell in wrong:
        with pytest.raises(ValueError, match="cell"):
            policy().logits(cell)
