"""The operators: one record each, one family a file."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points

from archir.diag import error
from archir.ops import (
    activation,
    attend,
    compare,
    conv,
    dynamic,
    elementwise,
    functions,
    heads,
    index,
    interpolation,
    layout,
    norm,
    pool,
    reduce,
    resample,
    shape,
    source,
    spread,
    unfolding,
)
from archir.ops.carried import carried
from archir.ops.record import OpSet

BUILTIN = (
    *source.OPS,
    *conv.OPS,
    *norm.OPS,
    *dynamic.OPS,
    *activation.OPS,
    *elementwise.OPS,
    *functions.OPS,
    *compare.OPS,
    *pool.OPS,
    *resample.OPS,
    *interpolation.OPS,
    *unfolding.OPS,
    *shape.OPS,
    *layout.OPS,
    *index.OPS,
    *attend.OPS,
    *heads.OPS,
    *reduce.OPS,
    *spread.OPS,
)
"""The records that archir ships (the entry point ``archir.ops`` offers them)."""

STANDARD = OpSet(BUILTIN, carried)
"""The standard operator set, and ATen's operators by their names."""


@lru_cache(maxsize=1)
def installed_ops() -> OpSet:
    """The operators of all installed packages (entry points ``archir.ops``).

    Raises:
        ArchirError: A640, two packages offer an operator of one name, or one cannot be read.
    """
    owners: dict[str, str] = {}
    records = []
    for point in entry_points(group="archir.ops"):
        owner = point.dist.name if point.dist is not None else point.value
        try:
            found = [(op.name, op) for op in point.load()]
        except (ImportError, AttributeError, TypeError) as reason:
            raise error("A640", f"the operators of `{owner}` cannot be read: {reason}") from None
        for name, op in found:
            if name in owners:
                raise error(
                    "A640", f"`{owners[name]}` and `{owner}` both offer an operator `{name}`"
                )
            owners[name] = owner
            records.append(op)
    return OpSet(records, carried) if owners.keys() != STANDARD.keys() else STANDARD
