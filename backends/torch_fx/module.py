"""A network as a ``torch.fx.GraphModule``, and back to arrays."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

import torch
from torch import fx

from archir.diag import error
from archir.ir.graph import Graph, Value
from archir.ir.memory import uncollected
from archir.ops import STANDARD
from archir.ops.arithmetic import Array
from archir.ops.carried import is_carried
from archir.ops.record import OpSet
from archir.weights.init import constants_of, init_weights
from archir.weights.store import Weights, check_weights

from . import carried
from .direct import direct
from .frame import Frame, Site, array_of, tensor_of
from .lowering import LOWER, UNSUPPORTED


def lower(
    graph: Graph,
    weights: Mapping[str, Array] | None = None,
    ops: OpSet = STANDARD,
    *,
    copy: bool = True,
) -> fx.GraphModule:
    """Lower a network to a module whose ``state_dict`` keys are the parameter paths.

    The module takes the inputs in the graph's order and returns its output, or a tuple of them
    where there are several. It starts in training mode, as modules do.

    Args:
        graph: The network.
        weights: An array for each parameter; the module gets copies. Without them the
            parameters are initialised with seed 0.
        ops: The operators.
        copy: Whether the module gets memory of its own; without, it must not be trained.

    Raises:
        ArchirError: A501 or A502 (torch cannot run it), A611 or A612 (the weights do not fit),
            A140 (it has constants, and no weights are given).
    """
    if weights is None:
        return _module(graph, init_weights(graph, ops, 0), copy=False)
    check_weights(graph, weights)
    return _module(graph, weights, copy=copy)


def weights_of(module: torch.nn.Module, graph: Graph) -> Weights:
    """The weights that a lowered module holds, as arrays of their own.

    Takes a module that ``torch.compile`` or a parallel wrapper has wrapped as well.

    Raises:
        ArchirError: A611 or A612, the module is not one of this network.
    """
    while not isinstance(module, fx.GraphModule):
        inner = module._modules.get("_orig_mod") or module._modules.get("module")
        if inner is None:
            break
        module = inner
    state = {**dict(module.named_buffers(remove_duplicate=False)), **module.state_dict()}
    found = {path: array_of(state[path]) for path in graph.parameters if path in state}
    check_weights(graph, found)
    return found


def forward(
    graph: Graph,
    weights: Mapping[str, Array],
    feeds: Mapping[str, Array],
    *,
    train: bool = False,
    values: Sequence[Value] | None = None,
) -> list[Array]:
    """Run a network on the CPU without autograd; see :class:`archir.target.Forward`."""
    return runner(graph, weights, train=train, values=values)(feeds)


def runner(
    graph: Graph,
    weights: Mapping[str, Array],
    *,
    train: bool = False,
    values: Sequence[Value] | None = None,
    rounded: Container[str] = (),
) -> Callable[[Mapping[str, Array]], list[Array]]:
    """As :func:`forward`, for several feeds one after the other: the network is lowered once.

    The results of nodes in ``rounded`` are rounded to float16, as a device that computes in
    float16 hands them on.
    """
    wanted = [o.value for o in graph.outputs] if values is None else list(values)
    check_weights(graph, weights, extra=True)
    module = _module(graph, weights, copy=train, wanted=wanted, rounded=rounded).train(train)

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        with torch.inference_mode():
            found = module(*(tensor_of(feeds[name], copy=False) for name in graph.inputs))
        return [array_of(value) for value in (found if len(wanted) > 1 else (found,))]

    return run


def _module(
    graph: Graph,
    weights: Mapping[str, Array],
    *,
    copy: bool,
    wanted: Sequence[Value] | None = None,
    rounded: Container[str] = (),
) -> fx.GraphModule:
    with uncollected():
        return _lowered(graph, weights, copy=copy, wanted=wanted, rounded=rounded)


def _lowered(
    graph: Graph,
    weights: Mapping[str, Array],
    *,
    copy: bool,
    wanted: Sequence[Value] | None,
    rounded: Container[str],
) -> fx.GraphModule:
    tensors: dict[str, torch.Tensor] = {}
    for path, parameter in graph.parameters.items():
        tensor = tensor_of(weights[path], copy=copy)
        trained = not parameter.buffer
        tensors[path] = (
            torch.nn.Parameter(tensor, tensor.is_floating_point()) if trained else tensor
        )
    results = [o.value for o in graph.outputs] if wanted is None else wanted
    needed = None if wanted is None else _needed(graph, wanted)
    kept = frozenset(value.node for value in results)
    frame = Frame(graph, tensors, kept, frozenset(constants_of(graph)))
    for name in graph.inputs:
        frame.placeholder(name)
    made: dict[Value, fx.Node] = {}
    for node in graph:
        if needed is not None and node.name not in needed:
            continue
        lowering = carried.lower if is_carried(node.op) else LOWER.get(node.op)
        if lowering is None:
            reason = UNSUPPORTED.get(node.op, "it has no entry in the backend's table")
            raise error("A501", f"torch cannot run `{node.op}`: {reason}", node=node.name)
        types = tuple(graph.type_of(value) for value in node.inputs)
        site = Site(frame, node, types, tuple(made[value] for value in node.inputs))
        found = lowering(site)
        frame.settle(node.name)
        calls = found if isinstance(found, tuple) else (found,)
        if node.name in rounded:
            calls = tuple(map(frame.rounded, calls, node.types))
        made.update({Value(node.name, port): call for port, call in enumerate(calls)})
    outputs = tuple(made[value] for value in results)
    frame.graph.output(outputs if len(outputs) > 1 else outputs[0])
    frame.graph.on_generate_code(lambda _: direct)
    name = graph.name if graph.name.isidentifier() else "Network"
    return fx.GraphModule(frame.root, frame.graph, name)


def _needed(graph: Graph, wanted: Sequence[Value]) -> set[str]:
    needed: set[str] = set()
    stack = [value.node for value in wanted]
    while stack:
        name = stack.pop()
        if name not in needed:
            needed.add(name)
            stack.extend(value.node for value in graph.node(name).inputs)
    return needed
