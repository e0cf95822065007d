"""The state of an optimizer, and how it moves through a rewrite. Imports no torch.

First moments (the momentum of SGD, Adam's ``exp_avg``) move by the gradient map of the rewrite,
second ones by its squares (:mod:`archir.weights.gradients`). Where the decay of the weights is part
of the gradient, as in SGD and Adam with ``weight_decay``, a moment holds it too: that part is taken
out, as if the weights had always been what they are now, and what they become is put back.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from archir.ir.graph import Graph
from archir.ops.arithmetic import Array
from archir.rewrite.gradients import PlanMaps, maps_of
from archir.rewrite.plan import Plan
from archir.weights.functions import evaluate
from archir.weights.gradients import Group as Joint
from archir.weights.linear import FLOAT
from archir.weights.terms import Free, Ref, references

Kind = Literal["SGD", "Adam", "AdamW"]

FIRST: Mapping[str, str] = {"SGD": "momentum_buffer", "Adam": "exp_avg", "AdamW": "exp_avg"}
SECOND: Mapping[str, tuple[str, ...]] = {
    "SGD": (),
    "Adam": ("exp_avg_sq", "max_exp_avg_sq"),
    "AdamW": ("exp_avg_sq", "max_exp_avg_sq"),
}
STEP = "step"


@dataclass(frozen=True)
class Group:
    """A parameter group: its parameters in order, and torch's entries for it."""

    paths: tuple[str, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class OptimizerState:
    """What a torch optimizer holds, by the paths of parameters.

    ``slots`` has for each parameter that took a step its tensors by torch's names. ``frozen`` are
    the parameters that get no gradient; they may be in a group all the same.
    """

    kind: Kind
    groups: tuple[Group, ...]
    slots: Mapping[str, Mapping[str, Array]] = field(repr=False)
    frozen: tuple[str, ...] = ()

    def group_of(self, path: str) -> Group | None:
        """The group of a parameter."""
        return next((group for group in self.groups if path in group.paths), None)


@dataclass(frozen=True)
class Fate:
    """What became of the state of one parameter of the child.

    ``kept``: as it was. ``mapped``: moved; ``new`` of its ``entries`` come from no parameter, and
    start at zero. ``zero``: all starts at zero, for the reason given.
    """

    what: Literal["kept", "mapped", "zero"]
    reason: str = ""
    new: int = 0
    entries: int = 0

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        out: dict[str, Any] = {"state": self.what}
        if self.what == "mapped":
            out |= {"new": self.new, "entries": self.entries}
        return out | ({"reason": self.reason} if self.reason else {})


def moved(
    state: OptimizerState,
    plan: Plan,
    weights: Mapping[str, Array],
    measured: Mapping[Free, Array] | None = None,
    *,
    steps: int,
) -> tuple[OptimizerState, dict[str, Fate]]:
    """The state of the child's optimizer, and what became of each parameter's.

    Args:
        state: The parent's.
        plan: The rewrite.
        weights: The parent's tensors.
        measured: The values of calibration statistics.
        steps: How many steps the optimizer took (0: many), for the age of SGD's momentum.
    """
    params = [p for p, held in plan.before.parameters.items() if not held.buffer]
    idle = set(state.frozen).difference(state.slots)
    trained = frozenset(params).difference(idle)
    maps = maps_of(plan, weights, trained, measured)
    slots: dict[str, Mapping[str, Array]] = {}
    fates = {path: Fate("zero", reason) for path, reason in maps.maps.none.items()}
    for path in maps.maps.kept:
        fates[path] = Fate("kept")
        if path in state.slots:
            slots[path] = state.slots[path]
    regrouped = _regrouped(state, plan, set(params))
    for joint in maps.maps.groups:
        after = functools.partial(_values, plan, joint, weights, measured)
        made, found = _group(state, regrouped, maps, joint, weights, after, steps)
        slots |= made
        fates |= found
    for path in regrouped.frozen:
        if path not in slots:
            fates[path] = Fate("kept", "frozen")
    held = {path for group in regrouped.groups for path in group.paths}
    return replace(
        regrouped, slots={p: slots[p] for p in plan.after.parameters if p in slots and p in held}
    ), {p: fates[p] for p in plan.after.parameters if p in fates}


def _group(
    state: OptimizerState,
    child: OptimizerState,
    maps: PlanMaps,
    joint: Joint,
    weights: Mapping[str, Array],
    after: Callable[[], Mapping[str, Array]],
    steps: int,
) -> tuple[dict[str, dict[str, Array]], dict[str, Fate]]:
    """The slots of the child's tensors that belong together.

    ``after`` gives these tensors' values, which the decay of weights is reckoned from.
    """
    paths = tuple(joint.tapes)
    present = [key for key in joint.keys if key in state.slots]
    if not present:
        return {}, dict.fromkeys(paths, Fate("zero", "there is no state yet"))
    name, counts = FIRST[state.kind], _counts(state, present)
    m = {key: _slot(state, key, name, weights[key].shape) for key in joint.keys}
    decays = {key: _decay(state, key, counts, steps) for key in joint.keys}
    decaying = any(decays.values())
    for key in joint.keys if decaying else ():
        m[key] = m[key] - decays[key] * np.asarray(weights[key], np.float64)
    first = maps.first(joint, m)
    reached = joint.reached()
    for path, value in after().items() if decaying else ():
        decay = _decay(child, path, counts, steps)
        first[path] = first[path] + decay * np.where(reached[path], value, 0.0)
    made: dict[str, dict[str, Array]] = {path: {name: first[path]} for path in paths}
    for other in SECOND[state.kind]:
        if not any(other in state.slots[key] for key in present):
            continue
        held = {key: _slot(state, key, other, weights[key].shape) for key in joint.keys}
        second = maps.second(joint, held)
        if second is None:
            reason = "second moments have no map where gradients are mixed"
            return {}, dict.fromkeys(paths, Fate("zero", reason))
        for path in paths:
            made[path][other] = second[path]
    dtype = state.slots[present[0]][name].dtype
    out: dict[str, dict[str, Array]] = {}
    for path in paths:
        out[path] = {slot: a.astype(dtype) for slot, a in made[path].items()}
        out[path] |= {} if counts is None else {STEP: counts}
    fates = {}
    for path, old in reached.items():
        entries = first[path].size  # `old` is smaller where it is the same along axes
        new = entries - int(old.sum()) * (entries // max(old.size, 1))
        fates[path] = Fate("mapped", new=new, entries=entries)
    return out, fates


def _values(
    plan: Plan,
    joint: Joint,
    weights: Mapping[str, Array],
    measured: Mapping[Free, Array] | None,
) -> dict[str, Array]:
    """The values of the child's tensors that belong together, in float64."""
    terms = {path: plan.terms.get(path, Ref(path)) for path in joint.tapes}
    return {path: evaluate(term, FLOAT, weights, measured) for path, term in terms.items()}


def _slot(state: OptimizerState, path: str, name: str, shape: tuple[int, ...]) -> Array:
    held = state.slots.get(path, {}).get(name)
    return np.zeros(shape) if held is None else np.asarray(held, np.float64)


def _counts(state: OptimizerState, paths: Iterable[str]) -> Array | None:
    """The step count of tensors that become one: the largest."""
    counts = [held[STEP] for path in paths if STEP in (held := state.slots[path])]
    return max(counts, key=float) if counts else None


def _decay(state: OptimizerState, path: str, counts: Array | None, steps: int) -> float:
    """By what the weights have to be multiplied to give the decay in a first moment.

    SGD's momentum is sum mu^k (g + decay * w), dampened after the first step; Adam's first moment
    (1 - beta) sum beta^k (g + decay * w). AdamW decays apart.
    """
    group = state.group_of(path)
    if group is None or path in state.frozen:
        return 0.0
    options = group.options
    decay = float(options["weight_decay"])
    if decay == 0 or options.get("decoupled_weight_decay", state.kind == "AdamW"):
        return 0.0
    if state.kind != "SGD":
        taken = 0.0 if counts is None else float(counts)
        remembered: float = float(options["betas"][0]) ** taken
        return decay * (1 - remembered)
    mu, kept = float(options["momentum"]), 1 - float(options["dampening"])
    if mu >= 1:
        return decay * (1 + kept * (steps - 1)) if steps else 0.0
    oldest: float = mu ** (steps - 1) if steps else 0.0
    return decay * (oldest + kept * (1 - oldest) / (1 - mu))


def _regrouped(state: OptimizerState, plan: Plan, params: set[str]) -> OptimizerState:
    """The child's groups: with the parents that a term reads; what is new, with its kind."""
    number = {path: i for i, group in enumerate(state.groups) for path in group.paths}
    frozen = set(state.frozen)
    members: dict[int, list[str]] = {i: [] for i in range(len(state.groups))}
    still: list[str] = []
    kinds = _kinds(plan.before)
    for path, parameter in plan.after.parameters.items():
        if parameter.buffer:
            continue
        term = plan.terms.get(path)
        read = [path] if term is None else list(dict.fromkeys(references(term)))
        parents = [p for p in read if p in params]
        own = [number[p] for p in parents if p in number]
        if parents and frozen.issuperset(parents):
            still.append(path)
        if own:
            members[own[0]].append(path)
        elif not parents and number:
            members[_sibling(path, parameter.type.rank > 1, number, kinds)].append(path)
    for i, group in enumerate(state.groups):
        place = {path: n for n, path in enumerate(group.paths)}  # those of the parent in its order
        old = sorted((p for p in members[i] if p in place), key=place.__getitem__)
        members[i] = old + [p for p in members[i] if p not in place]
    groups = tuple(replace(g, paths=tuple(members[i])) for i, g in enumerate(state.groups))
    return OptimizerState(state.kind, groups, {}, tuple(still))


def _kinds(graph: Graph) -> dict[str, bool]:
    """Of each parameter whether it is a matrix or kernel, not a vector."""
    return {path: held.type.rank > 1 for path, held in graph.parameters.items()}


def _sibling(path: str, matrix: bool, number: Mapping[str, int], kinds: Mapping[str, bool]) -> int:
    """The group of the nearest parameter of the same kind, by path; of several, the most common."""
    alike = [p for p in number if kinds.get(p) == matrix] or list(number)
    near = Counter[tuple[int, int]]()
    for other in alike:
        near[_common(path, other), number[other]] += 1
    closest = max(depth for depth, _ in near)
    found = {group: n for (depth, group), n in near.items() if depth == closest}
    return max(found, key=lambda group: (found[group], -group))


def _common(a: str, b: str) -> int:
    """How many segments two paths begin with in common."""
    pairs = zip(a.split("."), b.split("."), strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(a.count("."), b.count(".")))
