"""Operators that move entries without computing: concat, split, flatten."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.record import Attr, Attrs, Kind, Mode, Op, Sample
from archir.ops.window import ints


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def concat_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The joined axis is the sum of the operands' axes."""
    rank, axis = types[0].rank, attrs["axis"]
    parts = []
    for number in range(len(types)):
        names = [f"c{number}" if j == axis else f"a{j}" for j in range(rank)]
        parts.append(f"x{number}[{', '.join(names)}]")
    joined = "(" + " + ".join(f"c{number}" for number in range(len(types))) + ")"
    result = ", ".join(joined if j == axis else f"a{j}" for j in range(rank))
    return f"{' '.join(parts)} -> [{result}]"


def split_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The cut axis is the sum of the results' axes."""
    rank, axis = types[0].rank, attrs["axis"]
    sizes = attrs["sizes"]
    assert isinstance(sizes, tuple)
    joined = "(" + " + ".join(f"c{number}" for number in range(len(sizes))) + ")"
    source = ", ".join(joined if j == axis else f"a{j}" for j in range(rank))
    results = ", ".join(
        "[" + ", ".join(f"c{number}" if j == axis else f"a{j}" for j in range(rank)) + "]"
        for number in range(len(sizes))
    )
    return f"x[{source}] -> {results}"


def flatten_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Axes from `start` on become one, the first of them slowest."""
    rank, start = types[0].rank, attrs["start"]
    assert isinstance(start, int)
    names = [f"a{j}" for j in range(rank)]
    result = [*names[:start], f"({' '.join(names[start:])})"]
    return f"x[{', '.join(names)}] -> [{', '.join(result)}]"


def _concat(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (axis,) = ints([a["axis"]])
    return (np.concatenate(x, axis=axis),)


def _split(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (axis,) = ints([a["axis"]])
    cuts = np.cumsum(ints(a["sizes"]))[:-1]
    return tuple(np.split(x[0], cuts, axis=axis))


def _flatten(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (start,) = ints([a["start"]])
    return (x[0].reshape(*x[0].shape[:start], -1),)


CONCAT = Op(
    name="concat",
    doc="Joins tensors along an axis.",
    signature=concat_signature,
    operands=(1, None),
    attrs=(Attr("axis", Kind.AXIS, 1),),
    reference=_concat,
    samples=(
        Sample((_t(2, 3, 4, 5), _t(2, 1, 4, 5), _t(2, 2, 4, 5))),
        Sample((_t(2, 3), _t(4, 3)), {"axis": 0}),
    ),
)

SPLIT = Op(
    name="split",
    doc="Cuts a tensor along an axis into parts of given sizes; one result a part.",
    signature=split_signature,
    attrs=(Attr("sizes", Kind.INTS, least=1), Attr("axis", Kind.AXIS, 1)),
    equations={"*c": "sizes"},
    reference=_split,
    samples=(
        Sample((_t(2, 6, 3, 4),), {"sizes": (1, 3, 2)}),
        Sample((_t(2, 3, 5),), {"sizes": (4, 1), "axis": -1}),
    ),
)

FLATTEN = Op(
    name="flatten",
    doc="Makes the axes from `start` on one.",
    signature=flatten_signature,
    attrs=(Attr("start", Kind.AXIS, 1),),
    reference=_flatten,
    samples=(Sample((_t(2, 3, 4, 5),)), Sample((_t(2, 3, 4),), {"start": 1})),
)

OPS = (CONCAT, SPLIT, FLATTEN)
