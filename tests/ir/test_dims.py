"""The algebra of sizes, against rational arithmetic at random points."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archir.ir.dims import Dim, Size, product, quotient, substitute, symbol, symbols_of, total

POINT = {"N": 6, "H": 35, "W": 4}
SIZE = st.one_of(
    st.integers(0, 12),
    st.builds(
        lambda n, names: product([n, *(symbol(name) for name in names)]),
        st.integers(1, 12),
        st.lists(st.sampled_from("NHW"), min_size=1, max_size=3),
    ),
)


def value(size: Size) -> Fraction:
    if isinstance(size, int):
        return Fraction(size)
    out = size.coefficient
    for name, power in size.symbols:
        out *= Fraction(POINT[name]) ** power
    return out


@given(st.lists(SIZE, max_size=5))
def test_products(sizes: list[Size]) -> None:
    found = product(sizes)
    wanted = Fraction(1)
    for size in sizes:
        wanted *= value(size)
    assert value(found) == wanted
    assert found == product(reversed(sizes))
    assert isinstance(found, int) or found.coefficient != 0


@given(SIZE, SIZE)
def test_quotients(a: Size, b: Size) -> None:
    found = quotient(a, b)
    if found is None:
        assert b == 0 or value(a) / value(b) != value(a) // value(b) or not symbols_of([a, b])
    else:
        assert value(found) * value(b) == value(a)
        assert product([found, b]) == a
    if b != 0:
        assert quotient(product([a, b]), b) == a


@given(st.lists(SIZE, max_size=4))
def test_sums(sizes: list[Size]) -> None:
    found = total(sizes)
    if found is not None:
        assert value(found) == sum(map(value, sizes))
    else:
        kinds = {s.symbols if isinstance(s, Dim) else () for s in sizes if s != 0}
        assert len(kinds) > 1


@given(SIZE)
def test_substitution(size: Size) -> None:
    assert substitute(size, POINT) == value(size)
    assert substitute(size, {}) == size
    once = substitute(size, {"N": 6})
    assert once is not None
    assert substitute(once, POINT) == value(size)


def test_text_and_order() -> None:
    n, h = symbol("N"), symbol("H")
    assert str(product([3, n, h, n])) == "3*H*N*N"
    assert product([n, h]) == product([h, n])
    half = quotient(n, 2)
    assert str(half) == "N/2"
    assert str(quotient(product([3, n]), product([2, h]))) == "3*N/2/H"
    assert symbols_of([3, product([n, h]), h]) == ["H", "N"]


def test_edges() -> None:
    n = symbol("N")
    assert product([]) == 1
    assert product([0, n]) == product([n, 0]) == quotient(0, n) == 0
    assert total([]) == 0
    assert total([n, product([-1, n])]) == 0
    assert total([n, 0, n]) == product([2, n])
    assert total([n, 1]) is None
    assert quotient(7, 2) is quotient(n, 0) is quotient(3, 0) is None
    assert quotient(n, n) == 1
    half = quotient(n, 2)
    assert half is not None
    assert substitute(half, {"N": 7}) is None
    assert substitute(half, {"N": 8}) == 4
    inverse = quotient(1, n)
    assert inverse is not None
    assert substitute(inverse, {"N": 0}) is None
    assert product([half, inverse, 2]) == 1
    with pytest.raises(ValueError, match="1/2 is not a size"):
        product([half, inverse])
