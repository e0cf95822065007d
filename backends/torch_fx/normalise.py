"""Normalisation in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import fx, nn
from torch.nn import functional

from .frame import Site
from .layers import BatchNorm, GroupNorm

Lowering = Callable[[Site], fx.Node]


def _batch_norm(at: Site) -> fx.Node:
    eps, momentum = at.attr("eps"), at.attr("momentum")
    if not at.whole or at.rank > 5:
        roles = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        path = at.frame.hidden("batch_norm", BatchNorm(eps, momentum))
        return at.frame.graph.call_module(path, at.args, {role: at.param(role) for role in roles})
    layer = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[at.rank - 2]
    affine, track = at.attr("affine"), at.attr("track")
    return at.layer(layer(_channels(at), eps, momentum, affine, track, device="meta"))


def _channels(at: Site) -> int:
    channels = at.types[0].shape[1]
    if not isinstance(channels, int):
        raise at.refuse(f"it has {channels} channels, which must be a number")
    return channels


def _last(at: Site) -> tuple[int, ...]:
    """The extents of the last axes, which are normalised."""
    sizes = at.types[0].shape[-at.attr("axes") :]
    whole = tuple(size for size in sizes if isinstance(size, int))
    if len(whole) < len(sizes):
        raise at.refuse("it normalises over an axis without a number")
    return whole


def _placed(at: Site, layer: nn.Module) -> fx.Node:
    return at.layer(layer) if at.node.params else at.stateless(layer)


def _layer_norm(at: Site) -> fx.Node:
    shape, eps = _last(at), at.attr("eps")
    if not at.whole:
        weight, bias = at.param("weight"), at.param("bias")
        return at.call(functional.layer_norm, *at.args, shape, weight, bias, eps)
    layer = nn.LayerNorm(shape, eps, at.attr("affine"), at.attr("bias"), device="meta")
    return _placed(at, layer)


def _rms_norm(at: Site) -> fx.Node:
    shape, eps = _last(at), at.attr("eps")
    if not at.whole:
        return at.call(functional.rms_norm, *at.args, shape, at.param("weight"), eps)
    return _placed(at, nn.RMSNorm(shape, eps, at.attr("affine"), device="meta"))


def _single(at: Site) -> bool:
    """Whether a channel holds one number."""
    return all(size == 1 for size in at.types[0].shape[2:])


def _group_norm(at: Site) -> fx.Node:
    groups, eps = at.attr("groups"), at.attr("eps")
    if not at.whole or at.attr("bias") != at.attr("affine"):
        weight, bias = at.param("weight"), at.param("bias")
        return at.call(torch.group_norm, *at.args, groups, weight, bias, eps)
    layer = GroupNorm if _single(at) and _channels(at) == groups else nn.GroupNorm
    return _placed(at, layer(groups, _channels(at), eps, at.attr("affine"), device="meta"))


def _instance_norm(at: Site) -> fx.Node:
    eps = at.attr("eps")
    if _single(at):
        size, weight, bias = _channels(at), at.param("weight"), at.param("bias")
        return at.call(torch.group_norm, *at.args, size, weight, bias, eps)
    if not at.whole or at.rank > 5:
        weight, bias = at.param("weight"), at.param("bias")
        return at.call(functional.instance_norm, *at.args, weight=weight, bias=bias, eps=eps)
    layer = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[at.rank - 3]
    return _placed(at, layer(_channels(at), eps, affine=at.attr("affine"), device="meta"))


def _local_response_norm(at: Site) -> fx.Node:
    return at.stateless(nn.LocalResponseNorm(*map(at.attr, ("size", "alpha", "beta", "k"))))


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "batch_norm": _batch_norm,
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "group_norm": _group_norm,
        "instance_norm": _instance_norm,
        "local_response_norm": _local_response_norm,
    }
)
