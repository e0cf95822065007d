"""The ``forward`` of a class: calls in order, with names for what they give."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from .formals import Class
from .layout import Doc, Group, call, flat, header, lay, returned, unpacked
from .making import Maker, is_plain
from .regions import Region, Source
from .source import SYMBOLS, Carried
from .tree import Tree

Item = fx.Node | Region
_KEPT = frozenset({"self", "torch", "nn", "functional", "math", "operator", "OrderedDict"})
_LAST = 10**9
INLINED = 40
"""Columns that a call may take within a sum."""
_INFIX = frozenset({operator.add, operator.sub, operator.mul, operator.truediv})


@dataclass(eq=False)
class Runner:
    """Writes the ``forward`` of a region."""

    region: Region
    own: Class
    tree: Tree
    maker: Maker
    carried: Carried
    wished: Mapping[fx.Node, str]
    """Names that the author gave to values."""
    names: dict[Source, str] = field(default_factory=dict)
    last: dict[fx.Node, int] = field(default_factory=dict)
    """The entry that reads a value last."""
    spread: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    """Calls whose parts are taken out, one name each."""
    inlined: dict[Source, str] = field(default_factory=dict)
    """Values that are written where they are read."""

    def lines(self) -> list[str]:
        """The function's lines."""
        self._find_spread()
        self._find_last()
        holders: dict[str, Source] = {}
        given = self._inputs(holders)
        wishes = self._wishes()
        body: list[str] = []
        outs = self.region.outs
        for index, item in enumerate(self.region.items):
            if isinstance(item, fx.Node) and any(item in parts for parts in self.spread.values()):
                continue
            doc = self._expression(index, item)
            made = self._made(item)
            ends = index == len(self.region.items) - 1
            if ends and made == outs and outs:
                return [*self._header(given), *body, *returned([doc], 8)]
            if self._is_operand(index, doc, made):
                self.inlined[made[0]] = flat(doc)
                continue
            for value in made:
                self._give(value, item, index, wishes, holders)
            names = [self.names[value] if value in self.last else "_" for value in made]
            if any(value in self.last for value in made):
                body += unpacked(names, doc, 8)
            else:
                body += lay("", doc, 8)
        if outs:
            body += returned([self._refer(value) for value in outs], 8)
        return [*self._header(given), *body]

    def _header(self, given: Sequence[str]) -> list[str]:
        result = "Tensor" if self.region.outs else "None"
        if len(self.region.outs) > 1:
            result = f"tuple[{', '.join(['Tensor'] * len(self.region.outs))}]"
        return header("forward", ["self", *(f"{name}: Tensor" for name in given)], result, 4)

    # -- what is read when

    def _made(self, item: Item) -> list[fx.Node]:
        if isinstance(item, Region):
            return item.outs
        return self.spread.get(item, [item])

    def _find_spread(self) -> None:
        """Find calls that give several values, all of which are taken out one by one."""
        mine = {item for item in self.region.items if isinstance(item, fx.Node)}
        for item in mine:
            users = list(item.users)
            parts = [u for u in users if u.target is operator.getitem and u.args[0] is item]
            if len(parts) != len(users) or not set(parts) <= mine or item in self.region.outs:
                continue
            places = [part.args[1] for part in parts]
            if places and sorted(map(str, places)) == sorted(map(str, range(len(places)))):
                self.spread[item] = sorted(parts, key=lambda p: int(str(p.args[1])))

    def _reads(self, item: Item) -> list[Source]:
        if isinstance(item, Region):
            return item.inputs
        nodes = item.all_input_nodes
        return [self.tree.targets[n] if n.op == "get_attr" else n for n in nodes]

    def _find_last(self) -> None:
        parts = {part for row in self.spread.values() for part in row}
        for index, item in enumerate(self.region.items):
            if item in parts:
                continue
            for source in self._reads(item):
                if isinstance(source, fx.Node):
                    self.last[source] = index
        self.last.update(dict.fromkeys(self.region.outs, _LAST))

    def _is_operand(self, index: int, doc: Doc, made: Sequence[fx.Node]) -> bool:
        """Whether a call can be written into the sum or product that reads its result next."""
        if len(made) != 1 or made[0] in self.wished or not isinstance(doc, Group):
            return False
        reader = self.last.get(made[0], _LAST)
        if reader - index > 2 or len(flat(doc)) > INLINED:
            return False
        item = self.region.items[reader]
        symbol = isinstance(item, fx.Node) and item.target in _INFIX
        if not symbol or self._reads(item).count(made[0]) != 1:
            return False
        if any(made[0] in self._reads(i) for i in self.region.items[:reader]):
            return False
        if reader == index + 1:
            return True
        # The first operand of two: the other is written there too, so that no name changes
        # its value before this call is made.
        second = self.region.items[index + 1]
        both = self._reads(item) == [made[0], *self._made(second)]
        return both and self._is_operand(
            index + 1, self._expression(index + 1, second), self._made(second)
        )

    # -- names

    def _inputs(self, holders: dict[str, Source]) -> list[str]:
        given: list[str] = []
        for source in self.region.inputs:
            if isinstance(source, str):
                wish = source.rpartition(".")[2]
            elif not self.region.prefix:
                wish = str(source.target)
            else:
                wish = "x" if len(self.region.inputs) == 1 else self.wished.get(source, "x")
            name = _free(wish, lambda n: n in holders or n in _KEPT)
            holders[name] = source
            self.names[source] = name
            given.append(name)
        return given

    def _wishes(self) -> dict[fx.Node, str]:
        """For each value the name it should have: the author's, else that of what follows."""
        readers: dict[fx.Node, list[int]] = {}
        for index, item in enumerate(self.region.items):
            for source in dict.fromkeys(self._reads(item)):
                if isinstance(source, fx.Node):
                    readers.setdefault(source, []).append(index)
        found: dict[fx.Node, str] = {}
        for item in reversed(self.region.items):
            for value in self._made(item):
                if value in self.wished:
                    found[value] = self.wished[value]
                elif len(readers.get(value, [])) == 1 and self.last[value] != _LAST:
                    after = self._made(self.region.items[readers[value][0]])
                    if len(after) == 1 and after[0] in found:
                        found[value] = found[after[0]]
        return found

    def _give(
        self,
        value: fx.Node,
        item: Item,
        index: int,
        wishes: Mapping[fx.Node, str],
        holders: dict[str, Source],
    ) -> None:
        """Name a value; a name that nobody reads any more is used again."""

        def taken(name: str) -> bool:
            held = holders.get(name)
            if name in _KEPT or held is None:
                return name in _KEPT
            return (
                isinstance(held, str) or self.last.get(held, -1) > index or held in self._made(item)
            )

        path = item.prefix if isinstance(item, Region) else self.tree.homes[value]
        local = path.rpartition(".")[2]
        tries = [wishes.get(value, "x"), "x", local if is_plain(local) else "y"]
        name = next((t for t in tries if not taken(t)), None) or _free(tries[-1], taken)
        holders[name] = value
        self.names[value] = name

    # -- expressions

    def _refer(self, source: Source) -> str:
        if source in self.inlined:
            return self.inlined[source]
        if isinstance(source, fx.Node) and source.op == "get_attr":  # an output of the network
            source = self.tree.targets[source]
        if isinstance(source, str) and source not in self.names:
            return self.maker.reach(source)
        return self.names[source]

    def _expression(self, index: int, item: Item) -> Doc:
        if isinstance(item, Region):
            return call(self.maker.reach(item.prefix), *map(self._refer, item.inputs))
        parts = [self._doc(value, ("call", index, place)) for place, value in enumerate(item.args)]
        named = {k: self._doc(value, ("call", index, k)) for k, value in item.kwargs.items()}
        if item.op == "call_module":
            return call(self.maker.reach(self.tree.targets[item]), *parts, **named)
        if item.op == "call_method":
            return call(f"{flat(parts[0])}.{item.target}", *parts[1:], **named)
        target: Any = item.target
        if target in SYMBOLS:
            return self._symbol(target, item, index, parts)
        return call(self.carried.function(target), *parts, **named)

    def _symbol(self, target: Any, item: fx.Node, index: int, parts: list[Doc]) -> str:
        if target is not operator.getitem:
            return SYMBOLS[target].format(*map(flat, parts))
        where = item.args[1]
        entries = where if isinstance(where, tuple) else (where,)
        path: tuple[object, ...] = ("call", index, 1)
        texts = [
            self._slice(entry, (*path, place) if isinstance(where, tuple) else path)
            for place, entry in enumerate(entries)
        ]
        return f"{flat(parts[0])}[{', '.join(texts)}]"

    def _slice(self, entry: Any, path: tuple[object, ...]) -> str:
        if not isinstance(entry, slice):
            return flat(self._doc(entry, path))
        stated = (entry.start, entry.stop, entry.step)
        start, stop, step = (
            "" if part is None else flat(self._doc(part, (*path, place)))
            for place, part in enumerate(stated)
        )
        return f"{start}:{stop}" + (f":{step}" if step else "")

    def _doc(self, value: Any, path: tuple[object, ...]) -> Doc:
        if isinstance(value, fx.Node):
            source = self.tree.targets[value] if value.op == "get_attr" else value
            return self._refer(source)
        if isinstance(value, tuple | list):
            items = tuple(("", self._doc(v, (*path, k))) for k, v in enumerate(value))
            return Group("", items, "()" if isinstance(value, tuple) else "[]")
        if isinstance(value, slice):
            stated = (value.start, value.stop, value.step)
            return call("slice", *(self._doc(v, (*path, k)) for k, v in enumerate(stated)))
        return self.own.text(path, kept=True)


def _free(wish: str, taken: Callable[[str], bool]) -> str:
    """A name like a wish that is not taken."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in wish)
    plain = plain if is_plain(plain) else f"x{plain}".rstrip("_")

    def candidates() -> Iterator[str]:
        yield plain
        number = 2
        while True:
            yield f"{plain}{number}"
            number += 1

    return next(name for name in candidates() if not taken(name))
