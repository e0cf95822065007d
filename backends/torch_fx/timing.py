"""Networks that are ready to be timed in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from archir.diag import error
from archir.ir.graph import Graph
from archir.measure import Job, Timed
from archir.ops.arithmetic import Array
from archir.weights.store import numpy_dtype

from .frame import tensor_of
from .module import lower


def timed(
    graph: Graph, weights: Mapping[str, Array], feeds: Mapping[str, Array], job: Job, note: str
) -> Timed:
    """A network in eval mode on the device that a job names.

    Raises:
        ArchirError: A501, A502 (torch cannot run it), A508 (there is no such device).
    """
    torch.set_num_threads(job.threads)
    device = _device(job.device)
    module = lower(graph, weights).eval().to(device)
    run: Callable[..., object] = torch.compile(module) if job.compiled else module
    inputs = []
    for name in graph.inputs:
        dtype = numpy_dtype(graph.node(name).types[0].dtype)
        inputs.append(tensor_of(feeds[name].astype(dtype), copy=True).to(device))

    def once() -> None:
        with torch.inference_mode():
            run(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    engine = f"torch {torch.__version__.partition('+')[0]}"
    return Timed(once, engine + (", compiled" if job.compiled else ""), where, note)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    there = torch.cuda.device_count() if kind == "cuda" else 1
    known = kind in ("cpu", "cuda") and (not index or index.isdigit())
    if not known or int(index or 0) >= there:
        raise error("A508", f"torch has no device `{name}` here", hint="--device auto")
    return torch.device(name)
