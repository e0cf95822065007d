"""ResNets for CIFAR-10 as one writes them in torch, for `archir import resnet_cifar.py:resnet20`.

He et al. 2016, section 4.2, with option-A shortcuts; keys as in common implementations.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Shortcut(nn.Module):
    """Every second pixel, and channels of zeros before and after."""

    def __init__(self, zeros: int) -> None:
        super().__init__()
        self.zeros = zeros

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.zeros, self.zeros), "constant", 0)


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = Shortcut(width // 4) if stride != 1 else nn.Sequential()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y)


class ResNet(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self.stage(blocks, 16, 16, 1)
        self.layer2 = self.stage(blocks, 16, 32, 2)
        self.layer3 = self.stage(blocks, 32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def stage(blocks: int, before: int, width: int, stride: int) -> nn.Sequential:
        rest = [Block(width, width, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Block(before, width, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        y = F.avg_pool2d(y, y.size()[3])
        return self.linear(y.view(y.size(0), -1))


def resnet20() -> nn.Module:
    return ResNet(3)


def resnet32() -> nn.Module:
    return ResNet(5)


def resnet56() -> nn.Module:
    return ResNet(9)
