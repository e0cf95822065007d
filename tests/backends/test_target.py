"""Backends are found through entry points, and what is missing is said."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from archir.diag import ArchirError
from archir.target import GROUP, backends


def point(name: str, value: str, package: str = "archir") -> Any:
    made = EntryPoint(name, value, GROUP)
    made._for(SimpleNamespace(name=package))  # type: ignore[attr-defined]
    return made


def test_the_installed_ones() -> None:
    found = backends()
    assert sorted(found) == ["onnx", "torch"]
    assert "torch" in found
    assert "tpu" not in found
    for backend in found.values():
        assert not set(backend.LOWER) & set(backend.UNSUPPORTED)
        assert callable(backend.forward)
    assert found["torch"] is found["torch"]


def test_listing_them_imports_nothing() -> None:
    code = (
        "import sys; from archir.target import backends; assert len(backends()) == 2;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'onnxruntime')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("made", "hint"),
    [
        (point("torch", "a_missing_framework.x"), "pip install 'archir[torch]'"),
        (point("mine", "a_missing_framework.x", "mine"), "pip install a_missing_framework"),
        (point("torch", "archir.backends.gone"), "install archir again"),
        (point("torch", "archir.target:gone"), "install archir again"),
    ],
)
def test_what_cannot_be_imported(made: Any, hint: str) -> None:
    found = backends([made])
    with pytest.raises(ArchirError) as caught:
        found[made.name]
    (diagnostic,) = caught.value.diagnostics
    assert (diagnostic.code, diagnostic.hint, caught.value.status) == ("A503", hint, 3)


def test_an_unknown_backend() -> None:
    with pytest.raises(ArchirError, match=r"A503: .*`tpu` \(installed: onnx, torch\)"):
        backends()["tpu"]


def test_two_of_one_name() -> None:
    both = [point("torch", "a.b", "first"), point("torch", "c.d", "second")]
    with pytest.raises(ArchirError, match=r"A504: .*first \(a.b\) and second \(c.d\)"):
        backends(both)
    assert list(backends([both[0], both[0]])) == ["torch"]
