"""Normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.record import Attr, Attrs, Kind, Mode, Op, Param, Sample


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
    field="the square root of a variance is a fixed random function",
    samples=(
        Sample((TensorType("f32", (4, 3, 5, 6)),)),
        Sample((TensorType("f32", (5, 4)),), {"eps": 1e-3}),
        Sample((TensorType("f32", (3, 2, 7)),), {"affine": False}),
        Sample((TensorType("f32", (2, 3, 4, 5)),), {"track": False}),
    ),
)

OPS = (BATCH_NORM,)
