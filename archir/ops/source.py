"""Operators without operands: inputs, constants, free parameters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Derived, Kind, Mode, Op, Param, Sample


def _dtype(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    return str(attrs["dtype"])


def constant_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The shape is that of the nested lists."""
    return f"-> [{', '.join(map(str, np.shape(attrs['value'])))}]"  # type: ignore[arg-type]


def _parameter_dtype(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    # What is trained is part of the state. Said here: laws need a signature that is the same for
    # all uses.
    if not attrs["persistent"] and not attrs["buffer"]:
        message = "a `parameter` that is not persistent is a buffer: `buffer` cannot be false"
        raise OpError("A114", message, attr="buffer")
    return _dtype(attrs, types)


def _is_buffer(attrs: Attrs, types: tuple[TensorType, ...]) -> AttrValue:
    return not attrs["persistent"]


def _input(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    raise ValueError("an input is fed, not computed")


def _constant(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (k.array(a["value"]),)  # type: ignore[arg-type]


def _parameter(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (p["value"],)


INPUT = Op(
    name="input",
    doc="An input of the network; its type is stated, never inferred.",
    signature="-> []",
    operands=(0, 0),
    reference=_input,
    samples=(),
)

CONSTANT = Op(
    name="constant",
    doc="A constant: a number, or nested lists of numbers.",
    signature=constant_signature,
    operands=(0, 0),
    attrs=(Attr("value", Kind.NUMBERS), Attr("dtype", Kind.DTYPE, "f32")),
    reference=_constant,
    result_dtype=_dtype,
    samples=(Sample((), {"value": 0.5}), Sample((), {"value": ((1.0, 2.0, 3.0), (4.0, 5.5, 6.0))})),
)

PARAMETER = Op(
    name="parameter",
    doc="A tensor of the network's own that is not a layer's: trained, or a buffer.",
    signature="value[*s] -> [*s]",
    operands=(0, 0),
    attrs=(
        Attr("shape", Kind.INTS, least=1),
        Attr("dtype", Kind.DTYPE, "f32"),
        Attr("init", Kind.FLOAT, 0.0, doc="the number it is filled with at first"),
        Attr("persistent", Kind.BOOL, default=True, doc="false: a constant, in no state_dict"),
        Attr("buffer", Kind.BOOL, Derived(_is_buffer)),
    ),
    params=(Param("value", "fill"),),
    equations={"*s": "shape"},
    reference=_parameter,
    result_dtype=_parameter_dtype,
    samples=(
        Sample((), {"shape": (3, 1, 1)}),
        Sample((), {"shape": (2, 5)}),
        Sample((), {"shape": (4, 3), "persistent": False}),
    ),
)

OPS = (INPUT, CONSTANT, PARAMETER)
