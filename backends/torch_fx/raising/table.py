"""The operators of torch that archir raises, by their names without overloads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from . import layering, moving, numeric
from .site import Site
from .values import Entry

FROM_TORCH: Mapping[str, Callable[[Site], Entry]] = MappingProxyType(
    {**layering.FROM_TORCH, **numeric.FROM_TORCH, **moving.FROM_TORCH}
)
"""For each operator, the function that raises a call of it."""
