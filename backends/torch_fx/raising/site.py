"""One call of a captured program, as a raising function sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from archir.ir.dims import Size
from archir.ir.graph import Value
from archir.ir.types import AttrValue, TensorType

from . import paths
from .values import NAMES, CannotRaiseError, Entry, Held, Known

if TYPE_CHECKING:
    from .walk import Walk

LARGEST_CONSTANT = 16
"""Numbers that are still written into the text; larger tensors go into the weights file."""


class Site:
    """A call: its arguments by name, and what may be made of it."""

    def __init__(self, walk: Walk, node: fx.Node, kind: str) -> None:
        from .walk import scope_of  # noqa: PLC0415

        self.walk, self.node, self.kind = walk, node, kind
        self.scope = scope_of(node)
        target = node.target
        assert isinstance(target, torch._ops.OpOverload)
        self.overload = target._overloadname
        self.args: dict[str, Any] = {}
        for place, argument in enumerate(target._schema.arguments):
            default = argument.default_value if argument.has_default_value() else None
            given = node.args[place] if place < len(node.args) else default
            self.args[argument.name] = node.kwargs.get(argument.name, given)

    # --- arguments --------------------------------------------------------------------

    def entry(self, name: str) -> Entry:
        """What an argument has become."""
        given = self.args[name]
        return self.walk.env[given] if isinstance(given, fx.Node) else given

    def held(self, name: str) -> Held | None:
        """A tensor of the module's state; None where the argument is None.

        Raises:
            CannotRaiseError: it is something that the network computes.
        """
        found = self.entry(name)
        if found is None or isinstance(found, Held):
            return found
        raise CannotRaiseError(f"its {name} is computed")

    def value(self, name: str) -> Value:
        """A tensor as an operand."""
        return self.operand(self.entry(name))

    def values(self, name: str) -> list[Value]:
        """A list of tensors as operands."""
        return [self.operand(self.walk.env[each]) for each in self.args[name]]

    def operand(self, entry: Entry, like: TensorType | None = None) -> Value:
        """An entry as an operand; a number takes the element type of ``like``."""
        if isinstance(entry, Value):
            return entry
        if isinstance(entry, Held):
            return self._state(entry)
        if isinstance(entry, Known):
            return self._constant(entry.tensor)
        if isinstance(entry, int | float) and like is not None:
            return self.number(entry, like.dtype)
        raise CannotRaiseError("it reads something that is no tensor")

    def other(self, name: str, like: Value) -> Value:
        """An operand that may be a number."""
        return self.operand(self.entry(name), self.type(like))

    def number(self, value: float, dtype: str = "f32") -> Value:
        """A number as an operand."""
        number = float(value) if dtype.startswith(("f", "bf")) else int(value)
        if number != value:
            raise CannotRaiseError(f"it reckons with {value} among whole numbers")
        attrs: dict[str, AttrValue] = {"value": number, "dtype": dtype}
        return self._once(("constant", repr(number), dtype, self.scope), "constant", attrs, {})

    def ints(self, name: str, count: int | None = None) -> tuple[int, ...]:
        """Whole numbers; a single one stands for ``count`` of them.

        Raises:
            CannotRaiseError: one is symbolic.
        """
        given = self.args[name]
        entries = list(given) if isinstance(given, Sequence) else [given]
        if any(not isinstance(entry, int) for entry in entries):
            raise CannotRaiseError(f"its {name} depends on the size of the input")
        if count is not None and len(entries) == 1:
            entries *= count
        return tuple(int(entry) for entry in entries)

    def axis(self, name: str, rank: int) -> int:
        """An axis, counted from the front."""
        return int(self.args[name]) % max(rank, 1)

    # --- types ------------------------------------------------------------------------

    def type(self, value: Value) -> TensorType:
        """The type of a value."""
        return self.walk.types[value]

    @property
    def result(self) -> TensorType:
        """The type that torch gives the result."""
        found = self.node.meta["val"]
        if isinstance(found, list | tuple):
            found = found[0]
        return self.walk.symbols.type(found)

    @property
    def layer(self) -> str:
        """The class of the module whose code makes the call."""
        return self.walk.classes.get(self.scope, "")

    # --- results ----------------------------------------------------------------------

    def put(
        self,
        op: str,
        *inputs: Value,
        params: Mapping[str, Held | None] | None = None,
        **attrs: AttrValue,
    ) -> Value:
        """Add a use of an operator; its first result."""
        return self.several(op, *inputs, params=params, **attrs)[0]

    def several(
        self,
        op: str,
        *inputs: Value,
        params: Mapping[str, Held | None] | None = None,
        **attrs: AttrValue,
    ) -> list[Value]:
        """Add a use of an operator; its results."""
        own = {role: held for role, held in (params or {}).items() if held is not None}
        return self.walk.add(op, inputs, attrs, own, paths.Hint(self.scope))

    def reshape(self, x: Value, sizes: Sequence[Size]) -> Value:
        """A tensor in another shape; no node where it has that shape."""
        old = self.type(x).shape
        if tuple(sizes) == old:
            return x
        entries: list[int] = []
        for place, size in enumerate(sizes):
            if isinstance(size, int):
                entries.append(size)
            else:
                entries.append(0 if place < len(old) and old[place] == size else -1)
        if entries.count(-1) > 1:
            raise CannotRaiseError("two sizes of its result are symbolic")
        return self.put("reshape", x, shape=tuple(entries))

    def _state(self, held: Held) -> Value:
        shape = tuple(held.tensor.shape)
        attrs: dict[str, AttrValue] = {
            "shape": shape,
            "dtype": self.walk.symbols.type(held.tensor).dtype,
            "buffer": held.buffer,
        }
        if not held.persistent:
            attrs["persistent"] = False
        return self._once(("state", held.path), "parameter", attrs, {"value": held})

    def _constant(self, tensor: torch.Tensor) -> Value:
        dtype = NAMES.get(tensor.dtype)
        if dtype is None:
            raise CannotRaiseError(f"it reads numbers of type {tensor.dtype}")
        if tensor.numel() <= LARGEST_CONSTANT and dtype != "bool":
            attrs: dict[str, AttrValue] = {"value": _nested(tensor.tolist()), "dtype": dtype}
            return self._once(("constant", repr(attrs), self.scope), "constant", attrs, {})
        for held in self.walk.held.values():
            alike = not held.persistent and held.path.startswith(f"{self.scope}.")
            if alike and held.tensor.dtype == tensor.dtype and torch.equal(held.tensor, tensor):
                return self._state(held)
        taken = {held.path for held in self.walk.held.values()} | set(self.walk.program.state_dict)
        stem = ".".join(p for p in (self.scope, "table") if p)
        path, number = stem, 0
        while path in taken:
            number += 1
            path = f"{stem}{number}"
        copy = tensor.detach().clone().contiguous()
        return self._state(Held(path, copy, buffer=True, persistent=False))

    def _once(
        self, key: tuple[object, ...], op: str, attrs: Mapping[str, AttrValue], params: Any
    ) -> Value:
        found = self.walk.made.get((op, key))
        if found is None:
            (found,) = self.walk.add(op, (), attrs, params, paths.Hint(self.scope, op))
            self.walk.made[(op, key)] = found
        return found


def _nested(value: Any) -> AttrValue:
    return tuple(_nested(v) for v in value) if isinstance(value, list) else value
