"""Published data sets fetched by torchvision, which compares each file with its MD5."""

from __future__ import annotations

import io
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from archir.diag import error
from archir.files import cannot_write
from archir.train.published import STALE

PATIENCE = 60.0
"""Seconds without an answer after which a server counts as out of reach."""

_PREFIX = ".download-"

_CLASSES: Mapping[str, tuple[str, list[dict[str, str]]]] = {
    "cifar10": ("CIFAR10", [{}]),
    "cifar100": ("CIFAR100", [{}]),
    "svhn": ("SVHN", [{"split": "train"}, {"split": "test"}]),
    "mnist": ("MNIST", [{}]),
    "fashion_mnist": ("FashionMNIST", [{}]),
}
"""For each name torchvision's class, and what to call it with until all files are there."""


def fetch(
    name: str, title: str, folder: Path, report: Callable[[str], object] | None = None
) -> None:
    """Fetch a data set into a folder, as torchvision lays it out, without the archives.

    The files are fetched and unpacked in a folder of their own inside ``folder``; each is moved
    to its place whole, once all are there.

    Raises:
        ArchirError: A602, the folder cannot be written; A622, torchvision is not installed;
            A661, a file cannot be fetched or is not the published one.
    """
    try:
        from torchvision import datasets  # noqa: PLC0415 (an extra)
    except ImportError:
        raise error(
            "A622",
            "data sets are fetched by torchvision, which is not installed",
            hint="pip install 'archir[data]'",
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_PREFIX}*"):
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as temporary:
            _fetch(datasets, name, title, Path(temporary), report)
            _move(Path(temporary), folder)
    except OSError as reason:
        raise cannot_write(folder, reason) from reason


def _fetch(
    datasets: Any, name: str, title: str, place: Path, report: Callable[[str], object] | None
) -> None:
    kind, calls = _CLASSES[name]
    try:
        with _patience(), _told(title, report):
            for arguments in calls:
                getattr(datasets, kind)(place, download=True, **arguments)
    except Exception as reason:  # of sockets, HTTP, TLS, tar, gzip, or torchvision's own
        why = " ".join(str(reason).split())[:400] or type(reason).__name__
        raise error(
            "A661",
            f"{title} could not be fetched: {why}",
            hint="is there a connection? A copy in torchvision's layout does as well",
        ) from reason


def _move(source: Path, target: Path) -> None:
    for file in sorted(source.rglob("*")):
        if file.is_file() and file.suffix != ".gz":
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)


@contextmanager
def _patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torchvision sets none
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _told(title: str, report: Callable[[str], object] | None) -> Iterator[None]:
    """Passes torchvision's progress bar on as lines; else it would write to the terminal."""
    with redirect_stdout(io.StringIO()), redirect_stderr(_Lines(title, report, sys.stderr)):
        yield


class _Lines(io.StringIO):
    """What its own thread writes is reported; other threads' words are none of torchvision's."""

    def __init__(self, title: str, report: Callable[[str], object] | None, others: TextIO) -> None:
        super().__init__()
        self._title, self._report, self._others = title, report, others
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._others.write(text)
        line = text.strip()
        if line and self._report is not None:
            self._report(f"fetching {self._title}: {line}")
        return len(text)
