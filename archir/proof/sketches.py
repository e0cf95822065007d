"""Small networks to try rules on: around a rule's own pattern, or with classes of all kinds.

Numbered from 0: the first are the smallest and use defaults, later ones are larger and vary
what the rule leaves open. Sizes differ from each other as far as the operators allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any

import numpy as np

from archir.diag import ArchirError
from archir.ir.dims import Size, symbol
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Parameter, Value
from archir.ir.types import AttrValue, TensorType
from archir.lang import tree as t
from archir.ops.infer import OpError, bind_attrs, instance
from archir.ops.record import REQUIRED, Op, OpSet
from archir.proof.draws import RANKS, Choice, Tiny, required, shape, sizes
from archir.proof.translate import conjuncts, ranks
from archir.rewrite.expressions import Scope, evaluate, plain
from archir.rewrite.rule import PatternNode, Rewriting, Rule
from archir.rewrite.sources import paths_of

SMALL = 3
"""How often whole numbers that a tiny network must state are bounded as its sizes are."""


LARGE = 8
"""In so many attempts no layer has a single window."""


class UnfitError(Exception):
    """No network could be made with this choice."""


class Sketch:
    """Builds a small network; ``cap`` bounds the sizes of its inputs."""

    def __init__(self, ops: OpSet, cap: int | None = None) -> None:
        self.ops, self.cap = ops, cap
        self.builder = GraphBuilder("instance")

    def input(self, name: str, shape: Sequence[Size], dtype: str = "f32") -> Value:
        """An input of the network."""
        if self.cap is not None:
            shape = [min(n, self.cap) if isinstance(n, int) else n for n in shape]
        type_ = TensorType(dtype, tuple(shape))
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
    rule: Rule, ops: OpSet, number: int, arguments: Mapping[str, AttrValue], *, tiny: Tiny = None
) -> tuple[Graph, str]:
    """A network that the left side of a rule is meant to match, and the root of the match.

    ``tiny`` bounds its channels, and the sizes around them.

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
        self, rule: Rule, ops: OpSet, number: int, arguments: Mapping[str, AttrValue], tiny: Tiny
    ) -> None:
        assert isinstance(rule.body, Rewriting)
        self.rule, self.body, self.ops = rule, rule.body, ops
        self.number, self.tiny = number, tiny
        self.rng = np.random.Generator(np.random.PCG64([number, 0x5CE7C4]))
        self.scalars: dict[str, Any] = dict(arguments)
        self.known = _equations(rule)
        self.ranks, self.sizes = ranks(rule), sizes(rule)
        self.guards = [
            guard
            for guard in conjuncts(rule)
            if not any(isinstance(e, t.Call) and e.callee.text == "uses" for e in t.walk(guard))
        ]
        """All guards but those that ask for readers, which are not there yet."""
        self.sketch = Sketch(ops)
        self.so_far = self.sketch.builder.build()
        self.values: dict[str, Value] = {}
        self.made: dict[str, Value] = {}

    def network(self) -> tuple[Graph, str]:
        body = self.body
        taken = {n.name for n in body.match.nodes}
        free = dict.fromkeys([*body.match.variables, *paths_of(self.rule)])
        for place, name in enumerate(free):
            path = f"{name}_in" if name in taken else name
            self.values[name] = self.sketch.input(path, self.shape(name, place), self.dtype(name))
        for node in body.match.nodes:
            self.made[node.name] = self.node(node)
        handed = [o for name, o in body.match.bindings.items() if name in body.replace.bindings]
        shown = [
            Value(o.node, o.port) if o.node is not None else self.values[o.variable or ""]
            for o in handed
        ]
        root = Value(body.match.nodes[-1].name) if body.match.nodes else shown[0]
        others = [self.sketch.add("neg", f"{n}_too", [self.values[n]]) for n in self.counted()]
        return self.sketch.build(*dict.fromkeys([root, *shown, *others])), root.node

    def counted(self) -> list[str]:
        """Variables whose readers a guard counts: in every second network there is one more."""
        calls = [e for guard in self.rule.where for e in t.walk(guard) if isinstance(e, t.Call)]
        asked = [c.arguments[0].value for c in calls if c.callee.text == "uses" and c.arguments]
        names = dict.fromkeys(e.path for e in asked if isinstance(e, t.Name))
        return [name for name in names if name in self.values] if self.number % 2 else []

    def dtype(self, name: str) -> str:
        """The element type that a variable's first reader takes."""
        for node in self.body.match.nodes:
            for place, operand in enumerate(node.operands):
                held = self.ops[node.op].samples[0].inputs
                if operand.variable == name and held:
                    return held[min(place, len(held) - 1)].dtype
        return "f32"

    def shape(self, name: str, place: int) -> tuple[Size, ...]:
        rank = self.ranks.get(name) or next(
            iter(self.ranks.values()), RANKS[self.number % len(RANKS)]
        )
        stated = {axis: size for (held, axis), size in self.sizes.items() if held == name}
        stated.update(self.derived(name))
        return shape(self.number, rank, place, stated, self.tiny)

    def derived(self, name: str) -> dict[int, int]:
        """Sizes that a guard makes of those of tensors before (`size(b, 2) == 2 * size(a, 2)`)."""
        found: dict[int, int] = {}
        for guard in conjuncts(self.rule):
            call = guard.left if isinstance(guard, t.Compare) and guard.op == "==" else None
            if not (isinstance(call, t.Call) and call.callee.text == "size"):
                continue
            subject, axis = [a.value for a in call.arguments]
            if isinstance(subject, t.Name) and subject.path == name and self.values:
                assert isinstance(guard, t.Compare)
                place, size = self.value(axis, {}), self.value(guard.right, self.scalars)
                if isinstance(place, int) and isinstance(size, int):
                    found[place] = size
        return found

    def node(self, node: PatternNode) -> Value:
        op = self.ops[node.op]
        operands = [
            self.values[o.variable]
            if o.variable is not None
            else Value(self.made[o.node or ""].node, o.port)
            for o in node.operands
        ]
        types = tuple(self.sketch.type_of(v) for v in operands)
        last: Exception = UnfitError("no attributes fit")
        for attempt in range(12):
            try:
                attrs = bind_attrs(op, self.attributes(op, node, types, attempt), types)
                names = self.bound(node, attrs)
                if not self.allowed(names) or (attempt < LARGE and single(op, attrs, types)):
                    continue
                made = self.sketch.add(op.name, node.name, operands, **attrs)
            except OpError as reason:
                last = reason
                continue
            self.scalars = names
            return made
        raise last

    def bound(self, node: PatternNode, attrs: Mapping[str, AttrValue]) -> dict[str, Any]:
        """What is known of names once a node has these attributes."""
        names = dict(self.scalars)
        for name, value in attrs.items():
            expression = node.attrs.get(name)
            if isinstance(expression, t.Name):
                names.setdefault(expression.path, plain(value))
            names[f"{node.name}.{name}"] = plain(value)
        return names

    def allowed(self, names: Mapping[str, Any]) -> bool:
        """Whether the guards hold, as far as they speak of what is known."""
        return all(self.value(guard, names) is not False for guard in self.guards)

    def value(self, expression: t.Expr, names: Mapping[str, Any]) -> Any:
        """The value of an expression; None where it speaks of what is not known yet."""
        if len(self.so_far) < len(self.sketch.builder.nodes):
            self.so_far = self.sketch.builder.build()
        scope = Scope(self.so_far, names=dict(names), tensors=self.values)
        try:
            return evaluate(expression, scope)
        except ArchirError:
            return None

    def attributes(
        self, op: Op, node: PatternNode, types: Sequence[TensorType], attempt: int
    ) -> dict[str, AttrValue]:
        given: dict[str, AttrValue] = {}
        names = dict(self.scalars)
        ports = [o.port for n in self.body.match.nodes for o in n.operands if o.node == node.name]
        ports += [o.port for o in self.body.match.bindings.values() if o.node == node.name]
        choice = Choice(op, given, types, self.rng, self.number, attempt, max(ports, default=0) + 1)
        for attr in op.attrs:
            stated = node.attrs.get(attr.name)
            value = None if stated is None else self.value(stated, names)
            for name in (f"{node.name}.{attr.name}", getattr(stated, "path", "")):
                if value is None and name in self.known:
                    value = self.value(self.known[name], names)
            if value is None:
                value = choice.value(attr)
                if (
                    self.tiny
                    and attempt < SMALL
                    and attr.default is REQUIRED
                    and type(value) is int
                ):
                    value = min(value, self.tiny[0])
            if value is not None:
                given[attr.name] = value
                names.setdefault(getattr(stated, "path", ""), value)
        open_ = required(op, given)
        if open_:
            raise UnfitError(f"`{open_}` would have to be made up")
        return given


def single(op: Op, attrs: Mapping[str, AttrValue], types: tuple[TensorType, ...]) -> bool:
    """Whether a layer with windows has a single one: then its stride and padding hardly matter."""
    windows = op.attr("kernel") is not None and op.attr("stride") is not None
    return windows and 1 in instance(op, dict(attrs), types).types[0].shape[2:]


def _equations(rule: Rule) -> dict[str, t.Expr]:
    """What names and attributes are by the guards (``c.stride == 1``, ``o == channels(x)``)."""
    found: dict[str, t.Expr] = {}
    for guard in conjuncts(rule):
        if isinstance(guard, t.Compare) and guard.op == "==":
            for one, two in ((guard.left, guard.right), (guard.right, guard.left)):
                if isinstance(one, t.Name):
                    found.setdefault(one.path, two)
    return found


# --- with classes ---------------------------------------------------------------------------


def class_network(ops: OpSet, number: int) -> Graph:
    """A network with axis classes: a chain, a residual, a concatenation, heads, groups, ...

    Raises:
        UnfitError: an operator that it would use is not there.
    """
    return _made(MAKERS[number % len(MAKERS)], Sketch(ops), 2 + (number // len(MAKERS)) % 3)


def small_class_networks(ops: OpSet) -> Iterator[Graph]:
    """The same networks in the smallest sizes that they can have, and a little larger."""
    for maker, size, cap in product(MAKERS, (1, 2, 3), (1, 2)):
        with suppress(UnfitError):
            yield _made(maker, Sketch(ops, cap), size)


def _made(maker: Callable[[Sketch, int], Graph], sketch: Sketch, size: int) -> Graph:
    try:
        return maker(sketch, size)
    except (KeyError, OpError) as reason:
        raise UnfitError(str(reason)) from None


def _image(s: Sketch, channels: int = 1) -> Value:
    return s.input("image", (symbol("N"), channels, 3, 4))


def _dense(s: Sketch, n: int) -> Graph:
    x = s.input("x", (symbol("N"), 3))
    x = s.add("linear", "fc1", [x], out=n)
    x = s.add("sigmoid" if n == 3 else "relu", "act", [x])
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
