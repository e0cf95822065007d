"""One name of a signature changes: what the operator's use looks like then, as terms.

A signature claims something of each name in it: that entries along it are treated one by one, that
a parameter makes them, that they are summed over. The claims are axioms (schemas over every
operator's signatures, in ``laws.axiom``), tested on the operators' samples; lemmas of rules over a
class speak of the same uses. Both are spelled here.

Variables are those of the use as it stands on the long side of the map ``g``: operands ``x0``,
``x1``, parameters by role, attributes ``OPERATOR.ATTRIBUTE``. The other side is *gathered*: the
name's axes have the length of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import product
from typing import Literal, get_args

from archir.ir.types import AttrValue
from archir.ops.infer import Instance, OpError, bind_attrs, equations_of, instance
from archir.ops.record import Attr, Kind, Law, Op, Sample
from archir.ops.signature import Axis, Expanded, Factor, Product, Star
from archir.proof.terms import Application, Constant, Formula, Variable, apply
from archir.proof.vocabulary import buffers, layout, use

Claim = Literal["mapped", "averaged", "produced", "consumed", "contracted", "rescaled", "unread"]
CLAIMS: tuple[Claim, ...] = get_args(Claim)
"""What a signature can say of a name; ``docs/proof.md`` explains each."""

Act = Callable[[Formula, Formula, int], Formula]
"""What becomes of a tensor along an axis, given the axis's map."""
MAP = Variable("g")


def gathered(term: Formula, held: Formula, axis: int) -> Formula:
    """Entries gathered along an axis."""
    return apply("take", term, held, axis)


@dataclass(frozen=True, eq=False)
class Change:
    """A use of an operator, and the name that changes in it."""

    op: Op
    sample: Sample
    attrs: Mapping[str, AttrValue]
    use: Instance
    name: str
    claim: Claim

    @property
    def axes(self) -> Expanded:
        """The axes of the use."""
        return self.use.axes

    @cached_property
    def signature(self) -> str:
        """The operands' axes, as text."""
        return f"{' '.join(_written(axes) for axes in self.axes.operands)} -> []".strip()

    @property
    def label(self) -> str:
        """A name for people: the operator, the name that changes, the operands' ranks."""
        absent = [p.role for p in self.op.params if p.when and p.role not in self.use.params]
        without = f" without {' and '.join(absent)}" if absent else ""
        ranks = ", ".join(str(len(axes)) for axes in self.axes.operands)
        name = self.name.replace("...", "rest")
        return f"{self.op.name}.{name}{without}" + (f" (rank {ranks})" if ranks else "")

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """The parameters that take part in proofs."""
        return tuple(r for r in layout(self.op).roles if r in self.use.params)

    @cached_property
    def operands(self) -> tuple[Variable, ...]:
        """The operands of the long side."""
        return tuple(Variable(f"x{j}") for j in range(len(self.axes.operands)))

    def holds(self, role: str) -> bool:
        """Whether a parameter has an axis with the name."""
        return any(self.name in axis.names() for axis in self.axes.params[role])

    def along(self, term: Formula, shape: Sequence[Axis], act: Act | None) -> Formula:
        """A tensor, with something done to it along every axis that holds the name."""
        for index, axis in enumerate(shape):
            if act is not None and self.name in axis.names():
                term = act(term, self.spread(axis), index)
        return term

    def acted(self, params: Mapping[str, Formula], act: Act | None) -> dict[str, Formula]:
        """Parameters, with something done to them along the name."""
        return {r: self.along(term, self.axes.params[r], act) for r, term in params.items()}

    def outcome(
        self, operand: Act | None, params: Mapping[str, Formula], *, short: bool
    ) -> dict[str, tuple[Formula, tuple[Axis, ...]]]:
        """What the use gives: its results, and its buffers after a step of training, with axes.

        Args:
            operand: What is done to operands along the name.
            params: The parameters.
            short: Whether the axes have the length of the map, rather than its source's.
        """
        x = [
            self.along(v, axes, operand)
            for v, axes in zip(self.operands, self.axes.operands, strict=True)
        ]
        attrs = self.attributes(short=short)
        results = use(self.op, x, attrs, params, results=len(self.axes.results))
        found = {
            f"#{port}" if len(results) > 1 else "": (term, axes)
            for port, (term, axes) in enumerate(zip(results, self.axes.results, strict=True))
        }
        for role, term in buffers(self.op, x, attrs, params).items():
            found[f"new {role}"] = (term, self.axes.params[role])
        return found

    # --- maps and sizes -------------------------------------------------------------------------

    def spread(self, axis: Axis) -> Formula:
        """The map of a whole axis: that of the name, between what else the axis is made of."""
        pieces: list[Formula] = []
        for term in axis.terms:
            if self.name not in term:
                pieces.append(apply("every", self.extent(term)))
                continue
            at = term.index(self.name)
            whole = len(term) == 1
            before, after = self.extent(term[:at]), self.extent(term[at + 1 :])
            pieces.append(MAP if whole else apply("repeat", MAP, before, after))
        return reduce(lambda a, b: apply("join", a, b), pieces)

    def extent(self, term: Product, *, short: bool = False) -> Formula:
        """The size of a product of factors."""
        sizes = [self.size(f, short=short) for f in term]
        return _folded("times", sizes, 1)

    def measured(self, axis: Axis, *, short: bool) -> Formula:
        """The size of an axis."""
        return _folded("plus", [self.extent(t, short=short) for t in axis.terms], 0)

    def size(self, factor: Factor, *, short: bool = False) -> Formula:
        """The size of a factor: that of the changing name follows the map.

        Any other is read off an attribute, or off an operand of the long side. What neither tells
        is a variable: a parameter's axis, or the attribute that states the result's shape, leaves
        it no choice.
        """
        if isinstance(factor, int):
            return Constant(factor)
        if factor == self.name:
            return apply("length" if short else "source", MAP)
        return self._known(factor) or self._read(factor) or Variable(f"size {factor}")

    def _known(self, name: str) -> Formula | None:
        for left, attr in equations_of(self.op):
            if isinstance(left, Star):
                spelled = self.axes.stars[left.name]
                if name in spelled and isinstance(self.op.signature, str):
                    return apply("entry", Variable(f"{self.op.name}.{attr}"), spelled.index(name))
            elif left.terms == ((name,),):
                return Variable(f"{self.op.name}.{attr}")
        return None

    def _read(self, name: str) -> Formula | None:
        tensors = zip(self.operands, self.axes.operands, strict=True)
        places = [(x, j, axis) for x, axes in tensors for j, axis in enumerate(axes)]
        for x, index, axis in places:
            if axis.terms == ((name,),):
                return apply("size", x, index)
        alone = {a.terms[0][0] for _, _, a in places if len(a.terms) == 1 == len(a.terms[0])}
        for x, index, axis in places:
            others = [n for n in axis.names() if n not in (name, self.name)]
            told = all(n in alone or self._known(n) is not None for n in others)
            if axis.names().count(name) == 1 and told:
                return self._solved(apply("size", x, index), axis, name)
        return None

    def _solved(self, size: Formula, axis: Axis, name: str) -> Formula:
        """The size of the only unknown name of an axis."""
        for term in axis.terms:
            if name not in term:
                size = apply("minus", size, self.extent(term))
        (own,) = [term for term in axis.terms if name in term]
        rest = tuple(f for f in own if f != name)
        return apply("quotient", size, self.extent(rest)) if rest else size

    # --- attributes -----------------------------------------------------------------------------

    def attributes(self, *, short: bool) -> dict[str, Formula]:
        """The attributes: those that state a size of the name's follow it.

        What a signature is made from is the sample's; all else stands for anything.
        """
        out = {a.name: self._free(a) for a in self.op.attrs}
        for left, name in equations_of(self.op):
            if isinstance(left, Star):
                spelled = self.axes.stars[left.name]
                if self.name in spelled or not isinstance(self.op.signature, str):
                    sizes = tuple(self._entry(n, short=short) for n in spelled)
                    out[name] = Application("list", sizes)
            elif self.name in left.names():
                out[name] = self.measured(left, short=short)
        for held, name in self.op.rescale.items():
            if held == self.name and short:
                out[name] = apply("shared", out[name], MAP)
        if self.op.stated is not None:
            stated = self.attrs[self.op.stated]
            assert isinstance(stated, tuple)
            sizes = tuple(
                self.measured(axis, short=short)
                if isinstance(old, int) and old > 0
                else Constant(old)
                for old, axis in zip(stated, self.axes.results[0], strict=True)
            )
            out[self.op.stated] = Application("list", sizes)
        return out

    def _free(self, attr: Attr) -> Formula:
        tied = {name for _, name in equations_of(self.op)}
        open_ = isinstance(self.op.signature, str) or attr.kind is Kind.FLOAT or attr.name in tied
        value = self.attrs[attr.name]
        return Variable(f"{self.op.name}.{attr.name}") if open_ else Constant(value)

    def _entry(self, name: str, *, short: bool) -> Formula:
        shapes = (*self.axes.operands, *self.axes.results)
        if any(name in axis.names() for shape in shapes for axis in shape):
            return self.size(name, short=short)
        size = self.use.sizes[name]
        assert isinstance(size, int)
        return Constant(size)


def _folded(head: str, sizes: Sequence[Formula], neutral: int) -> Formula:
    return reduce(lambda a, b: apply(head, a, b), sizes) if sizes else Constant(neutral)


def _written(shape: Sequence[Axis]) -> str:
    return f"x[{', '.join(_axis(axis) for axis in shape)}]"


def _axis(axis: Axis) -> str:
    terms = [" ".join(map(str, term)) for term in axis.terms]
    text = " + ".join(terms).replace("...", "rest")
    return text if len(terms) == 1 and len(axis.terms[0]) == 1 else f"({text})"


# --- which names change, and what is claimed of them --------------------------------------------


def claims(op: Op, axes: Expanded) -> dict[str, Claim]:
    """What a signature says of each name that a class may stand for."""
    operand = [{n for axis in shape for n in axis.names()} for shape in axes.operands]
    read = {n for names in operand for n in names}
    opaque = {n for shape in axes.operands for a in shape if a.opaque for n in a.names()}
    level = {t[-1] for shape in axes.operands for a in shape if a.even for t in a.terms}
    made = {n for shape in axes.results for axis in shape for n in axis.names()}
    owned = {n for shape in axes.params.values() for axis in shape for n in axis.names()}
    found: dict[str, Claim] = {}
    for name in sorted((read | (owned & made)) - opaque - _rigid(op)):
        if name not in read:
            found[name] = "produced"
        elif name in made or (name in level and name not in owned):
            found[name] = "averaged" if name in level else "mapped"
        elif name in owned:
            found[name] = "consumed"
        elif name.startswith("_"):
            found[name] = "unread"
        elif name in op.rescale:
            found[name] = "rescaled"
        elif sum(name in names for names in operand) > 1:
            found[name] = "contracted"
    return found


def _rigid(op: Op) -> set[str]:
    """Names that share the attribute that states their size: none can change alone."""
    tied: dict[str, set[str]] = {}
    for left, attr in equations_of(op):
        if isinstance(left, Axis) and len(left.names()) == 1:
            tied.setdefault(attr, set()).update(left.names())
    return {name for names in tied.values() if len(names) > 1 for name in names}


@lru_cache(maxsize=1024)
def changes(op: Op) -> tuple[Change, ...]:
    """Every change in an operator's samples, with each choice of parameters that may be absent."""
    found: list[Change] = []
    for sample in _samples(op):
        for attrs in _variants(op, sample):
            try:
                held = instance(op, attrs, sample.inputs)
            except OpError:
                continue  # parameters that exclude each other
            for name, claim in claims(op, held.axes).items():
                if held.sizes[name] != 0:
                    found.append(Change(op, sample, attrs, held, name, claim))
    return tuple(found)


def _samples(op: Op) -> Iterator[Sample]:
    """An operator's samples; where the order of operands is free, in every rotation."""
    for sample in op.samples:
        turns = len(sample.inputs) if Law.COMMUTATIVE in op.laws else 1
        for turn in range(turns):
            inputs = (*sample.inputs[turn:], *sample.inputs[:turn])
            yield Sample(inputs, sample.attrs, sample.positive)


def _variants(op: Op, sample: Sample) -> Iterator[dict[str, AttrValue]]:
    attrs = bind_attrs(op, sample.attrs, sample.inputs)
    flags = list(dict.fromkeys(p.when for p in op.params if p.when is not None))
    for choice in product((True, False), repeat=len(flags)):
        yield {**attrs, **dict(zip(flags, choice, strict=True))}
