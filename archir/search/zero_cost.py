"""The measures of :mod:`archir.search.proxies`. Importing this module needs torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from archir.diag import error
from archir.search.features import Images, Place
from archir.search.untrained import DENSE

LEAST = 5e-324
"""The least float64 above 0."""
EIGENVALUE = 1e-12
"""What an eigenvalue of nwot's matrix counts as at least, as a share of the largest."""
K = 1e-5
"""Of jacov (Mellor et al. 2020)."""

_RECTIFIERS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
)


def synflow(module: nn.Module, place: Place) -> float:
    """See :class:`archir.search.proxies.SynFlow`; the module is spoilt for anything else."""
    weights = _dense(module.double().eval(), place)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.abs_()
    ones = torch.ones(1, *place.dataset.shape, dtype=torch.float64, device=place.device)
    module(ones).sum().backward()
    flow = sum((weight * grad).abs().sum().item() for weight, grad in _graded(weights))
    return math.log(max(_finite(flow), LEAST))


def nwot(module: nn.Module, place: Place, images: Images) -> float:
    """See :class:`archir.search.proxies.Nwot`."""
    assert isinstance(module, fx.GraphModule)
    (x,) = images.batches(len(images.rows))
    counting = _Counting(module.train(), len(x), place.device)
    with torch.no_grad():
        counting.run(x)
    if not counting.units:
        raise error("A735", f"{place.graph.name} has no rectifier for nwot to look at")
    values = torch.linalg.eigvalsh(counting.alike)
    return _finite(float(values.clamp(min=EIGENVALUE * float(values[-1])).log().sum()))


class _Counting(fx.Interpreter):
    """Runs a network layer by layer, and counts for each two images what agrees."""

    def __init__(self, module: fx.GraphModule, images: int, device: torch.device) -> None:
        super().__init__(module)
        self.alike = torch.zeros(images, images, dtype=torch.float64, device=device)
        self.units = 0

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(self.fetch_attr(target), _RECTIFIERS):
            on = (args[0] > 0).flatten(1).float()
            off = 1 - on
            self.alike += (on @ on.T + off @ off.T).double()
            self.units += on.shape[1]
        return super().call_module(target, args, kwargs)


def grad_norm(module: nn.Module, place: Place, images: Images) -> float:
    """See :class:`archir.search.proxies.GradNorm`."""
    weights = _dense(module, place)
    _backward(module, images)
    return _finite(sum(grad.norm().item() for _, grad in _graded(weights)))


def snip(module: nn.Module, place: Place, images: Images) -> float:
    """See :class:`archir.search.proxies.Snip`."""
    weights = _dense(module, place)
    _backward(module, images)
    return _finite(sum((w * grad).abs().sum().item() for w, grad in _graded(weights)))


def jacov(module: nn.Module, place: Place, images: Images) -> float:
    """See :class:`archir.search.proxies.Jacov`. Gradients that are 0 correlate fully."""
    (x,) = images.batches(len(images.rows))
    x.requires_grad_()
    module.train()(x).sum().backward()
    grads = torch.zeros_like(x) if x.grad is None else x.grad
    _finite(float(grads.abs().sum()))
    correlations = torch.corrcoef(grads.flatten(1).double()).nan_to_num(nan=1.0)
    values = torch.linalg.eigvalsh(correlations).clamp(min=0)
    return _finite(-float(((values + K).log() + 1 / (values + K)).sum()))


BY_BATCH: Mapping[str, Callable[[nn.Module, Place, Images], float]] = {
    "nwot": nwot,
    "grad_norm": grad_norm,
    "snip": snip,
    "jacov": jacov,
}
"""Those that look at a batch."""


def _backward(module: nn.Module, images: Images) -> None:
    """Gradients of the mean cross entropy of a batch in training mode."""
    (x,) = images.batches(len(images.rows))
    loss: Any = nn.functional.cross_entropy(module.train()(x), images.labels)
    loss.backward()


def _dense(module: nn.Module, place: Place) -> list[nn.Parameter]:
    """The weights of convolutions and linear layers.

    Raises:
        ArchirError: A735, there are none.
    """
    held = dict(module.named_parameters(remove_duplicate=False))
    paths = dict.fromkeys(n.params["weight"] for n in place.graph if n.op in DENSE)
    if not paths:
        raise error("A735", f"{place.graph.name} has no convolution or linear layer to look at")
    return [held[path] for path in paths]


def _graded(weights: Sequence[nn.Parameter]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Weights with their gradients, 0 for what no output depends on."""
    for weight in weights:
        held = weight.detach()
        yield held, torch.zeros_like(held) if weight.grad is None else weight.grad


def _finite(value: float) -> float:
    """A number.

    Raises:
        ArchirError: A734, it is none.
    """
    if not math.isfinite(value):
        raise error("A734", "with random weights the score of the network is not finite")
    return value
