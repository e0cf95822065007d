"""Expressions of a rule: scalars for guards and attributes, terms for weights."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from archir.diag import ArchirError, Span, error
from archir.ir.dims import Size
from archir.ir.graph import Graph, Node, Value
from archir.ir.types import AttrValue
from archir.lang import tree as t
from archir.ops.structure import Structure, lift
from archir.rewrite.maps import MAKERS, Reader, make, size_after, size_before
from archir.rewrite.names import INITIAL, OF_TENSORS, OF_WEIGHTS
from archir.weights.fibres import ALONG, SEEDED
from archir.weights.functions import FUNCTIONS
from archir.weights.terms import Apply, Argument, IndexMap, Initial, Ref, Statistic, Term

Result = AttrValue | Term | IndexMap

_ARITHMETIC: Mapping[str, tuple[Callable[[Any, Any], Any], str]] = {
    "+": (operator.add, "add"),
    "-": (operator.sub, "subtract"),
    "*": (operator.mul, "multiply"),
    "/": (operator.truediv, "divide"),
    "//": (operator.floordiv, ""),
    "%": (operator.mod, ""),
}
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Along:
    """In a rule over a class: the tensor at hand, the axis that holds the class, and how."""

    term: Term
    axis: int
    structure: Structure
    number: int


@dataclass
class Scope:
    """What the names of an expression stand for."""

    graph: Graph
    names: dict[str, Result] = field(default_factory=dict)
    tensors: Mapping[str, Value] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    made: Mapping[str, Mapping[str, AttrValue]] = field(default_factory=dict)
    """Attributes of the right side's nodes."""
    rng: np.random.Generator | None = None
    along: Along | None = None
    reader: Reader | None = None
    """Finds maps in the weights of a class."""
    target: Initial | None = None
    """What the parameter that is given a value would hold in an untrained network."""
    attributes: bool = False
    """Whether a name that is both (a layer's ``bias``) is the attribute, not the parameter."""


def is_term(value: object) -> TypeGuard[Term]:
    """Whether a value is a weight term."""
    return isinstance(value, Term)


def plain(value: AttrValue) -> AttrValue:
    """An attribute as a rule sees it: equal entries for all spatial axes are one number."""
    if isinstance(value, tuple) and value and all(v == value[0] for v in value):
        return value[0]
    return value


def evaluate(expression: t.Expr, scope: Scope) -> Result:
    """The value of an expression.

    Raises:
        ArchirError: A208, A211 and A212, with the expression's span.
    """
    match expression:
        case t.Literal():
            return expression.value
        case t.Paren():
            return evaluate(expression.inner, scope)
        case t.Name():
            return _name(expression, scope)
        case t.ListExpr():
            return tuple(_scalar(e, scope) for e in expression.items)
        case t.Chain():
            result = evaluate(expression.first, scope)
            for sign, part in expression.rest:
                result = _binary(sign, result, evaluate(part, scope), scope, expression.span)
            return result
        case t.Choice():
            chosen = expression.then if _scalar(expression.condition, scope) else expression.other
            return evaluate(chosen, scope)
        case t.Call():
            return _call(expression, scope)
    return _plain(expression, scope)


def _plain(expression: t.Expr, scope: Scope) -> AttrValue:
    """The value of an expression that can be no weight."""
    match expression:
        case t.Unary():
            value = _scalar(expression.operand, scope)
            if expression.op == "not":
                return not value
            return _safe(operator.neg, (value,), expression.span)
        case t.Compare():
            sides = _level(_scalar(expression.left, scope), _scalar(expression.right, scope))
            return bool(_safe(COMPARE[expression.op], sides, expression.span))
        case t.Logic():
            values = (bool(_scalar(e, scope)) for e in expression.items)
            return all(values) if expression.op == "and" else any(values)
    raise error("A211", "a rule's expression cannot hold this", span=expression.span)


def _level(a: Any, b: Any) -> tuple[Any, Any]:
    """Two sides of a comparison: a list of equal entries is one number, if the other side is."""
    if isinstance(a, tuple) != isinstance(b, tuple):
        return plain(a), plain(b)
    return a, b


def _scalar(expression: t.Expr, scope: Scope) -> Any:
    value = evaluate(expression, scope)
    if is_term(value) or isinstance(value, IndexMap):
        raise error("A211", "a number is wanted here, this is a weight", span=expression.span)
    return value


def _safe(function: Callable[..., Any], args: tuple[Any, ...], span: Span) -> AttrValue:
    if function not in COMPARE.values() and not all(isinstance(a, int | float) for a in args):
        shown = " and ".join(_show(a) for a in args)
        raise error("A211", f"this cannot be computed with {shown}", span=span)
    try:
        result = function(*args)
    except (TypeError, ValueError, ArithmeticError) as reason:
        raise error("A211", f"this cannot be computed: {reason}", span=span) from None
    if isinstance(result, int) and abs(result) > 2**53:
        raise error("A211", "the number is too large", span=span)
    value: AttrValue = result
    return value


def _show(value: object) -> str:
    if isinstance(value, IndexMap):
        return "an index map"
    text = str(value).lower() if isinstance(value, bool | None) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _name(expression: t.Name, scope: Scope) -> Result:
    path = expression.path
    if path in scope.names:
        return scope.names[path]
    owner, _, leaf = path.rpartition(".")
    node = scope.nodes.get(owner)
    if node is not None and leaf in node.params and not (scope.attributes and leaf in node.attrs):
        return Ref(node.params[leaf])
    if owner in scope.made and leaf in scope.made[owner]:
        return plain(scope.made[owner][leaf])
    if node is not None and leaf in node.attrs:
        return plain(node.attrs[leaf])
    if node is not None:
        known = ", ".join([*node.params, *node.attrs]) or "nothing"
        hint = f"it has: {known}"
        raise error(
            "A212", f"`{owner}` ({node.op}) has no `{leaf}`", span=expression.span, hint=hint
        )
    known = ", ".join([*scope.names, *scope.tensors, *scope.nodes])
    raise error("A212", f"`{path}` is not defined", span=expression.span, hint=f"defined: {known}")


def _binary(sign: str, a: Result, b: Result, scope: Scope, span: Span) -> Result:
    compute, function = _ARITHMETIC[sign]
    if not is_term(a) and not is_term(b):
        return _each(compute, a, b, span)
    if not function:
        raise error("A211", f"`{sign}` has no meaning for weights", span=span)
    counted = scope.along is not None and isinstance(b, Apply) and b.function == "count"
    if counted and function in ("multiply", "divide"):
        assert scope.along is not None
        return _apply(f"{function}_along", (a, b, scope.along.axis), span)
    return _apply(function, (a, b), span)


def _each(compute: Callable[..., Any], a: Result, b: Result, span: Span) -> Result:
    """Arithmetic of numbers, or of one number for each spatial axis."""
    if not isinstance(a, tuple) and not isinstance(b, tuple):
        return _safe(compute, (a, b), span)
    count = len(a if isinstance(a, tuple) else b)  # type: ignore[arg-type]
    sides = [v if isinstance(v, tuple) else (v,) * count for v in (a, b)]
    if len(sides[0]) != len(sides[1]):
        raise error("A211", f"{_show(a)} and {_show(b)} are not of one length", span=span)
    return plain(tuple(_safe(compute, pair, span) for pair in zip(*sides, strict=True)))


def _apply(function: str, args: Iterable[Result], span: Span) -> Apply:
    return Apply(function, tuple(_argument(arg, span) for arg in args))


def _argument(value: Result, span: Span) -> Argument:
    if isinstance(value, Term | IndexMap | int | float):
        return value
    if isinstance(value, tuple):
        whole = tuple(v for v in value if isinstance(v, int))
        if len(whole) == len(value):
            return whole
    raise error("A211", f"no weight function takes {_show(value)}", span=span)


def _call(call: t.Call, scope: Scope) -> Result:
    name = call.callee.text
    given = [a.value for a in call.arguments]
    if name in OF_TENSORS:
        return _of_tensor(name, given, scope, call.span)
    args = [evaluate(e, scope) for e in given]
    if name == INITIAL:
        if scope.target is None or args:
            raise error("A211", "`initial()` is what one new parameter holds", span=call.span)
        return scope.target
    if name in ("min", "max"):
        return _safe(min if name == "min" else max, tuple(args), call.span)
    if name in MAKERS:
        return _map(name, args, scope, call.span)
    if scope.along is not None:
        args = _lifted(name, args, scope.along, scope.rng)
    function = FUNCTIONS.get(name)
    if function is None:
        raise error("A208", f"there is no weight function `{name}`", span=call.callee.span)
    return _apply(name, args, call.span)


def _lifted(
    name: str, args: list[Result], along: Along, rng: np.random.Generator | None
) -> list[Result]:
    """Within a class, maps speak of the class: spread them over the axis at hand."""
    out: list[Result] = []
    for arg in args:
        if isinstance(arg, IndexMap):
            spread = lift(along.structure, along.number, arg.entries, arg.source)
            out.append(IndexMap(*spread))
        else:
            out.append(arg)
    if name in ALONG and len(out) < 3:
        moved = out[0] if len(out) == 2 and is_term(out[0]) else along.term
        out = [moved, out[-1], along.axis]
        if name in SEEDED:
            assert rng is not None
            out.append(int(rng.integers(1 << 31)))
    return out


def _map(name: str, args: list[Result], scope: Scope, span: Span) -> IndexMap:
    """A map over a class."""
    try:
        if not MAKERS[name].reads:
            assert scope.rng is not None
            return make(name, args, scope.rng)
        old = size_before(name, args)
        new = size_after(name, old, args) if len(args) > 1 else None
    except ValueError as reason:
        raise error("A211", str(reason), span=span) from None
    if scope.reader is None:
        raise error("A213", f"`{name}` makes the map of a rule over a class", span=span)
    return scope.reader(name, old, new)


def _of_tensor(name: str, given: list[t.Expr], scope: Scope, span: Span) -> Result:
    if not given or not isinstance(given[0], t.Name):
        raise error("A211", f"`{name}` is asked of a tensor of the pattern", span=span)
    subject = given[0].path
    known = scope.names.get(f"size({subject})")
    if name == "size" and known is not None:
        return known
    value = scope.tensors.get(subject)
    if value is None:
        path = _weight(subject, scope) if name in OF_WEIGHTS else None
        if path is not None:
            return _measure(name, given, scope.graph.parameters[path].type.shape, scope, span)
        known_names = ", ".join(scope.tensors) or "none"
        raise error(
            "A212", f"no tensor is called `{subject}`", span=span, hint=f"there is: {known_names}"
        )
    if name == "uses":
        return sum(port == value.port for _, _, port in scope.graph.readers(value.node))
    found = _measure(name, given, scope.graph.type_of(value).shape, scope, span)
    if name in ("mean", "variance"):
        assert isinstance(found, int)
        return Statistic(name, value.node, value.port, found)
    return found


def _weight(subject: str, scope: Scope) -> str | None:
    """The path of a parameter of the left side."""
    owner, _, role = subject.rpartition(".")
    return scope.nodes[owner].params.get(role) if owner in scope.nodes else None


def _measure(
    name: str, given: list[t.Expr], shape: tuple[Size, ...], scope: Scope, span: Span
) -> AttrValue:
    """The rank, the shape, or one size (axis 1 where none is named) of a tensor."""
    if name == "rank":
        return len(shape)
    if name == "shape":
        sizes: Any = shape  # a guard compares them, symbols and all
        return tuple(sizes)
    subject = text_of(given[0])
    axis = _scalar(given[1], scope) if name == "size" and len(given) > 1 else 1
    if not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
        raise error("A211", f"`{subject}` has {len(shape)} axes, none is {axis}", span=span)
    size = shape[axis]
    if not isinstance(size, int):
        raise error("A211", f"axis {axis} of `{subject}` has the symbolic size {size}", span=span)
    return size


def holds(condition: t.Expr, scope: Scope) -> bool:
    """Whether a guard holds; a guard that cannot be computed does not.

    Raises:
        ArchirError: the guard names something that does not exist.
    """
    try:
        return bool(_scalar(condition, scope))
    except ArchirError as failure:
        if failure.diagnostics[0].code == "A211":
            return False
        raise


def text_of(expression: t.Expr) -> str:
    """An expression as it is written."""
    span = expression.span
    return " ".join(span.source.text[span.start : span.end].split())
