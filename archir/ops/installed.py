"""The operators of all installed packages, found through the entry points ``archir.ops``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from archir.diag import error
from archir.ops.record import Op, OpSet

GROUP = "archir.ops"


def installed(points: Sequence[EntryPoint] | None = None) -> OpSet:
    """Every installed operator; archir's own come in by this door too.

    An entry point names a sequence of records, such as ``archir.ops:BUILTIN``.

    Raises:
        ArchirError: A640, two packages offer an operator of one name; A641, a package's
            operators cannot be loaded.
    """
    owners: dict[str, str] = {}
    found: dict[str, Op] = {}
    for point in entry_points(group=GROUP) if points is None else points:
        owner = point.dist.name if point.dist is not None else point.value
        for op in _load(point, owner):
            if found.setdefault(op.name, op) is not op:
                raise error(
                    "A640",
                    f"two packages offer an operator `{op.name}`: {owners[op.name]} and {owner}",
                    hint="uninstall one of them",
                )
            owners.setdefault(op.name, owner)
    return OpSet(found.values())


def _load(point: EntryPoint, owner: str) -> Sequence[Op]:
    try:
        ops = tuple(point.load())
    except (ImportError, AttributeError, TypeError) as reason:
        raise error(
            "A641",
            f"the operators of `{owner}` cannot be loaded from {point.value}: {reason}",
            hint=f"install {owner} again",
        ) from reason
    strangers = [type(op).__name__ for op in ops if not isinstance(op, Op)]
    if strangers:
        raise error("A641", f"{point.value} of `{owner}` holds {strangers[0]}, not an operator")
    return ops
