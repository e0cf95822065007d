"""Equality of graphs: names, operators, attributes, operands, parameters, types, outputs, meta."""

from __future__ import annotations

from collections.abc import Iterable

from archir.ir.graph import Graph, Node
from archir.ir.types import AttrValue


def equal(a: Graph, b: Graph) -> bool:
    """Whether two graphs are the same network under the same names.

    The order of nodes does not count, nor do the names of the graphs; the order of inputs and
    outputs does.
    """
    return difference(a, b) is None


def difference(a: Graph, b: Graph) -> str | None:
    """The first difference between two graphs, in words; None where they are equal."""
    if a.inputs != b.inputs:
        return f"inputs {_list(a.inputs)} and {_list(b.inputs)}"
    if a.outputs != b.outputs:
        return f"outputs {_list(map(str, a.outputs))} and {_list(map(str, b.outputs))}"
    if len(a) != len(b) or any(node.name not in b for node in a):
        ours, theirs = {node.name for node in a}, {node.name for node in b}
        here, there = _list(sorted(ours - theirs)), _list(sorted(theirs - ours))
        return f"nodes only here {here}, only there {there}"
    for node in a:
        found = _node_difference(node, b.node(node.name))
        if found:
            return f"{node.name}: {found}"
    if dict(a.parameters) != dict(b.parameters):
        paths = [
            p
            for p in {**a.parameters, **b.parameters}
            if a.parameters.get(p) != b.parameters.get(p)
        ]
        return f"parameters {_list(paths)}"
    if not _same_value(tuple(sorted(a.meta.items())), tuple(sorted(b.meta.items()))):
        return "meta"
    return None


def _node_difference(x: Node, y: Node) -> str | None:
    if x is y:
        return None
    if x.op != y.op:
        return f"operators {x.op} and {y.op}"
    if x.inputs != y.inputs:
        return f"operands {_list(map(str, x.inputs))} and {_list(map(str, y.inputs))}"
    if x.types != y.types:
        return f"types {_list(map(str, x.types))} and {_list(map(str, y.types))}"
    if dict(x.params) != dict(y.params):
        return f"parameters {dict(x.params)} and {dict(y.params)}"
    if x.attrs.keys() != y.attrs.keys() or not all(
        _same_value(value, y.attrs[name]) for name, value in x.attrs.items()
    ):
        return f"attributes {dict(x.attrs)} and {dict(y.attrs)}"
    return None


def _same_value(a: AttrValue, b: AttrValue) -> bool:
    """Equality of attribute values that tells 1, 1.0 and true apart and finds NaN equal to NaN."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same_value, a, b))
    if type(a) is not type(b):
        return False
    return a == b or (a != a and b != b)  # noqa: PLR0124 - NaN differs from itself


def _list(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (", ..." if len(listed) > 5 else "") or "none"
