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


def _dw_pw(width: int, dilation: int = 1) -> list[nn.Module]:
    """ReLU, depthwise and pointwise convolution, batch norm."""
    depthwise = nn.Conv2d(width, width, 3, 1, dilation, dilation=dilation, groups=width, bias=False)
    pointwise = nn.Conv2d(width, width, 1, bias=False)
    return [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(width)]


def _named_op(*layers: nn.Module) -> nn.Module:
    net = nn.Module()
    net.op = nn.Sequential(*layers)
    net.forward = net.op.forward
    return net


class _FactorizedReduce(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(width, out // 2, 1, 2, bias=False)
        self.conv_2 = nn.Conv2d(width, out // 2, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.relu()
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


GENOTYPE = {
    "normal": (
        *(("sep", 0), ("sep", 1), ("sep", 0), ("sep", 1)),
        *(("sep", 1), ("skip", 0), ("skip", 0), ("dil", 2)),
    ),
    "reduce": (
        *(("max", 0), ("max", 1), ("skip", 2), ("max", 1)),
        *(("max", 0), ("skip", 2), ("skip", 2), ("max", 1)),
    ),
}
"""`DARTS_V2` of the authors: two (operation, node that it reads) for each of four nodes."""


class _DartsCell(nn.Module):
    """Nodes 0 and 1 are the two cells before; the result joins the four nodes that follow."""

    def __init__(self, kind: str, older: int, old: int, width: int, *, halved: bool) -> None:
        super().__init__()
        self.preprocess0 = (
            _FactorizedReduce(older, width) if halved else _relu_conv_bn(older, width, 1)
        )
        self.preprocess1 = _relu_conv_bn(old, width, 1)
        made = {
            "sep": lambda: _named_op(*_dw_pw(width), *_dw_pw(width)),
            "dil": lambda: _named_op(*_dw_pw(width, 2)),
            "max": lambda: nn.MaxPool2d(3, 2, 1),
            "skip": nn.Identity,
        }
        self._ops = nn.ModuleList(made[name]() for name, _ in GENOTYPE[kind])
        self.reads = [node for _, node in GENOTYPE[kind]]

    def forward(self, older: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        nodes = [self.preprocess0(older), self.preprocess1(old)]
        edges = list(zip(self._ops, self.reads, strict=True))
        for (f, i), (g, j) in zip(edges[::2], edges[1::2], strict=True):
            nodes.append(f(nodes[i]) + g(nodes[j]))
        return torch.cat(nodes[2:], dim=1)


class Darts(nn.Module):
    """Liu, Simonyan, Yang 2019, section 3.1.1: 20 cells, 36 channels, doubled at 1/3 and 2/3."""

    def __init__(self) -> None:
        super().__init__()
        width, older, old = 36, 108, 108
        self.stem = nn.Sequential(nn.Conv2d(3, old, 3, padding=1, bias=False), nn.BatchNorm2d(old))
        self.cells = nn.ModuleList()
        for number in range(20):
            kind = "reduce" if number in (6, 13) else "normal"
            width *= 2 if kind == "reduce" else 1
            halved = number in (7, 14)
            self.cells.append(_DartsCell(kind, older, old, width, halved=halved))
            older, old = old, 4 * width
        self.classifier = nn.Linear(old, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        older = old = self.stem(x)
        for cell in self.cells:
            older, old = old, cell(older, old)
        return self.classifier(functional.adaptive_avg_pool2d(old, 1).flatten(1))


class _Encoder(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn, self.mlp, self.heads = nn.Module(), nn.Module(), heads
        self.attn.qkv, self.attn.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, dim = x.shape
        packed = self.attn.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, dim // self.heads)
        y = functional.scaled_dot_product_attention(*packed.permute(2, 0, 3, 1, 4))
        x = x + self.attn.proj(y.transpose(1, 2).reshape(n, tokens, dim))
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm2(x))))


class VitTiny(nn.Module):
    """Dosovitskiy et al. 2021, equations 1 to 4, with the sizes of DeiT-Ti and timm's names."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, 192))
        self.pos_embed = nn.Parameter(torch.empty(1, 197, 192))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 192, 16, 16)
        self.blocks = nn.Sequential(*(_Encoder(192, 3) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(192, 1e-6), nn.Linear(192, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1)
        return self.head(self.norm(self.blocks(tokens + self.pos_embed))[:, 0])


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
    "darts_v2": Darts,
    "densenet_bc_40_12": densenet_bc_40_12,
    "eas_start": eas_start,
    "lenet_300_100": lenet_300_100,
    "nasbench201": NasBench201,
    "vit_tiny": VitTiny,
}
"""By the name of the network, what makes it."""
