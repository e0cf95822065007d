"""``archir cost``: parameters, multiply-accumulates, memory."""

from __future__ import annotations

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.cli.options import human, memory
from archir.ops import installed_ops
from archir.ops.cost import cost as cost_of


def cost(file: str, param: tuple[str, ...]) -> Report:
    """Report what a network costs, for a batch of one.

    MACs are multiply-accumulates of convolutions and linear layers (FLOPs count each twice).
    """
    graph = options.program(file, param).graph
    total = cost_of(graph, installed_ops())
    by_op: dict[str, list[int]] = {}
    for layer in total.layers:
        sums = by_op.setdefault(layer.op, [0, 0, 0, 0])
        for index, value in enumerate((1, layer.params, layer.macs, layer.activation_bytes)):
            sums[index] += value
    rows = [
        (op, sums[0], f"{sums[1]:,}", human(sums[2]), memory(sums[3]))
        for op, sums in sorted(by_op.items(), key=lambda item: -item[1][2])
    ]
    rows.append(
        (
            "total",
            len(graph),
            f"{total.params:,}",
            human(total.macs),
            memory(total.activation_bytes),
        )
    )
    headers = ("op", "count", "params", "MACs", "activations")
    text = options.table(headers, rows, right=(1, 2, 3, 4))
    data = {
        "file": file,
        "params": total.params,
        "buffers": total.buffers,
        "macs": total.macs,
        "activation_bytes": total.activation_bytes,
        "batch": 1,
        "by_op": {
            op: dict(zip(("count", "params", "macs", "activation_bytes"), sums, strict=True))
            for op, sums in by_op.items()
        },
    }
    return Report(data, text)


command = make("cost", options.file, options.params, example="archir cost net.arch")(cost)
