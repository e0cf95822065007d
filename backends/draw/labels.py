"""What a box says: a short text for each operator, and the family that gives its colour."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from archir.ir.dims import Size
from archir.ir.graph import Graph, Node
from archir.ir.types import AttrValue, TensorType
from archir.lang.words import arguments, call, compact, needed, write_value
from archir.ops.record import OpSet

FAMILIES: Mapping[str, str] = {
    "conv": "conv conv_transpose",
    "linear": "linear matmul einsum embedding",
    "attention": "attention",
    "norm": "batch_norm layer_norm rms_norm group_norm instance_norm local_response_norm",
    "activation": "relu relu6 leaky_relu prelu elu selu celu gelu silu mish sigmoid tanh hardswish "
    "hardsigmoid hardtanh softplus softsign softmax log_softmax abs exp sqrt neg",
    "noise": "dropout stochastic_depth null",
    "pool": "max_pool avg_pool global_avg_pool global_max_pool adaptive_avg_pool "
    "adaptive_max_pool mean sum max",
    "merge": "add sub mul div concat",
    "shape": "flatten reshape permute transpose squeeze unsqueeze pad upsample roll gather chunk "
    "split slice select expand pixel_shuffle",
    "end": "input output constant parameter",
}
"""The families, each with its operators; one that is not listed here is a family of its own."""

FAMILY: Mapping[str, str] = {op: name for name, ops in FAMILIES.items() for op in ops.split()}
OTHER = "other"
BLOCK = "block"
"""The family of a block that is drawn as one box."""

COLOURS: Mapping[str, tuple[str, str, str, str]] = {
    "conv": ("#dbeafe", "#3b82f6", "#1e3a5f", "#60a5fa"),
    "linear": ("#e0e7ff", "#6366f1", "#312e81", "#818cf8"),
    "attention": ("#ede9fe", "#8b5cf6", "#4c1d95", "#a78bfa"),
    "norm": ("#ccfbf1", "#14b8a6", "#134e4a", "#2dd4bf"),
    "activation": ("#fef3c7", "#d97706", "#713f12", "#fbbf24"),
    "noise": ("#f3f4f6", "#9ca3af", "#374151", "#9ca3af"),
    "pool": ("#dcfce7", "#22a356", "#14532d", "#4ade80"),
    "merge": ("#ffe4e6", "#e11d48", "#701a2e", "#fb7185"),
    "shape": ("#f3f4f6", "#9ca3af", "#374151", "#9ca3af"),
    "end": ("#ffffff", "#4b5563", "#111827", "#9ca3af"),
    "block": ("#e2e8f0", "#64748b", "#334155", "#94a3b8"),
    "other": ("#fae8ff", "#c026d3", "#581c87", "#e879f9"),
}
"""For each family: fill and border on a light page, fill and border on a dark one."""

Label = Callable[[Node, Graph], str]


def family(op: str) -> str:
    """The family of an operator."""
    return FAMILY.get(op, OTHER)


def text(node: Node, graph: Graph, ops: OpSet) -> str:
    """A use of an operator in a few words: ``conv 3x3, 64 /2``."""
    label = LABELS.get(node.op)
    return label(node, graph) if label is not None else _plain(node, graph, ops)


def full(node: Node, graph: Graph, ops: OpSet) -> str:
    """A use of an operator as the language writes it."""
    op = ops[node.op]
    rank = graph.type_of(node.inputs[0]).rank if node.inputs else 0
    stated = {
        name: write_value(compact(op, name, node.attrs[name]))
        for name in needed(op, node.attrs, rank)
    }
    return call(node.op, arguments(op, stated))


def shape(types: tuple[TensorType, ...]) -> str:
    """The shapes of a node's results, without the batch: ``64 x 32 x 32``."""
    first = _sizes(types[0])
    if len(types) == 1:
        return first
    alike = all(type_ == types[0] for type_ in types)
    return f"{len(types)} of {first}" if alike else f"{len(types)} results"


def _sizes(type_: TensorType) -> str:
    sizes: tuple[Size, ...] = type_.shape
    if sizes and not isinstance(sizes[0], int):
        sizes = sizes[1:]
    found = " x ".join(map(str, sizes)) or "scalar"
    return found if type_.dtype == "f32" else f"{type_.dtype} {found}"


def _plain(node: Node, graph: Graph, ops: OpSet) -> str:
    said = full(node, graph, ops)
    name, _, rest = said.partition("(")
    inside = rest.removesuffix(")").replace(" = ", " ")
    return f"{name.replace('_', ' ')} {inside}".strip()


def _times(value: AttrValue) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _ones(value: AttrValue) -> bool:
    return all(v == 1 for v in value) if isinstance(value, tuple) else value == 1


def _each(value: AttrValue) -> str:
    """A number for each spatial axis: one number where they are the same."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return str(value[0])
    return _times(value)


def _conv(node: Node, graph: Graph) -> str:
    attrs = node.attrs
    parts = [f"{node.op.replace('_', ' ')} {_times(attrs['kernel'])}, {attrs['out']}"]
    if not _ones(attrs["stride"]):
        parts.append(f"/{_each(attrs['stride'])}")
    groups = attrs["groups"]
    if groups != 1:
        channels = graph.type_of(node.inputs[0]).shape[1]
        parts.append("depthwise" if groups == channels else f"groups {groups}")
    if not _ones(attrs["dilation"]):
        parts.append(f"dilation {_each(attrs['dilation'])}")
    return " ".join(parts)


def _pool(node: Node, _: Graph) -> str:
    kind = node.op.replace("_", " ")
    stride = "" if _ones(node.attrs["stride"]) else f" /{_each(node.attrs['stride'])}"
    return f"{kind} {_times(node.attrs['kernel'])}{stride}"


def _named(name: str) -> Label:
    return lambda node, graph: name


LABELS: Mapping[str, Label] = {
    "conv": _conv,
    "conv_transpose": _conv,
    "max_pool": _pool,
    "avg_pool": _pool,
    "batch_norm": _named("bn"),
    "layer_norm": _named("layer norm"),
    "rms_norm": _named("rms norm"),
    "instance_norm": _named("instance norm"),
    "group_norm": lambda node, graph: f"group norm {node.attrs['groups']}",
    "attention": lambda node, graph: f"attention, {node.attrs['heads']} heads",
    "flatten": _named("flatten"),
    "transpose": lambda node, graph: f"transpose {node.attrs['a']}, {node.attrs['b']}",
    "stochastic_depth": lambda node, graph: f"stochastic depth {node.attrs['p']:.3g}",
    "linear": lambda node, graph: f"linear {node.attrs['out']}",
    "dropout": lambda node, graph: f"dropout {node.attrs['p']:.3g}",
    "input": lambda node, graph: node.name,
    "constant": _named("constant"),
    "parameter": _named("parameter"),
}
"""Operators with a text of their own; the others are called as the language writes them."""
