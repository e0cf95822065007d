"""The syntax tree of the language: frozen records, each with its span.

The tree is lossless together with its source: parentheses are nodes, comments are listed in
the :class:`Document`, and every literal can be read back from its span. Expressions are the
union :data:`Expr`, statements :data:`Statement`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from archir.diag import Source, Span

KEYWORDS = frozenset(
    {"version", "block", "arch", "input", "output", "let", "param", "buffer", "params"}
    | {"preprocess", "if", "then", "else", "and", "or", "not", "true", "false", "none"}
)
"""Words that cannot be a path of one segment unless back-quoted."""


@dataclass(frozen=True, slots=True)
class Ident:
    """A name or dotted path, with its back-quotes taken off."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Name:
    """A reference to a binding or a scalar; ``input`` is the piped tensor of a block."""

    span: Span
    path: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A number, a string, ``true``, ``false`` or ``none``."""

    span: Span
    value: int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class ListExpr:
    """``[a, b]``."""

    span: Span
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Paren:
    """``(inner)``."""

    span: Span
    inner: Expr


@dataclass(frozen=True, slots=True)
class Unary:
    """``-x`` or ``not x``."""

    span: Span
    op: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Chain:
    """``a + b - c`` or ``a * b / c``: operators of one strength, unparenthesised."""

    span: Span
    first: Expr
    rest: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """``a < b``."""

    span: Span
    left: Expr
    op: str
    right: Expr


@dataclass(frozen=True, slots=True)
class Logic:
    """``a and b and c``, or the same with ``or``."""

    span: Span
    op: str
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """``if condition then one else other``."""

    span: Span
    condition: Expr
    then: Expr
    other: Expr


@dataclass(frozen=True, slots=True)
class Argument:
    """A positional argument, or one with a keyword."""

    span: Span
    keyword: Ident | None
    value: Expr


@dataclass(frozen=True, slots=True)
class Rename:
    """``weight: "leaf"``, ``weight: absolute.path`` or ``weight: .path`` in a ``params`` list.

    A leaf lies below the operator, a path with a dot in front below the scope around it.
    """

    span: Span
    role: Ident
    target: str
    absolute: bool
    below: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """``conv(16, 3) params { weight: "w" }``; ``parens`` is None for a bare name."""

    span: Span
    callee: Ident
    arguments: tuple[Argument, ...]
    parens: Span | None
    renames: tuple[Rename, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a pipeline, or a labelled call elsewhere: ``[label:] [count *] call``.

    ``body`` is a :class:`Paren` only in ``label: (a + b)``, which labels the outermost operator.
    """

    span: Span
    label: Ident | None
    count: Expr | None
    body: Call | Paren


@dataclass(frozen=True, slots=True)
class Pipeline:
    """``head |> stage |> stage``."""

    span: Span
    head: Expr
    stages: tuple[Stage, ...]


Expr = (
    Name
    | Literal
    | ListExpr
    | Paren
    | Unary
    | Chain
    | Compare
    | Logic
    | Choice
    | Call
    | Stage
    | Pipeline
)


@dataclass(frozen=True, slots=True)
class TypeExpr:
    """``f32[N, 3, 32, 32]``."""

    span: Span
    dtype: Ident
    dims: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Bind:
    """``a, b = value``."""

    span: Span
    targets: tuple[Ident, ...]
    value: Expr


@dataclass(frozen=True, slots=True)
class Let:
    """``let name = value``, a scalar."""

    span: Span
    name: Ident
    value: Expr


@dataclass(frozen=True, slots=True)
class Result:
    """One value of an ``output`` statement."""

    span: Span
    name: Ident | None
    value: Expr


@dataclass(frozen=True, slots=True)
class OutputStatement:
    """``output value`` or ``output name = value``, several by commas."""

    span: Span
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class InputStatement:
    """``input name: type``."""

    span: Span
    name: Ident
    type: TypeExpr


@dataclass(frozen=True, slots=True)
class TensorStatement:
    """``param name: type = number`` or ``buffer ...``."""

    span: Span
    kind: str
    name: Ident
    type: TypeExpr
    init: Expr | None


@dataclass(frozen=True, slots=True)
class Setting:
    """``mean = [...]`` in a ``preprocess`` statement."""

    span: Span
    name: Ident
    value: Expr


@dataclass(frozen=True, slots=True)
class Preprocess:
    """``preprocess { ... }``."""

    span: Span
    settings: tuple[Setting, ...]


Statement = Bind | Let | OutputStatement | InputStatement | TensorStatement | Preprocess


@dataclass(frozen=True, slots=True)
class Formal:
    """A parameter of a block or arch: a scalar, or a tensor (``skip: tensor``)."""

    span: Span
    name: Ident
    default: Expr | None
    tensor: bool


@dataclass(frozen=True, slots=True)
class Block:
    """``block name(formals) { body }``; ``formals_span`` covers the parentheses."""

    span: Span
    name: Ident
    formals: tuple[Formal, ...]
    formals_span: Span | None
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Arch:
    """``arch name(formals) { body }``."""

    span: Span
    name: Ident
    formals: tuple[Formal, ...]
    formals_span: Span | None
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Comment:
    """A ``# ...`` comment; ``own_line`` where nothing else stands before it on its line."""

    start: int
    end: int
    own_line: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file."""

    source: Source
    version: Span | None
    items: tuple[Block | Arch, ...]
    comments: tuple[Comment, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks, in order."""
        return tuple(item for item in self.items if isinstance(item, Block))

    @property
    def archs(self) -> tuple[Arch, ...]:
        """The archs, in order (a valid file has one, and it is the last item)."""
        return tuple(item for item in self.items if isinstance(item, Arch))


Tree = (
    Ident
    | Expr
    | Argument
    | Rename
    | TypeExpr
    | Statement
    | Result
    | Setting
    | Formal
    | Block
    | Arch
)


def children(node: Tree) -> Iterator[Tree]:
    """The direct parts of a tree, in order."""
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, tuple):
            for entry in value:
                part = entry[1] if isinstance(entry, tuple) else entry
                if not isinstance(part, Span | str):
                    yield part
        elif hasattr(value, "span"):
            yield value


def walk(node: Tree) -> Iterator[Tree]:
    """A tree and everything in it, parents first."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        stack.extend(reversed(list(children(top))))


_SEGMENT = re.compile(r"`((?:[^`\\\n]|\\.)*)`|(\w+)")
_PLAIN = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*\Z", re.ASCII)
_PLAIN_SEGMENT = re.compile(r"\w+\Z", re.ASCII)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def unescape(text: str) -> str:
    r"""Take off backslashes: ``\n``, ``\t``, ``\r``; any other character stands for itself."""
    if "\\" not in text:
        return text
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), text)


def escape(text: str, quote: str) -> str:
    """Write a text so that it can stand between ``quote`` characters."""
    text = text.replace("\\", "\\\\").replace(quote, "\\" + quote)
    return text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def read_path(text: str) -> str:
    """A path as it is meant: back-quotes taken off."""
    if "`" not in text:
        return text
    return ".".join(
        unescape(match[1]) if match[2] is None else match[2] for match in _SEGMENT.finditer(text)
    )


def name_of(op: str) -> str:
    """What an unlabelled stage is called after its operator.

    >>> name_of("conv"), name_of("aten.roll")
    ('conv', 'aten_roll')
    """
    return op.replace(".", "_")


def write_path(path: str) -> str:
    """A path as it is written: segments back-quoted where they must be.

    >>> write_path("stage1.0.conv1.weight")
    'stage1.0.conv1.weight'
    >>> write_path("0.in-proj")
    '`0`.`in-proj`'
    """
    if _PLAIN.match(path) and path not in KEYWORDS:
        return path
    parts = path.split(".")
    bare = len(parts) > 1 or path not in KEYWORDS
    out = []
    for index, part in enumerate(parts):
        plain = _PLAIN_SEGMENT.match(part) and (index or not part[0].isdigit()) and bare
        out.append(part if plain else "`" + escape(part, "`") + "`")
    return ".".join(out)


def is_plain(path: str) -> bool:
    """Whether a path needs no back-quotes."""
    return bool(_PLAIN.match(path)) and path not in KEYWORDS


def is_name(text: str) -> bool:
    """Whether a text is a name of one plain segment."""
    return text.isidentifier() and is_plain(text)
