"""Weight terms: what a rewrite does to tensors, written down before any tensor is touched.

A term is a tree over the paths of the parent's parameters. Terms compose by substitution, so
several rewrites become one pass over the weights; they have shapes, values in any number
system (:mod:`archir.ops.arithmetic`), and derivatives (:mod:`archir.weights.tape`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class IndexMap:
    """A map from new indices to old ones: entry j of the new axis comes from ``entries[j]``.

    ``source`` is the size of the old axis.
    """

    entries: Indices
    source: int

    def counts(self) -> Indices:
        """For each new index, how many new indices share its origin."""
        return np.bincount(self.entries, minlength=self.source)[self.entries]


@dataclass(frozen=True, slots=True)
class Ref:
    """The parent's parameter of that path."""

    path: str


@dataclass(frozen=True, slots=True)
class Statistic:
    """The mean or variance of a value of the parent over calibration data, one a channel."""

    kind: str
    node: str
    port: int
    channels: int


@dataclass(frozen=True, slots=True)
class Initial:
    """What an untrained network would hold in a new parameter: drawn from a seed and its path.

    ``initialiser`` is what the operator's record names; ``fill`` its number, where it has one.
    """

    path: str
    shape: tuple[int, ...]
    initialiser: str
    seed: int
    fill: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Apply:
    """A weight function applied to terms, numbers and index maps."""

    function: str
    args: tuple[Argument, ...]


Free = Statistic | Initial
"""What an exact check may take to be anything."""

Leaf = Ref | Free
Term = Leaf | Apply
Argument = Term | IndexMap | Indices | int | float | tuple[int, ...]


def references(term: Term) -> Iterator[str]:
    """The parent's parameters that a term reads."""
    yield from (leaf.path for leaf in leaves(term) if isinstance(leaf, Ref))


def leaves(term: Term) -> Iterator[Leaf]:
    """What a term reads, in order."""
    if not isinstance(term, Apply):
        yield term
        return
    for arg in term.args:
        if isinstance(arg, Term):
            yield from leaves(arg)


def statistics(term: Term) -> Iterator[Statistic]:
    """The calibration statistics that a term reads."""
    yield from (leaf for leaf in leaves(term) if isinstance(leaf, Statistic))


def free(term: Term) -> Iterator[Free]:
    """What a term reads that is no parameter."""
    yield from (leaf for leaf in leaves(term) if isinstance(leaf, Free))


def rebuild(term: Term, leaf: Callable[[Leaf], Term]) -> Term:
    """The term with each leaf replaced."""
    if not isinstance(term, Apply):
        return leaf(term)
    args = tuple(rebuild(a, leaf) if isinstance(a, Term) else a for a in term.args)
    return Apply(term.function, args)


def compose(term: Term, earlier: Mapping[str, Term]) -> Term:
    """A term over the child's parent, read as a term over that parent's own parent."""
    return rebuild(term, lambda x: earlier.get(x.path, x) if isinstance(x, Ref) else x)
