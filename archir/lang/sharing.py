"""What the instances of one block share, and by which parameters they differ."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archir.ir.graph import Graph, Node
from archir.ir.types import AttrValue
from archir.lang import words
from archir.lang.flat import fresh
from archir.lang.tree import is_name
from archir.ops.record import OpSet

if TYPE_CHECKING:
    from archir.lang.regions import Region

MAX_FACTOR = 16
"""The largest whole number by which one size is said to be a multiple of another."""
_NAMES = {"out": "width", "p": "drop", "shape": "extent", "value": "scale"}
"""Parameters of blocks that are not called as the attribute."""
_SIZES = ("out", "groups", "shape", "length", "sizes")
"""Attributes that may be the size of a tensor."""


@dataclass(eq=False)
class Formal:
    """A parameter of a block: its name, its value in each instance, its default if any.

    It stands for an attribute of the node of an index, or for an entry of one.
    """

    name: str
    index: int
    attr: str
    entry: int | None
    values: list[AttrValue]
    default: AttrValue = None
    optional: bool = False


@dataclass(eq=False)
class Kind:
    """Regions that are alike up to attributes: the instances of one block."""

    regions: list[Region]
    graph: Graph
    ops: OpSet
    name: str = ""
    formals: list[Formal] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    place: dict[str, int] = field(default_factory=dict)
    """Where each node of the first instance stands among its nodes."""
    tensors: list[str] = field(default_factory=list)
    """The names of the tensors that go in beside the piped one."""

    def values(self, index: int, attr: str) -> list[AttrValue]:
        """An attribute of the node of an index, in each instance."""
        op = self.ops[self.regions[0].nodes[index].op]
        return [words.compact(op, attr, r.nodes[index].attrs[attr]) for r in self.regions]

    def express(self, index: int, attr: str, entry: int | None = None) -> tuple[str, AttrValue]:
        """An attribute as text in the block's body, and its value in the first instance.

        What differs between instances becomes a parameter, or is reckoned from one or from the
        sizes of the piped tensor. A list may differ entry by entry.
        """
        values = self.values(index, attr)
        if entry is not None:
            values = [value[entry] for value in values]  # type: ignore[index]
        first = values[0]
        if alike(values):
            return words.write_value(first), first
        if entry is None and _lists(values):
            assert isinstance(first, tuple)
            texts = [self.express(index, attr, place)[0] for place in range(len(first))]
            return f"[{', '.join(texts)}]", first
        text = self._reckoned(values, attr, self.regions[0].nodes[index])
        if not text:
            made = self._formal(index, attr, entry, values)
            self.formals.append(made)
            text = made.name
        return text, first

    def constant(self, index: int, attr: str) -> bool:
        """Whether an attribute is the same in all instances."""
        return alike(self.values(index, attr))

    def _reckoned(self, values: Sequence[AttrValue], attr: str, node: Node) -> str:
        """Values in terms of what there is; empty if there is no way."""
        op = node.op
        depthwise = node.attrs.get("groups", 1) != 1
        wide = op == "linear" or any(formal.attr == "out" for formal in self.formals)
        size = self._size(values, op) if attr in _SIZES and (attr != "out" or wide) else ""
        if size and attr == "out" and not depthwise:
            return size
        for formal in self.formals:
            if [*map(repr, formal.values)] == [*map(repr, values)]:
                return formal.name
        if size:
            return size
        if not all(type(value) is int for value in values):
            return ""
        for formal in self.formals:
            if attr == "out" and formal.attr != "out":
                continue
            factor = _factor(values, formal.values)
            if factor:
                return f"{factor} * {formal.name}"
            if attr in _SIZES and formal.attr in _SIZES:
                factor = _factor(formal.values, values)
                if factor:
                    return f"{formal.name} // {factor}"
        return _product(values, self.formals) if attr == "shape" else ""

    def _size(self, values: Sequence[AttrValue], op: str) -> str:
        """Values that are a size of the piped tensor in each instance, or a multiple of one."""
        shapes = [self.graph.type_of(region.source).shape for region in self.regions]
        axes = range(1, min(map(len, shapes)))
        sizes = {axis: [shape[axis] for shape in shapes] for axis in axes}
        for axis, found in sizes.items():
            if found == list(values):
                return _measure(axis)
        for axis in axes[-1:] if op == "linear" else ():
            whole = [size for size in sizes[axis] if isinstance(size, int)]
            factor = _factor(values, whole) if len(whole) == len(values) else None
            if factor:
                return f"{factor} * {_measure(axis)}"
        return ""

    def reduce(self) -> bool:
        """Drop a parameter that is the product of two others; whether there was one.

        The body must then be written again, with what is left from the beginning.
        """
        for formal in self.formals:
            rest = [each for each in self.formals if each is not formal]
            if formal.attr == "shape" and _product(formal.values, rest):
                self.formals = rest
                return True
        return False

    def begin(self, taken: AbstractSet[str]) -> None:
        """Begin to write the body: with the names that are taken, and the parameters there are."""
        self.taken = set(taken)
        for formal in self.formals:
            formal.name = self._named(formal.attr)

    def _named(self, attr: str) -> str:
        wish = _NAMES.get(attr, attr)
        return fresh(wish if is_name(wish) else f"{attr}_", self.taken)

    def _formal(self, index: int, attr: str, entry: int | None, values: list[AttrValue]) -> Formal:
        name = self._named(attr)
        op = self.ops[self.regions[0].nodes[index].op]
        record = op.attr(attr)
        default = record.default if record is not None and entry is None else None
        plain = isinstance(default, int | float | str)
        optional = plain and any(repr(value) == repr(default) for value in values)
        return Formal(name, index, attr, entry, values, default if optional else None, optional)

    def header(self) -> list[Formal]:
        """The parameters in order: those with defaults last."""
        return [f for f in self.formals if not f.optional] + [f for f in self.formals if f.optional]


def _measure(axis: int) -> str:
    return "channels(input)" if axis == 1 else f"size(input, {axis})"


def alike(values: Sequence[AttrValue]) -> bool:
    """Whether values are the same, 1 and 1.0 and true told apart."""
    return all(repr(value) == repr(values[0]) for value in values)


def _product(values: Sequence[AttrValue], formals: Sequence[Formal]) -> str:
    """Values as the product of two parameters; empty where they are none."""
    whole = [f for f in formals if f.attr == "shape" and type(f.values[0]) is int]
    for place, a in enumerate(whole):
        for b in whole[place:]:
            pairs = zip(a.values, b.values, strict=True)
            if [x * y for x, y in pairs] == list(values):  # type: ignore[operator]
                return f"{a.name} * {b.name}"
    return ""


def _lists(values: Sequence[AttrValue]) -> bool:
    """Whether values are lists of whole numbers, all equally long."""
    return (
        all(
            isinstance(value, tuple) and all(type(entry) is int for entry in value)
            for value in values
        )
        and len({len(value) for value in values if isinstance(value, tuple)}) == 1
    )


def _factor(values: Sequence[AttrValue], base: Sequence[AttrValue]) -> int | None:
    """The whole number k > 1 with values = k * base, if there is one that is not large."""
    factor = None
    for value, unit in zip(values, base, strict=True):
        if type(value) is not int or type(unit) is not int or unit <= 0 or value % unit:
            return None
        if factor is not None and factor != value // unit:
            return None
        factor = value // unit
    return factor if factor is not None and 1 < factor <= MAX_FACTOR else None
