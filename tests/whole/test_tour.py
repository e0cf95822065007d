"""The tour, as a newcomer takes it: one command in an empty folder."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir as package

Archir = Callable[..., Any]
SECONDS = 150
"""Of processor time, which other tests beside this one hardly change: two cores take half."""
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("tour")]
NETWORKS = ("net", "trained", "deeper", "wider", "final")


def children() -> float:
    """Processor time of finished child processes, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Its folder, its document, and what it said on the way."""
    folder = tmp_path_factory.mktemp("tour")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP")}
    began = children()
    done = subprocess.run(
        [sys.executable, "-m", "archir", "tour", "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert children() - began < SECONDS
    return folder / "runs" / "tour", json.loads(done.stdout), done.stderr


def test_files(tour: tuple[Path, dict[str, Any], str]) -> None:
    folder, document, _ = tour
    assert document["folder"] == "runs/tour"
    for name in NETWORKS:
        assert (folder / f"{name}.arch").is_file()
    for name in NETWORKS[1:]:
        assert (folder / f"{name}.safetensors").stat().st_size > 50_000
        assert (folder / f"{name}.cert.json").is_file()
    assert (folder / "final.onnx").stat().st_size > 50_000


def test_every_command_is_shown_as_it_is_typed(tour: tuple[Path, dict[str, Any], str]) -> None:
    _, document, said = tour
    typed = re.findall(r"^\$ archir (.*)$", said, re.MULTILINE)
    assert [shlex.split(line) for line in typed] == [s["command"] for s in document["steps"]]
    verbs = [step["command"][0] for step in document["steps"]]
    assert verbs[:2] == ["new", "check"]
    assert verbs.count("train") == 2
    assert {"rules", "eval", "verify", "export"} <= set(verbs)
    rewrites = [step for step in document["steps"] if step["command"][0] == "rewrite"]
    rules = [use["rule"] for step in rewrites for use in step["uses"]]
    assert rules[:2] == ["deepen", "widen"]
    for step in rewrites:
        assert step["equal"]
        assert step["drift"]["value"] < 1e-5


def test_no_prediction_changes(
    archir: Archir, tour: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, document, said = tour
    monkeypatch.chdir(folder)
    found = {
        name: archir("eval", f"{name}.arch", "--json").document["predictions"]
        for name in NETWORKS[1:]
    }
    assert len(found["trained"]) >= 300
    assert found["trained"] == found["deeper"] == found["wider"]
    assert found["final"] != found["wider"]  # it trained on
    (compared,) = [s for s in document["steps"] if "--against" in s["command"]]
    assert compared["same_predictions"] == compared["count"] == len(found["wider"])
    assert "to the last image" in said
    accuracy = {Path(n["file"]).stem: n["accuracy"] for n in document["networks"]}
    assert accuracy["trained"] == accuracy["wider"] > 0.9
    assert accuracy["final"] > 0.9


def test_everything_is_verified(
    archir: Archir, tour: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tour[0])
    for name in NETWORKS[1:]:
        assert archir("verify", f"{name}.arch").status == 0


def test_onnx_runtime_agrees(
    archir: Archir, tour: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    from archir.train.data import load_data, normalise

    monkeypatch.chdir(tour[0])
    predictions = archir("eval", "final.arch", "--json").document["predictions"]
    images = normalise(package.load("final.arch").graph, load_data("digits").test.x)
    session = onnxruntime.InferenceSession("final.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    assert np.argmax(logits, axis=1).tolist() == predictions


def test_a_second_tour_gets_a_folder_of_its_own(tour: tuple[Path, dict[str, Any], str]) -> None:
    from archir.cli.tour import _free

    assert _free(tour[0]).name == "tour-2"
