"""The canonical hash of a graph, and the canonical order of its parameters.

Nodes and parameters are numbered by a depth-first walk from the ordered outputs (then from
what no output depends on, in program order), so the hash does not depend on names and tells
tied from untied weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from archir.ir.graph import Graph, Node


@dataclass(frozen=True)
class Numbering:
    """Nodes and parameter paths in canonical order."""

    nodes: tuple[str, ...]
    parameters: tuple[str, ...]


def numbering(graph: Graph) -> Numbering:
    """Number nodes and parameters in canonical order."""
    order: dict[str, None] = {}
    parameters: dict[str, None] = {}
    read = {value.node for node in graph for value in node.inputs}
    roots = [o.value.node for o in graph.outputs]
    roots += [node.name for node in graph if node.name not in read]
    roots += list(graph.inputs)
    for root in roots:
        stack = [(root, False)]
        while stack:
            name, done = stack.pop()
            if name in order:
                continue
            node = graph.node(name)
            if done:
                order[name] = None
                for role in sorted(node.params):
                    parameters.setdefault(node.params[role])
                continue
            stack.append((name, True))
            stack.extend((v.node, False) for v in reversed(node.inputs) if v.node not in order)
    return Numbering(tuple(order), tuple(parameters))


def graph_hash(graph: Graph) -> str:
    """sha256 (hex) of the graph up to renaming of its nodes and parameters."""
    numbers = numbering(graph)
    node_number = {name: i for i, name in enumerate(numbers.nodes)}
    parameter_number = {path: i for i, path in enumerate(numbers.parameters)}
    digest = hashlib.sha256(b"archir graph 1\n")

    def describe(node: Node) -> str:
        return json.dumps(
            [
                node.op,
                sorted((k, repr(v)) for k, v in node.attrs.items()),
                [(node_number[v.node], v.port) for v in node.inputs],
                sorted((role, parameter_number[path]) for role, path in node.params.items()),
                [str(t) for t in node.types] if node.op == "input" else [],
            ]
        )

    for name in numbers.nodes:
        digest.update(describe(graph.node(name)).encode() + b"\n")
    for path in numbers.parameters:
        parameter = graph.parameters[path]
        digest.update(f"{parameter.type} {parameter.buffer}\n".encode())
    ends = [[node_number[name] for name in graph.inputs]]
    ends.append(
        [number for o in graph.outputs for number in (node_number[o.value.node], o.value.port)]
    )
    digest.update(json.dumps(ends).encode())
    return digest.hexdigest()
