"""DenseNets with bottlenecks, and how EAS lets them grow.

Cai, Chen, Zhang, Yu, Wang 2018, "Efficient architecture search by network transformation" (EAS,
arXiv 1707.04873), over the DenseNet-BC of Huang, Liu, van der Maaten, Weinberger 2017. A network is
what comes before the first block, blocks of layers (batch norm, ReLU, convolution of 1 x 1, batch
norm, ReLU, convolution; the result is joined to what was read) with transitions between them, and
a last normalisation with a linear layer. Each layer has a growth rate of its own. Importing this
module needs no torch.

Levels, the most layers in a block, and what is widened along are those of the authors' code [C].
What was not found, and is our choice [own]: a block that is full takes no more layers; no noise
is added. A layer is inserted by three rules in a row, which keep the function in evaluation and in
training: the layer's channels are copied, each once (the code draws the copies with replacement);
`deepen.dense_layer` makes the copies behind the layer; `merge.concat_norm` makes its
normalisation one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from archir.api import Application
from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node
from archir.ops import installed_ops
from archir.rewrite.library import Library, find_rule, installed
from archir.rewrite.sites import Planner
from archir.search.sequences import Layer, LayerSequence

GROWTHS = tuple(range(4, 49, 2))
"""Levels of a layer's growth rate [C]."""
BOTTLENECK = 4
"""So many times a layer's growth rate are the channels of its bottleneck [C]."""
COMPRESSION = 0.5
"""So many of the channels that a transition reads it makes at least, in the end [C]."""
FIRST = 2
"""So many times the mean growth rate the first convolution makes at least, in the end [C]."""


@dataclass(frozen=True)
class _Dense:
    """A layer of a block."""

    narrow: Node
    """The convolution that makes its bottleneck."""
    conv: Node
    join: Node
    """What joins it to what it read."""

    @property
    def growth(self) -> int:
        """The channels that it adds."""
        return _width(self.conv)


@dataclass(frozen=True)
class _Network:
    """The parts of a DenseNet."""

    first: Node
    """The convolution that makes what the first block reads."""
    blocks: tuple[tuple[_Dense, ...], ...]
    transitions: tuple[Node, ...]
    """Their convolutions."""


@dataclass(frozen=True)
class DenseSpace:
    """A :class:`archir.search.sequences.LayerSpace` of DenseNets."""

    growths: tuple[int, ...] = GROWTHS
    """The growth rates that layers have."""
    widen_rule: str = "widen.shares"
    most: tuple[int, int, int] = (62, 3, 20)
    """Layers, blocks, and layers in a block: 3 and 20 [C], and two transitions."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words that stand for layers: ``g12`` adds 12 channels, ``t`` is a transition."""
        return (*(f"g{growth}" for growth in self.growths), "t")

    @property
    def kernels(self) -> tuple[int, ...]:
        """An inserted layer has the kernels of the layer before it: nothing is chosen."""
        return (3,)

    def read(self, graph: Graph) -> LayerSequence:
        """A network as a sequence.

        Raises:
            ArchirError: A761, it is no DenseNet; A762, it has more layers than the policy can read,
                or a growth rate that is no level.
        """
        found = _read(graph)
        _, most, within = self.most
        if len(found.blocks) > most:
            raise _too_much(f"it has {len(found.blocks)} dense blocks, the policy reads {most}")
        layers: list[Layer] = []
        blocks: list[tuple[int, ...]] = []
        for number, block in enumerate(found.blocks):
            if len(block) > within:
                raise _too_much(f"a block has {len(block)} layers, the policy reads {within}")
            places = tuple(range(len(layers), len(layers) + len(block)))
            blocks.append(places if len(block) < within else ())
            layers += [self._layer(dense) for dense in block]
            if number < len(found.transitions):
                layers.append(Layer("t", found.transitions[number].name, wider=False))
        return LayerSequence(tuple(layers), tuple(blocks), (False,) * len(blocks))

    def widened(self, graph: Graph, layer: int) -> list[Application]:
        """The rules that take a layer to the next level of its growth, its bottleneck along."""
        at = self.read(graph).layers[layer].at
        dense = next(d for block in _read(graph).blocks for d in block if d.conv.name == at)
        growth = min(level for level in self.growths if level > dense.growth)
        return [
            *self._wide(dense.narrow, BOTTLENECK * growth),
            *self._wide(dense.conv, growth),
        ]

    def deepened(self, graph: Graph, block: int, place: int, kernel: int) -> list[Application]:
        """The rules that insert a layer behind another, by its block and its place in there."""
        dense = _read(graph).blocks[block][place]
        uses = [
            *self._wide(dense.conv, 2 * dense.growth),
            Application("deepen.dense_layer", dense.join.name, {"growth": dense.growth}),
        ]
        ops, library = installed_ops(), _library()
        for use in uses:
            rule = find_rule(use.rule, library, ops)
            graph = Planner(graph, ops).plan(rule, str(use.at), use.arguments).after
        last = find_rule("merge.concat_norm", library, ops)
        (site,) = Planner(graph, ops).sites(last)
        return [*uses, Application(last.name, site.at)]

    def finished(self, graph: Graph) -> list[Application]:
        """The rules that follow in the end: widths of the first convolution and of transitions."""
        found = _read(graph)
        growths = [dense.growth for block in found.blocks for dense in block]
        width = max(_width(found.first), int(FIRST * sum(growths) / len(growths)))
        uses = self._wide(found.first, width)
        for block, transition in zip(found.blocks, found.transitions, strict=False):
            width += sum(dense.growth for dense in block)
            width = max(_width(transition), int(COMPRESSION * width))
            uses += self._wide(transition, width)
        return uses

    def _wide(self, conv: Node, width: int) -> list[Application]:
        """The rule that gives a convolution so many channels, if it has fewer."""
        if width <= _width(conv):
            return []
        return [Application(self.widen_rule, conv.name, {"width": width})]

    def _layer(self, dense: _Dense) -> Layer:
        growth, levels = dense.growth, self.growths
        if growth not in levels:
            hint = f"set growths to levels that hold {growth}"
            told = f"{dense.conv.name} adds {growth} channels, which is no level of `growths`"
            raise error("A762", told, hint=hint)
        return Layer(f"g{growth}", dense.conv.name, wider=growth < max(levels))


@cache
def _library() -> Library:
    return installed(installed_ops())


def _read(graph: Graph) -> _Network:
    """The parts of a network.

    Raises:
        ArchirError: A761, it is no DenseNet.
    """
    first: Node | None = None
    blocks: list[list[_Dense]] = []
    transitions: list[Node] = []
    between: list[Node] = []
    for node in _spine(graph):
        if node.op != "concat":
            between.append(node)
            continue
        if between:
            made = [n for n in between if n.op == "conv"]
            if not made or (blocks and len(made) > 1):
                where = f"before {node.name}" if first is None else f"{blocks[-1][-1].join.name} on"
                raise _no_dense(f"{len(made)} convolutions stand between blocks, {where}")
            if first is None:
                first = made[-1]
            else:
                transitions.append(made[-1])
            blocks.append([])
            between = []
        blocks[-1].append(_dense(graph, node))
    if first is None:
        raise _no_dense("no layer is joined to what it reads")
    ends = [n for n in between if n.op in ("conv", "linear")]
    if [n.op for n in ends] != ["linear"]:
        raise _no_dense("behind the last block there is something else than one linear layer")
    return _Network(first, tuple(map(tuple, blocks)), tuple(transitions))


def _spine(graph: Graph) -> list[Node]:
    """The nodes from the input to the output; of what is joined, the first.

    Raises:
        ArchirError: A761, something else is joined, or an operator is of another kind.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise _no_dense("it has not one input and one output")
    found: list[Node] = []
    at = graph.outputs[0].value.node
    while at != graph.inputs[0]:
        node = graph.node(at)
        if node.op not in _SPINE:
            raise _no_dense(f"{node.name} is {node.op}")
        found.append(node)
        at = node.inputs[0].node
    return found[::-1]


def _dense(graph: Graph, join: Node) -> _Dense:
    """The layer whose result is joined to what it reads.

    Raises:
        ArchirError: A761, it is no such layer.
    """
    if len(join.inputs) != 2 or join.attrs["axis"] != 1:
        hint = "each layer is to be joined to what it reads: `concat(input, new)`"
        told = f"{join.name} joins {len(join.inputs)} tensors along axis {join.attrs['axis']}"
        raise _no_dense(told, hint)
    held: list[Node] = []
    at = join.inputs[1].node
    for op in ("conv", "relu", "batch_norm") * 2:
        node = graph.node(at) if at not in graph.inputs else None
        if node is None or node.op != op:
            kind = "the input" if node is None else node.op
            raise _no_dense(f"{at}, in the layer that {join.name} joins, is {kind} and not {op}")
        held.append(node)
        at = node.inputs[0].node
    conv, _, _, narrow, _, _ = held
    if at != join.inputs[0].node:
        raise _no_dense(f"{join.name} joins a layer to something else than what it reads")
    return _Dense(narrow, conv, join)


def _width(conv: Node) -> int:
    width = conv.attrs["out"]
    assert isinstance(width, int)
    return width


def _no_dense(why: str, hint: str = "examples/densenet_bc_40_12.arch is one") -> ArchirError:
    return error("A761", f"this is no DenseNet as EAS has them: {why}", hint=hint)


def _too_much(why: str) -> ArchirError:
    return error("A762", f"the policy cannot read this network: {why}")


_SPINE = (
    *("conv", "concat", "batch_norm", "relu", "dropout", "identity", "linear", "flatten"),
    *("max_pool", "avg_pool", "global_avg_pool", "softmax", "log_softmax"),
)
