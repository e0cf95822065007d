"""``archir new``: a network to begin from."""

from __future__ import annotations

import difflib
import itertools
import re
from importlib.resources import files
from pathlib import Path
from textwrap import shorten

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import error
from archir.files import writing


def templates() -> dict[str, str]:
    """The networks that archir ships: name and text."""
    folder = files("archir.examples")
    return {
        entry.name.removesuffix(".arch"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".arch")
    }


def _about(text: str) -> str:
    """What a network's first comment says before it comes to its source."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("#")), len(lines))
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines[start:])
    words = " ".join(line.lstrip("# ") for line in comment)
    words = re.sub(r"^\S+\.arch: ", "", words)
    return shorten(re.split(r"[;:] |\. (?=[A-Z])", words)[0], 80, placeholder=" ...")


def new(template: str | None, output: str | None, force: bool) -> Report:
    """Write one of archir's own networks to a file, or list them."""
    known = templates()
    if template is None:
        text = options.table(("template", ""), [(n, _about(t)) for n, t in known.items()])
        return Report({"templates": list(known)}, text)
    if template not in known:
        word = template.lower() or "?"
        close = [name for name in known if word in name][:1]
        close = close or [name for name, text in known.items() if word in _about(text).lower()][:1]
        close = close or difflib.get_close_matches(template, list(known), 1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(known)}"
        raise error("A609", f"there is no template `{template}`", hint=hint)
    target = Path(output or f"{template}.arch")
    with writing(target, force=force) as temporary:
        temporary.write_text(known[template], encoding="utf-8")
    return Report({"file": str(target), "template": template}, f"wrote {target}")


command = make(
    "new",
    click.argument("template", required=False),
    click.option(
        "-o", "--output", type=click.Path(dir_okay=False), help="By default TEMPLATE.arch."
    ),
    options.force,
    example="archir new resnet20 -o net.arch",
)(new)
