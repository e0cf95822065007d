"""``archir export``: an ONNX file that ONNX Runtime agrees with, or a Python file for torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import error

SHOWN = 5
"""So many clean-ups that were left out are shown."""


def export(file: str, output: str, kind: str, param: tuple[str, ...], **how: Any) -> Report:
    """Export a network to ONNX, or as Python that needs torch alone.

    ONNX: a copy of the network is cleaned up by proved rules: batch normalisations are folded, what
    does nothing goes. The file is built beside its place, checked in full, run by ONNX Runtime at
    batch 1, 2 and 7, and compared with the network; only then is it put in place. Where the
    comparison fails, the first layer that differs is named.

    torch: `-o FOLDER` or `-o model.py` gets classes a person can read and a function `model()`,
    with the weights beside them. The file is run without archir, and must give the same bits.
    """
    if kind == "torch":
        return _torch(file, output, param, **how)
    return _onnx(file, output, param, **how)


def _torch(
    file: str,
    output: str,
    param: tuple[str, ...],
    *,
    weights: str | None,
    init: int | None,
    force: bool,
    **onnx: Any,
) -> Report:
    from archir.api import no_weights
    from archir.cli.export_torch import export_torch

    context = click.get_current_context()
    for name in onnx:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(p.opts[0] for p in context.command.params if p.name == name)
            raise error(
                "A609", f"{option} is for ONNX alone", hint="leave it out, or --format onnx"
            )
    network = options.network(file, param, weights=weights, init=init)
    if network.weights is None:
        raise no_weights(Path(file))
    with options.spinner("exporting"):
        return export_torch(network, output, force=force)


def _onnx(
    file: str,
    output: str,
    param: tuple[str, ...],
    *,
    as_is: bool,
    weights: str | None,
    init: int | None,
    batches: str | None,
    keep: tuple[str, ...],
    half_io: bool,
    precision: str,
    **how: Any,
) -> Report:
    from archir.api import no_weights

    if Path(output).suffix in (".arch", ".safetensors", ".json"):
        raise error(
            "A602", f"cannot write {output}: that is no name for an ONNX file", hint="-o NAME.onnx"
        )
    if precision != "fp16" and (keep or half_io):
        given = "--keep" if keep else "--half-io"
        raise error("A609", f"{given} is for float16 alone", hint="--precision fp16")
    network = options.network(file, param, weights=weights, init=init)
    if network.weights is None:
        raise no_weights(Path(file))
    with options.spinner("exporting") as told:
        report = network.export(
            output,
            clean=not as_is,
            batches=_batches(batches),
            keep=keep,
            half_io=half_io,
            precision=precision,
            report=told,
            **how,
        )
    return Report(report.to_json(), "\n".join(_lines(report)))


def _batches(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise error("A609", f"--batches {text}: expected numbers", hint="--batches 1,2,7")
    return found


def _lines(report: Any) -> list[str]:
    beside = f", of which the weights are in {report.data}" if report.data else ""
    first = f"wrote {report.path}: opset {report.opset}, IR version {report.ir_version}, "
    lines = [f"{first}{report.bytes:,} bytes{beside}"]
    lines += _clean_ups(report.clean_ups) if report.clean_ups is not None else []
    drift = max(report.drift.values(), default=0.0)
    bound = max(report.bounds.values(), default=0.0)
    lines.append(
        f"  {report.provider} agrees with {report.reference} at batch "
        f"{', '.join(map(str, report.batches))}: max|a-b|/max|a| = {drift:.1e}, bound {bound:.0e}"
    )
    for name in report.flat:
        lines.append(f"  output {name} is one number throughout: layers compared one by one")
    if report.half is not None:
        lines += _half(report.half, bound)
    if report.placement.fell_back:
        lines.append(f"  not where it was to run: {report.placement.text()}")
    for batch, need in report.left_out.items():
        lines.append(f"  batch {batch} left out: its values need {need / 2**30:.1f} GiB")
    lines += _said(report.metadata)
    return lines


def _clean_ups(found: dict[str, Any]) -> list[str]:
    done = [f"{len(sites)} {rule}" for rule, sites in found["rules"].items()]
    done += [f"{len(found['dead'])} dead nodes" if found["dead"] else ""]
    stay = found["batch_norms_left"]
    text = ", ".join(filter(None, done)) or "none apply"
    text += f"; {stay} batch normalisation{'s stay' if stay > 1 else ' stays'}" if stay else ""
    left = [f"    not {one['rule']}@{one['at']}: {one['reason']}" for one in found["left"]]
    more = [f"    and {len(left) - SHOWN} more (--json)"] if len(left) > SHOWN else []
    return [f"  clean-ups: {text}", *left[:SHOWN], *more]


def _half(found: dict[str, Any], bound: float) -> list[str]:
    kept = [
        f"{', '.join(f'{n} {op}' for op, n in ops.items())} ({reason})"
        for reason, ops in found["kept_in_f32"].items()
    ]
    lines = [f"  float16: {found['half_nodes']} nodes"]
    lines[0] += f"; float32: {', '.join(kept)}" if kept else ""
    if found["rounded_drift"] is not None:
        drift = max(found["rounded_drift"].values(), default=0.0)
        lines.append(
            f"  with every value rounded to float16, as a GPU has it: {drift:.1e}, "
            f"bound {bound:.0e}"
        )
    return lines


def _said(metadata: dict[str, str]) -> list[str]:
    """What the file says of itself that a user may want to know."""
    lines = []
    digest = metadata.get("archir.certificate")
    lines.append(f"  certificate {digest[:16]}" if digest else "  no certificate of this network")
    if "archir.preprocess" in metadata:
        lines.append(f"  preprocessing: {', '.join(json.loads(metadata['archir.preprocess']))}")
    return lines


command = make(
    "export",
    options.file,
    click.option("-o", "--output", type=click.Path(), required=True),
    click.option(
        "--format",
        "kind",
        type=click.Choice(["onnx", "torch"]),
        default="onnx",
        show_default=True,
        help="torch: FOLDER/model.py and its weights, or -o NAME.py.",
    ),
    click.option("--opset", type=int, default=20, show_default=True),
    click.option("--as-is", is_flag=True, help="No clean-ups: layer by layer as in FILE."),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "fp16"]),
        default="fp32",
        show_default=True,
        help="fp16 computes in float16 what can be.",
    ),
    click.option(
        "--keep",
        multiple=True,
        metavar="PATH",
        help="With fp16: a layer, block or glob that stays in float32.",
    ),
    click.option("--half-io", is_flag=True, help="With fp16: inputs and outputs in float16 too."),
    click.option(
        "--provider",
        "--device",
        "provider",
        default="cpu",
        show_default=True,
        metavar="NAME",
        help="What runs the file: auto, cpu, cuda, another of ONNX Runtime's.",
    ),
    click.option(
        "--strict-provider", is_flag=True, help="Fail (3) where a node runs on another provider."
    ),
    click.option("--batches", metavar="N,N", help="Batch sizes to run.  [default: 1,2,7]"),
    click.option("--bound", type=float, help="The largest max|a-b|/max|a| that passes."),
    click.option("--external-data", is_flag=True, help="Weights in a file beside the model."),
    options.force,
    options.params,
    options.weights,
    options.init,
    example="archir export net.arch -o net.onnx",
)(export)
