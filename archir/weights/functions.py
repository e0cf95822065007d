"""The closed list of weight functions, each with its shape rule and its value."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ops.arithmetic import Arithmetic, Array
from archir.weights.arithmetic import ARITHMETIC
from archir.weights.factors import FACTORS
from archir.weights.fibres import FIBRES
from archir.weights.gathering import GATHERING
from archir.weights.init import drawn
from archir.weights.kernels import KERNELS
from archir.weights.making import MAKING, filled
from archir.weights.moving import MOVING
from archir.weights.record import Shape, WeightError, WeightFunction, need
from archir.weights.terms import Argument, Free, Initial, Ref, Statistic, Term

__all__ = ["FUNCTIONS", "WeightError", "WeightFunction", "evaluate", "shape_of"]

FUNCTIONS: Mapping[str, WeightFunction] = {
    f.name: f for f in (*GATHERING, *FIBRES, *MAKING, *MOVING, *KERNELS, *FACTORS, *ARITHMETIC)
}
"""Every weight function. Maps, `mean` and `variance` are read when a rewrite is planned."""


def shape_of(term: Term, shapes: Mapping[str, Shape]) -> Shape:
    """The shape of a term, given the shapes of the parent's parameters.

    Raises:
        WeightError: an argument's shape does not fit its function.
    """
    if isinstance(term, Ref):
        if term.path not in shapes:
            raise WeightError(f"there is no parameter {term.path}")
        return shapes[term.path]
    if isinstance(term, Statistic):
        return (term.channels,)
    if isinstance(term, Initial):
        return term.shape
    function = FUNCTIONS[term.function]
    for place, arg in enumerate(term.args):
        tensor = isinstance(arg, Term)
        number = isinstance(arg, int | float) and not isinstance(arg, bool)
        fits = (tensor or (function.numbers and number)) if place < function.tensors else not tensor
        need(fits, f"argument {place + 1} does not fit {function.signature}")
    args = [shape_of(a, shapes) if isinstance(a, Term) else a for a in term.args]
    try:
        return function.shape(*args)
    except TypeError:
        raise WeightError(f"wrong arguments: {function.signature}") from None


def evaluate(
    term: Term,
    arithmetic: Arithmetic,
    weights: Mapping[str, Array],
    measured: Mapping[Free, Array] | None = None,
) -> Array:
    """The value of a term.

    ``measured`` holds the calibration statistics, and in exact checks whatever stands for initial
    values. Where a statistic is missing the mean is 0 and the variance 1 (the map is exact for
    any values); where an initial value is, it is drawn.
    """
    if isinstance(term, Ref):
        return weights[term.path]
    if isinstance(term, Free) and measured is not None and term in measured:
        return measured[term]
    if isinstance(term, Initial):
        return arithmetic.array(drawn(term))
    if isinstance(term, Statistic):
        return filled(0 if term.kind == "mean" else 1)(arithmetic, term.channels)
    args: list[Argument | Array] = [
        evaluate(a, arithmetic, weights, measured) if isinstance(a, Term) else a for a in term.args
    ]
    return FUNCTIONS[term.function].value(arithmetic, *args)
