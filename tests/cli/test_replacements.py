"""Many replacements in one go on a real network: checked, certified, verified, exported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = """
nat.conv_to_null@cells.0.layers.1.op.2
nat.conv_to_avg@cells.1.layers.2.op.2
nat.conv_to_sep@cells.2.layers.4.op.2
nat.conv_to_dil@cells.3.layers.4.op.2
nat.conv_to_conv@cells.4.layers.4.op.2 kernel=1
nat.conv_to_skip@cells.4.layers.1.op.2
nat.skip_to_null.of_three@cells.1.add2
nat.null_to_skip@cells.0.layers.1.op.null
nat.sep_to_dil@cells.2.layers.4.op.2
nat.avg_to_max@cells.1.layers.2.op.avg_pool
branch.drop@cells.0.add1
conv.low_rank@cells.12.layers.0.op.1 rank=8
"""


def test_a_cell_by_cell_transformation(archir: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    net, out = tmp_path / "net.arch", tmp_path / "out.arch"
    shutil.copy(EXAMPLES / "nasbench201.arch", net)
    script = tmp_path / "script.txt"
    script.write_text(SCRIPT, encoding="utf-8")
    answer = archir("rewrite", net, "--init", "0", "--script", script, "-o", out, "--json")
    assert answer.status == 0, answer.out
    document = answer.document
    assert len(document["uses"]) == 12
    assert document["params"][1] < document["params"][0]
    assert document["macs"][1] < document["macs"][0]
    assert document["drift"]["finite"]
    assert document["drift"]["value"] > 1e-3  # it is no morphism, and does not say so
    assert archir("verify", out).status == 0
    assert archir("export", out, "-o", tmp_path / "out.onnx").status == 0
