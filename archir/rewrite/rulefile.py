"""Rule files: text to :class:`~archir.rewrite.rule.Rule` values, or all errors with their spans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from archir.diag import ArchirError, Diagnostic, Source, Span
from archir.lang import tree as t
from archir.lang.convert import Reader, kind_of
from archir.ops.record import Mode, OpSet
from archir.rewrite.maps import MAKERS, makers_in
from archir.rewrite.names import Names
from archir.rewrite.pattern import PatternReader
from archir.rewrite.rule import (
    KINDS,
    Contract,
    Pattern,
    Reshaping,
    Rewriting,
    Rule,
    RuleParameter,
    Step,
)

MAX_TEXT = 1_000_000
"""How many characters a rule file may have."""
MAX_ERRORS = 20
_AFTER = {
    "=": "two values are compared with `==`",
    "where": "guards follow the left side or the class: `match { ... } where rank(x) == 4`",
    "replace": "a `}` may be missing before it",
    "weights": "a `}` may be missing before it",
    "decrease": "a claim is `macs decreases` or `macs kept`, or the same of `params`",
    "let": "over a class `let` follows `over c = class(at)`, over a pattern it is in `weights`",
}
"""What helps where such a word is not expected."""
"""After so many syntax errors the rest of a file is not read."""
ACTS = ("produce", "carry", "consume")
ONCE = ("doc", "source", "match", "replace", "weights", "over")
OF_CLASSES = ("over", "let", *ACTS, "then")
OF_PATTERNS = ("match", "replace", "weights")
ASSUMED = ("unread", "repeated")
"""What a rule over a class may assume of its map."""
Clauses = dict[str, list[Tree[Token]]]
"""The clauses of a rule, by what they are."""
_HEAD = re.compile(r"^[ \t]*rule\b", re.MULTILINE)


@lru_cache(maxsize=1)
def parser() -> Lark:
    """The parser of rule files."""
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
        ArchirError: A2xx diagnostics (and A00x), all of the file's.
    """
    if len(source.text) > MAX_TEXT:
        text = f"{source.name} is longer than {MAX_TEXT:,} characters"
        raise ArchirError(Diagnostic("A200", text))
    trees, found = _trees(source)
    rules: list[Rule] = []
    names: set[str] = set()
    for tree in trees:
        try:
            rule = _RuleReader(source, ops, package).rule(tree)
        except ArchirError as failure:
            found.extend(failure.diagnostics)
            continue
        if rule.name in names:
            found.append(Diagnostic("A203", f"two rules are named `{rule.name}`", rule.span))
        names.add(rule.name)
        rules.append(rule)
    if found:
        raise ArchirError(*sorted(found, key=lambda d: d.span.start if d.span else 0))
    return rules


def _trees(source: Source) -> tuple[list[Tree[Token]], list[Diagnostic]]:
    """The rules that can be read, and the syntax errors; a wrong rule is skipped whole."""
    text, found = source.text, list[Diagnostic]()
    while len(found) < MAX_ERRORS:
        try:
            tree = parser().parse(text)
        except UnexpectedInput as reason:
            found.append(_syntax(source, reason))
            place = found[-1].span
            assert place is not None
            heads = [m.start() for m in _HEAD.finditer(source.text)]
            start = max((h for h in heads if h < place.start), default=0)
            after = [h for h in heads if h > place.start]
            if not after:
                text = text[:start]
                continue
            text = text[:start] + " " * (after[0] - start) + text[after[0] :]
        else:
            return [child for child in tree.children if isinstance(child, Tree)], found
    return [], found


def _syntax(source: Source, reason: UnexpectedInput) -> Diagnostic:
    at: int = getattr(reason, "pos_in_stream", None) or 0
    ended = isinstance(reason, UnexpectedToken) and reason.token.type == "$END"
    if ended or not 0 <= at < len(source.text):
        at = max(len(source.text.rstrip()) - 1, 0)
    span = Span(source, at, min(at + 1, len(source.text)))
    hint = (
        "a rule is `rule name(parameters) { ... }` with a text, `source`, `preserves`, and "
        "either `match`, `replace`, `weights` or `over`, `produce`, `carry`, `consume`"
    )
    message = "the file ends within a rule"
    if isinstance(reason, UnexpectedCharacters):
        message = f"{source.text[at]!r} has no meaning here"
    elif isinstance(reason, UnexpectedToken) and not ended:
        span = Span(source, at, at + len(str(reason.token)))
        message = f"`{str(reason.token)[:40]}` is not expected here"
        hint = _AFTER.get(str(reason.token), hint)
    return Diagnostic("A201", message, span, hint=hint)


def _parts(tree: Tree[Token]) -> list[Tree[Token] | Token | None]:
    """The children; None stands for an absent option."""
    return list(tree.children)


class _RuleReader:
    """Reads one rule."""

    def __init__(self, source: Source, ops: OpSet, package: str) -> None:
        self.source, self.ops, self.package = source, ops, package
        self.reader = Reader(source)
        self.errors: list[Diagnostic] = []

    def complain(self, code: str, message: str, span: Span, hint: str = "") -> None:
        self.errors.append(Diagnostic(code, message, span, hint=hint))

    def rule(self, tree: Tree[Token]) -> Rule:
        name, formals, *clauses = tree.children
        span = self.reader.span(tree)
        parts: Clauses = {}
        steps: list[Clauses] = [{}]
        for clause in clauses:
            assert isinstance(clause, Tree)
            kind = str(clause.children[0]) if kind_of(clause) == "act" else kind_of(clause)
            parts.setdefault(kind, []).append(clause)
            if kind == "then":
                steps.append({})
            elif kind in ("let", *ACTS):
                steps[-1].setdefault(kind, []).append(clause)
        label = self.reader.ident(name)
        self._once(parts, steps, label.span)
        parameters = self._parameters(formals)
        where = tuple(
            self.reader.expression(e)
            for clause in (*parts.get("match", []), *parts.get("over", []))
            for w in clause.children
            if isinstance(w, Tree) and kind_of(w) == "where"
            for e in w.children
        )
        body = self._body(parts, steps, label)
        contract = self._contract(parts, label.span)
        assumed = self._assumed(parts, steps[0], contract)
        contract = replace(
            contract, unread=assumed.get("unread", ""), repeated=assumed.get("repeated", "")
        )
        exact = bool(contract.function)
        plain = [p.name for p in parameters if p.kind != "path"]
        paths = [p.name for p in parameters if p.kind == "path"]
        names = Names(self.ops, self.complain, plain, label.span, exact=exact)
        if isinstance(body, Rewriting):
            self._paths(body, paths, label.span)
            names.rewriting(body, where, paths)
        elif body is not None and paths:
            text = f"`{paths[0]}` is a tensor; a rule over a class reads none by its path"
            self.complain("A204", text, label.span)
        elif body is not None:
            names.reshaping(body, where)
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

    def _once(self, parts: Clauses, steps: Sequence[Clauses], span: Span) -> None:
        twice = [(kind, extra) for kind in ONCE for extra in parts.get(kind, [])[1:]]
        for step in steps:
            twice += [(kind, extra) for kind in ACTS for extra in step.get(kind, [])[1:]]
        for kind, extra in twice:
            self.complain("A202", f"the rule has two `{kind}` parts", self.reader.span(extra))
        others = OF_PATTERNS if "over" in parts else OF_CLASSES
        held = "an axis class" if "over" in parts else "a pattern"
        for kind in others:
            for wrong in parts.get(kind, []) if "over" in parts or "match" in parts else []:
                self.complain(
                    "A202", f"a rule over {held} has no `{kind}` part", self.reader.span(wrong)
                )
        if "doc" not in parts:
            self.complain(
                "A202",
                "the rule has no text that says what it does",
                span,
                'add "..." as its first line',
            )

    def _text(self, parts: Clauses, kind: str) -> str:
        found = parts.get(kind)
        return self.reader.string(found[0].children[0]) if found else ""

    def _parameters(self, tree: Tree[Token] | Token | None) -> tuple[RuleParameter, ...]:
        found: dict[str, RuleParameter] = {}
        children: list[object] = [*tree.children] if isinstance(tree, Tree) else []
        for child in children:
            if not isinstance(child, Tree):  # `rule name()` leaves a None
                continue
            name, kind = (self.reader.ident(c) for c in child.children[:2])
            if name.text in found:
                self.complain("A204", f"two parameters are named `{name.text}`", name.span)
            if kind.text not in KINDS:
                wanted = ", ".join(KINDS)
                self.complain(
                    "A204", f"a parameter is one of {wanted}, not `{kind.text}`", kind.span
                )
                continue
            parameter = RuleParameter(name.text, KINDS[kind.text], None)
            if child.children[2] is not None:
                value = self.reader.expression(child.children[2])
                parameter = self._default(parameter, value)
            found[name.text] = parameter
        return tuple(found.values())

    def _default(self, parameter: RuleParameter, value: t.Expr) -> RuleParameter:
        literal = value.operand if isinstance(value, t.Unary) and value.op == "-" else value
        given = literal.value if isinstance(literal, t.Literal) else None
        if literal is not value and isinstance(given, int | float):
            given = -given
        if parameter.kind == "path":
            self.complain("A204", f"`{parameter.name}` is a path: it has no default", value.span)
            return parameter
        try:
            return replace(parameter, default=parameter.fit(given))
        except ValueError as wanted:
            self.complain("A204", f"the default of `{parameter.name}` is not {wanted}", value.span)
            return parameter

    def _paths(self, body: Rewriting, paths: Sequence[str], span: Span) -> None:
        made = {
            *body.match.bindings,
            *(n.name for s in (body.match, body.replace) for n in s.nodes),
        }
        for name in paths:
            if name in made:
                text = f"`{name}` is a parameter and stands for another tensor too"
                self.complain("A204", text, span)

    def _contract(self, parts: Clauses, span: Span) -> Contract:
        modes: list[str] = []
        shape, before = False, len(self.errors)
        for clause in parts.get("preserves", []):
            what, *given = (self.reader.ident(c) for c in _parts(clause) if c is not None)
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
        if not modes and not shape and len(self.errors) == before:
            self.complain(
                "A205",
                "the rule has no contract",
                span,
                "say what it preserves: `preserves function in eval, train` or `preserves shape`",
            )
        claims = [[str(c) for c in clause.children] for clause in parts.get("claim", [])]
        falls, kept = (
            tuple(cost for cost, bound in claims if bound == wanted)
            for wanted in ("decreases", "kept")
        )
        known: tuple[Mode, ...] = ("eval", "train")
        return Contract(tuple(m for m in known if m in modes), shape, falls, kept)

    def _assumed(self, parts: Clauses, step: Clauses, contract: Contract) -> dict[str, str]:
        """What a rule over a class assumes of the map of its first step."""
        lets = [self.reader.statement(c) for c in step.get("let", [])]
        made = {
            let.name.text: MAKERS[let.value.callee.text]
            for let in lets
            if isinstance(let, t.Let)
            and isinstance(let.value, t.Call)
            and let.value.callee.text in MAKERS
        }
        found: dict[str, str] = {}
        for clause in parts.get("assumes", []):
            said = self.reader.expression(clause.children[0])
            equation = isinstance(said, t.Compare) and said.op == "=="
            if equation and contract.function and "over" not in parts:
                continue  # its names are checked with those of the pattern
            what = said.callee.text if isinstance(said, t.Call) else ""
            operands = [a.value for a in said.arguments] if isinstance(said, t.Call) else []
            one = operands[0] if len(operands) == 1 else None
            given = one.path if isinstance(one, t.Name) else ""
            maker = made.get(given)
            fits = maker is not None and maker.grows == (what == "repeated")
            if what not in ASSUMED or not fits or not contract.function:
                self.complain(
                    "A205",
                    "a rule over a class that preserves the function may assume `unread(g)`, "
                    "where g takes some channels, or `repeated(g)`, where it merges some; one "
                    "over a pattern, `node.weight == ...`",
                    said.span,
                )
            else:
                found[what] = given
        return found

    def _body(
        self, parts: Clauses, steps: Sequence[Clauses], label: t.Ident
    ) -> Rewriting | Reshaping | None:
        if "over" in parts:
            return self._reshaping(parts["over"][0], steps, label)
        missing = [kind for kind in ("match", "replace") if kind not in parts]
        for kind in missing:
            self.complain("A202", f"the rule has no `{kind}` part", label.span)
        if missing:
            return None
        before = len(self.errors)
        match, replacement = (self._side(parts[kind][0]) for kind in ("match", "replace"))
        bare = [name for name, o in match.bindings.items() if o.node is None]
        if not (match.nodes or bare) and len(self.errors) == before:
            self.complain("A202", "the rule matches nothing", label.span)
        elif len(bare) > (not match.nodes) and len(self.errors) == before:
            text = f"`{bare[-1]}` is another name for what the left side does not make"
            hint = "`match { y = x }`, alone, stands for any tensor"
            self.complain("A209", text, label.span, hint)
        if len(self.errors) > before:
            return None  # what follows from a wrong pattern is not worth reporting
        lets: list[tuple[str, t.Expr]] = []
        weights: dict[str, t.Expr] = {}
        for clause in parts.get("weights", []):
            for child in clause.children:
                statement = self.reader.statement(child)
                if isinstance(statement, t.Let):
                    lets.append((statement.name.text, statement.value))
                elif isinstance(statement, t.Bind):
                    self._target(statement, replacement, weights)
                    weights[statement.targets[0].text] = statement.value
        root = match.nodes[-1].name if match.nodes else None
        last = [name for name, o in match.bindings.items() if o.node == root]
        if last and not any(name in replacement.bindings for name in last):
            text = f"`{last[0]}` is matched but not defined by the right side"
            self.complain("A206", text, label.span)
        said = [self.reader.expression(c.children[0]) for c in parts.get("assumes", [])]
        assumes = tuple(e for e in said if isinstance(e, t.Compare))
        return Rewriting(match, replacement, tuple(lets), tuple(weights.items()), assumes)

    def _side(self, clause: Tree[Token]) -> Pattern:
        statements = [
            self.reader.statement(s)
            for s in clause.children
            if isinstance(s, Tree) and kind_of(s) != "where"
        ]
        return PatternReader(self.ops, self.errors).read(statements)

    def _target(self, statement: t.Bind, right: Pattern, given: Mapping[str, t.Expr]) -> None:
        target = statement.targets[0]
        name, _, role = target.text.rpartition(".")
        node = right.node(name)
        if len(statement.targets) > 1 or target.text in given:
            self.complain("A207", "a weight is given one value, by one statement", statement.span)
        elif node is None:
            self.complain("A207", f"the right side has no `{name or target.text}`", target.span)
        elif role not in {p.role for p in self.ops[node.op].params}:
            roles = ", ".join(p.role for p in self.ops[node.op].params) or "none"
            self.complain(
                "A207", f"`{node.op}` has no parameter `{role}`", target.span, f"it has: {roles}"
            )

    def _reshaping(
        self, over: Tree[Token], steps: Sequence[Clauses], label: t.Ident
    ) -> Reshaping | None:
        variable, site = (self.reader.ident(c) for c in over.children[:2])
        made = [self._step(clauses, label) for clauses in steps]
        whole = tuple(step for step in made if step is not None)
        for number, step in enumerate(whole):
            makers = makers_in(step)
            if len(makers) != 1:
                text = "a rule over a class needs one map over its size, in each of its steps"
                self.complain("A213", text, step.produce.span)
            elif number and MAKERS[makers[0]].reads:
                text = f"`{makers[0]}` makes the map of a rule's first step"
                self.complain("A213", text, step.produce.span)
        return Reshaping(variable.text, site.text, whole) if len(whole) == len(made) else None

    def _step(self, clauses: Clauses, label: t.Ident) -> Step | None:
        acts: dict[str, t.Expr] = {}
        for kind in ACTS:
            if kind in clauses:
                acts[kind] = self.reader.expression(clauses[kind][0].children[1])
            else:
                self.complain("A202", f"a rule over a class says what members {kind}", label.span)
        lets = tuple(
            (let.name.text, let.value)
            for let in (self.reader.statement(c) for c in clauses.get("let", []))
            if isinstance(let, t.Let)
        )
        return Step(lets, **acts) if len(acts) == len(ACTS) else None
