"""``archir new``: a network to begin from."""

from __future__ import annotations

import difflib
import itertools
import re
from importlib.resources import files
from inspect import signature
from pathlib import Path
from textwrap import shorten

import click

from archir.cli import options
from archir.cli.common import Report, parse_settings
from archir.cli.common import command as make
from archir.diag import error
from archir.files import writing
from archir.ir.types import AttrValue


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


def new(
    template: str | None,
    genome: str | None,
    settings: tuple[str, ...],
    output: str | None,
    force: bool,
) -> Report:
    """Write one of archir's own networks to a file, or list them.

    With --genome TEMPLATE is an encoding of a search, such as nsga_micro, and the network the one
    that the integers stand for. The cells that NAT starts from, nat_darts and its like, are written
    by themselves; --set makes them smaller: channels=8, layers=3, classes=10, shape=[1,8,8].
    """
    if genome is not None and template is not None:
        text = _decoded(template, genome, parse_settings(settings, "--set"))
        return _written(template, text, output, force=force)
    stacks = _stacks()
    if template in stacks and genome is None:
        text = _stacked(stacks[template], parse_settings(settings, "--set"))
        return _written(template, text, output, force=force)
    if genome is not None or settings:
        raise error("A609", "nothing says of which encoding", hint="ENCODING --genome INTEGERS")
    known = templates()
    if template is None:
        rows = [(name, _about(text)) for name, text in known.items()]
        rows += [(n, f"Cells that NAT starts from: {_NAMES[f]}") for n, f in stacks.items()]
        text = options.table(("template", ""), rows)
        return Report({"templates": [*known, *stacks]}, text)
    if template not in known:
        word = template.lower() or "?"
        close = [name for name in known if word in name][:1]
        close = close or [name for name, text in known.items() if word in _about(text).lower()][:1]
        close = close or difflib.get_close_matches(template, list(known), 1)
        hint = (
            f"did you mean `{close[0]}`?" if close else f"there are: {', '.join([*known, *stacks])}"
        )
        raise error("A609", f"there is no template `{template}`", hint=hint)
    return _written(template, known[template], output, force=force)


_NAMES = {
    "darts": "DARTS",
    "enas": "ENAS",
    "naonet": "NAONet",
    "vgg": "VGG, written as cells",
    "resnet": "ResNet, written as cells",
    "mobilenet": "MobileNetV2, written as cells",
}


def _stacks() -> dict[str, str]:
    """The families of cells by the template of each."""
    return {f"nat_{name}": name for name in _NAMES}


def _stacked(name: str, settings: dict[str, AttrValue]) -> str:
    """The text of a stack of a family's cells."""
    from archir.search.encodings.nat_cells import family

    known = [p.name for p in signature(family).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key, value in settings.items():
        if key not in known:
            raise error("A609", f"--set {key}: nothing has this name", hint=", ".join(known))
        sized = isinstance(value, tuple) if key == "shape" else type(value) is int
        if not sized or not _is_size(value):
            what = "[C,H,W]" if key == "shape" else "an integer"
            raise error("A609", f"--set {key}: expected {what}")
    return family(name, **settings)  # type: ignore[arg-type]


def _decoded(encoding: str, genome: str, settings: dict[str, AttrValue]) -> str:
    """The text of a genome's network."""
    from archir.search.encodings.encoding import remade

    try:
        genes = [int(word) for word in genome.split()]
    except ValueError:
        raise error("A609", f"--genome {genome}: expected integers") from None
    images: dict[str, AttrValue] = {"classes": 10, "shape": (3, 32, 32)}
    unfit = [name for name, value in settings.items() if not _is_size(value)]
    if unfit:
        raise error("A609", f"--set {unfit[0]}: expected integers")
    return remade({"encoding": encoding, "genome": genes, "settings": {**images, **settings}})


def _is_size(value: AttrValue) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(type(number) is int for number in numbers)


def _written(template: str, text: str, output: str | None, *, force: bool) -> Report:
    target = Path(output or f"{template}.arch")
    with writing(target, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Report({"file": str(target), "template": template}, f"wrote {target}")


command = make(
    "new",
    click.argument("template", required=False),
    click.option("--genome", metavar="INTEGERS", help="The network of an encoding that they are."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="Its classes, shape, ...",
    ),
    click.option(
        "-o", "--output", type=click.Path(dir_okay=False), help="By default TEMPLATE.arch."
    ),
    options.force,
    example="archir new resnet20 -o net.arch",
)(new)
