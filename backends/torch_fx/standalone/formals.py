"""The parameters of a class: what differs between its instances."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import nn

from .layout import literal
from .regions import Kind, Region, leaves
from .source import arguments
from .tree import Place

Slot = tuple[object, ...]
"""Where a number or word stands in the code of a class."""

_WISHES = {
    "in_features": "in_channels",
    "out_channels": "width",
    "out_features": "width",
    "num_features": "width",
    "num_channels": "width",
    "normalized_shape": "width",
    "elementwise_affine": "affine",
}
_WINDOW = frozenset({"kernel_size", "stride", "padding", "dilation", "output_padding"})
"""What is no multiple of a number of channels, whatever the numbers."""
_NEEDED = frozenset({"self", "torch", "nn", "functional", "x", *dir(nn.Module())})


@dataclass(eq=False)
class Formal:
    """A parameter of a class, with its value in each instance."""

    name: str
    values: list[Any]
    default: Any = inspect.Parameter.empty
    kept: bool = False
    """Whether ``forward`` reads it."""

    @property
    def optional(self) -> bool:
        """Whether it has a default."""
        return self.default is not inspect.Parameter.empty

    @property
    def annotation(self) -> str:
        """Its type."""
        kinds = {type(value).__name__ for value in self.values}
        kinds = {"tuple" if kind in ("tuple", "list") else kind for kind in kinds}
        known = {"int", "float", "bool", "str", "tuple", "NoneType"}
        if not kinds <= known:
            return ""
        plain = sorted(kinds - {"NoneType"})
        return " | ".join([*plain, *["None"] * ("NoneType" in kinds)])


@dataclass(eq=False)
class Class:
    """The numbers of a kind's instances, and how its code writes them."""

    kind: Kind
    formals: list[Formal] = field(default_factory=list)
    texts: dict[Slot, tuple[str, Formal | None]] = field(default_factory=dict)
    """For each slot what is before and after the parameter's name, and the parameter."""
    constants: dict[Slot, Any] = field(default_factory=dict)

    @property
    def ordered(self) -> list[Formal]:
        """The parameters, those with defaults last."""
        return sorted(self.formals, key=lambda formal: formal.optional)

    def text(self, slot: Slot, *, kept: bool = False) -> str:
        """What stands at a slot; ``kept`` in ``forward``, which reads parameters from self."""
        if slot in self.constants:
            return literal(self.constants[slot])
        pattern, formal = self.texts[slot]
        assert formal is not None
        if kept:
            formal.kept = True
        return pattern.replace("@", f"self.{formal.name}" if kept else formal.name)

    def said(self, slot: Slot, default: object) -> bool:
        """Whether what stands at a slot must be said: it is not the default everywhere."""
        same = slot in self.constants and type(self.constants[slot]) is type(default)
        return not (same and repr(self.constants[slot]) == repr(default))


def class_of(kind: Kind, classes: Mapping[int, Class]) -> Class:
    """Find the parameters of a kind; those of the kinds it makes instances of are known."""
    found = Class(kind)
    rows = [dict(_slots(region, classes)) for region in kind.regions]
    varying: dict[Slot, list[Any]] = {}
    for slot, first in rows[0].items():
        values = [row[slot] for row in rows]
        if all(type(v) is type(first) and repr(v) == repr(first) for v in values):
            found.constants[slot] = first
        else:
            varying[slot] = values
    bases = _bases(varying)
    place = kind.regions[0].place
    taken = {*_NEEDED, *place.children, *place.tensors}
    made: dict[str, Formal] = {}
    for slot in varying:
        base, pattern = bases[slot]
        key = repr([(type(v).__name__, v) for v in base])
        if key not in made:
            owners = [s for s, vs in varying.items() if repr(vs) == repr(base)]
            made[key] = Formal(_name(owners, taken), base)
            found.formals.append(made[key])
        if pattern == "@":
            _default(made[key], slot, kind.regions[0], classes)
        found.texts[slot] = (pattern, made[key])
    return found


def _slots(region: Region, classes: Mapping[int, Class]) -> Iterator[tuple[Slot, Any]]:
    yield from _place_slots(region, region.place, regions_below(region), classes)
    yield from _call_slots(region)


def _place_slots(
    region: Region, place: Place, below: Mapping[str, Region], classes: Mapping[int, Class]
) -> Iterator[tuple[Slot, Any]]:
    local = region.local(place.path) if place.path != region.prefix else ""
    if place.layer is not None:
        for argument in arguments(place.layer):
            yield ("layer", local, argument.name), argument.value
    for name, held in place.tensors.items():
        if held.is_small:
            yield ("tensor", local, name, "values"), held.tensor.tolist()
            continue
        for axis, size in enumerate(held.tensor.shape):
            yield ("tensor", local, name, axis), size
        yield ("tensor", local, name, "start"), held.start
    for child in place.children.values():
        inner = below.get(child.path)
        if inner is None or inner.kind.inline:
            yield from _place_slots(region, child, below, classes)
            continue
        for formal in classes[inner.kind.number].formals:
            yield ("sub", region.local(child.path), formal.name), formal.values[inner.index]


def regions_below(region: Region) -> dict[str, Region]:
    """The regions that a class makes or writes out, by path; those of inner classes left out."""
    found: dict[str, Region] = {}
    for item in region.items:
        if isinstance(item, Region):
            found[item.prefix] = item
            if item.kind.inline:
                found.update(regions_below(item))
    return found


def _call_slots(region: Region) -> Iterator[tuple[Slot, Any]]:
    for index, item in enumerate(region.items):
        if not isinstance(item, Region):
            for where, value in leaves(item):
                yield ("call", index, *where), value


def _bases(varying: Mapping[Slot, list[Any]]) -> dict[Slot, tuple[list[Any], str]]:
    """For each slot the row of values that it is said by, and how: ``@``, ``4 * @``, ``@ // 4``."""
    found: dict[Slot, tuple[list[Any], str]] = {}
    families: dict[object, list[Slot]] = {}
    kernels = [vs for slot, vs in varying.items() if _wish(slot) == "kernel_size"]
    for slot, values in varying.items():
        whole = all(type(v) is int and v > 0 for v in values)
        halved = [ks for ks in kernels if _wish(slot) == "padding" and _halved(ks) == values]
        if halved:
            found[slot] = (halved[0], "@ // 2")
        elif whole:
            ratios = tuple(Fraction(v, values[0]) for v in values)
            families.setdefault((_wish(slot) in _WINDOW, ratios), []).append(slot)
        else:
            found[slot] = (values, "@")
    for slots in families.values():
        rest = list(slots)
        while rest:
            base = min(rest, key=lambda s: sum(_cost(varying[o][0], varying[s][0]) for o in rest))
            unit = varying[base]
            for slot in list(rest):
                pattern = _pattern(varying[slot], unit)
                if pattern:
                    found[slot] = (unit, pattern)
                    rest.remove(slot)
    return found


def _halved(kernels: Sequence[Any]) -> list[Any]:
    """What pads windows of these sizes to keep the extent."""
    return [k // 2 if type(k) is int else None for k in kernels]


def _cost(value: int, unit: int) -> int:
    if value % unit == 0:
        return 0
    return 1 if unit % value == 0 else 3


def _pattern(values: list[int], unit: list[int]) -> str:
    if values == unit:
        return "@"
    if all(v % u == 0 for v, u in zip(values, unit, strict=True)):
        return f"{values[0] // unit[0]} * @"
    if all(u % v == 0 for v, u in zip(values, unit, strict=True)):
        return f"@ // {unit[0] // values[0]}"
    return ""


def _name(slots: Sequence[Slot], taken: set[str]) -> str:
    """A name for what stands at some slots."""
    wishes = [_wish(slot) for slot in slots]
    wish = "width" if "width" in wishes else wishes[0]
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}{number}"
    taken.add(name)
    return name


def _wish(slot: Slot) -> str:
    if slot[0] == "call":
        return "amount"
    if slot[0] == "tensor":
        return "size"
    last = str(slot[-1]).rstrip("0123456789")
    return _WISHES.get(last, last)


def _default(formal: Formal, slot: Slot, region: Region, classes: Mapping[int, Class]) -> None:
    """Take over the default of what a parameter is handed on to, if some instance has it."""
    if formal.optional:
        return
    default: Any = inspect.Parameter.empty
    path = f"{region.prefix}.{slot[1]}" if region.prefix else str(slot[1])
    if slot[0] == "layer":
        layer = region.place
        for segment in str(slot[1]).split("."):
            layer = layer.children[segment]
        assert layer.layer is not None
        default = next(a.default for a in arguments(layer.layer) if a.name == slot[2])
    elif slot[0] == "sub":
        inner = classes[regions_below(region)[path].kind.number]
        default = next(f.default for f in inner.formals if f.name == slot[2])
    if isinstance(default, bool | int | float | str):
        matches = [type(v) is type(default) and v == default for v in formal.values]
        if any(matches) and all(type(v) is type(default) for v in formal.values):
            formal.default = default
