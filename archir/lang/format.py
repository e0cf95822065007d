"""`archir fmt`: one layout for every program. Comments and single blank lines stay."""

from __future__ import annotations

from dataclasses import dataclass, field

from archir.diag import Source
from archir.lang import tree as t
from archir.lang.layout import INDENT, WIDTH, flat, gaps, lead, spread, wrap
from archir.lang.parsing import parse


def format_text(source: Source) -> str:
    """The formatted text of a program; formatting it again changes nothing.

    Raises:
        ArchirError: the text does not parse.
    """
    return _Formatter(parse(source)).run()


@dataclass
class _Entry:
    """A statement laid out, before alignment."""

    lines: list[str]
    bind: t.Bind | None
    """The binding, if it fits a line and may be aligned with its neighbours."""
    above: list[str]
    """Comments from within it that have no place there."""
    trailing: str


@dataclass
class _Formatter:
    document: t.Document
    out: list[str] = field(default_factory=list)
    cursor: int = 0
    """Up to where the source has been laid out."""
    next_comment: int = 0

    def __post_init__(self) -> None:
        self.source = self.document.source
        self.text = self.source.text

    def run(self) -> str:
        document = self.document
        if document.version is not None:
            self._write([*self._above(document.version.start), "version 1"])
            self._finish(document.version.end)
        for index, item in enumerate(document.items):
            above = self._above(item.span.start)
            self._write(["", *above] if index else above)
            self._item(item)
        self._write(self._above(len(self.text)))
        while self.out and not self.out[-1]:
            self.out.pop()
        return "\n".join(self.out) + "\n"

    # -- comments and blank lines

    def _blank(self, end: int) -> bool:
        """Whether the source has a blank line from the cursor to ``end``."""
        return self.text.count("\n", self.cursor, end) > 1

    def _above(self, start: int, indent: str = "") -> list[str]:
        """The comments and blank lines before a position, which then counts as laid out."""
        lines: list[str] = []
        for comment in self._comments_before(start):
            if self._blank(comment.start):
                lines.append("")
            lines.append(indent + self.text[comment.start : comment.end].rstrip())
            self.cursor = comment.end
        if self._blank(start):
            lines.append("")
        self.cursor = max(self.cursor, start)
        return lines

    def _write(self, lines: list[str]) -> None:
        """Write lines; a blank one neither first nor twice."""
        for line in lines:
            if line or (self.out and self.out[-1]):
                self.out.append(line)

    def _comments_before(self, end: int) -> list[t.Comment]:
        first = self.next_comment
        comments = self.document.comments
        while self.next_comment < len(comments) and comments[self.next_comment].start < end:
            self.next_comment += 1
        return list(comments[first : self.next_comment])

    def _trailing(self, end: int) -> str:
        """The comment that stands behind ``end`` on its line, if any; it is then laid out."""
        comments = self.document.comments
        self.cursor = end
        if self.next_comment < len(comments):
            comment = comments[self.next_comment]
            if not self.text[end : comment.start].strip(" \t\r,"):
                self.next_comment += 1
                self.cursor = comment.end
                return "  " + self.text[comment.start : comment.end].rstrip()
        return ""

    def _finish(self, end: int) -> None:
        self.out[-1] += self._trailing(end)

    # -- items

    def _item(self, item: t.Block | t.Arch) -> None:
        header_end = (item.formals_span or item.name.span).end
        brace = self.text.index("{", header_end)
        hoisted = self._comments_before(brace)
        self.out += [self.text[c.start : c.end].rstrip() for c in hoisted]
        word = "block" if isinstance(item, t.Block) else "arch"
        name = self.text[item.name.span.start : item.name.span.end]
        header = f"{word} {name}"
        if item.formals:
            header += "(" + ", ".join(flat(f, self.source) for f in item.formals) + ")"
        closing = item.span.end - 1
        inside = any(brace < c.start < closing for c in self.document.comments)
        if not item.body and not inside:
            self.out.append(header + " {}")
            self._finish(item.span.end)
            return
        self.out += wrap(header + " {", 0, INDENT)
        self._finish(brace + 1)
        self._body(item)
        self._write(self._above(closing, INDENT))
        if not self.out[-1]:
            self.out.pop()
        self.out.append("}")
        self._finish(item.span.end)

    def _body(self, item: t.Block | t.Arch) -> None:
        run: list[_Entry] = []
        for index, statement in enumerate(item.body):
            above = self._above(statement.span.start, INDENT)
            if not index:
                while above and not above[0]:
                    del above[0]
            entry = self._statement(statement)
            above += entry.above
            if above or entry.bind is None:
                self._flush(run)
            self._write(above)
            if entry.bind is None:
                self._emit(entry)
            else:
                run.append(entry)
        self._flush(run)

    def _emit(self, entry: _Entry) -> None:
        *first, last = entry.lines
        self.out += [*first, last + entry.trailing]

    def _flush(self, run: list[_Entry]) -> None:
        """Write a run of bindings, aligned if that fits."""
        for entry in _aligned(run, self.source):
            self._emit(entry)
        run.clear()

    # -- statements

    def _statement(self, statement: t.Statement) -> _Entry:
        inside = self._comments_before(statement.span.end)
        parts = lead(statement, self.source)
        if parts is not None and isinstance(parts[1], t.Pipeline):
            ranges = gaps(parts[1])
            kept = [c for c in inside if any(a <= c.start < b for a, b in ranges)]
            hoisted = [c for c in inside if c not in kept]
        else:
            kept, hoisted = [], inside
        above = [INDENT + self.text[c.start : c.end].rstrip() for c in hoisted]
        lines = self._lines(statement, kept)
        bind = statement if isinstance(statement, t.Bind) and len(lines) == 1 else None
        return _Entry(lines, bind, above, self._trailing(statement.span.end))

    def _lines(self, statement: t.Statement, comments: list[t.Comment]) -> list[str]:
        line = INDENT + flat(statement, self.source)
        parts = lead(statement, self.source)
        if parts is not None:
            before, value = parts
            if isinstance(value, t.Pipeline):
                broken = any("\n" in self.text[a:b] for a, b in gaps(value))
                if broken or comments or len(line) > WIDTH:
                    return spread(INDENT + before, value, self.source, comments)
            elif isinstance(value, t.Choice):
                tail = self.text[value.condition.span.end : value.other.span.start]
                between = tail.replace(
                    self.text[value.then.span.start : value.then.span.end], "", 1
                )
                if "\n" in between or len(line) > WIDTH:
                    return self._choice(INDENT + before, value)
        return wrap(line, 0, 2 * INDENT)

    def _choice(self, before: str, value: t.Choice) -> list[str]:
        deeper = 2 * INDENT
        first = wrap(f"{before}if {flat(value.condition, self.source)}", 0, deeper + INDENT)
        then = wrap(f"{deeper}then {flat(value.then, self.source)}", 0, deeper + INDENT)
        other = wrap(f"{deeper}else {flat(value.other, self.source)}", 0, deeper + INDENT)
        return [*first, *then, *other]


def _aligned(run: list[_Entry], source: Source) -> list[_Entry]:
    """A run of one-line bindings with `=` and the first pipes one below the other."""
    if len(run) < 2:
        return run
    cells: list[tuple[str, str, str]] = []
    for entry in run:
        assert entry.bind is not None
        names = ", ".join(flat(target, source) for target in entry.bind.targets)
        value = entry.bind.value
        if isinstance(value, t.Pipeline) and isinstance(value.head, t.Name):
            tail = " |> ".join(["", *(flat(stage, source) for stage in value.stages)])
            cells.append((names, flat(value.head, source), tail))
        else:
            cells.append((names, flat(value, source), ""))
    names_width = max(len(names) for names, _, _ in cells)
    heads = [len(head) for _, head, tail in cells if tail]
    heads_width = max(heads, default=0)
    lines = [
        f"{INDENT}{names.ljust(names_width)} = {head.ljust(heads_width if tail else 0)}{tail}"
        for names, head, tail in cells
    ]
    spread_out = names_width - min(len(names) for names, _, _ in cells)
    if heads:
        spread_out = max(spread_out, heads_width - min(heads))
    if spread_out > 20 or max(map(len, lines)) > WIDTH:
        return run
    return [
        _Entry([line], entry.bind, [], entry.trailing)
        for line, entry in zip(lines, run, strict=True)
    ]
