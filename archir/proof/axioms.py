"""Axioms: the named laws that proofs rest on, read from ``.axiom`` files.

An axiom speaks of declared variables. ``for F: idempotent`` makes it a schema with one law for
each operator (or function) of that family. ``for F: mapped`` and the like are schemas over what
signatures say: one law for each name of each signature of which it is said; ``F(operand =
take(g))`` is the operator's use with its operands gathered along the name. Attributes that a use
does not state stand for anything, and are the same on both sides. A law is used from left to
right. One that states no equation concludes a fact about a map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedInput

from archir.diag import ArchirError, Diagnostic, Source, Span, error
from archir.lang import tree as t
from archir.lang.convert import Reader, kind_of
from archir.ops.record import Kind, Law, Mode, Op, OpSet
from archir.proof.axiom_texts import axiom_files, texts_hash, texts_of
from archir.proof.changes import CLAIMS, MAP, Act, Change, changes
from archir.proof.symbols import FILLS
from archir.proof.terms import (
    NONE,
    Application,
    Constant,
    Fact,
    Formula,
    Variable,
    apply,
    parts,
    variables,
)
from archir.proof.vocabulary import (
    CHANNELWISE,
    FOLDED,
    MERGING,
    MOVING,
    PROOF_FUNCTIONS,
    RELATIONS,
    head_of,
    layout,
)
from archir.rewrite.library import GROUP
from archir.weights.functions import FUNCTIONS

SCALARS = ("axis", "number", "int", "kernel", "steps", "margin", "shape")
FAMILIES = (
    "idempotent",
    "elementwise",
    "homogeneous",
    "channelwise",
    "moving",
    "merging",
    *CLAIMS,
)
_INFIX = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}


@dataclass(frozen=True, slots=True)
class Dimension:
    """An axis of a declared tensor: a product of names and numbers; a star, for several axes."""

    factors: tuple[str | int, ...]
    star: bool = False


@dataclass(frozen=True, slots=True)
class Declared:
    """What a variable of an axiom is: a tensor of a shape, a map between sizes, or a scalar."""

    name: str
    shape: tuple[Dimension, ...] | None = None
    map: tuple[str, str] | None = None
    kind: str = ""


@dataclass(frozen=True)
class Lawful:
    """One law, ready to be used: an axiom, or one member of a schema's family."""

    name: str
    axiom: str
    modes: tuple[Mode, ...]
    left: Formula
    right: Formula
    conditions: tuple[Fact, ...]
    declared: tuple[Declared, ...]
    conclusion: Fact | None = None
    """What follows, where the law is no equation; its sides are then the fact's term."""
    changes: tuple[Change, ...] = ()
    """The uses of an operator that a law over signatures speaks of."""
    short: frozenset[str] = frozenset()
    """Parameters of such a use that have the length of the map."""


@dataclass(frozen=True)
class Axiom:
    """An axiom as it stands in its file."""

    name: str
    doc: str
    modes: tuple[Mode, ...]
    declared: tuple[Declared, ...]
    sides: t.Compare | t.Call
    where: tuple[t.Expr, ...]
    text: str
    span: Span

    def laws(self, ops: OpSet) -> list[Lawful]:
        """The laws it stands for, with these operators.

        Raises:
            ArchirError: A411, it says something that has no meaning.
        """
        families = [d for d in self.declared if d.kind in FAMILIES]
        if any(d.kind in CLAIMS for d in families):
            return _claimed(self, ops, families)
        found: list[Lawful] = []
        choices = [members(d.kind, ops, self.modes) for d in families]
        for chosen in product(*choices):
            held = {d.name: member for d, member in zip(families, chosen, strict=True)}
            name = f"{self.name}[{', '.join(chosen)}]" if chosen else self.name
            found.append(_Speller(self, ops, held).law(name))
        return found


def members(family: str, ops: OpSet, modes: Sequence[Mode]) -> list[str]:
    """The operators, functions or conditions of a family."""
    fixed = {
        "channelwise": CHANNELWISE,
        "moving": MOVING,
        "merging": MERGING,
    }
    if family in fixed:
        return list(fixed[family])
    law = {"homogeneous": Law.POSITIVELY_HOMOGENEOUS}.get(family) or Law(family)
    return [
        op.name
        for op in ops.values()
        if law in op.laws
        and op.operands == (1, 1)
        and not op.params
        and not ("train" in modes and Law.RANDOM_IN_TRAINING in op.laws)
    ]


# --- what signatures say ------------------------------------------------------------------------


def _claimed(axiom: Axiom, ops: OpSet, families: Sequence[Declared]) -> list[Lawful]:
    """The laws of a schema over signatures, one for each value that a use gives."""
    speller = _Speller(axiom, ops, {})
    if len(families) != 1 or not isinstance(axiom.sides, t.Compare):
        raise speller.wrong("it is no equation over one family", axiom.sides)
    (family,) = families
    acts = [speller.acts(side, family.name) for side in (axiom.sides.left, axiom.sides.right)]
    if "result" in acts[0] or "operand" in acts[1]:
        raise speller.wrong("operands are gathered on the left, results on the right", axiom.sides)
    conditions = tuple(speller.condition(e) for e in axiom.where)
    found: dict[tuple[Formula | Fact, ...], Lawful] = {}
    for change in (c for op in ops.values() for c in changes(op)):
        if change.claim == family.kind:
            for law in _laws(axiom, change, acts, conditions):
                key = (law.left, law.right, *law.conditions)
                same = found.get(key)
                found[key] = replace(same, changes=(*same.changes, change)) if same else law
    return list(found.values())


def _laws(
    axiom: Axiom, change: Change, acts: Sequence[Mapping[str, Act]], conditions: tuple[Fact, ...]
) -> Iterator[Lawful]:
    left, right = acts
    plain = {role: Variable(role) for role in change.roles}
    short, long = (
        change.outcome(
            side.get("operand"), change.acted(plain, side.get("parameter")), short=side is left
        )
        for side in acts
    )
    fits = Fact("signed", (Constant(change.signature), apply("operands", *change.operands)))
    random = Law.RANDOM_IN_TRAINING in change.op.laws
    for name, (term, axes) in long.items():
        yield Lawful(
            f"{axiom.name}[{change.label}{' ' if name else ''}{name}]",
            axiom.name,
            tuple(m for m in axiom.modes if m == "train" or not name.startswith("new"))
            if not random
            else ("eval",),
            short[name][0],
            change.along(term, axes, right.get("result")),
            (*conditions, fits),
            (),
            changes=(change,),
            short=frozenset(r for r in change.roles if change.holds(r) and "parameter" in right),
        )


class _Speller:
    """Turns the expressions of an axiom into terms."""

    def __init__(self, axiom: Axiom, ops: OpSet, family: Mapping[str, str]) -> None:
        self.axiom, self.ops, self.family = axiom, ops, family
        self.names = {d.name for d in axiom.declared} - set(family)

    def law(self, name: str) -> Lawful:
        conclusion: Fact | None = None
        sides = self.axiom.sides
        if isinstance(sides, t.Call):
            conclusion = self.condition(sides)
            left = right = conclusion.args[0]
        else:
            left, right = self.term(sides.left), self.term(sides.right)
        conditions = tuple(self.condition(e) for e in self.axiom.where)
        bound = variables(left)
        for fact in conditions:
            if fact.relation == "equal":
                bound |= {v for a in fact.args for v in variables(a)}
        loose = sorted(variables(right) - bound)
        if loose:
            raise self.wrong(f"`{loose[0]}` stands on the right alone", sides)
        return Lawful(
            name,
            self.axiom.name,
            self.axiom.modes,
            left,
            right,
            conditions,
            tuple(d for d in self.axiom.declared if d.kind not in FAMILIES),
            conclusion,
        )

    def acts(self, side: t.Expr, family: str) -> dict[str, Act]:
        """What a side of a schema over signatures does, to operands, parameters and results."""
        if not isinstance(side, t.Call) or side.callee.text != family:
            raise self.wrong(f"both sides are uses of `{family}`", side)
        found: dict[str, Act] = {}
        for argument in side.arguments:
            where = argument.keyword.text if argument.keyword else ""
            if where not in ("operand", "parameter", "result"):
                raise self.wrong("`operand`, `parameter` or `result` is what a map acts on", side)
            found[where] = self.act(argument.value)
        return found

    def act(self, expression: t.Expr) -> Act:
        """`take(g)`: what is done along an axis, with the axis's map."""
        fits = (
            isinstance(expression, t.Call)
            and expression.callee.text in (*MOVING, "fibre_sum")
            and [self.term(a.value) for a in expression.arguments] == [MAP]
        )
        if not fits:
            raise self.wrong("this is nothing that `g` does along an axis", expression)
        assert isinstance(expression, t.Call)
        head = expression.callee.text
        return lambda term, held, axis: apply(head, term, held, axis)

    def wrong(self, text: str, where: t.Expr) -> ArchirError:
        return error("A411", f"axiom `{self.axiom.name}`: {text}", span=where.span)

    def term(self, expression: t.Expr) -> Formula:
        match expression:
            case t.Paren():
                return self.term(expression.inner)
            case t.Literal():
                return Constant(expression.value)
            case t.Unary(op="-", operand=t.Literal(value=int() | float() as value)):
                return Constant(-value)
            case t.Name():
                if expression.path not in self.names:
                    raise self.wrong(f"`{expression.path}` is not declared", expression)
                return Variable(expression.path)
            case t.Chain():
                term = self.term(expression.first)
                for sign, part in expression.rest:
                    if sign not in _INFIX:
                        raise self.wrong(f"`{sign}` has no meaning here", expression)
                    term = apply(_INFIX[sign], term, self.term(part))
                return term
            case t.Call():
                return self.call(expression)
        raise self.wrong("a law cannot hold this", expression)

    def call(self, call: t.Call) -> Formula:
        head = self.family.get(call.callee.text, call.callee.text)
        if head == "identity":
            kernel = (
                self.term(call.arguments[1].value) if len(call.arguments) > 1 else apply("tuple")
            )
            return apply("kernel_identity", self.term(call.arguments[0].value), kernel)
        if head in FILLS:
            sizes = apply("list", *(self.term(a.value) for a in call.arguments))
            return apply("fill", FILLS[head], sizes)
        name = head.rpartition(".")[0] or head
        if name in self.ops and name not in (*FUNCTIONS, *FOLDED):
            return self.use(head, self.ops[name], call)
        if name in self.ops and any(a.keyword is not None for a in call.arguments):
            # A weight function of that name has no attributes to state.
            return self.use(head_of(self.ops[name]), self.ops[name], call)
        if head not in FUNCTIONS and head not in PROOF_FUNCTIONS:
            raise self.wrong(f"there is no `{head}`", call)
        return Application(head, tuple(self.term(a.value) for a in call.arguments))

    def use(self, head: str, op: Op, call: t.Call) -> Formula:
        held = layout(op)
        operands = [self.term(a.value) for a in call.arguments if a.keyword is None]
        stated = {a.keyword.text: a.value for a in call.arguments if a.keyword is not None}
        known = {a.name for a in held.attrs} | set(held.roles)
        for name, value in stated.items():
            if name not in known:
                raise self.wrong(f"`{op.name}` has no `{name}` here", value)
        tail = [self.attribute(op, a.name, a.kind, stated.get(a.name)) for a in held.attrs]
        tail += [
            self.term(stated[role]) if role in stated else Variable(f"{op.name}.{role}")
            for role in held.roles
        ]
        return Application(head, (*operands, *tail))

    def attribute(self, op: Op, name: str, kind: Kind, value: t.Expr | None) -> Formula:
        if value is None:
            return Variable(f"{op.name}.{name}")
        term = self.term(value)
        if kind in (Kind.SPATIAL, Kind.PADDING) and isinstance(term, Constant):
            return apply("spatial", term, Variable("spatial rank"))
        return term

    def condition(self, expression: t.Expr) -> Fact:
        if isinstance(expression, t.Compare):
            sides = (self.term(expression.left), self.term(expression.right))
            if expression.op == "!=" and NONE in sides:
                return Fact("given", (sides[0] if sides[1] == NONE else sides[1],))
            names = {"==": "equal", "!=": "differ"}
            if expression.op in names:
                return Fact(names[expression.op], sides)
        if isinstance(expression, t.Call):
            relation = self.family.get(expression.callee.text, expression.callee.text)
            args = tuple(self.term(a.value) for a in expression.arguments)
            if relation in RELATIONS and len(args) == RELATIONS[relation].__code__.co_argcount:
                return Fact(relation, args)
        raise self.wrong("this is no side condition", expression)


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark.open_from_package(
        "archir.grammar", "axiom.lark", parser="lalr", start="axioms", propagate_positions=True
    )


def parse_axioms(source: Source) -> list[Axiom]:
    """The axioms of a file.

    Raises:
        ArchirError: A410 (not the syntax of axioms), A411 (what has no meaning).
    """
    try:
        tree = _parser().parse(source.text)
    except UnexpectedInput as reason:
        at = max(getattr(reason, "pos_in_stream", None) or 0, 0)
        span = Span(source, at, min(at + 1, len(source.text)))
        raise error(
            "A410",
            "this is not expected in a file of axioms",
            span=span,
            hint='an axiom is `axiom name in eval { "text" for x[n, c] left == right where ... }`',
        ) from None
    found: list[Axiom] = []
    wrong: list[Diagnostic] = []
    for child in tree.children:
        assert isinstance(child, Tree)
        try:
            found.append(_axiom(child, Reader(source), source))
        except ArchirError as failure:
            wrong.extend(failure.diagnostics)
    for number, axiom in enumerate(found):
        if any(other.name == axiom.name for other in found[:number]):
            wrong.append(Diagnostic("A411", f"two axioms are named `{axiom.name}`", axiom.span))
    if wrong:
        raise ArchirError(*wrong)
    return found


def _axiom(tree: Tree[Token], reader: Reader, source: Source) -> Axiom:
    children: list[Tree[Token] | Token | None] = list(tree.children)
    name, *rest = children
    assert isinstance(name, Token)
    label = reader.ident(name)
    modes: list[str] = []
    doc = ""
    declared: tuple[Declared, ...] = ()
    where: tuple[t.Expr, ...] = ()
    sides: t.Expr | None = None
    for child in rest:
        if child is None:
            continue
        if isinstance(child, Token) and child.type == "PATH":
            modes.append(str(child))
        elif isinstance(child, Token) and child.type == "DOC":
            doc = " ".join(str(child)[1:-1].split())
        elif isinstance(child, Tree) and kind_of(child) == "given":
            declared = tuple(_declared(c, reader) for c in child.children if isinstance(c, Tree))
        elif isinstance(child, Tree) and kind_of(child) == "where":
            where = tuple(reader.expression(e) for e in child.children)
        else:
            sides = reader.expression(child)
    for mode in modes:
        if mode not in ("eval", "train"):
            raise error("A411", f"axiom `{label.text}`: there is no mode `{mode}`", span=label.span)
    equation = isinstance(sides, t.Compare) and sides.op == "=="
    if not (equation or isinstance(sides, t.Call)):
        raise error("A411", f"axiom `{label.text}` is no equation and no fact", span=label.span)
    assert isinstance(sides, t.Compare | t.Call)
    ordered: tuple[Mode, ...] = tuple(m for m in ("eval", "train") if m in modes)
    span = reader.span(tree)
    text = source.text[span.start : span.end]
    return Axiom(label.text, doc, ordered, declared, sides, where, text, label.span)


def _declared(tree: Tree[Token], reader: Reader) -> Declared:
    label = reader.ident(tree.children[0])
    kind = kind_of(tree)
    if kind == "map":
        new, old = (str(c) for c in tree.children[1:])
        return Declared(label.text, map=(new, old))
    if kind == "scalar":
        what = str(tree.children[1])
        if what not in SCALARS + FAMILIES:
            known = ", ".join(SCALARS + FAMILIES)
            raise error(
                "A411", f"there is no kind `{what}`", span=label.span, hint=f"there are: {known}"
            )
        return Declared(label.text, kind=what)
    dims = [d for d in tree.children[1:] if isinstance(d, Tree)]
    return Declared(label.text, shape=tuple(_dimension(d) for d in dims))


def _dimension(tree: Tree[Token]) -> Dimension:
    kind = kind_of(tree)
    if kind == "rest":
        return Dimension(("_",), star=True)
    if kind == "star":
        return Dimension((str(tree.children[0]),), star=True)
    leaves = tree.scan_values(lambda v: isinstance(v, Token))
    factors: list[str | int] = [int(v) if str(v).isdigit() else str(v) for v in leaves]
    return Dimension(tuple(factors))


@dataclass(frozen=True)
class Axioms:
    """The axioms that proofs may use; a value, passed explicitly."""

    axioms: tuple[Axiom, ...]

    def hash_of(self, names: Iterable[str]) -> str:
        """sha256 over the texts of some of them, white space and comments folded."""
        texts = {n: text for a in self.axioms for n, text in texts_of(a.text).items()}
        digest = texts_hash(names, texts)
        assert digest is not None, "a proof can only use axioms that are there"
        return digest

    def laws(self, ops: OpSet) -> list[Lawful]:
        """All laws, schemas spelled out."""
        return [law for axiom in self.axioms for law in axiom.laws(ops)]

    def without(self, names: Iterable[str]) -> Axioms:
        """These axioms less some."""
        gone = set(names)
        return Axioms(tuple(a for a in self.axioms if a.name not in gone))


def axioms_in(folder: Traversable) -> list[Axiom]:
    """The axioms of every ``.axiom`` file of a folder, files in the order of their names."""
    return [a for file, text in axiom_files(folder) for a in parse_axioms(Source(file, text))]


def installed_axioms(points: Sequence[EntryPoint] | None = None) -> Axioms:
    """The axioms of all installed packages that offer rules.

    Raises:
        ArchirError: A410, A411, a file is wrong; A412, two axioms have one name.
    """
    found: dict[str, Axiom] = {}
    for point in entry_points(group=GROUP) if points is None else points:
        for axiom in axioms_in(files(point.value)):
            if found.setdefault(axiom.name, axiom) is not axiom:
                raise error("A412", f"two axioms are named `{axiom.name}`", span=axiom.span)
    return Axioms(tuple(found.values()))


def mentioned(law: Lawful) -> set[str]:
    """The heads that a law's left side needs."""
    return {p.head for p in parts(law.left) if isinstance(p, Application)}
