"""A lowered network as a tree of places, and the calls that run on it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import fx, nn

from archir.ir.graph import Graph

from ..frame import DEEPEST, SWAPPED  # noqa: TID252 - the backend's own package
from .source import arguments, unwritten

SMALL = 8
"""Constants of so many numbers at most are written out."""


class Held(NamedTuple):
    """A tensor that lies at a place itself, in no layer of torch."""

    tensor: torch.Tensor
    kind: str
    """``parameter``, ``buffer`` or ``constant`` (a buffer that no state_dict holds)."""
    start: float | None
    """The number it is filled with at first; None for a random start."""

    @property
    def is_small(self) -> bool:
        """Whether it is a constant whose values the code states."""
        return self.kind == "constant" and self.tensor.numel() <= SMALL


@dataclass(eq=False)
class Place:
    """A place in the tree of modules: a layer, or what holds layers and tensors."""

    path: str
    layer: nn.Module | None = None
    tensors: dict[str, Held] = field(default_factory=dict)
    children: dict[str, Place] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether it is what its constructor makes it and no more."""
        return not self.children and not self.tensors

    def child(self, segment: str) -> Place:
        """The place below this one of a name, made where there is none."""
        if segment not in self.children:
            self.children[segment] = Place(f"{self.path}.{segment}" if self.path else segment)
        return self.children[segment]

    def walk(self) -> Iterator[Place]:
        """This place and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()


@dataclass(eq=False)
class Tree:
    """A network: its places, and its calls in order."""

    root: Place
    module: fx.GraphModule
    inputs: list[fx.Node] = field(default_factory=list)
    calls: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)
    homes: dict[fx.Node, str] = field(default_factory=dict)
    """The path of the network's node that a call belongs to."""
    targets: dict[fx.Node, str] = field(default_factory=dict)
    """Where in the tree the layer that is called lies, or the tensor that is read."""
    places: dict[str, Place] = field(default_factory=dict)


def grow(graph: Graph, module: fx.GraphModule, starts: Mapping[str, float | None]) -> Tree:
    """The tree of a lowered network.

    Args:
        graph: The network.
        module: What it was lowered to; its calls know their nodes (``meta["archir"]``).
        starts: For tensors that lie in no layer, the number they are filled with at first.
    """
    tree = Tree(Place(""), module)
    targets = {node.target for node in module.graph.nodes if node.op in ("call_module", "get_attr")}
    known = {node.name for node in graph} | set(graph.parameters)
    hidden = {str(t) for t in targets if t not in known}
    _copy(module, tree.root, hidden, starts)
    for node in _plain(module.graph).nodes:
        if node.op == "placeholder":
            tree.inputs.append(node)
        elif node.op == "output":
            found = node.args[0]
            tree.outputs = list(found) if isinstance(found, tuple) else [found]
        else:
            tree.homes[node] = _home(node.meta["archir"])
            target = str(node.target)
            if node.op in ("call_module", "get_attr"):
                tree.targets[node] = _settled(node, tree) if target in hidden else target
            if node.op != "get_attr":
                tree.calls.append(node)
    tree.places = {place.path: place for place in tree.root.walk()}
    for place in tree.places.values():
        for name in place.children.keys() & place.tensors.keys():
            raise unwritten(f"{place.path}.{name}", "a tensor has the same path")
    return tree


def _plain(calls: fx.Graph) -> fx.Graph:
    """The calls with sums as sums: two uses of a block may differ in what may be overwritten."""
    plain = copy.deepcopy(calls)
    for node in plain.nodes:
        if node.op == "call_method" and node.target == "add_":
            node.op, node.target = "call_function", operator.add
            if node.meta.get(SWAPPED):
                node.args = node.args[::-1]
    return plain


def _home(name: str) -> str:
    """A node's path; one without levels where these cannot be modules."""
    parts = name.split(".")
    return name if all(parts) and len(parts) <= DEEPEST else "_".join(parts)


def _copy(
    module: nn.Module, place: Place, hidden: set[str], starts: Mapping[str, float | None]
) -> None:
    """Copy a module's children and the tensors that are no layer's into a place."""
    made = _made_by(place.layer)
    apart = module._non_persistent_buffers_set
    for name, tensor in {**module._parameters, **module._buffers}.items():
        path = f"{place.path}.{name}" if place.path else name
        if tensor is None or name in made or path in hidden:
            continue
        kind = "constant" if name in apart else "buffer"
        kind = "parameter" if name in module._parameters else kind
        place.tensors[name] = Held(tensor, kind, starts.get(path))
    for name, child in module._modules.items():
        if child is None or (not place.path and name in hidden):
            continue
        below = place.child(name)
        below.layer = None if type(child) is nn.Module else child
        _copy(child, below, hidden, starts)


def _made_by(layer: nn.Module | None) -> frozenset[str]:
    """The tensors that a layer's constructor makes."""
    if layer is None or (not layer._parameters and not layer._buffers):
        return frozenset()
    given = {argument.name: argument.value for argument in arguments(layer)}
    with torch.device("meta"):
        fresh = type(layer)(**given)
    tensors = {**fresh._parameters, **fresh._buffers}
    return frozenset(name for name, tensor in tensors.items() if tensor is not None)


def _settled(node: fx.Node, tree: Tree) -> str:
    """Give what the lowering put at the root, under a name of its own, a place by its node."""
    *scope, last = tree.homes[node].split(".")
    place = tree.root
    for segment in scope:
        place = place.child(segment)
    plain = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in last)
    name, number = f"_{plain.strip('_') or 'of'}", 1
    while name in place.children or name in place.tensors or hasattr(nn.Module(), name):
        number += 1
        name = f"_{plain.strip('_')}{number}"
    target = str(node.target)
    if node.op == "call_module":
        place.child(name).layer = tree.module.get_submodule(target)
    else:
        place.tensors[name] = Held(getattr(tree.module, target), "constant", None)
    return f"{place.path}.{name}" if place.path else name
