"""The supernet: what its operations compute, whose weights they are, how cells are stacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from archir.diag import ArchirError
from archir.search.cells import FAMILIES, NULL, OPS, SKIP, Cell, Edge, targets, with_ops
from archir.search.supernet import (
    Form,
    Supernet,
    levels_of,
    load_supernet,
    macs_of,
    random_cell,
    save_supernet,
)
from archir.weights.store import load_metadata, load_weights, save_weights

DARTS = FAMILIES["darts"]


def form(*kinds: Cell, free: bool = False, layers: int = 3, channels: int = 4) -> Form:
    return Form(kinds, OPS, free, channels, layers, (1, 8, 8), 10)


def made(form: Form) -> Supernet:
    return Supernet(form, np.random.default_rng(0))


def images(count: int = 8) -> torch.Tensor:
    return torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(0))


def single(op: str, *, strided: bool = False) -> Cell:
    return Cell((Edge(op, 1, 2, strided), Edge(NULL, 0, 2, strided)), (2,))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_cells_of_its_kinds_are_computed(family: str) -> None:
    kinds = (FAMILIES[family].normal, FAMILIES[family].reduction)
    net = made(form(*kinds, free=True))
    generator = np.random.default_rng(0)
    rows = [list(kinds)] + [[random_cell(k, OPS, generator) for k in kinds] for _ in range(4)]
    for cells in rows:
        with torch.no_grad():
            logits = net(cells, images())
        assert logits.shape == (8, 10)
        assert logits.isfinite().all()
        assert logits.std(0).max() > 0


@settings(max_examples=25, deadline=None)
@given(family=st.sampled_from(sorted(FAMILIES)), seed=st.integers(0, 2**32))
def test_whatever_cells_become_is_computed(family: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    kinds = (FAMILIES[family].normal, FAMILIES[family].reduction)
    cells = []
    for cell in kinds:
        legal = [targets("nat++", e.op, strided=e.strided) for e in cell.edges]
        cells.append(with_ops(cell, [ops[generator.integers(len(ops))] for ops in legal]))
    net = made(form(*kinds))
    with torch.no_grad():
        assert net(cells, images()).isfinite().all()
    assert macs_of(net.form, cells) <= macs_of(net.form, kinds)


def test_random_cells_are_as_published() -> None:
    generator = np.random.default_rng(0)
    for kind, halved in ((DARTS.normal, False), (DARTS.reduction, True)):
        for _ in range(20):
            cell = random_cell(kind, OPS, generator)
            assert [e.target for e in cell.edges] == [2, 2, 3, 3, 4, 4, 5, 5]
            assert all(e.op != NULL and e.source < e.target for e in cell.edges)
            assert all(e.strided == (halved and e.source < 2) for e in cell.edges)
            assert cell.output == (2, 3, 4, 5)
    enas = random_cell(FAMILIES["enas"].reduction, OPS, generator)
    read = {e.source for e in enas.edges}
    assert enas.output == tuple(n for n in range(2, 7) if n not in read)  # loose ends


def modules(op: str, c: int, stride: int) -> nn.Module | None:
    """An operation as the authors' networks have it, written down with torch's modules."""
    kind, _, size = op.rpartition("_")
    norm = nn.BatchNorm2d(c, affine=False)

    def conv(k: int, s: int = 1, d: int = 1, *, deep: bool = False) -> nn.Module:
        return nn.Conv2d(c, c, k, s, d * (k // 2), d, c if deep else 1, bias=False)

    k = int(size[0]) if size[:1].isdigit() else 0
    layers: dict[str, Callable[[], list[nn.Module]]] = {
        "max_pool": lambda: [nn.MaxPool2d(k, stride, k // 2), norm],
        "avg_pool": lambda: [nn.AvgPool2d(k, stride, k // 2, count_include_pad=False), norm],
        "conv": lambda: [nn.ReLU(), conv(k, stride), norm],
        "dil_conv": lambda: [nn.ReLU(), conv(k, stride, 2, deep=True), conv(1), norm],
        "sep_conv": lambda: [
            *(nn.ReLU(), conv(k, stride, deep=True), conv(1), nn.BatchNorm2d(c, affine=False)),
            *(nn.ReLU(), conv(k, deep=True), conv(1), norm),
        ],
    }
    return nn.Sequential(*layers[kind]()) if kind in layers and k != 2 else None


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("op", OPS)
def test_an_operation_is_that_of_torchs_modules(op: str, stride: int) -> None:
    # a cell that halves has twice the channels
    net = made(form(single(op, strided=stride == 2), channels=4 // stride))
    x = torch.randn((5, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    if op == NULL:
        return
    with torch.no_grad():
        found = net._operation(op, f"cells.0.1-2.{op}", x, stride)
        assert found.shape == (5, 4, 8 // stride, 8 // stride)
        wanted = modules(op, 4, stride)
        if wanted is None:
            return
        convolutions = [m for m in wanted.modules() if isinstance(m, nn.Conv2d)]
        for number, convolution in enumerate(convolutions):
            convolution.weight.copy_(net.weights[f"cells.0.1-2.{op}.{number}"])
        assert torch.allclose(found, wanted(x), atol=1e-5)


def test_a_strided_skip_is_a_factorized_reduction() -> None:
    net = made(form(single(SKIP, strided=True), channels=2))
    x = torch.randn((5, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    weight = net.weights["cells.0.1-2.skip_connect.0"].detach()
    halves = [
        nn.functional.conv2d(part.relu(), rows, stride=2)
        for part, rows in ((x, weight[:2]), (x[:, :, 1:, 1:], weight[2:]))
    ]
    wanted = nn.BatchNorm2d(4, affine=False)(torch.cat(halves, 1))
    with torch.no_grad():
        found = net._operation(SKIP, "cells.0.1-2.skip_connect", x, 2)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert net._operation(SKIP, "", x, 1) is x


def test_the_costs_are_those_of_the_published_table() -> None:
    """The README of NAT++: millions of MACs of an operation, 128 channels, 32x32."""
    table = {
        "conv_5x5": 419.4,
        "conv_3x3": 151.0,
        "sep_conv_5x5": 40.1,
        "sep_conv_3x3": 35.9,
        "dil_conv_5x5": 20.1,
        "dil_conv_3x3": 18.0,
        "conv_1x1": 16.8,
        "max_pool_5x5": 3.3,
        "max_pool_3x3": 1.2,
        SKIP: 0.0,
        NULL: 0.0,
    }
    for op, wanted in table.items():
        cell = single(op)
        found = macs_of(form(cell, channels=128), [cell])
        # three cells: the image is halved before the second and the third, channels are doubled
        assert abs(found * 32 * 32 / 1e6 - wanted * _cells(op)) < 0.06 * 3


def _cells(op: str) -> float:
    """How much more three such cells cost than the first: depthwise parts cost half from each."""
    deep, point = {"sep_conv_5x5": (25, 128), "sep_conv_3x3": (9, 128)}.get(op, (0, 1))
    deep, point = {"dil_conv_5x5": (25, 128), "dil_conv_3x3": (9, 128)}.get(op, (deep, point))
    deep, point = (1, 0) if "pool" in op else (deep, point)
    return 1 + sum((deep / 2**n + point) / (deep + point) for n in (1, 2))


def test_only_what_is_used_has_a_gradient() -> None:
    net = made(form(DARTS.normal, DARTS.reduction))
    net([DARTS.normal, DARTS.reduction], images()).sum().backward()  # type: ignore[no-untyped-call]
    used = {name for name, weight in net.weights.items() if weight.grad is not None}
    assert "cells.0.0-2.sep_conv_3x3.0" in used
    assert "cells.0.0-2.sep_conv_5x5.0" not in used
    assert {f"cells.{n}.preprocess{k}" for n in range(3) for k in (0, 1)} <= used
    assert {"stem", "head.weight", "head.bias"} <= used


def test_zeros_are_zeros() -> None:
    """Nodes without a live edge count as zeros for those who read them, and for the classifier."""
    kinds = (DARTS.normal, DARTS.reduction)
    net = made(form(*kinds))
    dead = [with_ops(cell, [NULL] * 8) for cell in kinds]
    with torch.no_grad():
        assert (net(dead, images()) == net.weights["head.bias"]).all()
        half = with_ops(kinds[1], ["max_pool_3x3", NULL] + [NULL] * 6)  # node 2 alone is alive
        found = net([kinds[0], half], images())
        for name in ("cells.2.preprocess1", "head.weight"):
            net.weights[name][:, net.weights[name].shape[1] // 4 :] = 1e6  # what reads zeros
        again = net([kinds[0], half], images())
    assert torch.allclose(found, again, atol=1e-5)


def test_the_stack() -> None:
    stack = form(DARTS.normal, DARTS.reduction, layers=8).stack()
    assert [layer.kind for layer in stack] == [0, 0, 1, 0, 0, 1, 0, 0]
    assert [layer.width for layer in stack] == [4, 4, 8, 8, 8, 16, 16, 16]
    assert not any(layer.before for layer in stack)
    plain = form(DARTS.normal, FAMILIES["vgg"].normal, layers=6).stack()
    assert [layer.kind for layer in plain] == [0, 1, 0, 0, 1, 1]
    assert [layer.before for layer in plain] == [False, False, True, False, True, False]
    every = form(DARTS.reduction).stack()
    assert [layer.width for layer in every] == [8, 16]
    many = [replace(DARTS.normal, output=(n,)) for n in range(2, 6)]
    assert {layer.kind for layer in form(*many, DARTS.reduction, layers=1).stack()} == {*range(5)}


def test_halvings_that_no_published_cell_has() -> None:
    """One input, a halving in the middle, two paths of other lengths, outputs of two sizes."""
    edges = (
        *(Edge("conv_3x3", 0, 1, strided=True), Edge(NULL, 0, 1)),
        *(Edge("conv_3x3", 1, 2, strided=True), Edge(SKIP, 0, 2)),
    )
    cell = Cell(edges, (1, 2), inputs=1)
    assert levels_of(cell) == [0, 1, 2]
    net = made(form(cell, layers=4))
    for size in (8, 7, 1):
        assert net([cell], images()[:, :, :size, :size]).isfinite().all()


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    net, path = made(form(DARTS.normal, DARTS.reduction, free=True)), tmp_path / "a.safetensors"
    save_supernet(path, net)
    read = load_supernet(path)
    assert read.form == net.form
    cells = [DARTS.normal, DARTS.reduction]
    assert (read(cells, images()) == net(cells, images())).all()


def _told(**changes: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        ((key, text),) = load_metadata(path).items()
        save_weights(path, load_weights(path), {key: json.dumps({**json.loads(text), **changes})})

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        _told(layers=4),
        _told(channels="4"),
        _told(kinds=[{}]),
        _told(more=1),
        lambda path: save_weights(path, load_weights(path)),
    ],
)
def test_a_damaged_file(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_supernet(path, made(form(DARTS.normal, DARTS.reduction)))
    damage(path)
    with pytest.raises(ArchirError) as failure:
        load_supernet(path)
    assert failure.value.diagnostics[0].code == "A776"
