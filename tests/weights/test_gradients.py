"""Gradient maps beside the formula on written-out matrices, and what only several tensors show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from archir.ops.arithmetic import Array, Floating
from archir.weights.gradients import Group, Maps, gradient_maps
from archir.weights.terms import Apply, IndexMap, Initial, Ref, Statistic, Term

from .test_functions import COUNT, LINEAR, SHAPES, G, M, V, W, call, matrix, tensors

CASES = [(f"{name}{i}", path, t) for name, c in LINEAR.items() for i, (path, t) in enumerate(c)]
TWO = IndexMap(np.array([0, 1, 2, 2, 1, 0]), 3)
UNEVEN = IndexMap(np.array([0, 1, 1]), 2)
K = Floating()


def held(seed: int = 1) -> dict[str, Array]:
    return {**tensors(K, seed), "z": np.array([2.0, 5, 3, 4])}


def maps(
    terms: Mapping[str, Term],
    trained: frozenset[str] = frozenset(SHAPES),
    shares: Mapping[str, Array] | None = None,
    *,
    steady: bool = False,
) -> Maps:
    return gradient_maps(terms, held(), trained | {"z"}, shares or {}, steady=steady)


def group(terms: Mapping[str, Term], shares: Mapping[str, Array] | None = None) -> Group:
    (found,) = maps(terms, shares=shares).groups
    return found


@pytest.mark.parametrize(("label", "path", "term"), CASES, ids=[c[0] for c in CASES])
def test_the_shortest_in_shares(label: str, path: str, term: Term) -> None:
    """Of all y with J' y = m that of least |y / sqrt(D)|, where D is one over a row's length."""
    found = gradient_maps({"made": term}, tensors(K), frozenset({path}), {}).groups[0]
    m = tensors(K, 2)[path]
    rows = np.abs(matrix(term, path))
    lengths = np.sqrt(np.square(rows).sum(axis=1))
    root = np.where(lengths > 0, 1 / np.sqrt(np.where(lengths > 0, lengths, 1)), 0)
    wanted = root * (np.linalg.pinv(matrix(term, path).T * root) @ m.reshape(-1))
    y = found.first({path: m})["made"]
    assert np.allclose(y.reshape(-1), wanted, rtol=1e-11, atol=1e-11), label
    reached = np.broadcast_to(found.reached()["made"], y.shape)
    assert (reached.reshape(-1) == (lengths > 0)).all()
    v = found.second({path: m**2})
    assert v is not None
    assert np.allclose(v["made"], np.square(np.abs(y)), rtol=1e-11, atol=1e-11)


def test_the_moments_of_widening() -> None:
    """A replicated row takes dW[g] / n, a divided column keeps dW."""
    m = {"m": np.arange(6.0).reshape(2, 3) + 1}
    g = IndexMap(np.array([0, 1, 2, 2, 2]), 3)
    columns = call("divide_along", call("take", M, g, 1), call("count", g), 1)
    found = group({"made": columns}).first(m)["made"]
    assert np.allclose(found, m["m"][:, g.entries], rtol=1e-15)
    rows = group({"made": call("take", M, UNEVEN, 0)})
    shares = np.array([[1.0], [0.5], [0.5]])
    assert (rows.first(m)["made"] == m["m"][UNEVEN.entries] * shares).all()
    second = rows.second({"m": m["m"] ** 2})
    assert second is not None
    assert np.allclose(second["made"], (m["m"][UNEVEN.entries] * shares) ** 2, rtol=1e-15)


@pytest.mark.parametrize("parts", [(1, 1), (3, 7), (9, 16)])
def test_what_is_added_up_again_has_the_whole_gradient(parts: tuple[int, int]) -> None:
    """w = pw + qw: each part's gradient is the whole's, though it is a part alone."""
    whole = sum(parts)
    terms = {name: call("scale", W, p, whole) for name, p in zip("ab", parts, strict=True)}
    m = tensors(K, 2)
    joint = group(terms)
    for made in joint.first(m).values():
        assert np.allclose(made, m["w"], rtol=1e-14)
    alone = group({"a": terms["a"]}).first(m)["a"]  # with the other unseen it would be more
    assert np.allclose(alone, m["w"] * whole / parts[0], rtol=1e-14)
    second = joint.second({"w": m["w"] ** 2})
    assert second is not None
    assert np.allclose(second["b"], m["w"] ** 2, rtol=1e-14)


def test_copies_take_the_share_that_goes_through_them() -> None:
    terms: dict[str, Term] = {"w": W, "copy": W}
    m = tensors(K, 2)
    made = group(terms).first(m)
    assert np.allclose(made["w"], m["w"] / 2, rtol=1e-15)
    made = group(terms, {"w": np.asarray(0.36), "copy": np.asarray(0.64)}).first(m)
    assert np.allclose(made["copy"], m["w"] * 0.64, rtol=1e-14)
    assert np.allclose(made["w"], m["w"] * 0.36, rtol=1e-14)


def test_what_becomes_one_is_averaged() -> None:
    """Layers that are added up have one gradient; so have columns that read equal channels."""
    m = {"v": np.array([1.0, 2, 3, 4]), "z": np.array([3.0, 4, 5, 6])}
    terms = {"v": call("add", V, Ref("z"))}
    joint = group(terms)
    assert np.allclose(joint.first(m)["v"], [2, 3, 4, 5], rtol=1e-15)
    second = joint.second({key: a**2 for key, a in m.items()})
    assert second is not None
    assert np.allclose(second["v"], [4, 9, 16, 25], rtol=1e-15)
    six = np.arange(1.0, 7).reshape(6, 1) * np.ones((6, 4))
    read = gradient_maps(
        {"x": call("fibre_sum", Ref("x"), TWO, 0)}, {"x": six}, frozenset({"x"}), {}
    ).groups[0]
    assert np.allclose(read.first({"x": six})["x"], 3.5, rtol=1e-15)


def test_a_sum_of_unlike_gradients_has_no_second_moment() -> None:
    """Of a difference the coefficients' signs cancel; of a product they are anything."""
    m = held(2)
    assert group({"v": call("subtract", V, Ref("z"))}).second(m) is None
    mixed = group({"w": call("matmul", M, W)})
    assert mixed.second(m) is None
    y = mixed.first({"m": m["m"], "w": m["w"]})["w"]
    at = held()
    jacobian = np.concatenate(  # over m and w, on the flattened result
        [
            np.einsum("oa,iq->oiaq", np.eye(2), at["w"].reshape(3, -1).T).reshape(-1, 6).T,
            np.einsum("oa,pq->opaq", at["m"], np.eye(36)).reshape(72, 108).T,
        ]
    )
    goal = np.concatenate([m["m"].reshape(-1), m["w"].reshape(-1)])
    best = np.linalg.lstsq(jacobian, goal, rcond=None)[0]
    assert np.allclose(jacobian @ y.reshape(-1), jacobian @ best, rtol=1e-7, atol=1e-7)


def test_what_has_no_gradient_map() -> None:
    terms: dict[str, Term] = {
        "constant": call("zeros", 3),
        "counted": COUNT,
        "measured": Statistic("mean", "a", 0, 3),
        "drawn": Initial("drawn", (3, 4), "kaiming", 0),
        "factor": call("svd_left", call("slice", M, 0, 0, 2), 1, 0),
        "kept": Ref("kept"),
    }
    at = {**tensors(K), "kept": np.ones(3)}
    found = gradient_maps(terms, at, frozenset({*SHAPES, "kept"}), {})
    assert found.kept == ("kept",)
    assert found.groups == ()
    assert found.none == {
        **dict.fromkeys(("constant", "counted", "measured", "drawn"), "new"),
        "factor": "`svd_left` is not linear",
    }


@pytest.mark.parametrize(
    ("term", "name"),
    [
        (call("sqrt", V), "sqrt"),
        (call("multiply", V, Ref("z")), "multiply"),
        (call("divide", 1, V), "divide"),
        (call("divide_along", call("transpose", W, 1, 0, 2, 3), V, 0), "divide_along"),
        (call("add", call("matmul", M, call("transpose", M, 1, 0)), 1), "matmul"),
    ],
)
def test_a_map_that_moves_with_the_weights(term: Term, name: str) -> None:
    """It is taken as it is now; where the rule does not hold in training, not at all."""
    assert maps({"made": term}, steady=True).none == {
        "made": f"`{name}` of the parent's tensors, and in training the function changes"
    }
    assert len(maps({"made": term}).groups) == 1


def test_parameters_without_gradients_are_constants() -> None:
    term = call("multiply", V, Ref("z"))
    (found,) = gradient_maps({"made": term}, held(), frozenset({"v"}), {}).groups
    assert found.keys == ("v",)
    assert np.allclose(found.image({"v": np.ones(4)})["made"], held()["z"], rtol=1e-15)


def test_tensors_that_read_one_are_taken_together() -> None:
    terms = {
        "a": call("take", W, G, 0),
        "b": V,
        "c": call("scale", W, 1, 2),
        "d": call("add", Ref("z"), V),
        "m": M,
    }
    found = maps(terms)
    assert [sorted(g.tapes) for g in found.groups] == [["a", "c"], ["b", "d"]]
    assert found.kept == ("m",)


def test_what_is_at_rest_stays_at_rest() -> None:
    joint = group({"made": Apply("take", (W, G, 0))})
    assert not joint.first({"w": np.zeros(SHAPES["w"])})["made"].any()
