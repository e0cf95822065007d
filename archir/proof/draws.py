"""Numbers for small networks: the sizes of tensors, and the attributes that a pattern leaves open.

What differs only at stride 2, for two groups, for windows that are no squares, for a batch of
more than one or for tensors that are stretched must show on some of them, so all of these are
drawn, in many combinations; those of the first few networks are plain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archir.ir.dims import Size, symbol
from archir.ir.types import AttrValue, TensorType
from archir.lang import tree as t
from archir.ops.record import REQUIRED, Attr, Derived, Kind, Op
from archir.proof.translate import conjuncts
from archir.rewrite.rule import Rule

Tiny = tuple[int, int] | None
RANKS = (4, 2, 3, 5)
PLAIN = 2
"""Networks before this number have the defaults of what a pattern does not state."""
REGULAR = 12
"""Networks before this number have sizes that grow with it; later ones any."""
SINGLE = 9
"""So often a later network has a single channel, where what costs less elsewhere may cost more."""
CHANNELS = (2, 3, 4, 6, 8)
AROUND = (2, 3, 4, 5, 6, 7, 9)
VOLUME = {3: 9, 4: 30, 5: 24}
"""How many positions a tensor of a rank may have."""
KERNELS = (1, 2, 3, 3, 5)
STRINGS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("gelu", "approximate"): ("none", "tanh"),
    ("upsample", "mode"): ("nearest", "bilinear"),
    ("pad", "mode"): ("constant", "reflect", "replicate"),
}


def sizes(rule: Rule) -> dict[tuple[str, int], int]:
    """The sizes that guards state (``channels(x) == 3``, ``size(x, 2) == 1``)."""
    found: dict[tuple[str, int], int] = {}
    for guard in conjuncts(rule):
        if not (isinstance(guard, t.Compare) and guard.op == "=="):
            continue
        for one, two in ((guard.left, guard.right), (guard.right, guard.left)):
            value = two.value if isinstance(two, t.Literal) else None
            if not (isinstance(one, t.Call) and type(value) is int):
                continue
            given = [a.value for a in one.arguments]
            axis = given[1].value if len(given) > 1 and isinstance(given[1], t.Literal) else 1
            named = one.callee.text in ("channels", "size") and given
            if named and isinstance(given[0], t.Name) and isinstance(axis, int):
                found[given[0].path, axis] = value
    return found


def shape(
    number: int, rank: int, place: int, stated: Mapping[int, int], tiny: Tiny = None
) -> tuple[Size, ...]:
    """The shape of a tensor that enters a pattern.

    Args:
        number: The network's.
        rank: How many axes it has.
        place: Which tensor of the pattern it is, from 0. All are alike, but now and then other
            ones have more channels, or are stretched along some axes.
        stated: Sizes that the rule's guards want, by axis.
        tiny: What bounds the channels, and the sizes around them.
    """
    rng = np.random.Generator(np.random.PCG64([number, 0x517E]))
    grown = number // 4
    channels, more = 2 + grown % 4, place if number % 3 == 2 else 0
    around = [3 + grown % 3 + i for i in range(rank - 2)]
    batch: Size = 2 if grown % 2 else symbol("N")
    if number >= REGULAR:
        channels, more = int(rng.choice(CHANNELS)), place if rng.random() < 0.3 else 0
        around = [int(rng.choice(AROUND)) for _ in around]
        while math.prod(around) > VOLUME.get(rank, 1):
            around[around.index(max(around))] -= 1
        if around and rng.random() < 0.15:
            channels, around = around[0], around[:1] * len(around)
        if number % SINGLE == 4:
            channels = 1
        if place and rng.random() < 0.15:
            around = [int(rng.choice((1, n))) for n in around]
    if tiny:
        channels, around = min(channels, tiny[0]), [min(n, tiny[1]) for n in around]
    whole = [batch, channels + more, *around][:rank]
    for axis, size in stated.items():
        if -rank <= axis < rank:
            whole[axis] = size
    return tuple(whole)


@dataclass(frozen=True)
class Choice:
    """What is known where an attribute is drawn."""

    op: Op
    given: Mapping[str, AttrValue]
    """The attributes before it."""
    types: Sequence[TensorType]
    rng: np.random.Generator
    number: int
    attempt: int
    """How often it was drawn for this node before, and did not fit."""
    parts: int
    """How many results of the node the pattern names."""

    def value(self, attr: Attr) -> AttrValue:
        """A value for an attribute; None for its default, or where none can be made up."""
        if attr.default is not REQUIRED:
            derived = isinstance(attr.default, Derived)
            often = 0.5 if self.number < REGULAR else 0.35
            if self.number < PLAIN or self.attempt > 8 or derived or self.rng.random() < often:
                return None
        rank = self.types[0].rank if self.types else 0
        match attr.kind:
            case Kind.INT:
                return self._whole(attr)
            case Kind.SPATIAL | Kind.PADDING:
                return self._spatial(attr, rank - 2)
            case Kind.BOOL:
                return bool(self.rng.integers(0, 2))
            case Kind.FLOAT:
                return self._number(attr)
            case Kind.AXIS:
                return self._one((*range(1, rank), 0)[: max(rank - 1, 1) + (self.attempt > 4)])
            case Kind.AXES:
                return self._axes(attr, rank)
            case Kind.INTS:
                return self._list(attr, rank)
            case Kind.STRING if (self.op.name, attr.name) in STRINGS:
                return str(self.rng.choice(STRINGS[self.op.name, attr.name]))
        return None

    def _one(self, choices: Sequence[int]) -> int:
        return int(self.rng.choice(choices))

    def _whole(self, attr: Attr) -> int:
        if attr.name == "groups":
            out = self.given.get("out")
            channels = self.types[0].shape[1] if self.types and self.types[0].rank > 1 else 1
            common = math.gcd(*(n for n in (channels, out) if isinstance(n, int)))
            return self._one([n for n in range(1, common + 1) if common % n == 0][-3:])
        if attr.default is not REQUIRED:
            return self._one((1, 2, 3))
        if self.number <= 3:
            return (2, 3, 4, 1, 0)[(self.number + self.attempt) % 5]
        return self._one((2, 3, 4, 6, 1, 0)[: 4 + self.attempt])

    def _spatial(self, attr: Attr, count: int) -> AttrValue:
        choices: tuple[int, ...] = (1, 2, 3)
        if attr.name == "kernel":
            choices = KERNELS if count < 3 else (1, 2, 3)
        elif attr.name == "stride":
            choices = (1, 2, 3, 4)
        elif attr.kind is Kind.PADDING or attr.name == "padding":
            choices = (0, 1, 2)
        elif attr.name == "output_padding":
            choices = (0, 1)
        if attr.default is REQUIRED and self.number <= 3:
            return 2
        if count > 1 and self.number % 5 == 4:
            return tuple(self._one(choices) for _ in range(count))
        return self._one(choices)

    def _number(self, attr: Attr) -> float:
        if attr.default is REQUIRED:
            return 0.5
        choices = (0.0, 0.125, 0.5) if attr.least is not None else (0.0, 0.125, 0.5, -0.5)
        return float(self.rng.choice(choices))

    def _axes(self, attr: Attr, rank: int) -> tuple[int, ...]:
        if attr.name == "order":
            return (0, *(int(n) for n in 1 + self.rng.permutation(rank - 1)))
        some = [n for n in range(1, rank) if self.rng.random() < 0.5]
        return tuple(some or [rank - 1])

    def _list(self, attr: Attr, rank: int) -> tuple[int, ...] | None:
        """Parts of an axis, other shapes, and margins."""
        whole = [n for n in (self.types[0].shape if self.types else ()) if isinstance(n, int)]
        if attr.name == "sizes" and whole:
            size = self.types[0].shape[1]
            parts = max(self.parts, 2)
            assert isinstance(size, int)
            if size < parts:
                return None
            cuts = sorted(int(n) for n in 1 + self.rng.permutation(size - 1)[: parts - 1])
            return tuple(b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True))
        if attr.name == "shape" and self.types:
            rest = [n for n in self.types[0].shape[1:] if isinstance(n, int)]
            kept = rest[: self._one((0, 1))]
            return (0, *kept, math.prod(rest[len(kept) :]))
        if attr.name == "shape":
            return (1,)
        if attr.name in ("before", "after"):
            return (0, 0, *(self._one((0, 1, 2)) for _ in range(rank - 2)))[:rank]
        return None


def required(op: Op, attrs: Mapping[str, Any]) -> str:
    """An attribute without a default that has no value; "" if there is none."""
    return next((a.name for a in op.attrs if a.default is REQUIRED and a.name not in attrs), "")
