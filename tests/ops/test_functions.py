"""Functions, comparisons, reductions and copies: what is refused, what their results are, and
which classes of axes pass through them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from archir.ir.types import TensorType
from archir.ops import STANDARD
from archir.ops.arithmetic import Arithmetic, Floating, Rational, Residues
from archir.ops.classes import AxisClasses
from archir.ops.infer import Instance, OpError, bind_attrs, instance

from .nets import draw, net

INF = math.inf


def typed(op: str, attrs: dict[str, Any], *types: str) -> Instance:
    """A use of an operator on tensors [3, 4] of these element types."""
    record = STANDARD[op]
    operands = tuple(TensorType(dtype, (3, 4)) for dtype in types)
    return instance(record, bind_attrs(record, attrs, operands), operands)


WRONG: list[tuple[str, dict[str, Any], tuple[str, ...], str, str]] = [
    *(
        (op, {}, ("i64",), "A110", f"`{op}` reads numbers that have fractions, got i64[3, 4]")
        for op in ("log", "reciprocal", "rsqrt", "sin", "erf", "floor", "log_sigmoid")
    ),
    ("pow", {"exponent": 2.0}, ("i32",), "A110", "got i32[3, 4]"),
    ("pow", {"exponent": INF}, ("f32",), "A114", "out of range"),
    ("pow", {"exponent": math.nan}, ("f32",), "A114", "out of range"),
    ("pow", {}, ("f32",), "A113", "exponent"),
    ("cast", {"dtype": "float"}, ("f32",), "A114", "an element type"),
    ("sign", {}, ("bool",), "A110", "reads numbers, got bool[3, 4]"),
    ("hardshrink", {"width": -1.0}, ("f32",), "A114", "at least 0"),
    ("hardtanh", {"low": INF}, ("f32",), "A114", "not below"),
    ("hardtanh", {"low": math.nan}, ("f32",), "A114", "out of range"),
    ("hardtanh", {"low": 0.5, "high": 2.0}, ("i64",), "A114", "whole bounds, not 0.5"),
    ("less", {}, ("f32", "i64"), "A110", "different element types: f32[3, 4] and i64[3, 4]"),
    ("less", {}, ("bool", "bool"), "A110", "compares numbers"),
    ("equal", {}, ("bool", "f32"), "A110", "different element types"),
    ("maximum", {}, ("f32", "f16"), "A110", "different element types"),
    ("logical_and", {}, ("bool", "f32"), "A110", "what is true or false, got f32[3, 4]"),
    ("logical_not", {}, ("i64",), "A110", "got i64[3, 4]"),
    ("where", {}, ("f32", "f32", "f32"), "A110", "chooses by a tensor of true and false"),
    ("where", {}, ("bool", "f32", "f64"), "A110", "f32[3, 4] and f64[3, 4]"),
    ("where", {}, ("bool", "f32"), "A104", "got 2"),
    ("addcmul", {}, ("i64", "i64", "i64"), "A110", "numbers that have fractions"),
    ("mean", {"axes": 1}, ("i64",), "A110", "numbers that have fractions"),
    ("sum", {"axes": 1}, ("bool",), "A110", "floats or i64, got bool[3, 4]"),
    ("prod", {"axes": 1}, ("i32",), "A110", "floats or i64, got i32[3, 4]"),
    ("cumsum", {"axis": 1}, ("bool",), "A110", "floats or i64"),
    ("var", {"axes": ()}, ("f32",), "A114", "names no axis"),
    ("var", {"axes": 1, "correction": 4}, ("f32",), "A110", "4 entries has no value"),
    ("std", {"axes": 1, "correction": -1}, ("f32",), "A114", "at least 0"),
    ("l2_norm", {"axes": ()}, ("f32",), "A114", "names no axis"),
    ("argmax", {"axis": 1}, ("bool",), "A110", "compares numbers"),
    ("tile", {"repeats": (2,)}, ("f32",), "A114", "1 entries for 2 axes"),
    ("tile", {"repeats": (2, 0)}, ("f32",), "A114", "at least 1"),
    ("repeat_interleave", {"repeats": 0}, ("f32",), "A114", "at least 1"),
    ("flip", {"axes": 2}, ("f32",), "A114", "rank 2"),
]


@pytest.mark.parametrize(("op", "attrs", "types", "code", "says"), WRONG)
def test_wrong_uses(
    op: str, attrs: dict[str, Any], types: tuple[str, ...], code: str, says: str
) -> None:
    with pytest.raises(OpError) as caught:
        typed(op, attrs, *types)
    assert caught.value.code == code
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("op", "attrs", "types", "result"),
    [
        ("less", {}, ("i64", "i64"), "bool[3, 4]"),
        ("equal", {}, ("bool", "bool"), "bool[3, 4]"),
        ("logical_or", {}, ("bool", "bool"), "bool[3, 4]"),
        ("where", {}, ("bool", "i64", "i64"), "i64[3, 4]"),
        ("minimum", {}, ("bool", "bool"), "bool[3, 4]"),
        ("argmax", {"axis": 0}, ("f16",), "i64[4]"),
        ("argmin", {"axis": 0, "keep": True}, ("i32",), "i64[1, 4]"),
        ("cast", {"dtype": "bf16"}, ("i32",), "bf16[3, 4]"),
        ("sum", {"axes": 0}, ("i64",), "i64[4]"),
        ("max", {"axes": 0}, ("bool",), "bool[4]"),
        ("tile", {"repeats": (5, 2, 1)}, ("i64",), "i64[5, 6, 4]"),
        ("repeat_interleave", {"repeats": 2}, ("bool",), "bool[3, 8]"),
    ],
)
def test_types(op: str, attrs: dict[str, Any], types: tuple[str, ...], result: str) -> None:
    (found,) = typed(op, attrs, *types).types
    assert str(found) == result


def run(op: str, k: Arithmetic, *x: Any, **attrs: Any) -> Any:
    return STANDARD[op].reference(k, tuple(map(k.array, x)), {}, attrs, "eval")[0].tolist()


@pytest.mark.parametrize("k", [Floating(np.float64), Rational()], ids=lambda k: k.name)
def test_values_that_an_order_tells(k: Arithmetic) -> None:
    x = [-2.5, -0.5, 0, 0.5, 1.5, 2.5]
    assert run("floor", k, x) == [-3, -1, 0, 0, 1, 2]
    assert run("ceil", k, x) == [-2, 0, 0, 1, 2, 3]
    assert run("round", k, x) == [-2, 0, 0, 0, 2, 2]
    assert run("cast", k, x, dtype="i64") == [-2, 0, 0, 0, 1, 2]
    assert run("cast", k, x, dtype="bool") == [1, 1, 0, 1, 1, 1]
    assert run("cast", k, x, dtype="f16") == x
    assert run("sign", k, x) == [-1, -1, 0, 1, 1, 1]
    assert run("threshold", k, x, threshold=0.5, value=9.0) == [9, 9, 9, 9, 1.5, 2.5]
    assert run("hardshrink", k, x, width=0.5) == [-2.5, 0, 0, 0, 1.5, 2.5]
    assert run("softshrink", k, x, width=0.5) == [-2, 0, 0, 0, 1, 2]
    assert run("hardtanh", k, x, low=-INF, high=0.5) == [-2.5, -0.5, 0, 0.5, 0.5, 0.5]
    assert run("hardtanh", k, x, low=0.0, high=INF) == [0, 0, 0, 0.5, 1.5, 2.5]
    assert run("hardtanh", k, x, low=-INF, high=INF) == x
    assert run("less", k, x, 0.5) == [1, 1, 1, 0, 0, 0]
    assert run("less_equal", k, x, 0.5) == [1, 1, 1, 1, 0, 0]
    assert run("greater", k, x, 0.5) == [0, 0, 0, 0, 1, 1]
    assert run("greater_equal", k, x, 0.5) == [0, 0, 0, 1, 1, 1]
    assert run("maximum", k, x, 0.5) == [0.5, 0.5, 0.5, 0.5, 1.5, 2.5]
    assert run("minimum", k, x, 0.5) == [-2.5, -0.5, 0, 0.5, 0.5, 0.5]
    assert run("min", k, x, axes=(0,), keep=False) == -2.5
    assert run("argmin", k, x, axis=0, keep=True) == [0]
    assert run("var", k, [1, 2, 3], axes=(0,), keep=False, correction=1) == 1
    assert run("var", k, [1, 2, 3], axes=(0,), keep=True, correction=0) == [
        Fraction(2, 3) if isinstance(k, Rational) else 2 / 3
    ]
    assert run("l2_norm", k, [3, 4], axes=(0,), keep=False) == 5


@pytest.mark.parametrize("k", [Rational(), Residues()], ids=lambda k: k.name)
def test_laws_that_stand_ins_keep(k: Any) -> None:
    """What holds of the functions holds of what exact arithmetic has in their place."""
    rng = np.random.Generator(np.random.PCG64(5))
    a, b = (draw(k, (6, 7), rng) for _ in range(2))

    def of(op: str, *x: Any, **attrs: Any) -> Any:
        return STANDARD[op].reference(k, x, {}, attrs, "eval")[0]

    assert (of("maximum", a, b) == of("maximum", b, a)).all()
    assert (of("minimum", a, b) == of("minimum", b, a)).all()
    both = k.add(of("maximum", a, b), of("minimum", a, b))
    assert (both == k.add(a, b)).all()
    less = of("less", a, b)
    assert (less == of("greater", b, a)).all()
    assert (of("less_equal", a, b) == of("logical_not", of("greater", a, b))).all()
    assert (of("where", less, b, a) == of("maximum", a, b)).all()
    assert 0 < np.asarray(less, np.float64).sum() < less.size
    sign = of("sign", a)
    assert (of("sign", sign) == sign).all()
    assert (k.multiply(sign, of("abs", a)) == a).all()
    assert (k.multiply(of("reciprocal", a), a) == 1).all()
    assert (of("pow", a, exponent=-2.0) == of("reciprocal", k.multiply(a, a))).all()
    assert (of("pow", a, exponent=0.0) == 1).all()


PASSING = [
    "log(x)",
    "pow(x, 2.0)",
    "cast(x, bf16) |> cast(f32)",
    "where(less(x, constant(0.0)), x, abs(x))",
    "maximum(x, constant(0.5))",
    "hardtanh(x, low = 0.0, high = inf)",
    "addcmul(x, x, sigmoid(x))",
    "cumsum(x, 2)",
    "flip(x, [2, 3])",
    "tile(x, [1, 1, 2, 1])",
    "tile(x, [1, 3, 1, 1])",
    "repeat_interleave(x, 2)",
    "var(x, [2, 3], keep = true)",
    "l2_norm(x, 2, keep = true)",
]
STOPPING = {
    "cumsum(x, 1)": "`cumsum` mixes the entries of that axis",
    "flip(x, 1)": "`flip` mixes the entries of that axis",
    "argmax(x, 1, keep = true) |> cast(f32)": "`argmax` mixes the entries of that axis",
    "l2_norm(x, 1, keep = true)": "`l2_norm` mixes the entries of that axis",
    "std(x, 1, keep = true)": "`std` mixes the entries of that axis",
}
NET = """    input image: f32[N, 3, 6, 6]
    x = image |> a: conv(8, 3)
    y = %s
    output z = y |> b: conv(5, 1) |> global_avg_pool
"""


@pytest.mark.parametrize("expression", PASSING)
def test_a_class_passes(expression: str) -> None:
    sites = AxisClasses(net(NET % expression), STANDARD).sites
    assert sites["x.a"].size == 8
    assert {m.node for m in sites["x.a"].members} == {"x.a", "b"}


@pytest.mark.parametrize(("expression", "why"), STOPPING.items())
def test_a_class_is_stopped(expression: str, why: str) -> None:
    classes = AxisClasses(net(NET % expression), STANDARD).classes.values()
    (held,) = [c for c in classes if c.name == "x.a"]
    assert why in [o.reason for o in held.obstacles]


def test_no_zeros_are_brought_to_where_there_is_no_value() -> None:
    for expression, wanted in (
        ("log(x)", True),
        ("rsqrt(x)", True),
        ("pow(x, -2.0)", True),
        ("pow(x, 2.0)", False),
        ("sqrt(x)", False),
    ):
        held = AxisClasses(net(NET % expression), STANDARD).sites["x.a"]
        needs = [n for n in held.needs if n.condition == "copies"]
        assert bool(needs) == wanted
        assert all("has no value where it is 0" in n.reason for n in needs)


def test_the_population_variance_needs_copies_in_equal_numbers() -> None:
    text = NET % "x * var(x, 1, keep = true, correction = 0)"
    held = AxisClasses(net(text), STANDARD).sites["x.a"]
    assert [n.condition for n in held.needs] == ["even"]
