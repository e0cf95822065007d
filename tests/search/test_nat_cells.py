"""The programs of NAT's cells: they are the networks they are said to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archir.diag import ArchirError, Source
from archir.lang import format_text
from archir.search.cells import FAMILIES, Architecture, Cell, Edge
from archir.search.encodings import nat_cells
from archir.search.encodings.encoding import encoding, network_of

from .nat_nets import Stack
from .test_nsga_encodings import same

CELLS = {
    "darts": (
        "sep3 0,sep3 1,sep3 0,sep3 1,sep3 1,skip 0,skip 0,dil3 2",
        (2, 3, 4, 5),
        "max3 0,max3 1,skip 2,max3 1,max3 0,skip 2,skip 2,max3 1",
        (2, 3, 4, 5),
    ),
    "enas": (
        "sep3 1,skip 1,skip 0,sep5 1,avg3 0,sep3 1,sep3 0,avg3 1,avg3 0,sep5 1",
        (2, 3, 4, 5, 6),
        "sep5 0,avg3 1,sep3 1,avg3 1,avg3 1,sep3 1,avg3 1,sep5 4,sep5 0,sep3 5",
        (2, 3, 6),
    ),
    "naonet": (
        "conv3 0,avg5 1,conv3 1,crossed3 2,conv1 0,conv3 1,crossed3 0,conv3 4,conv3 0,skip 1",
        (3, 5, 6),
        "conv3 0,avg2 1,conv1 0,avg3 0,max2 0,crossed7 1,avg3 0,conv1 2,conv3 0,max3 1",
        (3, 4, 5, 6),
    ),
    "vgg": (
        "null 0,skip 1,null 0,conv3 2,null 0,conv3 3,null 0,skip 4",
        (5,),
        "null 0,skip 1,null 0,conv3 2,null 0,conv3 3,null 0,max3 4",
        (5,),
    ),
    "resnet": ("null 0,skip 1,null 0,conv3 2,null 0,conv3 3,skip 2,skip 4", (5,)) * 2,
    "mobilenet": (
        "null 0,conv1 1,null 0,sep3 2,null 0,conv1 3,skip 1,skip 4",
        (5,),
        "null 0,conv1 1,null 0,sep3 2,null 0,conv1 3,null 0,skip 4",
        (5,),
    ),
}
"""The cells once more, written down from the published genotypes: normal, then reduction."""


def stack(name: str, channels: int, layers: int, classes: int, colours: int) -> Stack:
    normal, leaves, reduction, left = CELLS[name]
    cells = [(normal.split(","), leaves), (reduction.split(","), left)]
    return Stack(cells, channels, layers, classes, colours)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_six_families_are_the_networks_of_their_cells(name: str) -> None:
    assert set(CELLS) == set(FAMILIES)
    text = nat_cells.family(name, channels=4, layers=4, classes=7, shape=(1, 8, 8))
    assert format_text(Source("n", text)) == text
    same(network_of(text), stack(name, 4, 4, 7, 1), (1, 8, 8))


def test_darts_has_the_published_size() -> None:
    """Liu et al. 2019, the authors' train.py: 3.349342 M with 36 channels and 20 cells."""
    found = network_of(nat_cells.family("darts", channels=36, layers=20)).cost().params
    assert found == sum(p.numel() for p in stack("darts", 36, 20, 10, 3).parameters()) == 3_349_342


SPACE = encoding("nat_cells", channels=4, layers=3, nodes=3)
SHORT = [
    "max3",
    "max5",
    "avg3",
    "avg5",
    "skip",
    "sep3",
    "sep5",
    "dil3",
    "dil5",
    "conv1",
    "conv3",
    "conv5",
    "null",
]


@settings(max_examples=15, deadline=None)
@given(genome=st.tuples(*(st.integers(*b) for b in zip(SPACE.lowest, SPACE.highest, strict=True))))
def test_genomes_are_the_networks_of_their_cells(genome: tuple[int, ...]) -> None:
    cells = []
    for half in (genome[:15], genome[15:]):
        words = [f"{SHORT[half[k]]} {half[k + 1]}" for k in range(0, 12, 2)]
        leaves = [node + 2 for node in range(3) if half[12 + node]]
        read = {half[k] for k in range(1, 12, 2)}
        cells.append((words, leaves or [node for node in (2, 3, 4) if node not in read]))
    text = SPACE.program(genome, classes=5, shape=(3, 8, 8))
    same(network_of(text), Stack(cells, 4, 3, 5, 3), (3, 8, 8))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"naonet"}))
def test_families_have_genomes(name: str) -> None:
    genome = nat_cells.genome_of(FAMILIES[name])
    assert nat_cells.architecture(genome) == FAMILIES[name]
    turned = list(genome)
    turned[0:4] = [*genome[2:4], *genome[0:2]]
    assert nat_cells.canonical(turned) == nat_cells.canonical(genome)
    turned[0] = 7
    assert nat_cells.canonical(turned) != nat_cells.canonical(genome)


VGG = FAMILIES["vgg"]


def changed(cell: Cell, **facts: Any) -> Architecture:
    return Architecture(replace(cell, **facts), VGG.reduction)


REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("A770", lambda: nat_cells.family("resnext")),
    ("A770", lambda: nat_cells.genome_of(FAMILIES["naonet"])),
    ("A770", lambda: nat_cells.program(Architecture(VGG.normal, VGG.normal))),
    ("A770", lambda: nat_cells.program(Architecture(VGG.reduction, VGG.reduction))),
    ("A770", lambda: nat_cells.program(changed(VGG.normal, output=()))),
    ("A770", lambda: nat_cells.program(changed(VGG.normal, output=(6,)))),
    ("A770", lambda: nat_cells.program(changed(VGG.normal, inputs=1))),
    (
        "A770",
        lambda: nat_cells.program(
            changed(VGG.normal, edges=(Edge("max_pool_2x2", 1, 2), *VGG.normal.edges[1:]))
        ),
    ),
    (
        "A770",
        lambda: nat_cells.program(
            changed(VGG.normal, edges=(Edge("sep_conv_9x9", 1, 2), *VGG.normal.edges[1:]))
        ),
    ),
    ("A743", lambda: nat_cells.family("vgg", channels=3)),
    ("A743", lambda: nat_cells.family("vgg", layers=0)),
    ("A743", lambda: nat_cells.family("vgg", classes=0)),
    ("A743", lambda: nat_cells.family("vgg", shape=(3, 30, 32))),
    ("A743", lambda: nat_cells.family("vgg", shape=(3, 32))),
    ("A743", lambda: encoding("nat_cells", nodes=13)),
    ("A742", lambda: SPACE.program([0] * 29, classes=5, shape=(3, 8, 8))),
]


@pytest.mark.parametrize(("code", "call"), REFUSED)
def test_what_is_no_stack_of_cells_is_refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(ArchirError) as caught:
        call()
    assert (caught.value.diagnostics[0].code, caught.value.status) == (code, 2)


def test_the_command_writes_a_family(archir: Callable[..., Any], tmp_path: Path) -> None:
    small = ["--set", "channels=4", "--set", "layers=3", "--set", "shape=[1,8,8]"]
    archir("new", "nat_enas", *small, "-o", tmp_path / "n.arch")
    text = nat_cells.family("enas", channels=4, layers=3, shape=(1, 8, 8))
    assert (tmp_path / "n.arch").read_text(encoding="utf-8") == text
    for words in ("layers=[1]", "shape=8", "depth=3"):
        found = archir("new", "nat_enas", "--set", words, "-o", tmp_path / "m.arch")
        assert found.status == 2
        assert words.partition("=")[0] in found.err
    assert not (tmp_path / "m.arch").exists()
