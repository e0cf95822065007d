"""A graph as a tree of scopes, by its paths, and which neighbours in it are alike."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node, Value
from archir.lang import tree as t
from archir.lang.program import Origin

MAX_SCOPES = 12
"""Scopes nest no deeper than this; what lies deeper has a longer name instead."""


@dataclass(eq=False)
class Scope:
    """What lies below a path: nodes and further scopes, by their first node's place.

    ``name`` is the path as its parent shows it. ``outer`` is the path of the outermost scope
    that was joined with it: the same layers lie below both.
    """

    path: str
    name: str
    members: list[Scope | Node] = field(default_factory=list)
    outer: str = ""

    def nodes(self) -> Iterator[Node]:
        """All nodes in it, those of inner scopes included."""
        for member in self.members:
            if isinstance(member, Scope):
                yield from member.nodes()
            else:
                yield member


@dataclass(frozen=True, eq=False)
class Fold:
    """A member of a scope, with the neighbours after it that are like it."""

    first: Scope | Node
    others: tuple[Scope, ...] = ()


def outline(graph: Graph, at: str = "") -> Scope:
    """The scopes of a graph. A scope that holds nothing but one scope is joined with it.

    Args:
        graph: The graph.
        at: The path of the only scope that is asked for, or of a node, which is then alone.

    Raises:
        ArchirError: A605, there is no such path.
    """
    root = Scope("", "")
    scopes = {"": root}
    for node in graph:
        owner = root
        for path in _prefixes(node.name):
            if path not in scopes:
                scopes[path] = Scope(path, relative(path, owner.path))
                owner.members.append(scopes[path])
            owner = scopes[path]
        owner.members.append(node)
    for scope in list(scopes.values()):
        scope.members = [_joined(member, scope.path) for member in scope.members]
    if at in scopes:
        return scopes[at]
    if at in graph:
        return Scope(at, at, [graph.node(at)])
    raise _unknown(at, [*list(scopes)[1:], *(node.name for node in graph)])


def _unknown(at: str, known: Sequence[str]) -> ArchirError:
    """That there is no such path, with those that end so, or else with those that read alike."""
    close = [path for path in known if path.endswith(f".{at}")][:3]
    close = close or difflib.get_close_matches(at, known, 3)
    tops = dict.fromkeys(path.partition(".")[0] for path in known)
    hint = f"did you mean {' or '.join(close)}?" if close else _some("there are", list(tops))
    return error("A605", f"the network has no block or layer `{at}`", hint=hint)


def _some(what: str, names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what} {', '.join(names[:most])}{more}"


class Crossing(NamedTuple):
    """A value that enters or leaves a scope, and in words whence or where to."""

    value: Value
    text: str


def entering(scope: Scope, graph: Graph) -> list[Crossing]:
    """The values from outside that a scope reads, each once: ``from stem.0``."""
    if not scope.path:
        return []
    return [Crossing(value, f"from {value}") for value in dict.fromkeys(_reads(scope, graph))]


def leaving(scope: Scope, graph: Graph) -> list[Crossing]:
    """The values of a scope that are read outside, each once: ``to cells.1, cells.2``.

    Readers are called by what stands beside the scope; the network's outputs are read too.
    """
    if not scope.path:
        return []
    inside = {node.name for node in scope.nodes()}
    found: dict[Value, dict[str, None]] = {}
    for node in scope.nodes():
        for user, _, port in graph.readers(node.name):
            if user.name not in inside:
                to = found.setdefault(Value(node.name, port), {})
                to[_beside(user.name, scope.path)] = None
    for output in graph.outputs:
        if output.value.node in inside:
            found.setdefault(output.value, {})[f"output {output.name}"] = None
    return [Crossing(value, _some("to", list(names), 4)) for value, names in found.items()]


def _beside(path: str, scope: str) -> str:
    """The beginning of a path that is one part longer than what it shares with a scope's."""
    parts = path.split(".")
    shared = 0
    for own, other in zip(parts, scope.split("."), strict=False):
        if own != other:
            break
        shared += 1
    return ".".join(parts[: shared + 1])


def height(scope: Scope) -> int:
    """How many levels of scopes lie in a scope."""
    inner = [height(member) for member in scope.members if isinstance(member, Scope)]
    return 1 + max(inner) if inner else 0


def block_names(origins: Mapping[str, Origin]) -> dict[str, str]:
    """The block that each scope of a program is an instance of, by the scope's path."""
    found: dict[str, str] = {}
    for origin in origins.values():
        scope = origin.scope
        while scope.parent is not None and scope.path not in found:
            if isinstance(scope.block, t.Block):
                found[scope.path] = scope.block.name.text
            scope = scope.parent
    return found


def kind_of(scope: Scope, kinds: Mapping[str, str]) -> str:
    """The block that a scope is an instance of, or the outermost of those joined; "" if none."""
    first = len((scope.outer or scope.path).split("."))
    parts = scope.path.split(".")
    paths = (".".join(parts[:length]) for length in range(first, len(parts) + 1))
    return next((kinds[path] for path in paths if path in kinds), "")


def is_convex(scope: Scope, order: Mapping[str, int], nodes: Sequence[Node]) -> bool:
    """Whether no way leads out of a scope and back into it.

    Args:
        scope: The scope.
        order: The place of every node in ``nodes``.
        nodes: All nodes of the graph, operands before their readers.
    """
    inside = {node.name for node in scope.nodes()}
    places = [order[name] for name in inside]
    after: set[str] = set()
    for node in nodes[min(places) : max(places) + 1]:
        leads = any(value.node in after for value in node.inputs)
        if node.name in inside:
            if leads:
                return False
        elif leads or any(value.node in inside for value in node.inputs):
            after.add(node.name)
    return True


def _prefixes(path: str) -> list[str]:
    """The scopes that a path lies in, the outermost first."""
    parts = path.split(".", MAX_SCOPES)[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _joined(member: Scope | Node, above: str) -> Scope | Node:
    while isinstance(member, Scope) and len(member.members) == 1:
        (only,) = member.members
        if not isinstance(only, Scope):
            break
        outer = member.outer or member.path
        member = Scope(only.path, relative(only.path, above), only.members, outer)
    return member


def relative(path: str, scope: str) -> str:
    """A path as it is called within a scope."""
    return path[len(scope) + 1 :] if scope and path.startswith(f"{scope}.") else path


def folds(members: Sequence[Scope | Node], graph: Graph, *, chained: bool) -> list[Fold]:
    """Put neighbouring scopes together that hold the same layers.

    Args:
        members: Of one scope, in order.
        graph: The graph they are from.
        chained: Whether each of them must also read the one before it, as it does its own
            predecessor, and be read by nothing but the one after it: a true repeat.
    """
    found: list[Fold] = []
    index = 0
    while index < len(members):
        first = members[index]
        others: list[Scope] = []
        if isinstance(first, Scope):
            others = _alike(first, members[index + 1 :], graph)
            if chained and others:
                others = _chain(first, others, graph)
        found.append(Fold(first, tuple(others)))
        index += 1 + len(others)
    return found


def _alike(first: Scope, after: Sequence[Scope | Node], graph: Graph) -> list[Scope]:
    likeness: Hashable | None = None
    found = []
    for member in after:
        if not isinstance(member, Scope):
            break
        likeness = likeness or _likeness(first, graph)
        if _likeness(member, graph) != likeness:
            break
        found.append(member)
    return found


def _likeness(scope: Scope, graph: Graph) -> Hashable:
    """What two scopes share that differ in their place alone."""
    inside = {node.name for node in scope.nodes()}

    def source(value: Value) -> Hashable:
        known = value.node in inside
        return relative(value.node, scope.path) if known else None, value.port if known else 0

    return tuple(
        (
            relative(node.name, scope.path),
            node.op,
            repr(sorted(node.attrs.items())),
            node.types,
            tuple((source(value), graph.type_of(value)) for value in node.inputs),
            tuple(
                (role, relative(path, scope.path), graph.parameters[path].type)
                for role, path in node.params.items()
            ),
        )
        for node in scope.nodes()
    )


def _chain(first: Scope, others: Sequence[Scope], graph: Graph) -> list[Scope]:
    """The first of ``others`` that continue a chain which ``first`` begins."""
    start = _reads(first, graph)
    chain = [first]
    carried: list[Value | None] | None = None
    for scope in others:
        previous = chain[-1]
        taken = [_carried(value, previous) for value in _reads(scope, graph)]
        entries = zip(taken, start, _reads(scope, graph), strict=True)
        if any(inner is None and outer != own for inner, outer, own in entries):
            break
        if carried is not None and taken != carried:
            break
        if not any(taken) or not _one_entry_each(taken, start):
            break
        if not _read_only_by(previous, scope, graph):
            break
        carried = taken
        chain.append(scope)
    return chain[1:]


def _one_entry_each(taken: Sequence[Value | None], start: Sequence[Value]) -> bool:
    """Whether what comes from one value of the predecessor came from one value at the start."""
    pairs = {(inner, outer) for inner, outer in zip(taken, start, strict=True) if inner}
    return len(pairs) == len({inner for inner, _ in pairs})


def _reads(scope: Scope, graph: Graph) -> list[Value]:
    """The values from outside that a scope reads, one for each place."""
    inside = {node.name for node in scope.nodes()}
    return [v for node in scope.nodes() for v in node.inputs if v.node not in inside]


def _carried(value: Value, scope: Scope) -> Value | None:
    """A value of a scope under its name in there; None for what comes from elsewhere."""
    if not value.node.startswith(f"{scope.path}."):
        return None
    return Value(relative(value.node, scope.path), value.port)


def _read_only_by(scope: Scope, reader: Scope, graph: Graph) -> bool:
    inside = {node.name for node in (*scope.nodes(), *reader.nodes())}
    return not any(
        graph.is_output(node.name)
        or any(user.name not in inside for user, _, _ in graph.readers(node.name))
        for node in scope.nodes()
    )
