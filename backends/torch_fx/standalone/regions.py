"""Which parts of a network become modules of their own, and which of these are alike."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from .source import Carried, arguments
from .tree import Place, Tree

Source = fx.Node | str
"""What a call reads: another's result, or the tensor at a path."""

WORTH = 3
"""A row of so many layers becomes a class if it occurs twice."""


@dataclass(eq=False)
class Region:
    """The calls below a path, as a module: what goes in, what is called, what comes out."""

    prefix: str
    place: Place
    items: list[fx.Node | Region]
    inputs: list[Source]
    outs: list[fx.Node]
    kind: Kind = field(init=False)
    index: int = 0
    """Which of its kind's instances it is."""

    def local(self, path: str) -> str:
        """A path as it is called within the region."""
        return path[len(self.prefix) + 1 :] if self.prefix else path

    def holds(self, path: str) -> bool:
        """Whether a path lies below the region's."""
        return not self.prefix or path.startswith(f"{self.prefix}.")


@dataclass(eq=False)
class Kind:
    """Regions that are alike up to numbers: the instances of one class."""

    number: int
    regions: list[Region] = field(default_factory=list)
    chain: bool = False
    """Whether it is a row of layers, each fed by the one before: a ``nn.Sequential``."""
    inline: bool = False
    """Whether it is written where it is used and has no class."""
    sites: set[tuple[int, str]] = field(default_factory=set)
    """The places in classes where an instance is made."""

    @property
    def layers(self) -> int:
        """How many layers it takes to write out a row; an instance of a class is one."""
        items = self.regions[0].items
        inner = [item.kind for item in items if isinstance(item, Region) and item.kind.inline]
        return len(items) - len(inner) + sum(kind.layers for kind in inner)


class Finder:
    """Finds the regions of a tree, the innermost first."""

    def __init__(self, tree: Tree, carried: Carried) -> None:
        self.tree = tree
        self.carried = carried
        self.position = {call: place for place, call in enumerate(tree.calls)}
        self.readers: dict[fx.Node, list[fx.Node]] = {}
        for call in tree.calls:
            for node in call.all_input_nodes:
                self.readers.setdefault(node, []).append(call)
        self.exported = set(tree.outputs)
        self.regions: dict[str, Region] = {}
        self.kinds: dict[object, Kind] = {}

    def run(self) -> Region:
        """Find all regions; returns that of the whole network."""
        root = self._region("", self.tree.calls)
        root.inputs = list(self.tree.inputs)
        root.outs = self.tree.outputs
        root.kind.chain = False
        for kind in self.kinds.values():
            for region in kind.regions:
                for item in region.items:
                    if isinstance(item, Region):
                        item.kind.sites.add((kind.number, region.local(item.prefix)))
        for kind in self.kinds.values():
            few = len(kind.sites) == 1 or kind.layers < WORTH
            kind.inline = kind.chain and few and bool(kind.regions[0].prefix)
        return root

    def sources(self, call: fx.Node) -> list[Source]:
        """What a call reads, each once."""
        found: dict[Source, None] = {}
        for node in call.all_input_nodes:
            found[self.tree.targets[node] if node.op == "get_attr" else node] = None
        return list(found)

    def _region(self, prefix: str, calls: list[fx.Node]) -> Region:
        items = self._items(prefix, calls)
        place = self.tree.places[prefix]
        region = Region(prefix, place, items, [], [])
        mine = set(calls)
        inputs: dict[Source, None] = {}
        for call in calls:
            for source in self.sources(call):
                inside = region.holds(source) if isinstance(source, str) else source in mine
                if not inside:
                    inputs[source] = None
        region.inputs = list(inputs)
        region.outs = [c for c in calls if self._leaves(c, mine)]
        key = self._key(region)
        kind = self.kinds.setdefault(key, Kind(len(self.kinds)))
        kind.chain = self._is_chain(region)
        region.kind, region.index = kind, len(kind.regions)
        kind.regions.append(region)
        self.regions[prefix] = region
        return region

    def _leaves(self, call: fx.Node, mine: set[fx.Node]) -> bool:
        return call in self.exported or any(r not in mine for r in self.readers.get(call, []))

    # -- what is a region

    def _items(self, prefix: str, calls: list[fx.Node]) -> list[fx.Node | Region]:
        """The calls and regions of a body, operands before their readers."""
        groups: dict[str, list[fx.Node]] = {}
        loose: list[fx.Node] = []
        self._split(prefix, calls, groups, loose)
        checked: set[str] = set()
        order: list[fx.Node | str] = []
        while True:
            for group in [g for g in groups if g not in checked]:
                checked.add(group)
                if not self._eligible(group, groups[group]):
                    self._split(group, groups.pop(group), groups, loose)
                    break
            else:
                order, stuck = self._order(groups, loose)
                if not stuck:
                    break
                widest = max(stuck, key=lambda g: len(groups[g]))
                self._split(widest, groups.pop(widest), groups, loose)
        return [e if isinstance(e, fx.Node) else self._region(e, groups[e]) for e in order]

    def _split(
        self,
        prefix: str,
        calls: list[fx.Node],
        groups: dict[str, list[fx.Node]],
        loose: list[fx.Node],
    ) -> None:
        cut = len(prefix) + 1 if prefix else 0
        for call in calls:
            segment, dot, _ = self.tree.homes[call][cut:].partition(".")
            if dot:
                groups.setdefault(f"{prefix}.{segment}" if prefix else segment, []).append(call)
            else:
                loose.append(call)

    def _eligible(self, prefix: str, calls: list[fx.Node]) -> bool:
        """Whether the calls below a path can be a module, and are worth one."""
        place = self.tree.places.get(prefix)
        if place is None or place.layer is not None:
            return False
        if not any(call.op == "call_module" for call in calls) and not place.tensors:
            return False
        return self._connected(calls) and self._convex(calls)

    def _connected(self, calls: list[fx.Node]) -> bool:
        """Whether each call has to do with the others."""
        mine, seen, stack = set(calls), {calls[0]}, [calls[0]]
        while stack:
            call = stack.pop()
            for other in (*call.all_input_nodes, *self.readers.get(call, [])):
                if other in mine and other not in seen:
                    seen.add(other)
                    stack.append(other)
        return len(seen) == len(mine)

    def _convex(self, calls: list[fx.Node]) -> bool:
        """Whether no way leads out of some calls and back to them."""
        mine = set(calls)
        after: set[fx.Node] = set()
        first, last = self.position[calls[0]], self.position[calls[-1]]
        for call in self.tree.calls[first : last + 1]:
            leads = any(node in after for node in call.all_input_nodes)
            if call in mine:
                if leads:
                    return False
            elif leads or any(node in mine for node in call.all_input_nodes):
                after.add(call)
        return True

    def _order(
        self, groups: dict[str, list[fx.Node]], loose: list[fx.Node]
    ) -> tuple[list[fx.Node | str], list[str]]:
        """The entries of a body in order; where there is none, the groups in the way."""
        owner: dict[fx.Node, fx.Node | str] = {call: call for call in loose}
        members: dict[fx.Node | str, list[fx.Node]] = {call: [call] for call in loose}
        for name, calls in groups.items():
            owner.update(dict.fromkeys(calls, name))
            members[name] = calls
        first = {e: min(self.position[c] for c in calls) for e, calls in members.items()}
        needs: dict[fx.Node | str, set[fx.Node | str]] = {}
        feeds: dict[fx.Node | str, list[fx.Node | str]] = {}
        for entry, calls in members.items():
            reads = {owner[n] for c in calls for n in c.all_input_nodes if n in owner} - {entry}
            needs[entry] = reads
            for read in reads:
                feeds.setdefault(read, []).append(entry)
        by_place = {first[entry]: entry for entry in members}
        ready = [first[entry] for entry in members if not needs[entry]]
        heapq.heapify(ready)
        order: list[fx.Node | str] = []
        while ready:
            entry = by_place[heapq.heappop(ready)]
            order.append(entry)
            for fed in feeds.get(entry, []):
                needs[fed].discard(entry)
                if not needs[fed]:
                    heapq.heappush(ready, first[fed])
        stuck = set(members) - set(order)
        while loose_ends := [e for e in stuck if not stuck.intersection(feeds.get(e, ()))]:
            stuck.difference_update(loose_ends)
        return order, [name for name in groups if name in stuck]

    # -- what is alike

    def _key(self, region: Region) -> object:
        """What two regions share that differ in numbers alone."""
        producer: dict[Source, tuple[object, ...]] = {}
        for index, item in enumerate(region.items):
            outs = item.outs if isinstance(item, Region) else [item]
            producer.update({out: ("item", index, port) for port, out in enumerate(outs)})
        producer.update({source: ("input", k) for k, source in enumerate(region.inputs)})

        def refer(source: Source) -> tuple[object, ...]:
            if isinstance(source, str) and source not in producer:
                return ("own", region.local(source))
            return producer[source]

        entries: list[object] = []
        for item in region.items:
            if isinstance(item, Region):
                reads = tuple(map(refer, item.inputs))
                entries.append((region.local(item.prefix), item.kind.number, reads))
                continue
            target = item.target
            if item.op == "call_module":
                target = region.local(self.tree.targets[item])

            def read(value: Any) -> Any:
                if isinstance(value, fx.Node):
                    return refer(self.tree.targets[value] if value.op == "get_attr" else value)
                if isinstance(value, slice):
                    return ("slice", *(type(v).__name__ for v in _parts(value)))
                if isinstance(value, tuple | list):
                    return (type(value).__name__, *map(read, value))
                if isinstance(value, dict):
                    return tuple((k, read(v)) for k, v in value.items())
                return type(value).__name__

            entries.append((item.op, target, read(item.args), read(dict(item.kwargs))))
        results = tuple(producer[out] for out in region.outs)
        return (not region.prefix, tuple(entries), results, self._shape(region.place, region))

    def _shape(self, place: Place, region: Region) -> object:
        """A place and what is below it, down to the regions that it holds."""
        found: list[object] = [place.layer and self.carried.layer(place.layer)]
        if place.layer is not None:
            found.append(tuple(argument.name for argument in arguments(place.layer)))
        for name, held in place.tensors.items():
            tensor = held.tensor
            kind = (str(tensor.dtype), held.kind, held.is_small, held.start is None)
            found.append((name, tensor.dim(), *kind))
        for name, child in place.children.items():
            inner = self.regions.get(child.path)
            found.append((name, inner.kind.number if inner else self._shape(child, region)))
        return tuple(found)

    def _is_chain(self, region: Region) -> bool:
        """Whether a region is a row of layers and chains in the order of its places."""
        place = region.place
        names = list(place.children)
        if place.tensors or not names or len(region.inputs) != 1 or len(names) != len(region.items):
            return False
        if any(hasattr(nn.Sequential(), name) for name in names):
            return False
        value = region.inputs[0]
        for name, item in zip(names, region.items, strict=True):
            path = place.children[name].path
            if isinstance(item, Region):
                if item.prefix != path or item.inputs != [value] or len(item.outs) != 1:
                    return False
                value = item.outs[0]
                continue
            plain = item.op == "call_module" and self.tree.targets[item] == path
            if (
                not plain
                or item.args != (value,)
                or item.kwargs
                or not place.children[name].is_plain
            ):
                return False
            value = item
        return region.outs == [value] and isinstance(region.inputs[0], fx.Node)


def _parts(value: slice) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step


def leaves(item: fx.Node) -> Iterator[tuple[tuple[object, ...], Any]]:
    """The numbers and words that a call states, each with its place among the arguments."""
    for index, value in enumerate(item.args):
        yield from _leaves(value, (index,))
    for name, value in item.kwargs.items():
        yield from _leaves(value, (name,))


def _leaves(value: Any, where: tuple[object, ...]) -> Iterator[tuple[tuple[object, ...], Any]]:
    if isinstance(value, fx.Node):
        return
    parts: Sequence[tuple[object, Any]]
    if isinstance(value, slice):
        parts = list(enumerate(_parts(value)))
    elif isinstance(value, tuple | list):
        parts = list(enumerate(value))
    elif isinstance(value, dict):
        parts = list(value.items())
    else:
        yield where, value
        return
    for key, part in parts:
        yield from _leaves(part, (*where, key))
