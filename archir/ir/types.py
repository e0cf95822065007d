"""Element types, tensor types, and the values an attribute can hold."""

from __future__ import annotations

from dataclasses import dataclass

from archir.ir.dims import Size

DTYPES = ("f32", "f16", "bf16", "f64", "i64", "i32", "bool")

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
