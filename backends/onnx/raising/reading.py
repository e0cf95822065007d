"""Reading an ONNX file that nobody vouches for.

The file is mapped into memory, looked over (:mod:`.wire`), and parsed without the data of its
initializers, which stay views of the file. Data in other files is read from the model's own
folder and from nowhere else.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from archir.diag import BAD_INPUT, ArchirError, error
from archir.ops.arithmetic import Array

from .wire import Look, MalformedError, TooLargeError

LARGEST = 2**28
"""Elements of one tensor that are read at most."""

_MODEL = ModelProto.DESCRIPTOR.fields_by_name
_GRAPH = GraphProto.DESCRIPTOR.fields_by_name
_TENSOR = TensorProto.DESCRIPTOR.fields_by_name
_UNREAD = {_GRAPH[name].number for name in ("value_info", "doc_string", "metadata_props")}
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it"),
    (b"\x80\x02", "a pickle"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
    (b"version 1", "an .arch text"),
)


@dataclass
class Source:
    """A file that was read."""

    path: Path
    model: ModelProto
    """Without the data of its initializers."""
    tensors: dict[str, Array]
    """The initializers, as views of the files."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Of the file and of those beside it, by name."""
    bytes: int = 0


def malformed(message: str, *, code: str = "A531", node: str = "", hint: str = "") -> ArchirError:
    """An error about a file that is wrong (exit status 2)."""
    return error(code, message, hint=hint, node=node, status=BAD_INPUT)


def read(path: Path) -> Source:
    """Read an ONNX file and the data beside it.

    Raises:
        ArchirError: A601 (it cannot be read), A530 (it is no whole ONNX file), A532 (its data
            lies elsewhere, or is not there), A533 (it is too large), A536 (an element type).
    """
    try:
        if not path.is_file():
            what = "it is not a regular file" if path.exists() else "no such file"
            raise error("A601", f"cannot read {path}: {what}")
        with path.open("rb") as file:
            data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if _size(path) else b""
    except OSError as reason:
        raise error("A601", f"cannot read {path}: {reason.strerror or reason}") from reason
    try:
        source = _parsed(path, data)
    except MalformedError as reason:
        raise malformed(_kind(path, data, str(reason)), code="A530") from None
    except DecodeError:
        raise malformed(_kind(path, data, "protobuf refuses it"), code="A530") from None
    except TooLargeError as reason:
        raise malformed(f"{path} is not read: {reason}", code="A533") from None
    source.sha256 = {path.name: _digest(path), **source.sha256}
    return source


def _size(path: Path) -> int:
    return path.stat().st_size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kind(path: Path, data: Any, reason: str) -> str:
    if not len(data):
        return f"{path} is empty"
    for magic, what in _FOREIGN:
        if data[: len(magic)] == magic:
            return f"{path} is no ONNX file but {what}"
    return f"{path} is no whole ONNX file: {reason}"


def _parsed(path: Path, data: Any) -> Source:
    look = Look(data)
    model_parts: list[bytes] = []
    graph_parts: list[bytes] = []
    initializers: list[tuple[int, int]] = []
    for outer in look.fields(0, len(data)):
        descriptor = ModelProto.DESCRIPTOR.fields_by_number.get(outer.number)
        if descriptor is None or outer.number != _MODEL["graph"].number or outer.kind != 2:
            if descriptor is not None and descriptor.message_type is not None and outer.kind == 2:
                look.check(outer.start, outer.end, descriptor.message_type)
            model_parts.append(data[outer.first : outer.end])
            continue
        for inner in look.fields(outer.start, outer.end):
            if inner.number == _GRAPH["initializer"].number and inner.kind == 2:
                initializers.append((inner.start, inner.end))
            elif inner.number not in _UNREAD:
                known = GraphProto.DESCRIPTOR.fields_by_number.get(inner.number)
                if known is not None and known.message_type is not None and inner.kind == 2:
                    look.check(inner.start, inner.end, known.message_type, 1)
                graph_parts.append(data[inner.first : inner.end])
    model = ModelProto()
    model.ParseFromString(b"".join(model_parts))
    model.graph.ParseFromString(b"".join(graph_parts))
    for message in (model, model.graph):
        _check_texts(message)
    if not model.graph.node and not model.graph.output:
        raise MalformedError("it holds no graph")
    source = Source(path, model, {}, bytes=len(data))
    for start, end in initializers:
        tensor, raw = _tensor(look, start, end)
        _add(source, tensor, raw)
    return source


def _tensor(look: Look, start: int, end: int) -> tuple[TensorProto, memoryview | None]:
    """An initializer without its raw data, and where that lies."""
    parts: list[bytes] = []
    raw: memoryview | None = None
    for inner in look.fields(start, end):
        if inner.number == _TENSOR["raw_data"].number and inner.kind == 2:
            raw = memoryview(look.data)[inner.start : inner.end]
            continue
        descriptor = TensorProto.DESCRIPTOR.fields_by_number.get(inner.number)
        if descriptor is not None and descriptor.message_type is not None and inner.kind == 2:
            look.check(inner.start, inner.end, descriptor.message_type, 2)
        parts.append(look.data[inner.first : inner.end])
    tensor = TensorProto()
    tensor.ParseFromString(b"".join(parts))
    _check_texts(tensor)
    return tensor, raw


def _check_texts(message: Message) -> None:
    """Refuse a message with a text of its own that is not UTF-8, which reads as bytes."""
    for kind, value in message.ListFields():
        if kind.type == kind.TYPE_STRING:
            texts = [value] if isinstance(value, str | bytes) else list(value)
            if not all(isinstance(text, str) and _encodes(text) for text in texts):
                raise MalformedError("a name or text is not UTF-8")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True


def _add(source: Source, tensor: TensorProto, raw: memoryview | None) -> None:
    if not tensor.name:
        raise malformed("an initializer has no name")
    if tensor.name in source.tensors:
        raise malformed(f"two initializers are named {shown(tensor.name)}")
    if tensor.data_location == TensorProto.EXTERNAL:
        source.tensors[tensor.name] = _external(source, tensor)
    else:
        source.tensors[tensor.name] = array_of(tensor, raw)


def shown(name: str) -> str:
    """A name from a file, fit for a line of text."""
    text = ascii(name)[1:-1] if not name.isprintable() else name
    return f"`{text}`" if len(text) <= 80 else f"`{text[:77]}...`"


def _type_of(tensor: TensorProto) -> np.dtype[Any]:
    """The element type of a tensor.

    Raises:
        ArchirError: A536, archir has no use for it; A531, there is none.
    """
    name = shown(tensor.name)
    try:
        word = TensorProto.DataType.Name(tensor.data_type)
    except ValueError:
        raise malformed(f"{name} has the element type {tensor.data_type}, which is none") from None
    plain = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "BOOL", "INT8", "INT16", "INT32", "INT64")
    if word not in (*plain, "UINT8", "UINT16", "UINT32", "UINT64"):
        if word == "UNDEFINED":
            raise malformed(f"{name} has no element type")
        raise error("A536", f"{name} has elements of {word.lower()}, which archir has no use for")
    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _count(tensor: TensorProto) -> int:
    """How many elements a tensor declares.

    Raises:
        ArchirError: A531 (a negative size), A533 (too many).
    """
    count = 1
    for size in tensor.dims:
        if size < 0:
            raise malformed(f"the tensor {shown(tensor.name)} has the size {size}")
        count *= size
    if len(tensor.dims) > 64 or count > LARGEST:
        raise malformed(
            f"{shown(tensor.name)} declares {count:,} elements in {len(tensor.dims)} axes; "
            f"{LARGEST:,} in 64 are read at most",
            code="A533",
        )
    return count


def array_of(tensor: TensorProto, raw: memoryview | None = None) -> Array:
    """The values of a tensor; those of ``raw`` are not copied.

    Raises:
        ArchirError: A531, A533, A536, it is wrong, too large, or of a type without use.
    """
    dtype, count, name = _type_of(tensor), _count(tensor), shown(tensor.name)
    if tensor.HasField("segment"):
        raise error("A536", f"{name} is in segments, which nobody writes")
    if tensor.data_location == TensorProto.EXTERNAL:
        raise malformed(f"{name} is no initializer and has its data in another file", code="A532")
    if raw is None and tensor.HasField("raw_data"):
        raw = memoryview(tensor.raw_data)
    if raw is not None:
        if raw.nbytes != count * dtype.itemsize:
            raise _holds(name, count, f"{raw.nbytes:,} bytes")
        return np.frombuffer(raw, dtype).reshape(tuple(tensor.dims))
    held = max(
        len(values)
        for values in (
            *(tensor.float_data, tensor.int32_data, tensor.int64_data),
            *(tensor.double_data, tensor.uint64_data),
        )
    )
    if held != count:
        raise _holds(name, count, f"{held:,}")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, OverflowError, NotImplementedError) as reason:
        raise malformed(f"{name} cannot be read: {_line(reason)}") from None


def _line(reason: Exception) -> str:
    return " ".join(str(reason).split())[:200]


def _holds(name: str, count: int, what: str) -> ArchirError:
    return malformed(f"{name} declares {count:,} elements and holds {what}")


def _external(source: Source, tensor: TensorProto) -> Array:
    """A tensor whose data lies in a file beside the model."""
    dtype, count, name = _type_of(tensor), _count(tensor), shown(tensor.name)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = beside(source.path, entries.get("location", ""), name)
    numbers = {key: _whole(entries.get(key, ""), key, name) for key in ("offset", "length")}
    offset, size = numbers["offset"] or 0, count * dtype.itemsize
    if numbers["length"] not in (None, size):
        raise _holds(name, count, f"{numbers['length']:,} bytes")
    there = _size(path)
    if offset + size > there:
        message = f"the data of {name} ends at byte {offset + size:,}, {path.name} at {there:,}"
        raise malformed(message, code="A532")
    if path.name not in source.sha256:
        source.sha256[path.name] = _digest(path)
        source.bytes += there
    if not count:
        return np.zeros(tuple(tensor.dims), dtype)
    values = np.memmap(path, dtype, "r", offset, (count,))
    return np.asarray(values).reshape(tuple(tensor.dims))


def beside(model: Path, location: str, name: str) -> Path:
    """The file of external data: in the model's folder, links followed.

    Raises:
        ArchirError: A532, it lies elsewhere or is no file.
    """
    parts = re.split(r"[/\\]", location)
    where = f"the data of {name} is said to be in {shown(location)}"
    bad = not location or "\0" in location or ".." in parts or parts[0] == ""
    if bad or re.match(r"[A-Za-z]:", location):
        message = f"{where}: only files in the model's own folder are read"
        raise malformed(message, code="A532")
    folder = model.parent.resolve()
    try:
        path = (folder / location).resolve()
        inside, there = path.is_relative_to(folder), path.is_file()
    except (OSError, RuntimeError, ValueError):
        raise malformed(f"{where}, which is no file", code="A532") from None
    if not inside:
        message = f"{where}, a link out of the model's folder, which is not followed"
        raise malformed(message, code="A532")
    if not there:
        hint = "it belongs beside the model"
        raise malformed(f"{where}, and there is no such file", code="A532", hint=hint)
    return path


def _whole(text: str, key: str, name: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        message = f"the {key} of the data of {name} is no number: {shown(text)}"
        raise malformed(message, code="A532")
    return int(text)


def opsets(model: ModelProto) -> Mapping[str, int]:
    """The opset of each domain that a model names."""
    return {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}


def newest_opset() -> int:
    """The newest opset that the installed onnx knows."""
    return int(onnx.defs.onnx_opset_version())
