"""How each operator is written in ONNX: one function an operator, one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from archir.ops.pool import padded_counts
from archir.target import extended
from archir.weights.store import numpy_dtype

from . import activate, dynamic, functions, mixing, normalise, shapes, unfold
from .frame import Site, tensor

Lowering = Callable[[Site], None]


def _named(at: Site) -> None:
    """Inputs and parameters are no nodes: the name of the value is all there is."""
    at.param("value")


def _constant(at: Site) -> None:
    values = np.asarray(at.attr("value"), numpy_dtype(at.attr("dtype")))
    at.emit("Constant", value=tensor("value", values))


def _conv(at: Site) -> None:
    padding = at.ints("padding")
    at.emit(
        "Conv",
        *at.args,
        *at.params("weight", "bias"),
        kernel_shape=at.ints("kernel"),
        strides=at.ints("stride"),
        pads=padding + padding,
        dilations=at.ints("dilation"),
        group=at.attr("groups"),
    )


def _conv_transpose(at: Site) -> None:
    padding = at.ints("padding")
    at.emit(
        "ConvTranspose",
        *at.args,
        *at.params("weight", "bias"),
        kernel_shape=at.ints("kernel"),
        strides=at.ints("stride"),
        pads=padding + padding,
        output_padding=at.ints("output_padding"),
        dilations=at.ints("dilation"),
        group=at.attr("groups"),
    )


def _linear(at: Site) -> None:
    weight, *bias = at.params("weight", "bias")
    if at.rank == 2:
        at.emit("Gemm", *at.args, weight, *bias, transB=1)
        return
    turned = at.helper("weight", "Transpose", weight, perm=[1, 0])
    if bias:
        at.emit("Add", at.helper("matmul", "MatMul", *at.args, turned), *bias)
    else:
        at.emit("MatMul", *at.args, turned)


def _max_pool(at: Site) -> None:
    at.emit("MaxPool", *at.args, **_window(at), dilations=at.ints("dilation"))


def _avg_pool(at: Site) -> None:
    window, include = _window(at), at.attr("count_include_pad")
    if window["pads"] == 2 * at.ints("padding") or not include:
        at.emit("AveragePool", *at.args, **window, count_include_pad=int(include))
        return
    # What is padded to round up counts for ONNX, not for torch.
    before, after = (
        [size for size in type_.shape[2:] if isinstance(size, int)]
        for type_ in (at.types[0], at.node.types[0])
    )
    counts = padded_counts(at.node.attrs, tuple(before), tuple(after))
    share = np.asarray(np.prod(window["kernel_shape"]) / counts, at.dtype)
    means = at.helper("means", "AveragePool", *at.args, **window, count_include_pad=1)
    at.emit("Mul", means, at.constant("shares", share))


def _window(at: Site) -> dict[str, list[int]]:
    """Attributes of a pooling; rounding up is spelled out as padding at the end.

    What `ceil_mode` means for a last window that starts in the padding has changed between
    opsets and differs between runtimes; padding means the same everywhere.
    """
    kernel, stride, padding = at.ints("kernel"), at.ints("stride"), at.ints("padding")
    dilation = at.ints("dilation") if "dilation" in at.node.attrs else [1] * len(kernel)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    end = list(padding)
    for axis, (before, after) in enumerate(
        zip(at.types[0].shape[2:], at.node.types[0].shape[2:], strict=True)
    ):
        if isinstance(before, int) and isinstance(after, int):
            last = (after - 1) * stride[axis] + reach[axis]
            end[axis] = max(padding[axis], last - before - padding[axis])
        if max(padding[axis], end[axis]) >= reach[axis]:
            raise at.refuse(f"it pads by {end[axis]}, a whole window of {reach[axis]}")
    return {"kernel_shape": kernel, "strides": stride, "pads": padding + end}


def _over_space(op: str) -> Lowering:
    def lowering(at: Site) -> None:
        if at.rank == 2:
            at.emit("Identity", *at.args)
        else:
            at.emit("Flatten", at.helper("pool", op, *at.args), axis=1)

    return lowering


def _concat(at: Site) -> None:
    at.emit("Concat", *at.args, axis=at.attr("axis"))


def _split(at: Site) -> None:
    sizes = at.constant("sizes", np.asarray(at.ints("sizes"), np.int64))
    at.emit("Split", *at.args, sizes, axis=at.attr("axis"))


def _flatten(at: Site) -> None:
    start = at.attr("start")
    if start == 1:
        at.emit("Flatten", *at.args, axis=1)
    else:
        shape = at.constant("shape", np.asarray([0] * start + [-1], np.int64))
        at.emit("Reshape", *at.args, shape)


LOWER: Mapping[str, Lowering] = extended(
    "onnx",
    {
        "input": _named,
        "constant": _constant,
        "parameter": _named,
        "conv": _conv,
        "conv_transpose": _conv_transpose,
        "linear": _linear,
        "max_pool": _max_pool,
        "avg_pool": _avg_pool,
        "global_avg_pool": _over_space("GlobalAveragePool"),
        "global_max_pool": _over_space("GlobalMaxPool"),
        "concat": _concat,
        "split": _split,
        "flatten": _flatten,
        **activate.LOWER,
        **functions.LOWER,
        **shapes.LOWER,
        **mixing.LOWER,
        **normalise.LOWER,
        **dynamic.LOWER,
        **unfold.LOWER,
    },
)
"""The operators that can be written."""

UNSUPPORTED: Mapping[str, str] = MappingProxyType({})
"""The operators that cannot, with the reason."""
