"""What a file of ``torch.save`` may hold, found out before torch opens it.

``torch.load(weights_only=True)`` calls no code, but it unpacks compressed archives and makes
whatever a pickle asks for. Here the archive's directory and the pickle's opcodes are read alone:
nothing is unpacked, nothing is made. What is no plain tree of tensors, numbers and strings is
refused with the name of what stands there.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, cast

from archir.diag import ArchirError, error

MAX_PICKLE = 64_000_000
"""Bytes of pickled structure (the tensors' own bytes apart) that are read at most."""

Layout = Literal["zip", "stream"]
"""An archive with a record for each storage (torch 1.6 on), or the stream of before."""

_MAGIC = 0x1950A86A20F9469CFC6C
"""What the first pickle of a stream holds."""

_ALLOWED = re.compile(
    r"collections\.(OrderedDict|Counter)"
    r"|torch\.(cuda\.)?\w+Storage|torch\.storage\.(Untyped|Typed)Storage"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout"
    r"|torch\.nn\.parameter\.Parameter|torch\.(Tensor|Size|device)"
    r"|torch\.(b?float|double|half|u?int|long|short|bool|complex)\w*"
    r"|(builtins|__builtin__)\.set"
)
"""What a tree of tensors names. Beyond it torch knows makers of bytes of any length."""

_NAMES = ("GLOBAL", "INST", "STACK_GLOBAL")
_CALLS = {*_NAMES, "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING"}


def check_torch_file(path: Path) -> Layout:
    """Look through a file of ``torch.save``; what it is laid out as.

    Raises:
        ArchirError: A626, it is cut short, damaged or something else; A627, its pickle names
            more than tensors.
    """
    with path.open("rb") as stream:
        head = stream.read(512)
        stream.seek(0)
        if head.startswith(b"PK"):
            _check_archive(path, stream)
            return "zip"
        if head[257:262] == b"ustar":
            raise _refused(path, "it is a tar archive, the format of torch before 0.2")
        if head.startswith(b"\x80"):
            _check_stream(path, stream)
            return "stream"
    raise _refused(path, "it is neither an archive nor a pickle, as torch.save writes them")


def _refused(path: Path, why: str, hint: str = "") -> ArchirError:
    return error("A626", f"cannot read {path}: {why}", hint=hint)


def _check_archive(path: Path, stream: IO[bytes]) -> None:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(stream) as archive:
            records = archive.infolist()
            names = {record.filename.partition("/")[2]: record for record in records}
            if "constants.pkl" in names or any(name.startswith("code/") for name in names):
                hint = "load it with torch.jit.load and save its state_dict()"
                raise _refused(path, "it is a TorchScript archive, which is a program", hint)
            if "archive_format" in names:
                hint = "archir import takes it"
                raise _refused(path, "it is an exported program of torch", hint)
            if "data.pkl" not in names:
                raise _refused(path, "it is a zip archive that torch.save did not write")
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise _refused(path, "its records are compressed, which torch.save never does")
            if sum(record.file_size for record in records) > size:
                raise _refused(path, "its records claim more bytes than the file has")
            pickled = archive.open(names["data.pkl"])
            _check_pickle(path, _Bounded(pickled))
    except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError, ValueError) as reason:
        if isinstance(reason, OSError) and reason.errno is not None:
            raise
        raise _refused(path, f"its archive is cut short or damaged ({reason})") from None


def _check_stream(path: Path, stream: IO[bytes]) -> None:
    bounded = _Bounded(stream)
    for number in range(5):  # magic number, version, machine, the object, the storages' keys
        values = _check_pickle(path, bounded)
        if number == 0 and _MAGIC not in values:
            raise _refused(path, "it is a pickle that torch.save did not write")


def _check_pickle(path: Path, stream: _Bounded) -> list[object]:
    """Look through one pickle; the whole numbers in it."""
    numbers: list[object] = []
    try:
        for opcode, name in _steps(stream):
            if opcode in _CALLS and (opcode not in _NAMES or not _ALLOWED.fullmatch(str(name))):
                raise error(
                    "A627",
                    f"{path} holds `{name}` and not just tensors; nothing of it was run",
                    hint="where you trust the file, load it with torch and save the state_dict "
                    "alone: torch.save(model.state_dict(), ...)",
                )
            if isinstance(name, int):
                numbers.append(name)
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError) as reason:
        what = str(reason).partition("\n")[0][:80]
        raise _refused(path, f"its pickle is cut short or damaged ({what})") from None
    return numbers


def _steps(stream: _Bounded) -> Iterator[tuple[str, object]]:
    """The opcodes with their arguments; names of things as ``module.name``."""
    last = ["?", "?"]
    for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", stream)):
        found = argument
        if opcode.name in _STRINGS:
            last = [last[1], str(argument)]
        elif opcode.name == "STACK_GLOBAL":
            found = ".".join(last)
        elif opcode.name in _CALLS:
            found = str(argument).replace(" ", ".")
        yield opcode.name, found


class _Bounded:
    """A stream of which a certain number of bytes is read at most."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.left = MAX_PICKLE

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise ValueError(f"more than {MAX_PICKLE:,} bytes")
        self.left -= size
        return self.stream.read(size)

    def readline(self) -> bytes:
        found = self.stream.readline(min(self.left, 10_000))
        self.left -= len(found)
        return found
