"""Uses of operators: binding arguments to attributes, inferring types, drafting the node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from archir.diag import Span
from archir.ir.types import TensorType
from archir.lang import tree as t
from archir.lang.program import Draft, Site, Tensor
from archir.lang.state import MAX_NODES, MAX_STEPS, POISON, Bound, Frame, Poison, State, suggest
from archir.ops.infer import OpError, bind_attrs, check_count, instance
from archir.ops.record import Attrs, Op


@dataclass(frozen=True, slots=True)
class Use:
    """A call as it stands in the text."""

    name: str
    site: Site
    span: Span
    label: t.Ident | None
    index: int | None = None


@dataclass(slots=True)
class Given:
    """The arguments of a use of an operator, tensors apart."""

    attrs: dict[str, Any] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    ties: list[tuple[str, t.Name]] = field(default_factory=list)
    renames: tuple[t.Rename, ...] = ()


def operator(use: Use, operands: tuple[Tensor, ...], given: Given, frame: Frame) -> Any:
    """Draft a node; its tensor, its tensors if it has several, or poison."""
    op = frame.state.ops[use.name]
    types = tuple([operand.draft.types[operand.port] for operand in operands])
    try:
        found = _bound(op, given.attrs, types, frame.state)
    except OpError as problem:
        hint = problem.hint
        if problem.code == "A112":
            known = [a.name for a in op.attrs] + [p.role for p in op.params]
            hint = suggest(problem.attr, known, _attributes(op))
        elif problem.code == "A104" and not operands:
            hint = f"pipe one in: `x |> {op.name}(...)`"
        elif problem.code == "A113":
            hint = hint or _attributes(op)
        return frame.report(
            problem.code,
            problem.message,
            given.spans.get(problem.attr, use.span),
            hint=hint,
        )
    if (given.ties or given.renames) and not _roles_exist(op, given, found.params, frame):
        return POISON
    draft = Draft(
        op=op.name,
        attrs=found.attrs,
        inputs=operands,
        types=found.types,
        params=found.params,
        buffers=found.buffers,
        scope=frame.scope,
        group=frame.group,
        site=use.site,
        statement=frame.statement,
        span=use.span,
        label=use.label.text if use.label is not None else None,
        index=use.index if use.label is not None else None,
        ties=tuple(given.ties),
        renames=given.renames,
    )
    frame.state.add(draft)
    if len(found.types) == 1:
        return Tensor(draft)
    return tuple(Tensor(draft, port) for port in range(len(found.types)))


def _bound(op: Op, given: Attrs, types: tuple[TensorType, ...], state: State) -> Bound:
    """What a use means; uses that are alike in one program share it.

    The key holds the attributes as text, which tells 1, 1.0 and true apart.

    Raises:
        OpError: the operands or the attributes do not fit.
    """
    key = (op.name, repr(given), types)
    found = state.bound.get(key)
    if found is None:
        check_count(op, len(types))
        attrs = bind_attrs(op, given, types)
        made = instance(op, attrs, types)
        free = op.name == "parameter" and bool(attrs["buffer"])
        buffers = frozenset(p.role for p in op.params if p.buffer or free)
        found = state.bound[key] = Bound(attrs, made.types, made.params, buffers)
    return found


def _attributes(op: Op) -> str:
    names = [a.name for a in op.attrs]
    return f"its attributes are {', '.join(names)}" if names else "it has no attributes"


def _roles_exist(op: Op, given: Given, present: Mapping[str, object], frame: Frame) -> bool:
    """Report ties and renames of parameters that the use does not have."""
    named = [(role, span.span) for role, span in given.ties]
    named += [(rename.role.text, rename.role.span) for rename in given.renames]
    fine = True
    for role, span in named:
        if role not in present:
            fine = False
            frame.report(
                "A128",
                f"this `{op.name}` has no parameter `{role}`",
                span,
                hint=suggest(role, present, f"it has {', '.join(present) or 'none'}"),
            )
    return fine


def constant(value: float, dtype: str, site: Site, span: Span, frame: Frame) -> Tensor | Poison:
    """Draft the constant that a number in tensor arithmetic stands for."""
    given = Given({"value": value, "dtype": dtype})
    made = operator(Use("constant", site, span, None), (), given, frame)
    assert isinstance(made, Tensor | Poison)
    return made


def foresee(count: int, nodes: int, steps: int, stage: t.Stage, state: State) -> None:
    """Refuse a repeat that would exceed a limit, before it is unrolled.

    ``nodes`` and ``steps`` are what its first round took.

    Raises:
        StopError: it would; the problem is noted.
    """
    span = stage.count.span if stage.count is not None else stage.span
    if nodes and len(state.drafts) + nodes * (count - 1) > MAX_NODES:
        state.stop(f"{count} repeats would make more than {MAX_NODES} nodes", span)
    if state.steps + (steps + 1) * (count - 1) > MAX_STEPS:
        state.stop(f"{count} repeats would take more than {MAX_STEPS} steps to build", span)
