"""The value of an expression: a scalar, a tensor, several tensors, or poison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from archir.lang import calls, nodes, scalars
from archir.lang import tree as t
from archir.lang.naming import place
from archir.lang.program import Tensor
from archir.lang.state import POISON, Frame, Poison, describe, is_tensors, suggest

_OPERATORS = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
_PAIRS = ("-", "/")
"""The signs that join two tensors and no more."""


def evaluate(expr: t.Expr, frame: Frame) -> Any:
    """Evaluate an expression; problems are noted and give ``POISON``."""
    frame.state.step(expr.span)
    return _EVALUATORS[type(expr)](expr, frame)


def scalar(expr: t.Expr, frame: Frame, what: str = "this") -> Any:
    """Evaluate an expression that must be a scalar or a list of scalars."""
    value = evaluate(expr, frame)
    if isinstance(value, Tensor) or is_tensors(value):
        return frame.report(
            "A107",
            f"{what} is a scalar, got {describe(value)}",
            expr.span,
            hint="`channels(x)` and `size(x, axis)` give the sizes of a tensor",
        )
    return value


def tensor(expr: t.Expr, frame: Frame, what: str = "this") -> Tensor | Poison:
    """Evaluate an expression that must be one tensor."""
    value = evaluate(expr, frame)
    if isinstance(value, Tensor | Poison):
        return value
    return frame.report(
        "A107",
        f"{what} is a tensor, got {describe(value)}",
        expr.span,
    )


def lookup(path: str, expr: t.Name, frame: Frame) -> Any:
    """The value that a name is bound to."""
    env = frame.env
    if path in env:
        return env[path]
    if path in scalars.CONSTANTS:
        return scalars.CONSTANTS[path]
    hint = suggest(path, env)
    if path == "input":
        hint = "`input` is the piped tensor of a block; here the inputs have names of their own"
        if frame.instance.parent is not None:
            hint = "the block is called without a tensor: write `x |> block` or `block(x)`"
    elif path in frame.state.ops or path in frame.state.blocks:
        hint = f"to use the operator, write `x |> {path}` or `{path}(x)`"
        if path in frame.state.blocks:
            hint = hint.replace("operator", "block")
    elif not hint:
        hint = _forward(path, frame)
    return frame.report(
        "A101",
        f"`{path}` is not defined",
        expr.span,
        hint=hint,
    )


def _forward(path: str, frame: Frame) -> str:
    block = frame.instance.block
    for statement in block.body if block is not None else ():
        if isinstance(statement, t.Bind) and any(i.text == path for i in statement.targets):
            return f"it is bound later, {place(statement.span)}"
    return ""


def _name(expr: t.Name, frame: Frame) -> Any:
    return lookup(expr.path, expr, frame)


def _list(expr: t.ListExpr, frame: Frame) -> Any:
    values = [scalar(item, frame, "an entry of a list") for item in expr.items]
    return POISON if any(v is POISON for v in values) else tuple(values)


def _unary(expr: t.Unary, frame: Frame) -> Any:
    if expr.op == "not":
        value = condition(expr.operand, frame)
        return POISON if isinstance(value, Poison) else not value
    value = evaluate(expr.operand, frame)
    if value is POISON:
        return POISON
    if isinstance(value, Tensor):
        return _negated(expr, value, frame, None)
    return _compute("-", 0 if not isinstance(value, float) else -0.0, value, expr, frame)


def _negated(expr: t.Unary, value: Tensor, frame: Frame, label: t.Ident | None) -> Any:
    return nodes.operator(nodes.Use("neg", expr, expr.span, label), (value,), nodes.Given(), frame)


def _compute(op: str, a: Any, b: Any, expr: t.Expr, frame: Frame) -> Any:
    try:
        return scalars.arithmetic(op, a, b)
    except scalars.ScalarError as problem:
        return frame.report(
            "A108",
            str(problem),
            expr.span,
        )


def _chain(expr: t.Chain, frame: Frame) -> Any:
    values = [evaluate(expr.first, frame)]
    values += [evaluate(item, frame) for _, item in expr.rest]
    if any(value is POISON for value in values):
        return POISON
    if any(isinstance(v, Tensor) or is_tensors(v) for v in values):
        return _tensor_chain(expr, values, frame, None)
    total = values[0]
    for (op, _), value in zip(expr.rest, values[1:], strict=True):
        total = _compute(op, total, value, expr, frame)
        if total is POISON:
            return POISON
    return total


def _tensor_chain(expr: t.Chain, values: list[Any], frame: Frame, label: t.Ident | None) -> Any:
    symbols = [op for op, _ in expr.rest]
    wrong = next((op for op in symbols if op not in _OPERATORS or op != symbols[0]), None)
    if wrong is None and symbols[0] in _PAIRS and len(symbols) > 1:
        wrong = symbols[0]
    if wrong is not None:
        hint = "put two of them in parentheses, as in `(a - b) - c`"
        if wrong not in _OPERATORS:
            hint = "`+`, `-`, `*` and `/` do"
        return frame.report(
            "A117",
            f"`{wrong}` does not go with tensors here",
            expr.span,
            hint=hint,
        )
    dtype = next((v.type.dtype for v in values if isinstance(v, Tensor)), "f32")
    operands: list[Tensor] = []
    parts = [expr.first, *(item for _, item in expr.rest)]
    for part, value in zip(parts, values, strict=True):
        if isinstance(value, Tensor):
            operands.append(value)
        elif scalars.is_number(value) and isinstance(value, int | float):
            site = part if isinstance(part, t.Literal) else expr
            made = nodes.constant(value, dtype, site, part.span, frame)
            if isinstance(made, Poison):
                return POISON
            operands.append(made)
        else:
            return frame.report(
                "A107",
                f"`{symbols[0]}` joins tensors and numbers, got {describe(value)}",
                part.span,
            )
    use = nodes.Use(_OPERATORS[symbols[0]], expr, expr.span, label)
    return nodes.operator(use, tuple(operands), nodes.Given(), frame)


def _compare(expr: t.Compare, frame: Frame) -> Any:
    a = scalar(expr.left, frame, "a side of a comparison")
    b = scalar(expr.right, frame, "a side of a comparison")
    if a is POISON or b is POISON:
        return POISON
    try:
        return scalars.compare(expr.op, a, b)
    except scalars.ScalarError as problem:
        return frame.report(
            "A108",
            str(problem),
            expr.span,
        )


def condition(expr: t.Expr, frame: Frame) -> bool | Poison:
    """Evaluate a condition: true or false, nothing else."""
    value = scalar(expr, frame, "a condition")
    if isinstance(value, bool | Poison):
        return value
    return frame.report(
        "A107",
        f"a condition is true or false, got {scalars.show(value)}",
        expr.span,
        hint="compare it with something",
    )


def _logic(expr: t.Logic, frame: Frame) -> Any:
    for item in expr.items:
        value = condition(item, frame)
        if isinstance(value, Poison):
            return POISON
        if value is (expr.op == "or"):
            return value
    return expr.op == "and"


def _choice(expr: t.Choice, frame: Frame) -> Any:
    value = condition(expr.condition, frame)
    if isinstance(value, Poison):
        return POISON
    return evaluate(expr.then if value else expr.other, frame)


def _call(expr: t.Call, frame: Frame) -> Any:
    return calls.call(nodes.Use(expr.callee.text, expr, expr.span, None), expr, (), frame)


def _stage(expr: t.Stage, frame: Frame) -> Any:
    if isinstance(expr.body, t.Call):
        use = nodes.Use(expr.body.callee.text, expr, expr.span, expr.label)
        return calls.call(use, expr.body, (), frame)
    inner = expr.body.inner
    while isinstance(inner, t.Paren):
        inner = inner.inner
    if isinstance(inner, t.Chain):
        values = [evaluate(part, frame) for part in (inner.first, *(e for _, e in inner.rest))]
        if any(value is POISON for value in values):
            return POISON
        if any(isinstance(value, Tensor) for value in values):
            return _tensor_chain(inner, values, frame, expr.label)
    if isinstance(inner, t.Unary) and inner.op == "-":
        value = evaluate(inner.operand, frame)
        if value is POISON:
            return POISON
        if isinstance(value, Tensor):
            return _negated(inner, value, frame, expr.label)
    return frame.report(
        "A107",
        "a label in front of parentheses names the arithmetic of tensors in them",
        expr.span,
        hint="label a stage, as in `x |> conv1: conv(16, 3)`",
    )


def _pipeline(expr: t.Pipeline, frame: Frame) -> Any:
    value = evaluate(expr.head, frame)
    for stage in expr.stages:
        frame.state.step(stage.span)
        assert isinstance(stage.body, t.Call)
        value = _run_stage(stage, stage.body, value, frame)
    return value


def _run_stage(stage: t.Stage, body: t.Call, value: Any, frame: Frame) -> Any:
    if value is not POISON and not (isinstance(value, Tensor) or is_tensors(value)):
        frame.report(
            "A107",
            f"a pipeline carries tensors, got {describe(value)}",
            stage.span,
            label="piped into this",
        )
        value = POISON
    piped = value if is_tensors(value) else (value,)
    name = body.callee.text
    if stage.count is None:
        use = nodes.Use(name, stage, stage.span, stage.label)
        return calls.call(use, body, piped, frame)
    count = scalar(stage.count, frame, "the number of repeats")
    if count is POISON:
        return POISON
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        return frame.report(
            "A107",
            f"the number of repeats is a whole number, got {scalars.show(count)}",
            stage.count.span,
        )
    if stage.label is None and name in frame.state.blocks:
        frame.group.indexed = True
    return _repeat(stage, body, piped, count, frame)


def _repeat(stage: t.Stage, body: t.Call, piped: tuple[Any, ...], count: int, frame: Frame) -> Any:
    state = frame.state
    start, steps = len(state.drafts), state.steps
    for index in range(count):
        use = nodes.Use(body.callee.text, stage, stage.span, stage.label, index)
        value = calls.call(use, body, piped, frame)
        if value is POISON:
            return POISON
        piped = value if is_tensors(value) else (value,)
        if index == 0:
            nodes.foresee(
                count,
                len(frame.state.drafts) - start,
                frame.state.steps - steps,
                stage,
                frame.state,
            )
    return piped if len(piped) > 1 else piped[0]


_EVALUATORS: dict[type, Callable[[Any, Frame], Any]] = {
    t.Name: _name,
    t.Literal: lambda expr, frame: expr.value,
    t.ListExpr: _list,
    t.Paren: lambda expr, frame: evaluate(expr.inner, frame),
    t.Unary: _unary,
    t.Chain: _chain,
    t.Compare: _compare,
    t.Logic: _logic,
    t.Choice: _choice,
    t.Call: _call,
    t.Stage: _stage,
    t.Pipeline: _pipeline,
}
