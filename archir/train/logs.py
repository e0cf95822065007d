"""The files of a run folder that are read while it runs. Importing this module needs no torch.

``metrics.jsonl`` is the same for equal runs on a CPU, byte for byte, however often they were cut
off; what differs from run to run is in ``timings.jsonl``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from archir.diag import error
from archir.files import cannot_write

METRICS, TIMINGS, RUN = "metrics.jsonl", "timings.jsonl", "run.json"
LAST, BEST = "last.safetensors", "best.safetensors"


class Board(Protocol):
    """What is used of TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...

    def flush(self) -> object: ...

    def close(self) -> object: ...


class Logs:
    """The files of a run folder; nothing without a folder."""

    def __init__(
        self, folder: Path | None, *, kept: int | None = None, tensorboard: bool = False
    ) -> None:
        """Keep where the files are; they are opened on entering.

        Args:
            folder: The run folder, which is there.
            kept: Bytes of the metrics that stay: where a checkpoint left off; None to start anew.
            tensorboard: Whether to write the numbers for TensorBoard as well.

        Raises:
            ArchirError: A622, TensorBoard is wanted and not installed.
        """
        self.folder, self.kept = folder, kept
        self.board: Board | None = None
        self._files: list[IO[bytes]] = []
        if tensorboard and folder is not None:
            self.board = _board(folder)

    def __enter__(self) -> Self:
        if self.folder is not None:
            try:
                for name in (METRICS, TIMINGS):
                    mode = "wb" if self.kept is None else "r+b"
                    path = self.folder / name
                    self._files.append(path.open(mode if path.exists() else "wb"))
                if self.kept is not None:
                    self._cut(self._files[0], self.kept)
                    self._files[1].seek(0, os.SEEK_END)
            except OSError as reason:
                self.__exit__(None, None, None)
                raise cannot_write(self.folder, reason) from reason
        return self

    def _cut(self, file: IO[bytes], length: int) -> None:
        """Drop what was logged after the checkpoint: it will be logged again."""
        if file.seek(0, os.SEEK_END) < length:
            raise error(
                "A637",
                f"{file.name} is shorter than when the checkpoint was written",
                hint="the run folder was changed; start anew with --force",
            )
        file.seek(length)
        file.truncate()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()
        if self.board is not None:
            self.board.close()

    def metric(self, event: str, entries: Mapping[str, Any]) -> None:
        """Log a line that equal runs share."""
        self._write(0, {"event": event, **entries})
        if self.board is not None:
            for name, value in entries.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{event}/{name}", value, int(entries["step"]))

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
        if self.board is not None:
            self.board.flush()
        return self._files[0].tell()


def _board(folder: Path) -> Board:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (an extra)
    except ImportError:
        raise error(
            "A622",
            "numbers for TensorBoard need its package, which is not installed",
            hint="pip install 'archir[tensorboard]'",
        ) from None
    made: Board = SummaryWriter(str(folder))
    return made
