"""``archir fmt``: one layout for everybody."""

from __future__ import annotations

from pathlib import Path

import click

from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import CHECK_FAILED, ArchirError
from archir.files import read_source, writing
from archir.lang import format_text


def fmt(files: tuple[str, ...], check: bool) -> Report:
    """Lay out networks: comments stay, the graph does not change.

    With --check nothing is written; exit status 1 says that a file would change.
    """
    changed, failures = [], []
    for path in files:
        try:
            if _lay_out(path, check=check):
                changed.append(path)
        except ArchirError as failure:
            failures.append(failure)
    word = "would be formatted" if check else "formatted"
    lines = [f"{path}: {word}{_certified(path)}" for path in changed]
    unchanged = len(files) - len(changed) - len(failures)
    lines.append(f"{unchanged} of {len(files)} files unchanged")
    status = CHECK_FAILED if check and changed else 0
    data = {"changed": changed, "files": list(files)}
    return Report(data, "\n".join(lines), status).after(failures)


def _certified(path: str) -> str:
    """A word of warning where a certificate is for the text as it was."""
    beside = Path(path).with_suffix(".cert.json")
    return f"; {beside.name} is for the layout before" if beside.is_file() else ""


def _lay_out(path: str, *, check: bool) -> bool:
    """Whether a file's layout changes; written unless it is only checked."""
    source = read_source(path)
    text = format_text(source)
    if text != source.text and not check:
        with writing(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return text != source.text


command = make(
    "fmt",
    click.argument("files", nargs=-1, required=True),
    click.option("--check", is_flag=True, help="Write nothing; say what would change."),
    example="archir fmt net.arch",
)(fmt)
