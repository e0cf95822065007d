"""Comparisons of tensors, what is true and false, and the choice between two tensors.

True is the number 1 and false 0. What a field has in place of an order: a is less than b where
b - a is a square other than 0. A number that is neither 0 nor 1 is true where it is positive, in
that sense, so that both are met where numbers are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.elementwise import broadcast_signature
from archir.ops.functions import choose, positive, told
from archir.ops.infer import OpError
from archir.ops.record import Attrs, Law, Mode, Op, Reference, Sample, Signer

_BY_SQUARES = "a square other than 0 stands in for a positive number"


def _t(*shape: int, dtype: str = "f32") -> TensorType:
    return TensorType(dtype, shape)


def _truth(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    return "bool"


def _compared(op: str, *, order: bool) -> Signer:
    def signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
        if types[0].dtype != types[1].dtype:
            shapes = " and ".join(map(str, types))
            raise OpError("A110", f"`{op}` compares tensors of different element types: {shapes}")
        if order and types[0].dtype == "bool":
            raise OpError("A110", f"`{op}` compares numbers, got {types[0]} and {types[1]}")
        return broadcast_signature(attrs, types)

    return signature


def _logical(op: str) -> Signer:
    def signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
        other = next((t for t in types if t.dtype != "bool"), None)
        if other is not None:
            message = f"`{op}` reads what is true or false, got {other}"
            raise OpError("A110", message, '`cast("bool")` makes such a tensor')
        return broadcast_signature(attrs, types)

    return signature


def _where_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    condition, one, other = types
    if condition.dtype != "bool":
        message = f"`where` chooses by a tensor of true and false, got {condition}"
        raise OpError("A110", message, "a comparison makes one, such as `less(x, y)`")
    if one.dtype != other.dtype:
        message = f"`where` chooses between tensors of different element types: {one} and {other}"
        raise OpError("A110", message)
    return broadcast_signature(attrs, types)


def _folded(operation: Callable[[Arithmetic, Array, Array], Array]) -> Reference:
    def reference(
        k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
    ) -> tuple[Array, ...]:
        return (reduce(lambda one, other: operation(k, one, other), x),)

    return reference


def _mask(compare: Callable[[Arithmetic, Array, Array], Array]) -> Reference:
    return _folded(lambda k, a, b: told(k, np.asarray(compare(k, a, b), np.bool_)))


def _less(k: Arithmetic, a: Array, b: Array) -> Array:
    if k.name.startswith("float"):
        return np.asarray(a < b)
    return positive(k, k.subtract(b, a))


def _maximum(k: Arithmetic, a: Array, b: Array) -> Array:
    if k.name.startswith("float"):
        return np.asarray(np.maximum(a, b))
    return k.add(a, k.relu(k.subtract(b, a)))


def _minimum(k: Arithmetic, a: Array, b: Array) -> Array:
    if k.name.startswith("float"):
        return np.asarray(np.minimum(a, b))
    return k.subtract(a, k.relu(k.subtract(a, b)))


def _where(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (choose(k, positive(k, x[0]), x[1], x[2]),)


def _not(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (told(k, ~positive(k, x[0])),)


_PAIRS = (
    Sample((_t(2, 3, 4, 5), _t(2, 3, 4, 5))),
    Sample((_t(2, 3, 4, 5), _t(3, 1, 1))),
    Sample((_t(2, 3), _t())),
)
_WHOLE = (
    Sample((_t(4, 3, 5, dtype="i64"), _t(4, 3, 5, dtype="i64"))),
    Sample((_t(4, 9, dtype="i64"), _t(9, dtype="i64"))),
)
_TRUTHS = (
    Sample((_t(4, 3, 5, dtype="bool"), _t(4, 3, 5, dtype="bool"))),
    Sample((_t(4, 9, dtype="bool"), _t(9, dtype="bool"))),
)


def _comparison(
    name: str,
    doc: str,
    compare: Callable[[Arithmetic, Array, Array], Array],
    *,
    order: bool = True,
) -> Op:
    return Op(
        name=name,
        doc=doc,
        signature=_compared(name, order=order),
        operands=(2, 2),
        reference=_mask(compare),
        result_dtype=_truth,
        laws=frozenset() if order else frozenset({Law.COMMUTATIVE}),
        field=_BY_SQUARES if order else "",
        samples=(*_PAIRS, *_WHOLE) if order else (*_WHOLE, *_TRUTHS),
    )


def _pair(name: str, doc: str, operation: Callable[[Arithmetic, Array, Array], Array]) -> Op:
    return Op(
        name=name,
        doc=doc,
        signature=broadcast_signature,
        operands=(2, 2),
        reference=_folded(operation),
        laws=frozenset({Law.COMMUTATIVE}),
        field="relu stands in for the order",
        samples=(*_PAIRS, *_WHOLE),
    )


def _connective(name: str, doc: str, connect: Callable[[Array, Array], Array]) -> Op:
    return Op(
        name=name,
        doc=doc,
        signature=_logical(name),
        operands=(2, 2),
        reference=_mask(lambda k, a, b: connect(positive(k, a), positive(k, b))),
        result_dtype=_truth,
        laws=frozenset({Law.COMMUTATIVE}),
        samples=_TRUTHS,
    )


MINIMUM = _pair(
    "minimum", "The smaller entry of two tensors; an axis of extent 1 stretches.", _minimum
)
MAXIMUM = _pair(
    "maximum", "The larger entry of two tensors; an axis of extent 1 stretches.", _maximum
)
EQUAL = _comparison("equal", "Whether entries are equal.", lambda k, a, b: a == b, order=False)
NOT_EQUAL = _comparison(
    "not_equal", "Whether entries are not equal.", lambda k, a, b: a != b, order=False
)
LESS = _comparison("less", "Whether the entries of the first are below the second's.", _less)
GREATER = _comparison(
    "greater",
    "Whether the entries of the first are above the second's.",
    lambda k, a, b: _less(k, b, a),
)
LESS_EQUAL = _comparison(
    "less_equal",
    "Whether the entries of the first are below the second's or equal to them.",
    lambda k, a, b: _less(k, a, b) | np.asarray(a == b, np.bool_),
)
GREATER_EQUAL = _comparison(
    "greater_equal",
    "Whether the entries of the first are above the second's or equal to them.",
    lambda k, a, b: _less(k, b, a) | np.asarray(a == b, np.bool_),
)
LOGICAL_AND = _connective("logical_and", "Whether both entries are true.", np.logical_and)
LOGICAL_OR = _connective("logical_or", "Whether one entry at least is true.", np.logical_or)
LOGICAL_XOR = _connective("logical_xor", "Whether one entry alone is true.", np.logical_xor)
LOGICAL_NOT = Op(
    name="logical_not",
    doc="Whether an entry is false.",
    signature=_logical("logical_not"),
    reference=_not,
    result_dtype=_truth,
    laws=frozenset({Law.ELEMENTWISE}),
    samples=(Sample((_t(4, 3, 5, dtype="bool"),)), Sample((_t(9, dtype="bool"),))),
)
WHERE = Op(
    name="where",
    doc="The second tensor's entries where the first is true, else the third's; axes stretch.",
    signature=_where_signature,
    operands=(3, 3),
    reference=_where,
    result_dtype=lambda attrs, types: types[1].dtype,
    samples=(
        Sample((_t(2, 3, 4, 5, dtype="bool"), _t(2, 3, 4, 5), _t(2, 3, 4, 5))),
        Sample((_t(4, 5, dtype="bool"), _t(), _t(2, 3, 4, 5))),
        Sample((_t(2, 3, 1, 1, dtype="bool"), _t(2, 3, 4, 5), _t(3, 1, 1))),
    ),
)

OPS = (
    *(MINIMUM, MAXIMUM, EQUAL, NOT_EQUAL, LESS, LESS_EQUAL, GREATER, GREATER_EQUAL),
    *(LOGICAL_AND, LOGICAL_OR, LOGICAL_XOR, LOGICAL_NOT, WHERE),
)
