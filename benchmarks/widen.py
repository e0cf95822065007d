"""One verified widen of ResNet-50 against torch_pruning's dependency graph and one group prune.

Both start from a network in memory with its 25.6 M weights. torch_pruning traces the model,
builds its dependency graph and prunes one group. archir builds its axis classes, plans the
rewrite, checks it exactly in GF(p) at real size in both modes and makes the new weights; the
second line of archir adds what `archir rewrite` does besides: two forward passes for the
drift, the edit of the text, hashes and certificate.

    uv run python benchmarks/widen.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch_pruning
import torchvision
from measure import interleaved, machine, report

import archir
from archir.api import Application, rewrite
from archir.proof.uses import check_plan
from archir.rewrite.plan import apply_terms
from archir.rewrite.sites import Planner

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "resnet50.arch"
SITES = {
    "layer1.0.conv1": (72, lambda m: m.layer1[0].conv1, "inside one bottleneck"),
    "layer4.0.conv2": (576, lambda m: m.layer4[0].conv2, "inside one wide bottleneck"),
    "layer3.0.conv3": (1152, lambda m: m.layer3[0].conv3, "a residual stream of six blocks"),
}


def prune(pick: Callable[[torch.nn.Module], torch.nn.Module], count: int) -> Callable[[], object]:
    model = torchvision.models.resnet50().eval()
    image = torch.randn(1, 3, 224, 224)

    def work() -> None:
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=(image,))
        layer = pick(model)
        group = graph.get_pruning_group(
            layer, torch_pruning.prune_conv_out_channels, idxs=list(range(count))
        )
        group.prune()

    return work


def verified(network: archir.Network, site: str, width: int) -> Callable[[], object]:
    rule = network.library["widen"]

    def work() -> None:
        plan = Planner(network.graph, network.ops).plan(rule, site, {"width": width})
        checks, _ = check_plan(plan, network.ops)
        assert all(check.equal for check in checks)
        assert network.weights is not None
        apply_terms(plan.terms, plan.after, network.weights)

    return work


def whole(network: archir.Network, site: str, width: int) -> Callable[[], object]:
    fresh = replace(network)
    return lambda: rewrite(fresh, [Application("widen", site, {"width": width})])


def main() -> None:
    print(machine(), f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    network = archir.load(EXAMPLE).init(0, random_statistics=True)
    for site, (width, pick, what) in SITES.items():
        works = {
            "torch_pruning": lambda pick=pick, width=width: prune(pick, width // 9),
            "archir, verified": lambda site=site, width=width: verified(network, site, width),
            "archir, all of `rewrite`": lambda site=site, width=width: whole(network, site, width),
        }
        report(f"widen@{site} ({what})", interleaved(works, repeats), "torch_pruning")


if __name__ == "__main__":
    main()
