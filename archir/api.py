"""The compiler for Python users and for the command line: load, rewrite, check, save."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archir.diag import ArchirError, error
from archir.exporting import export
from archir.files import read_source
from archir.ir.check import check
from archir.ir.graph import Graph, Value
from archir.ir.types import AttrValue
from archir.lang import load as load_program
from archir.lang import revise
from archir.lang.program import Program
from archir.ops import installed_ops
from archir.ops.arithmetic import Array
from archir.ops.cost import Cost, cost
from archir.ops.record import OpSet
from archir.past import Reverted
from archir.past import undo as take_back
from archir.proof.certificate import Certificate, read_certificate, state_of
from archir.proof.drift import Drift, Forward, measure, outputs
from archir.proof.lineage import Lineage, folders_of
from archir.proof.prove import verdict_for
from archir.proof.replay import Finding, verify
from archir.proof.uses import Use, assured, check_plan, share_read, wanted_statistics
from archir.proof.verdict import Verdict
from archir.rewrite.assumed import Distance
from archir.rewrite.library import Library, find_rule, installed, read_rule_file
from archir.rewrite.plan import Plan, apply_terms, compose_terms
from archir.rewrite.rule import Rule
from archir.rewrite.sites import Planner, Site, looks_at_weights
from archir.saving import certificate_path, check_output, save, weights_path
from archir.target import backends
from archir.weights.init import constants_of, init_weights
from archir.weights.store import Weights, check_weights, load_weights
from archir.weights.terms import Statistic, Term

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Application:
    """One rule to be applied: where, and with what."""

    rule: str
    at: str | None = None
    arguments: Mapping[str, AttrValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """Data for statistics: a batch for each input, and what it is."""

    feeds: Mapping[str, Array]
    name: str
    sha256: str


@dataclass(frozen=True)
class Rewritten:
    """What a rewrite did."""

    network: Network
    uses: tuple[Use, ...]
    drift: Drift | None
    before: Cost
    after: Cost


@dataclass(frozen=True)
class Network:
    """A network: its program, its weights if it has any, and where it came from.

    Immutable; every operation gives a new one.
    """

    program: Program
    weights: Mapping[str, Array] | None
    certificate: Certificate
    lineage: Lineage
    ops: OpSet
    library: Library
    path: Path | None = None

    def __repr__(self) -> str:
        """What it is, without its tensors."""
        found = self.cost()
        where = f", {self.path}" if self.path is not None else ""
        held = "" if self.weights is not None else ", no weights"
        size = f"{len(self.graph)} nodes, {found.params:,} parameters"
        return f"<Network {self.graph.name}: {size}{held}{where}>"

    @property
    def graph(self) -> Graph:
        """The graph."""
        return self.program.graph

    @property
    def text(self) -> str:
        """The program's text."""
        return self.program.source.text

    @functools.cached_property
    def planner(self) -> Planner:
        """Finds sites and plans rules; keeps the axis classes."""
        return Planner(self.graph, self.ops, self.weights)

    def cost(self) -> Cost:
        """Parameters, MACs and activation memory for a batch of one."""
        return cost(self.graph, self.ops)

    def rule(self, name: str) -> Rule:
        """A rule of the library by its name, or one of a file: `./my.rule`, `./my.rule:name`.

        Raises:
            ArchirError: A604, there is none; A607, the file cannot be read; A2xx, it is wrong.
        """
        return find_rule(name, self.library, self.ops)

    def sites(self, rule: str | None = None) -> list[Site]:
        """Where a rule (or every rule of the library) applies."""
        chosen = [self.rule(rule)] if rule else list(self.library.values())
        return [site for r in chosen for site in self.planner.sites(r)]

    def explain(self, rule: str, at: str, **arguments: AttrValue) -> ArchirError | Plan:
        """The plan of a rule at a site, or the error that says why there is none."""
        found = self.rule(rule)
        try:
            return self.planner.plan(found, at, arguments)
        except ArchirError as failure:
            return failure

    def rewrite(
        self,
        rule: str,
        at: str | None = None,
        *,
        seed: int = 0,
        approximate: bool = False,
        **arguments: AttrValue,
    ) -> Network:
        """Apply a rule and return the new network.

        Args:
            rule: The rule's name, or one of a file: `./my.rule`, `./my.rule:name`.
            at: The site; may be left out where there is only one.
            seed: For the rule's random maps.
            approximate: Apply it even where the weights are not as it assumes.
            **arguments: The rule's parameters.

        Raises:
            ArchirError: the rule does not apply (A30x), or a check failed (A40x).
        """
        uses = [Application(rule, at, arguments)]
        return rewrite(self, uses, seed=seed, approximate=approximate).network

    def init(self, seed: int = 0, *, random_statistics: bool = False) -> Network:
        """The network with initial weights, at the start of a new chain of steps.

        Constants, which no seed gives, stay as they are.

        Raises:
            ArchirError: A140, a constant is missing.
        """
        facts: dict[str, Any] = {"seed": seed, "random_statistics": random_statistics}
        weights = init_weights(self.graph, self.ops, **facts, constants=self.weights or {})
        made = replace(self, weights=frozen(weights), certificate=self._fresh_chain())
        kept = list(constants_of(self.graph))
        # A seed alone does not give constants again, so that the step is attested.
        return made.stepped(
            "given" if kept else "init", facts | ({"constants": kept} if kept else {})
        )

    def _fresh_chain(self) -> Certificate:
        return Certificate(params=dict(self.program.params))

    def with_weights(
        self, weights: Mapping[str, Array], kind: str, facts: Mapping[str, Any]
    ) -> Network:
        """The network with other weights, as one more attested step.

        Raises:
            ArchirError: A611 and A612, the weights do not fit.
        """
        check_weights(self.graph, weights)
        start = self.established()
        lineage = start.lineage
        if start.certificate.steps:
            digest = start.certificate.steps[-1].after.weights
            lineage = lineage.with_parent(self.text, self.weights, digest)
        return replace(start, weights=frozen(weights), lineage=lineage).stepped(kind, facts)

    def stepped(self, kind: str, facts: Mapping[str, Any]) -> Network:
        """The network with one more step in its chain, ending in what it is now."""
        state = state_of(self.text, self.graph, self.weights)
        return replace(self, certificate=self.certificate.then(kind, state, self.graph, facts))

    def established(self, facts: Mapping[str, Any] | None = None) -> Network:
        """A chain that ends in the present state; a new one, attested, where none does.

        ``facts`` are what the first step of a new one says beside why it is new.
        """
        state = state_of(self.text, self.graph, self.weights)
        steps = self.certificate.steps
        if steps and steps[-1].after == state:
            return self
        why: dict[str, Any] = {"weights": None}
        if self.weights is not None:
            note = "edited since its certificate was written" if steps else "no certificate"
            why = {"note": note}
        fresh = replace(self, certificate=self._fresh_chain())
        return fresh.stepped("given", {**why, **(facts or {})})

    def undo(
        self, *, steps: int = 1, approximate: bool = False, to_parent: bool = False
    ) -> Reverted:
        """Take back the last rewrites; see :func:`archir.past.undo`."""
        return take_back(self, engine(), steps=steps, approximate=approximate, to_parent=to_parent)

    def verify(self, progress: Callable[[str], None] = lambda _: None) -> list[Finding]:
        """Check the certificate: hashes, and a replay of every step that can be replayed."""
        return verify(
            self.certificate, self.program, self.weights, self.lineage, self.ops, progress
        )

    def save(
        self,
        path: str | Path,
        *,
        force: bool = False,
        beside: Mapping[Path, Callable[[Path], None]] | None = None,
        lineage: Path | None = None,
    ) -> Path:
        """Write text, weights, certificate and lineage; none replaces a file without ``force``.

        All are whole on the disk before the first is put in place, the text last. ``beside`` are
        other files that belong to it, and what writes each at a path that it is handed.
        ``lineage`` is where its parents are put, by default a folder of its own; a folder
        ``lineage`` beside a file serves all networks there.

        Raises:
            ArchirError: A602, A603.
        """
        return save(self, Path(path), force=force, beside=beside, lineage=lineage)

    def to_torch(self) -> torch.fx.GraphModule:
        """The network as a ``torch.fx.GraphModule`` whose state_dict keys are the paths.

        Raises:
            ArchirError: A503, torch is not installed.
        """
        backend: Any = backends()["torch"]
        module: torch.fx.GraphModule = backend.lower(self.graph, self.weights, self.ops)
        return module

    def export(self, path: str | Path, **options: Any) -> Any:
        """Write an ONNX file that ONNX Runtime agrees with; returns the backend's report.

        The options are those of :func:`archir.exporting.export`: ``opset``, ``force``, ``clean``,
        ``precision``, ``provider`` and others.

        Raises:
            ArchirError: A503, A5xx; A600, the network has no weights; A602, A603.
        """
        if self.weights is None:
            raise no_weights(self.path)
        return export(self, self.weights, path, **options)


def no_weights(path: Path | None) -> ArchirError:
    """The error of a command that wants weights."""
    name = path.with_suffix(".safetensors").name if path else "weights"
    return error(
        "A600",
        f"the network has no weights ({name} does not exist)",
        hint="`archir train`, `archir weights init`, or --init SEED",
    )


def frozen(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    """Weights that nothing can change by accident."""
    for array in weights.values():
        array.flags.writeable = False
    return dict(weights)


def library(ops: OpSet, rule_files: Sequence[str | Path] = ()) -> Library:
    """The installed rules, and those of the user's files."""
    found = installed(ops)
    more = [rule for file in rule_files for rule in read_rule_file(Path(file), ops)]
    return found.joined(more) if more else found


def load(
    path: str | Path,
    *,
    params: Mapping[str, AttrValue] | None = None,
    weights: str | Path | None = None,
    rules: Sequence[str | Path] = (),
    ignore_weights: bool = False,
    unchecked: bool = False,
    lineage: Path | None = None,
) -> Network:
    """Load a network: its text, and the weights and certificate beside it where they exist.

    Args:
        path: The ``.arch`` file.
        params: Parameters of the arch; where None, those its certificate names, else defaults.
        weights: A safetensors file other than the default beside the text.
        rules: Rule files beside the installed rules.
        ignore_weights: Load the text alone, and no certificate.
        unchecked: Take weights that do not fit (for verifying, which reports that).
        lineage: Where its parents are looked for beside the usual folders, see
            :func:`archir.proof.lineage.folders_of`.

    Raises:
        ArchirError: what is wrong with the text, the weights or the rules.
    """
    file = Path(path)
    source = read_source(file)
    ops = installed_ops()
    certificate = Certificate()
    if certificate_path(file).is_file() and not ignore_weights:
        certificate = read_certificate(certificate_path(file))
    chosen = dict(certificate.params) if params is None else dict(params)
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
    program = load_program(source, ops, chosen)
    tensors: Weights | None = None
    where = Path(weights) if weights is not None else weights_path(file)
    if weights is not None or (where.is_file() and not ignore_weights):
        tensors = load_weights(where)
        if not unchecked:
            check_weights(program.graph, tensors)
    return Network(
        program,
        None if tensors is None else frozen(tensors),
        replace(certificate, params=chosen),
        Lineage(folders=folders_of(file) if lineage is None else (*folders_of(file), lineage)),
        ops,
        library(ops, rules),
        file,
    )


def engine() -> Forward | None:
    """The fastest installed engine for running networks: torch's ``forward``, or None."""
    try:
        return backends()["torch"].forward
    except ArchirError:
        return None


def calibrated(network: Network, plan: Plan, data: Calibration | None) -> dict[Statistic, Array]:
    """Channel means and variances (biased) of the values that a plan asks for."""
    wanted = wanted_statistics(plan)
    if not wanted or data is None or network.weights is None:
        return {}
    values = list(dict.fromkeys(Value(s.node, s.port) for s in wanted))
    found = outputs(network.graph, network.weights, network.ops, engine(), data.feeds, values)
    measured = {}
    for statistic in wanted:
        array = found[values.index(Value(statistic.node, statistic.port))].astype(np.float64)
        over = tuple(i for i in range(array.ndim) if i != 1)
        vector = array.mean(axis=over) if statistic.kind == "mean" else array.var(axis=over)
        measured[statistic] = vector
    return measured


@dataclass
class _Progress:
    """A rewrite in the making: the graph so far, and the terms not yet applied to tensors."""

    graph: Graph
    weights: Mapping[str, Array] | None
    terms: Mapping[str, Term] = field(default_factory=dict)
    measured: dict[Statistic, Array] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)

    def planner(self, rule: Rule, network: Network) -> Planner:
        """A planner for the graph so far; with the weights where a rule looks at them."""
        weights = self.settle() if looks_at_weights(rule) else None
        return Planner(self.graph, network.ops, weights)

    def settle(self) -> Mapping[str, Array] | None:
        """Apply the pending terms."""
        if self.weights is not None and self.terms:
            self.weights = apply_terms(self.terms, self.graph, self.weights, self.measured)
        self.terms, self.measured = {}, {}
        return self.weights


def rewrite(
    network: Network,
    applications: Sequence[Application],
    *,
    seed: int = 0,
    calibration: Calibration | None = None,
    limits: Mapping[str, int] | None = None,
    unproved: bool = False,
    approximate: bool = False,
    report: Callable[[str], None] = lambda _: None,
    record: Callable[[Rewritten], Mapping[str, Any]] = lambda _: {},
) -> Rewritten:
    """Apply rules, all or none: plan, check exactly, move the weights, measure the drift.

    Args:
        network: The parent.
        applications: The rules in order; a site may be a glob, ``all`` or ``random``.
        seed: For random maps and random sites.
        calibration: Data for statistics that rules ask for.
        limits: Largest ``params`` and ``macs`` of the result.
        unproved: Whether rules without a verdict may run.
        approximate: Whether rules may run where the weights are not as they assume.
        report: Called with a line about each step of the work.
        record: Called with what was done; what it gives is written in the certificate's step.

    Raises:
        ArchirError: A30x (does not apply), A31x (limits, verdict), A40x (a check failed).
    """
    work = _Progress(network.graph, network.weights)
    for number, application in enumerate(applications):
        rule = network.rule(application.rule)
        verdict: Verdict | None = None
        planner = network.planner if work.graph is network.graph else work.planner(rule, network)
        last = number == len(applications) - 1
        sites = planner.choose(rule, application.at, seed)
        for site in sites:
            if work.graph is not planner.graph:
                planner = work.planner(rule, network)
            report(f"{rule.name}@{site}")
            plan = planner.plan(rule, site, application.arguments, seed + number)
            if last and site == sites[-1]:
                _within(cost(plan.after, network.ops), limits or {})
            verdict = verdict or _permitted(rule, network.ops, unproved=unproved)
            weights = work.settle() if plan.unread or plan.repeated or plan.assumed else None
            apart = assured(plan, weights, approximate=approximate)
            _use(network, work, plan, _in_short(verdict, plan), calibration, apart)
    done = _finished(network, work)
    facts = {
        "uses": [use.facts() for use in done.uses],
        "drift": None if done.drift is None else asdict(done.drift),
        **record(done),
    }
    return replace(done, network=done.network.stepped("rewrite", facts))


def _within(found: Cost, limits: Mapping[str, int]) -> None:
    """Refuse a result that is too large, before anything of its size is computed."""
    for name, most in limits.items():
        size = getattr(found, name)
        if size > most:
            raise error("A312", f"the result would have {size:,} {name}, the limit is {most:,}")


def _permitted(rule: Rule, ops: OpSet, *, unproved: bool) -> Verdict:
    """The verdict on a rule, if the rule may run with it."""
    verdict = verdict_for(rule, ops)
    if verdict.kind == "refuted":
        wrong = next(m for m in verdict.modes if m.kind == "refuted")
        shown = f":\n{wrong.counterexample.text()}" if wrong.counterexample else f": {wrong.reason}"
        raise error(
            "A310",
            f"`{rule.name}` is refuted in {wrong.mode}, it does not do what it promises{shown}",
            span=rule.span,
        )
    if verdict.kind == "unknown" and not unproved:
        raise error(
            "A311",
            f"`{rule.name}` has no verdict",
            span=rule.span,
            hint="--unproved runs it all the same, and the certificate says so",
        )
    return verdict


def _in_short(verdict: Verdict, plan: Plan) -> Mapping[str, Any]:
    """What a verdict says of the operators that a plan meets."""
    met = {plan.before.node(name).op for name in plan.matched}
    modes = {m.mode: verdict.kind_at(met, m.kind) for m in verdict.modes}
    return {"kind": verdict.kind_at(met), "modes": modes, "axioms": verdict.axioms}


def _use(
    network: Network,
    work: _Progress,
    plan: Plan,
    verdict: Mapping[str, Any],
    calibration: Calibration | None,
    apart: tuple[Distance, ...],
) -> None:
    check(plan.after, f"rule `{plan.rule.name}`")
    checks, skipped = check_plan(plan, network.ops)
    measured: dict[Statistic, Array] = {}
    facts = None
    if wanted_statistics(plan) and calibration is not None and work.weights is not None:
        held = replace(
            network, program=replace(network.program, graph=work.graph), weights=work.settle()
        )
        measured = calibrated(held, plan, calibration)
        count = len(next(iter(calibration.feeds.values())))
        facts = {"data": calibration.name, "sha256": calibration.sha256, "count": count}
    weights = work.settle() if plan.unread or plan.repeated else None
    read = share_read(plan, weights) if weights is not None else 0.0
    use = Use(plan, tuple(checks), skipped, measured, facts, verdict, read, apart)
    work.uses.append(use)
    work.terms = compose_terms(work.terms, plan.terms, plan.after)
    work.measured.update(measured)
    work.graph = plan.after


def _finished(network: Network, work: _Progress) -> Rewritten:
    """What was done, with the new network, whose certificate has no step on it yet."""
    before, after = network.cost(), cost(work.graph, network.ops)
    weights = work.settle()
    program = revise(network.program, work.graph, network.ops)
    drift = None
    if weights is not None and network.weights is not None:
        weights = frozen({path: weights[path] for path in program.graph.parameters})
        sides = (network.graph, network.weights), (program.graph, weights)
        drift = measure(*sides, network.ops, engine())
        kept = [u for u in work.uses if u.plan.rule.contract.function]
        # What a rule assumes does not hold, or a rule keeps the shape alone: drift is reported.
        moved = any(u.moved for u in kept) or len(kept) < len(work.uses)
        if kept and not (drift.finite if moved else drift.fine):
            raise error(
                "A403",
                f"with these weights the outputs differ by {drift.value:.3g} of their largest, "
                "though the rewrite is exact: they are too badly scaled for float32"
                if drift.finite
                else "with these weights the outputs are not finite",
            )
    start = network.established()
    digest = start.certificate.steps[-1].after.weights
    made = replace(
        start,
        program=program,
        weights=weights,
        lineage=start.lineage.with_parent(network.text, network.weights, digest),
        path=None,
    )
    return Rewritten(made, tuple(work.uses), drift, before, after)


__all__ = [
    "Application",
    "Calibration",
    "Network",
    "Rewritten",
    "certificate_path",
    "check_output",
    "library",
    "load",
    "rewrite",
    "weights_path",
]
