"""Putting files in place whole: written beside their target, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
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
    target = Path(path)
    check_target(target, force=force)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make files that only their owner can read
        _sync(temporary)
        check_target(target, force=force)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as reason:
        raise cannot_write(target, reason) from reason
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
