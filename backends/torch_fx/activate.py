"""Activations and elementwise arithmetic in torch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from .frame import SWAPPED, Site
from .layers import StochasticDepth

Lowering = Callable[[Site], fx.Node]


def _module(layer: Callable[..., nn.Module], *attrs: str) -> Lowering:
    """A layer of torch without tensors, given these attributes in its own order."""

    def lowering(at: Site) -> fx.Node:
        return at.stateless(layer(*map(at.attr, attrs)))

    return lowering


def _function(function: Callable[..., Any]) -> Lowering:
    def lowering(at: Site) -> fx.Node:
        return reduce(lambda a, b: at.call(function, a, b), at.args)

    return lowering


def _single(function: Callable[..., Any]) -> Lowering:
    def lowering(at: Site) -> fx.Node:
        return at.call(function, *at.args)

    return lowering


def _relu(at: Site) -> fx.Node:
    return at.stateless(nn.ReLU(inplace=at.overwrites()))


def _add(at: Site) -> fx.Node:
    """The sum from left to right, in the memory of a term that nobody else reads if there is one.

    The peak of memory is lower for it, as in residual networks that are written by hand.
    """
    alike = all(type_ == at.node.types[0] for type_ in at.types) and at.alike_in_autocast
    total, free = at.args[0], alike and at.overwrites(0)
    for index, term in enumerate(at.args[1:], start=1):
        if free:
            total = at.method("add_", total, term)
        elif alike and at.overwrites(index):
            total = at.method("add_", term, total)  # two floats commute, bit for bit
            total.meta[SWAPPED] = True
        else:
            total = at.call(operator.add, total, term)
        free = alike
    return total


def _gelu(at: Site) -> fx.Node:
    return at.stateless(nn.GELU(approximate=at.attr("approximate")))


def _hardtanh(at: Site) -> fx.Node:
    """A layer; whole numbers are clamped by whole ones, which cannot be infinite."""
    low, high = at.attr("low"), at.attr("high")
    if at.types[0].dtype not in ("i64", "i32"):
        return at.stateless(nn.Hardtanh(low, high))
    bounds = [int(b) if math.isfinite(b) else None for b in (low, high)]
    return (
        at.call(torch.clamp, *at.args, *bounds)
        if any(b is not None for b in bounds)
        else at.args[0]
    )


def _prelu(at: Site) -> fx.Node:
    if not at.whole:
        return at.call(functional.prelu, *at.args, at.param("weight"))
    channels = 1 if at.attr("shared") else at.types[0].shape[1]
    assert isinstance(channels, int)
    return at.layer(nn.PReLU(channels, device="meta"))


def _addcmul(at: Site) -> fx.Node:
    return at.call(torch.addcmul, *at.args, value=at.attr("value"))


def _dropout(at: Site) -> fx.Node:
    return at.stateless(nn.Dropout(_probability(at)))


def _stochastic_depth(at: Site) -> fx.Node:
    return at.stateless(StochasticDepth(_probability(at), at.attr("mode")))


def _probability(at: Site) -> float:
    p: float = at.attr("p")
    if p > 1:
        raise at.refuse(f"p = {p} is no probability")
    return p


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "relu": _relu,
        "relu6": _module(nn.ReLU6),
        "leaky_relu": _module(nn.LeakyReLU, "slope"),
        "prelu": _prelu,
        "elu": _module(nn.ELU, "alpha"),
        "selu": _module(nn.SELU),
        "celu": _module(nn.CELU, "alpha"),
        "sigmoid": _module(nn.Sigmoid),
        "tanh": _module(nn.Tanh),
        "softplus": _module(nn.Softplus, "beta"),
        "softsign": _module(nn.Softsign),
        "gelu": _gelu,
        "silu": _module(nn.SiLU),
        "mish": _module(nn.Mish),
        "hardsigmoid": _module(nn.Hardsigmoid),
        "hardswish": _module(nn.Hardswish),
        "hardtanh": _hardtanh,
        "softmax": _module(nn.Softmax, "axis"),
        "log_softmax": _module(nn.LogSoftmax, "axis"),
        "abs": _single(torch.abs),
        "exp": _single(torch.exp),
        "sqrt": _single(torch.sqrt),
        "neg": _single(operator.neg),
        "add": _add,
        "sub": _function(operator.sub),
        "mul": _function(operator.mul),
        "div": _function(operator.truediv),
        "addcmul": _addcmul,
        "dropout": _dropout,
        "stochastic_depth": _stochastic_depth,
    }
)
