"""Activations: functions of single entries, and the normalised exponentials.

What an order can express is written with relu, which a field has a stand-in for: |x| is
relu(x) + relu(-x). Of the others only what is true of the function is kept: silu(x) is x times
a sigmoid of x, whatever a sigmoid is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Kind, Law, Mode, Op, Param, Reference, Sample, Signer

_MAP = frozenset({Law.ELEMENTWISE})
_SCALING = frozenset({Law.ELEMENTWISE, Law.POSITIVELY_HOMOGENEOUS})
_BY_RELU = "relu stands in for the order"
_BY_TABLE = "a fixed random function of its entries"


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


_SHAPES = (Sample((_t(2, 3, 4, 5),)), Sample((_t(3, 7),)))


def _single(compute: Callable[[Arithmetic, Array, Attrs], Array]) -> Reference:
    def reference(
        k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
    ) -> tuple[Array, ...]:
        return (compute(k, x[0], a),)

    return reference


def _activation(
    name: str,
    doc: str,
    compute: Callable[[Arithmetic, Array, Attrs], Array],
    *,
    laws: frozenset[Law] = _MAP,
    field: str = _BY_TABLE,
    attrs: tuple[Attr, ...] = (),
    samples: tuple[Sample, ...] = _SHAPES,
    signature: str | Signer = "x[...] -> [...]",
) -> Op:
    return Op(
        name=name,
        doc=doc,
        signature=signature,
        reference=_single(compute),
        attrs=attrs,
        laws=laws,
        field=field,
        samples=samples,
    )


def _with(**attrs: Any) -> tuple[Sample, ...]:
    """A sample with the defaults and one with these attributes."""
    return (_SHAPES[0], Sample((_t(3, 7, 2),), attrs))


def _negative(k: Arithmetic, x: Array) -> Array:
    return k.subtract(k.array(0), x)


def _below(k: Arithmetic, x: Array) -> Array:
    """How far x lies below 0: relu(-x)."""
    return k.relu(_negative(k, x))


def _magnitude(k: Arithmetic, x: Array) -> Array:
    return k.add(k.relu(x), _below(k, x))


def _clip(k: Arithmetic, x: Array, low: float, high: float) -> Array:
    """The entry of [low, high] nearest to x: low + relu(x - low) - relu(x - high)."""
    out = x
    if low > -math.inf:
        floor = k.number(low)
        out = k.add(k.relu(k.subtract(x, floor)), floor)
    if high < math.inf:
        out = k.subtract(out, k.relu(k.subtract(x, k.number(high))))
    return out


def _leaky(k: Arithmetic, x: Array, slope: Any) -> Array:
    return k.subtract(k.relu(x), k.multiply(_below(k, x), slope))


def _exponential(k: Arithmetic, x: Array, alpha: float, rate: float) -> Array:
    """relu(x) + alpha (exp(rate min(x, 0)) - 1)."""
    power = k.exp(k.multiply(_below(k, x), k.number(-rate)))
    return k.add(k.relu(x), k.multiply(k.subtract(power, k.number(1)), k.number(alpha)))


def _number(a: Attrs, name: str) -> float:
    value = a[name]
    assert isinstance(value, float)
    return value


def _sigmoid(k: Arithmetic, x: Array) -> Array:
    # exp(-log(1 + exp(-x))) overflows nowhere.
    return k.function("sigmoid", x, lambda v: np.exp(-np.logaddexp(0, -v)))


def _tanh(k: Arithmetic, x: Array) -> Array:
    return k.function("tanh", x, np.tanh)


def _softplus(k: Arithmetic, x: Array) -> Array:
    return k.function("softplus", x, lambda v: np.logaddexp(0, v))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _normal_share(x: Array) -> Array:
    return np.asarray((1 + _erf(x / math.sqrt(2))) / 2)


def _tanh_share(x: Array) -> Array:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray((1 + np.tanh(inner)) / 2)


def _gelu(k: Arithmetic, x: Array, a: Attrs) -> Array:
    if a["approximate"] == "tanh":
        return k.multiply(x, k.function("gelu(tanh)", x, _tanh_share))
    return k.multiply(x, k.function("gelu", x, _normal_share))


def _gelu_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    if attrs["approximate"] not in ("none", "tanh"):
        raise OpError("A114", "`approximate` of `gelu` is none or tanh", attr="approximate")
    return "x[...] -> [...]"


def _hardtanh_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    low, high = _number(attrs, "low"), _number(attrs, "high")
    if low >= high:
        message = f"`low` of `hardtanh`, {low:g}, is not below `high`, {high:g}"
        raise OpError("A114", message, attr="low")
    if types[0].dtype in ("i64", "i32"):
        part = next((b for b in (low, high) if math.isfinite(b) and not b.is_integer()), None)
        if part is not None:
            message = f"`hardtanh` of whole numbers has whole bounds, not {part:g} ({types[0]})"
            raise OpError("A114", message, '`cast("f32")` makes numbers with fractions')
    return "x[...] -> [...]"


def _hardsigmoid(k: Arithmetic, x: Array) -> Array:
    return k.divide(_clip(k, k.add(x, k.number(3)), 0, 6), k.number(6))


RELU = _activation(
    "relu",
    "max(x, 0).",
    lambda k, x, a: k.relu(x),
    laws=_SCALING | {Law.IDEMPOTENT},
    field="x where x is a square, else 0",
    samples=(Sample((_t(2, 3, 4, 5),)), Sample((_t(7),)), Sample((_t(2, 3),))),
)

RELU6 = _activation(
    "relu6",
    "min(max(x, 0), 6).",
    lambda k, x, a: _clip(k, x, 0, 6),
    field=_BY_RELU,
)

LEAKY_RELU = _activation(
    "leaky_relu",
    "x where x is positive, else slope * x.",
    lambda k, x, a: _leaky(k, x, k.number(_number(a, "slope"))),
    attrs=(Attr("slope", Kind.FLOAT, 0.01),),
    laws=_SCALING,
    field="x where x is a square, else slope * x",
    samples=_with(slope=0.2),
)

ELU = _activation(
    "elu",
    "x where x is positive, else alpha * (exp(x) - 1).",
    lambda k, x, a: _exponential(k, x, _number(a, "alpha"), 1),
    attrs=(Attr("alpha", Kind.FLOAT, 1.0),),
    field="relu and exp have stand-ins",
    samples=_with(alpha=0.5),
)

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


SELU = _activation(
    "selu",
    "1.0507 * elu(x, 1.6733): the self-normalising unit.",
    lambda k, x, a: k.multiply(_exponential(k, x, _SELU_ALPHA, 1), k.number(_SELU_SCALE)),
    field="relu and exp have stand-ins",
)

CELU = _activation(
    "celu",
    "x where x is positive, else alpha * (exp(x / alpha) - 1).",
    lambda k, x, a: _exponential(k, x, _number(a, "alpha"), 1 / _number(a, "alpha")),
    attrs=(Attr("alpha", Kind.FLOAT, 1.0, least=1e-6),),
    field="relu and exp have stand-ins",
    samples=_with(alpha=0.5),
)

SIGMOID = _activation(
    "sigmoid",
    "1 / (1 + exp(-x)).",
    lambda k, x, a: _sigmoid(k, x),
)

TANH = _activation("tanh", "The hyperbolic tangent.", lambda k, x, a: _tanh(k, x))

SOFTPLUS = _activation(
    "softplus",
    "log(1 + exp(beta * x)) / beta.",
    lambda k, x, a: k.divide(
        _softplus(k, k.multiply(x, k.number(_number(a, "beta")))), k.number(_number(a, "beta"))
    ),
    attrs=(Attr("beta", Kind.FLOAT, 1.0, least=1e-6),),
    samples=_with(beta=2.0),
)

SOFTSIGN = _activation(
    "softsign",
    "x / (1 + |x|).",
    lambda k, x, a: k.divide(x, k.add(_magnitude(k, x), k.number(1))),
    field=_BY_RELU,
)

GELU = _activation(
    "gelu",
    "x times the normal distribution function of x, or its approximation by tanh.",
    _gelu,
    signature=_gelu_signature,
    attrs=(Attr("approximate", Kind.STRING, "none", doc="none or tanh"),),
    field="x times a fixed random function of x",
    samples=_with(approximate="tanh"),
)

SILU = _activation(
    "silu",
    "x * sigmoid(x), also called swish.",
    lambda k, x, a: k.multiply(x, _sigmoid(k, x)),
    field="x times a fixed random function of x",
)

MISH = _activation(
    "mish",
    "x * tanh(softplus(x)).",
    lambda k, x, a: k.multiply(x, _tanh(k, _softplus(k, x))),
    field="x times a fixed random function of x",
)

HARDSIGMOID = _activation(
    "hardsigmoid",
    "relu6(x + 3) / 6.",
    lambda k, x, a: _hardsigmoid(k, x),
    field=_BY_RELU,
)

HARDSWISH = _activation(
    "hardswish",
    "x * relu6(x + 3) / 6.",
    lambda k, x, a: k.multiply(x, _hardsigmoid(k, x)),
    field=_BY_RELU,
)

HARDTANH = _activation(
    "hardtanh",
    "min(max(x, low), high); a bound may be `-inf` or `inf`.",
    lambda k, x, a: _clip(k, x, _number(a, "low"), _number(a, "high")),
    signature=_hardtanh_signature,
    attrs=(
        Attr("low", Kind.FLOAT, -1.0, unbounded=True),
        Attr("high", Kind.FLOAT, 1.0, unbounded=True),
    ),
    field=_BY_RELU,
    samples=(
        *_with(low=-0.5, high=2.0),
        Sample((_t(3, 7),), {"low": -math.inf, "high": 0.5}),
        Sample((_t(2, 3, 4),), {"low": 1e-6, "high": math.inf}),
        Sample((TensorType("i64", (3, 5)),), {"low": 1.0, "high": 2.0}),
        Sample((TensorType("i64", (3, 5)),), {"low": 2.0, "high": math.inf}),
    ),
)

ABS = _activation(
    "abs",
    "|x|.",
    lambda k, x, a: _magnitude(k, x),
    laws=_SCALING | {Law.IDEMPOTENT},
    field="x where x is a square, else -x",
)

EXP = _activation(
    "exp",
    "The exponential.",
    lambda k, x, a: k.exp(x),
)

SQRT = _activation(
    "sqrt",
    "The square root.",
    lambda k, x, a: k.sqrt(x),
    samples=tuple(Sample(s.inputs, positive=True) for s in _SHAPES),
)

NEG = _activation(
    "neg",
    "-x.",
    lambda k, x, a: _negative(k, x),
    laws=_SCALING,
    field="",
)


def _prelu_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    return f"x[n, c, ...] weight[{'1' if attrs['shared'] else 'c'}] -> [n, c, ...]"


def _prelu(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (_leaky(k, x[0], p["weight"].reshape(-1, *[1] * (x[0].ndim - 2))),)


PRELU = Op(
    name="prelu",
    doc="x where x is positive, else weight * x; one weight a channel, or one for all.",
    signature=_prelu_signature,
    attrs=(Attr("shared", Kind.BOOL, default=False, doc="one weight for all channels"),),
    params=(Param("weight", "quarter"),),
    reference=_prelu,
    laws=frozenset({Law.POSITIVELY_HOMOGENEOUS}),
    field="x where x is a square, else weight * x",
    samples=(
        Sample((_t(2, 3, 4, 5),)),
        Sample((_t(3, 4, 7),), {"shared": True}),
        Sample((_t(3, 5),)),
    ),
)


def softmax_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Opaque along the axis that is normalised, mapped along the others."""
    names = [f"a{j}" for j in range(types[0].rank)]
    marked = [n + "!" * (j == attrs["axis"]) for j, n in enumerate(names)]
    return f"x[{', '.join(marked)}] -> [{', '.join(marked)}]"


def _powers(k: Arithmetic, x: Array, a: Attrs) -> tuple[Array, Array, Array]:
    """The values (shifted against overflow), their exponentials, and the sum of these."""
    axis = a["axis"]
    assert isinstance(axis, int)
    if k.name.startswith("float"):
        x = k.subtract(x, x.max(axis=axis, keepdims=True))
    powers = k.exp(x)
    kept = tuple(1 if j == axis else s for j, s in enumerate(powers.shape))
    return x, powers, k.sum(powers, (axis,)).reshape(kept)


def _softmax(k: Arithmetic, x: Array, a: Attrs) -> Array:
    _, powers, total = _powers(k, x, a)
    return k.divide(powers, total)


def _log_softmax(k: Arithmetic, x: Array, a: Attrs) -> Array:
    values, _, total = _powers(k, x, a)
    return k.subtract(values, k.function("log", total, np.log))


SOFTMAX = _activation(
    "softmax",
    "exp(x) divided by its sum over an axis.",
    _softmax,
    signature=softmax_signature,
    attrs=(Attr("axis", Kind.AXIS, -1),),
    laws=frozenset(),
    field="the exponential is a fixed random function without zeros",
    samples=(Sample((_t(2, 5),)), Sample((_t(2, 3, 4),), {"axis": 1})),
)

LOG_SOFTMAX = _activation(
    "log_softmax",
    "The logarithm of softmax: x - log(sum(exp(x))) over an axis.",
    _log_softmax,
    signature=softmax_signature,
    attrs=(Attr("axis", Kind.AXIS, -1),),
    laws=frozenset(),
    field="exponential and logarithm are fixed random functions",
    samples=(Sample((_t(2, 5),)), Sample((_t(2, 3, 4, 6),), {"axis": 1})),
)

OPS = (
    *(RELU, RELU6, LEAKY_RELU, PRELU, ELU, SELU, CELU, SIGMOID, TANH, SOFTPLUS, SOFTSIGN, GELU),
    *(SILU, MISH, HARDSIGMOID, HARDSWISH, HARDTANH, ABS, EXP, SQRT, NEG, SOFTMAX, LOG_SOFTMAX),
)
