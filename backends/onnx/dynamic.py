"""How the layers whose tensors are operands are written in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from archir.ops.dynamic import roles

from .frame import Site
from .normalise import by_batch

Lowering = Callable[[Site], None]


def _conv(at: Site) -> None:
    padding, kernel = at.ints("padding"), at.types[1].shape[2:]
    at.emit(
        "Conv",
        *at.args,
        kernel_shape=[size for size in kernel if isinstance(size, int)],
        strides=at.ints("stride"),
        pads=padding + padding,
        dilations=at.ints("dilation"),
        group=at.attr("groups"),
    )


def _linear(at: Site) -> None:
    x, weight, *bias = at.args
    if at.rank == 2:
        at.emit("Gemm", x, weight, *bias, transB=1)
        return
    turned = at.helper("turned", "Transpose", weight, perm=[1, 0])
    if bias:
        at.emit("Add", at.helper("matmul", "MatMul", x, turned), *bias)
    else:
        at.emit("MatMul", x, turned)


def _batch_norm(at: Site) -> None:
    held = dict(zip(roles(at.node.attrs), at.args[1:], strict=True))
    weight, bias = held.get("weight"), held.get("bias")
    if not at.attr("track"):
        by_batch(at, weight, bias)
        return
    channels = at.types[0].shape[1]
    if not isinstance(channels, int):
        raise at.refuse(f"it has {channels} channels, which must be a number")
    scale = weight or at.constant("scale", np.ones(channels, at.dtype))
    shift = bias or at.constant("shift", np.zeros(channels, at.dtype))
    statistics = held["running_mean"], held["running_var"]
    at.emit("BatchNormalization", at.args[0], scale, shift, *statistics, epsilon=at.attr("eps"))


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "dynamic_conv": _conv,
        "dynamic_linear": _linear,
        "dynamic_batch_norm": _batch_norm,
    }
)
"""These operators in ONNX."""
