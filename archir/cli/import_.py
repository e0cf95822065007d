"""``archir import``: a network from torch, timm, torchvision or ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import error


def import_(
    source: str, output: str, size: str | None, aux: str | None, seed: int, force: bool
) -> Report:
    """Import a network from torch, timm, torchvision or ONNX.

    What is written is its text, its weights, and a certificate that names the source. SOURCE is
    torchvision:NAME[@WEIGHTS], timm:NAME[@TAG], file.py:factory (whose code is run), net.pt2 or
    net.onnx. A network from torch is put in place only if it computes the very same numbers as
    its source in eval mode; one from ONNX if ONNX Runtime agrees.
    """
    from archir.api import check_output
    from archir.importing import import_network
    from archir.target import ImportOptions

    target = check_output(Path(output), force=force)
    with options.spinner(f"importing {source}") as told:
        network, found = import_network(
            source,
            ImportOptions(
                size=_size(size),
                aux=cast("Literal['refuse', 'keep', 'drop']", aux or "refuse"),
                seed=seed,
                report=told,
            ),
        )
        told("writing")
        network.save(target, force=force)
    cost = network.cost()
    lines = network.text.count("\n")
    data = {
        "file": str(target),
        "name": network.graph.name,
        "nodes": len(network.graph),
        "lines": lines,
        "params": cost.params,
        "macs": cost.macs,
        "facts": dict(found.facts),
        "notes": list(found.notes),
    }
    text = "\n".join(
        [
            (
                f"wrote {target}: {len(network.graph)} nodes in {lines} lines, "
                f"{cost.params:,} parameters, {options.human(cost.macs)} MACs"
            ),
            *(f"  {note}" for note in found.notes),
        ]
    )
    return Report(data, text)


def _size(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    words = text.replace("x", ",").split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise error("A609", f"`--size {text}` is no shape", hint="--size 3,224,224")
    return tuple(int(word) for word in words)


command = make(
    "import",
    click.argument("source"),
    options.output,
    click.option("--size", metavar="C,H,W", help="The shape of one input, without the batch."),
    click.option(
        "--aux",
        type=click.Choice(["keep", "drop"]),
        is_flag=False,
        flag_value="keep",
        help="Auxiliary heads: keep them as outputs (as --aux alone does), or drop them.",
    ),
    options.seed,
    options.force,
    example="archir import torchvision:resnet18 -o resnet18.arch",
)(import_)
