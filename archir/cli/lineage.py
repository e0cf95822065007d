"""``archir lineage``: the steps that a network came by, and its ancestors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.cli.difference import step_texts
from archir.cli.options import memory
from archir.diag import ArchirError, Source, error
from archir.files import read_source
from archir.lang import load
from archir.ops import installed_ops
from archir.ops.cost import cost

if TYPE_CHECKING:
    from archir.proof.certificate import Certificate, Step
    from archir.proof.lineage import Lineage

HASH = 10
"""How many digits of a hash are printed."""


def lineage(file: str, step: int | None, output: str | None, clean: bool, force: bool) -> Report:
    """List the steps that a network came by, or bring back an ancestor.

    The chain is read from its certificate and is not replayed: `archir verify` does that.
    With --step N -o OUT the network of that step is made again, and must have its hashes.
    """
    from archir.api import certificate_path
    from archir.proof.certificate import read_certificate
    from archir.proof.lineage import Lineage, folders_of
    from archir.proof.lineage import spare as spare_of

    if (step is None) != (output is None):
        raise error("A609", "an ancestor is brought back by --step N -o OUTPUT")
    if step is not None and output is not None:
        return _ancestor(file, step, output, force=force)
    source = read_source(Path(file))
    certificate = read_certificate(certificate_path(Path(file)))
    folder, shared = folders_of(Path(file))
    held = Lineage(folders=(folder, shared))
    texts = {_end(certificate): source.text}
    steps = [_listed(n, s, texts, held, certificate) for n, s in enumerate(certificate.steps, 1)]
    spare = spare_of(certificate, folder)
    size = sum(path.stat().st_size for path in spare)
    if clean:
        for path in spare:
            path.unlink(missing_ok=True)
    kept = {path.name: path.stat().st_size for path in _files(folder) if path.is_file()}
    data = {
        "file": file,
        "steps": steps,
        "folder": str(folder),
        "shared": str(shared) if shared.is_dir() else None,
        "bytes": sum(kept.values()),
        "unreferenced": [path.name for path in spare],
        "unreferenced_bytes": size,
        "removed": clean,
    }
    return Report(data, _text(file, steps, data))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _end(certificate: Certificate) -> str:
    return certificate.steps[-1].after.text if certificate.steps else ""


def _listed(
    number: int,
    step: Step,
    texts: Mapping[str, str],
    held: Lineage,
    certificate: Certificate,
) -> dict[str, Any]:
    """A step as JSON values."""
    found: dict[str, Any] = {
        "step": number,
        "kind": step.kind,
        "said": _said(step),
        "text": step.after.text,
        "graph": step.after.graph,
        "weights": step.after.weights,
        "params": None,
        "macs": None,
        "lacking": [],
    }
    if step.kind == "rewrite":
        uses = [u for u in step.facts.get("uses", []) if isinstance(u, dict)]
        found["uses"] = [{k: u.get(k) for k in ("rule", "site", "arguments")} for u in uses]
        found["verdicts"] = [(u.get("verdict") or {}).get("kind") for u in uses]
    drift = step.facts.get("drift")
    found["drift"] = drift.get("value") if isinstance(drift, dict) else None
    lacking = held.lacking(step, last=number == len(certificate.steps))
    found["lacking"] = lacking
    try:
        text = texts.get(step.after.text) or held.text(step.after.text)
        graph = load(Source("parent.arch", text), installed_ops(), certificate.params).graph
    except ArchirError:
        return found
    total = cost(graph, installed_ops())
    return {**found, "params": total.params, "macs": total.macs}


def _said(step: Step) -> list[str]:
    facts = step.facts
    if step.kind == "undo":
        parts = [p for p in facts.get("parts", []) if isinstance(p, dict)]
        return [f"step {p.get('step')}, by its {p.get('how')}{_how_far(p)}" for p in parts]
    if step.kind == "rewrite":
        return step_texts(step)
    names = ("seed", "epochs", "data", "note", "source")
    return [", ".join(f"{n} {facts[n]}" for n in names if isinstance(facts.get(n), str | int))]


def _how_far(part: Mapping[str, Any]) -> str:
    return "" if part.get("exact") or part.get("how") != "inverse" else f", {part['residual']:.2%}"


def _text(file: str, steps: list[dict[str, Any]], data: Mapping[str, Any]) -> str:
    rows = []
    for found in steps:
        verdicts = [v or "" for v in found.get("verdicts", [])] or [""]
        said = found["said"] or [""]
        drift = "" if found["drift"] is None else f"{found['drift']:.1e}"
        params = "" if found["params"] is None else f"{found['params']:,}"
        weights = "none" if found["weights"] is None else found["weights"][:HASH]
        lack = "missing" if found["lacking"] else ""
        hashes = found["graph"][:HASH], weights
        head = (found["step"], found["kind"], said[0], verdicts[0])
        rows.append((*head, drift, params, *hashes, lack))
        rows += [
            ("", "", more, verdicts[i] if i < len(verdicts) else "", "", "", "", "", "")
            for i, more in enumerate(said[1:], 1)
        ]
    headers = ("step", "kind", "", "rule", "drift", "parameters", "graph", "weights", "")
    lines = [options.table(headers, rows, right=(0, 4, 5))]
    shared = f"; parents in {data['shared']} too" if data["shared"] else ""
    lines.append(f"{data['folder']}: {memory(data['bytes'])}{shared}")
    if data["unreferenced"]:
        count = len(data["unreferenced"])
        files = f"{count} file{'' if count == 1 else 's'} ({memory(data['unreferenced_bytes'])})"
        lines.append(
            f"removed {files} that no step needs"
            if data["removed"]
            else f"{files} that no step needs; --clean removes them"
        )
    if any(found["lacking"] for found in steps):
        lines.append(
            "some parents are missing: copy the .lineage folder along with the network; without "
            "it neither `verify` nor `undo` can go back beyond them"
        )
    return "\n".join(lines)


def _ancestor(file: str, step: int, output: str, *, force: bool) -> Report:
    from archir.api import check_output
    from archir.past import ancestor

    check_output(Path(output), force=force)
    network = options.network(file)
    made = ancestor(network, step)
    written = made.save(output, force=force)
    params = made.cost().params
    data = {"file": file, "step": step, "output": str(written), "params": params}
    said = f"wrote {written}: {file} as it was after step {step}, {params:,} parameters"
    return Report(data, said)


command = make(
    "lineage",
    options.file,
    click.option("--step", type=click.IntRange(1), metavar="N", help="Bring back this ancestor."),
    click.option("-o", "--output", type=click.Path(dir_okay=False), help="Where to write it."),
    click.option("--clean", is_flag=True, help="Remove parents that no step needs."),
    options.force,
    example="archir lineage wider.arch",
)(lineage)
