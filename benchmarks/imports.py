"""Importing a network and one verified widen, against torch_pruning's build, group and prune.

Both start from torchvision's module in memory. torch_pruning traces it, builds its dependency
graph and prunes one group; it checks nothing. archir captures the module (in training mode, with
a dynamic batch), raises the program, compares the network with the module bit for bit at two
batch sizes, builds the axis classes, plans a widen at the same layer, checks it exactly in GF(p)
in both modes, and makes the new weights. What none of that can be quicker than stands beside it:
`torch.export` alone, which is the first step of archir's.

    uv run python benchmarks/imports.py [--repeats 3] [--only resnet18] [--threads 1] [--cpu]
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch_pruning
import torchvision
from archir.backends.torch_fx.raising.bring import Source, bring
from archir.backends.torch_fx.raising.capture import capture
from measure import Timing, interleaved, machine, ratio

from archir.ops import installed_ops
from archir.proof.uses import check_plan
from archir.rewrite.library import installed
from archir.rewrite.plan import apply_terms
from archir.rewrite.sites import Planner
from archir.target import Imported, ImportOptions

NETWORKS = (
    "resnet18",
    "resnet50",
    "vgg11_bn",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "densenet121",
    "mnasnet1_0",
    "squeezenet1_1",
    "regnet_y_400mf",
)
OPS = installed_ops()
WIDEN = installed(OPS)["widen"]


def brought(name: str, module: torch.nn.Module) -> Imported:
    examples = (torch.randn(2, 3, 224, 224),)
    return bring(Source(name, name, module, examples, {}), ImportOptions())


def site_of(found: Imported, module: torch.nn.Module) -> tuple[str, int]:
    """The class with the most members that begins at a plain convolution, and its size."""
    planner = Planner(found.graph, OPS, found.weights)
    layers = dict(module.named_modules())
    best: tuple[int, str, int] = (0, "", 0)
    for site in planner.sites(WIDEN):
        layer = layers.get(site.at)
        if isinstance(layer, torch.nn.Conv2d) and layer.groups == 1 and site.size:
            count = max(
                len(c.members) for c in planner.classes.classes.values() if c.site == site.at
            )
            best = max(best, (count, site.at, site.size))
    return best[1], best[2]


def widened(found: Imported, site: str, width: int) -> None:
    plan = Planner(found.graph, OPS, found.weights).plan(WIDEN, site, {"width": width})
    checks, _ = check_plan(plan, OPS)
    assert checks
    assert all(check.equal for check in checks)
    apply_terms(plan.terms, plan.after, found.weights)


def pruned(module: torch.nn.Module, site: str, count: int) -> Callable[[], object]:
    model = copy.deepcopy(module)
    image = torch.randn(1, 3, 224, 224)

    def work() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph()
            graph.build_dependency(model, example_inputs=(image,))
        group = graph.get_pruning_group(
            model.get_submodule(site),
            torch_pruning.prune_conv_out_channels,
            idxs=list(range(count)),
        )
        group.prune()

    return work


def run(name: str, repeats: int, clock: Callable[[], float]) -> dict[str, Timing]:
    torch.manual_seed(0)
    more = {"aux_logits": False} if name == "googlenet" else {}
    module: torch.nn.Module = torchvision.models.get_model(name, weights=None, **more).eval()
    found = brought(name, module)
    site, size = site_of(found, module)
    width = size + max(1, size // 8)
    print(f"\n{name}: widen@{site} from {size} to {width}", flush=True)

    def whole() -> None:
        widened(brought(name, module), site, width)

    return interleaved(
        {
            "torch_pruning": lambda: pruned(module, site, max(1, size // 8)),
            "archir": lambda: whole,
            "classes and widen alone": lambda: lambda: widened(found, site, width),
            "torch.export alone": lambda: (
                lambda: capture(module, (torch.randn(2, 3, 224, 224),), train=True)
            ),
        },
        repeats,
        clock,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="processor time, on a busy machine")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(given.threads)
    versions = f"torch {torch.__version__}, torch_pruning {torch_pruning.__version__}"
    print(machine(), f"{versions}, {given.threads} threads")
    clock = time.process_time if given.cpu else time.perf_counter
    print("seconds of the processor" if given.cpu else "seconds on the clock")
    ratios = []
    for name in given.only:
        timings = run(name, given.repeats, clock)
        against = timings["torch_pruning"]
        for what, timing in timings.items():
            middle, low, high = ratio(timing, against)
            line = f"  {what:<24} {timing.median:8.2f} s  (best {timing.best:.2f})"
            print(line + f"  {middle:5.2f} x [{low:.2f}, {high:.2f}]", flush=True)
        ratios.append(timings["archir"].best / against.best)
    each = ", ".join(f"{r:.2f}" for r in ratios)
    print(f"\narchir / torch_pruning, best times: {each}; median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
