"""Putting files in place whole: written beside their target, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from archir.diag import ArchirError, Source, error

MAX_TEXT = 64_000_000
"""Bytes of text that are read at most."""


@contextlib.contextmanager
def writing(path: str | Path, *, force: bool = True) -> Iterator[Path]:
    """Hand out a temporary path beside ``path``; what is written there replaces it at the end.

    If the body raises, the temporary file is removed and whatever stood at ``path`` stays.

    Args:
        path: Where the file belongs.
        force: Whether an existing file may be replaced.

    Raises:
        ArchirError: A602 (it cannot be written), A603 (it exists and ``force`` is false).
    """
    with writing_all([path], force=force) as (temporary,):
        yield temporary


@contextlib.contextmanager
def writing_all(
    paths: Sequence[str | Path], *, force: bool = True, stale: Sequence[Path] = ()
) -> Iterator[list[Path]]:
    """Hand out a temporary path for each of several files that belong together.

    All of them are whole and on the disk before the first takes its place, so that a full disk
    or an interruption leaves every old file as it was; an interruption waits while they move.

    Args:
        paths: Where the files belong, in the order in which they are put in place.
        force: Whether existing files may be replaced.
        stale: Files that do not go with the new ones and are removed after them.

    Raises:
        ArchirError: A602 (one cannot be written), A603 (one exists and ``force`` is false).
    """
    targets = [Path(path) for path in paths]
    for target in (*targets, *stale):
        check_target(target, force=force)
    mark = secrets.token_hex(6)
    temporaries = [t.with_name(f".{t.name[:100]}.{mark}.tmp") for t in targets]
    target = targets[-1]  # the one that an error of the body names
    try:
        for temporary in temporaries:
            temporary.touch()
        mode = temporaries[0].stat().st_mode
        yield temporaries
        for target, temporary in zip(targets, temporaries, strict=True):
            temporary.chmod(mode)  # some writers make files that only their owner can read
            _sync(temporary)
            check_target(target, force=force)
        with _undisturbed():
            for target, temporary in zip(targets, temporaries, strict=True):
                temporary.replace(target)
            for target in stale:
                target.unlink(missing_ok=True)
        _sync(targets[0].parent)
    except OSError as reason:
        raise cannot_write(target, reason) from reason
    finally:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C and a request to end wait."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that exists (without ``force``) or that is no regular file.

    Raises:
        ArchirError: A602 or A603.
    """
    if target.exists() and not target.is_file():
        raise error("A602", f"cannot write {target}: it is not a regular file")
    if target.exists() and not force:
        raise error("A603", f"{target} exists already", hint="replace it with --force")
    if not target.parent.is_dir():
        raise error("A602", f"cannot write {target}: there is no folder {target.parent}")


def cannot_write(target: Path, reason: OSError) -> ArchirError:
    """The diagnostic for a write that the system refused."""
    return error("A602", f"cannot write {target}: {reason.strerror or reason}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_source(path: str | Path) -> Source:
    """The text of a file.

    Raises:
        ArchirError: A601, it cannot be read or is no text.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_TEXT:
            raise error("A601", f"{file} has more than {MAX_TEXT:,} bytes: no text of a network")
        return Source(str(path), file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise error("A601", f"{file} is not UTF-8 text") from None
    except (OSError, ValueError) as reason:
        what = reason.strerror if isinstance(reason, OSError) else str(reason)
        raise error("A601", f"cannot read {file}: {what}") from None
