"""The policy of EAS: nothing illegal is drawn, and REINFORCE's gradient is what it should be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archir.search.eas_policy import EMBEDDING, STATE, Decision, Deeper, Policy, Uniform, Wider
from archir.search.plain_space import PlainSpace
from archir.search.sequences import Layer, LayerSequence

SPACE = PlainSpace((4, 8), (8, 16), (1, 3, 5))
WORDS = SPACE.vocabulary


def policy(seed: int = 0, entropy: float = 0.0, **how: Any) -> Policy:
    return Policy(SPACE, np.random.default_rng(seed), entropy=entropy, **how)


shared = cache(policy)


def sequence(*words: str) -> LayerSequence:
    """A network of these words; pools end blocks, linear layers are the last one."""
    layers = tuple(Layer(w, f"at{i}", w in ("conv-4-3", "fc-8")) for i, w in enumerate(words))
    blocks: list[list[int]] = [[]]
    for i, word in enumerate(words):
        if word == "pool":
            blocks.append([])
        else:
            blocks[-1].append(i)
    kernels = tuple(not b or words[b[0]][0] == "c" for b in blocks)
    return LayerSequence(layers, tuple(map(tuple, blocks)), kernels)


NET = sequence("conv-4-3", "conv-8-5", "pool", "conv-4-3", "pool", "fc-8")
OTHER = sequence("conv-4-3", "pool", "pool", "fc-16")


@st.composite
def sequences(draw: st.DrawFn) -> LayerSequence:
    blocks = draw(st.lists(st.integers(0, 10), min_size=1, max_size=5))
    layers: list[Layer] = []
    found = []
    for number, count in enumerate(blocks):
        if number:
            layers.append(Layer("pool", f"pool{number}", wider=False))
        full = draw(st.booleans())
        found.append(() if full else tuple(range(len(layers), len(layers) + count)))
        for _ in range(count):
            word = draw(st.sampled_from(WORDS))
            layers.append(Layer(word, f"at{len(layers)}", draw(st.booleans())))
    layers = layers or [Layer("pool", "pool", wider=False)]
    kernels = draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found)))
    return LayerSequence(tuple(layers), tuple(found), tuple(kernels))


@settings(max_examples=40, deadline=None)
@given(
    networks=st.lists(sequences(), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    sharp=st.booleans(),
    learned=st.booleans(),
)
def test_nothing_illegal_is_drawn(
    networks: list[LayerSequence], seed: int, *, sharp: bool, learned: bool
) -> None:
    actor = shared(1 if sharp else 0) if learned else Uniform(SPACE)
    if sharp and isinstance(actor, Policy):
        with torch.no_grad():
            for head in (actor.block, actor.place, actor.kernel, actor.widen):
                head.weight.copy_(torch.sign(head.weight) * 50)  # almost always the same choice
    stream = np.random.default_rng(seed)
    for network, wider in zip(networks, actor.wider(networks, stream), strict=True):
        assert wider.sequence is network
        assert wider.counted == tuple(layer.wider for layer in network.layers)
        assert all(c or not y for c, y in zip(wider.counted, wider.yes, strict=True))
    for network, deeper in zip(networks, actor.deeper(networks, stream), strict=True):
        if deeper is None:
            assert not any(network.blocks)
            continue
        assert deeper.place in range(len(network.blocks[deeper.block]))
        assert (deeper.kernel is not None) == network.kernels[deeper.block]
        assert (deeper.kernel or 0) in range(len(SPACE.kernels))


def chance(made: Policy, decision: Decision) -> float:
    with torch.no_grad():
        return math.exp(-float(made.loss([[decision]], [1.0])[0].detach()))


def all_deeper(network: LayerSequence) -> list[Deeper]:
    return [
        Deeper(network, block, place, kernel)
        for block, places in enumerate(network.blocks)
        for place in range(len(places))
        for kernel in (range(3) if network.kernels[block] else (None,))
    ]


def all_wider(network: LayerSequence) -> list[Wider]:
    can = tuple(layer.wider for layer in network.layers)
    choices = itertools.product(*((False, True) if c else (False,) for c in can))
    return [Wider(network, yes, can) for yes in choices]


@pytest.mark.parametrize("network", [NET, OTHER])
def test_the_chances_of_all_decisions_add_up_to_one(network: LayerSequence) -> None:
    for decisions in (all_deeper(network), all_wider(network)):
        total = sum(chance(shared(), decision) for decision in decisions)
        assert total == pytest.approx(1.0, abs=1e-12)
    assert len(all_deeper(NET)) == 3 * 3 + 1


def test_decisions_are_drawn_with_the_chances_that_are_learned_from() -> None:
    made, count, stream = policy(3), 4000, np.random.default_rng(0)
    with torch.no_grad():
        for head in (made.block, made.place, made.kernel, made.widen):
            head.weight.mul_(6)  # chances that differ
    drawn: list[Decision] = [d for d in made.deeper([NET] * count, stream) if d is not None]
    drawn += made.wider([NET] * count, stream)
    decisions: list[Decision] = [*all_deeper(NET), *all_wider(NET)]
    for decision in decisions:
        p, found = chance(made, decision), drawn.count(decision)
        # five standard deviations; of 18 decisions one fails in 10^5 seeds, and this seed is fixed
        assert abs(found - count * p) <= 5 * math.sqrt(count * p * (1 - p)) + 1e-9


def test_the_gradient_is_that_of_finite_differences() -> None:
    made = policy(5, entropy=0.3)
    stream = np.random.default_rng(2)
    with torch.no_grad():
        decisions: list[list[Decision]] = [
            [w, *(d for d in ds if d is not None)]
            for w, *ds in zip(
                made.wider([NET, OTHER], stream),
                made.deeper([NET, OTHER], stream),
                made.deeper([NET, OTHER], stream),
                strict=True,
            )
        ]
    advantages = [1.7, -0.6]
    made.loss(decisions, advantages)[0].backward()  # type: ignore[no-untyped-call]
    step, checked = 1e-6, 0
    for weights in made.parameters():
        assert weights.grad is not None
        flat, gradient = weights.data.view(-1), weights.grad.view(-1)
        for index in {int(gradient.abs().argmax()), int(stream.integers(len(flat)))}:
            held, values = float(flat[index]), []
            for sign in (1, -1):
                flat[index] = held + sign * step
                with torch.no_grad():
                    values.append(float(made.loss(decisions, advantages)[0].detach()))
            flat[index] = held
            slope = (values[0] - values[1]) / (2 * step)
            assert float(gradient[index]) == pytest.approx(slope, rel=1e-4, abs=1e-8)
            checked += abs(slope) > 1e-6
    assert checked > 20


def test_the_gradient_by_hand() -> None:
    made, wider = (
        policy(1),
        Wider(NET, (True, *[False] * 5), (True, *[False] * 2, True, False, True)),
    )
    with torch.no_grad():
        chances = torch.sigmoid(made.wider_logits([NET]))[0]
    made.loss([[wider], []], [0.5, 9.0])[0].backward()  # type: ignore[no-untyped-call]
    # of the bias of a logit: yes - p for each decision, by the advantage over two networks
    yes = torch.tensor([1.0, 0.0, 0.0], dtype=torch.double)
    slope = -0.5 / 2 * float((yes - chances[[0, 3, 5]]).sum())
    assert made.widen.bias.grad is not None
    assert float(made.widen.bias.grad) == pytest.approx(slope, rel=1e-12)
    assert made.block.weight.grad is None or not made.block.weight.grad.any()


def test_what_is_not_counted_teaches_nothing() -> None:
    made, none = policy(), (False,) * 6
    loss, entropy = made.loss([[Wider(NET, none, none)]], [3.0])
    assert (float(loss.detach()), float(entropy.detach())) == (0.0, 0.0)
    half = Wider(NET, (True, *none[1:]), (True, *none[1:]))
    other = replace(half, yes=(True, *none[1:3], True, *none[4:]))
    assert chance(made, half) == chance(made, other)
    linear = Deeper(NET, 2, 0, None)
    before = chance(made, linear)
    with torch.no_grad():
        made.kernel.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    assert chance(made, linear) == before


def test_the_entropy() -> None:
    made = policy(entropy=2.0)
    with torch.no_grad():
        for head in (made.block, made.place, made.kernel, made.widen):
            head.weight.zero_()
            head.bias.zero_()
    wider = all_wider(NET)[0]
    conv, linear = Deeper(NET, 0, 1, 2), Deeper(NET, 2, 0, None)
    heads = (math.log(3) + math.log(2) + math.log(3)) / 3, (math.log(3) + math.log(1)) / 2
    mean = (math.log(2) + sum(heads)) / 3  # of the samples; over layers and heads in each
    loss, entropy = made.loss([[wider, conv, linear]], [0.0])
    assert float(entropy.detach()) == pytest.approx(mean, rel=1e-12)
    assert float(loss.detach()) == pytest.approx(-2.0 * mean, rel=1e-12)


def test_a_network_is_read_alike_beside_longer_ones() -> None:
    alone = shared().encode([OTHER])
    among = shared().encode([NET, OTHER])
    assert torch.allclose(among[0][1, :4], alone[0][0], rtol=0, atol=1e-12)
    for state, other in zip(alone[1:], among[1:], strict=True):
        assert state.shape == (1, 100)
        assert torch.allclose(other[1], state[0], rtol=0, atol=1e-12)
    assert torch.allclose(alone[1][0, :STATE], alone[0][0, -1, :STATE])  # forwards: the last layer
    assert torch.allclose(alone[1][0, STATE:], alone[0][0, 0, STATE:])  # backwards: the first


def test_sizes_are_those_of_the_paper() -> None:
    made = policy()
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters()}
    assert shapes["tokens.weight"] == (1 + len(WORDS), EMBEDDING) == (10, 16)
    assert shapes["encoder.weight_ih_l0"] == shapes["encoder.weight_ih_l0_reverse"] == (200, 16)
    assert shapes["widen.weight"] == (1, 100)
    assert shapes["decoder.weight_hh"] == (400, 100)
    heads = [shapes[f"{head}.weight"] for head in ("block", "place", "kernel")]
    assert heads == [(5, 100), (10, 100), (3, 100)]
    bound = math.sqrt(3)
    assert 0.9 * bound < float(made.tokens.weight.detach().abs().max()) <= bound


def test_equal_streams_make_equal_policies() -> None:
    def told(seed: int, other: int) -> list[Any]:
        torch.manual_seed(other)  # torch's own numbers have no part in it
        made, stream = policy(seed, rate=0.01), np.random.default_rng(7)
        found: list[Any] = []
        for _ in range(3):
            wider = made.wider([NET, OTHER], stream)
            deeper = made.deeper([NET, OTHER], stream)
            pairs = zip(wider, deeper, strict=True)
            rows: list[list[Decision]] = [[w, d] for w, d in pairs if d is not None]
            made.learn(rows, [1.0, -1.0])
            found += [wider, deeper]
        return [found, *(p.detach().numpy().tobytes() for p in made.parameters())]

    found = [told(seed, other) for other, seed in enumerate((0, 0, 1))]
    assert found[0] == found[1]
    assert found[0][1:] != found[2][1:]


@pytest.mark.parametrize(
    "good",
    [
        lambda wider, deeper: wider.yes[0] and not wider.yes[3],
        lambda wider, deeper: deeper.block == 1 and deeper.kernel == 2,
    ],
)
def test_what_is_rewarded_becomes_likely(good: Callable[[Wider, Deeper], bool]) -> None:
    def episode() -> list[tuple[Wider, Deeper]]:
        deeper = [d for d in made.deeper([NET] * 20, stream) if d is not None]
        return list(zip(made.wider([NET] * 20, stream), deeper, strict=True))

    made, stream = policy(2, rate=0.02), np.random.default_rng(11)
    first = sum(good(*pair) for pair in episode())
    for _ in range(25):
        rows = episode()
        rewards = [float(good(*pair)) for pair in rows]
        mean = sum(rewards) / len(rewards)
        told = made.learn(rows, [r - mean for r in rewards])
        assert set(told) == {"loss", "entropy"}
    assert first <= 10
    assert sum(good(*pair) for pair in episode()) >= 18


def test_the_baseline_learns_nothing() -> None:
    actor, stream = Uniform(SPACE), np.random.default_rng(0)
    assert actor.learn([[all_wider(NET)[0]]], [1.0]) == {}
    drawn = [d for d in actor.deeper([NET] * 3000, stream) if d is not None]
    shares = {b: sum(d.block == b for d in drawn) / 3000 for b in range(3)}
    assert all(abs(share - 1 / 3) < 5 * math.sqrt(2 / 9 / 3000) for share in shares.values())
    yes = [w.yes[0] for w in actor.wider([NET] * 3000, stream)]
    assert abs(sum(yes) / 3000 - 0.5) < 5 * math.sqrt(0.25 / 3000)
