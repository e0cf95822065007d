"""``archir export``: an ONNX file that ONNX Runtime agrees with."""

from __future__ import annotations

from pathlib import Path

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import error


def export(
    file: str,
    output: str,
    opset: int,
    force: bool,
    param: tuple[str, ...],
    weights: str | None,
    init: int | None,
) -> Report:
    """Export a network to ONNX.

    The file is built beside its place, checked in full, run by ONNX Runtime at batch 1, 2 and
    7, and compared with the network; only then is it put in place.
    """
    from archir.api import no_weights

    if Path(output).suffix in (".arch", ".safetensors", ".json"):
        raise error(
            "A602", f"cannot write {output}: that is no name for an ONNX file", hint="-o NAME.onnx"
        )
    network = options.network(file, param, weights=weights, init=init)
    if network.weights is None:
        raise no_weights(Path(file))
    with options.spinner("exporting"):
        report = network.export(output, opset=opset, force=force)
    drift = max(report.drift.values(), default=0.0)
    text = (
        f"wrote {output}: opset {report.opset}, IR version {report.ir_version}, "
        f"{report.bytes:,} bytes\n"
        f"  {report.provider} agrees with {report.reference} at batch "
        f"{', '.join(map(str, report.batches))}: max|a-b|/max|a| = {drift:.1e}"
    )
    return Report(report.to_json(), text)


command = make(
    "export",
    options.file,
    options.output,
    click.option("--opset", type=int, default=20, show_default=True),
    options.force,
    options.params,
    options.weights,
    options.init,
    example="archir export net.arch -o net.onnx",
)(export)
