"""Elementwise operators, products and reductions of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from archir.backends.torch_fx.frame import DTYPES

from archir.ir.graph import Value

from .site import Site
from .values import NAMES, CannotRaiseError, Entry, Noise

Raise = Callable[[Site], Entry]


def _same(op: str, **attrs: str) -> Raise:
    """An operator of one tensor; ``attrs`` maps archir's attributes to torch's numbers."""

    def raise_(at: Site) -> Entry:
        first = "self" if "self" in at.args else "input"
        numbers: dict[str, Any] = {a: float(at.args[t]) for a, t in attrs.items()}
        return at.put(op, at.value(first), **numbers)

    return raise_


def _identity(at: Site) -> Entry:
    return at.entry("self")


def _laid_out(at: Site) -> Entry:
    rows = at.kind == "contiguous" or at.args.get("memory_format") is torch.contiguous_format
    if not rows or not at.walk.laid_out:
        return at.entry("self")
    return at.put("contiguous", at.value("self"))


def _two(op: str) -> Raise:
    def raise_(at: Site) -> Entry:
        left, right = at.entry("self"), at.entry("other")
        if isinstance(left, Noise) or isinstance(right, Noise):
            return _with_noise(at, left, right)
        if at.args.get("rounding_mode") is not None:
            raise CannotRaiseError("it rounds")
        x = at.value("self") if not isinstance(left, int | float) else None
        y = at.other("other", x) if x is not None else at.value("other")
        if x is None:
            x = at.other("self", y)
        alpha = at.args.get("alpha", 1)
        if alpha != 1:
            y = at.put("mul", y, at.number(alpha, at.type(y).dtype))
        wanted = at.result.dtype
        x, y = (_as(at, each, wanted) for each in (x, y))
        return at.put(op, x, y)

    return raise_


def _as(at: Site, value: Value, dtype: str) -> Value:
    return value if at.type(value).dtype == dtype else at.put("cast", value, dtype=dtype)


def _with_noise(at: Site, left: Entry, right: Entry) -> Entry:
    """Stochastic depth: rows are multiplied by zero or by one over their chance to stay."""
    if at.kind == "div" and isinstance(left, Noise) and right == left.keep:
        return Noise(left.rows, left.keep, scaled=True)
    if at.kind == "mul":
        noise, x = (left, right) if isinstance(left, Noise) else (right, left)
        assert isinstance(noise, Noise)
        if isinstance(x, Value) and noise.keep is not None and (noise.scaled or noise.keep == 0):
            p = round(1 - noise.keep, 12)
            p = p if 1 - p == noise.keep else 1 - noise.keep
            return at.put("stochastic_depth", x, p=p, mode="row" if noise.rows else "batch")
    raise CannotRaiseError("it reckons with random numbers in a way that is not known")


def _empty(at: Site) -> Entry:
    """Room for random numbers: an entry a row, or one entry."""
    shape = at.result.shape
    if any(size != 1 for size in shape[1:]) or not shape:
        raise CannotRaiseError("it reads memory that nothing has written to")
    return Noise(rows=shape[0] != 1)


def _bernoulli(at: Site) -> Entry:
    room = at.entry("self")
    if not isinstance(room, Noise):
        raise CannotRaiseError("it draws random numbers")
    return Noise(room.rows, float(at.args["p"]))


def _dropout(at: Site) -> Entry:
    p = float(at.args["p"])
    first = "self" if "self" in at.args else "input"
    return at.put("dropout", at.value(first), p=p) if p else at.entry(first)


def _rsub(at: Site) -> Entry:
    y = at.value("self")
    return at.put("sub", at.other("other", y), y)


def _clamp(at: Site) -> Entry:
    low, high = at.args.get("min"), at.args.get("max")
    if not all(bound is None or isinstance(bound, int | float) for bound in (low, high)):
        raise CannotRaiseError("its bounds are tensors")
    x = at.value("self")
    bounds = {"low": low, "high": high}
    infinite = {"low": -float("inf"), "high": float("inf")}
    attrs: dict[str, Any] = {n: float(infinite[n] if b is None else b) for n, b in bounds.items()}
    return at.put("hardtanh", x, **attrs)


def _hardtanh(at: Site) -> Entry:
    low, high = float(at.args["min_val"]), float(at.args["max_val"])
    if (low, high) == (0.0, 6.0):
        return at.put("relu6", at.value("self"))
    return at.put("hardtanh", at.value("self"), low=low, high=high)


def _gelu(at: Site) -> Entry:
    return at.put("gelu", at.value("self"), approximate=str(at.args["approximate"]))


def _elu(at: Site) -> Entry:
    if at.args["scale"] != 1 or at.args["input_scale"] != 1:
        raise CannotRaiseError("it scales")
    return at.put("elu", at.value("self"), alpha=float(at.args["alpha"]))


def _prelu(at: Site) -> Entry:
    weight = at.held("weight")
    assert weight is not None
    shared = weight.tensor.numel() == 1
    return at.put("prelu", at.value("self"), params={"weight": weight}, shared=shared)


def _softplus(at: Site) -> Entry:
    if at.args["threshold"] != 20:
        raise CannotRaiseError("its threshold is not 20")
    return at.put("softplus", at.value("self"), beta=float(at.args["beta"]))


def _soft(op: str) -> Raise:
    def raise_(at: Site) -> Entry:
        x = at.value("self")
        if at.args.get("dtype") not in (None, DTYPES[at.type(x).dtype]):
            x = at.put("cast", x, dtype=NAMES[at.args["dtype"]])
        return at.put(op, x, axis=at.axis("dim", at.type(x).rank))

    return raise_


def _reduce(op: str) -> Raise:
    def raise_(at: Site) -> Entry:
        x = at.value("self")
        rank = at.type(x).rank
        given = at.args.get("dim")
        if given is None or given == []:
            axes = tuple(range(rank))
        else:
            entries = [given] if isinstance(given, int) else list(given)
            axes = tuple(axis % rank for axis in entries)
        keep = bool(at.args.get("keepdim", False))
        more: dict[str, Any] = {}
        if op in ("var", "std"):
            correction = at.args.get("correction", at.args.get("unbiased", 1))
            more["correction"] = 1 if correction is None else int(correction)
        if at.args.get("dtype") is not None or op in ("sum", "prod"):
            x = _as(at, x, at.result.dtype)  # whole numbers are widened first
        return at.put(op, x, axes=axes, keep=keep, **more)

    return raise_


def _extreme(op: str) -> Raise:
    """`max` and `min` along an axis, with their places where these are read."""

    def raise_(at: Site) -> Entry:
        if at.overload == "other":
            return _two(f"{op}imum")(at)
        if at.overload == "dim":
            read = any(1 in user.args[1:] for user in at.node.users)
            return [_reduce(op)(at), _place(f"arg{op}")(at) if read else None]
        return _reduce(op)(at)

    return raise_


def _norm(at: Site) -> Entry:
    if at.args["ord"] != 2:
        raise CannotRaiseError(f"it takes the norm of order {at.args['ord']}")
    return _reduce("l2_norm")(at)


def _matmul(at: Site) -> Entry:
    other = "other" if "other" in at.args else "mat2"
    return at.put("matmul", at.value("self"), at.value(other))


def _einsum(at: Site) -> Entry:
    equation = str(at.args["equation"]).replace(" ", "")
    return at.put("einsum", *at.values("tensors"), equation=equation)


def _addcmul(at: Site) -> Entry:
    # Not a product and a sum: torch rounds once.
    tensors = (at.value(name) for name in ("self", "tensor1", "tensor2"))
    return at.put("addcmul", *tensors, value=float(at.args["value"]))


def _pow(at: Site) -> Entry:
    exponent = at.entry("exponent")
    if at.overload == "Scalar":
        raise CannotRaiseError("its base is a number")
    x = at.value("self")
    if isinstance(exponent, int | float):
        return at.put("pow", x, exponent=float(exponent))
    return at.put("power", x, at.value("exponent"))


def _square(at: Site) -> Entry:
    return at.put("pow", at.value("self"), exponent=2.0)


def _round(at: Site) -> Entry:
    if at.overload == "decimals" and at.args["decimals"]:
        raise CannotRaiseError("it keeps decimals")
    return at.put("round", at.value("self"))


def _shrink(op: str) -> Raise:
    return lambda at: at.put(op, at.value("self"), width=float(at.args["lambd"]))


def _threshold(at: Site) -> Entry:
    bounds: dict[str, Any] = {n: float(at.args[n]) for n in ("threshold", "value")}
    return at.put("threshold", at.value("self"), **bounds)


def _bitwise(op: str) -> Raise:
    """What is true and false has one bit an entry."""

    def raise_(at: Site) -> Entry:
        if at.result.dtype != "bool":
            raise CannotRaiseError("it reads the bits of whole numbers")
        return (_same if op == "logical_not" else _two)(op)(at)

    return raise_


def _cast(at: Site) -> Entry:
    wanted = at.result.dtype
    x = at.value("self")
    return x if at.type(x).dtype == wanted else at.put("cast", x, dtype=wanted)


def _compare(op: str) -> Raise:
    def raise_(at: Site) -> Entry:
        x = at.value("self")
        return at.put(op, x, at.other("other", x))

    return raise_


def _copy(at: Site) -> Entry:
    """What is copied over all of a tensor stands in its place."""
    source = at.value("src")
    if at.type(source) != at.result:
        raise CannotRaiseError("it stretches or converts what it copies")
    return source


def _masked_fill(at: Site) -> Entry:
    x, mask = at.value("self"), at.value("mask")
    return at.put("where", mask, at.other("value", x), x)


def _where(at: Site) -> Entry:
    condition = at.value("condition")
    x, y = at.entry("self"), at.entry("other")
    tensors = [e for e in (x, y) if not isinstance(e, int | float)]
    if not tensors:
        raise CannotRaiseError("it chooses between numbers")
    like = at.type(at.operand(tensors[0]))
    return at.put("where", condition, at.operand(x, like), at.operand(y, like))


def _cumsum(at: Site) -> Entry:
    x = _as(at, at.value("self"), at.result.dtype)
    return at.put("cumsum", x, axis=at.axis("dim", at.type(x).rank))


def _place(op: str) -> Raise:
    def raise_(at: Site) -> Entry:
        x = at.value("self")
        if at.args["dim"] is None:
            raise CannotRaiseError("it counts the entries of all axes")
        keep = bool(at.args["keepdim"])
        return at.put(op, x, axis=at.axis("dim", at.type(x).rank), keep=keep)

    return raise_


SAME = (
    *("relu", "relu6", "sigmoid", "tanh", "exp", "sqrt", "neg", "abs", "silu", "mish", "selu"),
    *("hardsigmoid", "hardswish", "softsign", "log", "rsqrt", "reciprocal", "sin", "cos", "erf"),
    *("floor", "ceil", "sign", "tan", "atan", "log_sigmoid", "logical_not"),
)

FROM_TORCH: Mapping[str, Raise] = MappingProxyType(
    {
        **{name: _same(name) for name in SAME},
        "leaky_relu": _same("leaky_relu", slope="negative_slope"),
        "celu": _same("celu", alpha="alpha"),
        "elu": _elu,
        "gelu": _gelu,
        "prelu": _prelu,
        "softplus": _softplus,
        "hardtanh": _hardtanh,
        "clamp": _clamp,
        "clamp_min": _clamp,
        "clamp_max": _clamp,
        **dict.fromkeys(("alias", "detach", "lift_fresh_copy", "positive"), _identity),
        **dict.fromkeys(("clone", "contiguous"), _laid_out),
        "add": _two("add"),
        "sub": _two("sub"),
        "mul": _two("mul"),
        "multiply": _two("mul"),
        "div": _two("div"),
        "true_divide": _two("div"),
        "minimum": _two("minimum"),
        "maximum": _two("maximum"),
        "logical_and": _two("logical_and"),
        "logical_or": _two("logical_or"),
        "rsub": _rsub,
        "logical_xor": _two("logical_xor"),
        **{f"bitwise_{n}": _bitwise(f"logical_{n}") for n in ("and", "or", "xor", "not")},
        **{f"__{n}__": _bitwise(f"logical_{n}") for n in ("and", "or", "xor")},
        "pow": _pow,
        "square": _square,
        "round": _round,
        "hardshrink": _shrink("hardshrink"),
        "softshrink": _shrink("softshrink"),
        "threshold": _threshold,
        "addcmul": _addcmul,
        "softmax": _soft("softmax"),
        "log_softmax": _soft("log_softmax"),
        "mean": _reduce("mean"),
        "sum": _reduce("sum"),
        "var": _reduce("var"),
        "std": _reduce("std"),
        "prod": _reduce("prod"),
        "amax": _reduce("max"),
        "amin": _reduce("min"),
        "max": _extreme("max"),
        "min": _extreme("min"),
        "linalg_vector_norm": _norm,
        "argmax": _place("argmax"),
        "argmin": _place("argmin"),
        "cumsum": _cumsum,
        **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
        "einsum": _einsum,
        **dict.fromkeys(("to", "_to_copy", "type_as"), _cast),
        "eq": _compare("equal"),
        "ne": _compare("not_equal"),
        "lt": _compare("less"),
        "gt": _compare("greater"),
        "le": _compare("less_equal"),
        "ge": _compare("greater_equal"),
        "copy": _copy,
        "masked_fill": _masked_fill,
        "where": _where,
        **dict.fromkeys(("dropout", "feature_dropout"), _dropout),
        **dict.fromkeys(("empty", "new_empty"), _empty),
        "bernoulli": _bernoulli,
    }
)
"""How these operators of torch are raised."""
