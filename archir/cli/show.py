"""``archir show``: the layers of a network, as a table."""

from __future__ import annotations

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.cli.options import human
from archir.ir.types import AttrValue
from archir.ops import installed_ops
from archir.ops.cost import cost
from archir.ops.infer import bind_attrs
from archir.ops.record import OpSet
from archir.ir.graph import Graph, Node


def attrs_text(node: Node, graph: Graph, ops: OpSet) -> str:
    """The attributes of a node that differ from their defaults."""
    types = tuple(graph.type_of(v) for v in node.inputs)
    required = {a.name: node.attrs[a.name] for a in ops[node.op].attrs if a.name in ("out", "kernel")}
    usual = bind_attrs(ops[node.op], {**node.attrs, **_without_defaults(node, ops)}, types)
    parts = [
        f"{name}={_short(value)}"
        for name, value in node.attrs.items()
        if name in required or usual.get(name) != value
    ]
    return " ".join(parts)


def _without_defaults(node: Node, ops: OpSet) -> dict[str, AttrValue]:
    from archir.ops.record import REQUIRED

    return {a.name: a.default for a in ops[node.op].attrs if a.default is not REQUIRED}


def _short(value: AttrValue) -> str:
    if isinstance(value, tuple):
        same = len(set(value)) == 1
        text = _short(value[0]) if same and value else "x".join(_short(v) for v in value)
        return text if len(text) <= 24 else text[:21] + "..."
    return str(value).lower() if isinstance(value, bool) else str(value)


def show(file: str, param: tuple[str, ...]) -> Report:
    """Print the layers of a network: path, operator, shape, parameters, MACs."""
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
