"""A backend: multilayer perceptrons in plain NumPy, single precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from archir.diag import error
from archir.ir.graph import Graph, Node, Value


def _sloped(node: Node, weights: Mapping[str, Any], x: Any) -> Any:
    return np.where(x > 0, x, np.float32(node.attrs["slope"]) * x)


def _linear(node: Node, weights: Mapping[str, Any], x: Any) -> Any:
    y = x @ weights[node.params["weight"]].T
    return y + weights[node.params["bias"]] if "bias" in node.params else y


def _flatten(node: Node, weights: Mapping[str, Any], x: Any) -> Any:
    return x.reshape(*x.shape[: node.attrs["start"]], -1)


LOWER = {
    "flatten": _flatten,
    "linear": _linear,
    "relu": lambda node, weights, x: np.maximum(x, 0),
    "sloped": _sloped,
}
UNSUPPORTED = {"conv": "this backend is for multilayer perceptrons"}


def forward(
    graph: Graph,
    weights: Mapping[str, Any],
    feeds: Mapping[str, Any],
    *,
    train: bool = False,
    values: Sequence[Value] | None = None,
) -> list[Any]:
    """Run a network on arrays."""
    found = {Value(name): np.asarray(array) for name, array in feeds.items()}
    for node in graph:
        if node.op == "input":
            continue
        if node.op not in LOWER:
            reason = UNSUPPORTED.get(node.op, "it has no entry in the backend's table")
            raise error("A501", f"plain cannot run `{node.op}`: {reason}", node=node.name)
        inputs = [found[value] for value in node.inputs]
        found[Value(node.name)] = LOWER[node.op](node, weights, *inputs)
    wanted = values if values is not None else [o.value for o in graph.outputs]
    return [found[value] for value in wanted]
