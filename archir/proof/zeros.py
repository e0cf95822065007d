"""What zeros hide: parts of a rule's right side on which its result does not depend."""

from __future__ import annotations

from dataclasses import dataclass

from archir.lang import tree as t
from archir.rewrite.rule import PatternNode, Rewriting, Rule

SCALABLE = (
    "conv",
    "conv_transpose",
    "linear",
    "batch_norm",
    "layer_norm",
    "rms_norm",
    "group_norm",
)
"""Operators whose result does not depend on their operand where their weight is zero."""


def hidden(rule: Rule) -> set[str | tuple[str, str]]:
    """Nodes of the right side, and weights, on which nothing depends: zeros stand behind them."""
    body = rule.body
    if not isinstance(body, Rewriting):
        return set()
    given = {target: value for target, value in body.weights if is_zero(value)}
    found = _Hiding(body, given)
    used: set[str] = set()
    queue = [o.node for o in body.replace.bindings.values() if o.node is not None]
    read = {o.node for n in body.replace.nodes for o in n.operands}
    queue = [name for name in queue if name not in read or name in body.match.bindings]
    while queue:
        name = queue.pop()
        node = body.replace.node(name)
        if node is None or name in used:
            continue
        used.add(name)
        if not found.blind(node):
            queue += [o.node for o in node.operands if o.node is not None]
    out: set[str | tuple[str, str]] = {n.name for n in body.replace.nodes if n.name not in used}
    for name in used:
        node = body.replace.node(name)
        if node is not None and found.blind(node) and node.op.endswith("norm"):
            out |= {(name, "running_mean"), (name, "running_var")}
    return out


@dataclass
class _Hiding:
    body: Rewriting
    zeros: dict[str, t.Expr]

    def blind(self, node: PatternNode) -> bool:
        """Whether a node's result does not depend on its operands."""
        if node.op in SCALABLE:
            return f"{node.name}.weight" in self.zeros
        if node.op == "mul":
            return any(self.zero(o.node) for o in node.operands if o.node is not None)
        return False

    def zero(self, name: str) -> bool:
        """Whether a node's result is zero."""
        node = self.body.replace.node(name)
        return node is not None and node.op == "parameter" and f"{name}.value" in self.zeros


def is_zero(value: t.Expr) -> bool:
    """Whether an expression says zero."""
    if isinstance(value, t.Literal):
        return value.value in (0, 0.0) and not isinstance(value.value, bool)
    return isinstance(value, t.Call) and value.callee.text == "zeros"
