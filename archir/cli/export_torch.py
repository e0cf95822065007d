"""``archir export --format torch``: a Python file and its weights, for people without archir."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archir.cli.common import Report
from archir.diag import error
from archir.ir.graph import Value
from archir.lang import tree as t
from archir.lang.outline import block_names
from archir.lang.program import Program, Tensor

if TYPE_CHECKING:
    from archir.api import Network

_FOREIGN = (".arch", ".onnx", ".safetensors", ".json", ".pt", ".pth", ".pt2")


def export_torch(network: Network, output: str, *, force: bool) -> Report:
    """Write a network as a Python file that needs torch alone.

    Args:
        network: The network, with its weights.
        output: A file that ends in ``.py``, or a folder, which then gets ``model.py``.
        force: Whether files may be replaced.

    Raises:
        ArchirError: A560, A561, A562 (see the torch backend), A602, A603.
    """
    from archir.target import backends

    backend: Any = backends()["torch"]
    with _folder(_target(output)) as target:
        found = backend.write_source(
            network.graph,
            network.weights,
            target,
            ops=network.ops,
            blocks=block_names(network.program.origins),
            values=_values(network.program),
            about=_about(network),
            force=force,
        )
    text = (
        f"wrote {found.path}: {found.lines} lines, {found.classes} classes; {found.weights}\n"
        f"  run by itself: the same bits as the network at batch "
        f"{', '.join(map(str, found.batches))}"
    )
    text += ", and in train mode" if found.train else " (it does not run in train mode)"
    return Report(found.to_json(), text)


def _target(output: str) -> Path:
    path = Path(output)
    if path.suffix == ".py":
        return path
    if path.suffix in _FOREIGN or (path.exists() and not path.is_dir()):
        raise error(
            "A602",
            f"cannot write {output}: that is no name for a Python file or a folder",
            hint="-o model.py, or -o FOLDER for FOLDER/model.py",
        )
    return path / "model.py"


@contextlib.contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """Make the folder of a target that has none; where nothing gets into it, it goes again."""
    folder = target.parent
    made = not folder.exists() and folder.parent.is_dir()
    if made:
        folder.mkdir()
    try:
        yield target
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _values(program: Program) -> Mapping[str, Mapping[str, Value]]:
    """By the path of a block's instance (or the arch), what the names in its text stand for."""
    found: dict[str, dict[str, Value]] = {}
    for origin in program.origins.values():
        scope = origin.scope.instance
        while scope.path not in found:
            if isinstance(scope.block, t.Block | t.Arch):
                found[scope.path] = {
                    name: Value(value.draft.path, value.port)
                    for name, value in scope.env.items()
                    if isinstance(value, Tensor)
                }
            if scope.parent is None:
                break
            scope = scope.parent.instance
    return found


def _about(network: Network) -> list[str]:
    """Lines on the network's source and certificate."""
    from archir import __version__
    from archir.proof.certificate import state_of

    steps = network.certificate.steps
    lines = [f"Written by archir {__version__}."]
    if network.path is not None:
        lines = [f"Written from {network.path.name} by archir {__version__}."]
    for step in steps[:1]:
        source = step.facts.get("source") if step.kind == "import" else None
        if source is not None:
            lines.append(f"Imported from {source}.")
    if steps and steps[-1].after == state_of(network.text, network.graph, network.weights):
        lines.append(f"Certificate, sha256 of its last step: {steps[-1].digest}")
    return lines
