"""Convolution and linear maps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from archir.ir.dims import Dim, Size, product
from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Kind, Mode, Op, Param, Sample
from archir.ops.window import extents, ints, spread, windows


def _conv(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (image,) = x
    weight = p["weight"]
    (groups,) = ints([a["groups"]])
    kernel, stride, padding = (ints(a[n]) for n in ("kernel", "stride", "padding"))
    n, channels = image.shape[:2]
    out = weight.shape[0]
    if set(kernel) == set(stride) == {1} and set(padding) == {0}:
        after = image.shape[2:]
        taps = image.reshape(n, groups, channels // groups, -1)
    else:
        seen = windows(image, a, k.number(0))
        rank = len(kernel)
        after = seen.shape[2 : 2 + rank]
        order = (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
        taps = seen.transpose(order).reshape(
            n, groups, channels // groups * int(np.prod(kernel)), int(np.prod(after))
        )
    rows = weight.reshape(1, groups, out // groups, -1)
    y = k.matmul(rows, taps).reshape(n, out, *after)
    if "bias" in p:
        y = k.add(y, p["bias"].reshape(-1, *[1] * len(kernel)))
    return (y,)


def _conv_transpose(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    """Each entry of the input adds the weights, times itself, to a window of the result."""
    (image,) = x
    weight = p["weight"]
    (groups,) = ints([a["groups"]])
    kernel = ints(a["kernel"])
    n, space = image.shape[0], image.shape[2:]
    out = weight.shape[1] * groups
    columns = weight.reshape(1, groups, image.shape[1] // groups, -1).swapaxes(2, 3)
    parts = k.matmul(columns, image.reshape(n, groups, image.shape[1] // groups, -1))
    parts = parts.reshape(n, out, *kernel, *space)
    y = spread(k, parts, a, ints(_grown(a, {"s": space})["s'"]))
    if "bias" in p:
        y = k.add(y, p["bias"].reshape(-1, *[1] * len(kernel)))
    return (y,)


def _grown(attrs: Attrs, stars: Mapping[str, tuple[Size, ...]]) -> dict[str, tuple[Size, ...]]:
    """The spatial extents: (s - 1) * stride - 2p + d(k-1) + output_padding + 1."""
    rows = (ints(attrs[n]) for n in ("kernel", "stride", "padding", "dilation", "output_padding"))
    out: list[Size] = []
    for s, k, st, p, d, more in zip(stars["s"], *rows, strict=True):
        if more >= max(st, d):
            raise OpError(
                "A114",
                f"an output padding of {more} is not below the stride ({st}) or dilation ({d})",
                attr="output_padding",
            )
        rest = d * (k - 1) + 1 + more - 2 * p - st
        if isinstance(s, Dim) and rest:
            raise OpError(
                "A111",
                f"a transposed window of {k} with stride {st} over a symbolic extent {s} has no "
                "closed form",
                hint="give the axis a number",
            )
        extent = product([st, s]) if isinstance(s, Dim) else st * s + rest
        if isinstance(extent, int) and extent < 1:
            raise OpError("A110", f"a padding of {p} leaves nothing of an extent of {s}")
        out.append(extent)
    return {"s'": tuple(out)}


def _spread(attrs: Attrs, types: tuple[TensorType, ...]) -> tuple[str, ...]:
    rank = types[0].rank - 2
    return (" ".join(["n g i o", *(f"s{j} k{j}" for j in range(rank))]),)


def _linear(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    y = k.matmul(x[0].reshape(-1, x[0].shape[-1]), p["weight"].T)
    y = y.reshape(*x[0].shape[:-1], y.shape[-1])
    return (k.add(y, p["bias"]) if "bias" in p else y,)


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


CONV = Op(
    name="conv",
    doc="Convolution over 1, 2 or 3 spatial axes (cross-correlation, zero padding).",
    signature="x[n, (g i), *s]  weight[(g o), i, *k]  bias?[(g o)]  ->  [n, (g o), *s']",
    attrs=(
        Attr("out", Kind.INT, least=1, doc="output channels"),
        Attr("kernel", Kind.SPATIAL, 1, least=1),
        Attr("stride", Kind.SPATIAL, 1, least=1),
        Attr("padding", Kind.PADDING, "same", least=0),
        Attr("dilation", Kind.SPATIAL, 1, least=1),
        Attr("groups", Kind.INT, 1, least=1),
        Attr("bias", Kind.BOOL, default=True),
    ),
    params=(Param("weight", "he_normal"), Param("bias", "zeros", when="bias")),
    equations={"g": "groups", "(g o)": "out", "*k": "kernel"},
    derive=extents,
    reference=_conv,
    samples=(
        Sample((_t(2, 3, 7, 6),), {"out": 5, "kernel": 3}),
        Sample((_t(1, 3, 8, 7),), {"out": 4, "kernel": (3, 5), "stride": 2, "bias": False}),
        Sample((_t(2, 6, 5, 7),), {"out": 9, "kernel": 3, "groups": 3, "dilation": 2}),
        Sample((_t(2, 4, 6, 6),), {"out": 4, "kernel": 3, "groups": 4, "padding": 0}),
        Sample((_t(2, 2, 6, 5),), {"out": 6, "kernel": 2, "padding": 1, "groups": 2}),
        Sample((_t(2, 5, 9),), {"out": 3, "kernel": 5, "stride": 2}),
        Sample((_t(1, 2, 4, 5, 3),), {"out": 3, "kernel": 3}),
        Sample((_t(1, 4, 5, 6, 7),), {"out": 6, "kernel": (3, 1, 3), "groups": 2, "dilation": 2}),
        Sample((_t(2, 6, 11),), {"out": 4, "kernel": 3, "groups": 2, "dilation": 3, "stride": 2}),
        Sample((_t(1, 7, 4, 3),), {"out": 2}),
    ),
)

CONV_TRANSPOSE = Op(
    name="conv_transpose",
    doc="Transposed convolution over 1, 2 or 3 spatial axes.",
    signature="x[n, (g i), *s]  weight[(g i), o, *k]  bias?[(g o)]  ->  [n, (g o), *s']",
    attrs=(
        Attr("out", Kind.INT, least=1, doc="output channels"),
        Attr("kernel", Kind.SPATIAL, 1, least=1),
        Attr("stride", Kind.SPATIAL, 1, least=1),
        Attr("padding", Kind.SPATIAL, 0, least=0),
        Attr("output_padding", Kind.SPATIAL, 0, least=0),
        Attr("dilation", Kind.SPATIAL, 1, least=1),
        Attr("groups", Kind.INT, 1, least=1),
        Attr("bias", Kind.BOOL, default=True),
    ),
    params=(Param("weight", "lecun_uniform"), Param("bias", "zeros", when="bias")),
    equations={"g": "groups", "(g o)": "out", "*k": "kernel"},
    derive=_grown,
    products=_spread,
    reference=_conv_transpose,
    samples=(
        Sample((_t(2, 3, 5, 4),), {"out": 5, "kernel": 3}),
        Sample((_t(1, 3, 4, 5),), {"out": 4, "kernel": (2, 4), "stride": 2, "bias": False}),
        Sample((_t(2, 6, 3, 5),), {"out": 9, "kernel": 3, "groups": 3, "dilation": 2}),
        Sample(
            (_t(2, 4, 5, 3),),
            {"out": 6, "kernel": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
        ),
        Sample((_t(2, 5, 7),), {"out": 3, "kernel": 5, "stride": 3, "padding": 2}),
        Sample((_t(1, 4, 2, 3, 5),), {"out": 6, "kernel": (3, 2, 1), "groups": 2, "dilation": 2}),
        Sample((_t(1, 7, 4, 3),), {"out": 2}),
    ),
)

LINEAR = Op(
    name="linear",
    doc="Affine map of the last axis.",
    signature="x[..., i]  weight[o, i]  bias?[o]  ->  [..., o]",
    attrs=(
        Attr("out", Kind.INT, least=1, doc="output features"),
        Attr("bias", Kind.BOOL, default=True),
    ),
    params=(Param("weight", "lecun_uniform"), Param("bias", "zeros", when="bias")),
    equations={"o": "out"},
    reference=_linear,
    samples=(
        Sample((_t(3, 5),), {"out": 4}),
        Sample((_t(2, 3, 7),), {"out": 2, "bias": False}),
        Sample((_t(2, 1, 3, 4),), {"out": 6}),
    ),
)

OPS = (CONV, CONV_TRANSPOSE, LINEAR)
