"""Every sample of every operator, in every number system."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from archir.ops import STANDARD
from archir.ops.arithmetic import PRIME, Floating, Rational, Residues, balance

from .nets import compute, shape

SAMPLES = [(op.name, i) for op in STANDARD.values() for i in range(len(op.samples))]
IRRATIONAL = {
    *("softmax", "log_softmax", "batch_norm", "exp", "elu", "selu", "celu", "sigmoid", "tanh"),
    *("softplus", "gelu", "silu", "mish", "layer_norm", "rms_norm", "group_norm"),
    *("instance_norm", "local_response_norm", "attention", "scaled_dot_product_attention"),
    "dynamic_batch_norm",
    *("log", "rsqrt", "sin", "cos", "tan", "atan", "erf", "pow", "power", "log_sigmoid"),
    *("std", "l2_norm"),
}
"""What takes a square root, an exponential or the like: Fractions have a stand-in."""
INDEXED = {"gather", "embedding"}
"""What reads an index, which exact numbers are taken for modulo the extent."""
FIELDS = [Floating(np.float64), Floating(np.float32), Rational(), Residues()]


def test_every_operator_has_samples_but_the_input() -> None:
    assert {op.name for op in STANDARD.values() if len(op.samples) < 2} == {"input"}


@pytest.mark.parametrize("k", FIELDS, ids=lambda k: k.name)
@pytest.mark.parametrize(("name", "number"), SAMPLES)
def test_results_have_the_inferred_shapes(name: str, number: int, k: object) -> None:
    assert isinstance(k, Floating | Rational | Residues)
    found, results = compute(STANDARD[name], k, number)
    assert [r.shape for r in results] == [shape(t) for t in found.types]
    for result in results:
        if isinstance(k, Floating):
            assert result.dtype == k.dtype
            assert np.isfinite(result).all()
        elif isinstance(k, Rational):
            assert all(isinstance(v, int | Fraction) for v in result.reshape(-1).tolist())
        else:
            assert result.dtype == np.float64
            assert (result == np.rint(result)).all()
            assert np.abs(result).max(initial=0) <= (PRIME + 1) // 2


@pytest.mark.parametrize(("name", "number"), [s for s in SAMPLES if s[0] not in IRRATIONAL])
def test_floats_agree_with_fractions(name: str, number: int) -> None:
    _, exact = compute(STANDARD[name], Rational(), number)
    _, rounded = compute(STANDARD[name], Floating(np.float64), number)
    for a, b in zip(exact, rounded, strict=True):
        assert np.abs(a.astype(np.float64) - b).max() <= 1e-13 * np.abs(b).max()


@pytest.mark.parametrize(("name", "number"), [s for s in SAMPLES if not STANDARD[s[0]].field])
def test_the_field_agrees_with_fractions(name: str, number: int) -> None:
    """Residues of exact results, for every operator without a stand-in."""
    op, k = STANDARD[name], Residues()
    _, exact = compute(op, Rational(), number)
    _, found = compute(op, k, number)
    for a, b in zip(exact, found, strict=True):
        assert (balance(k.array(a) - b) == 0).all()


@pytest.mark.parametrize("k", [Floating(np.float64), Rational()], ids=lambda k: k.name)
def test_batch_norm_in_training_normalises(k: Floating | Rational) -> None:
    """With sample statistics the mean of each channel is the shift, exactly in Fractions."""
    op = STANDARD["batch_norm"]
    for number, sample in enumerate(op.samples):
        if sample.attrs.get("affine") is False:
            _, (y,) = compute(op, k, number, "train")
            means = y.sum(axis=(0, *range(2, y.ndim)))
            assert all(abs(m) <= (1e-12 if isinstance(k, Floating) else 0) for m in means)


def test_softmax_sums_to_one_in_every_arithmetic() -> None:
    for k in FIELDS:
        for number, sample in enumerate(STANDARD["softmax"].samples):
            _, (y,) = compute(STANDARD["softmax"], k, number)
            axis = sample.attrs.get("axis", -1)
            assert isinstance(axis, int)
            total = k.subtract(k.sum(y, (axis % y.ndim,)), k.array(1))
            bound = {"float64": 1e-14, "float32": 1e-6}.get(k.name, 0)
            assert np.abs(total.astype(np.float64)).max() <= bound


@pytest.mark.parametrize(
    "name", [op.name for op in STANDARD.values() if op.field and op.name not in INDEXED]
)
def test_what_the_field_cannot_compute_has_a_stand_in(name: str) -> None:
    """Only then does a record say so: the residues of exact results are others."""
    op, k = STANDARD[name], Residues()
    different = False
    for number in range(len(op.samples)):
        _, exact = compute(op, Rational(), number)
        _, found = compute(op, k, number)
        pairs = zip(exact, found, strict=True)
        different |= any((balance(k.array(a) - b) != 0).any() for a, b in pairs)
    assert different


def test_what_fractions_cannot_compute_the_field_cannot() -> None:
    assert {name for name in IRRATIONAL if not STANDARD[name].field} == set()


@pytest.mark.parametrize("k", [Rational(), Residues()], ids=lambda k: k.name)
def test_an_index_is_taken_modulo_the_extent(k: Rational | Residues) -> None:
    table = k.array(np.arange(10, 15))
    places = k.array(np.array([0, 4, 5, 13, -1]))
    for op, operands, params in (
        ("gather", (table, places), {}),
        ("embedding", (places,), {"weight": table}),
    ):
        (y,) = STANDARD[op].reference(k, operands, params, {"axis": 0}, "eval")
        # -1 is the last of 5, and p - 1 = 5 * 209714 in GF(p).
        last = 14 if isinstance(k, Rational) else 10
        assert y.tolist() == [10, 14, 10, 13, last]


def test_an_index_of_floats_beyond_the_extent_is_no_number() -> None:
    with pytest.raises(IndexError):
        STANDARD["gather"].reference(
            Floating(), (np.arange(3.0), np.array([3.0])), {}, {"axis": 0}, "eval"
        )
