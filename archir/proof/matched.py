"""Mutation operators of what a rule asks for: its left side, and what it assumes of weights."""

from __future__ import annotations

from collections.abc import Iterator

from archir.lang import tree as t
from archir.proof.edits import ACTIVATIONS, Edit, Mutation, RuleText, node_of
from archir.proof.zeros import is_zero
from archir.rewrite.rule import PatternNode, Rewriting

OTHER_POOL = {"max_pool": "avg_pool", "avg_pool": "max_pool"}
WINDOWED = ("kernel", "padding", "dilation")
"""What a left side may state of windows."""


class Asked(RuleText):
    """Makes a rule wrong by letting it ask for something else, or for less."""

    def assumed(self) -> Iterator[Mutation]:
        """Nothing assumed of a weight, or another value."""
        for clause in self.clauses.get("assumes", []):
            yield self.put("nothing assumed", self.reader.span(clause), "")
            said = self.reader.expression(clause.children[0])
            if not isinstance(said, t.Compare):
                continue
            value, text = said.right, self.text(said.right.span)
            others = ("1", "0.5") if is_zero(value) else (f"2 * ({text})", f"({text}) + 1")
            for other in others:
                yield self.put("another value assumed", value.span, other)

    def left_side(self) -> Iterator[Mutation]:
        """Other operators, signs, orders and numbers on the left."""
        body = self.rule.body
        assert isinstance(body, Rewriting)
        for statement in self.statements("match"):
            for part in t.walk(statement.value):
                if not isinstance(part, t.Call | t.Chain):
                    continue
                node = node_of(body.match, part)
                if isinstance(part, t.Chain):
                    yield from self.sign(part)
                elif node is not None:
                    yield from self.asked_operator(part, node)
                    if len(statement.targets) == 1:  # else it may say how many results there are
                        yield from self.numbers(part, node)
                    yield from self.conditions(part, node)

    def sign(self, chain: t.Chain) -> Iterator[Mutation]:
        """A product where a sum was asked for, or the other way round.

        A difference is as good as a sum where what is added is nothing.
        """
        for number, (sign, part) in enumerate(chain.rest):
            before = [chain.first, *(p for _, p in chain.rest)][number]
            other = {"+": "*", "*": "+"}.get(sign)
            if other is not None and len(chain.rest) == 1:
                yield self.put("another sign matched", self.between(before, part), f" {other} ")

    def asked_operator(self, call: t.Call, node: PatternNode) -> Iterator[Mutation]:
        """Another activation, another pooling; something else for what has no attributes."""
        name, span = call.callee.text, call.callee.span
        op = self.ops[name]
        if name in ACTIVATIONS:
            other = {"relu": "gelu", "gelu": "silu"}.get(name, "gelu")
            yield self.put("another activation matched", span, other)
        elif name in OTHER_POOL and not any(a.keyword for a in call.arguments):
            yield self.put("another pooling matched", span, OTHER_POOL[name])
        elif not (op.params or node.attrs or call.arguments) and len(node.operands) == 1:
            for other in ("relu", "gelu"):
                yield self.put("another operator matched", span, other)
        elif name == "concat" and len(node.operands) == 2:
            first, second = call.arguments[:2]
            yield self.swap("operands exchanged on the left", first.value.span, second.value.span)

    def numbers(self, call: t.Call, node: PatternNode) -> Iterator[Mutation]:
        """A number that the left side states by its place, one off."""
        for argument in call.arguments:
            value = argument.value
            if argument.keyword is None and isinstance(value, t.Literal):
                number = value.value
                if type(number) in (int, float) and value in node.attrs.values():
                    text = str(number + 1)  # type: ignore[operator]
                    yield self.put("another number matched", value.span, text)

    def conditions(self, call: t.Call, node: PatternNode) -> Iterator[Mutation]:
        """What the left side wants of windows turned into its opposite.

        Not a padding of `same`: a number may say the same, so that what is not called so is not
        its opposite.
        """
        for number, argument in enumerate(call.arguments):
            value, keyword = argument.value, argument.keyword
            if keyword is None or keyword.text not in WINDOWED:
                continue
            if not isinstance(value, t.Literal) or isinstance(value.value, str):
                continue
            first = call.arguments[number - 1].span.end if number else argument.span.start
            last = argument.span.end
            if number == 0 and len(call.arguments) > 1:
                last = call.arguments[1].span.start
            where = self.clauses.get("where", [])
            end = self.reader.span((where or self.clauses["match"])[0]).end
            guard = f"{node.name}.{keyword.text} != {self.text(value.span)}"
            added = Edit(end, end, f", {guard}" if where else f" where {guard}")
            yield Mutation("a condition turned round", (Edit(first, last, ""), added))
