"""Expressions as text: flat, wrapped, and pipelines over several lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from archir.diag import Source
from archir.lang import tree as t

WIDTH = 120
"""The columns that a formatted line may have."""
INDENT = "    "
Show = Callable[[t.Tree], str]

_BREAKS = re.compile(r'"(?:[^"\\]|\\.)*"|`(?:[^`\\]|\\.)*`|(, )|( (?=\|> ))')


def flat(node: t.Tree, source: Source) -> str:
    """A piece of syntax on one line."""
    text = source.text

    def show(part: t.Tree) -> str:
        match part:
            case t.Name() | t.Ident() | t.Literal():
                return text[part.span.start : part.span.end]
            case t.ListExpr():
                return "[" + ", ".join(map(show, part.items)) + "]"
            case t.Paren():
                return f"({show(part.inner)})"
            case t.Unary():
                return ("not " if part.op == "not" else "-") + show(part.operand)
            case t.Chain():
                return show(part.first) + "".join(f" {op} {show(e)}" for op, e in part.rest)
            case t.Compare():
                return f"{show(part.left)} {part.op} {show(part.right)}"
            case t.Logic():
                return f" {part.op} ".join(map(show, part.items))
            case t.Choice():
                return f"if {show(part.condition)} then {show(part.then)} else {show(part.other)}"
            case t.Pipeline():
                return " |> ".join([show(part.head), *map(show, part.stages)])
            case _:
                return _flat_rest(part, show, text)

    return show(node)


def _flat_rest(part: t.Tree, show: Show, text: str) -> str:
    match part:
        case t.Argument():
            return (
                f"{show(part.keyword)} = {show(part.value)}" if part.keyword else show(part.value)
            )
        case t.Rename():
            return re.sub(r"\s*:\s*", ": ", text[part.span.start : part.span.end], count=1)
        case t.Call():
            out = show(part.callee)
            if part.parens is not None:
                out += "(" + ", ".join(map(show, part.arguments)) + ")"
            if part.renames:
                out += " params { " + ", ".join(map(show, part.renames)) + " }"
            return out
        case t.Stage():
            label = f"{show(part.label)}: " if part.label else ""
            count = f"{show(part.count)} * " if part.count else ""
            return label + count + show(part.body)
        case t.TypeExpr():
            return show(part.dtype) + "[" + ", ".join(map(show, part.dims)) + "]"
        case t.Formal():
            name = show(part.name)
            if part.tensor:
                return f"{name}: tensor"
            return f"{name} = {show(part.default)}" if part.default else name
        case t.Result():
            return f"{show(part.name)} = {show(part.value)}" if part.name else show(part.value)
        case t.Setting():
            return f"{show(part.name)} = {show(part.value)}"
        case _:
            return _flat_statement(part, show)


def _flat_statement(part: t.Tree, show: Show) -> str:
    match part:
        case t.Bind():
            return f"{', '.join(map(show, part.targets))} = {show(part.value)}"
        case t.Let():
            return f"let {show(part.name)} = {show(part.value)}"
        case t.OutputStatement():
            return "output " + ", ".join(map(show, part.results))
        case t.InputStatement():
            return f"input {show(part.name)}: {show(part.type)}"
        case t.TensorStatement():
            init = f" = {show(part.init)}" if part.init else ""
            return f"{part.kind} {show(part.name)}: {show(part.type)}{init}"
        case t.Preprocess():
            return "preprocess { " + ", ".join(map(show, part.settings)) + " }"
        case _:
            raise AssertionError(f"no layout for {type(part).__name__}")


def wrap(text: str, column: int, indent: str) -> list[str]:
    """Break a flat text after commas and before pipes so that lines fit.

    ``column`` is where the first line begins; further lines begin with ``indent``.
    """
    if column + len(text) <= WIDTH:
        return [text]
    pieces: list[str] = []
    start = 0
    for match in _BREAKS.finditer(text):
        if match[1] or match[2]:
            pieces.append(text[start : match.end()])
            start = match.end()
    pieces.append(text[start:])
    lines: list[str] = []
    line, room = "", WIDTH - column
    for piece in pieces:
        if line and len(line) + len(piece.rstrip()) > room:
            lines.append(line.rstrip())
            line, room = indent, WIDTH
        line += piece
    lines.append(line)
    return lines


def lead(statement: t.Statement, source: Source) -> tuple[str, t.Expr] | None:
    """The text before a statement's expression, and the expression, where it has just one."""
    if isinstance(statement, t.Bind):
        names = ", ".join(flat(target, source) for target in statement.targets)
        return f"{names} = ", statement.value
    if isinstance(statement, t.OutputStatement) and len(statement.results) == 1:
        (result,) = statement.results
        name = f"{flat(result.name, source)} = " if result.name else ""
        return f"output {name}", result.value
    return None


def gaps(pipeline: t.Pipeline) -> list[tuple[int, int]]:
    """The ranges of text between the stages of a pipeline."""
    parts: list[t.Expr] = [pipeline.head, *pipeline.stages]
    return [(a.span.end, b.span.start) for a, b in pairwise(parts)]


def spread(
    before: str, pipeline: t.Pipeline, source: Source, comments: list[t.Comment]
) -> list[str]:
    """A pipeline over several lines, its pipes one below the other.

    A break stands where the author put one, where a comment needs one, and where a line would
    be too long. ``before`` is the indented text that leads up to the head.
    """
    text = source.text
    head = flat(pipeline.head, source)
    line = before + head
    margin = len(line) + 1
    if len(line) > WIDTH // 2:
        margin = len(before) - len(before.lstrip()) + 2 * len(INDENT)
    *lines, line = wrap(line, 0, 3 * INDENT)
    for (start, end), stage in zip(gaps(pipeline), pipeline.stages, strict=True):
        inside = [c for c in comments if start <= c.start < end]
        piece = "|> " + flat(stage, source)
        forced = bool(inside) or "\n" in text[start:end]
        if not forced and len(line) + 1 + len(piece) <= WIDTH:
            line += " " + piece
            continue
        own = [c for c in inside if c.own_line]
        if inside and not inside[0].own_line:
            line += "  " + text[inside[0].start : inside[0].end].rstrip()
            own = inside[1:]
        lines.append(line)
        lines += [" " * margin + text[c.start : c.end].rstrip() for c in own]
        first, *rest = wrap(piece, margin, " " * (margin + len(INDENT)))
        lines += [" " * margin + first, *rest]
        line = lines.pop()
    return [*lines, line]
