"""Operators along whole axes: copies side by side, entries turned round or added up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.layout import axes, written
from archir.ops.record import Attr, Attrs, Kind, Mode, Op, Sample
from archir.ops.reduce import wide
from archir.ops.window import ints


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def tile_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Each axis is a number of times the operand's, which is aligned at the last axis."""
    repeats, rank = ints(attrs["repeats"]), types[0].rank
    if len(repeats) < rank:
        message = f"`repeats` of `tile` has {len(repeats)} entries for {rank} axes"
        raise OpError("A114", f"{message}: {types[0]}", attr="repeats")
    before = axes(rank)
    new = len(repeats) - rank
    after = [str(times) for times in repeats[:new]]
    for name, times in zip(before, repeats[new:], strict=True):
        after.append(name if times == 1 else f"({times} {name})")
    return written(before, after)


def repeat_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Each entry of an axis becomes several, side by side."""
    times, axis = ints((attrs["repeats"], attrs["axis"]))
    before = axes(types[0].rank)
    after = list(before)
    after[axis] = before[axis] if times == 1 else f"({before[axis]} {times})"
    return written(before, after)


def flip_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Opaque along the axes that are turned round."""
    over = ints(attrs["axes"])
    names = [name + "!" * (j in over) for j, name in enumerate(axes(types[0].rank))]
    return written(names, names)


def cumsum_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Opaque along the axis whose entries are added up."""
    wide("cumsum", types[0])
    names = axes(types[0].rank)
    names[ints([attrs["axis"]])[0]] += "!"
    return written(names, names)


def _tile(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (np.tile(x[0], ints(a["repeats"])),)


def _repeat(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    times, axis = ints((a["repeats"], a["axis"]))
    return (np.repeat(x[0], times, axis=axis),)


def _flip(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (np.flip(x[0], ints(a["axes"])),)


def _cumsum(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (axis,) = ints([a["axis"]])
    out = np.array(np.moveaxis(x[0], axis, 0))
    for j in range(1, len(out)):
        out[j] = k.add(out[j - 1], out[j])
    return (np.moveaxis(out, 0, axis),)


TILE = Op(
    name="tile",
    doc="Copies of the whole tensor side by side: how many along each axis of the result.",
    signature=tile_signature,
    attrs=(Attr("repeats", Kind.INTS, least=1, doc="one number an axis of the result"),),
    reference=_tile,
    samples=(
        Sample((_t(2, 3, 4),), {"repeats": (1, 2, 1)}),
        Sample((_t(2, 3, 4, 5),), {"repeats": (1, 1, 3, 2)}),
        Sample(
            (
                _t(
                    3,
                ),
            ),
            {"repeats": (2, 1, 2)},
        ),
    ),
)

REPEAT_INTERLEAVE = Op(
    name="repeat_interleave",
    doc="Each entry of an axis `repeats` times, one copy beside the other.",
    signature=repeat_signature,
    attrs=(Attr("repeats", Kind.INT, least=1), Attr("axis", Kind.AXIS, 1)),
    reference=_repeat,
    samples=(
        Sample((_t(2, 3, 4),), {"repeats": 2}),
        Sample((_t(2, 3, 4, 5),), {"repeats": 3, "axis": -1}),
    ),
)

FLIP = Op(
    name="flip",
    doc="The entries of axes from the last to the first.",
    signature=flip_signature,
    attrs=(Attr("axes", Kind.AXES),),
    reference=_flip,
    samples=(
        Sample((_t(2, 3, 4),), {"axes": 1}),
        Sample((_t(2, 3, 4, 5),), {"axes": (2, -1)}),
    ),
)

CUMSUM = Op(
    name="cumsum",
    doc="The sum of the entries of an axis up to each of them.",
    signature=cumsum_signature,
    attrs=(Attr("axis", Kind.AXIS),),
    reference=_cumsum,
    samples=(
        Sample((_t(2, 3, 4),), {"axis": 1}),
        Sample((_t(2, 3, 4, 5),), {"axis": -1}),
        Sample((TensorType("i64", (2, 5)),), {"axis": 1}),
    ),
)

OPS = (TILE, REPEAT_INTERLEAVE, FLIP, CUMSUM)
