"""A network of cells that shares its weights among all operations that its edges may have.

Guo et al. 2019 (NAT, arXiv 1910.14488); what is said of their code is marked [C], what is our
choice [own]. A stem of a convolution with three times the channels, cells of which those at a third
and at two thirds of the depth halve the image and double the channels, global pooling, a linear
layer. Each edge of each cell has weights of its own for each operation; a node is the sum of its
two edges. Batch norms have no scale and shift, and always take the statistics of the batch; there
is one behind poolings too [C]. Importing this module needs torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from archir.diag import error
from archir.search.cells import NULL, SKIP, Cell, Edge
from archir.weights.store import load_metadata, load_weights, save_weights

_KEY = "archir.supernet"

Operations = Sequence[Sequence[str]]
"""For each kind of cells an operation for each edge."""


@dataclass(frozen=True)
class Form:
    """What a supernet is made of."""

    kinds: tuple[Cell, ...]
    """The kinds of cells; those with a strided edge halve the image."""
    ops: tuple[str, ...]
    """What each edge has weights for."""
    free: bool
    """Whether edges lead from each node to each later one; else they are the cells' own."""
    channels: int
    """Of the first cells."""
    layers: int
    """Cells in a row; more where there are more kinds."""
    image: tuple[int, ...]
    """``[C, H, W]``."""
    classes: int

    def slots(self, kind: int) -> list[tuple[int, int]]:
        """The edges of a kind, from and to which nodes."""
        cell = self.kinds[kind]
        if self.free:
            return [(s, t) for t in range(cell.inputs, cell.nodes) for s in range(t)]
        return sorted({(edge.source, edge.target) for edge in cell.edges})

    def outputs(self, kind: int) -> list[int]:
        """The nodes of a kind that may leave the cell."""
        cell = self.kinds[kind]
        return list(range(cell.inputs, cell.nodes)) if self.free else sorted(set(cell.output))

    def stack(self) -> list[_Layer]:
        """The cells in a row. Kinds take turns; a reduction is one of those that halve [own]."""
        halving = [k for k, cell in enumerate(self.kinds) if halves(cell)]
        plain = [k for k in range(len(self.kinds)) if k not in halving]
        count = max(2, len(halving))
        layers = max(self.layers, len(plain) + count)
        places = sorted({layers * (n + 1) // (count + 1) for n in range(count)})
        found: list[_Layer] = []
        seen = [0, 0]
        for number in range(layers):
            reduces = number in places
            own = (halving if reduces else plain) or plain
            if not own:  # all kinds halve, and this is no place for it
                continue
            width = self.channels * 2 ** sum(place <= number for place in places)
            kind = own[seen[reduces] % len(own)]
            found.append(_Layer(len(found), kind, width, reduces and not halving))
            seen[reduces] += 1
        return found


@dataclass(frozen=True)
class _Layer:
    """A cell at its place in the row."""

    number: int
    kind: int
    width: int
    """Its channels."""
    before: bool
    """Whether what it reads is halved on its way in, since its cell does not halve."""


@dataclass
class _Made:
    """What a cell hands on; nodes that are zeros are left out."""

    nodes: dict[int, torch.Tensor]
    """By their place among the nodes that may leave the cell."""
    width: int
    level: int
    """How often the image was halved."""


def macs_of(form: Form, cells: Sequence[Cell]) -> float:
    """The MACs of operations on edges, in those of one channel pair at the size of the image.

    Poolings count as their additions, as in the table of NAT++'s code.
    """
    total, level = 0.0, 0
    for layer in form.stack():
        cell, levels = cells[layer.kind], levels_of(cells[layer.kind])
        level += layer.before
        for edge in cell.edges:
            pixels = 4.0 ** -(level + levels[edge.target])
            total += pixels * _macs(edge, layer.width)
        level += max(levels[node] for node in cell.output)
    return total


def _macs(edge: Edge, c: int) -> int:
    """Of an operation on ``c`` channels, for each pixel that it makes."""
    if edge.op == SKIP and not edge.strided:
        return 0
    kind, _, size = edge.op.rpartition("_")
    if kind.endswith("pool"):
        return int(size[0]) ** 2 * c
    return sum(math.prod(shape) for shape in _shapes_of(edge.op, c).values())


def halves(cell: Cell) -> bool:
    """Whether a cell halves the image."""
    return any(edge.strided for edge in cell.edges)


def random_cell(kind: Cell, ops: Sequence[str], generator: np.random.Generator) -> Cell:
    """A cell of a kind: for each node two uniform nodes before it, two uniform operations [C].

    Its output is all its nodes where the kind's is, else those that no other reads.
    """
    drawn = [op for op in ops if op != NULL]
    edges = []
    for node in range(kind.inputs, kind.nodes):
        for _ in range(2):
            source = int(generator.integers(node))
            op = drawn[int(generator.integers(len(drawn)))]
            edges.append(Edge(op, source, node, halves(kind) and source < kind.inputs))
    every = tuple(range(kind.inputs, kind.nodes))
    read = {edge.source for edge in edges}
    loose = tuple(node for node in every if node not in read)
    return Cell(tuple(edges), every if set(kind.output) == set(every) else loose, kind.inputs)


class Supernet:
    """The weights, and what they compute for any cells of the supernet's kinds."""

    def __init__(
        self,
        form: Form,
        generator: np.random.Generator | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """A new one: uniform within 1 / sqrt(inputs), as torch has it; without generator zeros."""
        self.form, self.stack = form, form.stack()
        self.weights: dict[str, torch.Tensor] = {}
        for name, shape in self._shapes().items():
            values = np.zeros(shape, np.float32)
            if generator is not None:
                fan = self.stack[-1].width if name == "head.bias" else math.prod(shape[1:])
                values = generator.uniform(-1, 1, shape).astype(np.float32) / math.sqrt(fan)
            made = torch.from_numpy(values).to(device)
            self.weights[name] = made.requires_grad_()

    def __call__(self, cells: Sequence[Cell], x: torch.Tensor) -> torch.Tensor:
        """The logits ``[B, classes]`` of images ``[B, C, H, W]``, with a cell of each kind."""
        x = x.contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU
        stem = _norm(functional.conv2d(x, self.weights["stem"], padding=1))
        older = last = _Made({0: stem}, 3 * self.form.channels, 0)
        for layer in self.stack:
            older, last = last, self._cell(layer, cells[layer.kind], older, last)
        count = len(self.form.outputs(self.stack[-1].kind))
        parts = [
            last.nodes[n].mean((2, 3)) if n in last.nodes else x.new_zeros(len(x), last.width)
            for n in range(count)
        ]
        return functional.linear(
            torch.cat(parts, 1), self.weights["head.weight"], self.weights["head.bias"]
        )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        form = self.form
        found: dict[str, tuple[int, ...]] = {"stem": (3 * form.channels, form.image[0], 3, 3)}
        read = [3 * form.channels] * 2
        for layer in self.stack:
            place, c = f"cells.{layer.number}", layer.width
            for number, size in enumerate(read):
                found[f"{place}.preprocess{number}"] = (c, size, 1, 1)
            for source, target in form.slots(layer.kind):
                for op in form.ops:
                    for part, shape in _shapes_of(op, c).items():
                        found[f"{place}.{source}-{target}.{op}.{part}"] = shape
            read = [read[1], c * len(form.outputs(layer.kind))]
        return found | {"head.weight": (form.classes, read[1]), "head.bias": (form.classes,)}

    def _cell(self, layer: _Layer, cell: Cell, older: _Made, last: _Made) -> _Made:
        place = f"cells.{layer.number}"
        level = last.level + layer.before
        first = self._preprocessed(f"{place}.preprocess0", older, level)
        second = self._preprocessed(f"{place}.preprocess1", last, level)
        states = [first] * (cell.inputs - 1) + [second]
        levels = levels_of(cell)
        for node in range(cell.inputs, cell.nodes):
            total = None
            for edge in cell.edges[2 * (node - cell.inputs) :][:2]:
                x = states[edge.source]
                if x is None or edge.op == NULL:
                    continue
                down = levels[node] - levels[edge.source]
                x = _halved(x, down - 1)
                name = f"{place}.{edge.source}-{node}.{edge.op}"
                made = self._operation(edge.op, name, x, 2 if down else 1)
                total = made if total is None else total + made
            states.append(total)
        deepest = max(levels[node] for node in cell.output)
        nodes = {}
        for slot, node in enumerate(self.form.outputs(layer.kind)):
            state = states[node]
            if node in cell.output and state is not None:
                nodes[slot] = _halved(state, deepest - levels[node])
        return _Made(nodes, layer.width, level + deepest)

    def _preprocessed(self, name: str, given: _Made, level: int) -> torch.Tensor | None:
        """What a cell reads of an earlier one, in its own width and size; None of zeros."""
        if not given.nodes:
            return None
        weight = self.weights[name]
        if len(given.nodes) * given.width < weight.shape[1]:
            parts = torch.split(weight, given.width, 1)
            weight = torch.cat([parts[slot] for slot in given.nodes], 1)
        x = torch.cat(list(given.nodes.values()), 1)
        down = level - given.level
        return _projected(_halved(x, down - 1), weight, halve=down > 0)

    def _operation(self, op: str, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        def conv(x: torch.Tensor, part: str, stride: int = 1, dilation: int = 1) -> torch.Tensor:
            weight = self.weights[f"{name}.{part}"]
            padding = [dilation * (side // 2) for side in weight.shape[2:]]
            groups = x.shape[1] // weight.shape[1]
            return functional.conv2d(x, weight, None, stride, padding, dilation, groups)

        if op == SKIP:
            if stride == 1:
                return x
            return _projected(x, self.weights[f"{name}.0"], halve=True)
        kind, _, size = op.rpartition("_")
        if kind in ("max_pool", "avg_pool"):
            return _norm(_pooled(kind, int(size[0]), x, stride))
        x = functional.relu(x)
        if kind == "sep_conv":
            x = functional.relu(_norm(conv(conv(x, "0", stride), "1")))
            return _norm(conv(conv(x, "2"), "3"))
        if kind == "dil_conv":
            return _norm(conv(conv(x, "0", stride, dilation=2), "1"))
        if kind == "conv":
            return _norm(conv(x, "0", stride))
        return _norm(conv(conv(x, "0", stride), "1"))  # 1x3 3x1 and 1x7 7x1


def levels_of(cell: Cell) -> list[int]:
    """How often the image is halved between a cell's inputs and each node.

    Edges into a node halve as often as it takes to meet: those from inputs may have come there
    halved by something that is no operation of the cell.
    """
    found = [0] * cell.nodes
    for edge in cell.edges:
        found[edge.target] = max(found[edge.target], found[edge.source] + edge.strided)
    return found


def _shapes_of(op: str, c: int) -> dict[str, tuple[int, ...]]:
    """The weights of an operation on ``c`` channels."""
    kind, _, size = op.rpartition("_")
    k = int(size[0]) if size[:1].isdigit() else 0
    if kind == "sep_conv":
        deep, point = (c, 1, k, k), (c, c, 1, 1)
        return {"0": deep, "1": point, "2": deep, "3": point}
    if kind == "dil_conv":
        return {"0": (c, 1, k, k), "1": (c, c, 1, 1)}
    if kind == "conv":
        return {"0": (c, c, k, k)}
    if op == SKIP:  # where it halves the image
        return {"0": (c, c, 1, 1)}
    if op in ("conv_1x3_3x1", "conv_1x7_7x1"):
        long = int(op[7])
        return {"0": (c, c, 1, long), "1": (c, c, long, 1)}
    return {}


def _norm(x: torch.Tensor) -> torch.Tensor:
    return functional.batch_norm(x, None, None, training=True)


def _halved(x: torch.Tensor, times: int) -> torch.Tensor:
    """Averaged over 2x2 so many times: where two halvings meet, which no known cell has [own]."""
    for _ in range(times):
        x = functional.avg_pool2d(x, 2, ceil_mode=True)
    return x


def _projected(x: torch.Tensor, weight: torch.Tensor, *, halve: bool) -> torch.Tensor:
    """ReLU, 1x1 convolution, batch norm; a halving one sees half its filters one pixel on."""
    x = functional.relu(x)
    if not halve:
        return _norm(functional.conv2d(x, weight))
    x = functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    first, second = torch.tensor_split(weight, 2)
    shifted = functional.conv2d(x[:, :, 1:, 1:], second, stride=2)
    return _norm(torch.cat([functional.conv2d(x, first, stride=2), shifted], 1))


def _pooled(kind: str, size: int, x: torch.Tensor, stride: int) -> torch.Tensor:
    padding = size // 2
    if size == 2:  # one row and column more behind: an image keeps its size, or has half of it
        lowest = 0.0 if kind == "avg_pool" else float("-inf")
        x, padding = functional.pad(x, (0, 1, 0, 1), value=lowest), 0
    if kind == "max_pool":
        return functional.max_pool2d(x, size, stride, padding)
    return functional.avg_pool2d(x, size, stride, padding, count_include_pad=False)


# --- files ----------------------------------------------------------------------------------------


def save_supernet(path: Path, supernet: Supernet) -> None:
    """Write it as a safetensors file.

    Raises:
        ArchirError: A602.
    """
    weights = {name: value.detach().cpu().numpy() for name, value in supernet.weights.items()}
    save_weights(path, weights, {_KEY: json.dumps(asdict(supernet.form), sort_keys=True)})


def load_supernet(path: Path, device: str | torch.device = "cpu") -> Supernet:
    """Read it again.

    Raises:
        ArchirError: A601 or A610; A776, it is no supernet.
    """
    weights = load_weights(path)
    try:
        found = Supernet(_form(json.loads(load_metadata(path)[_KEY])), device=device)
        with torch.no_grad():
            for name, value in found.weights.items():
                value.copy_(torch.from_numpy(weights[name]))
    except (KeyError, ValueError, TypeError, RuntimeError) as reason:
        raise error("A776", f"{path} is no supernet: {reason!r:.200}") from None
    return found


def _form(told: Mapping[str, Any]) -> Form:
    kinds = tuple(
        Cell(tuple(Edge(**edge) for edge in kind["edges"]), tuple(kind["output"]), kind["inputs"])
        for kind in told["kinds"]
    )
    entries = {**told, "kinds": kinds, "ops": tuple(told["ops"]), "image": tuple(told["image"])}
    return Form(**entries)
