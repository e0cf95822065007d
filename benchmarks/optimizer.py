"""Who is still trained after surgery: the optimizer's parameters, torch_pruning beside archir.

ResNet-18 is trained for some steps with SGD and momentum; then every class of channels is cut by
a quarter, once by torch_pruning (`MagnitudePruner`, L2 norms, as its tutorial goes) and once by
archir (`prune.magnitude` at every site, through `State`). Counted of the live module's parameters:
those that the optimizer holds, those with momentum of their shape, and those that the next step
of the optimizer changes. archir's rows hold for widening by a quarter as well, which
torch_pruning has not; there the function is kept, so is the loss. (After pruning the losses only
say that another network stands there: neither side was asked to keep them.)

The optimizer of torch_pruning's row is the one that was there before, as it says nothing of
optimizers; that of archir's rows is the one that `State.to_torch` gives.

    uv run python benchmarks/optimizer.py [--network resnet18] [--steps 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import steps
import torch
import torch_pruning
from measure import machine

import archir
from archir.api import Application
from archir.train.state import State

RECIPE = steps.Recipe(batch=4, size=64)
SHARE = 4
"""One channel of so many goes, or comes."""


@dataclass(frozen=True)
class Count:
    """What the optimizer has of a module's parameters after a change."""

    how: str
    live: int
    """Parameters of the module."""
    held: int
    """Of these, in a group of the optimizer."""
    with_momentum: int
    """Of these, with momentum of their shape that is not zero throughout."""
    changed: int
    """Of these, other after one more step."""
    stale: int
    """Parameters of the optimizer that no module has."""
    loss_before: float
    loss_after: float
    """Of the same batch, in training mode."""


def count(how: str, side: steps.Side, loss_before: float) -> Count:
    """Look at a module and its optimizer, and take a step."""
    live = list(side.module.parameters())
    held = {id(p) for group in side.optimizer.param_groups for p in group["params"]}
    momenta = [side.optimizer.state.get(p, {}).get("momentum_buffer") for p in live]
    pairs = zip(momenta, live, strict=True)
    fitting = [m is not None and m.shape == p.shape and bool(m.any()) for m, p in pairs]
    before = [p.detach().clone() for p in live]
    loss = float(side.step())
    return Count(
        how,
        len(live),
        sum(id(p) in held for p in live),
        sum(fitting),
        sum(not torch.equal(a, b.detach()) for a, b in zip(before, live, strict=True)),
        len(held - {id(p) for p in live}),
        loss_before,
        loss,
    )


def trained(side: steps.Side, number: int) -> float:
    """Take some steps; the loss after them."""
    for seed in range(number):
        side.step(seed)
    with torch.no_grad():
        return float(side.loss())


def with_peer(name: str, number: int) -> Count:
    """A quarter of all channels goes, by torch_pruning; the optimizer stays as it is."""
    side = steps.Side(steps.theirs(name), RECIPE)
    before = trained(side, number)
    heads = [m for m in side.module.modules() if isinstance(m, torch.nn.Linear)]
    pruner = torch_pruning.pruner.MagnitudePruner(
        side.module,
        side.x,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=1 / SHARE,
        ignored_layers=heads,
    )
    pruner.step()
    return count("torch_pruning, pruned by 25 %", side, before)


def with_archir(name: str, number: int, rule: str) -> Count:
    """A quarter of all channels goes or comes, by a rule at each of its sites."""
    network = archir.import_network(f"torchvision:{name}")[0]
    side = steps.Side(steps.ours(name, network), RECIPE)
    before = trained(side, number)
    uses = [
        Application(rule, site.at, {"width": _width(rule, site.size)})
        for site in network.sites(rule)
    ]
    state = State.of(network, side.optimizer, module=side.module, step=number)
    module, optimizer = state.apply(uses).state.to_torch()
    side = steps.Side(module, RECIPE)
    side.optimizer = optimizer
    verb = "widened" if rule.startswith("widen") else "pruned"
    return count(f"archir, {verb} by 25 % (`{rule}`)", side, before)


def _width(rule: str, size: int) -> int:
    return size + size // SHARE if rule.startswith("widen") else size - size // SHARE


def row(found: Count) -> str:
    """A line of the table."""
    of = f"of {found.live}"
    cells: Mapping[str, str] = {
        "how": found.how,
        "held": f"{found.held} {of}",
        "momentum": f"{found.with_momentum} {of}",
        "changed": f"{found.changed} {of}",
        "stale": str(found.stale),
        "before": f"{found.loss_before:.6f}",
        "after": f"{found.loss_after:.6f}",
    }
    return f"| {' | '.join(cells.values())} |"


def main() -> int:
    """Count, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rules = ("prune.magnitude", "widen")
    found = [
        with_peer(given.network, given.steps),
        *(with_archir(given.network, given.steps, rule) for rule in rules),
    ]
    if given.json:
        print(json.dumps({"schema": 1, "rows": [asdict(each) for each in found]}))
        return 0
    print(f"{given.network}, {machine()}, torch_pruning {torch_pruning.__version__}\n")
    print("| how | in the optimizer | with momentum | changed by a step | of no module |", end="")
    print(" loss before | loss after |\n|---|---|---|---|---|---|---|")
    for each in found:
        print(row(each))
    return 0


if __name__ == "__main__":
    sys.exit(main())
