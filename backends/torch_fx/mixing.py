"""Lowerings of the operators that mix entries: attention, products, reductions, resampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import fx, nn
from torch.nn import functional

from archir.ops.interpolation import scales

from .frame import DTYPES, Site

Lowering = Callable[[Site], fx.Node]


def _attention(at: Site) -> fx.Node:
    heads = at.attr("heads")
    apart = [
        at.call(torch.transpose, at.call(torch.unflatten, x, -1, (heads, -1)), -3, -2)
        for x in at.args[:3]
    ]
    mask = at.args[3] if len(at.args) > 3 else None
    causal = at.attr("causal")
    if causal and mask is not None:
        # torch takes one or the other.
        mask, causal = at.call(torch.add, mask, _behind(at)), False
    mixed = at.call(
        functional.scaled_dot_product_attention,
        *apart,
        attn_mask=mask,
        is_causal=causal,
        scale=at.attr("scale"),
    )
    return at.call(torch.flatten, at.call(torch.transpose, mixed, -3, -2), -2)


def _behind(at: Site) -> fx.Node:
    """What keeps each query from the keys behind its own place."""
    queries, keys = at.types[0].shape[-2], at.types[1].shape[-2]
    if not isinstance(queries, int) or not isinstance(keys, int):
        raise at.refuse(f"it is causal and has a mask, over symbolic extents {queries} and {keys}")
    shut = torch.full((queries, keys), float("-inf"), dtype=DTYPES[at.types[0].dtype])
    return at.constant(shut.triu(1))


def _sdpa(at: Site) -> fx.Node:
    return at.call(
        functional.scaled_dot_product_attention,
        *at.args[:3],
        attn_mask=at.args[3] if len(at.args) > 3 else None,
        is_causal=at.attr("causal"),
        scale=at.attr("scale"),
    )


def _matmul(at: Site) -> fx.Node:
    return at.call(torch.matmul, *at.args)


def _einsum(at: Site) -> fx.Node:
    return at.call(torch.einsum, at.attr("equation"), *at.args)


def _reduction(function: Callable[..., torch.Tensor]) -> Lowering:
    def lowering(at: Site) -> fx.Node:
        axes = at.ints("axes")
        # torch takes an empty list of axes for all of them.
        return at.call(function, *at.args, axes, at.attr("keep")) if axes else at.args[0]

    return lowering


def _spread(function: Callable[..., torch.Tensor]) -> Lowering:
    def lowering(at: Site) -> fx.Node:
        more = {"correction": at.attr("correction"), "keepdim": at.attr("keep")}
        return at.call(function, *at.args, at.ints("axes"), **more)

    return lowering


def _prod(at: Site) -> fx.Node:
    """One axis after the other, the last first: torch multiplies along one at a time."""
    out = at.args[0]
    for axis in sorted(at.ints("axes"), reverse=True):
        out = at.call(torch.prod, out, axis, at.attr("keep"))
    return out


def _l2_norm(at: Site) -> fx.Node:
    return at.call(torch.linalg.vector_norm, *at.args, 2, at.ints("axes"), at.attr("keep"))


def _place(function: Callable[..., torch.Tensor]) -> Lowering:
    def lowering(at: Site) -> fx.Node:
        return at.call(function, *at.args, at.attr("axis"), at.attr("keep"))

    return lowering


def _adaptive_avg_pool(at: Site) -> fx.Node:
    layers: tuple[Callable[..., nn.Module], ...] = (
        nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveAvgPool3d,
    )
    return at.stateless(layers[at.rank - 3](at.ints("size")))


def _adaptive_max_pool(at: Site) -> fx.Node:
    layers: tuple[Callable[..., nn.Module], ...] = (
        nn.AdaptiveMaxPool1d,
        nn.AdaptiveMaxPool2d,
        nn.AdaptiveMaxPool3d,
    )
    return at.stateless(layers[at.rank - 3](at.ints("size")))


def _upsample(at: Site) -> fx.Node:
    mode, corners = at.attr("mode"), None
    if mode == "bilinear":
        mode, corners = ("linear", "bilinear", "trilinear")[at.rank - 3], at.attr("align_corners")
    scale = tuple(map(float, at.ints("scale")))
    return at.stateless(nn.Upsample(scale_factor=scale, mode=mode, align_corners=corners))


def _interpolate(at: Site) -> fx.Node:
    mode = at.attr("mode")
    factors = scales(at.node.attrs, at.rank - 2)
    return at.call(
        functional.interpolate,
        *at.args,
        size=at.ints("size") if factors is None else None,
        scale_factor=factors,
        mode=mode,
        align_corners=None if mode.startswith("nearest") else at.attr("align_corners"),
        antialias=at.attr("antialias"),
    )


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "attention": _attention,
        "scaled_dot_product_attention": _sdpa,
        "matmul": _matmul,
        "einsum": _einsum,
        "mean": _reduction(torch.mean),
        "sum": _reduction(torch.sum),
        "prod": _prod,
        "max": _reduction(torch.amax),
        "min": _reduction(torch.amin),
        "var": _spread(torch.var),
        "std": _spread(torch.std),
        "l2_norm": _l2_norm,
        "argmax": _place(torch.argmax),
        "argmin": _place(torch.argmin),
        "adaptive_avg_pool": _adaptive_avg_pool,
        "adaptive_max_pool": _adaptive_max_pool,
        "upsample": _upsample,
        "interpolate": _interpolate,
    }
)
"""These operators in torch."""
