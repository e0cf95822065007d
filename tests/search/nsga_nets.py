"""NSGA-Net's networks as modules of torch: what the encodings' programs are compared with.

Written from the description of the spaces alone. All layers are there, those too that no output
depends on. The counts of the published networks are checked, so that this is no mere opinion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def conv(into: int, out: int, kernel: int | tuple[int, int] = 1, **how: object) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, bias=False, **how)


class Op(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Halve(nn.Module):
    """Two convolutions with stride 2, of the image and of the image moved by one pixel."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv_1 = conv(into, out // 2, stride=2)
        self.conv_2 = conv(into, out // 2, stride=2)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


def separable(c: int, k: int, stride: int) -> list[nn.Module]:
    depthwise = conv(c, c, k, stride=stride, padding=k // 2, groups=c)
    return [nn.ReLU(), depthwise, conv(c, c), nn.BatchNorm2d(c)]


def operation(number: int, c: int, stride: int) -> nn.Module:
    if number == 0:
        return nn.MaxPool2d(3, stride, padding=1)
    if number == 1:
        return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
    if number == 2:
        return nn.Identity() if stride == 1 else Halve(c, c)
    if number in (3, 4, 7):
        k = {3: 3, 4: 5, 7: 7}[number]
        return Op(*separable(c, k, stride), *separable(c, k, 1))
    if number in (5, 6):
        k = {5: 3, 6: 5}[number]
        depthwise = conv(c, c, k, stride=stride, padding=k - 1, dilation=2, groups=c)
        return Op(nn.ReLU(), depthwise, conv(c, c), nn.BatchNorm2d(c))
    return nn.Sequential(
        nn.ReLU(),
        conv(c, c, (1, 7), stride=(1, stride), padding=(0, 3)),
        conv(c, c, (7, 1), stride=(stride, 1), padding=(3, 0)),
        nn.BatchNorm2d(c),
    )


class Cell(nn.Module):
    def __init__(
        self, genes: Sequence[int], older: int, last: int, c: int, *, reduces: bool, halve: bool
    ) -> None:
        super().__init__()
        self.preprocess0 = Halve(older, c) if halve else Op(nn.ReLU(), conv(older, c), norm(c))
        self.preprocess1 = Op(nn.ReLU(), conv(last, c), norm(c))
        self.edges = [(genes[k], genes[k + 1]) for k in range(0, len(genes), 2)]
        self._ops = nn.ModuleList(
            operation(op, c, 2 if reduces and source < 2 else 1) for op, source in self.edges
        )
        read = {source for _, source in self.edges}
        self.loose = [k for k in range(2, 2 + len(self.edges) // 2) if k not in read]

    def forward(self, older: Tensor, last: Tensor) -> Tensor:
        states = [self.preprocess0(older), self.preprocess1(last)]
        for k in range(0, len(self.edges), 2):
            (_, one), (_, other) = self.edges[k : k + 2]
            states.append(self._ops[k](states[one]) + self._ops[k + 1](states[other]))
        return torch.cat([states[k] for k in self.loose], 1)


def norm(c: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(c)


class Micro(nn.Module):
    """``widths``: the channels of each cell; by default doubled by each reduction."""

    def __init__(
        self,
        genome: Sequence[int],
        channels: int,
        layers: int,
        classes: int = 10,
        colours: int = 3,
        widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        older = last = 3 * channels
        self.stem = nn.Sequential(conv(colours, last, 3, padding=1), norm(last))
        self.cells = nn.ModuleList()
        half, halve, c = len(genome) // 2, False, channels
        for number in range(layers):
            reduces = number in (layers // 3, 2 * layers // 3)
            c = widths[number] if widths else 2 * c if reduces else c
            genes = genome[half:] if reduces else genome[:half]
            cell = Cell(genes, older, last, c, reduces=reduces, halve=halve)
            self.cells.append(cell)
            older, last, halve = last, c * len(cell.loose), reduces
        self.classifier = nn.Linear(last, classes)

    def forward(self, image: Tensor) -> Tensor:
        older = last = self.stem(image)
        for cell in self.cells:
            older, last = last, cell(older, last)
        return self.classifier(last.mean((2, 3)))


class Node(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.model = nn.Sequential(conv(c, c, 3, padding=1), norm(c), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def feeds(bits: Sequence[int], nodes: int) -> dict[int, list[int]]:
    """What each node of a phase (from 1) and its output (``nodes + 1``) read; 0 is its input."""
    found: dict[int, list[int]] = {1: []}
    left = list(bits[:-1])
    for node in range(2, nodes + 1):
        row, left = left[: node - 1], left[node - 1 :]
        found[node] = [k + 1 for k, bit in enumerate(row) if bit]
    read = {k for sources in found.values() for k in sources}
    output = [0] * bits[-1]
    output += [k for k in range(1, nodes + 1) if found[k] and k not in read]
    for node in range(1, nodes + 1):
        if not found[node] and node in read:
            found[node] = [0]
    return {**found, nodes + 1: output}


class Phase(nn.Module):
    def __init__(self, bits: Sequence[int], nodes: int, into: int, c: int, *, first: bool) -> None:
        super().__init__()
        self.changes = into != c
        self.first_conv = conv(into, c, 3 if first else 1)
        self.reads = feeds(bits, nodes)
        self.nodes = nn.ModuleList(
            Node(c) if self.reads[k] else nn.Identity() for k in range(1, nodes + 1)
        )
        self.processors = nn.ModuleList(
            conv(len(read) * c, c) if len(read) > 1 else nn.Identity()
            for read in ([], *(self.reads[k] for k in range(1, nodes + 2)))
        )
        self.out = nn.Sequential(norm(c), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        made = {0: self.first_conv(x) if self.changes else x}
        for number, node in enumerate(self.nodes, start=1):
            if self.reads[number]:
                made[number] = node(self.joined(number, made))
        return self.out(self.joined(len(self.nodes) + 1, made))

    def joined(self, number: int, made: dict[int, Tensor]) -> Tensor:
        return self.processors[number](torch.cat([made[k] for k in self.reads[number]], 1))


class Macro(nn.Module):
    def __init__(
        self,
        genome: Sequence[int],
        channels: int,
        nodes: int,
        classes: int = 10,
        colours: int = 3,
    ) -> None:
        super().__init__()
        size = len(genome) // 3
        phases = [genome[k : k + size] for k in range(0, 3 * size, size)]
        layers: list[nn.Module] = []
        last = colours
        for number, bits in enumerate(bits for bits in phases if any(bits[:-1])):
            c = channels * 2**number
            if number:
                layers.append(nn.MaxPool2d(2))
            layers.append(Phase(bits, nodes, last, c, first=number == 0))
            last = c
        self.model = nn.Sequential(*layers)
        self.linear = nn.Linear(last, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.model(image).mean((2, 3)))
