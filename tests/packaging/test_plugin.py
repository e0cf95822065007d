"""A third party's package brings an operator, a rule and a backend; archir knows none of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from archir.diag import ArchirError
from archir.ops import BUILTIN, installed_ops
from archir.ops.record import OpSet
from archir.rewrite.library import installed as installed_rules

from .project import PYPROJECT, ROOT, build

USE = """
import numpy as np
from archir.ir.graph import GraphBuilder, Node, Output, Value
from archir.ir.types import TensorType
from archir.ops.arithmetic import Floating
from archir.ops.evaluate import run
from archir.ops import installed_ops
from archir.proof.exact import check_use
from archir.rewrite.library import installed as rules
from archir.rewrite.sites import Planner

ops = installed_ops()
library = rules(ops)
print(ops["sloped"].doc)
print(library["leak"].package, "deepen" in library)
builder = GraphBuilder("net", inputs=["x"])
type_ = TensorType("f32", (2, 3))
x = builder.add(Node("x", "input", {}, (), {}, (type_,)))
builder.outputs.append(Output("y", builder.add(Node("r", "relu", {}, (x,), {}, (type_,)))))
plan = Planner(builder.build(), ops).plan(library["leak"], "r", {})
print(*(check_use(plan, ops, mode).equal for mode in ("eval", "train")))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "tests" / "plugin", place / "source")
    with zipfile.ZipFile(build("wheel", place / "source", place)) as content:
        content.extractall(place / "site")
    return place / "site"


def test_a_package_is_found_once_it_is_installed(site: Path, tmp_path: Path) -> None:
    assert run(site, tmp_path, "-c", USE).splitlines() == [
        "x where it is positive, else slope * x.",
        "archir-example True",
        "True True",
    ]


NET = """version 1

arch net {
    input image: f32[N, 1, 4, 4]
    x = image |> flatten |> fc1: linear(6) |> relu |> sloped(0.25)
    output logits = x |> fc2: linear(3)
}
"""
RUN = """
import sys
import numpy as np
import archir
from archir.target import backends

network = archir.load(sys.argv[1])
image = np.random.default_rng(0).standard_normal((5, 1, 4, 4), np.float32)
found = [
    backends()[name].forward(network.graph, network.weights, {"image": image})[0]
    for name in ("plain", "torch", "onnx")
]
print(max(float(np.abs(found[0] - other).max()) for other in found[1:]) < 1e-6)
try:
    conv = archir.load(sys.argv[2]).init(0)
    backends()["plain"].forward(conv.graph, conv.weights, {"image": image})
except archir.ArchirError as refusal:
    print(refusal.diagnostics[0].message)
"""
CONV = NET.replace("flatten |> fc1: linear(6)", "conv1: conv(6)").replace(
    "x |> fc2", "x |> flatten |> fc2"
)


def run(site: Path, place: Path, *words: str) -> str:
    """What a command prints where the package is installed."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_it_brings_works_like_what_is_built_in(site: Path, tmp_path: Path) -> None:
    (tmp_path / "net.arch").write_text(NET)
    (tmp_path / "conv.arch").write_text(CONV)
    archir = ("-m", "archir")
    said = run(site, tmp_path, *archir, "prove", "leak", "deepen.sloped")
    assert [line.split()[2] for line in said.splitlines()[2:6]] == ["tested"] * 2 + ["proved"] * 2
    assert "leak" in run(site, tmp_path, *archir, "rules", "net.arch")
    rewrite = ("rewrite", "net.arch", "--init", "0", "--rule", "leak", "-o", "leaky.arch")
    assert "in eval, train" in run(site, tmp_path, *archir, *rewrite)
    wide = ("rewrite", "leaky.arch", "--rule", "widen", "--at", "fc1", "--set", "width=9")
    said = run(site, tmp_path, *archir, *wide, "-o", "wide.arch")
    assert "rule tested; this use equal" in said  # its lemmas did not speak of `sloped`
    assert "verified" in run(site, tmp_path, *archir, "verify", "wide.arch")
    run(site, tmp_path, *archir, "export", "wide.arch", "-o", "wide.onnx")
    assert "backend plain: ok, without" in run(site, tmp_path, *archir, "doctor")
    lines = run(site, tmp_path, "-c", RUN, "wide.arch", "conv.arch").splitlines()
    assert lines == ["True", "plain cannot run `conv`: this backend is for multilayer perceptrons"]


def test_archirs_own_operators_come_in_by_the_same_door() -> None:
    assert set(installed_ops()) >= {op.name for op in BUILTIN}
    assert PYPROJECT["project"]["entry-points"]["archir.ops"] == {"builtin": "archir.ops:BUILTIN"}
    assert "archir.rewrites" in PYPROJECT["project"]["entry-points"]["archir.rules"].values()
    assert {"deepen", "deepen.batch_norm", "widen"} <= set(installed_rules(OpSet(BUILTIN)))


MODULE = """
import dataclasses
from archir.ops import BUILTIN
AGAIN = [dataclasses.replace(BUILTIN[1])]
NUMBERS = [1, 2]
NONE = None
"""


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("plugged:AGAIN", f"both offer an operator `{BUILTIN[1].name}`"),
        ("plugged:NUMBERS", "'int' object has no attribute"),
        ("plugged:NONE", "not iterable"),
        ("plugged:ABSENT", "ABSENT"),
        ("nowhere:OPS", "nowhere"),
    ],
)
def test_packages_that_are_wrong(
    value: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugged.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plugged", raising=False)
    own = EntryPoint("builtin", "archir.ops:BUILTIN", "archir.ops")
    points = [own, EntryPoint("other", value, "archir.ops")]
    monkeypatch.setattr("archir.ops.entry_points", lambda group: points)
    with pytest.raises(ArchirError) as caught:
        installed_ops.__wrapped__()
    (found,) = caught.value.diagnostics
    assert found.code == "A640"
    assert says in found.message
