"""Axis signatures: what an operator's axes are called, and how they relate.

A signature names every axis of every operand, parameter and result, in the manner of
einops: ``conv x[n, (g i), *s] weight[(g o), i, *k] -> [n, (g o), *s']``. An axis is a sum of
products of names (``(a + b)`` for a concatenation, ``(c h w)`` for a flattening, the first
name slowest); ``*s`` stands for several axes, ``...`` for all that remain. ``!`` marks an axis
that is opaque: no gather commutes with the operator along it; ``~`` one that is averaged over
(of a product, its last name): gathers that take every entry equally often do. Entries along a
name that begins with ``_`` are not read at all (what a slice leaves out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files

from lark import Lark, Token, Tree

from archir.ir.dims import Size, product, quotient, total

Factor = str | int
Product = tuple[Factor, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A sum of products of axis names; ``opaque`` where no gather may pass.

    ``even``: only gathers that take every entry equally often.
    """

    terms: tuple[Product, ...]
    opaque: bool = False
    even: bool = False
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = tuple(f for term in self.terms for f in term if isinstance(f, str))
        object.__setattr__(self, "_names", names)

    def names(self) -> tuple[str, ...]:
        """The names in it, in order."""
        return self._names


@dataclass(frozen=True, slots=True)
class Star:
    """Several axes under one name, all opaque (or even) or none."""

    name: str
    opaque: bool = False
    even: bool = False


Shape = tuple[Axis | Star, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """A parsed signature, before the number of axes behind each star is known."""

    tensors: tuple[tuple[str, bool, Shape], ...]
    """Name, whether it may be absent, and shape of each operand and parameter."""
    results: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Expanded:
    """A signature with every star spelled out: plain axes only."""

    operands: tuple[tuple[Axis, ...], ...]
    params: Mapping[str, tuple[Axis, ...]]
    results: tuple[tuple[Axis, ...], ...]
    stars: Mapping[str, tuple[str, ...]]


class SignatureError(Exception):
    """The operands do not fit the signature; the text says how."""


@lru_cache(maxsize=1)
def _parser() -> Lark:
    text = files("archir.grammar").joinpath("signature.lark").read_text()
    return Lark(text, parser="lalr", start="signature")


@lru_cache(maxsize=4096)
def parse_signature(text: str) -> Signature:
    """Parse a signature."""
    tensors: list[tuple[str, bool, Shape]] = []
    results: list[Shape] = []
    for child in _parser().parse(text).children:
        assert isinstance(child, Tree)
        if child.data == "tensor":
            name, maybe, shape = child.children
            tensors.append((str(name), maybe is not None, _shape(shape)))
        else:
            results.append(_shape(child))
    return Signature(tuple(tensors), tuple(results))


def _shape(tree: Tree[Token] | Token) -> Shape:
    assert isinstance(tree, Tree)
    return tuple(_axis(axis) for axis in tree.children if isinstance(axis, Tree))


def _axis(tree: Tree[Token]) -> Axis | Star:
    if tree.data in ("rest", "closed", "level"):
        return Star("...", opaque=tree.data == "closed", even=tree.data == "level")
    if tree.data == "star":
        return Star(str(tree.children[0]))
    terms = _terms(tree.children[0])
    return Axis(terms, opaque=tree.data == "opaque", even=tree.data == "even")


def _terms(tree: Tree[Token] | Token) -> tuple[Product, ...]:
    assert isinstance(tree, Tree)
    if tree.data == "name":
        return ((str(tree.children[0]),),)
    if tree.data == "extent":
        return ((int(str(tree.children[0])),),)
    return tuple(
        tuple(f for factor in term.children for (only,) in [_terms(factor)] for f in only)
        for term in tree.children
        if isinstance(term, Tree)
    )


@lru_cache(maxsize=8192)
def expand(
    text: str, params: frozenset[str], ranks: tuple[int, ...], lengths: tuple[tuple[str, int], ...]
) -> Expanded:
    """Spell out the stars, given the operands' ranks (and lengths of stars known by attributes).

    Raises:
        SignatureError: an operand has too few or too many axes, or stars disagree.
    """
    signature = parse_signature(text)
    stars = dict(lengths)
    given = [(n, s) for n, _, s in signature.tensors if n not in params]
    for (name, shape), rank in zip(given, ranks, strict=True):
        fixed = sum(isinstance(axis, Axis) for axis in shape)
        names = [axis.name for axis in shape if isinstance(axis, Star)]
        if not names and rank != fixed:
            raise SignatureError(f"needs {fixed} axes in `{name}`, got {rank}")
        if names:
            length = stars.setdefault(names[0], rank - fixed)
            if rank - fixed != length or length < 0:
                raise SignatureError(f"needs {fixed + max(length, 0)} axes in `{name}`, got {rank}")
    for name in list(stars):
        stars.setdefault(name + "'", stars[name])
    spelled = {name: tuple(f"{name}{i}" for i in range(n)) for name, n in stars.items()}

    def flat(shape: Shape) -> tuple[Axis, ...]:
        out: list[Axis] = []
        for axis in shape:
            if isinstance(axis, Axis):
                out.append(axis)
            else:
                out.extend(Axis(((n,),), axis.opaque, axis.even) for n in spelled[axis.name])
        return tuple(out)

    return Expanded(
        tuple(flat(shape) for _, shape in given),
        {n: flat(shape) for n, _, shape in signature.tensors if n in params},
        tuple(flat(shape) for shape in signature.results),
        spelled,
    )


def measure(axis: Axis, sizes: Mapping[str, Size]) -> Size | None:
    """The size of an axis; None where a name in it is unknown or a sum cannot be collected."""
    terms: list[Size] = []
    for term in axis.terms:
        if any(isinstance(f, str) and f not in sizes for f in term):
            return None
        terms.append(product(sizes[f] if isinstance(f, str) else f for f in term))
    return terms[0] if len(terms) == 1 else total(terms)


def solve(axis: Axis, size: Size, sizes: dict[str, Size]) -> bool | None:
    """Bind the one unknown name of an axis so that it has a size.

    Returns True when the axis has that size (now), False when it cannot, and None when more
    than one name is still unknown.
    """
    known = measure(axis, sizes)
    if known is not None:
        return known == size
    unknown = [n for n in axis.names() if n not in sizes]
    if len(unknown) != 1:
        return None
    name = unknown[0]
    rest = size
    for term in axis.terms:
        if name not in term:
            part = product(sizes[f] if isinstance(f, str) else f for f in term)
            left = total([rest, product([-1, part])])
            if left is None:
                return False
            rest = left
    term = next(t for t in axis.terms if name in t)
    others = product(sizes[f] if isinstance(f, str) else f for f in term if f != name)
    answer = quotient(rest, others)
    if answer is None or (isinstance(answer, int) and answer < 0):
        return False
    sizes[name] = answer
    return True
