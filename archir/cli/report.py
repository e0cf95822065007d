"""``archir report``: a search as one page to look at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from archir import __version__
from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.cli.diff import member_of
from archir.cli.difference import layer_lines
from archir.diag import UNSUPPORTED, ArchirError, error
from archir.files import check_target, writing
from archir.ops import installed_ops

if TYPE_CHECKING:
    from archir.proof.descent import Member


def report(run: str, output: str, title: str | None, force: bool) -> Report:
    """Write what a search found as one HTML page.

    Plots, the family tree, and for each network its scores, its difference from its parent, its
    certificate and the commands that make it again. The page is one file that loads nothing from
    anywhere. RUN may be a search under way.
    """
    target = Path(output)
    check_target(target, force=force)
    try:
        from archir.search.report import page
    except ModuleNotFoundError as missing:
        raise error(
            "A752",
            f"{missing.name} is not installed",
            hint="pip install 'archir[search]'",
            status=UNSUPPORTED,
        ) from None
    from archir.search.report.gather import gather

    folder = Path(run)
    with options.spinner("reading"):
        found = gather(folder, _layers)
        text = page(found, title=title or folder.resolve().name, version=__version__)
    with writing(target, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")
    members = found.journal.members
    data = {
        "file": str(target),
        "bytes": len(text.encode()),
        "members": len(members),
        "best": None if found.best is None else found.best.number,
        "finished": not found.unfinished,
    }
    ended = "" if not found.unfinished else "; the search is unfinished"
    told = f"wrote {target}: {len(members):,} networks, {data['bytes']:,} bytes{ended}"
    return Report(data, told)


def _layers(before: Path, after: Path) -> Sequence[str]:
    """How two members differ, layer by layer; nothing where one cannot be read."""
    from archir.proof.descent import relation
    from archir.rewrite.delta import delta

    ops = installed_ops()
    try:
        a, b = _member(before), member_of(str(after))
    except ArchirError:
        return []
    found = delta(a.graph, b.graph, relation(a, b, ops).pairs, ops)
    return layer_lines((a, b), found, ops)


@lru_cache(maxsize=32)
def _member(file: Path) -> Member:
    """A parent, kept for its next child."""
    return member_of(str(file))


command = make(
    "report",
    click.argument("run", type=click.Path(file_okay=False), metavar="RUN"),
    options.output,
    options.force,
    click.option("--title", metavar="TEXT", help="By default the folder's name."),
    example="archir report runs/first -o report.html",
)(report)
