"""Batches of a split on the device, and the numbers that all randomness of a run comes from.

Importing this module needs torch. What is random in training is a function of the seed and of the
epoch or step alone, so a run that is cut off goes on as if it had not been, the processes of a
run on several GPUs agree without a word, and a user can draw the same numbers by hand:

    stream = numpy.random.SeedSequence((seed, number), spawn_key=(purpose,))
    drawn = torch.Generator(device).manual_seed(int(stream.generate_state(1, numpy.uint64)[0]))

with the epoch for the order of the images (``purpose`` 0), and with the step for their
augmentation (1) and for dropout (2).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from warnings import catch_warnings, simplefilter

import numpy as np
import torch

from archir.ir.graph import Graph
from archir.train.data import Images, Split, normalisation
from archir.train.images import StoredImages

ORDER, AUGMENTATION, DROPOUT = 0, 1, 2
"""What random numbers are drawn for: the last entry of the key they come from."""

SHARE = 0.25
"""Of the free memory of a GPU, what the images of one split may take."""


def drawn_seed(seed: int, purpose: int, number: int) -> int:
    """The seed of a generator, from 0 to 2**64 - 1: a hash of its arguments, none negative."""
    stream = np.random.SeedSequence((seed, number), spawn_key=(purpose,))
    return int(stream.generate_state(1, np.uint64)[0])


def order(seed: int, epoch: int, n: int) -> torch.Tensor:
    """The order of ``n`` images in an epoch: int64 ``[n]`` on the CPU."""
    generator = torch.Generator().manual_seed(drawn_seed(seed, ORDER, epoch))
    return torch.randperm(n, generator=generator)


def generator(
    device: torch.device, seed: int, step: int, purpose: int = AUGMENTATION
) -> torch.Generator:
    """The generator that a step draws from on a device."""
    return torch.Generator(device).manual_seed(drawn_seed(seed, purpose, step))


class Feed:
    """A split as normalised batches on a device.

    The images lie on the device as they are in the split, bytes as bytes, where they take no more
    than ``budget``; else on the host, and batches travel. The values are the same, to the bit.
    """

    resident: bool
    """Whether the images lie on the device."""

    labels: torch.Tensor
    """All labels, int64 ``[N]`` on the device."""

    def __init__(
        self,
        graph: Graph,
        split: Split,
        device: torch.device,
        *,
        budget: int | None = None,
    ) -> None:
        """Place the images.

        Args:
            graph: The network that will read them; its ``preprocess`` states the normalisation.
            split: Images ``[N, ...]`` and labels ``[N]``.
            device: Where batches are wanted.
            budget: Bytes that the images may take on the device; by default a share
                (:data:`SHARE`) of what is free now on a GPU, and on the CPU, where nothing
                moves, no limit.
        """
        self.device = device
        if budget is None and device.type == "cuda":
            budget = int(SHARE * torch.cuda.mem_get_info(device)[0])
        self.resident = budget is None or split.x.nbytes <= budget
        self._images, self._rows = _on_host(split.x)
        if self.resident and device.type != "cpu":
            self._images, self._rows = _on_host(split.x[:])[0].to(device), None
        self.labels = torch.from_numpy(split.y).to(device)
        stated = normalisation(graph)
        self._stated = None if stated is None else [torch.from_numpy(s).to(device) for s in stated]
        # a number would become its reciprocal on a GPU: a tensor is divided by as NumPy does it
        self._white = torch.tensor(255, dtype=torch.float32).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float32 ``[B, ...]``, normalised, and labels int64 ``[B]``, both on the device.

        Args:
            chosen: Which ones, int64 ``[B]``, on any device.
        """
        if self.resident:
            here = chosen.to(self.device)
            rows = here if self._rows is None else self._rows[here]
            return self._normalised(self._images[rows]), self.labels[here]
        return self._sent(self._gathered(chosen.cpu()), chosen)

    def batches(
        self, order: torch.Tensor, batch: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What :meth:`take` gives for each ``batch`` of ``order``, the last one as it comes.

        Of images on the host the next batch is gathered while the last one is worked on.
        """
        if self.resident:
            yield from map(self.take, torch.split(order.to(self.device), batch))
            return
        parts = torch.split(order.cpu(), batch)
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(self._gathered, parts[0])
            for number, part in enumerate(parts):
                images = waiting.result()
                if number + 1 < len(parts):
                    waiting = ahead.submit(self._gathered, parts[number + 1])
                yield self._sent(images, part)

    def _gathered(self, chosen: torch.Tensor) -> torch.Tensor:
        """Images of the host side by side, in memory that a GPU reads from without the CPU.

        Such memory is not used again before the copy out of it is done: torch sees to that.
        """
        shape = (len(chosen), *self._images.shape[1:])
        pinned = self.device.type == "cuda"
        buffer = torch.empty(shape, dtype=self._images.dtype, pin_memory=pinned)
        rows = chosen if self._rows is None else self._rows[chosen]
        return torch.index_select(self._images, 0, rows, out=buffer)

    def _sent(
        self, images: torch.Tensor, chosen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        labels = self.labels[chosen.to(self.device)]
        return self._normalised(images.to(self.device, non_blocking=True)), labels

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        """As :func:`archir.train.data.normalise`, to the bit; the images are written over."""
        if x.dtype == torch.uint8:
            x = x.float().div_(self._white)
        if self._stated is not None:
            mean, std = self._stated
            x = x.sub_(mean).div_(std)
        return x


def _on_host(x: Images | StoredImages) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images as a tensor over the same memory or file, and which rows of it they are."""
    array, rows = (x.array, torch.from_numpy(x.rows)) if isinstance(x, StoredImages) else (x, None)
    with catch_warnings():
        simplefilter("ignore", UserWarning)  # of arrays that are read-only: they are read alone
        return torch.from_numpy(array), rows
