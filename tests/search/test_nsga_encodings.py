"""The encodings: their programs are NSGA-Net's networks, and equal genomes are told."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
import torch
from archir.examples import __file__ as examples
from hypothesis import given, settings
from hypothesis import strategies as st

import archir
from archir.api import Network
from archir.diag import ArchirError, Source
from archir.ir.hash import graph_hash
from archir.lang import format_text
from archir.search.encodings import nsga_macro, nsga_micro
from archir.search.encodings.encoding import ENCODINGS, Encoding, encoding, network_of, remade

from .nsga_nets import Macro, Micro, feeds

QUICK = settings(max_examples=12, deadline=None)


def genomes(space: Encoding) -> st.SearchStrategy[tuple[int, ...]]:
    bounds = zip(space.lowest, space.highest, strict=True)
    return st.tuples(*(st.integers(low, high) for low, high in bounds))


MICRO = encoding("nsga_micro", channels=4, layers=3)
MACRO = encoding("nsga_macro", channels=4, nodes=4)


def same(network: Network, reference: torch.nn.Module, shape: tuple[int, ...]) -> None:
    """Equal outputs with equal weights; what the program lacks is what no output depends on."""
    network = network.init(1, random_statistics=True)
    module = network.to_torch().double().eval()
    reference.double().eval()
    unread, unexpected = reference.load_state_dict(module.state_dict(), strict=False)
    assert unexpected == []
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((3, *shape)))
    expected = reference(x)
    expected.sum().backward()
    idle = {name for name, p in reference.named_parameters() if p.grad is None}
    learned = {name for name, _ in reference.named_parameters()}
    assert idle == set(unread) & learned
    found = module(x)
    assert (found - expected).abs().max() <= 1e-10 * max(1, expected.abs().max())


@QUICK
@given(genome=genomes(MICRO), layers=st.integers(1, 5), colours=st.sampled_from([1, 3]))
def test_micro_networks_are_the_papers(genome: tuple[int, ...], layers: int, colours: int) -> None:
    shape = (colours, 8, 8)
    text = nsga_micro.program(genome, channels=4, layers=layers, classes=7, shape=shape)
    same(network_of(text), Micro(genome, 4, layers, 7, colours), shape)


@QUICK
@given(genome=genomes(MACRO), colours=st.sampled_from([1, 3, 4]))
def test_macro_networks_are_the_papers(genome: tuple[int, ...], colours: int) -> None:
    shape = (colours, 11, 13)
    text = nsga_macro.program(genome, channels=4, nodes=4, classes=7, shape=shape)
    same(network_of(text), Macro(genome, 4, 4, 7, colours), shape)


def test_networks_that_read_one_input_alone() -> None:
    newest = (0, 1, 2, 1) + (3, 1, 1, 2) * 4
    oldest = (0, 0, 2, 0) + (3, 0, 1, 2) * 4
    for normal, reduction in itertools.product((newest, oldest), repeat=2):
        text = nsga_micro.program(normal + reduction, channels=4, layers=6, shape=(3, 8, 8))
        same(network_of(text), Micro(normal + reduction, 4, 6), (3, 8, 8))


PUBLISHED_MICRO = [int(k) for k in "2000600061330143313010315100226122116151"]
"""The network that NSGA-Net found in its micro space, of the authors' code."""


def test_the_modules_compared_with_have_the_published_sizes() -> None:
    """README of NSGA-Net: 2.20 M with 34 channels and 4 more in each of 20 cells; macro 3.37 M."""
    micro = Micro(PUBLISHED_MICRO, 34, 20, widths=[34 + 4 * k for k in range(20)])
    assert sum(p.numel() for p in micro.parameters()) == 2_196_980
    rows = (
        "1 00 010 0111 10011 0",
        "0 00 010 0101 11111 0",
        "0 01 101 1011 10011 0",
    )
    total = 3 * 9 * 128 + 2 * 128 * 128 + 128 * 10 + 10
    for row in rows:  # its dense decoder: 128 channels, nodes of 256 and 64
        reads = feeds([int(bit) for bit in row.replace(" ", "")], 6)
        widths = {k: sum(64 if source else 128 for source in read) for k, read in reads.items()}
        total += sum(2 * w + 256 * w + 512 + 256 * 9 * 64 for k, w in widths.items() if w and k < 7)
        total += 128 * widths[7] + 256
    assert round(total / 1e6, 2) == 3.37


def test_operations_are_those_of_darts_v2() -> None:
    """Of one width, an operation here has the parameters of the one in the example."""
    darts = archir.load(examples.replace("__init__.py", "darts_v2.arch")).graph.parameters
    genome = (3, 0, 3, 1, 5, 0, 5, 1) + (2, 2, 2, 3) * 3
    text = nsga_micro.program(genome * 2, channels=36, layers=20)
    ours = network_of(text).graph.parameters

    def sizes(held: object, scope: str) -> list[tuple[str, str]]:
        return [
            (path.removeprefix(scope), str(p.type))
            for path, p in held.items()  # type: ignore[attr-defined]
            if path.startswith(scope)
        ]

    for here, there in [
        ("stem.", "stem."),
        ("cells.0.preprocess0.", "cells.0.preprocess0."),
        ("cells.0._ops.0.", "cells.0._ops.0."),
        ("cells.0._ops.2.", "cells.0._ops.7."),
    ]:
        assert sizes(ours, here) == sizes(darts, there) != []
    # the halving of what comes before a reduction: another number of channels goes in
    halved = [len(sizes(held, "cells.7.preprocess0.")) for held in (ours, darts)]
    assert halved[0] == halved[1] > 0


@pytest.mark.parametrize("name", ENCODINGS)
def test_programs_are_laid_out_and_can_be_made_again(name: str) -> None:
    space = encoding(name, channels=4)
    facts = {"classes": 10, "shape": (3, 16, 16)}
    for number in range(5):
        genome = space.random(np.random.default_rng(number))
        text = space.program(genome, **facts)
        assert format_text(Source("genome", text)) == text
        origin = space.origin(genome, **facts)
        assert remade(origin) == text
        graph = network_of(text).graph
        types = [
            str(graph.node(graph.inputs[0]).types[0]),
            str(graph.type_of(graph.outputs[0].value)),
        ]
        assert types == ["f32[N, 3, 16, 16]", "f32[N, 10]"]


def shuffled(space: Encoding, genome: tuple[int, ...], order: list[int]) -> tuple[int, ...] | None:
    """A genome with its blocks in another order and their operations exchanged."""
    half, made = len(genome) // 2, []
    names = {0: 0, 1: 1, **{block + 2: place + 2 for place, block in enumerate(order)}}
    for cell in (genome[:half], genome[half:]):
        for block in order:
            one, source, other, second = cell[4 * block : 4 * block + 4]
            made += [other, names[second], one, names[source]]
    fits = all(gene <= high for gene, high in zip(made, space.highest, strict=True))
    return tuple(made) if fits else None


@settings(max_examples=60, deadline=None)
@given(genome=genomes(MICRO), order=st.permutations(range(5)))
def test_micro_genomes_of_one_network_are_told(genome: tuple[int, ...], order: list[int]) -> None:
    again = shuffled(MICRO, genome, order)
    if again is not None:
        assert MICRO.canonical(genome) == MICRO.canonical(again)


def test_blocks_in_another_order_are_another_network_where_they_are_read() -> None:
    """NSGA-Net's own comparison takes blocks as a multiset, and so these two as equal."""
    rest = (0, 0, 0, 1) * 2
    one = (3, 0, 3, 0, 4, 1, 4, 1, 5, 2, 5, 2, *rest)
    two = (4, 1, 4, 1, 3, 0, 3, 0, 5, 2, 5, 2, *rest)
    costs = [
        network_of(MICRO.program(cell * 2, classes=10, shape=(1, 8, 8))).cost()
        for cell in (one, two)
    ]
    assert MICRO.canonical(one * 2) != MICRO.canonical(two * 2)
    hashes = {
        graph_hash(network_of(MICRO.program(cell * 2, classes=10, shape=(1, 8, 8))).graph)
        for cell in (one, two)
    }
    assert len(hashes) == 2
    assert costs[0].params == costs[1].params, "sizes alone do not tell them apart"


def test_macro_phases_of_one_network_are_told() -> None:
    # node 2 reads 1 and node 4 reads 3, or node 3 reads 1 and node 4 reads 2
    one, two = (1, 0, 0, 0, 0, 1, 0), (0, 1, 0, 0, 1, 0, 0)
    chain, idle = (1, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 1)
    late = (0, 0, 0, 0, 0, 1, 0)
    assert MACRO.canonical(one * 3) == MACRO.canonical(two * 3)
    assert MACRO.canonical(one + chain + late) == MACRO.canonical(two + late + chain)
    assert MACRO.canonical(idle + one + two) == MACRO.canonical(one + two + idle)
    assert MACRO.canonical(one * 3) != MACRO.canonical((*one[:-1], 1) * 3)
    assert MACRO.canonical(one + chain + chain) != MACRO.canonical(chain + one + chain)


def phase_graph(bits: tuple[int, ...]) -> nx.DiGraph:
    reads = feeds(bits, 4)
    graph = nx.DiGraph((source, node) for node, read in reads.items() for source in read)
    nx.set_node_attributes(graph, {k: {0: "in", 5: "out"}.get(k, "") for k in graph}, "kind")
    return graph


def test_macro_phases_are_told_as_networkx_tells_graphs() -> None:
    phases = [tuple(bits) for bits in itertools.product((0, 1), repeat=7) if any(bits[:-1])]
    graphs = {bits: phase_graph(bits) for bits in phases}
    groups = dict[object, list[tuple[int, ...]]]()
    for bits in phases:
        groups.setdefault(MACRO.canonical(bits * 3), []).append(bits)
    alike = nx.isomorphism.categorical_node_match("kind", "")
    heads = [group[0] for group in groups.values()]
    for first, *others in groups.values():
        assert all(nx.is_isomorphic(graphs[first], graphs[o], node_match=alike) for o in others)
    for one, two in itertools.combinations(heads, 2):
        assert not nx.is_isomorphic(graphs[one], graphs[two], node_match=alike)
    assert len(heads) < len(phases)


def cell_graph(cell: tuple[int, ...]) -> nx.MultiDiGraph:
    graph = nx.MultiDiGraph()
    graph.add_nodes_from([(0, {"kind": 0}), (1, {"kind": 1})])
    for number in range(len(cell) // 2):
        graph.add_node(number // 2 + 2, kind=2)
        graph.add_edge(cell[2 * number + 1], number // 2 + 2, op=cell[2 * number])
    return graph


SIMILAR = st.tuples(*(st.integers(0, high) for k in range(5) for high in (1, k + 1) * 2))


@settings(max_examples=80, deadline=None)
@given(cell=SIMILAR, order=st.permutations(range(5)))
def test_cells_are_told_as_networkx_tells_graphs(cell: tuple[int, ...], order: list[int]) -> None:
    """Blocks in another order, their inputs as they are: sometimes equal, sometimes not."""
    other = tuple(gene for block in order for gene in cell[4 * block : 4 * block + 4])
    if all(gene <= high for gene, high in zip(other, MICRO.highest, strict=False)):
        expected = nx.is_isomorphic(
            cell_graph(cell),
            cell_graph(other),
            node_match=nx.isomorphism.categorical_node_match("kind", 2),
            edge_match=nx.isomorphism.categorical_multiedge_match("op", 0),
        )
        assert (MICRO.canonical(cell * 2) == MICRO.canonical(other * 2)) == expected


REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("A741", lambda: encoding("nsga_nano")),
    ("A742", lambda: nsga_micro.program([0] * 39)),
    ("A742", lambda: nsga_micro.program([9, *[0] * 39])),
    ("A742", lambda: nsga_macro.program([2] * 21)),
    ("A742", lambda: encoding("nasbench201").program([5] * 6, classes=10, shape=(3, 32, 32))),
    ("A743", lambda: encoding("nsga_micro", channels=3)),
    ("A743", lambda: encoding("nsga_macro", nodes=9)),
    ("A743", lambda: encoding("nsga_macro", layers=9)),
    ("A743", lambda: encoding("nsga_micro", layers=10**9)),
    ("A743", lambda: encoding("nasbench201", cells="5")),  # type: ignore[arg-type]
    ("A743", lambda: encoding("nasbench201").program([0] * 6, classes=0, shape=(3, 8, 8))),
    ("A743", lambda: encoding("nasbench201").program([0] * 6, classes=2, shape=8)),  # type: ignore[arg-type]
    ("A743", lambda: nsga_micro.program([0] * 40, shape=(3, 30, 32))),
    ("A743", lambda: nsga_micro.program([0] * 40, shape=(3, 32))),
    ("A743", lambda: nsga_macro.program([1] * 21, shape=(3, 4, 32))),
]


@pytest.mark.parametrize(("code", "call"), REFUSED)
def test_what_is_no_genome_is_refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(ArchirError) as caught:
        call()
    assert caught.value.diagnostics[0].code == code
    assert caught.value.status == 2
