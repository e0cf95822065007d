"""Expressions that read the sizes of tensors: what they give once a graph has changed."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.graph import Graph, Value
from archir.ir.types import AttrValue
from archir.lang import tree as t
from archir.lang.program import Tensor
from archir.lang.scalars import ScalarError, arithmetic

_MEASURES = ("channels", "size")


def measures(expr: t.Tree) -> bool:
    """Whether an expression reads a size of a tensor: ``channels(x)``, ``size(x, axis)``."""
    return any(isinstance(part, t.Call) and part.callee.text in _MEASURES for part in t.walk(expr))


def measured(expr: t.Expr, env: Mapping[str, object], graph: Graph) -> AttrValue:
    """The value of an expression of sizes in a graph; None where that is not known.

    Args:
        expr: Whole numbers, lists, arithmetic, scalars by name, and sizes of tensors.
        env: The names of the body that it stands in.
        graph: The graph, in which the tensors may have other sizes than in the body's own.
    """
    match expr:
        case t.Literal():
            return expr.value if isinstance(expr.value, int | float) else None
        case t.Name():
            value = env.get(expr.path)
            return value if isinstance(value, int | float) else None
        case t.Paren():
            return measured(expr.inner, env, graph)
        case t.ListExpr():
            parts = [measured(item, env, graph) for item in expr.items]
            return None if any(part is None for part in parts) else tuple(parts)
        case t.Unary(op="-"):
            return _reckoned("-", 0, measured(expr.operand, env, graph))
        case t.Chain():
            total = measured(expr.first, env, graph)
            for op, item in expr.rest:
                total = _reckoned(op, total, measured(item, env, graph))
            return total
        case t.Call():
            return _size(expr, env, graph)
        case _:
            return None


def _reckoned(op: str, a: AttrValue, b: AttrValue) -> AttrValue:
    if a is None or b is None:
        return None
    try:
        value = arithmetic(op, a, b)
    except ScalarError:
        return None
    return value if isinstance(value, int | float) else None


def _size(call: t.Call, env: Mapping[str, object], graph: Graph) -> AttrValue:
    given = [argument.value for argument in call.arguments]
    tensor = env.get(given[0].path) if given and isinstance(given[0], t.Name) else None
    if call.callee.text not in _MEASURES or not isinstance(tensor, Tensor):
        return None
    axis = measured(given[1], env, graph) if len(given) > 1 else 1
    if tensor.draft.path not in graph or type(axis) is not int:
        return None
    shape = graph.type_of(Value(tensor.draft.path, tensor.port)).shape
    size = shape[axis] if -len(shape) <= axis < len(shape) else None
    return size if isinstance(size, int) else None
