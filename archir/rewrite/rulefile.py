"""Rule files: text to :class:`~archir.rewrite.rule.Rule` values, with all errors and their spans."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from archir.diag import ArchirError, Diagnostic, Source, Span, error
from archir.ir.types import AttrValue
from archir.lang import tree as t
from archir.lang.convert import Reader, kind_of
from archir.ops.record import OpSet
from archir.rewrite.pattern import PatternReader
from archir.rewrite.rule import Contract, Reshaping, Rewriting, Rule, RuleParameter
from archir.weights.functions import FUNCTIONS

MAX_TEXT = 1_000_000
KINDS = ("int", "odd", "even", "float", "bool")
PLANNED = {
    "replicate": "replicate(size, new_size)",
    "mean": "mean(value)",
    "variance": "variance(value)",
}
"""Functions that are read when a rewrite is planned: random maps and calibration statistics."""
SCALAR = ("channels", "rank", "size", "min", "max", "uses", "has")


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark.open_from_package(
        "archir.grammar",
        "rule.lark",
        parser="lalr",
        start="rules",
        propagate_positions=True,
    )


def parse_rules(source: Source, ops: OpSet, package: str = "") -> list[Rule]:
    """The rules of a file.

    Raises:
        ArchirError: A2xx diagnostics, all of the file's.
    """
    if len(source.text) > MAX_TEXT:
        raise error("A200", f"{source.name} is longer than {MAX_TEXT:,} characters")
    tree = _tree(source)
    rules: list[Rule] = []
    found: list[Diagnostic] = []
    for child in tree.children:
        try:
            rule = _RuleReader(source, ops, package).rule(child)
            twin = next((r for r in rules if r.name == rule.name), None)
            if twin is not None:
                found.append(Diagnostic("A203", f"two rules are named `{rule.name}`", rule.span))
            rules.append(rule)
        except ArchirError as failure:
            found.extend(failure.diagnostics)
    if found:
        raise ArchirError(*found)
    return rules


def _tree(source: Source) -> Tree[Token]:
    try:
        tree: Tree[Token] = _parser().parse(source.text)
    except UnexpectedInput as reason:
        raise _syntax(source, reason) from None
    except RecursionError:
        raise error("A200", f"{source.name} nests too deeply") from None
    return tree


def _syntax(source: Source, reason: UnexpectedInput) -> ArchirError:
    at = reason.pos_in_stream if reason.pos_in_stream is not None else len(source.text)
    if at < 0:
        at = len(source.text)
    span = Span(source, at, min(at + 1, len(source.text)))
    if isinstance(reason, UnexpectedCharacters):
        return error("A201", f"{source.text[at]!r} has no meaning here", span=span)
    message = "the file ends within a rule"
    if isinstance(reason, UnexpectedToken) and reason.token.type != "$END":
        span = Span(source, at, at + len(str(reason.token)))
        message = f"`{str(reason.token)[:40]}` is not expected here"
    return error(
        "A201",
        message,
        span=span,
        hint="a rule is `rule name(parameters) { ... }` with a text, `source`, `preserves`, and "
        "either `match`, `replace`, `weights` or `over`, `produce`, `carry`, `consume`",
    )


class _RuleReader:
    """Reads one rule."""

    def __init__(self, source: Source, ops: OpSet, package: str) -> None:
        self.source, self.ops, self.package = source, ops, package
        self.reader = Reader(source)
        self.errors: list[Diagnostic] = []

    def complain(self, code: str, message: str, span: Span, hint: str = "") -> None:
        self.errors.append(Diagnostic(code, message, span, hint=hint))

    def rule(self, tree: Tree[Token] | Token) -> Rule:
        assert isinstance(tree, Tree)
        name, formals, *clauses = tree.children
        span = self.reader.span(tree)
        parts: dict[str, list[Tree[Token]]] = {}
        for clause in clauses:
            assert isinstance(clause, Tree)
            parts.setdefault(kind_of(clause), []).append(clause)
        label = self.reader.ident(name)
        self._once(parts, label.span)
        parameters = self._parameters(formals)
        where = tuple(
            self.reader.expression(e)
            for clause in (*parts.get("match", []), *parts.get("over", []))
            for w in clause.children
            if isinstance(w, Tree) and kind_of(w) == "where"
            for e in w.children
        )
        body = self._body(parts, label, [p.name for p in parameters])
        contract = self._contract(parts, label.span)
        self._check_names((*where, *self._expressions(body)))
        if self.errors or body is None:
            raise ArchirError(*self.errors)
        return Rule(
            name=label.text,
            doc=" ".join(self._text(parts, "doc").split()),
            source=self._text(parts, "source"),
            parameters=parameters,
            contract=contract,
            where=where,
            body=body,
            text=self.source.text[span.start : span.end],
            span=label.span,
            package=self.package or self.source.name,
        )

    def _once(self, parts: dict[str, list[Tree[Token]]], span: Span) -> None:
        for kind in ("doc", "source", "match", "replace", "weights", "over"):
            for extra in parts.get(kind, [])[1:]:
                self.complain("A202", f"the rule has two `{kind}` parts", self.reader.span(extra))
        if "doc" not in parts:
            self.complain(
                "A202",
                "the rule has no text that says what it does",
                span,
                'add "..." as its first line',
            )

    def _text(self, parts: dict[str, list[Tree[Token]]], kind: str) -> str:
        found = parts.get(kind)
        return self.reader.string(found[0].children[0]) if found else ""

    def _parameters(self, tree: Tree[Token] | Token | None) -> tuple[RuleParameter, ...]:
        found: list[RuleParameter] = []
        for child in tree.children if isinstance(tree, Tree) else ():
            if not isinstance(child, Tree):  # `rule name()` leaves a None
                continue
            name, kind = (self.reader.ident(c) for c in child.children[:2])
            default: AttrValue = None
            if child.children[2] is not None:
                value = self.reader.expression(child.children[2])
                if isinstance(value, t.Literal):
                    default = value.value
                else:
                    self.complain("A204", "a default is a number, true or false", value.span)
            if kind.text not in KINDS:
                self.complain(
                    "A204",
                    f"a parameter is one of {', '.join(KINDS)}, not `{kind.text}`",
                    kind.span,
                )
                continue
            found.append(RuleParameter(name.text, kind.text, default))  # type: ignore[arg-type]
        return tuple(found)

    def _contract(self, parts: dict[str, list[Tree[Token]]], span: Span) -> Contract:
        modes: list[str] = []
        shape = False
        for clause in parts.get("preserves", []):
            what, *given = (self.reader.ident(c) for c in clause.children if c is not None)
            if what.text == "shape":
                shape = True
            elif what.text != "function" or not given:
                self.complain(
                    "A205",
                    "a rule preserves `function in eval`, `function in eval, train`, or `shape`",
                    what.span,
                )
            for mode in given:
                if mode.text not in ("eval", "train"):
                    self.complain("A205", f"there is no mode `{mode.text}`", mode.span)
                modes.append(mode.text)
        if not modes and not shape and not self.errors:
            self.complain(
                "A205",
                "the rule has no contract",
                span,
                "say what it preserves: `preserves function in eval, train` or `preserves shape`",
            )
        claims = tuple(str(c.children[0]) for c in parts.get("claim", []))
        ordered = tuple(m for m in ("eval", "train") if m in modes)
        return Contract(ordered, shape, claims)  # type: ignore[arg-type]

    def _body(
        self, parts: dict[str, list[Tree[Token]]], label: t.Ident, scalars: list[str]
    ) -> Rewriting | Reshaping | None:
        if "over" in parts:
            return self._reshaping(parts, label)
        for kind in ("match", "replace"):
            if kind not in parts:
                self.complain("A202", f"the rule has no `{kind}` part", label.span)
                return None
        sides = []
        for kind in ("match", "replace"):
            statements = [
                self.reader.statement(s)
                for s in parts[kind][0].children
                if isinstance(s, Tree) and kind_of(s) != "where"
            ]
            sides.append(PatternReader(self.ops, self.errors, scalars).read(statements))
        match, replace = sides
        lets: list[tuple[str, t.Expr]] = []
        weights: list[tuple[str, t.Expr]] = []
        for clause in parts.get("weights", []):
            for child in clause.children:
                statement = self.reader.statement(child)
                if isinstance(statement, t.Let):
                    lets.append((statement.name.text, statement.value))
                elif isinstance(statement, t.Bind):
                    weights.append((statement.targets[0].text, statement.value))
                    self._target(statement.targets[0], replace)
        if not match.nodes:
            self.complain("A202", "the rule matches nothing", label.span)
        for name in match.bindings:
            if name not in replace.bindings and name not in {n.name for n in match.nodes[:-1]}:
                self.complain(
                    "A206", f"`{name}` is matched but not defined by the right side", label.span
                )
        return Rewriting(match, replace, tuple(lets), tuple(weights))

    def _target(self, target: t.Ident, replace: object) -> None:
        name, _, role = target.text.rpartition(".")
        node = next((n for n in getattr(replace, "nodes", ()) if n.name == name), None)
        if node is None:
            self.complain("A207", f"the right side has no `{name}`", target.span)
        elif role not in {p.role for p in self.ops[node.op].params}:
            roles = ", ".join(p.role for p in self.ops[node.op].params) or "none"
            self.complain(
                "A207", f"`{node.op}` has no parameter `{role}`", target.span, f"it has: {roles}"
            )

    def _reshaping(self, parts: dict[str, list[Tree[Token]]], label: t.Ident) -> Reshaping | None:
        over = parts["over"][0]
        variable, site = (self.reader.ident(c) for c in over.children[:2])
        acts = {
            str(a.children[0]): self.reader.expression(a.children[1]) for a in parts.get("act", [])
        }
        for kind in ("produce", "carry", "consume"):
            if kind not in acts:
                self.complain("A202", f"a rule over a class says what members {kind}", label.span)
        lets = tuple(
            (let.name.text, let.value)
            for let in (self.reader.statement(c) for c in parts.get("let", []))
            if isinstance(let, t.Let)
        )
        if len(acts) != 3:
            return None
        return Reshaping(
            variable.text, site.text, lets, acts["produce"], acts["carry"], acts["consume"]
        )

    def _expressions(self, body: Rewriting | Reshaping | None) -> Iterable[t.Expr]:
        if isinstance(body, Reshaping):
            yield from (body.produce, body.carry, body.consume)
        if body is not None:
            yield from (value for _, value in body.lets)
        if isinstance(body, Rewriting):
            yield from (value for _, value in body.weights)

    def _check_names(self, expressions: Iterable[t.Expr]) -> None:
        """Every function that is called exists."""
        known = [*FUNCTIONS, *PLANNED, *SCALAR]
        for expression in expressions:
            for part in t.walk(expression):
                if isinstance(part, t.Call) and part.callee.text not in known:
                    close = difflib.get_close_matches(part.callee.text, known, 1)
                    self.complain(
                        "A208",
                        f"there is no weight function `{part.callee.text}`",
                        part.callee.span,
                        f"did you mean `{close[0]}`?" if close else "",
                    )
