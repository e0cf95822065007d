"""Signatures of what moves entries: reshapes aligned by factors, cuts, products, and refusals."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from archir.ir.dims import Size, product, symbol
from archir.ir.types import TensorType
from archir.ops import STANDARD
from archir.ops.align import align
from archir.ops.arithmetic import Rational, Residues
from archir.ops.attend import surd
from archir.ops.cost import macs
from archir.ops.infer import Instance, OpError, bind_attrs, instance

N = symbol("N")


def use(op: str, attrs: dict[str, Any], *types: TensorType | tuple[Size, ...]) -> Instance:
    full = tuple(t if isinstance(t, TensorType) else TensorType("f32", t) for t in types)
    return instance(STANDARD[op], bind_attrs(STANDARD[op], attrs, full), full)


@pytest.mark.parametrize(
    ("old", "new", "signature"),
    [
        ((N, 116, 28), (N, 2, 58, 28), "x[a0, (a1 a2), a3] -> [a0, a1, a2, a3]"),
        ((N, 58, 2, 28), (N, 116, 28), "x[a0, a1, a2, a3] -> [a0, (a1 a2), a3]"),
        ((4, 9), (2, 6, 3), "x[(a0 a1), (a2 a3)] -> [a0, (a1 a2), a3]"),
        ((N, 4, 6), (N, 6, 4), "x[a0, a1!, a2!] -> [a0, 6, 4]"),
        ((N, 4, 6, 5), (N, 6, 4, 5), "x[a0, a1!, a2!, a3] -> [a0, 6, 4, a3]"),
        ((N, 4), (2, product([2, N])), "x[a0!, a1!] -> [2, (2 a0)]"),
        ((product([4, N]), 9, 5), (N, 2, 2, 3, 3, 5),
         "x[(a0 a1 a2), (a3 a4), a5] -> [a0, a1, a2, a3, a4, a5]"),
        ((N, 64, 1, 1), (N, 64), "x[a0, a1, a2, a3] -> [a0, (a1 a2 a3)]"),
        ((N, 64), (1, N, 64, 1), "x[a0, a1] -> [1, a0, a1, 1]"),
        ((N, 1, 3), (N, 1, 3), "x[a0, a1, a2] -> [a0, a1, a2]"),
        ((5, 1, 3), (5, 3), "x[a0, a1, a2] -> [a0, (a1 a2)]"),
        ((1, 1), (), "x[1, 1] -> []"),
        ((), (1,), "x[] -> [1]"),
    ],
)  # fmt: skip
def test_old_and_new_axes_have_common_factors(
    old: tuple[Size, ...], new: tuple[Size, ...], signature: str
) -> None:
    assert align(old, new) == signature


def cut(stream: np.random.Generator, factors: list[int]) -> tuple[int, ...]:
    """The factors, some of them multiplied with their neighbours, and ones among them."""
    parts = np.split(np.array(factors), sorted(stream.choice(len(factors), 2)))
    sizes = [math.prod(map(int, part)) for part in parts]
    return tuple(np.insert(sizes, stream.integers(len(sizes)), 1).tolist())


def test_random_reshapes_infer_their_sizes() -> None:
    """What has common factors is read in one order on both sides; nothing else is claimed."""
    stream = np.random.Generator(np.random.PCG64(5))
    opaque = 0
    for _ in range(400):
        factors = stream.integers(2, 6, 5).tolist()
        old = cut(stream, factors)
        new = cut(stream, factors if stream.random() < 0.8 else factors[::-1])
        found = use("reshape", {"shape": new}, old)
        assert found.types[0].shape == new
        (operand,) = found.axes.operands
        marked = any(axis.opaque for axis in operand)
        opaque += marked
        if not marked:
            left, right = (
                [n for a in side for n in a.names()] for side in (operand, found.axes.results[0])
            )
            assert left == right
            assert math.prod(found.sizes[n] for n in left) == math.prod(old)  # type: ignore[misc]
    assert 20 < opaque < 300


@pytest.mark.parametrize(
    ("shape", "found"),
    [((0, -1), "f32[N, 12]"), ((-1, 4), "f32[3*N, 4]"), ((0, 0, 2, -1), "f32[N, 3, 2, 2]")],
)
def test_zero_and_minus_one(shape: tuple[int, ...], found: str) -> None:
    assert str(use("reshape", {"shape": shape}, (N, 3, 4)).types[0]) == found


I64 = TensorType("i64", (5,))


@pytest.mark.parametrize(
    ("op", "attrs", "types", "code", "says"),
    [
        ("reshape", {"shape": (0, 5)}, [(N, 12)], "A110", "5*N entries, f32[N, 12] has 12*N"),
        ("reshape", {"shape": (5, -1)}, [(3, 4)], "A110", "no multiple of 5"),
        ("reshape", {"shape": (-1, -1)}, [(3, 4)], "A114", "one entry at most is -1"),
        ("reshape", {"shape": (3, 4, 0)}, [(3, 4)], "A114", "where the input has an axis"),
        ("reshape", {"shape": (4, -1)}, [(N, symbol("M"), 12)], "A111", "is no multiple"),
        ("permute", {"order": (0, 2)}, [(2, 3, 4)], "A114", "names 2 of 3 axes"),
        ("permute", {"order": (0, 2, -1)}, [(2, 3, 4)], "A114", "names an axis twice"),
        ("mean", {"axes": (3,)}, [(2, 3, 4)], "A114", "is 3, its input has rank 3"),
        ("squeeze", {"axis": 1}, [(2, 3)], "A110", "whose extent is not 1"),
        ("unsqueeze", {"axis": 3}, [(2, 3)], "A114", "its result has rank 3"),
        ("chunk", {"chunks": 4}, [(2, 6)], "A110", "cannot cut an extent of 6 into 4"),
        ("slice", {"start": 4, "length": 3}, [(2, 6)], "A110", "takes entry 6 of axis 1"),
        ("slice", {"start": 0, "length": 2, "axis": 0}, [(N, 6)], "A111", "the symbol N"),
        ("select", {"index": 6}, [(2, 6)], "A110", "takes entry 6 of axis 1, which has 6"),
        ("expand", {}, [(2, 3), (2, 3)], "A110", "stretches axis 0 of extent 1"),
        ("pad", {"before": (1,), "after": (0, 0)}, [(2, 3)], "A114", "needs 2 entries"),
        ("pad", {"before": (0, 3), "after": (0, 0), "mode": "reflect"}, [(2, 3)], "A110", "by 3"),
        ("pad", {"before": (0, 3), "after": (0, 0), "mode": "wrap"}, [(2, 3)], "A114", "one of"),
        ("gather", {}, [(2, 3), (5,)], "A110", "an index of i64 or i32, got f32[5]"),
        ("embedding", {"num": 3, "dim": 2}, [(5,)], "A110", "an index of i64 or i32"),
        ("upsample", {"scale": 2, "mode": "cubic"}, [(1, 2, 3)], "A114", "nearest or bilinear"),
        ("upsample", {"scale": 2, "align_corners": True}, [(1, 2, 3)], "A114", "alone"),
        ("matmul", {}, [(2, 3), (3,)], "A110", "at least 2 axes"),
        ("matmul", {}, [(2, 3), (4, 5)], "A110", "should be equal"),
        ("einsum", {"equation": "ii->i"}, [(3, 3)], "A114", "for 1 tensor"),
        ("einsum", {"equation": "ij,jk"}, [(3, 3), (3, 3)], "A114", "for 2 tensors"),
        ("attention", {"heads": 4}, [(2, 3, 6)] * 3, "A110", "6 channels into 4 heads"),
        ("attention", {}, [(2, 3, 6), (2, 3, 6), (3, 6)], "A110", "of one rank"),
        ("attention", {}, [*[(2, 3, 6)] * 3, (1, 2, 1, 3, 3)], "A110", "more than 4 axes"),
    ],
)
def test_refusals_say_what_is_wrong(
    op: str, attrs: dict[str, Any], types: list[Any], code: str, says: str
) -> None:
    with pytest.raises(OpError) as caught:
        use(op, attrs, *types)
    assert caught.value.code == code
    assert says in caught.value.message


def test_products_are_counted() -> None:
    assert macs(use("matmul", {}, (N, 2, 3, 4), (4, 5))) == 2 * 3 * 4 * 5
    twice = use("einsum", {"equation": "nij,jk,ik->n"}, (2, 3, 4), (4, 5), (3, 5))
    assert macs(twice) == 2 * 3 * 4 * 5 + 2 * 3 * 5
    assert macs(use("einsum", {"equation": "nij->nj"}, (2, 3, 4))) == 0
    heads = use("attention", {"heads": 2}, (N, 3, 8), (N, 5, 8), (N, 5, 6))
    assert macs(heads) == 2 * 3 * 5 * (4 + 3)
    assert macs(use("mean", {"axes": 1}, (2, 3))) == 0


def test_an_index_keeps_the_type_of_what_it_points_into() -> None:
    assert str(use("gather", {}, TensorType("f64", (4, 3)), I64).types[0]) == "f64[5, 3]"
    assert str(use("expand", {}, (1, 3), I64).types[0]) == "f32[5, 3]"
    assert str(use("embedding", {"num": 3, "dim": 2}, I64).types[0]) == "f32[5, 2]"


@pytest.mark.parametrize("k", [Rational(), Residues()], ids=lambda k: k.name)
@pytest.mark.parametrize("width", [4, 7, 8, 24, 64])
@pytest.mark.parametrize("times", [2, 3, 5])
def test_a_scale_that_is_divided_makes_up_for_copies(
    k: Rational | Residues, width: int, times: int
) -> None:
    """Heads of which each entry stands several times, with the scale divided by the float."""
    stream = np.random.Generator(np.random.PCG64(width))
    x = k.array(stream.integers(-9, 9, (2, 3, width)))
    wide = np.repeat(x, times, axis=-1)
    scale = 1 / math.sqrt(width)
    attend = STANDARD["attention"].reference
    attrs = {"heads": 1, "causal": False}
    (small,) = attend(k, (x, x, x), {}, {**attrs, "scale": scale}, "eval")
    (large,) = attend(k, (wide, wide, x), {}, {**attrs, "scale": scale / times}, "eval")
    (other,) = attend(k, (wide, wide, x), {}, {**attrs, "scale": scale}, "eval")
    assert (small == large).all()
    assert not (small == other).all()


def test_scales_are_read_as_roots() -> None:
    assert surd(0.3) == (Fraction(3, 10), 1)
    assert surd(-0.5) == (Fraction(-1, 2), 1)
    assert surd(0.0) == (Fraction(0), 1)
    assert surd(1e-9) == (Fraction(1e-9), 1)
    for width in range(1, 200):
        outside, inside = surd(1 / math.sqrt(width))
        assert outside**2 * inside == Fraction(1, width)
        assert all(inside % (p * p) for p in range(2, 15))
