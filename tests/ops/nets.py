"""Networks from text, and uses of operators with random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from archir.diag import Source
from archir.ir.graph import Graph
from archir.ir.types import AttrValue, TensorType
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import Instance, bind_attrs, instance
from archir.ops.record import Op

FLOATS = ("f32", "f16", "bf16", "f64")


def net(body: str) -> Graph:
    """The graph of an arch with this body."""
    return load(Source("test.arch", f"arch test {{\n{body}\n}}\n"), STANDARD).graph


def use(op: str, attrs: Mapping[str, AttrValue], *shapes: tuple[int, ...]) -> Instance:
    """An inferred use of an operator on f32 tensors."""
    types = tuple(TensorType("f32", shape) for shape in shapes)
    record = STANDARD[op]
    return instance(record, bind_attrs(record, attrs, types), types)


def draw(k: Arithmetic, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Numbers that every arithmetic holds exactly: quarters from -4 to 4, without 0."""
    quarters = rng.integers(1, 17, shape) * rng.choice([-1, 1], shape)
    return k.divide(k.array(quarters), k.array(np.full(shape, 4)))


def compute(op: Op, k: Arithmetic, number: int, mode: Any = "eval") -> tuple[Any, tuple[Any, ...]]:
    """A sample's inferred types, and its results in an arithmetic, on numbers that it fixes."""
    sample = op.samples[number]
    attrs = bind_attrs(op, sample.attrs, sample.inputs)
    found = instance(op, attrs, sample.inputs)
    rng = np.random.Generator(np.random.PCG64([number, len(op.name)]))
    operands = tuple(
        draw(k, shape(t), rng)
        if t.dtype in FLOATS
        else k.array(rng.integers(0, 2 if t.dtype == "bool" else 4, shape(t)))
        for t in sample.inputs
    )
    if sample.positive:
        operands = tuple(k.multiply(x, x) for x in operands)
    params = {}
    for role, type_ in found.params.items():
        params[role] = draw(k, shape(type_), rng)
        if role == "running_var":
            params[role] = k.multiply(params[role], params[role])
    return found, op.reference(k, operands, params, attrs, mode)


def shape(type_: TensorType) -> tuple[int, ...]:
    """A type's shape, which holds whole numbers."""
    assert all(isinstance(size, int) for size in type_.shape)
    return tuple(size for size in type_.shape if isinstance(size, int))
