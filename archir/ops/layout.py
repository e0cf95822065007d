"""Operators that lay entries out anew: reshape, permute, and what is said with them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from archir.ir.types import TensorType
from archir.ops.align import AlignError, align
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError, stated_sizes
from archir.ops.record import Attr, Attrs, Kind, Law, Mode, Op, Sample
from archir.ops.window import ints


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def axes(rank: int) -> list[str]:
    """Names for the axes of a tensor: a0, a1, ..."""
    return [f"a{j}" for j in range(rank)]


def written(before: list[str], *after: list[str]) -> str:
    """The signature of an operator with one operand."""
    results = ["[" + ", ".join(names) + "]" for names in after]
    results = [f"[{', '.join(names)}]" for names in after]
    return f"x[{', '.join(before)}] -> {', '.join(results)}"


def reshape_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Old and new axes as products of their common factors."""
    new = stated_sizes(RESHAPE, attrs, types[0])
    try:
        return align(types[0].shape, new)
    except AlignError as reason:
        message = f"`reshape` of {types[0]} to {list(ints(attrs['shape']))}: {reason}"
        raise OpError("A111", message, "give the axis a number", "shape") from None


def permute_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The operand's axes in their new order."""
    rank, order = types[0].rank, ints(attrs["order"])
    if len(order) != rank:
        message = f"`order` of `permute` names {len(order)} of {rank} axes (input {types[0]})"
        raise OpError("A114", message, attr="order")
    return written(axes(rank), [f"a{j}" for j in order])


def transpose_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Two axes change places."""
    names = axes(types[0].rank)
    a, b = ints((attrs["a"], attrs["b"]))
    turned = list(names)
    turned[a], turned[b] = names[b], names[a]
    return written(names, turned)


def squeeze_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """An axis of extent 1 goes."""
    names, (axis,) = axes(types[0].rank), ints([attrs["axis"]])
    if types[0].shape[axis] != 1:
        message = f"`squeeze` takes axis {axis} away, whose extent is not 1: {types[0]}"
        raise OpError("A110", message, attr="axis")
    names[axis] = "1"
    return written(names, names[:axis] + names[axis + 1 :])


def place(attrs: Attrs, rank: int) -> int:
    """Where `unsqueeze` puts its axis into a tensor of a rank; negative counts from the end.

    Raises:
        OpError: the result has no such axis.
    """
    (axis,) = ints([attrs["axis"]])
    if not -rank - 1 <= axis <= rank:
        message = f"`axis` of `unsqueeze` is {axis}, its result has rank {rank + 1}"
        raise OpError("A114", message, attr="axis")
    return axis % (rank + 1)


def unsqueeze_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """An axis of extent 1 comes."""
    names, at = axes(types[0].rank), place(attrs, types[0].rank)
    return written(names, [*names[:at], "1", *names[at:]])


def _same(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (x[0],)


def _reshape(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    shape = [x[0].shape[j] if size == 0 else size for j, size in enumerate(ints(a["shape"]))]
    return (x[0].reshape(shape),)


def _permute(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (x[0].transpose(ints(a["order"])),)


def _transpose(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (x[0].swapaxes(*ints((a["a"], a["b"]))),)


def _squeeze(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (x[0].squeeze(ints([a["axis"]])),)


def _unsqueeze(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (np.expand_dims(x[0], place(a, x[0].ndim)),)


def _pixel_shuffle(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (r,) = ints([a["factor"]])
    n, channels, height, width = x[0].shape
    apart = x[0].reshape(n, channels // r**2, r, r, height, width)
    turned = apart.transpose(0, 1, 4, 2, 5, 3)
    return (turned.reshape(n, channels // r**2, height * r, width * r),)


RESHAPE = Op(
    name="reshape",
    doc="The same entries, row by row, in another shape: 0 is the input's size there, -1 the rest.",
    signature=reshape_signature,
    attrs=(Attr("shape", Kind.INTS, least=-1, doc="one size an axis of the result"),),
    stated="shape",
    reference=_reshape,
    samples=(
        Sample((_t(2, 6, 5, 7),), {"shape": (0, 2, 3, 5, 7)}),
        Sample((_t(2, 3, 4, 5),), {"shape": (0, -1, 5)}),
        Sample((_t(3, 4, 6),), {"shape": (-1, 6, 4)}),
        Sample((_t(3, 1, 5, 1),), {"shape": (0, 5, 1, 1)}),
        Sample((_t(2, 6, 4),), {"shape": (-1, 2, 12)}),
    ),
)

PERMUTE = Op(
    name="permute",
    doc="The axes in another order.",
    signature=permute_signature,
    attrs=(Attr("order", Kind.AXES, doc="the input's axes, in the result's order"),),
    reference=_permute,
    samples=(
        Sample((_t(2, 3, 4, 5),), {"order": (0, 2, 3, 1)}),
        Sample((_t(2, 3, 5),), {"order": (0, -1, 1)}),
    ),
)

TRANSPOSE = Op(
    name="transpose",
    doc="Two axes change places.",
    signature=transpose_signature,
    attrs=(Attr("a", Kind.AXIS), Attr("b", Kind.AXIS)),
    reference=_transpose,
    samples=(
        Sample((_t(2, 3, 4, 5),), {"a": 1, "b": 2}),
        Sample((_t(2, 3, 5),), {"a": -1, "b": 1}),
    ),
)

SQUEEZE = Op(
    name="squeeze",
    doc="Takes an axis of extent 1 away.",
    signature=squeeze_signature,
    attrs=(Attr("axis", Kind.AXIS),),
    reference=_squeeze,
    samples=(Sample((_t(2, 3, 1),), {"axis": -1}), Sample((_t(2, 1, 4, 5),), {"axis": 1})),
)

UNSQUEEZE = Op(
    name="unsqueeze",
    doc="Puts an axis of extent 1 at a place of the result.",
    signature=unsqueeze_signature,
    attrs=(Attr("axis", Kind.INT),),
    reference=_unsqueeze,
    samples=(Sample((_t(2, 3),), {"axis": -1}), Sample((_t(2, 4, 5),), {"axis": 1})),
)

PIXEL_SHUFFLE = Op(
    name="pixel_shuffle",
    doc="Spreads groups of factor * factor channels over a finer grid of pixels.",
    signature="x[n, (c r s), h, w] -> [n, c, (h r), (w s)]",
    attrs=(Attr("factor", Kind.INT, least=1),),
    equations={"r": "factor", "s": "factor"},
    reference=_pixel_shuffle,
    samples=(
        Sample((_t(2, 12, 3, 5),), {"factor": 2}),
        Sample((_t(1, 9, 2, 4),), {"factor": 3}),
    ),
)

CONTIGUOUS = Op(
    name="contiguous",
    doc="The same entries, row by row in memory: what reads them may round otherwise, no more.",
    signature="x[...] -> [...]",
    reference=_same,
    laws=frozenset({Law.ELEMENTWISE, Law.IDEMPOTENT, Law.POSITIVELY_HOMOGENEOUS}),
    samples=(Sample((_t(2, 3, 4, 5),)), Sample((_t(7),))),
)

OPS = (RESHAPE, PERMUTE, TRANSPOSE, SQUEEZE, UNSQUEEZE, PIXEL_SHUFFLE, CONTIGUOUS)
