"""Running a network in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archir.diag import error
from archir.ir.graph import Graph, Output, Value
from archir.ops.arithmetic import Array
from archir.weights.store import check_weights

from .model import skeleton
from .runtime import Device, run, session
from .wire import chunks


def forward(
    graph: Graph,
    weights: Mapping[str, Array],
    feeds: Mapping[str, Array],
    *,
    train: bool = False,
    values: Sequence[Value] | None = None,
    device: Device = "cpu",
) -> list[Array]:
    """Run a network in eval mode; see :class:`archir.target.Forward`."""
    if train:
        raise error("A502", "ONNX Runtime runs networks in eval mode only")
    check_weights(graph, weights, extra=True)
    outputs = None
    if values is not None:
        outputs = [Output(f"__value{number}", value) for number, value in enumerate(values)]
    made = skeleton(graph, weights, outputs=outputs)
    return run(session(b"".join(chunks(made)), device), feeds)
