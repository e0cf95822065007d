"""The difference of two networks as text and as JSON values."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archir.cli import options
from archir.cli.options import human, memory
from archir.cli.show import call_text
from archir.ir.graph import Graph, Node, Parameter
from archir.ir.types import AttrValue
from archir.lang.flat import preprocess
from archir.lang.words import compact, renames, stated_before, suffix, ties_ahead, write_value
from archir.ops.record import OpSet
from archir.rewrite.delta import COUNTS, Change, Delta, Part, WeightsDelta

if TYPE_CHECKING:
    from archir.proof.certificate import Step
    from archir.proof.descent import Member, Relation

MOST_LINES = 120
"""Lines of changes that are printed without ``--all``."""
MOST_RENAMES = 12
MOST_WEIGHTS = 5
COLOURS = {"+": 32, "-": 31, "~": 33}


Row = tuple[str, str, str]
"""A mark, a name, and what is said of it."""


@dataclass(frozen=True)
class Weights:
    """The comparison of the weights, or in words why there is none."""

    found: WeightsDelta | None
    reason: str = ""

    @property
    def same(self) -> bool:
        """Whether no difference was found."""
        return self.found is None or not self.found.differ


# --- one network, a line a node -------------------------------------------------------------


def listing(graph: Graph, ops: OpSet) -> str:
    """A network as a line a node, in its order: what it reads, what it is, what it gives.

    A node that reads nothing but the one above it does not say so.
    """
    shared = ties_ahead(graph) | stated_before(graph)
    lines = [f"arch {graph.name}"]
    last = ""
    for node in graph:
        if node.op == "input":
            lines.append(f"input {node.name}: {node.types[0]}")
        else:
            own = suffix(renames(node.name, ops[node.op], node.params, shared))
            plain = [str(v) for v in node.inputs] == [last]
            reads = "" if plain or not node.inputs else f" <- {', '.join(map(str, node.inputs))}"
            gives = ", ".join(map(str, node.types))
            lines.append(f"{node.name}: {call_text(node, graph, ops)}{own}{reads} -> {gives}")
        last = node.name
    lines += [f"output {o.name} <- {o.value}" for o in graph.outputs]
    return "\n".join([*lines, *preprocess(graph)])


# --- text -----------------------------------------------------------------------------------


def as_text(
    files: Sequence[str],
    members: tuple[Member, Member],
    relation: Relation,
    delta: Delta,
    weights: Weights,
    ops: OpSet,
    *,
    everything: bool,
) -> str:
    """The difference of two networks for people."""
    lines = [f"{files[0]} -> {files[1]}", *_relation(files, relation)]
    changes = _Changes(members[0].graph, members[1].graph, ops).lines(delta, fold=not everything)
    most = len(changes) if everything else MOST_LINES
    lines += changes[:most]
    if len(changes) > most:
        lines.append(f"... and {len(changes) - most} more lines (--all)")
    lines += [f"  {text}" for text in (*delta.interface, *delta.sharing)]
    lines += _renames(delta, everything=everything)
    if not (delta.same_structure and delta.same_names):
        lines += ["", _summary(delta)]
    else:
        lines.append("the networks are the same")
    if delta.total.before != delta.total.after:
        lines += ["", _table(delta)]
    lines.append(_weights(weights))
    return "\n".join(_painted(lines))


def layer_lines(members: tuple[Member, Member], delta: Delta, ops: OpSet) -> list[str]:
    """What changed layer by layer, without the rest of :func:`as_text`."""
    lines = _Changes(members[0].graph, members[1].graph, ops).lines(delta, fold=True)
    return [*lines[:MOST_LINES], *_renames(delta, everything=False), "", _summary(delta)]


def _relation(files: Sequence[str], relation: Relation) -> list[str]:
    def steps(found: Sequence[tuple[int, Step]]) -> list[str]:
        return [f"  {number:>3}  {said}" for number, step in found for said in step_texts(step)]

    if not relation.steps and not relation.others:
        return []
    if relation.kind == "down":
        return ["the second came from the first by these steps:", *steps(relation.steps), ""]
    if relation.kind == "up":
        return ["the first came from the second by these steps:", *steps(relation.steps), ""]
    if relation.kind == "siblings":
        lines = ["both came from one network,"]
        for file, found in zip(files, (relation.others, relation.steps), strict=True):
            lines += [f"{file} by:", *steps(found)] if found else [f"{file} is that network"]
        return [*lines, ""]
    return []


def step_texts(step: Step) -> list[str]:
    """A step of a certificate in words; a rewrite has a line for each use of a rule."""
    uses = step.facts.get("uses")
    if step.kind != "rewrite" or not isinstance(uses, list):
        return [step.kind]
    found = []
    for use in uses:
        given = " ".join(f"{k}={v}" for k, v in use["arguments"].items())
        found.append(f"{use['rule']}@{use['site']} {given}".rstrip())
    return found


@dataclass(frozen=True)
class _Changes:
    """The changes as lines, grouped by the block they are in."""

    a: Graph
    b: Graph
    ops: OpSet

    def lines(self, delta: Delta, *, fold: bool) -> list[str]:
        groups: list[tuple[str, list[Row]]] = []
        for change in delta.changes:
            scope = _scope(change)
            if not groups or groups[-1][0] != scope:
                groups.append((scope, []))
            groups[-1][1].extend(self._rows(change, scope))
        out: list[str] = []
        start = 0
        while start < len(groups):
            scope, rows = groups[start]
            stop = start + 1
            while fold and stop < len(groups) and groups[stop][1] == rows:
                stop += 1
            alike = f" .. {groups[stop - 1][0]} ({stop - start} alike)" if stop > start + 1 else ""
            width = max(len(name) for _, name, _ in rows)
            out.append(f"{scope}{alike}" if scope else "(top)")
            out += [f"  {mark} {name:{width}}  {said}" for mark, name, said in rows]
            start = stop
        return out

    def _rows(self, change: Change, scope: str) -> list[Row]:
        if change.kind in ("inserted", "removed", "replaced"):
            gone = [("-", _within(n, scope), self._call(self.a, n)) for n in change.before]
            come = [("+", _within(n, scope), self._call(self.b, n)) for n in change.after]
            return gone + come
        (old,), (new,) = change.before, change.after
        first, *rest = self._said(change, self.a.node(old))
        was = f"  (was {old})" if old != new else ""
        return [("~", _within(new, scope), first + was), *((" ", "", more) for more in rest)]

    def _call(self, graph: Graph, name: str) -> str:
        node = graph.node(name)
        return f"{call_text(node, graph, self.ops)} -> {', '.join(map(str, node.types))}"

    def _said(self, change: Change, node: Node) -> list[str]:
        said = []
        if change.attributes:
            words = [f"{n} {self._value(node, n, pair)}" for n, pair in change.attributes.items()]
            said.append(f"{node.op}: {', '.join(words)}")
        alike: dict[str, list[str]] = {}
        for role, (old, new) in change.parameters.items():
            alike.setdefault(f"{_shape(old)} -> {_shape(new)}", []).append(role)
        lead = "" if said else f"{node.op}: "
        shapes = [f"{', '.join(roles)} {shapes}" for shapes, roles in alike.items()]
        if shapes and not said:
            shapes[0] = lead + shapes[0]
        said += shapes
        if change.operands:
            reads = [", ".join(side) for side in change.operands]
            said.append(f"{'' if said else f'{node.op}: '}reads {reads[0]} -> {reads[1]}")
        return said

    def _value(self, node: Node, name: str, pair: tuple[AttrValue, AttrValue]) -> str:
        if node.op not in self.ops or name == "type":
            return " -> ".join(map(str, pair))
        op = self.ops[node.op]
        return " -> ".join(write_value(compact(op, name, value)) for value in pair)


def _shape(parameter: Parameter | None) -> str:
    if parameter is None:
        return "none"
    type_ = parameter.type
    return str(type_).removeprefix("f32")


def _scope(change: Change) -> str:
    names = change.after or change.before
    return names[0].rpartition(".")[0]


def _within(name: str, scope: str) -> str:
    return name.removeprefix(f"{scope}.") if scope else name


def _renames(delta: Delta, *, everything: bool) -> list[str]:
    """Renamed nodes, by the part of their paths that differs."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for old, new in (*delta.renamed.items(), *delta.paths.items()):
        groups.setdefault(_differing(old, new), []).append((old, new))
    lines = []
    for (old, new), members in groups.items():
        if len(members) == 1:
            lines.append(f"  {members[0][0]} -> {members[0][1]}")
            continue
        beside = [f"{part}.*" if part else "*" for part in (old, new)]
        lines.append(f"  {beside[0]} -> {beside[1]}  ({len(members)} names)")
    most = len(lines) if everything else MOST_RENAMES
    more = [f"  ... and {len(lines) - most} more (--all)"] if len(lines) > most else []
    return ["renamed", *lines[:most], *more] if lines else []


def _differing(old: str, new: str) -> tuple[str, str]:
    """What is left of two paths without the parts that both end in."""
    x, y = old.split("."), new.split(".")
    while x and y and x[-1] == y[-1]:
        x.pop()
        y.pop()
    return ".".join(x), ".".join(y)


def counts(delta: Delta) -> dict[str, int]:
    """How many nodes were inserted, removed, ...; what is renamed counts apart."""
    found: dict[str, int] = {}
    for change in delta.changes:
        if change.kind == "replaced":
            size = max(len(change.before), len(change.after))
        else:
            size = len(change.after or change.before)
        found[change.kind] = found.get(change.kind, 0) + size
    if delta.renamed:
        found["renamed"] = len(delta.renamed)
    return found


def _summary(delta: Delta) -> str:
    found = counts(delta)
    same = len(delta.pairs) - sum(len(c.before) == len(c.after) == 1 for c in delta.changes)
    if delta.same_structure:
        return f"the structure is the same; {len(delta.renamed) + len(delta.paths)} names differ"
    listed = ", ".join(f"{number} {kind}" for kind, number in found.items()) or "as above"
    return f"layers: {listed}; {same} as they were"


def _table(delta: Delta) -> str:
    def row(name: str, part: Part) -> tuple[str, ...]:
        return (name, *(_move(c, part.before[c], part.after[c]) for c in COUNTS))

    rows = [row(part.scope, part) for part in delta.parts] + [row("total", delta.total)]
    headers = ("block", "parameters", "MACs", "activations")
    return options.table(headers, rows, right=(1, 2, 3))


def _move(count: str, before: int, after: int) -> str:
    write = memory if count == "activation_bytes" else human
    return write(after) if before == after else f"{write(before)} -> {write(after)}"


def _weights(weights: Weights) -> str:
    found = weights.found
    if found is None:
        return f"weights: {weights.reason}"
    if not found.differ:
        return f"weights: {found.compared} tensors in common, all equal"
    worst = sorted(found.differ.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{path} {far:.1e}" for path, far in worst[:MOST_WEIGHTS])
    return (
        f"weights: {len(found.differ)} of {found.compared} tensors in common differ; "
        f"max|a-b|/max|a|: {shown}{', ...' if len(worst) > MOST_WEIGHTS else ''}"
    )


def _painted(lines: Sequence[str]) -> list[str]:
    """Lines with colours, where a terminal shows them."""
    if not (sys.stdout.isatty() and "NO_COLOR" not in os.environ):
        return list(lines)
    out = []
    for line in lines:
        colour = COLOURS.get(line[2:3]) if line.startswith("  ") and line[3:4] == " " else None
        out.append(line if colour is None else f"\x1b[{colour}m{line}\x1b[0m")
    return out


# --- JSON -----------------------------------------------------------------------------------


def as_json(
    files: Sequence[str],
    members: tuple[Member, Member],
    relation: Relation,
    delta: Delta,
    weights: Weights,
    ops: OpSet,
) -> dict[str, Any]:
    """The difference of two networks as JSON values."""
    a, b = members[0].graph, members[1].graph

    def node(graph: Graph, name: str) -> dict[str, str]:
        found = graph.node(name)
        return {"path": name, "op": found.op, "call": call_text(found, graph, ops)}

    changes = [
        {
            "kind": change.kind,
            "scope": _scope(change),
            "before": [node(a, name) for name in change.before],
            "after": [node(b, name) for name in change.after],
            "attributes": {k: [_plain(v) for v in both] for k, both in change.attributes.items()},
            "parameters": {
                role: [None if p is None else str(p.type) for p in both]
                for role, both in change.parameters.items()
            },
            "operands": None if change.operands is None else [list(s) for s in change.operands],
        }
        for change in delta.changes
    ]
    return {
        "before": files[0],
        "after": files[1],
        "same_structure": delta.same_structure,
        "same_names": delta.same_names,
        "relation": relation.kind,
        "steps": [_step_data(number, step) for number, step in relation.steps],
        "other_steps": [_step_data(number, step) for number, step in relation.others],
        "counts": counts(delta),
        "changes": changes,
        "interface": list(delta.interface),
        "sharing": list(delta.sharing),
        "renamed": dict(delta.renamed),
        "renamed_parameters": dict(delta.paths),
        **{name: [delta.total.before[name], delta.total.after[name]] for name in COUNTS},
        "blocks": {
            part.scope: {name: [part.before[name], part.after[name]] for name in COUNTS}
            for part in delta.parts
        },
        "weights": _weights_data(weights),
    }


def _step_data(number: int, step: Step) -> dict[str, Any]:
    uses = step.facts.get("uses")
    found: dict[str, Any] = {"step": number, "kind": step.kind}
    if step.kind == "rewrite" and isinstance(uses, list):
        found["uses"] = [{k: use[k] for k in ("rule", "site", "arguments")} for use in uses]
    return found


def _weights_data(weights: Weights) -> Mapping[str, Any]:
    found = weights.found
    if found is None:
        return {"compared": 0, "reason": weights.reason}
    return {"compared": found.compared, "equal": weights.same, "differ": dict(found.differ)}


def _plain(value: AttrValue) -> object:
    return list(value) if isinstance(value, tuple) else value
