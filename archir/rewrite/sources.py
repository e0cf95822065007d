"""Parameters that are paths: tensors of the network that a rule reads beside what it matches."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from itertools import islice

from archir.diag import error
from archir.ir.graph import Graph, Value
from archir.ir.types import AttrValue, TensorType
from archir.rewrite.rule import Rule


def paths_of(rule: Rule) -> tuple[str, ...]:
    """The parameters of a rule that are paths."""
    return tuple(p.name for p in rule.parameters if p.kind == "path")


def tensor_at(graph: Graph, text: str) -> Value:
    """The tensor that a path means: the first result of its node, or `PATH:1` for the second.

    The end of a path does where it fits one node.

    Raises:
        ArchirError: A605, there is no such node, or it has no such result; A606, several fit.
    """
    path, _, number = text.partition(":")
    if path not in graph:
        ends = [n.name for n in graph if n.name.endswith(f".{path}")]
        if len(ends) > 1:
            raise error("A606", f"`{path}` fits several nodes: {', '.join(ends[:6])}")
        if not ends:
            close = difflib.get_close_matches(path, [n.name for n in graph], 3)
            hint = f"did you mean {' or '.join(close)}?" if close else ""
            raise error("A605", f"the network has no node `{path}`", hint=hint)
        (path,) = ends
    port = int(number) if number.isdecimal() else 0 if not number else -1
    if not 0 <= port < len(graph.node(path).types):
        raise error("A605", f"`{path}` has no result `{number}`", node=path)
    return Value(path, port)


def resolved(rule: Rule, arguments: Mapping[str, AttrValue], graph: Graph) -> dict[str, AttrValue]:
    """Arguments with whole paths.

    Raises:
        ArchirError: A605 and A606, as :func:`tensor_at`.
    """
    paths = paths_of(rule)
    return {
        name: str(tensor_at(graph, str(value))) if name in paths else value
        for name, value in arguments.items()
    }


def dependent(graph: Graph, names: Iterable[str]) -> set[str]:
    """The nodes that need any of these, and these."""
    found: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack.extend(reader.name for reader, _, _ in graph.readers(name))
    return found


class Earlier:
    """The tensors of floating-point numbers by type and use, to find those before a site."""

    def __init__(self, graph: Graph) -> None:
        self.place = {node.name: place for place, node in enumerate(graph)}
        self.batch = {node.name: node.types[0].shape[:1] for node in graph}
        self.kinds: dict[tuple[TensorType, int], list[tuple[int, Value]]] = {}
        for place, node in enumerate(graph):
            read = [port for _, _, port in graph.readers(node.name)]
            for port, type_ in enumerate(node.types):
                if "f" not in type_.dtype:
                    continue  # what a rule reads beside its match is computed with
                held = self.kinds.setdefault((type_, read.count(port)), [])
                held.append((place, Value(node.name, port)))

    def before(self, site: str, without: Collection[str]) -> list[Value]:
        """One tensor of each kind, the nearest before a site first; none of these nodes'.

        They have the first axis of the site's result: samples of one batch belong together.
        """
        end = (self.place[site], Value(""))
        found: list[tuple[int, Value]] = []
        for (type_, _), held in self.kinds.items():
            if type_.shape[:1] != self.batch[site]:
                continue
            near = reversed(held[: bisect_left(held, end)])
            found += islice((pair for pair in near if pair[1].node not in without), 1)
        return [value for _, value in sorted(found, reverse=True)]
