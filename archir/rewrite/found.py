"""Maps that are found in the weights of a class: what is largest, what is read, what is equal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from archir.diag import ArchirError, error
from archir.ops.arithmetic import Array
from archir.ops.classes import AxisClass, Kind, Member
from archir.ops.structure import Structure, structure_size
from archir.weights.terms import IndexMap, Indices

SLACK = 1e-9
"""By what share norms that are added up elsewhere may differ: far above float64 rounding."""

Known = Sequence[int] | Callable[[str, int, int | None], Sequence[int]]


def find(
    name: str,
    held: AxisClass,
    new: int | None,
    weights: Mapping[str, Array] | None,
    known: Known,
) -> IndexMap:
    """A map that looks at the weights of a class, or the one that was found before.

    ``known`` are the entries that a certificate holds (or, where weights do not matter, something
    that gives some). With the weights at hand they are compared with what is found there: a sum
    of floats may order equal norms otherwise on another machine.

    Raises:
        ArchirError: A313, there are no weights; A302, there is nothing to find, or what is known
            is not so.
    """
    assert isinstance(held.size, int)
    if callable(known):
        known = known(name, held.size, new)
    if not known:
        if weights is None:
            raise no_weights(held.name)
        known = [int(j) for j in _entries(name, held, new, weights)]
    elif not _fits(name, held, new, known, weights):
        text = f"the map that was recorded for the class of {held.name} is not that of its weights"
        raise error("A302", text, node=held.name)
    source = max(known) + 1 if name == "alike" else held.size
    return IndexMap(np.asarray(known, np.int64), source)


def there_is(
    name: str,
    held: AxisClass,
    weights: Mapping[str, Array],
    fits: Callable[[IndexMap], bool] = lambda _: True,
) -> bool:
    """Whether the weights of a class hold what such a map looks for, as it ``fits`` the class."""
    if name == "used":
        return not read(held, weights).all()
    if name != "alike":
        return True
    try:
        return fits(find(name, held, None, weights, ()))
    except ArchirError:  # no two are alike, or the class stands twice on one axis
        return False


def no_weights(where: str) -> ArchirError:
    """The error of a rule that looks at weights where there are none."""
    return error(
        "A313",
        f"which channels of {where} these are is read off the weights, and there are none",
        node=where,
        hint="`archir weights init`, or a rule that is told, as `prune.keep` is",
    )


def sample(name: str, size: int, new: int | None, rng: np.random.Generator) -> list[int]:
    """Entries such as weights could give: a rule is to be right for all of them."""
    if name == "alike":
        rounds = np.arange(size) // 2 if size % 2 == 0 and rng.random() < 0.5 else None
        raw = rng.permutation(rounds) if rounds is not None else rng.integers(0, size - 1, size)
        numbers: dict[int, int] = {}
        return [numbers.setdefault(int(j), len(numbers)) for j in raw]
    count = new or int(rng.integers(1, size))
    return sorted(int(j) for j in rng.permutation(size)[:count])


def _entries(name: str, held: AxisClass, new: int | None, weights: Mapping[str, Array]) -> Indices:
    assert isinstance(held.size, int)
    if name == "largest":
        order = np.argsort(-norms(held, weights), kind="stable")
        return np.sort(order[:new])
    if name == "used":
        kept = np.flatnonzero(read(held, weights))
        if len(kept) == held.size:
            raise error("A302", f"every channel of {held.name} is read", node=held.name)
        return kept if len(kept) else np.zeros(1, np.int64)  # an axis has an entry
    groups = equal(held, weights)
    if groups.max() == held.size - 1:
        raise error("A302", f"no two channels of {held.name} are made alike", node=held.name)
    return groups


def _fits(
    name: str,
    held: AxisClass,
    new: int | None,
    known: Sequence[int],
    weights: Mapping[str, Array] | None,
) -> bool:
    """Whether entries that are recorded can be the map, and are, as far as weights tell."""
    assert isinstance(held.size, int)
    if not all(type(j) is int and 0 <= j < held.size for j in known):
        return False
    if name == "alike":
        fresh = [j == max(known[:i], default=-1) + 1 for i, j in enumerate(known)]
        seen = [j <= max(known[:i], default=-1) for i, j in enumerate(known)]
        fits = len(known) == held.size and all(a or b for a, b in zip(fresh, seen, strict=True))
    else:
        fits = list(known) == sorted(set(known)) and len(known) in (new, new or len(known))
    if not fits or weights is None:
        return fits
    if name != "largest":
        return list(known) == [int(j) for j in _entries(name, held, new, weights)]
    size = norms(held, weights)
    gone = np.delete(size, list(known))
    return bool(size[list(known)].min() >= gone.max(initial=0.0) * (1 - SLACK))


# --- what is looked at ----------------------------------------------------------------------


def norms(held: AxisClass, weights: Mapping[str, Array]) -> Array:
    """The Euclidean norm of what makes each channel, added up over the weights that make it.

    Vectors (biases) count where nothing else makes the class.
    """
    assert isinstance(held.size, int)
    made = [*once(held, "produce")]
    made = [m for m in made if weights[m.path].ndim > 1] or made
    total = np.zeros(held.size)
    for member in made:
        squares = np.square(weights[member.path].astype(np.float64))
        along = squares.sum(tuple(i for i in range(squares.ndim) if i != member.axis))
        own = np.zeros(held.size)
        for owner in owners(member.structure, held.number):
            there = owner >= 0
            own += np.bincount(owner[there], along[there], held.size)
        total += np.sqrt(own)
    return total


def read(held: AxisClass, weights: Mapping[str, Array]) -> Array:
    """For each channel, whether some weight that reads the class is not zero there."""
    assert isinstance(held.size, int)
    found = np.zeros(held.size, np.bool_)
    for member in once(held, "consume"):
        w = weights[member.path]
        along = (w != 0).any(tuple(i for i in range(w.ndim) if i != member.axis))
        for owner in owners(member.structure, held.number):
            found[owner[along & (owner >= 0)]] = True
    return found


def equal(held: AxisClass, weights: Mapping[str, Array]) -> Indices:
    """For each channel a number, the same where all that makes and carries them is equal."""
    assert isinstance(held.size, int)
    digests = [hashlib.sha256() for _ in range(held.size)]
    for member in once(held, "produce", "carry"):
        places = owners(member.structure, held.number)
        if (np.sum([p >= 0 for p in places], axis=0) > 1).any():
            text = f"the class of {held.name} stands twice on one axis of {member.path}"
            raise error("A302", text, node=member.node)
        owner = np.max(places, axis=0)
        there = np.argsort(owner, kind="stable")[(owner < 0).sum() :].reshape(held.size, -1)
        rows = np.moveaxis(weights[member.path], member.axis, 0) + 0  # -0 is 0
        for own, digest in zip(there, digests, strict=True):
            digest.update(rows[own].tobytes())
    numbers: dict[bytes, int] = {}
    found = [numbers.setdefault(d.digest(), len(numbers)) for d in digests]
    return np.asarray(found, np.int64)


def once(held: AxisClass, *kinds: Kind) -> Iterator[Member]:
    """The members (of these kinds), a weight that several nodes share once an axis."""
    seen: set[tuple[str, int]] = set()
    for member in held.members:
        if (member.kind in kinds or not kinds) and (member.path, member.axis) not in seen:
            seen.add((member.path, member.axis))
            yield member


def owners(structure: Structure, number: int) -> list[Indices]:
    """For each place where a class stands in an axis, which of its channels an entry is of.

    -1 where an entry is of none.
    """
    whole: list[Indices] = []
    start, total = 0, structure_size(structure)
    assert isinstance(total, int)
    for segment in structure:
        length = 1
        found: list[Indices] = []
        for factor in segment:
            assert isinstance(factor.size, int)
            more: list[Indices] = []
            if factor.number == number:
                more = [np.arange(factor.size)]
            elif factor.inner:
                more = owners(factor.inner, number)
            found = [np.repeat(f, factor.size) for f in found]
            found += [np.tile(m, length) for m in more]
            length *= factor.size
        for part in found:
            spread = np.full(total, -1, np.int64)
            spread[start : start + length] = part
            whole.append(spread)
        start += length
    return whole
