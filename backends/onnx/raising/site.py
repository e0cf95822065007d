"""What a raising function sees: one ONNX node, and the network that grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, defs, helper

from archir.ir.dims import Dim, Size, product, quotient
from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Array
from archir.ops.infer import OpError, bind_attrs, instance
from archir.ops.record import OpSet
from archir.weights.store import numpy_dtype

from .reading import array_of
from .values import DTYPES, Known, Made, made_up, sizes

_IDLE = frozenset({"num_outputs", "seed", "saturate", "is_test", "consumed_inputs"})
"""Attributes without a say in what is computed here."""

LARGEST_CONSTANT = 16
"""Numbers that are still written into the text; larger tensors go into the weights file."""


class RefusedError(Exception):
    """A node that cannot be raised; the text says why."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the network: numbers of the file, laid out as the layer wants them."""

    array: Array
    base: str = ""
    """The initializer it was made of, or empty."""
    form: str = ""
    """How its entries were laid out anew; tensors of one base and form are tied."""

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for tied tensors."""
        return (self.base, self.form) if self.base else ("", str(id(self.array)))


@dataclass
class Draft:
    """A node of the network in the making; its name comes at the end."""

    op: str
    attrs: Mapping[str, AttrValue]
    inputs: tuple[Made, ...]
    params: Mapping[str, Tensor]
    types: tuple[TensorType, ...]
    source: str
    """The ONNX node it comes from: what its name is made of."""
    fixed: str = ""
    """The name that it has already (an input's)."""


@dataclass
class Net:
    """A network in the making."""

    ops: OpSet
    opset: int
    values: dict[str, Known | Made | None] = field(default_factory=dict)
    """By ONNX name; None where a node was refused."""
    drafts: list[Draft] = field(default_factory=list)
    readers: dict[str, list[NodeProto]] = field(default_factory=dict)
    """Who reads a value; an output of the graph counts as a reader without inputs."""
    makers: dict[str, NodeProto] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    """First outputs of nodes that were raised together with one before them."""
    scopes: dict[str, str] = field(default_factory=dict)
    """The module that a node's code belongs to, by the node's first output."""
    held: dict[object, Made] = field(default_factory=dict)
    """Constants and parameters that were made already."""

    def known(self, name: str) -> Known | None:
        """What is known of a name beforehand."""
        found = self.values.get(name)
        return found if isinstance(found, Known) else None

    def add(
        self,
        op: str,
        inputs: Sequence[Made],
        given: Mapping[str, AttrValue],
        params: Mapping[str, Tensor],
        source: str,
    ) -> list[Made]:
        """Add a use of an operator.

        Raises:
            RefusedError: archir's operator does not fit it.
        """
        if op not in self.ops:
            raise RefusedError(f"archir has no operator `{op}`")
        record, types = self.ops[op], tuple(x.type for x in inputs)
        try:
            attrs = bind_attrs(record, given, types)
            found = instance(record, attrs, types)
        except OpError as reason:
            raise RefusedError(reason.message) from None
        held = dict(params)
        for role, type_ in found.params.items():
            if role == "num_batches_tracked":
                held[role] = Tensor(np.zeros((), np.int64))
            array = held[role].array
            if array.shape != type_.shape:
                shape, wanted = list(array.shape), list(type_.shape)
                raise RefusedError(f"its {role} has the shape {shape}, {wanted} is needed")
            if array.dtype != numpy_dtype(type_.dtype):
                raise RefusedError(f"its {role} is of {array.dtype}, its input of {type_.dtype}")
        self.drafts.append(Draft(op, attrs, tuple(inputs), held, found.types, source))
        number = len(self.drafts) - 1
        return [Made(number, port, type_) for port, type_ in enumerate(found.types)]

    def extent(self, size: Dim, axis: int) -> Made:
        """A value of the network that has a symbolic extent at an axis, inputs first.

        Raises:
            RefusedError: there is none.
        """
        for number, draft in enumerate(self.drafts):
            for port, type_ in enumerate(draft.types):
                if type_.rank > axis and type_.shape[axis] == size:
                    return Made(number, port, type_)
        raise RefusedError(f"it makes an axis of the size {size} from nothing that has it")


class Site:
    """One node of the file, and what may be made of it."""

    def __init__(self, net: Net, node: NodeProto) -> None:
        self.net, self.node = net, node
        self.attrs = attributes(node, net.opset)
        self.seen: set[str] = set()
        """The attributes that were looked at."""

    # --- operands -------------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """The opset of the file."""
        return self.net.opset

    def has(self, place: int) -> bool:
        """Whether an operand is given."""
        return place < len(self.node.input) and bool(self.node.input[place])

    @property
    def count(self) -> int:
        """How many operands there are."""
        return len(self.node.input)

    def entry(self, place: int) -> Known | Made:
        """What an operand stands for.

        Raises:
            RefusedError: it is left out.
        """
        if not self.has(place):
            raise RefusedError(f"its input {place} is left out")
        found = self.net.values[self.node.input[place]]
        assert found is not None, "nodes that read what was refused are not raised"
        return found

    def known(self, place: int) -> Known | None:
        """An operand whose numbers are known beforehand, without symbols; else None."""
        if not self.has(place):
            return None
        found = self.entry(place)
        return found if isinstance(found, Known) and not found.symbolic else None

    def array(self, place: int) -> Array:
        """The numbers of an operand.

        Raises:
            RefusedError: the network computes them.
        """
        found = self.known(place)
        if found is None:
            raise RefusedError(f"its input {place} is computed by the network")
        return found.array

    def floating(self, place: int) -> bool:
        """Whether an operand holds numbers with fractions."""
        found = self.entry(place)
        if isinstance(found, Known):
            return found.array.dtype.kind == "f" or found.array.dtype.name == "bfloat16"
        return found.type.dtype.startswith(("f", "bf"))

    def ints(self, place: int, name: str) -> list[int] | None:
        """Whole numbers: an operand, or an attribute in older opsets; None without either."""
        if self.has(place):
            found = self.array(place)
            if found.size > 1000:
                raise RefusedError(f"its input {place} has {found.size:,} entries")
            return [int(entry) for entry in found.reshape(-1)]
        given = self.attr(name)
        return None if given is None else [int(entry) for entry in given]

    def sizes(self, place: int) -> list[Size]:
        """Sizes, some of them symbolic perhaps.

        Raises:
            RefusedError: they depend on more than the sizes of the input.
        """
        found = self.entry(place)
        if not isinstance(found, Known):
            raise RefusedError("the shape of its result depends on what the network computes")
        entries = found.array.reshape(-1)
        return [entry if isinstance(entry, Dim) else int(entry) for entry in entries]

    def x(self, place: int = 0) -> Made:
        """An operand as a value of the network."""
        found = self.entry(place)
        return found if isinstance(found, Made) else self.hold(found)

    def hold(self, known: Known) -> Made:
        """Numbers as a constant or parameter of the network."""
        if known.symbolic:
            raise RefusedError("it computes with the size of its input")
        array = known.array
        dtype = DTYPES.get(array.dtype.name)
        if dtype is None:
            raise RefusedError(f"it reads numbers of {array.dtype}, which archir has no use for")
        if not array.size:
            raise RefusedError("it reads a tensor without entries")
        floating = dtype.startswith(("f", "bf"))
        trained = bool(known.name) and floating and array.ndim > 0 and not made_up(known.name)
        if not trained and array.size <= LARGEST_CONSTANT and dtype != "bool":
            value = nested(array.tolist())
            scope = self.net.scopes.get(self.source, "")
            key: object = ("constant", repr(value), dtype, scope)
            return self._once(key, "constant", {"value": value, "dtype": dtype}, {})
        tensor = Tensor(array, known.name)
        attrs: dict[str, AttrValue] = {"shape": array.shape, "dtype": dtype}
        if not trained:
            attrs["persistent"] = False
        return self._once(("parameter", *tensor.key), "parameter", attrs, {"value": tensor})

    def _once(
        self, key: object, op: str, attrs: Mapping[str, AttrValue], params: Mapping[str, Tensor]
    ) -> Made:
        if key not in self.net.held:
            source = next((t.base for t in params.values()), "") if params else ""
            self.net.held[key] = self.net.add(op, (), attrs, params, source or self.source)[0]
        return self.net.held[key]

    def number(self, value: float, like: Made) -> Made:
        """A number of another value's element type."""
        return self.hold(Known(np.asarray(value, numpy_dtype(like.type.dtype))))

    def numbers(self, values: Array, like: Made) -> Made:
        """Constants of another value's element type."""
        return self.hold(Known(np.asarray(values, numpy_dtype(like.type.dtype))))

    # --- attributes -----------------------------------------------------------------------

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or what the schema says without it."""
        self.seen.add(name)
        return self.attrs.get(name, default)

    def unread(self) -> list[str]:
        """The attributes of the node that say something and were not looked at."""
        usual = attributes(NodeProto(op_type=self.node.op_type), self.opset)
        given = {attribute.name for attribute in self.node.attribute} - self.seen - _IDLE
        return sorted(name for name in given if self.attrs[name] != usual.get(name))

    # --- results --------------------------------------------------------------------------

    @property
    def source(self) -> str:
        """What the names of the node's layers are made of."""
        return next((name for name in self.node.output if name), self.node.name)

    def put(self, op: str, /, *inputs: Made, **attrs: AttrValue) -> Made:
        """Add a use of an operator; its first result."""
        return self.several(op, *inputs, **attrs)[0]

    def several(self, op: str, /, *inputs: Made, **attrs: AttrValue) -> list[Made]:
        """Add a use of an operator; its results."""
        return self.net.add(op, inputs, attrs, {}, self.source)

    def layer(self, op: str, x: Made, params: Mapping[str, Tensor], /, **attrs: AttrValue) -> Made:
        """Add a layer that has tensors."""
        return self.net.add(op, (x,), attrs, params, self.source)[0]

    def held(self, tensor: Tensor, dtype: str) -> Made:
        """A tensor of the raising's own making as a constant of the network."""
        attrs: dict[str, AttrValue] = {"shape": tensor.array.shape, "dtype": dtype}
        attrs["persistent"] = False
        return self.net.add("parameter", (), attrs, {"value": tensor}, self.source)[0]

    def give(self, *results: Made | Known) -> None:
        """Say what the node's outputs are.

        Raises:
            RefusedError: one that is read is not among them.
        """
        for place, name in enumerate(self.node.output):
            if place < len(results):
                if name:
                    self.net.values[name] = results[place]
            elif name and self.net.readers.get(name):
                raise RefusedError(f"its output {place} is used")

    def follower(self, name: str | None = None) -> NodeProto | None:
        """The only node that reads a value (the first output), if nothing else does."""
        readers = self.net.readers.get(self.node.output[0] if name is None else name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type else None

    def take(self, node: NodeProto, result: Made) -> None:
        """Say that a node after this one is raised with it, and what its output is."""
        self.net.done.add(node.output[0])
        self.net.values[node.output[0]] = result

    # --- shapes ---------------------------------------------------------------------------

    def reshape(self, x: Made, shape: Sequence[Size]) -> Made:
        """A tensor in another shape; no node where it has that shape."""
        old = x.type.shape
        if tuple(shape) == old:
            return x
        entries: list[int] = []
        for place, size in enumerate(shape):
            if isinstance(size, int):
                entries.append(size)
            else:
                entries.append(0 if place < len(old) and old[place] == size else -1)
        if entries.count(-1) > 1:
            raise RefusedError("two sizes of its result depend on sizes of the input")
        if 0 in [size for size in shape if isinstance(size, int)]:
            raise RefusedError("its result has no entries")
        if len(shape) == 2 and len(old) > 2 and shape[0] == old[0]:
            return self.put("flatten", x, start=1)
        return self.put("reshape", x, shape=tuple(entries))

    def stretch(self, x: Made, shape: Sequence[Size]) -> Made:
        """Repeat axes of extent 1 until a tensor has a shape."""
        if len(shape) > x.type.rank:
            x = self.reshape(x, [1] * (len(shape) - x.type.rank) + list(x.type.shape))
        repeats = [1] * x.type.rank
        for axis, size in enumerate(shape):
            if size in (1, x.type.shape[axis]):
                continue
            if x.type.shape[axis] != 1:
                raise RefusedError(f"it stretches an axis of {x.type.shape[axis]} to {size}")
            if isinstance(size, Dim):
                x = self.put("expand", x, self.net.extent(size, axis), axis=axis)
            else:
                repeats[axis] = size
        if set(repeats) != {1}:
            x = self.put("tile", x, repeats=tuple(repeats))
        return x

    def solved(self, x: Made, wanted: Sequence[Size], *, zero: bool = False) -> list[Size]:
        """The shape that ONNX's Reshape asks for: 0 is the input's size there, -1 the rest."""
        old, out = x.type.shape, list(wanted)
        for place, size in enumerate(out):
            if size == 0 and not zero:
                if place >= len(old):
                    raise RefusedError("its shape has a 0 where the input has no axis")
                out[place] = old[place]
        if out.count(-1) > 1 or any(isinstance(s, int) and s < -1 for s in out):
            raise RefusedError(f"its shape is {[str(size) for size in wanted]}")
        if -1 in out:
            others = product(size for size in out if size != -1)
            rest = quotient(product(old), others) if others != 0 else None
            if rest is None:
                raise RefusedError(
                    f"{x.type} cannot have the shape {[str(size) for size in wanted]}"
                )
            out[out.index(-1)] = rest
        return out

    def shape_of(self, place: int) -> Known:
        """The shape of an operand, as sizes."""
        found = self.entry(place)
        return Known(sizes(found.array.shape if isinstance(found, Known) else found.type.shape))


def nested(value: Any) -> AttrValue:
    """Nested lists as tuples."""
    return tuple(nested(v) for v in value) if isinstance(value, list) else value


def attributes(node: NodeProto, opset: int) -> dict[str, Any]:
    """The attributes of a node; the schema's defaults where they are left out.

    Raises:
        ArchirError: A531, A533, A536, a tensor among them is wrong.
    """
    found: dict[str, Any] = {}
    if node.domain in ("", "ai.onnx") and defs.has(node.op_type):
        try:
            schema = defs.get_schema(node.op_type, opset, "")
        except defs.SchemaError:
            schema = None
        for name, attr in schema.attributes.items() if schema else ():
            if attr.default_value.type:
                found[name] = _value(attr.default_value)
    for attribute in node.attribute:
        found[attribute.name] = _value(attribute)
    return found


def _value(attribute: AttributeProto) -> Any:
    if attribute.type == AttributeProto.TENSOR:
        return array_of(attribute.t)
    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return None
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.STRING:
        return value.decode(errors="replace")
    if attribute.type == AttributeProto.FLOAT:
        return shortest(value)
    if attribute.type == AttributeProto.FLOATS:
        return [shortest(entry) for entry in value]
    return list(value) if attribute.type == AttributeProto.INTS else value


def shortest(value: float) -> float:
    """The shortest number that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
