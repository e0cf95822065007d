"""Nodes and values as they are written: attributes without their defaults, calls, types."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from archir.ir.graph import Graph
from archir.ir.types import AttrValue, TensorType
from archir.lang.scalars import CONSTANTS
from archir.lang.tree import KEYWORDS, escape, write_path
from archir.ops.infer import OpError, bind_attrs
from archir.ops.record import REQUIRED, Attrs, Kind, Op

POSITIONAL = (Kind.INT, Kind.SPATIAL, Kind.PADDING, Kind.INTS, Kind.AXES, Kind.NUMBERS)
"""Kinds of attributes that read well without a keyword."""
MAX_POSITIONAL = 3
RESERVED = frozenset(CONSTANTS) | KEYWORDS
"""Names that a block's parameter or binding had better not have."""


def write_value(value: AttrValue) -> str:
    """An attribute's value as a literal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, str):
        return '"' + escape(value, '"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(write_value, value)) + "]"
    if isinstance(value, float):
        return _write_float(value)
    return str(value)


def _write_float(value: float) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    if exponent:
        return f"{mantissa}e{int(exponent)}"
    return text


def write_type(type_: TensorType) -> str:
    """A tensor type."""
    return str(type_)


@lru_cache(maxsize=8192)
def _needed(op: Op, items: tuple[tuple[str, AttrValue], ...], rank: int) -> tuple[str, ...]:
    """The attributes that must be stated: without the others, binding gives the same."""
    full = dict(items)
    kept = dict(full)
    operands = [(TensorType("f32", (size,) * rank),) for size in (1, 4)]  # none is the real one
    for attr in op.attrs:
        if attr.default is REQUIRED:
            continue
        fewer = {name: value for name, value in kept.items() if name != attr.name}
        try:
            bounds = [bind_attrs(op, fewer, operand) for operand in operands]
        except OpError:
            continue
        if all([*map(repr, b.items())] == [*map(repr, full.items())] for b in bounds):
            kept = fewer
    stated = set(kept)
    for index in reversed(range(min(MAX_POSITIONAL, len(op.attrs)))):
        if op.attrs[index].name in stated and op.attrs[index].kind in POSITIONAL:
            stated |= {attr.name for attr in op.attrs[:index] if attr.kind in POSITIONAL}
            break
    return tuple(attr.name for attr in op.attrs if attr.name in stated)


def needed(op: Op, attrs: Attrs, rank: int) -> tuple[str, ...]:
    """The names of the attributes to state, in record order: no gap before one by position.

    ``rank`` is that of the first operand (0 without one).
    """
    return _needed(op, tuple(attrs.items()), rank)


def compact(op: Op, name: str, value: AttrValue) -> AttrValue:
    """An attribute's value in its shortest form: (3, 3) of a kernel is 3."""
    attr = op.attr(name)
    if attr is not None and attr.kind in (Kind.SPATIAL, Kind.PADDING) and isinstance(value, tuple):
        return value[0] if len(set(value)) == 1 else value
    return value


def arguments(op: Op, texts: Mapping[str, str]) -> list[str]:
    """The attributes of a call: the first few of plain kinds by position, the rest by keyword."""
    out: list[str] = []
    positional = True
    for index, attr in enumerate(op.attrs):
        if attr.name not in texts:
            positional = False
            continue
        plain = attr.kind in POSITIONAL or (attr.kind is Kind.FLOAT and len(op.attrs) == 1)
        positional = positional and plain and index < MAX_POSITIONAL
        text = texts[attr.name]
        if attr.kind in (Kind.PADDING, Kind.DTYPE):
            text = text.strip('"')
        out.append(text if positional else f"{write_path(attr.name)} = {text}")
    return out


def call(name: str, args: Sequence[str], suffix: str = "", *, bare: bool = True) -> str:
    """A call as text; ``bare`` drops empty parentheses (for a stage)."""
    text = write_path(name)
    if args or not bare:
        text += "(" + ", ".join(args) + ")"
    return text + suffix


def renames(
    name: str, op: Op, params: Mapping[str, str], shared: Collection[tuple[str, str]] = ()
) -> dict[str, str]:
    """What must be said of a node's parameters: role to a quoted leaf or an absolute path.

    ``shared`` holds the nodes and roles whose parameter is another node's too, and stated there.
    """
    out: dict[str, str] = {}
    for role, path in params.items():
        usual = name if op.name == "parameter" else f"{name}.{role}"
        if path == usual:
            continue
        own = path.startswith(f"{name}.") and (name, role) not in shared
        if own and op.name != "parameter":
            out[role] = '"' + escape(path[len(name) + 1 :], '"') + '"'
        else:
            out[role] = write_path(path)
    return out


def ties_ahead(graph: Graph) -> frozenset[tuple[str, str]]:
    """Nodes and roles whose parameter is that of a later node: those are tied, not named."""
    seen: set[str] = set()
    found: set[tuple[str, str]] = set()
    for node in graph:
        for role, path in node.params.items():
            owner, _, leaf = path.rpartition(".")
            ahead = path not in seen and owner != node.name and owner in graph
            if ahead and graph.node(owner).params.get(leaf) == path:
                found.add((node.name, role))
        seen.update(node.params.values())
    return frozenset(found)


def stated_before(graph: Graph) -> frozenset[tuple[str, str]]:
    """Nodes and roles whose parameter is that of an earlier node."""
    seen: set[str] = set()
    found: set[tuple[str, str]] = set()
    for node in graph:
        found.update((node.name, role) for role, path in node.params.items() if path in seen)
        seen.update(node.params.values())
    return frozenset(found)


def suffix(renamed: Mapping[str, str]) -> str:
    """The ` params { ... }` of a call; empty without any."""
    if not renamed:
        return ""
    return (
        " params { "
        + ", ".join(f"{write_path(role)}: {text}" for role, text in renamed.items())
        + " }"
    )
