"""Functions of single entries that are no activations of networks' layers, and changes of type.

Where numbers are exact a rounding is exact too; what is no rational number is some fixed function
(:mod:`archir.ops.arithmetic`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array, Rational
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Kind, Law, Mode, Op, Reference, Sample

FRACTIONAL = ("f32", "f16", "bf16", "f64")
"""Element types that have fractions."""
WHOLE = ("i64", "i32", "bool")
"""Element types that have none."""
MOST = 64
"""The largest whole exponent that is multiplied out where numbers are exact."""

_MAP = frozenset({Law.ELEMENTWISE})
_BY_TABLE = "a fixed random function of its entries"
_BY_SQUARES = "a square other than 0 stands in for a positive number"


def _t(*shape: int, dtype: str = "f32") -> TensorType:
    return TensorType(dtype, shape)


_SHAPES = (Sample((_t(2, 3, 4, 5),)), Sample((_t(3, 7),)))
_POSITIVE = tuple(Sample(s.inputs, positive=True) for s in _SHAPES)


def fractional(op: str, types: tuple[TensorType, ...]) -> None:
    """Refuse operands of whole numbers.

    Raises:
        OpError: A110.
    """
    whole = next((t for t in types if t.dtype in WHOLE), None)
    if whole is not None:
        message = f"`{op}` reads numbers that have fractions, got {whole}"
        raise OpError("A110", message, '`cast("f32")` makes such numbers')


def positive(k: Arithmetic, x: Array) -> Array:
    """Where an entry is above 0: true and false, as Python has them."""
    return np.asarray(k.relu(x) != 0, np.bool_)


def choose(k: Arithmetic, mask: Array, one: Array, other: Array) -> Array:
    """The entries of ``one`` where a mask is true, else those of ``other``."""
    found = np.where(mask, one, other)
    return np.asarray(found, object) if isinstance(k, Rational) else np.asarray(found)


def told(k: Arithmetic, mask: Array) -> Array:
    """True and false as the numbers 1 and 0."""
    return choose(k, mask, k.array(1), k.array(0))


def _single(compute: Callable[[Arithmetic, Array, Attrs], Array]) -> Reference:
    def reference(
        k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
    ) -> tuple[Array, ...]:
        return (compute(k, x[0], a),)

    return reference


def _function(
    name: str,
    doc: str,
    compute: Callable[[Arithmetic, Array, Attrs], Array],
    *,
    field: str = _BY_TABLE,
    attrs: tuple[Attr, ...] = (),
    samples: tuple[Sample, ...] = _SHAPES,
    poles: bool = False,
) -> Op:
    def signature(given: Attrs, types: tuple[TensorType, ...]) -> str:
        fractional(name, types)
        return "x[...] -> [...]"

    return Op(
        name=name,
        doc=doc,
        signature=signature,
        reference=_single(compute),
        attrs=attrs,
        laws=_MAP,
        field=field,
        samples=samples,
        divisors=(0,) if poles else (),
    )


def _named(name: str, doc: str, real: Callable[[Array], Array], **more: Any) -> Op:
    return _function(name, doc, lambda k, x, a: k.function(name, x, real), **more)


def _rounded(
    k: Arithmetic, name: str, x: Array, real: Callable[[Array], Array], exact: Any
) -> Array:
    if not isinstance(k, Rational):
        return k.function(name, x, real)
    return k.array(np.vectorize(exact, otypes=[object])(x)) if x.size else x


def _rounding(name: str, doc: str, real: Callable[[Array], Array], exact: Any) -> Op:
    return _function(name, doc, lambda k, x, a: _rounded(k, name, x, real, exact))


def _rsqrt(k: Arithmetic, x: Array, a: Attrs) -> Array:
    return k.divide(k.array(1), k.sqrt(x))


def _sign(k: Arithmetic, x: Array, a: Attrs) -> Array:
    below = positive(k, k.subtract(k.array(0), x))
    return k.subtract(told(k, positive(k, x)), told(k, below))


def _sign_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    if types[0].dtype == "bool":
        raise OpError("A110", f"`sign` reads numbers, got {types[0]}")
    return "x[...] -> [...]"


def _number(a: Attrs, name: str) -> float:
    value = a[name]
    assert isinstance(value, float)
    return value


def _pow_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    fractional("pow", types)
    if not math.isfinite(_number(attrs, "exponent")):
        raise OpError("A114", "`exponent` of `pow` is a finite number", attr="exponent")
    return "x[...] -> [...]"


def _pow(k: Arithmetic, x: Array, a: Attrs) -> Array:
    exponent = _number(a, "exponent")
    if k.name.startswith("float"):
        return np.asarray(np.power(x, k.number(exponent)))
    if exponent in (0.5, -0.5):
        root = k.sqrt(x)
        return root if exponent > 0 else k.divide(k.array(1), root)
    if not exponent.is_integer() or abs(exponent) > MOST:
        return k.function(f"pow({exponent})", x, lambda v: v**exponent)
    out = k.array(np.ones(x.shape, np.int64))
    for _ in range(abs(int(exponent))):
        out = k.multiply(out, x)
    return out if exponent >= 0 else k.divide(k.array(1), out)


def _poles_of_pow(attrs: Attrs) -> tuple[int, ...]:
    return (0,) if _number(attrs, "exponent") < 0 else ()


def _cast(k: Arithmetic, x: Array, a: Attrs) -> Array:
    # How much a shorter float rounds away is the backend's; here numbers are as exact as they are.
    if a["dtype"] == "bool":
        return told(k, np.asarray(x != 0, np.bool_))
    return _rounded(k, "trunc", x, np.trunc, math.trunc) if a["dtype"] in WHOLE else x


def _threshold(k: Arithmetic, x: Array, a: Attrs) -> Array:
    above = positive(k, k.subtract(x, k.number(_number(a, "threshold"))))
    return choose(k, above, x, k.array(_number(a, "value")))


def _hardshrink(k: Arithmetic, x: Array, a: Attrs) -> Array:
    width = k.number(_number(a, "width"))
    under = k.subtract(k.subtract(k.array(0), x), width)
    far = positive(k, k.subtract(x, width)) | positive(k, under)
    return choose(k, far, x, k.array(0))


def _softshrink(k: Arithmetic, x: Array, a: Attrs) -> Array:
    width = k.number(_number(a, "width"))
    under = k.subtract(k.subtract(k.array(0), x), width)
    return k.subtract(k.relu(k.subtract(x, width)), k.relu(under))


_erf = np.vectorize(math.erf, otypes=[np.float64])
_WIDTH = (Attr("width", Kind.FLOAT, 0.5, least=0),)
_WIDE = (_SHAPES[0], Sample((_t(3, 7),), {"width": 1.0}))

LOG = _named("log", "The natural logarithm.", np.log, samples=_POSITIVE, poles=True)
SIN = _named("sin", "The sine.", np.sin)
COS = _named("cos", "The cosine.", np.cos)
TAN = _named("tan", "The tangent.", np.tan)
ATAN = _named("atan", "The angle whose tangent x is.", np.arctan)
ERF = _named("erf", "The error function.", _erf)
FLOOR = _rounding("floor", "The largest whole number that is not above x.", np.floor, math.floor)
CEIL = _rounding("ceil", "The least whole number that is not below x.", np.ceil, math.ceil)
ROUND = _rounding("round", "The nearest whole number, of two the even one.", np.rint, round)
LOG_SIGMOID = _function(
    "log_sigmoid",
    "The logarithm of sigmoid: -log(1 + exp(-x)).",
    lambda k, x, a: k.function("log_sigmoid", x, lambda v: -np.logaddexp(0, -v)),
)
RECIPROCAL = _function(
    "reciprocal",
    "1 / x.",
    lambda k, x, a: k.divide(k.array(1), x),
    field="",
    poles=True,
)
RSQRT = _function(
    "rsqrt", "1 / sqrt(x).", _rsqrt, samples=_POSITIVE, field="the root has a stand-in", poles=True
)
SIGN = Op(
    name="sign",
    doc="1 where x is positive, -1 where it is negative, else 0.",
    signature=_sign_signature,
    reference=_single(_sign),
    laws=_MAP | {Law.IDEMPOTENT},
    field=_BY_SQUARES,
    samples=_SHAPES,
)
POW = Op(
    name="pow",
    doc="x to the power of a number.",
    signature=_pow_signature,
    attrs=(Attr("exponent", Kind.FLOAT),),
    reference=_single(_pow),
    laws=_MAP,
    field="where the exponent is no whole number, a fixed random function",
    divisors=_poles_of_pow,
    samples=(
        Sample((_t(2, 3, 4, 5),), {"exponent": 2.0}),
        Sample((_t(3, 7),), {"exponent": 0.75}, positive=True),
        Sample((_t(2, 3),), {"exponent": -3.0}, positive=True),
        Sample((_t(2, 3),), {"exponent": -0.5}, positive=True),
    ),
)
CAST = Op(
    name="cast",
    doc="The entries as numbers of another type: to whole ones towards 0, to bool false where 0.",
    signature="x[...] -> [...]",
    attrs=(Attr("dtype", Kind.DTYPE),),
    reference=_single(_cast),
    result_dtype=lambda attrs, types: str(attrs["dtype"]),
    laws=_MAP,
    field="cutting fractions off is a fixed random function",
    samples=(
        Sample((_t(2, 3, 4, 5),), {"dtype": "i64"}),
        Sample((_t(2, 3),), {"dtype": "f64"}),
        Sample((_t(2, 3),), {"dtype": "bool"}),
        Sample((_t(2, 3, dtype="i64"),), {"dtype": "f32"}),
        Sample((_t(3, 5, dtype="bool"),), {"dtype": "f32"}),
        Sample((_t(3, 5, dtype="i64"),), {"dtype": "i32"}),
    ),
)
THRESHOLD = _function(
    "threshold",
    "x where it is above a number, else another number.",
    _threshold,
    attrs=(Attr("threshold", Kind.FLOAT), Attr("value", Kind.FLOAT)),
    field=_BY_SQUARES,
    samples=(
        Sample((_t(2, 3, 4, 5),), {"threshold": 0.1, "value": -2.0}),
        Sample((_t(3, 7),), {"threshold": -0.5, "value": 0.0}),
    ),
)
HARDSHRINK = _function(
    "hardshrink",
    "0 within `width` of 0, else x.",
    _hardshrink,
    attrs=_WIDTH,
    field=_BY_SQUARES,
    samples=_WIDE,
)
SOFTSHRINK = _function(
    "softshrink",
    "x moved by `width` towards 0, and 0 within it.",
    _softshrink,
    attrs=_WIDTH,
    field="relu stands in for the order",
    samples=_WIDE,
)

OPS = (
    *(LOG, RECIPROCAL, RSQRT, SIN, COS, TAN, ATAN, ERF, SIGN, FLOOR, CEIL, ROUND, POW, CAST),
    *(LOG_SIGMOID, THRESHOLD, HARDSHRINK, SOFTSHRINK),
)
