"""Normalisation in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from .frame import Site

Lowering = Callable[[Site], None]


def _batch_norm(at: Site) -> None:
    if not at.attr("track"):
        by_batch(at, at.param("weight"), at.param("bias"))
        return
    channels = at.types[0].shape[1]
    assert isinstance(channels, int)
    scale, shift = at.param("weight"), at.param("bias")
    scale = scale or at.constant("scale", np.ones(channels, at.dtype))
    shift = shift or at.constant("shift", np.zeros(channels, at.dtype))
    statistics = at.params("running_mean", "running_var")
    at.emit("BatchNormalization", *at.args, scale, shift, *statistics, epsilon=at.attr("eps"))


def by_batch(at: Site, scale: str | None, shift: str | None) -> None:
    """Without running statistics those of the batch serve, which BatchNormalization leaves out."""
    axes = [0, *range(2, at.rank)]
    centred = at.helper("centred", "Sub", at.args[0], _mean(at, "mean", at.args[0], axes))
    squares = at.helper("squares", "Mul", centred, centred)
    eps = at.constant("eps", np.asarray(at.attr("eps"), at.dtype))
    raised = at.helper("raised", "Add", _mean(at, "variance", squares, axes), eps)
    deviation = at.helper("deviation", "Sqrt", raised)
    steps = [
        (op, role, x) for op, role, x in (("Mul", "scale", scale), ("Add", "shift", shift)) if x
    ]
    if not steps:
        at.emit("Div", centred, deviation)
        return
    shape = at.constant("shape", np.asarray([-1] + [1] * (at.rank - 2), np.int64))
    made = at.helper("normal", "Div", centred, deviation)
    for number, (op, role, name) in enumerate(steps, 1):
        values = at.helper(role, "Reshape", name, shape)
        if number == len(steps):
            at.emit(op, made, values)
        else:
            made = at.helper("scaled", op, made, values)


def _mean(at: Site, role: str, value: str, axes: list[int]) -> str:
    if at.frame.opset < 18:
        return at.helper(role, "ReduceMean", value, axes=axes)
    return at.helper(role, "ReduceMean", value, at.constant(role + "_axes", np.asarray(axes)))


def _last(at: Site) -> list[int]:
    """The extents of the last axes, which are normalised."""
    sizes = at.types[0].shape[-at.attr("axes") :]
    whole = [size for size in sizes if isinstance(size, int)]
    if len(whole) < len(sizes):
        raise at.refuse("it normalises over an axis without a number")
    return whole


def _channels(at: Site) -> int:
    channels = at.types[0].shape[1]
    if not isinstance(channels, int):
        raise at.refuse(f"it has {channels} channels, which must be a number")
    return channels


def _layer_norm(at: Site) -> None:
    shape = _last(at)
    scale = at.param("weight") or at.constant("scale", np.ones(shape, at.dtype))
    given = {"axis": -len(shape), "epsilon": at.attr("eps")}
    at.emit("LayerNormalization", *at.args, scale, *at.params("bias"), **given)


def _rms_norm(at: Site) -> None:
    shape, (x,) = _last(at), at.args
    if at.frame.opset >= 23:
        scale = at.param("weight") or at.constant("scale", np.ones(shape, at.dtype))
        at.emit("RMSNormalization", x, scale, axis=-len(shape), epsilon=at.attr("eps"))
        return
    axes = list(range(at.rank - len(shape), at.rank))
    square = _mean(at, "mean_square", at.helper("square", "Mul", x, x), axes)
    eps = at.constant("eps", np.asarray(at.attr("eps"), at.dtype))
    root = at.helper("root", "Sqrt", at.helper("raised", "Add", square, eps))
    _scaled(at, at.helper("normal", "Div", x, root), at.params("weight"), [])


def _scaled(at: Site, normal: str, affine: list[str], shape: list[int]) -> None:
    """Multiply and shift by the parameters, reshaped where a shape is given."""
    if shape:
        sizes = at.constant("affine_shape", np.asarray(shape, np.int64))
        affine = [at.helper(f"affine{i}", "Reshape", p, sizes) for i, p in enumerate(affine)]
    if not affine:
        at.emit("Identity", normal)
    elif len(affine) == 1:
        at.emit("Mul", normal, *affine)
    else:
        at.emit("Add", at.helper("scaled", "Mul", normal, affine[0]), affine[1])


def _group_norm(at: Site) -> None:
    """Groups as the channels of an instance normalisation; in one node from opset 21."""
    groups, eps, (x,) = at.attr("groups"), at.attr("eps"), at.args
    channels = at.types[0].shape[1]
    if at.frame.opset >= 21 and at.rank > 2 and isinstance(channels, int):
        scale = at.param("weight") or at.constant("scale", np.ones(channels, at.dtype))
        shift = at.param("bias") or at.constant("shift", np.zeros(channels, at.dtype))
        at.emit("GroupNormalization", x, scale, shift, num_groups=groups, epsilon=eps)
        return
    cut = at.constant("groups", np.asarray([0, groups, -1], np.int64))
    ones = at.constant("ones", np.ones(groups, at.dtype))
    zeros = at.constant("zeros", np.zeros(groups, at.dtype))
    flat = at.helper("flat", "Reshape", x, cut)
    normal = at.helper("normal", "InstanceNormalization", flat, ones, zeros, epsilon=eps)
    whole = at.helper("whole", "Reshape", normal, at.helper("shape", "Shape", x))
    affine = at.params("weight", "bias")
    if at.attr("bias") and not at.attr("affine"):
        affine.insert(0, at.constant("scale", np.ones(_channels(at), at.dtype)))
    _scaled(at, whole, affine, [-1] + [1] * (at.rank - 2))


def _instance_norm(at: Site) -> None:
    channels = _channels(at)
    scale = at.param("weight") or at.constant("scale", np.ones(channels, at.dtype))
    shift = at.param("bias") or at.constant("shift", np.zeros(channels, at.dtype))
    at.emit("InstanceNormalization", *at.args, scale, shift, epsilon=at.attr("eps"))


def _local_response_norm(at: Site) -> None:
    """LRN where ONNX Runtime has it: for rank 4 and an odd number of channels around."""
    (x,), size, beta = at.args, at.attr("size"), at.attr("beta")
    if at.rank == 4 and size % 2:
        given = {"alpha": at.attr("alpha"), "beta": beta, "bias": at.attr("k")}
        at.emit("LRN", x, size=size, **given)
        return
    rows = at.constant("rows", np.asarray([0, 1, _channels(at), -1], np.int64))
    squares = at.helper("squares", "Reshape", at.helper("square", "Mul", x, x), rows)
    around = at.helper(
        "around",
        "AveragePool",
        squares,
        kernel_shape=[size, 1],
        pads=[size // 2, 0, (size - 1) // 2, 0],
        count_include_pad=1,
    )
    near = at.helper("near", "Reshape", around, at.helper("shape", "Shape", x))
    alpha, k, power = (
        at.constant(name, np.asarray(at.attr(name), at.dtype)) for name in ("alpha", "k", "beta")
    )
    raised = at.helper("raised", "Add", at.helper("weighted", "Mul", near, alpha), k)
    at.emit("Div", x, at.helper("scale", "Pow", raised, power))


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
