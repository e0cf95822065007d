"""A network in the making: choices, and a builder that infers as it adds.

The same pieces (:mod:`.pieces`, :mod:`.blocks`) build from choices that hypothesis draws, and
shrinks, and from those of a seed, which a long run is made of. In either case the first option
is the simplest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from hypothesis import strategies as st

from archir.ir.dims import Size, symbol
from archir.ir.graph import GraphBuilder, Node, Parameter, Value
from archir.ir.types import AttrValue, TensorType
from archir.ops import STANDARD
from archir.ops.infer import bind_attrs, instance

T = TypeVar("T")
MOST = 1024
"""The most numbers of a tensor of one sample."""
RECENT = 4
"""A piece reads one of so many newest values that it can read."""


class Choices(Protocol):
    """Where the decisions come from."""

    def integer(self, low: int, high: int) -> int:
        """A whole number, both ends included; ``low`` is the simplest."""

    def pick(self, options: Sequence[T]) -> T:
        """One of the options; the first is the simplest."""


@dataclass(frozen=True)
class Drawn:
    """Choices of hypothesis."""

    draw: st.DrawFn

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.draw(st.integers(0, len(options) - 1))]


class Seeded:
    """Choices of a pseudorandom stream."""

    def __init__(self, *seed: int) -> None:
        self.stream = random.Random(" ".join(map(str, seed)))

    def integer(self, low: int, high: int) -> int:
        return self.stream.randint(low, high)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.stream.randrange(len(options))]


def whole(shape: Sequence[Size]) -> tuple[int, ...] | None:
    """A shape that holds no symbol; None for another."""
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else None


def numbers(type_: TensorType) -> int:
    """How many numbers a sample of a tensor has (8 for a symbol that is not the batch)."""
    count = 1
    for size in type_.shape[1:]:
        count *= size if isinstance(size, int) else 8
    return count


@dataclass
class Sketch:
    """Nodes and the values that pieces may read, newest last."""

    choices: Choices
    builder: GraphBuilder = field(default_factory=lambda: GraphBuilder("net"))
    values: list[Value] = field(default_factory=list)
    batch: Size = field(default_factory=lambda: symbol("N"))
    prefix: str = ""
    taken: set[str] = field(default_factory=set)

    def type(self, value: Value) -> TensorType:
        """The type of a value."""
        return self.builder.nodes[value.node].types[value.port]

    def shape(self, value: Value) -> tuple[Size, ...]:
        """The shape of a value."""
        return self.type(value).shape

    def sizes(self, value: Value) -> tuple[int, ...]:
        """The sizes of a value's axes behind the first, which are numbers."""
        found = whole(self.shape(value)[1:])
        assert found is not None
        return found

    def name(self, base: str) -> str:
        """A path that is free, within the current scope."""
        path = base = f"{self.prefix}{base}"
        number = 1
        while path in self.taken:
            path, number = f"{base}{number}", number + 1
        self.taken.add(path)
        return path

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """What is added within gets paths below ``name``."""
        before, self.prefix = self.prefix, f"{self.prefix}{name}."
        yield
        self.prefix = before

    def input(self, *shape: Size, dtype: str = "f32") -> Value:
        """An input of the network."""
        at = self.name("x")
        self.builder.inputs.append(at)
        return self.builder.add(Node(at, "input", {}, (), {}, (TensorType(dtype, shape),)))

    def several(
        self,
        op: str,
        *inputs: Value,
        label: str = "",
        params: Mapping[str, str] | None = None,
        **given: AttrValue,
    ) -> tuple[Value, ...]:
        """Add a node, its parameters with it; all its results."""
        record = STANDARD[op]
        types = tuple(self.type(v) for v in inputs)
        attrs = bind_attrs(record, given, types)
        found = instance(record, attrs, types)
        at = self.name(label or op)
        paths = {r: at if op == "parameter" else f"{at}.{r}" for r in found.params}
        paths |= params or {}
        for role, type_ in found.params.items():
            buffer = record.param(role).buffer or bool(op == "parameter" and attrs["buffer"])
            parameter = Parameter(paths[role], type_, buffer)
            assert self.builder.parameters.setdefault(paths[role], parameter) == parameter
        self.builder.add(Node(at, op, attrs, inputs, paths, found.types))
        return tuple(Value(at, port) for port in range(len(found.types)))

    def add(
        self,
        op: str,
        *inputs: Value,
        label: str = "",
        params: Mapping[str, str] | None = None,
        **given: AttrValue,
    ) -> Value:
        """Add a node of one result."""
        (value,) = self.several(op, *inputs, label=label, params=params, **given)
        return value

    def keep(self, *values: Value) -> None:
        """Let later pieces read values; none that has grown too large."""
        self.values.extend(v for v in values if numbers(self.type(v)) <= MOST)

    def value(self, fits: Callable[[TensorType], bool]) -> Value | None:
        """One of the newest values of a type that fits; the newest is the simplest."""
        options = [v for v in reversed(self.values) if fits(self.type(v))][:RECENT]
        return self.choices.pick(options) if options else None

    def flag(self) -> bool:
        """True or false; false is the simplest."""
        return bool(self.choices.integer(0, 1))

    def rarely(self) -> bool:
        """True one time in five."""
        return self.choices.integer(0, 4) == 4

    def layers(self, op: str) -> list[Node]:
        """The nodes of an operator so far, newest first."""
        return [node for node in reversed(self.builder.nodes.values()) if node.op == op]


Piece = Callable[[Sketch], None]
"""Adds to a sketch; does nothing where the sketch has no value that fits."""


def image(type_: TensorType) -> bool:
    """A batch of channels over one to three spatial axes, all numbers."""
    return type_.dtype == "f32" and 3 <= type_.rank <= 5 and whole(type_.shape[1:]) is not None


def features(type_: TensorType) -> bool:
    """Numbers with features on the last axis."""
    return type_.dtype == "f32" and type_.rank >= 2 and isinstance(type_.shape[-1], int)


def real(type_: TensorType) -> bool:
    """Any floats with a batch."""
    return type_.dtype == "f32" and type_.rank >= 2
