"""What the values of a captured program are while it is raised."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from archir.backends.torch_fx.frame import DTYPES

from archir.ir.dims import Dim, Size
from archir.ir.graph import Value
from archir.ir.types import TensorType

NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""Element types by torch's dtypes."""


class CannotRaiseError(Exception):
    """An operator of torch, or a use of it, that archir has no operator for."""


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor of the module's own state: a parameter, a buffer, or an attribute."""

    path: str
    tensor: torch.Tensor
    buffer: bool
    persistent: bool = True
    """Whether it is part of the ``state_dict``."""


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor that depends on nothing: it was computed while the program was read."""

    tensor: torch.Tensor


@dataclass(frozen=True)
class Noise:
    """Random numbers of one entry a row, or one in all: what stochastic depth multiplies by."""

    rows: bool
    keep: float | None = None
    """The probability of a one; None before they are drawn."""
    scaled: bool = False


Entry = Value | Held | Known | Noise | list[Any] | tuple[Any, ...] | int | float | None


class Symbols:
    """The symbolic sizes of a program under the names that archir gives them."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def size(self, found: int | torch.SymInt) -> Size:
        """A size of torch's.

        Raises:
            CannotRaiseError: it is no integer ratio times a product of symbols.
        """
        if isinstance(found, int):
            return found
        expression = found.node.expr
        number, powers = expression.as_coeff_mul()
        if expression.is_Integer:
            return int(expression)
        symbols: dict[str, int] = {}
        for power in powers:
            base, exponent = power.as_base_exp()
            if not (base.is_Symbol and exponent.is_Integer):
                raise CannotRaiseError(f"a size is {expression}")
            if str(base).startswith("u"):
                raise CannotRaiseError("how many entries it has depends on values")
            symbols[self._name(str(base))] = int(exponent)
        return Dim(Fraction(int(number.p), int(number.q)), tuple(sorted(symbols.items())))

    def type(self, tensor: torch.Tensor) -> TensorType:
        """The type of a tensor, fake or real.

        Raises:
            CannotRaiseError: archir has no such element type, or a size cannot be written.
        """
        if tensor.dtype not in NAMES:
            raise CannotRaiseError(f"it computes with {str(tensor.dtype).partition('.')[2]}")
        return TensorType(NAMES[tensor.dtype], tuple(self.size(size) for size in tensor.shape))

    def _name(self, symbol: str) -> str:
        if symbol not in self._names:
            count = len(self._names)
            self._names[symbol] = "N" if not count else f"N{count + 1}"
        return self._names[symbol]
