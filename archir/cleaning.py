"""Clean-ups before a network is deployed: proved rules, each use checked, on a copy.

They keep the function in evaluation and make the network smaller: batch normalisations become
part of the layers beside them, and what does nothing goes. What no rule takes out stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from archir.diag import ArchirError
from archir.ir.check import check
from archir.ir.graph import Graph, GraphBuilder, Node, reachable
from archir.ops.arithmetic import Array
from archir.ops.cost import elements
from archir.ops.record import OpSet
from archir.proof.prove import verdict_for
from archir.proof.uses import assured, check_plan
from archir.rewrite.library import Library
from archir.rewrite.plan import Plan, apply_terms, region_of
from archir.rewrite.rule import Rule
from archir.rewrite.sites import Planner, looks_at_weights

RULES = (
    "remove.dropout",
    "remove.stochastic_depth",
    "fold.batch_norm",
    "fold.batch_norm.biased",
    "fold.batch_norm.linear",
    "fold.batch_norm.ahead",
    "drop.null",
    "remove.zero",
    "remove.one",
    "remove.gate",
    "remove.scale",
    "remove.prelu",
    "remove.avg_pool",
    "remove.reshape",
    "remove.reshape_pair",
    "remove.flatten",
    "remove.transpose_pair",
    "remove.concat_of_halves",
    "drop.branch",
    "drop.branch.batch_norm",
    "drop.branch.linear",
    "remove.batch_norm",
    "remove.identity_conv.relu",
    "remove.identity_conv",
    "remove.identity_linear",
)
"""The rules, in the order in which they are tried, until none of them applies.

None changes the width of a layer that stays, so that a file has the shapes that its network has.
"""

LARGEST_CHECK = 2 << 30
"""Bytes of numbers that an exact check may hold; a use whose check needs more is left out."""


@dataclass(frozen=True)
class Left:
    """A site that a rule fits and that stays as it is."""

    rule: str
    at: str
    reason: str


@dataclass(frozen=True)
class Cleaned:
    """A network after its clean-ups; the network that was given is as it was."""

    graph: Graph
    weights: Mapping[str, Array]
    uses: Mapping[str, tuple[str, ...]]
    """The sites where each rule was used, by its name."""
    dead: tuple[str, ...] = ()
    """Nodes that no output depends on."""
    left: tuple[Left, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What was done, as JSON values."""
        return {
            "rules": {name: list(sites) for name, sites in self.uses.items()},
            "dead": list(self.dead),
            "left": [asdict(left) for left in self.left],
            "batch_norms_left": sum(node.op == "batch_norm" for node in self.graph),
        }


def cleaned(
    graph: Graph,
    weights: Mapping[str, Array],
    ops: OpSet,
    library: Library,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> Cleaned:
    """Apply the clean-ups wherever they keep the function in evaluation.

    Each use is planned and checked exactly as any rewrite is. A rule that is not proved, a use
    that fails its check, and one after which a weight is no longer finite are left out, with the
    reason.

    Args:
        graph: The network.
        weights: An array for each parameter.
        ops: The operators.
        library: Where the rules are; those it does not have are not used.
        report: Called with a line about each step.
    """
    work = _Work(graph, weights, ops, report)
    dead = work.drop_dead()
    rules = [library[name] for name in RULES if name in library]
    waiting = list(rules)
    while waiting:
        if work.apply(waiting.pop(0)):
            dead += work.drop_dead()
            waiting += [other for other in rules if other not in waiting]
    uses = {rule.name: tuple(work.uses[rule.name]) for rule in rules if rule.name in work.uses}
    return Cleaned(work.graph, work.weights, uses, tuple(dead), tuple(work.left.values()))


def numbers(plan: Plan) -> int:
    """About how many numbers an exact check of a plan holds at once, on the larger side.

    The values of the layers that differ, and of a convolution what its kernel sees.
    """
    region = region_of(plan)
    sides = ((plan.before, region.before), (plan.after, region.after))
    return max(_held(graph, nodes) for graph, nodes in sides)


def _held(graph: Graph, nodes: Sequence[Node]) -> int:
    values = sum(elements(type_) for node in nodes for type_ in node.types)
    return values + max((_seen(graph, node) for node in nodes), default=0)


def _seen(graph: Graph, node: Node) -> int:
    if "kernel" not in node.attrs or "weight" not in node.params:
        return 0
    channels = graph.parameters[node.params["weight"]].type.shape[0]
    assert isinstance(channels, int)
    places = elements(node.types[0]) // channels
    per_place = elements(graph.parameters[node.params["weight"]].type) // channels
    return places * per_place * int(str(node.attrs.get("groups", 1)))


class _Work:
    """A network that is being cleaned."""

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Array],
        ops: OpSet,
        report: Callable[[str], None],
    ) -> None:
        self.graph, self.weights, self.ops, self.report = graph, weights, ops, report
        self.uses: dict[str, list[str]] = {}
        self.left: dict[tuple[str, str], Left] = {}

    def drop_dead(self) -> list[str]:
        """Take out what no output depends on; inputs stay, they are part of the interface."""
        needed = reachable(self.graph)
        dead = [n.name for n in self.graph if n.name not in needed and n.op != "input"]
        if dead:
            builder: GraphBuilder = self.graph.edit()
            for name in dead:
                del builder.nodes[name]
            self.graph = builder.build()
            self._keep_read(self.weights)
        return dead

    def apply(self, rule: Rule) -> bool:
        """Use a rule wherever it applies; whether it did anywhere."""
        sites = [site.at for site in self._planner(rule).sites(rule)]
        sites = [at for at in sites if (rule.name, at) not in self.left]
        if not sites:
            return False
        verdict = verdict_for(rule, self.ops)
        if verdict.kind != "proved":
            self._leave(rule, sites, f"the rule is not proved, it is {verdict.kind}")
            return False
        done = 0
        for at in sites:
            if at in self.graph:  # an earlier use may have taken it out
                done += self._use(rule, at)
        return done > 0

    def _use(self, rule: Rule, at: str) -> bool:
        self.report(f"{rule.name}@{at}")
        try:
            plan = self._planner(rule).plan(rule, at, {})
            need = 8 * numbers(plan)
            if need > LARGEST_CHECK:
                self._leave(rule, [at], f"its exact check would need {need / 2**30:.1f} GiB")
                return False
            assured(plan, self.weights, approximate=False)
            check(plan.after, f"rule `{rule.name}`")
            check_plan(plan, self.ops)
        except ArchirError as failure:
            first = failure.diagnostics[0]
            if first.code not in ("A302", "A314"):  # an earlier use may have changed the place
                self._leave(rule, [at], f"{first.code}: {first.message}")
            return False
        weights = apply_terms(plan.terms, plan.after, self.weights)
        wrong = self._overflowing(plan, weights)
        if wrong is not None:
            self._leave(rule, [at], f"`{wrong}` would not be finite")
            return False
        self.graph = plan.after
        self._keep_read(weights)
        self.uses.setdefault(rule.name, []).append(at)
        return True

    def _planner(self, rule: Rule) -> Planner:
        weights = self.weights if looks_at_weights(rule) else None
        return Planner(self.graph, self.ops, weights)

    def _overflowing(self, plan: Plan, weights: Mapping[str, Array]) -> str | None:
        """A parameter that a use makes and that is not finite."""
        made = ((path, weights[path]) for path in plan.terms if path in weights)
        return next((path for path, array in made if not np.isfinite(array).all()), None)

    def _keep_read(self, weights: Mapping[str, Array]) -> None:
        self.weights = {path: weights[path] for path in self.graph.parameters}

    def _leave(self, rule: Rule, sites: Iterable[str], reason: str) -> None:
        for at in sites:
            self.left[rule.name, at] = Left(rule.name, at, reason)
