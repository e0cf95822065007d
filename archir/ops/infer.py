"""What a use of an operator means: its attributes in full, its sizes, types and parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from archir.ir.dims import Size, product, quotient
from archir.ir.graph import Graph, Node
from archir.ir.types import DTYPES, AttrValue, TensorType
from archir.ops.record import REQUIRED, Attr, Attrs, Derived, Kind, Op, OpSet, SameAs
from archir.ops.signature import (
    Axis,
    Expanded,
    SignatureError,
    Star,
    expand,
    measure,
    parse_signature,
    solve,
)


class OpError(Exception):
    """A use of an operator is wrong; ``code`` is the diagnostic it becomes."""

    def __init__(self, code: str, message: str, hint: str = "", attr: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint, self.attr = code, message, hint, attr


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """A use of an operator with everything inferred. Uses that are alike share one."""

    axes: Expanded
    sizes: Mapping[str, Size]
    types: tuple[TensorType, ...]
    params: Mapping[str, TensorType]
    products: tuple[str, ...] | None = None
    """What its multiply-accumulates are, where the record states them."""


def bind_attrs(op: Op, given: Attrs, types: tuple[TensorType, ...]) -> dict[str, AttrValue]:
    """Complete and normalise the attributes of a use: defaults filled in, one entry per axis.

    Raises:
        OpError: an attribute is missing, unknown, of the wrong kind or out of range.
    """
    known = [a.name for a in op.attrs]
    for name in given:
        if name not in known:
            raise OpError("A112", f"`{op.name}` has no attribute `{name}`", attr=name)
    rank = types[0].rank if types else 0
    out: dict[str, AttrValue] = {}
    for attr in op.attrs:
        value = given.get(attr.name, attr.default)
        if value is REQUIRED:
            raise OpError("A113", f"`{op.name}` needs `{attr.name}`: {attr.kind.value}")
        if isinstance(value, SameAs):
            value = out[value.attr]
        if isinstance(value, Derived):
            value = value.value(out, types)
        same = attr.kind is Kind.PADDING and value == "same"
        out[attr.name] = "same" if same else _normal(op, attr, value, rank)
    for attr in op.attrs:  # once the dilation is known
        if attr.kind is Kind.PADDING and out[attr.name] == "same":
            out[attr.name] = _same_padding(op, out)
    return out


def _normal(op: Op, attr: Attr, value: Any, rank: int) -> AttrValue:
    what = f"`{attr.name}` of `{op.name}`"
    kind = attr.kind
    if kind in (Kind.SPATIAL, Kind.PADDING):
        spatial = rank - 2
        if not 1 <= spatial <= 3:
            raise OpError(
                "A110", f"`{op.name}` needs 1 to 3 spatial axes, its input has rank {rank}"
            )
        each = value if isinstance(value, tuple) else (value,) * spatial
        if len(each) != spatial:
            raise OpError(
                "A114", f"{what} has {len(each)} entries for {spatial} spatial axes", attr=attr.name
            )
        return tuple(_number(what, attr, entry, int) for entry in each)
    if kind is Kind.INTS:
        if not isinstance(value, tuple):
            raise OpError("A114", f"{what} is {kind.value}, got {_show(value)}", attr=attr.name)
        return tuple(_number(what, attr, entry, int) for entry in value)
    if kind is Kind.INT:
        return int(_number(what, attr, value, int))
    if kind is Kind.AXIS:
        return _axis(what, attr, value, rank)
    if kind is Kind.AXES:
        return _axes(op, attr, value if isinstance(value, tuple) else (value,), rank)
    if kind is Kind.FLOAT:
        return float(_number(what, attr, value, float))
    fits = {
        Kind.BOOL: isinstance(value, bool),
        Kind.STRING: isinstance(value, str),
        Kind.DTYPE: value in DTYPES,
        Kind.NUMBERS: _numbers(value),
    }
    if not fits[kind]:
        raise OpError("A114", f"{what} is {kind.value}, got {_show(value)}", attr=attr.name)
    result: AttrValue = value
    return result


def _axis(what: str, attr: Attr, value: object, rank: int) -> int:
    axis = _number(what, attr, value, int)
    if not -rank <= axis < rank:
        raise OpError("A114", f"{what} is {axis}, its input has rank {rank}", attr=attr.name)
    return int(axis % rank)


def _axes(op: Op, attr: Attr, values: tuple[Any, ...], rank: int) -> tuple[int, ...]:
    what = f"`{attr.name}` of `{op.name}`"
    axes = tuple(_axis(what, attr, value, rank) for value in values)
    if len(set(axes)) != len(axes):
        raise OpError("A114", f"{what} names an axis twice: {_show(values)}", attr=attr.name)
    return axes


def _numbers(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_numbers(entry) for entry in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(what: str, attr: Attr, value: object, kind: type) -> Any:
    wanted = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise OpError("A114", f"{what} is {attr.kind.value}, got {_show(value)}", attr=attr.name)
    assert isinstance(value, int | float)
    if attr.least is not None and value < attr.least:
        raise OpError(
            "A114", f"{what} must be at least {attr.least:g}, got {_show(value)}", attr=attr.name
        )
    if not abs(value) <= (math.inf if attr.unbounded else 2**31):
        raise OpError("A114", f"{what} is out of range: {_show(value)}", attr=attr.name)
    return value


def _show(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _same_padding(op: Op, attrs: Mapping[str, AttrValue]) -> tuple[int, ...]:
    kernel, dilation = attrs["kernel"], attrs.get("dilation")
    assert isinstance(kernel, tuple)
    steps = dilation if isinstance(dilation, tuple) else (1,) * len(kernel)
    out = []
    for k, d in zip(kernel, steps, strict=True):
        assert isinstance(k, int)
        assert isinstance(d, int)
        if k % 2 == 0:
            raise OpError(
                "A115",
                f"`{op.name}` with an even kernel ({k}) has no `same` padding",
                hint=f"state it: padding = {k // 2}",
                attr="kernel",
            )
        out.append(d * (k - 1) // 2)
    return tuple(out)


@lru_cache(maxsize=256)
def equations_of(op: Op) -> tuple[tuple[Axis | Star, str], ...]:
    """The operator's equations between axis expressions and attributes, parsed."""
    parsed = []
    for text, attr in op.equations.items():
        (shape,) = parse_signature(f"-> [{text}]").results
        parsed.append((shape[0], attr))
    return tuple(parsed)


def check_count(op: Op, count: int) -> None:
    """Refuse a use with too few or too many operands.

    Raises:
        OpError: A104.
    """
    least, most = op.operands
    if count < least or (most is not None and count > most):
        wanted = (
            str(least)
            if most == least
            else f"{least} or more"
            if most is None
            else f"{least} to {most}"
        )
        raise OpError(
            "A104", f"`{op.name}` takes {wanted} tensor{'s' * (wanted != '1')}, got {count}"
        )


def instance(op: Op, attrs: Attrs, types: tuple[TensorType, ...]) -> Instance:
    """Infer a use: sizes of all axes, types of the results, shapes of the parameters.

    Raises:
        OpError: the operands do not fit the operator; both shapes are in the message.
    """
    return _instance(op, tuple(attrs.items()), types)


@lru_cache(maxsize=16384)
def _instance(
    op: Op, items: tuple[tuple[str, AttrValue], ...], types: tuple[TensorType, ...]
) -> Instance:
    attrs = dict(items)
    check_count(op, len(types))
    alike = op.result_dtype is None and op.results is None
    if alike and len({t.dtype for t in types}) > 1:
        shapes = " and ".join(map(str, types))
        raise OpError("A110", f"`{op.name}` reads tensors of different element types: {shapes}")
    axes = _expanded(op, attrs, types)
    sizes = _sizes(op, attrs, types, axes)
    dtype = (
        op.result_dtype(attrs, types) if op.result_dtype else (types[0].dtype if types else "f32")
    )
    results = []
    for result in axes.results:
        shape = tuple(measure(axis, sizes) for axis in result)
        known = tuple(size for size in shape if size is not None)
        if len(known) != len(shape):
            raise OpError("A111", f"the result of `{op.name}` has a size that cannot be written")
        results.append(TensorType(dtype, known))
    if op.results is not None:
        results = list(op.results(attrs))
    params = {}
    for param in op.present(attrs):
        shape = tuple(measure(axis, sizes) for axis in axes.params[param.role])
        if any(not isinstance(size, int) for size in shape):
            raise OpError(
                "A111",
                f"the {param.role} of `{op.name}` needs whole numbers, its shape is "
                f"[{', '.join(map(str, shape))}]",
                hint="give the input's axis a number",
            )
        params[param.role] = TensorType(
            param.dtype or dtype, tuple(size for size in shape if size is not None)
        )
    for type_ in (*results, *params.values()):
        if not type_.is_representable:
            raise OpError(
                "A122", f"`{op.name}` makes a tensor too large for any machine: {_short(type_)}"
            )
    products = op.products(attrs, types) if op.products is not None else None
    return Instance(axes, sizes, tuple(results), params, products)


def _short(type_: TensorType) -> str:
    text = str(type_)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _expanded(op: Op, attrs: Attrs, types: tuple[TensorType, ...]) -> Expanded:
    lengths: dict[str, int] = {}
    for left, name in equations_of(op):
        value = attrs[name]
        if isinstance(left, Star) and isinstance(value, tuple):
            lengths[left.name] = len(value)
    try:
        return expand(
            op.sign(attrs, types),
            frozenset(p.role for p in op.params),
            tuple(t.rank for t in types),
            tuple(lengths.items()),
        )
    except SignatureError as reason:
        shapes = " and ".join(str(t) for t in types)
        raise OpError("A110", f"`{op.name}` {reason}: {shapes}") from None


def _sizes(op: Op, attrs: Attrs, types: tuple[TensorType, ...], axes: Expanded) -> dict[str, Size]:
    sizes: dict[str, Size] = {}
    pending: list[tuple[Axis, Size, str]] = []
    for left, name in equations_of(op):
        stated = attrs[name]
        if isinstance(left, Star):
            assert isinstance(stated, tuple)
            for spelled, entry in zip(axes.stars[left.name], stated, strict=True):
                assert isinstance(entry, int)
                sizes[spelled] = entry
        else:
            assert isinstance(stated, int)
            pending.append((left, stated, f"{name} = {stated}"))
    for operand, type_ in zip(axes.operands, types, strict=True):
        pending.extend((axis, size, "") for axis, size in zip(operand, type_.shape, strict=True))
    if op.stated is not None:
        wanted = stated_sizes(op, attrs, types[0])
        pending.extend((axis, size, "") for axis, size in zip(axes.results[0], wanted, strict=True))
    for axes_, type_ in zip(axes.results, op.results(attrs) if op.results else (), strict=False):
        pending.extend((axis, size, "") for axis, size in zip(axes_, type_.shape, strict=True))
    while pending:
        rest: list[tuple[Axis, Size, str]] = []
        for axis, size, why in pending:
            answer = solve(axis, size, sizes)
            if answer is None:
                rest.append((axis, size, why))
            elif not answer:
                raise OpError("A110", _mismatch(op, (axis, size, why), sizes, types))
        if len(rest) == len(pending):
            raise OpError("A111", f"the sizes of `{op.name}` cannot be solved from its operands")
        pending = rest
    _derive(op, attrs, types, axes, sizes)
    return sizes


def stated_sizes(op: Op, attrs: Attrs, source: TensorType) -> tuple[Size, ...]:
    """The sizes that a use states for its first result: 0 is the operand's, -1 what remains.

    Raises:
        OpError: a size cannot be known, or the result would hold more or fewer entries.
    """
    assert op.stated is not None
    entries = attrs[op.stated]
    assert isinstance(entries, tuple)
    what = f"`{op.stated}` of `{op.name}` is {list(entries)}"
    sizes: list[Size] = []
    for place, entry in enumerate(entries):
        assert isinstance(entry, int)
        if entry < -1 or (entry == 0 and place >= source.rank) or entries.count(-1) > 1:
            why = "one entry at most is -1, 0 stands where the input has an axis"
            raise OpError("A114", f"{what}: {why} (input {source})", attr=op.stated)
        sizes.append(source.shape[place] if entry == 0 else entry)
    if -1 in entries:
        others = product(size for size in sizes if size != -1)
        rest = quotient(product(source.shape), others)
        if rest is None:
            message = f"{what}: the entries of {source} are no multiple of {others}"
            raise OpError("A110", message, attr=op.stated)
        sizes[entries.index(-1)] = rest
    if product(sizes) != product(source.shape):
        message = f"{what}: {product(sizes)} entries, {source} has {product(source.shape)}"
        raise OpError("A110", message, attr=op.stated)
    return tuple(sizes)


def _derive(
    op: Op, attrs: Attrs, types: tuple[TensorType, ...], axes: Expanded, sizes: dict[str, Size]
) -> None:
    """Bind the sizes that the operator computes itself, such as the extents after a window."""
    if op.derive is None:
        return
    stars = {n: tuple(sizes[s] for s in spelled if s in sizes) for n, spelled in axes.stars.items()}
    try:
        derived = op.derive(attrs, stars)
    except OpError as reason:
        message = f"`{op.name}`: {reason.message} (input {types[0]})"
        raise OpError(reason.code, message, reason.hint, reason.attr) from None
    for name, extents in derived.items():
        sizes.update(zip(axes.stars[name], extents, strict=True))


def _mismatch(
    op: Op,
    left: tuple[Axis, Size, str],
    sizes: Mapping[str, Size],
    types: tuple[TensorType, ...],
) -> str:
    axis, size, why = left
    shapes = " and ".join(str(t) for t in types)
    expected = measure(axis, sizes)
    if why:
        parts = " * ".join(str(sizes[n]) for n in axis.names() if n in sizes)
        return f"`{op.name}`: {why} is not a multiple of {parts} (input {shapes})"
    if expected is None:
        known = " * ".join(str(sizes[n]) for n in axis.names() if n in sizes)
        return f"`{op.name}`: {size} channels cannot be divided by {known} (input {shapes})"
    return f"`{op.name}`: sizes {expected} and {size} should be equal: {shapes}"


def infer(graph: Graph, ops: OpSet) -> Graph:
    """Infer every type and parameter shape again, sharing the records that stay the same.

    Raises:
        OpError: a node's operands do not fit its operator (``node`` is in the message).
    """
    builder = graph.edit()
    types: dict[str, tuple[TensorType, ...]] = {}
    for node in graph:
        if node.op == "input":
            types[node.name] = node.types
            continue
        operands = tuple(types[v.node][v.port] for v in node.inputs)
        try:
            found = instance(ops[node.op], node.attrs, operands)
        except OpError as reason:
            raise OpError(reason.code, f"at {node.name}: {reason.message}", reason.hint) from None
        types[node.name] = found.types
        if found.types != node.types:
            builder.put(replace(node, types=found.types))
        for role, type_ in found.params.items():
            path = node.params[role]
            if builder.parameters[path].type != type_:
                builder.parameters[path] = replace(builder.parameters[path], type=type_)
    return builder.build()


def instance_of(node: Node, graph: Graph, ops: OpSet) -> Instance:
    """The inferred use that a node of a graph stands for."""
    return instance(ops[node.op], node.attrs, tuple(graph.type_of(v) for v in node.inputs))
