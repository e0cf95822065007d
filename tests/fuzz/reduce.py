"""Make a failing network smaller, step by step, as long as it fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from hypothesis import Phase, given, settings

from archir.ir.graph import Graph, Node, Output, Value, reachable
from archir.ops import STANDARD
from archir.ops.infer import OpError, infer

from .checks import Wrong, kind
from .networks import Case, networks
from .sketch import numbers

Check = Callable[[Case], object]
VARIADIC = ("add", "mul", "concat")
SIMPLER = {"groups": 1, "dilation": 1, "stride": 1, "bias": False, "padding": 0, "kernel": 1}
"""Values of attributes that make a network easier to read."""


class Failure(Wrong):
    """A check that fails, on a network made small."""

    def __init__(self, message: str, case: Case) -> None:
        super().__init__(f"{message}{case!r}")
        self.message, self.case = message, case


def hold(check: Check, how: settings) -> None:
    """A check holds of all networks that hypothesis draws.

    Raises:
        Failure: it does not; the network is as small as :func:`smallest` makes it.
    """
    last: list[Case] = []

    # Making a network smaller knows more ways than making choices simpler, and is quicker.
    @settings(how, phases=[Phase.generate])
    @given(networks())
    def every(case: Case) -> None:
        last[:] = [case]
        check(case)

    try:
        every()
    except Exception as failure:
        # A crash is a finding as much as a property that does not hold.
        raise smallest(check, last[0]) from failure


def smallest(check: Check, case: Case) -> Failure:
    """A failing case with its network reduced."""

    def fails(graph: Graph) -> str | None:
        try:
            check(Case(graph))
        except Exception as failure:
            return f"{type(failure).__name__} {kind(str(failure), graph)}"
        return None

    small = Case(reduce(case.graph, fails))
    try:
        check(small)
    except Wrong as failure:
        return Failure(str(failure), small)
    except Exception as failure:
        return Failure(f"{type(failure).__name__}: {failure}", small)
    raise AssertionError("what failed does not fail again")


def reduce(graph: Graph, fails: Callable[[Graph], object]) -> Graph:
    """The smallest network that fails as the given one does, one change at a time.

    ``fails`` gives the way in which a network fails, and None for one that does not.
    """
    wanted = fails(graph)
    assert wanted is not None
    smaller: Graph | None = graph
    while smaller is not None:
        graph = smaller
        smaller = next((g for g in _smaller(graph) if fails(g) == wanted), None)
    return graph


def _smaller(graph: Graph) -> Iterator[Graph]:
    for change in (
        _fewer_outputs, _earlier_output, _outputs_back, _cut, _bypass, _fewer_operands, _simpler,
        _narrower,
    ):  # fmt: skip
        for changed in change(graph):
            found = _tidy(changed)
            if found is not None and _weight(found) < _weight(graph):
                yield found


def _weight(graph: Graph) -> tuple[int, ...]:
    """What every step makes less."""
    edges = sum(len(node.inputs) for node in graph)
    plain = sum(n.attrs.get(a) not in (v, None, (v,) * len(_t(n, a))) for n in graph
                for a, v in SIMPLER.items())  # fmt: skip
    sources = sum(node.op == "input" for node in graph)
    size = sum(numbers(type_) for node in graph for type_ in node.types)
    return (len(graph) - sources, edges, len(graph.outputs), sources, plain, size)


def _t(node: Node, attr: str) -> tuple[object, ...]:
    value = node.attrs.get(attr)
    return value if isinstance(value, tuple) else ()


def _tidy(graph: Graph) -> Graph | None:
    """Without what no output depends on, and inferred again; None where it does not fit."""
    used = reachable(graph)
    builder = graph.edit()
    builder.nodes = {name: node for name, node in builder.nodes.items() if name in used}
    builder.inputs = [name for name in builder.inputs if name in used]
    try:
        return infer(builder.build(), STANDARD)
    except OpError:
        return None


def _fewer_outputs(graph: Graph) -> Iterator[Graph]:
    for output in graph.outputs if len(graph.outputs) > 1 else ():
        builder = graph.edit()
        builder.outputs = [o for o in graph.outputs if o != output]
        yield builder.build()


def _earlier_output(graph: Graph) -> Iterator[Graph]:
    for node in graph:
        for port in range(len(node.types)):
            builder = graph.edit()
            builder.outputs = [Output("y", Value(node.name, port))]
            yield builder.build()


def _outputs_back(graph: Graph) -> Iterator[Graph]:
    """Instead of a node's value, the network returns what the node reads."""
    for place, output in enumerate(graph.outputs):
        operands = dict.fromkeys(graph.node(output.value.node).inputs)
        if operands:
            builder = graph.edit()
            values = [o.value for o in graph.outputs]
            values[place : place + 1] = operands
            builder.outputs = [Output(f"y{n}", v) for n, v in enumerate(dict.fromkeys(values))]
            yield builder.build()


def _cut(graph: Graph) -> Iterator[Graph]:
    """A value becomes an input of the network; what made it goes, or ends in outputs."""
    for node in graph:
        for port, type_ in enumerate(node.types if node.op != "input" else ()):
            name = f"{node.name}_in{port}"
            if name not in graph:
                builder = graph.edit()
                builder.inputs.append(name)
                new = builder.add(Node(name, "input", {}, (), {}, (type_,)))
                builder.rewire({Value(node.name, port): new})
                yield builder.build()
                taken = dict.fromkeys(o.value for o in builder.outputs)
                values = [*taken, *(v for v in dict.fromkeys(node.inputs) if v not in taken)]
                builder.outputs = [Output(f"y{n}", v) for n, v in enumerate(values)]
                yield builder.build()


def _bypass(graph: Graph) -> Iterator[Graph]:
    """What reads a value reads an earlier one of its type instead."""
    earlier: list[Value] = []
    for node in graph:
        for port, type_ in enumerate(node.types):
            for other in earlier:
                if graph.type_of(other) == type_:
                    builder = graph.edit()
                    builder.rewire({Value(node.name, port): other}, but=[node.name])
                    yield builder.build()
        earlier.extend(Value(node.name, port) for port in range(len(node.types)))


def _fewer_operands(graph: Graph) -> Iterator[Graph]:
    for node in graph:
        least = STANDARD[node.op].operands[0]
        for index in range(len(node.inputs) * (node.op in VARIADIC and len(node.inputs) > least)):
            builder = graph.edit()
            kept = (*node.inputs[:index], *node.inputs[index + 1 :])
            builder.put(replace(node, inputs=kept))
            yield builder.build()


def _simpler(graph: Graph) -> Iterator[Graph]:
    for node in graph:
        for attr, value in SIMPLER.items():
            if attr in node.attrs and not node.params.keys() & {"running_mean"}:
                builder = graph.edit()
                held = node.attrs[attr]
                new = (value,) * len(held) if isinstance(held, tuple) else value
                params = dict(node.params)
                if attr == "bias":
                    params.pop("bias", None)
                builder.put(replace(node, attrs={**node.attrs, attr: new}, params=params))
                yield builder.build()


def _narrower(graph: Graph) -> Iterator[Graph]:
    """Fewer output channels, and inputs that are smaller."""
    for node in graph:
        builder = graph.edit()
        out = node.attrs.get("out")
        if isinstance(out, int) and out > 2:
            builder.put(replace(node, attrs={**node.attrs, "out": 2}))
            yield builder.build()
        for axis, size in enumerate(node.types[0].shape if node.op == "input" else ()):
            for less in (1, 2, 3):
                if isinstance(size, int) and size > less:
                    shape = (*node.types[0].shape[:axis], less, *node.types[0].shape[axis + 1 :])
                    builder = graph.edit()
                    builder.put(replace(node, types=(replace(node.types[0], shape=shape),)))
                    yield builder.build()
