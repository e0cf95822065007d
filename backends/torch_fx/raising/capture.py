"""Programs of modules: ``torch.export``, with the batch symbolic, in train and in eval mode."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram, export

from archir.diag import ArchirError, error

LARGEST = 1 << 16
"""The largest batch that a program is captured for."""
_GUARDS = "torch.fx.experimental.symbolic_shapes"
_LINE = re.compile(r"\(?((?:/|\w:)?[^\s():]+\.py):(\d+) in (\w+)")


@dataclass(frozen=True)
class BlockedError(Exception):
    """A module that cannot be captured: the reason, and the line of its code that blocks."""

    reason: str
    line: str = ""

    def as_error(self, source: str) -> ArchirError:
        """The diagnostic: A521."""
        where = f"\n    {self.line}" if self.line else ""
        return error(
            "A521",
            f"{source} cannot be captured: {self.reason}{where}",
            hint="what a network does may not depend on the values, or the number, of its "
            "inputs: write it with torch.where, or take the branch out of `forward`",
        )


def capture(
    module: torch.nn.Module, examples: Sequence[torch.Tensor], *, train: bool, batch: bool = True
) -> ExportedProgram:
    """Capture a module's program; its state and its mode are afterwards as before.

    Args:
        module: The module.
        examples: An example for each argument; all share the size of the first axis.
        train: The mode.
        batch: Whether the first axis is symbolic.

    Raises:
        BlockedError: ``torch.export`` cannot follow the code.
    """
    modes = {each: each.training for each in module.modules()}
    state = {name: value.clone() for name, value in module.named_buffers()}
    symbol = Dim("N", min=1, max=LARGEST)
    shapes = tuple({0: symbol} if batch and e.dim() else None for e in examples)
    lines: list[str] = []
    try:
        module.train(train)
        with _quiet(lines), torch.no_grad():
            return export(module, tuple(examples), dynamic_shapes=shapes, strict=False)
    except Exception as reason:  # torch.export raises classes without a common base
        raise _blocked(reason, lines) from reason
    finally:
        for each, mode in modes.items():
            each.training = mode
        with torch.no_grad():
            for name, value in module.named_buffers():
                value.copy_(state[name])


@contextlib.contextmanager
def _quiet(lines: list[str]) -> Iterator[None]:
    """Keep torch from talking; what it says of the guards on sizes is collected."""

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if "eval " in text:
                lines.append(text)

    guards = logging.getLogger(_GUARDS)
    handler, level, onward = Collect(logging.INFO), guards.level, guards.propagate
    guards.addHandler(handler)
    guards.setLevel(logging.INFO)
    guards.propagate = False
    others = [h for h in guards.handlers if h is not handler]
    for other in others:
        guards.removeHandler(other)
    outer = logging.getLogger("torch")
    before = outer.level
    outer.setLevel(logging.CRITICAL)
    try:
        talk = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(talk),
            contextlib.redirect_stderr(talk),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        guards.removeHandler(handler)
        for other in others:
            guards.addHandler(other)
        guards.setLevel(level)
        guards.propagate = onward
        outer.setLevel(before)


def _blocked(reason: Exception, guards: Sequence[str]) -> BlockedError:
    name = type(reason).__name__
    text = str(reason).strip()
    first = text.splitlines()[0] if text else name
    frames = [f for f in traceback.extract_tb(reason.__traceback__) if not _torchs(f.filename)]
    line = _shown(frames[-1].filename, frames[-1].lineno or 0) if frames else ""
    if "ConstraintViolation" in name or "Constraints violated" in text:
        found = [m for text in guards for m in _LINE.finditer(text) if not _torchs(m.group(1))]
        line = _shown(found[-1].group(1), int(found[-1].group(2))) if found else ""
        return BlockedError("its code depends on the size of the batch", line)
    if "DataDependent" in name or "data-dependent" in text:
        return BlockedError("its code depends on the values of tensors", line)
    return BlockedError(first[:200], line)


def _torchs(path: str) -> bool:
    parts = Path(path).parts
    return "torch" in parts or path.startswith("<") or Path(__file__).parent == Path(path).parent


def _file(module: object) -> str:
    return str(getattr(module, "__file__", None) or "")


def _shown(path: str, number: int) -> str:
    full = [file for file in map(_file, list(sys.modules.values())) if file.endswith(path)]
    path = full[0] if full else path  # torch's log shortens paths
    try:
        code = Path(path).read_text(encoding="utf-8").splitlines()[number - 1].strip()
    except (OSError, IndexError, UnicodeDecodeError):
        code = ""
    return f"{path}:{number}: {code}"
