"""A use of every rule that keeps the function in training, on small networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from archir.ops import STANDARD
from archir.ops.arithmetic import Array
from archir.rewrite.plan import Plan
from archir.rewrite.sites import Planner

from ..rewrite import test_library_layers as layers  # noqa: TID252 - a sibling folder
from ..rewrite import test_library_structure as structure  # noqa: TID252
from ..rewrite.nets import HEAD, IMAGE, LIBRARY, net, plan  # noqa: TID252
from .replay import image, initial

Weights = Mapping[str, Array]
CHAIN = (
    IMAGE + "a = x |> conv(4, 3, bias = false) |> n: batch_norm |> r: relu\n"
    "b = a |> m: conv(6, 3) |> relu\nend = b |> conv(5, 3)" + HEAD
)
RESIDUAL = (
    IMAGE + "a = x |> conv(4, 3)\nb = a |> batch_norm |> relu |> c: conv(7, 3) |> d: conv(4)\n"
    "end = relu(a + b) |> max_pool(2)" + HEAD
)
TRAINED = [rule.name for rule in LIBRARY.values() if "train" in rule.contract.function]

CLASS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "widen": (RESIDUAL, "a", {"width": 7}),
    "widen.shares": (CHAIN, "b.m", {"width": 9}),
    "widen.zero_outgoing": (RESIDUAL, "a", {"width": 7}),
    "widen.pairs": (CHAIN, "b.m", {"width": 10}),
    "pad": (RESIDUAL, "a", {"width": 7}),
    "permute": (RESIDUAL, "a", {}),
    "prune": (RESIDUAL, "a", {"width": 3}),
    "prune.magnitude": (RESIDUAL, "a", {"width": 3}),
    "prune.keep": (RESIDUAL, "a", {"keep": (0, 2, 3)}),
    "deepen.linear.batch_norm": (
        "input x: f32[N, 6]\na = x |> m: linear(5) |> r: relu\noutput y = a |> b: linear(3)",
        "a.r",
        {},
    ),
}
FOUND = {"merge.duplicates": ("widen", 8), "drop.unread": ("pad", 7)}
"""Rules that find in the weights what another one has added."""


def use(name: str) -> tuple[Plan, Weights]:
    """A plan of a rule, and weights that are as it assumes."""
    if name in structure.CASES:
        case = structure.CASES[name]
        made = plan(net(case.body), name, case.at, **case.given)
        held = dict(initial(made.before))
        return made, held | {p: np.full_like(held[p], v) for p, v in case.held.items()}
    if name in layers.BACK:
        body, first, at, where = layers.BACK[name]
        there = plan(net(body), first, at)
        (site,) = [n.name for n in there.after if n.name.split(".")[-1] == where]
        return plan(there.after, name, site), image(there, initial(there.before))
    if name in layers.USES:
        body, at, given, _, _ = layers.USES[name]
        made = plan(net(body), name, at, **given)
        return made, initial(made.before)
    if name in FOUND:
        first, width = FOUND[name]
        there = plan(net(RESIDUAL), first, "a", width=width)
        held = image(there, initial(there.before))
        return Planner(there.after, STANDARD, held).plan(LIBRARY[name], "a", {}), held
    body, at, given = CLASS.get(name, (CHAIN, "a.r", {}))
    graph = net(body)
    held = dict(initial(graph))
    return Planner(graph, STANDARD, held).plan(LIBRARY[name], at, given, 1), held
