"""How windows are laid out and put back in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from archir.ops.unfolding import positions

from .frame import Site
from .shapes import whole

Lowering = Callable[[Site], None]
COL2IM = 18
"""The opset from which on there is an operator that puts windows back."""


def _unfold(at: Site) -> None:
    """Gather the windows of one axis after the other; then their entries stand with the channel."""
    value = at.args[0]
    padding, kernel = at.ints("padding"), at.ints("kernel")
    if any(padding):
        margin = [0, 0, *padding]
        value = at.helper("padded", "Pad", value, whole(at, "pads", *margin, *margin))
    counts = positions("unfold", at.node.attrs, at.types[0].shape[2:])
    rows = zip(kernel, at.ints("stride"), at.ints("dilation"), counts, strict=True)
    for axis, (taps, step, apart, count) in zip((2, 4), rows, strict=True):
        entries = np.arange(taps)[:, None] * apart + np.arange(count) * step
        index = at.constant(f"entries{axis}", entries.astype(np.int64))
        value = at.helper(f"windows{axis}", "Gather", value, index, axis=axis)
    turned = at.helper("turned", "Transpose", value, perm=[0, 1, 2, 4, 3, 5])
    at.emit("Reshape", turned, whole(at, "shape", 0, -1, int(np.prod(counts))))


def _fold(at: Site) -> None:
    size, kernel, stride, padding, dilation = (
        at.ints(name) for name in ("size", "kernel", "stride", "padding", "dilation")
    )
    if at.frame.opset >= COL2IM:
        shapes = whole(at, "image", *size), whole(at, "block", *kernel)
        pads = padding + padding
        at.emit("Col2Im", *at.args, *shapes, strides=stride, pads=pads, dilations=dilation)
        return
    channels = at.node.types[0].shape[1]
    if not isinstance(channels, int):
        raise at.refuse(f"it has {channels} channels, which must be a number")
    # A transposed convolution puts each entry where its tap lies.
    counts = positions("fold", at.node.attrs, size)
    taps = int(np.prod(kernel))
    weight = np.tile(np.eye(taps).reshape(taps, 1, *kernel), (channels, 1, 1, 1))
    rows = zip(size, kernel, stride, padding, dilation, counts, strict=True)
    rest = [s + 2 * p - (c - 1) * st - d * (k - 1) - 1 for s, k, st, p, d, c in rows]
    at.emit(
        "ConvTranspose",
        at.helper("places", "Reshape", *at.args, whole(at, "shape", 0, 0, *counts)),
        at.constant("taps", weight.astype(at.dtype)),
        kernel_shape=kernel,
        strides=stride,
        pads=padding + padding,
        output_padding=rest,
        dilations=dilation,
        group=channels,
    )


def _windows(at: Site) -> None:
    axis, size, step = at.attr("axis"), at.attr("size"), at.attr("step")
    count = at.node.types[0].shape[axis]
    assert isinstance(count, int)
    entries = np.arange(count)[:, None] * step + np.arange(size)
    index = at.constant("entries", entries.astype(np.int64))
    if axis == at.rank - 1:
        at.emit("Gather", *at.args, index, axis=axis)
        return
    seen = at.helper("windows", "Gather", *at.args, index, axis=axis)
    order = [j for j in range(at.rank + 1) if j != axis + 1]
    at.emit("Transpose", seen, perm=[*order, axis + 1])


LOWER: Mapping[str, Lowering] = MappingProxyType(
    {
        "unfold": _unfold,
        "fold": _fold,
        "windows": _windows,
    }
)
"""These operators in ONNX."""
