"""Plain networks of convolutions, pooling and linear layers, and how EAS lets them grow.

Cai, Chen, Zhang, Yu, Wang 2018, "Efficient architecture search by network transformation" (EAS,
arXiv 1707.04873): a chain without skips. Levels of width, kernels, and the most layers that the
policy reads are those of the authors' code [C]. Importing this module needs no torch.

What was not found, and is our choice: a block or a network that is full takes no more layers; a
network without a hidden linear layer gets none; what is dropped out stays behind the layers that
are inserted before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from archir.api import Application
from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node
from archir.search.sequences import Layer, LayerSequence

FILTERS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640)
"""Levels of convolutions for runs of the paper's size [C]."""
UNITS = (64, 128, 256, 384, 512, 640, 768, 896, 1024, 1152, 1280)
"""Those of linear layers [C]."""

_POOLS = ("max_pool", "avg_pool", "global_avg_pool")
_BETWEEN = ("batch_norm", "relu", "dropout")
_SILENT = ("flatten", "softmax", "log_softmax", "identity")


@dataclass(frozen=True)
class _Read:
    """A layer with what belongs to it."""

    layer: Layer
    end: str
    """Its ReLU, behind which a layer is inserted; empty of a pooling."""
    width: int = 0


@dataclass(frozen=True)
class PlainSpace:
    """A :class:`archir.search.sequences.LayerSpace` of plain networks."""

    filters: tuple[int, ...] = FILTERS
    """The widths that convolutions have."""
    units: tuple[int, ...] = UNITS
    """The widths that hidden linear layers have."""
    kernels: tuple[int, ...] = (1, 3, 5)
    """Those of convolutions [C]."""
    widen_rule: str = "widen.shares"
    most: tuple[int, int, int] = (50, 5, 10)
    """Layers, blocks, and layers in a block [C]."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words that stand for layers."""
        convs = (f"conv-{width}-{kernel}" for width in self.filters for kernel in self.kernels)
        return (*convs, *(f"fc-{width}" for width in self.units), "pool")

    def read(self, graph: Graph) -> LayerSequence:
        """A network as a sequence.

        Raises:
            ArchirError: A761, it is no plain network; A762, it has more layers than the policy can
                read, or a width or a kernel that no word stands for.
        """
        found = self._read(graph)
        blocks = self._blocks(found)
        layers, most_blocks, within = self.most
        if len(found) > layers:
            raise _too_much(f"it has {len(found)} layers, the policy reads {layers}")
        if len(blocks) > most_blocks:
            raise _too_much(f"it has {len(blocks)} blocks between pools, it reads {most_blocks}")
        longest = max(map(len, blocks), default=0)
        if longest > within:
            raise _too_much(f"a block has {longest} layers, the policy reads {within}")
        full = len(found) == layers
        return LayerSequence(
            tuple(read.layer for read in found),
            tuple(() if full or len(block) == within else block for block in blocks),
            tuple(not block or found[block[0]].layer.token[0] == "c" for block in blocks),
        )

    def widened(self, graph: Graph, layer: int) -> list[Application]:
        """The rule that takes a layer to the next level of its width."""
        read = self._read(graph)[layer]
        levels = self.filters if read.layer.token.startswith("conv") else self.units
        width = min(level for level in levels if level > read.width)
        return [Application(self.widen_rule, read.layer.at, {"width": width})]

    def deepened(self, graph: Graph, block: int, place: int, kernel: int) -> list[Application]:
        """The rule that inserts a layer behind another, by its block and its place in there."""
        found = self._read(graph)
        read = found[self._blocks(found)[block][place]]
        if read.layer.token.startswith("fc"):
            return [Application("deepen.linear.batch_norm", read.end)]
        return [Application("deepen.batch_norm", read.end, {"kernel": kernel})]

    def finished(self, graph: Graph) -> list[Application]:
        """Nothing follows from what was done in an episode."""
        return []

    def _blocks(self, found: list[_Read]) -> list[tuple[int, ...]]:
        """The layers between pools, as indices; the linear ones are a block of their own."""
        blocks: list[list[int]] = [[]]
        kind = "conv"
        for index, read in enumerate(found):
            now = read.layer.token.partition("-")[0]
            if now == "pool":
                blocks.append([])
            else:
                if now != kind and blocks[-1]:
                    blocks.append([])
                kind = now
                blocks[-1].append(index)
        if not blocks[-1]:
            blocks.pop()
        return [tuple(block) for block in blocks]

    def _read(self, graph: Graph) -> list[_Read]:
        """The layers, the one that makes the output left out.

        Raises:
            ArchirError: A761 or A762.
        """
        nodes = list(_chain(graph))
        last = max((i for i, node in enumerate(nodes) if node.params and _wide(node)), default=-1)
        if last < 0 or nodes[last].op != "linear":
            raise _no_plain("no linear layer makes its output")
        found: list[_Read] = []
        open_layer: Node | None = None
        for node in nodes[:last]:
            if node.op in ("conv", "linear"):
                if open_layer is not None:
                    raise _no_plain(f"no relu follows {open_layer.name}")
                open_layer = node
            elif node.op == "relu" and open_layer is not None:
                found.append(self._layer(open_layer, node))
                open_layer = None
            elif node.op in _POOLS:
                if open_layer is not None:
                    raise _no_plain(f"no relu stands between {open_layer.name} and {node.name}")
                found.append(_Read(Layer("pool", node.name, wider=False), ""))
            elif node.op not in (*_BETWEEN, *_SILENT):
                raise _no_plain(f"{node.name} is {node.op}")
        if open_layer is not None:
            raise _no_plain(f"no relu follows {open_layer.name}")
        return found

    def _layer(self, node: Node, relu: Node) -> _Read:
        """A convolution or a linear layer.

        Raises:
            ArchirError: A761, a convolution of another kind; A762.
        """
        width = node.attrs["out"]
        assert isinstance(width, int)
        if node.op == "linear":
            word, levels, entry = f"fc-{width}", self.units, "units"
        else:
            kernel = _kernel(node)
            if kernel not in self.kernels:
                held = ", ".join(map(str, self.kernels))
                raise _too_much(f"{node.name} has a kernel of {kernel}, `kernels` has {held}")
            word, levels, entry = f"conv-{width}-{kernel}", self.filters, "filters"
        if width not in levels:
            near = min(levels, key=lambda level: (level < width, abs(level - width)))
            raise error(
                "A762",
                f"{node.name} is {width} wide, which is no level of `{entry}`",
                hint=f"set {entry} to levels that hold {width}, or widen the layer: "
                f"`archir rewrite FILE --rule {self.widen_rule}@{node.name} --set width={near}`"
                if near > width
                else f"set {entry} to levels that hold {width}",
            )
        return _Read(Layer(word, node.name, wider=width < max(levels)), relu.name, width)


def _chain(graph: Graph) -> Iterator[Node]:
    """The nodes behind the input, each reading the one before it alone.

    Raises:
        ArchirError: A761, it is no chain.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise _no_plain("it has not one input and one output")
    at, end = graph.inputs[0], graph.outputs[0].value.node
    while at != end:
        readers = graph.readers(at)
        if len(readers) != 1:
            raise _no_plain(f"{at} is read {len(readers)} times")
        node = readers[0][0]
        if len(node.inputs) != 1:
            raise _no_plain(f"{node.name} joins {len(node.inputs)} tensors")
        yield node
        at = node.name


def _wide(node: Node) -> bool:
    return node.op in ("conv", "linear")


def _kernel(node: Node) -> int:
    """The kernel of a convolution that keeps the image's size.

    Raises:
        ArchirError: A761, it is of another kind.
    """
    kernel, attrs = node.attrs["kernel"], node.attrs
    if not isinstance(kernel, tuple) or len(kernel) != 2 or kernel[0] != kernel[1]:
        raise _no_plain(f"{node.name} has a kernel of {kernel}")
    side = kernel[0]
    assert isinstance(side, int)
    same = attrs["padding"] == (side // 2, side // 2) and side % 2 == 1
    if attrs["stride"] != (1, 1) or attrs["dilation"] != (1, 1) or not same:
        raise _no_plain(f"{node.name} does not keep the size of the image")
    if attrs["groups"] != 1:
        raise _no_plain(f"{node.name} has groups")
    return side


def _no_plain(why: str) -> ArchirError:
    hint = "a chain of convolutions, pools and linear layers; examples/eas_start.arch is one"
    return error("A761", f"this is no plain network as EAS has them: {why}", hint=hint)


def _too_much(why: str) -> ArchirError:
    return error("A762", f"the policy cannot read this network: {why}")
