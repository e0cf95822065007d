"""Numbers of a network's text made parameters of its arch: classes, and the input's size.

An imported network comes as numbers alone. Where one layer gives the classes, its width becomes
``classes``, so that ``--param classes=10`` gives a new head; where the network is convolutional
up to pooling over all pixels, height and width become ``size``. Each is tried before it is
written: the text with the default gives the very same graph, and the text with other values a
graph that differs where it should and nowhere else.

What an import has computed from the size (an asymmetric padding, say) stays as it was computed.
"""

from __future__ import annotations

from collections.abc import Mapping

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph, Node
from archir.ir.same import equal
from archir.ir.types import AttrValue, TensorType
from archir.lang import tree as t
from archir.lang.elaboration import load
from archir.lang.format import format_text
from archir.lang.program import Program
from archir.lang.sites import Arguments, Edit, apply, call_of
from archir.ops.record import OpSet

CLASSES, SIZE = "classes", "size"

COLLAPSE = frozenset(
    {"global_avg_pool", "global_max_pool", "adaptive_avg_pool", "adaptive_max_pool"}
    | {"mean", "sum", "max", "min", "var", "std", "l2_norm"}
)
"""The operators after which the extent of the input may no longer be seen."""


def parametrised(text: str, ops: OpSet, *, size: bool = True) -> str:
    """A network's text with ``classes`` and ``size`` as parameters, as far as it has them.

    Args:
        text: The text of a network, as :func:`archir.lang.print_graph` gives it.
        ops: The operators.
        size: Whether height and width become a parameter.

    Returns:
        A text that gives the same graph; the text itself where neither applies.

    Raises:
        ArchirError: the text is no network.
    """
    text = _with(text, ops, CLASSES)
    return _with(text, ops, SIZE) if size else text


def _with(text: str, ops: OpSet, name: str) -> str:
    program = load(Source("<given>", text), ops)
    arch = program.document.archs[0]
    taken = {formal.name.text for formal in arch.formals} | _names(arch)
    if name in taken:
        return text
    found = _head(program, ops) if name == CLASSES else _extent(program)
    if found is None:
        return text
    value, edits = found
    made = apply(text, [_formal(arch, f"{name} = {value}"), *edits])
    try:
        made = format_text(Source("<made>", made))
        again = load(Source("<made>", made), ops).graph
        fine = _classes_move if name == CLASSES else _size_moves
        if equal(again, program.graph) and fine(again, _variants(made, ops, name, value)):
            return made
    except ArchirError:
        return text  # other values do not give a network
    return text


def _names(arch: t.Arch) -> set[str]:
    """The names that the body of an arch binds."""
    found = {"input"}
    for statement in arch.body:
        match statement:
            case t.Bind():
                found |= {target.text for target in statement.targets}
            case t.Let() | t.InputStatement() | t.TensorStatement():
                found.add(statement.name.text)
            case _:
                pass
    return found


def _formal(arch: t.Arch, text: str) -> Edit:
    if arch.formals_span is None:
        at = arch.name.span.end
        return Edit(at, at, f"({text})")
    at = arch.formals[-1].span.end if arch.formals else arch.formals_span.end - 1
    return Edit(at, at, f", {text}" if arch.formals else text)


def _variants(text: str, ops: OpSet, name: str, value: int) -> list[Graph]:
    values = (value + 7, 2) if name == CLASSES else (2 * value, value + 32)
    source = Source("<made>", text)
    given: list[Mapping[str, AttrValue]] = [{name: v} for v in values if v != value]
    return [load(source, ops, params).graph for params in given]


# -- classes


def _head(program: Program, ops: OpSet) -> tuple[int, list[Edit]] | None:
    """The width of the one layer that gives the output, and where it is written."""
    graph = program.graph
    if len(graph.outputs) != 1:
        return None
    node = graph.node(graph.outputs[0].value.node)
    while not node.params and len(node.inputs) == 1:
        node = graph.node(node.inputs[0].node)
    origin = program.origins[node.name]
    call = call_of(origin.site)
    kernel = node.attrs.get("kernel", 1)
    wide = set(kernel if isinstance(kernel, tuple) else (kernel,)) != {1}
    if node.op not in ("linear", "conv") or wide or call is None:
        return None  # a convolution over more than a pixel makes features
    if not isinstance(origin.scope.instance.block, t.Arch):
        return None  # in a block: its body does not see the parameters of the arch
    names = [attr.name for attr in ops[node.op].attrs]
    blocks = [block.name.text for block in program.document.blocks]
    width = Arguments(call, names, origin.scope, ops, blocks)
    stated = width.by_name.get("out")
    if stated is None or not isinstance(stated.value, t.Literal):
        return None
    value = stated.value.value
    return (value, [width.change("out", CLASSES)]) if type(value) is int else None


def _classes_move(graph: Graph, others: list[Graph]) -> bool:
    """Whether other numbers of classes change the head's tensors and the output alone."""
    ends = {graph.outputs[0].value.node}
    node = graph.node(graph.outputs[0].value.node)
    while not node.params:
        node = graph.node(node.inputs[0].node)
        ends.add(node.name)
    for other in others:
        if list(other.parameters) != list(graph.parameters):
            return False
        moved = {p for p, q in graph.parameters.items() if other.parameters[p] != q}
        if moved != set(node.params.values()) or _output(other) == _output(graph):
            return False
        if any(a.types != b.types and a.name not in ends for a, b in _pairs(graph, other)):
            return False
    return True


def _output(graph: Graph) -> TensorType:
    return graph.type_of(graph.outputs[0].value)


def _pairs(a: Graph, b: Graph) -> list[tuple[Node, Node]]:
    return [(node, b.node(node.name)) for node in a]


# -- size


def _extent(program: Program) -> tuple[int, list[Edit]] | None:
    """Height and width of the one image that comes in, and where they are written."""
    inputs = [s for s in program.document.archs[0].body if isinstance(s, t.InputStatement)]
    if len(inputs) != 1 or len(inputs[0].type.dims) != 4:
        return None
    high, wide = inputs[0].type.dims[2:]
    if not isinstance(high, t.Literal) or not isinstance(wide, t.Literal):
        return None
    if type(high.value) is not int or high.value != wide.value or high.value < 2:
        return None
    edits = [Edit(dim.span.start, dim.span.end, SIZE) for dim in (high, wide)]
    return high.value, edits


def _size_moves(graph: Graph, others: list[Graph]) -> bool:
    """Whether other sizes change what lies before a pooling over all pixels, and nothing else."""
    for other in others:
        outs = [other.type_of(o.value) for o in other.outputs]
        if outs != [graph.type_of(o.value) for o in graph.outputs]:
            return False
        if other.parameters != graph.parameters:
            return False
        for node, moved in _pairs(graph, other):
            before = [graph.type_of(v) for v in node.inputs]
            after = [other.type_of(v) for v in moved.inputs]
            if not _may_move(node, moved, before, after):
                return False
    return True


def _may_move(node: Node, moved: Node, before: list[TensorType], after: list[TensorType]) -> bool:
    """Whether an operator does the same to inputs of another size."""
    if before == after or node.op in COLLAPSE:
        return True
    if node.types == moved.types:
        return False
    if node.op in ("slice", "select"):  # what is taken was counted in pixels
        axis = node.attrs["axis"]
        assert isinstance(axis, int)
        return before[0].shape[axis] == after[0].shape[axis]
    return True
