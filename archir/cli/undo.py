"""``archir undo``: take back the last rewrites of a network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.cli.difference import step_texts
from archir.cli.options import human
from archir.diag import error

if TYPE_CHECKING:
    from archir.api import Network
    from archir.past import Reverted
    from archir.proof.undo import Part

SHOWN = 8
"""Of how many parameters the distance is printed, the largest first."""


def undo(
    file: str,
    output: str | None,
    steps: int,
    approximate: bool,
    to_parent: bool,
    dry_run: bool,
    force: bool,
    weights: str | None,
) -> Report:
    """Take back the last rewrites of a network with a certificate.

    Where nothing happened since, the parent comes back bit for bit. After training it is found
    by the rule's map read backwards, which keeps the function if the present weights are an
    image under the map; how far they are from that is measured and said.
    """
    from archir.api import check_output, engine
    from archir.past import undo as take_back
    from archir.saving import optimizer_path

    if output is None and not dry_run:
        raise error("A609", "nothing says where to write", hint="-o OUTPUT, or --dry-run")
    if approximate and to_parent:
        raise error("A609", "--approximate and --to-parent exclude each other")
    if output is not None and not dry_run:
        check_output(Path(output), force=force)
    network = options.network(file, weights=weights)
    with options.spinner("taking back"):
        done = take_back(
            network,
            engine(),
            steps=steps,
            approximate=approximate or dry_run,
            to_parent=to_parent,
        )
        written = None
        if output is not None and not dry_run:
            written = done.network.save(output, force=force)
    refused = dry_run and not (approximate or to_parent or done.undone.exact)
    lost = optimizer_path(Path(file)).is_file()
    data = {**_data(network, done, written), "optimizer_left": lost}
    text = _text(network, done, written, refused=refused)
    text += "\nthe optimizer's state is not taken back: the result has none" if lost else ""
    return Report(data, text, int(refused))


def _data(network: Network, done: Reverted, written: Path | None) -> dict[str, Any]:
    sides = network.cost(), done.network.cost()
    parts = [
        {
            **part.facts(),
            "parameters": dict(sorted(part.parameters.items(), key=lambda item: -item[1])),
            "uses": [{k: u[k] for k in ("rule", "site", "arguments")} for u in _uses(part)],
        }
        for part in done.undone.parts
    ]
    return {
        "output": None if written is None else str(written),
        "undone": parts,
        "exact": done.undone.exact,
        "modes": list(done.modes),
        "since": [{"step": n, "kind": step.kind} for n, step in done.undone.since],
        "drift": None if done.drift is None else asdict(done.drift),
        "params": [side.params for side in sides],
        "macs": [side.macs for side in sides],
    }


def _uses(part: Part) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = part.step.facts["uses"]
    return found


def _text(network: Network, done: Reverted, written: Path | None, *, refused: bool) -> str:
    lines = []
    for part in done.undone.parts:
        lines += [f"step {part.number}: {said}" for said in step_texts(part.step)]
        lines += [f"  {said}" for said in _said(part, done)]
    for number, step in done.undone.since:
        lost = done.undone.parts[-1].how == "parent"
        lines.append(f"step {number}: {step.kind}, {'lost' if lost else 'kept'}")
    if done.drift is not None:
        lines.append(
            f"drift max|a-b|/max|a| = {done.drift.value:.1e} ({done.drift.engine}, float32)"
        )
    sides = network.cost(), done.network.cost()
    lines.append(
        f"parameters {sides[0].params:,} -> {sides[1].params:,}, "
        f"MACs {human(sides[0].macs)} -> {human(sides[1].macs)}"
    )
    if refused:
        lines.append("not exact: it would be refused without --approximate")
    if written is not None:
        lines.append(f"wrote {written}")
    return "\n".join(lines)


def _said(part: Part, done: Reverted) -> list[str]:
    if part.how == "lineage":
        return ["nothing happened since: its parent, bit for bit"]
    if part.how == "parent":
        return ["its parent, bit for bit, as it was before the rewrite"]
    if part.exact:
        return [f"the weights are its image: the same function in {', '.join(done.modes)}"]
    from archir.proof.undo import percent

    lines = []
    if part.parameters:
        far = percent(part.residual)
        lines.append(f"the weights are {far} away from what it can make (by norm); farthest:")
        worst = sorted(part.parameters.items(), key=lambda item: -item[1])
        width = max(len(path) for path, _ in worst[:SHOWN])
        lines += [f"  {path:{width}}  {percent(own)}" for path, own in worst[:SHOWN]]
        if len(worst) > SHOWN:
            lines.append(f"  and {len(worst) - SHOWN} more")
    if part.assumed:
        far = percent(part.assumed)
        lines.append(f"what the rule assumes of the parent's weights is off by {far}")
    lines += [f"`{rule}` has no verdict" for rule in part.unproved]
    return lines


command = make(
    "undo",
    options.file,
    click.option("-o", "--output", type=click.Path(dir_okay=False)),
    click.option(
        "--steps", type=click.IntRange(1), default=1, show_default=True, help="How many rewrites."
    ),
    click.option(
        "--approximate", is_flag=True, help="Take the nearest parent, though the function changes."
    ),
    click.option(
        "--to-parent", is_flag=True, help="Go back to the weights there were; training is lost."
    ),
    click.option("--dry-run", is_flag=True, help="Say how far from exact it is, write nothing."),
    options.force,
    options.weights,
    example="archir undo wider.arch -o net2.arch",
)(undo)
