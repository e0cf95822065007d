"""Well-formedness: a table of what every graph obeys, run after each rewrite.

That types follow from the operators is checked beside the operators
(:func:`archir.ops.infer.infer`); here is what needs no operator to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from archir.diag import error
from archir.ir.graph import Graph


def _operands(graph: Graph) -> Iterator[str]:
    seen: set[str] = set()
    for node in graph:
        for value in node.inputs:
            if value.node not in graph:
                yield f"{node.name} reads {value.node}, which does not exist"
            elif not 0 <= value.port < len(graph.node(value.node).types):
                yield f"{node.name} reads output {value.port} of {value.node}, which has fewer"
            elif value.node not in seen:
                yield f"{node.name} reads {value.node}, which stands after it"
        seen.add(node.name)


def _inputs(graph: Graph) -> Iterator[str]:
    for name in graph.inputs:
        if name not in graph or graph.node(name).op != "input":
            yield f"the input {name} is no input node"
    for node in graph:
        if node.op == "input" and node.name not in graph.inputs:
            yield f"{node.name} is an input node but no input of the network"


def _outputs(graph: Graph) -> Iterator[str]:
    names = [output.name for output in graph.outputs]
    yield from (f"two outputs are named {n}" for n in dict.fromkeys(names) if names.count(n) > 1)
    if not names:
        yield "there is no output"
    for output in graph.outputs:
        node = output.value.node
        if node not in graph or not 0 <= output.value.port < len(graph.node(node).types):
            yield f"the output {output.name} names {output.value}, which does not exist"


def _parameters(graph: Graph) -> Iterator[str]:
    used: set[str] = set()
    for node in graph:
        for role, path in node.params.items():
            used.add(path)
            if path not in graph.parameters:
                yield f"the {role} of {node.name} is {path}, which does not exist"
    for path, parameter in graph.parameters.items():
        if path != parameter.path:
            yield f"the parameter {parameter.path} is filed under {path}"
        if path not in used:
            yield f"nothing reads the parameter {path}"
        if not all(isinstance(size, int) and size >= 0 for size in parameter.type.shape):
            yield f"the parameter {path} has the shape {parameter.type}"


LAWS: tuple[Callable[[Graph], Iterator[str]], ...] = (_operands, _inputs, _outputs, _parameters)
"""What every graph obeys; each yields a sentence for each breach."""


def problems(graph: Graph) -> list[str]:
    """Every breach of a graph, in words."""
    return [text for law in LAWS for text in law(graph)]


def check(graph: Graph, maker: str) -> None:
    """Make sure that a graph is well-formed.

    Args:
        graph: The graph.
        maker: What made it; named in the error.

    Raises:
        ArchirError: A911, with the first breaches.
    """
    found = problems(graph)
    if found:
        raise error("A911", f"{maker} made a graph that is not well-formed: {'; '.join(found[:3])}")
