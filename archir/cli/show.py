"""``archir show``: the layers of a network, as a table."""

from __future__ import annotations

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.cli.options import human
from archir.ir.graph import Graph, Node
from archir.lang.words import compact, needed, write_value
from archir.ops import installed_ops
from archir.ops.cost import cost
from archir.ops.record import OpSet

MOST = 48
"""Characters of attributes that a row shows."""


def attrs_text(node: Node, graph: Graph, ops: OpSet) -> str:
    """The attributes of a node that must be stated, as the language writes them."""
    op = ops[node.op]
    rank = graph.type_of(node.inputs[0]).rank if node.inputs else 0
    stated = needed(op, node.attrs, rank)
    texts = {name: write_value(compact(op, name, node.attrs[name])) for name in stated}
    text = " ".join(f"{name}={value}" for name, value in texts.items())
    return text if len(text) <= MOST else text[: MOST - 3] + "..."


def show(file: str, param: tuple[str, ...]) -> Report:
    """Print the layers of a network with their shapes and costs."""
    program = options.program(file, param)
    graph, ops = program.graph, installed_ops()
    total = cost(graph, ops)
    rows, layers = [], []
    for node, own in zip(graph, total.layers, strict=True):
        attrs = "" if node.op == "input" else attrs_text(node, graph, ops)
        shape = options.shape_text(node.types)
        count = f"{own.params:,}" if own.params else ""
        work = human(own.macs) if own.macs else ""
        rows.append((node.name, node.op, attrs, shape, count, work))
        layers.append(
            {
                "path": node.name,
                "op": node.op,
                "attrs": {k: list(v) if isinstance(v, tuple) else v for k, v in node.attrs.items()},
                "inputs": [str(v) for v in node.inputs],
                "types": [str(t) for t in node.types],
                "params": dict(node.params),
                "param_count": own.params,
                "macs": own.macs,
            }
        )
    text = options.table(("path", "op", "", "shape", "params", "MACs"), rows, right=(4, 5))
    foot = f"\n{graph.name}: {total.params:,} parameters, {total.macs:,} MACs (batch 1)"
    return Report({"file": file, "name": graph.name, "layers": layers}, text + foot)


command = make("show", options.file, options.params, example="archir show net.arch")(show)
