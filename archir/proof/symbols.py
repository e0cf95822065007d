"""The expressions of rules as terms: what is known of sizes and attributes stays symbolic."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from archir.lang import tree as t
from archir.proof.terms import Application, Constant, Fact, Formula, Variable, apply, parts
from archir.rewrite.expressions import COMPARE
from archir.rewrite.names import INITIAL, OF_TENSORS
from archir.weights.fibres import ALONG, SEEDED
from archir.weights.functions import FUNCTIONS

_PLAIN: Mapping[str, tuple[Callable[[Any, Any], Any], str, str]] = {
    "+": (operator.add, "plus", "add"),
    "-": (operator.sub, "minus", "subtract"),
    "*": (operator.mul, "times", "multiply"),
    "/": (operator.truediv, "", "divide"),
    "//": (operator.floordiv, "quotient", ""),
    "%": (operator.mod, "", ""),
}


FILLS = {"zeros": 0, "ones": 1}
"""What makes a tensor of one number: ``fill(number, sizes)``, whatever its sizes are."""


class UnspokenError(Exception):
    """The prover's terms cannot say this; the text says what."""


@dataclass(frozen=True)
class Along:
    """In a rule over a class: the tensor at hand, the axis, and the axis's map."""

    term: Formula
    axis: Formula
    map: Formula


@dataclass
class Symbols:
    """What the names of a rule's expressions stand for, as terms."""

    names: dict[str, Formula] = field(default_factory=dict)
    tensors: dict[str, Formula] = field(default_factory=dict)
    owned: dict[str, Mapping[str, Formula]] = field(default_factory=dict)
    """Attributes and parameters of pattern nodes, by the node's name."""
    weights: set[str] = field(default_factory=set)
    """The variables that are tensors."""
    ranks: dict[str, int] = field(default_factory=dict)
    maps: set[str] = field(default_factory=set)
    """Names of index maps, in a rule over a class."""
    facts: list[Fact] = field(default_factory=list)
    along: Along | None = None
    drawn: list[int] = field(default_factory=list)
    """One entry for each time something is drawn: no two draws are the same."""
    stated: dict[str, Mapping[str, Formula]] = field(default_factory=dict)
    """Attributes of pattern nodes."""
    attributes: bool = False
    """Whether a name that is both (a layer's ``bias``) is the attribute, not the parameter."""
    target: str = ""
    """The parameter that is given a value."""

    def term(self, expression: t.Expr) -> Formula:
        """The term of an expression.

        Raises:
            UnspokenError: it has none.
        """
        match expression:
            case t.Literal():
                return Constant(expression.value)
            case t.Paren():
                return self.term(expression.inner)
            case t.Name():
                return self._name(expression.path)
            case t.ListExpr():
                items = [self.term(e) for e in expression.items]
                return _tuple(items)
            case t.Unary():
                value = self.constant(expression.operand)
                return Constant(not value if expression.op == "not" else -value)
            case t.Chain():
                term = self.term(expression.first)
                for sign, part in expression.rest:
                    term = self._binary(sign, term, self.term(part))
                return term
            case t.Compare():
                sides = self.constant(expression.left), self.constant(expression.right)
                return Constant(COMPARE[expression.op](*sides))
            case t.Logic():
                values = [bool(self.constant(e)) for e in expression.items]
                return Constant(all(values) if expression.op == "and" else any(values))
            case t.Choice():
                chosen = self.constant(expression.condition)
                return self.term(expression.then if chosen else expression.other)
            case t.Call():
                return self._call(expression)
        raise UnspokenError("a proof cannot speak of this expression")

    def constant(self, expression: t.Expr) -> Any:
        """The value of an expression that is known.

        Raises:
            UnspokenError: it is not.
        """
        term = self.term(expression)
        if not isinstance(term, Constant):
            raise UnspokenError(f"the proof would have to know `{term}`")
        return term.value

    def _name(self, path: str) -> Formula:
        if self.along is not None and path in self.maps:
            return self.along.map
        if path in self.names:
            return self.names[path]
        owner, _, leaf = path.rpartition(".")
        if self.attributes and leaf in self.stated.get(owner, ()):
            return self.stated[owner][leaf]
        if self.target and path in self.weights:
            return Variable(path)  # the weight, where the layer states whether it has one too
        if owner in self.owned and leaf in self.owned[owner]:
            return self.owned[owner][leaf]
        raise UnspokenError(f"`{path}` is not known to the proof")

    def tensor(self, term: Formula) -> bool:
        """Whether a term is a tensor rather than a number."""
        return any(
            (isinstance(p, Variable) and p.name in self.weights)
            or (isinstance(p, Application) and p.head in FUNCTIONS)
            or (isinstance(p, Application) and p.head in ("kernel_identity", "fill"))
            for p in parts(term)
        )

    def _binary(self, sign: str, a: Formula, b: Formula) -> Formula:
        compute, plain, function = _PLAIN[sign]
        if isinstance(a, Constant) and isinstance(b, Constant):
            try:
                return Constant(compute(a.value, b.value))
            except (TypeError, ArithmeticError) as reason:
                raise UnspokenError(str(reason)) from None
        head = function if self.tensor(a) or self.tensor(b) else plain
        if not head:
            raise UnspokenError(f"`{sign}` of what is not known")
        counted = isinstance(b, Application) and b.head == "count"
        if self.along is not None and counted and head in ("multiply", "divide"):
            return apply(f"{head}_along", a, b, self.along.axis)
        return apply(head, a, b)

    def _call(self, call: t.Call) -> Formula:
        name = call.callee.text
        given = [a.value for a in call.arguments]
        if name in OF_TENSORS:
            return self._of_tensor(name, given)
        if name in ("min", "max"):
            values = [self.constant(e) for e in given]
            return Constant(min(values) if name == "min" else max(values))
        args = [self.term(e) for e in given]
        if name == INITIAL:
            free = Variable(f"{name} {self.target}")
            self.weights.add(free.name)
            return free
        if name in FILLS:
            return apply("fill", FILLS[name], apply("list", *args))
        if name == "identity":
            kernel = self._kernel(args[1:])
            self.odd(kernel)
            return apply("kernel_identity", args[0], kernel)
        if name in ALONG and len(args) < 3 and self.along is not None:
            moved = args[0] if len(args) == 2 else self.along.term
            seed = (len(self.drawn),) if name in SEEDED else ()
            self.drawn.extend(seed)
            return apply(name, moved, args[-1], self.along.axis, *seed)
        if name not in FUNCTIONS:
            raise UnspokenError(f"`{name}` is not known to the proof")
        return apply(name, *args)

    def _weight(self, path: str) -> Formula | None:
        owner, _, role = path.rpartition(".")
        held = self.owned.get(owner, {}).get(role)
        return held if isinstance(held, Variable) and held.name in self.weights else None

    def _kernel(self, extents: list[Formula]) -> Formula:
        """The extents of a kernel; an attribute of the left side stands for all of them."""
        matched = {f"{owner}.kernel" for owner in self.owned}
        first = extents[0] if extents else None
        if isinstance(first, Variable) and first.name in matched and len({*extents}) == 1:
            return first
        return _tuple(extents)

    def _of_tensor(self, name: str, given: list[t.Expr]) -> Formula:
        subject = given[0].path if given and isinstance(given[0], t.Name) else ""
        if f"size({subject})" in self.names:
            return self.names[f"size({subject})"]
        weight = self._weight(subject)
        if weight is not None and name in ("size", "shape"):
            place = (self.constant(given[1]),) if name == "size" else ()
            return apply(name, weight, *place)
        if subject not in self.tensors:
            raise UnspokenError(f"`{name}` of what is not a tensor of the pattern")
        if name == "rank":
            if subject not in self.ranks:
                raise UnspokenError(f"the rank of `{subject}` is not known")
            return Constant(self.ranks[subject])
        if name == "shape":
            return apply("shape", self.tensors[subject])
        if name == "uses":
            raise UnspokenError("how often a tensor is read")
        if name in ("mean", "variance"):
            free = Variable(f"{name}({subject})")
            self.weights.add(free.name)
            return free
        axis = self.constant(given[1]) if name == "size" and len(given) > 1 else 1
        if axis == 1:
            return apply("channels", self.tensors[subject])
        return apply("size", self.tensors[subject], axis)

    def odd(self, kernel: Formula) -> None:
        """Note that a kernel's extents are odd, if that is known."""
        if not isinstance(kernel, Application):
            return
        entries = kernel.args[:1] if kernel.head == "spatial" else kernel.args
        known = [Fact("odd", (e,)) in self.facts or _odd(e) for e in entries]
        if entries and all(known):
            self.facts.append(Fact("odd", (kernel,)))


def _odd(term: Formula) -> bool:
    return isinstance(term, Constant) and isinstance(term.value, int) and term.value % 2 == 1


def _tuple(items: list[Formula]) -> Formula:
    """One entry per spatial axis: equal ones are ``spatial(entry, how many)``."""
    if items and all(i == items[0] for i in items):
        return apply("spatial", items[0], len(items))
    return Application("tuple", tuple(items))
