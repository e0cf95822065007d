"""One record per operator, and the set that holds them.

A record states what is true of an operator whatever runs it. Shapes, parameters, the MAC
count and the axis classes are derived from its signature; backends keep their own tables.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from archir.ir.dims import Size
from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Arithmetic, Array

Attrs = Mapping[str, AttrValue]
Mode = Literal["eval", "train"]
Signer = Callable[[Attrs, tuple[TensorType, ...]], str]
Reference = Callable[
    [Arithmetic, tuple[Array, ...], Mapping[str, Array], Attrs, Mode], tuple[Array, ...]
]
Update = Callable[[Arithmetic, tuple[Array, ...], Mapping[str, Array], Attrs], dict[str, Array]]
Derive = Callable[[Attrs, Mapping[str, tuple[Size, ...]]], Mapping[str, tuple[Size, ...]]]


class Kind(enum.Enum):
    """What an attribute may hold. SPATIAL is one integer per spatial axis."""

    INT = "an integer"
    FLOAT = "a number"
    BOOL = "true or false"
    STRING = "a string"
    INTS = "a list of integers"
    AXIS = "an axis of the first operand"
    AXES = "an axis, or a list of axes, of the first operand"
    SPATIAL = "an integer, or one per spatial axis"
    PADDING = "`same`, an integer, or one per spatial axis"
    NUMBERS = "a number, or nested lists of numbers"
    DTYPE = "an element type"


class Law(enum.Enum):
    """What an operator obeys; matching guards and the prover's side conditions ask for these."""

    ELEMENTWISE = "elementwise"
    IDEMPOTENT = "idempotent"
    POSITIVELY_HOMOGENEOUS = "positively_homogeneous"
    COMMUTATIVE = "commutative"
    RANDOM_IN_TRAINING = "random_in_training"
    ORDERED = "ordered"
    """What it computes depends on an order, which a field does not have."""


REQUIRED: Any = object()
"""The default of an attribute that has none."""


@dataclass(frozen=True, slots=True)
class SameAs:
    """A default that repeats another attribute (a pooling's stride is its kernel)."""

    attr: str


@dataclass(frozen=True, slots=True)
class Derived:
    """A default computed from the attributes before it and the operands' types."""

    value: Callable[[Attrs, tuple[TensorType, ...]], AttrValue]


@dataclass(frozen=True, slots=True)
class Attr:
    """An attribute: its kind, default and least value; ``unbounded`` if it may be infinite."""

    name: str
    kind: Kind
    default: Any = REQUIRED
    least: float | None = None
    doc: str = ""
    unbounded: bool = False


@dataclass(frozen=True, slots=True)
class Param:
    """A tensor an operator owns, under a role that is its PyTorch leaf name.

    ``when`` names the boolean attribute that must be true for it to be present; ``init`` the
    initialiser (:mod:`archir.weights.init`); ``dtype`` is the operand's where None.
    """

    role: str
    init: str
    buffer: bool = False
    when: str | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A legal instance: operand types and the attributes as a user would give them.

    ``positive``: its operands hold positive numbers (a square root has no others).
    """

    inputs: tuple[TensorType, ...]
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)
    positive: bool = False


@dataclass(frozen=True, eq=False)
class Op:
    """An operator.

    ``equations`` ties axis expressions to the attributes that state them (``(g o)`` is
    ``out``); ``derive`` gives the sizes of primed names (the spatial extents of a window);
    ``field`` says what stands in for the operator in GF(p) ("" where it is computed as is).
    ``stated`` names an attribute that lists the sizes of the first result's axes (0 and -1
    stay), ``rescale`` the attributes that are divided by r where each entry along a name, which
    is summed over, comes to stand r times. ``products`` are the multiply-accumulates of what is
    no weighted sum: products of axis names (``n t s d``), added up. ``divisors`` are the operands
    that have no value at 0, being divided by: no zeros may be brought there. ``results`` gives the
    types of the results where the attributes state them in full; ``opaque`` says what is wrong
    with a change of an axis that bears a ``!``.
    """

    name: str
    doc: str
    signature: str | Signer
    reference: Reference
    samples: tuple[Sample, ...]
    attrs: tuple[Attr, ...] = ()
    params: tuple[Param, ...] = ()
    operands: tuple[int, int | None] = (1, 1)
    equations: Mapping[str, str] = field(default_factory=dict)
    rescale: Mapping[str, str] = field(default_factory=dict)
    derive: Derive | None = None
    update: Update | None = None
    laws: frozenset[Law] = frozenset()
    field: str = ""
    result_dtype: Callable[[Attrs, tuple[TensorType, ...]], str] | None = None
    stated: str | None = None
    products: Callable[[Attrs, tuple[TensorType, ...]], tuple[str, ...]] | None = None
    divisors: tuple[int, ...] | Callable[[Attrs], tuple[int, ...]] = ()
    results: Callable[[Attrs], tuple[TensorType, ...]] | None = None
    opaque: str = "mixes the entries of that axis"

    def attr(self, name: str) -> Attr | None:
        """The attribute of a name, if the operator has it."""
        return next((a for a in self.attrs if a.name == name), None)

    def param(self, role: str) -> Param:
        """The parameter of a role; ``KeyError`` where there is none."""
        for param in self.params:
            if param.role == role:
                return param
        raise KeyError(role)

    def present(self, attrs: Attrs) -> list[Param]:
        """The parameters that a use with these attributes owns."""
        return [p for p in self.params if p.when is None or attrs[p.when]]

    def divided(self, attrs: Attrs) -> tuple[int, ...]:
        """The operands that a use with these attributes has no value of at 0."""
        return self.divisors if isinstance(self.divisors, tuple) else self.divisors(attrs)

    def sign(self, attrs: Attrs, types: tuple[TensorType, ...]) -> str:
        """The signature of a use, as text."""
        return self.signature if isinstance(self.signature, str) else self.signature(attrs, types)


class OpSet(Mapping[str, Op]):
    """The operators a network may use; a value, passed explicitly.

    ``others`` makes the records of operators that are not listed, by their names.
    """

    def __init__(
        self, ops: Iterable[Op], others: Callable[[str], Op | None] = lambda name: None
    ) -> None:
        self._others = others
        self._ops: dict[str, Op] = {}
        for op in ops:
            if op.name in self._ops:
                raise ValueError(f"two operators are named {op.name}")
            self._ops[op.name] = op

    def __getitem__(self, name: str) -> Op:
        found = self._ops.get(name) or self._others(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._ops)

    def __len__(self) -> int:
        return len(self._ops)

    def __hash__(self) -> int:
        """By the names: what is equal has the same."""
        return hash(frozenset(self._ops))
