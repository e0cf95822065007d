"""Weight maps read backwards, beside least squares on the written-out matrix."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archir.ops.arithmetic import Array
from archir.weights.functions import FUNCTIONS, evaluate
from archir.weights.inverse import solve
from archir.weights.linear import FLOAT, NoInverse, linear_maps
from archir.weights.terms import Apply, IndexMap, Initial, Ref, Term

G = IndexMap(np.array([0, 1, 2, 0, 2]), 3)
"""A replication of 3 entries to 5."""
E = IndexMap(np.array([1, 3, 0]), 5)
"""An embedding of 3 entries into 5."""
W, V, K = Ref("w"), Ref("v"), Ref("k")
SHAPES = {"w": (3, 4), "v": (3,), "u": (4,), "k": (4, 2, 3, 3)}

LINEAR: Mapping[str, Term] = {
    "take": Apply("take", (W, G, 0)),
    "place": Apply("place", (W, E, 0)),
    "slice": Apply("slice", (W, 1, 1, 3)),
    "pad": Apply("pad", (K, 1)),
    "part": Apply("part", (W, 1, 1, 2)),
    "extend": Apply("extend", (W, 2, 1)),
    "crop": Apply("crop", (K, 1)),
    "dilate": Apply("dilate", (K, 2)),
    "undilate": Apply("undilate", (K, 2)),
    "concat": Apply("concat", (W, Apply("zeros", (3, 2)), 1)),
    "transpose": Apply("transpose", (W, 1, 0)),
    "reshape": Apply("reshape", (W, 2, 6)),
    "along": Apply("along", (V, 0, 3)),
    "tile": Apply("tile", (W, 3)),
    "block_diagonal": Apply("block_diagonal", (K, 2)),
    "diagonal_blocks": Apply("diagonal_blocks", (K, 2)),
    "pointwise": Apply("pointwise", (W, 2)),
    "matmul": Apply("matmul", (Apply("identity", (3,)), W)),
    "row_sums": Apply("row_sums", (W,)),
    "fibre_sum": Apply("fibre_sum", (Apply("take", (W, G, 0)), G, 0)),
    "first": Apply("first", (Apply("take", (W, G, 0)), G, 0)),
    "scale": Apply("scale", (W, 2, 3)),
    "share_out": Apply("share_out", (W, G, 0, 5)),
    "divide_along": Apply("divide_along", (Apply("take", (W, G, 0)), Apply("count", (G,)), 0)),
    "add": Apply("add", (W, Apply("take", (W, IndexMap(np.array([2, 0, 1]), 3), 0)))),
    "subtract": Apply("subtract", (1, W)),
    "multiply": Apply("multiply", (Apply("along", (V, 0, 2)), Apply("ones", (3, 4)))),
    "divide": Apply("divide", (W, 4)),
}


def tensors(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.5, 2, shape) for name, shape in SHAPES.items()}


def dense(term: Term, path: str) -> tuple[Array, Array]:
    """The map of a term in one tensor as a matrix, and its constant."""
    zero = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    constant = evaluate(term, FLOAT, zero)
    columns = []
    for index in range(zero[path].size):
        unit = {**zero, path: np.eye(1, zero[path].size, index).reshape(SHAPES[path])}
        columns.append((evaluate(term, FLOAT, unit) - constant).reshape(-1))
    return np.stack(columns, axis=1), constant


def path_of(term: Term) -> str:
    assert isinstance(term, Apply)
    for arg in term.args:
        if isinstance(arg, Ref):
            return arg.path
        if isinstance(arg, Apply) and any(isinstance(a, Ref | Apply) for a in arg.args):
            return path_of(arg)
    raise AssertionError(term)


@pytest.mark.parametrize("name", LINEAR)
def test_least_squares(name: str) -> None:
    """The nearest image, and of its parents the one nearest to where the search began."""
    term = LINEAR[name]
    path = path_of(term)
    start, rng = tensors(1), np.random.default_rng(2)
    matrix, constant = dense(term, path)
    goal = constant + rng.standard_normal(constant.shape)
    found = solve({"made": term}, {"made": goal}, {path: start[path]})[path]
    rest = (goal - evaluate(term, FLOAT, start)).reshape(-1)
    step = np.linalg.lstsq(matrix, rest, rcond=None)[0]
    if name in ("matmul", "add", "row_sums"):  # several ways: the columns' lengths count alike
        assert np.abs(matrix @ (found - start[path]).reshape(-1) - matrix @ step).max() < 1e-9
    else:
        assert np.abs(found - start[path] - step.reshape(SHAPES[path])).max() < 1e-9


@pytest.mark.parametrize("name", LINEAR)
def test_an_image_is_reached(name: str) -> None:
    term = LINEAR[name]
    path = path_of(term)
    image = evaluate(term, FLOAT, tensors(3))
    found = solve({"made": term}, {"made": image}, {path: tensors(4)[path]})
    assert np.abs(evaluate(term, FLOAT, {**tensors(4), path: found[path]}) - image).max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(LINEAR)), st.integers(0, 2**30))
def test_forth_and_back_are_transposed(name: str, seed: int) -> None:
    """<J t, y> = <t, J' y>, and the squares are those of the matrix's entries."""
    term = LINEAR[name]
    assert isinstance(term, Apply)
    held = tensors(seed)
    args = [evaluate(a, FLOAT, held) if isinstance(a, Term) else a for a in term.args]
    value = evaluate(term, FLOAT, held)
    rng = np.random.default_rng(seed)
    places = [place for place, arg in enumerate(term.args) if isinstance(arg, Term)]
    for place, linear in linear_maps(term, args, value, places).items():
        t, y = rng.standard_normal(args[place].shape), rng.standard_normal(value.shape)
        there, here = linear.apply(t), linear.transpose(y)
        assert there.shape == value.shape
        assert here.shape == t.shape
        assert float((there * y).sum()) == pytest.approx(float((t * here).sum()), abs=1e-9)
        columns = [
            linear.apply(np.eye(1, t.size, i).reshape(t.shape)).reshape(-1) for i in range(t.size)
        ]
        squares = np.square(np.stack(columns, axis=1))
        found = linear.transpose(y, squared=True).reshape(-1)
        assert np.abs(found - squares.T @ y.reshape(-1)).max() < 1e-9
        found = linear.apply(t, squared=True).reshape(-1)
        assert np.abs(found - squares @ t.reshape(-1)).max() < 1e-9
        assert linear.positive() == bool((np.stack(columns) >= 0).all())


def test_a_product_of_two_of_the_parents_tensors() -> None:
    """A kernel times a scale: the image is reached, by moving what need be moved."""
    terms: dict[str, Term] = {
        "w": Apply("multiply_along", (W, Apply("divide", (V, Apply("sqrt", (Ref("r"),)))), 0)),
        "b": Apply("multiply", (V, Ref("m"))),
    }
    truth = {**tensors(5), "r": np.array([1.0, 2.0, 3.0]), "m": np.array([0.5, -1.0, 2.0])}
    image = {path: evaluate(term, FLOAT, truth) for path, term in terms.items()}
    start = {**tensors(6), "r": np.ones(3), "m": np.ones(3)}
    found = solve(terms, image, {name: start[name] for name in ("w", "v", "r", "m")})
    for path, term in terms.items():
        made = evaluate(term, FLOAT, {**start, **{str(k): v for k, v in found.items()}})
        assert np.abs(made - image[path]).max() < 1e-8


def test_what_is_left_open_is_found_along() -> None:
    """An initial value may be anything: it is whatever it has become."""
    drawn = Initial("new.weight", (3, 4), "kaiming", 0)
    goal = np.full((3, 4), 7.0)
    assert np.array_equal(
        solve({"new.weight": drawn}, {"new.weight": goal}, {drawn: np.zeros((3, 4))})[drawn], goal
    )


def test_what_is_not_shown_stays() -> None:
    start = tensors(7)
    image = evaluate(LINEAR["slice"], FLOAT, tensors(8))
    found = solve({"made": LINEAR["slice"]}, {"made": image}, {"w": start["w"]})["w"]
    assert np.array_equal(found[:, [0, 3]], start["w"][:, [0, 3]])
    assert np.array_equal(found[:, 1:3], image)


def test_no_inverse() -> None:
    for name in ("svd_left", "svd_right"):
        with pytest.raises(NoInverse, match=name):
            solve({"a": Apply(name, (W, 2, 0))}, {"a": np.ones((3, 2))}, {"w": tensors(1)["w"]})


def test_every_function_is_known_here() -> None:
    """A new weight function is tried here, or stands among those that need no trial."""
    others = {
        *("identity", "zeros", "ones", "count"),  # read no tensor
        *("sqrt", "multiply_along", "matrix"),  # in the product above; the inverse of pointwise
        *("graft", "oppose"),  # random beside what they keep
        *("svd_left", "svd_right"),
    }
    assert [name for name in FUNCTIONS if name not in LINEAR and name not in others] == []
