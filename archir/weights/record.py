"""What a weight function is: its shape rule and its value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from archir.ops.arithmetic import Array

Shape = tuple[int, ...]


class WeightError(Exception):
    """A weight term is ill-formed; the text says how, with shapes."""


@dataclass(frozen=True)
class WeightFunction:
    """A function of the weight language.

    The first ``tensors`` arguments are tensors (or numbers, where ``numbers``), the others are
    not. ``shape`` maps the shapes of tensors (other arguments as they are) to the result's;
    its derivative is in :mod:`archir.weights.linear`. What is ``inexact`` has a value in floating
    point alone: no rule that keeps the function may use it.
    """

    name: str
    signature: str
    doc: str
    tensors: int
    shape: Callable[..., Shape]
    value: Callable[..., Array]
    numbers: bool = False
    inexact: bool = False


def need(condition: object, text: str) -> None:
    """Raise a :class:`WeightError` unless a condition holds."""
    if not condition:
        raise WeightError(text)


def whole(name: str, *values: object) -> None:
    """Raise a :class:`WeightError` unless all values are integers."""
    for value in values:
        fits = isinstance(value, int) and not isinstance(value, bool)
        need(fits, f"{name}: {value} is not an integer")


def axis_of(name: str, shape: Shape, axis: int) -> int:
    """An axis of a shape, counted from the front."""
    whole(name, axis)
    need(-len(shape) <= axis < len(shape), f"{name}: no axis {axis} in {shape}")
    return axis % len(shape)
