"""A running average of a network's weights. Importing this module needs torch."""

from __future__ import annotations

import copy

import torch


class Ema:
    """An exponential moving average of the parameters: ``e += (1 - decay) * (w - e)``.

    Buffers (the statistics of batch norms, which are averages themselves) are those of the
    network. ``module`` is a network of its own, which is what is scored and saved.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module)
        self.module.requires_grad_(requires_grad=False)
        self._bind(module)

    def _bind(self, module: torch.nn.Module) -> None:
        # the parameters themselves: what they hold may move, to another memory format for one
        self._from: list[torch.Tensor] = list(module.parameters())
        self._to: list[torch.Tensor] = list(self.module.parameters())
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Take one step of the average, after a step of the optimizer."""
        torch._foreach_lerp_(self._to, self._from, 1 - self.decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
