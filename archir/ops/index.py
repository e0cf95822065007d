"""Operators that take entries out of a tensor or put some beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from archir.ir.dims import Dim
from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array, Residues, index
from archir.ops.infer import OpError
from archir.ops.layout import axes, written
from archir.ops.record import Attr, Attrs, Kind, Mode, Op, Param, Sample
from archir.ops.window import ints

PAD_MODES = ("constant", "reflect", "replicate", "circular")


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def _i(*shape: int) -> TensorType:
    return TensorType("i64", shape)


def first_dtype(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The element type of an operator whose further operands have types of their own."""
    return types[0].dtype


def _cut(op: str, attrs: Attrs, type_: TensorType, last: int) -> list[str]:
    """Names for the operand's axes, once the axis that is cut reaches to a last entry."""
    (axis,) = ints([attrs["axis"]])
    size = type_.shape[axis]
    if isinstance(size, Dim):
        message = f"`{op}` cuts axis {axis}, whose extent is the symbol {size}: {type_}"
        raise OpError("A111", message, "give the axis a number")
    if last >= size:
        message = f"`{op}` takes entry {last} of axis {axis}, which has {size}: {type_}"
        raise OpError("A110", message)
    return axes(type_.rank)


def chunk_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The cut axis is a number of times the axis of each result."""
    chunks, axis = ints((attrs["chunks"], attrs["axis"]))
    size = types[0].shape[axis]
    if isinstance(size, int) and size % chunks:
        message = f"`chunk` cannot cut an extent of {size} into {chunks} equal parts: {types[0]}"
        raise OpError("A110", message, f"`split` takes unequal ones: sizes that add up to {size}")
    before, after = axes(types[0].rank), axes(types[0].rank)
    before[axis] = f"({chunks} {after[axis]})"
    return written(before, *[after] * chunks)


def slice_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """What is taken stands between two runs that are not read; with a step, it is opaque."""
    start, length, axis, step = ints(attrs[n] for n in ("start", "length", "axis", "step"))
    before = _cut("slice", attrs, types[0], start + (length - 1) * step)
    after = list(before)
    before[axis], after[axis] = ("(_b + c + _e)", "c") if step == 1 else ("a!", "c")
    return written(before, after)


def select_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """One entry stands between two runs that are not read."""
    at, axis = ints((attrs["index"], attrs["axis"]))
    before = _cut("select", attrs, types[0], at)
    after = before[:axis] + before[axis + 1 :]
    before[axis] = "(_b + 1 + _e)"
    return written(before, after)


def expand_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Of the second operand one axis counts, and of that its extent alone."""
    x, like = types
    (axis,) = ints([attrs["axis"]])
    if x.shape[axis] != 1 or like.rank <= axis:
        message = f"`expand` stretches axis {axis} of extent 1 to another tensor's: {x} and {like}"
        raise OpError("A110", message)
    before, after = axes(x.rank), axes(x.rank)
    before[axis] = "1"
    others = [after[axis] if j == axis else f"_b{j}" for j in range(like.rank)]
    return f"x[{', '.join(before)}] like[{', '.join(others)}] -> [{', '.join(after)}]"


def pad_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """A padded axis is the sum of what stands before, within and after."""
    before, after = ints(attrs["before"]), ints(attrs["after"])
    rank, mode = types[0].rank, attrs["mode"]
    if mode not in PAD_MODES:
        raise OpError("A114", f"`mode` of `pad` is one of {', '.join(PAD_MODES)}", attr="mode")
    if len(before) != rank or len(after) != rank:
        message = f"`pad` needs {rank} entries in `before` and `after`, one an axis of {types[0]}"
        raise OpError("A114", message, attr="before" if len(before) != rank else "after")
    old, new = [f"c{j}" for j in range(rank)], []
    for j, size in enumerate(types[0].shape):
        width = max(before[j], after[j])
        most = {"reflect": -1, "circular": 0}.get(str(mode))
        if width and isinstance(size, int) and most is not None and width > size + most:
            message = f"`pad` by {width} is more than mode `{mode}` has there: {types[0]}"
            raise OpError("A110", message)
        new.append(f"(b{j} + c{j} + e{j})" if width else f"c{j}")
        old[j] += "!" * bool(width and mode != "constant")
    return written(old, new)


def roll_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Opaque along the axis that is rolled."""
    names = axes(types[0].rank)
    names[ints([attrs["axis"]])[0]] += "!"
    return written(names, names)


def check_index(op: str, type_: TensorType) -> None:
    """Refuse an index of another element type than i64 or i32.

    Raises:
        OpError: A110.
    """
    if type_.dtype not in ("i64", "i32"):
        raise OpError("A110", f"`{op}` reads an index of i64 or i32, got {type_}")


def gather_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The index's axes stand in the place of the axis that it points into."""
    check_index("gather", types[1])
    (axis,) = ints([attrs["axis"]])
    names = axes(types[0].rank)
    places = [f"i{j}" for j in range(types[1].rank)]
    after = [*names[:axis], *places, *names[axis + 1 :]]
    names[axis] += "!"
    return f"x[{', '.join(names)}] index[{', '.join(places)}] -> [{', '.join(after)}]"


def embedding_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """A row of the table for each entry."""
    check_index("embedding", types[0])
    return "x[...] weight[v!, d] -> [..., d]"


def whole(k: Arithmetic, x: Array, extent: int) -> npt.NDArray[np.int64]:
    """An index as whole numbers; where numbers are exact, modulo the extent."""
    if k.name.startswith("float"):
        return np.rint(x).astype(np.int64)
    if isinstance(k, Residues):
        return index(x) % extent
    floors = [int(value // 1) % extent for value in x.reshape(-1).tolist()]
    return np.array(floors, np.int64).reshape(x.shape)


def _chunk(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    chunks, axis = ints((a["chunks"], a["axis"]))
    return tuple(np.split(x[0], chunks, axis=axis))


def _slice(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    start, length, axis, step = ints(a[n] for n in ("start", "length", "axis", "step"))
    taken = slice(start, start + (length - 1) * step + 1, step)
    return (x[0][(*[slice(None)] * axis, taken)],)


def _select(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    at, axis = ints((a["index"], a["axis"]))
    return (x[0].take(at, axis=axis),)


def _expand(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (axis,) = ints([a["axis"]])
    return (np.repeat(x[0], x[1].shape[axis], axis=axis),)


def _pad(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    widths = list(zip(ints(a["before"]), ints(a["after"]), strict=True))
    if a["mode"] == "constant":
        value: Any = a["value"]
        return (np.pad(x[0], widths, constant_values=k.number(value)),)
    out = x[0]
    for axis, (before, after) in enumerate(widths):
        out = out.take(pad_sources(str(a["mode"]), out.shape[axis], before, after), axis=axis)
    return (out,)


def pad_sources(mode: str, size: int, before: int, after: int) -> npt.NDArray[np.int64]:
    """Which entry of an axis stands at each place of the padded one (modes other than constant)."""
    style: Any = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    return np.asarray(np.pad(np.arange(size), (before, after), mode=style))


def _roll(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    shift, axis = ints((a["shift"], a["axis"]))
    return (np.roll(x[0], shift, axis=axis),)


def _gather(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (axis,) = ints([a["axis"]])
    return (x[0].take(whole(k, x[1], x[0].shape[axis]), axis=axis),)


def _embedding(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (p["weight"].take(whole(k, x[0], len(p["weight"])), axis=0),)


CHUNK = Op(
    name="chunk",
    doc="Cuts a tensor along an axis into equal parts; one result a part.",
    signature=chunk_signature,
    attrs=(Attr("chunks", Kind.INT, least=1), Attr("axis", Kind.AXIS, 1)),
    reference=_chunk,
    samples=(
        Sample((_t(2, 6, 3, 4),), {"chunks": 3}),
        Sample((_t(2, 3, 8),), {"chunks": 2, "axis": -1}),
    ),
)

SLICE = Op(
    name="slice",
    doc="`length` entries of an axis from `start` on, every `step`-th.",
    signature=slice_signature,
    attrs=(
        Attr("start", Kind.INT, least=0),
        Attr("length", Kind.INT, least=1),
        Attr("axis", Kind.AXIS, 1),
        Attr("step", Kind.INT, 1, least=1),
    ),
    equations={"_b": "start", "c": "length"},
    reference=_slice,
    samples=(
        Sample((_t(2, 7, 3, 4),), {"start": 1, "length": 4}),
        Sample((_t(2, 3, 8),), {"start": 1, "length": 3, "axis": -1, "step": 3}),
        Sample((_t(2, 3, 5),), {"start": 0, "length": 2, "axis": 2}),
    ),
)

SELECT = Op(
    name="select",
    doc="The entries at one place of an axis, which goes.",
    signature=select_signature,
    attrs=(Attr("index", Kind.INT, least=0), Attr("axis", Kind.AXIS, 1)),
    equations={"_b": "index"},
    reference=_select,
    samples=(
        Sample((_t(2, 5, 3),), {"index": 0}),
        Sample((_t(2, 3, 4, 5),), {"index": 3, "axis": -1}),
    ),
)

EXPAND = Op(
    name="expand",
    doc="Repeats x along an axis of extent 1, as often as the second tensor is long there.",
    signature=expand_signature,
    operands=(2, 2),
    attrs=(Attr("axis", Kind.AXIS, 0),),
    reference=_expand,
    result_dtype=first_dtype,
    samples=(
        Sample((_t(1, 3, 4), _t(2, 5, 6, 7))),
        Sample((_t(1, 4), _t(3, 5))),
        Sample((_t(2, 1, 4), _t(2, 5)), {"axis": 1}),
    ),
)

PAD = Op(
    name="pad",
    doc="Puts entries before and after each axis: a constant, or entries of the tensor again.",
    signature=pad_signature,
    attrs=(
        Attr("before", Kind.INTS, least=0, doc="one number an axis"),
        Attr("after", Kind.INTS, least=0, doc="one number an axis"),
        Attr("mode", Kind.STRING, "constant", doc=", ".join(PAD_MODES)),
        Attr("value", Kind.FLOAT, 0.0, unbounded=True),
    ),
    equations={"*b": "before", "*e": "after"},
    reference=_pad,
    samples=(
        Sample((_t(2, 3, 4, 5),), {"before": (0, 2, 1, 0), "after": (0, 1, 0, 3), "value": 0.5}),
        Sample(
            (_t(2, 3, 4, 5),),
            {"before": (0, 0, 1, 2), "after": (0, 0, 3, 0), "mode": "reflect"},
        ),
        Sample((_t(2, 3, 5),), {"before": (0, 0, 2), "after": (0, 0, 7), "mode": "replicate"}),
        Sample(
            (_t(2, 3, 4, 5),),
            {"before": (0, 1, 3, 0), "after": (0, 0, 2, 4), "mode": "circular"},
        ),
        Sample((_t(2, 4),), {"before": (0, 3), "after": (0, 1), "mode": "reflect"}),
    ),
)

ROLL = Op(
    name="roll",
    doc="Moves the entries of an axis on by `shift`; what leaves at the end comes back in front.",
    signature=roll_signature,
    attrs=(Attr("shift", Kind.INT), Attr("axis", Kind.AXIS, 1)),
    reference=_roll,
    samples=(
        Sample((_t(2, 5, 3, 4),), {"shift": 2}),
        Sample((_t(2, 3, 7),), {"shift": -3, "axis": -1}),
        Sample((_t(2, 3),), {"shift": 10}),
    ),
)

GATHER = Op(
    name="gather",
    doc="The entries of an axis at the places that an index holds (NumPy's take).",
    signature=gather_signature,
    operands=(2, 2),
    attrs=(Attr("axis", Kind.AXIS, 0),),
    reference=_gather,
    result_dtype=first_dtype,
    field="an index is taken modulo the extent",
    samples=(
        Sample((_t(5, 3), _i(2, 4))),
        Sample((_t(2, 6, 3), _i(4)), {"axis": 1}),
        Sample((_t(5, 2, 6), TensorType("i32", (3, 2))), {"axis": -1}),
    ),
)

EMBEDDING = Op(
    name="embedding",
    doc="The row of a table for each whole number of the input.",
    signature=embedding_signature,
    attrs=(Attr("num", Kind.INT, least=1), Attr("dim", Kind.INT, least=1)),
    params=(Param("weight", "normal"),),
    equations={"v": "num", "d": "dim"},
    reference=_embedding,
    result_dtype=lambda attrs, types: "f32",
    field="an index is taken modulo the number of rows",
    samples=(
        Sample((_i(2, 5),), {"num": 7, "dim": 3}),
        Sample((_i(3),), {"num": 4, "dim": 2}),
        Sample((TensorType("i32", (2, 3, 4)),), {"num": 5, "dim": 2}),
    ),
)

OPS = (CHUNK, SLICE, SELECT, EXPAND, PAD, ROLL, GATHER, EMBEDDING)
