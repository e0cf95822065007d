"""From a captured program to a graph: one pass over its calls, operators by table."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from archir.backends.torch_fx.carried import stated
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from archir.diag import ArchirError, error
from archir.ir.dims import Size
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Parameter, Value
from archir.ir.types import AttrValue, TensorType
from archir.ops.infer import OpError, bind_attrs, instance
from archir.ops.record import OpSet

from . import paths
from .moving import filled
from .site import Site
from .table import FROM_TORCH
from .values import CannotRaiseError, Entry, Held, Known, Noise, Symbols

FILLED = {"new_zeros": 0, "zeros_like": 0, "zeros": 0, "new_ones": 1, "ones_like": 1, "ones": 1}
"""What is filled with a number, whatever tensor it takes its shape or type from."""
PIECES = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
"""What calls a piece of code, and how many settings stand before it among the arguments."""
SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)


@dataclass(frozen=True)
class Raised:
    """A raised program."""

    graph: Graph
    tensors: Mapping[str, torch.Tensor]
    """The parameters' values by path."""
    carried: tuple[str, ...]
    """Operators that archir does not know, each once."""


@dataclass
class Walk:
    """A program that is being raised: what each of its nodes has become."""

    program: ExportedProgram
    ops: OpSet
    name: str
    train: bool = False
    """Whether the program was captured in training mode."""
    laid_out: bool = False
    """Whether `contiguous` stays: a kernel may round otherwise where rows lie apart."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """The class of each submodule, by its path."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """For each further path of a tied tensor its first."""
    symbols: Symbols = field(default_factory=Symbols)
    nodes: dict[str, Node] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    """The tensors that the graph reads, by path."""
    env: dict[fx.Node, Entry] = field(default_factory=dict)
    types: dict[Value, TensorType] = field(default_factory=dict)
    views: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """What each node is a view of."""
    inputs: list[str] = field(default_factory=list)
    hints: dict[str, paths.Hint] = field(default_factory=dict)
    """How each node wants to be called; its key is its number."""
    carried: dict[str, None] = field(default_factory=dict)
    made: dict[tuple[str, object], Value] = field(default_factory=dict)
    """Nodes that are made once and read often: state, constants."""

    def run(self, outputs: int | None = None) -> Raised:
        """Raise the program; of its outputs the first so many.

        Raises:
            ArchirError: A522, it has an operator that cannot be raised.
        """
        self._placeholders()
        place: dict[fx.Node, float] = {n: i for i, n in enumerate(self.program.graph.nodes)}
        for node in self.program.graph.nodes:
            if node.op == "call_function" and str(node.target) in PIECES:
                self._piece(node, place)
            elif node.op == "call_function":
                self._call(node, place)
        return self._finished(outputs)

    def _piece(self, node: fx.Node, place: dict[fx.Node, float]) -> None:
        """A piece of code that stands apart because a mode of torch was set around it."""
        before = PIECES[str(node.target)]
        if str(node.target) == "wrap_with_autocast" and node.args[2]:
            raise error(
                "A522", f"{self.name} computes in lower precision where it likes (autocast)"
            )
        held, *operands = node.args[before:]
        assert isinstance(held, fx.Node)
        piece = getattr(self.program.graph_module, str(held.target)).graph
        inside = list(piece.nodes)
        place.update((n, place[node] + (i + 1) / (len(inside) + 2)) for i, n in enumerate(inside))
        given = iter(operands)
        for inner in inside:
            if inner.op == "placeholder":
                outer = next(given)
                assert isinstance(outer, fx.Node)
                self.env[inner], self.views[inner] = self.env[outer], outer
            elif inner.op == "call_function":
                self._call(inner, place)
            elif inner.op == "output":
                self.env[node] = [self.env[result] for result in inner.args[0]]

    # --- state and inputs -------------------------------------------------------------

    def _placeholders(self) -> None:
        nodes = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        specs = self.program.graph_signature.input_specs
        constants = self.program.constants
        state = self.program.state_dict
        users = [n for n, s in zip(nodes, specs, strict=True) if s.kind is InputKind.USER_INPUT]
        for node, spec in zip(nodes, specs, strict=True):
            target = spec.target or ""
            if spec.kind is InputKind.USER_INPUT:
                self._input(node, "image" if len(users) == 1 and self._image(node) else node.name)
            elif spec.kind is InputKind.PARAMETER:
                first = self.aliases.get(target, target)
                self.env[node] = Held(first, state[target], buffer=False)
            elif spec.kind is InputKind.BUFFER and spec.persistent:
                self.env[node] = Held(target, state[target], buffer=True)
            elif spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                self.env[node] = Held(target, constants[target], buffer=True, persistent=False)
            else:
                raise error("A522", f"{self.name} reads `{node.name}`, which is no tensor")

    def _image(self, node: fx.Node) -> bool:
        found = node.meta["val"]
        return isinstance(found, torch.Tensor) and found.dim() == 4 and found.is_floating_point()

    def _input(self, node: fx.Node, name: str) -> None:
        found = node.meta["val"]
        if not isinstance(found, torch.Tensor):
            raise error("A522", f"the argument `{node.name}` of {self.name} is no tensor")
        type_ = self.symbols.type(found)
        self.env[node] = self.put("input", (), {}, {}, (type_,), paths.Hint("", name, fixed=True))
        key = list(self.nodes)[-1]
        self.inputs.append(key)

    # --- calls ------------------------------------------------------------------------

    def _call(self, node: fx.Node, place: Mapping[fx.Node, float]) -> None:
        found = node.meta.get("val")
        if isinstance(found, SIZES) or not isinstance(node.target, torch._ops.OpOverload):
            self._scalar(node, found)
            return
        if found is None and node.target.namespace == "aten" and not node.users:
            return  # an assertion
        if node.target._schema.is_mutable and self._counts(node):
            return
        try:
            result = self._known(node)
            if result is None and _fills(node):
                self._fill(node, place)
                return
            if result is None:
                result = self._raised(node)
            self.env[node] = result
            if node.target._schema.is_mutable:
                self._mutated(node, result, place)
            self._note_view(node)
        except (CannotRaiseError, OpError) as reason:
            text = reason.message if isinstance(reason, OpError) else str(reason)
            raise self._refusal(node, text) from reason

    def _counts(self, node: fx.Node) -> bool:
        """Whether a call counts batches, which batch normalisation does by itself."""
        held = self.env.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        return isinstance(held, Held) and held.path.endswith("num_batches_tracked")

    def _scalar(self, node: fx.Node, found: object) -> None:
        """Arithmetic on sizes needs no node: sizes are read off the tensors' types."""
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, fx.Node)
            assert isinstance(index, int)
            held = self.env.get(source)
            if isinstance(held, list | tuple) and not isinstance(held, Value):
                self.env[node] = held[index]
                self.views[node] = source
                return
        if not isinstance(found, SIZES) and found is not None:
            raise error("A522", f"{self.name} calls `{node.target}`, which is no operator of torch")

    def _known(self, node: fx.Node) -> Entry:
        """Compute at once what depends on no input and no state."""
        target = node.target
        assert isinstance(target, torch._ops.OpOverload)
        if torch.Tag.nondeterministic_seeded in target.tags:
            return None
        found = node.meta.get("val")
        kind = str(target._schema.name).partition("::")[2]
        if kind in FILLED and isinstance(found, torch.Tensor) and _whole(found.shape):
            return Known(torch.full(tuple(found.shape), FILLED[kind], dtype=found.dtype))
        reads = [self.env[n] for n in node.all_input_nodes if n in self.env]
        if len(reads) < len(node.all_input_nodes):
            return None  # a size that is not known
        if not all(isinstance(r, Known) for r in reads):
            return None

        def value(n: fx.Node) -> Any:
            entry = self.env[n]
            assert isinstance(entry, Known)
            return entry.tensor

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        result = target(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return Known(result)
        return [Known(r) for r in result]

    def _raised(self, node: fx.Node) -> Entry:
        target = node.target
        assert isinstance(target, torch._ops.OpOverload)
        kind = str(target._schema.name).partition("::")[2]
        lookup = kind.removesuffix("_") if target._schema.is_mutable else kind
        site = Site(self, node, lookup)
        before = len(self.nodes)
        known = FROM_TORCH.get(lookup, _unknown) if target.namespace == "aten" else _unknown
        try:
            result = known(site)
            self._check(node, result)
        except (CannotRaiseError, OpError) as reason:
            for key in list(self.nodes)[before:]:
                self._forget(key)
            return self._carried(site, reason)
        return result

    def _forget(self, key: str) -> None:
        """Take back a node of an attempt that failed."""
        node = self.nodes.pop(key)
        for port in range(len(node.types)):
            del self.types[Value(key, port)]
        self.made = {what: value for what, value in self.made.items() if value.node != key}

    def _carried(self, site: Site, reason: CannotRaiseError | OpError) -> Entry:
        """A call that archir has no operator for, carried as it is.

        Raises:
            CannotRaiseError: it cannot be, or stands for random numbers; with the reason why
                archir has none.
        """
        node = site.node
        assert isinstance(node.target, torch._ops.OpOverload)
        target = _functional(node.target) if node.target._schema.is_mutable else node.target
        found: Any = node.meta.get("val")
        several = isinstance(found, list | tuple)
        types = [self.symbols.type(each) for each in (found if several else [found])]
        if target is None or any(isinstance(self.env.get(n), Noise) for n in node.all_input_nodes):
            raise reason
        try:
            name, attrs, operands = stated(target, node.args, node.kwargs, types, self._size)
        except ArchirError as refusal:
            raise CannotRaiseError(f"{reason}; {refusal.diagnostics[0].message}") from reason
        values = self.add(
            name,
            [site.operand(self.env[each]) for each in operands],
            attrs,
            {},
            paths.Hint(site.scope),
        )
        self.carried[name] = None
        return list(values) if several else values[0]

    def _size(self, value: fx.Node | torch.SymInt) -> Size | None:
        """The size that a value stands for; None for a tensor."""
        found = value.meta.get("val") if isinstance(value, fx.Node) else value
        return self.symbols.size(found) if isinstance(found, int | torch.SymInt) else None

    def _check(self, node: fx.Node, result: Entry) -> None:
        """What was made has the type that torch says it has."""
        found = node.meta.get("val")
        pairs = [(found, result)]
        if isinstance(found, list | tuple) and isinstance(result, list):
            pairs = list(zip(found, result, strict=False))
        for fake, entry in pairs:
            if isinstance(entry, Value) and isinstance(fake, torch.Tensor):
                wanted, got = self.symbols.type(fake), self.types[entry]
                if wanted != got:
                    raise CannotRaiseError(f"torch makes {wanted} of it, archir {got}")

    def _mutated(self, node: fx.Node, result: Entry, place: Mapping[fx.Node, float]) -> None:
        """What is overwritten is from here on the result."""
        old = node.args[0]
        assert isinstance(old, fx.Node)
        if isinstance(self.env[old], Known):
            return  # its views see it too: the tensor itself was overwritten
        self._own(old)
        self._unseen(node, old, place)
        self.env[old] = result

    def _own(self, node: fx.Node) -> None:
        """Refuse to overwrite a tensor of the module's state; a copy of one is no such."""
        before, root = self.env[node], self._root(node)
        if isinstance(before, Held) and root.op == "placeholder":
            raise CannotRaiseError(f"it overwrites `{before.path}`")

    def _unseen(self, node: fx.Node, old: fx.Node, place: Mapping[fx.Node, float]) -> None:
        """Refuse where another view of what is overwritten is read later."""
        alias = [n for n in self.views if n is not old and self._root(n) is self._root(old)]
        alias += [self._root(old)] if self._root(old) is not old else []
        here = place[node]
        for other in alias:
            if other is not node and any(place[user] > here for user in other.users):
                raise CannotRaiseError("it overwrites a tensor of which a view is read later")

    def _fill(self, node: fx.Node, place: Mapping[fx.Node, float]) -> None:
        """A slice of a tensor is overwritten with a number: the tensor is put together anew."""
        part = node.args[0]
        assert isinstance(part, fx.Node)
        base = self.views.get(part)
        if base is None or base in self.views or str(part.target) != "aten.slice.Tensor":
            raise CannotRaiseError("it overwrites a tensor that is no slice of another")
        self._own(base)
        self._unseen(node, base, place)
        site = Site(self, part, "slice")
        x = site.operand(self.env[base])
        axis = site.axis("dim", self.types[x].rank)
        extent = self.types[x].shape[axis]
        if not isinstance(extent, int):
            raise CannotRaiseError(f"it cuts axis {axis}, whose size is {extent}")
        places = range(*slice(site.args["start"], site.args["end"]).indices(extent))
        number = float(node.args[1]) if len(node.args) > 1 else 0.0  # type: ignore[arg-type]
        self.env[base] = filled(site, x, axis, places, number)

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self.views:
            node = self.views[node]
        return node

    def _note_view(self, node: fx.Node) -> None:
        target = node.target
        assert isinstance(target, torch._ops.OpOverload)
        aliased = any(r.alias_info is not None for r in target._schema.returns)
        if (aliased or _may_view(target)) and not target._schema.is_mutable:
            source = node.args[0] if node.args else None
            if isinstance(source, fx.Node):
                self.views[node] = source

    def _refusal(self, node: fx.Node, reason: str) -> ArchirError:
        where = scope_of(node)
        lines = [x.strip() for x in (node.meta.get("stack_trace") or "").splitlines() if x.strip()]
        code = f"\n    {lines[-2]}\n    {lines[-1]}" if len(lines) > 1 else ""
        at = f" in `{where}`" if where else ""
        return error("A522", f"{self.name} calls `{node.target}`{at}: {reason}{code}", node=where)

    # --- making nodes -----------------------------------------------------------------

    def put(
        self,
        op: str,
        inputs: Sequence[Value],
        attrs: Mapping[str, AttrValue],
        params: Mapping[str, Held],
        types: tuple[TensorType, ...],
        hint: paths.Hint,
    ) -> Value:
        """Add a node whose types are known."""
        key = str(len(self.nodes))
        for held in params.values():
            self.held[held.path] = held
        own = {role: held.path for role, held in params.items()}
        self.nodes[key] = Node(key, op, dict(attrs), tuple(inputs), own, types)
        self.hints[key] = hint
        for port, type_ in enumerate(types):
            self.types[Value(key, port)] = type_
        return Value(key)

    def add(
        self,
        op: str,
        inputs: Sequence[Value],
        attrs: Mapping[str, AttrValue],
        params: Mapping[str, Held],
        hint: paths.Hint,
    ) -> list[Value]:
        """Add a use of an operator; returns its results.

        Raises:
            OpError: the operator does not take these operands.
        """
        record = self.ops[op]
        operands = tuple(self.types[value] for value in inputs)
        full = bind_attrs(record, attrs, operands)
        found = instance(record, full, operands)
        for role, type_ in found.params.items():
            if role not in params:
                raise CannotRaiseError(f"`{op}` lacks its {role}")
            if op != "parameter" and params[role].buffer != record.param(role).buffer:
                raise CannotRaiseError(f"the {role} of `{op}` is a buffer, or should be one")
            got = self.symbols.type(params[role].tensor)
            if got != type_:
                raise CannotRaiseError(f"the {role} of `{op}` is {got}, not {type_}")
        value = self.put(op, inputs, full, params, found.types, hint)
        return [Value(value.node, port) for port in range(len(found.types))]

    # --- the result -------------------------------------------------------------------

    def _needed(self, entries: Sequence[Entry]) -> dict[str, Node]:
        """The inputs, and the nodes that an output depends on."""
        needed = {*self.inputs, *(entry.node for entry in entries if isinstance(entry, Value))}
        for key in reversed(list(self.nodes)):
            if key in needed:
                needed.update(value.node for value in self.nodes[key].inputs)
        return {key: node for key, node in self.nodes.items() if key in needed}

    def _finished(self, count: int | None) -> Raised:
        specs = self.program.graph_signature.output_specs
        (last,) = (n for n in self.program.graph.nodes if n.op == "output")
        results = [
            value
            for value, spec in zip(last.args[0], specs, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT
        ]
        for spec in specs:
            if spec.kind is OutputKind.BUFFER_MUTATION and not _tracked(spec.target):
                raise error("A522", f"{self.name} overwrites its buffer `{spec.target}`")
        builder = GraphBuilder(self.name)
        kept = self._needed([self.env[r] for r in results[:count] if isinstance(r, fx.Node)])
        names = paths.settle(kept, self.hints)
        used: dict[Value, Value] = {}
        for key, node in kept.items():
            used.update({Value(key, p): Value(names[key], p) for p in range(len(node.types))})
            inputs = tuple(used[value] for value in node.inputs)
            builder.add(Node(names[key], node.op, node.attrs, inputs, node.params, node.types))
        builder.inputs = [names[key] for key in self.inputs]
        outputs: list[tuple[str, Value]] = []
        for result in results[:count]:
            entry = self.env[result] if isinstance(result, fx.Node) else None
            if not isinstance(entry, Value):
                raise error("A522", f"an output of {self.name} is no tensor that it computes")
            outputs.append((scope_of(result), used[entry]))
        taken = set(builder.nodes)
        builder.outputs = [
            Output(name, value)
            for name, (_, value) in zip(paths.output_names(outputs, taken), outputs, strict=True)
        ]
        for held in self.held.values():
            builder.parameters[held.path] = Parameter(
                held.path, self.symbols.type(held.tensor), held.buffer
            )
        graph = builder.build()
        tensors = {path: self.held[path].tensor for path in graph.parameters}
        return Raised(graph, tensors, tuple(self.carried))


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """The operator that computes what another writes into its operand."""
    packet = getattr(torch.ops.aten, target._opname.removesuffix("_"), None)
    found = getattr(packet, target._overloadname, None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def _unknown(at: Site) -> Entry:
    raise CannotRaiseError("archir has no such operator")


def _fills(node: fx.Node) -> bool:
    """Whether a call overwrites a tensor with a number."""
    return str(node.target) in ("aten.zero_.default", "aten.fill_.Scalar")


def scope_of(node: fx.Node) -> str:
    """The path of the innermost module whose code makes a call."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else str(path)


def _tracked(target: str | None) -> bool:
    """Whether a buffer is batch normalisation's own."""
    return (target or "").rpartition(".")[2] in (
        *("num_batches_tracked", "running_mean", "running_var"),
    )


def _whole(shape: Sequence[int | torch.SymInt]) -> bool:
    return all(isinstance(size, int) or size.node.expr.is_Integer for size in shape)


def _may_view(target: torch._ops.OpOverload) -> bool:
    """Whether an operator hands its operand on where it can."""
    return target._schema.name in (
        *("aten::reshape", "aten::contiguous", "aten::to", "aten::flatten", "aten::alias"),
        *("aten::expand_as", "aten::type_as", "aten::reshape_as", "aten::dropout"),
    )
