"""Published networks: imported bit for bit, rewritten at verified sites, exported.

The work is that of benchmarks/coverage.py, which takes all of torchvision's networks and a
hundred of timm's.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TORCHVISION = ("shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1")
TIMM = ("tinynet_e", "vit_tiny_patch16_224")


def load_work(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


pytest.importorskip("torchvision")
covered = load_work("covered")


def stages(name: str, *wanted: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}

    def note(stage: dict[str, Any]) -> None:
        found[stage["stage"]] = stage

    covered.cover(name, note, wanted or covered.EVERY)
    return found


def whole(found: dict[str, dict[str, Any]]) -> None:
    """Everything was done, and nothing was wrong."""
    assert {name: stage.get("why") for name, stage in found.items() if not stage["ok"]} == {}
    assert set(found) == {"import", *covered.EVERY}
    assert found["import"]["same"]
    assert found["import"]["carried"] == []
    assert found["export"]["batches"] == [1, 2, 7]
    for family in covered.FAMILIES:
        assert found[family]["modes"] == ["eval", "train"]
        assert found[family]["onnx"] <= 1e-4  # the gate's bound for float32


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    whole(stages(f"torchvision:{name}"))


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    pytest.importorskip("timm")
    found = stages(f"timm:{name}")
    whole(found)
    if name.startswith("vit"):
        assert found["deepen"]["rule"] == "transformer.insert_mlp"


def test_what_is_forgotten_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A running mean that the network does not take over makes it another."""
    redrawn = covered.redrawn

    def forgetful(module: Any, network: Any) -> Any:
        given, held = redrawn(module, network)
        path = next(path for path in held if path.endswith("running_mean"))
        return given, {**held, path: held[path] * 0}

    monkeypatch.setattr(covered, "redrawn", forgetful)
    found = stages("torchvision:shufflenet_v2_x0_5", "exact")
    assert not found["exact"]["ok"]
    assert "differs at batch 1" in found["exact"]["why"]
