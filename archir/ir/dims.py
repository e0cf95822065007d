"""Sizes of axes: integers, or an integer ratio times a product of symbols.

``Size`` is ``int | Dim``; a :class:`Dim` always holds at least one symbol, so that
concrete networks (nearly all of them) compute with plain integers.

>>> n = symbol("N")
>>> str(product([2, n, 3]))
'6*N'
>>> str(quotient(product([n, 8]), 16))
'N/2'
>>> quotient(7, 2) is None
True
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Dim:
    """``coefficient`` times the product of ``symbols`` raised to their powers."""

    coefficient: Fraction
    symbols: tuple[tuple[str, int], ...]

    def __hash__(self) -> int:
        # Without the coefficient, which is 1 nearly always: a Fraction is slow to hash.
        return hash(self.symbols)

    def __str__(self) -> str:
        up = [name for name, power in self.symbols for _ in range(power)]
        down = [name for name, power in self.symbols for _ in range(-power)]
        if self.coefficient.numerator != 1 or not up:
            up.insert(0, str(self.coefficient.numerator))
        if self.coefficient.denominator != 1:
            down.insert(0, str(self.coefficient.denominator))
        return "*".join(up) + "".join(f"/{name}" for name in down)


Size = int | Dim


def symbol(name: str) -> Dim:
    """The dimension that is just a symbol."""
    return Dim(Fraction(1), ((name, 1),))


def _make(coefficient: Fraction, powers: Mapping[str, int]) -> Size | None:
    symbols = tuple(sorted((name, power) for name, power in powers.items() if power))
    if symbols and coefficient:
        return Dim(coefficient, symbols)
    return int(coefficient) if coefficient.denominator == 1 else None


def _parts(size: Size) -> tuple[Fraction, dict[str, int]]:
    if isinstance(size, int):
        return Fraction(size), {}
    return size.coefficient, dict(size.symbols)


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes (1 for none).

    >>> str(product([3, symbol("N"), 2]))
    '6*N'

    Raises:
        ValueError: the symbols cancel and leave a fraction.
    """
    whole, coefficient, powers = 1, Fraction(1), dict[str, int]()
    for size in sizes:
        if isinstance(size, int):
            whole *= size
            continue
        coefficient *= size.coefficient
        for name, power in size.symbols:
            powers[name] = powers.get(name, 0) + power
    made = _make(coefficient * whole, powers)
    if made is None:
        raise ValueError(f"{coefficient * whole} is not a size")
    return made


def quotient(a: Size, b: Size) -> Size | None:
    """``a / b`` where that is exact, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if b == 0:
        return None
    over, powers = _parts(a)
    under, less = _parts(b)
    for name, power in less.items():
        powers[name] = powers.get(name, 0) - power
    return _make(over / under, powers)


def total(sizes: Iterable[Size]) -> Size | None:
    """The sum of sizes, where like terms can be collected, else None."""
    sizes = list(sizes)
    if all(isinstance(size, int) for size in sizes):
        return sum(size for size in sizes if isinstance(size, int))
    parts = [(size.coefficient, size.symbols) for size in sizes if isinstance(size, Dim)]
    if len(parts) != len([size for size in sizes if size != 0]) or len({s for _, s in parts}) != 1:
        return None
    coefficient = sum((c for c, _ in parts), Fraction(0))
    return Dim(coefficient, parts[0][1]) if coefficient else 0


def substitute(size: Size, values: Mapping[str, int]) -> Size | None:
    """Replace symbols by integers; None where the result is not a whole number."""
    if isinstance(size, int):
        return size
    coefficient, rest = size.coefficient, {}
    for name, power in size.symbols:
        if name in values:
            if power < 0 and values[name] == 0:
                return None
            coefficient *= Fraction(values[name]) ** power
        else:
            rest[name] = power
    return _make(coefficient, rest)


def symbols_of(sizes: Iterable[Size]) -> list[str]:
    """The symbols that occur, in order of first occurrence."""
    return list(dict.fromkeys(n for s in sizes if isinstance(s, Dim) for n, _ in s.symbols))
