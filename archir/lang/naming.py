"""Paths: the names of nodes, given when everything in a scope is known.

A labelled stage is ``scope.label``; a binding of a single operator gives its own name; other
operators take the name of their kind, numbered where several without parameters share it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from archir.diag import Diagnostic, Span
from archir.lang.program import Draft, Group, Scope
from archir.lang.tree import name_of


@dataclass
class Naming:
    """What giving the names found."""

    problems: list[Diagnostic] = field(default_factory=list)
    taken: dict[str, Draft] = field(default_factory=dict)
    defaults: set[str] = field(default_factory=set)
    """The paths that the language chose."""


def join(prefix: str, name: str) -> str:
    """A path within a scope."""
    return f"{prefix}.{name}" if prefix else name


def give_names(root: Scope) -> Naming:
    """Set the path of every scope and draft below ``root``."""
    naming = Naming()
    stack = [root]
    while stack:
        scope = stack.pop()
        inner = _name_scope(scope, naming)
        stack.extend(reversed(inner))
    return naming


def _name_scope(scope: Scope, naming: Naming) -> list[Scope]:
    """Name what a scope holds; returns the scopes in it, whose paths are then set."""
    inner: list[Scope] = []
    loose: list[Draft] = []
    unbound: dict[str, list[Scope]] = {}
    for group in scope.groups:
        single = _single(group)
        if single is not None:
            _take(single, _base(scope, group), naming)
            continue
        bare: list[Scope] = []
        for member in group.members:
            if isinstance(member, Scope):
                inner.append(member)
            if member.label is not None:
                path = join(scope.path, member.label)
                path = path if member.index is None else f"{path}.{member.index}"
                if isinstance(member, Draft):
                    _take(member, path, naming)
                else:
                    member.path = path
            elif isinstance(member, Draft):
                loose.append(member)
            elif group.target is not None:
                bare.append(member)
            else:
                assert member.block is not None
                unbound.setdefault(member.block.name.text, []).append(member)
        _number(bare, _base(scope, group), indexed=group.indexed)
    for name, members in unbound.items():
        repeated = any(m.group is not None and m.group.indexed for m in members)
        _number(members, join(scope.path, name), indexed=repeated)
    _name_loose(loose, scope, naming)
    return inner


def _single(group: Group) -> Draft | None:
    """The only operator of a binding, if it is unlabelled."""
    if group.target is None or len(group.members) != 1:
        return None
    (only,) = group.members
    return only if isinstance(only, Draft) and only.label is None else None


def _base(scope: Scope, group: Group) -> str:
    if group.opens or group.target is None:
        return scope.path
    return join(scope.path, group.target)


def _number(members: list[Scope], base: str, *, indexed: bool) -> None:
    for index, member in enumerate(members):
        member.path = f"{base}.{index}" if indexed or len(members) > 1 else base


def _name_loose(loose: list[Draft], scope: Scope, naming: Naming) -> None:
    counts = Counter(draft.op for draft in loose)
    seen: Counter[str] = Counter()
    for draft in loose:
        name = name_of(draft.op)
        if counts[draft.op] > 1:
            if draft.params:
                naming.problems.append(_needs_label(draft, scope))
            seen[name] += 1
            name = f"{name}{seen[name]}"
        path = join(scope.path, name)
        naming.defaults.add(path)
        _take(draft, path, naming)


def _needs_label(draft: Draft, scope: Scope) -> Diagnostic:
    where = f"`{scope.path}`" if scope.path else "the outputs"
    return Diagnostic(
        "A106",
        f"`{draft.op}` holds parameters and is not the only one in {where}: label it",
        draft.span,
        "has no label",
        f"for example `{draft.op}1: {draft.op}`",
    )


def _take(draft: Draft, path: str, naming: Naming) -> None:
    other = naming.taken.setdefault(path, draft)
    draft.path = path
    if other is not draft:
        naming.problems.append(
            Diagnostic(
                "A105",
                f"two nodes are named `{path}`; the other is {place(other.span)}",
                draft.span,
                f"also `{path}`",
                "give one of them a label",
                path,
            )
        )


def place(span: Span) -> str:
    """Line and column of a span, in words."""
    line, column = span.source.position(span.start)
    return f"at line {line}, column {column}"
