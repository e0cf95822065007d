"""Places in the text: arguments of calls, the surroundings of an expression, text edits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from archir.lang import tree as t
from archir.lang.program import Scope, Site, Tensor
from archir.ops.record import OpSet


class Edit(NamedTuple):
    """Replace ``source[start:end]`` by ``text``."""

    start: int
    end: int
    text: str


def apply(text: str, edits: Iterable[Edit], start: int = 0, end: int | None = None) -> str:
    """A slice of a text with edits applied; edits of one place go in their order."""
    out: list[str] = []
    at = start
    for edit in sorted(edits, key=lambda e: (e.start, e.end)):
        out += [text[at : edit.start], edit.text]
        at = max(at, edit.end)
    out.append(text[at : len(text) if end is None else end])
    return "".join(out)


def call_of(site: Site | t.Paren) -> t.Call | None:
    """The call that a site is, if it is one."""
    if isinstance(site, t.Stage):
        return site.body if isinstance(site.body, t.Call) else None
    return site if isinstance(site, t.Call) else None


def is_tensor(expr: t.Expr, scope: Scope, ops: OpSet, blocks: Iterable[str]) -> bool:
    """Whether an expression gives a tensor, in a body."""
    match expr:
        case t.Name():
            value = scope.instance.env.get(expr.path)
            several = isinstance(value, tuple) and bool(value) and isinstance(value[0], Tensor)
            return isinstance(value, Tensor) or several
        case t.Pipeline():
            return True
        case t.Stage():
            return not isinstance(expr.body, t.Call) or is_tensor(expr.body, scope, ops, blocks)
        case t.Call():
            return expr.callee.text in ops or expr.callee.text in blocks
        case t.Paren():
            return is_tensor(expr.inner, scope, ops, blocks)
        case t.Unary():
            return is_tensor(expr.operand, scope, ops, blocks)
        case t.Chain():
            parts = [expr.first, *(part for _, part in expr.rest)]
            return any(is_tensor(part, scope, ops, blocks) for part in parts)
        case t.Choice():
            return is_tensor(expr.then, scope, ops, blocks)
        case _:
            return False


class Arguments:
    """The arguments of a call by name, and how to change them."""

    def __init__(
        self, call: t.Call, names: list[str], scope: Scope, ops: OpSet, blocks: Iterable[str]
    ) -> None:
        self.call = call
        plain = [
            a
            for a in call.arguments
            if a.keyword is None and not is_tensor(a.value, scope, ops, blocks)
        ]
        self.by_name = dict(zip(names, plain, strict=False))
        self.by_name |= {a.keyword.text: a for a in call.arguments if a.keyword is not None}

    def change(self, name: str, text: str) -> Edit:
        """Let an argument have another value: its text is replaced, or an argument is added."""
        argument = self.by_name.get(name)
        if argument is not None:
            span = argument.value.span
            return Edit(span.start, span.end, text)
        added = f"{t.write_path(name)} = {text}"
        if self.call.parens is None:
            at = self.call.callee.span.end
            return Edit(at, at, f"({added})")
        if self.call.arguments:
            at = self.call.arguments[-1].span.end
            return Edit(at, at, f", {added}")
        at = self.call.parens.end - 1
        return Edit(at, at, added)


def parents(statement: t.Statement) -> dict[int, t.Tree]:
    """The tree above each part of a statement, by identity."""
    above: dict[int, t.Tree] = {}
    for node in t.walk(statement):
        for child in t.children(node):
            above[id(child)] = node
    return above


def extend(site: Site, statement: t.Statement, label: str, tail: str) -> list[Edit]:
    """Pipe what a site gives into further stages; with a label, also give it that."""
    above = parents(statement)
    node: t.Tree = site
    up = above.get(id(node))
    group = above.get(id(up)) if isinstance(up, t.Paren) else None
    if isinstance(up, t.Paren) and isinstance(group, t.Stage):
        node, up = group, above.get(id(group))
        label = ""
    start, end = node.span.start, node.span.end
    if label and isinstance(node, t.Chain | t.Unary):
        edits = [Edit(start, start, f"{label}: ("), Edit(end, end, ")" + tail)]
    elif label:
        edits = [Edit(start, start, f"{label}: "), Edit(end, end, tail)]
    else:
        edits = [Edit(end, end, tail)]
    free = t.Pipeline | t.Bind | t.Result | t.Argument | t.Paren | t.Choice
    if not isinstance(up, free):
        edits = [Edit(start, start, "("), *edits, Edit(end, end, ")")]
    return edits
