"""Training in several processes, as ``torchrun`` starts them. Importing this module needs torch.

Every process holds the whole network and takes its share of each batch; gradients are averaged
(Li et al. 2020, PyTorch Distributed). The first process alone writes and reports.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from archir.diag import BAD_INPUT, INTERRUPTED, ArchirError, error
from archir.train.device import resolve

JOIN = timedelta(minutes=5)
"""How long processes wait for each other at the start."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
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

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Give all processes the first one's buffers, as DDP does before each batch."""
        if self.world > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over the processes."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.world

    def told(self, work: Callable[[], bool]) -> bool:
        """What the first process finds, on all; what it refuses, all refuse.

        Raises:
            ArchirError: As ``work`` does.
        """
        if self.world == 1:
            return work()
        found: list[Any] = [None]
        if self.first:
            try:
                found = [work()]
            except ArchirError as failure:
                found = [failure]
        distributed.broadcast_object_list(found, 0)
        if isinstance(found[0], ArchirError):
            raise found[0]
        return bool(found[0])


@dataclass(frozen=True, slots=True)
class Voice:
    """The processes as they speak to the user: all end alike, and one of them says why."""

    first: bool
    store: Store

    @contextmanager
    def one_speaks(self) -> Iterator[None]:
        """Let the error of the first process that fails out; others end with its exit status."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.first:
                raise SystemExit(INTERRUPTED) from None
            raise
        except Exception as failure:
            if not self._is_first_to_fail():
                status = failure.status if isinstance(failure, ArchirError) else BAD_INPUT
                raise SystemExit(status) from None
            raise

    def _is_first_to_fail(self) -> bool:
        try:
            return int(self.store.add("archir/failed", 1)) == 1
        except RuntimeError:  # whoever kept the count is gone: the first process, which ended first
            return self.first


def is_first() -> bool:
    """Whether this process is the one that writes and reports, or the only one."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


@contextmanager
def joined() -> Iterator[Voice]:
    """Join the processes that ``torchrun`` started; they part at the end.

    Raises:
        ArchirError: A639, they cannot be joined, or one was lost.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    try:
        store, rank, size = next(rendezvous("env://", timeout=JOIN))
        store.set(f"archir/here/{rank}", "")
        store.wait([f"archir/here/{other}" for other in range(size)], JOIN)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as reason:
        raise error(
            "A639",
            f"the {world} processes cannot be joined: {_in_short(reason)}",
            hint="`torchrun --standalone` finds a free port, for processes on one machine",
        ) from None
    try:
        yield Voice(rank == 0, store)
    except RuntimeError as reason:
        if not _is_loss(reason):
            raise
        raise error(
            "A639",
            f"another process ended, or cannot be reached: {_in_short(reason)}",
            hint="what it printed, or torchrun's report, says why",
        ) from None
    finally:
        distributed.destroy_process_group()


def _is_loss(reason: RuntimeError) -> bool:
    return isinstance(reason, distributed.DistError) or "gloo" in str(reason)


def _in_short(reason: Exception) -> str:
    """The first sentence of what torch says, without the places in its sources."""
    first = (str(reason).splitlines() or [type(reason).__name__])[0]
    return re.sub(r"^\[[^]]*\.cc:\d+\] ", "", first).partition(". ")[0][:200]


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, joined if they are not; one alone otherwise.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``: with several processes each takes the GPU of its
            local rank.

    Raises:
        ArchirError: A630, the device is not there; A639, the processes cannot be joined.
    """
    if not distributed.is_initialized():
        if os.environ.get("WORLD_SIZE", "1") == "1":
            yield Ranks(resolve(device))
            return
        with joined(), ranks(device) as here:
            yield here
        return
    local = os.environ.get("LOCAL_RANK", "0")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        device = f"cuda:{local}"
    place = resolve(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    yield Ranks(place, distributed.get_rank(), distributed.get_world_size())
