"""What an elaboration carries along: drafts, problems, budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from archir.diag import Diagnostic, Source, Span
from archir.ir.types import AttrValue, TensorType
from archir.lang import tree as t
from archir.lang.program import Draft, Group, Scope, Tensor
from archir.ops.record import OpSet

MAX_NODES = 200_000
"""How many nodes a network may have."""
MAX_STEPS = 1_500_000
"""How many expressions may be evaluated: bounds blocks that call blocks without an operator."""
MAX_NESTING = 40
"""How deep blocks may call blocks."""
MAX_PROBLEMS = 50
"""After so many errors the rest of a file is not elaborated."""


class Poison:
    """The value of what is wrong; nothing that touches it is reported again."""


POISON = Poison()


class StopError(Exception):
    """Too many nodes, steps or errors: elaboration ends with what was found."""


Evaluate = Callable[[t.Expr, "Frame"], Any]


@dataclass(frozen=True, slots=True)
class Bound:
    """What a use of an operator means: its attributes in full, its types, its parameters."""

    attrs: Mapping[str, AttrValue]
    types: tuple[TensorType, ...]
    params: Mapping[str, TensorType]
    buffers: frozenset[str]


@dataclass
class State:
    """One elaboration."""

    source: Source
    ops: OpSet
    blocks: dict[str, t.Block]
    evaluate: Evaluate
    """Evaluates expressions (:mod:`archir.lang.evaluate`, which imports what uses this)."""
    drafts: list[Draft] = field(default_factory=list)
    problems: list[tuple[Diagnostic, Scope | None]] = field(default_factory=list)
    steps: int = 0
    ran: set[str] = field(default_factory=set)
    """The blocks that have been instantiated."""
    bound: dict[tuple[str, str, tuple[TensorType, ...]], Bound] = field(default_factory=dict)
    """Uses of operators so far, by name, stated attributes and operands' types."""
    _seen: set[tuple[str, int, int]] = field(default_factory=set)

    def report(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        label: str = "",
        hint: str = "",
        scope: Scope | None = None,
    ) -> Poison:
        """Note a problem, once per code and place; returns the poisoned value.

        Raises:
            StopError: there are too many.
        """
        key = (code, span.start, span.end)
        if key not in self._seen:
            self._seen.add(key)
            self.problems.append((Diagnostic(code, message, span, label, hint), scope))
            if len(self.problems) >= MAX_PROBLEMS:
                raise StopError
        return POISON

    def step(self, span: Span, cost: int = 1) -> None:
        """Spend from the budget of evaluations.

        Raises:
            StopError: it is used up; the problem is noted.
        """
        self.steps += cost
        if self.steps > MAX_STEPS:
            self.stop(f"the program takes more than {MAX_STEPS} steps to build", span)

    def stop(self, message: str, span: Span) -> None:
        """Note that a limit is exceeded and end.

        Raises:
            StopError: always.
        """
        self.report("A122", message, span)
        raise StopError

    def add(self, draft: Draft) -> Draft:
        """Take a new node.

        Raises:
            StopError: there are too many nodes.
        """
        self.drafts.append(draft)
        draft.group.members.append(draft)
        if len(self.drafts) > MAX_NODES:
            self.stop(f"the network has more than {MAX_NODES} nodes", draft.span)
        return draft

    def diagnostics(self) -> list[Diagnostic]:
        """The problems in the order of the text, each with the path of its instance."""
        found = []
        for diagnostic, scope in self.problems:
            path = scope.instance.path if scope is not None else ""
            found.append(
                replace(diagnostic, node=path) if path and not diagnostic.node else diagnostic
            )
        return sorted(found, key=lambda d: (d.span.start, d.span.end) if d.span else (0, 0))


@dataclass(slots=True)
class Frame:
    """Where an expression is evaluated: the naming scope, the body's names, the statement."""

    scope: Scope
    env: dict[str, object]
    group: Group
    statement: t.Statement
    state: State

    @property
    def instance(self) -> Scope:
        """The block instance or arch whose body this is."""
        return self.scope.instance

    def evaluate(self, expr: t.Expr) -> Any:
        """The value of an expression here."""
        return self.state.evaluate(expr, self)

    def report(
        self, code: str, message: str, span: Span, *, label: str = "", hint: str = ""
    ) -> Poison:
        """Note a problem of this instance; returns the poisoned value."""
        return self.state.report(code, message, span, label=label, hint=hint, scope=self.scope)


def suggest(name: str, candidates: Iterable[str], otherwise: str = "") -> str:
    """A did-you-mean hint, or ``otherwise``."""
    known = list(dict.fromkeys(candidates))[:5000]
    lower = {c.lower(): c for c in known}
    close = [lower[name.lower()]] if name.lower() in lower else []
    close = close or get_close_matches(name[:200], known, n=1, cutoff=0.65)
    return f"did you mean `{close[0]}`?" if close else otherwise


def describe(value: object) -> str:
    """What kind of value something is, in the user's terms."""
    if isinstance(value, Tensor):
        return f"a tensor {value.type}"
    if isinstance(value, tuple) and value and all(isinstance(v, Tensor) for v in value):
        return f"{len(value)} tensors"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, tuple):
        return "a list"
    return "none" if value is None else "a number"


def is_tensors(value: object) -> bool:
    """Whether a value is several tensors."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Tensor)
