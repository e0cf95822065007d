"""Resizing: torch's `interpolate` to the bit, its entries and weights, and ONNX's answer."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.interpolation import sources, weights

torch = pytest.importorskip("torch")
from archir.backends import onnx, torch_fx  # noqa: E402
from archir.backends.onnx import runtime  # noqa: E402
from torch.nn import functional  # noqa: E402

BOUND = 5e-6
SIZES = (1, 2, 3, 5, 7, 12, 30, 56)
FACTORS = (0.3, 0.5, 1 / 3, 1.1, 1.3, 1.7, 2.0, 3.0)


def graph(shape: str, call: str) -> Graph:
    text = f"arch net {{ input x: f32[{shape}] output y = x |> interpolate({call}) }}"
    return load(Source("net.arch", text), STANDARD).graph


def targets(extent: int) -> list[tuple[int, float | None]]:
    by_factor = [(int(np.floor(extent * f)), f) for f in FACTORS]
    return [*((size, None) for size in SIZES), *((s, f) for s, f in by_factor if s)]


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_which_entries_are_taken(mode: str) -> None:
    for extent in (*SIZES, 70, 112):
        x = torch.arange(extent, dtype=torch.float32).reshape(1, 1, extent)
        for size, factor in targets(extent):
            given = {"size": size} if factor is None else {"scale_factor": factor}
            found = functional.interpolate(x, mode=mode, **given).reshape(-1).tolist()
            assert found == sources(extent, size, factor, mode).tolist(), (extent, size, factor)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("how", ["half_pixel", "align_corners", "antialias"])
def test_the_weights_of_an_axis(mode: str, how: str) -> None:
    corners, smooth = how == "align_corners", how == "antialias"
    for extent in SIZES[:-1]:
        x = torch.eye(extent, dtype=torch.float64)[None, :, :, None].repeat(1, 1, 1, 2)
        for size, factor in targets(extent):
            if corners and factor is not None:
                continue
            given: Any = {"size": (size, 2)} if factor is None else {"scale_factor": (factor, 1.0)}
            flags = {"align_corners": corners, "antialias": smooth}
            found = functional.interpolate(x, mode=mode, **given, **flags)[0, :, :, 0].T
            wanted = weights(extent, size, factor, mode, corners=corners, smooth=smooth)
            assert np.abs(found.numpy() - wanted.astype(np.float64)).max() <= 1e-12


CALLS = [
    ("N, 3, 7, 5", "[14, 10]", {"size": (14, 10)}),
    ("N, 3, 7, 5", "[9, 4], mode = \"nearest-exact\"", {"size": (9, 4), "mode": "nearest-exact"}),
    ("N, 3, 7, 5", "scale = 1.7", {"scale_factor": (1.7, 1.7)}),
    ("N, 3, 14, 10", "[7, 5]", {"size": (7, 5)}),
    ("N, 3, 7, 5", "[14, 9], mode = \"bilinear\"", {"size": (14, 9), "mode": "bilinear"}),
    ("N, 3, 7, 5", "scale = [1.5, 2.0], mode = \"bicubic\"",
     {"scale_factor": (1.5, 2.0), "mode": "bicubic"}),
    ("N, 3, 7, 5", "[9, 12], mode = \"bicubic\"", {"size": (9, 12), "mode": "bicubic"}),
    ("N, 3, 9, 7", "[4, 3], mode = \"bicubic\", antialias = true",
     {"size": (4, 3), "mode": "bicubic", "antialias": True}),
    ("N, 3, 7, 5", "[9, 12], mode = \"bilinear\", align_corners = true",
     {"size": (9, 12), "mode": "bilinear", "align_corners": True}),
    ("N, 3, 7", "10, mode = \"linear\"", {"size": 10, "mode": "linear"}),
    ("N, 2, 3, 4, 5", "scale = 2.0, mode = \"trilinear\"",
     {"scale_factor": (2.0, 2.0, 2.0), "mode": "trilinear"}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "call", "given"), CALLS, ids=[c[1] for c in CALLS])
def test_torch_to_the_bit_and_onnx_within_the_bound(shape: str, call: str, given: Any) -> None:
    network = graph(shape, call)
    for batch, opset in product((1, 3), (17, 20)):
        sizes = [batch, *map(int, shape.split(", ")[1:])]
        x = np.random.Generator(np.random.PCG64(batch)).standard_normal(sizes, np.float32)
        (found,) = torch_fx.forward(network, {}, {"x": x})
        assert torch.equal(
            torch.from_numpy(found), functional.interpolate(torch.from_numpy(x), **given)
        )
        model = onnx.build(network, {}, opset).SerializeToString()
        (exported,) = runtime.run(runtime.session(model), {"x": x})
        assert np.abs(exported - found).max() <= BOUND * np.abs(found).max()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("", "`scale` of `interpolate` is a factor above 0"),
        ("[7, 0]", "all sizes, or factors alone"),
        ("[7, 9], scale = 2.0", "all sizes, or factors alone"),
        ("scale = [2.0, 2.0, 2.0]", "one for each of 2 axes"),
        ("scale = -1.0", "above 0"),
        ("scale = 0.1", "nothing is left of an extent of 7"),
        ('[7, 9], mode = "linear"', "one of nearest, nearest-exact, bilinear, bicubic"),
        ("[7, 9], align_corners = true", "no meaning with `nearest`"),
        ("[7, 9], antialias = true", "for bilinear and bicubic"),
    ],
)
def test_what_does_not_fit_is_said(call: str, says: str) -> None:
    with pytest.raises(ArchirError, match=says):
        graph("N, 3, 7, 5", call)


def test_open_extents() -> None:
    network = graph("N, 3, H, W", "scale = 2.0")
    assert str(network.node(network.outputs[0].value.node).types[0]) == "f32[N, 3, 2*H, 2*W]"
    with pytest.raises(ArchirError, match="would need a floor"):
        graph("N, 3, H, W", "scale = 1.5")
    with pytest.raises(ArchirError, match="symbolic extent H") as caught:
        onnx.build(network, {})
    assert caught.value.diagnostics[0].code == "A502"
