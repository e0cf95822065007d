"""The maps that rules over a class make, and what holds of them.

A map goes from the indices of a short side to those of a long one (``docs/proof.md``). Most are
drawn or counted; those that *read* find their entries in the weights of the class, or are told
what was found before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from archir.lang.tree import Call
from archir.rewrite.rule import Step
from archir.weights.terms import IndexMap

MAX_SIZE = 1 << 20
"""The largest axis a rule may ask for."""


@dataclass(frozen=True)
class Maker:
    """A function that makes maps over the entries of a class."""

    arguments: int
    """How many it takes: the size before, and what else it goes by."""
    holds: tuple[str, ...]
    """What holds of each of its maps."""
    able: tuple[str, ...]
    """The needs of a class that a map of it may meet."""
    grows: bool = False
    """Whether the old entries are the short side: each of them goes to a new one."""
    reads: bool = False
    """Whether it looks at the weights of the class."""
    least: int = 1
    """How many entries a class must have."""


MAKERS: Mapping[str, Maker] = {
    "replicate": Maker(2, ("onto",), ("even", "copies")),
    "shuffle": Maker(
        1, ("onto", "one_to_one", "bijective", "even"), ("even", "bijective", "copies"), least=2
    ),
    "select": Maker(2, ("one_to_one",), ("copies",), least=2),
    "choose": Maker(2, ("one_to_one",), ("copies",), least=2),
    "largest": Maker(2, ("one_to_one",), ("copies",), reads=True, least=2),
    "used": Maker(1, ("one_to_one",), ("copies",), reads=True, least=2),
    "again": Maker(2, ("onto",), ("copies",)),
    "embed": Maker(2, ("one_to_one",), (), grows=True),
    "alike": Maker(1, ("onto",), ("even", "copies"), grows=True, reads=True, least=2),
}
"""Every function that makes a map.

``replicate(n, m)`` takes every entry, then copies, each equally often or once more; ``shuffle(n)``
all in another order; ``select(n, m)`` some, drawn at random, in order; ``choose(n, keep)`` those
that it is told; ``largest(n, m)`` those whose producing weights have the largest norm;
``used(n)`` those that some weight reads; ``again(n, m)`` all, then those from number m on once
more; ``embed(n, m)`` says that they become the first n of m; ``alike(n)`` that channels that are
made and carried by equal weights become one.
"""


def make(name: str, args: Sequence[object], rng: np.random.Generator) -> IndexMap:
    """A map that does not look at weights.

    Raises:
        ValueError: the arguments do not fit; the text says what would.
    """
    old = size_before(name, args)
    if name == "shuffle":
        order = rng.permutation(old)
        if old > 1 and (order == np.arange(old)).all():
            order = np.roll(order, 1)
        return IndexMap(order, old)
    if name == "choose":
        return IndexMap(_chosen(old, args[1]), old)
    new = size_after(name, old, args)
    if name == "embed":
        return IndexMap(np.arange(old), new)
    if name == "select":
        return IndexMap(np.sort(rng.permutation(old)[:new]), old)
    if name == "again":
        return IndexMap(np.concatenate([np.arange(old), np.arange(new, old)]), old)
    rounds = [rng.permutation(old) for _ in range(-(-new // old) - 1)]
    return IndexMap(np.concatenate([np.arange(old), *rounds])[:new], old)


def size_before(name: str, args: Sequence[object]) -> int:
    """The size of the axis that a map is over.

    Raises:
        ValueError: it is none.
    """
    if len(args) != MAKERS[name].arguments:
        raise ValueError(f"`{name}` takes {MAKERS[name].arguments} arguments, got {len(args)}")
    old = args[0]
    if type(old) is not int or not 0 < old <= MAX_SIZE:
        raise ValueError(f"`{name}` takes sizes of an axis, before and after")
    return old


def size_after(name: str, old: int, args: Sequence[object]) -> int:
    """The second size that a map is asked for.

    Raises:
        ValueError: it cannot be.
    """
    new = args[1]
    if type(new) is not int:
        raise ValueError(f"`{name}` takes sizes of an axis, before and after")
    least, most = (old, MAX_SIZE) if name in ("replicate", "embed") else (1, old)
    if not least <= new <= most:
        raise ValueError(f"{name} of {old} entries wants {least} to {most}, got {new}")
    return new


def _chosen(old: int, given: object) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if not isinstance(given, tuple) or not all(type(j) is int for j in given):
        raise ValueError("`choose` takes a size and a list of indices")
    wrong = [j for j in given if not 0 <= j < old]
    if wrong or not given:
        what = f"got {wrong[0]}" if wrong else "got none"
        raise ValueError(f"choose of {old} entries wants indices from 0 to {old - 1}, {what}")
    return np.sort(np.asarray(given, np.int64))


def makers_in(step: Step) -> list[str]:
    """The functions that make a map in what a step defines; in a rule that is read, one."""
    calls = [value.callee.text for _, value in step.lets if isinstance(value, Call)]
    return [name for name in calls if name in MAKERS]


Reader = Callable[[str, int, int | None], IndexMap]
"""Finds the entries of a map in weights, by the maker's name and its sizes."""
