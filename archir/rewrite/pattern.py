"""The sides of a rule: statements of the language, read as patterns.

In a pattern the first positional arguments of an operator are tensors, as many as it takes
(all of them for `add` and `concat`); what follows states attributes. On the left side a bare
name in the place of an attribute stands for whatever is there, and binds it. A number in the place
of a tensor is a constant, as it is in a network.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from archir.diag import Diagnostic, Span
from archir.lang import tree as t
from archir.ops.record import Op, OpSet
from archir.rewrite.rule import Pattern, PatternNode, PatternOperand, Rewriting, Rule

OPERATORS = {"+": "add", "*": "mul", "-": "sub", "/": "div"}
PAIRS = ("-", "/")
"""What joins two tensors, and not more."""


class PatternReader:
    """Reads the statements of one side into a :class:`Pattern`."""

    def __init__(self, ops: OpSet, errors: list[Diagnostic]) -> None:
        self.ops, self.errors = ops, errors
        self.nodes: list[PatternNode] = []
        self.bindings: dict[str, PatternOperand] = {}
        self._pending: list[tuple[str | None, int]] = []

    def complain(self, code: str, message: str, span: Span, hint: str = "") -> PatternOperand:
        self.errors.append(Diagnostic(code, message, span, hint=hint))
        return PatternOperand("")

    def read(self, statements: Sequence[t.Statement]) -> Pattern:
        """The pattern of a list of statements."""
        for statement in statements:
            if not isinstance(statement, t.Bind):
                self.complain(
                    "A209", "a pattern holds `name = ...` statements only", statement.span
                )
                continue
            first = len(self.nodes)
            value = self.value(statement.value)
            for target in statement.targets:
                self._new(target)
            if len(self.nodes) == first + 1 and self._label(first) is None:
                self._rename(first, statement.targets[0].text)
                value = PatternOperand(None, self.nodes[first].name)
            for port, target in enumerate(statement.targets):
                self.bindings[target.text] = (
                    value if value.node is None else PatternOperand(None, value.node, port)
                )
        self._settle()
        return Pattern(tuple(self.nodes), dict(self.bindings))

    def _new(self, target: t.Ident) -> None:
        """A name is bound once, and before it is read: until then it stands for any tensor."""
        name = target.text
        if name in self.bindings:
            self.complain("A209", f"`{name}` is bound twice", target.span, "take another name")
        elif any(o.variable == name for n in self.nodes for o in n.operands):
            text = f"`{name}` is read before this line gives it a value"
            self.complain("A209", text, target.span, "a value stands above what reads it")

    # Nodes are first named by number; labels and unique operator names replace the numbers.

    def _label(self, index: int) -> str | None:
        return self._pending[index][0]

    def _rename(self, index: int, name: str) -> None:
        old = self.nodes[index].name
        self._pending[index] = (name, index)
        self._swap({old: name})

    def _swap(self, names: dict[str, str]) -> None:
        def operand(o: PatternOperand) -> PatternOperand:
            return PatternOperand(o.variable, names.get(o.node, o.node), o.port) if o.node else o

        self.nodes = [
            PatternNode(
                names.get(n.name, n.name), n.op, tuple(map(operand, n.operands)), n.attrs, n.span
            )
            for n in self.nodes
        ]
        self.bindings = {k: operand(v) for k, v in self.bindings.items()}

    def _settle(self) -> None:
        """Unlabelled nodes take their operator's name, numbered where it is not unique."""
        names: dict[str, str] = {}
        taken = {label for label, _ in self._pending if label}
        free = [n for n, (label, _) in zip(self.nodes, self._pending, strict=True) if not label]
        count: dict[str, int] = {}
        for node in free:
            count[node.op] = count.get(node.op, 0) + 1
        seen: dict[str, int] = {}
        for node in free:
            seen[node.op] = seen.get(node.op, 0) + 1
            name = t.name_of(node.op) + ("" if count[node.op] == 1 else str(seen[node.op]))
            while name in taken:
                name += "_"
            taken.add(name)
            names[node.name] = name
        self._swap(names)
        doubled = {n.name for n in self.nodes if sum(m.name == n.name for m in self.nodes) > 1}
        for node in self.nodes:
            if node.name in doubled:
                self.complain("A209", f"two operators are named `{node.name}`", node.span)
                return

    def _add(
        self,
        op: Op,
        operands: Sequence[PatternOperand],
        attrs: dict[str, t.Expr],
        label: t.Ident | None,
        span: Span,
    ) -> PatternOperand:
        least, most = op.operands
        if not least <= len(operands) <= (len(operands) if most is None else most):
            return self.complain(
                "A209", f"`{op.name}` takes {least} tensor(s), got {len(operands)}", span
            )
        name = label.text if label else f"?{len(self.nodes)}"
        self.nodes.append(PatternNode(name, op.name, tuple(operands), attrs, span))
        self._pending.append((label.text if label else None, len(self.nodes) - 1))
        return PatternOperand(None, name)

    def value(self, expression: t.Expr) -> PatternOperand:
        """What an expression stands for, adding the nodes it makes."""
        if isinstance(expression, t.Paren):
            return self.value(expression.inner)
        if isinstance(expression, t.Name):
            return self.bindings.get(expression.path, PatternOperand(expression.path))
        if isinstance(expression, t.Call):
            return self._call(expression, (), None)
        if isinstance(expression, t.Stage):
            return self._stage(expression, ())
        if isinstance(expression, t.Pipeline):
            value = self.value(expression.head)
            for stage in expression.stages:
                value = self._stage(stage, (value,))
            return value
        if isinstance(expression, t.Chain):
            return self._chain(expression)
        number = _number(expression)
        if number is not None:
            return self._add(self.ops["constant"], (), {"value": number}, None, expression.span)
        if isinstance(expression, t.Unary) and expression.op == "-":
            part = self.value(expression.operand)
            return self._add(self.ops["neg"], (part,), {}, None, expression.span)
        return self.complain("A209", "a pattern cannot hold this", expression.span)

    def _chain(self, expression: t.Chain) -> PatternOperand:
        signs = [sign for sign, _ in expression.rest]
        wrong = next((s for s in signs if s not in OPERATORS or s != signs[0]), "")
        if not wrong and signs[0] in PAIRS and len(signs) > 1:
            wrong = signs[0]
        if wrong:
            text = f"`{wrong}` does not go with tensors here"
            hint = "put two of them in parentheses, as in `(a - b) - c`"
            if wrong not in OPERATORS:
                hint = "`+`, `-`, `*` and `/` do"
            return self.complain("A209", text, expression.span, hint)
        parts = [self.value(e) for e in (expression.first, *(e for _, e in expression.rest))]
        return self._add(self.ops[OPERATORS[signs[0]]], parts, {}, None, expression.span)

    def _stage(self, stage: t.Stage, piped: tuple[PatternOperand, ...]) -> PatternOperand:
        if stage.count is not None:
            return self.complain("A209", "a pattern cannot repeat", stage.span)
        if isinstance(stage.body, t.Paren):
            first = len(self.nodes)
            value = self.value(stage.body.inner)
            if stage.label is not None and len(self.nodes) > first and value.node:
                index = next(i for i, n in enumerate(self.nodes) if n.name == value.node)
                self._rename(index, stage.label.text)
                return PatternOperand(None, stage.label.text)
            return value
        return self._call(stage.body, piped, stage.label)

    def _call(
        self, call: t.Call, piped: tuple[PatternOperand, ...], label: t.Ident | None
    ) -> PatternOperand:
        op = self.ops.get(call.callee.text)
        if op is None:
            close = difflib.get_close_matches(call.callee.text, list(self.ops), 1)
            return self.complain(
                "A210",
                f"there is no operator `{call.callee.text}`",
                call.callee.span,
                f"did you mean `{close[0]}`?" if close else "",
            )
        operands = list(piped)
        attrs: dict[str, t.Expr] = {}
        most = op.operands[1]
        position = 0
        for argument in call.arguments:
            if argument.keyword is not None:
                name = argument.keyword.text
            elif most is None or len(operands) < most:
                operands.append(self.value(argument.value))
                continue
            elif position < len(op.attrs):
                name = op.attrs[position].name
                position += 1
            else:
                return self.complain("A209", f"`{op.name}` has no further attribute", argument.span)
            if op.attr(name) is None:
                known = ", ".join(a.name for a in op.attrs) or "none"
                return self.complain(
                    "A209",
                    f"`{op.name}` has no attribute `{name}`",
                    argument.span,
                    f"it has: {known}",
                )
            if name in attrs:
                self.complain("A209", f"`{name}` is stated twice", argument.span)
            attrs[name] = argument.value
        return self._add(op, operands, attrs, label, call.span)


def _number(expression: t.Expr) -> t.Literal | None:
    """The literal that a number is, with its sign."""
    negative = isinstance(expression, t.Unary) and expression.op == "-"
    literal = expression.operand if isinstance(expression, t.Unary) and negative else expression
    value = literal.value if isinstance(literal, t.Literal) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return t.Literal(expression.span, float(-value if negative else value))


def changes_nothing(rule: Rule) -> bool:
    """Whether the right side says of each layer what the left side says, and no more."""
    if not isinstance(rule.body, Rewriting) or rule.body.weights:
        return False
    left, right = rule.body.match, rule.body.replace
    if {n.name for n in left.nodes} != {n.name for n in right.nodes}:
        return False
    for node in right.nodes:
        held = left.node(node.name)
        if held is None or (held.op, held.operands) != (node.op, node.operands):
            return False
        if any(_differ(value, held.attrs.get(name)) for name, value in node.attrs.items()):
            return False
    return all(left.bindings.get(name, o) == o for name, o in right.bindings.items())


def _differ(one: t.Expr, other: t.Expr | None) -> bool:
    if isinstance(one, t.Literal) and isinstance(other, t.Literal):
        return one.value != other.value
    names = isinstance(one, t.Name) and isinstance(other, t.Name) and one.path == other.path
    return not names
