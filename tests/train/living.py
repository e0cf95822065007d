"""Networks in training for tests: a small one on the digits, its optimizers, its errors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import archir
from archir.api import Network
from archir.diag import ArchirError
from archir.ops.arithmetic import Array
from archir.train.data import load_data, normalise
from archir.train.device import module_of
from archir.train.state import State

CPU = torch.device("cpu")
TEXT = """version 1
arch net {
    input image: f32[N, 1, 8, 8]
    a = image |> conv1: conv(8, 3, bias = false) |> bn1: batch_norm |> relu1: relu
    b = a |> conv2: conv(12, 3, 2, bias = false) |> bn2: batch_norm |> relu2: relu
    output logits = b |> global_avg_pool |> fc: linear(10)
}
"""
Make = Callable[[Any], torch.optim.Optimizer]
SGD: Make = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True)  # noqa: E731
ADAMW: Make = lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-12, weight_decay=0.0)  # noqa: E731


@cache
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Some digits and their labels."""
    split = load_data("digits").train
    x = torch.from_numpy(np.array(normalise(program().graph, split.x[:256])))
    return x, torch.from_numpy(np.array(split.y[:256], np.int64))


def program() -> Network:
    """The network, with initial weights."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.arch"
        file.write_text(TEXT, encoding="utf-8")
        return archir.load(file).init(1)


def step(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Any, number: int
) -> float:
    """One step of training; the loss before it."""
    module.train()
    x, y = (t[32 * number : 32 * (number + 1)] for t in data)
    optimizer.zero_grad(set_to_none=True)
    loss = cross_entropy(module(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def live(
    data: Any, make: Make, steps: int = 3
) -> tuple[torch.nn.Module, torch.optim.Optimizer, State]:
    network = program()
    assert network.weights is not None
    module = module_of(network.graph, dict(network.weights), CPU)
    optimizer = make(module.parameters())
    for number in range(steps):
        step(module, optimizer, data, number)
    return module, optimizer, State.of(network, optimizer, module=module, step=steps)


def weights_of(module: torch.nn.Module) -> dict[str, Array]:
    return {path: p.detach().numpy().copy() for path, p in module.named_parameters()}


def grouped(parameters: Any) -> torch.optim.Optimizer:
    """Vectors without decay, kernels with it, the head with a rate of its own."""
    held = list(parameters)
    vectors, kernels = [p for p in held if p.ndim == 1], [p for p in held if p.ndim == 4]
    head = [p for p in held if p.ndim == 2]
    return torch.optim.AdamW(
        [
            {"params": kernels, "weight_decay": 0.1, "paths": ("stale",), "scale": 1.0},
            {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
            {"params": head, "weight_decay": 0.2, "lr": 1e-4, "scale": 0.1},
        ],
        lr=1e-3,
    )


def refused(call: Callable[[], object]) -> Any:
    with pytest.raises(ArchirError) as failure:
        call()
    (found,) = failure.value.diagnostics
    return found, failure.value.status
