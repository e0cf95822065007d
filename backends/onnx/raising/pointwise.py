"""Functions of single entries, and arithmetic of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from onnx import NodeProto, TensorProto

from archir.ir.types import AttrValue
from archir.ops.arithmetic import Array
from archir.weights.store import numpy_dtype

from . import fusing
from .site import RefusedError, Site, Tensor
from .values import Known, Made

Raise = Callable[[Site], None]

_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "f32",
    TensorProto.FLOAT16: "f16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "f64",
    TensorProto.INT64: "i64",
    TensorProto.INT32: "i32",
    TensorProto.BOOL: "bool",
}


def _plain(ours: str, **attrs: str) -> Raise:
    """One operator; its attributes by their ONNX names."""

    def run(at: Site) -> None:
        given = {ours_: float(at.attr(theirs)) for ours_, theirs in attrs.items()}
        at.give(at.put(ours, at.x(), **given))

    return run


def _same(at: Site) -> None:
    at.give(at.entry(0))


def scalar(known: Known | None) -> float | None:
    """The only number of something known, if there is one."""
    if known is None or known.symbolic or known.array.size != 1:
        return None
    return float(known.array.reshape(-1)[0])


def near(known: Known | None, value: float) -> bool:
    """Whether something known is one number, up to the rounding of half precision."""
    found = scalar(known)
    return found is not None and math.isclose(found, value, rel_tol=1e-3)


def other_of(node: NodeProto, name: str) -> str | None:
    """The operand of a node that is not this one; None where both are, or there are more."""
    rest = [given for given in node.input if given != name]
    return rest[0] if len(node.input) == 2 and len(rest) == 1 else None


def _is(node: NodeProto | None, *kinds: str) -> bool:
    return node is not None and node.op_type in kinds and node.domain in ("", "ai.onnx")


def _multiplies(node: NodeProto, name: str, other: str) -> bool:
    """Whether a node is the product of these two."""
    return _is(node, "Mul") and other_of(node, name) == other


def _gated(plain: str, gate: str) -> Raise:
    """A function, or what x times the function of x is called."""

    def run(at: Site) -> None:
        x, after = at.x(), at.follower()
        if after is not None and _multiplies(after, at.node.output[0], at.node.input[0]):
            at.take(after, at.put(gate, x))
            return
        at.give(at.put(plain, x))

    return run


def _softplus(at: Site) -> None:
    """Softplus, or mish: x * tanh(softplus(x))."""
    x, after = at.x(), at.follower()
    if after is not None and _is(after, "Tanh"):
        last = at.follower(after.output[0])
        if last is not None and _multiplies(last, after.output[0], at.node.input[0]):
            at.net.done.add(after.output[0])
            at.take(last, at.put("mish", x))
            return
    at.give(at.put("softplus", x))


def _erf(at: Site) -> None:
    """The error function, or the gelu that exporters spell out with it."""
    inner = at.net.makers.get(at.node.input[0])
    found = _gelu_around(at, inner) if inner is not None else None
    if found is None:
        at.give(at.put("erf", at.x()))
        return
    name, nodes = found
    entry = at.net.values.get(name)
    if not isinstance(entry, Made):
        at.give(at.put("erf", at.x()))
        return
    at.net.done.update(node.output[0] for node in nodes[:-1])
    at.take(nodes[-1], at.put("gelu", entry))


def _gelu_around(at: Site, inner: NodeProto) -> tuple[str, list[NodeProto]] | None:
    """The argument of a gelu around an Erf, and the nodes after the Erf."""
    if not _is(inner, "Div", "Mul") or len(inner.input) != 2:
        return None
    scale = math.sqrt(2) if inner.op_type == "Div" else math.sqrt(0.5)
    places = (1,) if inner.op_type == "Div" else (0, 1)
    hits = [j for j in places if near(at.net.known(inner.input[j]), scale)]
    plus = at.follower()
    if not hits or plus is None or not _is(plus, "Add"):
        return None
    x = inner.input[1 - hits[0]]
    one = other_of(plus, at.node.output[0])
    if one is None or not near(at.net.known(one), 1):
        return None
    first = at.follower(plus.output[0])
    if first is None or not _is(first, "Mul"):
        return None
    beside = other_of(first, plus.output[0])
    if beside is None:
        return None
    half = at.net.makers.get(beside)
    if half is not None and _is(half, "Mul") and _halves(at, half, x):
        return x, [plus, first]
    last = at.follower(first.output[0])
    if last is None or not _is(last, "Mul", "Div"):
        return None
    rest = other_of(last, first.output[0])
    if beside == x and rest is not None:
        wanted = 0.5 if last.op_type == "Mul" else 2
        return (x, [plus, first, last]) if near(at.net.known(rest), wanted) else None
    if near(at.net.known(beside), 0.5) and rest == x and last.op_type == "Mul":
        return x, [plus, first, last]
    return None


def _halves(at: Site, node: NodeProto, x: str) -> bool:
    rest = other_of(node, x)
    return x in node.input and rest is not None and near(at.net.known(rest), 0.5)


def _clip(at: Site) -> None:
    x = at.x()
    low, high = _bound(at, 1, "min", -math.inf), _bound(at, 2, "max", math.inf)
    if not x.type.dtype.startswith(("f", "bf")):
        raise RefusedError(f"it clips {x.type}")
    if low is None or high is None:
        if at.has(1):
            x = at.put("maximum", x, at.x(1))
        at.give(at.put("minimum", x, at.x(2)) if at.has(2) else x)
        return
    if abs(low) > 3.4e38:
        low = math.copysign(math.inf, low)
    if abs(high) > 3.4e38:
        high = math.copysign(math.inf, high)
    if (low, high) == (-math.inf, math.inf):
        at.give(x)
    elif (low, high) == (0, math.inf):
        at.give(at.put("relu", x))
    elif (low, high) == (0, 6):
        at.give(at.put("relu6", x))
    elif low < high:
        at.give(at.put("hardtanh", x, low=low, high=high))
    else:
        below = at.put("maximum", x, at.number(low, x))
        at.give(at.put("minimum", below, at.number(high, x)))


def _bound(at: Site, place: int, name: str, without: float) -> float | None:
    """An end of a Clip; None where the network computes it."""
    if at.has(place):
        return scalar(at.known(place))
    return float(at.attr(name, without))


def _hardsigmoid(at: Site) -> None:
    x, alpha, beta = at.x(), float(at.attr("alpha", 0.2)), float(at.attr("beta", 0.5))
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        _gated("hardsigmoid", "hardswish")(at)
        return
    line = at.put("add", at.put("mul", x, at.number(alpha, x)), at.number(beta, x))
    at.give(at.put("hardtanh", line, low=0.0, high=1.0))


def _selu(at: Site) -> None:
    alpha, gamma = float(at.attr("alpha", 1.67326324)), float(at.attr("gamma", 1.05070102))
    x = at.x()
    if math.isclose(alpha, 1.67326324, rel_tol=1e-6) and math.isclose(
        gamma, 1.05070102, rel_tol=1e-6
    ):
        at.give(at.put("selu", x))
        return
    at.give(at.put("mul", at.put("elu", x, alpha=alpha), at.number(gamma, x)))


def _gelu(at: Site) -> None:
    at.give(at.put("gelu", at.x(), approximate=str(at.attr("approximate", "none"))))


def _swish(at: Site) -> None:
    x, alpha = at.x(), float(at.attr("alpha", 1.0))
    if alpha == 1:
        at.give(at.put("silu", x))
        return
    gate = at.put("sigmoid", at.put("mul", x, at.number(alpha, x)))
    at.give(at.put("mul", x, gate))


def _prelu(at: Site) -> None:
    x, known = at.x(), at.known(1)
    channels = x.type.shape[1] if x.type.rank > 1 else None
    slope = _slopes(known.array, channels, x.type.rank) if known is not None else None
    if slope is None or known is None:
        # max(x, 0) + slope * min(x, 0)
        below = at.put("neg", at.put("relu", at.put("neg", x)))
        at.give(at.put("add", at.put("relu", x), at.put("mul", at.x(1), below)))
        return
    form = "" if slope.shape == known.array.shape else "flat"
    weight = Tensor(slope, known.name, form) if known.name else Tensor(slope)
    at.give(at.layer("prelu", x, {"weight": weight}, shared=slope.size == 1))


def _slopes(array: Array, channels: object, rank: int) -> Array | None:
    """One slope a channel, or one for all; None where they vary otherwise."""
    if array.size == 1 and rank > 1:
        return array.reshape(1)
    wide = (1,) * (rank - array.ndim) + array.shape
    fits = len(wide) == rank and rank > 1 and wide[1] == channels
    return array.reshape(-1) if fits and array.size == wide[1] else None


def _softmax(ours: str) -> Raise:
    def run(at: Site) -> None:
        x = at.x()
        axis, rank = int(at.attr("axis", -1 if at.opset >= 13 else 1)), x.type.rank
        if not -rank <= axis < rank:
            raise RefusedError(f"its axis is {axis}, its input {x.type}")
        axis %= rank
        rest = x.type.shape[axis + 1 :]
        if at.opset >= 13 or all(size == 1 for size in rest):
            if ours != "softmax" or not fusing.attention(at, x, axis):
                at.give(at.put(ours, x, axis=axis))
            return
        # Before opset 13 all axes from this one on are one.
        flat = at.put("flatten", x, start=axis)
        at.give(at.reshape(at.put(ours, flat, axis=axis), x.type.shape))

    return run


def _dropout(at: Site) -> None:
    """It passes everything on; how much it would drop in training is kept."""
    if at.has(2) and scalar(at.known(2)) != 0:
        raise RefusedError("it drops entries at random")
    if len(at.node.output) > 1 and at.node.output[1] and at.net.readers.get(at.node.output[1]):
        raise RefusedError("its mask is read")
    entry = at.entry(0)
    given = scalar(at.known(1)) if at.has(1) else float(at.attr("ratio", 0.5))
    if isinstance(entry, Known) or given is None or not 0 < given < 1:
        at.give(entry)
        return
    at.give(at.put("dropout", entry, p=given))


# -- arithmetic


def _chain(ours: str) -> Raise:
    def run(at: Site) -> None:
        parts = [at.x(place) for place in range(at.count)]
        if len(parts) == 1:
            at.give(parts[0])
            return
        result = parts[0]
        for part in parts[1:]:
            result = at.put(ours, result, part)
        at.give(result)

    return run


def _sum(at: Site) -> None:
    parts = [at.x(place) for place in range(at.count)]
    at.give(parts[0] if len(parts) == 1 else at.put("add", *parts))


def _mean(at: Site) -> None:
    parts = [at.x(place) for place in range(at.count)]
    total = parts[0] if len(parts) == 1 else at.put("add", *parts)
    at.give(at.put("mul", total, at.number(1 / len(parts), total)))


def _negated(at: Site) -> None:
    """1 - x and the like stay differences; 0 - x is -x."""
    at.give(at.put("sub", at.x(0), at.x(1)))


def _div(at: Site) -> None:
    a, b = at.x(0), at.x(1)
    if not a.type.dtype.startswith(("f", "bf")):
        raise RefusedError(f"it divides whole numbers, {a.type}")
    if not fusing.layer_norm(at, a, b):
        at.give(at.put("div", a, b))


def _pow(at: Site) -> None:
    x, exponent = at.x(0), scalar(at.known(1))
    if exponent is None:
        raise RefusedError("its exponent is no constant number")
    if exponent == 1:
        at.give(x)
    elif exponent == 2:
        at.give(at.put("mul", x, x))
    elif exponent == 0.5:
        at.give(at.put("sqrt", x))
    else:
        at.give(at.put("pow", x, exponent=exponent))


def _cast(at: Site) -> None:
    x, to = at.x(), _TYPES.get(int(at.attr("to", 0)))
    if to is None:
        word = TensorProto.DataType.Name(int(at.attr("to", 0))).lower()
        raise RefusedError(f"it makes numbers of {word}, which archir has no use for")
    at.give(x if x.type.dtype == to else at.put("cast", x, dtype=to))


def _cast_like(at: Site) -> None:
    entry, to = at.entry(0), at.x(1).type.dtype
    if isinstance(entry, Known) and not entry.symbolic:
        at.give(Known(entry.array.astype(numpy_dtype(to))))
        return
    x = at.x()
    at.give(x if x.type.dtype == to else at.put("cast", x, dtype=to))


def _pair(ours: str) -> Raise:
    def run(at: Site) -> None:
        at.give(at.put(ours, at.x(0), at.x(1)))

    return run


def _where(at: Site) -> None:
    at.give(at.put("where", at.x(0), at.x(1), at.x(2)))


def _thresholded(at: Site) -> None:
    alpha = float(at.attr("alpha", 1.0))
    at.give(at.put("threshold", at.x(), threshold=alpha, value=0.0))


def _shrink(at: Site) -> None:
    bias, width = float(at.attr("bias", 0.0)), float(at.attr("lambd", 0.5))
    if bias not in (0, width):
        raise RefusedError(f"its bias is {bias:g} and its lambd {width:g}")
    given: dict[str, AttrValue] = {"width": width}
    at.give(at.put("softshrink" if bias else "hardshrink", at.x(), **given))


def _is_nan(at: Site) -> None:
    x = at.x()
    at.give(at.put("not_equal", x, x))


POINTWISE: Mapping[str, Raise] = MappingProxyType(
    {
        "Relu": _plain("relu"),
        "LeakyRelu": _plain("leaky_relu", slope="alpha"),
        "Elu": _plain("elu", alpha="alpha"),
        "Celu": _plain("celu", alpha="alpha"),
        "Selu": _selu,
        "Sigmoid": _gated("sigmoid", "silu"),
        "Tanh": _plain("tanh"),
        "Softplus": _softplus,
        "Softsign": _plain("softsign"),
        "Gelu": _gelu,
        "Mish": _plain("mish"),
        "Swish": _swish,
        "HardSigmoid": _hardsigmoid,
        "HardSwish": _plain("hardswish"),
        "Clip": _clip,
        "PRelu": _prelu,
        "ThresholdedRelu": _thresholded,
        "Shrink": _shrink,
        "Softmax": _softmax("softmax"),
        "LogSoftmax": _softmax("log_softmax"),
        "Dropout": _dropout,
        "Identity": _same,
        "Abs": _plain("abs"),
        "Exp": _plain("exp"),
        "Sqrt": _plain("sqrt"),
        "Neg": _plain("neg"),
        "Log": _plain("log"),
        "Reciprocal": _plain("reciprocal"),
        "Sin": _plain("sin"),
        "Cos": _plain("cos"),
        "Tan": _plain("tan"),
        "Atan": _plain("atan"),
        "Erf": _erf,
        "Sign": _plain("sign"),
        "Floor": _plain("floor"),
        "Ceil": _plain("ceil"),
        "Round": _plain("round"),
        "Not": _plain("logical_not"),
        "Add": _pair("add"),
        "Sub": _negated,
        "Mul": _pair("mul"),
        "Div": _div,
        "Pow": _pow,
        "Sum": _sum,
        "Mean": _mean,
        "Max": _chain("maximum"),
        "Min": _chain("minimum"),
        "Equal": _pair("equal"),
        "Less": _pair("less"),
        "LessOrEqual": _pair("less_equal"),
        "Greater": _pair("greater"),
        "GreaterOrEqual": _pair("greater_equal"),
        "And": _pair("logical_and"),
        "Or": _pair("logical_or"),
        "Xor": _pair("logical_xor"),
        "Where": _where,
        "IsNaN": _is_nan,
        "Cast": _cast,
        "CastLike": _cast_like,
    }
)
"""How these operators are raised."""
