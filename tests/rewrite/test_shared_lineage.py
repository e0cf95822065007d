"""A folder `lineage` beside networks that keeps the parents of all of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir
from archir.api import Network
from archir.diag import ArchirError
from archir.proof.lineage import folder_of

Archir = Callable[..., Any]

TEXT = """\
version 1
arch toy {
    input image: f32[N, 1, 4, 4]
    stem = image |> conv: conv(4, 3) |> relu
    output logits = stem |> global_avg_pool |> fc: linear(3)
}
"""


def trained(network: Network, by: float) -> Network:
    """As after training: other weights, and a step that only its hashes speak for."""
    weights = {k: (a + by).astype(np.float32) for k, a in (network.weights or {}).items()}
    return network.with_weights(weights, "train", {"epochs": 1})


@pytest.fixture
def members(tmp_path: Path) -> Path:
    """Two children of one parent, trained each in its own way."""
    folder = tmp_path / "members"
    folder.mkdir()
    (tmp_path / "toy.arch").write_text(TEXT, "utf-8")
    parent = trained(archir.load(tmp_path / "toy.arch").init(0), 0.01)
    wide = parent.rewrite("widen", "stem.conv", width=6)
    for number, by in enumerate((0.02, 0.03)):
        made = trained(wide, by).rewrite("deepen", "stem.relu")
        made.save(folder / f"000{number}.arch", lineage=folder / "lineage")
    return folder


def whole(file: Path) -> bool:
    return all(found.holds for found in archir.load(file).verify())


def test_parents_are_kept_once(members: Path) -> None:
    assert not list(members.glob("*.lineage"))
    texts = sorted((members / "lineage").glob("*.arch"))
    tensors = sorted((members / "lineage").glob("*.safetensors"))
    # texts: the parent and the wide one; weights: the parent's, and each child's after its training
    assert (len(texts), len(tensors)) == (2, 3)
    for file in members.glob("0*.arch"):
        assert whole(file)
    before = {p: p.stat().st_mtime_ns for p in (members / "lineage").iterdir()}
    archir.load(members / "0000.arch").save(members / "0002.arch", lineage=members / "lineage")
    assert {p: p.stat().st_mtime_ns for p in (members / "lineage").iterdir()} == before


def test_the_command_line_finds_them(archir: Archir, members: Path) -> None:
    file = members / "0001.arch"
    assert archir("verify", file).status == 0
    found = archir("lineage", file, "--json").document
    assert not any(step["lacking"] for step in found["steps"])
    assert found["shared"] == str(members / "lineage")
    assert f"parents in {members / 'lineage'} too" in archir("lineage", file).out
    assert archir("undo", file, "-o", members / "back.arch").status == 0
    assert archir("verify", members / "back.arch").status == 0
    older = members / "older.arch"
    assert archir("lineage", file, "--step", 2, "-o", older).status == 0
    assert archir("verify", older).status == 0
    said = archir("diff", members / "0000.arch", file, "--json").document
    assert said["equal"] is False


def test_what_others_need_is_not_spare(archir: Archir, members: Path) -> None:
    before = {p.name for p in (members / "lineage").iterdir()}
    found = archir("lineage", members / "0000.arch", "--clean", "--json").document
    assert found["unreferenced"] == []
    assert {p.name for p in (members / "lineage").iterdir()} == before
    assert whole(members / "0001.arch")


def test_a_network_that_is_saved_elsewhere_takes_its_parents_along(
    members: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    best = archir.load(members / "0001.arch").save(elsewhere / "best.arch")
    shutil.rmtree(members)
    assert whole(best)
    own = sorted(p.suffix for p in folder_of(best).iterdir())
    assert own == [".arch", ".arch", ".safetensors", ".safetensors"]


def test_a_further_folder(members: Path, tmp_path: Path) -> None:
    """As of an evaluation in a folder of its own, which shares the parents of the members."""
    work = tmp_path / "work"
    work.mkdir()
    network = archir.load(members / "0000.arch")
    start = network.save(work / "start.arch", lineage=members / "lineage")
    assert [p.name for p in work.iterdir() if p.is_dir()] == []
    assert all(f.holds for f in archir.load(start, lineage=members / "lineage").verify())
    assert any("missing" in f.detail for f in archir.load(start).verify() if not f.holds)


@pytest.mark.parametrize("suffix", [".arch", ".safetensors"])
def test_a_shared_parent_that_is_gone_or_was_changed(members: Path, suffix: str) -> None:
    for parent in (members / "lineage").glob(f"*{suffix}"):
        parent.write_bytes(parent.read_bytes()[:-1] + b"~")
    assert not whole(members / "0000.arch")
    for parent in (members / "lineage").glob(f"*{suffix}"):
        parent.unlink()
    assert not whole(members / "0000.arch")
    with pytest.raises(ArchirError, match="A404"):
        archir.load(members / "0000.arch").save(members.parent / "copy.arch")
    assert not (members.parent / "copy.arch").exists()


def test_a_folder_that_cannot_be_made(members: Path) -> None:
    network = archir.load(members / "0000.arch")
    with pytest.raises(ArchirError, match="A602"):
        network.save(members / "x.arch", lineage=members / "absent" / "lineage")
    assert not (members / "x.arch").exists()
