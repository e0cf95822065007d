"""Rules over a class: one lemma for each way in which a class can meet an operator.

The lemma says: if the operands are gathers of the old operands along their maps, and the
weights what the rule makes of them, then the results are gathers of the old results along
theirs (and equal to them where the class ends). Which axes can change follows from the
signatures. All axes that can change together do so at once, each with a map of its own; a map
may be the identity, which is a lemma of its own. ``docs/proof.md`` has the induction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations, product
from typing import Any

import numpy as np

from archir.ir.types import AttrValue
from archir.lang import tree as t
from archir.ops.infer import Instance, bind_attrs, equations_of, instance
from archir.ops.record import Kind, Law, Mode, Op, OpSet, Sample
from archir.ops.signature import Axis, Expanded, Star
from archir.proof.symbols import Along, Symbols, UnspokenError
from archir.proof.terms import Application, Constant, Fact, Formula, Goal, Variable, apply
from archir.proof.vocabulary import buffers, layout, use
from archir.rewrite.rule import Reshaping, Rule
from archir.weights.terms import IndexMap


@dataclass(frozen=True)
class Lemma:
    """A goal, and the sample that gives its variables sizes when it is audited."""

    goal: Goal
    op: str
    sample: Sample | None = None
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)


def lemmas(rule: Rule, ops: OpSet, mode: Mode) -> list[Lemma]:
    """Every lemma that a rule over a class needs in a mode.

    Raises:
        UnspokenError: what the rule does cannot be said in the prover's terms.
    """
    body = rule.body
    assert isinstance(body, Reshaping)
    found = list(_identity(rule, body))
    for op in ops.values():
        if mode == "train" and Law.RANDOM_IN_TRAINING in op.laws:
            continue  # the contract in training: no active dropout in the region
        done: set[object] = set()
        for sample in _samples(op):
            for attrs in _variants(op, sample):
                use_of = instance(op, attrs, sample.inputs)
                axial = tuple(attrs[a.name] for a in op.attrs if a.kind is Kind.AXIS)
                present = tuple(p.role for p in op.present(attrs))
                key = (use_of.axes.operands, tuple(use_of.axes.params.items()), axial, present)
                if key in done:
                    continue
                done.add(key)
                for names in together(use_of.axes):
                    case = _Case(rule, op, sample, attrs, use_of, names)
                    found.extend(case.lemmas(mode))
    return found


def _samples(op: Op) -> Iterator[Sample]:
    """An operator's samples; where the order of operands is free, in every rotation."""
    for sample in op.samples:
        turns = len(sample.inputs) if Law.COMMUTATIVE in op.laws else 1
        for turn in range(turns):
            inputs = (*sample.inputs[turn:], *sample.inputs[:turn])
            yield Sample(inputs, sample.attrs)


def _variants(op: Op, sample: Sample) -> Iterator[dict[str, AttrValue]]:
    """A sample's attributes with each choice of the parameters that may be absent."""
    attrs = bind_attrs(op, sample.attrs, sample.inputs)
    flags = list(dict.fromkeys(p.when for p in op.params if p.when is not None))
    for choice in product((True, False), repeat=len(flags)):
        yield {**attrs, **dict(zip(flags, choice, strict=True))}


def changeable(axes: Expanded) -> list[str]:
    """The names that a class can stand for: not opaque, and not reduced over."""
    operand = {n for shape in axes.operands for axis in shape for n in axis.names()}
    opaque = {n for shape in axes.operands for a in shape if a.opaque for n in a.names()}
    results = {n for shape in axes.results for axis in shape for n in axis.names()}
    params = {n for shape in axes.params.values() for axis in shape for n in axis.names()}
    names = dict.fromkeys(
        n
        for shape in (*axes.operands, *axes.params.values())
        for axis in shape
        for n in axis.names()
    )
    return [
        n for n in names if n not in opaque and (n in results or (n in params and n in operand))
    ]


def together(axes: Expanded) -> list[frozenset[str]]:
    """The largest sets of names that can change at once: at most one in each product."""
    names = changeable(axes)
    shapes = (*axes.operands, *axes.params.values(), *axes.results)
    clashes = {
        frozenset(pair)
        for shape in shapes
        for axis in shape
        for term in axis.terms
        for pair in combinations([f for f in term if f in names], 2)
    }
    sets: list[frozenset[str]] = []
    for size in range(len(names), 0, -1):
        for chosen in combinations(names, size):
            whole = frozenset(chosen)
            if any(clash <= whole for clash in clashes) or any(whole < s for s in sets):
                continue
            sets.append(whole)
    return sets


def _identity(rule: Rule, body: Reshaping) -> Iterator[Lemma]:
    """What the rule does along the identity map changes nothing."""
    whole = apply("every", Variable("n"))
    for action in ("produce", "carry", "consume"):
        symbols = _symbols(rule, body)
        symbols.along = Along(Variable("w"), 0, whole)
        goal = Goal(f"identity map, {action}", symbols.term(getattr(body, action)), Variable("w"))
        yield Lemma(goal, "")


def _symbols(rule: Rule, body: Reshaping) -> Symbols:
    symbols = Symbols(weights={"w"}, tensors={}, names={f"size({body.variable})": Variable("n")})
    symbols.names.update({p.name: Variable(p.name) for p in rule.parameters})
    for name, expression in body.lets:
        if isinstance(expression, t.Call) and expression.callee.text == "replicate":
            symbols.maps.add(name)
        else:
            symbols.names[name] = symbols.term(expression)
    if not symbols.maps:
        raise UnspokenError("the rule makes no map that the prover knows")
    return symbols


@dataclass
class _Case:
    """One operator, one signature, one set of names that change."""

    rule: Rule
    op: Op
    sample: Sample
    attrs: Mapping[str, AttrValue]
    use: Instance
    names: frozenset[str]

    @property
    def from_end(self) -> bool:
        """Whether axes are counted from the end: where operands are aligned there."""
        axial = any(a.kind is Kind.AXIS for a in self.op.attrs)
        leading = isinstance(self.op.signature, str) and self.op.signature.split("[")[1].startswith(
            "..."
        )
        return leading or (len(self.sample.inputs) > 1 and not axial)

    def lemmas(self, mode: Mode) -> Iterator[Lemma]:
        axes = self.use.axes
        old = [Variable(f"x{j}") for j in range(len(axes.operands))]
        new = [self.gathered(x, shape) for x, shape in zip(old, axes.operands, strict=True)]
        params: dict[str, Formula] = {}
        mapped: dict[str, Formula] = {}
        for role in layout(self.op).roles:
            if role in self.use.params:
                params[role] = Variable(role)
                mapped[role] = self.acted(role, params[role])
        before, after = self.attributes(changed=False), self.attributes(changed=True)
        left = use(self.op, new, after, mapped)
        right = use(self.op, old, before, params)
        facts = tuple(self.facts(old, new))
        label = f"{self.op.name} {' '.join(sorted(self.names))}"
        absent = [p.role for p in self.op.params if p.role not in self.use.params and p.when]
        label += f" without {' '.join(absent)}" if absent else ""
        if self.sample.inputs:
            label += f" (rank {', '.join(str(s.rank) for s in self.sample.inputs)})"
        for port, shape in enumerate(axes.results):
            goal = Goal(
                label + (f" #{port}" if len(axes.results) > 1 else ""),
                left[port],
                self.gathered(right[port], shape),
                facts,
            )
            yield Lemma(goal, self.op.name, self.sample, self.attrs)
        if mode == "train":
            moved = buffers(self.op, new, after, mapped)
            for role, term in buffers(self.op, old, before, params).items():
                goal = Goal(f"{label}, new {role}", moved[role], self.acted(role, term), facts)
                yield Lemma(goal, self.op.name, self.sample, self.attrs)

    def number(self, index: int, rank: int) -> int:
        return index - rank if self.from_end else index

    def gathered(self, x: Formula, shape: Sequence[Axis]) -> Formula:
        for index, axis in enumerate(shape):
            held = self.map(axis)
            if held is not None:
                x = apply("take", x, held, self.number(index, len(shape)))
        return x

    def acted(self, role: str, term: Formula) -> Formula:
        """What the rule makes of a parameter, axis by axis."""
        body = self.rule.body
        assert isinstance(body, Reshaping)
        operand = {n for s in self.use.axes.operands for a in s for n in a.names()}
        results = {n for s in self.use.axes.results for a in s for n in a.names()}
        for index, axis in enumerate(self.use.axes.params[role]):
            held = self.map(axis)
            if held is None:
                continue
            kinds = {
                ("carry" if n in results else "consume") if n in operand else "produce"
                for n in axis.names()
                if n in self.names
            }
            if len(kinds) != 1:
                raise UnspokenError(f"an axis of `{self.op.name}` is produced and read at once")
            symbols = _symbols(self.rule, body)
            symbols.along = Along(term, index, held)
            term = symbols.term(getattr(body, kinds.pop()))
        return term

    def map(self, axis: Axis) -> Formula | None:
        """The map of an axis: that of the name that changes, spread over the rest of the axis."""
        pieces = [self.spread(term, axis) for term in axis.terms]
        if all(piece is None for piece in pieces):
            return None
        held: list[Formula] = []
        for piece, term in zip(pieces, axis.terms, strict=True):
            held.append(piece or apply("every", self.extent(list(term))))
        return reduce(lambda a, b: apply("join", a, b), held)

    def spread(self, term: Sequence[str | int], axis: Axis) -> Formula | None:
        changed = [f for f in term if f in self.names]
        if not changed:
            return None
        (name,) = changed
        held = Variable(f"map {name}")
        if len(term) == 1:
            return held
        at = term.index(name)
        first = self.flattened(term)
        if first is not None:
            x = Variable("x0")
            start, place = Constant(first), Constant(first + at)
            return apply("repeat", held, apply("before", x, start, place), apply("after", x, place))
        return apply("repeat", held, self.extent(term[:at]), self.extent(term[at + 1 :]))

    def flattened(self, term: Sequence[str | int]) -> int | None:
        """The first axis of a product that is the last axes of the first operand, in order."""
        if not self.use.axes.operands:
            return None
        shape = [a.terms for a in self.use.axes.operands[0]]
        wanted = [((f,),) for f in term]
        start = len(shape) - len(wanted)
        return start if start >= 0 and shape[start:] == wanted else None

    def extent(self, term: Sequence[str | int]) -> Formula:
        sizes = [self.size(f) for f in term]
        return reduce(lambda a, b: apply("times", a, b), sizes) if sizes else Constant(1)

    def size(self, factor: str | int) -> Formula:
        if isinstance(factor, int):
            return Constant(factor)
        for left, attr in equations_of(self.op):
            if isinstance(left, Axis) and left.terms == ((factor,),):
                return Variable(f"{self.op.name}.{attr}")
        return Variable(f"size {factor}")

    def attributes(self, *, changed: bool) -> dict[str, Formula]:
        """The attributes: those that state a size that changes are brought up to date."""
        end = "length" if changed else "source"
        out: dict[str, Formula] = {}
        for attr in self.op.attrs:
            value = self.attrs[attr.name]
            out[attr.name] = Variable(f"{self.op.name}.{attr.name}")
            if attr.kind is Kind.AXIS:
                out[attr.name] = Constant(value)
        for left, name in equations_of(self.op):
            if isinstance(left, Star):
                spelled = self.use.axes.stars[left.name]
                if self.names.intersection(spelled):
                    sizes = [apply(end, Variable(f"map {n}")) for n in spelled]
                    out[name] = Application("list", tuple(sizes))
            elif len(left.names()) == 1 and left.names()[0] in self.names:
                out[name] = apply(end, Variable(f"map {left.names()[0]}"))
        return out

    def facts(self, old: Sequence[Variable], new: Sequence[Formula]) -> Iterator[Fact]:
        body = self.rule.body
        assert isinstance(body, Reshaping)
        for name in sorted(self.names):
            yield Fact("onto", (Variable(f"map {name}"),))
        for attr in self.op.attrs:
            if attr.kind is Kind.FLOAT:
                yield Fact("scalar", (Variable(f"{self.op.name}.{attr.name}"),))
        if not self.from_end:
            return
        rank = max((len(s) for s in self.use.axes.results), default=0)
        for x, term, shape in zip(old, new, self.use.axes.operands, strict=True):
            for place in range(-rank, 0):
                if -place > len(shape) or not shape[place].names():
                    yield from (Fact("stretches", (x, Constant(place))) for x in {x, term})


def audit_values(lemma: Lemma, ops: OpSet, draw: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Values for a lemma's variables, of the sizes of its sample. ``draw(shape)`` makes tensors."""
    if lemma.sample is None:
        return {"n": 4, "w": draw((4, 3))}
    op = ops[lemma.op]
    use_of = instance(op, lemma.attrs, lemma.sample.inputs)
    values: dict[str, Any] = {f"{op.name}.{k}": v for k, v in lemma.attrs.items()}
    for number, type_ in enumerate(lemma.sample.inputs):
        values[f"x{number}"] = draw(type_.shape)
    for role, type_ in use_of.params.items():
        values[role] = draw(type_.shape)
    for name, size in use_of.sizes.items():
        assert isinstance(size, int)
        values[f"size {name}"] = size
        extra = rng.integers(0, size, 2)
        values[f"map {name}"] = IndexMap(
            rng.permutation(np.concatenate([np.arange(size), extra])), size
        )
    return values
