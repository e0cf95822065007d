"""What an axis is made of: a sum of segments, each a product of factors, the first slowest.

A factor is a class (axes that change together), a fixed extent, or a class that is itself a
sum (the channels of a concatenation, shuffled). A flattening makes ``channels * 49`` of a class
and a fixed factor, a concatenation makes several segments, a grouped convolution cuts its
channels into ``groups * inside``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from archir.ir.dims import Size, product, total
from archir.ops.arithmetic import Array

FIXED = -1


class Factor(NamedTuple):
    """A class (by number) or, with number ``FIXED``, a fixed extent.

    ``inner`` is what a class is made of that has been cut, where that cannot be spelled out in
    its place.
    """

    number: int
    size: Size
    inner: tuple[tuple[Factor, ...], ...] = ()


Segment = tuple[Factor, ...]
Structure = tuple[Segment, ...]


def fixed(size: Size) -> Structure:
    """An axis that no class is part of."""
    return ((Factor(FIXED, size),),)


def segment_size(segment: Segment) -> Size:
    """The extent of a segment."""
    if len(segment) == 1:
        return segment[0].size
    return product(f.size for f in segment)


def structure_size(structure: Structure) -> Size | None:
    """The extent of an axis; None where a sum of symbolic sizes cannot be collected."""
    if len(structure) == 1:
        return segment_size(structure[0])
    return total([segment_size(s) for s in structure])


def leaves(structure: Structure) -> Iterator[int]:
    """The classes in a structure, down to those that have not been cut."""
    for segment in structure:
        for factor in segment:
            if factor.inner:
                yield from leaves(factor.inner)
            elif factor.number >= 0:
                yield factor.number


def measure(structure: Structure, number: int, size: int) -> int:
    """The extent of an axis once a class has another size."""
    out = 0
    for segment in structure:
        part = 1
        for factor in segment:
            if factor.number == number:
                part *= size
            elif factor.inner:
                part *= measure(factor.inner, number, size)
            else:
                assert isinstance(factor.size, int)
                part *= factor.size
        out += part
    return out


def lift(structure: Structure, number: int, entries: Array, source: int) -> tuple[Array, int]:
    """Spread a map of a class over an axis that holds it.

    ``entries`` are indices into ``source`` entries of the class: old ones for each new one of a
    gather, new ones for each old one of an embedding. Returns the map of the whole axis, int64,
    and how many entries it indexes.
    """
    pieces = []
    start = 0
    for segment in structure:
        held = np.zeros(1, np.int64)
        reach = 1
        for factor in segment:
            if factor.number == number:
                step, extent = entries, source
            elif factor.inner:
                step, extent = lift(factor.inner, number, entries, source)
            else:
                assert isinstance(factor.size, int)
                step, extent = np.arange(factor.size), factor.size
            held = (held[:, None] * extent + step[None, :]).reshape(-1)
            reach *= extent
        pieces.append(held + start)
        start += reach
    return np.concatenate(pieces), start
