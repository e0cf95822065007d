"""Pruning one group of channels, side by side with torch_pruning: time, and whether they agree.

Both start from the same network in memory with the same weights, and drop the same channels of
the class with the most members. torch_pruning traces the module with one image (a forward pass
that records autograd's graph), builds its dependency graph, walks it for the group and cuts the
tensors; it checks nothing. archir builds the axis classes of its graph, plans the rule (the new
graph with all types inferred again, a term for every tensor) and evaluates the terms. The third
time adds archir's exact check: both sides in GF(p), at real size, in eval and in train mode.

Then, for every class that either side can prune: do both touch the same tensors, on the same
axes, at the same indices? And do the two pruned networks compute the same?

torch_pruning gets torchvision's module where an example has one, else what archir lowers. Ratios
are of the best times: torch's threads wait for each other on a busy machine, and its times then
differ by a factor of fifty.

    uv run python benchmarks/prune.py [--repeats 7] [--only resnet50]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
import torchvision
from measure import interleaved, machine

import archir
from archir.diag import ArchirError
from archir.ops.closeness import distance
from archir.proof.uses import check_plan
from archir.rewrite.plan import Plan, apply_terms
from archir.rewrite.sites import Planner
from archir.target import backends
from archir.weights.terms import Apply, IndexMap, Ref, Term

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NETWORKS: Mapping[str, Callable[[], torch.nn.Module] | None] = {
    "resnet20": None,
    "resnet50": torchvision.models.resnet50,
    "vgg16_bn": None,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "googlenet": lambda: torchvision.models.googlenet(aux_logits=False, init_weights=False),
    "densenet_bc_40_12": None,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
    "nasbench201": None,
    "vit_tiny": None,
    "shufflenet_v2_x1_0": torchvision.models.shufflenet_v2_x1_0,
}
"""Examples, and what torch_pruning gets: None is the module that archir lowers."""

Cuts = dict[tuple[str, int], frozenset[int]]
"""The indices that a tensor loses, by its path and axis."""


@dataclass
class Subject:
    """A network on both sides, with the same weights."""

    name: str
    network: archir.Network
    module: torch.nn.Module
    image: torch.Tensor

    @classmethod
    def load(cls, name: str) -> Subject:
        """Load an example and give its weights to torch's module."""
        network = archir.load(EXAMPLES / f"{name}.arch").init(0, random_statistics=True)
        torch_backend: Any = backends()["torch"]
        module: torch.nn.Module = torch_backend.lower(network.graph, network.weights)
        factory = NETWORKS[name]
        if factory is not None:
            state, module = module.state_dict(), factory()
            module.load_state_dict(state)
        shape = network.graph.node(network.graph.inputs[0]).types[0].shape[1:]
        torch.manual_seed(0)
        return cls(name, network, module.eval(), torch.randn(1, *shape))

    def plan(self, site: str, size: int, planner: Planner | None = None) -> Plan:
        """Drop an eighth of a class's channels, at least one."""
        network = self.network
        planner = planner or Planner(network.graph, network.ops)
        width = {"width": size - max(1, size // 8)}
        return planner.plan(network.library["prune"], site, width)

    def sites(self) -> list[tuple[str, int]]:
        """The classes that archir can prune, with their sizes."""
        return [(s.at, s.size or 0) for s in self.network.sites("prune")]

    def largest(self) -> tuple[str, int]:
        """The class with the most members that a layer of torch's gives its name."""
        planner, rule = self.network.planner, self.network.library["prune"]
        found = [
            (len(planner.classes.classes[n].members), s.at, s.size or 0)
            for s in planner.sites(rule)
            for n in planner.classes.classes
            if planner.classes.classes[n].site == s.at and s.at in self.network.graph
        ]
        _, site, size = max(found, key=lambda entry: entry[0])
        return site, size


# -- what each side cuts


def cuts_of(plan: Plan) -> Cuts:
    """What archir's plan takes out of every tensor."""
    cuts: Cuts = {}
    for path, term in plan.terms.items():
        inner: Term = term
        while isinstance(inner, Apply) and inner.function == "take":
            inner, kept, axis = inner.args  # type: ignore[assignment]
            assert isinstance(kept, IndexMap)
            assert isinstance(axis, int)
            gone = np.setdiff1d(np.arange(kept.source), kept.entries)
            cuts[path, axis] = frozenset(gone.tolist())
        assert isinstance(inner, Ref)
    return cuts


def trace(model: torch.nn.Module, image: torch.Tensor) -> torch_pruning.DependencyGraph:
    """torch_pruning's dependency graph.

    A tensor that is not in a tuple would be tried without its batch axis first.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=(image,))


def group_of(
    dependencies: torch_pruning.DependencyGraph, model: torch.nn.Module, site: str, gone: list[int]
) -> torch_pruning.Group:
    """torch_pruning's group that begins at the output channels of a layer."""
    layer = model.get_submodule(site)
    linear = isinstance(layer, torch.nn.Linear)
    prune = torch_pruning.prune_linear_out_channels
    prune = prune if linear else torch_pruning.prune_conv_out_channels
    return dependencies.get_pruning_group(layer, prune, idxs=gone)


def cuts_of_group(dependencies: torch_pruning.DependencyGraph, group: torch_pruning.Group) -> Cuts:
    """What torch_pruning's group takes out of every tensor."""
    cuts: Cuts = {}
    for dependency, indices in group:
        layer = dependency.target.module
        gone = frozenset(torch_pruning._helpers.to_plain_idxs(indices))
        if isinstance(layer, torch.nn.Parameter):
            name = dependencies._param_to_name[layer]
            cuts[name, dependencies.unwrapped_parameters[layer]] = gone
            continue
        if layer not in dependencies._module2name:
            continue  # an operation without tensors
        path = dependencies._module2name[layer]
        out = dependencies.is_out_channel_pruning_fn(dependency.handler)
        tensors = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers())}
        whole = not isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
        axis = 0 if out or whole or getattr(layer, "groups", 1) > 1 else 1
        for role, tensor in tensors.items():
            if tensor.ndim > axis:
                cuts[f"{path}.{role}", axis] = gone
    return cuts


# -- time


def timed(subject: Subject, site: str, size: int, repeats: int) -> dict[str, Any]:
    """The time of every part on both sides."""
    network, ops = subject.network, subject.network.ops
    assert network.weights is not None
    gone = sorted(next(iter(cuts_of(subject.plan(site, size)).values())))

    def theirs() -> Callable[[], object]:
        model = copy.deepcopy(subject.module)
        return lambda: group_of(trace(model, subject.image), model, site, gone).prune()

    def built() -> Callable[[], object]:
        model = copy.deepcopy(subject.module)
        return lambda: trace(model, subject.image)

    def pruned() -> Callable[[], object]:
        model = copy.deepcopy(subject.module)
        dependencies = trace(model, subject.image)
        return lambda: group_of(dependencies, model, site, gone).prune()

    def ours(*, verify: bool) -> Callable[[], object]:
        def work() -> None:
            plan = subject.plan(site, size)
            if verify:
                checks, _ = check_plan(plan, ops)
                assert all(check.equal for check in checks)
            apply_terms(plan.terms, plan.after, network.weights or {})

        return work

    def planned() -> Callable[[], object]:
        planner = Planner(network.graph, ops)
        assert planner.classes
        return lambda: subject.plan(site, size, planner)

    def moved() -> Callable[[], object]:
        plan = subject.plan(site, size)
        return lambda: apply_terms(plan.terms, plan.after, network.weights or {})

    return dict(
        interleaved(
            {
                "torch_pruning": theirs,
                "  its graph": built,
                "  its group and prune": pruned,
                "archir": lambda: ours(verify=False),
                "  its classes": lambda: lambda: Planner(network.graph, ops).classes,
                "  its plan": planned,
                "  its new weights": moved,
                "archir, verified": lambda: ours(verify=True),
            },
            repeats,
        )
    )


# -- agreement


@dataclass
class Agreement:
    """How the classes of both sides compare."""

    same: int = 0
    notes: list[str] = field(default_factory=list)
    cut: int = 0
    """Classes that are parts of a layer's channels, which torch_pruning does not have."""
    refused: list[str] = field(default_factory=list)
    distance: float = 0.0


def agreement(subject: Subject, site: str, size: int) -> Agreement:
    """Compare every class, and the outputs of both networks after one is pruned."""
    found = Agreement()
    model = copy.deepcopy(subject.module)
    dependencies = trace(model, subject.image)
    names = dict(model.named_modules())
    covered: set[str] = set()
    planner = subject.network.planner
    for at, width in subject.sites():
        plan = subject.plan(at, width, planner)
        ours = cuts_of(plan)
        covered |= {path.rpartition(".")[0] for path, axis in ours if axis == 0}
        root = next((axis for axis in [(f"{at}.weight", 0)] if axis in ours), None)
        if at not in names or root is None:
            found.cut += 1
            continue
        group = group_of(dependencies, model, at, sorted(ours[root]))
        theirs = cuts_of_group(dependencies, group)
        if ours == theirs:
            found.same += 1
        else:
            found.notes.append(f"{at}: {difference(ours, theirs)}")
    for name in _roots(dependencies, model) - covered:
        try:
            subject.plan(name, int(names[name].weight.shape[0]), planner)
        except ArchirError as refusal:
            found.refused.append(f"{name}: {refusal}")
    found.distance = outputs(subject, site, size)
    return found


def _roots(dependencies: torch_pruning.DependencyGraph, model: torch.nn.Module) -> set[str]:
    """Layers whose output channels torch_pruning would prune, the network's last apart."""
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    names = {layer: name for name, layer in model.named_modules()}
    last = [layer for layer in model.modules() if isinstance(layer, kinds)][-1]
    groups = dependencies.get_all_groups(ignored_layers=[last], root_module_types=kinds)
    return {names[d.target.module] for g in groups for d, _ in g[:1] if d.target.module in names}


def difference(ours: Cuts, theirs: Cuts) -> str:
    """Two cuts in a few words."""
    here, there = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    parts = []
    if here:
        parts.append(f"only archir cuts {here[0][0]} axis {here[0][1]} ({len(here)} tensors)")
    if there:
        parts.append(f"only torch_pruning cuts {there[0][0]} axis {there[0][1]} ({len(there)})")
    other = [key for key in ours if key in theirs and ours[key] != theirs[key]]
    if other:
        parts.append(f"other indices in {len(other)} tensors, first {other[0][0]}")
    return "; ".join(parts)


def outputs(subject: Subject, site: str, size: int) -> float:
    """The distance between the outputs of both networks, pruned alike."""
    plan = subject.plan(site, size)
    assert subject.network.weights is not None
    weights = apply_terms(plan.terms, plan.after, subject.network.weights)
    torch_backend: Any = backends()["torch"]
    ours = torch_backend.lower(plan.after, weights).eval()
    model = copy.deepcopy(subject.module)
    gone = sorted(cuts_of(plan)[f"{site}.weight", 0])
    group_of(trace(model, subject.image), model, site, gone).prune()
    with torch.inference_mode():
        return distance(ours(subject.image).numpy(), model(subject.image).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=[*NETWORKS], action="append")
    given = parser.parse_args()
    print(machine(), f"torch {torch.__version__}, {torch.get_num_threads()} threads,")
    print(f"torch_pruning {torch_pruning.__version__}; {given.repeats} rounds")
    ratios: dict[str, list[float]] = {}
    for name in given.only or NETWORKS:
        subject = Subject.load(name)
        site, size = subject.largest()
        try:
            trace(copy.deepcopy(subject.module), subject.image)
        except Exception as failure:  # whatever it is, it is reported
            print(f"\n{name}: torch_pruning cannot build its graph: {failure!r}")
            continue
        timings = timed(subject, site, size, given.repeats)
        print(f"\n{name}: prune@{site}, {size} channels")
        for part, timing in timings.items():
            times = f"{timing.median * 1e3:9.1f} ms, best {timing.best * 1e3:7.1f} ms"
            share = timing.best / timings["torch_pruning"].best
            print(f"  {part:<22}{times}  {share:6.2f} x")
            ratios.setdefault(part.strip(), []).append(share)
        found = agreement(subject, site, size)
        total = found.same + len(found.notes)
        print(
            f"  {found.same} of {total} classes cut alike; outputs differ by {found.distance:.1e}"
        )
        if found.cut:
            print(f"  {found.cut} classes that archir has besides (parts of a layer's channels)")
        for note in (*found.notes, *(f"archir refuses {r}" for r in found.refused)):
            print(f"    {note}")
    for part in ("archir", "archir, verified"):
        if part in ratios:
            middle, most = statistics.median(ratios[part]), max(ratios[part])
            print(f"\n{part} / torch_pruning: median {middle:.2f}, at most {most:.2f}")


if __name__ == "__main__":
    main()
