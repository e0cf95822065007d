"""NAT's networks as modules of torch: what the programs of its cells are compared with.

Written from the description of the cells alone: all layers are there, those too that no output
depends on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .nsga_nets import Halve, Op, conv, norm, separable

Words = Sequence[str]
"""A cell as words ``sep3 0``: an operation and the node it reads, two for each node."""


class Null(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x[:, :, :: self.stride, :: self.stride]  # it is read: its gradient is 0


def crossed(c: int, k: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        conv(c, c, (1, k), stride=(1, stride), padding=(0, k // 2)),
        conv(c, c, (k, 1), stride=(stride, 1), padding=(k // 2, 0)),
        norm(c),
    )


def operation(name: str, c: int, stride: int) -> nn.Module:
    if name == "null":
        return Null(stride)
    if name == "skip":
        return nn.Identity() if stride == 1 else Halve(c, c)
    kind, k = name[:-1], int(name[-1])
    if kind == "max":
        return nn.MaxPool2d(k, stride, padding=(k - 1) // 2)
    if kind == "avg":
        return nn.AvgPool2d(k, stride, padding=(k - 1) // 2, count_include_pad=False)
    if kind == "sep":
        return Op(*separable(c, k, stride), *separable(c, k, 1))
    if kind == "dil":
        depthwise = conv(c, c, k, stride=stride, padding=k - 1, dilation=2, groups=c)
        return Op(nn.ReLU(), depthwise, conv(c, c), norm(c))
    if kind == "conv":
        return Op(nn.ReLU(), conv(c, c, k, stride=stride, padding=k // 2), norm(c))
    assert kind == "crossed"
    return crossed(c, k, stride)


class Cell(nn.Module):
    def __init__(
        self,
        words: Words,
        output: Sequence[int],
        older: int,
        last: int,
        c: int,
        *,
        reduces: bool,
        halve: bool,
    ) -> None:
        super().__init__()
        self.preprocess0 = Halve(older, c) if halve else Op(nn.ReLU(), conv(older, c), norm(c))
        self.preprocess1 = Op(nn.ReLU(), conv(last, c), norm(c))
        pairs = [word.split() for word in words]
        self.sources = [int(source) for _, source in pairs]
        self.output = output
        self._ops = nn.ModuleList(
            operation(name, c, 2 if reduces and int(source) < 2 else 1) for name, source in pairs
        )

    def forward(self, older: Tensor, last: Tensor) -> Tensor:
        states = [self.preprocess0(older), self.preprocess1(last)]
        for k in range(0, len(self.sources), 2):
            one, other = (self._ops[j](states[self.sources[j]]) for j in (k, k + 1))
            states.append(one + other)
        return torch.cat([states[node] for node in self.output], 1)


class Stack(nn.Module):
    """``cells``: words and outputs of the normal cell, then of the one that halves the image."""

    def __init__(
        self,
        cells: Sequence[tuple[Words, Sequence[int]]],
        channels: int,
        layers: int,
        classes: int,
        colours: int,
    ) -> None:
        super().__init__()
        older = last = 3 * channels
        self.stem = nn.Sequential(conv(colours, last, 3, padding=1), norm(last))
        self.cells = nn.ModuleList()
        halve, c = False, channels
        for number in range(layers):
            reduces = number in (layers // 3, 2 * layers // 3)
            c = 2 * c if reduces else c
            words, output = cells[reduces]
            cell = Cell(words, output, older, last, c, reduces=reduces, halve=halve)
            self.cells.append(cell)
            older, last, halve = last, c * len(output), reduces
        self.classifier = nn.Linear(last, classes)

    def forward(self, image: Tensor) -> Tensor:
        older = last = self.stem(image)
        for cell in self.cells:
            older, last = last, cell(older, last)
        return self.classifier(last.mean((2, 3)))
