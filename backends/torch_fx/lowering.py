"""How each operator becomes calls of torch: one function an operator, one table."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import fx, nn
from torch.nn import functional

from archir.target import extended

from . import activate, dynamic, functions, mixing, normalise, shapes
from .frame import DTYPES, Site

Lowering = Callable[[Site], fx.Node | tuple[fx.Node, ...]]


def _input(at: Site) -> fx.Node:
    return at.frame.inputs[at.node.name]


def _constant(at: Site) -> fx.Node:
    return at.constant(torch.tensor(at.attr("value"), dtype=DTYPES[at.attr("dtype")]))


def _parameter(at: Site) -> fx.Node:
    value = at.param("value")
    assert value is not None, "a parameter has a value"
    return value


def _conv(at: Site) -> fx.Node:
    rank = at.rank - 3
    stride, padding, dilation = at.ints("stride"), at.ints("padding"), at.ints("dilation")
    if not at.whole:
        run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank]
        weight, bias = at.param("weight"), at.param("bias")
        return at.call(run, *at.args, weight, bias, stride, padding, dilation, at.attr("groups"))
    layer: Callable[..., nn.Module] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank]
    return at.layer(
        layer(
            at.types[0].shape[1],
            at.attr("out"),
            at.ints("kernel"),
            stride,
            padding,
            dilation,
            at.attr("groups"),
            at.attr("bias"),
            device="meta",
        )
    )


def _conv_transpose(at: Site) -> fx.Node:
    rank, groups = at.rank - 3, at.attr("groups")
    rows = (at.ints(n) for n in ("kernel", "stride", "padding", "output_padding", "dilation"))
    kernel, stride, padding, more, dilation = rows
    if not at.whole:
        names = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
        run = getattr(functional, names[rank])
        weight, bias = at.param("weight"), at.param("bias")
        return at.call(run, *at.args, weight, bias, stride, padding, more, groups, dilation)
    layer: Callable[..., nn.Module] = (
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    )[rank]
    channels = (at.types[0].shape[1], at.attr("out"))
    biased = at.attr("bias")
    return at.layer(
        layer(*(*channels, kernel, stride, padding, more, groups, biased, dilation), device="meta")
    )


def _linear(at: Site) -> fx.Node:
    if not at.whole:
        return at.call(functional.linear, *at.args, at.param("weight"), at.param("bias"))
    features = at.types[0].shape[-1]
    assert isinstance(features, int)
    return at.layer(nn.Linear(features, at.attr("out"), at.attr("bias"), device="meta"))


def _window(at: Site) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    kernel, stride, padding = at.ints("kernel"), at.ints("stride"), at.ints("padding")
    dilation = at.ints("dilation") if "dilation" in at.node.attrs else (1,) * len(kernel)
    for k, p, d in zip(kernel, padding, dilation, strict=True):
        if 2 * p > d * (k - 1) + 1:
            raise at.refuse(f"it pads by {p}, more than half of a window of {d * (k - 1) + 1}")
    return kernel, stride, padding


def _max_pool(at: Site) -> fx.Node:
    layer = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[at.rank - 3]
    kernel, stride, padding = _window(at)
    dilation, up = at.ints("dilation"), at.attr("ceil_mode")
    return at.stateless(layer(kernel, stride, padding, dilation, ceil_mode=up))


def _avg_pool(at: Site) -> fx.Node:
    layer: Callable[..., nn.Module] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[at.rank - 3]
    kernel, stride, padding = _window(at)
    include = at.attr("count_include_pad")
    return at.stateless(layer(kernel, stride, padding, at.attr("ceil_mode"), include))


def _global_avg_pool(at: Site) -> fx.Node:
    # torch takes an empty list of axes for all of them.
    axes = tuple(range(2, at.rank))
    return at.call(torch.mean, *at.args, axes) if axes else at.args[0]


def _global_max_pool(at: Site) -> fx.Node:
    axes = tuple(range(2, at.rank))
    return at.call(torch.amax, *at.args, axes) if axes else at.args[0]


def _concat(at: Site) -> fx.Node:
    return at.call(torch.cat, at.args, at.attr("axis"))


def _split(at: Site) -> tuple[fx.Node, ...]:
    sizes = at.ints("sizes")
    parts = at.call(torch.split, *at.args, sizes, at.attr("axis"))
    return tuple(at.call(operator.getitem, parts, port) for port in range(len(sizes)))


def _flatten(at: Site) -> fx.Node:
    return at.stateless(nn.Flatten(at.attr("start")))


LOWER: Mapping[str, Lowering] = extended(
    "torch",
    {
        "input": _input,
        "constant": _constant,
        "parameter": _parameter,
        "conv": _conv,
        "conv_transpose": _conv_transpose,
        "linear": _linear,
        "max_pool": _max_pool,
        "avg_pool": _avg_pool,
        "global_avg_pool": _global_avg_pool,
        "global_max_pool": _global_max_pool,
        "concat": _concat,
        "split": _split,
        "flatten": _flatten,
        **activate.LOWER,
        **functions.LOWER,
        **shapes.LOWER,
        **mixing.LOWER,
        **normalise.LOWER,
        **dynamic.LOWER,
    },
)
"""The operators that torch runs."""

UNSUPPORTED: Mapping[str, str] = MappingProxyType({})
"""The operators that it does not, with the reason."""
