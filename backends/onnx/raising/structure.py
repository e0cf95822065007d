"""What every ONNX graph obeys, checked before anything is made of it.

Each name is made once and before it is read, each node is one that its operator's schema allows,
and nothing is nested or repeated beyond measure. Local functions are put in place of their calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, defs, inliner

from archir.diag import ArchirError, Diagnostic, error

from .reading import Source, malformed, newest_opset, opsets, shown

OLDEST_OPSET = 7
"""Before it, operands stretched by other rules."""
NEWEST_IR = 20
MOST_NODES = 50_000
MOST_INLINED = 10_000
"""Nodes that there are once functions stand in place of their calls."""
MOST_LEVELS = 8
"""Graphs within graphs."""

_KINDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
}


@dataclass(frozen=True)
class Checked:
    """A model that has been checked."""

    nodes: tuple[NodeProto, ...]
    """Those that some output depends on, in order."""
    opset: int
    dead: int
    """How many nodes no output depends on."""


def check(source: Source) -> Checked:
    """Check a model, and put its local functions in place of their calls.

    Raises:
        ArchirError: A531 (it is wrong), A533 (it is too large), A534 (its versions).
    """
    model = source.model
    opset = _versions(model)
    if model.functions:
        _inline(source)
        model = source.model
    graph = model.graph
    if graph.sparse_initializer:
        raise error("A536", "the file has sparse initializers, which archir has no use for")
    names = _tops(source)
    budget = [MOST_NODES]
    _check_graph(graph, names, opset, 0, budget)
    for output in graph.output:
        if output.name not in names:
            raise malformed(f"the output {shown(output.name)} is made by no node")
    if not graph.output:
        raise malformed("the graph has no output")
    live = _live(graph)
    return Checked(live, opset, len(graph.node) - len(live))


def _versions(model: ModelProto) -> int:
    if not 3 <= model.ir_version <= NEWEST_IR:
        raise error("A534", f"IR version {model.ir_version} is not read, 3 to {NEWEST_IR} are")
    found = opsets(model)
    if len(found) != len(model.opset_import):
        raise malformed("the file names the opset of a domain twice")
    if "" not in found:
        raise malformed("the file does not name its opset")
    if not OLDEST_OPSET <= found[""] <= newest_opset():
        message = f"opset {found['']} is not read, {OLDEST_OPSET} to {newest_opset()} are"
        hint = "onnx.version_converter converts between opsets" if found[""] < 7 else ""
        raise error("A534", message, hint=hint)
    return found[""]


def _tops(source: Source) -> set[str]:
    """The names that are there before the first node."""
    graph = source.model.graph
    names: set[str] = set()
    for value in graph.input:
        if not value.name:
            raise malformed("an input has no name")
        if value.name in names:
            raise malformed(f"two inputs are named {shown(value.name)}")
        names.add(value.name)
    outputs = [value.name for value in graph.output]
    for name in outputs:
        if not name or outputs.count(name) > 1:
            raise malformed(f"two outputs are named {shown(name)}" if name else "an unnamed output")
    return names | set(source.tensors)


def _check_graph(
    graph: GraphProto, names: set[str], opset: int, level: int, budget: list[int]
) -> None:
    """Check the nodes of a graph; ``names`` gains what they make."""
    if level > MOST_LEVELS:
        message = f"graphs are nested more than {MOST_LEVELS} levels deep"
        raise malformed(message, code="A533")
    budget[0] -= len(graph.node)
    if budget[0] < 0:
        raise malformed(f"there are more than {MOST_NODES:,} nodes", code="A533")
    later = {name for node in graph.node for name in node.output}
    for node in graph.node:
        missing = next((name for name in node.input if name and name not in names), "")
        if missing:
            after = missing in later
            why = "is made after it: a cycle, or a wrong order" if after else "nothing makes"
            raise malformed(f"{describe(node)} reads {shown(missing)}, which {why}")
        _check_schema(node, opset)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.output:
                    _check_body(inner, names, opset, level + 1, budget)
        for name in node.output:
            if name in names:
                raise malformed(f"{shown(name)} is made twice, the second time by {describe(node)}")
            if name:
                names.add(name)


def _check_body(
    graph: GraphProto, names: set[str], opset: int, level: int, budget: list[int]
) -> None:
    own = [value.name for value in graph.input] + [t.name for t in graph.initializer]
    for name in own:
        if name in names:
            raise malformed(f"{shown(name)} is made twice, the second time in a graph of a node")
    inner = names | set(own)
    _check_graph(graph, inner, opset, level, budget)
    for output in graph.output:
        if output.name not in inner:
            raise malformed(f"the output {shown(output.name)} is made by no node")


def describe(node: NodeProto) -> str:
    """A node in words: its operator and its name."""
    name = node.name or next((n for n in node.output if n), "")
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return f"{domain}{node.op_type} {shown(name)}" if name else f"{domain}{node.op_type}"


def _check_schema(node: NodeProto, opset: int) -> None:
    """Hold a node of the standard domain against its operator's schema."""
    found = _attributes(node)
    if node.domain not in ("", "ai.onnx") or not defs.has(node.op_type):
        return
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return  # younger than the opset: unknown there, and refused as such
    for name, kind in found.items():
        wanted = schema.attributes.get(name)
        if wanted is None:
            message = f"{describe(node)} has no attribute {shown(name)}"
            raise malformed(f"{message} in opset {opset}")
        if int(wanted.type.value) != kind:  # type: ignore[attr-defined]
            is_, be = _word(kind), _word(int(wanted.type.value))  # type: ignore[attr-defined]
            raise malformed(f"{describe(node)}: the attribute {shown(name)} is {is_}, not {be}")
    for name, wanted in schema.attributes.items():
        if wanted.required and name not in found:
            raise malformed(f"{describe(node)} lacks the attribute {shown(name)}")
    _check_counts(node, schema)


def _attributes(node: NodeProto) -> dict[str, int]:
    """The attributes of a node with their types, each once and whole."""
    found: dict[str, int] = {}
    for attribute in node.attribute:
        name = attribute.name
        if name in found:
            raise malformed(f"{describe(node)} has the attribute {shown(name)} twice")
        if attribute.ref_attr_name:
            raise malformed(f"{describe(node)}: {shown(name)} is an attribute of a function")
        field = _KINDS.get(attribute.type)
        # A number that is 0 may be left out by writers of proto3.
        if field in ("t", "g") and not attribute.HasField(field):
            raise malformed(f"{describe(node)}: the attribute {shown(name)} is empty")
        found[name] = attribute.type
    return found


def _check_counts(node: NodeProto, schema: defs.OpSchema) -> None:
    least, most = schema.min_input, schema.max_input
    if not least <= len(node.input) <= most or any(not name for name in node.input[:least]):
        given = sum(bool(name) for name in node.input)
        wanted_text = str(least) if least == most else f"{least} to {most}"
        raise malformed(f"{describe(node)} has {given} inputs, it takes {wanted_text}")
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise malformed(f"{describe(node)} has {len(node.output)} outputs")


def _word(kind: int) -> str:
    try:
        return str(AttributeProto.AttributeType.Name(kind)).lower()
    except ValueError:
        return f"of the unknown type {kind}"


def _live(graph: GraphProto) -> tuple[NodeProto, ...]:
    wanted = {output.name for output in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(_reads(node))
    return tuple(reversed(kept))


def _reads(node: NodeProto) -> Iterator[str]:
    """What a node reads, graphs in its attributes included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for within in inner.node:
                yield from _reads(within)
            yield from (output.name for output in inner.output)


# -- functions


def _inline(source: Source) -> None:
    model = source.model
    functions: dict[tuple[str, str, str], FunctionProto] = {}
    for function in model.functions:
        key = (function.domain, function.name, getattr(function, "overload", ""))
        if key in functions:
            raise malformed(f"two functions are named {shown(function.name)}")
        functions[key] = function
    total = _Sizes(functions).of(model.graph.node, ())
    if total > MOST_INLINED:
        message = f"with its functions in place the graph has {total:,} nodes"
        raise malformed(f"{message}, {MOST_INLINED:,} are read at most", code="A533")
    try:
        source.model = inliner.inline_local_functions(model)
    except Exception as reason:
        # The inliner is C++ and raises what it likes.
        text = " ".join(str(reason).split())[:200]
        raise malformed(f"the functions of the file cannot be put in place: {text}") from None


@dataclass
class _Sizes:
    """How many nodes there are once every call is what it calls."""

    functions: dict[tuple[str, str, str], FunctionProto]

    def __post_init__(self) -> None:
        self.known: dict[tuple[str, str, str], int] = {}

    def of(self, nodes: Sequence[NodeProto], within: tuple[tuple[str, str, str], ...]) -> int:
        total = 0
        for node in nodes:
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    if inner.node:
                        total += self.of(inner.node, (*within, ("", "", "")))
            key = (node.domain, node.op_type, getattr(node, "overload", ""))
            total += self._function(key, within) if key in self.functions else 1
        return total

    def _function(self, key: tuple[str, str, str], within: tuple[tuple[str, str, str], ...]) -> int:
        if key in within:
            raise malformed(f"the function {shown(key[1])} calls itself")
        if len(within) > 2 * MOST_LEVELS:
            message = f"functions are nested more than {2 * MOST_LEVELS} levels deep"
            raise malformed(message, code="A533")
        if key not in self.known:
            self.known[key] = self.of(self.functions[key].node, (*within, key))
        return self.known[key]


def refused(problems: Sequence[tuple[str, str]]) -> ArchirError:
    """One error for all that cannot be raised: (code, message) each."""
    return ArchirError(*(Diagnostic(code, message) for code, message in problems))
