"""DenseNets as sequences of layers: what is read, how they grow, what is refused.

Functions and weights are compared with a DenseNet-BC and with EAS's maps written in plain torch and
NumPy (`eas_densenet.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import archir
from archir.api import Application, Network, rewrite
from archir.diag import ArchirError
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.rewrite.sites import Planner
from archir.search.dense_space import DenseSpace

from .eas_densenet import DenseNet, Shape, built, inserted

ROOT = Path(__file__).parents[2]
START = ROOT / "examples/eas_dense_digits.arch"
SPACE = DenseSpace()
COPIES = DenseSpace(widen_rule="widen")
"""With the paper's rule, which copies channels alike."""


def start(layers: int = 2, seed: int = 3) -> Network:
    net = archir.load(START, params={"layers": layers})
    return net.init(seed, random_statistics=True)


def tokens(graph: Graph) -> str:
    return " ".join(layer.token for layer in SPACE.read(graph).layers)


def shape_of(graph: Graph) -> Shape:
    """The widths that a network is read as having."""
    growths: list[list[int]] = [[]]
    narrow: list[list[int]] = [[]]
    transitions = []
    for layer in SPACE.read(graph).layers:
        conv = graph.node(layer.at)
        if layer.token == "t":
            transitions.append(conv.attrs["out"])
            growths.append([])
            narrow.append([])
        else:
            growths[-1].append(conv.attrs["out"])
            narrow[-1].append(_behind(graph, layer.at, 3).attrs["out"])
    first = graph.node("conv0").attrs["out"]
    planes = graph.type_of(graph.node("conv0").inputs[0]).shape[1]
    return Shape(
        first, tuple(map(tuple, growths)), tuple(map(tuple, narrow)), tuple(transitions), 10, planes
    )


def _behind(graph: Graph, name: str, steps: int):
    """The node so many steps before another one."""
    for _ in range(steps):
        name = graph.node(name).inputs[0].node
    return graph.node(name)


def plain(net: Network) -> dict[str, np.ndarray]:
    """A network's weights by the names that the layers would have in a text of their own."""
    graph, weights = net.graph, net.weights
    assert weights is not None
    names = {"conv0": "conv0", "norm5": "norm5", "classifier": "classifier"}
    block, place = 1, 0
    for layer in SPACE.read(graph).layers:
        if layer.token == "t":
            names |= {layer.at: f"transition{block}.conv"}
            names |= {_behind(graph, layer.at, 2).name: f"transition{block}.norm"}
            block, place = block + 1, 0
            continue
        for steps, name in ((0, "conv2"), (2, "norm2"), (3, "conv1"), (5, "norm1")):
            names[_behind(graph, layer.at, steps).name] = f"denseblock{block}.{place}.{name}"
        place += 1
    split = [(path.rpartition("."), value) for path, value in weights.items()]
    return {f"{names[owner]}.{role}": value for (owner, _, role), value in split}


def ours(net: Network, x: torch.Tensor, *, train: bool) -> np.ndarray:
    module = net.to_torch().double().train(train)
    with torch.no_grad():
        return module(x).numpy()


def theirs(net: DenseNet, x: torch.Tensor, *, train: bool) -> np.ndarray:
    with torch.no_grad():
        return net.train(train)(x).numpy()


def images(seed: int = 0, count: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 1, 8, 8)))


def close(found: np.ndarray, wanted: np.ndarray, bound: float = 1e-6) -> bool:
    """Weights have 32 bits, so that a weight that is divided is rounded to them."""
    return bool(np.abs(found - wanted).max() <= bound * np.abs(wanted).max())


def test_the_densenet_bc_of_the_paper() -> None:
    net = archir.load(ROOT / "examples/densenet_bc_40_12.arch", params={"growth": 40})
    graph = net.graph
    found = SPACE.read(graph)
    six = ["g40"] * 6
    assert [layer.token for layer in found.layers] == [*six, "t", *six, "t", *six]
    assert found.layers[7].at == "denseblock2.0.conv2"
    assert found.layers[6].at == "transition1.conv"
    assert found.blocks == (tuple(range(6)), tuple(range(7, 13)), tuple(range(14, 20)))
    assert found.kernels == (False,) * 3
    assert [layer.wider for layer in found.layers] == [layer.token != "t" for layer in found.layers]
    assert {layer.token for layer in found.layers} <= set(SPACE.vocabulary)
    assert len(SPACE.vocabulary) == 24
    assert SPACE.finished(graph) == []
    with torch.device("meta"):
        other = DenseNet(Shape(80, ((40,) * 6,) * 3, ((160,) * 6,) * 3, (160, 200)))
    assert net.cost().params == sum(p.numel() for p in other.parameters())


Step = Callable[[Graph], list[Application]]


def planned(net: Network, steps: Sequence[Step]) -> tuple[Graph, list[Application]]:
    """The graph after several steps, one after the other as EAS plans them, and their rules."""
    graph, uses = net.graph, []
    for step in steps:
        for use in step(graph):
            plan = Planner(graph, net.ops).plan(net.library[use.rule], str(use.at), use.arguments)
            graph = plan.after
            uses.append(use)
    return graph, uses


def grown(net: Network, steps: Sequence[Step]) -> Network:
    return rewrite(net, planned(net, steps)[1], seed=1).network


def test_growing_keeps_what_torch_computed_before() -> None:
    """An episode: layers wider, layers inserted, and what follows, against the old network."""
    net = start()
    places = [(0, 0), (0, 2), (1, 1), (2, 0)]
    steps = [
        *(partial(SPACE.widened, layer=layer) for layer in (1, 3, 7)),
        *(partial(SPACE.deepened, block=b, place=p, kernel=3) for b, p in places),
        SPACE.finished,
    ]
    after = grown(net, steps)
    assert tokens(after.graph) == "g4 g4 g6 g6 t g6 g4 g4 t g4 g4 g6"
    assert shape_of(after.graph).first == 9  # 2 * 4.8
    assert shape_of(after.graph).transitions == (14, 14)
    assert all(found.holds for found in after.verify())
    for train in (False, True):
        wanted = theirs(built(shape_of(net.graph), plain(net)), images(), train=train)
        assert close(ours(after, images(), train=train), wanted)
        again = built(shape_of(after.graph), plain(after))
        assert close(theirs(again, images(), train=train), wanted)


@pytest.mark.parametrize(("block", "place"), [(0, 0), (2, 1)])
def test_an_inserted_layer_has_the_weights_that_eas_gives_it(block: int, place: int) -> None:
    """The map of section "deepening" of the authors' code, with the copies that `widen` drew.

    Later layers, a transition and the last normalisation read the copies.
    """
    net = start(3)
    steps = [partial(COPIES.deepened, block=block, place=place, kernel=3)]
    after = grown(net, steps)
    old, new, shape = plain(net), plain(after), shape_of(net.graph)
    rows = old[f"denseblock{block + 1}.{place}.conv2.weight"]
    copies = new[f"denseblock{block + 1}.{place + 1}.conv2.weight"]
    sel = [next(i for i, row in enumerate(rows) if np.array_equal(row, c)) for c in copies]
    assert sorted(sel) == [0, 1, 2, 3]
    wider, wanted = inserted(shape, old, block, place, sel)
    assert wider == shape_of(after.graph)
    assert wanted.keys() == new.keys()
    for path, array in wanted.items():
        assert np.array_equal(new[path], array), path


@pytest.mark.parametrize("train", [False, True])
def test_eas_draws_copies_with_replacement_and_keeps_the_function_too(train: bool) -> None:
    """What our reference of EAS's insertion is worth: any copies give what was there before."""
    net = start(3)
    shape, old = shape_of(net.graph), plain(net)
    wanted = theirs(built(shape, old), images(), train=train)
    for sel in ([0, 1, 2, 3], [2, 2, 2, 0]):
        found = theirs(built(*inserted(shape, old, 1, 1, sel)), images(), train=train)
        assert close(found, wanted)


def test_equal_networks_have_one_hash_however_they_came_to_be() -> None:
    net = archir.load(START, params={"layers": 2})

    def hash_of(*places: tuple[int, int]) -> str:
        steps = [partial(SPACE.deepened, block=b, place=p, kernel=3) for b, p in places]
        return graph_hash(planned(net, [*steps, SPACE.finished])[0])

    first = hash_of((0, 0), (1, 1), (2, 0))
    assert hash_of((2, 1), (1, 0), (0, 1)) == first
    assert graph_hash(archir.load(START, params={"layers": 3}).graph) == first
    assert hash_of((0, 0), (0, 0), (2, 0)) != first


def test_what_is_inserted_learns() -> None:
    """Gradients reach what is zero at first, and copies that are read in other shares differ."""
    net = grown(start(), [partial(SPACE.deepened, block=0, place=0, kernel=3)])
    module = net.to_torch().double().train()
    loss = torch.nn.functional.cross_entropy(module(images()), torch.arange(6))
    loss.backward()
    grads = {path: p.grad for path, p in module.named_parameters()}
    assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in grads.values())
    narrow = "denseblock1.0.narrow.weight"
    assert bool((module.state_dict()[narrow][:, 8:] == 0).all())
    assert bool((grads[narrow][:, 8:] != 0).all())
    rows = grads["denseblock1.0.conv2.weight"], grads["denseblock1.0.conv3.weight"]
    for row in rows[0]:
        assert all(bool((row != other).any()) for other in rows[1])


def test_what_is_full_takes_no_more() -> None:
    graph = archir.load(START, params={"layers": 2}).graph
    assert DenseSpace(most=(9, 3, 2)).read(graph).blocks == ((), (), ())
    assert DenseSpace(most=(9, 3, 3)).read(graph).blocks == ((0, 1), (3, 4), (6, 7))
    assert [layer.wider for layer in DenseSpace((4,)).read(graph).layers] == [False] * 8


def test_a_bottleneck_that_is_wide_enough_stays(tmp_path: Path) -> None:
    text = START.read_text().replace("conv(4 * growth, 1", "conv(6 * growth, 1")
    (tmp_path / "net.arch").write_text(text)
    uses = SPACE.widened(archir.load(tmp_path / "net.arch").graph, 0)
    assert [(use.at, use.arguments) for use in uses] == [("denseblock1.0.conv2", {"width": 6})]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("relu2: relu", "relu2: silu", "concat joins, is silu and not relu"),
        ("concat(input, new)", "concat(new, input)", "concat joins, is the input and not relu"),
        ("concat(input, new)", "concat(input, new, input)", "concat joins 3 tensors along axis 1"),
        ("concat(input, new)", "concat(input |> relu, new)", "concat joins a layer to something"),
        ("conv0       = image ", "conv0       = image |> sigmoid ", "sigmoid is sigmoid"),
        ("|> pool: global_avg_pool", "|> more: conv(8) |> pool: global_avg_pool", "last block"),
        (" |> classifier: linear(classes)", "", "last block"),
        ("|> pool: avg_pool(2)", "|> pool: avg_pool(2) |> more: conv(8)", "2 convolutions"),
        ("output concat(input, new)", "output new", "no layer is joined to what it reads"),
    ],
)
def test_networks_of_another_kind(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = START.read_text()
    assert old in text
    (tmp_path / "net.arch").write_text(text.replace(old, new))
    with pytest.raises(ArchirError) as failure:
        SPACE.read(archir.load(tmp_path / "net.arch").graph)
    assert failure.value.diagnostics[0].code == "A761"
    assert words in str(failure.value)


def test_layers_that_are_joined_all_at_once_are_refused(tmp_path: Path) -> None:
    """As torchvision's DenseNets join them."""
    text = """version 1
    block dense {
        output input |> n1: batch_norm |> relu |> c1: conv(16) |> n2: batch_norm |> relu
                     |> c2: conv(4, 3)
    }

    arch net {
        input image: f32[N, 1, 8, 8]
        first  = image |> conv(8, 3)
        one    = first |> dense
        two    = concat(first, one) |> dense
        joined = concat(first, one, two)
        output y = joined |> batch_norm |> relu |> global_avg_pool |> linear(10)
    }
    """
    (tmp_path / "net.arch").write_text(text)
    with pytest.raises(ArchirError, match="joined joins 3 tensors") as failure:
        SPACE.read(archir.load(tmp_path / "net.arch").graph)
    assert "concat(input, new)" in str(failure.value.diagnostics[0].hint)


@pytest.mark.parametrize(
    ("params", "space", "words"),
    [
        ({"growth": 5}, SPACE, "denseblock1.0.conv2 adds 5 channels, which is no level"),
        ({"layers": 3}, DenseSpace(most=(62, 3, 2)), "a block has 3 layers, the policy reads 2"),
        ({}, DenseSpace(most=(62, 2, 20)), "it has 3 dense blocks, the policy reads 2"),
    ],
)
def test_networks_that_the_policy_cannot_read(params, space: DenseSpace, words: str) -> None:
    with pytest.raises(ArchirError) as failure:
        space.read(archir.load(START, params=params).graph)
    assert failure.value.diagnostics[0].code == "A762"
    assert words in str(failure.value)
