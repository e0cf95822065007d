"""Diagnostics as text: the source line, the underlined span, its label, a hint."""

from __future__ import annotations

from collections.abc import Iterable

from archir.codes import CODES
from archir.diag import Diagnostic, Span

MAX_COLUMNS = 160
"""Longer source lines are cut around the span."""


def render(diagnostics: Iterable[Diagnostic]) -> str:
    """All diagnostics as text, a blank line between them; ends with a newline."""
    return "\n".join(render_one(diagnostic) for diagnostic in diagnostics)


def render_one(diagnostic: Diagnostic) -> str:
    """One diagnostic as text; ends with a newline."""
    lines = [f"error[{diagnostic.code}]: {diagnostic.message}"]
    gutter = " "
    if diagnostic.span is not None:
        number, excerpt, marks = _excerpt(diagnostic.span, diagnostic.label)
        gutter = " " * len(number)
        line, column = diagnostic.span.source.position(diagnostic.span.start)
        lines.append(f"{gutter}--> {diagnostic.span.source.name}:{line}:{column}")
        lines += [f"{gutter} |", f"{number} | {excerpt}".rstrip(), f"{gutter} | {marks}"]
    if diagnostic.node:
        lines.append(f"{gutter} = node: {diagnostic.node}")
    if diagnostic.hint:
        lines.append(f"{gutter} = help: {diagnostic.hint}")
    return "\n".join(lines) + "\n"


def _excerpt(span: Span, label: str) -> tuple[str, str, str]:
    """Line number, source line and underline of a span (of its first line)."""
    line, column = span.source.position(span.start)
    text = span.source.line(line).rstrip("\r")
    start = column - 1
    end = min(max(start + span.end - span.start, start + 1), max(len(text), start + 1))
    lead, tail = "", ""
    if len(text) > MAX_COLUMNS:
        first = max(0, min(start - 20, len(text) - MAX_COLUMNS))
        lead, tail = "..." * (first > 0), "..." * (first + MAX_COLUMNS < len(text))
        text = text[first : first + MAX_COLUMNS]
        start = start - first
        end = min(end - first, len(text))
    blank = "".join("\t" if c == "\t" else " " for c in text[:start])
    marks = " " * len(lead) + blank + "^" * max(end - start, 1)
    return str(line), lead + text + tail, f"{marks} {label}".rstrip()


def explain(code: str) -> str | None:
    """The text of `archir explain CODE`; None for an unknown code."""
    found = CODES.get(code)
    if found is None:
        return None
    return f"{code}: {found.title}\n\n{found.explanation}\n"
