"""Every weight function: shapes, values, composition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from archir.ops.arithmetic import Array, Floating, Rational, Residues
from archir.weights.functions import (
    FUNCTIONS,
    WeightError,
    evaluate,
    shape_of,
)
from archir.weights.making import MAX_ENTRIES
from archir.weights.terms import (
    Apply,
    IndexMap,
    Ref,
    Statistic,
    Term,
    compose,
    references,
    statistics,
)

W, V, M = Ref("w"), Ref("v"), Ref("m")
SHAPES = {"w": (3, 4, 3, 3), "v": (4,), "u": (2,), "m": (2, 3)}
G = IndexMap(np.array([0, 1, 2, 2, 0, 2]), 3)
H = IndexMap(np.array([3, 1, 1]), 4)
COUNT = Apply("count", (G,))
TRUE = bool(1)
SPREAD = Apply("along", (Apply("count", (H,)), 1, 2))


def call(name: str, *args: Any) -> Term:
    return Apply(name, args)


LINEAR: Mapping[str, list[tuple[str, Term]]] = {
    "take": [
        ("w", call("take", W, G, 0)),
        ("w", call("take", W, H, -3)),
        ("v", call("take", V, H, 0)),
    ],
    "slice": [
        ("w", call("slice", W, 1, 1, 3)),
        ("v", call("slice", V, -1, 0, 4)),
        ("w", call("slice", W, -2, 1)),
    ],
    "part": [("w", call("part", W, 1, 1, 2)), ("m", call("part", M, -1, 2, 3))],
    "extend": [("w", call("extend", W, 2, 1)), ("m", call("extend", M, 0, -1))],
    "scale": [("m", call("scale", M, 9, 25)), ("v", call("scale", V, 0, 3))],
    "pad": [("w", call("pad", W, 1)), ("w", call("pad", W, (0, 2)))],
    "concat": [
        ("m", call("concat", M, call("zeros", 4, 3), 0)),
        ("m", call("concat", call("ones", 2, 1), M, 1)),
        ("v", call("concat", V, Ref("u"), 0)),
    ],
    "transpose": [("w", call("transpose", W, 1, 0, 3, 2)), ("m", call("transpose", M, 1, 0))],
    "reshape": [("w", call("reshape", W, 12, 9)), ("m", call("reshape", M, 6))],
    "along": [("v", call("along", V, 1, 3))],
    "add": [
        ("m", call("add", M, 2)),
        ("m", call("add", call("ones", 3), M)),
        ("v", call("add", V, call("zeros", 5, 4))),
    ],
    "place": [
        ("m", call("place", M, IndexMap(np.array([4, 1, 2]), 6), 1)),
        ("w", call("place", W, IndexMap(np.array([1, 0, 4]), 5), -1)),
    ],
    "fibre_sum": [
        ("w", call("fibre_sum", W, IndexMap(np.array([1, 0, 1, 1]), 3), 1)),
        ("m", call("fibre_sum", M, IndexMap(np.array([0, 0, 0]), 1), -1)),
    ],
    "subtract": [
        ("m", call("subtract", M, call("ones", 2, 1))),
        ("m", call("subtract", 1, M)),
        ("v", call("subtract", call("ones", 2, 4), V)),
    ],
    "multiply": [
        ("m", call("multiply", M, -3)),
        ("m", call("multiply", call("add", call("zeros", 2, 3), 2.5), M)),
        ("v", call("multiply", call("concat", call("ones", 2, 4), call("zeros", 1, 4), 0), V)),
        ("v", call("multiply", V, call("concat", call("ones", 3), call("zeros", 1), 0))),
        ("v", call("multiply", call("along", V, 0, 2), SPREAD)),
    ],
    "divide": [("m", call("divide", M, 4)), ("v", call("divide", call("along", V, 0, 2), SPREAD))],
    "divide_along": [
        ("w", call("divide_along", W, call("count", IndexMap(np.array([0, 0, 1]), 3)), 0))
    ],
    "multiply_along": [
        ("w", call("multiply_along", W, call("count", IndexMap(np.array([0, 0, 1]), 3)), -4)),
        ("v", call("multiply_along", V, call("concat", call("ones", 3), call("zeros", 1), 0), 0)),
    ],
    "crop": [("w", call("crop", W, 1)), ("w", call("crop", W, (0, 1)))],
    "dilate": [("w", call("dilate", W, 3)), ("w", call("dilate", W, (1, 2)))],
    "undilate": [("w", call("undilate", W, 2)), ("w", call("undilate", W, (2, 1)))],
    "tile": [("w", call("tile", W, 3)), ("v", call("tile", V, 2))],
    "block_diagonal": [("w", call("block_diagonal", W, 3)), ("m", call("block_diagonal", M, 2))],
    "diagonal_blocks": [
        ("m", call("diagonal_blocks", call("transpose", M, 1, 0), 1)),
        ("w", call("diagonal_blocks", call("slice", W, 0, 1, 3), 2)),
    ],
    "pointwise": [("m", call("pointwise", M, 1)), ("m", call("pointwise", M, 3))],
    "matrix": [("m", call("matrix", call("reshape", M, 3, 2, 1, 1))), ("m", call("matrix", M))],
}
"""Terms that are linear in one tensor (up to a constant)."""

CONSTANT: Mapping[str, list[Term]] = {
    "count": [COUNT],
    "identity": [call("identity", 3, 3, 5), call("identity", 4), call("identity", 2, (1, 3))],
    "zeros": [call("zeros", 2, 3), call("zeros"), call("zeros", (2, 5))],
    "ones": [call("ones", 4, 0)],
}
NONLINEAR: Mapping[str, list[Term]] = {
    "matmul": [call("matmul", M, W), call("matmul", M, call("ones", 3))],
    "row_sums": [call("row_sums", W), call("row_sums", M)],
    "sqrt": [call("sqrt", V), call("sqrt", call("multiply", V, V))],
}
BESIDE = {"first", "graft", "oppose", "share_out", "svd_left", "svd_right"}
"""Functions along fibres, in ``test_fibres.py``, and what is exact in no field."""
EVERY = [t for cases in LINEAR.values() for _, t in cases]
EVERY += [t for cases in (*CONSTANT.values(), *NONLINEAR.values()) for t in cases]


def tensors(k: Any, seed: int = 1) -> dict[str, Array]:
    rng = np.random.Generator(np.random.PCG64(seed))
    return {path: k.array(rng.integers(1, 9, shape)) for path, shape in SHAPES.items()}


def test_every_function_is_tested() -> None:
    assert {*LINEAR, *CONSTANT, *NONLINEAR} == set(FUNCTIONS) - BESIDE
    for name in set(FUNCTIONS) - BESIDE:
        terms = [t for _, t in LINEAR.get(name, [])] + [
            *CONSTANT.get(name, []),
            *NONLINEAR.get(name, []),
        ]
        assert all(isinstance(t, Apply) and t.function == name for t in terms)


def test_every_function_says_what_it_is() -> None:
    for function in FUNCTIONS.values():
        assert function.doc.endswith(".")
        assert function.signature.startswith(f"{function.name}(") or function.numbers


@pytest.mark.parametrize("k", [Floating(), Rational(), Residues()], ids=lambda k: k.name)
@pytest.mark.parametrize("number", range(len(EVERY)))
def test_shapes_are_those_of_the_values(number: int, k: Any) -> None:
    assert shape_of(EVERY[number], SHAPES) == evaluate(EVERY[number], k, tensors(k)).shape


@pytest.mark.parametrize("number", range(len(EVERY) - len(NONLINEAR["sqrt"])))
def test_values_agree_in_every_arithmetic(number: int) -> None:
    term = EVERY[number]
    exact = evaluate(term, Rational(), tensors(Rational()))
    rounded = evaluate(term, Floating(), tensors(Floating()))
    field = evaluate(term, Residues(), tensors(Residues()))
    assert np.allclose(exact.astype(np.float64), rounded, rtol=1e-15, atol=0)
    assert (Residues().array(exact) == field).all()


def matrix(term: Term, path: str) -> Array:
    """The linear part of a term in one tensor, as a matrix."""
    held = tensors(Floating())
    zero = {**held, path: np.zeros(SHAPES[path])}
    offset = evaluate(term, Floating(), zero).reshape(-1)
    columns = []
    for index in range(zero[path].size):
        one = np.zeros(SHAPES[path])
        one.reshape(-1)[index] = 1
        columns.append(evaluate(term, Floating(), {**held, path: one}).reshape(-1) - offset)
    return np.array(columns).T.reshape(offset.size, zero[path].size)


@pytest.mark.parametrize(
    ("term", "says"),
    [
        (Ref("gone"), "no parameter gone"),
        (call("take", W, G, 1), "axis 1 has size 4, the map is over 3"),
        (call("take", W, G, 4), r"no axis 4 in \(3, 4, 3, 3\)"),
        (call("take", W, 3, 0), "needs an index map"),
        (call("take", W, G), r"take\(w, g, axis\)"),
        (call("take", 3, G, 0), "argument 1"),
        (call("take", (3, 3), G, 0), "argument 1"),
        (call("take", W, G, 0.0), "0.0 is not an integer"),
        (call("take", W, G, TRUE), "True is not an integer"),
        (call("take", W, V, 0), "argument 2"),
        (call("count", 3), "needs an index map"),
        (call("count", V), "argument 1"),
        (call("slice", W, 1, 2, 5), r"slice 2:5 of axis 1 of \(3, 4, 3, 3\)"),
        (call("slice", W, 1, 3, 2), "slice 3:2"),
        (call("slice", W, 1, 0, 1.5), "1.5 is not an integer"),
        (call("extend", W, -1, 1), "-1 is negative"),
        (call("part", W, 1, 0, 3), "4 entries cannot be cut into 3"),
        (call("part", W, 1, 2, 2), "no part 2 of 2"),
        (call("scale", W, 1, 0), "denominator 0"),
        (call("scale", W, 0.5, 1), "0.5 is not an integer"),
        (call("identity", 3, 2), "odd extents, got"),
        (call("identity", 3.0, 3), "3.0 is not an integer"),
        (call("identity", MAX_ENTRIES, 3), "entries"),
        (call("zeros", -1), "not a shape"),
        (call("zeros", 2.0), "2.0 is not an integer"),
        (call("zeros", W), "argument 1"),
        (call("zeros", "x"), "x is not an integer"),
        (call("ones", 2**20, 2**20), "entries"),
        (call("pad", V, 1), r"\(4,\) has no spatial axes"),
        (call("pad", W, -1), "negative"),
        (call("pad", W, (1, 1, 1)), "3 amounts for 2"),
        (call("concat", W, V, 0), r"\(3, 4, 3, 3\) and \(4,\)"),
        (call("concat", M, W, 0), r"\(2, 3\) and \(3, 4, 3, 3\)"),
        (call("concat", M, 1, 0), "argument 2"),
        (call("transpose", M, 0, 0), "of 2 axes"),
        (call("transpose", M, 0.0, 1), "0.0 is not"),
        (call("reshape", M, 5), r"\(2, 3\) into \(5,\)"),
        (call("along", M, 0, 2), r"needs a vector, got \(2, 3\)"),
        (call("along", V, 2, 2), "no axis 2 among 2"),
        (call("add", M, V), r"\(2, 3\) and \(4,\) do not broadcast"),
        (call("add", M, G), "argument 2"),
        (call("multiply", M, (1, 2)), "argument 2"),
        (call("multiply", M, TRUE), "argument 2"),
        (call("divide", M), "a / b"),
        (call("divide_along", W, V, 0), r"\(4,\) along axis 0 of \(3, 4, 3, 3\)"),
        (call("multiply_along", W, 2, 0), "argument 2"),
        (call("sqrt", 2), "argument 1"),
        (call("crop", W, 2), r"crop: \(2, 2\) of \(3, 4, 3, 3\)"),
        (call("crop", W, -1), "below 0"),
        (call("dilate", W, 0), "below 1"),
        (call("dilate", V, 2), r"\(4,\) has no spatial axes"),
        (call("dilate", W, (2, 2, 2)), "3 numbers for 2"),
        (call("undilate", W, 3), "no whole number of steps"),
        (call("tile", W, 0), "0 copies"),
        (call("tile", call("ones"), 2), r"2 copies of \(\)"),
        (call("block_diagonal", W, 2), "3 output channels in 2 groups"),
        (call("block_diagonal", V, 2), "no input channels"),
        (call("diagonal_blocks", M, 2), r"2 groups of \(2, 3\)"),
        (call("pointwise", W, 2), r"needs a matrix, got \(3, 4, 3, 3\)"),
        (call("pointwise", M, 0), "0 spatial axes"),
        (call("matrix", W), "no pointwise kernel"),
        (call("matmul", W, M), "a matrix on the left"),
        (call("matmul", M, M), r"\(2, 3\) and \(2, 3\)"),
        (call("row_sums", V), "has no rows"),
    ],
)
def test_wrong_terms(term: Term, says: str) -> None:
    with pytest.raises(WeightError, match=says):
        shape_of(term, SHAPES)


def test_composition_is_one_after_the_other() -> None:
    k = Rational()
    first = {"a": call("take", W, G, 0), "b": call("add", V, 1)}
    second = {
        "c": call(
            "divide_along", call("take", Ref("a"), IndexMap(np.array([5, 5, 0]), 6), 0), COUNT_3, 0
        ),
        "d": call("multiply", Ref("b"), Ref("kept")),
    }
    held: dict[str, Array] = {**tensors(k), "kept": k.array([1, 2, 3, 4])}
    middle = {**held, **{path: evaluate(t, k, held) for path, t in first.items()}}
    for term in second.values():
        whole = compose(term, first)
        assert (evaluate(whole, k, held) == evaluate(term, k, middle)).all()
        assert {*references(whole)} <= held.keys()
    shapes = {path: array.shape for path, array in held.items()}
    assert shape_of(compose(second["c"], first), shapes) == (3, 4, 3, 3)


COUNT_3 = call("count", IndexMap(np.array([0, 0, 1]), 2))


def test_statistics() -> None:
    mean, variance = Statistic("mean", "n", 0, 2), Statistic("variance", "n", 0, 2)
    term = call("add", mean, call("sqrt", variance))
    assert list(statistics(term)) == [mean, variance]
    assert evaluate(term, Floating(), {}).tolist() == [1, 1]
    measured = {mean: np.array([1.0, 2.0]), variance: np.array([4.0, 9.0])}
    assert evaluate(term, Floating(), {}, measured).tolist() == [3, 5]
    assert shape_of(term, {}) == (2,)
    assert compose(term, {"n": W}) is not None


def test_the_identity_kernel_is_the_identity() -> None:
    from archir.ops import STANDARD

    kernel = evaluate(call("identity", 3, 3, 5), Floating(), {})
    x = np.random.Generator(np.random.PCG64(3)).standard_normal((2, 3, 6, 7))
    attrs = {"stride": (1, 1), "dilation": (1, 1), "groups": 1}
    attrs |= {"out": 3, "kernel": (3, 5), "padding": (1, 2)}
    (y,) = STANDARD["conv"].reference(Floating(), (x,), {"weight": kernel}, attrs, "eval")
    assert (y == x).all()
    assert (evaluate(call("identity", 4), Floating(), {}) == np.eye(4)).all()
