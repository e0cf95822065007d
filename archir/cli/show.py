"""``archir show``: the layers of a network, as a table or as a picture."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.cli.options import human
from archir.diag import error
from archir.ir.graph import Graph, Node
from archir.ir.types import TensorType
from archir.lang.outline import (
    Crossing,
    Scope,
    block_names,
    entering,
    folds,
    kind_of,
    leaving,
    outline,
    relative,
)
from archir.lang.words import arguments, call, compact, needed, write_value
from archir.ops import installed_ops
from archir.ops.cost import LayerCost, cost
from archir.ops.record import OpSet

HEADERS = ("path", "op", "shape", "params", "MACs")
GAPS = 3 * (len(HEADERS) - 1)
"""Characters between the columns."""
NARROWEST, WIDEST = 80, 120
"""The table keeps within the terminal, or within these where that is none or is odd."""
LEAST_OP, LEAST_PATH = 10, 14
"""What is left of a column, at least, where the table must be made narrower."""
SUFFIXES = {".svg": "svg", ".dot": "dot", ".gv": "dot"}
OURS = (".arch", ".safetensors", ".json")
Row = tuple[str, str, str, str, str]


def call_text(node: Node, graph: Graph, ops: OpSet) -> str:
    """A use of an operator, with the attributes that must be stated, as the language writes it."""
    if node.op == "input":
        return node.op
    op = ops[node.op]
    rank = graph.type_of(node.inputs[0]).rank if node.inputs else 0
    texts = {
        name: write_value(compact(op, name, node.attrs[name]))
        for name in needed(op, node.attrs, rank)
    }
    return call(node.op, arguments(op, texts))


def shape_text(types: Sequence[TensorType]) -> str:
    """The types of a node's results; several alike ones are counted."""
    if len(types) > 1 and len(set(types)) == 1:
        return f"{len(types)} x {types[0]}"
    return options.shape_text(types)


@dataclass
class Table:
    """The rows of a network's table, grouped by blocks. Every number stands in one row.

    Of one block, what enters it stands above and what leaves it below.
    """

    graph: Graph
    ops: OpSet
    costs: Mapping[str, LayerCost]
    depth: int | None
    fold: bool
    kinds: Mapping[str, str]
    rows: list[Row] = field(default_factory=list)

    def fill(self, scope: Scope) -> None:
        """Add a scope, and what crosses its border."""
        self._ends(entering(scope, self.graph))
        self.add(scope)
        self._ends(leaving(scope, self.graph))

    def _ends(self, crossings: Sequence[Crossing]) -> None:
        for value, text in crossings:
            self.rows.append((text, "", str(self.graph.type_of(value)), "", ""))

    def add(self, scope: Scope, level: int = 0) -> None:
        """Add what a scope holds."""
        indent = "  " * level
        found = folds(scope.members, self.graph, chained=False) if self.fold else None
        for member in scope.members if found is None else [f.first for f in found]:
            others = () if found is None else found.pop(0).others
            if isinstance(member, Node):
                name = indent + relative(member.name, scope.path)
                said = call_text(member, self.graph, self.ops)
                self.rows.append((name, said, *self._numbers([member])))
                continue
            if self.depth is not None and level >= self.depth:
                self.rows.append(self._closed(indent + member.path, [member]))
            else:
                self.rows.append((indent + member.path, kind_of(member, self.kinds), "", "", ""))
                self.add(member, level + 1)
            if others:
                last = f" .. {others[-1].path}" if len(others) > 1 else ""
                name = f"{indent}{others[0].path}{last}"
                self.rows.append(self._closed(name, others, f"(as {member.path})"))

    def _closed(self, name: str, scopes: Sequence[Scope], said: str = "") -> Row:
        """One row for scopes that are not opened."""
        nodes = [node for scope in scopes for node in scope.nodes()]
        kind = kind_of(scopes[0], self.kinds)
        said = said or ", ".join(filter(None, (kind, _counted(len(nodes), "layer"))))
        return name, said, *self._numbers(nodes)

    def _numbers(self, nodes: Sequence[Node]) -> tuple[str, str, str]:
        params = sum(self.costs[node.name].params for node in nodes)
        macs = sum(self.costs[node.name].macs for node in nodes)
        return (
            shape_text(nodes[-1].types),
            f"{params:,}" if params else "",
            human(macs) if macs else "",
        )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def fitted(rows: Sequence[Row], width: int) -> list[Row]:
    """Rows within ``width`` characters: where needed, shapes in short, then ops and paths cut."""
    if sum(max(map(len, column)) for column in zip(HEADERS, *rows, strict=True)) + GAPS > width:
        rows = [(*row[:2], row[2].replace("f32", "").replace(", ", ","), *row[3:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(HEADERS, *rows, strict=True)]
    least = (min(widths[0], LEAST_PATH), min(widths[1], LEAST_OP))
    while sum(widths) + GAPS > width and (widths[0], widths[1]) != least:
        wider = 1 if widths[0] == least[0] or widths[1] > max(widths[0], least[1]) else 0
        widths[wider] -= 1
    return [(_cut_path(row[0], widths[0]), _cut(row[1], widths[1]), *row[2:]) for row in rows]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _cut_path(text: str, width: int) -> str:
    """A path without its beginning: the end tells one from another."""
    if len(text) <= width:
        return text
    path = text.lstrip()
    indent = text[: min(len(text) - len(path), width // 2)]
    return f"{indent}...{path[len(indent) + 3 - width :]}"


def show(
    file: str,
    param: tuple[str, ...],
    form: str | None,
    output: str | None,
    force: bool,
    at: str,
    depth: int | None,
    everything: bool,
) -> Report:
    """Print the layers of a network, or draw it.

    The table has shapes and costs. Blocks that repeat are shown once; --all shows each. --at
    shows one block alone, with what enters and leaves it.
    With --format svg or dot (or -o NAME.svg) the network is drawn: a layer has the
    normalisation and activation beside it in its box, and what skips layers is in red.
    """
    form = form or _format_of(output)
    program = options.program(file, param)
    if form != "table":
        view = View(at, depth, not everything, block_names(program.origins))
        return draw(program.graph, file, form, output, view, force=force)
    if output is not None:
        raise error("A609", "the table is printed; -o goes with --format svg or dot")
    graph, ops = program.graph, installed_ops()
    scope = outline(graph, at)
    nodes = list(scope.nodes()) if at else list(graph)
    total = cost(graph, ops, nodes)
    costs = {layer.node: layer for layer in total.layers}
    kinds = block_names(program.origins)
    table = Table(graph, ops, costs, depth, not everything, kinds)
    table.fill(scope)
    width = min(max(shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)
    text = options.table(HEADERS, fitted(table.rows, width), right=(3, 4))
    name = f"{graph.name}, {at}" if at else graph.name
    kind = f" ({kinds[at]})" if at in kinds else ""
    foot = f"\n{name}{kind}: {total.params:,} parameters, {total.macs:,} MACs (batch 1)"
    layers = [layer_data(node, costs[node.name]) for node in nodes]
    data = {"file": file, "name": graph.name, **({"at": at} if at else {}), "layers": layers}
    return Report(data, text + foot)


def layer_data(node: Node, own: LayerCost) -> dict[str, object]:
    """A layer as the JSON document has it."""
    return {
        "path": node.name,
        "op": node.op,
        "attrs": {k: list(v) if isinstance(v, tuple) else v for k, v in node.attrs.items()},
        "inputs": [str(v) for v in node.inputs],
        "types": [str(t) for t in node.types],
        "params": dict(node.params),
        "param_count": own.params,
        "macs": own.macs,
    }


def _format_of(output: str | None) -> str:
    """The format that an output's name asks for."""
    if output is None:
        return "table"
    suffix = Path(output).suffix.lower()
    if suffix not in SUFFIXES:
        raise error("A609", f"-o {output}: no such format", hint="-o NAME.svg or --format svg|dot")
    return SUFFIXES[suffix]


@dataclass(frozen=True)
class View:
    """What of a network is drawn: see :class:`archir.target.Draw`."""

    at: str
    depth: int | None
    fold: bool
    kinds: Mapping[str, str]


def draw(
    graph: Graph, file: str, form: str, output: str | None, view: View, *, force: bool
) -> Report:
    """Draw a network into a file, or onto standard output."""
    from archir.files import check_target, writing
    from archir.target import draw as drawn_as

    if output is not None:
        target = Path(output)
        if target.suffix in OURS:
            raise error("A602", f"cannot write {output}: that is no name for a picture")
        check_target(target, force=force)
    made = drawn_as(form)(graph, installed_ops(), **vars(view))
    at = {"at": view.at} if view.at else {}
    data = {"file": file, "name": graph.name, **at, "format": form}
    counts = {"boxes": made.boxes, "edges": made.edges}
    if output is None:
        return Report({**data, **counts, "drawing": made.text}, made.text.rstrip("\n"))
    with writing(output, force=force) as temporary:
        temporary.write_text(made.text, encoding="utf-8", newline="\n")
    text = f"wrote {output}: {_counted(made.boxes, 'box')}, {_counted(made.edges, 'edge')}"
    return Report({**data, **counts, "output": output}, text.replace("boxs", "boxes"))


command = make(
    "show",
    options.file,
    options.params,
    click.option("--format", "form", type=click.Choice(["table", "svg", "dot"]), help="[table]"),
    click.option("-o", "--output", type=click.Path(dir_okay=False), help="NAME.svg or NAME.dot."),
    options.force,
    click.option("--at", default="", metavar="BLOCK", help="Only one block, such as stage2.0."),
    click.option("--depth", type=click.IntRange(0), help="How many levels of blocks to open."),
    click.option("--all", "everything", is_flag=True, help="Show every repeat of a block."),
    example="archir show net.arch -o net.svg",
)(show)
