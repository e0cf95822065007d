"""Imports point down the list of layers; the mapped folders count under their installed names."""

from __future__ import annotations

import pytest

from .project import imports, modules

LAYERS = [
    ["archir.grammar", "archir.examples"],
    ["archir.diag", "archir.codes", "archir.files"],
    ["archir.ir"],
    ["archir.ops"],
    ["archir.lang", "archir.render"],
    ["archir.weights"],
    ["archir.rewrite"],
    ["archir.proof"],
    ["archir.target"],
    [
        "archir.api",
        "archir.applying",
        "archir.cleaning",
        "archir.exporting",
        "archir.importing",
        "archir.loading",
        "archir.measure",
        "archir.past",
        "archir.refitting",
        "archir.saving",
    ],
    ["archir.rewrites"],
    ["archir.backends"],
    ["archir.train"],
    ["archir.search"],
    ["archir.cli", "archir", "archir.__main__"],
]
CONTENT = ["archir.examples", "archir.grammar", "archir.rewrites", "archir.backends"]
"""Found through entry points or as files: imported by nothing but themselves."""


def inside(module: str, package: str) -> bool:
    return module == package or (package != "archir" and module.startswith(package + "."))


def layer(module: str) -> int:
    (found,) = [i for i, names in enumerate(LAYERS) if any(inside(module, n) for n in names)]
    return found


def wrong(module: str, targets: list[str]) -> list[str]:
    """What a module may not import, with the reason."""
    found = []
    for target in targets:
        if target.partition(".")[0] != "archir":
            continue
        if layer(target) > layer(module):
            found.append(f"{module} imports {target}, which lies above it")
        owner = next((c for c in CONTENT if inside(target, c)), None)
        if owner is not None and not inside(module, owner):
            found.append(f"{module} imports {target}, which is content")
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module: str) -> None:
    assert wrong(module, imports(module, modules()[module])) == []


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("archir.ir.graph", "archir.ops.record", False),
        ("archir.cli.main", "archir.rewrites", False),
        ("archir.rewrites.helpers", "archir.backends.onnx", False),
        ("archir.backends.onnx", "archir.backends.torch_fx", True),
        ("archir.ops.record", "archir", False),
        ("archir.ops.record", "archir.ir.graph", True),
        ("archir.ops.record", "numpy", True),
    ],
)
def test_the_test_notices(module: str, target: str, allowed: bool) -> None:
    assert (wrong(module, [target]) == []) == allowed


def test_networkx_is_known_in_one_file() -> None:
    knows = [
        module
        for module, path in modules().items()
        if any(name.partition(".")[0] == "networkx" for name in imports(module, path))
    ]
    assert knows == ["archir.ir.graph"]
