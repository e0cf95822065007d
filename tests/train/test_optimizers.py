from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from archir.diag import BAD_INPUT, ArchirError
from archir.ir.graph import Graph
from archir.ops import STANDARD
from archir.train.device import module_of
from archir.train.optimizers import (
    OptimizerConfig,
    adjust,
    freeze_statistics,
    make_optimizer,
)
from archir.train.recipe import TrainConfig
from archir.weights.init import init_weights

from .nets import Net, small

SGD = OptimizerConfig("sgd", lr=0.1, momentum=0.8, weight_decay=0.01)
ADAMW = OptimizerConfig("adamw", lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
PATHS = (
    "conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "conv2.bias",
    "bn2.weight", "bn2.bias", "fc.weight", "fc.bias",
)  # fmt: skip


def module(graph: Graph) -> torch.nn.Module:
    return module_of(graph, init_weights(graph, STANDARD, 0), torch.device("cpu"))


def steps(
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    each: Callable[[int], None] = lambda step: None,
    count: int = 5,
) -> dict[str, torch.Tensor]:
    """What the network's tensors are after a few steps on made-up images."""
    drawn = torch.Generator().manual_seed(1)
    for step in range(count):
        each(step)
        x = torch.randn(8, 1, 8, 8, generator=drawn)
        y = torch.randint(10, (8,), generator=drawn)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {key: value.clone() for key, value in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def paths_of(optimizer: torch.optim.Optimizer) -> list[tuple[str, ...]]:
    return [group["paths"] for group in optimizer.param_groups]


def failure(act: Callable[[], object], code: str) -> ArchirError:
    with pytest.raises(ArchirError) as caught:
        act()
    assert caught.value.diagnostics[0].code == code
    assert caught.value.status == BAD_INPUT
    return caught.value


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_has_the_bits_of_torchs(nesterov: bool, momentum: float) -> None:
    net, mine = module(small()), module(small())
    found = make_optimizer(net, small(), replace(SGD, momentum=momentum, nesterov=nesterov))
    wanted = torch.optim.SGD(
        mine.parameters(), 0.1, momentum, 0, 0.01, nesterov=nesterov and momentum > 0
    )
    assert type(found) is torch.optim.SGD
    assert paths_of(found) == [PATHS]
    assert same(steps(net, found), steps(mine, wanted))


def test_adamw_has_the_bits_of_torchs() -> None:
    net, mine = module(small()), module(small())
    found = make_optimizer(net, small(), ADAMW)
    assert type(found) is torch.optim.AdamW
    wanted = torch.optim.AdamW(mine.parameters(), 0.01, (0.8, 0.95), 1e-6, 0.1)
    assert same(steps(net, found), steps(mine, wanted))


@pytest.mark.parametrize("config", [SGD, ADAMW])
def test_groups_by_hand(config: OptimizerConfig) -> None:
    config = replace(
        config,
        decay_vectors=False,
        freeze=("conv1", "bn1.bias"),
        rates=(("*", 0.5), ("fc", 2.0), ("fc.bias", 3.0)),
    )
    net, mine = module(small()), module(small())
    found = make_optimizer(net, small(), config)
    by_hand = [
        (("bn1.weight", "conv2.bias", "bn2.weight", "bn2.bias"), 0.5, 0.0),
        (("conv2.weight",), 0.5, config.weight_decay),
        (("fc.weight",), 2.0, config.weight_decay),
        (("fc.bias",), 3.0, 0.0),
    ]
    held = [(g["paths"], g["scale"], g["weight_decay"]) for g in found.param_groups]
    assert held == by_hand
    for group in found.param_groups:
        assert len(group["paths"]) == len(group["params"])
        for path, parameter in zip(group["paths"], group["params"], strict=True):
            assert parameter is dict(net.named_parameters())[path]
    named = dict(mine.named_parameters())
    groups = [
        {"params": [named[p] for p in paths], "lr": config.lr * scale, "weight_decay": decay}
        for paths, scale, decay in by_hand
    ]
    named["conv1.weight"].requires_grad_(False)  # noqa: FBT003 - torch's
    named["bn1.bias"].requires_grad_(False)  # noqa: FBT003 - torch's
    wanted = (
        torch.optim.AdamW(groups, config.lr, config.betas, config.eps)
        if config.kind == "adamw"
        else torch.optim.SGD(groups, config.lr, config.momentum, nesterov=True)
    )
    assert same(steps(net, found), steps(mine, wanted))


def norms() -> Graph:
    net = Net(2, 4, 4, name="norms")
    net.add("conv", "conv", out=4)
    net.add("norm", "layer_norm", axes=3)
    net.add("group", "group_norm", groups=2)
    net.add("flatten", "flatten")
    net.add("fc", "linear", out=3)
    return net.graph()


def test_norms_of_several_axes_do_not_decay() -> None:
    graph = norms()
    assert graph.parameters["norm.weight"].type.rank == 3
    found = make_optimizer(module(graph), graph, replace(SGD, decay_vectors=False))
    decayed, rest = found.param_groups
    assert decayed["paths"] == ("conv.weight", "fc.weight")
    assert decayed["weight_decay"] == 0.01
    assert rest["weight_decay"] == 0
    assert set(rest["paths"]) == set(graph.parameters) - set(decayed["paths"])


def test_frozen_parameters_stay() -> None:
    graph = small()
    net = module(graph)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = make_optimizer(net, graph, replace(SGD, freeze=("conv*", "bn1")))
    after = steps(net.train(), found, lambda step: freeze_statistics(net, ("conv*", "bn1")))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if key.startswith(("bn2", "fc"))}


def test_frozen_weights_alone_keep_no_statistics() -> None:
    net = module(small()).train()
    freeze_statistics(net, ("bn1.weight", "*.bias"))
    assert all(layer.training for layer in net.modules())


def test_statistics_may_be_frozen_alone() -> None:
    graph = small()
    net = module(graph).train()
    globs = ("*.running_*",)
    found = make_optimizer(net, graph, replace(SGD, freeze=globs))
    assert paths_of(found) == [PATHS]
    freeze_statistics(net, globs)
    modes = {name: layer.training for name, layer in net.named_modules() if name}
    assert {name for name, mode in modes.items() if not mode} == {"bn1", "bn2"}
    with torch.no_grad():
        net.get_parameter("bn1.weight").mul_(2)
    after = steps(net, found)
    assert torch.equal(after["bn1.running_mean"], torch.zeros(16))
    assert after["bn1.num_batches_tracked"] == 0


def shared() -> Graph:
    """Two batch norms that read the same tensors."""
    net = Net(2, 4, 4, name="shared")
    first = net.add("a.bn", "batch_norm")
    second = net.add("b.bn", "batch_norm", first)
    node = net.builder.nodes[second.node]
    net.builder.put(replace(node, params=net.builder.nodes["a.bn"].params))
    net.add("flatten", "flatten")
    net.add("fc", "linear", out=3)
    return net.graph()


@pytest.mark.parametrize(("glob", "training"), [("a", False), ("fc", True)])
def test_statistics_that_are_shared(glob: str, training: bool) -> None:
    graph = shared()
    net = module(graph).train()
    freeze_statistics(net, (glob,))
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0)) + 5
    net(x)
    assert bool(net.state_dict()["a.bn.running_mean"].any()) == training


def test_globs() -> None:
    graph = small()

    def left(*freeze: str) -> tuple[str, ...]:
        return paths_of(make_optimizer(module(graph), graph, replace(SGD, freeze=freeze)))[0]

    assert left("conv?", "bn*", "fc.bias") == ("fc.weight",)
    assert left("*.weight", "*2") == ("bn1.bias", "fc.bias")
    assert left("[!f]*") == ("fc.weight", "fc.bias")
    assert left("bn1.running_mean") == PATHS  # a buffer


@pytest.mark.parametrize(
    ("glob", "hint"),
    [
        ("con1", "did you mean `conv1`?"),
        ("fc.wieght", "did you mean `fc.weight`?"),
        ("FC", ""),
        ("conv", "did you mean `conv"),
        ("qqqqqqqq", ""),
        ("", ""),
    ],
)
def test_a_glob_that_matches_nothing(glob: str, hint: str) -> None:
    graph = small()
    for config in (replace(SGD, freeze=("fc", glob)), replace(SGD, rates=((glob, 0.1),))):
        found = failure(lambda made=config: make_optimizer(module(graph), graph, made), "A670")
        assert f"`{glob}`" in found.diagnostics[0].message
        assert hint in found.diagnostics[0].hint


def test_nothing_left_to_train() -> None:
    graph = small()
    config = replace(SGD, freeze=("*",))
    failure(lambda: make_optimizer(module(graph), graph, config), "A671")


@pytest.mark.parametrize(
    "config",
    [replace(ADAMW, betas=(1.0, 0.9)), replace(ADAMW, eps=-1.0), replace(SGD, lr=-1.0)],
)
def test_what_torch_refuses(config: OptimizerConfig) -> None:
    graph = small()
    found = failure(lambda: make_optimizer(module(graph), graph, config), "A632")
    assert "Invalid" in found.diagnostics[0].message


@pytest.mark.parametrize("config", [SGD, ADAMW])
def test_adjusting(config: OptimizerConfig) -> None:
    config = replace(config, rates=(("fc", 10.0),))
    net, mine = module(small()), module(small())
    found = make_optimizer(net, small(), config)
    body = [p for name, p in mine.named_parameters() if not name.startswith("fc")]
    head = [p for name, p in mine.named_parameters() if name.startswith("fc")]
    wanted = (
        torch.optim.AdamW([{"params": body}, {"params": head}], 1, (0.0, 0.95), 1e-6, 0.1)
        if config.kind == "adamw"
        else torch.optim.SGD([{"params": body}, {"params": head}], 1, 0.5, 0, 0.01, nesterov=True)
    )
    rates, momenta = [0.1, 0.05, 0.2, 0.01, 0.003], [0.95, 0.9, 0.85, 0.8, 0.7]

    def by_hand(step: int) -> None:
        for group, scale in zip(wanted.param_groups, (1, 10), strict=True):
            group["lr"] = rates[step] * scale
            if config.kind == "adamw":
                group["betas"] = (momenta[step], 0.95)
            else:
                group["momentum"] = momenta[step]

    one = steps(net, found, lambda step: adjust(found, rates[step], momenta[step]))
    assert same(one, steps(mine, wanted, by_hand))
    adjust(found, 0.5)
    for group in found.param_groups:
        assert group["lr"] == 0.5 * group["scale"]
        now = group["betas"][0] if config.kind == "adamw" else group["momentum"]
        assert now == 0.7  # what is not given stays


def test_a_recipe_says_it() -> None:
    config = TrainConfig(
        optimizer="adamw",
        lr=1e-3,
        momentum=0.7,
        nesterov=False,
        beta1=0.85,
        beta2=0.98,
        eps=1e-7,
        weight_decay=0.05,
        decay_vectors=False,
        freeze=("conv1",),
        rates=(("fc", 0.1),),
    )
    assert OptimizerConfig.of(config) == OptimizerConfig(
        kind="adamw",
        lr=1e-3,
        momentum=0.7,
        nesterov=False,
        betas=(0.85, 0.98),
        eps=1e-7,
        weight_decay=0.05,
        decay_vectors=False,
        freeze=("conv1",),
        rates=(("fc", 0.1),),
    )
    assert OptimizerConfig.of(TrainConfig()) == OptimizerConfig()
