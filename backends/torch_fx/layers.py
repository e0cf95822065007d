"""Leaf modules for what torch has no layer for."""

from __future__ import annotations

import torch
from torch.nn import functional


class BatchNorm(torch.nn.Module):
    """Batch normalisation whose tensors are its arguments, not its own.

    Serves networks that share or rename the tensors of a batch norm, and ranks above 5.
    """

    def __init__(self, eps: float, momentum: float) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum

    def forward(
        self,
        x: torch.Tensor,
        *,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        num_batches_tracked: torch.Tensor | None,
    ) -> torch.Tensor:
        """Normalise ``x`` [n, c, ...]; in training, update the statistics in place."""
        if self.training and num_batches_tracked is not None:
            num_batches_tracked.add_(1)
        by_batch = self.training or running_mean is None
        tensors = (running_mean, running_var, weight, bias)
        return functional.batch_norm(x, *tensors, by_batch, self.momentum, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, momentum={self.momentum}"


class GroupNorm(torch.nn.GroupNorm):
    """Group normalisation that also takes groups of one number, which make their bias.

    torch's own refuses those for a batch of one.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` [n, c, ...]."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class StochasticDepth(torch.nn.Module):
    """Drops rows of the batch, or all of it, in training: stochastic depth."""

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p = p
        self.mode = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep each row of ``x`` [n, ...] with probability 1 - p, and scale it up."""
        if not self.training or self.p == 0:
            return x
        rows = x.shape[0] if self.mode == "row" else 1
        kept = x.new_empty([rows] + [1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * (kept / (1 - self.p) if self.p < 1 else kept)

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode}"
