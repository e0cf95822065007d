"""Attention whose heads are an axis of their own: torch's ``scaled_dot_product_attention``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.attend import scale_of
from archir.ops.index import first_dtype, whole
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Derived, Kind, Mode, Op, Sample


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def _b(*shape: int) -> TensorType:
    return TensorType("bool", shape)


def default_scale(attrs: Attrs, types: tuple[TensorType, ...]) -> AttrValue:
    """1 / sqrt(d), with d the last axis of the queries.

    Raises:
        OpError: that axis has no number.
    """
    width = types[0].shape[-1] if types[0].shape else 0
    if not isinstance(width, int) or not width:
        message = f"`scaled_dot_product_attention` needs a number as last axis: {types[0]}"
        raise OpError("A110", message)
    return 1 / math.sqrt(width)


def sdpa_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """All axes but the last two are mapped; keys, and causal queries, are opaque."""
    rank = types[0].rank
    if rank < 2 or any(t.rank != rank for t in types[:3]):
        raise _wrong("needs three tensors of one rank, at least 2", types[:3])
    if len({t.dtype for t in types[:3]}) > 1 or types[0].dtype == "bool":
        raise _wrong("needs three tensors of one floating element type", types[:3])
    batch = [f"b{j}" for j in range(rank - 2)]
    t = "t!" if attrs["causal"] else "t"
    ends = {"q": (t, "d"), "k": ("s!", "d"), "v": ("s!", "e")}
    tensors = []
    for type_, (role, end) in zip(types, ends.items(), strict=False):
        wide = [any(t.shape[j] != 1 for t in types[:3]) for j in range(rank - 2)]
        own = ["1" if type_.shape[j] == 1 and wide[j] else name for j, name in enumerate(batch)]
        tensors.append(f"{role}[{', '.join([*own, *end])}]")
    if len(types) > 3:
        tensors.append(_mask(attrs, types, [*batch, t, "s!"]))
    return f"{' '.join(tensors)} -> [{', '.join([*batch, t, 'e'])}]"


def _mask(attrs: Attrs, types: tuple[TensorType, ...], full: list[str]) -> str:
    mask = types[3]
    if attrs["bool_mask"] != (mask.dtype == "bool"):
        message = f"`bool_mask` of `scaled_dot_product_attention` says otherwise: {mask}"
        raise OpError("A114", message, attr="bool_mask")
    if attrs["causal"]:
        message = "`scaled_dot_product_attention` is causal or has a mask, not both"
        raise OpError("A114", message, "let the mask say it", "causal")
    if mask.dtype not in ("bool", types[0].dtype) or not 2 <= mask.rank <= len(full):
        wanted = f"wants a mask of 2 to {len(full)} axes, bool or {types[0].dtype}"
        raise _wrong(wanted, (mask,))
    names = full[len(full) - mask.rank :]
    sizes = zip(names, mask.shape, strict=True)
    return f"mask[{', '.join('1' if size == 1 else name for name, size in sizes)}]"


def _wrong(what: str, types: tuple[TensorType, ...]) -> OpError:
    shapes = " and ".join(map(str, types))
    return OpError("A110", f"`scaled_dot_product_attention` {what}: {shapes}")


def sdpa_products(attrs: Attrs, types: tuple[TensorType, ...]) -> tuple[str, ...]:
    """Queries with keys, and weights with values."""
    shared = " ".join([*(f"b{j}" for j in range(types[0].rank - 2)), "t s"])
    return f"{shared} d", f"{shared} e"


def seen(k: Arithmetic, mask: Array) -> Array:
    """Which entries of a mask of bools are true; where numbers are exact, those that are odd."""
    return np.asarray(whole(k, mask, 2) % 2 == 1)


def _sdpa(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    queries, keys, values = x[:3]
    scores = k.multiply(k.matmul(queries, keys.swapaxes(-1, -2)), scale_of(k, a))
    shown = np.ones(scores.shape[-2:], np.bool_)
    if a["causal"]:
        shown = np.tril(shown)
    if len(x) > 3 and a["bool_mask"]:
        shown = seen(k, x[3])
    elif len(x) > 3:
        scores = k.add(scores, x[3])
    if k.name.startswith("float"):
        scores = np.where(shown, scores, k.number(-math.inf))
        reach = scores.max(axis=-1, keepdims=True)
        scores = k.subtract(scores, np.where(np.isfinite(reach), reach, 0).astype(scores.dtype))
    powers = k.multiply(k.exp(scores), k.array(shown.astype(np.int64)))
    total = k.sum(powers, (powers.ndim - 1,))[..., None]
    if k.name.startswith("float") or not shown.all():  # who sees nothing gets zeros
        none = total == 0 if k.name.startswith("float") else ~shown.any(axis=-1, keepdims=True)
        total = np.where(none, k.array(1), total)
    return (k.matmul(k.divide(powers, total), values),)


def _is_bool(attrs: Attrs, types: tuple[TensorType, ...]) -> AttrValue:
    return len(types) > 3 and types[3].dtype == "bool"


SDPA = Op(
    name="scaled_dot_product_attention",
    doc="Scaled dot-product attention, heads an axis of their own; a fourth tensor masks: "
    "bools, or numbers that are added to the scores.",
    signature=sdpa_signature,
    operands=(3, 4),
    attrs=(
        Attr("scale", Kind.FLOAT, Derived(default_scale), doc="1 / sqrt(the last axis)"),
        Attr("causal", Kind.BOOL, default=False, doc="a query sees no key behind its own place"),
        Attr("bool_mask", Kind.BOOL, Derived(_is_bool), doc="the mask holds bools"),
    ),
    rescale={"d": "scale"},
    products=sdpa_products,
    reference=_sdpa,
    result_dtype=first_dtype,
    field="the exponential, and the root of a scale that is no fraction, are fixed random "
    "functions without zeros",
    samples=(
        Sample((_t(2, 3, 5, 4), _t(2, 3, 6, 4), _t(2, 3, 6, 7))),
        Sample((_t(2, 5, 6), _t(2, 5, 6), _t(2, 5, 3)), {"causal": True}),
        Sample((_t(2, 3, 5, 4), _t(2, 3, 6, 4), _t(2, 3, 6, 4), _t(3, 5, 6)), {"scale": 0.25}),
        Sample((_t(2, 3, 5, 4), _t(2, 3, 6, 4), _t(2, 3, 6, 4), _b(2, 1, 5, 6))),
        Sample((_t(5, 8), _t(7, 8), _t(7, 4))),
    ),
)

OPS = (SDPA,)
