"""Layers whose tensors are operands: computed by the network, not owned by the layer."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.dims import Size
from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.conv import CONV, LINEAR
from archir.ops.infer import OpError
from archir.ops.norm import BATCH_NORM
from archir.ops.record import Attr, Attrs, Derived, Kind, Mode, Op, Sample
from archir.ops.window import extents


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def conv_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """That of `conv`, its weight and bias among the operands."""
    bias = " bias[(g o)]" if len(types) > 2 else ""
    return f"x[n, (g i), *s] weight[(g o), i, *k]{bias} -> [n, (g o), *s']"


def _extents(attrs: Attrs, stars: Mapping[str, tuple[Size, ...]]) -> dict[str, tuple[Size, ...]]:
    kernel = tuple(size for size in stars["k"] if isinstance(size, int))
    if len(kernel) != len(stars["s"]):
        raise OpError("A110", f"a kernel of {list(map(str, stars['k']))} does not fit the image")
    return extents({**attrs, "kernel": kernel}, stars)


def _conv_products(attrs: Attrs, types: tuple[TensorType, ...]) -> tuple[str, ...]:
    rank = types[0].rank - 2
    return (" ".join(["n g i o", *(f"s'{j} k{j}" for j in range(rank))]),)


def _conv(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    held = dict(zip(("weight", "bias"), x[1:], strict=False))
    return CONV.reference(k, x[:1], held, {**a, "kernel": x[1].shape[2:]}, mode)


def linear_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """That of `linear`, its weight and bias among the operands."""
    bias = " bias[o]" if len(types) > 2 else ""
    return f"x[..., i] weight[o, i]{bias} -> [..., o]"


def _linear_products(attrs: Attrs, types: tuple[TensorType, ...]) -> tuple[str, ...]:
    return (" ".join([*(f"...{j}" for j in range(types[0].rank - 1)), "i o"]),)


def _linear(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return LINEAR.reference(k, x[:1], dict(zip(("weight", "bias"), x[1:], strict=False)), a, mode)


ROLES: Mapping[str, tuple[str, ...]] = {
    "scale": ("weight",),
    "shift": ("bias",),
    "track": ("running_mean", "running_var"),
}
"""What the operands of `dynamic_batch_norm` are, by the attribute that says they are there."""


def roles(attrs: Attrs) -> tuple[str, ...]:
    """What the operands after the first are."""
    return tuple(role for attr, found in ROLES.items() if attrs[attr] for role in found)


def _has(attr: str) -> Derived:
    """By the number of operands: a scale, a shift as well, statistics beside one or both."""

    def present(attrs: Attrs, types: tuple[TensorType, ...]) -> AttrValue:
        more = len(types) - 1
        if attr == "track":
            return more > 2
        more -= 2 * bool(attrs["track"])
        return more > (attr == "shift")

    return Derived(present)


def batch_norm_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """That of `batch_norm`; with statistics that are given nothing is mixed."""
    found = roles(attrs)
    if len(found) != len(types) - 1:
        message = (
            f"`dynamic_batch_norm` with {', '.join(n for n in ROLES if attrs[n]) or 'none of'} "
            f"reads {1 + len(found)} tensors, got {len(types)}"
        )
        raise OpError("A104", message, "say which there are: `track`, `scale`, `shift`")
    mark = "" if attrs["track"] else "!"
    shape = f"[n{mark}, c, ...{mark}]"
    return f"x{shape} {' '.join(f'{role}[c]' for role in found)} -> {shape}"


def _batch_norm(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    held = dict(zip(roles(a), x[1:], strict=True))
    bias, weight = held.pop("bias", None), held.pop("weight", None)
    # Statistics that are given serve in training too.
    (y,) = BATCH_NORM.reference(k, x[:1], held, a, "eval")
    along = (-1, *[1] * (y.ndim - 2))
    if weight is not None:
        y = k.multiply(y, weight.reshape(along))
    return (y if bias is None else k.add(y, bias.reshape(along)),)


DYNAMIC_CONV = Op(
    name="dynamic_conv",
    doc="A convolution whose weight (and bias) the network computes: further operands.",
    signature=conv_signature,
    operands=(2, 3),
    attrs=(
        Attr("stride", Kind.SPATIAL, 1, least=1),
        Attr("padding", Kind.SPATIAL, 0, least=0),
        Attr("dilation", Kind.SPATIAL, 1, least=1),
        Attr("groups", Kind.INT, 1, least=1),
    ),
    equations={"g": "groups"},
    derive=_extents,
    products=_conv_products,
    reference=_conv,
    samples=(
        Sample((_t(2, 3, 7, 6), _t(5, 3, 3, 3), _t(5)), {"padding": 1}),
        Sample((_t(1, 3, 8, 7), _t(4, 3, 3, 5)), {"stride": 2, "padding": (1, 2)}),
        Sample((_t(2, 6, 5, 7), _t(9, 2, 3, 3)), {"groups": 3, "dilation": 2, "padding": 2}),
        Sample((_t(2, 4, 9), _t(6, 2, 3), _t(6)), {"groups": 2}),
        Sample((_t(1, 2, 4, 5, 3), _t(3, 2, 3, 3, 1)), {"stride": (1, 2, 1)}),
    ),
)

DYNAMIC_LINEAR = Op(
    name="dynamic_linear",
    doc="An affine map whose weight (and bias) the network computes: further operands.",
    signature=linear_signature,
    operands=(2, 3),
    products=_linear_products,
    reference=_linear,
    samples=(
        Sample((_t(3, 5), _t(4, 5), _t(4))),
        Sample((_t(2, 3, 7), _t(2, 7))),
        Sample((_t(2, 2, 3, 4), _t(6, 4), _t(6))),
    ),
)

DYNAMIC_BATCH_NORM = Op(
    name="dynamic_batch_norm",
    doc="Batch normalisation whose scale, shift and statistics are operands, in this order; "
    "without statistics those of the batch.",
    signature=batch_norm_signature,
    operands=(1, 5),
    attrs=(
        Attr("eps", Kind.FLOAT, 1e-5, least=0),
        Attr("track", Kind.BOOL, _has("track"), doc="statistics are given: mean, variance"),
        Attr("scale", Kind.BOOL, _has("scale"), doc="a scale is given"),
        Attr("shift", Kind.BOOL, _has("shift"), doc="a shift is given"),
    ),
    reference=_batch_norm,
    field=BATCH_NORM.field,
    samples=(
        Sample((_t(4, 3, 5, 6), _t(3), _t(3), _t(3), _t(3)), positive=True),
        Sample((_t(1, 4, 7), _t(4)), {"eps": 1e-3}),
        Sample((_t(2, 3, 4, 5), _t(3), _t(3))),
        Sample((_t(3, 2, 4), _t(2), _t(2)), {"track": True}, positive=True),
        Sample((_t(3, 5),)),
    ),
)

OPS = (DYNAMIC_CONV, DYNAMIC_LINEAR, DYNAMIC_BATCH_NORM)
