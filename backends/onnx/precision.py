"""Half precision: which nodes of a float32 network are computed in float16."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from archir.diag import BAD_INPUT, error
from archir.ir.graph import Graph, Node
from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Array

LARGEST = float(np.finfo(np.float16).max)
"""The largest number of float16, 65504."""
SMALLEST = float(np.finfo(np.float16).smallest_normal)
"""The smallest number that float16 holds with all of its digits, 6.1e-5."""

SENSITIVE = frozenset(
    {
        "attention",
        "cumsum",
        "dynamic_batch_norm",
        "exp",
        "group_norm",
        "instance_norm",
        "l2_norm",
        "layer_norm",
        "local_response_norm",
        "log",
        "log_sigmoid",
        "log_softmax",
        "pow",
        "prod",
        "reciprocal",
        "rms_norm",
        "rsqrt",
        "softmax",
        "softplus",
        "sum",
        "var",
    }
)
"""Operators that stay in float32: their sums, exponentials or quotients leave float16's range.

In the main the list that ``torch.autocast`` keeps in float32. ``attention`` is there for what it
computes inside: scores, a softmax and, where it is causal, infinities.
"""

_Value = TypeVar("_Value", bound=AttrValue)


@dataclass(frozen=True)
class Precision:
    """Which nodes are computed in float16 where the network says float32."""

    half: frozenset[str] = frozenset()
    kept: Mapping[str, str] = field(default_factory=dict)
    """The nodes that could be and stay in float32, with the reason."""

    def within(self, node: str, type_: TensorType) -> TensorType:
        """A type of a node's operand or result in the precision that the node computes in."""
        if type_.dtype != "f32" or node not in self.half:
            return type_
        return replace(type_, dtype="f16")

    def dtype(self, node: str, name: _Value) -> _Value | str:
        """An element type that a node names, in the precision that it computes in."""
        return "f16" if name == "f32" and node in self.half else name

    def array(self, node: str) -> np.dtype[Any]:
        """The NumPy dtype in which a node reads float32 parameters."""
        return np.dtype(np.float16 if node in self.half else np.float32)

    def facts(self, graph: Graph) -> dict[str, object]:
        """What is computed in which precision, as JSON values."""
        by_reason: dict[str, Counter[str]] = {}
        for name, reason in self.kept.items():
            by_reason.setdefault(reason, Counter())[graph.node(name).op] += 1
        inner = [name for name in self.half if graph.node(name).op != "input"]
        return {
            "half_nodes": len(inner),
            "kept_in_f32": {reason: dict(ops) for reason, ops in by_reason.items()},
        }


FULL = Precision()
"""Everything as the network says."""


def halved(
    graph: Graph, weights: Mapping[str, Array], *, keep: Sequence[str] = (), io: bool = False
) -> Precision:
    """Choose the nodes that are computed in float16.

    All that compute in float32 but the :data:`SENSITIVE` ones, those whose weights float16 cannot
    hold, and those that the user keeps.

    Args:
        graph: The network.
        weights: An array for each parameter.
        keep: Paths or globs of nodes that stay in float32.
        io: Whether the inputs and outputs are float16 too.

    Raises:
        ArchirError: A549, a path or glob of ``keep`` fits no node.
    """
    wanted: set[str] = set()
    for pattern in keep:
        found = {n.name for n in graph if _fits(n.name, pattern)}
        if not found:
            message = f"there is no node `{pattern}` to keep in float32"
            hint = "`archir show FILE` lists the paths; * and ? may stand in for parts"
            raise error("A549", message, hint=hint, status=BAD_INPUT)
        wanted |= found
    half: set[str] = set()
    kept: dict[str, str] = {}
    for node in graph:
        if node.op == "input":
            half |= {node.name} if io and node.types[0].dtype == "f32" else set()
        elif not _computes(graph, node):
            continue
        elif node.name in wanted:
            kept[node.name] = "kept by the user"
        elif node.op in SENSITIVE:
            kept[node.name] = "sensitive operators"
        elif (large := _large(node, weights)) is not None:
            kept[node.name] = large
        else:
            half.add(node.name)
    return Precision(frozenset(half), kept)


def _fits(name: str, pattern: str) -> bool:
    return name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def _computes(graph: Graph, node: Node) -> bool:
    types = [*node.types, *(graph.type_of(value) for value in node.inputs)]
    return any(type_.dtype == "f32" for type_ in types)


def _large(node: Node, weights: Mapping[str, Array]) -> str | None:
    """Why float16 cannot hold what a node has of its own."""
    numbers = [v for v in node.attrs.values() if isinstance(v, float)]
    if any(LARGEST < abs(v) < np.inf for v in numbers):
        return "numbers beyond float16"
    for path in node.params.values():
        held = weights[path]
        if held.dtype != np.float32:
            continue
        finite = held[np.isfinite(held)]
        if finite.size and float(np.abs(finite).max()) > LARGEST:
            return "weights beyond float16"
    return None
