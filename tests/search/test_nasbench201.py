"""NAS-Bench-201's cells as programs, held against the published numbers."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest

import archir
from archir.diag import ArchirError, Source
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.lang import format_text, load
from archir.ops import STANDARD
from archir.ops.cost import cost
from archir.search.encodings.nasbench201 import OPERATIONS, notation, program

EXAMPLE = Path(__file__).parents[2] / "examples" / "nasbench201.arch"
TABLE = Path(os.environ.get("ARCHIR_DATA", "")) / "nb201"

BEST = ("nor_conv_3x3", "nor_conv_3x3", "nor_conv_3x3", "skip_connect", "nor_conv_3x3")
BEST += ("nor_conv_1x1",)


def graph(ops: tuple[str, ...], **sizes: int) -> Graph:
    return load(Source("cell.arch", program(ops, **sizes)), STANDARD, {}).graph


def test_the_best_cell_is_the_example() -> None:
    assert graph_hash(graph(BEST)) == graph_hash(archir.load(EXAMPLE).graph)
    # their paths too are those of the authors' network
    assert set(graph(BEST).parameters) == set(archir.load(EXAMPLE).graph.parameters)
    assert "nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0" in notation(BEST)


CELLS = {
    "best": BEST,
    "nothing": ("none",) * 6,
    "all 3x3": ("nor_conv_3x3",) * 6,
    "all pooled": ("avg_pool_3x3",) * 6,
    "identity": ("none", "none", "none", "skip_connect", "none", "none"),
    "a layer that nobody reads": ("nor_conv_3x3", "none", "none", "skip_connect", "none", "none"),
    "a layer that reads zeros": ("none", "none", "none", "skip_connect", "nor_conv_1x1", "none"),
    "a pooling that nobody reads": ("avg_pool_3x3", *("none",) * 2, "skip_connect", "none", "none"),
}


@pytest.mark.parametrize("cell", CELLS)
def test_texts_are_formatted_and_load(cell: str) -> None:
    for sizes in ({}, {"cells": 1, "channels": 4}, {"cells": 10, "channels": 128}):
        text = program(CELLS[cell], **sizes)
        assert format_text(Source("cell.arch", text)) == text
    made = graph(CELLS[cell], cells=1, channels=4)
    assert made.type_of(made.outputs[0].value).shape[1] == 10


def test_a_cell_that_passes_nothing_on_gives_equal_outputs() -> None:
    pytest.importorskip("torch")
    made = graph(CELLS["nothing"], cells=1, channels=4)
    from archir.target import backends
    from archir.weights.init import init_weights

    images = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    weights = init_weights(made, STANDARD, 0)
    (out,) = backends()["torch"].forward(made, weights, {"image": images})
    assert (out == out[0]).all()


def test_other_sizes() -> None:
    made = load(
        Source("x.arch", program(BEST, channels=4, cells=1, classes=7, shape=(1, 8, 8))),
        STANDARD,
        {},
    ).graph
    assert str(made.node("image").types[0]) == "f32[N, 1, 8, 8]"
    assert made.type_of(made.outputs[0].value).shape[1] == 7


@pytest.mark.parametrize("ops", [BEST[:5], (*BEST[:5], "conv")])
def test_what_is_no_cell(ops: tuple[str, ...]) -> None:
    with pytest.raises(ArchirError) as caught:
        program(ops)
    assert caught.value.diagnostics[0].code == "A732"


def published_flops(made: Graph) -> int:
    """As the benchmark counts them, found by fitting all 725.

    Beside multiply-accumulates: 2 for each value of a batch norm, 1 of a ReLU, the window of an
    average pooling; 5,184 for the global pooling, which are 81 for each of 64 channels.
    """
    total = cost(made, STANDARD).macs + 5184
    for node in made:
        each = {"batch_norm": 2, "relu": 1, "avg_pool": math.prod(node.attrs.get("kernel", ()))}
        total += each.get(node.op, 0) * math.prod(node.types[0].shape[1:])
    return total


@pytest.mark.skipif(not TABLE.is_dir(), reason="ARCHIR_DATA names no folder with nb201/ in it")
def test_costs_are_the_published_ones() -> None:
    ops = np.load(TABLE / "nb201_accuracy.npz")["ops"]
    with (TABLE / "nb201_zero_cost_subset_cifar10.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 725
    for row in rows[::12]:
        made = graph(tuple(OPERATIONS[code] for code in ops[int(row["index"])]))
        assert cost(made, STANDARD).params == round(float(row["params"]) * 1e6), row
        assert published_flops(made) == round(float(row["flops"]) * 1e6), row
