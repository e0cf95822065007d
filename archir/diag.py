"""Diagnostics as values: spans, codes, and the one exception that carries them.

Rendering lives in :mod:`archir.render`; nothing here prints.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property

DONE, CHECK_FAILED, BAD_INPUT, UNSUPPORTED, INTERRUPTED = 0, 1, 2, 3, 130
"""The exit statuses of every command."""


@dataclass(frozen=True)
class Source:
    """A text with a name, able to turn offsets into lines and columns."""

    name: str
    text: str = field(repr=False)

    @cached_property
    def line_starts(self) -> list[int]:
        """Offset of the first character of each line."""
        return [0] + [i + 1 for i, c in enumerate(self.text) if c == "\n"]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset, both counted from 1."""
        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a line (counted from 1), without its newline."""
        start = self.line_starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start:] if end < 0 else self.text[start:end]


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters of a source."""

    source: Source = field(repr=False)
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding: a code, a sentence in the user's terms, where, and what would help."""

    code: str
    message: str
    span: Span | None = None
    label: str = ""
    """A few words set under the underlined text."""
    hint: str = ""
    node: str = ""
    """The network's node that is to blame, where there is one."""

    def __str__(self) -> str:
        """The finding in one line, as a Python user sees it."""
        where = ""
        if self.span is not None:
            source = self.span.source
            where = ":".join(map(str, (source.name, *source.position(self.span.start))))
        more = "; ".join(part for part in (where, self.hint) if part)
        return f"{self.code}: {self.message}" + (f" ({more})" if more else "")


class ArchirError(Exception):
    """Every error archir raises on purpose; carries one or more diagnostics.

    ``status`` is the exit status of a command that ends with it.
    """

    def __init__(self, *diagnostics: Diagnostic, status: int | None = None) -> None:
        super().__init__("\n".join(map(str, diagnostics)))
        self.diagnostics = diagnostics
        self.status = status if status is not None else status_of(diagnostics[0].code)

    def __reduce__(self) -> tuple[object, ...]:
        """How another process gets it: as the diagnostics, not as their text."""
        return _again, (self.diagnostics, self.status)


def _again(diagnostics: tuple[Diagnostic, ...], status: int) -> ArchirError:
    return ArchirError(*diagnostics, status=status)


def error(
    code: str,
    message: str,
    *,
    span: Span | None = None,
    label: str = "",
    hint: str = "",
    node: str = "",
    status: int | None = None,
) -> ArchirError:
    """An :class:`ArchirError` with a single diagnostic; its status is the code's family's."""
    return ArchirError(Diagnostic(code, message, span, label, hint, node), status=status)


def status_of(code: str) -> int:
    """The exit status that belongs to a code's family."""
    family = code[:2]
    if family in ("A3", "A4"):
        return CHECK_FAILED
    return UNSUPPORTED if family == "A5" else BAD_INPUT
