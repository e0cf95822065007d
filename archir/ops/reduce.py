"""Reductions over chosen axes: sums and what is made of them, the largest entry and where it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from functools import reduce as fold

import numpy as np

from archir.ir.dims import product
from archir.ir.types import TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.functions import fractional
from archir.ops.infer import OpError
from archir.ops.layout import axes, written
from archir.ops.record import Attr, Attrs, Kind, Law, Mode, Op, Reference, Sample, Signer
from archir.ops.window import ints


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def _reduced(attrs: Attrs, rank: int, over: Collection[int], mark: str) -> str:
    names = axes(rank)
    before = [name + mark * (j in over) for j, name in enumerate(names)]
    kept = [("1" if j in over else name) for j, name in enumerate(names)]
    return written(before, kept if attrs["keep"] else [n for n in kept if n != "1"])


def reduction(mark: str, check: Callable[[tuple[TensorType, ...]], None] | None = None) -> Signer:
    """Signatures in which the axes reduced over bear a mark, and go or keep extent 1."""

    def signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
        if check is not None:
            check(types)
        return _reduced(attrs, types[0].rank, ints(attrs["axes"]), mark)

    return signature


def wide(op: str, type_: TensorType) -> None:
    """Refuse to add or multiply up what torch widens first.

    Raises:
        OpError: A110.
    """
    if type_.dtype in ("i32", "bool"):
        message = f"`{op}` reads floats or i64, got {type_}"
        raise OpError("A110", message, '`cast("i64")` makes numbers that hold the result')


def _summed(op: str) -> Callable[[tuple[TensorType, ...]], None]:
    return lambda types: wide(op, types[0])


def _averaged(op: str) -> Callable[[tuple[TensorType, ...]], None]:
    return lambda types: fractional(op, types)


def _some(op: str, attrs: Attrs) -> None:
    if not ints(attrs["axes"]):
        raise OpError("A114", f"`axes` of `{op}` names no axis", attr="axes")


def _spread_signature(op: str) -> Signer:
    def signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
        fractional(op, types)
        _some(op, attrs)
        (correction,) = ints([attrs["correction"]])
        count = product(types[0].shape[axis] for axis in ints(attrs["axes"]))
        if isinstance(count, int) and count <= correction:
            message = f"`{op}` of {count} entries has no value where `correction` is {correction}"
            raise OpError("A110", f"{message}: {types[0]}", attr="correction")
        # Only the population's variance is the same where every entry is taken equally often.
        mark = "!" if correction else "~"
        return _reduced(attrs, types[0].rank, ints(attrs["axes"]), mark)

    return signature


def _length_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    fractional("l2_norm", types)
    _some("l2_norm", attrs)
    return _reduced(attrs, types[0].rank, ints(attrs["axes"]), "!")


def _place_signature(op: str) -> Signer:
    def signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
        if types[0].dtype == "bool":
            raise OpError("A110", f"`{op}` compares numbers, got {types[0]}")
        return _reduced(attrs, types[0].rank, ints([attrs["axis"]]), "!")

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


def _min(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    below = k.subtract(k.array(0), x[0])
    (largest,) = _max(k, (below,), p, a, mode)
    return (k.subtract(k.array(0), largest),)


def _prod(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    out = x[0]
    for axis in sorted(ints(a["axes"]), reverse=True):
        rows = [out.take(j, axis=axis) for j in range(out.shape[axis])]
        out = np.asarray(fold(k.multiply, rows))
    return (_kept(out, x[0], a),)


def _squares(k: Arithmetic, x: Array, over: tuple[int, ...]) -> Array:
    return k.sum(k.multiply(x, x), over)


def _var(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    over = ints(a["axes"])
    (correction,) = ints([a["correction"]])
    (mean,) = _mean(k, x, p, {**a, "keep": True}, mode)
    count = math.prod(x[0].shape[axis] for axis in over)
    squares = _squares(k, k.subtract(x[0], mean), over)
    return (_kept(k.multiply(squares, k.number(Fraction(1, count - correction))), x[0], a),)


def _std(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (variance,) = _var(k, x, p, a, mode)
    return (k.sqrt(variance),)


def _l2_norm(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (_kept(k.sqrt(_squares(k, x[0], ints(a["axes"]))), x[0], a),)


def _place(of: Callable[..., Array]) -> Reference:
    def reference(
        k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
    ) -> tuple[Array, ...]:
        (axis,) = ints([a["axis"]])
        found = np.asarray(of(x[0], axis=axis))
        return (k.array(np.expand_dims(found, axis) if a["keep"] else found),)

    return reference


_OVER = (Attr("axes", Kind.AXES), Attr("keep", Kind.BOOL, default=False))
_SAMPLES = (
    Sample((_t(2, 3, 4, 5),), {"axes": (2, 3)}),
    Sample((_t(2, 3, 5),), {"axes": -1, "keep": True}),
    Sample((_t(2, 3, 4, 5),), {"axes": (-1, 1), "keep": True}),
)
_WHOLE = Sample((TensorType("i64", (2, 4, 3)),), {"axes": 1})
_ORDERED = frozenset({Law.ORDERED})


def _reduction(
    name: str,
    doc: str,
    signature: Signer,
    reference: Reference,
    *,
    laws: frozenset[Law] = frozenset(),
    field: str = "",
    attrs: tuple[Attr, ...] = _OVER,
    samples: tuple[Sample, ...] = _SAMPLES,
) -> Op:
    return Op(
        name=name,
        doc=doc,
        signature=signature,
        attrs=attrs,
        reference=reference,
        laws=laws,
        field=field,
        samples=samples,
    )


def _corrected(name: str, doc: str, reference: Reference, field: str = "") -> Op:
    samples = (*_SAMPLES, Sample((_t(2, 3, 4),), {"axes": 2, "correction": 0}))
    attrs = (*_OVER, Attr("correction", Kind.INT, 1, least=0))
    signature = _spread_signature(name)
    return _reduction(name, doc, signature, reference, attrs=attrs, samples=samples, field=field)


def _placed(name: str, doc: str, of: Callable[..., Array], field: str) -> Op:
    return Op(
        name=name,
        doc=doc,
        signature=_place_signature(name),
        attrs=(Attr("axis", Kind.AXIS), Attr("keep", Kind.BOOL, default=False)),
        reference=_place(of),
        result_dtype=lambda attrs, types: "i64",
        laws=_ORDERED,
        field=field,
        samples=(
            Sample((_t(2, 3, 4, 5),), {"axis": 1}),
            Sample((_t(2, 3, 7),), {"axis": -1, "keep": True}),
            Sample((TensorType("i64", (2, 4)),), {"axis": 1}),
        ),
    )


MEAN = _reduction(
    "mean", "The mean over axes, which go unless `keep`.", reduction("~", _averaged("mean")), _mean
)
SUM = _reduction(
    "sum",
    "The sum over axes, which go unless `keep`.",
    reduction("!", _summed("sum")),
    _sum,
    samples=(*_SAMPLES, _WHOLE),
)
PROD = _reduction(
    "prod",
    "The product over axes, which go unless `keep`.",
    reduction("!", _summed("prod")),
    _prod,
    samples=(*_SAMPLES, _WHOLE),
)
MAX = _reduction(
    "max",
    "The largest entry over axes, which go unless `keep`.",
    reduction("!"),
    _max,
    laws=_ORDERED,
    field="the maximum is a sum of entries of a fixed random table",
    samples=(*_SAMPLES, _WHOLE),
)
MIN = _reduction(
    "min",
    "The least entry over axes, which go unless `keep`.",
    reduction("!"),
    _min,
    laws=_ORDERED,
    field="the minimum is a sum of entries of a fixed random table",
    samples=(*_SAMPLES, _WHOLE),
)
VAR = _corrected(
    "var", "The sum of squared deviations from the mean, over n - `correction` entries.", _var
)
STD = _corrected("std", "The square root of `var`.", _std, "the root has a stand-in")
L2_NORM = _reduction(
    "l2_norm",
    "The root of the sum of squares over axes, which go unless `keep`.",
    _length_signature,
    _l2_norm,
    field="the root has a stand-in",
)
ARGMAX = _placed(
    "argmax",
    "Where the largest entry of an axis is (the first of them), as i64.",
    np.argmax,
    "the place of the largest balanced residue",
)
ARGMIN = _placed(
    "argmin",
    "Where the least entry of an axis is (the first of them), as i64.",
    np.argmin,
    "the place of the least balanced residue",
)

OPS = (MEAN, SUM, PROD, MAX, MIN, VAR, STD, L2_NORM, ARGMAX, ARGMIN)
