"""Planning a rule over an axis class: the same map for all that must change together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node, Value
from archir.ir.types import AttrValue
from archir.lang import tree as t
from archir.ops.classes import AxisClass, AxisClasses
from archir.ops.forest import Need
from archir.ops.infer import OpError, equations_of, infer, instance_of
from archir.ops.signature import Axis, Star
from archir.ops.structure import leaves, lift, measure
from archir.rewrite.expressions import Along, Scope, evaluate, holds, is_term, text_of
from archir.rewrite.plan import Plan, check_shapes
from archir.rewrite.rule import Reshaping, Rule
from archir.weights.terms import IndexMap, Ref, Term

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


def sites_of(rule: Rule, classes: AxisClasses) -> list[tuple[str, AxisClass]]:
    """The classes that may change, each with the name of its site."""
    return [(c.site, c) for c in classes.classes.values() if refusal(rule, c) is None]


MAPS = {
    "replicate": ("even", "copies"),
    "select": ("copies",),
    "shuffle": ("even", "bijective", "copies"),
}
"""The conditions that the maps of a rule can meet, by the function that makes them."""


def refusal(rule: Rule, held: AxisClass) -> Refusal | None:
    """What stops a rule whatever its arguments: an obstacle, or a need that it never meets."""
    if not isinstance(held.size, int):
        return Refusal(held.name, f"its size is the symbol {held.size}")
    for obstacle in held.obstacles:
        return Refusal(obstacle.node, obstacle.reason)
    if not held.members:
        return Refusal(held.name, "no weight makes or reads that axis")
    body = rule.body
    assert isinstance(body, Reshaping)
    makers = [e.callee.text for _, e in body.lets if isinstance(e, t.Call)]
    able = {c for maker in makers for c in MAPS.get(maker, ())}
    if len({text_of(act) for act in (body.produce, body.carry, body.consume)}) == 1:
        able.add("alike")
    for need in held.needs:
        if need.condition not in able:
            return Refusal(need.node, need.reason, _HINTS[need.condition])
    if held.size == 1 and {"select", "shuffle"}.intersection(makers):
        return Refusal(held.name, "it has one channel")
    return None


_HINTS = {
    "even": "only maps that take every channel equally often keep what it computes",
    "bijective": "only a change of order keeps what it computes",
    "copies": "zeros cannot stand there; a rule that copies channels applies, as `widen` does",
    "alike": "only a rule that does the same to both applies, as `permute` does",
}


def unmet(held: AxisClass, g: IndexMap) -> Need | None:
    """The first need of a class that a map does not meet."""
    counts = np.bincount(g.entries, minlength=g.source)
    for need in held.needs:
        if need.condition == "alike":  # a matter of the rule, whatever its map
            continue
        if need.condition == "copies":
            if g.source != held.size:
                return need
            continue
        share = 1 if need.condition == "bijective" else counts[0]
        if share < 1 or (counts != share).any() or len(counts) > g.source:
            return need
    return None


def plan_class(
    rule: Rule,
    classes: AxisClasses,
    held: AxisClass,
    site: str,
    arguments: Mapping[str, AttrValue],
    seed: int,
) -> Plan:
    """The plan of a rule over a class.

    Raises:
        ArchirError: A303, the class cannot change there (the blocking node is named).
    """
    body = rule.body
    assert isinstance(body, Reshaping)
    graph = classes.graph
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
    scope = Scope(graph, {**arguments, f"size({body.variable})": held.size}, rng=rng)
    scope.tensors = {}
    for condition in rule.where:
        if not holds(condition, scope):
            given = ", ".join(f"{k} = {v}" for k, v in arguments.items())
            raise error(
                "A302",
                f"`{rule.name}` wants {text_of(condition)}; "
                f"the class of {held.name} has {held.size} channels ({given})",
                node=held.name,
            )
    for name, expression in body.lets:
        scope.names[name] = evaluate(expression, scope)
    g = _map(scope, held)
    need = unmet(held, g)
    if need is not None:
        raise _uneven(rule, site, held, need)
    terms = _terms(body, scope, held)
    after = _resized(classes, held, g)
    unread = _unread(held, g) if rule.contract.unread else {}
    plan = Plan(
        rule, site, dict(arguments), seed, graph, after, terms, matched=held.nodes, unread=unread
    )
    check_shapes(plan)
    return plan


def _uneven(rule: Rule, site: str, held: AxisClass, need: Need) -> ArchirError:
    assert isinstance(held.size, int)
    where = "" if need.node == site else f"at {need.node}, "
    hint = _HINTS[need.condition]
    if need.condition == "even":
        more = ", ".join(str(held.size * times) for times in (2, 3))
        hint = f"take a multiple of {held.size}: {more}, ..."
    message = f"`{rule.name}` does not apply at {site}: {where}{need.reason}"
    return error("A303", message, node=need.node, hint=hint)


def _map(scope: Scope, held: AxisClass) -> IndexMap:
    maps = [m for m in scope.names.values() if isinstance(m, IndexMap)]
    if len(maps) != 1 or held.size not in (maps[0].source, len(maps[0].entries)):
        raise error("A213", "a rule over a class needs one map over its size", node=held.name)
    return maps[0]


def _size(g: IndexMap, held: AxisClass) -> int:
    """The new size: a gather is over the old entries, an embedding over the new."""
    return len(g.entries) if g.source == held.size else g.source


def _terms(body: Reshaping, scope: Scope, held: AxisClass) -> dict[str, Term]:
    """What becomes of each parameter of the class.

    One that several nodes share, or that holds the class on two axes, is done once an axis.
    """
    acts = {"produce": body.produce, "carry": body.carry, "consume": body.consume}
    terms: dict[str, Term] = {}
    seen: set[tuple[str, int]] = set()
    for member in held.members:
        if (member.path, member.axis) in seen:
            continue
        seen.add((member.path, member.axis))
        expression = acts[member.kind]
        term = terms.get(member.path, Ref(member.path))
        scope.along = Along(term, member.axis, member.structure, held.number)
        value = evaluate(expression, scope)
        if not is_term(value):
            raise error("A211", f"`{member.kind}` gives no weight", span=expression.span)
        terms[member.path] = value
    scope.along = None
    return terms


def _unread(held: AxisClass, g: IndexMap) -> dict[str, tuple[tuple[int, IndexMap], ...]]:
    """What a map keeps of every weight that reads the class."""
    out: dict[str, dict[int, IndexMap]] = {}
    for m in held.members:
        if m.kind == "consume":
            spread = lift(m.structure, held.number, g.entries, g.source)
            out.setdefault(m.path, {})[m.axis] = IndexMap(*spread)
    return {path: tuple(places.items()) for path, places in out.items()}


def _resized(classes: AxisClasses, held: AxisClass, g: IndexMap) -> Graph:
    """The graph with every attribute that speaks of the class brought up to date."""
    graph, ops = classes.graph, classes.ops
    builder = graph.edit()
    for name in held.nodes:
        node = graph.node(name)
        attrs = _attributes(node, classes, held, g)
        if attrs != node.attrs:
            builder.put(replace(node, attrs=attrs))
    try:
        return infer(builder.build(), ops)
    except OpError as failure:
        raise error(
            "A303",
            f"the class of {held.name} cannot take {_size(g, held)} channels: {failure.message}",
            node=held.name,
            hint=failure.hint,
        ) from None


def _attributes(
    node: Node, classes: AxisClasses, held: AxisClass, g: IndexMap
) -> dict[str, AttrValue]:
    graph, op = classes.graph, classes.ops[node.op]
    attrs = dict(node.attrs)
    size = _size(g, held)
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
