"""Parameters and multiply-accumulates of the shipped networks, beside what others published.

`pytest tests/examples/test_published.py -s` prints the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

import pytest

from archir.diag import Source
from archir.ir.dims import product
from archir.ir.graph import Graph, Node
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.cost import Cost, concrete, cost

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.arch"))

TORCHVISION = "torchvision 0.29, weights' meta: num_params, _ops"
PYTORCHCV = "pytorchcv, table of CIFAR-10 models"
LAYER_NORM = "5 a number in layer norm"
BIAS = "bias of linear"


@cache
def text(name: str) -> str:
    return (EXAMPLES / f"{name}.arch").read_text()


def build(source: str, settings: Mapping[str, int] | None = None) -> Graph:
    return load(Source("net.arch", source), STANDARD, settings or {}).graph


@dataclass(frozen=True)
class Row:
    """A published number: its digits, what one of them stands for, and where it stands."""

    name: str
    what: str
    published: str
    unit: int
    source: str
    settings: Mapping[str, int] = field(default_factory=dict)
    swaps: tuple[tuple[str, str], ...] = ()
    more: str = ""
    """What is counted there and is no multiply-accumulate here: see `counted`."""

    def graph(self) -> Graph:
        source = text(self.name)
        for old, new in self.swaps:
            assert source.count(old) == 1
            source = source.replace(old, new)
        return build(source, self.settings)

    def label(self) -> str:
        extra = [f"{key}={value}" for key, value in self.settings.items()]
        return " ".join([self.name, *extra, *(["other cell"] if self.swaps else [])])

    def shown(self) -> str:
        suffix = {1: "", 10**3: " K", 10**6: " M", 10**9: " G"}[self.unit]
        return f"{int(self.published):,}" if self.unit == 1 else self.published + suffix


def torchvision(name: str, params: str, macs: str) -> list[Row]:
    """What torchvision documents: its operations are multiply-accumulates of conv and linear."""
    return [
        Row(name, "params", params, 1, TORCHVISION),
        Row(name, "MACs", macs, 10**9, TORCHVISION),
    ]


# The cell of index 1 of the benchmark, for which its authors print what they count:
# |nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|
OTHER_CELL = (
    (
        "layers.2: relu_conv_bn(a, width)",
        "avg_pool(a, 3, 1, padding = 1, count_include_pad = false)",
    ),
    ("layers.5: relu_conv_bn(b, width, 1)", "b"),
)

PUBLISHED = [
    Row("resnet20", "params", "0.27", 10**6, "He et al. 2016, table 6"),
    Row("resnet20", "MACs", "41", 10**6, "Guo et al. 2019 (NAT), table 1"),
    *torchvision("resnet50", "25557032", "4.089"),
    *torchvision("vgg16_bn", "138365992", "15.47"),
    *torchvision("googlenet", "6624904", "1.498"),
    *torchvision("mobilenet_v2", "3504872", "0.301"),
    *torchvision("shufflenet_v2_x1_0", "2278604", "0.145"),
    *torchvision("efficientnet_b0", "5288548", "0.386"),
    Row("efficientnet_b0", "params", "5.3", 10**6, "Tan, Le 2019, table 2"),
    Row("efficientnet_b0", "MACs", "0.39", 10**9, "Tan, Le 2019, table 2"),
    Row("vit_tiny", "params", "5717416", 1, "timm, vit_tiny_patch16_224"),
    Row("vit_tiny", "MACs", "1.26", 10**9, "timm, benchmark-infer (fvcore)", more=LAYER_NORM),
    Row("vit_tiny", "MACs", "1.3", 10**9, "Wang et al. 2021 (PVT), table 2, DeiT-Ti"),
    Row("darts_v2", "params", "3349342", 1, "the authors' train.py: 3.349342MB, no auxiliary head"),
    Row("darts_v2", "params", "3.3", 10**6, "Liu et al. 2019, table 1"),
    Row("darts_v2", "MACs", "528", 10**6, "hanser, genotypes: DARTS_V2"),
    Row("densenet_bc_40_12", "params", "176122", 1, PYTORCHCV),
    Row("densenet_bc_40_12", "params", "769162", 1, PYTORCHCV, {"layers": 16}),
    Row("densenet_bc_40_12", "params", "0.8", 10**6, "Huang et al. 2017, table 2", {"layers": 16}),
    Row("nasbench201", "params", "0.802426", 10**6, "NATS-Bench, issue 36", swaps=OTHER_CELL),
    Row(
        "nasbench201",
        "MACs",
        "113.95137",
        10**6,
        "NATS-Bench, issue 36",
        swaps=OTHER_CELL,
        more=BIAS,
    ),
    Row("lenet_300_100", "params", "267", 10**3, "Han et al. 2015, table 1"),
]

UNPUBLISHED = {
    "digits": "our own",
    "nash_digits": "our own",
    "nash_start": "no count in the paper",
    "eas_start": "no count in the paper",
    "eas_digits": "our own",
    "eas_dense_digits": "our own",
}


def counted(row: Row, graph: Graph, found: Cost) -> int:
    """What archir finds, with what the source counts besides."""
    if row.what == "params":
        return found.params
    if row.more == BIAS:
        return found.macs + sum(numbers(node) for node in graph if node.op == "linear")
    if row.more == LAYER_NORM:
        return found.macs + 5 * sum(numbers(node) for node in graph if node.op == "layer_norm")
    assert not row.more
    return found.macs


def numbers(node: Node) -> int:
    """How many numbers a node gives for a batch of one."""
    return concrete(product(node.types[0].shape))


def rounded(value: int, published: str, unit: int) -> str:
    """A value with the digits of a published number."""
    digits = Decimal(published)
    return str((Decimal(value) / unit).quantize(digits, ROUND_HALF_UP))


def line(row: Row, value: int) -> str:
    published = Decimal(row.published) * row.unit
    off = float((value - published) / published)
    more = f" (with {row.more})" if row.more else ""
    return (
        f"{row.label():<32} {row.what:<6} {row.shown():>12} {value:>15,} {off:>+9.2%}  "
        f"{row.source}{more}"
    )


@pytest.fixture(scope="module", autouse=True)
def heading() -> None:
    print(f"\n{'network':<32} {'':<6} {'published':>12} {'archir':>15} {'off':>9}")


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.label()} {row.what}")
def test_the_published_number_is_found(row: Row) -> None:
    graph = row.graph()
    value = counted(row, graph, cost(graph, STANDARD))
    print(line(row, value))
    assert rounded(value, row.published, row.unit) == row.published


@pytest.mark.parametrize(
    "row",
    [row for row in PUBLISHED if row.source == TORCHVISION],
    ids=lambda r: f"{r.name} {r.what}",
)
def test_torchvision_says_so(row: Row) -> None:
    models = pytest.importorskip("torchvision").models
    (weights, *_) = models.get_model_weights(row.name)
    assert row.published == str(weights.meta["num_params" if row.what == "params" else "_ops"])


def test_every_network_has_a_published_number_or_none_is_known() -> None:
    assert {row.name for row in PUBLISHED} | UNPUBLISHED.keys() == set(NAMES)
    assert not {row.name for row in PUBLISHED} & UNPUBLISHED.keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_comment_states_the_parameters(name: str) -> None:
    """Of several counts in a comment, one is that of the network as it stands."""
    comment = "".join(re.findall(r"^# (.*\n)", text(name), re.MULTILINE))
    stated = re.findall(r"\b\d{1,3}(?:,\d{3})*\b", comment)
    assert f"{cost(build(text(name)), STANDARD).params:,}" in stated
