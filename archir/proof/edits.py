"""What mutation operators share: pieces of a rule's text, and what takes their place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lark import Token, Tree

from archir.diag import Source, Span
from archir.lang import tree as t
from archir.lang.convert import Reader, kind_of
from archir.ops.record import OpSet
from archir.proof.zeros import hidden
from archir.rewrite.rule import Pattern, PatternNode
from archir.rewrite.rulefile import parse_rules, parser


@dataclass(frozen=True, order=True, slots=True)
class Edit:
    """A piece of a rule's text, and what takes its place."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """What an operator would do to a rule."""

    operator: str
    edits: tuple[Edit, ...]
    spare: bool = False
    """Whether it is only taken where others are too few: it fits any rule, and says little."""


ACTIVATIONS = ("relu", "relu6", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "softplus")


class RuleText:
    """A rule, and where in its text what stands.

    Raises:
        ArchirError: the text is not one rule.
    """

    def __init__(self, text: str, ops: OpSet, name: str = "mutant.rule") -> None:
        self.source, self.ops = Source(name, text), ops
        (self.rule,) = parse_rules(self.source, ops)
        self.reader = Reader(self.source)
        (tree,) = (c for c in parser().parse(text).children if isinstance(c, Tree))
        self.tree: Tree[Token] = tree
        self.clauses: dict[str, list[Tree[Token]]] = {}
        for child in _subtrees(tree):
            self.clauses.setdefault(kind_of(child), []).append(child)
        self.hidden = hidden(self.rule)

    def text(self, span: Span) -> str:
        """What stands at a span."""
        return self.source.text[span.start : span.end]

    def put(self, operator: str, span: Span, text: str) -> Mutation:
        """Another text in the place of a span."""
        return Mutation(operator, (Edit(span.start, span.end, text),))

    def swap(self, operator: str, one: Span, two: Span) -> Mutation:
        """Two spans exchanged."""
        edits = (
            Edit(one.start, one.end, self.text(two)),
            Edit(two.start, two.end, self.text(one)),
        )
        return Mutation(operator, edits)

    def between(self, before: t.Expr, after: t.Expr) -> Span:
        """The text between two expressions, with the space around it."""
        return Span(self.source, before.span.end, after.span.start)

    def statements(self, side: str) -> Iterator[t.Bind]:
        """The statements of `match` or `replace`."""
        for clause in self.clauses.get(side, []):
            for child in clause.children:
                if isinstance(child, Tree) and kind_of(child) != "where":
                    statement = self.reader.statement(child)
                    if isinstance(statement, t.Bind):
                        yield statement


def node_of(side: Pattern, call: t.Call | t.Chain) -> PatternNode | None:
    """The node of a pattern that an expression is."""
    return next((n for n in side.nodes if n.span == call.span), None)


def _subtrees(tree: Tree[Token]) -> Iterator[Tree[Token]]:
    """A tree and all in it, in the order of the text."""
    yield tree
    for child in tree.children:
        if isinstance(child, Tree):
            yield from _subtrees(child)
