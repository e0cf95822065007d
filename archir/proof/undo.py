"""Taking rewrites back: by the lineage where nothing happened since, else by the inverse map.

A rule that keeps the function says that a network and its image under the rule's map compute the
same, whatever the weights. So it can be read backwards: where the present weights *are* the image
of some parent's, that parent computes the same. The parent is found by least squares
(:mod:`archir.weights.inverse`); how far its image is from the present weights is measured, and
where that is more than rounding, taking the rewrite back changes the function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from archir.diag import ArchirError, error
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.ops.arithmetic import Array, Floating
from archir.ops.record import OpSet
from archir.proof.certificate import Certificate, Step
from archir.proof.history import History, Moment, Redone, redone
from archir.proof.lineage import Lineage
from archir.proof.uses import check_plan, share_read
from archir.rewrite.assumed import distances
from archir.rewrite.plan import Plan
from archir.weights.functions import evaluate
from archir.weights.inverse import solve
from archir.weights.linear import NoInverse
from archir.weights.store import numpy_dtype
from archir.weights.tape import Key, Tensors
from archir.weights.terms import Free, Ref, Term, leaves

How = Literal["lineage", "parent", "inverse"]
ROUNDING = {"f32": 2.0**-22, "f64": 2.0**-51, "f16": 2.0**-9, "bf16": 2.0**-6}
"""How far two roundings move a tensor at most, relative to its length."""
LISTED = 20
"""Of how many parameters a certificate names the residual, the largest first."""


@dataclass(frozen=True)
class Part:
    """One rewrite that was taken back."""

    number: int
    step: Step
    how: How
    residual: float = 0.0
    """|C - T(P)| / |C| over the tensors that the rewrite made: C as they are, P the parent
    before it is rounded."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    """The same by parameter, where it is more than rounding."""
    assumed: float = 0.0
    """How far the parent's weights are from what the rule assumes of them."""

    @property
    def exact(self) -> bool:
        """Whether the function is the same, by the rule and up to rounding."""
        kept = not self.parameters and not self.assumed and not self.unproved
        return self.how == "lineage" or kept

    @property
    def unproved(self) -> list[str]:
        """The rules of the rewrite that were neither proved nor tested to keep the function."""
        return [
            use["rule"]
            for use in self.step.facts["uses"]
            if not use["exact"] or (use["verdict"] or {}).get("kind") not in ("proved", "tested")
        ]

    def facts(self) -> dict[str, Any]:
        """The part as JSON values."""
        worst = sorted(self.parameters.items(), key=lambda item: (-item[1], item[0]))
        return {
            "step": self.number,
            "how": self.how,
            "residual": self.residual,
            "parameters": dict(worst[:LISTED]),
            "assumed": self.assumed,
            "exact": self.exact,
        }


@dataclass(frozen=True)
class Undone:
    """A network with its last rewrites taken back."""

    moment: Moment
    parts: tuple[Part, ...]
    since: tuple[tuple[int, Step], ...]
    """The steps after the first of these rewrites that are no rewrites."""

    @property
    def exact(self) -> bool:
        """Whether the function is the same."""
        return all(part.exact for part in self.parts)

    def facts(self, *, approximate: bool) -> dict[str, Any]:
        """What the step of a certificate records."""
        return {"parts": [part.facts() for part in self.parts], "approximate": approximate}


def open_rewrites(certificate: Certificate) -> list[int]:
    """The numbers (from 1) of the rewrites that were not taken back, in order."""
    found: list[int] = []
    for number, step in enumerate(certificate.steps, 1):
        if step.kind == "rewrite":
            found.append(number)
        elif step.kind == "undo":
            gone = {part["step"] for part in step.facts["parts"]}
            found = [n for n in found if n not in gone]
    return found


def history(certificate: Certificate, lineage: Lineage, ops: OpSet) -> History:
    """The past of a network, undone rewrites included."""
    return History(certificate, lineage, ops, lambda past, n, moment: again(past, n, moment)[0])


def undo(
    certificate: Certificate,
    present: Moment,
    lineage: Lineage,
    ops: OpSet,
    *,
    steps: int = 1,
    to_parent: bool = False,
) -> Undone:
    """Take back the last rewrites of a network, the latest first.

    Args:
        certificate: Its chain, which ends in what it is now.
        present: The network.
        lineage: Its parents.
        ops: The operators.
        steps: How many rewrites.
        to_parent: Go back to the weights there were, whatever was trained since.

    Raises:
        ArchirError: A421, there are not so many; A422, a rule has no inverse; A404, the lineage
            folder lacks something.
    """
    numbers = open_rewrites(certificate)
    if len(numbers) < steps:
        has = f"has only {len(numbers)} rewrites" if numbers else "has no rewrite"
        raise error("A421", f"the certificate {has} that could be taken back")
    past = history(certificate, lineage, ops)
    moment, parts = present, []
    for number in reversed(numbers[-steps:]):
        moment, part = _back(past, number, moment, "parent" if to_parent else None)
        parts.append(part)
    first = numbers[-steps]
    later = enumerate(certificate.steps[first:], first + 1)
    since = tuple((n, step) for n, step in later if step.kind not in ("rewrite", "undo"))
    return Undone(moment, tuple(parts), since)


def again(past: History, number: int, before: Moment) -> tuple[Moment, list[dict[str, Any]]]:
    """Do a step of kind `undo` again; also what its certificate should say of its parts."""
    step = past.certificate.steps[number - 1]
    earlier = Certificate(past.certificate.steps[: number - 1])
    parts = step.facts["parts"]
    wanted = open_rewrites(earlier)[-len(parts) :]
    if not parts or [part["step"] for part in parts] != wanted[::-1]:
        raise ValueError("it takes back what was not the last rewrite")
    moment, found = before, []
    for part in parts:
        how: How | None = "parent" if part["how"] == "parent" else None
        moment, made = _back(past, part["step"], moment, how)
        found.append(made.facts())
    return moment, found


def _back(past: History, number: int, moment: Moment, how: How | None) -> tuple[Moment, Part]:
    step = past.certificate.steps[number - 1]
    if moment.state == step.after:
        return past.at(number - 1), Part(number, step, "lineage")
    if how == "parent":
        return past.at(number - 1), Part(number, step, "parent")
    for use in step.facts["uses"]:
        if not use["exact"]:
            raise error(
                "A422",
                f"`{use['rule']}@{use['site']}` keeps the shape, not the function: it has no "
                "inverse for weights that have changed since",
                hint="--to-parent goes back to the weights before it, without what came since",
            )
    parent = past.at(number - 1)
    if parent.weights is None or moment.weights is None:
        raise error("A421", f"there were no weights before step {number}", hint="--to-parent")
    uses = list(redone(step, parent.program.graph, parent.weights, past.ops))
    if not uses or graph_hash(uses[-1].plan.after) != graph_hash(moment.program.graph):
        raise error("A404", f"step {number} does not lead to this network any more")
    weights, part = _inverted(number, step, uses, moment.weights)
    return Moment(parent.program, weights), part


def _inverted(
    number: int, step: Step, uses: list[Redone], present: Mapping[str, Array]
) -> tuple[Mapping[str, Array], Part]:
    """The parent's weights, by the inverses of a rewrite's maps, and how far off its image is."""
    weights = present  # in double precision where a map is read backwards, until all are
    opened: list[Mapping[Free, Array]] = []
    for use in reversed(uses):
        weights, free = _parent(use, weights)
        opened.insert(0, free)
    image, assumed = weights, 0.0
    for use, free in zip(uses, opened, strict=True):
        assumed = max(assumed, _off_assumptions(use.plan, _rounded(use.plan.before, image)))
        image = _image(use, image, free)
    made = [p for p in image if any(p in use.plan.terms for use in uses)]
    far, off, size = {}, 0.0, 0.0
    for path in made:
        parameter = uses[-1].plan.after.parameters[path]
        if parameter.type.dtype not in ROUNDING:
            continue
        now, then = (np.asarray(side[path], np.float64) for side in (present, image))
        gap, length = (float(np.square(t).sum()) for t in (now - then, now))
        off, size = off + gap, size + length
        scale = length or float(np.square(then).sum())
        relative = math.sqrt(gap / scale) if gap else 0.0
        if not relative <= ROUNDING[parameter.type.dtype]:
            far[path] = _short(relative)
    residual = _short(math.sqrt(off / size)) if off and size else float(off > 0)
    parent = _rounded(uses[0].plan.before, weights)
    return parent, Part(number, step, "inverse", residual, far, _short(assumed))


def _off_assumptions(plan: Plan, weights: Mapping[str, Array]) -> float:
    """How far weights are from what a rule assumes of them."""
    apart = [d.value for d in distances(plan.assumed, weights) if not d.holds]
    return max(share_read(plan, weights), *apart, 0.0)


def _rounded(graph: Graph, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The weights of a network in the element types that it has them in."""
    out = {}
    for path, parameter in graph.parameters.items():
        with np.errstate(all="ignore"):
            made = weights[path].astype(numpy_dtype(parameter.type.dtype), copy=False)
        out[path] = np.asarray(made, order="C")
    return out


def _image(
    use: Redone, weights: Mapping[str, Array], free: Mapping[Free, Array]
) -> Mapping[str, Array]:
    """What the map of a use makes of a parent, in double precision."""
    terms, after = use.plan.terms, use.plan.after.parameters
    read = {leaf.path for t in terms.values() for leaf in leaves(t) if isinstance(leaf, Ref)}
    held = {path: np.asarray(weights[path], np.float64) for path in read}
    with np.errstate(all="ignore"):
        return {
            path: evaluate(terms[path], Floating(np.float64), held, free)
            if path in terms
            else weights[path]
            for path in after
        }


def _short(value: float) -> float:
    """Six digits: the last ones depend on the machine."""
    return float(f"{value:.6g}")


def _parent(
    use: Redone, child: Mapping[str, Array]
) -> tuple[Mapping[str, Array], Mapping[Free, Array]]:
    """The parent's weights before one use of a rule, and what its map left open."""
    plan, base = use.plan, use.weights
    assert base is not None
    after = plan.after.parameters
    terms = {p: t for p, t in plan.terms.items() if after[p].type.dtype in ROUNDING}
    read = {leaf.path for t in terms.values() for leaf in leaves(t) if isinstance(leaf, Ref)}
    terms |= {p: Ref(p) for p in read if p in after and p not in plan.terms}
    start: dict[Key, Array] = {path: base[path] for path in read}
    start |= {leaf: _opened(leaf, use) for t in terms.values() for leaf in leaves(t)
              if not isinstance(leaf, Ref)}  # fmt: skip
    try:
        found: Tensors = solve(terms, child, start)
    except NoInverse as function:
        raise error(
            "A422",
            f"`{plan.rule.name}` at {plan.site} has no inverse: its weights are made by "
            f"`{function}`",
            hint="--to-parent goes back to the weights before it, without what came since",
        ) from None
    weights: dict[str, Array] = {}
    for path in plan.before.parameters:
        kept = None if path in terms else child.get(path)
        if path in found:
            weights[path] = found[path]
        elif kept is not None and kept.shape == base[path].shape:
            weights[path] = kept
        else:
            weights[path] = base[path]
    free = dict[Free, Array](use.measured.items())
    free |= {key: value for key, value in found.items() if not isinstance(key, str)}
    return weights, free


def _opened(leaf: Term, use: Redone) -> Array:
    """Where the search for what a map leaves open begins: what it was."""
    measured: Any = dict(use.measured)
    return evaluate(leaf, Floating(np.float64), {}, measured)


def recheck(undone: Undone, past: History) -> list[str]:
    """Check exactly, at real size, that the rewrites which were inverted are equalities.

    Returns the modes in which all of them are.

    Raises:
        ArchirError: A401, one is not.
    """
    modes: list[str] = ["eval", "train"]
    for part in undone.parts:
        if part.how == "parent":
            return []
        before = past.at(part.number - 1)
        for use in redone(part.step, before.program.graph, before.weights, past.ops):
            checks, _ = check_plan(use.plan, past.ops)
            modes = [mode for mode in modes if mode in {c.mode for c in checks}]
    return modes


def percent(share: float) -> str:
    """A share as people read it, however small."""
    return f"{share:.2%}" if share >= 5e-4 else f"{100 * share:.1e} %"


def refusal(undone: Undone) -> ArchirError:
    """That the present weights are not the image of any parent's."""
    worst = {p: far for part in undone.parts for p, far in part.parameters.items()}
    shown = sorted(worst.items(), key=lambda item: -item[1])[:3]
    listed = ", ".join(f"{path} {percent(far)}" for path, far in shown)
    assumed = max(part.assumed for part in undone.parts)
    if worst:
        overall = max(part.residual for part in undone.parts)
        why = (
            f"the weights are {percent(overall)} away from what the rewrite can make "
            f"({len(worst)} parameters; the farthest: {listed})"
        )
    elif not assumed:
        rules = [rule for part in undone.parts for rule in part.unproved]
        why = f"`{rules[0]}` has no verdict"
    else:
        why = f"what the rule assumes of the parent's weights is off by {percent(assumed)}"
    unsure = "" if worst or assumed else ", for all that is known"
    return error(
        "A420",
        f"taking the rewrite back would change the function{unsure}: {why}",
        hint="--approximate takes the nearest parent; --to-parent goes back to the weights before",
    )
