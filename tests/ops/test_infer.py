"""Inference: what fits, what does not and what is then said; sizes with symbols; cost."""

from __future__ import annotations

from typing import Any

import pytest

from archir.ir.dims import symbol
from archir.ir.types import TensorType
from archir.ops import STANDARD
from archir.ops.cost import cost, macs
from archir.ops.infer import OpError, bind_attrs, instance
from archir.ops.record import OpSet

from .nets import net, use

WRONG: list[tuple[str, dict[str, Any], list[tuple[int, ...]], str, list[str]]] = [
    ("add", {}, [(2, 3, 4), (2, 5, 4)], "A110", ["f32[2, 3, 4]", "f32[2, 5, 4]"]),
    ("mul", {}, [(2, 3), (4,)], "A110", ["f32[2, 3]", "f32[4]"]),
    ("concat", {}, [(2, 3, 4), (2, 3, 5)], "A110", ["f32[2, 3, 4]", "f32[2, 3, 5]"]),
    ("concat", {}, [(2, 3, 4), (2, 3)], "A110", ["f32[2, 3, 4]", "f32[2, 3]", "3 axes"]),
    ("conv", {"out": 4, "kernel": 3}, [(2, 3)], "A110", ["rank 2"]),
    ("conv", {"out": 4, "kernel": 3, "groups": 2}, [(2, 3, 8, 8)], "A110", ["[2, 3, 8, 8]", "2"]),
    ("conv", {"out": 5, "groups": 2}, [(2, 4, 8, 8)], "A110", ["out = 5", "[2, 4, 8, 8]"]),
    ("conv", {"out": 4, "kernel": 9, "padding": 0}, [(2, 3, 8, 8)], "A110", ["window of 9", "8"]),
    ("conv", {"out": 4, "kernel": 2}, [(2, 3, 8, 8)], "A115", ["even kernel"]),
    ("conv", {"out": 4, "kernel": (3, 3, 3)}, [(2, 3, 8, 8)], "A114", ["3 entries", "2 spatial"]),
    ("conv", {"out": 0}, [(2, 3, 8, 8)], "A114", ["at least 1"]),
    ("conv", {"out": 2**40}, [(2, 3, 8, 8)], "A114", ["out of range"]),
    ("conv", {"out": True}, [(2, 3, 8, 8)], "A114", ["an integer", "true"]),
    ("conv", {"out": 4, "stride": 1.5}, [(2, 3, 8, 8)], "A114", ["1.5"]),
    ("conv", {"kernel": 3}, [(2, 3, 8, 8)], "A113", ["out"]),
    ("conv", {"out": 4, "strides": 2}, [(2, 3, 8, 8)], "A112", ["strides"]),
    ("conv", {"out": 4}, [(2, 3, 8, 8), (2, 3, 8, 8)], "A104", ["takes 1", "got 2"]),
    ("add", {}, [(2, 3)], "A104", ["2 or more", "got 1"]),
    ("linear", {"out": 3}, [()], "A110", ["1 axes", "f32[]"]),
    ("split", {"sizes": (2, 2)}, [(2, 5, 3)], "A110", ["[2, 5, 3]", "4"]),
    ("split", {"sizes": 2}, [(2, 5, 3)], "A114", ["list of integers"]),
    ("softmax", {"axis": 2}, [(2, 5)], "A114", ["rank 2"]),
    ("flatten", {"start": -4}, [(2, 5, 3)], "A114", ["rank 3"]),
    ("batch_norm", {}, [(5,)], "A110", ["2 axes", "f32[5]"]),
    ("max_pool", {"kernel": 3}, [(2, 3, 2, 5)], "A110", ["window of 3", "extent of 2"]),
    ("conv_transpose", {"out": 3, "output_padding": 1}, [(2, 3, 4)], "A114", ["padding of 1"]),
    ("conv_transpose", {"out": 3, "padding": 3}, [(2, 3, 4)], "A110", ["nothing", "extent of 4"]),
    ("conv_transpose", {"out": 3, "groups": 2}, [(2, 4, 4)], "A110", ["out = 3"]),
    ("layer_norm", {"axes": 4}, [(2, 3, 5)], "A114", ["rank 3"]),
    ("group_norm", {"groups": 4}, [(2, 6, 5)], "A110", ["6 channels", "4"]),
    ("instance_norm", {}, [(2, 6)], "A110", ["3 axes", "f32[2, 6]"]),
    ("hardtanh", {"low": 2.0}, [(2, 3)], "A114", ["2", "not below", "1"]),
    ("gelu", {"approximate": "sine"}, [(2, 3)], "A114", ["none or tanh"]),
    ("stochastic_depth", {"mode": "column"}, [(2, 3)], "A114", ["row or batch"]),
    ("prelu", {}, [(3,)], "A110", ["2 axes", "f32[3]"]),
    ("sub", {}, [(2, 3), (2, 3), (2, 3)], "A104", ["takes 2", "got 3"]),
    ("celu", {"alpha": 0.0}, [(2, 3)], "A114", ["at least 1e-06"]),
    ("null", {"stride": 2}, [(2, 3)], "A110", ["spatial axes", "rank 2"]),
]


@pytest.mark.parametrize(("op", "attrs", "shapes", "code", "says"), WRONG)
def test_wrong_uses(
    op: str, attrs: dict[str, Any], shapes: list[tuple[int, ...]], code: str, says: list[str]
) -> None:
    with pytest.raises(OpError) as caught:
        use(op, attrs, *shapes)
    assert caught.value.code == code
    for part in (op, *says):
        assert part in caught.value.message


def symbolic(
    op: str, attrs: dict[str, Any], *shapes: tuple[Any, ...], dtypes: tuple[str, ...] = ()
) -> tuple[TensorType, ...]:
    types = tuple(
        TensorType(dtype, tuple(symbol(s) if isinstance(s, str) else s for s in shape))
        for shape, dtype in zip(shapes, dtypes or ("f32",) * len(shapes), strict=True)
    )
    record = STANDARD[op]
    return instance(record, bind_attrs(record, attrs, types), types).types


def test_a_symbolic_batch_goes_through_every_operator() -> None:
    seen = set()
    for op in STANDARD.values():
        for sample in op.samples:
            ranks = {t.rank for t in sample.inputs}
            weights = {1, 2} if op.name.startswith("dynamic_") else set()
            if not sample.inputs or (op.name, sample.attrs.get("axis")) == ("concat", 0):
                continue
            shapes = [
                ("N", *t.shape[1:])
                if t.rank == max(ranks) and t.rank > 1 and t.shape[0] != 1 and place not in weights
                else t.shape
                for place, t in enumerate(sample.inputs)
            ]
            if any("N" in shape for shape in shapes):
                dtypes = tuple(t.dtype for t in sample.inputs)
                for type_ in symbolic(op.name, dict(sample.attrs), *shapes, dtypes=dtypes):
                    assert type_.shape[0] == symbol("N")
                seen.add(op.name)
    assert seen == set(STANDARD) - {"input", "constant", "parameter"}


def test_symbolic_sizes() -> None:
    (flat,) = symbolic("flatten", {"start": 0}, ("N", 3, "T"))
    assert str(flat) == "f32[3*N*T]"
    (joined,) = symbolic("concat", {"axis": 0}, ("N", 3), ("N", 3))
    assert str(joined) == "f32[2*N, 3]"
    (kept,) = symbolic("conv", {"out": 2, "kernel": 3}, ("N", 3, "H", "W"))
    assert str(kept) == "f32[N, 2, H, W]"


@pytest.mark.parametrize(
    ("op", "attrs", "shapes", "says"),
    [
        ("concat", {"axis": 0}, [("N", 3), ("M", 3)], "cannot be written"),
        ("conv", {"out": 2, "kernel": 3, "stride": 2}, [("N", 3, "H", 8)], "symbolic extent H"),
        ("conv", {"out": 2}, [("N", "C", 8, 8)], "the weight of `conv` needs whole numbers"),
        ("linear", {"out": 2}, [("N", "C")], "[2, C]"),
    ],
)
def test_sizes_that_cannot_be_solved(
    op: str, attrs: dict[str, Any], shapes: list[tuple[Any, ...]], says: str
) -> None:
    with pytest.raises(OpError) as caught:
        symbolic(op, attrs, *shapes)
    assert caught.value.code == "A111"
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("attrs", "shape", "result", "weight", "work"),
    [
        ({"out": 5, "kernel": 3}, (1, 3, 7, 6), (1, 5, 7, 6), (5, 3, 3, 3), 5 * 42 * 27),
        (
            {"out": 8, "kernel": 3, "groups": 8},
            (1, 8, 6, 6),
            (1, 8, 6, 6),
            (8, 1, 3, 3),
            8 * 36 * 9,
        ),
        (
            {"out": 16, "kernel": 3, "groups": 8, "stride": 2},
            *((1, 8, 6, 6), (1, 16, 3, 3), (16, 1, 3, 3), 16 * 9 * 9),
        ),
        (
            {"out": 12, "kernel": 1, "groups": 4},
            (1, 8, 5, 5),
            (1, 12, 5, 5),
            (12, 2, 1, 1),
            12 * 50,
        ),
        ({"out": 6, "kernel": 5, "stride": 2}, (1, 4, 9), (1, 6, 5), (6, 4, 5), 6 * 5 * 20),
        (
            {"out": 2, "kernel": (1, 3, 5), "padding": 0},
            *((1, 3, 4, 5, 6), (1, 2, 4, 3, 2), (2, 3, 1, 3, 5), 2 * 24 * 45),
        ),
        (
            {"out": 4, "kernel": 3, "dilation": 2},
            (1, 2, 8, 8),
            (1, 4, 8, 8),
            (4, 2, 3, 3),
            4 * 64 * 18,
        ),
    ],
)
def test_convolutions(
    attrs: dict[str, Any],
    shape: tuple[int, ...],
    result: tuple[int, ...],
    weight: tuple[int, ...],
    work: int,
) -> None:
    found = use("conv", attrs, shape)
    assert found.types[0].shape == result
    assert found.params["weight"].shape == weight
    assert found.params["bias"].shape == weight[:1]
    assert macs(found) == work


def test_transposed_convolutions() -> None:
    """A weight is used once for each entry of the input and image of the output's channels."""
    attrs = {"out": 6, "kernel": (3, 4), "stride": 2, "padding": 1, "groups": 2}
    found = use("conv_transpose", attrs, (1, 4, 5, 7))
    assert found.types[0].shape == (1, 6, 9, 14)
    assert found.params["weight"].shape == (4, 3, 3, 4)
    assert found.params["bias"].shape == (6,)
    assert macs(found) == 35 * 4 * 3 * 12
    (type_,) = symbolic("conv_transpose", {"out": 2, "kernel": 2, "stride": 2}, ("N", 3, "H", 5))
    assert str(type_) == "f32[N, 2, 2*H, 10]"
    with pytest.raises(OpError, match="symbolic extent H"):
        symbolic("conv_transpose", {"out": 2, "kernel": 3}, ("N", 3, "H"))


def test_whole_numbers_are_not_divided() -> None:
    with pytest.raises(OpError, match=r"i64\[2, 3\]"):
        symbolic("div", {}, (2, 3), (2, 3), dtypes=("i64", "i64"))


def test_linear_and_free_operators() -> None:
    found = use("linear", {"out": 10}, (1, 7, 3))
    assert (found.params["weight"].shape, found.types[0].shape) == ((10, 3), (1, 7, 10))
    assert macs(found) == 7 * 30
    for op, attrs, shape in (
        ("batch_norm", {}, (1, 3, 8, 8)),
        ("relu", {}, (1, 3)),
        ("avg_pool", {"kernel": 2}, (1, 3, 8, 8)),
        ("softmax", {}, (1, 3)),
    ):
        assert macs(use(op, attrs, shape)) == 0


def test_cost_of_a_network() -> None:
    """Shared weights count once as parameters, and twice as work."""
    graph = net("""
        input image: f32[N, 3, 8, 8]
        a = image |> conv1: conv(6, 3, bias = false) |> bn: batch_norm |> relu
        b = a |> conv2: conv(6, 3, groups = 6)
              |> conv3: conv(6, 3, groups = 6, weight = b.conv2.weight)
        output y = b |> global_avg_pool |> fc: linear(10)
    """)
    found = cost(graph, STANDARD)
    assert found.params == 6 * 3 * 9 + 2 * 6 + (6 * 9 + 6) + 6 + (60 + 10)
    assert found.buffers == 6 + 6 + 1
    assert found.macs == 64 * 162 + 2 * 64 * 54 + 60
    assert sum(layer.macs for layer in found.layers) == found.macs
    assert found.activation_bytes == 4 * (64 * 3 + 5 * 64 * 6 + 6 + 10)


def test_two_operators_of_one_name() -> None:
    with pytest.raises(ValueError, match="two operators are named relu"):
        OpSet([STANDARD["relu"], STANDARD["relu"]])


def test_element_types_are_not_mixed() -> None:
    one, other = TensorType("f32", (2, 3)), TensorType("i64", (2, 3))
    for name in ("add", "mul", "concat"):
        op = STANDARD[name]
        attrs = bind_attrs(op, {}, (one, one))
        instance(op, attrs, (one, one))
        with pytest.raises(OpError, match=r"f32\[2, 3\] and i64\[2, 3\]"):
            instance(op, attrs, (one, other))
