"""Element types, tensor types, and the values an attribute can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from archir.ir.dims import Size

DTYPES = ("f32", "f16", "bf16", "f64", "i64", "i32", "bool")

MAX_RANK = 64
"""The most axes of a tensor, as in NumPy and torch."""

MAX_ELEMENTS = 2**63 - 1
"""The most elements of a tensor (for symbols of 1): what an index of 64 bits reaches."""

AttrValue = int | float | bool | str | None | tuple["AttrValue", ...]
"""What an attribute of an operator can hold: immutable and hashable."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape of a tensor."""

    dtype: str
    shape: tuple[Size, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def is_representable(self) -> bool:
        """Whether any machine could hold it."""
        fixed = (size if isinstance(size, int) else size.coefficient for size in self.shape)
        return self.rank <= MAX_RANK and math.prod(fixed) <= MAX_ELEMENTS
