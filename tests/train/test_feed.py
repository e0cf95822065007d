from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from archir.ir.graph import Graph
from archir.train.data import Split, normalise
from archir.train.feed import AUGMENTATION, DROPOUT, ORDER, Feed, drawn_seed, generator, order

from .nets import Net

CPU = torch.device("cpu")
STATED = (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225)))


def images(count: int = 50, kind: type = np.uint8) -> Split:
    stream = np.random.default_rng(3)
    x = stream.integers(0, 256, (count, 3, 5, 7), np.uint8)
    made = x if kind is np.uint8 else x.astype(np.float32) / np.float32(255)
    return Split(made, np.arange(count, dtype=np.int64) % 4)


def network(stated: bool = True) -> Graph:
    return Net(3, 5, 7).graph({"preprocess": STATED} if stated else None)


# ----- the order of the images, and what a step draws


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_an_epoch_sees_every_image_once(n: int) -> None:
    found = order(3, 5, n)
    assert found.dtype == torch.int64
    assert sorted(found.tolist()) == list(range(n))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first = order(0, 1, 100)
    torch.manual_seed(9)
    assert torch.equal(first, order(0, 1, 100))
    # the same sum of seed and epoch, too: runs of neighbouring seeds share no order
    for seed, epoch in ((0, 2), (1, 1), (1, 0), (2**62, 1)):
        assert not torch.equal(first, order(seed, epoch, 100))


def test_the_order_can_be_drawn_by_hand_and_stays() -> None:
    stream = np.random.SeedSequence((7, 4), spawn_key=(0,))
    drawn = torch.Generator(CPU).manual_seed(int(stream.generate_state(1, np.uint64)[0]))
    assert torch.equal(order(7, 4, 60), torch.randperm(60, generator=drawn))
    # A change here changes every training run.
    assert order(0, 0, 8).tolist() == [6, 4, 1, 3, 7, 5, 2, 0]


def test_a_step_draws_from_streams_of_its_own() -> None:
    keys = [(s, p, n) for s in (0, 1) for p in (ORDER, AUGMENTATION, DROPOUT) for n in (0, 1, 2)]
    assert len({drawn_seed(*key) for key in keys}) == len(keys)
    one, same = (torch.rand(4, generator=generator(CPU, 1, 2)) for _ in range(2))
    assert torch.equal(one, same)
    assert generator(CPU, 1, 2).initial_seed() == drawn_seed(1, AUGMENTATION, 2)


# ----- batches


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("budget", [None, 0])
def test_a_batch_is_what_normalise_gives(kind: type, stated: bool, budget: int | None) -> None:
    graph, split = network(stated), images(kind=kind)
    before = split.x.copy()
    feed = Feed(graph, split, CPU, budget=budget)
    assert feed.resident == (budget is None)
    assert len(feed) == 50
    chosen = order(1, 0, 50)[:17]
    x, y = feed.take(chosen)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.numpy().tobytes() == normalise(graph, split.x)[chosen.numpy()].tobytes()
    assert y.tolist() == split.y[chosen.numpy()].tolist()
    np.testing.assert_array_equal(split.x, before)


def test_the_budget_is_what_the_images_take() -> None:
    split = images(kind=np.uint8)
    assert Feed(network(), split, CPU, budget=50 * 3 * 5 * 7).resident
    assert not Feed(network(), split, CPU, budget=50 * 3 * 5 * 7 - 1).resident


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("batch", [1, 16, 50, 64])
def test_batches_are_takes(budget: int | None, batch: int) -> None:
    feed = Feed(network(), images(), CPU, budget=budget)
    chosen = order(2, 3, 50)
    parts = [chosen[start : start + batch] for start in range(0, 50, batch)]
    found = list(feed.batches(chosen, batch))
    assert len(found) == len(parts)
    for (x, y), part in zip(found, parts, strict=True):
        assert torch.equal(x, feed.take(part)[0])
        assert torch.equal(y, feed.take(part)[1])


def test_batches_may_be_left_early() -> None:
    feed = Feed(network(), images(), CPU, budget=0)
    batches = feed.batches(order(0, 0, 50), 4)
    first, _ = next(batches)
    batches.close()
    assert torch.equal(first, feed.take(order(0, 0, 50)[:4])[0])


def test_images_in_a_file_stay_there(tmp_path: Path) -> None:
    split, path = images(), tmp_path / "images"
    split.x.tofile(path)
    kept = np.memmap(path, np.uint8, "r", shape=split.x.shape)
    feed = Feed(network(), Split(kept, split.y), CPU)
    x, _ = feed.take(torch.arange(50))
    assert torch.equal(x, Feed(network(), split, CPU).take(torch.arange(50))[0])
    assert path.read_bytes() == split.x.tobytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("budget", [None, 0])
def test_a_gpu_gets_the_same_bits(kind: type, budget: int | None) -> None:
    graph, split = network(), images(500, kind)
    feed = Feed(graph, split, torch.device("cuda:0"), budget=budget)
    assert feed.resident == (budget is None)
    chosen = order(1, 0, 500)
    expected = normalise(graph, split.x)[chosen.numpy()]
    found = torch.cat([x for x, _ in feed.batches(chosen, 64)])
    assert found.cpu().numpy().tobytes() == expected.tobytes()
