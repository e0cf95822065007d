"""``archir verify``: check a network's certificate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import CHECK_FAILED


def verify(file: str, weights: str | None) -> Report:
    """Check a network against its certificate and replay what can be replayed.

    Text, graph, names and weights are compared by hash; initialisations and rewrites are done
    again and must come out bit for bit; training is attested by hashes and reported as that.
    """
    from archir.api import certificate_path, load
    from archir.proof.certificate import read_certificate

    read_certificate(certificate_path(Path(file)))
    network = load(file, weights=weights, unchecked=True)
    with options.spinner("verifying") as report:
        findings = network.verify(report)
    rows = [("ok" if f.holds else "FAILED", f.subject, f.how, f.detail) for f in findings]
    good = all(f.holds for f in findings)
    text = options.table(("", "what", "by", ""), rows)
    text += f"\n{file}: {'verified' if good else 'NOT verified'}"
    data = {"file": file, "verified": good, "findings": [asdict(f) for f in findings]}
    return Report(data, text, 0 if good else CHECK_FAILED)


command = make("verify", options.file, options.weights, example="archir verify deeper.arch")(verify)
