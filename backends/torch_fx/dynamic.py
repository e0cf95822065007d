"""Lowerings of the layers whose tensors are operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import fx
from torch.nn import functional

from archir.ops.dynamic import roles

from .frame import Site

Lowering = Callable[[Site], fx.Node]


def _conv(at: Site) -> fx.Node:
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[at.rank - 3]
    bias = at.args[2] if len(at.args) > 2 else None
    rows = (at.ints(name) for name in ("stride", "padding", "dilation"))
    return at.call(run, *at.args[:2], bias, *rows, at.attr("groups"))


def _linear(at: Site) -> fx.Node:
    return at.call(functional.linear, *at.args)


def _batch_norm(at: Site) -> fx.Node:
    held = dict(zip(roles(at.node.attrs), at.args[1:], strict=True))
    mean, variance = held.get("running_mean"), held.get("running_var")
    by_batch = not at.attr("track")
    return at.call(
        functional.batch_norm,
        at.args[0],
        mean,
        variance,
        held.get("weight"),
        held.get("bias"),
        by_batch,
        0.0,
        at.attr("eps"),
    )


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "dynamic_conv": _conv,
        "dynamic_linear": _linear,
        "dynamic_batch_norm": _batch_norm,
    }
)
"""These operators in torch."""
