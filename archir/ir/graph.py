"""The graph: a frozen façade over one ``networkx.MultiDiGraph``.

A node is known by its path; an edge ``u -> v`` carries the operand index as its key and
the producer's output port as ``port``. This is the only file that knows networkx. A graph
is immutable to its users: :meth:`Graph.edit` hands out a private builder, which copies the
adjacency once and shares the node records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import networkx as nx

from archir.ir.memory import uncollected
from archir.ir.types import AttrValue, TensorType


class Value(NamedTuple):
    """One output of a node."""

    node: str
    port: int = 0

    def __str__(self) -> str:
        return self.node if self.port == 0 else f"{self.node}:{self.port}"


@dataclass(frozen=True, slots=True)
class Node:
    """One use of an operator.

    ``params`` maps the operator's parameter roles (``weight``, ``bias``, ...) to parameter
    paths; two nodes that name the same path share that tensor. ``types`` are the types of
    the outputs.
    """

    name: str
    op: str
    attrs: Mapping[str, AttrValue]
    inputs: tuple[Value, ...]
    params: Mapping[str, str]
    types: tuple[TensorType, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor that a network owns: trained (``buffer`` false) or a statistic."""

    path: str
    type: TensorType
    buffer: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """A named output of the network."""

    name: str
    value: Value


class Graph:
    """An immutable network. Build one with :class:`GraphBuilder`."""

    __slots__ = ("_g", "inputs", "meta", "name", "outputs", "parameters")

    def __init__(
        self,
        graph: nx.MultiDiGraph[str],
        *,
        name: str,
        inputs: tuple[str, ...],
        outputs: tuple[Output, ...],
        parameters: Mapping[str, Parameter],
        meta: Mapping[str, AttrValue],
    ) -> None:
        self._g = graph
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters
        self.meta = meta

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self)} nodes, {len(self.parameters)} parameters>"

    def __len__(self) -> int:
        return len(self._g)

    def __contains__(self, name: object) -> bool:
        return name in self._g

    def __iter__(self) -> Iterator[Node]:
        """The nodes, operands before their readers, otherwise in program order."""
        for _, data in self._g.nodes(data=True):
            yield data["record"]

    def node(self, name: str) -> Node:
        """The node at a path; ``KeyError`` where there is none."""
        record: Node = self._g.nodes[name]["record"]
        return record

    def type_of(self, value: Value) -> TensorType:
        """The type of a value."""
        return self.node(value.node).types[value.port]

    def readers(self, name: str) -> list[tuple[Node, int, int]]:
        """Who reads a node: ``(reader, operand index, port)``, in program order."""
        return [
            (self.node(reader), index, data["port"])
            for _, reader, index, data in self._g.out_edges(name, keys=True, data=True)
        ]

    def is_output(self, name: str) -> bool:
        """Whether a node's value is an output of the network."""
        return any(output.value.node == name for output in self.outputs)

    def users(self) -> dict[str, list[tuple[str, str]]]:
        """For each parameter path, the ``(node, role)`` pairs that hold it."""
        found: dict[str, list[tuple[str, str]]] = {}
        for node in self:
            for role, path in node.params.items():
                found.setdefault(path, []).append((node.name, role))
        return found

    def edit(self) -> GraphBuilder:
        """A private builder that starts as a copy of this graph."""
        return GraphBuilder(self.name, base=self)


@dataclass
class GraphBuilder:
    """Collects nodes and parameters; :meth:`build` freezes them into a graph."""

    name: str
    base: Graph | None = None
    inputs: list[str] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    meta: dict[str, AttrValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.base is not None:
            self.inputs = list(self.base.inputs)
            self.outputs = list(self.base.outputs)
            self.nodes = {node.name: node for node in self.base}
            self.parameters = dict(self.base.parameters)
            self.meta = dict(self.base.meta)

    def add(self, node: Node) -> Value:
        """Add a node under a path that is still free; returns its first output."""
        assert node.name not in self.nodes, f"two nodes named {node.name}"
        self.nodes[node.name] = node
        return Value(node.name)

    def put(self, node: Node) -> None:
        """Replace the node of the same path."""
        assert node.name in self.nodes, f"no node named {node.name}"
        self.nodes[node.name] = node

    def rewire(self, values: Mapping[Value, Value], *, but: Iterable[str] = ()) -> None:
        """Let every reader of an old value (and every output) read its new one, all at once."""
        skip = set(but)
        for node in list(self.nodes.values()):
            if node.name not in skip and any(value in values for value in node.inputs):
                inputs = tuple(values.get(value, value) for value in node.inputs)
                self.nodes[node.name] = replace(node, inputs=inputs)
        self.outputs = [Output(o.name, values.get(o.value, o.value)) for o in self.outputs]

    def build(self) -> Graph:
        """Freeze. Nodes are put in dependency order, ties by the order of insertion.

        Raises:
            ValueError: the nodes form a cycle, or read a node that does not exist.
        """
        order = _dependency_order(self.nodes)
        with uncollected():
            graph = _adjacency(order)
        used = {path for node in order for path in node.params.values()}
        parameters = {path: p for path, p in self.parameters.items() if path in used}
        return Graph(
            graph,
            name=self.name,
            inputs=tuple(self.inputs),
            outputs=tuple(self.outputs),
            parameters=parameters,
            meta=dict(self.meta),
        )


def _adjacency(order: Iterable[Node]) -> nx.MultiDiGraph[str]:
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    for node in order:
        graph.add_node(node.name, record=node)
    edges: list[tuple[str, str, int, dict[str, Any]]] = [
        (value.node, node.name, index, {"port": value.port})
        for node in order
        for index, value in enumerate(node.inputs)
    ]
    graph.add_edges_from(edges)
    return graph


def _dependency_order(nodes: Mapping[str, Node]) -> list[Node]:
    seen: set[str] = set()
    if all(_ready(node, seen) for node in nodes.values()):
        return list(nodes.values())
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(nodes)
    for node in nodes.values():
        for value in node.inputs:
            if value.node not in nodes:
                raise ValueError(f"{node.name} reads {value.node}, which does not exist")
            graph.add_edge(value.node, node.name)
    place = {name: index for index, name in enumerate(nodes)}
    try:
        order = list(nx.lexicographical_topological_sort(graph, key=place.__getitem__))
    except nx.NetworkXUnfeasible:
        raise ValueError("the nodes form a cycle") from None
    return [nodes[name] for name in order]


def _ready(node: Node, seen: set[str]) -> bool:
    seen.add(node.name)
    return all(value.node in seen and value.node != node.name for value in node.inputs)


def reachable(graph: Graph) -> set[str]:
    """The nodes that some output depends on."""
    found: set[str] = set()
    stack = [output.value.node for output in graph.outputs]
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack.extend(value.node for value in graph.node(name).inputs)
    return found
