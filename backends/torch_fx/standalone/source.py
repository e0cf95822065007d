"""Layers and functions of torch as source text: what they are called, and with what."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import operator
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx.graph import magic_methods
from torch.nn import functional

from archir.diag import ArchirError, error

NAMES = {"torch": torch, "nn": nn, "functional": functional}
"""What the written file imports of torch, by the names that it has there."""

_ROWS = frozenset({"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"})
"""Arguments for which torch takes one number in place of a row of equal ones."""


class Argument(NamedTuple):
    """What a layer is made with."""

    name: str
    value: Any
    default: Any
    """``inspect.Parameter.empty`` where there is none."""

    @property
    def is_default(self) -> bool:
        """Whether it need not be said."""
        return self.default is not inspect.Parameter.empty and _same(self.value, self.default)


def _same(a: object, b: object) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)


def arguments(layer: nn.Module) -> list[Argument]:
    """What a layer is made with, in the order of its constructor.

    torch's layers keep each argument under its own name; a bias is kept as the tensor or None.
    """
    found: list[Argument] = []
    for name, parameter in inspect.signature(type(layer).__init__).parameters.items():
        plain = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if not plain or name in ("self", "device") or name.startswith("_"):
            continue
        if name == "dtype":
            value: Any = _dtype(layer)
        elif hasattr(layer, name):
            value = getattr(layer, name)
        elif parameter.default is not inspect.Parameter.empty:
            continue  # nothing the layer keeps: the initial value of a tensor, a name of old
        else:
            raise unwritten(type(layer).__name__, f"it does not keep its `{name}`")
        if isinstance(value, torch.Tensor) or (value is None and name == "bias"):
            value = value is not None
        if name in _ROWS and isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if name == "normalized_shape" and len(value) == 1:
            (value,) = value
        found.append(Argument(name, value, parameter.default))
    return found


def _dtype(layer: nn.Module) -> torch.dtype | None:
    """The element type to ask for; None where it is that which torch takes by itself."""
    kinds = {p.dtype for p in layer.parameters(recurse=False) if p.is_floating_point()}
    (only,) = kinds or {torch.float32}
    return None if only is torch.float32 else only


@functools.cache
def _public() -> MappingProxyType[int, str]:
    """What torch's functions are called, by identity; the shortest public name."""
    found: dict[int, str] = {}
    spaces = {
        "functional": functional,
        "torch": torch,
        **{f"torch.{name}": getattr(torch, name) for name in ("linalg", "special", "fft")},
    }
    for space, module in spaces.items():
        for name in dir(module):
            thing = getattr(module, name)
            if not name.startswith("_") and callable(thing):
                found.setdefault(id(thing), f"{space}.{name}")
    return MappingProxyType(found)


SYMBOLS = {
    getattr(operator, name): text for name, text in magic_methods.items() if hasattr(operator, name)
}
"""Functions of ``operator`` as the symbols they stand for."""


@dataclass
class Carried:
    """Classes and functions of archir's own that the written file takes along, by name."""

    texts: dict[str, str] = field(default_factory=dict)
    owners: dict[str, object] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)

    def layer(self, layer: nn.Module) -> str:
        """What a layer's class is called in the file."""
        kind = type(layer)
        if getattr(nn, kind.__name__, None) is kind:
            return f"nn.{kind.__name__}"
        return self._take(kind)

    def function(self, function: Callable[..., Any]) -> str:
        """What a function is called in the file."""
        if isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            return f"torch.ops.{function!s}" if _is_aten(function) else self._take(function)
        known = _public().get(id(function))
        if known is not None:
            return known
        if getattr(builtins, getattr(function, "__name__", ""), None) is function:
            return str(function.__name__)
        return self._take(function)

    def _take(self, thing: Any) -> str:
        """Take a class or function along with all it needs."""
        name = getattr(thing, "__name__", "")
        if self.owners.get(name) is thing:
            return str(name)
        try:
            text = textwrap.dedent(inspect.getsource(thing))
            tree = ast.parse(text).body[0]
        except (OSError, TypeError, SyntaxError, IndentationError):
            raise unwritten(name or repr(thing), "its source is not there to be read") from None
        if not isinstance(tree, ast.ClassDef | ast.FunctionDef) or tree.name != name:
            raise unwritten(name or repr(thing), "it has no definition of its own")
        if name in self.owners:
            raise unwritten(name, "another one of that name is needed too")
        self.owners[name] = thing
        for needed, value in _globals(tree, thing):
            if needed in NAMES and NAMES[needed] is value:
                continue
            if inspect.ismodule(value) and value.__name__ in ("math", "operator"):
                self.imports.add(value.__name__)
            elif inspect.isclass(value) or inspect.isfunction(value):
                if self._take(value) != needed:
                    raise unwritten(name, f"it calls another function `{needed}`")
            else:
                raise unwritten(name, f"it needs `{needed}` of its own module")
        self.texts[name] = text.rstrip() + "\n"
        return str(name)


def _is_aten(function: Any) -> bool:
    return str(function).partition(".")[0] == "aten"


def _globals(tree: ast.AST, thing: Any) -> Iterator[tuple[str, Any]]:
    """The names of its module that a definition uses, annotations left out, with their values."""
    space = vars(sys.modules[thing.__module__])
    annotations = {
        id(inner)
        for node in ast.walk(tree)
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if part is not None
        for inner in ast.walk(part)
    }
    seen: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and id(node) not in annotations and node.id not in seen:
            seen.add(node.id)
            if node.id in space and node.id != thing.__name__:
                yield node.id, space[node.id]


def unwritten(name: str, reason: str) -> ArchirError:
    """The diagnostic for a layer or function that no file can hold."""
    return error(
        "A562",
        f"`{name}`, which the torch backend runs, cannot be written into a file: {reason}",
        hint="`archir export --format onnx` may do, or the network's own text with archir",
    )
