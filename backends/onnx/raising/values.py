"""What a name of an ONNX graph stands for while it is raised.

A value of the network, numbers that are known beforehand, or sizes with symbols in them: an
array of objects whose entries are whole numbers or :class:`archir.ir.dims.Dim`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from archir.ir.dims import Dim, Size, product, quotient, total
from archir.ir.types import TensorType
from archir.ops.arithmetic import Array

DTYPES = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float64": "f64",
    "int64": "i64",
    "int32": "i32",
    "bool": "bool",
}
"""archir's names for NumPy's element types."""


class UnfoldedError(Exception):
    """Numbers that no node can compute beforehand; the text says why."""


@dataclass(frozen=True, eq=False)
class Known:
    """Numbers, or sizes with symbols, that are known before the network runs."""

    array: Array
    name: str = ""
    """The initializer that it is, entry for entry, or empty."""
    base: str = ""
    """The initializer that it was made of, or empty."""

    @property
    def symbolic(self) -> bool:
        """Whether there is a symbol in it."""
        return self.array.dtype == object


@dataclass(frozen=True, slots=True)
class Made:
    """A result of a node of the network that is being built."""

    draft: int
    port: int
    type: TensorType


def made_up(name: str) -> bool:
    """Whether a name is an exporter's own: nobody gave it to a tensor that is trained."""
    return name.startswith(("val_", "onnx::", "_", "/", "c_", "const")) or name.isdigit()


def plain(array: Array) -> Array:
    """Sizes as an array of numbers, where no entry holds a symbol."""
    if array.dtype != object:
        return array
    entries = array.reshape(-1)
    if any(isinstance(entry, Dim) for entry in entries):
        return array
    if any(isinstance(entry, float) for entry in entries):
        return array.astype(np.float32)
    return array.astype(np.bool_ if entries.size and isinstance(entries[0], bool) else np.int64)


def sizes(shape: Iterable[Size]) -> Array:
    """A shape as an array: of numbers, or of objects where there are symbols."""
    entries = list(shape)
    out = np.empty(len(entries), object)
    out[:] = entries
    return plain(out)


def add(a: Any, b: Any) -> Any:
    """The sum of two sizes.

    Raises:
        UnfoldedError: it is no size.
    """
    if not (isinstance(a, Dim) or isinstance(b, Dim)):
        return a + b
    if 0 in (a, b):
        return b if a == 0 else a
    found = total([_size(a), _size(b)])
    if found is None:
        raise UnfoldedError(f"{a} + {b} has no closed form")
    return found


def subtract(a: Any, b: Any) -> Any:
    """The difference of two sizes."""
    return add(a, multiply(b, -1)) if a != b else 0


def multiply(a: Any, b: Any) -> Any:
    """The product of two sizes, or of a size and a fraction."""
    if not (isinstance(a, Dim) or isinstance(b, Dim)):
        return a * b
    parts = [entry if isinstance(entry, Dim) else Fraction(entry) for entry in (a, b)]
    top = product(entry if isinstance(entry, Dim) else entry.numerator for entry in parts)
    bottom = [entry.denominator for entry in parts if isinstance(entry, Fraction)]
    found = quotient(top, product(bottom))
    if found is None:
        raise UnfoldedError(f"{a} * {b} is no size")
    return found


def divide(a: Any, b: Any) -> Any:
    """The quotient of two sizes, where it is whole."""
    if b == 0:
        raise UnfoldedError("a division by zero")
    if not (isinstance(a, Dim) or isinstance(b, Dim)):
        return a / b if isinstance(a, float) or isinstance(b, float) else int(a / b)
    found = quotient(_size(a), _size(b))
    if found is None or not whole(found):
        raise UnfoldedError(f"{a} / {b} has no closed form")
    return found


def remainder(a: Any, b: Any) -> Any:
    """What a division of sizes leaves."""
    if not (isinstance(a, Dim) or isinstance(b, Dim)):
        if b == 0:
            raise UnfoldedError("a division by zero")
        return a % b
    divide(a, b)
    return 0


def whole(size: Size) -> bool:
    """Whether a size is a whole number for all values of its symbols."""
    if isinstance(size, int):
        return True
    return size.coefficient.denominator == 1 and all(power > 0 for _, power in size.symbols)


def equal(a: Any, b: Any) -> bool:
    """Whether two sizes are equal, for all values of their symbols.

    Raises:
        UnfoldedError: for some they are, for others not.
    """
    if a == b:
        return True
    ratio = quotient(_size(a), _size(b)) if _size(b) != 0 else None
    if isinstance(ratio, int):
        return ratio == 1
    numbers = [entry for entry in (a, b) if not isinstance(entry, Dim)]
    if not numbers or numbers[0] > 0:
        # A size may come to be any positive number.
        raise UnfoldedError(f"whether {a} is {b} depends on the symbol")
    return False


def less(a: Any, b: Any) -> bool:
    """Whether one size is below another, for all values of their symbols."""
    if not (isinstance(a, Dim) or isinstance(b, Dim)):
        return bool(a < b)
    ratio = quotient(_size(a), _size(b)) if _size(b) != 0 else None
    if isinstance(ratio, int):
        return ratio < 1
    if not isinstance(a, Dim) and a <= 0:
        return True
    if not isinstance(b, Dim) and b <= 0:
        return False
    raise UnfoldedError(f"whether {a} is below {b} depends on the symbol")


def _size(entry: Any) -> Size:
    if isinstance(entry, Dim):
        return entry
    if int(entry) != entry:
        raise UnfoldedError(f"{entry} is no size")
    return int(entry)
