"""From the nodes of a checked file to a graph of archir, with its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, defs

from archir.diag import ArchirError, error
from archir.ir.check import check as check_graph
from archir.ir.dims import Dim, Size, product
from archir.ir.dims import symbol as make_symbol
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Parameter, Value
from archir.ir.types import TensorType
from archir.ops import STANDARD
from archir.ops.arithmetic import Array

from . import naming
from .folding import FOLD, Budget, ExcessiveError, Use
from .reading import Source, array_of, malformed, shown
from .site import Draft, Net, RefusedError, Site, Tensor, attributes
from .structure import Checked, describe, refused
from .table import NEVER, RAISE
from .values import DTYPES, Known, Made, UnfoldedError, made_up, plain

_ELEMENTS: dict[int, str] = {
    TensorProto.FLOAT: "f32",
    TensorProto.FLOAT16: "f16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "f64",
    TensorProto.INT64: "i64",
    TensorProto.INT32: "i32",
    TensorProto.BOOL: "bool",
}
_MOST_SHOWN = 12
_STRANGE = (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError, KeyError)
"""What NumPy raises where numbers do not fit each other."""


@dataclass
class Raised:
    """A network that was raised from a file."""

    graph: Graph
    weights: dict[str, Array]
    inputs: dict[str, str]
    """The file's name of each input."""
    outputs: list[str]
    """The file's names of the outputs, in order."""
    folded: int
    """Nodes that were known before the network runs."""
    ties: int = 0
    """Tensors that several layers hold."""
    inner: dict[str, Value] = field(default_factory=dict)
    """The network's value for each value of the file that it still computes, in order."""


@dataclass
class _Build:
    source: Source
    checked: Checked
    size: tuple[int, ...] | None
    folded: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    symbols: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.budget = Budget(2**28 + 8 * self.source.bytes)
        self.net = Net(STANDARD, self.checked.opset)

    def run(self) -> Raised:
        _known_operators(self.checked.nodes)
        graph = self.source.model.graph
        for name, array in self.source.tensors.items():
            self.net.values[name] = Known(array, name, name)
        for value in graph.input:
            if value.name not in self.source.tensors:
                self._input(value)
        self._wire(self.checked.nodes)
        for output in graph.output:
            self.net.readers.setdefault(output.name, []).append(NodeProto())
        for node in self.checked.nodes:
            if node.op_type != "If":
                self._fold_ahead(node)
        self._raise(self.checked.nodes, 0)
        if self.problems:
            raise refused(_listed(self.problems))
        return self._finished(graph)

    # -- before the first node

    def _input(self, value: ValueInfoProto) -> None:
        name = shown(value.name)
        if not value.type.HasField("tensor_type"):
            raise error("A536", f"the input {name} is no tensor")
        tensor = value.type.tensor_type
        dtype = _ELEMENTS.get(tensor.elem_type)
        if dtype is None:
            raise error("A536", f"the input {name} is of an element type archir has no use for")
        if not tensor.HasField("shape"):
            raise error("A536", f"the input {name} has no shape")
        shape: list[Size] = []
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.HasField("dim_value"):
                if dim.dim_value < 0:
                    raise malformed(f"the input {name} has the size {dim.dim_value}")
                if dim.dim_value == 0:
                    raise error("A536", f"the input {name} has no entries")
                shape.append(int(dim.dim_value))
                continue
            key = dim.dim_param or f"{value.name}:{axis}" if axis else dim.dim_param or ":batch"
            if key not in self.symbols:
                self.symbols[key] = naming.symbol(dim.dim_param, axis, self.symbols)
            shape.append(make_symbol(self.symbols[key]))
        if self.size is not None and not self.inputs:
            shape = _stated(name, shape, self.size)
        type_ = TensorType(dtype, tuple(shape))
        if not type_.is_representable or len(shape) > 32:
            raise malformed(f"the input {name} is {str(type_)[:80]}", code="A533")
        path = self._input_path(value.name)
        self.net.drafts.append(Draft("input", {}, (), {}, (type_,), value.name, fixed=path))
        self.net.values[value.name] = Made(len(self.net.drafts) - 1, 0, type_)
        self.inputs[path] = value.name

    def _input_path(self, name: str) -> str:
        wish = naming.cleaned(name).replace(".", "_") or "input"
        wish = wish if wish != "input" else "x"
        path, number = wish, 1
        while path in self.inputs:
            number += 1
            path = f"{wish}_{number}"
        return path

    def _wire(self, nodes: Sequence[NodeProto]) -> None:
        for node in nodes:
            for name in dict.fromkeys(node.input):
                self.net.readers.setdefault(name, []).append(node)
            for name in node.output:
                self.net.makers[name] = node
            scope = naming.scope_of(node)
            for name in node.output:
                self.net.scopes[name] = scope
            for inner in _bodies(node):
                self._wire(inner.node)
                for output in inner.output:
                    self.net.readers.setdefault(output.name, []).append(NodeProto())

    # -- nodes

    def _raise(self, nodes: Sequence[NodeProto], level: int) -> None:
        for node in nodes:
            first = next((name for name in node.output if name), "")
            if first in self.net.done or first in self.net.values:
                continue
            if any(name and self.net.values.get(name, self) is None for name in node.input):
                self._poison(node)
                continue
            try:
                self._one(node, level)
            except RefusedError as reason:
                self.problems.append(("A536", f"{describe(node)} cannot be raised: {reason}"))
                self._poison(node)
            except ExcessiveError as reason:
                raise malformed(f"{describe(node)} {reason}", code="A533") from None
            except _STRANGE as reason:
                text = " ".join(str(reason).split())[:120]
                message = f"{describe(node)} cannot be raised: its operands do not fit ({text})"
                self.problems.append(("A536", message))
                self._poison(node)

    def _poison(self, node: NodeProto) -> None:
        for name in node.output:
            self.net.values[name] = None

    def _one(self, node: NodeProto, level: int) -> None:
        if node.op_type == "If":
            self._branch(node, level)
            return
        if self._shape(node) or self._fold(node):
            return
        site = Site(self.net, node)
        raise_ = RAISE.get(node.op_type)
        if raise_ is None:
            raise RefusedError("it computes with what is known beforehand alone")
        missing = [name for name in node.input if name and name not in self.net.values]
        if missing:
            raise RefusedError(f"it reads {shown(missing[0])}, which went into a layer before it")
        raise_(site)
        unread = site.unread()
        if unread:
            raise RefusedError(f"archir has nothing for its {', '.join(unread)}")
        for name in node.output:
            if name and name not in self.net.values and name not in self.net.done:
                if not self.net.readers.get(name):
                    self.net.values[name] = None
                elif site.follower(name) is None or not self._merged(node):
                    raise RefusedError(f"its output {shown(name)} was not made")

    def _merged(self, node: NodeProto) -> bool:
        """Whether the node was raised with one after it."""
        reader = self.net.readers[node.output[0]][0]
        return any(name in self.net.done for name in reader.output)

    def _fold_ahead(self, node: NodeProto) -> None:
        """What needs nothing of the network is known before the first node is raised."""
        found = [self.net.values.get(name) for name in node.input if name]
        if all(isinstance(entry, Known) and not entry.symbolic for entry in found):
            try:
                self._fold(node)
            except ExcessiveError as reason:
                raise malformed(f"{describe(node)} {reason}", code="A533") from None

    def _shape(self, node: NodeProto) -> bool:
        if node.op_type not in ("Shape", "Size"):
            return False
        site = Site(self.net, node)
        known = site.shape_of(0)
        if node.op_type == "Size":
            total: Size = 1
            total = product(known.array.tolist())
            out = np.empty((), object)
            out[...] = total
            self._set(node, [plain(out)])
            return True
        rank = len(known.array)
        start, end = int(site.attr("start", 0)), site.attr("end")
        end = rank if end is None else int(end)
        low = min(max(start + rank if start < 0 else start, 0), rank)
        high = min(max(end + rank if end < 0 else end, 0), rank)
        self._set(node, [plain(known.array[low:high])])
        return True

    def _set(self, node: NodeProto, results: Sequence[Array], name: str = "") -> None:
        self.folded += 1
        for output, array in zip(node.output, results, strict=False):
            if output:
                self.net.values[output] = Known(plain(array), name)

    def _fold(self, node: NodeProto) -> bool:
        fold = FOLD.get(node.op_type)
        if fold is None:
            return False
        entries = [self.net.values.get(name) if name else None for name in node.input]
        given = [name for name in node.input if name]
        if not all(isinstance(self.net.values.get(name), Known) for name in given):
            return False
        args = [entry.array if isinstance(entry, Known) else None for entry in entries]
        use = Use(
            args,
            attributes(node, self.checked.opset),
            self.checked.opset,
            len(node.output),
            self.budget,
        )
        try:
            results = fold(use)
        except (UnfoldedError, *_STRANGE, MemoryError):
            return False
        self._set(node, results)
        self._remember(node, entries)
        return True

    def _remember(self, node: NodeProto, entries: Sequence[object]) -> None:
        """What a known result is called: layers are named after it."""
        source = next((e for e in entries if isinstance(e, Known)), None)
        out = node.output[0]
        made = self.net.values.get(out)
        if not isinstance(made, Known):
            return
        if node.op_type == "Identity" and source is not None:
            # An exporter that finds equal tensors stores one, and the others' names here.
            name = source.name if made_up(out) else out
            self.net.values[out] = Known(made.array, name, name)
        elif node.op_type == "Constant":
            self.net.values[out] = Known(made.array, "", "")
        elif node.op_type == "ConstantOfShape" and made.array.size > 1:
            self.net.values[out] = Known(made.array, out, out)
        elif source is not None and source.base:
            turned = node.op_type == "Transpose" and made.array.ndim == 2 and bool(source.name)
            base = source.base if turned or len(node.input) == 1 else ""
            self.net.values[out] = Known(made.array, "", base if turned else "")

    def _branch(self, node: NodeProto, level: int) -> None:
        """An If whose condition is known: the nodes of that branch stand in its place."""
        condition = self.net.known(node.input[0])
        if condition is None or condition.symbolic or condition.array.size != 1:
            raise RefusedError("its condition is computed by the network")
        wanted = "then_branch" if bool(condition.array.reshape(-1)[0]) else "else_branch"
        body = next(a.g for a in node.attribute if a.name == wanted)
        if body.sparse_initializer:
            raise RefusedError("its branch has sparse initializers")
        for tensor in body.initializer:
            self.net.values[tensor.name] = Known(array_of(tensor), tensor.name, tensor.name)
        self._raise(body.node, level + 1)
        for name, output in zip(node.output, body.output, strict=True):
            self.net.values[name] = self.net.values[output.name]

    # -- the end

    def _finished(self, graph: GraphProto) -> Raised:
        site = Site(self.net, NodeProto(op_type="Identity", output=["output"]))
        ends: list[Made] = []
        for output in graph.output:
            entry = self.net.values[output.name]
            assert entry is not None
            try:
                ends.append(entry if isinstance(entry, Made) else site.hold(entry))
            except RefusedError as reason:
                message = f"the output {shown(output.name)} cannot be raised: {reason}"
                raise error("A536", message) from None
        drafts, places = _needed(self.net.drafts, ends)
        self._affordable(drafts)
        paths = naming.settle(drafts, self.net.scopes)
        builder = GraphBuilder(naming.arch(graph.name, self.source.path.stem))
        builder.inputs = list(self.inputs)
        weights: dict[str, Array] = {}
        held: dict[tuple[str, ...], str] = {}
        for draft, path in zip(drafts, paths, strict=True):
            params = {
                role: self._parameter(builder, weights, held, draft, path, role, tensor)
                for role, tensor in draft.params.items()
            }
            inputs = tuple(Value(paths[places[x.draft]], x.port) for x in draft.inputs)
            builder.add(Node(path, draft.op, draft.attrs, inputs, params, draft.types))
        names: list[str] = []
        taken = {*self.inputs, *builder.parameters}
        for output, end in zip(graph.output, ends, strict=True):
            wish = naming.cleaned(output.name).replace(".", "_") or "output"
            wish = wish if wish not in ("output", "input") else "y"
            name, number = wish, 1
            while name in taken:
                number += 1
                name = f"{wish}_{number}"
            taken.add(name)
            names.append(output.name)
            builder.outputs.append(Output(name, Value(paths[places[end.draft]], end.port)))
        made = builder.build()
        check_graph(made, "the import from ONNX")
        ties = sum(len(users) > 1 for users in made.users().values())
        inner = {
            name: Value(paths[places[entry.draft]], entry.port)
            for name, entry in self.net.values.items()
            if isinstance(entry, Made) and entry.draft in places
        }
        return Raised(made, weights, self.inputs, names, self.folded, ties, inner)

    def _affordable(self, drafts: Sequence[Draft]) -> None:
        """Refuse a small file that makes weights beyond all proportion."""
        found = {t.key: t.array.nbytes for draft in drafts for t in draft.params.values()}
        total, size = sum(found.values()), self.source.bytes
        if total > 4 * size + 2**30:
            message = f"a file of {size:,} bytes makes {total:,} bytes of weights"
            raise malformed(message, code="A533")

    def _parameter(
        self,
        builder: GraphBuilder,
        weights: dict[str, Array],
        held: dict[tuple[str, ...], str],
        draft: Draft,
        path: str,
        role: str,
        tensor: Tensor,
    ) -> str:
        free = draft.op == "parameter"
        where = held.get(tensor.key)
        if where is None or builder.parameters[where].buffer != _is_buffer(draft, role):
            where = path if free else f"{path}.{role}"
            if tensor.base:
                held[tensor.key] = where
            weights[where] = _own(tensor.array)
            array = weights[where]
            type_ = TensorType(DTYPES[array.dtype.name], array.shape)
            builder.parameters[where] = Parameter(where, type_, buffer=_is_buffer(draft, role))
        return where


def _own(array: Array) -> Array:
    """An array with memory of its own, rows first, which the file's end does not take away."""
    return np.array(array, order="C", copy=True)


def _is_buffer(draft: Draft, role: str) -> bool:
    return (
        bool(draft.attrs["buffer"])
        if draft.op == "parameter"
        else STANDARD[draft.op].param(role).buffer
    )


def _bodies(node: NodeProto) -> list[GraphProto]:
    found = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
    return found + [g for a in node.attribute for g in a.graphs]


def _stated(name: str, shape: list[Size], size: tuple[int, ...]) -> list[Size]:
    if len(size) != len(shape) - 1:
        text = ", ".join(str(entry) for entry in shape)
        hint = f"--size names {len(shape) - 1} sizes"
        raise malformed(f"the input {name} is [{text}]", code="A531", hint=hint)
    for axis, stated in enumerate(size, 1):
        found = shape[axis]
        if not isinstance(found, Dim) and found != stated:
            message = f"the input {name} has {found} at axis {axis}, {stated} was asked for"
            raise malformed(message, code="A531")
        shape[axis] = stated
    return shape


def _known_operators(nodes: Sequence[NodeProto]) -> None:
    """Refuse operators that are not known, all of them at once.

    Raises:
        ArchirError: A535, with their names and nodes.
    """
    found: dict[str, list[str]] = {}

    def look(some: Sequence[NodeProto]) -> None:
        for node in some:
            ours = node.domain in ("", "ai.onnx")
            name = node.op_type if ours else f"{node.domain}.{node.op_type}"
            known = node.op_type in RAISE or node.op_type in FOLD
            if not (ours and (known or node.op_type in ("Shape", "Size", "If"))):
                found.setdefault(name, []).append(describe(node).partition(" ")[2])
            if ours and node.op_type == "If":
                for body in _bodies(node):
                    look(body.node)

    look(nodes)
    if not found:
        return
    parts = []
    for name, where in list(found.items())[:_MOST_SHOWN]:
        reason = NEVER.get(name, "" if defs.has(name) or "." in name else "no operator of ONNX")
        which = ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")
        parts.append(f"{shown(name)} (at {which}{'; ' + reason if reason else ''})")
    if len(found) > _MOST_SHOWN:
        parts.append(f"and {len(found) - _MOST_SHOWN} more")
    many = "s" * (len(found) > 1)
    raise error("A535", f"archir has no counterpart for the operator{many} {', '.join(parts)}")


def _listed(problems: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Alike problems once, and no more than fit a screen."""
    out: list[tuple[str, str]] = []
    alike: Counter[tuple[str, str]] = Counter()
    for code, message in problems:
        kind = (message.partition(" ")[0], message.partition(": ")[2])
        alike[kind] += 1
        if alike[kind] == 1:
            out.append((code, message))
    if len(out) > _MOST_SHOWN:
        more = len(out) - _MOST_SHOWN
        out = [*out[:_MOST_SHOWN], ("A536", f"and {more} more that cannot be raised")]
    return out


def _needed(drafts: Sequence[Draft], ends: Sequence[Made]) -> tuple[list[Draft], dict[int, int]]:
    """The drafts that an output depends on, and the inputs; their places among those kept."""
    wanted = {number for number, draft in enumerate(drafts) if draft.op == "input"}
    stack = [end.draft for end in ends]
    while stack:
        number = stack.pop()
        if number not in wanted:
            wanted.add(number)
            stack.extend(x.draft for x in drafts[number].inputs)
    order = sorted(wanted)
    return [drafts[number] for number in order], {n: place for place, n in enumerate(order)}


def build(source: Source, checked: Checked, size: tuple[int, ...] | None) -> Raised:
    """Raise a checked file.

    Raises:
        ArchirError: A535 (operators that archir has no counterpart for), A536 (uses of
            operators), A531, A533.
    """
    try:
        return _Build(source, checked, size).run()
    except RecursionError:
        raise malformed("the file is nested too deeply", code="A533") from None


__all__ = ["ArchirError", "Raised", "build"]
