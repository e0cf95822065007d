"""Augmentation of a whole batch at once, where the images lie. Importing this needs torch.

Images are normalised: what a crop moves in from beyond the edge, and what a cutout leaves, is zero,
the mean colour where the network states its mean.

| what | with each image | source |
|---|---|---|
| ``crop`` | padded by p zeros and cut to its size again, at one of (2p + 1)^2 places | He et al. \
2016, section 4.2 |
| ``flip`` | mirrored left to right, with probability 1/2 | the same |
| ``cutout`` | a square of zeros, its centre at any pixel, cut off at the edges | DeVries, Taylor \
2017, section 3.2 |
| ``mixup`` | averaged with another of the batch; one share for all | Zhang et al. 2018 |
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch.nn import functional

from archir.diag import error


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to the images of a training batch."""

    flip: bool = False
    crop: int = 0
    """Pixels of padding on each side."""
    cutout: int = 0
    """Side of the square in pixels."""
    mixup: float = 0.0
    """Both parameters of the Beta distribution that shares are drawn from; 0 for no mixup."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Make sure that images of a shape, without the batch, can be augmented so.

        Raises:
            ArchirError: A674, they are no ``[C, H, W]``, or smaller than what is cut away.
        """
        if not (self.flip or self.crop or self.cutout):
            return
        if len(shape) != 3:
            raise error(
                "A674", f"flip, crop and cutout take images [C, H, W]; these are {list(shape)}"
            )
        least = min(shape[1:])
        if self.crop >= least:
            raise error("A674", f"crop moves images of {list(shape)} by up to {self.crop} pixels")
        if self.cutout > least:
            raise error("A674", f"cutout hides {self.cutout} by {self.cutout} of {list(shape)}")

    def images(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Crop, flip and cut out, each image for itself.

        Element type and memory format stay. The numbers drawn depend on the size of the batch and
        of its images alone: first ``randint(2p + 1, [2, B])``, how far the crop lies below and
        right of the padded image's corner; then ``randint(2, [B])``, which images are mirrored;
        then ``randint(H, [B])`` and ``randint(W, [B])``, the centre of the square. What is off
        draws nothing.

        Args:
            x: Images ``[B, C, H, W]``.
            generator: On the CPU it gives the same numbers for every device.
        """
        if self.crop:
            down, right = _drawn(2 * self.crop + 1, (2, len(x)), generator, x.device)
            x = _cropped(x, self.crop, down, right)
        if self.flip:
            chosen = _drawn(2, (len(x),), generator, x.device).bool()
            x = torch.where(chosen[:, None, None, None], x.flip(3), x)
        if self.cutout:
            hidden = [
                _covered(size, self.cutout, _drawn(size, (len(x),), generator, x.device))
                for size in x.shape[2:]
            ]
            square = hidden[0][:, None, :, None] & hidden[1][:, None, None, :]
            x = torch.where(square, 0, x)
        return x

    def mix(
        self, x: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, float] | None:
        """Mix each image with a partner; None where mixup is off.

        Draws ``randperm(B)``, the partners, then ``randint(2**62, [])``, with which
        :class:`random.Random` draws the share.

        Returns:
            ``share * x + (1 - share) * x[partner]``, the partners, int64 ``[B]``, and the share.
        """
        if not self.mixup:
            return None
        where = generator.device
        partner = torch.randperm(len(x), generator=generator, device=where).to(x.device)
        seed = int(torch.randint(2**62, (), generator=generator, device=where))
        share = random.Random(seed).betavariate(self.mixup, self.mixup)
        return x * share + x[partner] * (1 - share), partner, share


def _drawn(
    count: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    numbers = torch.randint(count, shape, generator=generator, device=generator.device)
    return numbers.to(device, non_blocking=True)


def _cropped(
    x: torch.Tensor, padding: int, down: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """Each image moved up by ``down - padding`` and left by ``right - padding``, zeros let in."""
    height, width = x.shape[2:]
    each = torch.arange(len(x), device=x.device)
    padded = functional.pad(x, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2p + 1, 2p + 1, H, W]
    return windows[each, :, down, right]


def _covered(size: int, side: int, centre: torch.Tensor) -> torch.Tensor:
    """Which positions along an axis the square covers: bool ``[B, size]``."""
    start = centre[:, None] - side // 2
    place = torch.arange(size, device=centre.device)
    return (place >= start) & (place < start + side)
