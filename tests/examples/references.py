"""The shipped networks that torchvision lacks, written once more in plain torch."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional


def densenet_bc_40_12() -> nn.Module:
    """Torchvision's DenseNet with the stem of the networks for CIFAR: one convolution."""
    net = torchvision.models.DenseNet(12, (6, 6, 6), num_init_features=24, num_classes=10)
    net.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        delattr(net.features, name)
    return net


def _relu_conv_bn(width: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    net = nn.Module()
    conv = nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=False)
    net.op = nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(out))
    net.forward = net.op.forward
    return net


class _Cell(nn.Module):
    """Operations on the edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3; every node is a sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        kernels = (3, 3, 3, 0, 3, 1)
        edges = [_relu_conv_bn(width, width, k) if k else nn.Identity() for k in kernels]
        self.layers = nn.ModuleList(edges)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nodes, edge = [x], iter(self.layers)
        for _ in range(3):
            nodes.append(sum(next(edge)(node) for node in nodes))
        return nodes[-1]


class _Reduction(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_a = _relu_conv_bn(width, 2 * width, 3, 2)
        self.conv_b = _relu_conv_bn(2 * width, 2 * width)
        conv = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.downsample = nn.Sequential(nn.AvgPool2d(2), conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.downsample(x) + self.conv_b(self.conv_a(x))


class NasBench201(nn.Module):
    """The macro skeleton of Dong, Yang 2020, figure 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        cells: list[nn.Module] = []
        for width in (16, 32, 64):
            cells += [_Reduction(width // 2)] if width > 16 else []
            cells += [_Cell(width) for _ in range(5)]
        self.cells = nn.Sequential(*cells)
        self.lastact = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lastact(self.cells(self.stem(x)))
        return self.classifier(functional.adaptive_avg_pool2d(y, 1).flatten(1))


def eas_start() -> nn.Module:
    """C(16,3,1) P(2,2) C(32,3,1) P(2,2) C(64,3,1) P(2,2) C(128,3,1) P(4,4) FC(256) SM(10)."""
    layers: list[nn.Module] = []
    for width, out, pool in ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 128, 4)):
        conv = nn.Conv2d(width, out, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(pool)]
    layers += [nn.Flatten(), nn.Linear(128, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def lenet_300_100() -> nn.Module:
    """784-300-100-10."""
    layers = (nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    return nn.Sequential(nn.Flatten(), *layers)


REFERENCES: dict[str, Any] = {
    "densenet_bc_40_12": densenet_bc_40_12,
    "eas_start": eas_start,
    "lenet_300_100": lenet_300_100,
    "nasbench201": NasBench201,
}
"""By the name of the network, what makes it."""
