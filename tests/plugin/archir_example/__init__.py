"""A ReLU with a slope below 0, for archir."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.record import Attr, Attrs, Kind, Law, Mode, Op, Sample


def _sloped(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    slope = a["slope"]
    assert isinstance(slope, float)
    negative = k.relu(k.subtract(k.number(0), x[0]))
    return (k.subtract(k.relu(x[0]), k.multiply(negative, k.number(slope))),)


SLOPED = Op(
    name="sloped",
    doc="x where it is positive, else slope * x.",
    signature="x[...] -> [...]",
    attrs=(Attr("slope", Kind.FLOAT, 0.01),),
    reference=_sloped,
    laws=frozenset({Law.ELEMENTWISE, Law.POSITIVELY_HOMOGENEOUS}),
    samples=(Sample((TensorType("f32", (2, 3, 4)),)), Sample((TensorType("f32", (5,)),))),
)

OPS = (SLOPED,)
