"""Windows as columns, and back: torch to the bit, every way that ONNX has, and their classes."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.classes import AxisClasses

torch = pytest.importorskip("torch")
from archir.backends import onnx, torch_fx  # noqa: E402
from archir.backends.onnx import runtime  # noqa: E402
from torch.nn import functional  # noqa: E402

BOUND = 1e-6


def graph(shape: str, call: str) -> Graph:
    text = f"arch net {{ input x: f32[{shape}] output y = x |> {call} }}"
    return load(Source("net.arch", text), STANDARD).graph


CALLS: list[tuple[str, str, Any]] = [
    ("N, 3, 7, 6", "unfold(3, padding = 1)", lambda x: functional.unfold(x, 3, 1, 1, 1)),
    (
        "N, 3, 9, 6",
        "unfold([2, 3], stride = 2, padding = [0, 1], dilation = [2, 1])",
        lambda x: functional.unfold(x, (2, 3), (2, 1), (0, 1), 2),
    ),
    (
        "N, 18, 16",
        "fold([9, 7], [3, 2], stride = [2, 2], padding = [0, 1])",
        lambda x: functional.fold(x, (9, 7), (3, 2), 1, (0, 1), 2),
    ),
    (
        "N, 12, 16",
        "fold([8, 5], [2, 2], stride = [2, 1], dilation = [3, 1], padding = [1, 0])",
        lambda x: functional.fold(x, (8, 5), 2, (3, 1), (1, 0), (2, 1)),
    ),
    ("N, 3, 7, 6", "windows(2, 3, 2)", lambda x: x.unfold(2, 3, 2)),
    ("N, 3, 7", "windows(-1, 4)", lambda x: x.unfold(2, 4, 1)),
    ("N, 5, 8", "gather(i, axis = 2)", lambda x: x[:, :, torch.tensor([[0, -1], [3, 3]])]),
    ("N, 5, 8", "gather(j, axis = 1)", lambda x: x[:, torch.tensor([-5, 4, 4])]),
    (
        "N, 3, 7, 8",
        "avg_pool(2, ceil_mode = true)",
        lambda x: functional.avg_pool2d(x, 2, ceil_mode=True),
    ),
    (
        "N, 3, 7, 8",
        "avg_pool([3, 2], 2, 1, ceil_mode = true)",
        lambda x: functional.avg_pool2d(x, (3, 2), 2, 1, ceil_mode=True),
    ),
    (
        "N, 3, 7, 8",
        "avg_pool(3, 2, 1, count_include_pad = false, ceil_mode = true)",
        lambda x: functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    ),
]


@pytest.mark.parametrize(("shape", "call", "same"), CALLS, ids=[c[1] for c in CALLS])
def test_torch_to_the_bit_and_onnx_within_the_bound(shape: str, call: str, same: Any) -> None:
    text = f"""arch net {{
        input x: f32[{shape}]
        i = constant([[0, -1], [3, 3]], dtype = i64)
        j = constant([-5, 4, 4], dtype = i32)
        output y = x |> {call}
    }}"""
    network = load(Source("net.arch", text), STANDARD).graph
    for batch, opset in product((1, 3), (17, 18, 20)):
        sizes = [batch, *map(int, shape.split(", ")[1:])]
        x = np.random.Generator(np.random.PCG64(batch)).standard_normal(sizes, np.float32)
        (found,) = torch_fx.forward(network, {}, {"x": x})
        assert torch.equal(torch.from_numpy(found), same(torch.from_numpy(x)))
        model = onnx.build(network, {}, opset).SerializeToString()
        (exported,) = runtime.run(runtime.session(model), {"x": x})
        assert np.abs(exported - found).max() <= BOUND * np.abs(found).max()


def test_channels_go_through_windows() -> None:
    text = """arch net {
        input x: f32[N, 3, 8, 8]
        a = x |> conv(4, 3) |> relu |> unfold(3, padding = 1) |> fold([8, 8], [3, 3], padding = [1, 1])
        b = a |> conv(6) |> windows(2, 4, 4) |> windows(3, 4, 4) |> mean([4, 5]) |> conv2: conv(5)
        output y = b
    }"""  # noqa: E501
    network = load(Source("net.arch", text), STANDARD).graph
    found = AxisClasses(network, STANDARD).sites
    assert {site: held.size for site, held in found.items()} == {"a.conv": 4, "b.conv": 6}


@pytest.mark.parametrize(
    ("shape", "call", "says"),
    [
        ("N, 3, 7", "unfold(3)", "`unfold` reads images"),
        ("N, 3, H, 8", "unfold(3)", "the number of windows cannot be written"),
        ("N, 3, 2, 8", "unfold(3)", "a window of 3 does not fit an extent of 2"),
        ("N, 18, 19", "fold([9, 7], [3, 2])", "puts back 42 windows, there are 19"),
        ("N, 17, 42", "fold([9, 7], [3, 2])", "17 channels cannot be divided"),
        ("N, 18, 42", "fold([9, 7], [3])", "`fold` wants 2 numbers in each"),
        ("N, 18, 6, 7", "fold([9, 7], [3, 2])", "`fold` reads windows"),
        ("N, 3, 7", "windows(2, 8)", "`windows` of 8 along axis 2"),
        ("N, 3, W", "windows(2, 8)", "the symbol W"),
    ],
)
def test_what_does_not_fit_is_said(shape: str, call: str, says: str) -> None:
    with pytest.raises(ArchirError, match=re.escape(says)):
        graph(shape, call)
