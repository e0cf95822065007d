"""Calls: scalar functions, operators, and instances of blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from archir.diag import Span
from archir.lang import tree as t
from archir.lang.bodies import run_body
from archir.lang.nodes import Given, Use, operator
from archir.lang.program import Scope, Tensor
from archir.lang.scalars import is_number, show
from archir.lang.state import (
    MAX_NESTING,
    POISON,
    Frame,
    Poison,
    State,
    describe,
    is_tensors,
    suggest,
)

FUNCTIONS = ("channels", "size", "rank", "min", "max")
"""The scalar functions."""


def call(use: Use, expr: t.Call, piped: tuple[Any, ...], frame: Frame) -> Any:
    """Run a call; ``piped`` are the tensors (or poison) that come before its own arguments."""
    frame.state.step(use.span)
    name = use.name
    if name in frame.state.blocks:
        return _block(use, expr, piped, frame)
    if name in frame.state.ops and name in FUNCTIONS:
        expr, piped, scalar = _first(expr, piped, frame)
        if scalar:
            return _function(use, expr, piped, frame)
    if name in frame.state.ops and name != "input":
        return _operator(use, expr, piped, frame)
    if name in FUNCTIONS:
        return _function(use, expr, piped, frame)
    for argument in expr.arguments:
        if argument.keyword is None:
            frame.evaluate(argument.value)
    known = [*frame.state.ops, *frame.state.blocks, *FUNCTIONS]
    return frame.report(
        "A102",
        f"there is no operator or block `{name}`",
        expr.callee.span,
        hint=suggest(name, known, _framework_name(name, frame.state)),
    )


def _first(
    expr: t.Call, piped: tuple[Any, ...], frame: Frame
) -> tuple[t.Call, tuple[Any, ...], bool]:
    """Whether a call of `max` is of numbers: its first argument, evaluated once, tells."""
    if piped or not expr.arguments or expr.arguments[0].keyword is not None:
        return expr, piped, not piped
    value = frame.evaluate(expr.arguments[0].value)
    scalar = not isinstance(value, Tensor) and not is_tensors(value)
    given = value if is_tensors(value) and isinstance(value, tuple) else (value,)
    return replace(expr, arguments=expr.arguments[1:]), given, scalar


_ELSEWHERE = {
    "conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "dense": "linear", "fc": "linear",
    "bn": "batch_norm", "batchnorm2d": "batch_norm", "batchnorm": "batch_norm", "cat": "concat",
    "maxpool": "max_pool", "maxpool2d": "max_pool", "avgpool": "avg_pool", "view": "reshape",
    "multiply": "mul", "gap": "global_avg_pool", "amax": "max", "bmm": "matmul", "narrow": "slice",
    "index_select": "gather", "take": "gather", "swapaxes": "transpose",
    "sdpa": "scaled_dot_product_attention", "zero_pad": "pad", "clamp": "hardtanh",
    "ge": "greater_equal", "clip": "hardtanh", "masked_fill": "where", "repeat": "tile",
    "amin": "min", "eq": "equal",
    "norm": "l2_norm", "gt": "greater", "lt": "less", "le": "less_equal", "ne": "not_equal",
    "square": "pow", "to": "cast", "astype": "cast", "arctan": "atan", "shrink": "hardshrink",
}  # fmt: skip


def _framework_name(name: str, state: State) -> str:
    ours = _ELSEWHERE.get(name.lower(), "")
    known = ours in state.ops
    return f"did you mean `{ours}`?" if known else "`archir explain operators` lists them"


# -- operators


def _operator(use: Use, expr: t.Call, piped: tuple[Any, ...], frame: Frame) -> Any:
    op = frame.state.ops[use.name]
    operands: list[Any] = list(piped)
    given = Given(renames=expr.renames)
    names = [a.name for a in op.attrs]
    roles = {p.role for p in op.params}
    wrong = False
    position = 0
    for argument in expr.arguments:
        if argument.keyword is not None:
            name = argument.keyword.text
            if name in roles and _is_tie(argument.value, frame, attribute=name in names):
                assert isinstance(argument.value, t.Name)
                given.ties.append((name, argument.value))
                continue
            value = frame.evaluate(argument.value)
            if name not in names and name in roles and value is not POISON:
                assert not isinstance(value, Poison)
                value = frame.report(
                    "A107",
                    f"`{name}` is tied to the path of another parameter, got {describe(value)}",
                    argument.span,
                    hint=f"for example `{name} = other.{name}`",
                )
        else:
            value = frame.evaluate(argument.value)
            if isinstance(value, Tensor) or is_tensors(value):
                operands += value if isinstance(value, tuple) else [value]
                continue
            if value is POISON:
                wrong = True
                continue
            if position >= len(names):
                frame.report(
                    "A116",
                    f"`{use.name}` takes {len(names) or 'no'} attribute{'s' * (len(names) != 1)}",
                    argument.span,
                    label="one too many",
                )
                wrong = True
                continue
            name = names[position]
            position += 1
        wrong |= not _accept(name, value, argument, given, frame)
    if wrong or any(operand is POISON for operand in operands):
        return POISON
    return operator(use, tuple(operands), given, frame)


def _is_tie(value: t.Expr, frame: Frame, *, attribute: bool) -> bool:
    """Whether a keyword's value is a parameter's path rather than an attribute's value."""
    if not isinstance(value, t.Name):
        return False
    bound = frame.env.get(value.path, frame)
    return not attribute or bound is frame or isinstance(bound, Tensor)


def _accept(name: str, value: Any, argument: t.Argument, given: Given, frame: Frame) -> bool:
    if value is POISON:
        return False
    if name in given.attrs:
        frame.report(
            "A116",
            f"`{name}` is given twice",
            argument.span,
            label="again",
        )
        return False
    if isinstance(value, Tensor) or is_tensors(value):
        frame.report(
            "A107",
            f"`{name}` is a scalar, got {describe(value)}",
            argument.span,
            hint="tensors are given without a keyword",
        )
        return False
    given.attrs[name] = value
    given.spans[name] = argument.span
    return True


# -- blocks


def _block(use: Use, expr: t.Call, piped: tuple[Any, ...], frame: Frame) -> Any:
    block = frame.state.blocks[use.name]
    depth = 0
    scope: Scope | None = frame.scope
    while scope is not None:
        if scope.block is block:
            return frame.report(
                "A109",
                f"block `{use.name}` calls itself",
                expr.callee.span,
                hint="write a repeat: `x |> 3 * block`",
            )
        depth += scope.block is not None
        scope = scope.parent
    if depth > MAX_NESTING:
        frame.state.stop(f"blocks call blocks more than {MAX_NESTING} deep", use.span)
    if expr.renames:
        frame.report(
            "A128",
            "only operators have parameters to rename",
            expr.renames[0].span,
        )
    env = _arguments(block, use, expr, piped, frame)
    if env is None:
        return POISON
    inner = Scope(
        frame.scope,
        block,
        use.site,
        frame.statement,
        frame.group,
        use.label.text if use.label is not None else None,
        use.index,
        env,
    )
    frame.group.members.append(inner)
    frame.state.ran.add(use.name)
    results = run_body(inner, frame.state)
    if results.stated is None:
        return frame.report(
            "A127",
            f"block `{block.name.text}` has no output",
            block.name.span,
            hint="end it with `output y`",
        )
    values = [value for _, _, value in results.outputs]
    if any(value is POISON for value in values):
        return POISON
    return values[0] if len(values) == 1 else tuple(values)


def _arguments(
    block: t.Block, use: Use, expr: t.Call, piped: tuple[Any, ...], frame: Frame
) -> dict[str, object] | None:
    """The names that a block's body begins with; None where the call is wrong."""
    names = [f.name.text for f in block.formals]
    tensors: list[tuple[Any, Span]] = [(value, use.span) for value in piped]
    scalars: list[tuple[Any, Span]] = []
    keywords, fine = _keywords(block, expr, frame)
    for argument in expr.arguments:
        if argument.keyword is not None:
            continue
        value = frame.evaluate(argument.value)
        if isinstance(value, Tensor):
            tensors.append((value, argument.span))
        elif is_tensors(value):
            tensors += [(each, argument.span) for each in value]
        else:
            scalars.append((value, argument.span))
    env: dict[str, object] = {}
    if tensors:
        env["input"] = tensors.pop(0)[0]
    for formal in block.formals:
        queue = tensors if formal.tensor else scalars
        found = _argument_of(formal, queue, keywords, env, frame)
        if found is None:
            what = "the tensor" if formal.tensor else "a value for"
            message = f"block `{use.name}` needs {what} `{formal.name.text}`"
            fine = _wrong("A118", message, use.span, frame)
            continue
        value, span = found
        env[formal.name.text] = value
        if value is not POISON and isinstance(value, Tensor) != formal.tensor:
            what = "a tensor" if formal.tensor else "a scalar"
            name = formal.name.text
            message = f"`{name}` of block `{use.name}` is {what}, got {describe(value)}"
            fine = _wrong("A107", message, span, frame)
    for value, span in [*tensors, *scalars]:
        if value is not POISON:
            what = "tensor" if isinstance(value, Tensor) else "argument"
            fine = _wrong(
                "A118", f"block `{use.name}` takes no further {what}", span, frame,
                _formals(names),
            )  # fmt: skip
    return env if fine else None


def _keywords(
    block: t.Block, expr: t.Call, frame: Frame
) -> tuple[dict[str, tuple[Any, Span]], bool]:
    """The keyword arguments of a block's call, and whether they are right."""
    names = [f.name.text for f in block.formals]
    found: dict[str, tuple[Any, Span]] = {}
    fine = True
    for argument in expr.arguments:
        if argument.keyword is None:
            continue
        name, span = argument.keyword.text, argument.keyword.span
        if name not in names:
            hint = suggest(name, names, _formals(names))
            message = f"block `{block.name.text}` has no parameter `{name}`"
            fine = _wrong("A118", message, span, frame, hint)
        elif name in found:
            fine = _wrong("A116", f"`{name}` is given twice", argument.span, frame)
        found[name] = (frame.evaluate(argument.value), argument.span)
    return found, fine


def _argument_of(
    formal: t.Formal,
    queue: list[tuple[Any, Span]],
    keywords: dict[str, tuple[Any, Span]],
    env: dict[str, object],
    frame: Frame,
) -> tuple[Any, Span] | None:
    """What a parameter of a block is bound to, and where that stands; None without a value."""
    if formal.name.text in keywords:
        return keywords[formal.name.text]
    if queue:
        return queue.pop(0)
    if formal.default is None:
        return None
    inner = Frame(frame.scope, env, frame.group, frame.statement, frame.state)
    return inner.evaluate(formal.default), formal.span


def _formals(names: list[str]) -> str:
    return f"its parameters are {', '.join(names)}" if names else "it has no parameters"


def _wrong(code: str, message: str, span: Span, frame: Frame, hint: str = "") -> bool:
    frame.report(
        code,
        message,
        span,
        hint=hint,
    )
    return False


# -- scalar functions


def _function(use: Use, expr: t.Call, piped: tuple[Any, ...], frame: Frame) -> Any:
    values = list(piped)
    for argument in expr.arguments:
        if argument.keyword is not None and argument.keyword.text != "axis":
            return frame.report(
                "A116",
                f"`{use.name}` has no argument `{argument.keyword.text}`",
                argument.keyword.span,
            )
        values.append(frame.evaluate(argument.value))
    if any(value is POISON for value in values):
        return POISON
    if use.label is not None:
        return frame.report(
            "A107",
            f"`{use.name}` is a number and takes no label",
            use.span,
        )
    if use.name in ("min", "max"):
        whole = all(is_number(v) and isinstance(v, int | float) for v in values)
        if not values or not whole:
            got = ", ".join(describe(v) if not is_number(v) else show(v) for v in values)
            return frame.report(
                "A108", f"`{use.name}` needs numbers, got {got or 'none'}", use.span,
            )  # fmt: skip
        return min(values) if use.name == "min" else max(values)
    return _measure(use, values, frame)


def _measure(use: Use, values: list[Any], frame: Frame) -> Any:
    wanted = 2 if use.name == "size" else 1
    if len(values) != wanted or not isinstance(values[0], Tensor):
        form = "size(x, axis)" if wanted == 2 else f"{use.name}(x)"
        return frame.report(
            "A107",
            f"`{use.name}` is written `{form}`, of a tensor x",
            use.span,
        )
    shape = values[0].type.shape
    if use.name == "rank":
        return len(shape)
    axis = 1 if use.name == "channels" else values[1]
    if isinstance(axis, bool) or not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
        return frame.report(
            "A108",
            f"{values[0].type} has no axis {show(axis)}",
            use.span,
        )
    return shape[axis]
