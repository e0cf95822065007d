"""What archir makes of one published network: imported, compared, rewritten, exported.

A process of its own for each network (see `coverage.py`); every stage hands on what it gave at
once, so that it stays when the process is killed. Alone, for one network:

    uv run python benchmarks/covered.py torchvision:resnet18 [widen ...]
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import archir
from archir.api import Application, Network, rewrite
from archir.diag import ArchirError, Source
from archir.importing import import_network
from archir.ir.graph import Value
from archir.ir.same import equal
from archir.lang import format_text, load
from archir.lang.printer import print_graph
from archir.ops.arithmetic import Array
from archir.ops.cost import cost
from archir.rewrite.class_rules import refusal
from archir.rewrite.plan import as_assumed
from archir.rewrite.rule import Reshaping, Rule
from archir.rewrite.sites import Site
from archir.target import ImportOptions

BATCHES = (1, 3)
USED = (7,)
"""The batch at which the files of rewritten networks are run."""
SMALL = 6_000_000_000
"""MACs up to which rewritten networks are exported as well, and files are run at batch 7."""
EVERY = ("text", "exact", "export", "widen", "deepen", "prune")
DRIFT = 1e-4
"""The largest max|a-b| / max|a| of the outputs of a rewritten network, in float32."""
TRIED = 6
"""So many sites of a rule are tried until one is verified."""
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "widen": ("widen",),
    "deepen": ("deepen", "deepen.prelu", "deepen.residual.linear"),
    "prune": ("prune",),
}
"""The rules of each column, in the order in which they are tried."""
TOKENS = ("transformer.insert_mlp", "deepen.residual.linear")
"""Those of *deepen* where values are normalised along their last axis, as tokens are."""


@dataclass
class Stages:
    """Runs the stages of the work and hands on what each gave."""

    tell: Callable[[dict[str, Any]], None]

    def __call__(self, name: str, work: Callable[[], Mapping[str, Any]]) -> bool:
        """Do a stage; whether it did what it is for."""
        start = time.process_time()
        try:
            found = {"ok": True, **work()}
        except ArchirError as reason:
            first = reason.diagnostics[0]
            found = {"ok": False, "why": f"{first.code}: {first.message}"}
        except Exception as reason:  # a traceback would be a finding like others
            text = " ".join(str(reason).split())[:300]
            kind = "" if isinstance(reason, DifferentError) else f"{type(reason).__name__}: "
            found = {"ok": False, "why": kind + text}
        found["seconds"] = round(time.process_time() - start, 2)
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        self.tell({"stage": name, **found})
        return bool(found["ok"])


class DifferentError(Exception):
    """Two things that must agree do not."""


@dataclass
class Subject:
    """A network on its way through the stages."""

    name: str
    network: Network
    module: torch.nn.Module


def source_module(name: str) -> torch.nn.Module:
    """The module that a name stands for, made without archir, in eval mode."""
    kind, _, model = name.partition(":")
    torch.manual_seed(0)
    if kind == "torchvision":
        from torchvision import models

        made: torch.nn.Module = models.get_model(model)
    else:
        import timm

        made = timm.create_model(model)
    return made.eval()


def strengthened(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Initial weights as training could have left them: no vector of ones or zeros stays so.

    A norm that has statistics of 0 and 1, or a branch whose scale is 0, would let a network pass
    in which they are forgotten or swapped.
    """
    stream = torch.Generator().manual_seed(1)
    out = {}
    for path, held in tensors.items():
        if not held.is_floating_point() or held.numel() == 0 or held.min() != held.max():
            out[path] = held
            continue
        level, noise = float(held.flatten()[0]), torch.rand(held.shape, generator=stream)
        if path.endswith("running_var"):
            out[path] = 0.5 + noise
        elif level:
            out[path] = level * (0.75 + 0.5 * noise) if level > 1e-3 else 0.05 + 0.1 * noise
        else:
            out[path] = 0.2 * (noise - 0.5)
    return out


def imported(name: str) -> tuple[Subject, dict[str, Any]]:
    """Import a network as `archir import` does, with its auxiliary heads where it has some."""
    try:
        network, found = import_network(name)
        aux = False
    except ArchirError as reason:
        if reason.diagnostics[0].code != "A524":
            raise
        network, found = import_network(name, ImportOptions(aux="keep"))
        aux = True
    spent = network.cost()
    facts = {
        "nodes": len(network.graph),
        "params": spent.params,
        "macs": spent.macs,
        "lines": network.text.count("\n"),
        "carried": found.facts.get("carried", []),
        "captured": found.facts.get("captured"),
        "aux": aux,
        "same": equal(found.graph, network.graph),
    }
    return Subject(name, network, source_module(name)), facts


def redrawn(
    module: torch.nn.Module, network: Network
) -> tuple[dict[str, torch.Tensor], dict[str, Array]]:
    """Stronger weights for a module, and the network's, the same wherever the paths are."""
    assert network.weights is not None
    given = strengthened(module.state_dict())
    held = network.weights.items()
    return given, {path: given[path].numpy() if path in given else a for path, a in held}


def exact(subject: Subject) -> dict[str, Any]:
    """Whether both sides give the very same numbers, with weights that no initialiser gives."""
    network, module = subject.network, subject.module
    assert network.weights is not None
    given, held = redrawn(module, network)
    for path, tensor in module.state_dict().items():
        tensor.copy_(given[path])
    own = [path for path in network.weights if path not in given]
    unread = [path for path in given if path not in held]
    network = network.with_weights(held, "given", {"by": "benchmarks/coverage.py"})
    subject.network = network
    lowered = network.to_torch().eval()
    stream = torch.Generator().manual_seed(2)
    type_ = network.graph.node(network.graph.inputs[0]).types[0]
    with torch.no_grad(), unfused():
        for batch in BATCHES:
            image = torch.randn((batch, *map(int, map(str, type_.shape[1:]))), generator=stream)
            wanted, found = first(module(image)), first(lowered(image))
            if not torch.isfinite(wanted).all():
                raise DifferentError("the module's own outputs are not finite with these weights")
            if wanted.shape != found.shape or not torch.equal(wanted, found):
                gap = float((wanted - found).abs().max() / wanted.abs().max())
                raise DifferentError(f"differs at batch {batch}: max|a-b|/max|a| = {gap:.1e}")
    return {"own": own[:5], "unread": unread[:5]}


def calibrated(subject: Subject) -> None:
    """Give batch norms the statistics of a batch: drawn ones may scale a deep network out of range.

    The numbers of some then differ by more than rounding between any two engines.
    """
    network, module = subject.network, subject.module
    assert network.weights is not None
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    shape = network.graph.node(network.graph.inputs[0]).types[0].shape[1:]
    image = torch.randn((4, *map(int, map(str, shape))), generator=torch.Generator().manual_seed(4))
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    with torch.no_grad(), contextlib.suppress(ValueError):  # one value a channel has no variance
        module(image)
    module.eval()
    given, held = module.state_dict(), network.weights.items()
    weights = {path: given[path].numpy().copy() if path in given else a for path, a in held}
    subject.network = network.with_weights(weights, "given", {"by": "benchmarks/coverage.py"})


def unfused() -> Any:
    """Attention as its code says it: the fused path of torch in eval mode computes otherwise."""
    from archir.backends.torch_fx.raising.bring import evaluating

    return evaluating(torch.nn.Identity())


def first(outputs: Any) -> torch.Tensor:
    """The first tensor that a module returns."""
    while not isinstance(outputs, torch.Tensor):
        outputs = next(iter(outputs.values() if isinstance(outputs, dict) else outputs))
    return outputs


def round_trip(subject: Subject, *, same: bool) -> dict[str, Any]:
    """Whether the text is the graph that the importer made, and a formatted text; and back."""
    if not same:
        raise DifferentError("the text reads back as another graph than the importer made")
    network = subject.network
    if format_text(Source("net.arch", network.text)) != network.text:
        raise DifferentError("`archir fmt` lays the text out otherwise")
    flat = print_graph(network.graph, network.ops)
    again = load(Source("again.arch", flat), network.ops).graph
    if not equal(again, network.graph):
        raise DifferentError("the graph prints as a text that reads back as another graph")
    return {}


def rules_of(network: Network, family: str) -> tuple[str, ...]:
    """The rules to be tried."""
    if family == "deepen" and any(node.op == "layer_norm" for node in network.graph):
        return TOKENS + FAMILIES[family]
    return FAMILIES[family]


def candidates(network: Network, rule: Rule) -> tuple[int, list[tuple[bool, Site]]]:
    """How many sites a rule has, and some of them: cheap ones, the middle of the network first.

    With each goes whether it is an odd one, which is tried last.
    """
    sites = network.planner.sites(rule)
    place = {node.name: i / len(network.graph) for i, node in enumerate(network.graph)}
    if not isinstance(rule.body, Reshaping):
        levels = {s.at: plainness(network, rule, s) for s in sites}
        ranked = sorted(sites, key=lambda s: (levels[s.at], abs(place[s.at] - 0.5)))
        return len(sites), [(levels[s.at] > 1, s) for s in ranked[:TRIED]]
    spent = cost(network.graph, network.ops)
    macs = {layer.node: layer.macs for layer in spent.layers}
    classes = network.planner.classes.sites

    def key(site: Site) -> tuple[bool, float]:
        held = classes[site.at]
        share = sum(macs[n] for n in held.nodes) / max(spent.macs, 1)
        return share > 0.1, abs(place[held.name] - 0.5)

    return len(sites), [(False, site) for site in sorted(sites, key=key)[:TRIED]]


def plainness(network: Network, rule: Rule, site: Site) -> int:
    """How far from a plain place for a layer: 0 is a batch of feature maps, or of tokens.

    That has channels where the new layer reads them, made by weights, and more than one position.
    """
    type_ = network.graph.node(site.at).types[0]
    last = "linear" in rule.name or "transformer" in rule.name
    if type_.rank < 2 or isinstance(type_.shape[0], int):
        return 3
    classes = network.planner.classes
    held = classes.structure(Value(site.at), -1 if last else 1)
    if len(held) != 1 or len(held[0]) != 1 or held[0][0].number not in classes.classes:
        return 2
    one = classes.classes[held[0][0].number]
    made = any(m.kind == "produce" and len(m.structure[0]) == 1 for m in one.members)
    return 0 if made and set(type_.shape[2:]) != {1} else 1


def arguments(family: str, site: Site) -> dict[str, Any]:
    """What a rule is asked for at a site: an eighth more or fewer channels."""
    if site.size is None:
        return {}
    step = max(1, site.size // 8)
    return {"width": site.size + step if family == "widen" else max(1, site.size - step)}


def used(network: Network, family: str, rule: str, site: Site) -> tuple[Network, dict[str, Any]]:
    """Apply a rule at a site as `archir rewrite` does; raises unless everything holds.

    What `prune` drops is set to zero first, as the rule assumes it.
    """
    given = arguments(family, site)
    start = time.process_time()
    try:
        plan = network.planner.plan(network.rule(rule), site.at, given)
    except ArchirError:
        if family != "widen" or site.size is None:
            raise
        given = {"width": 2 * site.size}  # what is averaged over is taken equally often
        plan = network.planner.plan(network.rule(rule), site.at, given)
    assert network.weights is not None
    if plan.unread:
        zeroed = {**network.weights, **as_assumed(plan, network.weights)}
        network = network.with_weights(zeroed, "given", {"by": "benchmarks/coverage.py"})
    done = rewrite(network, [Application(rule, site.at, given)])
    (use,) = done.uses
    assert done.drift is not None
    if not use.checks or not all(check.equal for check in use.checks):
        raise DifferentError("nothing was checked")
    if not done.drift.finite or done.drift.value > DRIFT:
        raise DifferentError(f"drift {done.drift.value:.1e} with the real weights")
    again = load(Source("after.arch", done.network.text), network.ops).graph
    if not equal(again, plan.after):
        raise DifferentError("the rewritten text reads back as another graph")
    return done.network, {
        "rule": rule,
        "site": site.at,
        **given,
        "size": site.size,
        "modes": [check.mode for check in use.checks],
        "nodes": max(check.nodes for check in use.checks),
        "check": round(sum(check.seconds for check in use.checks), 2),
        "drift": done.drift.value,
        "took": round(time.process_time() - start, 2),
    }


def rewritten(subject: Subject, family: str, folder: Path, *, small: bool) -> dict[str, Any]:
    """The first verified use of a family's rules."""
    failures: list[str] = []
    counts: dict[str, int] = {}
    rules = rules_of(subject.network, family)
    tried: list[tuple[bool, str, Site]] = []
    for name in rules:
        counts[name], sites = candidates(subject.network, subject.network.rule(name))
        tried += [(odd, name, site) for odd, site in sites]
    for _, name, site in sorted(tried, key=lambda each: each[0]):
        try:
            after, facts = used(subject.network, family, name, site)
            if small:
                facts["onnx"] = exported(after, folder / f"{family}.onnx", USED)["drift"]
        except (ArchirError, DifferentError, RuntimeError) as reason:
            failures.append(f"{name}@{site.at}: {short(reason)}")
            continue
        return {**facts, "sites": counts, "failed": failures}
    if not any(counts.values()):
        why = why_none(subject.network, subject.network.rule(rules[-1]))
        raise DifferentError(f"no site: {why}")
    raise DifferentError("; ".join(failures[:3]))


def why_none(network: Network, rule: Rule) -> str:
    """What stops a rule at most of the classes that weights make."""
    reasons: Counter[str] = Counter()
    for held in network.planner.classes.classes.values():
        stop = refusal(rule, held) if held.members else None
        if stop is not None:
            reasons[f"{stop.reason} ({network.graph.node(stop.node).op})"] += 1
    return "; ".join(f"{count} times {reason}" for reason, count in reasons.most_common(3))


def short(reason: Exception) -> str:
    """An error in one line."""
    if isinstance(reason, ArchirError):
        return f"{reason.diagnostics[0].code}: {reason.diagnostics[0].message}"
    return " ".join(str(reason).split())[:200]


def exported(network: Network, path: Path, batches: Sequence[int] | None = None) -> dict[str, Any]:
    """Export through the gate, which compares with ONNX Runtime."""
    try:
        report = network.export(path, batches=batches)
        drift = max(report.drift.values())
        return {"drift": drift, "batches": list(report.batches), "opset": report.opset}
    finally:
        for file in (path, *path.parent.glob(f"{path.stem}-*.data")):
            file.unlink(missing_ok=True)


def shipped(subject: Subject, path: Path, small: bool) -> dict[str, Any]:
    """Export the network; with calibrated statistics where the drawn ones are out of range."""
    batches = None if small else (1,)
    try:
        return exported(subject.network, path, batches)
    except ArchirError as reason:
        if reason.diagnostics[0].code not in ("A506", "A547"):
            raise
        calibrated(subject)
        return {**exported(subject.network, path, batches), "calibrated": True}


def versions() -> dict[str, str]:
    """What the work is done with."""
    import onnxruntime
    import torchvision

    found = {"archir": archir.__version__, "torch": torch.__version__}
    found |= {"torchvision": torchvision.__version__, "onnxruntime": onnxruntime.__version__}
    try:
        import timm

        found["timm"] = timm.__version__
    except ImportError:
        pass
    return found


def warm() -> None:
    """Load what every network needs."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for package in ("torchvision", "timm", "onnxruntime", "onnx"):
        importlib.import_module(package)
    network, _ = import_network("torchvision:mnasnet0_5")
    installed = [network.rule(name) for names in FAMILIES.values() for name in names]
    with tempfile.TemporaryDirectory() as folder:
        exported(network, Path(folder) / "net.onnx")
        used(network, "widen", "widen", network.sites("widen")[0])
    del network, installed
    gc.collect()


def cover(
    name: str, tell: Callable[[dict[str, Any]], None], stages: Collection[str] = EVERY
) -> None:
    """All stages (or some) for one network; the import always."""
    wanted = set(stages)
    do = Stages(tell)
    held: list[Any] = []

    def bring() -> dict[str, Any]:
        subject, facts = imported(name)
        held.extend((subject, facts))
        return facts

    if not do("import", bring):
        return
    subject, facts = held
    small = facts["macs"] < SMALL
    if "text" in wanted:
        do("text", lambda: round_trip(subject, same=facts["same"]))
    if "exact" in wanted:
        do("exact", lambda: exact(subject))
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        if "export" in wanted:
            small = do("export", lambda: shipped(subject, at / "net.onnx", small)) and small
        for family in FAMILIES:
            if family in wanted:
                do(family, lambda f=family: rewritten(subject, f, at, small=small))  # type: ignore[misc]


if __name__ == "__main__":
    warm()
    cover(sys.argv[1], lambda found: print(json.dumps(found), flush=True), sys.argv[2:] or EVERY)
