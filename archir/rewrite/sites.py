"""Sites: where rules apply, how a user names them, and why they do not apply elsewhere."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

import numpy as np

from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node
from archir.ir.memory import uncollected
from archir.ir.types import AttrValue
from archir.lang import tree as t
from archir.ops.arithmetic import Array
from archir.ops.classes import AxisClasses
from archir.ops.record import OpSet
from archir.rewrite.assumed import Distance, nearest
from archir.rewrite.class_rules import (
    SUFFIX,
    class_at,
    plan_class,
    reads_weights,
    refusal,
    site_parts,
    sites_of,
)
from archir.rewrite.expressions import text_of
from archir.rewrite.found import Known, no_weights
from archir.rewrite.match import Failure, Match, Matcher
from archir.rewrite.pattern_rules import plan_pattern
from archir.rewrite.plan import Plan
from archir.rewrite.rule import ParameterKind, Reshaping, Rewriting, Rule
from archir.rewrite.sources import paths_of, resolved

_EXAMPLES: Mapping[ParameterKind, Sequence[AttrValue]] = {
    "int": (2, 1, 3, 4, 6, 8, 16, 32),
    "odd": (3, 1, 5),
    "even": (2, 4),
    "float": (1.0, 0.5),
    "bool": (True, False),
    "indices": ((0,),),
}
MOST_TRIED = 64
"""So many choices of values are tried for the parameters of a rule over a pattern."""
_HINTS = {"int": "24", "indices": "[0,2,3]"}


@dataclass(frozen=True)
class Site:
    """A place where a rule applies. ``size`` is that of the class, for rules over one."""

    rule: str
    at: str
    size: int | None = None

    def __str__(self) -> str:
        return f"{self.rule}@{self.at}"


class Planner:
    """Finds sites in one graph and plans rules there. The classes are built when first needed.

    The weights are for rules that find their maps there; others do without.
    """

    def __init__(
        self, graph: Graph, ops: OpSet, weights: Mapping[str, Array] | None = None
    ) -> None:
        self.graph, self.ops, self.weights = graph, ops, weights
        self._classes: AxisClasses | None = None
        self._held: Matcher | None = None

    @property
    def classes(self) -> AxisClasses:
        """The graph's axis classes."""
        if self._classes is None:
            with uncollected():
                self._classes = AxisClasses(self.graph, self.ops)
        return self._classes

    def sites(self, rule: Rule) -> list[Site]:
        """Every site of a rule, in program order."""
        if isinstance(rule.body, Reshaping):
            if self.weights is None and reads_weights(rule):
                return []
            return [
                Site(rule.name, at, held.size if isinstance(held.size, int) else None)
                for at, held in sites_of(rule, self.classes, self.weights)
            ]
        matcher = Matcher(rule, self.graph, self.ops, _defaults(rule))
        if not rule.body.assumes:
            roots = [match.root for match in matcher.all()]
            free = {p.name: p.kind for p in rule.parameters if p.default is None}
            free = {name: kind for name, kind in free.items() if kind != "path"}
            if any(isinstance(e, t.Name) and e.path in free for g in rule.where for e in t.walk(g)):
                roots = [at for at in roots if self.example(rule, self.graph.node(at))]
            return [Site(rule.name, at) for at in roots]
        apart = ((node, self._assumed(rule, matcher, node)) for node in matcher.candidates())
        return [
            Site(rule.name, node.name)
            for node, found in apart
            if found is not None and all(d.holds for d in found[1])
        ]

    def _assumed(
        self, rule: Rule, matcher: Matcher, node: Node
    ) -> tuple[Match, tuple[Distance, ...]] | None:
        """The match at a node whose assumptions are nearest to holding in the weights."""
        if self.weights is None:
            return None
        return nearest(rule, matcher, list(matcher.every(node)), self.weights)

    def plan(
        self,
        rule: Rule,
        at: str,
        arguments: Mapping[str, AttrValue],
        seed: int = 0,
        known: Known = (),
    ) -> Plan:
        """Plan a rule at one site.

        ``known`` are the entries of a map that was found in the weights when it was planned first.

        Raises:
            ArchirError: A30x, the rule does not apply there (the node to blame is named); A605,
                there is no such site.
        """
        site = self.resolve(rule, at)
        given = resolved(rule, self._sourced(rule, site, arguments), self.graph)
        bound = bind_arguments(rule, given, site)
        if isinstance(rule.body, Reshaping):
            held = class_at(self.classes, self.graph, site)
            classes, weights = self.classes, self.weights
            return plan_class(rule, classes, held, site, bound, seed, weights, known)
        matcher = Matcher(rule, self.graph, self.ops, bound)
        near = None
        if rule.body.assumes:
            near = self._assumed(rule, matcher, self.graph.node(site))
        found = near[0] if near else matcher.at(self.graph.node(site))
        if isinstance(found, Failure):
            where = "" if found.node == site else f"at {found.node}, "
            raise error(
                "A302",
                f"`{rule.name}` does not apply at {site}: {where}{found.reason}",
                node=found.node,
                hint=found.hint or self._way_out(matcher, site) or self._elsewhere(rule),
            )
        return plan_pattern(rule, matcher, found, bound, seed)

    def _sourced(
        self, rule: Rule, site: str, arguments: Mapping[str, AttrValue]
    ) -> Mapping[str, AttrValue]:
        """The arguments, once it is sure that all paths are among them.

        Raises:
            ArchirError: A608, one is missing; the hint says what fits.
        """
        for name in paths_of(rule):
            if name not in arguments:
                matcher = Matcher(rule, self.graph, self.ops, {**_defaults(rule), **arguments})
                found = [str(v) for v in matcher.fitting(site, name)]
                hint = f"--set {name}={found[0] if found else 'PATH'}"
                more = f"; fitting too: {', '.join(found[1:])}" if found[1:] else ""
                raise error("A608", f"`{rule.name}` needs `{name}`", hint=hint + more)
        return arguments

    def example_arguments(self, rule: Rule, at: str) -> dict[str, AttrValue]:
        """Values for parameters without a default, such that the rule applies if it can.

        For a class that is a size near its own: one more, twice as many, or one less.
        """
        kinds = {p.name: p.kind for p in rule.parameters if p.default is None}
        if isinstance(rule.body, Rewriting):
            node = self.graph.node(self.resolve(rule, at))
            first = {name: _EXAMPLES[kind][0] for name, kind in kinds.items() if kind != "path"}
            found = self.example(rule, node)
            return first if found is None else found[0]
        names = list(kinds)
        out = {name: _EXAMPLES[kinds[name]][0] for name in names}
        if not names:
            return out
        held = class_at(self.classes, self.graph, self.resolve(rule, at))
        if not isinstance(held.size, int):
            return out
        few = tuple(range(held.size - 1)) or (0,)
        tried: dict[str, AttrValue]
        for size in (held.size + 1, held.size + 2, 2 * held.size, held.size - 1):
            tried = {n: few if k == "indices" else size for n, k in kinds.items()}
            given = {**_defaults(rule), **tried}
            try:
                plan_class(rule, self.classes, held, at, given, 0, self.weights)
            except ArchirError:
                continue
            return tried
        tried = {n: few if k == "indices" else held.size + 1 for n, k in kinds.items()}
        return tried

    def example(self, rule: Rule, node: Node) -> tuple[dict[str, AttrValue], Match, Matcher] | None:
        """Values for a pattern's parameters without a default that its guards allow at a node.

        None where there are none; else the match with them, and what found it.
        """
        kinds = {p.name: p.kind for p in rule.parameters if p.default is None}
        names = [name for name, kind in kinds.items() if kind != "path"]
        for values in islice(product(*(_EXAMPLES[kinds[name]] for name in names)), MOST_TRIED):
            tried = dict(zip(names, values, strict=True))
            matcher = self._matcher(rule, {**_defaults(rule), **tried})
            found = matcher.at(node)
            if isinstance(found, Match):
                paths = {n: str(found.variables[n]) for n in paths_of(rule)}
                return {**tried, **paths}, found, matcher
        return None

    def _matcher(self, rule: Rule, arguments: dict[str, AttrValue]) -> Matcher:
        """A matcher; the last one is kept, with what it knows of the whole network."""
        held = self._held
        if held is None or held.rule is not rule or held.arguments != arguments:
            self._held = held = Matcher(rule, self.graph, self.ops, arguments)
        return held

    def _way_out(self, matcher: Matcher, site: str) -> str:
        """Other values of the rule's parameters with which it applies at a site."""
        rule = matcher.rule
        found = [f"{name}={v}" for name in matcher.sources for v in matcher.fitting(site, name)]
        if found or not rule.parameters:
            return f"fitting: {', '.join(found)}" if found else ""
        other = self.example(rule, self.graph.node(site))
        values = {} if other is None else {**_defaults(rule), **other[0]}
        changed = {k: v for k, v in values.items() if v != matcher.arguments.get(k)}
        settings = " ".join(f"--set {k}={_show(v)}" for k, v in changed.items())
        return f"it applies there with {settings}" if settings else ""

    def _elsewhere(self, rule: Rule) -> str:
        sites = self.sites(rule)
        if not sites:
            return "it applies nowhere in this network"
        shown = ", ".join(s.at for s in sites[:4])
        return f"it applies at {shown}" + (f" and {len(sites) - 4} more" if len(sites) > 4 else "")

    def resolve(self, rule: Rule, at: str) -> str:
        """The node (with a suffix, for a class) that a user's words name.

        A full path, a scope that holds one site, or an ending of a path that fits one node.

        Raises:
            ArchirError: A605 (no such place), A606 (several sites fit).
        """
        name = at.removeprefix(f"{rule.name}@")
        if name in self.graph:
            return name
        if isinstance(rule.body, Reshaping) and site_parts(self.graph, name) is not None:
            return name
        if any(n.name.startswith(f"{name}.") for n in self.graph):
            return self._within(rule, name)
        ends = [n.name for n in self.graph if n.name.endswith(f".{name}")]
        parts = SUFFIX.fullmatch(name) if isinstance(rule.body, Reshaping) else None
        if parts and not ends:
            ends = [f"{n.name}.{parts[2]}" for n in self.graph if n.name.endswith(f".{parts[1]}")]
        if len(ends) == 1:
            return ends[0]
        given = next((o.value.node for o in self.graph.outputs if o.name == name), None)
        close = difflib.get_close_matches(name, [n.name for n in self.graph], 3)
        hint = (
            f"`{name}` is an output; the node that gives it is {given}"
            if given is not None
            else f"did you mean {' or '.join(close)}?"
            if close
            else "`archir rules FILE` lists the sites"
        )
        if ends:
            raise error("A606", f"`{name}` fits several nodes: {', '.join(ends[:6])}")
        raise error("A605", f"the network has no node `{name}`", hint=hint)

    def _within(self, rule: Rule, scope: str) -> str:
        inside = [s.at for s in self.sites(rule) if s.at.startswith(f"{scope}.")]
        if len(inside) == 1:
            return inside[0]
        if inside:
            raise _several(rule, inside, f"within {scope}")
        raise error(
            "A302",
            f"`{rule.name}` applies nowhere within {scope}",
            node=scope,
            hint=self._elsewhere(rule),
        )

    def choose(self, rule: Rule, at: str | None, seed: int) -> list[str]:
        """The sites that ``--at`` means: one, ``all``, ``random``, a glob, or the only one.

        Raises:
            ArchirError: A302 (none), A605, A606 (several, without ``--at``).
        """
        if at is not None and at not in ("all", "random") and not any(c in at for c in "*?["):
            return [at]
        if reads_weights(rule) and self.weights is None:
            raise no_weights(self.graph.name)
        sites = [s.at for s in self.sites(rule)]
        if not sites:
            raise self._nowhere(rule)
        if at is None:
            if len(sites) > 1:
                raise _several(rule, sites, "in this network")
            return sites
        if at == "all":
            return sites
        if at == "random":
            rng = np.random.Generator(np.random.PCG64(seed))
            return [sites[int(rng.integers(len(sites)))]]
        chosen = [s for s in sites if fnmatch.fnmatchcase(s, at)]
        if not chosen:
            raise error("A605", f"no site of `{rule.name}` fits `{at}`", hint=self._elsewhere(rule))
        return chosen

    def _far(self, rule: Rule, matcher: Matcher) -> Failure | None:
        """Where a rule matches, and its assumption is nearest to holding."""
        assert isinstance(rule.body, Rewriting)
        if not rule.body.assumes:
            return None
        said = ", ".join(text_of(e) for e in rule.body.assumes)
        matched = next(matcher.all(), None)
        if self.weights is None and matched is not None:
            reason = f"it assumes {said}, and there are no weights to tell"
            return Failure(0, matched.root, reason, "`archir weights init`, or --at SITE")
        found = [self._assumed(rule, matcher, node) for node in matcher.candidates()]
        wrong = [(d, near[0]) for near in found if near for d in near[1] if not d.holds]
        if not wrong:
            return None
        far, match = min(wrong, key=lambda each: each[0].value)
        reason = f"it assumes {far.text}; {far.path} is {far.value:.3g} of its norm away from that"
        return Failure(0, match.root, reason, "--approximate, with --at SITE, applies it there")

    def _nowhere(self, rule: Rule) -> ArchirError:
        """The best failed match, or the first class's obstacle."""
        nothing = best = Failure(-1, self.graph.name, "nothing like it occurs")
        if isinstance(rule.body, Reshaping):
            for held in self.classes.classes.values():
                stop = refusal(rule, held)
                if stop is not None and held.members:
                    best = Failure(0, stop.node, stop.reason, stop.hint)
                    break
        else:
            matcher = Matcher(rule, self.graph, self.ops, _defaults(rule))
            for node in matcher.candidates():
                found = matcher.at(node)
                if isinstance(found, Failure) and found.matched > best.matched:
                    best = found
            best = self._far(rule, matcher) or best
        where = "" if best is nothing else f"; nearest: at {best.node},"
        return error(
            "A302",
            f"`{rule.name}` applies nowhere in this network{where or ':'} {best.reason}",
            node=best.node,
            hint=best.hint,
        )


def looks_at_weights(rule: Rule) -> bool:
    """Whether where a rule applies, or how, depends on the weights."""
    if isinstance(rule.body, Rewriting):
        return bool(rule.body.assumes)
    return reads_weights(rule)


def _several(rule: Rule, sites: Sequence[str], where: str) -> ArchirError:
    shown = "\n".join(f"  {rule.name}@{s}" for s in sites[:20])
    more = f"\n  ... and {len(sites) - 20} more" if len(sites) > 20 else ""
    return error(
        "A606",
        f"`{rule.name}` applies at {len(sites)} sites {where}; choose with --at:\n{shown}{more}",
        hint="--at PATH, a glob, `all`, or `random` with --seed",
    )


def _defaults(rule: Rule) -> dict[str, AttrValue]:
    return {p.name: p.default for p in rule.parameters if p.default is not None}


def bind_arguments(rule: Rule, given: Mapping[str, AttrValue], site: str) -> dict[str, AttrValue]:
    """The rule's parameters: given values, then defaults.

    Raises:
        ArchirError: A608 (unknown or missing), A307 (a value that the rule cannot take).
    """
    known = {p.name: p for p in rule.parameters}
    for name in given:
        if name not in known:
            has = ", ".join(known) or "none"
            raise error("A608", f"`{rule.name}` has no parameter `{name}` (it has: {has})")
    out: dict[str, AttrValue] = {}
    for name, parameter in known.items():
        value = given.get(name, parameter.default)
        if value is None:
            raise error(
                "A608",
                f"`{rule.name}` needs `{name}`",
                hint=f"--set {name}={_HINTS.get(parameter.kind, '...')}",
            )
        try:
            out[name] = parameter.fit(value)
        except ValueError as wanted:
            raise error(
                "A307",
                f"`{rule.name}` does not apply at {site}: `{name}` is {wanted}, got {_show(value)}",
                node=site,
            ) from None
    return out


def _show(value: AttrValue) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
