"""DenseNet-BC and EAS's insertion of a layer, written once more in plain torch and NumPy.

Huang, Liu, van der Maaten, Weinberger 2017, "Densely connected convolutional networks"; Cai, Chen,
Zhang, Yu, Wang 2018 (EAS, arXiv 1707.04873), with the maps of the authors' code and without its
noise. Nothing here is archir's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

Weights = dict[str, np.ndarray]
NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Shape:
    """A DenseNet's widths."""

    first: int
    growths: tuple[tuple[int, ...], ...]
    """By block and layer."""
    narrow: tuple[tuple[int, ...], ...]
    """The bottlenecks of those layers."""
    transitions: tuple[int, ...]
    classes: int = 10
    planes: int = 3


class _Layer(nn.Module):
    def __init__(self, width: int, narrow: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, narrow, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(narrow)))], 1)


class _Transition(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(self.conv(functional.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """The network; its ``state_dict`` has the names of examples/densenet_bc_40_12.arch."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(shape.planes, shape.first, 3, padding=1, bias=False)
        width = shape.first
        self.steps = []
        for b, (growths, narrow) in enumerate(zip(shape.growths, shape.narrow, strict=True), 1):
            layers = []
            for growth, middle in zip(growths, narrow, strict=True):
                layers.append(_Layer(width, middle, growth))
                width += growth
            setattr(self, f"denseblock{b}", nn.Sequential(*layers))
            self.steps.append(f"denseblock{b}")
            if b < len(shape.growths):
                setattr(self, f"transition{b}", _Transition(width, shape.transitions[b - 1]))
                self.steps.append(f"transition{b}")
                width = shape.transitions[b - 1]
        self.norm5, self.classifier = nn.BatchNorm2d(width), nn.Linear(width, shape.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv0(x)
        for name in self.steps:
            x = getattr(self, name)(x)
        return self.classifier(functional.relu(self.norm5(x)).mean((2, 3)))


def built(shape: Shape, weights: Mapping[str, np.ndarray]) -> DenseNet:
    """The network with these weights, in numbers of 64 bits."""
    net = DenseNet(shape).double()
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
    return net


def inserted(
    shape: Shape, old: Mapping[str, np.ndarray], block: int, layer: int, sel: Sequence[int]
) -> tuple[Shape, Weights]:
    """A layer behind another one, as EAS inserts it: the maps of the authors' code, without noise.

    Args:
        shape: The widths before.
        old: The weights before.
        block: Counted from 0.
        layer: The layer behind which it is inserted.
        sel: Which of that layer's channels the new layer's are copies of.
    """
    growths, narrow = [list(g) for g in shape.growths], [list(n) for n in shape.narrow]
    growth = growths[block][layer]
    start = shape.first if block == 0 else shape.transitions[block - 1]
    offset = start + sum(growths[block][:layer])
    total = offset + growth
    new: Weights = {k: np.array(v) for k, v in old.items()}
    at = f"denseblock{block + 1}"
    for later in range(len(growths[block]) - 1, layer, -1):  # those behind it move up
        for key in [k for k in old if k.startswith(f"{at}.{later}.")]:
            new[key.replace(f"{at}.{later}.", f"{at}.{later + 1}.", 1)] = np.array(old[key])
    twin, own = f"{at}.{layer}", f"{at}.{layer + 1}"
    for key in [k for k in old if k.startswith(f"{twin}.")]:
        new[key.replace(twin, own, 1)] = np.array(old[key])
    for role, value in zip(NORM, (1.0, 0.0, 0.0, 1.0), strict=True):
        more = np.full(growth, value, old[f"{twin}.norm1.{role}"].dtype)
        new[f"{own}.norm1.{role}"] = np.concatenate((old[f"{twin}.norm1.{role}"], more))
    kernel = old[f"{twin}.conv1.weight"]
    zeros = np.zeros((kernel.shape[0], growth, 1, 1), kernel.dtype)
    new[f"{own}.conv1.weight"] = np.concatenate((kernel, zeros), 1)
    new[f"{own}.conv2.weight"] = old[f"{twin}.conv2.weight"][list(sel)]
    g = [*range(total), *(offset + s for s in sel)]
    seen = total
    for later in range(layer + 1, len(growths[block])):
        _read(new, old, f"{at}.{later + 1}", f"{at}.{later}", ("norm1", "conv1"), g)
        g += range(seen, seen + growths[block][later])
        seen += growths[block][later]
    if block + 1 < len(growths):
        name = f"transition{block + 1}"
        _read(new, old, name, name, ("norm", "conv"), g)
    else:
        _read(new, old, "", "", ("norm5", "classifier"), g)
    growths[block].insert(layer + 1, growth)
    narrow[block].insert(layer + 1, narrow[block][layer])
    after = Shape(
        shape.first,
        tuple(map(tuple, growths)),
        tuple(map(tuple, narrow)),
        shape.transitions,
        shape.classes,
        shape.planes,
    )
    return after, new


def _read(
    new: Weights,
    old: Mapping[str, np.ndarray],
    to: str,
    source: str,
    names: tuple[str, str],
    g: Sequence[int],
) -> None:
    """What reads a map's channels: its norm is gathered, its columns are shared out."""
    norm, conv = names
    to, source = (f"{to}." if to else ""), (f"{source}." if source else "")
    for role in NORM:
        new[f"{to}{norm}.{role}"] = old[f"{source}{norm}.{role}"][list(g)]
    columns = old[f"{source}{conv}.weight"][:, list(g)]
    times = np.array([list(g).count(i) for i in g], columns.dtype)
    new[f"{to}{conv}.weight"] = columns / times.reshape(-1, *(1,) * (columns.ndim - 2))
