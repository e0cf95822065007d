"""Cells as operations on edges: what is read, and what NAT's rules make of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir
from archir.api import Network
from archir.diag import ArchirError
from archir.importing import import_network
from archir.ops import STANDARD
from archir.ops.cost import cost
from archir.search.cells import ACTIONS, FAMILIES, OPS, Architecture, Cell, Edge, targets, with_ops
from archir.search.encodings import nat_cells
from archir.search.encodings.encoding import network_of
from archir.search.reading_cells import (
    FoundCell,
    applications,
    cleaning,
    planned,
    read_cells,
    rewriting,
    settled,
)

EXAMPLES = Path(__file__).parents[2] / "examples"


@cache
def stack(name: str, layers: int = 3) -> Network:
    text = nat_cells.family(name, channels=4, layers=layers, shape=(1, 8, 8))
    return network_of(text)


def words(cell: Cell) -> str:
    half = {True: "/2", False: ""}
    return " ".join(f"{e.op}:{e.source}-{e.target}{half[e.strided]}" for e in cell.edges)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_cells_of_the_families_are_read_as_they_are(name: str) -> None:
    found = read_cells(stack(name, 5).graph)
    assert [f.cell for f in found] == [FAMILIES[name].normal, FAMILIES[name].reduction]
    assert [f.names for f in found] == [
        ("cells.0", "cells.2", "cells.4"),
        ("cells.1", "cells.3"),
    ]


CONV_SKIP = "conv_3x3:1-2 skip_connect:0-2"
SKIPS = "skip_connect:0-2 skip_connect:1-2"
READ = {
    "darts_v2": [(words(FAMILIES["darts"].normal), 18), (words(FAMILIES["darts"].reduction), 2)],
    # a block's second convolution and its shortcut, which is made first where it is no convolution
    "resnet20": [(CONV_SKIP, 7), ("conv_3x3:0-2 skip_connect:1-2", 2)],
    "mobilenet_v2": [(SKIPS, 10)],  # its layers have no ReLU before them, and ReLU6 behind
    "vgg16_bn": [("null:0-1/2 max_pool_2x2:0-1/2", 5)],  # its convolutions have biases
    "vit_tiny": [],
}


@pytest.mark.parametrize("name", READ)
def test_cells_of_known_networks(name: str) -> None:
    found = read_cells(archir.load(EXAMPLES / f"{name}.arch").graph)
    assert [(words(f.cell), f.count) for f in found] == READ[name]


def test_cells_of_nas_bench_201() -> None:
    """Its node of three edges is none: two nodes leave the cell, and go into a sum of three."""
    found = read_cells(archir.load(EXAMPLES / "nasbench201.arch").graph)
    cell = (
        "null:0-1 conv_3x3:0-1 conv_3x3:0-2 conv_3x3:1-2 null:0-3 conv_3x3:1-3 null:0-4 "
        "conv_1x1:2-4"
    )
    assert [(words(f.cell), f.cell.output, f.count) for f in found] == [
        (cell, (3, 4), 15),
        ("null:0-1/2 avg_pool_2x2:0-1/2", (1,), 2),
        ("skip_connect:1-2 conv_3x3:0-2", (2,), 2),
    ]


def test_cells_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    found = read_cells(import_network("torchvision:resnet18")[0].graph)
    assert sum(f.count for f in found if "conv_3x3" in words(f.cell)) == 8


def network(body: str) -> Network:
    return network_of(f"version 1\narch net {{ input image: f32[N, 3, 8, 8] {body} }}")


STEM = "x = image |> stem: conv(4, 3) w = x |> tanh "
EDGE = "|> relu |> conv(4, 3, bias = false) |> {}: batch_norm"


@pytest.mark.parametrize(
    ("body", "cells"),
    [
        (  # a chain: each node has a null from the input besides
            f"a = x {EDGE.format('b1')} b = a {EDGE.format('b2')} output y = b |> tanh",
            ["null:0-1 conv_3x3:0-1 null:0-2 conv_3x3:1-2"],
        ),
        (f"e = x {EDGE.format('b1')} output y = e + x", ["conv_3x3:0-1 skip_connect:0-1"]),
        ("output y = x + x", ["skip_connect:0-1 skip_connect:0-1"]),
        (  # what is read twice is a node
            f"a = x {EDGE.format('b1')} output y = a + a",
            ["null:0-1 conv_3x3:0-1 skip_connect:1-2 skip_connect:1-2"],
        ),
        (  # what depends on a node through something else is another cell's
            "a = x + w b = a |> tanh output y = a + b",
            [SKIPS],
        ),
        ("v = image |> conv(4) output y = x + w + v", []),
        ("output y = x |> relu |> conv(4, 3) |> batch_norm", []),
        ("output y = x |> relu |> conv(5, 3, bias = false) |> batch_norm", []),
        (
            "output y = x |> max_pool(3, 2, 1) |> tanh",
            ["null:0-1/2 max_pool_3x3:0-1/2"],
        ),
    ],
)
def test_what_is_a_cell(body: str, cells: list[str]) -> None:
    found = read_cells(network(STEM + body).graph)
    assert [words(f.cell) for f in found] == cells


# --- transitions ----------------------------------------------------------------------------------

PUBLISHED = """
conv_5x5: conv_3x3 conv_1x1 sep_5x5 sep_3x3 dil_5x5 dil_3x3 max_5x5 max_3x3 avg_5x5 avg_3x3 *
conv_3x3: conv_1x1 sep_3x3 dil_3x3 max_3x3 avg_3x3 skip null
conv_1x1: skip null
sep_5x5: sep_3x3 dil_5x5 dil_3x3 max_5x5 max_3x3 avg_5x5 avg_3x3 skip null
sep_3x3: dil_3x3 max_3x3 avg_3x3 skip null
dil_5x5: dil_3x3 max_5x5 max_3x3 avg_5x5 avg_3x3 skip null
dil_3x3: max_3x3 avg_3x3 skip null
max_5x5: avg_5x5 max_3x3 avg_3x3 skip null
avg_5x5: max_5x5 max_3x3 avg_3x3 skip null
max_3x3: avg_3x3 skip null
avg_3x3: max_3x3 skip null
skip: null
null: skip
"""
"""NAT++'s table as its authors' code has it; each operation may stay what it is too."""


def name_of(word: str) -> str:
    kind, _, kernel = word.partition("_")
    long = {"sep": "sep_conv", "dil": "dil_conv", "max": "max_pool", "avg": "avg_pool"}
    return "skip_connect" if word == "skip" else f"{long.get(kind, kind)}_{kernel}".strip("_")


def test_transitions_are_the_published_ones() -> None:
    rows = [line.split(":") for line in PUBLISHED.strip().splitlines()]
    table = {
        name_of(one): {name_of(word) for word in more.replace("*", "skip null").split()}
        for one, more in rows
    }
    assert set(table) == set(OPS[:13])
    for op, others in table.items():
        assert set(targets("nat++", op)) == others | {op}
        nat = {"null", "skip_connect"} if op in ("null", "skip_connect") else None
        assert set(targets("nat", op)) == (nat or {op, "skip_connect", "null"})


COSTS = {
    "conv_5x5": (409.6, 1),
    "conv_3x3": (147.5, 1),
    "sep_conv_5x5": (39.2, 2),
    "sep_conv_3x3": (35.1, 2),
    "dil_conv_5x5": (19.6, 1),
    "dil_conv_3x3": (17.5, 1),
    "conv_1x1": (16.4, 1),
    "max_pool_5x5": (0, 0),
    "avg_pool_3x3": (0, 0),
    "skip_connect": (0, 0),
}
"""Thousands of weights at 128 channels (the figure of NAT++'s README), and how many batch norms."""


def test_operations_have_the_published_sizes() -> None:
    def params(op: str) -> int:
        edges = (Edge(op, 1, 2), *FAMILIES["vgg"].normal.edges[1:])
        cells = Architecture(Cell(edges, (5,)), FAMILIES["vgg"].reduction)
        return network_of(nat_cells.program(cells, channels=128, layers=3)).cost().params

    nothing = params("null")
    for op, (thousands, norms) in COSTS.items():
        assert round((params(op) - nothing - 256 * norms) / 1000, 1) == thousands


# --- the published examples -----------------------------------------------------------------------

GOLDEN = {
    ("darts", "normal", "nat"): "0-3 sep_3x3 skip, 1-4 sep_3x3 skip",
    ("darts", "reduction", "nat"): "1-2 max_3x3 skip, 1-3 max_3x3 skip, 2-4 skip null",
    ("enas", "normal", "nat"): "0-4 avg_3x3 null",
    ("enas", "reduction", "nat"): "1-5 avg_3x3 null",
    ("vgg", "normal", "nat"): "0-2 null skip, 0-5 null skip",
    ("vgg", "reduction", "nat"): "0-2 null skip, 0-5 null skip, 4-5 max_3x3 skip",
    ("resnet", "normal", "nat"): "0-3 null skip, 0-4 null skip",
    ("resnet", "reduction", "nat"): "0-3 null skip, 0-4 null skip",
    ("mobilenet", "normal", "nat"): "0-4 null skip",
    ("mobilenet", "reduction", "nat"): "1-2 conv_1x1 skip, 0-3 null skip",
    ("naonet", "normal", "nat"): "1-3 conv_3x3 null, 1-4 conv_3x3 skip",
    ("naonet", "reduction", "nat"): "0-2 conv_3x3 null, 0-4 max_2x2 skip, 2-5 conv_1x1 skip",
    ("darts", "normal", "nat++"): "0-3 sep_3x3 null, 1-3 sep_3x3 skip, 1-4 sep_3x3 dil_3x3",
    ("vgg", "normal", "nat++"): "0-2 null skip, 0-5 null skip, 0-3 null skip, 3-4 conv_3x3 sep_3x3",
}
"""What the published policies made of the cells: an edge, what it was, what it became."""

NOT_OURS = {("darts", "reduction"), ("vgg", "reduction"), ("resnet", "reduction")} | {
    ("mobilenet", "reduction"),
    ("naonet", "reduction"),
}
"""These have a new skip that halves the image: it has more parameters than what it replaces."""


def shape_of(cells: Sequence[Cell]) -> list[str]:
    """Cells by what they are, whatever the order of nodes and edges."""
    found = []
    for cell in cells:
        held = {number: str(number) for number in range(cell.inputs)}
        for node in range(cell.inputs, cell.nodes):
            edges = [e for e in cell.edges if e.target == node]
            held[node] = str(sorted((e.op, e.strided, held[e.source]) for e in edges))
        found.append(str(sorted(held[node] for node in cell.output)))
    return sorted(set(found))


@pytest.mark.parametrize(("name", "kind", "transitions"), GOLDEN)
def test_published_cells_are_reached_by_legal_transitions(
    name: str, kind: str, transitions: Any
) -> None:
    found = {f.cell: f for f in read_cells(stack(name).graph)}
    one = found[getattr(FAMILIES[name], kind)]
    ops, ours = [edge.op for edge in one.cell.edges], True
    for change in GOLDEN[name, kind, transitions].split(", "):
        ends, was, becomes = change.split()
        source, target = (int(end) for end in ends.split("-"))
        old, new = name_of(was), name_of(becomes)
        (place,) = (
            k
            for k, e in enumerate(one.cell.edges)
            if (e.op, e.source, e.target) == (old, source, target)
        )
        assert new in targets(transitions, old)
        if new not in targets(transitions, old, strided=one.cell.edges[place].strided):
            ours = False
            with pytest.raises(ArchirError) as caught:
                applications(one, place, new)
            assert (caught.value.diagnostics[0].code, caught.value.status) == ("A771", 2)
        ops[place] = new
    assert ours == ((name, kind) not in NOT_OURS)
    if ours:
        after = planned(stack(name), rewriting([one], [ops]))
        rest = [cell for cell in found if cell != one.cell]
        expected = shape_of([*rest, with_ops(one.cell, ops)])
        assert shape_of([f.cell for f in read_cells(after)]) == expected
        before, less = stack(name).cost(), cost(after, STANDARD)
        assert (less.params, less.macs) <= (before.params, before.macs)


# --- rewriting ------------------------------------------------------------------------------------


def drawn(found: Sequence[FoundCell], transitions: Any, seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [
        [str(rng.choice(targets(transitions, e.op, strided=e.strided))) for e in f.cell.edges]
        for f in found
    ]


@pytest.mark.parametrize("transitions", ACTIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_rewritten_has_the_chosen_operations_and_costs_no_more(
    name: str, transitions: Any
) -> None:
    net = stack(name)
    found = read_cells(net.graph)
    ops = drawn(found, transitions, 0)
    uses = rewriting(found, ops)
    after = planned(net, uses)
    chosen = [with_ops(f.cell, names) for f, names in zip(found, ops, strict=True)]
    assert shape_of([f.cell for f in read_cells(after)]) == shape_of(chosen)
    quiet = rewriting(found, [settled(f.cell, o) for f, o in zip(found, ops, strict=True)])
    clean = planned(net, [*quiet, *cleaning(net, quiet)])
    costs = [cost(graph, STANDARD) for graph in (net.graph, after, clean)]
    for more, less in pairwise(costs):
        assert less.params <= more.params
        assert less.macs <= more.macs
    assert not [
        n for n in clean if n.op == "add" for v in n.inputs if clean.node(v.node).op == "null"
    ]


def test_an_edge_that_is_absent_becomes_a_skip_from_the_input() -> None:
    body = f"a = x {EDGE.format('b1')} output y = a {EDGE.format('b2')}"
    net = network(STEM + body)
    (found,) = read_cells(net.graph)
    assert [p.present for (p,) in found.places] == [False, True, False, True]
    after = planned(net, rewriting([found], [["null", "skip_connect", "skip_connect", "conv_3x3"]]))
    (again,) = read_cells(after)
    both = Edge("conv_3x3", 0, 1), Edge("skip_connect", 0, 1)
    assert shape_of([again.cell]) == shape_of([Cell(both, (1,), 1)])


def test_a_place_where_an_operation_would_cost_more_stays_as_it_is() -> None:
    body = "x = image |> conv({0}) "
    body += "output y = x + (x |> relu |> conv({0}, 3, bias = false) |> batch_norm)"
    for width, uses in ((2, 0), (8, 1)):
        (found,) = read_cells(network(body.format(width)).graph)
        assert len(applications(found, 1, "sep_conv_3x3")) == uses
        assert applications(found, 1, "conv_3x3") == []


def test_edges_from_zeros_become_null() -> None:
    cell = FAMILIES["vgg"].normal
    ops = [edge.op for edge in cell.edges]
    ops[1] = "null"
    assert settled(cell, ops) == ["null"] * 8
    assert settled(cell, [edge.op for edge in cell.edges]) == [edge.op for edge in cell.edges]


@pytest.mark.parametrize("target", ["conv_7x7", "sep_conv_3x3", "conv_5x5"])
def test_what_is_no_transition_is_refused(target: str) -> None:
    found = read_cells(stack("darts").graph)[1]
    with pytest.raises(ArchirError) as caught:
        applications(found, 0, target)
    assert caught.value.diagnostics[0].code == "A771"
