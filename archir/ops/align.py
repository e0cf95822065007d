"""Where the axes of a reshaped tensor come from: old and new axes as products of common factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from archir.ir.dims import Dim, Size, product, quotient

Runs = Iterator[tuple[Sequence[Size], Sequence[Size]]]


class AlignError(Exception):
    """A size of the result cannot be written in the operand's sizes."""


def align(old: Sequence[Size], new: Sequence[Size]) -> str:
    """The signature of a reshape, entries in row-major order.

    Both shapes are cut where equally many entries lie behind them, and each piece into the
    factors that both sides are products of: ``[N, 116, 28] -> [N, 2, 58, 28]`` is
    ``x[a0, (a1 a2), a3] -> [a0, a1, a2, a3]``. A piece that has no such factors is opaque.

    Raises:
        AlignError: an opaque piece has a symbolic size that no axis of the operand has.
    """
    before: list[str] = []
    after: list[str] = []
    count = 0
    for left, right in _runs(old, new):
        found = _factors(left, right)
        if found is None:
            names = [f"a{count + j}" for j in range(len(left))]
            before.extend(f"{name}!" for name in names)
            after.extend(_written(size, left, names) for size in right)
            count += len(left)
            continue
        number, sides = found
        names = [f"a{count + j}" for j in range(number)]
        for side, out in zip(sides, (before, after), strict=True):
            out.extend(_bracketed([names[j] for j in axis]) for axis in side)
        count += number
    return f"x[{', '.join(before)}] -> [{', '.join(after)}]"


def _runs(old: Sequence[Size], new: Sequence[Size]) -> Runs:
    """The shortest pieces of both shapes, in order, that hold equally many entries."""
    i = j = 0
    while i < len(old) and j < len(new):
        pairs = [(p, q) for p in range(i + 1, len(old) + 1) for q in range(j + 1, len(new) + 1)]
        ends = (
            e for e in sorted(pairs, key=sum) if product(old[i : e[0]]) == product(new[j : e[1]])
        )
        p, q = next(ends)
        if q == len(new) or p == len(old):  # what is left has extent 1
            p, q = len(old), len(new)
        yield old[i:p], new[j:q]
        i, j = p, q
    if i < len(old) or j < len(new):
        yield old[i:], new[j:]


def _factors(
    old: Sequence[Size], new: Sequence[Size]
) -> tuple[int, tuple[list[list[int]], list[list[int]]]] | None:
    """How many common factors there are, and which of them make each axis of either side.

    A new axis of extent 1 has none, an old one is a factor of the axis that it falls into.
    """
    sides: tuple[list[list[int]], list[list[int]]] = ([[] for _ in old], [[] for _ in new])
    wide = [j for j, size in enumerate(new) if size != 1] or [0][: len(new)]
    count = at = 0
    right: Size = new[wide[0]] if wide else 1
    for i, extent in enumerate(old):
        left: Size | None = extent if wide else None
        while left is not None:
            small = left if _divides(left, right) else right
            rests = quotient(left, small), quotient(right, small)
            if not _divides(small, left) or rests[1] is None:
                return None
            sides[0][i].append(count)
            sides[1][wide[at]].append(count)
            count += 1
            left, right = rests[0] if rests[0] != 1 else None, rests[1]
            if right == 1 and at + 1 < len(wide):
                at += 1
                right = new[wide[at]]
    return count, sides


def _divides(a: Size, b: Size) -> bool:
    """Whether b is a times a whole number, whatever the symbols stand for."""
    times = quotient(b, a)
    if isinstance(times, Dim):
        return times.coefficient.denominator == 1 and all(p > 0 for _, p in times.symbols)
    return times is not None


def _bracketed(names: list[str]) -> str:
    return "1" if not names else names[0] if len(names) == 1 else f"({' '.join(names)})"


def _written(size: Size, old: Sequence[Size], names: Sequence[str]) -> str:
    """The size of an opaque axis: a number, or a multiple of an axis of the operand."""
    if isinstance(size, int):
        return str(size)
    for name, other in zip(names, old, strict=True):
        times = quotient(size, other)
        if isinstance(times, int):
            return f"({times} {name})"
    raise AlignError(f"{size} is no multiple of one of the sizes {', '.join(map(str, old))}")
