"""The files of a run folder that are read while it runs. Importing this module needs no torch.

``metrics.jsonl`` is the same for equal runs on a CPU, byte for byte, however often they were cut
off; what differs from run to run is in ``timings.jsonl``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from archir.diag import error
from archir.files import cannot_write

METRICS, TIMINGS, RUN = "metrics.jsonl", "timings.jsonl", "run.json"
ANEW = "--force without --resume starts anew"
"""What helps where a run cannot be gone on with."""
LAST, BEST = "last.safetensors", "best.safetensors"
EVENTS = "events.out.tfevents.*"
"""The files that TensorBoard's writer makes."""


def kept_in(run_dir: Path | None, *, resumable: bool = True) -> str:
    """What a user is told when a run ends early; empty without a checkpoint."""
    if run_dir is None or not (run_dir / LAST).is_file():
        return ""
    how = "; --resume goes on from it" if resumable else ""
    return f"the last good checkpoint is in {run_dir}{how}"


class Board(Protocol):
    """What is used of TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...

    def flush(self) -> object: ...

    def close(self) -> object: ...


class Logs:
    """The files of a run folder; nothing without a folder."""

    def __init__(self, folder: Path | None, *, tensorboard: bool = False) -> None:
        """Keep where the files are; they are opened on entering.

        Args:
            folder: The run folder, which is there on entering.
            tensorboard: Whether to write the numbers for TensorBoard as well.

        Raises:
            ArchirError: A622, TensorBoard is wanted and not installed.
        """
        self.folder = folder
        self._kept: int | None = None
        self._step = 0
        self._files: list[IO[bytes]] = []
        self._board: Board | None = None
        self._writer = _board_writer() if tensorboard and folder is not None else None

    def goes_on(self, kept: int, step: int) -> None:
        """Go on with the files that are there.

        Args:
            kept: Bytes of the metrics that stay: where a checkpoint left off.
            step: The steps that were done by then.
        """
        self._kept, self._step = kept, step

    def __enter__(self) -> Self:
        if self.folder is not None:
            try:
                self._open(self.folder)
            except OSError as reason:
                self._close()
                raise cannot_write(self.folder, reason) from reason
            except BaseException:
                self._close()
                raise
        return self

    def _open(self, folder: Path) -> None:
        for name in (METRICS, TIMINGS):
            path = folder / name
            old = self._kept is not None and path.exists()
            if name == METRICS and self._kept and not old:
                raise error("A637", f"{path} is missing", hint=ANEW)
            self._files.append(path.open("r+b" if old else "w+b"))
        if self._kept is not None:
            metrics, timings = self._files
            self._cut(metrics, self._kept)
            whole = timings.read().rfind(b"\n") + 1  # a full disk may have cut a line short
            timings.seek(whole)
            timings.truncate()
        if self._writer is not None:
            # numbers of steps after the checkpoint will come again: TensorBoard drops the old ones
            again = {} if self._kept is None else {"purge_step": self._step + 1}
            self._board = self._writer(str(folder), **again)

    def _cut(self, file: IO[bytes], length: int) -> None:
        """Drop what was logged after the checkpoint: it will be logged again."""
        if file.seek(0, os.SEEK_END) < length:
            raise error(
                "A637",
                f"{file.name} is shorter than when the checkpoint was written",
                hint=f"the run folder was changed; {ANEW}",
            )
        file.seek(length)
        file.truncate()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        for file in (*self._files, self._board):
            if file is not None:
                # what a full disk did not take is tried again here, and was reported
                with contextlib.suppress(OSError):
                    file.close()

    def metric(self, event: str, entries: Mapping[str, Any]) -> None:
        """Log a line that equal runs share; JSON has no NaN, which is null there."""
        self._write(0, {"event": event, **{k: _number(v) for k, v in entries.items()}})
        if self._board is not None:
            for name, value in entries.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{event}/{name}", value, int(entries["step"]))

    def timing(self, entries: Mapping[str, Any]) -> None:
        """Log a line that is this run's own."""
        self._write(1, entries)

    def _write(self, number: int, entries: Mapping[str, Any]) -> None:
        if not self._files:
            return
        try:
            self._files[number].write(json.dumps(entries).encode() + b"\n")
            self._files[number].flush()
        except OSError as reason:
            raise cannot_write(Path(self._files[number].name), reason) from reason

    def settled(self) -> int:
        """Make sure that the metrics are on the disk; their length in bytes."""
        if not self._files:
            return 0
        try:
            os.fsync(self._files[0].fileno())
        except OSError as reason:
            raise cannot_write(Path(self._files[0].name), reason) from reason
        if self._board is not None:
            self._board.flush()
        return self._files[0].tell()


def _board_writer() -> Callable[..., Board]:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (an extra)
    except ImportError:
        raise error(
            "A622",
            "numbers for TensorBoard need its package, which is not installed",
            hint="pip install 'archir[tensorboard]'",
        ) from None
    found: Callable[..., Board] = SummaryWriter
    return found


def _number(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
