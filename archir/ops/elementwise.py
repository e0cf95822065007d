"""Elementwise arithmetic of tensors, what is left out at random in training, and nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np

from archir.ir.dims import Dim, Size
from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.functions import fractional
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Kind, Law, Mode, Op, Reference, Sample, Signer


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def broadcast_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Operands aligned at their last axis; an axis of extent 1 stretches."""
    rank = max(t.rank for t in types)
    wide = [any(t.rank >= rank - j and t.shape[j - rank] != 1 for t in types) for j in range(rank)]
    parts = []
    for number, type_ in enumerate(types, 1):
        first = rank - type_.rank
        axes = [
            "1" if wide[first + j] and size == 1 else f"a{first + j}"
            for j, size in enumerate(type_.shape)
        ]
        parts.append(f"x{number}[{', '.join(axes)}]")
    return f"{' '.join(parts)} -> [{', '.join(f'a{j}' for j in range(rank))}]"


def _quotient_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    # Dividing whole numbers means one thing in torch and another in ONNX.
    whole = next((t for t in types if t.dtype in ("i64", "i32", "bool")), None)
    if whole is not None:
        raise OpError("A110", f"`div` divides numbers that have fractions, got {whole}")
    return broadcast_signature(attrs, types)


def _fractional_signature(op: str) -> Signer:
    def signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
        fractional(op, types)
        return broadcast_signature(attrs, types)

    return signature


def _folded(operation: Callable[[Arithmetic], Callable[[Array, Array], Array]]) -> Reference:
    def reference(
        k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
    ) -> tuple[Array, ...]:
        return (reduce(operation(k), x),)

    return reference


def _addcmul(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    value = a["value"]
    assert isinstance(value, float)
    product = k.multiply(x[1], x[2])
    return (k.add(x[0], product if value == 1 else k.multiply(product, k.number(value))),)


def _power(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    base, exponent = x
    if k.name.startswith("float"):
        return (np.asarray(np.power(base, exponent)),)
    return (k.exp(k.multiply(exponent, k.function("log", base, np.log))),)


def _random(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    if mode == "train" and a["p"] != 0:
        raise ValueError("dropout that is active has no reference value")
    return (x[0],)


def _depth_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    if attrs["mode"] not in ("row", "batch"):
        raise OpError("A114", "`mode` of `stochastic_depth` is row or batch", attr="mode")
    return "x[...] -> [...]"


def _null_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    if attrs["stride"] == 1:
        return "x[...] -> [...]"
    if types[0].rank < 3:
        raise OpError(
            "A110",
            f"`null` with a stride needs spatial axes, its input has rank {types[0].rank}",
            attr="stride",
        )
    return "x[n, c, *s] -> [n, c, *s']"


def _subsampled(attrs: Attrs, stars: Mapping[str, tuple[Size, ...]]) -> dict[str, tuple[Size, ...]]:
    """Every `stride`-th entry from the first on: (s - 1) // stride + 1."""
    if "s" not in stars:
        return {}
    stride = attrs["stride"]
    assert isinstance(stride, int)
    out: list[Size] = []
    for s in stars["s"]:
        if isinstance(s, Dim):
            raise OpError(
                "A111",
                f"every {stride}-th place of a symbolic extent {s} has no closed form",
                hint="give the axis a number",
            )
        out.append((s - 1) // stride + 1)
    return {"s'": tuple(out)}


def _null(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    sizes = _subsampled(a, {"s": x[0].shape[2:]})["s'"]
    return (np.full((*x[0].shape[:2], *sizes), k.number(0), x[0].dtype),)


ADD = Op(
    name="add",
    doc="The sum of two or more tensors; an axis of extent 1 stretches.",
    signature=broadcast_signature,
    operands=(2, None),
    reference=_folded(lambda k: k.add),
    laws=frozenset({Law.COMMUTATIVE}),
    samples=(
        Sample((_t(2, 3, 4, 5), _t(2, 3, 4, 5))),
        Sample((_t(2, 3), _t(2, 3), _t(2, 3))),
        Sample((_t(2, 3, 4, 5), _t(3, 1, 1))),
    ),
)

SUB = Op(
    name="sub",
    doc="The difference of two tensors; an axis of extent 1 stretches.",
    signature=broadcast_signature,
    operands=(2, 2),
    reference=_folded(lambda k: k.subtract),
    samples=(
        Sample((_t(2, 3, 4, 5), _t(2, 3, 4, 5))),
        Sample((_t(3, 1), _t(2, 3, 4))),
    ),
)

MUL = Op(
    name="mul",
    doc="The product of two or more tensors; an axis of extent 1 stretches.",
    signature=broadcast_signature,
    operands=(2, None),
    reference=_folded(lambda k: k.multiply),
    laws=frozenset({Law.COMMUTATIVE}),
    samples=(
        Sample((_t(2, 3, 4, 5), _t(2, 3, 1, 1))),
        Sample((_t(2, 3), _t(2, 3), _t(3))),
    ),
)

DIV = Op(
    name="div",
    doc="The quotient of two tensors; an axis of extent 1 stretches.",
    signature=_quotient_signature,
    operands=(2, 2),
    reference=_folded(lambda k: k.divide),
    divisors=(1,),
    samples=(
        Sample((_t(2, 3, 4, 5), _t(2, 3, 1, 1))),
        Sample((_t(3), _t(2, 3))),
    ),
)

POWER = Op(
    name="power",
    doc="The first tensor to the power of the second; an axis of extent 1 stretches.",
    signature=_fractional_signature("power"),
    operands=(2, 2),
    reference=_power,
    field="the exponential of y times the logarithm of x, which have stand-ins",
    divisors=(0,),
    samples=(
        Sample((_t(2, 3, 4, 5), _t(1)), positive=True),
        Sample((_t(3, 1), _t(2, 3, 4)), positive=True),
    ),
)

ADDCMUL = Op(
    name="addcmul",
    doc="x + value * y * z in one step, which rounds less; an axis of extent 1 stretches.",
    signature=_fractional_signature("addcmul"),
    operands=(3, 3),
    attrs=(Attr("value", Kind.FLOAT, 1.0),),
    reference=_addcmul,
    samples=(
        Sample((_t(2, 3, 4, 5), _t(2, 3, 4, 5), _t(2, 3, 4, 5))),
        Sample((_t(3, 1), _t(2, 3, 4), _t(4)), {"value": -0.5}),
    ),
)

DROPOUT = Op(
    name="dropout",
    doc="Zeroes entries with probability p in training, and scales the rest by 1/(1-p).",
    signature="x[...] -> [...]",
    attrs=(Attr("p", Kind.FLOAT, 0.5, least=0),),
    reference=_random,
    laws=frozenset({Law.ELEMENTWISE, Law.POSITIVELY_HOMOGENEOUS, Law.RANDOM_IN_TRAINING}),
    samples=(Sample((_t(2, 3, 4, 5),), {"p": 0.3}), Sample((_t(2, 3),))),
)

STOCHASTIC_DEPTH = Op(
    name="stochastic_depth",
    doc=(
        "Zeroes whole rows of the batch, or all of it, with probability p in training, and "
        "scales the rest by 1/(1-p)."
    ),
    signature=_depth_signature,
    attrs=(
        Attr("p", Kind.FLOAT, 0.1, least=0),
        Attr("mode", Kind.STRING, "row", doc="row or batch"),
    ),
    reference=_random,
    laws=frozenset({Law.ELEMENTWISE, Law.POSITIVELY_HOMOGENEOUS, Law.RANDOM_IN_TRAINING}),
    samples=(Sample((_t(2, 3, 4, 5),), {"p": 0.3}), Sample((_t(3, 2),), {"mode": "batch"})),
)

NULL = Op(
    name="null",
    doc="Zeros in the shape of the input, of which a stride leaves every `stride`-th place.",
    signature=_null_signature,
    attrs=(Attr("stride", Kind.INT, 1, least=1),),
    derive=_subsampled,
    reference=_null,
    samples=(
        Sample((_t(2, 3, 4, 5),)),
        Sample((_t(2, 3),)),
        Sample((_t(1, 3, 7, 6),), {"stride": 2}),
        Sample((_t(2, 3, 8),), {"stride": 3}),
    ),
)

OPS = (ADD, SUB, MUL, DIV, POWER, ADDCMUL, DROPOUT, STOCHASTIC_DEPTH, NULL)
