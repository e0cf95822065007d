from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from archir.diag import BAD_INPUT, ArchirError
from archir.train.augment import Augmentation

SETTINGS = settings(max_examples=120, deadline=None, derandomize=True)
RARE = 1e-3
"""A distribution is refused where what was drawn is less likely than this."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Images without a zero."""
    return torch.randn(count, *shape, generator=generator(seed)).abs() + 0.1


def by_hand(made: Augmentation, x: torch.Tensor, drawn: torch.Generator) -> torch.Tensor:
    """One image after the other, with the numbers drawn as the docstring says."""
    count, _, height, width = x.shape
    images = x.double().numpy()
    down = right = mirrored = rows = columns = np.zeros(count, np.int64)
    if made.crop:
        down, right = torch.randint(2 * made.crop + 1, (2, count), generator=drawn).numpy()
    if made.flip:
        mirrored = torch.randint(2, (count,), generator=drawn).numpy()
    if made.cutout:
        rows = torch.randint(height, (count,), generator=drawn).numpy()
        columns = torch.randint(width, (count,), generator=drawn).numpy()
    found = []
    for number, image in enumerate(images):
        made_of = np.pad(image, ((0, 0), *[(made.crop, made.crop)] * 2))
        made_of = made_of[:, down[number] :, right[number] :][:, :height, :width].copy()
        if mirrored[number]:
            made_of = made_of[:, :, ::-1].copy()
        if made.cutout:
            top, left = rows[number] - made.cutout // 2, columns[number] - made.cutout // 2
            square = np.s_[max(top, 0) : top + made.cutout, max(left, 0) : left + made.cutout]
            made_of[:, square[0], square[1]] = 0
        found.append(made_of)
    return torch.from_numpy(np.stack(found)).to(x.dtype)


@SETTINGS
@given(
    made=st.builds(Augmentation, st.booleans(), st.integers(0, 5), st.integers(0, 9)),
    shape=st.tuples(*[st.integers(1, size) for size in (6, 3, 9, 9)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    last=st.booleans(),
    seed=st.integers(0, 2**63),
)
def test_images_are_those_made_one_by_one(
    made: Augmentation, shape: tuple[int, ...], dtype: torch.dtype, last: bool, seed: int
) -> None:
    x = batch(*shape, seed=seed).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    found = made.images(x, generator(seed))
    assert found.dtype == dtype
    assert found.shape == x.shape
    assert torch.equal(found, by_hand(made, x, generator(seed)))
    assert torch.equal(x, kept)  # what was passed in stays


@pytest.mark.parametrize(
    "made",
    [
        Augmentation(flip=True),
        Augmentation(crop=4),
        Augmentation(cutout=5),
        Augmentation(flip=True, crop=4, cutout=5),
    ],
    ids=str,
)
def test_channels_last_stays(made: Augmentation) -> None:
    x = batch(8, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    found = made.images(x, generator())
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.is_contiguous()
    assert made.images(x.contiguous(), generator()).is_contiguous()
    mixed = Augmentation(mixup=1.0).mix(x, generator())
    assert mixed is not None
    assert mixed[0].is_contiguous(memory_format=torch.channels_last)


def test_what_is_drawn_does_not_depend_on_the_images() -> None:
    made = Augmentation(flip=True, crop=2, cutout=3, mixup=0.4)
    one, two = generator(5), generator(5)
    x = batch(7, 3, 8, 8)
    first = made.mix(made.images(x, one), one)
    second = made.mix(made.images(-100 * x.bfloat16(), two), two)
    assert first is not None
    assert second is not None
    assert torch.equal(first[1], second[1])
    assert first[2] == second[2]
    assert torch.equal(one.get_state(), two.get_state())
    again = made.mix(made.images(x, one), one)  # the generator has moved on
    assert again is not None
    assert first[2] != again[2]


def test_what_is_off_draws_nothing() -> None:
    drawn = generator()
    before = drawn.get_state()
    x = batch(3, 2, 5, 5)
    made = Augmentation()
    assert made.images(x, drawn) is x
    assert made.mix(x, drawn) is None
    assert torch.equal(drawn.get_state(), before)


def uniform(counts: list[int]) -> None:
    """Refuses counts that are unlikely if each is equally likely."""
    assert stats.chisquare(counts).pvalue > RARE, counts


COUNT = 20_000


def coordinates(size: int) -> torch.Tensor:
    """A batch of one image, whose pixels are numbered from 1."""
    return torch.arange(1.0, size * size + 1).reshape(1, 1, size, size).expand(COUNT, -1, -1, -1)


def test_half_of_the_images_are_mirrored() -> None:
    found = Augmentation(flip=True).images(coordinates(2), generator())[:, 0, 0, 0]
    mirrored = int((found == 2).sum())
    uniform([mirrored, COUNT - mirrored])


def test_every_place_of_a_crop_is_as_likely() -> None:
    found = Augmentation(crop=1).images(coordinates(3), generator())[:, 0, 1, 1]
    uniform([int((found == place).sum()) for place in range(1, 10)])


def test_every_centre_of_a_cutout_is_as_likely() -> None:
    found = Augmentation(cutout=1).images(coordinates(4), generator())
    assert torch.equal((found == 0).sum((1, 2, 3)), torch.ones(COUNT, dtype=torch.int64))
    uniform([int((found[:, 0, i, j] == 0).sum()) for i, j in product(range(4), repeat=2)])


def test_a_cutout_is_cut_off_at_the_edges() -> None:
    found = Augmentation(cutout=4).images(coordinates(8), generator())
    hidden = (found == 0).sum((1, 2, 3))
    # DeVries and Taylor: from y - 2 to y + 2, y any of 8 rows
    sides = [min(y + 2, 8) - max(y - 2, 0) for y in range(8)]
    assert set(hidden.tolist()) == {a * b for a, b in product(sides, repeat=2)}
    mean = (sum(sides) / 8) ** 2
    spread = float(hidden.double().std()) / COUNT**0.5
    assert abs(float(hidden.double().mean()) - mean) < 4 * spread


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_a_beta_distribution(alpha: float) -> None:
    made, drawn, x = Augmentation(mixup=alpha), generator(), torch.zeros(1, 1)
    shares = [mixed[2] for _ in range(3000) if (mixed := made.mix(x, drawn)) is not None]
    assert len(shares) == 3000
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > RARE


def test_every_partner_is_as_likely() -> None:
    made, drawn, x = Augmentation(mixup=1.0), generator(), torch.zeros(4, 1)
    partners = [mixed[1][0].item() for _ in range(4000) if (mixed := made.mix(x, drawn))]
    uniform([partners.count(number) for number in range(4)])


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixup_by_hand(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = batch(9, *shape).to(dtype)
    kept = x.clone()
    mixed = Augmentation(mixup=0.3).mix(x, generator(3))
    assert mixed is not None
    found, partner, share = mixed
    drawn = generator(3)
    assert torch.equal(partner, torch.randperm(9, generator=drawn))
    seed = int(torch.randint(2**62, (), generator=drawn))
    assert share == random.Random(seed).betavariate(0.3, 0.3)
    assert found.dtype == dtype
    assert torch.equal(found, share * x + (1 - share) * x[partner])
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("made", "shape", "said"),
    [
        (Augmentation(flip=True), (64,), "[C, H, W]; these are [64]"),
        (Augmentation(crop=1), (8, 8), "[C, H, W]"),
        (Augmentation(cutout=1), (1, 2, 8, 8), "[C, H, W]"),
        (Augmentation(crop=8), (3, 8, 9), "by up to 8 pixels"),
        (Augmentation(cutout=9), (3, 9, 8), "hides 9 by 9 of [3, 9, 8]"),
    ],
)
def test_what_cannot_be_augmented(made: Augmentation, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ArchirError) as caught:
        made.check(shape)
    (found,) = caught.value.diagnostics
    assert found.code == "A674"
    assert said in found.message
    assert caught.value.status == BAD_INPUT


def test_what_can_be_augmented() -> None:
    Augmentation(flip=True, crop=7, cutout=8).check((3, 8, 8))
    Augmentation(mixup=1.0).check((64,))
