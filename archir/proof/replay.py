"""Checking a certificate: the chain, the files at its end, and every step that can be replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from archir.diag import ArchirError, Source
from archir.ir.hash import numbering
from archir.ir.types import AttrValue
from archir.lang import load, revise
from archir.lang.program import Program
from archir.ops.arithmetic import Array
from archir.ops.record import OpSet
from archir.proof.certificate import (
    ATTESTED,
    Certificate,
    State,
    Step,
    broken_link,
    state_of,
)
from archir.proof.history import Moment
from archir.proof.lineage import Lineage, needed
from archir.proof.prove import shipped_verdict
from archir.proof.undo import again, history
from archir.proof.uses import check_facts, check_plan, decode, share_read
from archir.rewrite.assumed import distances
from archir.rewrite.plan import apply_terms
from archir.rewrite.rulefile import parse_rules
from archir.rewrite.sites import Planner
from archir.weights.init import init_weights
from archir.weights.store import check_weights
from archir.weights.terms import Statistic

MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What comes of facts that no archir wrote."""

SHOWN = 1
"""How many uses of a step its name lists."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: what, whether it holds, and how it was found out."""

    subject: str
    how: str
    holds: bool
    detail: str = ""


def _wrong(subject: str, detail: str, how: str = "replay") -> Finding:
    return Finding(subject, how, holds=False, detail=detail)


@dataclass
class _Moment:
    """A state while it is replayed."""

    program: Program
    weights: Mapping[str, Array] | None


def verify(
    certificate: Certificate,
    program: Program,
    weights: Mapping[str, Array] | None,
    lineage: Lineage,
    ops: OpSet,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Check everything that a certificate says of a network.

    Each finding says how it was established: by hash, by replay, or attested (hashes of what
    training made; nothing can replay that here).
    """
    findings = [_chain(certificate)]
    if not findings[0].holds and not certificate.steps:
        return findings
    findings += _files(certificate, program, weights)
    findings += _texts(certificate, lineage)
    moment: _Moment | None = None
    for number, step in enumerate(certificate.steps, 1):
        progress(f"step {number}: {step.kind}")
        last = number == len(certificate.steps)
        end = _Moment(program, weights) if last else None
        try:
            found, moment = _step(number, step, moment, end, lineage, certificate, ops)
        except ArchirError as failure:
            found, moment = [_wrong(_name(number, step), _text(failure))], None
        except MALFORMED as reason:
            detail = f"the step is malformed: {type(reason).__name__} {reason}"
            found, moment = [_wrong(_name(number, step), detail)], None
        findings += found
    return findings


def _text(failure: ArchirError) -> str:
    return "; ".join(d.message for d in failure.diagnostics)


def _name(number: int, step: Step) -> str:
    uses = step.facts.get("uses")
    what = ""
    if isinstance(uses, list):
        names = [f"{u.get('rule')}@{u.get('site')}" for u in uses if isinstance(u, dict)]
        what = " " + ", ".join(names[:SHOWN])
        if len(names) > SHOWN:
            what += f" and {len(names) - SHOWN} more"
    return f"step {number}: {step.kind}{what}"


def _chain(certificate: Certificate) -> Finding:
    wrong = broken_link(certificate)
    return Finding(
        "chain of digests",
        "hash",
        holds=wrong is None,
        detail=wrong or f"{len(certificate.steps)} steps",
    )


def _files(
    certificate: Certificate, program: Program, weights: Mapping[str, Array] | None
) -> list[Finding]:
    end = certificate.steps[-1].after
    found: list[Finding] = []
    paths = numbering(program.graph).parameters
    if paths == certificate.parameters:
        found.append(
            Finding(
                "parameter names", "hash", holds=True, detail=f"{len(paths)} in canonical order"
            )
        )
    else:
        pairs = zip(paths, certificate.parameters, strict=False)
        detail = next(
            (f"`{a}` stands where `{b}` was" for a, b in pairs if a != b), "their number differs"
        )
        found.append(_wrong("parameter names", detail, "hash"))
    if weights is not None:
        try:
            check_weights(program.graph, weights)
        except ArchirError as failure:
            found.append(_wrong("weights", _text(failure), "hash"))
            weights = None
    now = state_of(program.source.text, program.graph, weights)
    for subject, a, b in (
        ("text", now.text, end.text),
        ("graph", now.graph, end.graph),
        ("weights", now.weights, end.weights),
    ):
        if subject == "weights" and any(f.subject == "weights" for f in found):
            continue
        detail = "" if a == b else f"{_short(a)} found, {_short(b)} certified"
        found.append(Finding(subject, "hash", holds=a == b, detail=detail))
    return found


def _texts(certificate: Certificate, lineage: Lineage) -> list[Finding]:
    """The texts of all earlier states; replaying reads some of them only."""
    texts, _ = needed(certificate)
    wrong = ""
    for digest in texts:
        try:
            lineage.text(digest)
        except ArchirError as failure:
            wrong = wrong or _text(failure)
    if not texts:
        return []
    detail = wrong or f"{len(texts)} earlier text{'' if len(texts) == 1 else 's'}"
    return [Finding("lineage", "hash", holds=not wrong, detail=detail)]


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def _step(
    number: int,
    step: Step,
    before: _Moment | None,
    end: _Moment | None,
    lineage: Lineage,
    certificate: Certificate,
    ops: OpSet,
) -> tuple[list[Finding], _Moment | None]:
    name = _name(number, step)
    params = certificate.params
    if step.kind in ATTESTED:
        moment = end or _parent(step.after, lineage, params, ops)
        same = (
            state_of(moment.program.source.text, moment.program.graph, moment.weights) == step.after
        )
        detail = "" if same else "what is kept of it has other hashes"
        return [Finding(name, "attested", holds=same, detail=detail)], moment
    if step.kind == "init":
        text = end.program.source.text if end else lineage.text(step.after.text)
        made = load(Source("parent.arch", text), ops, params)
        seed, spread = step.facts["seed"], step.facts["random_statistics"]
        if type(seed) is not int or type(spread) is not bool:
            raise TypeError("a seed is an integer, random_statistics true or false")
        weights = init_weights(made.graph, ops, seed, random_statistics=spread)
        moment = _Moment(made, weights)
        return [_compared(name, moment, step.after)], moment
    if before is None:
        return [_wrong(name, "its parent could not be established")], None
    if step.kind == "undo":
        return _undo(name, number, before, lineage, certificate, ops)
    return _rewrite(name, step, before, ops)


def _undo(
    name: str,
    number: int,
    before: _Moment,
    lineage: Lineage,
    certificate: Certificate,
    ops: OpSet,
) -> tuple[list[Finding], _Moment | None]:
    step = certificate.steps[number - 1]
    past = history(certificate, lineage, ops)
    made, parts = again(past, number, Moment(before.program, before.weights))
    if parts != step.facts["parts"]:
        return [_wrong(name, "how far it is from exact does not come out as certified")], None
    if not step.facts["approximate"] and not all(
        p["exact"] or p["how"] != "inverse" for p in parts
    ):
        return [_wrong(name, "it is not exact, and does not say so")], None
    moment = _Moment(made.program, made.weights)
    return [_compared(name, moment, step.after)], moment


def _parent(state: State, lineage: Lineage, params: Mapping[str, AttrValue], ops: OpSet) -> _Moment:
    program = load(Source("parent.arch", lineage.text(state.text)), ops, params)
    weights = None if state.weights is None else lineage.tensors(state.weights, program.graph)
    return _Moment(program, weights)


def _compared(name: str, moment: _Moment, wanted: State) -> Finding:
    found = state_of(moment.program.source.text, moment.program.graph, moment.weights)
    for subject in ("graph", "text", "weights"):
        a, b = getattr(found, subject), getattr(wanted, subject)
        if a != b:
            detail = f"{subject}: {_short(a)} comes out, {_short(b)} is certified"
            return _wrong(name, detail)
    return Finding(name, "replay", holds=True, detail="bit for bit")


def _rewrite(
    name: str, step: Step, before: _Moment, ops: OpSet
) -> tuple[list[Finding], _Moment | None]:
    program, weights = before.program, before.weights
    graph = program.graph
    for use in step.facts["uses"]:
        (rule,) = parse_rules(Source(f"{use['rule']}.rule", use["rule_text"]), ops, "certificate")
        if rule.hash != use["rule_hash"] or rule.name != use["rule"]:
            return [_wrong(name, "the rule's text does not have its hash")], None
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in use["arguments"].items()}
        seed, entries = use["seed"], tuple(use.get("map", ()))
        plan = Planner(graph, ops, weights).plan(rule, use["site"], arguments, seed, entries)
        if plan.found != entries:
            return [_wrong(name, "the map that was found in the weights is not there")], None
        known = shipped_verdict(rule)
        if known is not None:
            kind = known.kind_at({plan.before.node(matched).op for matched in plan.matched})
            if use["verdict"]["kind"] != kind:
                return [_wrong(name, f"the verdict on `{rule.name}` is {kind}")], None
        checks, skipped = check_plan(plan, ops)
        if {c.mode: check_facts(c) for c in checks} != use["exact"] or skipped != use[
            "not_claimed"
        ]:
            return [_wrong(name, "the exact check does not come out as certified")], None
        for assumed, what in ((plan.unread, "zero"), (plan.repeated, "equal")):
            if not assumed or weights is None:
                continue
            if use[f"assumed_{what}"] != share_read(plan, weights):
                text = f"the weights assumed to be {what} are not as certified"
                return [_wrong(name, text)], None
        apart = [] if weights is None else [asdict(d) for d in distances(plan.assumed, weights)]
        if apart != use.get("assumed", []):
            return [_wrong(name, "the weights are not as far from what is assumed")], None
        measured = {_statistic(raw): decode(raw["values"]) for raw in use["measured"]}
        if weights is not None:
            weights = apply_terms(plan.terms, plan.after, weights, measured)
        graph = plan.after
    moment = _Moment(revise(program, graph, ops), weights)
    return [_compared(name, moment, step.after)], moment


def _statistic(raw: Mapping[str, Any]) -> Statistic:
    return Statistic(raw["kind"], raw["node"], raw["port"], raw["channels"])
