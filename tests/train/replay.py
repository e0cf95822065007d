"""The replay oracle: what an optimizer would hold, had the grown network been trained all along.

A parent is trained for some steps in float64. At each step the grown network stands at the image of
the parent's weights, takes its gradients on the same batch, and torch's own optimizer accumulates
them from zero (with a rate of 0, so that it moves nothing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from archir.ir.graph import Graph, Value
from archir.ops import STANDARD
from archir.ops.arithmetic import Array, Floating
from archir.proof.exact import shape_in_check
from archir.rewrite.assumed import put_in_place
from archir.rewrite.gradients import maps_of
from archir.rewrite.plan import Plan, as_assumed
from archir.target import backends
from archir.train.moments import FIRST, Fate, Group, OptimizerState, moved
from archir.weights.functions import evaluate
from archir.weights.init import init_weights

K = Floating(np.float64)
STEPS = 5
BOUND = 1e-5
NOISE = 1e-10
"""Of the largest entry in the network: a bias before a batch norm has no gradient but rounding."""
Slots = dict[str, dict[str, Array]]


_INITIAL: dict[int, tuple[Graph, Mapping[str, Array]]] = {}


def initial(graph: Graph) -> Mapping[str, Array]:
    """Initial weights of a graph, statistics far from 0 and 1."""
    held = _INITIAL.get(id(graph))
    if held is None or held[0] is not graph:
        held = _INITIAL[id(graph)] = graph, init_weights(graph, STANDARD, 3, random_statistics=True)
    return held[1]


def doubles(graph: Graph, weights: Mapping[str, Array]) -> torch.nn.Module:
    """The lowered network in float64."""
    types = {path: array.dtype for path, array in initial(graph).items()}
    backend: Any = backends()["torch"]
    single = {path: np.asarray(weights[path], dtype) for path, dtype in types.items()}
    module: torch.nn.Module = backend.lower(graph, single).double()
    put(module, weights)
    return module


def put(module: torch.nn.Module, weights: Mapping[str, Array]) -> None:
    own = {**dict(module.named_buffers(remove_duplicate=False)), **dict(module.named_parameters())}
    with torch.no_grad():
        for path, tensor in own.items():
            if path in weights:
                tensor.copy_(torch.from_numpy(np.array(weights[path])))


def held_by(module: torch.nn.Module, graph: Graph) -> dict[str, Array]:
    own = {**dict(module.named_buffers(remove_duplicate=False)), **dict(module.named_parameters())}
    return {path: own[path].detach().numpy().copy() for path in graph.parameters if path in own}


def feeds(graph: Graph, seed: int) -> list[torch.Tensor]:
    rng = np.random.Generator(np.random.PCG64(seed))
    made = []
    for name in graph.inputs:
        type_ = graph.type_of(Value(name))
        shape = shape_in_check(type_, 4)
        if type_.dtype == "i64":
            made.append(torch.from_numpy(rng.integers(0, 2, shape)))
        else:
            made.append(torch.from_numpy(rng.standard_normal(shape)))
    return made


def gradients(module: torch.nn.Module, graph: Graph, seed: int, scale: float = 1.0) -> None:
    """Backward of the mean squared distance from random targets."""
    module.zero_grad(set_to_none=True)
    found = module(*feeds(graph, seed))
    results = found if isinstance(found, tuple) else (found,)
    rng = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64)
    for result in results:
        target = torch.randn(result.shape, generator=rng, dtype=torch.float64)
        loss = loss + (result - target).square().mean()
    (scale * loss).backward()  # type: ignore[no-untyped-call]


def image(plan: Plan, weights: Mapping[str, Array]) -> dict[str, Array]:
    return {
        path: np.asarray(
            evaluate(plan.terms[path], K, weights) if path in plan.terms else weights[path]
        )
        for path in plan.after.parameters
    }


def as_the_rule_assumes(plan: Plan, weights: dict[str, Array]) -> dict[str, Array]:
    out = {**weights, **as_assumed(plan, weights)}
    return {**out, **put_in_place(plan.assumed, out, K)}


def drift_of_decay(kind: str, options: Mapping[str, Any], passed: list[Array], now: Array) -> Array:
    """What a first moment holds of decayed weights, less what it would if they had always been."""
    decay, n = options.get("weight_decay", 0.0), len(passed)
    if kind == "AdamW" or not decay:
        return np.zeros(now.shape)
    if kind == "SGD":
        kept = 1 - options.get("dampening", 0.0)
        shares = [options["momentum"] ** (n - 1 - i) * (kept if i else 1.0) for i in range(n)]
    else:
        shares = [0.1 * 0.9 ** (n - 1 - i) for i in range(n)]
    apart = [share * (w - now) for share, w in zip(shares, passed, strict=True)]
    return np.asarray(decay * sum(apart))


OPTIMIZERS: Mapping[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "sgd_decay": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 5e-4}),
    "dampened": (
        torch.optim.SGD,
        {"lr": 1e-2, "momentum": 0.8, "dampening": 0.3, "weight_decay": 1e-2},
    ),
    "nesterov_decay": (
        torch.optim.SGD,
        {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    ),
    "adam": (torch.optim.Adam, {"lr": 1e-3, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 1e-2}),
    "adam_decay": (torch.optim.Adam, {"lr": 1e-3, "weight_decay": 5e-4}),
}


@dataclass(frozen=True)
class Replayed:
    """What the mapped state is, and what it should be."""

    mapped: Slots
    due: Slots
    parent: Slots
    reached: dict[str, Array]
    fates: dict[str, Fate]
    drift: dict[str, Array]
    """What the first moments should be off by, as the weights moved while they decayed."""

    def errors(self, state: Mapping[str, Mapping[str, Array]], slot: str) -> dict[str, float]:
        """max|a - b| / max|b| over the entries that come from the parent, by parameter."""
        out = {}
        noise = NOISE * max(float(np.abs(a[slot]).max(initial=0)) for a in self.due.values())
        for path, mask in self.reached.items():
            due = self.due[path][slot]
            found = state.get(path, {}).get(slot)
            if found is None or found.shape != due.shape:
                found = np.zeros(due.shape)
            largest = max(float(np.abs(due[mask]).max(initial=0)), noise)
            apart = np.abs(found - due)[mask].max(initial=0)
            out[path] = float(apart / largest) if largest else float(apart > 0)
        return out

    def new_entries(self, slot: str) -> float:
        """The largest entry of a mapped state that comes from no parameter."""
        rest = [a[slot][~self.reached[p]] for p, a in self.mapped.items() if p in self.reached]
        rest += [a[slot] for p, a in self.mapped.items() if p not in self.reached]
        return max((float(np.abs(a).max(initial=0)) for a in rest), default=0.0)


def slots_of(optimizer: torch.optim.Optimizer, names: Mapping[str, torch.nn.Parameter]) -> Slots:
    return {
        path: {
            slot: v.detach().numpy().copy()
            for slot, v in optimizer.state[p].items()
            if v is not None
        }
        for path, p in names.items()
        if p in optimizer.state
    }


def replay(
    plan: Plan,
    weights: Mapping[str, Array],
    optimizer: str = "sgd",
    *,
    steps: int = STEPS,
    mode: str = "train",
    lr: float | None = None,
) -> Replayed:
    """Train the parent, and accumulate the child's state beside it."""
    kind, options = OPTIMIZERS[optimizer]
    options = {**options, **({} if lr is None else {"lr": lr})}
    start = {p: np.asarray(a, np.float64) if a.dtype.kind == "f" else a for p, a in weights.items()}
    start = as_the_rule_assumes(plan, start)
    parent, child = doubles(plan.before, start), doubles(plan.after, image(plan, start))
    for module in (parent, child):
        module.train(mode == "train")
    names = [dict(m.named_parameters()) for m in (parent, child)]
    old = kind(list(names[0].values()), **options)
    new = kind(list(names[1].values()), **{**options, "lr": 0.0})
    now, passed = start, list[dict[str, Array]]()
    for step in range(steps):
        passed.append(now)
        put(child, image(plan, now))
        gradients(parent, plan.before, 100 + step)
        gradients(child, plan.after, 100 + step)
        old.step()
        new.step()
        now = as_the_rule_assumes(plan, {**now, **held_by(parent, plan.before)})
        put(parent, now)
    group = {k: v for k, v in old.param_groups[0].items() if k != "params"}
    mine = slots_of(old, names[0])
    state = OptimizerState(kind.__name__, (Group(tuple(names[0]), group),), mine)  # type: ignore[arg-type]
    mapped, fates = moved(state, plan, now, steps=steps)
    maps = maps_of(plan, now, frozenset(names[0]))
    reached = {
        path: np.broadcast_to(mask, plan.after.parameters[path].type.shape)  # type: ignore[arg-type]
        for joint in maps.maps.groups
        for path, mask in joint.reached().items()
    }
    reached |= {path: np.ones(now[path].shape, np.bool_) for path in maps.maps.kept}
    reached = {path: mask for path, mask in reached.items() if path in names[1]}
    due = slots_of(new, names[1])
    for path in reached:  # what the outputs do not depend on has no gradient at all
        if path not in due:
            due[path] = {FIRST[state.kind]: np.zeros(plan.after.parameters[path].type.shape)}
    drift: dict[str, Array] = {}
    for joint in maps.maps.groups:
        late = {
            key: drift_of_decay(kind.__name__, options, [w[key] for w in passed], now[key])
            for key in joint.keys
        }
        straight, turned = joint.image(late), maps.first(joint, late)
        drift |= {path: straight[path] - turned[path] for path in straight}
    slots = {path: dict(held) for path, held in mapped.slots.items()}
    return Replayed(slots, due, mine, reached, fates, drift)
