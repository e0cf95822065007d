"""Training in two processes: the numbers, one voice, and an end for all when one ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
FILES = ["best.safetensors", "last.safetensors", "metrics.jsonl", "run.json", "timings.jsonl"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``processes.py`` reports: all its pieces of work, as importing torch takes longest."""
    done = subprocess.run(
        [sys.executable, HERE / "processes.py", tmp_path_factory.mktemp("processes")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


pytestmark = pytest.mark.xdist_group("processes")


def found(reports: dict[str, Any], name: str) -> list[Any]:
    report = reports[name]
    assert report["status"] == [0] * len(report["status"]), report["stderr"]
    assert not any(report["stderr"])
    return list(report["found"])


def test_two_halves_are_one_batch(reports: dict[str, Any]) -> None:
    first, second = found(reports, "against_one")
    (alone,) = found(reports, "one")
    assert first["weights"] == second["weights"]
    assert first["files"] == alone["files"] == FILES
    assert first["steps"] == alone["steps"] == 2 * (150 // 32)
    for path, wanted in alone["weights"].items():
        off = np.abs(np.array(first["weights"][path]) - np.array(wanted)).max()
        assert off < 1e-5, path  # sums in another order
    assert np.allclose(first["losses"], alone["losses"], rtol=0, atol=1e-5)


def test_against_ddp_by_hand(reports: dict[str, Any]) -> None:
    for each in found(reports, "by_hand"):
        assert each == {"off": 0.0, "average off": 0.0, "statistics off": 0.0}


def test_resuming(reports: dict[str, Any]) -> None:
    for each in found(reports, "resumed"):
        assert each == {"same files": [True] * 4, "off": 0.0}


def test_what_one_refuses_all_refuse(reports: dict[str, Any]) -> None:
    for each in found(reports, "refused"):
        assert each == {
            "new": "",
            "again": "A603",
            "other": "A638",
            "odd batch": "A632",
            "no device": "A630",
            "one image": "A632",
            "damaged": "A637",
        }


# ---- the command


def test_one_report_and_one_set_of_files(reports: dict[str, Any]) -> None:
    report = reports["fine"]
    assert report["status"] == [0, 0]
    first, second = report["stdout"]
    assert json.loads(first)["output"] == "out.arch"
    assert second == report["stderr"][1] == ""
    assert [line.split()[0] for line in report["stderr"][0].splitlines()] == [
        "training",
        "epoch",
        "epoch",
    ]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("no file", "A620", "nobody.npz"),
        ("no recipe", "A632", "lr is -1.0"),
        ("astray", "A631", "the loss is nan"),
        ("fails", "A673", "on purpose"),
        ("no memory", "A633", "cpu has not enough memory"),
    ],
)
def test_an_error_is_said_once(reports: dict[str, Any], name: str, code: str, said: str) -> None:
    report = reports[name]
    assert not report["hung"]
    assert report["status"] == [2, 2]
    (told,) = [text for text in report["stdout"] if text]  # by whichever failed first
    (diagnostic,) = json.loads(told)["diagnostics"]
    assert diagnostic["code"] == code
    assert said in diagnostic["message"]
    assert "Traceback" not in "".join(report["stderr"])


def test_a_process_that_is_killed_ends_the_other(reports: dict[str, Any]) -> None:
    report = reports["is killed"]
    assert not report["hung"]
    assert report["status"] == [2, -9]
    (diagnostic,) = json.loads(report["stdout"][0])["diagnostics"]
    assert diagnostic["code"] == "A639"
    assert "another process ended" in diagnostic["message"]
    assert ".cc:" not in diagnostic["message"]


def test_processes_that_do_not_meet(reports: dict[str, Any]) -> None:
    alone = reports["no partner"]
    assert not alone["hung"]
    assert alone["status"] == [2, 0]
    taken = reports["port taken"]
    assert not taken["hung"]
    assert taken["status"] == [2, 0]
    wrong = reports["bad numbers"]
    assert wrong["status"] == [2, 2]
    for text in (alone["stdout"][0], taken["stdout"][0], *wrong["stdout"]):
        (diagnostic,) = json.loads(text)["diagnostics"]
        assert diagnostic["code"] == "A639"
        assert "cannot be joined" in diagnostic["message"]


def test_torchrun(tmp_path: Path) -> None:
    shutil.copy(HERE.parents[1] / "examples" / "digits.arch", tmp_path / "net.arch")
    launcher = Path(sys.executable).with_name("torchrun")
    words = f"{launcher} --standalone --nproc-per-node 2 -m archir train net.arch --data digits"
    done = subprocess.run(
        [
            *words.split(),
            *["--device", "cpu", "--epochs", "2", "--run-dir", "run", "--json", "-o", "out.arch"],
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["history"][-1]["validation_accuracy"] > 0.8
    assert done.stderr.count("epoch 2/2") == 1
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == FILES
    assert (tmp_path / "out.safetensors").exists()
