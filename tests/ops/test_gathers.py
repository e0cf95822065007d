"""What a signature lets pass does pass, in GF(p): permutations, and copies of averaged axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from archir.ops import STANDARD
from archir.ops.arithmetic import Array, Residues, balance
from archir.ops.infer import Instance, bind_attrs, equations_of, instance
from archir.ops.signature import Axis

from .nets import draw, shape

K = Residues()
Maps = Mapping[str, Array]


def names_of(use: Instance) -> dict[str, bool]:
    """The names that gathers pass along, and whether only even ones do."""
    operands = [axis for axes in use.axes.operands for axis in axes]
    params = {n for axes in use.axes.params.values() for axis in axes for n in axis.names()}
    results = {n for axes in use.axes.results for axis in axes for n in axis.names()}
    opaque = {n for axis in operands if axis.opaque for n in axis.names()}
    even = {term[-1] for axis in operands if axis.even for term in axis.terms}
    names = {n for axis in operands for n in axis.names()} & (params | results)
    return {name: name in even for name in sorted(names - opaque)}


def index(axis: Axis, use: Instance, maps: Maps) -> Array:
    """Where the entries of an axis come from, if its names are gathered along maps."""
    parts, start = [], 0
    for term in axis.terms:
        found, size = np.zeros(1, np.int64), 1
        for factor in term:
            extent = use.sizes[factor] if isinstance(factor, str) else factor
            assert isinstance(extent, int)
            taken = maps.get(str(factor), np.arange(extent))
            found = (found[:, None] * extent + taken).reshape(-1)
            size *= extent
        parts.append(found + start)
        start += size
    return np.concatenate(parts)


def gathered(values: Array, axes: tuple[Axis, ...], use: Instance, maps: Maps) -> Array:
    for place, axis in enumerate(axes):
        values = values.take(index(axis, use, maps), place)
    return values


def passes(name: str, number: int, maps: Maps, mode: Any) -> bool:
    """Whether the results on gathered operands are the gathered results."""
    op = STANDARD[name]
    sample = op.samples[number]
    attrs = bind_attrs(op, sample.attrs, sample.inputs)
    use = instance(op, attrs, sample.inputs)
    stream = np.random.Generator(np.random.PCG64(number))
    operands = tuple(draw(K, shape(t), stream) for t in sample.inputs)
    params = {role: draw(K, shape(t), stream) for role, t in use.params.items()}
    before = op.reference(K, operands, params, attrs, mode)
    after = op.reference(
        K,
        tuple(gathered(x, a, use, maps) for x, a in zip(operands, use.axes.operands, strict=True)),
        {role: gathered(p, use.axes.params[role], use, maps) for role, p in params.items()},
        attrs,
        mode,
    )
    wanted = [gathered(y, a, use, maps) for y, a in zip(before, use.axes.results, strict=True)]
    return all(
        a.shape == b.shape and bool((balance(a - b) == 0).all())
        for a, b in zip(wanted, after, strict=True)
    )


def _cases() -> list[tuple[str, int]]:
    return [
        (op.name, number)
        for op in STANDARD.values()
        for number, sample in enumerate(op.samples)
        if all(t.dtype == "f32" for t in sample.inputs)
    ]


@pytest.mark.parametrize(("name", "number"), _cases())
def test_what_may_pass_does(name: str, number: int) -> None:
    op = STANDARD[name]
    sample = op.samples[number]
    attrs = bind_attrs(op, sample.attrs, sample.inputs)
    use = instance(op, attrs, sample.inputs)
    stated = {n for left, _ in equations_of(op) if isinstance(left, Axis) for n in left.names()}
    for axis, even in names_of(use).items():
        size = use.sizes[axis]
        assert isinstance(size, int)
        order = np.random.Generator(np.random.PCG64(size)).permutation(size)
        maps = [order]
        if even and axis not in stated:
            maps.append(np.concatenate([order, np.arange(size)]))
        for taken in maps:
            modes = ("eval", "train") if not op.laws else ("eval",)
            assert all(passes(name, number, {axis: taken}, mode) for mode in modes), axis


@pytest.mark.parametrize(
    ("name", "axis", "taken"),
    [
        ("layer_norm", "c0", [0, 0, 1, 2, 3, 4]),
        ("rms_norm", "c0", [0, 1, 1, 2, 3, 4]),
        ("group_norm", "c", [0, 0, 1]),
        ("local_response_norm", "c", [1, 0, 2, 3, 4, 5, 6]),
        ("softmax", "a1", [0, 0, 1, 2, 3, 4]),
        ("conv", "s0", [1, 0, 2, 3, 4, 5, 6]),
    ],
)
def test_what_may_not_pass_does_not(name: str, axis: str, taken: list[int]) -> None:
    assert not passes(name, 0, {axis: np.asarray(taken)}, "eval")
