"""Plain networks as sequences of layers: what is read, how they grow, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import archir
from archir.api import Calibration, Network, rewrite
from archir.diag import ArchirError
from archir.proof.drift import outputs
from archir.search.plain_space import PlainSpace

ROOT = Path(__file__).parents[2]
SMALL = PlainSpace(filters=(4, 8, 12), units=(8, 16))


def text(body: str, shape: str = "1, 8, 8") -> str:
    return f"version 1\narch net {{\n    input image: f32[N, {shape}]\n{body}\n}}\n"


def net(tmp_path: Path, body: str) -> Network:
    (tmp_path / "net.arch").write_text(text(body))
    return archir.load(tmp_path / "net.arch")


def conv(name: str, width: int = 4, how: str = "", kernel: int = 3) -> str:
    made = f"conv({width}, {kernel}, bias = false{how})"
    return f"{name}: {made} |> {name}_bn: batch_norm |> relu"


def tokens(space: PlainSpace, network: Network) -> list[str]:
    return [layer.token for layer in space.read(network.graph).layers]


def test_the_start_network_of_the_paper() -> None:
    found = PlainSpace().read(archir.load(ROOT / "examples/eas_start.arch").graph)
    assert [layer.token for layer in found.layers] == [
        *("conv-16-3", "pool", "conv-32-3", "pool", "conv-64-3", "pool", "conv-128-3", "pool"),
        "fc-256",
    ]
    assert [layer.at for layer in found.layers[::2]] == [
        *("stage1.conv", "stage2.conv", "stage3.conv", "stage4.conv", "hidden.fc"),
    ]
    assert found.blocks == ((0,), (2,), (4,), (6,), (8,))
    assert found.kernels == (True, True, True, True, False)
    assert [layer.wider for layer in found.layers] == [i % 2 == 0 for i in range(9)]
    assert {layer.token for layer in found.layers} <= set(PlainSpace().vocabulary)


def test_the_vocabulary_of_the_authors_demo_has_41_words() -> None:
    levels = tuple(range(4, 41, 4)), tuple(range(8, 81, 8))
    assert len(PlainSpace(*levels).vocabulary) == 41  # with the word for nothing 42
    assert len(set(PlainSpace(*levels).vocabulary)) == 41
    for path in ("examples/eas_digits.arch", "benchmarks/eas_cifar10.arch"):
        assert PlainSpace(*levels).read(archir.load(ROOT / path).graph).layers


def test_every_place_and_every_layer_grows_without_a_change_of_function() -> None:
    start = archir.load(ROOT / "examples/eas_digits.arch").init(0, random_statistics=True)
    x = np.random.default_rng(0).standard_normal((16, 1, 8, 8)).astype(np.float32)
    feeds, before = {"image": x}, SMALL.read(start.graph)
    (wanted,) = outputs(start.graph, start.weights or {}, start.ops, None, feeds)
    data = Calibration(feeds, "noise", "0" * 64)
    grown = 0
    for block, places in enumerate(before.blocks):
        for place, layer in enumerate(places):
            for uses in (
                SMALL.deepened(start.graph, block, place, 5),
                SMALL.widened(start.graph, layer),
            ):
                after = rewrite(start, uses, seed=1, calibration=data).network
                (found,) = outputs(after.graph, after.weights or {}, after.ops, None, feeds)
                assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
                assert after.weights is not None
                told = [layer.token for layer in SMALL.read(after.graph).layers]
                now = [layer.token for layer in before.layers]
                if "width" in uses[0].arguments:
                    now[layer] = {"conv-4-3": "conv-8-3", "fc-8": "fc-16"}[now[layer]]
                else:
                    now.insert(layer + 1, "fc-8" if block == 3 else "conv-4-5")
                assert told == now
                grown += 1
    assert grown == 8
    assert SMALL.finished(start.graph) == []


def test_what_belongs_to_a_layer(tmp_path: Path) -> None:
    body = f"""\
    a = image |> {conv("one")} |> dropout(0.2) |> {conv("two", 12, kernel=1)} |> avg_pool(2)
    b = a |> {conv("three")} |> max_pool(2) |> flatten |> hid: linear(8) |> relu |> dropout(0.5)
    output y = b |> deep: linear(16) |> relu |> last: linear(3) |> softmax"""
    network = net(tmp_path, body)
    found = SMALL.read(network.graph)
    told = "conv-4-3 conv-12-1 pool conv-4-3 pool fc-8 fc-16"
    assert [layer.token for layer in found.layers] == told.split()
    assert found.blocks == ((0, 1), (3,), (5, 6))
    assert [layer.wider for layer in found.layers] == [True, False, False, True, False, True, False]
    (inserted,) = SMALL.deepened(network.graph, 0, 0, 3)
    after = rewrite(network, [inserted]).network  # before what is dropped out
    ops = [node.op for node in after.graph]
    assert ops[1:8] == ["conv", "batch_norm", "relu", "conv", "batch_norm", "relu", "dropout"]


def test_what_is_full_takes_no_more(tmp_path: Path) -> None:
    chain = " |> ".join(conv(f"c{i}") for i in range(2))
    network = net(tmp_path, f"    output y = image |> {chain} |> global_avg_pool |> linear(3)")
    assert PlainSpace((4,), most=(9, 5, 2)).read(network.graph).blocks == ((),)
    assert PlainSpace((4,), most=(3, 5, 9)).read(network.graph).blocks == ((),)
    assert PlainSpace((4,), most=(4, 5, 3)).read(network.graph).blocks == ((0, 1),)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("a = image |> {c}\n    output y = (a + a) |> flatten |> linear(3)", "read 2 times"),
        ("output y = image |> {c} |> conv(3)", "no linear layer makes its output"),
        ("output y = image |> {s} |> flatten |> linear(3)", "does not keep the size"),
        ("output y = image |> {g} |> flatten |> linear(3)", "two has groups"),
        ("output y = image |> conv(4, 3) |> {c} |> flatten |> linear(3)", "no relu follows conv"),
        ("output y = image |> conv(4, 3) |> max_pool(2) |> flatten |> linear(3)", "no relu stands"),
        ("output y = image |> conv(4, 3) |> flatten |> linear(3)", "no relu follows conv"),
        ("output y = image |> {c} |> silu |> flatten |> linear(3)", "silu is silu"),
        ("output y = image |> wide: conv(4, [1, 3]) |> relu |> flatten |> linear(3)", "(1, 3)"),
        ("output y = image |> {c} |> global_avg_pool", "no linear layer"),
    ],
)
def test_networks_of_another_kind(tmp_path: Path, body: str, words: str) -> None:
    given = {"c": conv("one"), "s": conv("one", how=", stride = 2")}
    given["g"] = f"{conv('one')} |> {conv('two', how=', groups = 2')}"
    network = net(tmp_path, "    " + body.format(**given))
    with pytest.raises(ArchirError) as failure:
        SMALL.read(network.graph)
    assert failure.value.diagnostics[0].code == "A761"
    assert words in str(failure.value)


def test_a_residual_network_is_refused() -> None:
    with pytest.raises(ArchirError, match="no plain network as EAS has them") as failure:
        SMALL.read(archir.load(ROOT / "examples/resnet20.arch").graph)
    assert failure.value.diagnostics[0].code == "A761"


@pytest.mark.parametrize(
    ("layers", "space", "words"),
    [
        ([conv("odd", 5)], SMALL, "odd is 5 wide, which is no level of `filters`"),
        ([conv("odd", 13)], SMALL, "odd is 13 wide"),
        ([conv("wide", 4, kernel=7)], SMALL, "a kernel of 7, `kernels` has 1, 3, 5"),
        ([conv("one"), "flatten", "hid: linear(9)", "relu"], SMALL, "no level of `units`"),
        ([conv("a"), conv("b")], PlainSpace((4,), most=(1, 9, 9)), "it has 2 layers"),
        ([conv("a"), conv("b")], PlainSpace((4,), most=(9, 9, 1)), "a block has 2 layers"),
        ([conv("a"), "max_pool(2)", conv("b")], PlainSpace((4,), most=(9, 1, 9)), "has 2 blocks"),
    ],
)
def test_networks_that_the_policy_cannot_read(
    tmp_path: Path, layers: list[str], space: PlainSpace, words: str
) -> None:
    network = net(
        tmp_path, f"    output y = image |> {' |> '.join(layers)} |> flatten |> linear(3)"
    )
    with pytest.raises(ArchirError) as failure:
        space.read(network.graph)
    assert failure.value.diagnostics[0].code == "A762"
    assert words in str(failure.value)
    hint = str(failure.value.diagnostics[0].hint)
    assert ("archir rewrite" in hint) == (words.endswith(("`filters`", "`units`")))
