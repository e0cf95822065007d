"""What is added up, shared out and drawn along the map of an axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from archir.ops.arithmetic import Array, Floating, Rational, Residues
from archir.weights.fibres import ALONG, SEEDED
from archir.weights.functions import FUNCTIONS, WeightError, evaluate, shape_of
from archir.weights.terms import Apply, IndexMap, Ref, Term

W = Ref("w")
SHAPE = (3, 5)
G = IndexMap(np.array([0, 1, 2, 2, 0, 2]), 3)
"""Fibres of two, one and three."""
E = IndexMap(np.array([1, 4, 0]), 6)
EVERY = [Floating(), Floating(np.float32), Rational(), Residues()]


def call(name: str, *args: Any) -> Term:
    return Apply(name, args)


def values(k: Any, shape: tuple[int, ...] = SHAPE) -> Array:
    rng = np.random.Generator(np.random.PCG64(7))
    return k.array(rng.integers(1, 9, shape) * rng.choice([-1, 1], shape))


def value(k: Any, term: Term, w: Array) -> Array:
    found = evaluate(term, k, {"w": w})
    assert shape_of(term, {"w": w.shape}) == found.shape
    assert found.dtype == w.dtype
    return found


@pytest.mark.parametrize("k", EVERY, ids=lambda k: f"{k.name}")
class TestEveryArithmetic:
    def test_fibres_are_added_up(self, k: Any) -> None:
        w = values(k, (6, 2))
        found = value(k, call("fibre_sum", W, G, 0), w)
        assert (found == np.stack([w[0] + w[4], w[1], w[2] + w[3] + w[5]])).all()
        gap = IndexMap(np.array([3, 3, 0, 0, 0, 0]), 5)
        assert (value(k, call("fibre_sum", W, gap, 0), w)[[1, 2, 4]] == 0).all()

    def test_the_first_of_each_fibre(self, k: Any) -> None:
        w = values(k, (6, 2))
        assert (value(k, call("first", W, G, 0), w) == w[[0, 1, 2]]).all()
        copied = call("take", call("first", call("take", W, G, 0), G, 0), G, 0)
        assert (value(k, copied, values(k)) == values(k)[G.entries]).all()
        with pytest.raises(WeightError, match="leaves entries out"):
            evaluate(call("first", W, IndexMap(np.array([0, 0, 2]), 3), 0), k, {"w": values(k)})

    def test_a_graft_keeps_what_was_there_and_draws_the_rest_from_it(self, k: Any) -> None:
        w = values(k)
        w[0, 0] = 0
        for axis, g in ((0, E), (1, IndexMap(np.arange(5), 9))):
            found = value(k, call("graft", W, g, axis, 3), w)
            assert (found.take(g.entries, axis=axis) == w).all()
            new = np.delete(found, g.entries, axis=axis)
            assert np.isin(new.astype(np.float64), w[w != 0].astype(np.float64)).all()
            assert (found == value(k, call("graft", W, g, axis, 3), w)).all()
            assert (found != value(k, call("graft", W, g, axis, 4), w)).any()
        nothing = k.array(np.zeros(SHAPE, np.int64))
        assert (value(k, call("graft", W, E, 0, 3), nothing) == 0).all()

    def test_what_is_opposed_cancels(self, k: Any) -> None:
        w = values(k, (2, 6))
        found = value(k, call("oppose", W, G, 1, 5), w)
        assert (found[:, 1] == w[:, 1]).all()
        assert (found != w).any()
        sums = [value(k, call("fibre_sum", W, G, 1), x) for x in (w, found)]
        assert (sums[0] == sums[1]).all()

    def test_shares_add_up(self, k: Any) -> None:
        w = values(k)
        found = value(k, call("share_out", W, G, 0, 2), w)
        whole = value(k, call("fibre_sum", W, G, 0), found)
        exact = k.name in ("gf", "rational")
        assert (whole == w).all() if exact else np.allclose(whole, w, rtol=1e-6, atol=0)
        assert (found[1] == w[1]).all()
        assert (found[0] != found[4]).any()


@pytest.mark.parametrize("copies", [2, 4, 8, 64])
def test_parts_of_a_float_add_up_to_it_bit_for_bit(copies: int) -> None:
    k = Floating(np.float32)
    w = np.random.Generator(np.random.PCG64(1)).standard_normal((5, 3)).astype(np.float32)
    g = IndexMap(np.tile(np.arange(5), copies), 5)
    parts = call("divide_along", call("take", W, g, 0), call("count", g), 0)
    assert value(k, call("fibre_sum", parts, g, 0), w).tobytes() == w.tobytes()


def test_draws_do_not_depend_on_the_arithmetic() -> None:
    w = values(Rational())
    for name in ("graft", "oppose"):
        term = call(name, W, E if name == "graft" else IndexMap(np.array([0, 0, 1]), 2), 0, 9)
        exact = value(Rational(), term, w)
        assert (value(Floating(), term, values(Floating())) == exact.astype(np.float64)).all()
    shares = call("share_out", W, G, 0, 9)
    exact, rounded = value(Rational(), shares, w), value(Floating(), shares, values(Floating()))
    assert np.allclose(exact.astype(np.float64), rounded, rtol=1e-15, atol=0)


def test_shapes_are_checked() -> None:
    for name in ALONG:
        seed = (1,) if name in SEEDED else ()
        wrong = call(name, W, IndexMap(np.arange(4), 7), 0, *seed)
        with pytest.raises(WeightError, match="size 3"):
            shape_of(wrong, {"w": SHAPE})
        assert FUNCTIONS[name].tensors == 1
    with pytest.raises(WeightError, match="wrong arguments"):
        shape_of(call("graft", W, E, 0), {"w": SHAPE})
