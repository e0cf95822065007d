"""What must hold of any network, whatever it is made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self
from zlib import crc32

import numpy as np

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph, Value
from archir.ir.hash import graph_hash
from archir.ir.same import difference
from archir.lang import format_text, load, print_graph
from archir.lang.flat import print_flat
from archir.ops import STANDARD
from archir.ops.arithmetic import Array, Floating
from archir.ops.closeness import distance
from archir.ops.evaluate import run
from archir.ops.record import Law, Mode
from archir.proof.exact import shape_in_check
from archir.proof.uses import check_plan
from archir.rewrite.library import Library, installed
from archir.rewrite.plan import Plan, apply_terms, as_assumed, region_of
from archir.rewrite.rule import Reshaping, Rule
from archir.rewrite.sites import Planner, Site
from archir.target import backends
from archir.weights.functions import evaluate
from archir.weights.init import init_weights, stream_of
from archir.weights.store import check_weights, numpy_dtype

from .networks import Case, renamed

LIBRARY: Library = installed(STANDARD)
BATCH = 3
ROWS = 5
"""Inputs of whole numbers are below this; every embedding has as many rows."""
BOUND = 1e-4
"""The largest max|a-b| / max|a| of an output in single precision, whatever the network, as at the
export gate. No piece is steep, so errors of 6e-8 add up over at most 30 operators in a row; only a
last layer of one number may cancel (the largest in 1,700 networks is 1.1e-5). A wrong lowering is
off by 1e-2 and more."""
DRIFT = 1e-9
"""The largest max|a-b| / max|a| of a rewrite in double precision."""

Weights = dict[str, Array]


class Wrong(AssertionError):  # noqa: N818 - a finding
    """A property that does not hold."""


def want(holds: bool, what: str) -> None:
    """Fail, in words, unless something holds."""
    if not holds:
        raise Wrong(what)


# --- text ---------------------------------------------------------------------------------


def check_text(case: Case) -> None:
    """Graph and text are the same thing; layout and names do not matter."""
    graph, text = case.graph, case.text
    again = read(text)
    want(difference(graph, again) is None, f"reads back otherwise: {difference(graph, again)}")
    want(print_graph(again, STANDARD) == text, "prints otherwise after reading")
    want(format_text(Source("case.arch", text)) == text, "printed text is not laid out by fmt")
    flat = print_flat(graph, STANDARD)
    want(difference(graph, read(flat)) is None, "the flat text reads back otherwise")
    squeezed = flat.replace("\n", " ").replace(" = ", "=")
    laid = format_text(Source("case.arch", squeezed))
    want(difference(graph, read(laid)) is None, "fmt changes the graph")
    want(max(map(len, laid.splitlines())) <= 200, "fmt leaves long lines")
    want(format_text(Source("case.arch", laid)) == laid, "fmt is not idempotent")
    want(graph_hash(numbered(graph)) == graph_hash(graph), "the hash depends on names")


def read(text: str) -> Graph:
    """The graph of a text."""
    return load(Source("case.arch", text), STANDARD).graph


# --- numbers ------------------------------------------------------------------------------


def weights_for(graph: Graph, seed: int = 0) -> Weights:
    """Initial weights with nothing at 0 or 1: what is constant is shifted at random."""
    found = init_weights(graph, STANDARD, seed, random_statistics=True)
    for path, values in found.items():
        if values.dtype.kind == "f" and values.size and np.ptp(values) == 0:
            shift = stream_of(seed + 1, path).uniform(-0.4, 0.4, values.shape)
            found[path] = (values + shift).astype(values.dtype)
    return found


def feeds_for(graph: Graph, seed: int = 0) -> Weights:
    """A batch for every input."""
    out: Weights = {}
    for name in graph.inputs:
        (type_,) = graph.node(name).types
        stream = stream_of(seed, name)
        shape = shape_in_check(type_, BATCH)
        if type_.dtype == "i64":
            out[name] = stream.integers(0, ROWS, shape)
        else:
            out[name] = stream.standard_normal(shape).astype(numpy_dtype(type_.dtype))
    return out


def outputs_of(
    graph: Graph, weights: Mapping[str, Array], feeds: Mapping[str, Array], mode: Mode = "eval"
) -> tuple[list[Array], Mapping[str, Array]]:
    """The outputs in double precision by the reference, and the buffers of training."""
    wide = {path: _wide(array) for path, array in weights.items()}
    fed = {Value(name): _wide(array) for name, array in feeds.items()}
    found = run(graph, STANDARD, Floating(np.float64), fed, wide, mode=mode)
    return [found.values[o.value] for o in graph.outputs], found.buffers


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def calm(graph: Graph) -> Graph:
    """The graph with nothing random in training."""
    builder = graph.edit()
    for node in graph:
        if Law.RANDOM_IN_TRAINING in STANDARD[node.op].laws:
            builder.put(replace(node, attrs={**node.attrs, "p": 0.0}))
    return builder.build()


def check_backends(case: Case) -> dict[str, float]:
    """torch and ONNX Runtime agree with the reference; the distances."""
    graph = _nameable(case.graph)
    weights, feeds = weights_for(graph), feeds_for(graph)
    wanted, _ = outputs_of(graph, weights, feeds)
    far: dict[str, float] = {}
    for name, backend in backends().items():
        if any(node.op in backend.UNSUPPORTED for node in graph):
            continue
        found = backend.forward(graph, weights, feeds)
        far[name] = _compare(name, graph, wanted, found)
    far["torch in training"] = _train(calm(graph), weights, feeds)
    return far


def _nameable(graph: Graph) -> Graph:
    """The graph, under plain names if torch cannot have its paths."""
    from archir.backends import torch_fx

    try:
        torch_fx.lower(graph)
    except ArchirError as refusal:
        if refusal.diagnostics[0].code != "A502":
            raise
        return numbered(graph)
    return graph


def numbered(graph: Graph) -> Graph:
    """The same network under names that are numbers."""
    numbers = {name: str(i) for i, name in enumerate([*graph.parameters, *(n.name for n in graph)])}
    return renamed(graph, lambda n: f"n.{numbers[n]}", lambda p: f"p.{numbers[p]}")


def _compare(who: str, graph: Graph, wanted: list[Array], found: list[Any]) -> float:
    worst = 0.0
    for output, a, b in zip(graph.outputs, wanted, found, strict=True):
        amount = distance(a, np.asarray(b))
        want(amount <= BOUND, f"{who}: `{output.name}` differs by {amount:.1e}")
        worst = max(worst, amount)
    return worst


def _train(graph: Graph, weights: Weights, feeds: Weights) -> float:
    import torch
    from archir.backends import torch_fx

    wanted, buffers = outputs_of(graph, weights, feeds, "train")
    module = torch_fx.lower(graph, weights).train()
    with torch.no_grad():
        found = module(*(torch.from_numpy(feeds[name]) for name in graph.inputs))
    found = found if isinstance(found, tuple) else (found,)
    worst = _compare("torch in training", graph, wanted, [f.numpy() for f in found])
    after = torch_fx.weights_of(module, graph)
    for path, due in buffers.items():
        amount = distance(due, after[path])
        want(amount <= BOUND, f"torch in training: buffer {path} differs by {amount:.1e}")
    return worst


# --- rules --------------------------------------------------------------------------------


@dataclass
class Tally:
    """What checking the rules at every site came to."""

    classes: int = 0
    uses: Counter[str] = field(default_factory=Counter)
    """By rule."""
    checked: Counter[str] = field(default_factory=Counter)
    """Exact checks by mode; those of modes that a use does not claim as `not claimed: ...`."""
    refusals: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)
    """Operators within checked regions."""

    def __iadd__(self, other: Tally) -> Self:
        self.classes += other.classes
        for name in ("uses", "checked", "refusals", "nodes"):
            getattr(self, name).update(getattr(other, name))
        return self


SHARE = 10
"""Of the rules, one in so many is tried on a network: which, its text decides."""


def _some(library: Mapping[str, Rule], text: str) -> list[Rule]:
    return list(library.values())[crc32(text.encode()) % min(SHARE, len(library)) :: SHARE]


def check_rules(case: Case, library: Mapping[str, Rule] = LIBRARY) -> Tally:
    """Some rules at every site: exact, of the right shapes, and a text like any other."""
    tally = Tally()
    planner = Planner(case.graph, STANDARD, weights_for(case.graph, 3))
    tally.classes = len(planner.classes.classes)
    for rule in _some(library, case.text):
        sites = planner.sites(rule)
        for number, site in enumerate(sites):
            plan = _plan(planner, rule, site, number)
            check_use_of(plan, tally)
        if isinstance(rule.body, Reshaping):
            tally.refusals.update(refusals(planner, rule, sites))
    return tally


def _plan(planner: Planner, rule: Rule, site: Site, number: int) -> Plan:
    """A plan at a site; every other one with a width that is far from the size of the class.

    Not every width need do (an axis that is averaged over takes multiples), but the example's.
    """
    try:
        given = planner.example_arguments(rule, site.at)
        width, size = given.get("width"), site.size
        if isinstance(width, int) and size is not None and number % 2:
            far = {**given, "width": 2 * size + 1 if width > size else 1}
            with suppress(ArchirError):
                return planner.plan(rule, site.at, far, number)
        return planner.plan(rule, site.at, given, number)
    except ArchirError as refusal:
        raise Wrong(f"{site} is a site, but: {_first(refusal)}") from refusal


def check_use_of(plan: Plan, tally: Tally) -> None:
    """One plan: its text, the shapes and values of its weights, and both sides exactly."""
    where = f"{plan.rule.name}@{plan.site}"
    text = print_graph(plan.after, STANDARD)
    found = difference(plan.after, read(text))
    want(found is None, f"{where}: the result reads back otherwise: {found}")
    before = weights_for(plan.before, 3)
    after = apply_terms(plan.terms, plan.after, before)
    try:
        check_weights(plan.after, after)
        checks, skipped = check_plan(plan, STANDARD)
    except ArchirError as wrong:
        raise Wrong(f"{where}: {_first(wrong)}") from wrong
    want(len(checks) + len(skipped) == len(plan.rule.contract.function), f"{where}: unchecked")
    want(all(check.equal for check in checks), f"{where}: not equal")
    _drift(plan, before, where)
    tally.uses[plan.rule.name] += 1
    tally.checked.update(check.mode for check in checks)
    tally.checked.update(f"not claimed: {re.sub(r' at .*', '', why)}" for why in skipped.values())
    tally.nodes.update(node.op for node in region_of(plan).after)


def _drift(plan: Plan, before: Weights, where: str) -> None:
    """The whole networks, in double precision: what the region leaves out is seen as well."""
    k, wide = Floating(np.float64), {path: _wide(array) for path, array in before.items()}
    wide |= as_assumed(plan, wide)
    after = {
        path: evaluate(plan.terms[path], k, wide) if path in plan.terms else wide[path]
        for path in plan.after.parameters
    }
    feeds = feeds_for(plan.before)
    for mode in plan.rule.contract.function:
        if mode == "train" and dropout_in_graph(plan):
            continue
        a, _ = outputs_of(plan.before, wide, feeds, mode)
        b, _ = outputs_of(plan.after, after, feeds, mode)
        far = max(map(distance, a, b))
        want(far <= DRIFT, f"{where}: the outputs drift by {far:.1e} in {mode}")


def dropout_in_graph(plan: Plan) -> bool:
    """Whether anything of a network is random in training."""
    return any(
        Law.RANDOM_IN_TRAINING in STANDARD[n.op].laws and n.attrs["p"] != 0 for n in plan.before
    )


def refusals(planner: Planner, rule: Rule, sites: Sequence[Site]) -> Counter[str]:
    """Why a rule over classes does not apply at the layers that are no site, counted."""
    places = {site.at for site in sites}
    found: Counter[str] = Counter()
    for node in planner.graph:
        if not node.params or node.name in places:
            continue
        try:
            planner.plan(rule, node.name, planner.example_arguments(rule, node.name))
        except ArchirError as refusal:
            found[f"{rule.name}: {kind(_first(refusal), planner.graph)}"] += 1
    return found


def _first(failure: ArchirError) -> str:
    return failure.diagnostics[0].message


def kind(message: str, graph: Graph | None = None) -> str:
    """A message without names (those of a graph among them) and numbers."""
    for name in sorted((node.name for node in graph or ()), key=len, reverse=True):
        message = re.sub(rf"(?<=[ `]){re.escape(name)}(\.[a-z]+\d*)*(?=[ `:,])", "...", message)
    message = message.rpartition(" does not apply at ")[2].partition(": ")[2] or message
    message = re.sub(r"^at [^,]+, |\S+@\S+|(?<=class of )\S+", "", message)
    message = re.sub(r"`[^`]*`|\[[^]]*\]", "...", message)
    return re.sub(r"-?\d[\d.e+-]*", "#", message)


CHECKS = (check_text, check_backends, check_rules)
"""All checks, in the order in which they are made."""
