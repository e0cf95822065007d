"""A change of the graph as a change of the text."""

from __future__ import annotations

from archir.ir.graph import Graph
from archir.ir.same import equal
from archir.lang.printer import print_graph
from archir.lang.program import Program
from archir.ops.record import OpSet


def edit(program: Program, after: Graph, ops: OpSet) -> str:
    """The text of ``after``: that of ``program``, changed as little as possible.

    Raises:
        ArchirError: A910, the graph holds what the language cannot say.
    """
    if equal(program.graph, after):
        return program.source.text
    return print_graph(after, ops)
