"""Activations and elementwise arithmetic in ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from .frame import Site

Lowering = Callable[[Site], None]


def _plain(op: str, **attrs: str) -> Lowering:
    """One node; the attributes by their ONNX names."""

    def lowering(at: Site) -> None:
        at.emit(op, *at.args, **{theirs: at.attr(ours) for theirs, ours in attrs.items()})

    return lowering


def _chain(op: str) -> Lowering:
    def lowering(at: Site) -> None:
        first, *middle, last = at.args
        for number, operand in enumerate(middle, 1):
            first = at.helper(str(number), op, first, operand)
        at.emit(op, first, last)

    return lowering


def _scalar(at: Site, role: str, value: float) -> str:
    return at.constant(role, np.asarray(value, at.dtype))


def _clip(at: Site, low: float, high: float) -> None:
    """A bound that is infinite is left out."""
    bounds = {"low": low, "high": high}
    names = [_scalar(at, n, b) if math.isfinite(b) else "" for n, b in bounds.items()]
    at.emit("Clip", *at.args, *names)


def _relu6(at: Site) -> None:
    _clip(at, 0, 6)


def _hardtanh(at: Site) -> None:
    _clip(at, at.attr("low"), at.attr("high"))


def _hardsigmoid(at: Site) -> None:
    at.emit("HardSigmoid", *at.args, alpha=1 / 6, beta=0.5)


def _celu(at: Site) -> None:
    """Celu takes no other element type than float32: alpha * elu(x / alpha) takes all."""
    alpha = _scalar(at, "alpha", at.attr("alpha"))
    inner = at.helper("elu", "Elu", at.helper("divided", "Div", *at.args, alpha))
    at.emit("Mul", inner, alpha)


def _prelu(at: Site) -> None:
    (weight,) = at.params("weight")
    if at.rank > 2:
        shape = at.constant("shape", np.asarray([-1] + [1] * (at.rank - 2), np.int64))
        weight = at.helper("slope", "Reshape", weight, shape)
    at.emit("PRelu", *at.args, weight)


def _softplus(at: Site) -> None:
    if at.attr("beta") == 1:
        at.emit("Softplus", *at.args)
        return
    beta = _scalar(at, "beta", at.attr("beta"))
    at.emit("Div", at.helper("log", "Softplus", at.helper("scaled", "Mul", *at.args, beta)), beta)


def _gelu(at: Site) -> None:
    (x,) = at.args
    if at.frame.opset >= 20:
        at.emit("Gelu", x, approximate=at.attr("approximate"))
        return
    if at.attr("approximate") == "tanh":
        square = at.helper("square", "Mul", x, x)
        cubic = at.helper("cubic", "Mul", square, _scalar(at, "third", 0.044715))
        factor = at.helper("factor", "Add", cubic, _scalar(at, "first", 1))
        scaled = at.helper("scaled", "Mul", x, _scalar(at, "scale", math.sqrt(2 / math.pi)))
        share = at.helper("tanh", "Tanh", at.helper("inner", "Mul", scaled, factor))
    else:
        scaled = at.helper("scaled", "Mul", x, _scalar(at, "scale", math.sqrt(0.5)))
        share = at.helper("erf", "Erf", scaled)
    halved = at.helper("halved", "Mul", x, _scalar(at, "half", 0.5))
    at.emit("Mul", halved, at.helper("share", "Add", share, _scalar(at, "one", 1)))


def _silu(at: Site) -> None:
    at.emit("Mul", *at.args, at.helper("sigmoid", "Sigmoid", *at.args))


def _mish(at: Site) -> None:
    if at.frame.opset >= 18:
        at.emit("Mish", *at.args)
        return
    inner = at.helper("softplus", "Softplus", *at.args)
    at.emit("Mul", *at.args, at.helper("tanh", "Tanh", inner))


def _addcmul(at: Site) -> None:
    x, *factors = at.args
    product = at.helper("product", "Mul", *factors)
    if at.attr("value") != 1:
        product = at.helper("scaled", "Mul", product, _scalar(at, "value", at.attr("value")))
    at.emit("Add", x, product)


def _dropout(at: Site) -> None:
    # It passes everything on when it is not training; kept so that readers see it.
    ratio = at.constant("ratio", np.asarray(at.attr("p"), at.dtype))
    at.emit("Dropout", *at.args, ratio)


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "relu": _plain("Relu"),
        "relu6": _relu6,
        "leaky_relu": _plain("LeakyRelu", alpha="slope"),
        "prelu": _prelu,
        "elu": _plain("Elu", alpha="alpha"),
        "selu": _plain("Selu"),
        "celu": _celu,
        "sigmoid": _plain("Sigmoid"),
        "tanh": _plain("Tanh"),
        "softplus": _softplus,
        "softsign": _plain("Softsign"),
        "gelu": _gelu,
        "silu": _silu,
        "mish": _mish,
        "hardsigmoid": _hardsigmoid,
        "hardswish": _plain("HardSwish"),
        "hardtanh": _hardtanh,
        "softmax": _plain("Softmax", axis="axis"),
        "log_softmax": _plain("LogSoftmax", axis="axis"),
        "abs": _plain("Abs"),
        "exp": _plain("Exp"),
        "sqrt": _plain("Sqrt"),
        "neg": _plain("Neg"),
        "add": _chain("Add"),
        "sub": _chain("Sub"),
        "mul": _chain("Mul"),
        "div": _chain("Div"),
        "addcmul": _addcmul,
        "dropout": _dropout,
        "stochastic_depth": _plain("Identity"),
    }
)
