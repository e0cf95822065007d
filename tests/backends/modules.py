"""Modules as users write them, for tests of imports."""

from __future__ import annotations

import torch
from torch import nn


class Rows(nn.Module):
    """Stochastic depth by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        noise = x.new_empty([x.shape[0], 1, 1, 1]).bernoulli_(0.8).div_(0.8)
        return x * noise


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.rows = Rows()
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.bn(self.conv(x)))
        x = x + self.rows(self.inner(x))
        return self.fc(self.drop(x.mean((2, 3))))


def residual() -> nn.Module:
    return Residual()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(self.a(x))))


class State(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.register_buffer("scale", torch.rand(8))
        self.register_buffer("hid", torch.rand(8), persistent=False)
        self.k = torch.rand(8, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x) * self.scale + self.hid, y @ self.k


def state() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return State(), (torch.randn(2, 8), torch.randn(2, 8))


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)


class ValueFlow(One):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return self.fc(x)
        return self.fc(-x)


class BatchFlow(One):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        if x.shape[0] > 2:
            y = y * 2
        return y


class BatchLoop(One):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.fc(x[i]) for i in range(x.shape[0])])


class Item(One):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = int(x.abs().max().item())
        return self.fc(x) * count


class Nonzero(One):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)[x[:, 0] > 0]


class Rand(One):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + torch.randn_like(x[:, :4])


class Overwrites(One):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        view = y.view(-1, 2, 2)
        y.mul_(3)
        return view + 1


class Mode(One):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.fc(x) * 2
        return torch.sigmoid(self.fc(x))


class Heads(One):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.training:
            return self.fc(x), self.aux(x)
        return self.fc(x)


class Carry(One):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.erfcx(self.fc(x))


class Shy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def nothing() -> int:
    return 3


def boom() -> nn.Module:
    raise ValueError("no weights here")


class Frozen(nn.Module):
    """A filter and a normalisation that are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("filt", torch.rand(4, 1, 3, 3), persistent=False)
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(self.conv(x), self.filt, stride=2, groups=4)
        return nn.functional.batch_norm(y, self.mean, self.var, self.weight, self.bias)


class Scaled(nn.Module):
    """A group norm that scales and does not shift."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.group_norm(self.conv(x), 3, self.scale)


class Single(One):
    """A piece of code in a mode of torch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            y = self.fc(x.float()) * 2
        with torch.set_grad_enabled(False):
            return torch.relu(y)


class Half(One):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=True):
            return self.fc(x).float()
