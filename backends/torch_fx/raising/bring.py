"""From a module to a network that computes the same, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from archir.backends.torch_fx.frame import array_of
from archir.backends.torch_fx.module import lower
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from archir.diag import CHECK_FAILED, ArchirError, error
from archir.ops import installed_ops
from archir.target import Imported, ImportOptions

from .capture import BlockedError, capture
from .paths import block_names
from .walk import Raised, Walk, scope_of

BATCHES = (1, 3)
"""The batch sizes at which a network is compared with what it was raised from."""


@dataclass(frozen=True)
class Source:
    """A module to be imported."""

    name: str
    """What messages call it."""
    title: str
    """The network's name."""
    module: torch.nn.Module
    examples: tuple[torch.Tensor, ...]
    """An example for each argument, with a batch of 2."""
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    preprocess: tuple[tuple[str, Any], ...] = ()
    program: ExportedProgram | None = None
    """The program, where it has been captured already."""
    batches: tuple[int, ...] = BATCHES
    """The batch sizes at which the two are compared."""


@dataclass(frozen=True)
class _Candidate:
    raised: Raised
    mode: str
    outputs: int


def bring(source: Source, options: ImportOptions) -> Imported:
    """Capture a module, raise its program, and compare the two.

    Training mode is captured first: it shows dropout and stochastic depth. A module whose
    training code cannot be captured, or computes something else in eval mode, is captured in
    eval mode.

    Raises:
        ArchirError: A521 (it cannot be captured), A522 (it cannot be raised), A523 (the two
            differ), A524 (it has auxiliary heads).
    """
    with stirred(source.module):
        candidate, failures = _found(source, options)
    return _imported(source, candidate, failures)


def _found(source: Source, options: ImportOptions) -> tuple[_Candidate, list[ArchirError]]:
    """The first capture that is exact, and why those before it are not."""
    failures: list[ArchirError] = []
    expected = _expected(source)
    for train in (True, False) if source.program is None else (False,):
        options.report("capturing" + (" in eval mode" if not train else ""))
        try:
            candidate = _exact(source, options, expected, train=train)
        except ArchirError as reason:
            if reason.diagnostics[0].code == "A524":
                raise
            failures.append(reason)
            continue
        return candidate, failures
    raise failures[-1]


def _exact(source: Source, options: ImportOptions, expected: Runs, *, train: bool) -> _Candidate:
    """What a capture becomes; `contiguous` stays in it where the numbers depend on that alone.

    Raises:
        ArchirError: A521 to A524.
    """
    program = source.program if source.program is not None else _captured(source, train=train)
    outputs = len(expected[source.batches[0]][1])

    def compared(*, laid_out: bool) -> _Candidate:
        candidate = _candidate(source, options, program, outputs, train=train, laid_out=laid_out)
        options.report("comparing" + ", with `contiguous`" * laid_out)
        _compare(source, candidate, expected)
        return candidate

    try:
        return compared(laid_out=False)
    except ArchirError as reason:
        if reason.diagnostics[0].code != "A523":
            raise
    return compared(laid_out=True)


@contextlib.contextmanager
def stirred(module: torch.nn.Module) -> Iterator[None]:
    """Vectors of equal numbers (batch norms at their start) get different ones for a while.

    A comparison cannot pass then because two of them were mistaken for each other.
    """
    stream = torch.Generator().manual_seed(1)
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            plain = tensor.is_floating_point() and tensor.dim() == 1 and tensor.numel() > 1
            if plain and bool((tensor == tensor[0]).all()):
                held.append((tensor, tensor.clone()))
                noise = torch.rand(tensor.shape, generator=stream).to(tensor)
                tensor.add_(noise * 0.5)
        try:
            yield
        finally:
            for tensor, before in held:
                tensor.copy_(before)


def _candidate(
    source: Source,
    options: ImportOptions,
    program: ExportedProgram,
    outputs: int,
    *,
    train: bool,
    laid_out: bool,
) -> _Candidate:
    module = source.module
    classes = {name: type(each).__name__ for name, each in module.named_modules()}
    from torch.export.graph_signature import OutputKind  # noqa: PLC0415

    specs = program.graph_signature.output_specs
    count = sum(spec.kind is OutputKind.USER_OUTPUT for spec in specs)
    if train and count > outputs:
        heads = _heads(program, outputs)
        if options.aux == "refuse":
            raise error(
                "A524",
                f"{source.name} has outputs in training alone: auxiliary head"
                f"{'s' * (len(heads) != 1)} {', '.join(f'`{head}`' for head in heads)}",
                hint="--aux keeps them as outputs of the network, --aux drop leaves them out",
            )
        count = count if options.aux == "keep" else outputs
    walk = Walk(
        program,
        installed_ops(),
        source.title,
        train=train,
        laid_out=laid_out,
        classes=classes,
        aliases=_aliases(module),
    )
    return _Candidate(walk.run(count), "train" if train else "eval", outputs)


def _aliases(module: torch.nn.Module) -> dict[str, str]:
    """For each further path of a tied parameter its first."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), path) != path:
            found[path] = first[id(parameter)]
    return found


def _captured(source: Source, *, train: bool) -> ExportedProgram:
    try:
        return capture(source.module, source.examples, train=train)
    except BlockedError as reason:
        raise reason.as_error(source.name) from reason


def _heads(program: ExportedProgram, outputs: int) -> list[str]:
    """The modules whose results are outputs in training alone."""
    (last,) = (n for n in program.graph.nodes if n.op == "output")
    count = len(program.graph_signature.user_outputs)
    found = [scope_of(node).partition(".")[0] for node in last.args[0][-count:][outputs:]]
    return sorted(dict.fromkeys(head or "?" for head in found))


Runs = dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]]


def _expected(source: Source) -> Runs:
    """Inputs and outputs of the module in eval mode, by batch size."""
    found: Runs = {}
    stream = torch.Generator().manual_seed(0)
    with evaluating(source.module), torch.no_grad():
        for batch in source.batches:
            feeds = [_feed(example, batch, stream) for example in source.examples]
            try:
                results = tree_leaves(source.module(*(feed.clone() for feed in feeds)))
            except Exception as reason:
                text = " ".join(str(reason).split())[:200]
                shapes = ", ".join(str(list(feed.shape)) for feed in feeds)
                raise error(
                    "A521",
                    f"{source.name} does not run on {shapes}: {type(reason).__name__}: {text}",
                    hint="--size states the shape of one input, without the batch",
                ) from reason
            found[batch] = feeds, [r.clone() for r in results if isinstance(r, torch.Tensor)]
    return found


def _feed(example: torch.Tensor, batch: int, stream: torch.Generator) -> torch.Tensor:
    shape = (batch, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, generator=stream, dtype=example.dtype)
    most = int(example.max()) + 1 if example.numel() else 1
    return torch.randint(0, max(most, 1), shape, generator=stream).to(example.dtype)


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Run a module in eval mode, each operator as its code says it."""
    modes = {each: each.training for each in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for each in modes:
            each.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for each, mode in modes.items():
            each.training = mode


def _compare(source: Source, candidate: _Candidate, expected: Runs) -> None:
    """Whether the raised network gives the very same numbers as the module."""
    arrays = {path: array_of(t) for path, t in candidate.raised.tensors.items()}
    module = lower(candidate.raised.graph, arrays, installed_ops(), copy=False).eval()
    with torch.no_grad():
        for batch, (feeds, wanted) in expected.items():
            found = tree_leaves(module(*(feed.clone() for feed in feeds)))
            for place, (a, b) in enumerate(zip(wanted, found, strict=False)):
                if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
                    raise _differs(source, candidate, (batch, place), a, b)


def _differs(
    source: Source, candidate: _Candidate, at: tuple[int, int], a: torch.Tensor, b: torch.Tensor
) -> ArchirError:
    amount = "shapes differ"
    if a.shape == b.shape:
        gap = (a - b).abs().max() / a.abs().max().clamp_min(1e-30)
        amount = f"max|a-b|/max|a| = {gap:.1e}"
    name = candidate.raised.graph.outputs[at[1]].name
    return error(
        "A523",
        f"{source.name}, captured in {candidate.mode} mode, differs from the module in eval mode: "
        f"output `{name}` at batch {at[0]}, {amount}",
        status=CHECK_FAILED,
    )


def _imported(source: Source, candidate: _Candidate, failures: Sequence[ArchirError]) -> Imported:
    raised = candidate.raised
    graph = raised.graph
    if source.preprocess:
        builder = graph.edit()
        builder.meta["preprocess"] = source.preprocess
        graph = builder.build()
    notes = [*source.notes]
    if failures:
        notes.append(f"captured in eval mode: {failures[0].diagnostics[0].message}")
    if raised.carried:
        names = ", ".join(f"`{name}`" for name in raised.carried)
        notes.append(f"carried for torch alone, cannot be exported: {names}")
    batches = " and ".join(map(str, source.batches))
    many = "es" * (len(source.batches) > 1)
    notes.append(f"equal to the module bit for bit in eval mode at batch{many} {batches}")
    facts = {
        **source.facts,
        "torch": torch.__version__,
        "captured": candidate.mode,
        "carried": list(raised.carried),
        "equal": {
            "batches": list(source.batches),
            "mode": "eval",
            "dtype": "f32",
            "how": "torch.equal",
        },
    }
    arrays = {path: array_of(tensor) for path, tensor in raised.tensors.items()}
    classes = {path: type(each).__name__ for path, each in source.module.named_modules()}
    return Imported(graph, arrays, facts, tuple(notes), block_names(classes))
