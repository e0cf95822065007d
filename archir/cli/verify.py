"""``archir verify``: check a network's certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import CHECK_FAILED, ArchirError
from archir.files import read_source

if TYPE_CHECKING:
    from archir.api import Network
    from archir.ops.arithmetic import Array
    from archir.proof.replay import Finding
    from archir.train.data import Dataset


def verify(file: str, weights: str | None, calibrate: str | None, download: bool) -> Report:
    """Check a network's certificate and replay its steps.

    Text, graph, names and weights are compared by hash; initialisations and rewrites are done
    again and must come out bit for bit; training is attested by hashes and reported as that, and
    so are fits to data, unless --calibrate gives the data to do them again.
    """
    from archir.api import certificate_path, load, weights_path
    from archir.proof.certificate import read_certificate
    from archir.proof.replay import Finding
    from archir.saving import optimizer_path
    from archir.weights.store import is_untouched

    read_source(Path(file))
    read_certificate(certificate_path(Path(file)))
    try:
        network = load(file, weights=weights, unchecked=True)
    except ArchirError as failure:
        found = "; ".join(d.message for d in failure.diagnostics[:3])
        return _report(file, [Finding("network", "reading", holds=False, detail=found)])
    data = None
    if calibrate is not None:
        data = options.dataset(calibrate, network.graph, download=download)
    with options.spinner("verifying") as report:
        findings = network.verify(report)
        if data is not None and all(f.holds for f in findings):
            findings += _fits(network, data, report)
    if network.weights is not None and weights is None:
        fine = is_untouched(weights_path(Path(file)))
        findings.append(Finding("header of the weights", "hash", holds=fine))
        if optimizer_path(Path(file)).is_file():
            findings.append(_optimizer(file, network))
    return _report(file, findings)


def _optimizer(file: str, network: Network) -> Finding:
    """The optimizer's state: that of these weights, and the one that the last step states."""
    from archir.proof.replay import Finding
    from archir.train.state import State

    try:
        digest = State.load(file, network).digest
    except ArchirError as failure:
        detail = failure.diagnostics[0].message
        return Finding("the optimizer's state", "hash", holds=False, detail=detail)
    steps = network.certificate.steps
    stated = steps[-1].facts.get("optimizer") if steps else None
    holds = not isinstance(stated, dict) or stated.get("after") == digest
    detail = "" if holds else "it is not the one that the last step states"
    return Finding("the optimizer's state", "hash", holds=holds, detail=detail)


def _fits(network: Network, dataset: Dataset, report: Callable[[str], None]) -> list[Finding]:
    """The fits of a certificate, done again."""
    from archir.refitting import replayed
    from archir.train.data import calibration_batch, check_fits

    check_fits(network.graph, dataset)

    def batch(count: int, seed: int) -> dict[str, Array]:
        report(f"a fit to {count} images of {dataset.name}")
        images = calibration_batch(dataset, count, seed, network.graph)
        return {network.graph.inputs[0]: images}

    return replayed(network, batch)


def _report(file: str, findings: Sequence[Finding]) -> Report:
    rows = [("ok" if f.holds else "FAILED", f.subject, f.how, f.detail) for f in findings]
    good = all(f.holds for f in findings)
    text = options.table(("", "what", "by", ""), rows)
    text += f"\n{file}: {'verified' if good else 'NOT verified'}"
    data = {"file": file, "verified": good, "findings": [asdict(f) for f in findings]}
    return Report(data, text, 0 if good else CHECK_FAILED)


command = make(
    "verify",
    options.file,
    options.weights,
    click.option("--calibrate", metavar="DATA", help="Do the fits to this data again."),
    options.download,
    example="archir verify deeper.arch",
)(verify)
