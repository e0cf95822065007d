"""Elementwise operators: activations, sums, products, dropout; and softmax."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.record import Attr, Attrs, Kind, Law, Mode, Op, Sample


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


def _relu(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (k.relu(x[0]),)


def _add(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (reduce(k.add, x),)


def _mul(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (reduce(k.multiply, x),)


def _dropout(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    if mode == "train" and a["p"] != 0:
        raise ValueError("dropout that is active has no reference value")
    return (x[0],)


def softmax_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Opaque along the axis that is normalised, mapped along the others."""
    names = [f"a{j}" for j in range(types[0].rank)]
    marked = [n + "!" * (j == attrs["axis"]) for j, n in enumerate(names)]
    return f"x[{', '.join(marked)}] -> [{', '.join(marked)}]"


def _softmax(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    axis = a["axis"]
    assert isinstance(axis, int)
    values = x[0]
    if k.name.startswith("float"):
        values = k.subtract(values, values.max(axis=axis, keepdims=True))
    powers = k.exp(values)
    total = k.sum(powers, (axis,)).reshape(
        tuple(1 if j == axis else s for j, s in enumerate(powers.shape))
    )
    return (k.divide(powers, total),)


RELU = Op(
    name="relu",
    doc="max(x, 0).",
    signature="x[...] -> [...]",
    reference=_relu,
    laws=frozenset({Law.ELEMENTWISE, Law.IDEMPOTENT, Law.POSITIVELY_HOMOGENEOUS}),
    field="x where x is a square, else 0",
    samples=(
        Sample((_t(2, 3, 4, 5),)),
        Sample(
            (
                _t(
                    7,
                ),
            )
        ),
        Sample((_t(2, 3),)),
    ),
)

ADD = Op(
    name="add",
    doc="The sum of two or more tensors; an axis of extent 1 stretches.",
    signature=broadcast_signature,
    operands=(2, None),
    reference=_add,
    laws=frozenset({Law.COMMUTATIVE}),
    samples=(
        Sample((_t(2, 3, 4, 5), _t(2, 3, 4, 5))),
        Sample((_t(2, 3), _t(2, 3), _t(2, 3))),
        Sample((_t(2, 3, 4, 5), _t(3, 1, 1))),
    ),
)

MUL = Op(
    name="mul",
    doc="The product of two or more tensors; an axis of extent 1 stretches.",
    signature=broadcast_signature,
    operands=(2, None),
    reference=_mul,
    laws=frozenset({Law.COMMUTATIVE}),
    samples=(
        Sample((_t(2, 3, 4, 5), _t(2, 3, 1, 1))),
        Sample(
            (
                _t(2, 3),
                _t(2, 3),
                _t(
                    3,
                ),
            )
        ),
    ),
)

DROPOUT = Op(
    name="dropout",
    doc="Zeroes entries with probability p in training, and scales the rest by 1/(1-p).",
    signature="x[...] -> [...]",
    attrs=(Attr("p", Kind.FLOAT, 0.5, least=0),),
    reference=_dropout,
    laws=frozenset({Law.ELEMENTWISE, Law.POSITIVELY_HOMOGENEOUS, Law.RANDOM_IN_TRAINING}),
    samples=(Sample((_t(2, 3, 4, 5),), {"p": 0.3}), Sample((_t(2, 3),))),
)

SOFTMAX = Op(
    name="softmax",
    doc="exp(x) divided by its sum over an axis.",
    signature=softmax_signature,
    attrs=(Attr("axis", Kind.AXIS, -1),),
    reference=_softmax,
    field="the exponential is a fixed random function without zeros",
    samples=(Sample((_t(2, 5),)), Sample((_t(2, 3, 4),), {"axis": 1})),
)

OPS = (RELU, ADD, MUL, DROPOUT, SOFTMAX)
