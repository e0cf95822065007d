"""The operators: one record each, one family a file."""

from __future__ import annotations

from archir.ops import conv, elementwise, norm, pool, shape, source
from archir.ops.record import OpSet

BUILTIN = (*source.OPS, *conv.OPS, *norm.OPS, *elementwise.OPS, *pool.OPS, *shape.OPS)
"""The records that archir ships (the entry point ``archir.ops`` offers them)."""

STANDARD = OpSet(BUILTIN)
"""The standard operator set."""
