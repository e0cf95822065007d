"""The wheel, built from the sdist: what is in it, and that it works away from the repository."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from .project import FOLDERS, ROOT, SETUPTOOLS, build, modules

pytestmark = pytest.mark.xdist_group("wheel")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    clone = place / "clone"
    # what git tracks or would track, so that no left-over build output hides a missing file
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    with tarfile.open(build("sdist", clone, place)) as sdist:
        # Python 3.11.0 to 3.11.3 do not know the filter yet
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        sdist.extractall(place / "sdist", **safe)
    (source,) = (place / "sdist").iterdir()
    return build("wheel", source, place)


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(place)
    return place


def expected() -> set[str]:
    found = set()
    for module, path in modules().items():
        folder = module.replace(".", "/")
        found.add(f"{folder}/__init__.py" if path.name == "__init__.py" else f"{folder}.py")
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            folder = FOLDERS.get(package, package.replace(".", "/"))
            for path in (ROOT / folder).glob(pattern):
                found.add(f"{package.replace('.', '/')}/{path.name}")
    return found


def test_the_wheel_holds_every_module_and_nothing_else(installed: Path) -> None:
    files = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    code = {name for name in files if ".dist-info/" not in name}
    assert code == expected()
    assert {name.partition("/")[0] for name in code} == {"archir"}
    assert {"archir/py.typed", "archir/grammar/arch.lark"} <= code


def test_the_wheel_carries_licence_and_entry_points(installed: Path) -> None:
    (info,) = installed.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    points = configparser.ConfigParser()
    points.read(info / "entry_points.txt")
    assert set(points) - {"DEFAULT"} == {
        "console_scripts",
        "archir.importers",
        "archir.ops",
        "archir.rules",
        "archir.backends",
        "archir.formats",
        "archir.strategies",
    }


def test_the_wheel_works_by_itself(installed: Path, tmp_path: Path) -> None:
    code = (
        "import archir, archir.grammar, archir.rewrites, archir.backends, archir.ops\n"
        "from archir.target import backends\n"
        "print(archir.__file__)\n"
        "print(*sorted(backends()), len(archir.ops.STANDARD) > 10)\n"
    )
    done = subprocess.run(
        # -P: the folder it runs in is not on the path
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, found = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed)
    assert found == "onnx torch True"
