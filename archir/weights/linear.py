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
from archir.weights.functions import FUNCTIONS
from archir.weights.terms import Apply, Term

FLOAT = Floating(np.float64)
CLOSE = 1e-9
"""How far a gathered entry may be from what the function gives, relative to the largest."""


class NoInverse(Exception):  # noqa: N818 - it is a finding
    """A weight function is not of the kind that can be taken back; the text names it."""


class Linear(Protocol):
    """A linear map of tensors."""

    def apply(self, t: Array) -> Array:
        """The map itself."""

    def transpose(self, y: Array) -> Array:
        """The transposed map."""

    def squares(self, y: Array) -> Array:
        """The transposed map with squared coefficients."""


@dataclass(frozen=True)
class Gather:
    """Entry j of the result is entry ``index[j]`` (none where negative) times ``scale[j]``."""

    index: Array
    shape: tuple[int, ...]
    scale: Array | None = None

    def _times(self, y: Array, powers: int) -> Array:
        for _ in range(powers if self.scale is not None else 0):
            y = y * self.scale
        return y

    def apply(self, t: Array) -> Array:
        found = np.where(self.index >= 0, t.reshape(-1)[self.index], 0.0)
        return self._times(found, 1)

    def _back(self, y: Array, powers: int) -> Array:
        held = self.index >= 0
        size = int(np.prod(self.shape, dtype=np.int64))
        share = self._times(y, powers)
        return np.bincount(self.index[held], share[held], size).reshape(self.shape)

    def transpose(self, y: Array) -> Array:
        return self._back(y, 1)

    def squares(self, y: Array) -> Array:
        return self._back(y, 2)


@dataclass(frozen=True)
class Scatter:
    """Entry j of the argument is added to entry ``index[j]`` of the result."""

    index: Array
    shape: tuple[int, ...]

    def apply(self, t: Array) -> Array:
        size = int(np.prod(self.shape, dtype=np.int64))
        return np.bincount(self.index.reshape(-1), t.reshape(-1), size).reshape(self.shape)

    def transpose(self, y: Array) -> Array:
        return y.reshape(-1)[self.index]

    squares = transpose


@dataclass(frozen=True)
class Scale:
    """Entries times numbers, with broadcasting to a shape."""

    factor: Array
    before: tuple[int, ...]
    after: tuple[int, ...]

    def apply(self, t: Array) -> Array:
        return np.broadcast_to(t * self.factor, self.after)

    def _back(self, y: Array) -> Array:
        rank = len(self.after) - len(self.before)
        y = y.sum(axis=tuple(range(rank)))
        over = tuple(i for i, n in enumerate(self.before) if n == 1 and y.shape[i] != 1)
        return np.asarray(y.sum(axis=over, keepdims=True) if over else y)

    def transpose(self, y: Array) -> Array:
        return self._back(np.asarray(y * self.factor))

    def squares(self, y: Array) -> Array:
        return self._back(np.asarray(y * np.square(self.factor)))


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

    def apply(self, t: Array) -> Array:
        return self._times(self.matrix, t, self.after)

    def transpose(self, y: Array) -> Array:
        return self._times(self.matrix.T, y, self.before)

    def squares(self, y: Array) -> Array:
        return self._times(np.square(self.matrix.T), y, self.before)


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
    if place == 0:
        return Scale(_along(v, axis, w.ndim), w.shape, y.shape)
    return _Folded(Scale(w, _along(v, axis, w.ndim).shape, y.shape), v.shape)


def _over_along(place: int, args: Sequence[Any], y: Array) -> Linear:
    w, v, axis = args
    spread = _along(v, axis, w.ndim)
    if place == 0:
        return Scale(1 / spread, w.shape, y.shape)
    return _Folded(Scale(-w / np.square(spread), spread.shape, y.shape), v.shape)


@dataclass(frozen=True)
class _Folded:
    """A map of a vector that is first laid along an axis."""

    inner: Scale
    shape: tuple[int, ...]

    def apply(self, t: Array) -> Array:
        return self.inner.apply(t.reshape(self.inner.before))

    def transpose(self, y: Array) -> Array:
        return self.inner.transpose(y).reshape(self.shape)

    def squares(self, y: Array) -> Array:
        return self.inner.squares(y).reshape(self.shape)


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


def _fibre_sum(place: int, args: Sequence[Any], y: Array) -> Linear:
    _, g, axis = args
    return Scatter(np.arange(y.size).reshape(y.shape).take(g.entries, axis=axis), y.shape)


def _graft(place: int, args: Sequence[Any], y: Array) -> Linear:
    """Of what was drawn at random nothing is known."""
    return _gathered("place", 0, args[:3])


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
    "fibre_sum": _fibre_sum,
    "graft": _graft,
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


def linear_maps(term: Apply, args: Sequence[Any], value: Array) -> dict[int, Linear]:
    """The map of a function in each of its tensor arguments, at the values they have.

    Args:
        term: A use of the function.
        args: The values of its arguments.
        value: Its own value.

    Raises:
        NoInverse: it neither gathers entries nor is one of those that are written down.
    """
    places = [i for i, arg in enumerate(term.args) if isinstance(arg, Term)]
    written = _WRITTEN.get(term.function)
    if written is not None:
        return {i: written(i, args, value) for i in places if i < 2}
    return {i: _gathered(term.function, i, args) for i in places}
