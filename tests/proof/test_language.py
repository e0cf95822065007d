"""What the rule language can say, in proofs: tensors of all kinds, numbers, initial values."""

from __future__ import annotations

import pytest

from archir.ops import STANDARD
from archir.proof.prove import prove

ANYWHERE = """rule anywhere(kernel: odd = 3) {
    "An identity convolution after any tensor."
    preserves function in eval, train
    match   { y = x }                                           where rank(x) == 4
    replace { y = x |> new: conv(channels(x), kernel) }
    weights { new.weight = identity(channels(x), kernel, kernel)    new.bias = 0 }
}"""
SKIP = """rule skip(source: path) {
    "Add another tensor through a convolution of zeros."
    preserves function in eval, train
    match   { y = x }                   where shape(x) == shape(source), rank(x) == 4
    replace { y = x + (source |> gate: conv(channels(x))) }
    weights { gate.weight = 0    gate.bias = 0 }
}"""
BLOCK = """rule block(width: int = 4) {
    "A residual block of which the last layer is zero, in front of a ReLU."
    preserves function in eval, train
    match   { y = relu(x) }                                     where rank(x) == 4
    replace { y = relu(x + (x |> one: conv(width, 3) |> relu |> two: conv(channels(x), 3))) }
    weights { one.weight = initial()    one.bias = initial()
              two.weight = 0            two.bias = zeros(channels(x)) }
}"""


ORDER = """rule order {
    "A sum is matched and read in either order."
    preserves function in eval, train
    params kept
    match   { y = add(a, relu(b)) }
    replace { y = add(relu(b), a) }
}"""


NUMBERS = """rule numbers {
    "Numbers and signs stand in a pattern as in a network."
    preserves function in eval, train
    match   { y = -(x * 1) }
    replace { y = -x }
}"""


@pytest.mark.parametrize("text", [ANYWHERE, SKIP, BLOCK, ORDER, NUMBERS])
def test_what_is_right_is_proved(text, read, axioms) -> None:
    verdict = prove(read(text), STANDARD, axioms)
    assert [m.kind for m in verdict.modes] == ["proved", "proved"]


@pytest.mark.parametrize(
    "text",
    [
        ANYWHERE.replace("bias = 0", "bias = 1"),
        SKIP.replace("gate.bias = 0", "gate.bias = initial()"),
        BLOCK.replace("two.weight = 0 ", "two.weight = initial() "),
    ],
)
def test_what_is_wrong_is_refuted(text, read, axioms) -> None:
    verdict = prove(read(text), STANDARD, axioms)
    assert [m.kind for m in verdict.modes] == ["refuted", "refuted"]
    assert verdict.modes[0].counterexample is not None


def test_a_claim_is_judged_of_a_rule_that_keeps_the_function(read, axioms) -> None:
    verdict = prove(read(ORDER.replace("params kept", "macs decreases")), STANDARD, axioms)
    assert [(m.mode, m.kind) for m in verdict.modes][2:] == [("shape", "refuted")]
    assert verdict.modes[2].counterexample.value == "macs"


IDLE = """rule idle {
    "Take an identity convolution out, and a sum with zeros behind it."
    preserves function in eval, train
    assumes c.weight == identity(channels(x), k, k)
    assumes c.bias == 0
    assumes d.weight == 0
    match   { f = c: conv(x, o, k, stride = 1, padding = "same", groups = 1)
              y = add(f, d: conv(z, bias = false)) }
            where rank(x) == 4, k % 2 == 1
    replace { y = x }
}"""


def test_what_is_assumed_is_known_to_a_proof(read, axioms) -> None:
    verdict = prove(read(IDLE), STANDARD, axioms)
    assert [m.kind for m in verdict.modes] == ["proved", "proved"]


@pytest.mark.parametrize("said", ["c.bias == 0", "d.weight == 0"])
def test_what_is_assumed_is_needed(said, read, axioms) -> None:
    verdict = prove(read(IDLE.replace(f"    assumes {said}\n", "")), STANDARD, axioms)
    assert [m.kind for m in verdict.modes] == ["refuted", "refuted"]
