"""What the repository promises about itself."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import archir

from .project import FOLDERS, PYPROJECT, ROOT, SETUPTOOLS, modules

LONGEST = 600


def test_every_package_is_listed() -> None:
    found = {module for module, path in modules().items() if path.name == "__init__.py"}
    assert set(SETUPTOOLS["packages"]) == found


def owner(package: str, folder: str, file: Path) -> str:
    """The package in whose folder a file lies."""
    return ".".join([package, *file.parent.relative_to(ROOT / folder).parts])


def test_every_file_beside_the_code_is_installed() -> None:
    patterns = SETUPTOOLS["package-data"]
    left_out = [
        str(path.relative_to(ROOT))
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and path.suffix not in (".py", ".pyc")
        and not any(
            path.match(pattern) for pattern in patterns.get(owner(package, folder, path), [])
        )
    ]
    assert left_out == []


@pytest.mark.parametrize("folder", [*FOLDERS.values(), "tests", "benchmarks"])
def test_no_file_is_long(folder: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_the_pins_are_the_same_everywhere() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    uv = PYPROJECT["tool"]["uv"]
    assert pins == sorted(pins, key=lambda pin: pin.split("=="))
    assert pins == uv["constraint-dependencies"]
    assert set(uv["build-constraint-dependencies"]) <= set(pins)
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", pin) for pin in pins)


def test_what_is_required_directly_is_pinned() -> None:
    project = PYPROJECT["project"]
    required = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
        *PYPROJECT["dependency-groups"]["dev"],
    ]
    names = {re.split(r"[<>=;\[ ]", line)[0] for line in required} - {"archir"}
    pins = PYPROJECT["tool"]["uv"]["constraint-dependencies"]
    assert names <= {pin.partition("==")[0] for pin in pins}
    assert not [line for line in project["dependencies"] if "==" in line]  # users are not bound


def test_the_version_is_the_newest_of_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert sections[0] == PYPROJECT["project"]["version"] == metadata.version("archir")


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme, script = ((ROOT / name).read_text() for name in ("README.md", ".ci/run"))
    for command in ("pip install uv && uv run archir tour", "pip install uv && uv run pytest"):
        assert command in readme
    assert "uv run pytest" in script


IMPORTED = """
import sys, time
start = time.perf_counter()
import archir
print(time.perf_counter() - start)
heavy = {"torch", "onnx", "onnxruntime", "egglog", "sklearn", "networkx", "lark", "rich"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_the_import_is_quick_and_light() -> None:
    times = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True
        )
        seconds, heavy = done.stdout.splitlines()[:2] if "\n" in done.stdout else ("9", "?")
        assert heavy == ""
        times.append(float(seconds))
    assert min(times) < 0.3


def test_the_public_names() -> None:
    # What users may rely on: a change here is a change of the interface.
    public = {"Application", "ArchirError", "Network", "__version__"}
    public |= {"import_network", "load", "rewrite"}
    assert sorted(archir.__all__) == sorted(public)
    for name in public:
        assert getattr(archir, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        archir.lode  # noqa: B018 - the access is the test
    groups = PYPROJECT["project"]["entry-points"]
    assert {group: set(points) for group, points in groups.items()} == {
        "archir.ops": {"builtin"},
        "archir.rules": {"builtin"},
        "archir.backends": {"torch", "onnx"},
        "archir.formats": {"svg", "dot"},
        "archir.importers": {"torchvision", "timm", "py", "pt2", "onnx"},
        "archir.strategies": {"nash", "random", "rwe", "eas", "eas_random", "nat"},
    }


def test_doctests() -> None:
    tried = 0
    for module in modules():
        if module.rpartition(".")[2] == "__main__":
            continue
        failed, count = doctest.testmod(importlib.import_module(module))
        assert failed == 0, module
        tried += count
    assert tried > 0
