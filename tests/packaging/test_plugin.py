"""A third party's package brings an operator and a rule, without a line in archir knowing it."""

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
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "x where it is positive, else slope * x.",
        "archir-example True",
        "True True",
    ]


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
