"""Exported programs from files that nobody vouches for.

``torch.export.load`` trusts its file: it unpickles objects and evaluates expressions. What it
would run is refused here before it sees the file, and its pickles are read as weights only.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from archir.diag import BAD_INPUT, ArchirError, error

LARGEST_TEXT = 200_000_000
"""Bytes of a program's text that are read at most."""
RATIO = 50
"""How much larger than its file an archive may be: tensors hardly shrink."""
WORDS = frozenset(
    {
        *("Symbol", "Integer", "Rational", "Mul", "Add", "Pow", "Max", "Min", "Mod", "FloorDiv"),
        *("CeilDiv", "CleanDiv", "PythonMod", "ModularIndexing", "TruncToInt", "Equality", "Eq"),
        *("Ne", "Lt", "Le", "Gt", "Ge", "Unequality", "StrictLessThan", "LessThan"),
        *("StrictGreaterThan", "GreaterThan", "And", "Or", "Not", "Float"),
    }
)
"""What may stand in an expression of sizes."""
_FILES = re.compile(
    r"[^/]+/(\.?data/(weights/(weight_\d+|\w+\.json)|constants/(tensor_\d+|\w+\.json)"
    r"|sample_inputs/\w+\.pt|serialization_id)|models/\w+\.json|archive_format|archive_version"
    r"|byteorder|version|\.format_version|\.data/\w+)"
)


def read_program(file: Path) -> ExportedProgram:
    """Read an exported program without running anything that its file says.

    Raises:
        ArchirError: A526, it is no such program, or holds what would have to be run.
    """
    _look(file)
    try:
        with _weights_only():
            return torch.export.load(file)
    except Exception as reason:  # torch.export raises classes without a common base
        text = " ".join(str(reason).split())[:200]
        raise _refusal(file, text) from reason


def _refusal(file: Path, reason: str) -> ArchirError:
    return error(
        "A526", f"{file} cannot be read as an exported program: {reason}", status=BAD_INPUT
    )


def _look(file: Path) -> None:
    """Refuse an archive with members, or a program with expressions, of other kinds."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            whole = sum(entry.file_size for entry in entries)
            if whole > RATIO * max(file.stat().st_size, 1):
                raise _refusal(file, f"it unpacks to {whole:,} bytes")
            for entry in entries:
                if not _FILES.fullmatch(entry.filename):
                    name = entry.filename[:80]
                    raise _refusal(file, f"it holds `{name}`, which is neither text nor a tensor")
            for entry in entries:
                if entry.filename.endswith(".json"):
                    if entry.file_size > LARGEST_TEXT:
                        raise _refusal(file, f"its text has {entry.file_size:,} bytes")
                    _look_at(file, json.loads(archive.read(entry)))
    except (zipfile.BadZipFile, ValueError, RecursionError, EOFError, OSError) as reason:
        text = " ".join(str(reason).split())[:120]
        raise _refusal(file, f"it is damaged ({text})") from reason


def _look_at(file: Path, found: Any) -> None:
    """Refuse what ``torch.export.load`` would evaluate, or import, beyond sizes."""
    stack = [found]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            if value.get("guards_code"):
                raise _refusal(file, "it brings code of its own for guards")
            text = value.get("expr_str")
            if text is not None and not is_size(str(text)):
                raise _refusal(file, f"`{str(text)[:80]}` is no size")
            stack.extend(value.values())


def is_size(text: str) -> bool:
    """Whether an expression is made of sizes alone.

    >>> is_size("Mul(Integer(64), Symbol('s77', positive=True))"), is_size("exit(1)")
    (True, False)
    """
    if len(text) > 10_000:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_plain(node) for node in nodes)


def _plain(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return name in WORDS or re.fullmatch(r"[a-z]{1,3}\d+", name) is not None
        case ast.Constant(value=str() as word):
            return re.fullmatch(r"[a-z]{1,3}\d+|\d+(\.\d+)?", word) is not None
        case ast.Constant(value=value):
            return value is None or isinstance(value, bool | int | float)
        case ast.Call(func=ast.Name()):
            return True
    plain = (ast.Expression, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare)
    return isinstance(node, (*plain, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context))


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Have ``torch.load`` read tensors and nothing else, whoever calls it."""
    wanted = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": None}
    before = {name: os.environ.get(name) for name in wanted}
    try:
        _set(wanted)
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
