"""Small networks to try rules on: around a rule's own pattern, or with classes of all kinds.

Numbered from 0: the first are the smallest and use defaults, later ones are larger and vary
what the rule leaves open. Sizes differ from each other as far as the operators allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from archir.diag import ArchirError
from archir.ir.dims import Size, symbol
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Parameter, Value
from archir.ir.types import AttrValue, TensorType
from archir.lang import tree as t
from archir.ops.infer import OpError, bind_attrs, instance
from archir.ops.record import REQUIRED, Attr, Kind, Op, OpSet, SameAs
from archir.proof.translate import fixed, ranks
from archir.rewrite.expressions import Scope, evaluate, plain
from archir.rewrite.rule import PatternNode, Rewriting, Rule

RANKS = (4, 2, 3, 5)


class UnfitError(Exception):
    """No network could be made with this choice."""


class Sketch:
    """Builds a small network."""

    def __init__(self, ops: OpSet) -> None:
        self.ops = ops
        self.builder = GraphBuilder("instance")

    def input(self, name: str, shape: Sequence[Size]) -> Value:
        """An input of the network."""
        type_ = TensorType("f32", tuple(shape))
        self.builder.inputs.append(name)
        return self.builder.add(Node(name, "input", {}, (), {}, (type_,)))

    def type_of(self, value: Value) -> TensorType:
        """The type of a value."""
        return self.builder.nodes[value.node].types[value.port]

    def add(self, op: str, name: str, operands: Sequence[Value], **attrs: AttrValue) -> Value:
        """A use of an operator, with parameters of its own.

        Raises:
            OpError: the operands or attributes do not fit.
        """
        record = self.ops[op]
        types = tuple(self.type_of(v) for v in operands)
        bound = bind_attrs(record, attrs, types)
        use = instance(record, bound, types)
        params = {p.role: f"{name}.{p.role}" for p in record.present(bound)}
        for p in record.present(bound):
            path = params[p.role]
            self.builder.parameters[path] = Parameter(path, use.params[p.role], p.buffer)
        return self.builder.add(Node(name, op, bound, tuple(operands), params, use.types))

    def build(self, *outputs: Value) -> Graph:
        """The network."""
        self.builder.outputs = [Output(f"out{i}" if i else "out", v) for i, v in enumerate(outputs)]
        return self.builder.build()


# --- around a pattern -----------------------------------------------------------------------


def pattern_network(
    rule: Rule, ops: OpSet, number: int, arguments: Mapping[str, AttrValue], *, tiny: int = 0
) -> tuple[Graph, str]:
    """A network that the left side of a rule is meant to match, and the root of the match.

    ``tiny`` caps all sizes.

    Raises:
        UnfitError: there is none with this number.
    """
    assert isinstance(rule.body, Rewriting)
    drawing = _Pattern(rule, ops, number, arguments, tiny)
    try:
        return drawing.network()
    except (OpError, ArchirError, TypeError, ValueError, KeyError) as reason:
        raise UnfitError(str(reason)) from None


class _Pattern:
    def __init__(
        self, rule: Rule, ops: OpSet, number: int, arguments: Mapping[str, AttrValue], tiny: int
    ) -> None:
        self.rule, self.ops, self.number, self.tiny = rule, ops, number, tiny
        self.rng = np.random.Generator(np.random.PCG64([number, 0x5CE7C4]))
        self.scalars: dict[str, Any] = dict(arguments)
        self.known = fixed(rule)
        self.ranks = ranks(rule)
        self.sketch = Sketch(ops)
        self.values: dict[str, Value] = {}
        self.made: dict[str, Value] = {}

    def network(self) -> tuple[Graph, str]:
        body = self.rule.body
        assert isinstance(body, Rewriting)
        taken = {n.name for n in body.match.nodes}
        for place, name in enumerate(body.match.variables):
            path = f"{name}_in" if name in taken else name
            self.values[name] = self.sketch.input(path, self.shape(name, place))
        for node in body.match.nodes:
            self.made[node.name] = self.node(node)
        handed = [o for name, o in body.match.bindings.items() if name in body.replace.bindings]
        shown = [
            Value(o.node, o.port) if o.node is not None else self.values[o.variable or ""]
            for o in handed
        ]
        root = Value(body.match.nodes[-1].name) if body.match.nodes else shown[0]
        return self.sketch.build(*dict.fromkeys([root, *shown])), root.node

    def shape(self, name: str, place: int) -> list[Size]:
        rank = self.ranks.get(name) or next(
            iter(self.ranks.values()), RANKS[self.number % len(RANKS)]
        )
        grown = self.number // 4
        channels = 2 + grown % 4 + (place if self.number % 3 == 2 else 0)
        around = [3 + grown % 3 + i for i in range(rank - 2)]
        if self.tiny:
            channels, around = min(channels, self.tiny), [min(n, self.tiny) for n in around]
        sizes: list[Size] = [symbol("N"), channels, *around]
        return sizes[:rank]

    def node(self, node: PatternNode) -> Value:
        op = self.ops[node.op]
        operands = [
            self.values[o.variable]
            if o.variable is not None
            else Value(self.made[o.node or ""].node, o.port)
            for o in node.operands
        ]
        last: Exception = UnfitError("no attributes fit")
        for attempt in range(12):
            try:
                attrs = self.attributes(op, node, attempt)
                made = self.sketch.add(op.name, node.name, operands, **attrs)
            except OpError as reason:
                last = reason
                continue
            held = self.sketch.builder.nodes[made.node].attrs
            for name, expression in node.attrs.items():
                if isinstance(expression, t.Name):
                    self.scalars.setdefault(expression.path, plain(held[name]))
            return made
        raise last

    def attributes(self, op: Op, node: PatternNode, attempt: int) -> dict[str, AttrValue]:
        given: dict[str, AttrValue] = {}
        for attr in op.attrs:
            expression = node.attrs.get(attr.name) or self.known.get(f"{node.name}.{attr.name}")
            if isinstance(expression, t.Name) and expression.path not in self.scalars:
                expression = self.known.get(expression.path)
            if expression is not None:
                scope = Scope(
                    self.sketch.builder.build(), names=dict(self.scalars), tensors=self.values
                )
                given[attr.name] = evaluate(expression, scope)  # type: ignore[assignment]
                continue
            value = self.draw(attr, attempt)
            if value is not None:
                given[attr.name] = value
        return given

    def draw(self, attr: Attr, attempt: int) -> AttrValue:
        """A value for what the pattern leaves open; None for the default."""
        rng = self.rng
        if attr.default is REQUIRED:
            whole = int(rng.integers(2, 5)) if self.number > 3 else 2 + (self.number + attempt) % 3
            choices: dict[Kind, AttrValue] = {Kind.INT: whole, Kind.SPATIAL: 2, Kind.FLOAT: 0.5}
            if attr.kind not in choices:
                raise UnfitError(f"`{attr.name}` would have to be made up")
            return choices[attr.kind]
        if self.number < 2 or attempt > 8 or rng.random() < 0.5 or isinstance(attr.default, SameAs):
            return None
        if attr.kind is Kind.BOOL:
            return bool(rng.integers(0, 2))
        if attr.kind in (Kind.SPATIAL, Kind.INT):
            return int(rng.integers(1, 4))
        if attr.kind is Kind.PADDING:
            return int(rng.integers(0, 2))
        if attr.kind is Kind.FLOAT:
            return float(rng.choice([0.0, 0.125, 0.5]))
        return None


# --- with classes ---------------------------------------------------------------------------


def class_network(ops: OpSet, number: int) -> Graph:
    """A network with axis classes: a chain, a residual, a concatenation, heads, groups, ...

    Raises:
        UnfitError: an operator that it would use is not there.
    """
    maker = MAKERS[number % len(MAKERS)]
    try:
        return maker(Sketch(ops), 2 + (number // len(MAKERS)) % 3)
    except (KeyError, OpError) as reason:
        raise UnfitError(str(reason)) from None


def _image(s: Sketch, channels: int = 1) -> Value:
    return s.input("image", (symbol("N"), channels, 3, 4))


def _dense(s: Sketch, n: int) -> Graph:
    x = s.input("x", (symbol("N"), 3))
    x = s.add("linear", "fc1", [x], out=n)
    x = s.add("relu", "relu", [x])
    return s.build(s.add("linear", "fc2", [x], out=1))


def _chain(s: Sketch, n: int) -> Graph:
    x = s.add("conv", "conv1", [_image(s)], out=n, kernel=1 if n == 2 else 3)
    x = s.add("batch_norm", "bn", [x])
    x = s.add("relu", "relu", [x])
    return s.build(s.add("conv", "conv2", [x], out=1, bias=n != 3))


def _residual(s: Sketch, n: int) -> Graph:
    stem = s.add("conv", "stem", [_image(s)], out=n)
    x = s.add("conv", "conv", [stem], out=n, kernel=3, bias=False)
    x = s.add("batch_norm", "bn", [x])
    x = s.add("add", "add", [stem, x])
    x = s.add("relu", "relu", [x])
    return s.build(s.add("conv", "head", [x], out=1))


def _joined(s: Sketch, n: int) -> Graph:
    image = _image(s)
    one = s.add("conv", "one", [image], out=n)
    two = s.add("conv", "two", [image], out=n + 1)
    x = s.add("concat", "concat", [one, two])
    x = s.add("batch_norm", "bn", [x])
    return s.build(s.add("conv", "head", [x], out=2))


def _flat(s: Sketch, n: int) -> Graph:
    x = s.add("conv", "conv", [_image(s)], out=n)
    x = s.add("max_pool", "pool", [x], kernel=2, stride=1)
    x = s.add("flatten", "flatten", [x])
    return s.build(s.add("linear", "head", [x], out=2))


def _depthwise(s: Sketch, n: int) -> Graph:
    x = s.add("conv", "point", [_image(s)], out=n)
    x = s.add("conv", "depth", [x], out=n * (n - 1), kernel=3, groups=n)
    x = s.add("relu", "relu", [x])
    return s.build(s.add("conv", "head", [x], out=1))


def _pooled(s: Sketch, n: int) -> Graph:
    x = s.add("conv", "conv", [_image(s, 2)], out=n, kernel=3, stride=2)
    x = s.add("relu", "relu", [x])
    x = s.add("global_avg_pool", "pool", [x])
    return s.build(s.add("linear", "head", [x], out=2))


def _shared(s: Sketch, n: int) -> Graph:
    """A class that a layer both reads and makes, twice over."""
    x = s.add("conv", "stem", [_image(s)], out=n)
    y = s.add("conv", "first", [x], out=n)
    y = s.add("mul", "mul", [x, y])
    z = s.add("conv", "second", [y], out=n, kernel=3)
    z = s.add("add", "add", [x, y, z])
    z = s.add("avg_pool", "pool", [z], kernel=2)
    return s.build(s.add("conv", "head", [z], out=1))


def _grouped(s: Sketch, n: int) -> Graph:
    """Two groups of channels, and a normalisation of each."""
    x = s.add("conv", "point", [_image(s)], out=2 * n)
    x = s.add("conv", "grouped", [x], out=6, kernel=3, groups=2, bias=n != 3)
    x = s.add("group_norm", "gn", [x], groups=2)
    x = s.add("relu", "relu", [x])
    return s.build(s.add("conv", "head", [x], out=1))


def _layered(s: Sketch, n: int) -> Graph:
    """A residual stream that is averaged over, and a layer beside it that is not."""
    x = s.input("x", (symbol("N"), 3, 4))
    stream = s.add("linear", "embed", [x], out=n)
    y = s.add("layer_norm", "ln", [stream])
    y = s.add("linear", "up", [y], out=n + 1)
    y = s.add("gelu", "gelu", [y])
    y = s.add("linear", "down", [y], out=n)
    y = s.add("add", "add", [stream, y])
    return s.build(s.add("linear", "head", [y], out=1))


def _attending(s: Sketch, n: int) -> Graph:
    """Heads, with a packed projection."""
    x = s.input("x", (symbol("N"), 3, 4))
    packed = s.add("linear", "qkv", [x], out=6 * n)
    s.add("chunk", "chunk", [packed], chunks=3, axis=-1)
    parts = [Value("chunk", port) for port in range(3)]
    y = s.add("attention", "attention", parts, heads=2, scale=0.5, causal=n == 3)
    return s.build(s.add("linear", "head", [y], out=1))


def _halved(s: Sketch, n: int) -> Graph:
    """The parts of a split meet again."""
    x = s.add("conv", "conv", [_image(s)], out=2 * n)
    s.add("split", "split", [x], sizes=(n, n))
    y = s.add("sigmoid", "gate", [Value("split", 1)])
    y = s.add("mul", "mul", [Value("split"), y])
    return s.build(s.add("conv", "head", [y], out=1))


def _shuffled(s: Sketch, n: int) -> Graph:
    """Groups of channels change places with what is inside of them."""
    x = s.add("conv", "conv", [_image(s)], out=2 * n)
    x = s.add("reshape", "cut", [x], shape=(0, 2, n, 3, 4))
    x = s.add("transpose", "turn", [x], a=1, b=2)
    x = s.add("reshape", "join", [x], shape=(0, 2 * n, 3, 4))
    x = s.add("conv", "depth", [x], out=2 * n, kernel=3, groups=2 * n)
    return s.build(s.add("conv", "head", [x], out=1))


def _squashed(s: Sketch, n: int) -> Graph:
    """What is zero does not stay so, and is normalised."""
    x = s.add("conv", "conv1", [_image(s)], out=n)
    x = s.add("sigmoid", "sigmoid", [x])
    x = s.add("conv", "depth", [x], out=n, groups=n)
    x = s.add("softplus", "softplus", [x])
    x = s.add("batch_norm", "bn", [x])
    return s.build(s.add("conv", "head", [x], out=1))


MAKERS = (
    *(_chain, _residual, _layered, _grouped, _joined, _squashed, _flat, _attending),
    *(_dense, _depthwise, _halved, _pooled, _shuffled, _shared),
)
"""Makers of networks with classes of all kinds."""
