"""Where training runs, and in which precision. Importing this module needs torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, cast

from archir import target
from archir.diag import UNSUPPORTED, error
from archir.ir.graph import Graph

try:
    import torch
except ImportError:
    raise error(
        "A622",
        "training and evaluation need torch, which is not installed",
        hint="pip install 'archir[torch]'",
    ) from None

from archir.train.recipe import Precision
from archir.weights.store import Weights


class _Torch(Protocol):
    """What the torch backend offers beyond :class:`archir.target.Backend`."""

    def lower(self, graph: Graph, weights: Weights) -> torch.nn.Module: ...

    def weights_of(self, module: torch.nn.Module, graph: Graph) -> Weights: ...


def resolve(device: str) -> torch.device:
    """The device of a name: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.

    ``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        ArchirError: A630, the device that was asked for is not there.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        return torch.device("cpu")
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if found is None:
        raise error(
            "A630", f"`{device}` is no device", hint="auto, cpu, cuda or cuda:0, cuda:1, ..."
        )
    index, count = int(found[1] or 0), torch.cuda.device_count()
    if index >= count:
        there = f"torch sees {count} GPU{'s' * (count != 1)}"
        raise error("A630", f"there is no {device} here: {there}", hint="use `auto` or `cpu`")
    return torch.device("cuda", index)


def describe(device: torch.device, precision: Precision = "f32") -> str:
    """A line on what was chosen, such as ``cpu (2 threads), f32``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}), {precision}"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' * (threads != 1)}), {precision}"


def casting(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context in which a network runs: autocast to bf16 or f16, or nothing.

    Raises:
        ArchirError: A632, there is no such precision.
    """
    if precision == "f32":
        return nullcontext()
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16}
    if precision not in kinds:
        raise error("A632", f"`{precision}` is no precision", hint="f32, bf16 or f16")
    return torch.autocast(device.type, dtype=kinds[precision])


@contextmanager
def memory(device: torch.device) -> Iterator[None]:
    """Says in the user's terms that a device has no memory left.

    Raises:
        ArchirError: A633.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as reason:
        full = isinstance(reason, torch.OutOfMemoryError | MemoryError)
        if not full and "can't allocate memory" not in str(reason):  # what torch says on a CPU
            raise
        raise error(
            "A633",
            f"{device} has not enough memory for this",
            hint="a smaller batch needs less memory",
        ) from reason


@contextmanager
def running() -> Iterator[None]:
    """Says in the user's terms that torch cannot run a network on a batch, or compile it.

    Raises:
        ArchirError: A632, the batch is too small for a batch norm; A675, torch.compile failed.
    """
    try:
        yield
    except ValueError as reason:
        if "Expected more than 1" not in str(reason):
            raise
        raise error(
            "A632",
            "a batch norm needs more than one value of each channel, and a batch has one image",
            hint="a larger batch_size (of each process), or more data",
        ) from None
    except RuntimeError as reason:
        if not type(reason).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise error(
            "A675",
            f"torch.compile failed: {str(reason).splitlines()[0][:300]}",
            hint="on a CPU it needs a C++ compiler; without `compile` nothing is compiled",
            status=UNSUPPORTED,
        ) from reason


def module_of(graph: Graph, weights: Weights, device: torch.device) -> torch.nn.Module:
    """The network as a torch module on a device, over copies of the weights.

    Raises:
        ArchirError: A5xx, torch cannot run this network; A611 or A612, the weights do not fit.
    """
    return _backend().lower(graph, weights).to(device)


def weights_of(module: torch.nn.Module, graph: Graph) -> Weights:
    """The weights that a module of :func:`module_of` holds now, as arrays of their own."""
    return _backend().weights_of(module, graph)


def _backend() -> _Torch:
    return cast("_Torch", target.backends()["torch"])
