"""Counterexamples: as small as they go, with numbers that a person can follow."""

from __future__ import annotations

import pytest

from archir.diag import Source
from archir.ir.graph import Graph
from archir.lang import load
from archir.ops import STANDARD
from archir.proof.instances import Instances, _near
from archir.proof.prove import prove
from archir.proof.trials import try_rule

OVER_CLASS = """rule wrong(width: int) {{
    "What is done to weights is not what it should be."
    preserves function in eval, train
    over c = class(at)          where {guard}
    let g = {map}
    produce {produce}           carry {carry}           consume {consume}
}}"""
WIDER, NARROWER = "width > size(c)", "width < size(c), width > 0"
COPIES, SOME = "replicate(size(c), width)", "select(size(c), width)"


def over_class(guard: str, made: str, produce: str, carry: str, consume: str) -> str:
    return OVER_CLASS.format(guard=guard, map=made, produce=produce, carry=carry, consume=consume)


UNDIVIDED = over_class(WIDER, COPIES, "take(g)", "take(g)", "take(g)")
STATISTICS = over_class(WIDER, COPIES, "take(g)", "take(g) / count(g)", "take(g) / count(g)")
DROPPED = over_class(NARROWER, SOME, "take(g)", "take(g)", "take(g)")
SHUFFLED = """rule wrong() {
    "What reads the channels goes the other way."
    preserves function in eval
    over c = class(at)          where size(c) > 1
    let g = shuffle(size(c))
    produce take(g)             carry take(g)           consume place(g)
}"""
AFTER_TANH = """rule wrong(kernel: odd = 3) {
    "After what is not idempotent."
    preserves function in eval, train
    match   { y = tanh(x) }                                     where rank(x) == 4
    replace { y = tanh(x) |> new: conv(channels(x), kernel) |> tanh }
    weights { new.weight = identity(channels(x), kernel, kernel)
              new.bias   = zeros(channels(x)) }
}"""
PADDED = """rule wrong() {
    "A wider window is padded too little."
    preserves function in eval
    match   { y = c: conv(x, kernel = 3, stride = 1, padding = 1, dilation = 1, groups = 1,
                          bias = false) }                       where rank(x) == 4
    replace { y = x |> new: conv(channels(y), 3, stride = 1, padding = 2, dilation = 2,
                                 bias = false) }
    weights { new.weight = c.weight }
}"""


def numbers(graph: Graph) -> list[int]:
    """The sizes of all that is drawn."""
    shapes = [graph.node(name).types[0].shape for name in graph.inputs]
    shapes += [p.type.shape for p in graph.parameters.values()]
    return [size for shape in shapes for size in shape if isinstance(size, int)]


@pytest.mark.parametrize(
    ("text", "nodes", "largest"),
    [
        (UNDIVIDED, 4, 1),
        (DROPPED, 4, 2),
        (SHUFFLED, 4, 3),
        (STATISTICS, 5, 2),
        (AFTER_TANH, 2, 1),
        (PADDED, 2, 3),
    ],
)
def test_a_counterexample_is_small(text, nodes, largest, read, axioms) -> None:
    verdict = prove(read(text), STANDARD, axioms)
    for held in verdict.modes:
        assert held.kind == "refuted"
        shown = held.counterexample.text().splitlines()
        assert len(shown) <= 30
        graph = load(Source("against.arch", held.counterexample.network), STANDARD).graph
        assert len(list(graph)) == nodes
        assert max(numbers(graph)) == largest
        assert f"  {held.counterexample.difference()}" in shown
        named = {line.split(" = ")[0].strip() for line in shown if " = " in line}
        assert set(graph.inputs) <= named
        assert set(graph.parameters) <= named | {"bn.num_batches_tracked"}
        assert any(name.endswith(" after") for name in named)


def test_it_is_the_first_one_unless_it_is_made_smaller(read) -> None:
    among = Instances(read(UNDIVIDED), STANDARD)
    large = try_rule(among, "eval", 8, shrink=False).counterexample
    small = try_rule(among, "eval", 8).counterexample
    assert len(small.text()) < len(large.text())
    assert try_rule(Instances(among.rule, STANDARD), "eval", 8).counterexample == small


def test_long_fractions_are_said_to_be_about_something() -> None:
    assert _near("1/3") == "1/3"
    assert _near("-40000000001/3") == "-40000000001/3 (about -1.33333e+10)"
    assert _near("of shape [1, 2, 3]") == "of shape [1, 2, 3]"
