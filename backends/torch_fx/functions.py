"""Functions of single entries, comparisons and choices in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from .frame import DTYPES, Site

Lowering = Callable[[Site], fx.Node]


def _call(function: Callable[..., Any], *attrs: str) -> Lowering:
    """A function of the operands and these attributes, in its own order."""

    def lowering(at: Site) -> fx.Node:
        return at.call(function, *at.args, *map(at.attr, attrs))

    return lowering


def _module(layer: Callable[..., nn.Module], *attrs: str) -> Lowering:
    def lowering(at: Site) -> fx.Node:
        return at.stateless(layer(*map(at.attr, attrs)))

    return lowering


def _cast(at: Site) -> fx.Node:
    return at.frame.graph.call_method("to", (*at.args, DTYPES[at.attr("dtype")]))


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "log": _call(torch.log),
        "reciprocal": _call(torch.reciprocal),
        "rsqrt": _call(torch.rsqrt),
        "sin": _call(torch.sin),
        "cos": _call(torch.cos),
        "tan": _call(torch.tan),
        "atan": _call(torch.atan),
        "erf": _call(torch.erf),
        "sign": _call(torch.sign),
        "floor": _call(torch.floor),
        "ceil": _call(torch.ceil),
        "round": _call(torch.round),
        "pow": _call(torch.pow, "exponent"),
        "power": _call(torch.pow),
        "cast": _cast,
        "log_sigmoid": _module(nn.LogSigmoid),
        "threshold": _module(nn.Threshold, "threshold", "value"),
        "hardshrink": _module(nn.Hardshrink, "width"),
        "softshrink": _module(nn.Softshrink, "width"),
        "minimum": _call(torch.minimum),
        "maximum": _call(torch.maximum),
        "equal": _call(torch.eq),
        "not_equal": _call(torch.ne),
        "less": _call(torch.lt),
        "less_equal": _call(torch.le),
        "greater": _call(torch.gt),
        "greater_equal": _call(torch.ge),
        "logical_and": _call(torch.logical_and),
        "logical_or": _call(torch.logical_or),
        "logical_xor": _call(torch.logical_xor),
        "logical_not": _call(torch.logical_not),
        "where": _call(torch.where),
    }
)
"""These operators in torch."""
