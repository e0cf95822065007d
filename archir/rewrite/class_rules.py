"""Planning a rule over an axis class: the same map for all that must change together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node, Value
from archir.ir.types import AttrValue
from archir.ops.arithmetic import Array, Floating
from archir.ops.classes import AxisClass, AxisClasses, Kind
from archir.ops.forest import Need
from archir.ops.infer import OpError, equations_of, infer, instance_of
from archir.ops.signature import Axis, Star
from archir.ops.structure import leaves, lift, measure, structure_size
from archir.rewrite.expressions import Along, Scope, evaluate, holds, is_term, text_of
from archir.rewrite.found import Known, find, once, there_is
from archir.rewrite.maps import MAKERS, makers_in
from archir.rewrite.plan import Plan, check_shapes
from archir.rewrite.rule import Reshaping, Rule, Step
from archir.weights.functions import FUNCTIONS
from archir.weights.terms import Apply, IndexMap, Ref, Term

SUFFIX = re.compile(r"(.+)\.(out|in|axis\d|(?:heads|head|groups|group|outer|inner|part)\d*)")


@dataclass(frozen=True)
class Refusal:
    """Why a rule does not apply to a class, and the node that blocks it."""

    node: str
    reason: str
    hint: str = ""


def site_parts(graph: Graph, site: str) -> tuple[str, str] | None:
    """The node and the suffix of ``PATH``, ``PATH.out``, ``PATH.in``, ``PATH.heads``, ..."""
    if site in graph:
        return site, ""
    parts = SUFFIX.fullmatch(site)
    return (parts[1], parts[2]) if parts and parts[1] in graph else None


def class_at(classes: AxisClasses, graph: Graph, site: str) -> AxisClass:
    """The class that a site names.

    The class whose site is called so comes first. Without a suffix it is the class that the node
    produces, else the one it carries; ``.in`` is the one it reads, ``.axis0`` the one on that axis
    of a parameter of its, ``.heads`` (and the like) the part of its channels that is called so.

    Raises:
        ArchirError: A304, the node has no such class; A305, it has several.
    """
    parts = site_parts(graph, site)
    assert parts is not None
    name, suffix = parts
    node = graph.node(name)
    wanted = {"out": ("produce", "carry"), "in": ("consume",), "": ("produce",)}.get(suffix)
    if site in classes.sites:
        return classes.sites[site]
    found = {
        number
        for number, held in classes.by_node.get(name, {}).items()
        for m in held.members
        if m.node == name
        and (m.kind in wanted if wanted else suffix in (f"axis{m.axis}", held.label))
    }
    if not found and suffix in ("", "out"):
        found = _carried(classes, node)
    if len(found) > 1:
        free = {n for n in found if not classes.classes[n].obstacles}
        found = free or {min(found)}
    if not found:
        raise error(
            "A304",
            f"`{name}` ({node.op}) has no axis that could change"
            + (f" as `.{suffix}`" if suffix else ""),
            node=name,
            hint="`archir rules FILE` lists the sites",
        )
    if len(found) > 1:
        names = [f"`{classes.classes[n].site}` ({classes.classes[n].size})" for n in sorted(found)]
        raise error(
            "A305",
            f"`{site}` belongs to several classes: {', '.join(names)}",
            node=name,
            hint=f"say which: --at {classes.classes[min(found)].site}",
        )
    return classes.classes[found.pop()]


def _carried(classes: AxisClasses, node: Node) -> set[int]:
    """The classes on an axis of what a node gives: on axis 1, or on the last if those are held."""
    found: set[int] = set()
    for axis in (1, -1):
        for port, type_ in enumerate(node.types):
            if type_.rank > 1:
                structure = classes.structure(Value(node.name, port), axis)
                held = set(leaves(structure))
                if not found or not any(classes.classes[n].obstacles for n in held):
                    found |= held
        if any(not classes.classes[n].obstacles for n in found):
            break
    return found


def sites_of(
    rule: Rule, classes: AxisClasses, weights: Mapping[str, Array] | None = None
) -> list[tuple[str, AxisClass]]:
    """The classes that may change, each with the name of its site.

    A rule that finds its map in the weights applies where there is something to find, if weights
    are at hand.
    """
    found = [c for c in classes.classes.values() if refusal(rule, c) is None]
    if weights is not None and reads_weights(rule):
        name = makers_of(rule)[0]
        found = [c for c in found if there_is(name, c, weights, partial(_met, c))]
    return [(c.site, c) for c in found]


def refusal(rule: Rule, held: AxisClass) -> Refusal | None:
    """What stops a rule whatever its arguments: an obstacle, or a need that it never meets."""
    if not isinstance(held.size, int):
        return Refusal(held.name, f"its size is the symbol {held.size}")
    for obstacle in held.obstacles:
        return Refusal(obstacle.node, obstacle.reason)
    if not held.members:
        return Refusal(held.name, "no weight makes or reads that axis")
    makers = makers_of(rule)
    able = set(MAKERS[makers[0]].able).intersection(*(MAKERS[m].able for m in makers[1:]))
    assert isinstance(rule.body, Reshaping)
    acts = [{text_of(e) for e in (s.produce, s.carry, s.consume)} for s in rule.body.steps]
    if all(len(texts) == 1 for texts in acts):
        able.add("alike")
    for need in held.needs:
        if need.condition not in able:
            return Refusal(need.node, need.reason, _HINTS[need.condition])
    if held.size < max(MAKERS[m].least for m in makers):
        return Refusal(held.name, "it has one channel")
    return None


def makers_of(rule: Rule) -> list[str]:
    """The function that makes the map of each step."""
    assert isinstance(rule.body, Reshaping)
    return [name for step in rule.body.steps for name in makers_in(step)]


def reads_weights(rule: Rule) -> bool:
    """Whether a rule finds its map in the weights."""
    return isinstance(rule.body, Reshaping) and MAKERS[makers_of(rule)[0]].reads


def _one_map(where: str) -> ArchirError:
    return error("A213", "a rule over a class needs one map over its size", node=where)


_HINTS = {
    "even": "only maps that take every channel equally often keep what it computes",
    "bijective": "only a change of order keeps what it computes",
    "copies": "zeros cannot stand there; a rule that copies channels applies, as `widen` does",
    "alike": "only a rule that does the same to both applies, as `permute` does",
}


def unmet(held: AxisClass, g: IndexMap) -> Need | None:
    """The first need of a class that a map does not meet (others are a matter of the rule)."""
    counts = np.bincount(g.entries, minlength=g.source)
    for need in held.needs:
        if need.condition in ("even", "bijective"):
            share = 1 if need.condition == "bijective" else counts[0]
            if share < 1 or (counts != share).any() or len(counts) > g.source:
                return need
    return None


def _met(held: AxisClass, g: IndexMap) -> bool:
    return unmet(held, g) is None


def plan_class(
    rule: Rule,
    classes: AxisClasses,
    held: AxisClass,
    site: str,
    arguments: Mapping[str, AttrValue],
    seed: int,
    weights: Mapping[str, Array] | None = None,
    known: Known = (),
) -> Plan:
    """The plan of a rule over a class.

    Args:
        rule: The rule.
        classes: The classes of the network.
        held: The class.
        site: What the user calls it.
        arguments: The rule's parameters.
        seed: For what is drawn at random.
        weights: The network's, for a rule that finds its map there.
        known: The entries of such a map, found before.

    Raises:
        ArchirError: A303, the class cannot change there (the blocking node is named).
    """
    body = rule.body
    assert isinstance(body, Reshaping)
    stop = refusal(rule, held)
    if stop is not None:
        where = "" if stop.node == site else f"at {stop.node}, "
        raise error(
            "A303",
            f"`{rule.name}` does not apply at {site}: {where}{stop.reason}",
            node=stop.node,
            hint=stop.hint,
        )
    assert isinstance(held.size, int)
    rng = np.random.Generator(np.random.PCG64(seed))
    scope = Scope(classes.graph, {**arguments, f"size({body.variable})": held.size}, rng=rng)
    scope.tensors = {}
    scope.reader = lambda name, old, new: find(name, held, new, weights, known)
    _guarded(rule, held, scope, arguments)
    terms: dict[str, Term] = {}
    size, first = held.size, None
    for maker, step in zip(makers_of(rule), body.steps, strict=True):
        scope.names[f"size({body.variable})"] = size
        g = _map(step, scope, maker, size, held)
        first = first or g
        need = unmet(held, g)
        if need is not None:
            raise _uneven(rule, site, held, need)
        _act(step, scope, held, terms)
        size = g.source if MAKERS[maker].grows else len(g.entries)
        scope.reader = None
    assert first is not None
    plan = Plan(
        rule,
        site,
        dict(arguments),
        seed,
        classes.graph,
        _resized(classes, held, size),
        terms,
        matched=held.nodes,
        unread=_assumed(held, first, ("consume",)) if rule.contract.unread else {},
        repeated=_assumed(held, first, ("produce", "carry")) if rule.contract.repeated else {},
        found=tuple(int(j) for j in first.entries) if reads_weights(rule) else (),
        through=_through(classes.graph, held, terms),
    )
    check_shapes(plan)
    return plan


def _guarded(rule: Rule, held: AxisClass, scope: Scope, arguments: Mapping[str, AttrValue]) -> None:
    for condition in rule.where:
        if not holds(condition, scope):
            given = ", ".join(f"{k} = {v}" for k, v in arguments.items())
            raise error(
                "A302",
                f"`{rule.name}` wants {text_of(condition)}; "
                f"the class of {held.name} has {held.size} channels ({given})",
                node=held.name,
            )


def _uneven(rule: Rule, site: str, held: AxisClass, need: Need) -> ArchirError:
    assert isinstance(held.size, int)
    where = "" if need.node == site else f"at {need.node}, "
    hint = _HINTS[need.condition]
    if need.condition == "even" and "replicate" in makers_of(rule):
        more = ", ".join(str(held.size * times) for times in (2, 3))
        hint = f"take a multiple of {held.size}: {more}, ..."
    message = f"`{rule.name}` does not apply at {site}: {where}{need.reason}"
    return error("A303", message, node=need.node, hint=hint)


def _map(step: Step, scope: Scope, maker: str, size: int, held: AxisClass) -> IndexMap:
    """Evaluate what a step defines; its map, which must be over the class as it stands."""
    g: IndexMap | None = None
    for name, expression in step.lets:
        value = evaluate(expression, scope)
        scope.names[name] = value
        g = value if isinstance(value, IndexMap) else g
    if g is None or size != (len(g.entries) if MAKERS[maker].grows else g.source):
        raise _one_map(held.name)
    return g


def _act(step: Step, scope: Scope, held: AxisClass, terms: dict[str, Term]) -> None:
    """What a step does to each parameter of the class.

    One that several nodes share, or that holds the class on two axes, is done once an axis.
    """
    acts = {"produce": step.produce, "carry": step.carry, "consume": step.consume}
    for member in once(held):
        expression = acts[member.kind]
        term = terms.get(member.path, Ref(member.path))
        scope.along = Along(term, member.axis, member.structure, held.number)
        value = evaluate(expression, scope)
        if not is_term(value):
            raise error("A211", f"`{member.kind}` gives no weight", span=expression.span)
        terms[member.path] = value
    scope.along = None


def _through(graph: Graph, held: AxisClass, terms: Mapping[str, Term]) -> dict[str, Array]:
    """How much goes through each copy of a channel, where what reads them shares it out unevenly.

    Empty where several layers read the class, or one of them in several places: each of them has
    shares of its own. The same where a weight has a channel in several places.
    """
    readers = list(once(held, "consume"))
    term = terms[readers[0].path] if len(readers) == 1 else None
    if not isinstance(term, Apply) or term.function != "share_out":
        return {}
    if any(structure_size(member.structure) != held.size for member in once(held)):
        return {}
    _, g, _, seed = term.args
    shares = FUNCTIONS["share_out"].value(Floating(np.float64), np.ones(held.size), g, 0, seed)
    out = {}
    for member in once(held, "produce", "carry"):
        along = [1] * graph.parameters[member.path].type.rank
        along[member.axis] = -1
        out[member.path] = shares.reshape(along)
    return out


def _assumed(
    held: AxisClass, g: IndexMap, kinds: tuple[Kind, ...]
) -> dict[str, tuple[tuple[int, IndexMap], ...]]:
    """The weights of which a rule assumes something, and the map of each of their axes."""
    out: dict[str, dict[int, IndexMap]] = {}
    for m in held.members:
        if m.kind in kinds:
            spread = lift(m.structure, held.number, g.entries, g.source)
            out.setdefault(m.path, {})[m.axis] = IndexMap(*spread)
    return {path: tuple(places.items()) for path, places in out.items()}


@lru_cache(maxsize=4)
def _resized(classes: AxisClasses, held: AxisClass, size: int) -> Graph:
    """The graph with every attribute that speaks of the class brought up to date.

    The last few are kept: one rule after another is asked what it would do to a class.
    """
    graph, ops = classes.graph, classes.ops
    builder = graph.edit()
    for name in held.nodes:
        node = graph.node(name)
        attrs = _attributes(node, classes, held, size)
        if attrs != node.attrs:
            builder.put(replace(node, attrs=attrs))
    try:
        return infer(builder.build(), ops)
    except OpError as failure:
        raise error(
            "A303",
            f"the class of {held.name} cannot take {size} channels: {failure.message}",
            node=held.name,
            hint=failure.hint,
        ) from None


def _attributes(
    node: Node, classes: AxisClasses, held: AxisClass, size: int
) -> dict[str, AttrValue]:
    graph, op = classes.graph, classes.ops[node.op]
    attrs = dict(node.attrs)
    assert isinstance(held.size, int)

    def extent(axis: Axis) -> int:
        return measure(classes.structure_of(node.name, axis), held.number, size)

    if op.equations or op.stated:
        use = instance_of(node, graph, classes.ops)
        for left, attr in equations_of(op):
            if isinstance(left, Star):
                spelled = use.axes.stars[left.name]
                attrs[attr] = tuple(extent(Axis(((n,),))) for n in spelled)
            else:
                attrs[attr] = extent(left)
        if op.stated:
            sizes = attrs[op.stated]
            assert isinstance(sizes, tuple)
            for place, axis in enumerate(use.axes.results[0]):
                if sizes[place] != -1 and isinstance(node.types[0].shape[place], int):
                    new = extent(axis)
                    if (
                        sizes[place]
                        or measure(classes.structure(node.inputs[0], place), held.number, size)
                        != new
                    ):
                        sizes = (*sizes[:place], new, *sizes[place + 1 :])
            attrs[op.stated] = sizes
    for name, attr in op.rescale.items():
        part = classes.resolved(classes.names[node.name].get(name, ()))
        scale = attrs[attr]
        if held.number in leaves(part) and isinstance(scale, float):
            # An axis may hold the class twice over, as the entries of an outer product do.
            old, new = (measure(part, held.number, n) for n in (held.size, size))
            attrs[attr] = scale * old / new
    return attrs
