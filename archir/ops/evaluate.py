"""Run a graph by the reference semantics, in any number system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from archir.ir.graph import Graph, Value
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.record import Mode, OpSet


@dataclass(frozen=True)
class Run:
    """The values asked for, and the buffers as they are afterwards (train mode)."""

    values: Mapping[Value, Array]
    buffers: Mapping[str, Array]


def run(
    graph: Graph,
    ops: OpSet,
    arithmetic: Arithmetic,
    feeds: Mapping[Value, Array],
    params: Mapping[str, Array],
    *,
    wanted: Iterable[Value] | None = None,
    mode: Mode = "eval",
) -> Run:
    """Evaluate what is ``wanted`` (by default the outputs) from ``feeds``.

    ``feeds`` may name any values, not inputs alone: what lies before them is not computed.

    Raises:
        KeyError: a wanted value depends on an input that is not fed.
    """
    targets = list(wanted) if wanted is not None else [o.value for o in graph.outputs]
    needed = _needed(graph, feeds, targets)
    uses: dict[str, int] = {}
    for name in needed:
        for value in graph.node(name).inputs:
            uses[value.node] = uses.get(value.node, 0) + 1
    keep = {value.node for value in targets}
    values: dict[Value, Array] = dict(feeds)
    buffers: dict[str, Array] = {}
    for node in graph:
        if node.name not in needed:
            continue
        op = ops[node.op]
        operands = tuple(values[v] for v in node.inputs)
        own = {role: params[path] for role, path in node.params.items() if path in params}
        if mode == "train" and op.update is not None:
            found = op.update(arithmetic, operands, own, node.attrs)
            buffers.update({node.params[role]: value for role, value in found.items()})
        results = op.reference(arithmetic, operands, own, node.attrs, mode)
        values.update({Value(node.name, port): r for port, r in enumerate(results)})
        for value in node.inputs:
            uses[value.node] -= 1
            if not uses[value.node] and value.node not in keep:
                for port in range(len(graph.node(value.node).types)):
                    values.pop(Value(value.node, port), None)
    return Run({value: values[value] for value in targets}, buffers)


def _needed(graph: Graph, feeds: Mapping[Value, Array], targets: list[Value]) -> set[str]:
    needed: set[str] = set()
    stack = [value for value in targets if value not in feeds]
    while stack:
        value = stack.pop()
        if value.node in needed:
            continue
        node = graph.node(value.node)
        if node.op == "input":
            raise KeyError(f"{node.name} is not fed")
        needed.add(value.node)
        stack.extend(v for v in node.inputs if v not in feeds)
    return needed
