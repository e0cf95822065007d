"""Text to syntax tree, with every syntax error that can be found in one go."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter

from lark import Lark, Token, UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark import Tree as LarkTree
from lark.grammar import Rule
from lark.parsers.lalr_analysis import Shift
from lark.parsers.lalr_interactive_parser import InteractiveParser

from archir.diag import ArchirError, Diagnostic, Source, Span, error
from archir.ir.memory import uncollected
from archir.lang.convert import Reader
from archir.lang.tree import KEYWORDS, Arch, Block, Comment, Document

MAX_CHARACTERS = 16_000_000
"""How long a text may be."""
MAX_BRACKETS = 100
"""How deep brackets may nest."""
MAX_ERRORS = 20
"""After so many syntax errors the rest of a text is not read."""

_INERT = re.compile(r'"(?:[^"\\\n]|\\.)*"|`(?:[^`\\\n]|\\.)*`|(#[^\n]*)|([\[({])|([\])}])')

TOKENS = {
    "PATH": "a name",
    "BELOW": "a path that begins with a dot",
    "INT": "an integer",
    "FLOAT": "a number",
    "STRING": "a string",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "EQUAL": "`=`",
    "PLUS": "`+`",
    "MINUS": "`-`",
    "STAR": "`*`",
    "SLASH": "`/`",
    "DOUBLE_SLASH": "`//`",
    "PERCENT": "`%`",
    "COMPARE": "a comparison",
    "__ANON_0": "`|>`",
    "$END": "the end of the file",
}
"""Terminals in the user's terms; keywords stand for themselves."""
_VALUES = {"PATH", "INT", "FLOAT", "STRING", "LPAR", "LSQB", "MINUS", "INPUT", "TRUE", "FALSE"}
_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "DOUBLE_SLASH", "PERCENT", "COMPARE", "AND", "OR"}
_STATEMENTS = {"LET", "OUTPUT", "PARAM", "BUFFER", "PREPROCESS"}
_ITEMS = {"BLOCK", "ARCH"}
_OPENERS = {*_STATEMENTS, *_ITEMS, "INPUT"}
"""What begins a statement or an item, where it begins a line."""


@lru_cache(maxsize=1)
def _parser() -> Lark:
    parser = Lark.open_from_package(
        "archir.grammar",
        "arch.lark",
        parser="lalr",
        lexer="basic",
        start="document",
        propagate_positions=True,
    )
    # An operand alone passes through a rule for each level of precedence, which hands it on as
    # it is: nine in ten of all reductions, and half of the time, unless they are cut short.
    callbacks = parser.parse_interactive("").parser_state.parse_conf.callbacks
    callbacks.update({rule: itemgetter(0) for rule in callbacks if _hands_on(rule)})
    return parser


def _hands_on(rule: object) -> bool:
    """Whether a grammar rule gives its only part as it is (``?sum: term``)."""
    return (
        isinstance(rule, Rule)
        and rule.options.expand1
        and not rule.alias
        and len(rule.expansion) == 1
        and not rule.expansion[0].is_term
    )


def parse(source: Source) -> Document:
    """Parse a file.

    Raises:
        ArchirError: with all syntax errors, in the order of the text.
    """
    comments = check_limits(source)
    try:
        with uncollected():
            tree = _parser().parse(source.text)
    except UnexpectedInput:
        raise ArchirError(*_Recovery(source).run()) from None
    assert isinstance(tree, LarkTree)
    version, *items = tree.children
    where = _version(source, version) if isinstance(version, LarkTree) else None
    reader = Reader(source)
    read: list[Block | Arch] = []
    found: list[Diagnostic] = []
    for item in items:
        assert isinstance(item, LarkTree)
        try:
            read.append(reader.item(item))
        except ArchirError as problem:
            found.extend(problem.diagnostics)
    if found:
        raise ArchirError(*found)
    return Document(source, where, tuple(read), comments)


def _version(source: Source, tree: LarkTree[Token]) -> Span:
    span = Span(source, tree.meta.start_pos, tree.meta.end_pos)
    number = str(tree.children[0])
    if number.lstrip("0") != "1":
        raise error(
            "A007",
            f"this file says version {number[:20]}; this archir reads version 1",
            span=span,
            hint="a newer archir may read it",
        )
    return span


def check_limits(source: Source) -> tuple[Comment, ...]:
    """Refuse texts that are too long or nest too deeply; returns the comments.

    Raises:
        ArchirError: A004 or A005.
    """
    text = source.text
    if len(text) > MAX_CHARACTERS:
        raise error(
            "A004", f"the text has {len(text)} characters; at most {MAX_CHARACTERS} are read"
        )
    comments: list[Comment] = []
    depth = 0
    for match in _INERT.finditer(text):
        if match[1]:
            start = text.rfind("\n", 0, match.start()) + 1
            own = not text[start : match.start()].strip()
            comments.append(Comment(match.start(), match.end(), own))
        elif match[2]:
            depth += 1
            if depth > MAX_BRACKETS:
                span = Span(source, match.start(), match.end())
                raise error(
                    "A005", "the brackets nest too deeply", span=span, label=f"level {depth}"
                )
        elif match[3]:
            depth -= 1
    return tuple(comments)


class _Recovery:
    """Parses a wrong text token by token, reports, skips to the next statement, goes on."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.found: list[Diagnostic] = []
        self.tokens: list[Token] = []

    def run(self) -> list[Diagnostic]:
        self._lex()
        parser = _parser().parse_interactive("")
        index = 0
        while index < len(self.tokens) and len(self.found) < MAX_ERRORS:
            if self._feed(parser, index):
                index += 1
            else:
                index = self._resume(parser, index)
        if index == len(self.tokens) and not self.found:
            self._feed(parser, index)
        return sorted(self.found, key=lambda d: d.span.start if d.span else 0)

    def _feed(self, parser: InteractiveParser, index: int) -> bool:
        """Take one token, or report it and leave the parser as it was."""
        state = parser.parser_state
        states, values = list(state.state_stack), list(state.value_stack)
        try:
            if index < len(self.tokens):
                parser.feed_token(self.tokens[index])
            else:
                parser.feed_token(Token("$END", ""))
        except UnexpectedToken:
            state.state_stack[:], state.value_stack[:] = states, values
            accepts: Callable[[], set[str]] = parser.accepts
            self._report(accepts(), index)
            return False
        return True

    # -- reading tokens

    def _lex(self) -> None:
        """Read the tokens, blanking out what is none."""
        text = self.source.text
        while True:
            try:
                self.tokens = list(_parser().lex(text))
            except UnexpectedCharacters as problem:
                start = int(problem.pos_in_stream)  # type: ignore[call-overload]
                end, instead = self._bad_character(text, start)
                if len(self.found) >= MAX_ERRORS:
                    self.tokens = []
                    return
                text = text[:start] + instead.ljust(end - start)[: end - start] + text[end:]
            else:
                return

    def _bad_character(self, text: str, start: int) -> tuple[int, str]:
        """Report what is no token; returns where it ends and what to read in its place."""
        character = text[start]
        if character in "\"'`":
            line = text[start:].partition("\n")[0]
            if character == "'":
                length = line.find("'", 1) + 1 or len(line)
                message, hint = "strings are written in double quotes", "use \" instead of '"
            else:
                length = max(len(line.rstrip(" \t\r)]},")), 1)
                what = "string" if character == '"' else "back-quoted name"
                message, hint = f"the {what} is not closed", f"add the closing {character}"
            span = Span(self.source, start, start + length)
            self.found.append(Diagnostic("A003", message, span, hint=hint))
            closed = "`" if character == "`" else '"'
            return start + length, closed * 2 if length > 1 else ""
        end = start + 1
        while end < len(text) and text[end] == character:
            end += 1
        shown = character if character.isprintable() else f"U+{ord(character):04X}"
        hints = {
            ";": "statements need no separator",
            "&": "use `and`",
            "!": "use `not`, or `!=`",
            "|": "a pipeline is written with `|>`",
            "@": "there is no matrix product; use `linear`",
        }
        self.found.append(
            Diagnostic(
                "A002",
                f"the character {shown} means nothing here",
                Span(self.source, start, end),
                hint=hints.get(character, ""),
            )
        )
        return end, ""

    # -- reporting

    def _report(self, accepted: set[str], index: int) -> None:
        token = self.tokens[index] if index < len(self.tokens) else None
        before = self.tokens[index - 1] if index else None
        expected = expectation(accepted)
        if token is None:
            end = len(self.source.text.rstrip())
            span = Span(self.source, max(end - 1, 0), end)
            message = f"expected {expected}, but the file ends"
        else:
            span = Span(self.source, token.start_pos or 0, token.end_pos or 0)
            message = f"expected {expected}, found `{_short(str(token))}`"
        hint = self._hint(token, before, accepted)
        self.found.append(Diagnostic("A001", message, span, "unexpected", hint))

    def _hint(self, token: Token | None, before: Token | None, accepted: set[str]) -> str:
        if token is None:
            return "a closing `}` may be missing"
        word = str(token)
        after = str(before) if before is not None else ""
        if word in KEYWORDS and self._leads(token) and token.type in _OPENERS:
            closing = [TOKENS[kind] for kind in ("RPAR", "RSQB", "RBRACE") if kind in accepted]
            return f"a closing {closing[0]} may be missing before it" if closing else ""
        if word in KEYWORDS:
            return (
                f"`{word}` is a keyword; a name that is spelled so is back-quoted: `` `{word}` ``"
            )
        if after in ("def", "class", "model", "network"):
            return "a network begins with `arch NAME {`, a block with `block NAME {`"
        if word == "=" and after in KEYWORDS:
            return f"`{after}` is a keyword; choose another name"
        if token.type in _OPERATORS:
            return "put the pipeline in parentheses to compute with its value"
        if word == "(" and token.type == "LPAR":
            return "only an operator or a block is called, by its name"
        return ""

    # -- going on

    def _resume(self, parser: InteractiveParser, index: int) -> int:
        """Skip to a token that begins a statement, or ends a body, and unwind to it."""
        state = parser.parser_state
        rows: dict[int, dict[str, tuple[object, object]]] = state.parse_conf.states

        def shifts(number: int, kind: str) -> bool:
            action = rows[number].get(kind)
            return action is not None and action[0] is Shift

        closing = next((n for n in reversed(state.state_stack) if shifts(n, "RBRACE")), None)
        braces = int(closing is not None and not shifts(closing, "LET"))
        margin = self._margin(index)
        for place in range(index, len(self.tokens)):
            kind = str(self.tokens[place].type)
            braces += kind == "LBRACE"
            if kind == "RBRACE" and braces:
                braces -= 1
                continue
            if not self._begins(place, margin):
                continue
            mark = "BLOCK" if kind in _ITEMS else "LET"
            kept = len(state.state_stack)
            while kept and not shifts(state.state_stack[kept - 1], mark):
                kept -= 1
            if kept:
                del state.state_stack[kept:]
                del state.value_stack[kept - 1 :]
                return place
        return len(self.tokens) + 1

    def _margin(self, index: int) -> int:
        """The column where the statement around a token begins."""
        for token in reversed(self.tokens[: index + 1]):
            if self._leads(token) and token.type in {"PATH", "INPUT", *_STATEMENTS}:
                return token.column or 1
        return 1

    def _leads(self, token: Token) -> bool:
        """Whether a token is the first of its line."""
        start = self.source.line_starts[(token.line or 1) - 1]
        return not self.source.text[start : token.start_pos].strip()

    def _begins(self, place: int, margin: int) -> bool:
        """Whether a token begins a statement or an item, or ends a body."""
        token = self.tokens[place]
        kind = str(token.type)
        following = [str(t.type) for t in self.tokens[place + 1 : place + 4]]
        if kind in _ITEMS:
            return following[:1] == ["PATH"]
        if kind in ("INPUT", "PARAM", "BUFFER"):
            return following[:2] == ["PATH", "COLON"]
        if kind in _STATEMENTS or kind == "RBRACE":
            return True
        binds = following[:1] == ["EQUAL"] or following == ["COMMA", "PATH", "EQUAL"]
        return kind == "PATH" and binds and (token.column or 1) <= margin and self._leads(token)


def expectation(accepted: set[str]) -> str:
    """What a parser would accept, in the user's terms."""
    kinds = {str(kind) for kind in accepted}
    words: list[str] = []
    if kinds >= _ITEMS:
        words.append("`block` or `arch`")
        kinds -= {*_ITEMS, "VERSION"}
    if kinds >= _STATEMENTS:
        words.append("a statement")
        kinds -= {*_STATEMENTS, "INPUT", "PATH"}
    if kinds >= {"INT", "LPAR", "STRING"}:
        words.append("a value")
        kinds -= {*_VALUES, "NONE", "NOT", "IF"}
    if len(kinds & _OPERATORS) > 1:
        words.append("an operator")
        kinds -= {*_OPERATORS, "__ANON_0"}
    words += sorted(TOKENS.get(kind, f"`{kind.lower()}`") for kind in kinds)
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _short(text: str) -> str:
    return text if len(text) <= 30 else text[:27] + "..."
