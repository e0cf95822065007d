"""Reductions over chosen axes: mean, sum, max."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np

from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.layout import axes, written
from archir.ops.record import Attr, Attrs, Kind, Law, Mode, Op, Sample, Signer
from archir.ops.window import ints


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def reduction(mark: str) -> Signer:
    """Signatures in which the axes reduced over bear a mark, and go or keep extent 1."""

    def signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
        over = set(ints(attrs["axes"]))
        names = axes(types[0].rank)
        before = [name + mark * (j in over) for j, name in enumerate(names)]
        kept = [("1" if j in over else name) for j, name in enumerate(names)]
        return written(before, kept if attrs["keep"] else [n for n in kept if n != "1"])

    return signature


def _kept(result: Array, x: Array, a: Attrs) -> Array:
    over = ints(a["axes"])
    if not a["keep"]:
        return result
    return result.reshape([1 if j in over else size for j, size in enumerate(x.shape)])


def _mean(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    over = ints(a["axes"])
    share = Fraction(1, math.prod(x[0].shape[axis] for axis in over))
    return (_kept(k.multiply(k.sum(x[0], over), k.number(share)), x[0], a),)


def _sum(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (_kept(k.sum(x[0], ints(a["axes"])), x[0], a),)


def _max(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    largest = k.maximum(x[0], ints(a["axes"]), np.ones((1,) * x[0].ndim, np.bool_))
    return (_kept(largest, x[0], a),)


def _reduction(name: str, doc: str, mark: str, reference: Callable[..., tuple[Array, ...]]) -> Op:
    return Op(
        name=name,
        doc=doc,
        signature=reduction(mark),
        attrs=(Attr("axes", Kind.AXES), Attr("keep", Kind.BOOL, default=False)),
        reference=reference,
        laws=frozenset({Law.ORDERED} if name == "max" else ()),
        field="the maximum is a sum of entries of a fixed random table" if name == "max" else "",
        samples=(
            Sample((_t(2, 3, 4, 5),), {"axes": (2, 3)}),
            Sample((_t(2, 3, 5),), {"axes": -1, "keep": True}),
            Sample((_t(2, 3, 4, 5),), {"axes": (-1, 1), "keep": True}),
        ),
    )


MEAN = _reduction("mean", "The mean over axes, which go unless `keep`.", "~", _mean)
SUM = _reduction("sum", "The sum over axes, which go unless `keep`.", "!", _sum)
MAX = _reduction("max", "The largest entry over axes, which go unless `keep`.", "!", _max)

OPS = (MEAN, SUM, MAX)
