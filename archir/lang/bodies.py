"""The statements of a body: inputs, bindings, scalars, free tensors, outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from archir.diag import Span
from archir.ir.dims import Dim, symbol
from archir.ir.types import DTYPES, MAX_RANK, AttrValue, TensorType
from archir.lang import tree as t
from archir.lang.naming import place
from archir.lang.nodes import Given, Use, operator
from archir.lang.program import Draft, Group, Scope, Tensor
from archir.lang.scalars import is_number, show
from archir.lang.state import (
    POISON,
    Frame,
    Poison,
    State,
    describe,
    is_tensors,
    suggest,
)

MAX_EXTENT = 2**31
"""The largest size of a stated axis."""


@dataclass(slots=True)
class Results:
    """What running a body gave."""

    inputs: list[Draft] = field(default_factory=list)
    outputs: list[tuple[str | None, t.Result, Any]] = field(default_factory=list)
    stated: t.OutputStatement | None = None
    meta: dict[str, AttrValue] = field(default_factory=dict)


@dataclass(slots=True)
class Body:
    """A body that is being run; ``bound`` says where each of its names was bound."""

    scope: Scope
    results: Results
    bound: dict[str, Span]
    state: State


def run_body(scope: Scope, state: State) -> Results:
    """Run the statements of a block's instance or of the arch, in order."""
    block = scope.block
    assert block is not None
    results = Results()
    body = Body(scope, results, {f.name.text: f.name.span for f in block.formals}, state)
    for statement in block.body:
        state.step(statement.span)
        if isinstance(statement, t.Bind):
            _bind(statement, body)
        elif isinstance(statement, t.OutputStatement):
            _output(statement, body)
        elif isinstance(statement, t.Let):
            frame = _frame(body, statement)
            value = _scalar(statement.value, frame, f"`{statement.name.text}`")
            _define(statement.name, value, frame, body)
        elif isinstance(statement, t.TensorStatement):
            _tensor(statement, body)
        elif isinstance(statement, t.InputStatement):
            _input(statement, body)
        else:
            _preprocess(statement, body)
    return results


def _frame(body: Body, statement: t.Statement) -> Frame:
    group = Group(None, opens=False)
    body.scope.groups.append(group)
    return Frame(body.scope, body.scope.instance.env, group, statement, body.state)


def _scalar(expr: t.Expr, frame: Frame, what: str) -> Any:
    value = frame.evaluate(expr)
    if isinstance(value, Tensor) or is_tensors(value):
        return frame.report(
            "A107",
            f"{what} is a scalar, got {describe(value)}",
            expr.span,
            hint="a tensor is bound without `let`" if isinstance(frame.statement, t.Let) else "",
        )
    return value


def _define(name: t.Ident, value: object, frame: Frame, body: Body) -> None:
    if name.text in body.bound:
        frame.report(
            "A103",
            f"`{name.text}` is bound twice; first {place(body.bound[name.text])}",
            name.span,
            label="bound again",
            hint="choose another name",
        )
    elif name.text == "input" and frame.instance.parent is not None:
        frame.report(
            "A103",
            "`input` is the tensor that is piped into the block",
            name.span,
            hint="choose another name",
        )
    body.bound.setdefault(name.text, name.span)
    frame.env[name.text] = value


# -- bindings


def _bind(statement: t.Bind, body: Body) -> None:
    scope, state = body.scope, body.state
    target = statement.targets[0].text
    home = scope
    opens = scope.parent is None
    group = Group(target, opens)
    if opens:
        home = Scope(scope, None, group=group, statement=statement, path=target)
    home.groups.append(group)
    frame = Frame(home, scope.instance.env, group, statement, state)
    value = frame.evaluate(statement.value)
    if opens and group.members:
        holder = Group(None, opens=False, members=[home])
        scope.groups.append(holder)
        home.label = target
    names = statement.targets
    if len(names) == 1 and not isinstance(value, Tensor | Poison) and not is_tensors(value):
        hint = f"write `let {target} = ...` for a scalar"
        value = frame.report(
            "A107",
            f"`{target}` is bound to a tensor, got {describe(value)}",
            statement.value.span,
            hint=hint,
        )
    values = list(value) if is_tensors(value) and len(names) > 1 else [value]
    if value is POISON:
        values = [POISON] * len(names)
    elif len(values) != len(names):
        got = len(values) if len(names) > 1 else describe(value)
        frame.report(
            "A119",
            f"{len(names)} names are bound to {got} tensor{'s' * (got != 1)}",
            Span(state.source, names[0].span.start, names[-1].span.end),
        )
        values = [POISON] * len(names)
    for name, each in zip(names, values, strict=True):
        _define(name, each, frame, body)


def _output(statement: t.OutputStatement, body: Body) -> None:
    scope, results = body.scope, body.results
    frame = _frame(body, statement)
    if results.stated is not None and scope.parent is not None:
        frame.report(
            "A127",
            f"the block has an output already, {place(results.stated.span)}",
            statement.span,
            hint="several outputs are written `output a, b`",
        )
    results.stated = statement
    for result in statement.results:
        value = frame.evaluate(result.value)
        if not isinstance(value, Tensor | Poison) and not is_tensors(value):
            value = frame.report(
                "A107",
                f"an output is a tensor, got {describe(value)}",
                result.value.span,
            )
        name = result.name.text if result.name is not None else None
        if is_tensors(value):
            if scope.parent is None:
                value = frame.report(
                    "A119",
                    f"an output of the network is one tensor, got {describe(value)}",
                    result.value.span,
                    hint="bind them first: `a, b = ...`",
                )
            else:
                results.outputs += [(name, result, each) for each in value]
                continue
        results.outputs.append((name, result, value))


# -- declarations


def _input(statement: t.InputStatement, body: Body) -> None:
    scope = body.scope
    frame = _frame(body, statement)
    if scope.parent is not None:
        frame.report(
            "A125",
            "only an arch has `input` statements; a block's input is what is piped into it",
            statement.span,
            hint=f"a further tensor is a parameter of the block: `{statement.name.text}: tensor`",
        )
        return
    type_ = _type(statement.type, frame)
    if type_ is None:
        _define(statement.name, POISON, frame, body)
        return
    draft = Draft(
        op="input",
        attrs={},
        inputs=(),
        types=(type_,),
        params={},
        buffers=frozenset(),
        scope=scope,
        group=frame.group,
        site=statement,
        statement=statement,
        span=statement.span,
        label=statement.name.text,
    )
    body.results.inputs.append(body.state.add(draft))
    _define(statement.name, Tensor(draft), frame, body)


def _tensor(statement: t.TensorStatement, body: Body) -> None:
    frame = _frame(body, statement)
    type_ = _type(statement.type, frame)
    init = 0.0
    if statement.init is not None:
        value = _scalar(statement.init, frame, "the initial value")
        if isinstance(value, bool) or not isinstance(value, int | float):
            if value is not POISON:
                frame.report(
                    "A107",
                    f"the initial value is a number, got {show(value)}",
                    statement.init.span,
                )
            type_ = None
        else:
            init = float(value)
    value = POISON
    if type_ is not None and "parameter" in body.state.ops:
        given = Given(
            {
                "shape": type_.shape,
                "dtype": type_.dtype,
                "init": init,
                "buffer": statement.kind == "buffer",
            },
            {"shape": statement.type.span},
        )
        use = Use("parameter", statement, statement.span, statement.name)
        value = operator(use, (), given, frame)
    _define(statement.name, value, frame, body)


def _type(expr: t.TypeExpr, frame: Frame) -> TensorType | None:
    dtype = expr.dtype.text
    fine = True
    if dtype not in DTYPES:
        fine = False
        frame.report(
            "A123",
            f"`{dtype}` is not an element type",
            expr.dtype.span,
            hint=suggest(dtype, DTYPES, f"one of {', '.join(DTYPES)}"),
        )
    if len(expr.dims) > MAX_RANK:
        rank = len(expr.dims)
        frame.report("A123", f"a tensor has at most {MAX_RANK} axes, this one {rank}", expr.span)
        return None
    symbolic = isinstance(frame.statement, t.InputStatement)
    shape = [_dim(dim, frame, symbolic=symbolic) for dim in expr.dims]
    known = tuple(size for size in shape if size is not None)
    if not fine or len(known) != len(shape):
        return None
    type_ = TensorType(dtype, known)
    if not type_.is_representable:
        frame.report("A123", "no machine holds a tensor of that size", expr.span)
        return None
    return type_


def _dim(expr: t.Expr, frame: Frame, *, symbolic: bool) -> int | Dim | None:
    """A stated size; capitalised names that are not bound are symbols."""
    env = frame.env
    symbols = [n.path for n in t.walk(expr) if isinstance(n, t.Name) and n.path not in env]
    symbols = [name for name in symbols if symbolic and name[:1].isupper() and t.is_name(name)]
    inner = Frame(
        frame.scope,
        {**env, **{n: symbol(n) for n in symbols}},
        frame.group,
        frame.statement,
        frame.state,
    )
    value = _scalar(expr, inner, "a size")
    if isinstance(value, Poison):
        return None
    if isinstance(value, Dim) and symbolic and value.coefficient > 0:
        return value
    if is_number(value) and isinstance(value, int) and 1 <= value <= MAX_EXTENT:
        return value
    frame.report(
        "A123",
        f"a size is a whole number from 1 on, got {show(value)}",
        expr.span,
        hint="a symbolic size is a capitalised name, such as N" if symbolic else "",
    )
    return None


# -- preprocessing

_SETTINGS = ("mean", "std", "size", "classes")


def _preprocess(statement: t.Preprocess, body: Body) -> None:
    scope, results = body.scope, body.results
    frame = _frame(body, statement)
    if scope.parent is not None or "preprocess" in results.meta:
        frame.report(
            "A125",
            "`preprocess` is stated once, in the arch",
            statement.span,
        )
        return
    entries: dict[str, AttrValue] = {}
    for setting in statement.settings:
        name = setting.name.text
        value = _scalar(setting.value, frame, f"`{name}`")
        if isinstance(value, Poison):
            continue
        if name not in _SETTINGS:
            frame.report(
                "A126",
                f"`preprocess` has no entry `{name}`",
                setting.name.span,
                hint=suggest(name, _SETTINGS, f"it has {', '.join(_SETTINGS)}"),
            )
        elif name in entries:
            frame.report("A126", f"`{name}` is stated twice", setting.name.span)
        elif not _fits(name, value):
            wanted = {
                "size": "a whole number, or a list of them",
                "classes": "a list of strings",
            }.get(name, "a list of numbers")
            frame.report("A126", f"`{name}` is {wanted}, got {show(value)}", setting.value.span)
        else:
            entries[name] = value
    results.meta["preprocess"] = tuple(entries.items())


def _fits(name: str, value: object) -> bool:
    entries = value if isinstance(value, tuple) else (value,)
    if name == "classes":
        return isinstance(value, tuple) and all(isinstance(v, str) for v in entries)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in entries)
    if name == "size":
        return numbers and all(isinstance(v, int) and v > 0 for v in entries)
    return isinstance(value, tuple) and numbers
