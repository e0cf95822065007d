"""``archir check``: parse, infer shapes, report cost."""

from __future__ import annotations

from typing import Any

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import ArchirError
from archir.ir.graph import Graph, reachable
from archir.ops import installed_ops
from archir.ops.cost import Cost, cost


def summary(graph: Graph, total: Cost) -> dict[str, Any]:
    """A network in a few numbers."""
    return {
        "name": graph.name,
        "nodes": len(graph),
        "inputs": {name: str(graph.node(name).types[0]) for name in graph.inputs},
        "outputs": {o.name: str(graph.type_of(o.value)) for o in graph.outputs},
        "params": total.params,
        "buffers": total.buffers,
        "macs": total.macs,
        "activation_bytes": total.activation_bytes,
    }


def check(files: tuple[str, ...], param: tuple[str, ...]) -> Report:
    """Parse networks, infer every shape and report what they cost.

    Imports neither torch nor onnx. All errors of all files are reported.
    """
    found, lines, failures = [], [], []
    for path in files:
        try:
            program = options.program(path, param)
        except ArchirError as failure:
            failures.append(failure)
            continue
        graph = program.graph
        facts = summary(graph, cost(graph, installed_ops()))
        read = reachable(graph)
        dead = [n.name for n in graph if n.name not in read and n.op != "input"]
        found.append({"file": path, **facts, "unused": dead})
        into = ", ".join(f"{k} {v}" for k, v in facts["inputs"].items())
        out = ", ".join(f"{k} {v}" for k, v in facts["outputs"].items())
        lines.append(
            f"{path}: ok: {graph.name}, {into} -> {out}\n"
            f"  {facts['nodes']} nodes, {facts['params']:,} parameters, "
            f"{facts['macs']:,} MACs (batch 1)"
        )
        if dead:
            lines.append(f"  no output depends on: {', '.join(dead[:8])}")
    return Report({"files": found}, "\n".join(lines)).after(failures)


command = make(
    "check",
    click.argument("files", nargs=-1, required=True),
    options.params,
    example="archir check net.arch",
)(check)
