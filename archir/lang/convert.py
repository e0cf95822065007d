"""Lark trees to the syntax tree.

A grammar that imports ``statement`` and ``expr`` from ``arch.lark`` reuses this file: give the
Lark subtree of a statement or an expression to a :class:`Reader` of its source. Names that
Lark prefixes on import (``arch__bind``, ``arch__lexis__call``) are understood.

    %import .arch (statement, expr, PATH, INT, STRING, COMMENT, WHITE)

    reader = Reader(source)
    reader.statement(subtree)     # a Lark tree of `statement`
    reader.expression(subtree)    # a Lark tree of `expr`
    reader.ident(token)           # a PATH token

The parser must be built with ``propagate_positions`` and with ``maybe_placeholders`` (Lark's
default): absent options are None among a tree's children.
"""

from __future__ import annotations

from collections.abc import Callable

from lark import Token
from lark import Tree as LarkTree

from archir.diag import Source, Span, error
from archir.lang import tree as t

MAX_DEPTH = 60
"""How deep expressions may nest."""
MAX_DIGITS = 18
"""How many digits an integer may have."""

Part = LarkTree[Token] | Token


def kind_of(tree: LarkTree[Token]) -> str:
    """The name of a Lark tree's rule, without the prefixes that ``%import`` adds."""
    return str(tree.data).rsplit("__", 1)[-1]


def _parts(tree: LarkTree[Token]) -> list[Part | None]:
    """The children; None stands for an absent option."""
    return list(tree.children)


def _trees(tree: LarkTree[Token]) -> list[LarkTree[Token]]:
    return [child for child in tree.children if isinstance(child, LarkTree)]


class Reader:
    """Turns Lark subtrees of one source into syntax trees."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._depth = 0
        self._readers: dict[str, Callable[[LarkTree[Token], Span], t.Expr]] = {
            "choice": self._choice,
            "pipeline": self._pipeline,
            "stage": self._stage,
            "disjunction": lambda tree, span: self._logic(tree, span, "or"),
            "conjunction": lambda tree, span: self._logic(tree, span, "and"),
            "negation": lambda tree, span: t.Unary(span, "not", self._only(tree)),
            "negative": lambda tree, span: t.Unary(span, "-", self._only(tree)),
            "comparison": self._comparison,
            "chain": self._chain,
            "number": self._number,
            "string": lambda tree, span: t.Literal(span, self.string(tree.children[0])),
            "true": lambda tree, span: t.Literal(span, value=True),
            "false": lambda tree, span: t.Literal(span, value=False),
            "none": lambda tree, span: t.Literal(span, None),
            "piped": lambda tree, span: t.Name(span, "input"),
            "name": lambda tree, span: t.Name(span, t.read_path(str(tree.children[0]))),
            "call": self._call,
            "labelled": self._labelled,
            "labelled_group": self._labelled_group,
            "paren": lambda tree, span: t.Paren(span, self._only(tree)),
            "list": lambda tree, span: t.ListExpr(span, self._all(tree)),
        }

    # -- leaves

    def span(self, part: Part) -> Span:
        """The span of a Lark tree or token."""
        if isinstance(part, Token):
            return Span(self.source, part.start_pos or 0, part.end_pos or 0)
        return self._own_span(part)

    def ident(self, token: Part | None) -> t.Ident:
        """A PATH token as an identifier."""
        assert isinstance(token, Token)
        return t.Ident(self.span(token), t.read_path(str(token)))

    def string(self, token: Part | None) -> str:
        """What a STRING token says."""
        return t.unescape(str(token)[1:-1])

    # -- expressions

    def expression(self, tree: Part | None) -> t.Expr:
        """The syntax tree of an expression.

        Raises:
            ArchirError: it nests too deeply, or an integer is too long.
        """
        assert isinstance(tree, LarkTree)
        span = self._own_span(tree)
        if self._depth >= MAX_DEPTH:
            raise error(
                "A005", "the expression nests too deeply", span=span, label=f"level {MAX_DEPTH}"
            )
        self._depth += 1
        try:
            return self._readers[kind_of(tree)](tree, span)
        finally:
            self._depth -= 1

    def _own_span(self, tree: LarkTree[Token]) -> Span:
        meta = tree.meta
        return Span(self.source, meta.start_pos, meta.end_pos)

    def _only(self, tree: LarkTree[Token]) -> t.Expr:
        return self.expression(_trees(tree)[0])

    def _all(self, tree: LarkTree[Token]) -> tuple[t.Expr, ...]:
        return tuple(self.expression(child) for child in _trees(tree))

    def _choice(self, tree: LarkTree[Token], span: Span) -> t.Expr:
        condition, then, other = self._all(tree)
        return t.Choice(span, condition, then, other)

    def _pipeline(self, tree: LarkTree[Token], span: Span) -> t.Expr:
        head, *stages = _trees(tree)
        return t.Pipeline(
            span,
            self.expression(head),
            tuple(self._stage(stage, self._own_span(stage)) for stage in stages),
        )

    def _stage(self, tree: LarkTree[Token], span: Span) -> t.Stage:
        label, count, call = _parts(tree)
        assert isinstance(call, LarkTree)
        return t.Stage(
            span,
            self._label(label),
            None if count is None else self.expression(count),
            self._call(call, self._own_span(call)),
        )

    def _label(self, tree: Part | None) -> t.Ident | None:
        return self.ident(tree.children[0]) if isinstance(tree, LarkTree) else None

    def _labelled(self, tree: LarkTree[Token], span: Span) -> t.Expr:
        label, callee, arguments, renames = tree.children
        name = self.ident(callee)
        call = self._make_call(
            name, arguments, renames, Span(self.source, name.span.start, span.end)
        )
        return t.Stage(span, self._label(label), None, call)

    def _labelled_group(self, tree: LarkTree[Token], span: Span) -> t.Expr:
        label, inner = tree.children
        assert isinstance(label, LarkTree)
        start = self.source.text.index("(", self._own_span(label).end)
        group = t.Paren(Span(self.source, start, span.end), self.expression(inner))
        return t.Stage(span, self._label(label), None, group)

    def _call(self, tree: LarkTree[Token], span: Span) -> t.Call:
        callee, arguments, renames = tree.children
        return self._make_call(self.ident(callee), arguments, renames, span)

    def _make_call(
        self, callee: t.Ident, arguments: Part | None, renames: Part | None, span: Span
    ) -> t.Call:
        given: list[t.Argument] = []
        parens = None
        if isinstance(arguments, LarkTree):
            parens = self._own_span(arguments)
            given = [self._argument(child) for child in _trees(arguments)]
        renamed = (
            [self._rename(r) for r in _trees(renames)] if isinstance(renames, LarkTree) else []
        )
        return t.Call(span, callee, tuple(given), parens, tuple(renamed))

    def _argument(self, tree: LarkTree[Token]) -> t.Argument:
        span = self._own_span(tree)
        if kind_of(tree) == "keyword":
            return t.Argument(span, self.ident(tree.children[0]), self.expression(tree.children[1]))
        return t.Argument(span, None, self.expression(tree.children[0]))

    def _rename(self, tree: LarkTree[Token]) -> t.Rename:
        role, target = tree.children
        assert isinstance(target, Token)
        absolute, below = not target.startswith(('"', ".")), target.startswith(".")
        text = self.string(target) if target.startswith('"') else t.read_path(target.lstrip("."))
        return t.Rename(self._own_span(tree), self.ident(role), text, absolute, below)

    def _logic(self, tree: LarkTree[Token], span: Span, op: str) -> t.Expr:
        return t.Logic(span, op, self._all(tree))

    def _comparison(self, tree: LarkTree[Token], span: Span) -> t.Expr:
        left, op, right = tree.children
        return t.Compare(span, self.expression(left), str(op), self.expression(right))

    def _chain(self, tree: LarkTree[Token], span: Span) -> t.Expr:
        first, *rest = tree.children
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return t.Chain(
            span, self.expression(first), tuple((str(op), self.expression(e)) for op, e in pairs)
        )

    def _number(self, tree: LarkTree[Token], span: Span) -> t.Expr:
        text = str(tree.children[0])
        if text.isdigit():
            if len(text) > MAX_DIGITS:
                raise error("A006", f"an integer has at most {MAX_DIGITS} digits", span=span)
            return t.Literal(span, int(text))
        return t.Literal(span, float(text))

    # -- statements

    def statement(self, tree: Part | None) -> t.Statement:
        """The syntax tree of a statement.

        Raises:
            ArchirError: as for :meth:`expression`.
        """
        assert isinstance(tree, LarkTree)
        span = self._own_span(tree)
        kind = kind_of(tree)
        parts = tree.children
        if kind == "bind":
            targets = parts[0]
            assert isinstance(targets, LarkTree)
            names = tuple(self.ident(token) for token in targets.children)
            return t.Bind(span, names, self.expression(parts[1]))
        if kind == "let":
            return t.Let(span, self.ident(parts[0]), self.expression(parts[1]))
        if kind == "output":
            return t.OutputStatement(span, tuple(self._result(r) for r in _trees(tree)))
        if kind == "entry":
            return t.InputStatement(span, self.ident(parts[0]), self._type(parts[1]))
        if kind == "tensor":
            word, name, type_, init = _parts(tree)
            value = None if init is None else self.expression(init)
            return t.TensorStatement(span, str(word), self.ident(name), self._type(type_), value)
        settings = tuple(
            t.Setting(self._own_span(s), self.ident(s.children[0]), self.expression(s.children[1]))
            for s in _trees(tree)
        )
        return t.Preprocess(span, settings)

    def _result(self, tree: LarkTree[Token]) -> t.Result:
        span = self._own_span(tree)
        if kind_of(tree) == "named_result":
            return t.Result(span, self.ident(tree.children[0]), self.expression(tree.children[1]))
        return t.Result(span, None, self.expression(tree.children[0]))

    def _type(self, tree: Part | None) -> t.TypeExpr:
        assert isinstance(tree, LarkTree)
        dtype, *dims = _parts(tree)
        sizes = tuple(self.expression(d) for d in dims if d is not None)
        return t.TypeExpr(self._own_span(tree), self.ident(dtype), sizes)

    # -- items

    def item(self, tree: LarkTree[Token]) -> t.Block | t.Arch:
        """The syntax tree of a block or an arch."""
        name, formals, *body = tree.children
        given: tuple[t.Formal, ...] = ()
        where = None
        if isinstance(formals, LarkTree):
            where = self._own_span(formals)
            given = tuple(self.formal(child) for child in _trees(formals))
        made = t.Block if kind_of(tree) == "block" else t.Arch
        statements = tuple(self.statement(child) for child in body)
        return made(self._own_span(tree), self.ident(name), given, where, statements)

    def formal(self, tree: LarkTree[Token]) -> t.Formal:
        """The syntax tree of a block's parameter."""
        span = self._own_span(tree)
        kind = kind_of(tree)
        name = self.ident(tree.children[0])
        if kind == "tensor_formal":
            of = self.ident(tree.children[1])
            if of.text != "tensor":
                raise error(
                    "A008",
                    f"a parameter is a scalar or a `tensor`, not `{of.text}`",
                    span=of.span,
                    hint=f"write `{name.text}: tensor`, or `{name.text}` alone for a scalar",
                )
            return t.Formal(span, name, None, tensor=True)
        default = self.expression(tree.children[1]) if kind == "default_formal" else None
        return t.Formal(span, name, default, tensor=False)
