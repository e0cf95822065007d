"""Names of nodes: where the source's modules have them, else after the operator."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from archir.ir.graph import Node, Value

OUTPUT = "logits"
_CONTAINERS = ("Module", "Sequential", "ModuleList", "ModuleDict")
_CAPITALS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a word begins in a class's name."""


@dataclass(frozen=True, slots=True)
class Hint:
    """How a node wants to be called: the module whose code makes it, and a name in there."""

    scope: str
    own: str = ""
    """A name below the scope; empty for the scope's own."""
    fixed: bool = False


def settle(nodes: Mapping[str, Node], hints: Mapping[str, Hint]) -> dict[str, str]:
    """A path for each node: different ones, none of which lies below another.

    A layer gets the path of its parameters. Others get their operator's name within the module
    around, as the language names what has no label: numbered from 1 where it is not unique.
    What an attention reads is called `q`, `k` and `v`.
    """
    wishes: dict[str, str] = {}
    scopes = {hint.scope for hint in hints.values()}
    for key, node in nodes.items():
        hint = hints[key]
        wishes[key] = hint.own if hint.fixed else _of_weight(node, hint.scope)
    layers = {wish for wish in wishes.values() if wish}
    owners = {key for key, wish in wishes.items() if wish}
    inner = _prefixes([*layers, *scopes])
    deep = _prefixes(layers)
    letters = _letters(nodes, hints)
    for key, node in nodes.items():
        if not wishes[key]:
            scope = _around(hints[key].scope, layers - deep, inner)
            own = hints[key].own or letters.get(key) or node.op.rpartition(".")[2]
            wishes[key] = ".".join(p for p in (scope, own) if p)
    prefixes = _prefixes(wishes.values())
    for key, node in nodes.items():
        if wishes[key] in prefixes:
            wishes[key] = f"{wishes[key]}.{node.op.rpartition('.')[2]}"
    counts = Counter(wishes.values())
    owned = Counter(wishes[key] for key in owners)
    many = {wish for wish, count in counts.items() if count > 1}
    found: dict[str, str] = {key: wishes[key] for key in owners if owned[wishes[key]] == 1}
    taken = (set(wishes.values()) - many) | set(found.values())
    numbers: Counter[str] = Counter()
    for key in nodes:
        if key in found:
            continue
        name = wish = wishes[key]
        while name in many or (name in taken and wish in many) or name in prefixes:
            numbers[wish] += 1
            name = f"{wish}{'_' if wish[-1:].isdigit() else ''}{numbers[wish]}"
        found[key] = name
        taken.add(name)
    return {key: found[key] for key in nodes}


def _around(scope: str, layers: AbstractSet[str], inner: AbstractSet[str]) -> str:
    """The module around one that only computes, or that is a layer with something around it.

    Args:
        scope: The module.
        layers: The paths of layers with nothing below them.
        inner: The modules that have others in them, or layers.
    """
    while scope and (scope in layers or scope not in inner):
        scope = scope.rpartition(".")[0]
    return scope


def _letters(nodes: Mapping[str, Node], hints: Mapping[str, Hint]) -> dict[str, str]:
    """What computes the operands of an attention, in the module of that."""
    found: dict[str, str] = {}
    for key, node in nodes.items():
        if not node.op.endswith("attention") or len(node.inputs) < 3:
            continue
        sources = [value.node for value in node.inputs[:3]]
        for letter, source in zip("qkv", sources, strict=True):
            if hints[source].scope == hints[key].scope and sources.count(source) == 1:
                found.setdefault(source, letter)
    return found


def block_names(classes: Mapping[str, str]) -> dict[str, str]:
    """Names for blocks after the modules' classes, by path; a mere container gives none.

    >>> block_names({"layer1": "Sequential", "layer1.0": "BasicBlock", "a": "SEModule"})
    {'layer1.0': 'basic_block', 'a': 'se_module'}
    """
    return {
        path: _CAPITALS.sub("_", name).lower().strip("_")
        for path, name in classes.items()
        if path and name not in _CONTAINERS
    }


def output_names(outputs: Sequence[tuple[str, Value]], taken: Iterable[str]) -> list[str]:
    """Names for the outputs: `logits` for the first, the head's module for others."""
    used = set(taken)
    found = []
    for place, (scope, _) in enumerate(outputs):
        head = scope.partition(".")[0]
        wish = OUTPUT if place == 0 or not head else f"{head}_{OUTPUT}"
        found.append(_free(wish, used, set()))
        used.add(found[-1])
    return found


def _of_weight(node: Node, scope: str) -> str:
    """The path that a layer's parameters lie at, if they lie together; else its module's."""
    if node.op == "parameter":
        return node.params["value"]
    found = set()
    for role, path in node.params.items():
        found.add(path.removesuffix(role).rstrip("._") if path.endswith(role) else path)
    if scope in found:
        return scope
    return found.pop() if len(found) == 1 else ""


def _prefixes(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        parts = name.split(".")
        found.update(".".join(parts[:count]) for count in range(1, len(parts)))
    return found


def _free(wish: str, taken: set[str], prefixes: set[str]) -> str:
    name, number = wish, 0
    while name in taken or name in prefixes:
        number += 1
        name = f"{wish}{'_' if wish[-1:].isdigit() else ''}{number}"
    return name
