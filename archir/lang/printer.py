"""Graph to text."""

from __future__ import annotations

from archir.diag import ArchirError, Source, error
from archir.ir.graph import Graph
from archir.ir.same import difference, equal
from archir.lang.elaborate import load
from archir.lang.flat import print_flat
from archir.lang.format import format_text
from archir.ops.record import OpSet


def print_graph(graph: Graph, ops: OpSet) -> str:
    """The canonical text of a graph, chains folded into pipelines and repetition into blocks.

    Loading the text gives the graph again, names included; that is checked here.

    Raises:
        ArchirError: A910, the graph holds what the language cannot say.
    """
    text = format_text(Source("<printed>", print_flat(graph, ops)))
    try:
        again = load(Source("<printed>", text), ops).graph
    except ArchirError as problem:
        raise error("A910", f"the graph cannot be written as text: {problem}") from problem
    if not equal(graph, again):
        raise error("A910", f"the graph cannot be written as text: {difference(graph, again)}")
    return text
