"""The laws of GF(p) that checks rely on, against Python's integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archir.ops.arithmetic import (
    FAN_IN,
    PRIME,
    Floating,
    Rational,
    Residues,
    balance,
    index,
    inverse,
    table,
)

K = Residues()
LARGEST = PRIME // 2
RESIDUE = st.integers(-LARGEST, LARGEST)
EVERY = np.arange(-LARGEST, LARGEST + 1, dtype=np.float64)
"""The whole field."""


def same(a: object, b: object) -> bool:
    return bool((balance(np.asarray(a) - np.asarray(b)) == 0).all())


def test_the_modulus_is_prime_and_sums_stay_exact() -> None:
    assert all(PRIME % d for d in range(2, int(PRIME**0.5) + 1))
    assert FAN_IN * (LARGEST + 1) ** 2 < 2**53
    assert PRIME % 4 == 3, "-1 must be no square, or relu(x) - relu(-x) is not x"


def test_relu() -> None:
    once = K.relu(EVERY)
    assert (K.relu(once) == once).all()
    assert same(K.subtract(once, K.relu(-EVERY)), EVERY)
    assert 0 < (once == 0).sum() - 1 == LARGEST
    for factor in (3, 1000, LARGEST):
        square = factor * factor % PRIME
        scaled = K.multiply(EVERY, K.array(square))
        assert same(K.relu(scaled), K.multiply(once, K.array(square)))


def test_relu_is_no_linear_map() -> None:
    a, b = EVERY[1:100], EVERY[300:399]
    assert not same(K.relu(K.add(a, b)), K.add(K.relu(a), K.relu(b)))


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_balance(number: int) -> None:
    (found,) = balance(np.array([float(number)]))
    assert (int(found) - number) % PRIME == 0
    assert abs(found) <= LARGEST + 1
    assert index(np.array([found]))[0] == number % PRIME


@given(st.lists(RESIDUE, min_size=1, max_size=20), st.integers(0, 2**32))
def test_ring_operations(numbers: list[int], seed: int) -> None:
    a = np.array(numbers, np.float64)
    b = np.random.Generator(np.random.PCG64(seed)).integers(-LARGEST, LARGEST + 1, a.shape)
    c = b.astype(np.float64)
    for found, wanted in (
        (K.add(a, c), [x + int(y) for x, y in zip(numbers, b, strict=True)]),
        (K.subtract(a, c), [x - int(y) for x, y in zip(numbers, b, strict=True)]),
        (K.multiply(a, c), [x * int(y) for x, y in zip(numbers, b, strict=True)]),
    ):
        assert [int(v) % PRIME for v in found] == [w % PRIME for w in wanted]
    assert int(K.sum(a, (0,))) % PRIME == sum(numbers) % PRIME


def test_inverse() -> None:
    numbers = np.array([1, -1, 2, 3, LARGEST, -LARGEST, 2], np.float64).reshape(1, 7)
    assert inverse(numbers).shape == (1, 7)
    assert same(K.multiply(numbers, inverse(numbers)), np.ones((1, 7)))
    assert same(K.divide(K.multiply(EVERY, K.array(7)), K.array(7)), EVERY)
    for zero in (0.0, float(PRIME), -float(PRIME)):
        with pytest.raises(ZeroDivisionError, match="modulo p"):
            inverse(balance(np.array([3.0, zero])))


@pytest.mark.parametrize("width", [1, FAN_IN, FAN_IN + 1, 2 * FAN_IN + 5])
def test_matmul_is_exact_at_any_width(width: int) -> None:
    """Entries as large as they get, all of one sign: the worst case for a sum."""
    rng = np.random.Generator(np.random.PCG64(width))
    a = LARGEST - rng.integers(0, 3, (2, width))
    b = LARGEST - rng.integers(0, 3, (width, 2))
    found = K.matmul(a.astype(np.float64), b.astype(np.float64))
    for i in range(2):
        for j in range(2):
            exact = sum(int(x) * int(y) for x, y in zip(a[i], b[:, j], strict=True))
            assert int(found[i, j]) % PRIME == exact % PRIME


def test_numbers() -> None:
    assert K.number(Fraction(1, 3)) * 3 % PRIME == 1
    assert K.number(0.25) * 4 % PRIME == 1
    assert same(K.multiply(K.array(1e-5), K.array(100_000)), 1)
    assert same(K.array([[PRIME, PRIME + 1], [-1, 2**40]]), [[0, 1], [-1, 2**40 % PRIME]])
    assert Rational().number(0.1) == Fraction(1, 10)
    assert Rational().array([[1, 0.5]]).tolist() == [[Fraction(1), Fraction(1, 2)]]


def test_infinity_is_larger_than_all_that_are_met() -> None:
    k = Rational()
    low, high = k.number(-np.inf), k.number(np.inf)
    assert low == -high
    assert high > k.number(3.4e38)
    assert k.array((1.5, -np.inf)).tolist() == [Fraction(3, 2), low]
    field = Residues()
    assert field.number(np.inf) == field.number(high)
    assert field.number(-np.inf) == -field.number(high) != 0
    with pytest.raises(ValueError, match="nan"):
        k.number(np.nan)


def test_equality_is_that_of_residues() -> None:
    """One residue has one index, also at the edge where rounding may leave p/2 on either side."""
    edge = np.array([LARGEST, -LARGEST - 1, LARGEST + 1, -LARGEST], np.float64)
    assert index(edge).tolist() == [LARGEST, LARGEST, LARGEST + 1, LARGEST + 1]
    assert same(edge[0], edge[1])
    assert not same(edge[0], edge[3])
    assert (K.relu(edge)[:2] != 0).tolist() in ([True, True], [False, False])


def test_tables_are_functions_without_zeros() -> None:
    for name in ("sqrt", "exp", "maximum"):
        assert (table(name) != 0).all()
        assert len(np.unique(table(name))) > PRIME // 2
    assert not np.array_equal(table("sqrt"), table("exp"))


def test_the_maximum_forgets_order_and_nothing_else() -> None:
    a = np.array([[1.0, 2.0, 3.0, 9.0]])
    valid = np.array([[True, True, True, False]])
    held = K.maximum(a, (1,), valid)
    assert same(held, K.maximum(a[:, [2, 0, 1, 3]], (1,), valid))
    assert same(held, K.maximum(np.array([[1.0, 2.0, 3.0, 8.0]]), (1,), valid))
    assert not same(held, K.maximum(np.array([[1.0, 1.0, 3.0, 9.0]]), (1,), valid))
    for exact in (Floating(), Rational()):
        assert exact.maximum(exact.array([[-1, -2, -3, 9]]), (1,), valid).tolist() == [-1]


def test_rational_roots() -> None:
    k = Rational()
    assert k.sqrt(k.array([Fraction(9, 4)])).tolist() == [Fraction(3, 2)]
    assert k.sqrt(k.array([[4], [0]])).tolist() == [[2], [0]]
    two, minus = k.sqrt(k.array([2])), k.sqrt(k.array([-4]))
    assert two.tolist() == k.sqrt(k.array([2])).tolist() != minus.tolist()
