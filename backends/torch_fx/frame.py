"""The module tree of a lowered network: every tensor at exactly its path.

torch names a tensor by the attributes that lead to it, and torch.fx writes these attributes
into the source of ``forward`` without quoting them. Names that either cannot hold are refused
here, before any source is made of them.
"""

from __future__ import annotations

import keyword
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node
from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Array

DTYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "i64": torch.int64,
    "i32": torch.int32,
    "bool": torch.bool,
}

DEEPEST = 64
"""Levels of modules; Python's parser refuses the source of ``forward`` at some 200."""

SWAPPED = "archir.swapped"
"""Marks a sum whose terms stand in the other order than in the network (``meta``)."""

# What autocast runs in low precision on every device, and what gives the type that it is given.
_LOW = frozenset({"conv", "linear"})
_CARRY = frozenset({"batch_norm", "relu", "relu6", "max_pool", "dropout", "add"})

# Names that the source torch.fx generates needs for itself.
_GLOBALS = ("self", "torch", "operator", "device", "inf", "nan", "NoneType", "pytree", "fx_pytree")
_ROOT = frozenset(dir(fx.GraphModule(torch.nn.Module(), fx.Graph())))


def tensor_of(array: Array, *, copy: bool) -> torch.Tensor:
    """The tensor of an array; it shares the array's memory unless ``copy``.

    A copy lies in torch's own memory, which is aligned for its kernels; NumPy's is not. A
    read-only array is shared too: torch cannot say "read-only", so the tensor must not be
    written to.
    """
    if array.dtype.name == "bfloat16":
        return tensor_of(array.view(np.uint16), copy=copy).view(torch.bfloat16)
    if copy:
        return torch.tensor(np.asarray(array, order="C"))
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def array_of(tensor: torch.Tensor) -> Array:
    """A tensor's values as an array with memory of its own."""
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        from ml_dtypes import bfloat16  # noqa: PLC0415 - optional, for bf16 alone

        return np.array(tensor.contiguous().view(torch.uint16).numpy()).view(bfloat16)
    return np.array(tensor.numpy(), order="C")


@dataclass
class Frame:
    """What a lowering builds: a graph of calls and the tree of modules they call."""

    source: Graph
    tensors: Mapping[str, torch.Tensor]
    """Parameters and buffers by path; each is placed once, however often it is used."""
    kept: frozenset[str]
    """Nodes whose values must survive to the end."""
    constants: frozenset[str] = frozenset()
    """Paths of the tensors that are no part of the state."""
    graph: fx.Graph = field(default_factory=fx.Graph)
    root: torch.nn.Module = field(default_factory=torch.nn.Module)
    inputs: dict[str, fx.Node] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)
    """For each hidden name, the number that comes next."""
    _reads: Counter[str] = field(default_factory=Counter)
    _low: set[str] = field(default_factory=set)
    """Nodes whose results have low precision under autocast, for certain."""

    def __post_init__(self) -> None:
        for node in self.source:
            read = [value.node for value in node.inputs]
            self._reads.update(read)
            if node.op in _LOW or (node.op in _CARRY and self._low.issuperset(read)):
                self._low.add(node.name)

    def is_read_once(self, name: str) -> bool:
        """Whether one operand in all the network is a result of this node."""
        return self._reads[name] == 1

    def is_low(self, name: str) -> bool:
        """Whether autocast gives a node's result low precision, for certain."""
        return name in self._low

    def rounded(self, call: fx.Node, type_: TensorType) -> fx.Node:
        """What float16 keeps of a value; numbers beyond its range become infinite."""
        if type_.dtype != "f32":
            return call
        return self.graph.call_method("float", (self.graph.call_method("half", (call,)),))

    def placeholder(self, name: str) -> fx.Node:
        """The argument for an input, named like it where Python allows."""
        text = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
        if not text.isidentifier() or keyword.iskeyword(text) or text in _GLOBALS:
            text = f"input_{text}"
        taken = {str(node.target) for node in self.inputs.values()}
        while text in taken:
            text += "_"
        self.inputs[name] = self.graph.placeholder(text)
        return self.inputs[name]

    def settle(self, name: str) -> None:
        """Note of all calls that were added last whose they are: ``meta["archir"]``."""
        for call in reversed(self.graph.nodes):
            if "archir" in call.meta or call.op == "placeholder":
                break
            call.meta["archir"] = name

    def place(self, path: str, thing: torch.nn.Module | torch.Tensor) -> None:
        """Put a module or a tensor at a path.

        Raises:
            ArchirError: A502, torch cannot have it there.
        """
        *prefix, last = path.split(".")
        if len(prefix) >= DEEPEST:
            raise _refusal(path, f"it lies more than {DEEPEST} levels deep")
        parent = self.root
        for segment in prefix:
            found = parent._modules.get(segment)
            if found is None:
                _check(parent, segment, path, root=parent is self.root)
                found = torch.nn.Module()
                parent.add_module(segment, found)
            parent = found
        before = parent._modules.get(last)
        if before is not None and isinstance(thing, torch.nn.Module):
            _adopt(thing, before, path)
        elif getattr(parent, last, None) is not thing or last in _ROOT:
            _check(parent, last, path, root=parent is self.root)
        if isinstance(thing, torch.nn.Module):
            parent._modules[last] = thing
        elif isinstance(thing, torch.nn.Parameter):
            parent.register_parameter(last, thing)
        else:
            parent._buffers[last] = thing
            if path in self.constants:
                parent._non_persistent_buffers_set.add(last)

    def hidden(self, name: str, thing: torch.nn.Module | torch.Tensor) -> str:
        """Put something that has no place in the state under a name that is free."""
        number = self._numbers.get(name, 0)
        while hasattr(self.root, f"_{name}{number}"):
            number += 1
        self._numbers[name] = number + 1
        path = f"_{name}{number}"
        if isinstance(thing, torch.nn.Module):
            self.root.add_module(path, thing)
        else:
            self.root.register_buffer(path, thing, persistent=False)
        return path


def _adopt(module: torch.nn.Module, before: torch.nn.Module, path: str) -> None:
    """Let a layer take over what was placed below its path before it."""
    if type(before) is not torch.nn.Module:
        raise _refusal(path, "another layer has this path")
    for name, child in before._modules.items():
        _check(module, name, f"{path}.{name}", root=False)
        module.add_module(name, child)
    own = {**module._parameters, **module._buffers}
    for name in [*before._parameters, *before._buffers]:
        if own.get(name) is not getattr(before, name):
            raise _refusal(f"{path}.{name}", "the layer's module has no such tensor")


def _check(parent: torch.nn.Module, segment: str, path: str, *, root: bool) -> None:
    if hasattr(parent, segment) or (root and segment in _ROOT):
        raise _refusal(path, f"torch's modules use the name `{segment}` themselves")
    if keyword.iskeyword(segment):
        raise _refusal(path, f"`{segment}` is a word of Python")
    plain = segment.isprintable() and not set(segment) & set("\"'\\{}")
    if not segment or not plain or unicodedata.normalize("NFKC", segment) != segment:
        raise _refusal(path, "torch.fx cannot hold such a name")


def _refusal(path: str, reason: str) -> ArchirError:
    return error(
        "A502",
        f"torch cannot have a layer or tensor at `{path}`: {reason}",
        hint="give it another label",
        node=path,
    )


@dataclass(frozen=True)
class Site:
    """One node that is being lowered: what a lowering function sees and may do."""

    frame: Frame
    node: Node
    types: tuple[TensorType, ...]
    """The types of the operands."""
    args: tuple[fx.Node, ...]
    """The calls whose results are the operands."""

    @property
    def rank(self) -> int:
        """The rank of the first operand."""
        return self.types[0].rank

    @property
    def whole(self) -> bool:
        """Whether the node's parameters lie where torch's own layer has them."""
        return all(path == f"{self.node.name}.{role}" for role, path in self.node.params.items())

    def overwrites(self, index: int = 0) -> bool:
        """Whether an operand may be overwritten: nobody else, autograd included, reads it."""
        producer = self.frame.source.node(self.node.inputs[index].node)
        return (
            producer.op in ("conv", "linear", "batch_norm", "add")
            and producer.name not in self.frame.kept
            and self.frame.is_read_once(producer.name)
        )

    @property
    def alike_in_autocast(self) -> bool:
        """Whether the operands, of one type in the network, are of one type under autocast too."""
        return all(self.frame.is_low(value.node) for value in self.node.inputs)

    def attr(self, name: str) -> Any:
        """An attribute."""
        return self.node.attrs[name]

    def ints(self, name: str) -> tuple[int, ...]:
        """An attribute that holds integers."""
        value: AttrValue = self.node.attrs[name]
        assert isinstance(value, tuple)
        return tuple(int(entry) for entry in value if isinstance(entry, int))

    def layer(self, layer: torch.nn.Module) -> fx.Node:
        """Give a layer of torch the node's tensors, put it at the node's path, and call it."""
        for role, path in self.node.params.items():
            setattr(layer, role, self.frame.tensors[path])
        self.frame.place(self.node.name, layer)
        return self.frame.graph.call_module(self.node.name, self.args)

    def stateless(self, layer: torch.nn.Module) -> fx.Node:
        """Call a layer that has no tensors, put at the node's path where torch can."""
        path = self.node.name
        try:
            self.frame.place(path, layer)
        except ArchirError:
            path = self.frame.hidden(self.node.op, layer)
        return self.frame.graph.call_module(path, self.args)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Call a function."""
        return self.frame.graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any) -> fx.Node:
        """Call a method of the first argument."""
        return self.frame.graph.call_method(name, args)

    def param(self, role: str) -> fx.Node | None:
        """A parameter as a value; None where the node has none of that role."""
        path = self.node.params.get(role)
        if path is None:
            return None
        self.frame.place(path, self.frame.tensors[path])
        return self.frame.graph.get_attr(path)

    def constant(self, values: torch.Tensor) -> fx.Node:
        """A constant as a value: it moves with the module and is no part of its state."""
        return self.frame.graph.get_attr(self.frame.hidden("constant", values))

    def refuse(self, reason: str) -> ArchirError:
        """The diagnostic for a use that torch cannot run."""
        return error(
            "A502", f"torch cannot run this `{self.node.op}`: {reason}", node=self.node.name
        )
