"""`null`: zeros whatever it reads, in every arithmetic, element type and backend."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.ir.types import TensorType
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating, Rational, Residues
from archir.ops.infer import OpError, bind_attrs, instance
from archir.target import backends

from .nets import net

NULL = STANDARD["null"]


def zeros(x: Any, k: Any, **attrs: int) -> Any:
    (y,) = NULL.reference(k, (x,), {}, {"stride": 1, **attrs}, "eval")
    return y


def test_it_is_zero_where_its_input_is_not_finite() -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 1.0]])
    assert (zeros(x, Floating(np.float64)) == 0).all()


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool", "float32"])
def test_it_keeps_the_element_type(dtype: str) -> None:
    y = zeros(np.ones((2, 3), dtype), Floating(np.float32))
    assert (y.dtype, y.shape, y.any()) == (np.dtype(dtype), (2, 3), False)


def test_it_is_zero_in_exact_arithmetic() -> None:
    x = np.full((1, 2, 3), Fraction(1, 3), dtype=object)
    assert all(type(v) is Fraction and v == 0 for v in zeros(x, Rational()).reshape(-1))
    assert not zeros(np.ones((1, 2, 3)), Residues()).any()


@pytest.mark.parametrize(("extent", "stride", "left"), [(7, 2, 4), (8, 2, 4), (8, 3, 3), (1, 5, 1)])
def test_a_stride_leaves_the_grid_that_a_padded_window_leaves(
    extent: int, stride: int, left: int
) -> None:
    """As a convolution with `same` padding does, so that one may take the place of the other."""
    image = TensorType("f32", (2, 3, extent))
    for op, attrs in (("null", {}), ("conv", {"out": 3, "kernel": 3})):
        bound = bind_attrs(STANDARD[op], {**attrs, "stride": stride}, (image,))
        assert instance(STANDARD[op], bound, (image,)).types[0].shape == (2, 3, left)


def test_a_stride_wants_spatial_axes_with_numbers() -> None:
    flat = TensorType("f32", (2, 3))
    with pytest.raises(OpError, match="spatial axes") as caught:
        instance(NULL, bind_attrs(NULL, {"stride": 2}, (flat,)), (flat,))
    assert (caught.value.code, caught.value.attr) == ("A110", "stride")
    graph = net("input x: f32[N, 3, H, 4]  output y = null(x)")
    assert str(graph.type_of(graph.outputs[0].value)) == "f32[N, 3, H, 4]"
    with pytest.raises(ArchirError, match="extent H has no closed form"):
        net("input x: f32[N, 3, H, 4]  output y = null(x, 2)")


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("kind", ["f32", "i64", "i32", "bool"])
@pytest.mark.parametrize("stride", [1, 2])
def test_backends_at_any_batch(backend: str, kind: str, stride: int) -> None:
    pytest.importorskip({"torch": "torch", "onnx": "onnxruntime"}[backend])
    graph = net(f"input x: {kind}[N, 3, 5, 4]  output y = null(x, {stride})")
    dtype = {"f32": "float32", "i64": "int64", "i32": "int32", "bool": "bool"}[kind]
    for batch in (1, 3):
        x = np.ones((batch, 3, 5, 4), dtype)
        if kind == "f32":
            x[0, 0] = np.nan
        (y,) = backends()[backend].forward(graph, {}, {"x": x})
        shape = (batch, 3, 5, 4) if stride == 1 else (batch, 3, 3, 2)
        assert (y.shape, y.dtype, y.any()) == (shape, np.dtype(dtype), False)
