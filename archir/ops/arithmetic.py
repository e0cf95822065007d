"""The number systems that reference semantics run in.

A reference is written once against :class:`Arithmetic` and runs on floats, on exact
fractions, and in GF(p) with p = 1048571. In GF(p) elements are balanced residues held in
float64: a product is below 2**38, so a sum of 32,768 products is exact and BLAS can be used;
every operation reduces its result. What has no meaning in a field is replaced by a fixed
function that keeps the laws rewriting relies on: ReLU is "x if x is a square, else 0"
(idempotent, homogeneous for squares), square roots and exponentials are fixed random tables
without zeros, and the maximum of a window is a sum of table entries (it does not depend on
the order of the window, and on nothing else).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PRIME = 1048571
FAN_IN = 32768
ENDLESS = 10**40
"""What stands for infinity where numbers are exact."""


class Arithmetic(Protocol):
    """What a reference may do with numbers beside NumPy's indexing and reshaping."""

    name: str

    def number(self, value: float | Fraction) -> Any:
        """A constant of this number system."""

    def array(self, values: npt.ArrayLike) -> Array:
        """An array of constants."""

    def add(self, a: Array, b: Array) -> Array:
        """The sum, with broadcasting."""

    def subtract(self, a: Array, b: Array) -> Array:
        """The difference, with broadcasting."""

    def multiply(self, a: Array, b: Array) -> Array:
        """The product, with broadcasting."""

    def divide(self, a: Array, b: Array) -> Array:
        """The quotient, with broadcasting."""

    def matmul(self, a: Array, b: Array) -> Array:
        """The matrix product over the last two axes."""

    def sum(self, a: Array, axis: tuple[int, ...]) -> Array:
        """The sum over axes."""

    def maximum(self, a: Array, axis: tuple[int, ...], valid: npt.NDArray[np.bool_]) -> Array:
        """The largest entry over axes among those marked valid."""

    def relu(self, a: Array) -> Array:
        """max(a, 0)."""

    def sqrt(self, a: Array) -> Array:
        """The square root."""

    def exp(self, a: Array) -> Array:
        """The exponential."""

    def function(self, name: str, a: Array, real: Callable[[Array], Array]) -> Array:
        """A function of single entries: ``real`` on floats, elsewhere a fixed one of that name."""


def exactly(value: float | Fraction) -> Fraction:
    """A number as it is written; an infinite one is larger than all that are met."""
    if isinstance(value, float) and math.isinf(value):
        return Fraction(ENDLESS if value > 0 else -ENDLESS)
    return value if isinstance(value, Fraction) else Fraction(repr(value))


class Floating:
    """Ordinary floats of one dtype."""

    def __init__(self, dtype: npt.DTypeLike = np.float64) -> None:
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.name = self.dtype.name

    def number(self, value: float | Fraction) -> Any:
        return np.asarray(float(value), self.dtype)[()]

    def array(self, values: npt.ArrayLike) -> Array:
        return np.asarray(values, self.dtype)

    def add(self, a: Array, b: Array) -> Array:
        return np.asarray(a + b)

    def subtract(self, a: Array, b: Array) -> Array:
        return np.asarray(a - b)

    def multiply(self, a: Array, b: Array) -> Array:
        return np.asarray(a * b)

    def divide(self, a: Array, b: Array) -> Array:
        return np.asarray(a / b)

    def matmul(self, a: Array, b: Array) -> Array:
        return np.asarray(np.matmul(a, b))

    def sum(self, a: Array, axis: tuple[int, ...]) -> Array:
        return np.asarray(a.sum(axis=axis))

    def maximum(self, a: Array, axis: tuple[int, ...], valid: npt.NDArray[np.bool_]) -> Array:
        return np.asarray(np.where(valid, a, self.number(-np.inf)).max(axis=axis))

    def relu(self, a: Array) -> Array:
        return np.asarray(np.maximum(a, self.number(0)))

    def sqrt(self, a: Array) -> Array:
        return np.asarray(np.sqrt(a))

    def exp(self, a: Array) -> Array:
        return np.asarray(np.exp(a))

    def function(self, name: str, a: Array, real: Callable[[Array], Array]) -> Array:
        return np.asarray(real(a), self.dtype)


class Rational:
    """Exact fractions in object arrays: slow, ordered, readable.

    Whole numbers in arrays are ints, which are faster. One alone is a fraction, so that an array
    that is made of it holds objects.

    The square root of a square of a rational is exact; any other square root, the exponential,
    and any function that is named, is a fixed rational function (what a rule says of them must
    follow from their being functions at all).
    """

    name = "rational"

    def number(self, value: float | Fraction) -> Any:
        return exactly(value)

    def array(self, values: npt.ArrayLike) -> Array:
        source = np.asarray(values)
        out = np.empty(source.shape, dtype=object)
        flat = out.reshape(-1)
        for index, value in enumerate(source.reshape(-1).tolist()):
            flat[index] = value if type(value) is int else self.number(value)
        return flat.reshape(source.shape)

    def add(self, a: Array, b: Array) -> Array:
        return np.asarray(a + b, dtype=object)

    def subtract(self, a: Array, b: Array) -> Array:
        return np.asarray(a - b, dtype=object)

    def multiply(self, a: Array, b: Array) -> Array:
        return np.asarray(a * b, dtype=object)

    def divide(self, a: Array, b: Array) -> Array:
        return np.asarray(_ratio(a, b), dtype=object)

    def matmul(self, a: Array, b: Array) -> Array:
        (left, above), (right, below) = _whole(a), _whole(b)
        product = np.asarray(np.matmul(left, right), dtype=object)
        return product if above * below == 1 else self.divide(product, self.array(above * below))

    def sum(self, a: Array, axis: tuple[int, ...]) -> Array:
        return np.asarray(a.sum(axis=axis), dtype=object)

    def maximum(self, a: Array, axis: tuple[int, ...], valid: npt.NDArray[np.bool_]) -> Array:
        floor = np.array(min(a.reshape(-1).tolist(), default=0), dtype=object)
        return np.asarray(np.where(valid, a, floor).max(axis=axis), dtype=object)

    def relu(self, a: Array) -> Array:
        return np.asarray(np.where(a > 0, a, np.array(0, dtype=object)), dtype=object)

    def sqrt(self, a: Array) -> Array:
        return _each(_rational_root, a)

    def exp(self, a: Array) -> Array:
        return np.asarray(a * a + 1, dtype=object)

    def function(self, name: str, a: Array, real: Callable[[Array], Array]) -> Array:
        shift = Fraction(1 + sum(name.encode()) % 97, 101)
        return np.asarray(a * a * shift + a * (1 - shift) + shift, dtype=object)


def _whole(a: Array) -> tuple[Array, int]:
    """Whole numbers, and what they are to be divided by: sums of products are faster in ints."""
    flat = a.reshape(-1).tolist()
    below = math.lcm(*{value.denominator for value in flat})
    if below == 1 and all(type(value) is int for value in flat):
        return a, 1
    scaled = np.empty(len(flat), dtype=object)
    scaled[:] = [value.numerator * (below // value.denominator) for value in flat]
    return scaled.reshape(a.shape), below


def _exact_ratio(a: int | Fraction, b: int | Fraction) -> int | Fraction:
    if isinstance(a, int) and isinstance(b, int) and a % b == 0:
        return a // b
    return Fraction(a, b)


_ratio: Any = np.frompyfunc(_exact_ratio, 2, 1)


def _each(function: Any, a: Array) -> Array:
    a = np.asarray(a, dtype=object)
    return np.array([function(v) for v in a.reshape(-1)], dtype=object).reshape(a.shape)


def _rational_root(value: Fraction) -> Fraction:
    value = Fraction(value)
    if value >= 0:
        up, down = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if up * up == value.numerator and down * down == value.denominator:
            return Fraction(up, down)
    return value * value + 1


class Residues:
    """GF(p): balanced residues in float64, reduced after every operation."""

    name = "gf"

    def number(self, value: float | Fraction) -> Any:
        exact = exactly(value)
        residue = exact.numerator * pow(exact.denominator, -1, PRIME) % PRIME
        return np.float64(residue - PRIME if residue > PRIME // 2 else residue)

    def array(self, values: npt.ArrayLike) -> Array:
        source = np.asarray(values)
        if source.dtype.kind in "iu":
            return balance(np.asarray(source % PRIME, np.float64))
        flat = [float(self.number(v)) for v in source.reshape(-1).tolist()]
        return np.array(flat, np.float64).reshape(source.shape)

    def add(self, a: Array, b: Array) -> Array:
        return balance(np.asarray(a + b))

    def subtract(self, a: Array, b: Array) -> Array:
        return balance(np.asarray(a - b))

    def multiply(self, a: Array, b: Array) -> Array:
        return balance(np.asarray(a * b))

    def divide(self, a: Array, b: Array) -> Array:
        return balance(np.asarray(a * inverse(b)))

    def matmul(self, a: Array, b: Array) -> Array:
        width = a.shape[-1]
        out = balance(np.matmul(a[..., :FAN_IN], b[..., :FAN_IN, :]))
        for start in range(FAN_IN, width, FAN_IN):
            more = np.matmul(a[..., start : start + FAN_IN], b[..., start : start + FAN_IN, :])
            out = balance(out + balance(more))
        return out

    def sum(self, a: Array, axis: tuple[int, ...]) -> Array:
        return balance(np.asarray(a.sum(axis=axis)))

    def maximum(self, a: Array, axis: tuple[int, ...], valid: npt.NDArray[np.bool_]) -> Array:
        entries = np.where(valid, table("maximum")[index(a)], 0.0)
        return balance(np.asarray(entries.sum(axis=axis)))

    def relu(self, a: Array) -> Array:
        return np.where(_squares()[index(a)], a, 0.0)

    def sqrt(self, a: Array) -> Array:
        return table("sqrt")[index(a)]

    def exp(self, a: Array) -> Array:
        return table("exp")[index(a)]

    def function(self, name: str, a: Array, real: Callable[[Array], Array]) -> Array:
        return table(name)[index(a)]


def balance(a: Array) -> Array:
    """The residue of least absolute value, in float64 (exact below 2**53)."""
    multiple = np.multiply(a, 1 / PRIME)
    multiple = np.asarray(np.rint(multiple))
    np.multiply(multiple, PRIME, out=multiple)
    return np.subtract(a, multiple, out=multiple)


def index(a: Array) -> npt.NDArray[np.int64]:
    """Residues as indices 0 .. p-1."""
    whole = np.asarray(a).astype(np.int64)
    return whole + PRIME * (whole < 0)


def inverse(a: Array) -> Array:
    """Inverses modulo p.

    Raises:
        ZeroDivisionError: an entry is 0 modulo p.
    """
    base = index(a)
    if not base.all():
        raise ZeroDivisionError("division by zero modulo p")
    distinct, where = np.unique(base, return_inverse=True)
    powers = np.array([pow(int(v), -1, PRIME) for v in distinct], np.float64)
    return np.asarray(balance(powers[where].reshape(np.shape(a))))


@lru_cache(maxsize=16)
def table(name: str) -> npt.NDArray[np.float64]:
    """A fixed random function of GF(p) without zeros, one for each name."""
    seed = [*name.encode()]
    values = np.random.Generator(np.random.PCG64(seed)).integers(1, PRIME, PRIME)
    return np.asarray(balance(values.astype(np.float64)))


@lru_cache(maxsize=1)
def _squares() -> npt.NDArray[np.bool_]:
    roots = np.arange(PRIME // 2 + 1, dtype=np.int64)
    mask = np.zeros(PRIME, np.bool_)
    mask[roots * roots % PRIME] = True
    return mask
