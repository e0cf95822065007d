"""Planning a rule over an axis class: the same map for all that must change together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from archir.diag import error
from archir.ir.graph import Graph, Node, Value
from archir.ir.types import AttrValue
from archir.ops.classes import AxisClass, AxisClasses, Factor, Structure
from archir.ops.infer import OpError, equations_of, infer, instance_of
from archir.ops.record import OpSet
from archir.ops.signature import Axis, Star
from archir.rewrite.expressions import Along, Scope, evaluate, holds, is_term, text_of
from archir.rewrite.plan import Plan, check_shapes
from archir.rewrite.rule import Reshaping, Rule
from archir.weights.terms import IndexMap, Ref, Term

_SUFFIX = re.compile(r"(.+)\.(out|in|axis\d)")


@dataclass(frozen=True)
class Refusal:
    """Why a rule does not apply to a class, and the node that blocks it."""

    node: str
    reason: str
    hint: str = ""


def site_parts(graph: Graph, site: str) -> tuple[str, str] | None:
    """The node and the suffix of ``PATH``, ``PATH.out``, ``PATH.in`` or ``PATH.axis0``."""
    if site in graph:
        return site, ""
    parts = _SUFFIX.fullmatch(site)
    return (parts[1], parts[2]) if parts and parts[1] in graph else None


def class_at(classes: AxisClasses, graph: Graph, site: str) -> AxisClass:
    """The class that a site names.

    Without a suffix it is the class that the node produces, else the one it carries; ``.in`` is
    the one it reads, ``.axis0`` the one on that axis of a parameter of its.

    Raises:
        ArchirError: A304, the node has no such class; A305, it has several.
    """
    parts = site_parts(graph, site)
    assert parts is not None
    name, suffix = parts
    node = graph.node(name)
    wanted = {"out": ("produce", "carry"), "in": ("consume",), "": ("produce",)}.get(suffix)
    found = {
        number
        for number, held in classes.classes.items()
        for m in held.members
        if m.node == name and (m.kind in wanted if wanted else f"axis{m.axis}" == suffix)
    }
    if not found and suffix in ("", "out"):
        found = _carried(classes, node)
    if len(found) > 1:
        free = {n for n in found if not classes.classes[n].obstacles}
        found = free or found
    if not found:
        raise error(
            "A304",
            f"`{name}` ({node.op}) has no axis that could change"
            + (f" as `.{suffix}`" if suffix else ""),
            node=name,
            hint="`archir rules FILE` lists the sites",
        )
    if len(found) > 1:
        names = dict.fromkeys(
            f"`{name}.axis{m.axis}`" if m.node == name else f"`{classes.classes[n].name}`"
            for n in sorted(found)
            for m in classes.classes[n].members[:1]
        )
        raise error("A305", f"`{site}` belongs to several classes: {', '.join(names)}", node=name)
    return classes.classes[found.pop()]


def _carried(classes: AxisClasses, node: Node) -> set[int]:
    """The classes on an axis of what a node gives: on axis 1, or on the last if those are held."""
    found: set[int] = set()
    for axis in (1, -1):
        for port, type_ in enumerate(node.types):
            if type_.rank > 1:
                structure = classes.structure(Value(node.name, port), axis)
                held = {f.number for segment in structure for f in segment if f.number >= 0}
                if not found or not any(classes.classes[n].obstacles for n in held):
                    found |= held
        if any(not classes.classes[n].obstacles for n in found):
            break
    return found


def sites_of(rule: Rule, classes: AxisClasses) -> list[tuple[str, AxisClass]]:
    """The classes that may change, each with the name of its site.

    That is the name of the class; with an axis where one node makes several of them.
    """
    free = [c for c in classes.classes.values() if refusal(rule, c, classes.graph) is None]
    count = Counter(held.name for held in free)
    out = []
    for held in free:
        axes = [m.axis for m in held.members if m.node == held.name and m.kind == "produce"]
        crowded = count[held.name] > 1 and axes
        out.append((f"{held.name}.axis{axes[0]}" if crowded else held.name, held))
    return out


def refusal(rule: Rule, held: AxisClass, graph: Graph) -> Refusal | None:
    """The first obstacle of a class, if it has one."""
    if not isinstance(held.size, int):
        return Refusal(held.name, f"its size is the symbol {held.size}")
    for obstacle in held.obstacles:
        return Refusal(obstacle.node, obstacle.reason)
    if not held.members:
        return Refusal(held.name, "no weight makes or reads that axis")
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
    graph, ops = classes.graph, classes.ops
    stop = refusal(rule, held, graph)
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
    size = _new_size(scope, held)
    terms = _terms(body, scope, held)
    after = _resized(graph, ops, classes, held, size)
    plan = Plan(rule, site, dict(arguments), seed, graph, after, terms)
    check_shapes(plan)
    return plan


def _new_size(scope: Scope, held: AxisClass) -> int:
    maps = [m for m in scope.names.values() if isinstance(m, IndexMap) and m.source == held.size]
    if len(maps) != 1:
        raise error("A213", "a rule over a class needs one map over its size", node=held.name)
    return len(maps[0].entries)


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


def _resized(graph: Graph, ops: OpSet, classes: AxisClasses, held: AxisClass, size: int) -> Graph:
    """The graph with every attribute that states a size of the class brought up to date."""
    builder = graph.edit()
    for name in held.nodes:
        node = graph.node(name)
        op = ops[node.op]
        if not op.equations:
            continue
        use = instance_of(node, graph, ops)
        attrs = dict(node.attrs)
        for left, attr in equations_of(op):
            if isinstance(left, Star):
                spelled = use.axes.stars[left.name]
                structures = [classes.structure_of(name, Axis(((n,),))) for n in spelled]
                sizes = tuple(_measure(classes, s, held, size) for s in structures)
                attrs[attr] = sizes
            else:
                attrs[attr] = _measure(classes, classes.structure_of(name, left), held, size)
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


def _measure(classes: AxisClasses, structure: Structure, held: AxisClass, size: int) -> int:
    def extent(factor: Factor) -> int:
        if factor.number == held.number:
            return size
        assert isinstance(factor.size, int)
        return factor.size

    total = 0
    for segment in classes.resolved(structure):
        part = 1
        for factor in segment:
            part *= extent(factor)
        total += part
    return total
