"""A weight term at given values as a row of linear maps: its derivative, and the transposed one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from archir.ops.arithmetic import Array
from archir.weights.functions import FUNCTIONS
from archir.weights.linear import FLOAT, Linear, NoInverse, linear_maps
from archir.weights.terms import Apply, Free, Ref, Term, leaves

Key = str | Free
Tensors = dict[Key, Array]


def key_of(leaf: Term) -> Key:
    """What a leaf's value is kept under: the path of a parameter, or the leaf itself."""
    assert not isinstance(leaf, Apply)
    return leaf.path if isinstance(leaf, Ref) else leaf


def groups(read: Mapping[str, Iterable[Any]]) -> list[list[str]]:
    """Paths that read a tensor in common, together; ``read`` says what each reads."""
    owner: dict[Key, int] = {}
    found: dict[int, list[str]] = {}
    reads: dict[int, list[Key]] = {}
    for number, (path, keys) in enumerate(read.items()):
        own = list(dict.fromkeys(keys))
        old = sorted({owner[key] for key in own if key in owner})
        target = old[0] if old else number
        found[target] = [*(p for o in old for p in found.pop(o)), path]
        reads[target] = [*(k for o in old for k in reads.pop(o)), *own]
        owner |= dict.fromkeys(reads[target] if len(old) > 1 else own, target)
    return list(found.values())


@dataclass(frozen=True)
class _Place:
    """A use of a weight function, its maps, and where its arguments come from."""

    sources: Mapping[int, int | Key]
    maps: Mapping[int, Linear]


class Tape:
    """A term at given values, as a row of linear maps of the leaves that move.

    Args:
        term: The term.
        at: The values of its leaves.
        moving: The leaves that it is a map of; all others stay as they are.

    Raises:
        NoInverse: a weight function is not of the kind whose derivative is known.
    """

    def __init__(self, term: Term, at: Mapping[Key, Array], moving: Collection[Key]) -> None:
        self.places: list[_Place] = []
        self.shapes: list[tuple[int, ...]] = []
        self._moving = moving
        self.root, self.value = self._record(term, at)

    def _record(self, term: Term, at: Mapping[Key, Array]) -> tuple[int | Key, Array]:
        if not isinstance(term, Apply):
            key = key_of(term)
            return key, at[key]
        sources: dict[int, int | Key] = {}
        args: list[object] = []
        for place, arg in enumerate(term.args):
            if isinstance(arg, Term):
                source, value = self._record(arg, at)
                if any(key_of(leaf) in self._moving for leaf in leaves(arg)):
                    sources[place] = source
                args.append(value)
            else:
                args.append(arg)
        function = FUNCTIONS[term.function]
        if sources and function.inexact:
            raise NoInverse(term.function)
        made = np.asarray(function.value(FLOAT, *args), np.float64)
        maps = linear_maps(term, args, made, list(sources)) if sources else {}
        self.places.append(_Place(sources, maps))
        self.shapes.append(made.shape)
        return len(self.places) - 1, made

    def forth(self, t: Mapping[Any, Array], *, squared: bool = False) -> Array:
        """What a step of the leaves does to the value, to first order."""
        made: list[Array] = []

        def of(source: int | Key) -> Array:
            return made[source] if isinstance(source, int) else t[source]

        for place, shape in zip(self.places, self.shapes, strict=True):
            total: Array | None = None
            for argument, source in place.sources.items():
                share = place.maps[argument].apply(of(source), squared=squared)
                total = share if total is None else total + share
            made.append(np.zeros(shape) if total is None else total)
        return of(self.root)

    def back(self, y: Array, into: Tensors, *, squared: bool = False) -> None:
        """Add to each moving leaf's tensor what the transposed map makes of ``y``."""
        waiting: dict[int, Array] = {}

        def give(source: int | Key, share: Array) -> None:
            if isinstance(source, int):
                waiting[source] = waiting[source] + share if source in waiting else share
            else:
                into[source] = into[source] + share

        if isinstance(self.root, int) or self.root in self._moving:
            give(self.root, y)
        for number in range(len(self.places) - 1, -1, -1):
            share = waiting.pop(number, None)
            if share is None:
                continue
            place = self.places[number]
            for argument, source in place.sources.items():
                give(source, place.maps[argument].transpose(share, squared=squared))

    @property
    def positive(self) -> bool:
        """Whether no coefficient of the map is negative."""
        return all(held.positive() for place in self.places for held in place.maps.values())
