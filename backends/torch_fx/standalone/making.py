"""The ``__init__`` of a class: its layers, containers and tensors."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn

from .formals import Class, Slot, regions_below
from .layout import Doc, Group, call, flat, lay, literal
from .regions import Region
from .source import Carried, arguments
from .tree import Held, Place

REPEATED = 3
"""Equal modules in a row from this many on are made in a loop."""


def is_plain(name: str) -> bool:
    """Whether a name can follow a dot, in a class too."""
    return name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")


def numbered(names: Sequence[str]) -> bool:
    """Whether names are 0, 1, 2, ... as a list has them."""
    return list(names) == [str(number) for number in range(len(names))]


@dataclass(eq=False)
class Maker:
    """Writes how the places of a region are made, and how they are reached."""

    region: Region
    own: Class
    classes: Mapping[int, Class]
    names: Mapping[int, str]
    """What classes are called."""
    carried: Carried

    def __post_init__(self) -> None:
        self.below = regions_below(self.region)

    # -- reaching

    def reach(self, path: str) -> str:
        """A layer or tensor of the region as an expression."""
        text, place, form = "self", self.region.place, self._own_form()
        for segment in self.region.local(path).split("."):
            text = self._step(text, segment, form, list(place.children))
            if segment in place.children:
                place = place.children[segment]
                form = self._form(place)
        return text

    def _step(self, text: str, segment: str, form: str, names: Sequence[str]) -> str:
        if form == "list" or (form == "row" and numbered(names)):
            return f"{text}[{segment}]"
        if form == "dict":
            return f"{text}[{literal(segment)}]"
        return f"{text}.{segment}" if is_plain(segment) else f"getattr({text}, {literal(segment)})"

    def _own_form(self) -> str:
        return "row" if self.region.kind.chain else "module"

    def _form(self, place: Place) -> str:
        """What holds a place's children: a module with attributes, a list, a dict, a row."""
        inner = self.below.get(place.path)
        if inner is not None:
            return "row" if inner.kind.chain else "module"
        names = list(place.children)
        simple = place.layer is None and not place.tensors
        if not names or not simple or not all(map(self._whole, place.children.values())):
            return "module"
        if numbered(names):
            return "list"
        taken = set(dir(nn.ModuleDict())).intersection(names)
        return "module" if all(map(is_plain, names)) or taken else "dict"

    def _whole(self, place: Place) -> bool:
        """Whether one expression makes a place with all below it."""
        if place.path in self.below:
            return True
        if place.layer is not None:
            return place.is_plain
        return self._form(place) != "module"

    # -- making

    def statements(self) -> Iterator[str]:
        """The lines of the body of ``__init__`` that make what the region holds."""
        yield from self._fill("self", self.region.place)

    def row(self) -> Group:
        """The call that hands a row of layers to ``nn.Sequential``'s own ``__init__``."""
        return self._row("super().__init__", self.region.place)

    def _fill(self, target: str, place: Place) -> Iterator[str]:
        for name, held in place.tensors.items():
            yield from self._tensor(target, place, name, held)
        for name, child in place.children.items():
            yield from self._child(target, name, child)

    def _child(self, target: str, name: str, child: Place) -> Iterator[str]:
        whole = self._whole(child)
        made = self._made(child) if whole or child.layer is not None else call("nn.Module")
        if not whole and child.layer is None and not child.children and not child.tensors:
            return
        if is_plain(name):
            yield from lay(f"{target}.{name} = ", made, 8)
        else:
            yield from lay("", call(f"{target}.add_module", literal(name), made), 8)
        if not whole:
            inner = f"{target}.{name}" if is_plain(name) else f"getattr({target}, {literal(name)})"
            yield from self._fill(inner, child)

    def _made(self, place: Place) -> Doc:
        """The expression that makes a place and all below it."""
        inner = self.below.get(place.path)
        if inner is not None:
            return self._row("nn.Sequential", place) if inner.kind.inline else self._instance(inner)
        if place.layer is not None:
            return self._layer(place)
        children = [(name, self._made(child)) for name, child in place.children.items()]
        if self._form(place) == "list":
            listed = Group("", _repeated([made for _, made in children]), "[]")
            return call("nn.ModuleList", listed)
        entries = tuple((f"{literal(name)}: ", made) for name, made in children)
        return call("nn.ModuleDict", Group("", entries, "{}"))

    def _row(self, head: str, place: Place) -> Group:
        children = [(name, self._made(child)) for name, child in place.children.items()]
        names = [name for name, _ in children]
        if numbered(names):
            return Group(head, _repeated([made for _, made in children]))
        if all(map(is_plain, names)):
            entries = Group("OrderedDict", tuple((f"{name}=", made) for name, made in children))
        else:
            pairs = [Group("", (("", literal(n)), ("", made))) for n, made in children]
            entries = call("OrderedDict", Group("", tuple(("", pair) for pair in pairs), "[]"))
        return call(head, entries)

    def _instance(self, inner: Region) -> Group:
        """The call that makes an instance of a class."""
        local = self.region.local(inner.prefix)
        items: list[tuple[str, Doc]] = []
        formals = self.classes[inner.kind.number].ordered
        few = sum(not formal.optional for formal in formals) <= 3
        for formal in formals:
            slot: Slot = ("sub", local, formal.name)
            if formal.optional and not self.own.said(slot, formal.default):
                continue
            prefix = "" if few and not formal.optional else f"{formal.name}="
            items.append((prefix, self.own.text(slot)))
        return Group(self.names[inner.kind.number], tuple(items))

    def _layer(self, place: Place) -> Group:
        """The call that makes a layer."""
        assert place.layer is not None
        items: list[tuple[str, Doc]] = []
        positional = True
        for argument in arguments(place.layer):
            slot: Slot = ("layer", self.region.local(place.path), argument.name)
            required = argument.default is inspect.Parameter.empty
            if not required and not self.own.said(slot, argument.default):
                positional = False
                continue
            positional = positional and required
            items.append(("" if positional else f"{argument.name}=", self.own.text(slot)))
        return Group(self.carried.layer(place.layer), tuple(items))

    def _tensor(self, target: str, place: Place, name: str, held: Held) -> Iterator[str]:
        local = self.region.local(place.path) if place is not self.region.place else ""
        if held.is_small:
            values = self.own.text(("tensor", local, name, "values"))
            made = call("torch.tensor", values, dtype=str(held.tensor.dtype))
        else:
            axes = range(held.tensor.dim())
            sizes = [self.own.text(("tensor", local, name, axis)) for axis in axes]
            start = self.own.text(("tensor", local, name, "start"))
            made = _started(sizes, start, held)
        if held.kind == "parameter":
            fixed = [] if held.tensor.is_floating_point() else [("requires_grad=", "False")]
            wrapped = Group("nn.Parameter", (("", made), *fixed))
            if is_plain(name):
                yield from lay(f"{target}.{name} = ", wrapped, 8)
            else:
                yield from lay("", call(f"{target}.register_parameter", literal(name), wrapped), 8)
            return
        items: list[tuple[str, Doc]] = [("", literal(name)), ("", made)]
        if held.kind == "constant":
            items.append(("persistent=", "False"))
        yield from lay("", Group(f"{target}.register_buffer", tuple(items)), 8)


def _started(sizes: Sequence[str], start: str, held: Held) -> Group:
    """The expression for a tensor's first values."""
    kind = held.tensor.dtype
    typed = () if kind is torch.float32 else (("dtype=", str(kind)),)
    shape = tuple(("", size) for size in sizes) or (("", "()"),)
    if start == "None" and held.kind == "parameter" and kind.is_floating_point:
        return Group("0.02 * torch.randn", (*shape, *typed))
    if start in ("0.0", "None"):
        return Group("torch.zeros", (*shape, *typed))
    if start == "1.0":
        return Group("torch.ones", (*shape, *typed))
    rows = f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"
    return Group("torch.full", (("", rows), ("", start), *typed))


def _repeated(made: Sequence[Doc]) -> tuple[tuple[str, Doc], ...]:
    """Modules in a row; equal ones are made in a loop."""
    found: list[tuple[str, Doc]] = []
    for text, group in groupby(made, key=flat):
        docs = list(group)
        if len(docs) < REPEATED:
            found += [("", doc) for doc in docs]
        else:
            found.append(("", call("*", f"{text} for _ in range({len(docs)})")))
    return tuple(found)
