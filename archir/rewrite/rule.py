"""The rule as a value. A rule file is one way to make one; nothing else knows the syntax."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from archir.diag import Span
from archir.ir.types import AttrValue
from archir.lang.tree import Compare
from archir.lang.tree import Expr as Expression
from archir.ops.record import Mode

ParameterKind = Literal["int", "odd", "even", "float", "bool", "indices", "path"]
KINDS: Mapping[str, ParameterKind] = {
    kind: kind for kind in ("int", "odd", "even", "float", "bool", "indices", "path")
}
"""The kinds of a parameter by name."""
NOUNS: Mapping[ParameterKind, str] = {
    "int": "an integer",
    "odd": "an odd number",
    "even": "an even number",
    "float": "a number",
    "bool": "true or false",
    "indices": "a list of one or more different indices",
    "path": "the path of a node",
}
MOST = 2**20
"""The largest integer that a parameter may be."""


@dataclass(frozen=True, slots=True)
class RuleParameter:
    """A free parameter of a rule: an option on the command line, never part of the pattern."""

    name: str
    kind: ParameterKind
    default: AttrValue
    """None where it must be given."""

    def fit(self, value: AttrValue) -> AttrValue:
        """The value as this parameter takes it.

        Raises:
            ValueError: it does not take it; the text says what it takes.
        """
        kind = self.kind
        if kind == "indices":
            whole = [j for j in value if type(j) is int] if isinstance(value, tuple) else []
            different = isinstance(value, tuple) and len(set(whole)) == len(value)
            if whole and different and all(0 <= j <= MOST for j in whole):
                return value
            raise ValueError(NOUNS[kind])
        if kind == "path":
            if isinstance(value, str) and value:
                return value
            raise ValueError(NOUNS[kind])
        if kind == "bool" and isinstance(value, bool):
            return value
        if kind != "bool" and isinstance(value, int) and not isinstance(value, bool):
            if kind == "float":
                return float(value)
            if kind != "int" and value % 2 != (kind == "odd"):
                raise ValueError(NOUNS[kind])
            if not 0 <= value <= MOST:
                raise ValueError(f"{NOUNS[kind]} from 0 to {MOST:,}")
            return value
        if kind == "float" and isinstance(value, float) and math.isfinite(value):
            return value
        raise ValueError(NOUNS[kind])


@dataclass(frozen=True, slots=True)
class Contract:
    """What a rule promises: the function kept in these modes, or the shape and cost claims."""

    function: tuple[Mode, ...] = ()
    shape: bool = False
    decreases: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    """Costs that do not grow: what claims `macs kept` and `params kept` speak of."""
    unread: str = ""
    """The map of a class rule, where the function is kept if no weight reads what it leaves out."""
    repeated: str = ""
    """The map of a class rule, where the function is kept if channels that it takes to one are
    made alike."""


@dataclass(frozen=True, slots=True)
class PatternOperand:
    """An operand of a pattern node: a free variable, or another pattern node's output."""

    variable: str | None
    node: str | None = None
    port: int = 0


@dataclass(frozen=True, slots=True)
class PatternNode:
    """One operator of a pattern. ``attrs`` holds what the rule states; the rest is free."""

    name: str
    op: str
    operands: tuple[PatternOperand, ...]
    attrs: Mapping[str, Expression]
    span: Span

    @property
    def unlabelled(self) -> bool:
        """Whether it has its operator's name, for want of a label."""
        return re.fullmatch(rf"{re.escape(self.op)}\d*", self.name) is not None


@dataclass(frozen=True, slots=True)
class Pattern:
    """One side of a rule: its nodes in order, and what its bindings stand for."""

    nodes: tuple[PatternNode, ...]
    bindings: Mapping[str, PatternOperand]

    @property
    def variables(self) -> tuple[str, ...]:
        """The names that nothing in the pattern makes."""
        held = [o for n in self.nodes for o in n.operands]
        held += self.bindings.values()
        return tuple(dict.fromkeys(o.variable for o in held if o.variable is not None))

    def node(self, name: str) -> PatternNode | None:
        """The pattern node of a name."""
        return next((n for n in self.nodes if n.name == name), None)


@dataclass(frozen=True, slots=True)
class Rewriting:
    """The body of a rule over a pattern."""

    match: Pattern
    replace: Pattern
    lets: tuple[tuple[str, Expression], ...]
    weights: tuple[tuple[str, Expression], ...]
    """``node.role`` of the right side, and the term that makes it."""
    assumes: tuple[Compare, ...] = ()
    """What weights of the left side are where the function is kept: `node.role == term`."""

    def untouched(self, name: str) -> bool:
        """Whether a node of the left side stands on the right as it is, and all that it reads."""
        old, new = self.match.node(name), self.replace.node(name)
        if old is None or new is None or old.op != new.op:
            return False
        if any(target.rpartition(".")[0] == name for target, _ in self.weights):
            return False
        stated = {attr: _text(e) for attr, e in old.attrs.items()}
        return (
            all(stated.get(attr) == _text(e) for attr, e in new.attrs.items())
            and old.operands == new.operands
            and all(o.node is None or self.untouched(o.node) for o in old.operands)
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One map along a class, and what becomes of the weights that hold it."""

    lets: tuple[tuple[str, Expression], ...]
    produce: Expression
    carry: Expression
    consume: Expression


@dataclass(frozen=True, slots=True)
class Reshaping:
    """The body of a rule over an axis class: one step, or several, the next with `then`."""

    variable: str
    site: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rewrite rule with its weight map and its contract."""

    name: str
    doc: str
    source: str
    parameters: tuple[RuleParameter, ...]
    contract: Contract
    where: tuple[Expression, ...]
    body: Rewriting | Reshaping
    text: str
    span: Span
    package: str = field(default="", compare=False)
    """Where it came from: a distribution or a file."""

    @property
    def hash(self) -> str:
        """sha256 of the rule's text, white space and comments folded."""
        text = _COMMENT.sub(lambda m: "" if m[0].startswith("#") else m[0], self.text)
        return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def _text(expression: Expression) -> str:
    span = expression.span
    return " ".join(span.source.text[span.start : span.end].split())


_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|`(?:[^`\\\n]|\\.)*`|#[^\n]*', re.DOTALL)
"""Comments, and what may hold a `#` that begins none."""
