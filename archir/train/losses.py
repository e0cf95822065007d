"""What training minimises: losses of logits ``[N, C]`` and labels ``[N]``. Needs torch.

| name | loss |
|---|---|
| ``cross_entropy`` | of the softmax, mean over the batch |
| ``binary_cross_entropy`` | of a sigmoid for each class, mean over batch and classes |
| ``mse`` | squared difference of logits and one-hot labels, mean over batch and classes |
| ``FILE.py:FACTORY`` | what the user's function of no arguments returns |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

import torch
from torch.nn import functional

from archir.diag import ArchirError, error
from archir.train.sources import read_factory

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of logits, float32 ``[N, C]``, and labels, int64 ``[N]``: a tensor of one number, ``[]``."""


def make_loss(name: str, *, label_smoothing: float = 0.0) -> Loss:
    """A loss by its name.

    Args:
        name: As in the table above. A user's loss takes logits and labels and gives one number,
            with a gradient.
        label_smoothing: The share s of a label that is spread over all C classes: its own class
            gets 1 - s + s/C, the others s/C (Szegedy et al. 2016, section 7).

    Raises:
        ArchirError: A632, no such loss, or smoothing with a user's loss; A672, the user's file or
            factory failed. The loss itself raises A673 where the user's fails.
    """
    path, _, factory = name.rpartition(":")
    if path.endswith(".py"):
        if label_smoothing:
            raise error("A632", f"label_smoothing is not for a loss of one's own: {name}")
        return _Users(name, read_factory(Path(path), factory, "A672"))
    if name not in _NAMED:
        known = ", ".join(_NAMED)
        raise error("A632", f"`{name}` is no loss", hint=f"{known} or FILE.py:FACTORY")
    loss = _NAMED[name]
    return lambda logits, y: loss(logits, y, label_smoothing)


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far a student's softened classes are from its teacher's; mean over the batch.

    ``T^2 KL(softmax(teacher / T) || softmax(student / T))``: its gradient is that of the cross
    entropy with soft targets, times T^2, so that it stays as large whatever the temperature
    (Hinton et al. 2015, section 2). None flows to the teacher.

    Args:
        student: Logits ``[N, C]``.
        teacher: Logits ``[N, C]``.
        temperature: T, above 0.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, 1),
        functional.log_softmax(teacher.detach() / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def _cross_entropy(logits: torch.Tensor, y: torch.Tensor, smoothing: float) -> torch.Tensor:
    return functional.cross_entropy(logits, y, label_smoothing=smoothing)


def _binary_cross_entropy(logits: torch.Tensor, y: torch.Tensor, smoothing: float) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, _targets(logits, y, smoothing))


def _mse(logits: torch.Tensor, y: torch.Tensor, smoothing: float) -> torch.Tensor:
    return functional.mse_loss(logits, _targets(logits, y, smoothing))


_NAMED: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "cross_entropy": _cross_entropy,
    "binary_cross_entropy": _binary_cross_entropy,
    "mse": _mse,
}


def _targets(logits: torch.Tensor, y: torch.Tensor, smoothing: float) -> torch.Tensor:
    """One-hot labels ``[N, C]``, smoothed."""
    low = smoothing / logits.shape[1]
    return torch.full_like(logits, low).scatter_(1, y[:, None], 1 - smoothing + low)


class _Users:
    """A loss of the user's, whose results are looked at."""

    def __init__(self, name: str, made: object) -> None:
        if not callable(made):
            raise error("A672", f"{name} returned {type(made).__name__}, not a loss(logits, y)")
        self._name, self._made, self._tried = name, made, False

    def __call__(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if isinstance(self._made, torch.nn.Module) and not self._tried:
            self._made.to(logits.device)
        try:
            loss = self._made(logits, y)
        except (ArchirError, torch.OutOfMemoryError):
            raise
        except Exception as reason:
            what = shorten(f"{type(reason).__name__}: {reason}", 300, placeholder=" ...")
            raise error("A673", f"the loss of {self._name} failed with {what}") from reason
        if not isinstance(loss, torch.Tensor) or loss.dim() or not loss.is_floating_point():
            raise error(
                "A673",
                f"the loss of {self._name} returned {_kind(loss)}, not one number",
                hint="expected a floating tensor [], such as a mean over the batch",
            )
        if logits.requires_grad and torch.is_grad_enabled() and not self._tried:
            self._tried = True
            if not _depends(loss, logits):
                raise error("A673", f"the loss of {self._name} has no gradient by the logits")
        return loss


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _depends(loss: torch.Tensor, logits: torch.Tensor) -> bool:
    if not loss.requires_grad:
        return False
    (slope,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
    return slope is not None
