"""What the expressions of a rule may speak of, checked when its file is read."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

from archir.diag import Span
from archir.lang import tree as t
from archir.ops.record import OpSet
from archir.rewrite.maps import MAKERS
from archir.rewrite.rule import Pattern, PatternOperand, Reshaping, Rewriting
from archir.weights.functions import FUNCTIONS

OF_TENSORS = ("channels", "rank", "size", "shape", "uses", "mean", "variance")
"""Functions of a tensor of the pattern; `mean` and `variance` are measured on calibration data."""
OF_WEIGHTS = ("rank", "size", "shape")
"""Those that may be asked of a parameter of the left side too."""
INITIAL = "initial"
"""What an untrained network would hold in the parameter that is given a value."""
SCALAR = ("min", "max", *MAKERS)
"""Functions of numbers."""
ELSEWHERE = {
    "eye": "identity",
    "dirac": "identity",
    "cat": "concat",
    "permute": "transpose",
    "swapaxes": "transpose",
    "view": "reshape",
    "flatten": "reshape",
    "gather": "take",
    "index_select": "take",
    "sum": "row_sums",
    "var": "variance",
    "repeat": "tile",
    "zeros_like": "zeros",
    "ones_like": "ones",
    "dot": "matmul",
    "narrow": "slice",
    "chunk": "part",
}
"""What functions are called here that libraries of tensors call otherwise."""

Complain = Callable[[str, str, Span, str], None]


class Names:
    """Checks the names and calls of one rule's expressions, and reports each wrong one."""

    def __init__(
        self,
        ops: OpSet,
        complain: Complain,
        parameters: Sequence[str],
        span: Span,
        *,
        exact: bool = False,
    ) -> None:
        self.ops, self.complain, self.span, self.exact = ops, complain, span, exact
        self.scalars = dict.fromkeys(parameters)
        self.tensors: dict[str, None] = {}
        self.nodes: dict[str, str] = {}
        self.target = False
        """Whether an expression is the value of one parameter."""
        self.over = ""
        """What a rule over a class calls it."""

    def rewriting(
        self, body: Rewriting, where: Iterable[t.Expr], paths: Sequence[str] = ()
    ) -> None:
        """Check a rule over a pattern; parameters that are paths stand for tensors."""
        for node in body.match.nodes:
            for value in node.attrs.values():
                self._stated(value)
            self.nodes[node.name] = node.op
        free = list(dict.fromkeys([*body.match.variables, *paths]))
        self.tensors = dict.fromkeys([*free, *body.match.bindings, *self.nodes])
        for condition in where:
            self.expression(condition)
        for assumed in body.assumes:
            if not (isinstance(assumed.left, t.Name) and self._weight(assumed.left.path)):
                text = "an assumption is `node.weight == ...`, of a weight of the left side"
                self.complain("A205", text, assumed.left.span, "")
            calls = [e.callee.text for e in t.walk(assumed.right) if isinstance(e, t.Call)]
            if {"mean", "variance"} & {*calls}:
                text = "an assumption speaks of weights, not of calibration data"
                self.complain("A205", text, assumed.right.span, "")
            self.expression(assumed.right)
        self._right(body.replace, free)
        self.lets(body.lets)
        for _, value in body.weights:
            self.target = True
            self.expression(value)

    def _stated(self, value: t.Expr) -> None:
        """An attribute of the left side: a bare name in its place is bound by it."""
        parts = list(t.walk(value))
        fresh = {e.path for e in parts if isinstance(e, t.Name)} - {*self.scalars}
        if isinstance(value, t.Name):
            self.scalars[value.path] = None
        elif fresh or any(isinstance(e, t.Call) for e in parts):
            text = "an attribute of the left side is a number, a list of numbers, or a name"
            hint = "name the whole of it and say what it is: `conv(n)` ... `where n == channels(x)`"
            self.complain("A209", text, value.span, hint)
        else:
            self.expression(value)

    def _right(self, pattern: Pattern, free: Sequence[str]) -> None:
        """The right side may read what the left side names, and what itself has made so far."""
        for node in pattern.nodes:
            for operand in node.operands:
                self._matched(operand, free, node.span)
            for value in node.attrs.values():
                self.expression(value)
            self.nodes[node.name] = node.op
        for name, bound in pattern.bindings.items():
            if not any(bound in node.operands for node in pattern.nodes):
                self._matched(bound, free, self.span)
            self.nodes.setdefault(name, "")

    def _matched(self, operand: PatternOperand, free: Sequence[str], span: Span) -> None:
        if operand.variable and operand.variable not in free:
            self.unknown("A206", "the left side matches no", operand.variable, free, span)

    def reshaping(self, body: Reshaping, where: Iterable[t.Expr]) -> None:
        """Check a rule over a class."""
        self.tensors, self.over = {body.variable: None}, body.variable
        for condition in where:
            self.expression(condition)
        for step in body.steps:
            self.lets(step.lets)
            for value in (step.produce, step.carry, step.consume):
                self.expression(value)

    def lets(self, lets: Iterable[tuple[str, t.Expr]]) -> None:
        """Check definitions; each sees those above it."""
        for name, value in lets:
            self.expression(value)
            self.scalars[name] = None

    def expression(self, expression: t.Expr) -> None:
        """Check every name and call in an expression."""
        spoken: set[Span] = set()
        for part in t.walk(expression):
            if isinstance(part, t.Call) and not self._call(part):
                spoken.update(e.span for a in part.arguments for e in t.walk(a))
            elif isinstance(part, t.Name) and part.span not in spoken:
                self._name(part)

    def _call(self, call: t.Call) -> bool:
        """Check a call; whether what stands in its parentheses is still to be checked."""
        name = call.callee.text
        for argument in call.arguments:
            if argument.keyword is not None:
                self.complain("A211", f"`{name}` takes no keywords", argument.span, "")
        if name == INITIAL and (call.arguments or not self.target):
            where = "stands in `weights`, for what one new parameter holds, as `initial()`"
            self.complain("A211", f"`{name}` {where}", call.span, "")
        if self.exact and name in FUNCTIONS and FUNCTIONS[name].inexact:
            text = f"`{name}` has a value in floating point only: no rule with it can be checked"
            hint = "such a rule is one that `preserves shape`"
            self.complain("A215", text, call.callee.span, hint)
        if name in FUNCTIONS or name in SCALAR or name == INITIAL:
            return True
        if name not in OF_TENSORS:
            known = [*FUNCTIONS, *OF_TENSORS, *SCALAR, INITIAL]
            if name in ELSEWHERE:
                hint = f"did you mean `{ELSEWHERE[name]}`?"
                self.complain(
                    "A208", f"there is no weight function `{name}`", call.callee.span, hint
                )
            else:
                self.unknown("A208", "there is no weight function", name, known, call.callee.span)
            return False
        given = [a.value for a in call.arguments]
        first = given[0] if given else None
        if not isinstance(first, t.Name):
            self.complain("A211", f"`{name}` is asked of a tensor of the pattern", call.span, "")
        elif name in OF_WEIGHTS and self._weight(first.path):
            pass
        elif first.path not in self.tensors:
            known = list(self.tensors)
            self.unknown("A212", "the left side has no tensor", first.path, known, first.span)
        for other in given[1:]:
            self.expression(other)
        return False

    def _weight(self, path: str) -> bool:
        owner, _, role = path.rpartition(".")
        op = self.ops.get(self.nodes.get(owner, ""))
        return op is not None and any(p.role == role for p in op.params)

    def _name(self, name: t.Name) -> None:
        if name.path in self.scalars:
            return
        owner, _, leaf = name.path.rpartition(".")
        op = self.ops.get(self.nodes.get(owner, ""))
        if op is None:
            self._undefined(name, owner, leaf)
            return
        has = [*(p.role for p in op.params), *(a.name for a in op.attrs)]
        if leaf not in has:
            self.unknown("A212", f"`{op.name}` has no", leaf, has, name.span)

    def _undefined(self, name: t.Name, owner: str, leaf: str) -> None:
        hint = ""
        if self.over and name.path == self.over:
            hint = f"`{name.path}` is a class; how large it is says `size({name.path})`"
        elif self.over and leaf in ("w", "weight"):
            hint = "the weight and its axis go without saying: `take(g)`"
        elif owner in self.tensors and leaf in ("shape", "rank", "size", "channels"):
            hint = f"write `{leaf}({owner}{', axis' if leaf == 'size' else ''})`"
        elif name.path in self.tensors:
            text = f"`{name.path}` is a tensor, and no number or weight"
            self.complain("A212", text, name.span, "")
            return
        if hint:
            text = f"the rule defines no `{name.path}`"
            self.complain("A212", text, name.span, hint)
            return
        known = [*self.scalars, *(n for n in self.nodes if owner)]
        self.unknown("A212", "the rule defines no", owner or name.path, known, name.span)

    def unknown(self, code: str, what: str, name: str, known: Sequence[str], span: Span) -> None:
        """Report a name that does not exist, with the nearest that does."""
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean `{close[0]}`?" if close else ""
        if not close and 0 < len(known) <= 8:
            hint = f"there is: {', '.join(known)}"
        self.complain(code, f"{what} `{name}`", span, hint)
