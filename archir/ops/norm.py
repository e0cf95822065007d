"""Normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Kind, Mode, Op, Param, SameAs, Sample

_ROOT = "the square root of a variance is a fixed random function"


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def _number(a: Attrs, name: str) -> float:
    value = a[name]
    assert isinstance(value, float)
    return value


def _whole(a: Attrs, name: str) -> int:
    value = a[name]
    assert isinstance(value, int)
    return value


def _mean(k: Arithmetic, x: Array, over: tuple[int, ...]) -> Array:
    """The mean over axes, which are kept with extent 1."""
    kept = tuple(1 if j in over else s for j, s in enumerate(x.shape))
    share = Fraction(math.prod(kept), x.size)
    return k.multiply(k.sum(x, over).reshape(kept), k.number(share))


def _normal(k: Arithmetic, x: Array, over: tuple[int, ...], eps: float) -> Array:
    """The entries less their mean, over the root of their variance."""
    centred = k.subtract(x, _mean(k, x, over))
    variance = _mean(k, k.multiply(centred, centred), over)
    return k.divide(centred, k.sqrt(k.add(variance, k.number(eps))))


def _affine(k: Arithmetic, x: Array, p: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    if "weight" in p:
        x = k.multiply(x, p["weight"].reshape(shape))
    return k.add(x, p["bias"].reshape(shape)) if "bias" in p else x


def _along(v: Array, rank: int) -> Array:
    return v.reshape(-1, *[1] * (rank - 2))


def _statistics(k: Arithmetic, x: Array) -> tuple[Array, Array, int]:
    over = (0, *range(2, x.ndim))
    count = x.size // x.shape[1]
    mean = k.multiply(k.sum(x, over), k.number(Fraction(1, count)))
    centred = k.subtract(x, _along(mean, x.ndim))
    variance = k.multiply(k.sum(k.multiply(centred, centred), over), k.number(Fraction(1, count)))
    return mean, variance, count


def _batch_norm(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (image,) = x
    if mode == "train" or "running_mean" not in p:
        mean, variance, _ = _statistics(k, image)
    else:
        mean, variance = p["running_mean"], p["running_var"]
    eps = a["eps"]
    assert isinstance(eps, float)
    deviation = k.sqrt(k.add(variance, k.number(eps)))
    centred = k.subtract(image, _along(mean, image.ndim))
    if "weight" not in p:
        return (k.divide(centred, _along(deviation, image.ndim)),)
    scale = k.divide(p["weight"], deviation)
    y = k.multiply(centred, _along(scale, image.ndim))
    return (k.add(y, _along(p["bias"], image.ndim)),)


def _update(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs
) -> dict[str, Array]:
    if "running_mean" not in p:
        return {}
    mean, variance, count = _statistics(k, x[0])
    momentum = a["momentum"]
    assert isinstance(momentum, float)
    new, old = k.number(momentum), k.subtract(k.array(1), k.array(momentum))
    unbiased = k.multiply(variance, k.number(Fraction(count, max(count - 1, 1))))
    return {
        "running_mean": k.add(k.multiply(p["running_mean"], old), k.multiply(mean, new)),
        "running_var": k.add(k.multiply(p["running_var"], old), k.multiply(unbiased, new)),
    }


BATCH_NORM = Op(
    name="batch_norm",
    doc="Batch normalisation over all axes but the channel axis 1; eval uses running statistics.",
    signature=(
        "x[n!, c, ...!]  weight?[c] bias?[c] running_mean?[c] running_var?[c] "
        "num_batches_tracked?[]  ->  [n!, c, ...!]"
    ),
    attrs=(
        Attr("eps", Kind.FLOAT, 1e-5, least=0),
        Attr("momentum", Kind.FLOAT, 0.1, least=0),
        Attr("affine", Kind.BOOL, default=True),
        Attr("track", Kind.BOOL, default=True, doc="keep running statistics"),
    ),
    params=(
        Param("weight", "ones", when="affine"),
        Param("bias", "zeros", when="affine"),
        Param("running_mean", "zeros", buffer=True, when="track"),
        Param("running_var", "ones", buffer=True, when="track"),
        Param("num_batches_tracked", "zeros", buffer=True, when="track", dtype="i64"),
    ),
    reference=_batch_norm,
    update=_update,
    field=_ROOT,
    samples=(
        Sample((_t(4, 3, 5, 6),)),
        Sample((_t(5, 4),), {"eps": 1e-3}),
        Sample((_t(3, 2, 7),), {"affine": False}),
        Sample((_t(2, 3, 4, 5),), {"track": False}),
    ),
)


def _last(a: Attrs, rank: int) -> tuple[int, ...]:
    return tuple(range(rank - _whole(a, "axes"), rank))


def _over_last(op: str, roles: str, attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    rank, axes = types[0].rank, _whole(attrs, "axes")
    if axes > rank:
        raise OpError("A114", f"`axes` of `{op}` is {axes}, its input has rank {rank}", attr="axes")
    outer = [f"a{j}" for j in range(rank - axes)]
    inner = [f"c{j}" for j in range(axes)]
    shape = f"[{', '.join([*outer, *(f'{c}~' for c in inner)])}]"
    params = " ".join(f"{role}?[{', '.join(inner)}]" for role in roles.split())
    return f"x{shape} {params} -> {shape}"


def _layer_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    return _over_last("layer_norm", "weight bias", attrs, types)


def _rms_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    return _over_last("rms_norm", "weight", attrs, types)


def _layer_norm(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    over = _last(a, x[0].ndim)
    normal = _normal(k, x[0], over, _number(a, "eps"))
    return (_affine(k, normal, p, x[0].shape[over[0] :]),)


def _rms_norm(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    over = _last(a, x[0].ndim)
    square = _mean(k, k.multiply(x[0], x[0]), over)
    normal = k.divide(x[0], k.sqrt(k.add(square, k.number(_number(a, "eps")))))
    return (_affine(k, normal, p, x[0].shape[over[0] :]),)


def _group_norm(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (image,) = x
    groups = image.reshape(image.shape[0], _whole(a, "groups"), -1)
    normal = _normal(k, groups, (2,), _number(a, "eps")).reshape(image.shape)
    return (_affine(k, normal, p, (-1, *[1] * (image.ndim - 2))),)


def _instance_norm(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (image,) = x
    normal = _normal(k, image, tuple(range(2, image.ndim)), _number(a, "eps"))
    return (_affine(k, normal, p, (-1, *[1] * (image.ndim - 2))),)


def _local_response_norm(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (image,) = x
    size, beta = _whole(a, "size"), _number(a, "beta")
    squares = k.multiply(image, image)
    padded = [(0, 0)] * image.ndim
    padded[1] = (size // 2, (size - 1) // 2)
    squares = np.pad(squares, padded, constant_values=k.number(0))
    near = sliding_window_view(squares, size, axis=1)
    share = k.divide(k.number(_number(a, "alpha")), k.number(size))
    around = k.multiply(k.sum(near, (near.ndim - 1,)), share)
    scale = k.function(
        f"power({beta})", k.add(around, k.number(_number(a, "k"))), lambda v: v**beta
    )
    return (k.divide(image, scale),)


_EPS = Attr("eps", Kind.FLOAT, 1e-5, least=0)
_AXES = Attr("axes", Kind.INT, 1, least=1, doc="how many of the last axes are normalised")
_PAIR = (Param("weight", "ones", when="affine"), Param("bias", "zeros", when="affine"))

LAYER_NORM = Op(
    name="layer_norm",
    doc="Normalises each entry of the batch over the last axes.",
    signature=_layer_signature,
    attrs=(
        _AXES,
        _EPS,
        Attr("affine", Kind.BOOL, default=True),
        Attr("bias", Kind.BOOL, default=SameAs("affine")),
    ),
    params=(Param("weight", "ones", when="affine"), Param("bias", "zeros", when="bias")),
    reference=_layer_norm,
    field=_ROOT,
    samples=(
        Sample((_t(2, 3, 5),)),
        Sample((_t(3, 2, 4, 5),), {"axes": 2, "eps": 1e-3}),
        Sample((_t(4, 7),), {"bias": False}),
        Sample((_t(2, 3, 6),), {"affine": False}),
        Sample((_t(3, 8),), {"affine": False, "bias": True}),
    ),
)

RMS_NORM = Op(
    name="rms_norm",
    doc="Divides by the root of the mean square over the last axes.",
    signature=_rms_signature,
    attrs=(
        _AXES,
        Attr("eps", Kind.FLOAT, 1e-6, least=0),
        Attr("affine", Kind.BOOL, default=True),
    ),
    params=(Param("weight", "ones", when="affine"),),
    reference=_rms_norm,
    field="the square root of a mean square is a fixed random function",
    samples=(
        Sample((_t(2, 3, 5),)),
        Sample((_t(3, 2, 4, 5),), {"axes": 2, "eps": 1e-3}),
        Sample((_t(4, 7),), {"affine": False}),
    ),
)

GROUP_NORM = Op(
    name="group_norm",
    doc="Normalises each group of channels over its channels and all further axes.",
    signature="x[n, (g c)~, ...!]  weight?[(g c)] bias?[(g c)]  ->  [n, (g c)~, ...!]",
    attrs=(
        Attr("groups", Kind.INT, least=1),
        _EPS,
        Attr("affine", Kind.BOOL, default=True),
        Attr("bias", Kind.BOOL, default=SameAs("affine")),
    ),
    params=(Param("weight", "ones", when="affine"), Param("bias", "zeros", when="bias")),
    equations={"g": "groups"},
    reference=_group_norm,
    field=_ROOT,
    samples=(
        Sample((_t(2, 6, 4, 5),), {"groups": 3}),
        Sample((_t(3, 4, 7),), {"groups": 2, "eps": 1e-3}),
        Sample((_t(2, 5, 3, 4),), {"groups": 1, "affine": False}),
        Sample((_t(5, 8),), {"groups": 2}),
        Sample((_t(2, 6, 3, 4, 2),), {"groups": 2}),
        Sample((_t(2, 6, 3, 4),), {"groups": 3, "bias": False}),
        Sample((_t(2, 6, 5),), {"groups": 2, "affine": False, "bias": True}),
    ),
)

INSTANCE_NORM = Op(
    name="instance_norm",
    doc="Normalises each channel of each image over the spatial axes.",
    signature="x[n, c, s!, ...!]  weight?[c] bias?[c]  ->  [n, c, s!, ...!]",
    attrs=(_EPS, Attr("affine", Kind.BOOL, default=False)),
    params=_PAIR,
    reference=_instance_norm,
    field=_ROOT,
    samples=(
        Sample((_t(2, 3, 4, 5),)),
        Sample((_t(3, 4, 7),), {"affine": True, "eps": 1e-3}),
        Sample((_t(2, 3, 4, 5, 2),), {"affine": True}),
    ),
)

LOCAL_RESPONSE_NORM = Op(
    name="local_response_norm",
    doc="x / (k + alpha * the mean of x * x over `size` channels around) ** beta.",
    signature="x[n, c!, s, ...] -> [n, c!, s, ...]",
    attrs=(
        Attr("size", Kind.INT, least=1),
        Attr("alpha", Kind.FLOAT, 1e-4, least=0),
        Attr("beta", Kind.FLOAT, 0.75),
        Attr("k", Kind.FLOAT, 1.0, least=0),
    ),
    reference=_local_response_norm,
    field="the power is a fixed random function",
    samples=(
        Sample((_t(2, 7, 4, 5),), {"size": 5, "alpha": 0.5}),
        Sample((_t(3, 5, 7),), {"size": 2, "alpha": 0.7, "beta": 0.5, "k": 2.0}),
        Sample((_t(2, 6, 3, 4, 5),), {"size": 4, "alpha": 0.5}),
    ),
)

OPS = (BATCH_NORM, LAYER_NORM, RMS_NORM, GROUP_NORM, INSTANCE_NORM, LOCAL_RESPONSE_NORM)
