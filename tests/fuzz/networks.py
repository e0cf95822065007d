"""Random networks, whole: one generator for hypothesis and for seeds.

    @given(networks())
    def test_something(case: Case) -> None: ...

A failing example is shrunk and printed as its text, with the command that repeats the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property

from hypothesis import strategies as st

from archir.diag import ArchirError
from archir.ir.dims import symbol
from archir.ir.graph import Graph, GraphBuilder, Output, Value, reachable
from archir.lang import print_graph
from archir.ops import STANDARD

from . import blocks, layouts, pieces, sequences
from .sketch import Choices, Drawn, Piece, Seeded, Sketch

PIECES: tuple[Piece, ...] = (
    pieces.activation,
    pieces.conv,
    pieces.linear,
    pieces.norm,
    pieces.combine,
    pieces.join,
    pieces.split,
    pieces.pool,
    pieces.conv,
    pieces.global_pool,
    pieces.flatten,
    pieces.free,
    pieces.conv,
    pieces.activation,
    pieces.transposed,
    pieces.adaptive,
    pieces.dropout,
    pieces.nothing,
    pieces.softmax,
    pieces.curve,
    pieces.activation,
    blocks.residual,
    blocks.dense,
    blocks.bottleneck,
    blocks.branches,
    blocks.gate,
    blocks.shuffle,
    blocks.hourglass,
    layouts.chunk,
    layouts.cut,
    layouts.roll,
    layouts.pad,
    layouts.upsample,
    layouts.reshape,
    layouts.permute,
    layouts.unsqueeze,
    layouts.pixels,
    layouts.reduction,
    layouts.product,
    sequences.attention,
    sequences.by_hand,
    sequences.mlp,
    sequences.patches,
    sequences.first_token,
    sequences.unembed,
)
"""What a network is made of; what stands twice is drawn twice as often."""
LONGEST = 25
"""The most nodes before the ends are put on."""
SEGMENTS = ("a", "relu", "conv1", "0", "", "1", "input", "x-y", "we`ird", "k.1", "b", "add")
"""Segments of odd paths."""


class Case:
    """A network that is shown as its text."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @cached_property
    def text(self) -> str:
        """The network as an `.arch` file."""
        return print_graph(self.graph, STANDARD)

    def __repr__(self) -> str:
        command = "uv run python benchmarks/fuzz.py --file failing.arch"
        try:
            self.text  # noqa: B018 - what cannot be written is shown node by node
        except ArchirError:
            return "\n" + "\n".join(map(str, self.graph)) + "\n"
        return f"\n{self.text}\n# saved as failing.arch, this repeats all checks: {command}\n"


@st.composite
def networks(draw: st.DrawFn) -> Case:
    """Networks of all families, valid by construction."""
    return Case(network(Drawn(draw)))


def seeded(*seed: int) -> Case:
    """The network of a seed."""
    return Case(network(Seeded(*seed)))


def network(choices: Choices) -> Graph:
    """A network of up to about thirty nodes."""
    s = Sketch(choices)
    if s.rarely():
        s.batch = choices.pick((2, 3))
    for _ in range(1 + s.rarely()):
        s.keep(_input(s))
    for _ in range(LONGEST):
        # The simplest choice, 0, ends it: steps that do not matter shrink away.
        if not choices.integer(0, 23) or len(s.builder.nodes) >= LONGEST:
            break
        choices.pick(PIECES)(s)
    graph = _finish(s)
    return odd(graph, choices) if s.rarely() else graph


def _input(s: Sketch) -> Value:
    c = s.choices.pick((3, 1, 2, 4, 6, 8))
    rank = s.choices.pick((4, 4, 4, 3, 2, 5, 0))
    if rank == 0:
        return sequences.embed(s)
    if rank == 2:
        return s.input(s.batch, c)
    if rank == 3 and s.rarely():
        return s.input(s.batch, symbol("T"), c)
    if rank == 3:
        return s.input(s.batch, c, s.choices.pick((6, 8, 4)))
    if rank == 5:
        return s.input(s.batch, c, *s.choices.pick(((3, 2, 4), (2, 4, 3))))
    return s.input(s.batch, c, *s.choices.pick(((4, 6), (8, 7), (5, 5), (8, 8))))


def _finish(s: Sketch) -> Graph:
    """Choose the outputs: what nothing reads ends the network, lies dead, or is left out."""
    read = {value for node in s.builder.nodes.values() for value in node.inputs}
    loose = [value for value in reversed(s.values) if value not in read] or [s.values[-1]]
    ends = loose[:1]
    ends += [value for value in loose[1:4] if s.rarely()]
    if s.rarely():
        ends.append(s.choices.pick(s.values))
    dead = s.rarely()
    for number, value in enumerate(ends):
        s.builder.outputs.append(Output(f"y{number}", blocks.head(s, value)))
    graph = s.builder.build()
    return graph if dead else without(graph, {n.name for n in graph} - reachable(graph))


def without(graph: Graph, names: Iterable[str]) -> Graph:
    """A graph less nodes that nothing else reads; the inputs stay."""
    gone = set(names) - set(graph.inputs)
    builder = graph.edit()
    builder.nodes = {name: node for name, node in builder.nodes.items() if name not in gone}
    return builder.build()


def odd(graph: Graph, choices: Choices) -> Graph:
    """The same network under odd paths, some parameters far from their layers."""
    taken: set[str] = set()

    def path(old: str) -> str:
        found = ".".join(choices.pick(SEGMENTS) for _ in range(choices.integer(1, 2)))
        while found in taken or not found:
            found += choices.pick(("1", "_", ".0"))
        taken.add(found)
        return found

    names = {node.name: path(node.name) for node in graph}
    users = graph.users()
    paths = {}
    for old in graph.parameters:
        node, role = users[old][0]
        own = names[node] if graph.node(node).op == "parameter" else f"{names[node]}.{role}"
        paths[old] = f"far.{own}" if choices.integer(0, 7) == 7 else own
    return renamed(graph, names.__getitem__, paths.__getitem__)


def renamed(graph: Graph, name: Callable[[str], str], path: Callable[[str], str]) -> Graph:
    """The same network, nodes and parameters under other names."""
    builder = GraphBuilder(graph.name, inputs=[name(i) for i in graph.inputs])

    def moved(value: Value) -> Value:
        return Value(name(value.node), value.port)

    for node in graph:
        params = {role: path(held) for role, held in node.params.items()}
        inputs = tuple(map(moved, node.inputs))
        builder.add(replace(node, name=name(node.name), inputs=inputs, params=params))
    for held in graph.parameters.values():
        builder.parameters[path(held.path)] = replace(held, path=path(held.path))
    builder.outputs = [Output(o.name, moved(o.value)) for o in graph.outputs]
    builder.meta = dict(graph.meta)
    return builder.build()
