"""Weight functions as linear maps, at the values they are given: forth, and transposed back.

Most weight functions gather entries, each perhaps times a number that does not depend on
them; that is found out by trying (on ones, and on 1, 2, 3, ...), and then checked. The
others are written down here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from archir.ops.arithmetic import Array, Floating
from archir.weights.fibres import fibre_sum
from archir.weights.functions import FUNCTIONS
from archir.weights.terms import Apply, IndexMap

FLOAT = Floating(np.float64)
CLOSE = 1e-9
"""How far a gathered entry may be from what the function gives, relative to the largest."""


class NoInverse(Exception):  # noqa: N818 - it is a finding
    """A weight function is not of the kind that can be taken back; the text names it."""


class Linear(Protocol):
    """A linear map of tensors; ``squared`` is the map with squared coefficients."""

    def apply(self, t: Array, *, squared: bool = False) -> Array:
        """The map itself."""

    def transpose(self, y: Array, *, squared: bool = False) -> Array:
        """The transposed map."""

    def positive(self) -> bool:
        """Whether no coefficient is negative."""


def _power(coefficient: Array, squared: bool) -> Array:
    return np.square(coefficient) if squared else coefficient


@dataclass(frozen=True)
class Gather:
    """Entry j of the result is entry ``index[j]`` (none where negative) times ``scale[j]``."""

    index: Array
    shape: tuple[int, ...]
    scale: Array | None = None

    def _times(self, y: Array, squared: bool) -> Array:
        return y if self.scale is None else y * _power(self.scale, squared)

    def apply(self, t: Array, *, squared: bool = False) -> Array:
        found = np.where(self.index >= 0, t.reshape(-1)[self.index], 0.0)
        return self._times(found, squared)

    def transpose(self, y: Array, *, squared: bool = False) -> Array:
        held = self.index >= 0
        size = int(np.prod(self.shape, dtype=np.int64))
        share = self._times(y, squared)
        return np.bincount(self.index[held], share[held], size).reshape(self.shape)

    def positive(self) -> bool:
        return self.scale is None or bool((self.scale >= 0).all())


@dataclass(frozen=True)
class Taken:
    """Entries of an axis gathered along an index map."""

    g: IndexMap
    axis: int

    def apply(self, t: Array, *, squared: bool = False) -> Array:
        return t.take(self.g.entries, axis=self.axis)

    def transpose(self, y: Array, *, squared: bool = False) -> Array:
        return fibre_sum(FLOAT, y, self.g, self.axis)

    def positive(self) -> bool:
        return True


@dataclass(frozen=True)
class Turned:
    """The transpose of a map."""

    inner: Linear

    def apply(self, t: Array, *, squared: bool = False) -> Array:
        return self.inner.transpose(t, squared=squared)

    def transpose(self, y: Array, *, squared: bool = False) -> Array:
        return self.inner.apply(y, squared=squared)

    def positive(self) -> bool:
        return self.inner.positive()


@dataclass(frozen=True)
class Scatter:
    """Entry j of the argument is added to entry ``index[j]`` of the result."""

    index: Array
    shape: tuple[int, ...]

    def apply(self, t: Array, *, squared: bool = False) -> Array:
        size = int(np.prod(self.shape, dtype=np.int64))
        return np.bincount(self.index.reshape(-1), t.reshape(-1), size).reshape(self.shape)

    def transpose(self, y: Array, *, squared: bool = False) -> Array:
        return y.reshape(-1)[self.index]

    def positive(self) -> bool:
        return True


@dataclass(frozen=True)
class Scale:
    """Entries times numbers, with broadcasting to a shape."""

    factor: Array
    before: tuple[int, ...]
    after: tuple[int, ...]

    def apply(self, t: Array, *, squared: bool = False) -> Array:
        made = np.asarray(t * _power(self.factor, squared))
        return made if self.before == self.after else np.broadcast_to(made, self.after)

    def transpose(self, y: Array, *, squared: bool = False) -> Array:
        y = np.asarray(y * _power(self.factor, squared))
        if self.before == self.after:
            return y
        rank = len(self.after) - len(self.before)
        y = y.sum(axis=tuple(range(rank)))
        over = tuple(i for i, n in enumerate(self.before) if n == 1 and y.shape[i] != 1)
        return np.asarray(y.sum(axis=over, keepdims=True) if over else y)

    def positive(self) -> bool:
        return bool((self.factor >= 0).all())


@dataclass(frozen=True)
class Product:
    """A matrix times the argument from the left, or (``right``) the argument times a matrix."""

    matrix: Array
    before: tuple[int, ...]
    after: tuple[int, ...]
    right: bool = False

    def _times(self, matrix: Array, y: Array, shape: tuple[int, ...]) -> Array:
        flat = y.reshape(y.shape[0], -1)
        return np.asarray(flat @ matrix if self.right else matrix @ flat).reshape(shape)

    def apply(self, t: Array, *, squared: bool = False) -> Array:
        return self._times(_power(self.matrix, squared), t, self.after)

    def transpose(self, y: Array, *, squared: bool = False) -> Array:
        return self._times(_power(self.matrix, squared).T, y, self.before)

    def positive(self) -> bool:
        return bool((self.matrix >= 0).all())


@dataclass(frozen=True)
class Chain:
    """One map after another, of which the first only moves entries."""

    first: Linear
    then: Linear

    def apply(self, t: Array, *, squared: bool = False) -> Array:
        return self.then.apply(self.first.apply(t), squared=squared)

    def transpose(self, y: Array, *, squared: bool = False) -> Array:
        return self.first.transpose(self.then.transpose(y, squared=squared))

    def positive(self) -> bool:
        return self.then.positive()


@dataclass(frozen=True)
class Reshaped:
    """The same entries in another shape."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def apply(self, t: Array, *, squared: bool = False) -> Array:
        return t.reshape(self.after)

    def transpose(self, y: Array, *, squared: bool = False) -> Array:
        return y.reshape(self.before)

    def positive(self) -> bool:
        return True


# --- the functions --------------------------------------------------------------------------

Derivative = Callable[[int, Sequence[Any], Array], Linear]
"""Of the argument in a place, given all arguments' values and the result's."""


def _number(x: Any) -> Array:
    return np.asarray(x, np.float64)


def _plus(place: int, args: Sequence[Any], y: Array) -> Linear:
    return Scale(np.ones(()), np.shape(args[place]), y.shape)


def _minus(place: int, args: Sequence[Any], y: Array) -> Linear:
    return Scale(np.asarray(-1.0 if place else 1.0), np.shape(args[place]), y.shape)


def _times(place: int, args: Sequence[Any], y: Array) -> Linear:
    return Scale(_number(args[1 - place]), np.shape(args[place]), y.shape)


def _over(place: int, args: Sequence[Any], y: Array) -> Linear:
    a, b = _number(args[0]), _number(args[1])
    return Scale(-a / np.square(b) if place else 1 / b, np.shape(args[place]), y.shape)


def _along(v: Array, axis: int, rank: int) -> Array:
    return v.reshape(tuple(-1 if i == axis % rank else 1 for i in range(rank)))


def _times_along(place: int, args: Sequence[Any], y: Array) -> Linear:
    w, v, axis = args
    spread = _along(v, axis, w.ndim)
    if place == 0:
        return Scale(spread, w.shape, y.shape)
    return Chain(Reshaped(v.shape, spread.shape), Scale(w, spread.shape, y.shape))


def _over_along(place: int, args: Sequence[Any], y: Array) -> Linear:
    w, v, axis = args
    spread = _along(v, axis, w.ndim)
    if place == 0:
        return Scale(1 / spread, w.shape, y.shape)
    lying = Reshaped(v.shape, spread.shape)
    return Chain(lying, Scale(-w / np.square(spread), spread.shape, y.shape))


def _root(place: int, args: Sequence[Any], y: Array) -> Linear:
    return Scale(0.5 / y, y.shape, y.shape)


def _matmul(place: int, args: Sequence[Any], y: Array) -> Linear:
    a, b = args
    if place == 0:
        return Product(b.reshape(b.shape[0], -1), a.shape, y.shape, right=True)
    return Product(a, b.shape, y.shape)


def _row_sums(place: int, args: Sequence[Any], y: Array) -> Linear:
    (w,) = args
    rows = np.arange(w.shape[0]).reshape(-1, *(1,) * (w.ndim - 1))
    return Scatter(np.broadcast_to(rows, w.shape), y.shape)


def _take(place: int, args: Sequence[Any], y: Array) -> Linear:
    _, g, axis = args
    return Taken(g, axis)


def _put(place: int, args: Sequence[Any], y: Array) -> Linear:
    """The entries that are kept; of what was drawn at random nothing is known."""
    _, g, axis = args[:3]
    return Turned(Taken(g, axis))


def _first(place: int, args: Sequence[Any], y: Array) -> Linear:
    w, g, axis = args
    places = np.unique(g.entries, return_index=True)[1]
    return Taken(IndexMap(places, w.shape[axis]), axis)


def _share_out(place: int, args: Sequence[Any], y: Array) -> Linear:
    w, g, axis, seed = args
    shares = FUNCTIONS["share_out"].value(FLOAT, np.ones(g.source), g, 0, seed)
    taken = (*w.shape[: axis % w.ndim], len(g.entries), *w.shape[axis % w.ndim + 1 :])
    return Chain(Taken(g, axis), Scale(_along(shares, axis, w.ndim), taken, y.shape))


def _oppose(place: int, args: Sequence[Any], y: Array) -> Linear:
    return Scale(np.ones(()), y.shape, y.shape)


_WRITTEN: Mapping[str, Derivative] = {
    "add": _plus,
    "subtract": _minus,
    "multiply": _times,
    "divide": _over,
    "multiply_along": _times_along,
    "divide_along": _over_along,
    "sqrt": _root,
    "matmul": _matmul,
    "row_sums": _row_sums,
    "take": _take,
    "place": _put,
    "fibre_sum": _put,
    "first": _first,
    "share_out": _share_out,
    "graft": _put,
    "oppose": _oppose,
}


def _gathered(name: str, place: int, args: Sequence[Any]) -> Gather:
    """The map of a function in one of its tensors, if it gathers its entries."""
    function = FUNCTIONS[name]
    tensor = args[place]

    def of(values: Array) -> Array:
        others = [
            np.zeros_like(a) if isinstance(a, np.ndarray) and i < function.tensors else a
            for i, a in enumerate(args)
        ]
        others[place] = values
        return np.asarray(function.value(FLOAT, *others), np.float64)

    scale = of(np.ones(tensor.shape))
    held = scale != 0
    numbers = of(np.arange(1.0, tensor.size + 1).reshape(tensor.shape))
    index = np.full(scale.shape, -1, np.int64)
    index[held] = np.rint(numbers[held] / scale[held]).astype(np.int64) - 1
    trial = np.random.Generator(np.random.PCG64(1)).uniform(1, 2, tensor.shape)
    if not (index[held] >= 0).all() or not (index[held] < tensor.size).all():
        raise NoInverse(name)
    found = Gather(index, tensor.shape, None if (scale[held] == 1).all() else scale)
    wanted = of(trial)
    if not np.isfinite(wanted).all() or np.abs(found.apply(trial) - wanted).max(initial=0) > CLOSE:
        raise NoInverse(name)
    return found


def linear_maps(
    term: Apply, args: Sequence[Any], value: Array, places: Sequence[int]
) -> dict[int, Linear]:
    """The map of a function in some of its tensor arguments, at the values they have.

    Args:
        term: A use of the function.
        args: The values of its arguments.
        value: Its own value.
        places: Of which arguments.

    Raises:
        NoInverse: it neither gathers entries nor is one of those that are written down.
    """
    written = _WRITTEN.get(term.function)
    if written is not None:
        return {i: written(i, args, value) for i in places}
    return {i: _gathered(term.function, i, args) for i in places}
