"""The plainest program of a graph: one binding a node. It can say everything."""

from __future__ import annotations

from archir.ir.graph import Graph, Node, Value
from archir.lang import words
from archir.lang.tree import is_name, write_path
from archir.ops.record import OpSet


def arch_name(graph: Graph) -> str:
    """The graph's name if it can be written, else `network`."""
    return graph.name if is_name(graph.name) else "network"


def preprocess(graph: Graph) -> list[str]:
    """The `preprocess` statement of a graph, if it has one."""
    entries = graph.meta.get("preprocess")
    if not isinstance(entries, tuple):
        return []
    settings: list[str] = []
    for entry in entries:
        assert isinstance(entry, tuple)
        name, value = entry
        settings.append(f"{name} = {words.write_value(value)}")
    return ["preprocess { " + ", ".join(settings) + " }"]


def print_flat(graph: Graph, ops: OpSet) -> str:
    """One binding a node, in the order of the graph; not yet formatted."""
    names = _value_names(graph)
    ahead = words.ties_ahead(graph)
    shared = ahead | words.stated_before(graph)
    lines = [f"arch {arch_name(graph)} {{"]
    lines += [
        f"input {write_path(name)}: {words.write_type(graph.node(name).types[0])}"
        for name in graph.inputs
    ]
    for node in graph:
        if node.op == "input":
            continue
        targets = [names[Value(node.name, port)] for port in range(len(node.types))]
        lines.append(
            f"{', '.join(map(write_path, targets))} = "
            f"{node_call(node, graph, ops, names, (ahead, shared))}"
        )
    for output in graph.outputs:
        value = write_path(names[output.value])
        lines.append(f"output {write_path(output.name)} = {value}")
    return "\n".join(["version 1", *lines, *preprocess(graph), "}", ""])


def _value_names(graph: Graph) -> dict[Value, str]:
    """A name for every value: a node's own for its first, a fresh one for its others."""
    taken = {node.name for node in graph}
    names: dict[Value, str] = {}
    for node in graph:
        names[Value(node.name)] = node.name
        for port in range(1, len(node.types)):
            names[Value(node.name, port)] = fresh(f"{node.name}.port{port}", taken)
    return names


def fresh(wish: str, taken: set[str]) -> str:
    """A name like ``wish`` that is not taken; it is taken then."""
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}{number}"
    taken.add(name)
    return name


def node_call(
    node: Node,
    graph: Graph,
    ops: OpSet,
    names: dict[Value, str],
    ties: tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]],
) -> str:
    """A node as a call in function form; ``ties`` as :mod:`archir.lang.words` finds them."""
    ahead, shared = ties
    op = ops[node.op]
    rank = len(graph.type_of(node.inputs[0]).shape) if node.inputs else 0
    needed = words.needed(op, node.attrs, rank)
    stated = {name: words.compact(op, name, node.attrs[name]) for name in needed}
    texts = {name: words.write_value(value) for name, value in stated.items()}
    operands = [write_path(names[value]) for value in node.inputs]
    renamed = words.renames(node.name, op, node.params, shared)
    tied = [role for role in renamed if (node.name, role) in ahead]
    written = [f"{write_path(role)} = {renamed.pop(role)}" for role in tied]
    arguments = operands + words.arguments(op, texts) + written
    return words.call(op.name, arguments, words.suffix(renamed), bare=False)
