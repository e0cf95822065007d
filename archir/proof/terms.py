"""Terms of the prover: operators, weight functions and numbers in one language.

Tensors, weights, index maps and attributes are all terms of one sort; what a term means is
said once, in :mod:`archir.proof.vocabulary`, by evaluating it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from archir.ir.types import AttrValue


@dataclass(frozen=True, slots=True)
class Variable:
    """Something that is not looked into: a tensor, a weight, a map, an attribute."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, true, false, a string; ``None`` is an absent tensor."""

    value: AttrValue

    def __str__(self) -> str:
        if self.value is None or isinstance(self.value, bool):
            return str(self.value).lower()
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Application:
    """A head applied to terms."""

    head: str
    args: tuple[Formula, ...]

    def __str__(self) -> str:
        return f"{self.head}({', '.join(map(str, self.args))})"


Formula = Variable | Constant | Application
NONE = Constant(None)


@dataclass(frozen=True, slots=True)
class Fact:
    """A relation that holds between terms (``equal`` makes two terms one)."""

    relation: str
    args: tuple[Formula, ...]

    def __str__(self) -> str:
        return f"{self.relation}({', '.join(map(str, self.args))})"


@dataclass(frozen=True)
class Goal:
    """Two terms to be proved equal, from facts.

    ``seeds`` are further terms that a proof may need to look at.
    """

    name: str
    left: Formula
    right: Formula
    facts: tuple[Fact, ...] = ()
    seeds: tuple[Formula, ...] = ()


def apply(head: str, *args: Formula | AttrValue) -> Application:
    """A head applied to terms; plain values become constants."""
    return Application(head, tuple(_formula(a) for a in args))


def _formula(value: Formula | AttrValue) -> Formula:
    return value if isinstance(value, Variable | Constant | Application) else Constant(value)


def parts(term: Formula) -> Iterator[Formula]:
    """A term and all terms in it."""
    stack: list[Formula] = [term]
    while stack:
        top = stack.pop()
        yield top
        if isinstance(top, Application):
            stack.extend(top.args)


def variables(term: Formula) -> set[str]:
    """The names of the variables of a term."""
    return {part.name for part in parts(term) if isinstance(part, Variable)}


def replaced(term: Formula, values: Mapping[str, Formula]) -> Formula:
    """A term with variables replaced."""
    if isinstance(term, Variable):
        return values.get(term.name, term)
    if isinstance(term, Application):
        return Application(term.head, tuple(replaced(a, values) for a in term.args))
    return term
