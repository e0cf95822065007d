"""Names of nodes: where the source's modules have them, else after the operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from archir.ir.graph import Node, Value

OUTPUT = "logits"


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
    """
    wishes: dict[str, str] = {}
    scopes = {hint.scope for hint in hints.values()}
    for key, node in nodes.items():
        hint = hints[key]
        wishes[key] = hint.own if hint.fixed else _of_weight(node)
    layers = {wish for wish in wishes.values() if wish}
    for key, node in nodes.items():
        if not wishes[key]:
            scope = _around(hints[key].scope, layers, scopes)
            wishes[key] = ".".join(p for p in (scope, hints[key].own or node.op) if p)
    prefixes = _prefixes(wishes.values())
    for key, node in nodes.items():
        if wishes[key] in prefixes:
            wishes[key] = f"{wishes[key]}.{node.op.rpartition('.')[2]}"
    many = {wish for wish, count in Counter(wishes.values()).items() if count > 1}
    taken = set(wishes.values()) - many
    found: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    for key in nodes:
        name = wish = wishes[key]
        while name in many or (name in taken and wish in many) or name in prefixes:
            numbers[wish] += 1
            name = f"{wish}{'_' if wish[-1:].isdigit() else ''}{numbers[wish]}"
        found[key] = name
        taken.add(name)
    return found


def _around(scope: str, layers: set[str], scopes: set[str]) -> str:
    """The module around one that only computes; a module with parts of its own stays."""
    inside = f"{scope}."
    if not scope or scope in layers or any(s.startswith(inside) for s in (*layers, *scopes)):
        return scope
    return scope.rpartition(".")[0]


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


def _of_weight(node: Node) -> str:
    """The path that a layer's parameters lie at, if they lie together."""
    if not node.params:
        return ""
    found = set()
    for role, path in node.params.items():
        base, end = path.removesuffix(role), path.endswith(role)
        if node.op == "parameter":
            return path
        found.add(base.rstrip("._") if end else path)
    return found.pop() if len(found) == 1 else next(iter(node.params.values()))


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
