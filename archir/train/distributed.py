"""Training in several processes, as ``torchrun`` starts them. Importing this module needs torch.

Every process holds the whole network and takes its share of each batch; gradients are averaged
(Li et al. 2020, PyTorch Distributed). The first process alone validates and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from archir.diag import error
from archir.train.device import resolve


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that validates and writes."""
        return self.rank == 0

    def wrapped(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module with gradients averaged over the processes."""
        if self.world == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

    def share(self, order: torch.Tensor, batch: int) -> torch.Tensor:
        """Of an order of images, int64 ``[B*K]``, what this process takes: its part of each batch.

        Args:
            order: The order.
            batch: The size of a batch, of all processes together.
        """
        mine = batch // self.world
        rows = order.reshape(-1, batch)[:, self.rank * mine : (self.rank + 1) * mine]
        return rows.reshape(-1)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over the processes."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.world


def is_first() -> bool:
    """Whether this process is the one that validates and writes, or the only one."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started; one process alone where it did not.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``: with several processes each takes the GPU of its
            local rank.

    Raises:
        ArchirError: A630, the device is not there; A639, the processes cannot be joined.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(resolve(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        device = f"cuda:{local}"
    here = resolve(device)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    try:
        distributed.init_process_group("nccl" if here.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as reason:
        raise error("A639", f"the {world} processes cannot be joined: {reason}") from None
    try:
        yield Ranks(here, rank, world)
    finally:
        distributed.destroy_process_group()
