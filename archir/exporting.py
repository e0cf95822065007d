"""Writing a network as ONNX: clean-ups first, then the backend's gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archir.cleaning import cleaned
from archir.files import check_target
from archir.ops.arithmetic import Array
from archir.proof.certificate import state_of
from archir.target import backends

if TYPE_CHECKING:
    from archir.api import Network


def export(
    network: Network,
    weights: Mapping[str, Array],
    path: str | Path,
    *,
    opset: int = 20,
    force: bool = False,
    clean: bool = True,
    precision: str = "fp32",
    keep: Sequence[str] = (),
    half_io: bool = False,
    provider: str = "cpu",
    strict_provider: bool = False,
    batches: Sequence[int] | None = None,
    bound: float | None = None,
    external_data: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Any:
    """Write a network as an ONNX file that ONNX Runtime agrees with.

    Args:
        network: The network.
        weights: Its weights.
        path: Where the file belongs.
        opset: The opset, which is delivered exactly.
        force: Whether a file may be replaced.
        clean: Whether proved rules clean up a copy of the network first, see
            :mod:`archir.cleaning`.
        precision: ``fp32``, or ``fp16`` to compute in float16 what can be.
        keep: With ``fp16``, paths or globs of nodes that stay in float32.
        half_io: With ``fp16``, whether inputs and outputs are float16 too.
        provider: The execution provider of ONNX Runtime that runs the file.
        strict_provider: Whether it fails where something runs on another provider.
        batches: The batch sizes that are run; by default 1, 2 and 7 as far as memory allows.
        bound: The largest max|a-b| / max|a| that passes; by default that of the element type.
        external_data: Whether the weights go into a file of their own however small they are.
        report: Called with a line about each step.

    Returns:
        The backend's report.

    Raises:
        ArchirError: A503, A5xx, A602, A603.
    """
    check_target(Path(path), force=force)
    backend: Any = backends()["onnx"]
    graph, given = network.graph, weights
    original, clean_ups = None, None
    if clean:
        report("clean-ups")
        work = cleaned(graph, weights, network.ops, network.library, report=report)
        clean_ups = work.facts()
        if work.uses or work.dead:
            original, graph, given = (graph, weights), work.graph, work.weights
    report("building, running, comparing")
    return backend.export(
        graph,
        given,
        path,
        opset=opset,
        force=force,
        metadata=certified(network),
        device=provider,
        strict=strict_provider,
        bound=bound,
        batches=batches,
        precision=precision,
        keep=keep,
        half_io=half_io,
        original=original,
        clean_ups=clean_ups,
        **({"largest": 0} if external_data else {}),
    )


def certified(network: Network) -> dict[str, str]:
    """What a file says of a certificate: its last digest, where it ends in this very network."""
    steps = network.certificate.steps
    if not steps:
        return {}
    state = state_of(network.text, network.graph, network.weights)
    return {"archir.certificate": steps[-1].digest} if steps[-1].after == state else {}
